"""What PEFT's own tests ask of every method, asked of ours.

Equals of `PeftCommonTester` (tests/testing_common.py), `TestPeftCustomModel` (tests/test_custom_models.py) and
`TestPeftConfig` (tests/test_config.py) in the source distribution of peft; `peft_suite.md` beside this file goes
through all of their tests by name: what asks the same here, or why a test does not apply.
"""

import copy
import json
import pickle
import warnings

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_base_model_state_dict,
    get_layer_status,
    get_model_status,
    get_peft_config,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file

import point_peft_hf as pp
from point_peft_hf.tuners.slot_layer import SlotLayer

# -- Attaching --------------------------------------------------------------------------------------------------------


def test_get_peft_model_returns_a_plain_peft_model(backbone, case):
    model = case.attach(backbone, adapter_name="test-adapter")
    assert type(model) is PeftModel
    assert model.active_adapter == "test-adapter"
    assert any(".test-adapter." in name for name, _ in model.named_parameters())
    assert all(hasattr(layer, "in_features") for layer in model.modules() if isinstance(layer, BaseTunerLayer))


def test_only_the_adapter_and_the_task_modules_are_trainable(backbone, case):
    model = case.attach(backbone)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (model.prefix in name or ".modules_to_save." in name), name


def test_prepare_model_for_training_hooks_the_embedding(backbone, case):
    model = case.attach(backbone)
    embedding = model.get_input_embeddings()
    groups = torch.randn(2, 4, 8, 3)
    assert embedding(groups).requires_grad == case.trains_embedding
    model.enable_input_require_grads()
    assert embedding(groups).requires_grad


@pytest.mark.parametrize("name", ["0", "blocks", "my adapter", "geometry", "layers"])
def test_adapter_names_are_free(make_backbone, type_case, name, points, logits, tmp_path):
    model = type_case.attach(make_backbone(), adapter_name=name, init_weights=False)
    expected = logits(model, points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(make_backbone(), tmp_path / name)
    assert torch.equal(logits(loaded, points), expected)


# -- Files ------------------------------------------------------------------------------------------------------------


def test_save_pretrained_writes_what_peft_writes(make_backbone, case, tmp_path):
    model = case.attach(make_backbone(), init_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= files
    assert not {"config.json", "model.safetensors"} & files
    assert "library_name: peft" in (tmp_path / "README.md").read_text()
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("default" in key for key in weights)
    # The bank is there once.
    banks = [key for key in weights if key.endswith("_bank.features")]
    assert len(banks) == case.holds_bank
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == model.peft_config["default"].peft_type.value
    assert config["peft_version"]
    assert config["inference_mode"] is True


def test_loaded_under_another_name(make_backbone, case, points, logits, tmp_path):
    model = case.attach(make_backbone(), init_weights=False)
    expected = logits(model, points)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(make_backbone(), tmp_path, adapter_name="other")
    assert not any("missing adapter keys" in str(warning.message) for warning in caught)
    assert torch.equal(logits(loaded, points), expected)


@pytest.mark.parametrize("is_trainable", [True, False])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_from_pretrained_options(
    backbone, make_backbone, backbone_name, case, points, logits, tmp_path, is_trainable, low_cpu_mem_usage
):
    model = case.attach(backbone, init_weights=False)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_backbone(backbone_name), tmp_path, is_trainable=is_trainable, low_cpu_mem_usage=low_cpu_mem_usage
    )
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert not tensor.is_meta, name
    trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert bool(trainable) == is_trainable
    assert not any(".second." in name for name in trainable)
    expected = logits(model, points)
    assert torch.equal(logits(loaded, points), expected)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded, points), expected)


def test_selected_adapters(make_backbone, type_case, tmp_path):
    model = type_case.attach(make_backbone())
    model.add_adapter("second", type_case.config())
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert (tmp_path / "second" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter_model.safetensors").exists()
    with pytest.raises(ValueError, match="typo"):
        model.save_pretrained(tmp_path, selected_adapters=["typo"])


def test_config_decides_how_it_is_loaded(make_backbone, type_case, points, logits, tmp_path):
    model = type_case.attach(make_backbone(), init_weights=False)
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.peft_config["default"])
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path, config=config)
    assert loaded.peft_config["default"] is config
    assert torch.equal(logits(loaded, points), logits(model, points))


def test_injection_and_state_dict_functions(backbone, make_backbone, backbone_name, case, points, logits):
    torch.manual_seed(0)
    model = inject_adapter_in_model(
        case.config(init_weights=False, bank_size=6) if case.uses_bank else case.config(init_weights=False), backbone
    )
    state_dict = get_peft_model_state_dict(model)
    assert not any("default" in key for key in state_dict)
    config = copy.copy(model.peft_config["default"])
    other = inject_adapter_in_model(config, make_backbone(backbone_name), adapter_name="other")
    result = set_peft_model_state_dict(other, state_dict, adapter_name="other")
    assert not result.unexpected_keys
    assert torch.equal(logits(other, points), logits(model, points))


def test_injection_on_the_meta_device(make_backbone, type_case):
    model = inject_adapter_in_model(type_case.config(), make_backbone(), low_cpu_mem_usage=True)
    assert "meta" in {parameter.device.type for parameter in model.parameters()}


def test_the_base_models_state_dict(backbone, case):
    expected = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = get_base_model_state_dict(case.attach(backbone, init_weights=False))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


# -- Several adapters -------------------------------------------------------------------------------------------------


def test_several_adapters_are_swapped(backbone, case, points, logits):
    model = case.attach(backbone, init_weights=False)
    first = logits(model, points)
    torch.manual_seed(9)
    model.add_adapter("second", case.config(init_weights=False))
    assert torch.equal(logits(model, points), first)
    model.set_adapter("second")
    assert model.active_adapters == ["second"]
    second = logits(model, points)
    assert not torch.allclose(first, second)
    assert {
        name.rsplit(".", 2)[-2] for name, p in model.named_parameters() if p.requires_grad and model.prefix in name
    } == {"second"}
    model.set_adapter("default")
    assert torch.equal(logits(model, points), first)


def test_two_active_adapters(make_backbone, type_case, points, logits):
    if type_case.brings_modules:
        pytest.skip("only one of the active adapters can bring a module")
    model = type_case.attach(make_backbone(), init_weights=False, modules_to_save=[])
    one = logits(model, points)
    model.add_adapter("second", type_case.config(init_weights=False, modules_to_save=[]))
    model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default", "second"]
    assert not torch.allclose(logits(model, points), one)


def test_two_active_heads_are_refused(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    model.add_adapter("second", type_case.config())
    with pytest.raises(ValueError, match=r"all bring .*Attach the others with `modules_to_save=\[\]`"):
        model.base_model.set_adapter(["default", "second"])


def test_heads_belong_to_their_adapter(backbone, case, points, logits):
    model = case.attach(backbone)
    model.add_adapter("second", case.config())
    heads = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    assert heads
    with torch.no_grad():
        for parameter in model.get_base_model().classifier.modules_to_save["second"].parameters():
            parameter.add_(1.0)
    first = logits(model, points)
    model.set_adapter("second")
    assert not torch.allclose(logits(model, points), first)


def test_delete_adapter(backbone, case, points, logits):
    before = logits(backbone, points)
    model = case.attach(backbone, init_weights=False)
    model.add_adapter("second", case.config(init_weights=False))
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert not any(name.endswith(".second") for name, _ in model.named_modules())
    model.delete_adapter("default")
    assert model.peft_config == {}
    # Without any adapter PEFT's wrapper itself no longer runs; what it wraps does.
    assert torch.equal(logits(model.base_model.model, points), before)


def test_deleting_the_active_adapter_activates_another(make_backbone, type_case, points, logits):
    model = type_case.attach(make_backbone(), init_weights=False)
    model.add_adapter("second", type_case.config(init_weights=False))
    model.set_adapter("second")
    expected = logits(model, points)
    model.set_adapter("default")
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert torch.equal(logits(model, points), expected)


def test_set_requires_grad_of_one_adapter(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    model.add_adapter("second", type_case.config())
    model.set_requires_grad("default", requires_grad=False)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad(["second"])
    assert all(".second." in name for name, p in model.named_parameters() if p.requires_grad)
    assert any(p.requires_grad for p in model.parameters())
    model.set_requires_grad("default")
    model.set_adapter("default")
    # Heads are PEFT's own, which leaves them as they are.
    left = [name for name, p in model.named_parameters() if ".second." in name and p.requires_grad]
    assert all(".modules_to_save." in name for name in left)
    assert any(p.requires_grad for p in model.parameters())


def test_inference_mode_freezes(make_backbone, type_case):
    model = type_case.attach(make_backbone(), inference_mode=True)
    assert not any(p.requires_grad for p in model.parameters())


def test_unload_gives_back_the_key_list(backbone, case, points, logits):
    keys, before = list(backbone.state_dict()), logits(backbone, points)
    model = case.attach(backbone, init_weights=False)
    assert not torch.allclose(logits(model, points), before)
    unloaded = model.unload()
    assert list(unloaded.state_dict()) == keys
    assert not any(isinstance(m, BaseTunerLayer | ModulesToSaveWrapper) for m in unloaded.modules())
    assert not hasattr(unloaded, "peft_config")
    assert torch.equal(logits(unloaded, points), before)
    case.attach(unloaded)


def test_disabled_state_is_restored(make_backbone, type_case):
    model = type_case.attach(make_backbone())
    layers = [m for m in model.modules() if isinstance(m, SlotLayer)]
    with model.disable_adapter():
        assert all(layer.disable_adapters for layer in layers)
        assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    assert not any(layer.disable_adapters for layer in layers)
    assert any(p.requires_grad for layer in layers for p in layer.parameters())


# -- Choosing layers --------------------------------------------------------------------------------------------------


def blocks_with_parts(model) -> set[int]:
    return {
        m.slot.layer_index
        for m in model.modules()
        if isinstance(m, SlotLayer) and m.slot.is_in_block and list(m.parameters())
    }


@pytest.mark.parametrize(("wanted", "expected"), [([0], {0}), (1, {1}), ([0, 2], {0, 2})])
def test_layers_to_transform(backbone, type_case, points, labels, train, wanted, expected):
    # With a bank, Point-M2AE wants prompts in its last block.
    fields = {"use_bank": False} if type_case.holds_bank else {}
    if not type_case.is_in_every_block:
        pytest.skip("attaches to no block, or to one of its own choice")
    model = type_case.attach(backbone, layers_to_transform=wanted, modules_to_save=[], **fields)
    assert blocks_with_parts(model) == expected
    train(model, steps=1)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_target_and_exclude_modules(make_backbone):
    config = pp.GeometryAdapterConfig(target_modules=["ffn_slot"], exclude_modules=["layers.0.ffn_slot"])
    model = get_peft_model(make_backbone(), config)
    assert blocks_with_parts(model) == {1, 2}
    config = pp.GeometryAdapterConfig(target_modules=r".*layers\.[01]\.ffn_slot")
    assert blocks_with_parts(get_peft_model(make_backbone(), config)) == {0, 1}


@pytest.mark.parametrize(
    ("config_class", "target_modules", "expected"),
    [
        (pp.GeometryAdapterConfig, ["output_slot"], {"output_slot", "token_slot"}),
        (pp.GeometryAdapterConfig, ["layers.1.output_slot"], {"output_slot", "token_slot"}),
        (pp.GeometryAdapterConfig, ["ffn_slot"], {"ffn_slot"}),
        (pp.PointPriorPromptConfig, ["entry_slot"], {"entry_slot", "token_slot"}),
        (pp.PointPriorPromptConfig, r".*layers\.0\.entry_slot", {"entry_slot", "token_slot"}),
        (pp.PointPeftConfig, ["entry_slot", "ffn_slot"], {"entry_slot", "token_slot", "ffn_slot", "point_slot"}),
    ],
)
def test_what_prepares_for_the_blocks_comes_with_them(
    backbone, points, logits, config_class, target_modules, expected
):
    before = logits(backbone, points)
    model = get_peft_model(backbone, config_class(target_modules=target_modules, init_weights=False))
    layers = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, SlotLayer)}
    assert layers == expected
    assert not torch.allclose(logits(model, points), before)


def test_width_of_a_single_bottleneck(make_backbone, points, logits, tmp_path):
    config = pp.GeometryAdapterConfig(bottleneck_pattern={r"layers\.1\.ffn_slot": 3}, init_weights=False)
    model = get_peft_model(make_backbone(), config)
    widths = [
        m.part("ffn_bottleneck", "default").down_weight.shape[0]
        for m in model.modules()
        if hasattr(m, "slot") and "ffn_bottleneck" in m.parts
    ]
    assert widths == [16, 3, 16]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))


# -- Looking at a model, copying it -----------------------------------------------------------------------------------


def test_status_functions(make_backbone, case, capsys):
    model = case.attach(make_backbone())
    status = get_model_status(model)
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.requires_grad == {"default": True}
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    assert all(layer.available_adapters == ["default"] for layer in get_layer_status(model))
    model.print_trainable_parameters()
    assert "trainable params" in capsys.readouterr().out
    assert "adapters=['default']" in repr(model)


def test_deepcopy_and_pickle(backbone, case, points, logits):
    model = case.attach(backbone, init_weights=False)
    expected = logits(model, points)
    assert torch.equal(logits(copy.deepcopy(model), points), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), points), expected)


# -- Configurations ---------------------------------------------------------------------------------------------------


def test_config_round_trips(type_case, tmp_path):
    config = type_case.config(layers_to_transform=[0, 1], exclude_modules=["layers.2"])
    config.save_pretrained(tmp_path)
    for loaded in (
        PeftConfig.from_pretrained(tmp_path),
        type(config).from_pretrained(tmp_path),
        get_peft_config(config.to_dict()),
        copy.copy(config),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ):
        assert type(loaded) is type(config)
        assert loaded.to_dict() == config.to_dict()
    assert config.to_dict()["peft_type"] == type_case.config().peft_type.value


@pytest.mark.parametrize("by_own_class", [True, False])
def test_config_from_a_newer_version(type_case, tmp_path, by_own_class):
    type_case.config().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"field_of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="field_of_tomorrow"):
        loaded = (type(type_case.config()) if by_own_class else PeftConfig).from_pretrained(tmp_path)
    assert loaded.to_dict() == type_case.config().to_dict()


def test_config_as_json(type_case, tmp_path):
    config = type_case.config()
    config.save_pretrained(tmp_path)
    assert config.from_json_file(tmp_path / "adapter_config.json") == config.to_dict()


def test_json_that_is_no_config(type_case, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"foo": "bar"}')
    with pytest.raises(TypeError, match="missing required keys: {'peft_type'}"):
        type(type_case.config()).from_pretrained(tmp_path)


def test_peft_version_is_stored(type_case, tmp_path):
    type_case.config().save_pretrained(tmp_path)
    import peft

    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_version"].startswith(peft.__version__)
