"""PPT: its networks by hand, its second set of tokens and its read-out, its counts and its configuration."""

from collections import Counter

import pytest
import torch
from peft import get_peft_model
from torch import nn

import point_peft_hf as pp
from point_peft_hf.tokens import Cloud, start_tokens
from point_peft_hf.tuners.bottleneck import GELUBottleneck

KEY = "ppt_default"
SIZES = {"num_prompt_groups": 6, "prompt_group_size": 5, "bottleneck_size": 8, "init_weights": False}
COUNTS = {
    "class_token": 768,
    "first_linear1": 512,
    "first_norm1": 256,
    "first_linear2": 33_024,
    "position_embedding": 50_048,
    "patch_network": 197_248,
    "prompt_network": 197_248,
    "token_network": 197_248,
}


def attach(backbone, **fields):
    torch.manual_seed(0)
    return get_peft_model(backbone, pp.PPTConfig(**{**SIZES, **fields})).eval()


def own_tokens(tokens):
    """Features, position embeddings and centres of the second set."""
    centers = next(span.coordinates for span in tokens.spans if span.owner == KEY)
    return tokens.of(KEY), tokens.of(KEY, tokens.positions), centers


def test_network_by_hand():
    network = GELUBottleneck(2, 1, 2)
    network.down_weight.data, network.down_bias.data = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
    network.up_weight.data, network.up_bias.data = torch.tensor([[2.0], [0.0]]), torch.tensor([0.0, 1.0])
    gelu_of_one = 0.841345
    expected = torch.tensor([[[2 * gelu_of_one, 1.0]]])
    torch.testing.assert_close(network(torch.tensor([[[0.5, 7.0]]])), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_by_hand(make_backbone, points):
    encoder, seen = attach(make_backbone(num_hidden_layers=1)).base_model.model.point_mae, {}
    block = encoder.encoder.layers[0]
    for name in ("entry_slot", "ffn_slot"):
        slot = getattr(block, name)
        slot.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs, output)}))
    encoded = encoder.encode(points)
    patch, prompt, every = (encoder.encoder.token_slot.part(p, "default") for p in encoder.encoder.token_slot.parts)
    (tokens,), left = seen["entry_slot"]
    assert [span.count for span in tokens.spans] == [1, 6, 16]
    before, after = tokens.embedded(), left.embedded()
    torch.testing.assert_close(after[:, :1], before[:, :1])
    torch.testing.assert_close(after[:, 1:7], before[:, 1:7] + prompt(before[:, 1:7]))
    torch.testing.assert_close(after[:, 7:], before[:, 7:] + patch(before[:, 7:]))
    (output, _, tokens, _), (update, _) = seen["ffn_slot"]
    torch.testing.assert_close(update, output + every(tokens.features))
    normed = encoded.normed.features
    expected = torch.cat([normed[:, 0], normed[:, 7:].mean(dim=1), normed[:, 1:7].mean(dim=1)], dim=-1)
    torch.testing.assert_close(encoded.pooled, expected)


@torch.no_grad()
def test_second_set_is_a_copy_unless_it_has_other_sizes(make_backbone, points):
    encoder, seen = attach(make_backbone(), num_prompt_groups=None, prompt_group_size=None), []
    encoder = encoder.base_model.model.point_mae
    encoder.encoder.token_slot.register_forward_hook(lambda _, inputs, output: seen.append(output))
    encoder.encode(points)
    for found, expected in zip(own_tokens(seen[0]), encoder.embed(points, 16, 8), strict=True):
        torch.testing.assert_close(found, expected)
    slot, other = encoder.encoder.token_slot, attach(make_backbone()).base_model.model.point_mae
    other.encoder.token_slot.register_forward_hook(lambda _, inputs, output: seen.append(output))
    other.encode(points)
    for found, expected in zip(own_tokens(seen[1]), other.embed(points, 6, 5), strict=True):
        torch.testing.assert_close(found, expected)
    (picture,) = slot.explain("default", seen[1])
    centers = other.embed(points, 6, 5)[2]
    torch.testing.assert_close(torch.from_numpy(picture.places[0].coordinates), centers[0])


@torch.no_grad()
def test_shifted_rows_by_hand(make_backbone, points):
    encoder = attach(make_backbone(), shifted_rows=True, num_prompt_groups=None).base_model.model.point_mae.encoder
    patch, prompt, _ = (encoder.token_slot.part(part, "default") for part in encoder.token_slot.parts)
    features, centers = torch.randn(2, 4, 48), torch.randn(2, 4, 3)
    second = torch.randn(2, 4, 48)
    tokens = start_tokens(features, centers, Cloud(points, points), torch.zeros(2, 4, 48)).insert(KEY, second)
    networks = {"patch_network": patch, "prompt_network": prompt}
    result = encoder.layers[0].entry_slot(tokens.sharing(KEY, networks))
    # As published: rows 1 to G, then rows G to 2 G - 1, of both sets one after the other.
    rows = torch.cat([features, second], dim=1)
    rows[:, 1:5] += patch(rows[:, 1:5].clone())
    rows[:, 4:] += prompt(rows[:, 4:].clone())
    torch.testing.assert_close(torch.cat([result.patches, result.of(KEY)], dim=1), rows)


def test_shifted_rows_need_sets_of_one_size(make_backbone, points):
    with pytest.raises(ValueError, match="as many prompts as patch tokens, got `num_prompt_groups`=6 for 16 patch"):
        attach(make_backbone(), shifted_rows=True)(points)


@pytest.mark.parametrize(
    ("backbone_name", "parts", "activation"),
    [("point_mae", 3, nn.GELU), ("point_bert", 3, nn.GELU), ("recon", 5, nn.GELU), ("point_m2ae", 1, nn.ReLU)],
)
def test_head(make_backbone, backbone_name, parts, activation, points, logits):
    model = attach(make_backbone(backbone_name))
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert next(head.parameters()).shape[1] == parts * 48
    assert type(head.activation) is activation
    assert logits(model, points).shape == (4, 5)


def test_activation_of_the_head(make_backbone):
    model = attach(make_backbone(), head_activation="relu")
    assert type(model.base_model.model.classifier.modules_to_save["default"].activation) is nn.ReLU


@torch.no_grad()
def test_in_stages_the_second_set_is_in_the_first(make_backbone, points):
    encoder, counts = attach(make_backbone("point_m2ae")).base_model.model.point_m2ae, []
    for stage in encoder.stages:
        stage.token_slot.register_forward_hook(lambda _, inputs, tokens: counts.append(tokens.of(KEY).shape[1]))
    pooled = encoder.encode(points)
    assert counts == [6, 0, 0]
    torch.testing.assert_close(pooled.pooled, pooled.normed.patches.mean(dim=1))


def test_part_segmentation(points):
    fields = {"hidden_size": 48, "num_hidden_layers": 3, "num_groups": 16, "group_size": 8, "num_labels": 4}
    backbone = pp.PointMAEForSegmentation(pp.PointMAEConfig(**fields, patch_hidden_sizes=(8, 8, 8)))
    model, seen = attach(backbone), []
    backbone.readout_slot.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    head = backbone.segmentation_head.modules_to_save["default"]
    assert head.cloud_linear.in_features == 2 * 3 * 48
    model.train()(points, labels=torch.zeros(4, 128, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    (_, _, levels), output = seen[0]
    both = torch.cat([level.features for level in levels], dim=-1)
    torch.testing.assert_close(output, torch.cat([both.amax(dim=1), both.mean(dim=1)], dim=-1))


@pytest.mark.parametrize(("num_labels", "head", "total"), [(15, 365_839, 1_042_191), (40, 372_264, 1_048_616)])
def test_trainable_parameters(num_labels, head, total):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=num_labels))
    counts = Counter()
    for name, parameter in get_peft_model(backbone, pp.PPTConfig()).named_parameters():
        if parameter.requires_grad:
            counts[next((part for part in COUNTS if part in name), name.split(".")[2])] += parameter.numel()
    assert counts == COUNTS | {"classifier": head}
    assert sum(counts.values()) == total


def test_trainable_parameters_in_part_segmentation():
    with torch.device("meta"):
        backbone = pp.PointMAEForSegmentation(pp.PointMAEConfig(num_labels=50))
    model = get_peft_model(backbone, pp.PPTConfig.for_shapenetpart())
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trained.items() if "network" in name) == 3 * 98_816
    assert sum(count for name, count in trained.items() if ".first_" in name) == 33_792
    assert sum(count for name, count in trained.items() if "position_embedding" in name) == 50_048


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prompt_groups": 0}, "`num_prompt_groups` must be a number of at least 1, got 0"),
        ({"prompt_group_size": 0}, "`prompt_group_size` must be a number of at least 1, got 0"),
        ({"bottleneck_size": 0}, "`bottleneck_size` must be a number of at least 1, got 0"),
        ({"head_activation": "tanh"}, "`head_activation` must be one of 'gelu', 'relu', got 'tanh'"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.PPTConfig(**fields)


def test_networks_that_are_left_out(make_backbone, points):
    with pytest.raises(ValueError, match="Block 0 got no networks of adapter 'default'. Let its tokens pass the"):
        attach(make_backbone(), exclude_modules=["token_slot"])(points)
