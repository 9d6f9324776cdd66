"""Attaching as a whole or not at all, names, and deleting: the model is what it should be afterwards."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

import point_peft_hf as pp
from point_peft_hf.attaching import all_or_nothing


def snapshot(model):
    """All that somebody could notice of a model."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    kinds = [(name, type(module), module.training) for name, module in model.named_modules()]
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    known = {name: id(config) for name, config in getattr(base, "peft_config", {}).items()}
    return state, flags, kinds, known, getattr(base, "_hf_peft_config_loaded", None)


def assert_unchanged(model, before):
    state, *rest = snapshot(model)
    old_state, *old_rest = before
    assert rest == old_rest
    assert state.keys() == old_state.keys()
    assert all(torch.equal(state[key], old_state[key]) for key in state)


# -- Failing --------------------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """Fails when it is copied, as PEFT does with each module of `modules_to_save`."""

    def __deepcopy__(self, memo):
        raise RuntimeError("no memory left")


def mistakes():
    """What can go wrong, from the first check to the last step."""
    return {
        "targets": {"target_modules": ["typo_slot"]},
        "blocks": {"layers_to_transform": [17]},
        "module": {"modules_to_save": ["typo"]},
        "copy": {"modules_to_save": ["classifier", "broken"]},
    }


WAYS = {
    "get_peft_model": lambda model, config: get_peft_model(model, config),
    "inject": lambda model, config: inject_adapter_in_model(config, model, "other"),
    "transformers": lambda model, config: model.add_adapter(config, "other"),
    "several": lambda model, config: pp.add_adapters(model, {"low": LoraConfig(r=2), "other": config}),
}


@pytest.mark.parametrize("mistake", mistakes())
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.filterwarnings("ignore:Already found")
def test_a_failed_attaching_leaves_no_trace(make_backbone, type_case, mistake, way, is_first):
    model = make_backbone()
    model.broken = Broken()
    if not is_first:
        inject_adapter_in_model(pp.GeometryAdapterConfig(init_weights=False), model, "good")
    config = type_case.config(**mistakes()[mistake])
    before, fields = snapshot(model), config.to_dict()
    with pytest.raises((ValueError, RuntimeError)):
        WAYS[way](model, config)
    assert_unchanged(model, before)
    assert config.to_dict() == fields
    del model.broken
    inject_adapter_in_model(type_case.config(), model, "after")


@pytest.mark.parametrize("mistake", mistakes())
def test_a_failed_second_adapter_leaves_no_trace(make_backbone, type_case, mistake, points, logits, tmp_path):
    backbone = make_backbone()
    backbone.broken = Broken()
    model = type_case.attach(backbone, init_weights=False)
    expected, before = logits(model, points), snapshot(model)
    with pytest.raises((ValueError, RuntimeError)):
        model.add_adapter("other", type_case.config(**mistakes()[mistake]))
    assert_unchanged(model, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_backbone(), tmp_path), points), expected)


def damage(folder, kind):
    from safetensors.torch import load_file, save_file

    from point_peft_hf.io.files import CONFIG_NAME, WEIGHTS_NAME, read_json, write_json

    tensors = load_file(folder / WEIGHTS_NAME)
    key = next(key for key in tensors if "_slot" in key and key.endswith("weight"))
    if kind == "missing":
        del tensors[key]
    elif kind == "extra":
        tensors["base_model.model.extra"] = torch.zeros(2)
    elif kind == "shape":
        tensors[key] = torch.zeros(3, 2)
    elif kind == "bytes":
        tensors[key] += 1
    save_file(tensors, folder / WEIGHTS_NAME)
    if kind != "bytes":
        write_json(folder / CONFIG_NAME, read_json(folder / CONFIG_NAME) | {"checksums": None})


LOADING = {
    "first": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "second": lambda model, folder: model.load_adapter(folder, "other"),
    "transformers": lambda model, folder: model.load_adapter(str(folder), "other"),
}


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "bytes"])
@pytest.mark.parametrize("way", LOADING)
def test_a_failed_loading_leaves_no_trace(make_backbone, type_case, tmp_path, kind, way):
    type_case.attach(make_backbone(), init_weights=False).save_pretrained(tmp_path)
    damage(tmp_path, kind)
    model = make_backbone()
    if way == "second":
        model = type_case.attach(model, init_weights=False)
    before = snapshot(model)
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        LOADING[way](model, tmp_path)
    assert_unchanged(model, before)


def test_wrapping_twice_leaves_the_first_alone(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    before = snapshot(model)
    with pytest.raises(ValueError, match="already a PeftModel"):
        get_peft_model(model, type_case.config())
    assert_unchanged(model, before)


def test_nothing_is_restored_where_nothing_fails(make_backbone):
    model = make_backbone()
    with all_or_nothing(model):
        model.classifier.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())


# -- Names ----------------------------------------------------------------------------------------------------------


FREE_NAMES = ("0", "1", "a", "adapter", "layers", "q_proj", "ffn_slot", "down_bias", "my adapter", "Straße")
# Of modules and parameters that are saved with adapters, of what is around these, and of methods of `ModuleDict`.
TAKEN_NAMES = (
    "classifier",
    "dense1",
    "output",
    "position",
    "weight",
    "point_mae",
    "modules_to_save",
    "keys",
    "training",
)


@pytest.mark.parametrize("name", FREE_NAMES + TAKEN_NAMES)
@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_a_name_works_or_is_refused_at_once(make_backbone, points, logits, tmp_path, name, is_second):
    backbone, config = make_backbone(), pp.GeometryAdapterConfig(init_weights=False)
    before = snapshot(backbone)
    try:
        if is_second:
            model = get_peft_model(backbone, pp.GeometryAdapterConfig(init_weights=False))
            before = snapshot(model)
            model.add_adapter(name, config)
        else:
            model = get_peft_model(backbone, config, adapter_name=name)
    except ValueError as error:
        is_right = f"cannot be called {name!r}" in str(error) and name in TAKEN_NAMES
        if not is_right:
            raise
        assert_unchanged(model if is_second else backbone, before)
        return
    assert name in FREE_NAMES
    model.save_pretrained(tmp_path)
    for adapter in model.peft_config:
        model.set_adapter(adapter)
        folder = tmp_path if adapter == "default" else tmp_path / adapter
        assert torch.equal(logits(PeftModel.from_pretrained(make_backbone(), folder), points), logits(model, points))
    again = PeftModel.from_pretrained(make_backbone(), folder, adapter_name=name)
    assert torch.equal(logits(again, points), logits(model, points))


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "a\\b"])
def test_a_name_that_is_no_name_of_a_folder(make_backbone, type_case, name):
    with pytest.raises(ValueError, match="The name of an adapter must be a text without"):
        type_case.attach(make_backbone(), adapter_name=name)


@pytest.mark.parametrize("way", ["get_peft_model", "transformers", "several"])
def test_peft_types_with_the_name_of_a_part(make_backbone, way):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    model = make_backbone()
    attach = {
        "get_peft_model": lambda: get_peft_model(model, config, adapter_name="output"),
        "transformers": lambda: model.add_adapter(config, "output"),
    }
    with pytest.raises(ValueError, match="cannot be called 'output'"):
        attach.get(way, lambda: pp.add_adapters(model, {"output": config}))()


# -- Deleting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("way", ["peft", "transformers"])
@pytest.mark.filterwarnings("ignore:Adapter .* was active", "ignore:Already found")
def test_the_next_adapter_has_its_head(make_backbone, type_case, points, logits, has_head, way):
    if not has_head and not type_case.without_head:
        pytest.skip("needs a head of its own")
    other = type_case.config(init_weights=False, **({} if has_head else {"modules_to_save": []}))
    if way == "peft":
        model = type_case.attach(make_backbone(), init_weights=False)
        expected, before = logits(model, points), snapshot(model)
        model.add_adapter("other", other)
    else:
        model = make_backbone()
        model.add_adapter(type_case.config(init_weights=False), "default")
        expected, before = logits(model, points), snapshot(model)
        model.add_adapter(other, "other")
    model.set_adapter("other")
    assert not torch.equal(logits(model, points), expected)
    model.delete_adapter("other")
    assert torch.equal(logits(model, points), expected)
    assert snapshot(model)[1] == before[1]
    assert_unchanged(model, before)


@pytest.mark.filterwarnings("ignore:Adapter .* was active")
def test_one_of_several_active_adapters(make_backbone, points, logits):
    model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig(init_weights=False))
    for name in ("x", "y"):
        model.add_adapter(name, pp.GeometryAdapterConfig(init_weights=False, modules_to_save=[]))
    model.base_model.set_adapter(["default", "x"])
    expected = logits(model, points)
    model.base_model.set_adapter(["default", "x", "y"])
    model.delete_adapter("y")
    assert model.base_model.active_adapters == ["default", "x"]
    assert torch.equal(logits(model, points), expected)
    # The one with the head: the others go on with the backbone's own.
    model.add_adapter("y", pp.GeometryAdapterConfig(init_weights=False, modules_to_save=[]))
    model.base_model.set_adapter(["x", "y"])
    expected = logits(model, points)
    model.base_model.set_adapter(["default", "x", "y"])
    model.delete_adapter("default")
    # The PeftModel itself knows of one active adapter only, and still takes it for the deleted one.
    assert torch.equal(logits(model.base_model.model, points), expected)
    model.set_adapter("x")
    logits(model, points)


@pytest.mark.filterwarnings("ignore:Adapter .* was active")
def test_what_was_loaded_to_predict_is_not_trained(make_backbone, type_case, tmp_path):
    type_case.attach(make_backbone()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_backbone(), tmp_path)
    model.add_adapter("new", type_case.config())
    model.set_adapter("new")
    model.delete_adapter("new")
    assert model.active_adapters == ["default"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:Adapter .* was active")
def test_deleting_mixed_adapters(make_backbone, points, logits):
    model = pp.add_adapters(make_backbone(), {"geometry": pp.GeometryAdapterConfig(init_weights=False)})
    expected = logits(model, points)
    pp.add_adapters(model, {"low_rank": LoraConfig(r=2, init_lora_weights=False)})
    model.delete_adapter("low_rank")
    assert torch.equal(logits(model, points), expected)
    assert any(parameter.requires_grad for parameter in model.classifier.parameters())


# -- Several at once --------------------------------------------------------------------------------------------------


def test_the_ways_out_of_two_heads(make_backbone, type_case, points, logits):
    """What the messages advise works."""
    if type_case.brings_modules:
        pytest.skip("always brings a module")
    model = type_case.attach(make_backbone(), init_weights=False)
    model.add_adapter("second", type_case.config(init_weights=False))
    model.add_adapter("headless", type_case.config(init_weights=False, modules_to_save=[]))
    with pytest.raises(ValueError, match=r"\['default', 'second'\] all bring .*`modules_to_save=\[\]`"):
        model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"model.base_model.set_adapter\(\[...\]\)"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "new")
    first = logits(model, points)
    model.base_model.set_adapter(["default", "headless"])
    assert not torch.equal(logits(model, points), first)
