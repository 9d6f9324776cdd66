"""Fine-tuning with a bank that changes, and clouds that do not see their own entry."""

import pytest
from safetensors.torch import load_file

from point_peft_hf.training import FinetuneArguments, Finetuning

CONFIG = {"num_prompt_tokens": 4, "leave_own_entry_out": True, "query": "tokens", "bank_dtype": "float32"}


def finetune(backbone, task, folder, **options):
    arguments = FinetuneArguments(
        method="prompt", model=backbone, output_dir=str(folder), batch_size=16, mixed_precision="no", **options
    )
    return Finetuning(arguments, task, report=lambda line: None)


@pytest.mark.parametrize("update", ["ema", "queue"])
def test_a_resumed_run_ends_with_the_bank_of_an_unbroken_one(update, tiny_backbone, tiny_task, tmp_path):
    def saved(folder):
        return load_file(next((folder / "prompt" / "checkpoint" / "model_0").glob("*.safetensors")))

    options = {"epochs": 2, "config": {**CONFIG, "bank_update": update, "bank_momentum": 0.5}}
    unbroken = finetune(tiny_backbone, tiny_task, tmp_path / "a", **options)
    before = unbroken.model.base_model.model.point_mae.encoder.prior_slot.banks["default"].features.clone()
    unbroken.run()
    broken = finetune(tiny_backbone, tiny_task, tmp_path / "b", **options)
    train_epoch = broken._train_epoch
    broken._train_epoch = lambda epoch: train_epoch(epoch) if epoch < 2 else pytest.fail("stop", pytrace=False)
    with pytest.raises(pytest.fail.Exception):
        broken.run()
    finetune(tiny_backbone, tiny_task, tmp_path / "b", resume_from_checkpoint="latest", **options).run()
    expected, got = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)
    features = next(value for name, value in got.items() if name.endswith("bank.features"))
    assert (features != before).any()
