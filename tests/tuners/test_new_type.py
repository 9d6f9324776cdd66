"""Types of others: toys for everything that the contract carries, and how they are registered."""

import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from peft.utils import PeftType

import point_peft_hf as pp
from point_peft_hf.tuners import SlotTuner, register_method
from point_peft_hf.tuners.slot_layer import SlotLayer

TOYS = sys.modules["point_peft_toys"]


def test_a_toy_takes_at_most_forty_lines():
    lines, sizes, start = Path(TOYS.__file__).read_text().splitlines(), {}, None
    for number, line in enumerate([*lines, "# -- "]):
        if line.startswith("# -- ") or line.startswith("TOYS = "):
            if start is not None:
                sizes[lines[start]] = number - start
            start = number if line.startswith("# -- ") else None
    assert len(sizes) == len(TOYS.TOYS)
    assert max(sizes.values()) <= 40, sizes


@pytest.mark.parametrize("name", ["kept_token", "second_set"])
@pytest.mark.parametrize("is_first", [True, False])
def test_types_that_insert_tokens_go_with_others(backbone, points, logits, name, is_first):
    others = {
        "geometry": pp.GeometryAdapterConfig(init_weights=False, modules_to_save=[]),
        "prompts": pp.PointPriorPromptConfig(modules_to_save=[]),
    }
    own = {"own": TOYS.TOYS[name](init_weights=False)}
    model = pp.add_adapters(backbone, {**own, **others} if is_first else {**others, **own})
    together = logits(model, points)
    torch.testing.assert_close(logits(model, points[:2]), together[:2], rtol=1e-4, atol=1e-5)
    pp.set_adapters(model, ["geometry", "prompts"])
    assert not torch.allclose(logits(model, points), together)


def test_frozen_features_do_not_see_what_is_done_to_points(backbone, points):
    expected = backbone.frozen_features(points)
    prompt = pp.PointPriorPromptConfig(num_prompt_tokens=4, query="encoder")
    model = pp.add_adapters(backbone, {"moved": TOYS.MovedPointsConfig(init_weights=False), "prompt": prompt})
    clouds = torch.randn(6, 128, 3, generator=torch.Generator().manual_seed(3))
    pp.build_point_prior_bank(model, [{"points": clouds}], progress=False)
    known = model.eval().precompute(points)
    torch.testing.assert_close(known["point_prior_prompt_prompt.query"], expected)


def test_a_head_of_its_own_is_built_for_another_read_out(backbone, make_backbone, backbone_name):
    in_size = next(p for p in backbone.classifier.parameters()).shape[1]
    model = get_peft_model(backbone, TOYS.KeptTokenConfig())
    own = next(p for p in backbone.classifier.modules_to_save["default"].parameters())
    assert own.shape[1] == in_size + 48
    assert own.requires_grad
    assert list(model.unload().state_dict()) == list(make_backbone(backbone_name).state_dict())
    with pytest.raises(ValueError, match="needs a head of its own. Name 'classifier' in `modules_to_save`"):
        get_peft_model(make_backbone(backbone_name), TOYS.KeptTokenConfig(modules_to_save=[]))


def test_saved_parts_are_not_trained(backbone, train, tmp_path):
    model = get_peft_model(backbone, TOYS.SavedNormConfig())
    (name,) = backbone.final_norm_names
    copied = backbone.base_model.get_submodule(name).modules_to_save["default"]
    before = {key: tensor.clone() for key, tensor in copied.state_dict().items()}
    train(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in copied.state_dict().items())
    assert list(copied.parameters()) == []
    model.save_pretrained(tmp_path)
    assert name in model.peft_config["default"].modules_to_save


def test_a_loss_of_its_own_is_added(backbone, points, labels):
    model = get_peft_model(backbone, TOYS.SparseConfig()).eval()
    output = model(points, labels=labels)
    stages = sum(isinstance(m, TOYS.SparseLayer) for m in model.modules())
    expected = torch.nn.functional.cross_entropy(output.logits, labels) + stages
    torch.testing.assert_close(output.loss, expected)


def test_what_is_computed_once_is_computed_once(backbone, points, logits):
    model = get_peft_model(backbone, TOYS.OnceConfig(init_weights=False))
    expected, known = logits(model, points), backbone.precompute(points)
    assert {name for name in known if not name.startswith("backbone.")} == {"once_default.radius"}
    torch.testing.assert_close(known["once_default.radius"], points.norm(dim=-1).mean(dim=1))
    with torch.no_grad():
        assert torch.equal(model(points, precomputed=known).logits, expected)
        zero = {"once_default.radius": torch.zeros(4)}
        torch.testing.assert_close(model(points, precomputed=zero).logits, backbone_logits(model, points))


def backbone_logits(model, points):
    with model.disable_adapter():
        return model(points).logits


def test_a_card_names_a_type_that_says_nothing_of_itself():
    assert TOYS.OnceConfig.describe({}) == ("ONCE", ())


def test_registering():
    config, model = TOYS.OnceConfig, TOYS.OnceModel
    assert register_method("once", config)(model) is model
    assert PeftType.ONCE is PeftType("ONCE") is config().peft_type
    assert model.prefix == "once_"
    with pytest.raises(ValueError, match="PEFT already has a method LORA"):
        register_method("lora", config)(type("LoraLike", (SlotTuner,), {}))
    with pytest.raises(ValueError, match="must be in lower case"):
        register_method("TOKEN_SCALE", config)(model)


def test_a_layer_that_forgets_adapt_says_so():
    with pytest.raises(NotImplementedError, match="must define adapt"):
        SlotLayer.adapt(object.__new__(SlotLayer), "default", None)


@pytest.mark.parametrize("parent", [pp.PointPeftConfig, pp.tuners.PointTunerConfig])
def test_a_configuration_that_is_not_registered_is_refused(parent):
    forgotten = type("Forgotten", (parent,), {})
    with pytest.raises(ValueError, match="Forgotten belongs to no PEFT type. Register it .*@register_method"):
        forgotten()
