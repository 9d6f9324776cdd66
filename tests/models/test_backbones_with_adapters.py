import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

from point_peft_hf import (
    GeometryAdapterConfig,
    PointPeftConfig,
    PointPriorPromptConfig,
    build_point_prior_bank,
)
from point_peft_hf.models.layers.transformer import TokenLayer

CONFIGS = {
    "geometry": lambda **kwargs: GeometryAdapterConfig(**kwargs),
    "prompt": lambda **kwargs: PointPriorPromptConfig(num_prompt_tokens=4, prompt_depth=None, **kwargs),
    "point_peft": lambda **kwargs: PointPeftConfig(num_prompt_tokens=4, prompt_depth=None, **kwargs),
}


@pytest.fixture(params=CONFIGS)
def adapt(request, make_classifier):
    """Attach an adapter of each type to a fresh backbone."""

    def make(backbone=None, **kwargs):
        backbone = make_classifier() if backbone is None else backbone
        torch.manual_seed(1)
        return get_peft_model(backbone, CONFIGS[request.param](**kwargs)).eval()

    make.type = request.param
    return make


def give_bank(model, points):
    if model.peft_config["default"].peft_type != "GEOMETRY_ADAPTER":
        build_point_prior_bank(model, [{"points": points}], progress=False)


@torch.no_grad()
def test_fresh_geometry_adapter_changes_nothing(make_classifier, points):
    backbone = make_classifier()
    logits = backbone(points).logits
    assert logits.std() > 0.1
    model = get_peft_model(backbone, GeometryAdapterConfig()).eval()
    assert torch.equal(model(points).logits, logits)


@torch.no_grad()
def test_save_and_load(adapt, make_classifier, points, tmp_path):
    model = adapt(init_weights=False)
    give_bank(model, points)
    logits = model(points).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_classifier(), tmp_path).eval()
    assert torch.equal(loaded(points).logits, logits)
    assert not torch.allclose(logits, make_classifier()(points).logits, atol=1e-3)


@torch.no_grad()
def test_disable_adapter_is_exact(adapt, make_classifier, points):
    model = adapt(init_weights=False)
    with model.disable_adapter():
        assert torch.equal(model(points).logits, make_classifier()(points).logits)


@torch.no_grad()
def test_prediction_does_not_depend_on_batch_mates(adapt, points):
    model = adapt(init_weights=False)
    give_bank(model, points)
    logits = model(points).logits
    torch.testing.assert_close(model(points[1:2]).logits, logits[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(points.flip(0)).logits, logits.flip(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_unload_restores_the_backbone(adapt, make_classifier, points):
    model = adapt(init_weights=False)
    backbone = model.unload()
    assert list(backbone.state_dict()) == list(make_classifier().state_dict())
    assert torch.equal(backbone(points).logits, make_classifier()(points).logits)


def test_all_trainable_parameters_get_a_gradient(adapt, points):
    model = adapt(init_weights=False)
    give_bank(model, points)
    model.train()(points, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    # A bias in front of batch statistics has no effect; its gradient is 0, not missing.
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(adapt, points, use_reentrant):
    model = adapt(init_weights=False, dropout=0.0, local_drop_path=0.0) if adapt.type == "geometry" else adapt()
    give_bank(model, points)
    gradients = []
    for checkpointing in (False, True):
        copied = copy.deepcopy(model)
        if checkpointing:
            copied.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            copied.enable_input_require_grads()
        # The blocks in train mode, where checkpointing acts, but without randomness.
        copied.train()
        for module in copied.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if type(module).__name__ == "DropPath":
                module.rate = 0.0
            for config in getattr(module, "configs", {}).values():
                for rate in ("dropout", "prompt_dropout", "local_drop_path"):
                    if hasattr(config, rate):
                        setattr(config, rate, 0.0)
        copied(points, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        gradients.append({name: p.grad for name, p in copied.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_places_of_tokens_need_no_gradient_under_checkpointing(adapt, points, use_reentrant):
    model = adapt()
    give_bank(model, points)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    places = []
    for module in model.modules():
        if isinstance(module, TokenLayer):
            module.register_forward_hook(
                lambda module, args, tokens: places.extend(span.coordinates for span in tokens.spans)
            )
    model.train()(points, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    places = [place for place in places if place is not None]
    assert places
    assert not any(place.requires_grad for place in places)


@torch.no_grad()
def test_attention_implementations_agree(adapt, make_classifier, points):
    logits = []
    for implementation in ("sdpa", "eager"):
        model = adapt(make_classifier(attn_implementation=implementation), init_weights=False)
        give_bank(model, points)
        logits.append(model(points).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_states_hold_no_prompts(adapt, make_classifier, points):
    model = adapt(init_weights=False)
    adapted = model(points, output_hidden_states=True).hidden_states
    plain = make_classifier()(points, output_hidden_states=True).hidden_states
    assert [tuple(h.shape) for h in adapted] == [tuple(h.shape) for h in plain]
    assert len(plain) == model.config.num_hidden_layers + 1


@torch.no_grad()
def test_attention_weights_of_prompts_are_aligned(make_classifier, points, model_type):
    """What a mask blocks stays blocked behind the prompts, and prompts see everything."""
    backbone = make_classifier(attn_implementation="eager")
    plain = backbone(points, output_attentions=True).attentions
    config = PointPriorPromptConfig(num_prompt_tokens=4, prompt_depth=None, use_bank=False)
    adapted = get_peft_model(backbone, config).eval()(points, output_attentions=True).attentions
    front = 0 if model_type == "point_m2ae" else 1
    for before, after in zip(plain, adapted, strict=True):
        assert after.shape[-1] == before.shape[-1] + 4
        patches = after[..., front + 4 :, front + 4 :]
        assert torch.equal(patches == 0, before[..., front:, front:] == 0)
        assert (after[..., front : front + 4, :] > 0).all()
        assert (after[..., front : front + 4] > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_backbone(adapt, make_classifier, points, dtype):
    model = adapt(make_classifier().to(dtype), init_weights=False)
    give_bank(model, points)
    assert model(points).logits.isfinite().all()


def test_lora_beside_it(adapt, make_classifier, points):
    model = adapt(init_weights=False)
    inject_adapter_in_model(
        LoraConfig(target_modules=["q_proj", "v_proj"]), model.base_model.model, adapter_name="lora"
    )
    assert model(points).logits.shape == (4, 5)


@torch.no_grad()
def test_frozen_features_do_not_see_adapters(adapt, make_classifier, points):
    expected = make_classifier().frozen_features(points)
    model = adapt(init_weights=False)
    model.train()
    assert torch.equal(model.frozen_features(points), expected)
    assert expected.shape == (4, model.config.hidden_size)
    lora = inject_adapter_in_model(
        LoraConfig(target_modules=["first_linear1", "q_proj"], init_lora_weights=False), make_classifier()
    )
    # Another way through the patch embedding, so not to the bit.
    torch.testing.assert_close(lora.frozen_features(points), expected, rtol=1e-4, atol=1e-5)
