"""Fine-tuning with a bank that changes, and clouds that do not see their own entry."""

import pytest

CONFIG = {"num_prompt_tokens": 4, "leave_own_entry_out": True, "bank_dtype": "float32"}


@pytest.mark.parametrize("update", ["ema", "queue"])
def test_a_resumed_run_ends_with_the_bank_of_an_unbroken_one(update, finetune, crash, last_weights, tmp_path):
    options = {"method": "prompt", "config": {**CONFIG, "query": "encoder", "bank_update": update}}
    unbroken = finetune(tmp_path / "a", **options)
    before = unbroken.trainer.model.base_model.model.point_mae.encoder.token_slot.banks["default"].features.clone()
    unbroken.run()
    crash(finetune(tmp_path / "b", **options), step=4)
    finetune(tmp_path / "b", resume_from_checkpoint="latest", **options).run()
    expected, got = last_weights(tmp_path / "a" / "prompt"), last_weights(tmp_path / "b" / "prompt")
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)
    features = next(value for name, value in got.items() if name.endswith("bank.features"))
    assert (features != before).any()
