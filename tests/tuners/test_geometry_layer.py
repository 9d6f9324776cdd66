"""The Geometry-aware Adapter by hand: eight tokens on a line, and gradients by finite differences."""

import pytest
import torch
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.slots import BlockContext, FeedForwardSlot, LocalitySlot, OutputSlot
from point_peft_hf.tuners.geometry_adapter.layer import (
    GeometryAdapterFeedForwardLayer,
    GeometryAdapterLocalityLayer,
    GeometryAdapterOutputLayer,
)

WIDTH = 6
# Two clusters of four tokens each, far apart.
CENTERS = torch.tensor([[[x, 0.0, 0.0] for x in (0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2, 9.3)]])


def make_layers(dtype=torch.float32, **fields):
    config = pp.GeometryAdapterConfig(
        **{
            "num_local_centers": 2,
            "num_local_neighbors": 4,
            "dropout": 0.0,
            "local_drop_path": 0.0,
            "bottleneck_size": 2,
            "use_output_bottleneck": False,
            "init_weights": False,
            "gate_center": False,
            **fields,
        }
    )
    torch.manual_seed(0)
    locality = GeometryAdapterLocalityLayer(LocalitySlot(WIDTH, group_size=8))
    output = GeometryAdapterOutputLayer(OutputSlot(WIDTH, 0, 1))
    for layer in (locality, output):
        layer.update_layer("default", config, "slot")
        layer.set_adapter("default")
        layer.to(dtype).eval()
    return locality, output


def test_neighborhoods_of_two_clusters():
    locality, _ = make_layers()
    found = locality(BlockContext(CENTERS)).neighborhoods["default", ()]
    # Sampling starts at the first token; the farthest from it is the last.
    assert found.center_indices.tolist() == [[0, 7]]
    assert [sorted(row) for row in found.neighbor_indices[0].tolist()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # Token 1 is 0.1 from the first centre and 9.2 from the last.
    near, far = 1 / (0.1**2 + 1e-8), 1 / (9.2**2 + 1e-8)
    expected = torch.tensor([near, far]) / (near + far)
    torch.testing.assert_close(found.weights[0, 1], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 8))


def test_aggregation_without_attention_by_hand():
    locality, output = make_layers(use_local_attention=False)
    tokens = torch.randn(1, 8, WIDTH)
    context = locality(BlockContext(CENTERS))
    # Fresh running statistics: BatchNorm divides by sqrt(1 + eps) only.
    pooled = torch.stack([tokens[0, :4].amax(0), tokens[0, 4:].amax(0)])
    features = F.gelu(pooled / (1 + 1e-5) ** 0.5) + 0.3 * tokens[0, [0, 7]]
    weights = context.neighborhoods["default", ()].weights[0]
    expected = tokens[0] + 0.3 * weights @ features
    torch.testing.assert_close(output(tokens, context)[0], expected)


def test_mean_pooling_and_no_propagation_by_hand():
    locality, output = make_layers(
        use_local_attention=False, local_pooling="mean", use_propagation=False, center_scale=0.0, propagation_scale=1.0
    )
    tokens = torch.randn(1, 8, WIDTH)
    expected = tokens[0].clone()
    expected[0] += F.gelu(tokens[0, :4].mean(0) / (1 + 1e-5) ** 0.5)
    expected[7] += F.gelu(tokens[0, 4:].mean(0) / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(output(tokens, locality(BlockContext(CENTERS)))[0], expected)


def test_local_attention_by_hand():
    locality, output = make_layers(local_attention_size=6, local_attention_heads=2)
    attention = locality.part("local_attention", "default")
    tokens = torch.randn(1, 8, WIDTH)
    context = locality(BlockContext(CENTERS))
    indices = context.neighborhoods["default", ()].neighbor_indices
    # One neighbourhood, head by head, with the norm applied to the gathered tokens.
    neighbors = tokens[0, indices[0, 1]]
    normed = F.layer_norm(neighbors, (WIDTH,), attention.norm_weight, attention.norm_bias)
    query, key, value = (normed @ attention.qkv_weight.T).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = query[:, head] @ key[:, head].T * 6**-0.5
        heads.append(scores.softmax(-1) @ value[:, head])
    expected = torch.cat(heads, dim=-1) @ attention.proj_weight.T + attention.proj_bias
    torch.testing.assert_close(attention(tokens[0], indices[0])[1], expected)
    assert not torch.allclose(output(tokens, context), tokens)


def test_prefix_tokens_take_no_part():
    locality, output = make_layers()
    tokens = torch.randn(1, 9, WIDTH)
    with_prefix = output(tokens, locality(BlockContext(CENTERS, num_prefix_tokens=1)))
    without = output(tokens[:, 1:], locality(BlockContext(CENTERS)))
    assert torch.equal(with_prefix[:, 0], tokens[:, 0])
    torch.testing.assert_close(with_prefix[:, 1:], without)


def test_feed_forward_bottleneck_by_hand():
    layer = GeometryAdapterFeedForwardLayer(FeedForwardSlot(WIDTH, 0, 1))
    layer.update_layer("default", pp.GeometryAdapterConfig(bottleneck_size=2, init_weights=False, dropout=0.0), "slot")
    layer.set_adapter("default")
    part = layer.part("ffn_bottleneck", "default")
    value = torch.randn(1, 3, WIDTH)
    inner = value @ part.down_weight.T + part.down_bias
    inner = inner * torch.sigmoid(1.702 * inner)
    expected = value + 0.7 * (inner @ part.up_weight.T + part.up_bias)
    torch.testing.assert_close(layer(value, value, None), expected)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_gradients_by_finite_differences(pooling):
    locality, output = make_layers(
        torch.float64,
        local_pooling=pooling,
        use_output_bottleneck=True,
        local_attention_size=4,
        local_attention_heads=2,
    )
    context = locality(BlockContext(CENTERS.double()))
    tokens = torch.randn(1, 8, WIDTH, dtype=torch.float64, requires_grad=True)
    parameters = (*output.parameters(), *locality.parameters())

    def run(tokens, *_):
        return output(tokens, context)

    assert torch.autograd.gradcheck(run, (tokens, *parameters))


def test_a_block_without_geometry_says_what_to_pass():
    _, output = make_layers()
    with pytest.raises(ValueError, match="output slot of block 0 got no geometry.*prepare_context"):
        output(torch.randn(1, 8, WIDTH), None)
    with pytest.raises(ValueError, match="no neighbourhoods for adapter 'default'.*locality slot"):
        output(torch.randn(1, 8, WIDTH), BlockContext(CENTERS))


@pytest.mark.parametrize("name", ["num_local_centers", "num_local_neighbors"])
def test_more_than_there_are_tokens(name):
    locality, _ = make_layers(**{name: 9})
    with pytest.raises(ValueError, match=f"`{name}`=9 is more than there are tokens: 8"):
        locality(BlockContext(CENTERS))
