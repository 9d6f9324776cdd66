"""`LoraConfig(r=8)` and its like need no names of modules on our backbones."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (peft.LoraConfig(r=2), {"q_proj", "v_proj"}),
        (peft.AdaLoraConfig(total_step=10, target_r=2, init_r=2), {"q_proj", "v_proj"}),
        (peft.LoHaConfig(r=2), {"q_proj", "v_proj"}),
        (peft.OFTConfig(oft_block_size=4), {"q_proj", "v_proj"}),
        (peft.IA3Config(), {"k_proj", "v_proj", "fc2"}),
        (peft.LNTuningConfig(), {"norm1", "norm2"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, peft.PeftConfig) else "",
)
def test_default_targets(backbone, config, expected):
    num_blocks = backbone.config.num_hidden_layers
    model = get_peft_model(backbone, config)
    names = model.base_model.targeted_module_names
    assert {name.rpartition(".")[2].removeprefix("contrast_") for name in names} == expected
    # In ReCon, three more tokens have layers of their own.
    branches = 2 if backbone.config.model_type == "recon" else 1
    assert len(names) == num_blocks * len(expected) * branches
    assert not any("classifier" in name for name in names)


def test_lora_without_names_is_trained_saved_and_loaded(
    backbone, make_backbone, backbone_name, points, logits, train, tmp_path
):
    model = get_peft_model(backbone, peft.LoraConfig(r=2, modules_to_save=list(backbone.task_module_names)))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_backbone(backbone_name), tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))
