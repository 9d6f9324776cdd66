"""What depends on the cloud alone can be computed ahead, and changes neither outputs nor gradients."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import point_peft_hf as pp
from point_peft_hf.training import prepare_method

BACKBONE = "backbone."


def step(model, points, labels, **given):
    """Loss and gradients of a training step."""
    torch.manual_seed(3)
    model.train().zero_grad()
    loss = model(points, labels=labels, **given).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, points, labels, known):
    expected_loss, expected = step(model, points, labels)
    loss, gradients = step(model, points, labels, precomputed=known)
    assert loss == expected_loss
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())


def blocks(known):
    return {int(name.removeprefix("backbone.block.").partition(".")[0]) for name in known if ".block." in name}


def test_known_values_change_nothing(backbone, case, points, labels, logits, train):
    model = case.attach(backbone)
    logits(model, points)
    known = backbone.precompute(points)
    assert all(len(value) == len(points) and not value.requires_grad for value in known.values())
    assert_same_step(model, points, labels, known)
    train(model)
    expected = logits(model, points)
    with torch.no_grad():
        assert torch.equal(model(points, precomputed=known).logits, expected)
        flipped = model(points, precomputed={name: value.flip(0) for name, value in known.items()}).logits
    if any(name.startswith(BACKBONE) for name in known):
        assert not torch.allclose(flipped, expected)


def test_embedded_groups_are_known_while_nothing_trains_them(make_backbone, points):
    linear = get_peft_model(make_backbone(), pp.GeometryAdapterConfig())
    assert "backbone.embedded" in linear.base_model.model.precompute(points)
    assert "backbone.embedded" not in make_backbone().precompute(points)
    assert "backbone.embedded" not in get_peft_model(make_backbone(), pp.PointLoRAConfig()).precompute(points)


@pytest.mark.parametrize("name", ["point_mae", "point_bert", "point_gpt", "recon", "point_m2ae"])
def test_frozen_blocks_below_the_first_trained_one_are_known(name, make_backbone, points, labels, logits):
    backbone = make_backbone(name)
    tokens = [each for each in backbone.task_module_names if each.endswith("_token")]
    config = LoraConfig(target_modules=["fc1"], layers_to_transform=[2], init_lora_weights=False)
    model = get_peft_model(backbone, config)
    known = model.precompute(points)
    # The frozen blocks of a stage leave one value together; the stages of Point-M2AE have one block each here.
    assert blocks(known) == ({0, 1} if name == "point_m2ae" else {1})
    assert_same_step(model, points, labels, known)
    for token in tokens:
        backbone.base_model.get_submodule(token).requires_grad_(True)
    if tokens:
        assert not blocks(model.precompute(points))
        assert_same_step(model, points, labels, known)


def test_frozen_copies_of_the_class_token_are_told_apart(make_backbone, points, logits):
    config = LoraConfig(target_modules=["fc1"], layers_to_transform=[2], modules_to_save=["class_token"])
    model = get_peft_model(make_backbone(), config, adapter_name="one")
    model.add_adapter("two", config)
    model.set_adapter("one", inference_mode=True)
    known = model.precompute(points)
    assert "backbone.block.1.one" in known
    model.set_adapter("two", inference_mode=True)
    torch.nn.init.normal_(model.base_model.model.point_mae.class_token.modules_to_save["two"].token)
    expected = logits(model, points)
    with torch.no_grad():
        assert torch.equal(model(points, precomputed=known).logits, expected)


def test_stochastic_depth_is_drawn_in_training(make_backbone, points, labels):
    config = LoraConfig(target_modules=["fc1"], layers_to_transform=[2])
    model = get_peft_model(make_backbone(drop_path_rate=0.5), config)
    known = model.eval().precompute(points)
    assert blocks(known) == {1}
    assert_same_step(model, points, labels, known)


def test_whoever_looks_on_sees_the_blocks_run(make_backbone, points):
    config = LoraConfig(target_modules=["fc1"], layers_to_transform=[2])
    model = get_peft_model(make_backbone(), config).eval()
    known = model.precompute(points)
    with torch.no_grad():
        expected = model(points, output_hidden_states=True).hidden_states
        found = model(points, output_hidden_states=True, precomputed=known).hidden_states
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(make_backbone, points, labels, use_reentrant):
    model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig())
    known = model.eval().precompute(points)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert_same_step(model, points, labels, known)


def test_gradients_with_respect_to_the_points(make_backbone, points):
    model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig()).eval()
    known = model.precompute(points)
    leaf = points.clone().requires_grad_()
    model(leaf, precomputed=known).logits.sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_values_of_another_batch(make_backbone, points):
    model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig()).eval()
    known = model.precompute(points)
    with pytest.raises(ValueError, match=r"precomputed\['backbone.neighborhoods'\]` must have shape \(3, "):
        model(points[:3], precomputed=known)


@pytest.mark.parametrize("name", ["point_mae", "recon", "point_gpt"])
def test_a_head_on_frozen_features_needs_no_block(name, make_backbone, points, labels, logits, tmp_path):
    model = prepare_method("head", make_backbone(name))
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any("token" in key for key in trained)
    known = model.precompute(points)
    assert blocks(known) == {2}
    assert_same_step(model, points, labels, known)
    model.save_pretrained(tmp_path)
    other = make_backbone(name)
    if not other.base_model.is_pretrained_with_class_token:
        # The class token, which is random, travels along.
        torch.nn.init.normal_(other.base_model.class_token.token)
    loaded = PeftModel.from_pretrained(other, tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))
