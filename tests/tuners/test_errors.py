"""Wrong input is refused with what was wrong and the way out, and leaves the model as it was."""

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import point_peft_hf as pp


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (pp.GeometryAdapterConfig, "bottleneck_size", 0),
        (pp.GeometryAdapterConfig, "dropout", 1.0),
        (pp.GeometryAdapterConfig, "local_drop_path", -0.1),
        (pp.GeometryAdapterConfig, "num_local_centers", 0),
        (pp.GeometryAdapterConfig, "num_local_neighbors", 0),
        (pp.GeometryAdapterConfig, "ffn_scale", "much"),
        (pp.GeometryAdapterConfig, "init_weights", "random"),
        (pp.GeometryAdapterConfig, "bottleneck_pattern", {"ffn_slot": 0}),
        (pp.PointPriorPromptConfig, "num_prompt_tokens", 0),
        (pp.PointPriorPromptConfig, "prompt_depth", 0),
        (pp.PointPriorPromptConfig, "prompt_bottleneck_size", 0),
        (pp.PointPriorPromptConfig, "bank_size", -1),
        (pp.PointPriorPromptConfig, "dropout", 2),
        (pp.PointPeftConfig, "num_prompt_tokens", True),
        (pp.PointPeftConfig, "bottleneck_size", "16"),
    ],
)
def test_wrong_field(config_class, field, value):
    with pytest.raises(ValueError, match=f"`{field}"):
        config_class(**{field: value})


def test_layer_selection_that_contradicts_itself(type_case):
    with pytest.raises(ValueError, match="`layers_to_transform` cannot be combined with a regular expression"):
        type_case.config(layers_to_transform=[0], target_modules=".*_slot")


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        (["q_proj"], "'q_proj', but the backbone has no such slot. Its slots are .*ffn_slot"),
        (["ffn_slot", "typo_slot"], "'typo_slot', but the backbone has no such slot"),
        (["norm1_slot"], "attaches to slots .* but `target_modules` also matches .*norm1_slot', a LayerSlot"),
        (".*layers.*", "attaches to slots .* but `target_modules` also matches"),
        (".*nothing.*", "'.*nothing.*', but the backbone has no such slot"),
    ],
)
def test_wrong_targets(make_backbone, target_modules, message):
    backbone = make_backbone()
    keys = list(backbone.state_dict())
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, pp.GeometryAdapterConfig(target_modules=target_modules))
    assert list(backbone.state_dict()) == keys


def test_blocks_that_do_not_exist(make_backbone, type_case):
    with pytest.raises(
        ValueError,
        match=r"`layers_to_transform`=\[3\] leaves no block.*attaches to (the blocks \[[0-9, ]+\]|no block)",
    ):
        type_case.attach(make_backbone(), layers_to_transform=[3])


@pytest.mark.parametrize("config_class", [pp.PointPeftConfig, pp.PointPriorPromptConfig, pp.GAPromptConfig])
def test_blocks_without_the_prompts_that_were_asked_for(make_backbone, config_class):
    """`prompt_depth` counts from the first block: in the last block of the toy there would be no prompts, unsaid."""
    options = {"num_prompt_tokens": 4, "layers_to_transform": [1]}
    with pytest.raises(ValueError, match=r"`prompt_depth`=1 |leaves no block"):
        get_peft_model(make_backbone(), config_class(prompt_depth=1, **options))
    get_peft_model(make_backbone(), config_class(prompt_depth=None, **options))
    get_peft_model(make_backbone(), config_class(prompt_depth=2, **options))


def test_a_model_without_slots(type_case):
    with pytest.raises(ValueError, match="Sequential has no slots"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), type_case.config())


def test_adapter_of_another_backbone(make_backbone, type_case, tmp_path):
    type_case.attach(make_backbone()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Load the backbone that"):
        PeftModel.from_pretrained(make_backbone("point_bert"), tmp_path)
    with pytest.raises(ValueError, match="hidden_size=48, but this one has hidden_size=24"):
        PeftModel.from_pretrained(make_backbone(hidden_size=24), tmp_path)
    with pytest.raises(ValueError, match="num_hidden_layers=3, but this one has num_hidden_layers=2"):
        PeftModel.from_pretrained(make_backbone(num_hidden_layers=2), tmp_path)


def test_adapter_for_other_classes(make_backbone, type_case, tmp_path):
    type_case.attach(make_backbone()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_labels=5, but this one has num_labels=7.*`num_labels=5`"):
        PeftModel.from_pretrained(make_backbone(num_labels=7), tmp_path)


def test_attached_twice(make_backbone, type_case):
    backbone = make_backbone()
    model = type_case.attach(backbone)
    config = model.peft_config["default"]
    with pytest.raises(ValueError, match="already a PeftModel.*add_adapters"):
        get_peft_model(model, type_case.config())
    with (
        pytest.warns(UserWarning, match="second time|Already found"),
        pytest.raises(ValueError, match="already carries an adapter 'default'"),
    ):
        get_peft_model(backbone, type_case.config())
    assert model.peft_config["default"] is config


def test_mixed_model_is_refused(make_backbone, type_case):
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(make_backbone(), type_case.config(), mixed=True)


def test_merging_is_refused_and_the_model_stays_usable(make_backbone, type_case, points, logits):
    model = type_case.attach(make_backbone(), init_weights=False)
    before = logits(model, points)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="cannot be merged into the backbone.*`unload"):
            merge()
    assert not model.base_model.supports_lora_conversion()
    assert (logits(model, points) == before).all()


def test_adapters_cannot_be_mixed_in_a_batch(make_backbone, type_case, points):
    model = type_case.attach(make_backbone())
    model.add_adapter("other", type_case.config())
    with pytest.raises(ValueError, match="cannot be mixed within one batch.*set_adapter"):
        model(points, adapter_names=["default", "other", "default", "other"])


def test_hotswap_is_refused(make_backbone, type_case, tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    model = type_case.attach(make_backbone())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA"):
        hotswap_adapter(model, tmp_path, adapter_name="default")


def test_another_type_is_refused_by_a_peft_model(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("other", LoraConfig(r=2))
    assert list(model.peft_config) == ["default"]


def test_a_failing_adapter_is_rolled_back(make_backbone, type_case, points, logits):
    model = type_case.attach(make_backbone(), init_weights=False)
    keys, before = list(model.state_dict()), logits(model, points)
    with pytest.raises(ValueError, match="no such slot"):
        model.add_adapter("other", type_case.config(target_modules=["typo"]))
    assert list(model.peft_config) == ["default"]
    assert list(model.state_dict()) == keys
    assert (logits(model, points) == before).all()


def test_modules_to_save_that_do_not_exist(make_backbone, type_case):
    with pytest.raises(
        ValueError, match=r"`modules_to_save` has \['typo'\].*task are \['classifier', 'class_token'\]"
    ):
        type_case.attach(make_backbone(), modules_to_save=["classifier", "typo"])


def test_adapters_are_not_averaged(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    with pytest.raises(ValueError, match="cannot be averaged"):
        model.add_weighted_adapter(["default"], [1.0], "mean")


def test_a_pickle_is_warned_of_where_it_is_saved(make_backbone, type_case, tmp_path):
    with pytest.warns(UserWarning, match="adapter_model.bin is a pickle.*Save without `safe_serialization=False`"):
        type_case.attach(make_backbone()).save_pretrained(tmp_path, safe_serialization=False)


def test_unknown_adapters(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    for method in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match="typo"):
            method("typo")
