from pathlib import Path

import pytest
from peft import PeftModel

from point_peft_hf.io.card import is_public
from point_peft_hf.training import METHODS, FinetuneArguments, load_backbone, prepare_method

NAMES = ["bed", "sofa", "mug"]


def trainable_names(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_the_head_and_what_it_says(method, tiny_backbone):
    model = prepare_method(method, load_backbone(tiny_backbone, NAMES))
    names = trainable_names(model)
    assert any("classifier" in name for name in names)
    assert any("class_token" in name for name in names)
    others = [name for name in names if "classifier" not in name and "class_token" not in name]
    assert isinstance(model, PeftModel) == (method != "full")
    if method == "linear":
        assert others == []
    elif method == "full":
        assert any("layers" in name for name in others)
    else:
        assert isinstance(model.active_peft_config, METHODS[method].config_class)
        mark = "point_peft_bias" if method == "bias" else model.base_model.prefix
        assert any(mark in name for name in others)
    if method != "full":
        assert not any(name.endswith(("fc1.weight", "q_proj.weight", "patch_embedding")) for name in names)


def test_options_reach_the_configuration(tiny_backbone):
    model = prepare_method("lora", load_backbone(tiny_backbone, NAMES), r=3)
    assert model.active_peft_config.r == 3
    model = prepare_method("bias", load_backbone(tiny_backbone, NAMES), tune_norm=True)
    assert any("layernorm" in name for name in trainable_names(model))


def test_unknown_methods_and_options_of_full_are_refused(tiny_backbone):
    backbone = load_backbone(tiny_backbone, NAMES)
    with pytest.raises(ValueError, match="no method 'lore'.*point_peft"):
        prepare_method("lore", backbone)
    with pytest.raises(ValueError, match=r"no options, got \['r'\]"):
        prepare_method("full", backbone, r=3)


def test_a_backbone_knows_its_classes_and_goes_by_the_name_it_was_asked_for(tiny_backbone, monkeypatch):
    backbone = load_backbone(tiny_backbone, NAMES)
    assert backbone.config.id2label == {0: "bed", 1: "sofa", 2: "mug"}
    assert backbone.name_or_path == tiny_backbone
    # A relative folder must not look like a repository elsewhere.
    folder = Path(tiny_backbone)
    monkeypatch.chdir(folder.parent.parent)
    name = load_backbone(f"{folder.parent.name}/{folder.name}", NAMES).name_or_path
    assert Path(name).resolve() == folder
    monkeypatch.chdir("/")
    assert not is_public(name)


def test_the_warm_up_is_that_of_the_method_unless_given():
    assert FinetuneArguments(method="point_peft").warmup_share == 0.3
    assert FinetuneArguments(method="lora").warmup_share == 0.1
    arguments = FinetuneArguments(method="point_peft", warmup_ratio=0.2)
    assert arguments.warmup_share == arguments.recipe()["warmup_ratio"] == 0.2
