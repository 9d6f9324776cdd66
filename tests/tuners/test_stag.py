"""STAG: its formula, what it leaves for the backward pass, and what its options mean (arXiv 2502.14142)."""

import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.slots import Stage
from point_peft_hf.tokens import Cloud

LOCAL = {"accumulation_layers": [0, 1, 2], "graph_layers": [1, 2], "accumulation_sharing": 2, "graph_sharing": 1}


def attach(backbone, **fields):
    torch.manual_seed(1)
    return get_peft_model(backbone, pp.STAGConfig(**{"rank": 6, "num_neighbors": 4, **fields}))


def network_of(model):
    (network,) = (m for name, m in model.named_modules() if name.endswith("side_network.default"))
    return network


def in_loops(backbone, points, network, k):
    """The side network as it is written in the paper's terms: every block by itself, every edge by itself."""
    down, graph = {0: 0, 1: 0, 2: 1}, {1: 0, 2: 1}

    def linear(name, index, values):
        return F.linear(values, getattr(network, f"{name}_weight")[index], getattr(network, f"{name}_bias")[index])

    encoder = backbone.point_mae
    neighborhoods, centers = encoder.group(points)
    tokens = encoder._with_prefix(encoder.embed_groups(neighborhoods), centers, Cloud(points, points))
    nearest = torch.cdist(centers, centers).argsort(dim=-1)[..., :k]
    side = 0
    for block, layer in enumerate(encoder.encoder.layers):
        side = side + linear("down", down[block], tokens.patches)
        tokens = layer(tokens, True)
        if block not in graph:
            continue
        index, mixed = graph[block], torch.empty_like(side)
        for cloud in range(len(points)):
            for i in range(side.shape[1]):
                edges = [
                    linear("center", index, side[cloud, i]) + linear("neighbor", index, side[cloud, j])
                    for j in nearest[cloud, i]
                ]
                mixed[cloud, i] = torch.stack(edges).amax(dim=0)
        side = linear("mix", index, mixed)
        moved = F.relu(linear("up", index, side))
        tokens = tokens.with_features(tokens.features + torch.cat([moved.mean(1, keepdim=True), moved], dim=1))
    return tokens.features.mean(dim=1)


@torch.no_grad()
def test_formula(make_backbone, points):
    model = attach(make_backbone(), **LOCAL).eval()
    expected = in_loops(make_backbone(), points[:2], network_of(model), 4)
    pooled = model.get_base_model().point_mae(points[:2]).pooler_output
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    assert pooled.shape == (2, 48)


def test_nothing_in_front_of_the_first_graph_convolution_is_kept(make_backbone, points, labels):
    model = attach(make_backbone(num_hidden_layers=6)).train()
    encoder = model.get_base_model().point_mae
    kept, counts = [], {}

    def note(name):
        return lambda module, args, output: counts.update({name: (len(kept), output)})

    for index, layer in enumerate(encoder.encoder.layers):
        layer.register_forward_hook(note(index))
        layer.output_slot.base_layer.register_forward_hook(note(f"inside {index}")) if index >= 3 else None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = model(points, labels=labels).loss
    for index in range(3):
        saved, tokens = counts[index]
        assert saved == 0
        assert not tokens.features.requires_grad
        assert not any(total.requires_grad for total, _ in tokens.carry["stag_default"].sums.values())
    # The block of the first graph convolution itself, too, up to its end.
    saved, tokens = counts["inside 3"]
    assert saved == 0
    assert counts[3][1].features.requires_grad
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_checkpointing_keeps_nothing_in_front_of_it_either(make_backbone, points, labels):
    """PEFT makes the embedding's output require a gradient for checkpointing: the non-reentrant kind needs none."""
    backbone = make_backbone(num_hidden_layers=6)
    backbone.gradient_checkpointing_enable()
    model = attach(backbone).train()
    assert backbone._require_grads_hooks
    encoder = backbone.point_mae
    outputs, backward = {}, []
    encoder.patch_embedding.register_forward_hook(lambda module, args, output: outputs.update({-1: output}))
    for index, layer in enumerate(encoder.encoder.layers):
        layer.attention.register_forward_hook(lambda module, args, output, i=index: backward.append(i))
        layer.register_forward_hook(lambda module, args, output, i=index: outputs.update({i: output.features}))

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            held.add(self)

    # Checkpointing saves the input of each block, and drops it again where there is nothing to go back to.
    held = weakref.WeakSet()
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda holder: holder.tensor):
        loss = model(points, labels=labels).loss
    assert [index for index, features in outputs.items() if features.requires_grad] == [3, 4, 5]
    places = {index: features.untyped_storage().data_ptr() for index, features in outputs.items()}
    kept = {holder.tensor.untyped_storage().data_ptr() for holder in held}
    assert [index for index, place in places.items() if place in kept] == [2, 3, 4, 5]
    backward.clear()
    loss.backward()
    # Blocks that run again are those with a graph convolution.
    assert sorted(set(backward)) == [3, 4, 5]
    # The reentrant kind needs it.
    backbone.gradient_checkpointing_enable({"use_reentrant": True})
    model(points, labels=labels)
    assert outputs[-1].requires_grad
    backbone.gradient_checkpointing_disable()
    backbone.disable_input_require_grads()
    model(points, labels=labels)
    assert not outputs[-1].requires_grad


@pytest.mark.parametrize("backbone_name", ["point_mae", "point_bert", "point_gpt"])
def test_the_class_token_is_saved_but_not_trained(make_backbone, backbone_name, train, tmp_path):
    model = attach(make_backbone(backbone_name))
    token = model.get_base_model().base_model.class_token.modules_to_save["default"]
    assert list(token.parameters()) == []
    before = {name: value.clone() for name, value in token.state_dict().items()}
    train(model)
    assert all(torch.equal(value, before[name]) for name, value in token.state_dict().items())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("classifier" in name or "side_network" in name for name in trained)


def test_what_is_trained_in_front_of_it_gets_its_gradient(make_backbone, points, labels):
    adapters = {"low_rank": LoraConfig(r=2, target_modules=["q_proj"]), "side": pp.STAGConfig(rank=6, num_neighbors=4)}
    model = pp.add_adapters(make_backbone(), adapters).train()
    model(points, labels=labels).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "layers.0." in name and "lora_B" in name]
    assert gradients
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_tokens_of_others_are_left_alone(make_backbone, points, logits):
    """The side network reads and changes class and patch tokens only."""
    others = {"prompt": pp.PointPriorPromptConfig(num_prompt_tokens=4, use_bank=False, modules_to_save=[])}
    model = pp.add_adapters(make_backbone(), {**others, "side": pp.STAGConfig(rank=6, num_neighbors=4)})
    before, after = {}, {}
    for index, layer in enumerate(model.point_mae.encoder.layers):
        slot = layer.output_slot
        if index >= 1:
            slot.base_layer.register_forward_hook(lambda m, a, out, i=index: before.update({i: out}))
            slot.register_forward_hook(lambda m, a, out, i=index: after.update({i: out}))
    logits(model, points)
    for index, tokens in after.items():
        change = tokens.features - before[index].features
        inserted = before[index].of("point_prior_prompt_prompt", change)
        assert inserted.shape[1] == 4
        assert inserted.abs().max() == 0
        assert before[index].of("class", change).abs().max() > 0


def test_on_the_last_stage(make_backbone, points, labels):
    model = attach(make_backbone("point_m2ae"))
    slots = {module.slot.layer_index for module in model.modules() if type(module).__name__ == "GraphLayer"}
    assert slots == {3}
    assert network_of(model).down_weight.shape == (1, 6, 48)
    model(points, labels=labels).loss.backward()


def test_in_part_segmentation(points):
    options = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "num_groups": 16, "group_size": 8}
    config = pp.PointMAEConfig(**options, segmentation_layers=(1, 2, 3), num_labels=6)
    model = get_peft_model(pp.PointMAEForSegmentation(config), pp.STAGConfig(rank=6, num_neighbors=4))
    model(points, labels=torch.zeros(4, 128, dtype=torch.long)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


# -- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "down", "graph"),
    [
        ({}, [0] * 12, {6: 0, 7: 0, 8: 0, 9: 0, 10: 0, 11: 0}),
        (
            {"variant": "sl"},
            [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
            {3: 0, 4: 0, 5: 0, 6: 1, 7: 1, 8: 1, 9: 2, 10: 2, 11: 2},
        ),
        ({"graph_layers": [10, 4]}, [0] * 11, {4: 0, 10: 1}),
        ({"layers_to_transform": [2, 3, 7]}, {2: 0, 3: 0, 7: 0}, {7: 0}),
    ],
)
def test_published_plans(fields, down, graph):
    plan = pp.STAGConfig(**fields).plan(Stage(384, 32, 12))
    assert plan.accumulation == (down if isinstance(down, dict) else dict(enumerate(down)))
    assert plan.graph == graph


@pytest.mark.parametrize("depth", range(1, 8))
@pytest.mark.parametrize("variant", ["std", "sl"])
def test_variants_mean_something_at_any_depth(variant, depth):
    plan = pp.STAGConfig(variant=variant).plan(Stage(384, 32, depth))
    assert set(plan.accumulation) == set(range(depth))
    assert depth - 1 in plan.graph
    assert set(plan.graph.values()) == set(range(len(set(plan.graph.values()))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "large"}, "`variant` must be one of 'std', 'sl', got 'large'"),
        ({"rank": 0}, "`rank` must be a number of at least 1, got 0"),
        ({"num_neighbors": 0}, "`num_neighbors`"),
        ({"graph_sharing": 0}, "`graph_sharing`"),
        ({"graph_layers": []}, r"`graph_layers` must name at least one block, got \[\]"),
        ({"graph_layers": [3]}, r"`graph_layers` has \[3\], but .* blocks 0 to 2"),
        ({"accumulation_layers": [2], "graph_layers": [1, 2]}, "at block 1, has nothing to work on"),
        ({"layers_to_transform": [0]}, r"`layers_to_transform`=\[0\] leaves no block with a graph convolution"),
        ({"target_modules": ["output_slot"]}, "needs the token slot, and the entry and output slots"),
        ({"exclude_modules": ["layers.0.entry_slot"]}, "`exclude_modules`={'layers.0.entry_slot'}"),
    ],
)
def test_wrong_options(make_backbone, fields, message):
    backbone = make_backbone()
    keys = list(backbone.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(backbone, **fields)
    assert list(backbone.state_dict()) == keys


def test_more_neighbors_than_tokens(make_backbone, points):
    with pytest.raises(ValueError, match="`num_neighbors`=17 is more than the 16 tokens"):
        attach(make_backbone(), num_neighbors=17)(points)


@pytest.mark.parametrize(
    ("variant", "labels", "expected"),
    [("std", 15, 428_431), ("std", 40, 434_856), ("sl", 15, 1_020_751), ("sl", 40, 1_027_176)],
)
def test_parameters_at_the_published_size(variant, labels, expected):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=labels))
    model = get_peft_model(backbone, pp.STAGConfig(variant=variant), low_cpu_mem_usage=True)
    side = {name.rpartition(".")[2]: p.numel() for name, p in model.named_parameters() if "side_network" in name}
    by_layer = {name: side[f"{name}_weight"] + side[f"{name}_bias"] for name in ("down", "center", "mix", "up")}
    factor = 1 if variant == "std" else 3
    assert by_layer == {
        "down": 73_920 * (1 if variant == "std" else 4),
        "center": 37_056 * factor,
        "mix": 37_056 * factor,
        "up": 74_112 * factor,
    }
    assert model.get_nb_trainable_parameters()[0] == expected
