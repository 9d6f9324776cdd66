"""The Geometry-aware Adapter by hand: eight tokens on a line, and gradients by finite differences."""

import pytest
import torch
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.slots import BranchSlot, OutputSlot, Stage, TokenSlot
from point_peft_hf.tokens import Cloud, start_tokens
from point_peft_hf.tuners.geometry_adapter import layer as module
from point_peft_hf.tuners.geometry_adapter.layer import FeedForwardLayer, OutputLayer, SharedAttentionLayer

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
            "init_weights": "published",
            **fields,
        }
    )
    torch.manual_seed(0)
    stage = Stage(WIDTH, group_size=8, num_layers=1)
    shared = SharedAttentionLayer(TokenSlot(stage), "geometry_adapter_")
    output = OutputLayer(OutputSlot(stage, 0), "geometry_adapter_")
    for layer in (shared, output):
        layer.update_layer("default", config, "slot")
        layer.set_adapter("default")
        layer.to(dtype).eval()
    return shared, output


def enter(shared, features, centers=CENTERS, num_class=0):
    return shared(start_tokens(features, centers, Cloud(centers, centers), num_class=num_class), None)


def without_bottleneck(output):
    """The local aggregation alone."""
    bottleneck = output.part("output_bottleneck", "default")
    torch.nn.init.zeros_(bottleneck.up_weight)
    torch.nn.init.zeros_(bottleneck.up_bias)


def test_neighborhoods_of_two_clusters():
    shared, output = make_layers()
    found = output._neighborhoods("default", enter(shared, torch.randn(1, 8, WIDTH)))
    # Sampling starts at the first token; the farthest from it is the last.
    assert found.center_indices.tolist() == [[0, 7]]
    assert [sorted(row) for row in found.neighbor_indices[0].tolist()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # Token 1 is 0.1 from the first centre and 9.2 from the last.
    near, far = 1 / (0.1**2 + 1e-8), 1 / (9.2**2 + 1e-8)
    expected = torch.tensor([near, far]) / (near + far)
    torch.testing.assert_close(found.weights[0, 1], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 8))


def test_aggregation_by_hand():
    shared, output = make_layers()
    without_bottleneck(output)
    features = torch.randn(1, 8, WIDTH)
    tokens = enter(shared, features)
    found = output._neighborhoods("default", tokens)
    rows = found.neighbor_indices[0]
    attended = features[0][rows] + shared.part("local_attention", "default")(features[0], rows)
    # Fresh running statistics: BatchNorm divides by sqrt(1 + eps) only.
    local = F.gelu(attended.amax(dim=1) / (1 + 1e-5) ** 0.5) + 0.3 * features[0, [0, 7]]
    expected = features[0] + 0.3 * found.weights[0] @ local
    torch.testing.assert_close(output(tokens).features[0], expected)


def test_local_attention_by_hand(monkeypatch):
    monkeypatch.setattr(module, "LOCAL_ATTENTION_SIZE", 6)
    monkeypatch.setattr(module, "LOCAL_ATTENTION_HEADS", 2)
    shared, output = make_layers()
    attention = shared.part("local_attention", "default")
    features = torch.randn(1, 8, WIDTH)
    tokens = enter(shared, features)
    indices = output._neighborhoods("default", tokens).neighbor_indices
    # One neighbourhood, head by head, with the norm applied to the gathered tokens.
    neighbors = features[0, indices[0, 1]]
    normed = F.layer_norm(neighbors, (WIDTH,), attention.norm_weight, attention.norm_bias)
    query, key, value = (normed @ attention.qkv_weight.T).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = query[:, head] @ key[:, head].T * 6**-0.5
        heads.append(scores.softmax(-1) @ value[:, head])
    expected = torch.cat(heads, dim=-1) @ attention.proj_weight.T + attention.proj_bias
    torch.testing.assert_close(attention(features[0], indices[0])[1], expected)


def test_prefix_tokens_take_no_part():
    shared, output = make_layers()
    without_bottleneck(output)
    features = torch.randn(1, 9, WIDTH)
    with_prefix = output(enter(shared, features, num_class=1)).features
    without = output(enter(shared, features[:, 1:])).features
    assert torch.equal(with_prefix[:, 0], features[:, 0])
    torch.testing.assert_close(with_prefix[:, 1:], without)


def test_feed_forward_bottleneck_by_hand():
    layer = FeedForwardLayer(BranchSlot(Stage(WIDTH, 8, 1), 0, "ffn"), "geometry_adapter_")
    layer.update_layer("default", pp.GeometryAdapterConfig(bottleneck_size=2, init_weights=False, dropout=0.0), "slot")
    layer.set_adapter("default")
    part = layer.part("ffn_bottleneck", "default")
    value = torch.randn(1, 3, WIDTH)
    inner = value @ part.down_weight.T + part.down_bias
    inner = inner * torch.sigmoid(1.702 * inner)
    expected = value + 0.7 * (inner @ part.up_weight.T + part.up_bias)
    tokens = start_tokens(value, None, None)
    update, same = layer(value, value, tokens, torch.nn.Identity())
    torch.testing.assert_close(update, expected)
    assert same is tokens


def test_gradients_by_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "LOCAL_ATTENTION_SIZE", 4)
    monkeypatch.setattr(module, "LOCAL_ATTENTION_HEADS", 2)
    shared, output = make_layers(torch.float64)
    features = torch.randn(1, 8, WIDTH, dtype=torch.float64, requires_grad=True)
    parameters = (*output.parameters(), *shared.parameters())

    def run(features, *_):
        return output(enter(shared, features, CENTERS.double())).features

    assert torch.autograd.gradcheck(run, (features, *parameters))


def test_the_places_of_inserted_tokens_get_a_gradient():
    shared, output = make_layers(torch.float64)
    features = torch.randn(1, 8, WIDTH, dtype=torch.float64)
    places = torch.tensor([[0.17, 0.4, 0.2]], dtype=torch.float64, requires_grad=True)

    def run(places):
        tokens = enter(shared, features, CENTERS.double())
        return output(tokens.insert("other", features[:, :1], coordinates=places)).features

    assert torch.autograd.gradcheck(run, (places,))


def test_a_block_whose_tokens_passed_no_token_slot_says_so():
    _, output = make_layers()
    with pytest.raises(ValueError, match="Block 0 got no local attention of adapter 'default'.*token slot"):
        output(start_tokens(torch.randn(1, 8, WIDTH), CENTERS, Cloud(CENTERS, CENTERS)))


@pytest.mark.parametrize("name", ["num_local_centers", "num_local_neighbors"])
def test_more_than_there_are_tokens(name):
    shared, output = make_layers(**{name: 9})
    with pytest.raises(ValueError, match=f"`{name}`=9 is more than there are tokens: 8"):
        output(enter(shared, torch.randn(1, 8, WIDTH)))
