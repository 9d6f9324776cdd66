"""DAPT: its formulas by hand, its prompts and its read-out, its counts and its configuration."""

from collections import Counter

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.tokens import Cloud, start_tokens
from point_peft_hf.tuners.dapt.layer import DynamicAdapter, ScaleShift

KEY = "dapt_default"
# Trainable parameters at the published size, by the name of the part and for "scale_shift" of the slot.
ADAPTERS = {"norm": 9_216, "scale": 4_620, "down": 295_680, "up": 299_520}
COUNTS = {
    "patch_embedding_slot": 768,
    "layernorm_slot": 768,
    "norm1_slot": 9_216,
    "norm2_slot": 9_216,
    "internal_prompt": 9_216,
    "fc1_slot": 36_864,
    "fc2_slot": 9_216,
    "qkv": 27_648,
    "out_proj_slot": 9_216,
    "class_token": 768,
}


def attach(backbone, **fields):
    return get_peft_model(backbone, pp.DAPTConfig(**{"bottleneck_size": 4, "init_weights": False, **fields})).eval()


def test_scale_and_shift():
    layer = ScaleShift(2)
    layer.scale.data, layer.shift.data = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    assert layer(torch.tensor([[1.0, 1.0], [0.0, 2.0]])).tolist() == [[2.5, 2.0], [0.5, 1.0]]


def test_adapter_by_hand():
    adapter = DynamicAdapter(2, 1, dropout=0.0).eval()
    adapter.scale_weight.data, adapter.scale_bias.data = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
    adapter.down_weight.data = torch.tensor([[1.0, 0.0]])
    adapter.up_weight.data, adapter.up_bias.data = torch.tensor([[2.0], [0.0]]), torch.tensor([0.0, 1.0])
    # The norm makes these (1, -1) and (-1, 1); the ReLU lets the first through with 1.5, and not the second.
    added = adapter(torch.tensor([[[3.0, 1.0], [1.0, 3.0]]]))
    gelu_of_one = 0.841345
    expected = torch.tensor([[[1.5 * 2 * gelu_of_one, 1.5], [0.0, 0.0]]])
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_by_hand(make_backbone, points):
    model = attach(make_backbone(num_hidden_layers=1), prompt_pooling="max")
    encoder = model.base_model.model.point_mae
    block, seen = encoder.encoder.layers[0], {}
    block.ffn_slot.register_forward_hook(lambda module, inputs, output: seen.update(ffn=(inputs, output)))
    encoded = encoder.encode(points)
    (output, inputs, _, _), (update, _) = seen["ffn"]
    added = block.ffn_slot.part("dynamic_adapter", "default")(inputs)
    torch.testing.assert_close(update, output + added)
    prompt = block.output_slot.part("internal_prompt", "default")(F.gelu(added).mean(dim=1))
    assert [span.owner for span in encoded.tokens.spans] == ["class", KEY, "patch"]
    torch.testing.assert_close(encoded.tokens.of(KEY)[:, 0], prompt)
    normed = encoded.normed.features
    expected = torch.cat([normed[:, 0], normed[:, 1], normed[:, 2:].amax(dim=1)], dim=-1)
    torch.testing.assert_close(encoded.pooled, expected)


@torch.no_grad()
def test_the_adapter_is_inside_of_stochastic_depth(make_backbone, points):
    slot = attach(make_backbone()).base_model.model.point_mae.encoder.layers[0].ffn_slot
    tokens = start_tokens(torch.randn(2, 5, 48), torch.randn(2, 5, 3), Cloud(points, points))
    output, inputs = torch.randn(2, 2, 5, 48)
    update, _ = slot(output, inputs, tokens, lambda update: 0 * update)
    assert (update == 0).all()


@pytest.mark.parametrize(
    ("backbone_name", "expected"), [("point_mae", [1, 2, 3]), ("point_m2ae", [0, 0, 1, 2]), ("point_gpt", [1, 2, 3])]
)
def test_prompts_stay_for_the_following_blocks(make_backbone, backbone_name, expected, points, logits):
    model, counts = attach(make_backbone(backbone_name)), []
    for name, module in model.named_modules():
        if name.endswith("output_slot"):
            module.register_forward_hook(lambda _, inputs, tokens: counts.append(tokens.of(KEY).shape[1]))
    logits(model, points)
    # At the end of a stage that another one follows there is none to make.
    assert counts == expected


@torch.no_grad()
def test_positions_are_added_once_or_in_front_of_every_block(make_backbone, points):
    inputs = {}
    for position in ("once", "every"):
        model = attach(make_backbone(), position=position, init_weights=True)
        seen = inputs[position] = []
        for layer in model.base_model.model.point_mae.encoder.layers:
            layer.norm1.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(points)
    torch.testing.assert_close(inputs["once"][0], inputs["every"][0])
    assert not torch.allclose(inputs["once"][1], inputs["every"][1])


@pytest.mark.parametrize(
    ("backbone_name", "fields", "parts"),
    [
        ("point_mae", {}, 3),
        ("point_mae", {"prompt_pooling": None}, 2),
        ("point_mae", {"patch_pooling": None, "prompt_pooling": "max"}, 2),
        ("point_mae", {"class_token": False, "patch_pooling": "mean"}, 2),
        ("point_m2ae", {}, 2),
        ("point_m2ae", {"prompt_pooling": None}, 1),
    ],
)
def test_width_of_the_head(make_backbone, backbone_name, fields, parts, points, logits):
    model = attach(make_backbone(backbone_name), **fields)
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert head.dense1.in_features == parts * 48
    assert logits(model, points).shape == (4, 5)


def test_part_segmentation(points):
    fields = {"hidden_size": 48, "num_hidden_layers": 3, "num_groups": 16, "group_size": 8, "num_labels": 4}
    backbone = pp.PointMAEForSegmentation(pp.PointMAEConfig(**fields, patch_hidden_sizes=(8, 8, 8)))
    width = backbone.segmentation_head.cloud_linear.in_features
    model = attach(backbone)
    head = model.base_model.model.segmentation_head.modules_to_save["default"]
    assert head.cloud_linear.in_features == width + 48
    model.train()(points, labels=torch.zeros(4, 128, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_scales_that_are_zero_are_shown(make_backbone, points):
    model = attach(make_backbone())
    layers, shown = model.base_model.model.point_mae.encoder.layers, []
    layers[1].ffn_slot.part("dynamic_adapter", "default").scale_bias.fill_(-100.0)
    for layer in layers:
        layer.ffn_slot.register_forward_hook(lambda m, args, out: shown.extend(m.explain("default", out, *args)))
    model(points[:1])
    assert [picture.name for picture in shown] == ["scale of the adapter"] * 3
    assert [picture.values.shape for picture in shown] == [(16,)] * 3
    assert [bool(picture.values.any()) for picture in shown] == [True, False, True]


@pytest.mark.parametrize(
    ("config", "num_labels", "rank", "head", "total"),
    [
        (pp.DAPTConfig(), 15, 64, 365_839, 1_087_771),
        (pp.DAPTConfig(dropout=0.0, patch_pooling=None), 15, 64, 267_535, 989_467),
        (pp.DAPTConfig.for_modelnet40(), 40, 72, 273_960, 1_069_716),
    ],
    ids=["PB_T50_RS", "OBJ_ONLY", "ModelNet40"],
)
def test_trainable_parameters(config, num_labels, rank, head, total):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=num_labels))
    counts = Counter()
    for name, parameter in get_peft_model(backbone, config).named_parameters():
        if parameter.requires_grad:
            path = name.split(".")
            part = path[-1].split("_")[0] if "dynamic_adapter" in name else None
            part = part or next((p for p in COUNTS if p in name), "qkv" if "_proj_slot" in name else path[2])
            counts[part] += parameter.numel()
    grown = {"down": 12 * rank * 385, "up": 12 * 384 * (rank + 1)}
    assert counts == COUNTS | ADAPTERS | grown | {"classifier": head}
    assert sum(counts.values()) == total


def test_published_values():
    config = pp.DAPTConfig.for_modelnet40(dropout=0.1)
    assert (config.bottleneck_size, config.dropout, config.prompt_pooling) == (72, 0.1, None)
    assert pp.DAPTConfig.describe({})[0].startswith("DAPT (arXiv 2403.01439)")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck_size": 0}, "`bottleneck_size` must be a number of at least 1, got 0"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1, got 1.0"),
        ({"prompt_pooling": "sum"}, "`prompt_pooling` must be one of 'mean', 'max', None, got 'sum'"),
        ({"position": "never"}, "`position` must be one of 'every', 'once', got 'never'"),
        ({"class_token": False, "prompt_pooling": None, "patch_pooling": None}, "nothing for the head to read"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.DAPTConfig(**fields)


def test_prompts_without_what_they_are_made_of(make_backbone, points):
    with pytest.raises(ValueError, match="Block 0 makes its prompt of what the adapter at its `ffn_slot` adds"):
        attach(make_backbone(), target_modules=["output_slot"])(points)
    with pytest.raises(ValueError, match="tokens of 'dapt_default', but there are none in the last stage"):
        attach(make_backbone("point_m2ae"), layers_to_transform=[0])(points)
