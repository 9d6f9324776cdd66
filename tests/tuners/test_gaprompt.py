"""GAPrompt: its formulas, options and sizes (arXiv 2505.04119)."""

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.tuners.gaprompt.published import read_published
from point_peft_hf.tuners.gaprompt.shift import embed_coordinates


def attach(backbone, **fields):
    torch.manual_seed(1)
    return get_peft_model(backbone, pp.GAPromptConfig(**{"num_prompt_tokens": 4, "prompt_depth": 2, **fields}))


def layers_of(model, kind):
    return [module for module in model.modules() if type(module).__name__ == kind]


def test_embedding_of_coordinates():
    embedded = embed_coordinates(torch.tensor([[0.5, 0.0, -1.0]]))
    assert embedded.shape == (1, 27)
    expected = [0.5, 0.0, -1.0]
    for frequency in (1.0, 2.0, 4.0, 8.0):
        angles = frequency * torch.tensor([0.5, 0.0, -1.0])
        expected += [*angles.sin().tolist(), *angles.cos().tolist()]
    torch.testing.assert_close(embedded[0], torch.tensor(expected))


@torch.no_grad()
def test_points_are_moved_by_a_share_of_their_coordinates_and_others_join(make_backbone, points):
    model = attach(make_backbone(), shift_scale=0.5, point_scale=3.0).eval()
    (layer,) = layers_of(model, "PointLayer")
    head, prompts = layer.part("shift_head", "default"), layer.part("point_prompts", "default")
    head.output_weight.zero_()
    head.output_bias.copy_(torch.tensor([0.2, 0.0, -0.4]))
    moved = model.get_base_model().point_mae.encode(points).tokens.cloud.points
    assert moved.shape == (4, 128 + 5, 3)
    torch.testing.assert_close(moved[:, :128], points * torch.tensor([1.1, 1.0, 0.8]))
    torch.testing.assert_close(moved[0, 128:], 3.0 * prompts.coordinates)


def reference_propagation(table, offset, context, batch_norm):
    """The propagation in loops over clouds, groups and tokens."""
    given = []
    for cloud, rows in enumerate(table):
        local = []
        for center, members in zip(context.center_indices[cloud], context.neighbor_indices[cloud], strict=True):
            maximum = torch.stack([2 * rows[offset + member] for member in members]).amax(dim=0)
            scale, shift = batch_norm.folded_scale_and_shift()
            local.append(F.gelu(maximum * scale + shift) + 0.3 * rows[offset + center])
        given.append(
            torch.stack([0.3 * sum(w * v for w, v in zip(row, local, strict=True)) for row in context.weights[cloud]])
        )
    return torch.stack(given)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["aligned", "shifted", "replacement"])
def test_propagation(make_backbone, points, rule):
    model = attach(make_backbone(), propagation=rule).eval()
    layer = layers_of(model, "EndLayer")[1]
    batch_norm = layer.part("pooled_bn", "default")
    batch_norm.running_mean.normal_(std=0.2)
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    layer.part("bottleneck", "default").up_weight.zero_()
    layer.part("bottleneck", "default").up_bias.zero_()
    model(points[:2])
    ((before, after),) = seen
    context = before.cloud.shared["gaprompt_default"]
    prompts, patches = before.features[:, 1:5], before.features[:, 5:]
    table = {
        "aligned": torch.cat([prompts, patches], dim=1),
        "shifted": torch.cat([prompts, patches], dim=1),
        "replacement": torch.cat([patches[:, :-4], prompts], dim=1),
    }[rule]
    expected = patches + reference_propagation(table, 4 if rule == "aligned" else 0, context, batch_norm)
    torch.testing.assert_close(after.patches, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.features[:, :5], before.features[:, :5])
    # Half as many groups as tokens, of half as many tokens as a group has points.
    assert context.neighbor_indices.shape == (2, 8, 4)
    torch.testing.assert_close(context.weights.sum(dim=-1), torch.ones(2, 16))


@torch.no_grad()
def test_bottleneck_and_prompts_know_the_shape_in_the_first_blocks(make_backbone, points):
    model = attach(make_backbone()).eval()
    seen = {}
    for layer in layers_of(model, "EndLayer"):
        number = layer.slot.layer_index
        layer.register_forward_hook(lambda module, args, output, n=number: seen.update({n: (args[0], output)}))
    entered = []
    layers_of(model, "PromptLayer")[0].register_forward_hook(lambda module, args, output: entered.append(output))
    model(points[:2])
    for number, (before, after) in seen.items():
        layer = layers_of(model, "EndLayer")[number]
        part = layer.part("bottleneck", "default")
        context = before.cloud.shared["gaprompt_default"]
        rows = before.add_to("patch", layer.propagate("default", before, before.features)).features[:, 1:]
        known = rows + 0.5 * context.shape[:, None] if number < 2 else rows
        known = F.layer_norm(known, (48,), part.norm_weight, part.norm_bias)
        inner = F.linear(known, part.down_weight, part.down_bias)
        added = F.linear(inner * torch.sigmoid(1.702 * inner), part.up_weight, part.up_bias)
        torch.testing.assert_close(after.features[:, 1:], rows + 0.7 * added, rtol=1e-5, atol=1e-5)
        assert len(before.of("gaprompt_default")[0]) == (4 if number < 2 else 0)
    (tokens,) = entered
    places = layers_of(model, "StageLayer")[0].part("prompt_places", "default").coordinates
    expected = 0.5 * context.shape[:, None] + model.get_base_model().point_mae.position_embedding(places[None])
    torch.testing.assert_close(tokens.of("gaprompt_default"), expected)
    assert tokens.of("gaprompt_default", tokens.positions).abs().max() == 0


def test_groups_count_twice_on_average(make_backbone):
    layer = layers_of(attach(make_backbone(), local_drop_path=0.4), "EndLayer")[2]
    config, pooled = layer.configs["default"], torch.zeros(200, 50, 1)
    assert layer.eval()._factors(config, pooled) == 2.0
    torch.manual_seed(0)
    factors = layer.train()._factors(config, pooled)
    assert sorted(factors.unique().tolist()) == pytest.approx([1.0, 1 + 1 / 0.6])
    assert float(factors.mean()) == pytest.approx(2.0, abs=0.05)


def test_head_reads_the_shape(make_backbone):
    model = attach(make_backbone())
    assert next(model.get_base_model().classifier.modules_to_save["default"].parameters()).shape[1] == 3 * 48


def test_in_part_segmentation_only_the_given_points_are_scored(points):
    options = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "num_groups": 16, "group_size": 8}
    config = pp.PointMAEConfig(**options, segmentation_layers=(1, 2, 3), num_labels=6)
    model = get_peft_model(pp.PointMAEForSegmentation(config), pp.GAPromptConfig(prompt_depth=2))
    output = model(points, labels=torch.zeros(4, 128, dtype=torch.long))
    assert output.logits.shape == (4, 128, 6)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_prompts_in_some_stages(make_backbone, points, labels):
    model = attach(make_backbone("point_m2ae"), prompt_depth=1)
    places = [layer.part("prompt_places", "default") for layer in layers_of(model, "StageLayer")]
    assert [place is not None for place in places] == [True, False, False]
    model(points, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


# -- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_points": 0}, "`num_points` must be a number of at least 1, got 0"),
        ({"prompt_depth": 0}, "`prompt_depth`"),
        ({"propagation": "permutation"}, "must be one of 'aligned', 'shifted', 'replacement', got 'permutation'"),
        ({"propagation_place": "inside"}, "`propagation_place` must be one of 'before', 'after'"),
        ({"shift_scale": -0.1}, "`shift_scale`"),
        ({"shape_dropout": 1.0}, "`shape_dropout`"),
    ],
)
def test_wrong_options(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.GAPromptConfig(**fields)


def test_more_prompts_than_tokens(make_backbone, points):
    with pytest.raises(ValueError, match="`num_prompt_tokens`=17 prompts cannot take the rows of 16 patch tokens"):
        attach(make_backbone(), num_prompt_tokens=17, propagation="replacement")(points)


def test_without_the_layers_in_front_of_the_blocks(make_backbone, points):
    with pytest.raises(ValueError, match="got no shape vector.*leave them out of `exclude_modules`"):
        attach(make_backbone(), exclude_modules=["token_slot"])(points)


def test_preset_for_modelnet40():
    config = pp.GAPromptConfig.for_modelnet40(num_prompt_tokens=4)
    assert (config.num_points, config.shift_scale, config.num_prompt_tokens) == (5, 0.05, 4)
    assert pp.GAPromptConfig().shift_scale == 0.8


SCAN = {
    "classifier": 365_839,
    "class_token": 768,
    "prompt_places": 30,
    "prompt_tokens": 23_040,
    "bottleneck": 9_216 + 73_920 + 78_336,
    "pooled_bn": 9_216,
    "point_prompts": 15,
    "shape": 14_736,
    "shift": 25_371,
}


@pytest.mark.parametrize(
    ("labels", "num_groups", "config", "components", "total"),
    [
        (15, 128, pp.GAPromptConfig(), SCAN, 600_487),
        (15, 128, pp.GAPromptConfig(num_points=10), SCAN | {"point_prompts": 30}, 600_502),
        (40, 64, pp.GAPromptConfig.for_modelnet40(), SCAN | {"classifier": 372_264, "shape": 10_640}, 602_816),
    ],
)
def test_parameters_at_the_published_size(labels, num_groups, config, components, total):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=labels, num_groups=num_groups))
    model = get_peft_model(backbone, config, low_cpu_mem_usage=True)
    counts = dict.fromkeys(components, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names = [part for part in components if f"gaprompt_{part}" in name or f".{part}." in name]
            counts[(*names, "shift")[0]] += parameter.numel()
    assert counts == components
    assert model.get_nb_trainable_parameters()[0] == sum(components.values()) == total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"propagation_type": "shuffle_after_attention"}, "propagation_type='shuffle_after_attention' is not known"),
        ({"scaler": True}, "scaler=True is not supported; published files have scaler=False"),
        ({"shift_net": False}, "shift_net=False is not supported"),
        ({}, "lacks what becomes 'gaprompt_point_prompts.coordinates'"),
    ],
)
def test_published_options_that_cannot_be_represented(options, message):
    with pytest.raises(ValueError, match=message):
        read_published({}, options, "point_mae")
