"""PointLoRA: its layers, its tokens and its configuration, by hand."""

from collections import Counter

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.tuners.pointlora.layer import Scorer, negative_entropy
from point_peft_hf.tuners.pointlora.published import read_published
from point_peft_hf.tuners.slot_layer import SlotLayer

CONFIG = {"r": 2, "bottleneck_size": 6, "scales": [[24, 8, 6], [12, 8, 2]], "init_weights": False}
KEY = "pointlora_default"


def parts_of(model) -> dict:
    """The parts of the adapter by the name of their slot and their own."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SlotLayer):
            slot = ".".join(name.split(".")[-3:])
            found |= {f"{slot}.{part}": layer.part(part, "default") for part in layer.parts}
    return found


def test_attention_and_tokens_of_a_block_by_hand(make_backbone, points):
    model = get_peft_model(make_backbone(num_hidden_layers=1), pp.PointLoRAConfig(**CONFIG)).eval()
    encoder = model.base_model.model.point_mae.encoder
    block, seen = encoder.layers[0], {}

    def record(name):
        return lambda module, inputs, output: seen.__setitem__(name, (inputs, output))

    block.entry_slot.register_forward_hook(record("entry"))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        getattr(block.attention, f"{name}_slot").register_forward_hook(record(name))
    with torch.no_grad():
        model(points)
        parts = {name.rpartition(".")[2]: part for name, part in parts_of(encoder).items() if part is not None}

        def mlp(part, x):
            return F.gelu(x @ part.down_weight.T + part.down_bias) @ part.up_weight.T + part.up_bias

        (tokens,), left = seen["entry"]
        x = tokens.features + tokens.positions
        y = left.features + left.positions
        # Class token, then the selected tokens of both scales, then the patches.
        assert [span.count for span in tokens.spans] == [1, 6, 2, 16]
        torch.testing.assert_close(y[:, :1], x[:, :1])
        torch.testing.assert_close(y[:, 1:9], x[:, 1:9] + mlp(parts["selected_mlp"], x[:, 1:9]))
        torch.testing.assert_close(y[:, 9:], x[:, 9:] + mlp(parts["patch_mlp"], x[:, 9:]))
        for index, name in enumerate(("q_proj", "k_proj", "v_proj", "out_proj")):
            (plain, inputs), output = seen[name]
            own = getattr(block.attention, f"{name}_slot").part("low_rank", "default")
            down = own if name == "out_proj" else parts["qkv_low_rank"]
            shared = mlp(parts["out_mlp"], inputs) if name == "out_proj" else mlp(parts["qkv_mlp"], inputs)
            if name != "out_proj":
                shared = shared[..., 48 * index : 48 * (index + 1)]
            expected = plain + inputs @ down.down_weight.T @ own.up_weight.T + shared
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_selected_tokens_and_readout_by_hand(make_backbone, points):
    model = get_peft_model(make_backbone(), pp.PointLoRAConfig(**CONFIG)).eval()
    encoder = model.base_model.model.point_mae
    scorer = encoder.encoder.token_slot.part("scorer", "default")
    with torch.no_grad():
        encoded = encoder.encode(points)
        spans = [span for span in encoded.tokens.spans if span.owner == KEY]
        for span, (count, group_size, kept) in zip(spans, CONFIG["scales"], strict=True):
            features, _, centers = encoder.embed(points, count, group_size)
            hidden = F.relu(features @ scorer.down_weight.T + scorer.down_bias)
            order = (hidden @ scorer.up_weight.T).squeeze(-1).argsort(dim=1, descending=True)[:, :kept]
            expected = torch.stack([cloud[rows] for cloud, rows in zip(centers, order, strict=True)])
            torch.testing.assert_close(span.coordinates, expected)
        normed = encoded.normed.features
        expected = torch.cat([normed[:, 0], normed[:, 1:].amax(dim=1)], dim=-1)
        assert torch.equal(encoded.pooled, expected)


@pytest.mark.parametrize("confident", [True, False])
def test_loss_on_the_scores(make_backbone, points, labels, confident):
    fields = CONFIG | {"confident_scores": confident, "mask_loss_weights": [2.0, 0.5]}
    model = get_peft_model(make_backbone(), pp.PointLoRAConfig(**fields)).eval()
    encoder = model.base_model.model.point_mae
    scorer = encoder.encoder.token_slot.part("scorer", "default")
    with torch.no_grad():
        output = model(points, labels=labels)
        means = []
        for count, group_size, _ in CONFIG["scales"]:
            scores = scorer(encoder.embed(points, count, group_size)[0])
            means.append(-torch.distributions.Bernoulli(scores).entropy().mean())
    expected = F.cross_entropy(output.logits, labels) + (-1 if confident else 1) * (2 * means[0] + 0.5 * means[1])
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)


def test_negative_entropy():
    scores = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(negative_entropy(scores), torch.tensor(0.5).log() / 2, atol=1e-5, rtol=0)
    assert Scorer(8)(torch.randn(2, 3, 8)).shape == (2, 3)


def test_only_the_honest_form_trains_the_scores_by_the_task(make_backbone, points, labels):
    scores_get, values = {}, {}
    for by_task in (True, False):
        fields = CONFIG | {"train_scores_by_task": by_task, "mask_loss_weights": [0.0, 0.0]}
        torch.manual_seed(0)
        model = get_peft_model(make_backbone(), pp.PointLoRAConfig(**fields)).eval()
        output = model(points, labels=labels)
        output.loss.backward()
        scorer = parts_of(model)["point_mae.encoder.token_slot.scorer"]
        scores_get[by_task] = float(scorer.down_weight.grad.abs().max())
        values[by_task] = output.logits
    assert scores_get[True] > 1e-6
    assert scores_get[False] == 0
    assert torch.equal(values[True], values[False])


def test_a_fresh_adapter_adds_nothing_but_tokens(make_backbone, points, logits):
    backbone = make_backbone()
    before = logits(backbone, points)
    model = get_peft_model(backbone, pp.PointLoRAConfig(**CONFIG | {"init_weights": True}))
    token_layer = model.base_model.model.point_mae.encoder.token_slot
    assert not torch.allclose(logits(model, points), before)
    token_layer.adapt = lambda name, tokens, backbone: tokens.sharing(
        f"{KEY}.mlps", {"patch": token_layer.part("patch_mlp", "default"), "selected": None}
    )
    readout = model.base_model.model.point_mae.readout_slot
    readout.adapt = lambda name, pooled, *_: pooled
    assert torch.equal(logits(model, points), before)


def test_layers_that_hold_what_others_share_are_needed(make_backbone):
    for fields in ({"exclude_modules": ["entry_slot"]}, {"target_modules": ["q_proj_slot"]}):
        with pytest.raises(ValueError, match="needs the slots 'token_slot' and 'entry_slot' of block 0"):
            get_peft_model(make_backbone(), pp.PointLoRAConfig(**CONFIG, **fields))


def test_some_layers_of_the_attention(make_backbone, train):
    fields = CONFIG | {"target_modules": ["entry_slot", "v_proj_slot"], "layers_to_transform": [1]}
    model = get_peft_model(make_backbone(), pp.PointLoRAConfig(**fields))
    names = [name for name, part in parts_of(model).items() if name.endswith(".low_rank") and part is not None]
    assert names == ["1.attention.v_proj_slot.low_rank"]
    train(model, steps=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "`r` must be a number of at least 1, got 0"),
        ({"scales": [[8, 8, 2]]}, "must have one entry for each scale, got 1 and 2"),
        ({"scales": [[8, 8, 9], [8, 8, 2]]}, r"not more tokens than groups, got \[8, 8, 9\]"),
        ({"scales": [[8, 8], [8, 8, 2]]}, r"must be \[groups, points of a group, kept tokens\].* got \[8, 8\]"),
        ({"mask_loss_weights": [1.0, -1.0]}, "`mask_loss_weights` must be a number of at least 0, got -1.0"),
    ],
)
def test_configuration(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.PointLoRAConfig(**fields)


def test_parameters_at_published_size():
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=15))
    model = get_peft_model(backbone, pp.PointLoRAConfig())
    components = {
        "qkv_low_rank": "A of q, k and v",
        "scorer": "scorer",
        "patch_mlp": "patch MLP",
        "selected_mlp": "selected MLP",
        "qkv_mlp": "MLP of q, k and v",
        "out_mlp": "MLP of the output",
        "first_": "patch embedding",
        "position_embedding": "position embedding",
        "class_token": "class token",
        "classifier": "head",
    }
    counts = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = [label for part, label in components.items() if part in name]
            if not found:
                way = "A" if "down_weight" in name else "B"
                found = [f"{way} of the output" if "out_proj" in name else f"{way} of q, k and v"]
            counts[found[0]] += parameter.numel()
    assert counts == {
        "A of q, k and v": 36_864,
        "B of q, k and v": 110_592,
        "A of the output": 36_864,
        "B of the output": 36_864,
        "scorer": 74_113,
        "patch MLP": 24_992,
        "selected MLP": 24_992,
        "MLP of q, k and v": 50_336,
        "MLP of the output": 24_992,
        "patch embedding": 33_792,
        "position embedding": 50_048,
        "class token": 768,
        "head": 267_535,
    }
    assert counts.total() == 772_752


def test_pictures(make_backbone, points):
    from point_peft_hf.visualization.inspection import inspect_cloud

    model = get_peft_model(make_backbone(), pp.PointLoRAConfig(**CONFIG)).eval()
    (picture,) = inspect_cloud(model, points[0]).pictures
    assert [(places.name, len(places.coordinates)) for places in picture.places] == [
        ("selected of 24", 6),
        ("selected of 12", 2),
    ]


# -- Published files --------------------------------------------------------------------------------------------------


def published_tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, 12), "norm.weight": (12,)}
    for block in range(2):
        for layer, out in (("qkv", 36), ("proj", 12)):
            name = f"blocks.blocks.{block}.attn.{layer}"
            shapes |= {f"{name}.lora_A": (3, 12), f"{name}.lora_B": (out, 3), f"{name}.linear.weight": (out, 12)}
    shapes |= {"lora_mask_predictor.fc1.weight": (6, 12), "lora_mask_predictor.fc2.bias": (1,)}
    for name, out in (("prompt_mlp", 12), ("prompt_pos_mlp", 12), ("prompt_qkv_mlp", 36), ("prompt_proj_mlp", 12)):
        shapes |= {f"blocks.{name}.0.weight": (5, 12), f"blocks.{name}.2.weight": (out, 5)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    factors = {f"blocks.blocks.{block}.attn.{layer}.weight" for block in range(2) for layer in ("qkv", "proj")}
    return tensors | dict.fromkeys(factors, torch.ones(1))


def test_published_file():
    tensors = published_tensors()
    settings = {"scales": [[9, 4, 3]], "mask_loss_weight": 0.5, "rank": 3, "mlp_hidden": 5}
    published = read_published(tensors, settings, "point_mae")
    config, encoder = published.config, "base_model.model.point_mae.encoder"
    assert (config.r, config.bottleneck_size, config.scales, config.mask_loss_weights) == (3, 5, [[9, 4, 3]], [0.5])
    assert not config.train_scores_by_task
    assert "patch_embedding.first_norm1" in config.modules_to_save
    # The true weights of the layers get their names back from the factors.
    assert torch.equal(
        published.base["blocks.blocks.1.attn.qkv.weight"], tensors["blocks.blocks.1.attn.qkv.linear.weight"]
    )
    assert set(published.base) == {"cls_token", "norm.weight", *published.unused}
    up = published.weights[f"{encoder}.layers.1.attention.k_proj_slot.pointlora_low_rank.up_weight"]
    assert torch.equal(up, tensors["blocks.blocks.1.attn.qkv.lora_B"][12:24])
    down = published.weights[f"{encoder}.layers.0.entry_slot.pointlora_qkv_low_rank.down_weight"]
    assert torch.equal(down, tensors["blocks.blocks.0.attn.qkv.lora_A"])
    shared = published.weights[f"{encoder}.token_slot.pointlora_selected_mlp.up_weight"]
    assert torch.equal(shared, tensors["blocks.prompt_pos_mlp.2.weight"])
    used = len(tensors) - len(published.unused)
    # One way up of queries, keys and values is three.
    assert len(published.weights) + len(published.base) == used + 2 * 2


def test_published_file_that_does_not_fit():
    tensors = published_tensors()
    with pytest.raises(ValueError, match="rank=4.*have 3"):
        read_published(tensors, {"rank": 4}, "point_mae")
    with pytest.raises(ValueError, match="the factor of a shared MLP, is 2. Published training leaves it at 1"):
        read_published(tensors | {"blocks.blocks.1.attn.proj.weight": torch.tensor([2.0])}, {}, "point_mae")
