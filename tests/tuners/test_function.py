"""What an adapter does to the function of a backbone, and what it must leave alone."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import point_peft_hf as pp
from point_peft_hf.tuners.point_peft.layer import BiasLayer
from point_peft_hf.tuners.slot_layer import SlotLayer


def test_prediction_does_not_depend_on_batch_mates(backbone, case, points, logits):
    model = case.attach(backbone, init_weights=False)
    alone = torch.cat([logits(model, cloud[None]) for cloud in points])
    others = torch.randn(3, 128, 3, generator=torch.Generator().manual_seed(8))
    together, last = logits(model, points), logits(model, torch.cat([others, points]))[3:]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(model, points.flip(0)).flip(0), alone, rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_changes_nothing_if_its_type_allows_that(backbone, type_case, points, logits):
    before = logits(backbone, points)
    assert torch.equal(logits(type_case.attach(backbone), points), before) == type_case.is_identity_when_fresh


def test_weights_that_are_not_initialised_change_the_output(backbone, case, points, logits):
    before = logits(backbone, points)
    assert not torch.allclose(logits(case.attach(backbone, init_weights=False), points), before)


def test_published_initialization(make_backbone, points, logits, type_case):
    backbone = make_backbone()
    before = logits(backbone, points)
    after = logits(type_case.attach(backbone, init_weights="published"), points)
    assert torch.allclose(after, before) == type_case.is_identity_as_published


def test_saved_and_loaded_on_an_untouched_backbone(
    make_backbone, backbone_name, case, points, logits, train, tmp_path
):
    model = case.attach(make_backbone(backbone_name))
    train(model)
    expected = logits(model, points)
    assert not torch.allclose(expected, logits(make_backbone(backbone_name), points))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_backbone(backbone_name), tmp_path)
    assert torch.equal(logits(loaded, points), expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], buffer), name


def test_disabled_adapter_is_the_backbone(backbone, case, points, logits, train):
    before = logits(backbone, points)
    model = case.attach(backbone, init_weights=False)
    train(model)
    adapted = logits(model, points)
    with model.disable_adapter():
        assert torch.equal(logits(model, points), before)
        with model.disable_adapter():
            assert torch.equal(logits(model, points), before)
        assert torch.equal(logits(model, points), before)
    assert torch.equal(logits(model, points), adapted)
    assert torch.equal(logits(model.unload(), points), before)


def test_all_that_is_trainable_moves_and_nothing_else(backbone, case, train):
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = case.attach(backbone)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, steps=4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not torch.equal(parameter, before[name]), name
        else:
            assert torch.equal(parameter, before[name]), name
    # In train mode, with the running statistics of the backbone's BatchNorms.
    for name, tensor in model.unload().state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_adapters_own_batch_norm_learns_its_statistics(make_backbone, train):
    model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig())
    train(model, steps=1)
    norms = [m for name, m in model.named_modules() if name.endswith("pooled_bn.default")]
    assert len(norms) == 3
    for norm in norms:
        assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
        assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("with_lora", [False, True])
def test_query_features_are_those_of_the_bare_backbone(backbone, points, train, with_lora):
    expected = backbone.frozen_features(points)
    adapters = {"method": pp.PointPeftConfig(num_prompt_tokens=4, init_weights=False)}
    if with_lora:
        adapters["low_rank"] = LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False)
    pp.add_adapters(backbone, adapters)
    clouds = torch.randn(6, 128, 3, generator=torch.Generator().manual_seed(3))
    bank = pp.build_point_prior_bank(backbone, [{"points": clouds}], progress=False)
    train(backbone)
    assert torch.equal(backbone.frozen_features(points), expected)
    rebuilt = pp.build_point_prior_bank(backbone, [{"points": clouds}], progress=False)
    assert torch.equal(rebuilt.features, bank.features)


@pytest.mark.parametrize(
    "switch",
    ["use_geometry", "use_prompts", "tune_biases", "use_bank"],
)
def test_parts_of_the_whole_method_are_switched_off_one_by_one(make_backbone, train, switch):
    full = get_peft_model(make_backbone(), pp.PointPeftConfig(num_prompt_tokens=4)).get_nb_trainable_parameters()[0]
    model = get_peft_model(make_backbone(), pp.PointPeftConfig(num_prompt_tokens=4, **{switch: False}))
    assert model.get_nb_trainable_parameters()[0] < full
    train(model, steps=2)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(backbone, case, points, labels, use_reentrant):
    # Dropout draws differ between the two models only if the random numbers do, so both start from the same seed.
    model = case.attach(backbone, init_weights=False, **case.without_head).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.prepare_model_for_gradient_checkpointing(checkpointed)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert checkpointed.is_gradient_checkpointing
    for m in (model, checkpointed):
        torch.manual_seed(4)
        m(points, labels=labels).loss.backward()
    for (name, plain), again in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        if plain.requires_grad:
            torch.testing.assert_close(again.grad, plain.grad, rtol=1e-4, atol=1e-5, msg=name)
    # Running statistics count a batch once, although its blocks ran twice.
    for (name, plain), again in zip(model.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(plain, again), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_backbone(make_backbone, case, points, dtype, autocast):
    backbone = make_backbone().to(dtype)
    model = get_peft_model(backbone, case.config(), autocast_adapter_dtype=autocast)
    if case.uses_bank:
        pp.build_point_prior_bank(model, [{"points": torch.randn(6, 128, 3)}], progress=False)
    expected = torch.float32 if autocast else dtype
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if model.prefix in name and tensor.is_floating_point() and "_bank." not in name:
            assert tensor.dtype == expected, name
    with torch.no_grad():
        assert model.eval()(points).logits.isfinite().all()


def test_autocast_region(make_backbone, case, points, labels):
    model = case.attach(make_backbone()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(points, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_hidden_states_have_no_prompts(make_backbone, case, points):
    model = case.attach(make_backbone())
    hidden_states = model(points, output_hidden_states=True).hidden_states
    assert [tuple(h.shape) for h in hidden_states] == [(4, 17, 48)] * 4


def test_new_layers_are_in_the_mode_of_the_backbone(make_backbone, type_case):
    model = type_case.attach(make_backbone().eval())
    layers = [module for module in model.modules() if isinstance(module, SlotLayer)]
    assert layers
    assert not any(part.training for layer in layers for part in layer.modules())


@pytest.mark.parametrize("name", ["point_mae", "recon", "point_m2ae"])
def test_shifts_of_biases_are_added_with_the_biases(name, make_backbone, points, labels, logits, monkeypatch):
    fields = {"use_geometry": False, "use_prompts": False, "init_weights": False}
    model = get_peft_model(make_backbone(name), pp.PointPeftConfig(**fields)).eval()
    calls, count = [], sum(isinstance(module, BiasLayer) for module in model.modules())
    monkeypatch.setattr(BiasLayer, "adapt", lambda *args, _of=BiasLayer.adapt: calls.append(1) or _of(*args))
    found = logits(model, points)
    assert not calls
    # Training, autocast and whoever looks on: every slot runs.
    expected = model(points).logits.detach()
    assert len(calls) == count > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(expected, make_backbone(name)(points).logits)
    with torch.autocast("cpu", torch.bfloat16):
        logits(model, points)
    assert len(calls) == 2 * count
    hooks = [module.register_forward_hook(lambda *_: None) for module in model.modules()]
    assert torch.equal(logits(model, points), expected)
    assert len(calls) == 3 * count
    for hook in hooks:
        hook.remove()
    with model.disable_adapter():
        assert torch.equal(logits(model, points), logits(make_backbone(name), points))
    assert torch.equal(logits(model, points), found)
    assert len(calls) == 3 * count
    with torch.no_grad():
        model.train()(points, labels=labels)
    assert len(calls) == 4 * count


@pytest.mark.parametrize("name", ["lora", "pointlora"])
def test_a_shift_beside_another_adapter(name, make_backbone, points, logits):
    """LoRA goes around the layer, PointLoRA around its slot."""
    shift = pp.PointPeftConfig(use_geometry=False, use_prompts=False, init_weights=False, modules_to_save=[])
    others = {
        "lora": LoraConfig(r=2, init_lora_weights=False),
        "pointlora": pp.PointLoRAConfig(r=2, bottleneck_size=6, scales=[[24, 8, 6], [12, 8, 2]], init_weights=False),
    }
    backbone = make_backbone()
    pp.add_adapters(backbone, {"other": others[name], "shift": shift})
    backbone.eval()
    torch.testing.assert_close(logits(backbone, points), backbone(points).logits.detach(), rtol=1e-5, atol=1e-5)
