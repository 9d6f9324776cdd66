"""Presets fill in what is not given."""

import pytest

from point_peft_hf.training.arguments import parse_arguments
from point_peft_hf.training.presets import PRESETS


@pytest.mark.parametrize("as_mapping", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_what_is_not_given_comes_from_the_preset(name, as_mapping, tmp_path):
    given = {"preset": name, "num_train_epochs": 3.0, "output_dir": str(tmp_path), "method": ["lora"]}
    if not as_mapping:
        given = ["--preset", name, "--num_train_epochs", "3", "--output_dir", str(tmp_path), "--method", "lora"]
    methods, what, how = parse_arguments(given)
    assert methods == ["lora"]
    assert how.num_train_epochs == 3
    assert (how.learning_rate, how.per_device_train_batch_size) == (5e-4, 32)
    assert how.warmup_steps == pytest.approx(1 / 30)
    assert what.num_points == PRESETS[name]["num_points"]
    assert what.model_config["num_groups"] == what.num_points // 16


def test_an_abbreviated_option_is_not_ignored():
    assert parse_arguments(["--pres", "paper_modelnet40"])[2].learning_rate == 5e-4


def test_a_preset_that_does_not_exist():
    with pytest.raises(ValueError, match="There is no preset 'paper'. Choose one of paper_scanobjectnn, "):
        parse_arguments(["--preset", "paper"])
