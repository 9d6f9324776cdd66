"""Several types on one backbone: any order, each to its own folder, all or none."""

import itertools

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model

import point_peft_hf as pp


def parts():
    return {
        "geometry": pp.GeometryAdapterConfig(init_weights=False),
        "prompt": pp.PointPriorPromptConfig(num_prompt_tokens=4, init_weights=False),
        "lora": LoraConfig(r=2, init_lora_weights=False),
    }


def mixed(model, order=("geometry", "prompt", "lora")):
    torch.manual_seed(3)
    pp.add_adapters(model, {name: parts()[name] for name in order})
    clouds = torch.randn(6, 128, 3, generator=torch.Generator().manual_seed(7))
    pp.build_point_prior_bank(model, [{"points": clouds}], progress=False)
    return model


@pytest.mark.parametrize("order", itertools.permutations(("geometry", "prompt", "lora")), ids=" ".join)
def test_any_order_is_saved_and_loaded(make_backbone, points, logits, train, tmp_path, order):
    model = mixed(make_backbone(), order)
    assert pp.tuners.active_adapters(model) == list(order)
    train(model, steps=1)
    expected = logits(model, points)
    pp.save_adapters(model, tmp_path)
    loaded = make_backbone()
    assert pp.load_adapters(loaded, tmp_path) == list(order)
    assert torch.equal(logits(loaded, points), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    # And in the opposite order: these three change different places.
    loaded = make_backbone()
    pp.load_adapters(loaded, tmp_path, reversed(order), is_trainable=True)
    torch.testing.assert_close(logits(loaded, points), expected)


def test_each_backbone(backbone, make_backbone, backbone_name, points, logits, train, tmp_path):
    model = mixed(backbone)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, steps=2)
    for name, parameter in model.named_parameters():
        is_adapter = any(f".{adapter}." in name for adapter in parts())
        assert parameter.requires_grad == is_adapter, name
        assert torch.equal(parameter, before[name]) != is_adapter, name
    pp.save_adapters(model, tmp_path)
    loaded = make_backbone(backbone_name)
    pp.load_adapters(loaded, tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))


def test_each_adapter_loads_on_its_own(make_backbone, points, logits, tmp_path):
    model = mixed(make_backbone())
    folders = pp.save_adapters(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"geometry", "prompt", "lora", "adapters.json"}
    for name, folder in folders.items():
        alone = PeftModel.from_pretrained(make_backbone(), folder)
        pp.set_adapters(model, name)
        assert torch.equal(logits(alone, points), logits(model, points)), name


def test_the_head_belongs_to_one(make_backbone):
    model = mixed(make_backbone(), ("lora", "prompt", "geometry"))
    assert model.peft_config["prompt"].modules_to_save == ["classifier", "class_token"]
    assert model.peft_config["geometry"].modules_to_save == []
    model = pp.add_adapters(
        make_backbone(),
        {"lora": LoraConfig(r=2, modules_to_save=["classifier"]), "geometry": pp.GeometryAdapterConfig()},
    )
    assert model.peft_config["geometry"].modules_to_save == ["class_token"]


def test_two_heads_are_refused(make_backbone):
    heads = {"modules_to_save": ["classifier"]}
    with pytest.raises(ValueError, match="'one' and 'two' both have 'classifier' in `modules_to_save`"):
        pp.add_adapters(make_backbone(), {"one": LoraConfig(**heads), "two": pp.GeometryAdapterConfig(**heads)})


@pytest.mark.parametrize(
    "other", [IA3Config(), LNTuningConfig(), LoraConfig(use_dora=True)], ids=["ia3", "norms", "dora"]
)
def test_other_types_of_peft(make_backbone, points, logits, tmp_path, other):
    model = pp.add_adapters(
        make_backbone(), {"other": other, "geometry": pp.GeometryAdapterConfig(init_weights=False)}
    )
    pp.save_adapters(model, tmp_path)
    loaded = make_backbone()
    pp.load_adapters(loaded, tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))


@pytest.mark.parametrize("is_last", [True, False])
def test_any_type_beside_others(make_backbone, type_case, points, logits, is_last):
    # A type that needs a head of its own gets it, whoever comes first.
    headless = {} if type_case.without_head else {"modules_to_save": []}
    others = {"around": pp.GeometryAdapterConfig(init_weights=False, **headless), "low_rank": LoraConfig(r=2)}
    own = {"own": type_case.config(init_weights=False)}
    model = pp.add_adapters(make_backbone(), {**others, **own} if is_last else {**own, **others})
    together = logits(model, points)
    torch.testing.assert_close(logits(model, points[:2]), together[:2], rtol=1e-5, atol=1e-5)
    pp.set_adapters(model, list(others))
    assert not torch.allclose(logits(model, points), together)


@pytest.mark.parametrize("order", itertools.permutations(("lora", "ia3", "geometry")), ids=" ".join)
def test_two_types_of_peft_at_one_module(make_backbone, points, logits, train, tmp_path, order):
    configs = parts() | {"ia3": IA3Config(init_ia3_weights=False)}
    model = pp.add_adapters(make_backbone(), {name: configs[name] for name in order})
    train(model, steps=1)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    pp.save_adapters(model, tmp_path)
    loaded = make_backbone()
    pp.load_adapters(loaded, tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))
    for name in order:
        alone = PeftModel.from_pretrained(make_backbone(), tmp_path / name)
        pp.set_adapters(model, name)
        assert torch.equal(logits(alone, points), logits(model, points)), name


def test_two_types_of_ours_at_one_slot(make_backbone, points, logits, tmp_path):
    configs = {"whole": pp.PointPeftConfig(num_prompt_tokens=4, init_weights=False)} | parts()
    model = pp.add_adapters(make_backbone(), configs)
    expected = logits(model, points)
    pp.save_adapters(model, tmp_path)
    loaded = make_backbone()
    # "whole" sorts last, but was first.
    pp.load_adapters(loaded, tmp_path)
    assert torch.equal(logits(loaded, points), expected)


def test_a_failure_leaves_nothing_behind(make_backbone, points, logits):
    model = pp.add_adapters(make_backbone(), {"geometry": pp.GeometryAdapterConfig(init_weights=False)})
    keys, before = list(model.state_dict()), logits(model, points)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ValueError, match="no such slot"):
        pp.add_adapters(model, {"lora": LoraConfig(), "prompt": pp.PointPriorPromptConfig(target_modules=["typo"])})
    assert list(model.peft_config) == ["geometry"]
    assert list(model.state_dict()) == keys
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    assert torch.equal(logits(model, points), before)
    pp.add_adapters(model, {"lora": LoraConfig()})


def test_a_file_that_does_not_fit_leaves_nothing_behind(make_backbone, tmp_path):
    pp.save_adapters(mixed(make_backbone()), tmp_path)
    backbone = make_backbone("point_bert")
    keys = list(backbone.state_dict())
    with pytest.raises(ValueError):  # noqa: PT011 (which adapter fails first is not the point)
        pp.load_adapters(backbone, tmp_path)
    assert list(backbone.state_dict()) == keys


def test_wrong_use(make_backbone, tmp_path):
    model = pp.add_adapters(make_backbone(), {"lora": LoraConfig()})
    with pytest.raises(ValueError, match="already has an adapter 'lora'"):
        pp.add_adapters(model, {"lora": pp.GeometryAdapterConfig()})
    with pytest.raises(ValueError, match=r"no adapters \['typo'\] on this model; it has \['lora'\]"):
        pp.set_adapters(model, ["typo"])
    with pytest.raises(ValueError, match="There are no adapters in"):
        pp.load_adapters(model, tmp_path)
    pp.save_adapters(model, tmp_path)
    with pytest.raises(ValueError, match="There are no 'typo' in"):
        pp.load_adapters(make_backbone(), tmp_path, ["typo"])
    with pytest.raises(ValueError, match=r"already has adapters \['lora'\]"):
        pp.load_adapters(model, tmp_path)
    wrapped = get_peft_model(make_backbone(), pp.GeometryAdapterConfig())
    with pytest.raises(ValueError, match="the model is a PeftModel.*unload"):
        pp.add_adapters(wrapped, {"lora": LoraConfig()})


def test_active_adapters_are_chosen(make_backbone, points, logits):
    model = mixed(make_backbone())
    everything = logits(model, points)
    pp.set_adapters(model, ["geometry", "lora"])
    assert pp.tuners.active_adapters(model) == ["geometry", "lora"]
    assert not torch.allclose(logits(model, points), everything)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".prompt." in name)
    pp.set_adapters(model, list(parts()), is_trainable=False)
    assert torch.equal(logits(model, points), everything)
    assert not any(p.requires_grad for p in model.parameters())
