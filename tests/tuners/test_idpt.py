"""IDPT: its generator by hand, its prompts and its read-out, its counts and its configuration."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.tokens import Cloud, start_tokens
from point_peft_hf.tuners.idpt.generator import NormedLinear, nearest_tokens

KEY = "idpt_default"
FIELDS = {"hidden_size": 48, "num_hidden_layers": 6, "num_groups": 16, "group_size": 8, "num_labels": 4}
SMALL = {"patch_hidden_sizes": (8, 8, 8), "segmentation_token_size": 8}


def attach(backbone, **fields):
    torch.manual_seed(0)
    return get_peft_model(backbone, pp.IDPTConfig(**{"num_neighbors": 4, **fields})).eval()


def make_segmentation(**fields):
    return pp.PointMAEForSegmentation(pp.PointMAEConfig(**{**FIELDS, **SMALL, **fields})).eval()


def lengths_of(model, points):
    """Length of the sequence that each block sees."""
    lengths = []
    for module in model.modules():
        if isinstance(module, pp.models.layers.PointAttention):
            module.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    with torch.no_grad():
        model(points)
    return lengths


# -- The generator ----------------------------------------------------------------------------------------------------


def test_nearest_tokens():
    tokens = torch.tensor([[[0.0], [1.0], [3.0], [3.5]]])
    assert nearest_tokens(tokens, 2).sort().values.tolist() == [[[0, 1], [0, 1], [2, 3], [2, 3]]]
    assert nearest_tokens(tokens, 9).shape == (1, 4, 4)
    # The expansion of the square would find only zeros so far from the origin.
    far = torch.tensor([[[4096.0], [4096.25], [4096.75]]])
    assert nearest_tokens(far, 2).sort().values.tolist() == [[[0, 1], [0, 1], [1, 2]]]


@pytest.mark.parametrize("is_training", [True, False])
def test_edge_convolution_by_hand(is_training):
    tokens = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer, plain = NormedLinear(6, 5).train(is_training), nn.BatchNorm1d(5).train(is_training)
    nn.init.normal_(layer.weight)
    plain.load_state_dict({name: t for name, t in layer.state_dict().items() if name != "linear_weight"})
    result = layer.on_edges(tokens, 4)
    result.square().sum().backward()
    gradient, tokens.grad = tokens.grad, None
    edges = torch.stack(
        [
            torch.cat([cloud[neighbor] - cloud[token], cloud[token]])
            for cloud, of_cloud in zip(tokens, nearest_tokens(tokens, 4), strict=True)
            for token, neighbors in enumerate(of_cloud)
            for neighbor in neighbors
        ]
    )
    normed = F.leaky_relu(plain(edges @ layer.linear_weight.T), 0.2)
    expected = normed.view(2, 7, 4, 5).amax(dim=2)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)
    expected.square().sum().backward()
    torch.testing.assert_close(gradient, tokens.grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prompt_by_hand(make_backbone, points):
    encoder = attach(make_backbone()).base_model.model.point_mae.encoder
    layer, features = encoder.layers[2].entry_slot, torch.randn(2, 17, 48)
    centers = torch.randn(2, 16, 3)
    tokens = start_tokens(features, centers, Cloud(points, points), torch.ones(2, 17, 48), num_class=1)
    position = encoder.token_slot.part("prompt_position", "default").weight
    result = layer(tokens.sharing(f"{KEY}.position", position))
    one, two, three, fusion = (layer.part(part, "default") for part in layer.parts)
    first = one.on_edges(features[:, 1:], 4)
    second = two.on_edges(first, 4)
    third = three.on_edges(second, 4)
    fused = torch.cat([first, second, third], dim=-1) @ fusion.linear_weight.T
    scale, shift = fusion.folded_scale_and_shift()
    prompt = F.leaky_relu(fused * scale + shift, 0.2).amax(dim=1)
    torch.testing.assert_close(result.of(KEY)[:, 0], prompt)
    torch.testing.assert_close(result.of(KEY, result.positions)[0, 0], position)
    (picture,) = layer.explain("default", result, tokens)
    assert picture.values.sum() == 48
    assert picture.values.shape == (16,)


# -- Where prompts are, and who reads them ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone_name", "fields", "expected"),
    [
        ("point_mae", {}, [17, 17, 18]),
        ("point_mae", {"prompt_layers": [1]}, [17, 18, 18]),
        ("point_mae", {"prompt_layers": [0, 2], "keep_prompts": False}, [18, 17, 18]),
        ("point_mae", {"prompt_layers": [1, 2], "keep_prompts": False}, [17, 18, 18]),
        ("point_m2ae", {"prompt_layers": [2]}, [32, 16, 9, 9]),
        ("point_gpt", {}, [18, 18, 19]),
    ],
)
def test_how_long_prompts_stay(make_backbone, backbone_name, fields, expected, points):
    assert lengths_of(attach(make_backbone(backbone_name), **fields), points) == expected


@pytest.mark.parametrize(
    ("backbone_name", "fields", "parts"),
    [
        ("point_mae", {}, 3),
        ("recon", {}, 5),
        ("point_mae", {"class_token": False, "patch_pooling": None}, 1),
        ("point_mae", {"prompt_token": False}, 2),
        ("point_m2ae", {}, 2),
    ],
)
def test_width_of_the_head(make_backbone, backbone_name, fields, parts, points, logits):
    model = attach(make_backbone(backbone_name), **fields)
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert head.dense1.in_features == parts * 48
    assert logits(model, points).shape == (4, 5)


@pytest.mark.parametrize(
    ("config", "width"),
    [
        # As published: in place of maximum and mean, each prompt as it was made and as it left its block.
        (pp.IDPTConfig.for_shapenetpart(prompt_layers=[1, 3, 5]), 6 * 48),
        (pp.IDPTConfig.for_shapenetpart(prompt_layers=[1, 3, 5], patch_pooling="max"), 2 * 8 + 6 * 48),
        (pp.IDPTConfig(num_neighbors=4), 2 * 8 + 48),
        (pp.IDPTConfig(num_neighbors=4, prompt_token=False), 2 * 8),
    ],
    ids=["published", "all", "graph", "unread"],
)
def test_part_segmentation(points, config, width):
    model = get_peft_model(make_segmentation(), config).train()
    head = model.base_model.model.segmentation_head.modules_to_save["default"]
    assert head.cloud_linear.in_features == width
    model(points, labels=torch.zeros(4, 128, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_what_a_head_for_parts_reads_by_hand(points):
    model = get_peft_model(make_segmentation(), pp.IDPTConfig.for_shapenetpart(prompt_layers=[1, 3, 5])).eval()
    segmenter, seen = model.base_model.model, {}
    encoder = segmenter.point_mae.encoder
    for index in (1, 3, 5):
        block = encoder.layers[index]
        block.entry_slot.register_forward_hook(lambda _, args, out, i=index: seen.update({(i, 0): out.of(KEY)}))
        block.output_slot.register_forward_hook(lambda _, args, out, i=index: seen.update({(i, 1): out.of(KEY)}))
    segmenter.readout_slot.register_forward_hook(lambda _, args, out: seen.update(out=out))
    model(points)
    prompts = [seen[index, moment][:, 0] for moment in (0, 1) for index in (1, 3, 5)]
    expected = torch.cat([segmenter.point_mae.layernorm(prompt) for prompt in prompts], dim=-1)
    torch.testing.assert_close(seen["out"], expected)


def test_prompts_that_the_head_for_parts_cannot_read(points):
    model = get_peft_model(make_segmentation(), pp.IDPTConfig.for_shapenetpart(prompt_layers=[2, 5]))
    with pytest.raises(ValueError, match=r"tokens after 3 blocks, and of those 1 have a prompt .* are \[2, 5\]"):
        model(points)


# -- Counts and configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "num_labels", "head", "total"),
    [
        (pp.IDPTConfig(), 15, 365_839, 1_696_783 + 384),
        (pp.IDPTConfig(train_prompt_position=False), 15, 365_839, 1_696_783),
        (pp.IDPTConfig(prompt_layers=[6], train_prompt_position=False), 15, 365_839, 1_696_783),
        (
            pp.IDPTConfig(class_token=False, patch_pooling=None, train_prompt_position=False),
            15,
            169_231,
            1_500_175,
        ),
        (pp.IDPTConfig(train_prompt_position=False), 40, 372_264, 1_703_208),
    ],
    ids=["PB_T50_RS", "untrained position", "OBJ_ONLY", "OBJ_BG", "ModelNet40"],
)
def test_trainable_parameters(config, num_labels, head, total):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=num_labels))
    model = get_peft_model(backbone, config)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trained.items() if "entry_slot" in name) == 1_330_176
    assert sum(count for name, count in trained.items() if "classifier" in name) == head
    assert sum(count for name, count in trained.items() if "class_token" in name) == 768
    assert sum(trained.values()) == total


def test_trainable_parameters_in_part_segmentation():
    with torch.device("meta"):
        backbone = pp.PointMAEForSegmentation(pp.PointMAEConfig(num_labels=50))
    model = get_peft_model(backbone, pp.IDPTConfig.for_shapenetpart())
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad and "idpt" in name}
    # Three generators without the BatchNorm (768) that the published ones do not call, and the position.
    assert sum(trained.values()) == 3 * (148_992 - 768) + 384


def test_a_position_that_is_not_trained_is_saved(make_backbone, points, logits, train, tmp_path):
    model = attach(make_backbone(), train_prompt_position=False)
    part = model.base_model.model.point_mae.encoder.token_slot.part("prompt_position", "default")
    before = part.weight.clone()
    train(model, steps=1)
    assert torch.equal(part.weight, before)
    assert before.any()
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": "mlp"}, "`generator` must be one of 'graph', 'light', got 'mlp'"),
        ({"num_neighbors": 0}, "`num_neighbors` must be a number of at least 1, got 0"),
        ({"patch_pooling": "sum"}, "`patch_pooling` must be one of 'mean', 'max', None, got 'sum'"),
        ({"prompt_layers": []}, r"`prompt_layers` must be numbers of blocks, each once, got \[\]"),
        ({"prompt_layers": [1, 1], "keep_prompts": False}, "`prompt_layers` must be numbers of blocks, each once"),
        ({"prompt_layers": [-1]}, "`prompt_layers` must be a number of at least 0, got -1"),
        ({"prompt_layers": [1, 2]}, "a prompt that stays is made in front of one block only"),
        ({"class_token": False, "prompt_token": False, "patch_pooling": None}, "nothing for the head to read"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.IDPTConfig(**fields)


@pytest.mark.parametrize(
    ("backbone_name", "layer", "message"),
    [
        ("point_mae", 3, r"`prompt_layers`=\[3\] must be blocks of the backbone, which has the numbers 0 to 2"),
        ("point_m2ae", 0, r"\[0\] must be blocks of the last stage, whose tokens the head reads.*2 to 3"),
    ],
)
def test_blocks_that_cannot_have_a_prompt(make_backbone, backbone_name, layer, message):
    with pytest.raises(ValueError, match=message):
        attach(make_backbone(backbone_name), prompt_layers=[layer])


def test_tokens_without_those_of_some_adapters():
    centers = torch.randn(2, 3, 3)
    tokens = start_tokens(torch.zeros(2, 4, 5), centers, Cloud(centers, centers), torch.zeros(2, 4, 5), num_class=1)
    more = tokens.insert("a", torch.ones(2, 1, 5), keeps=True).insert("b", torch.full((2, 2, 5), 2.0), keeps=True)
    left = more.without("a")
    assert [span.owner for span in left.spans] == ["class", "b", "patch"]
    assert left.features[0, :, 0].tolist() == [0, 2, 2, 0, 0, 0]
    assert left.positions.shape == (2, 6, 5)
    assert all(span.keeps for span in left.spans)
    assert more.without("c") is more
