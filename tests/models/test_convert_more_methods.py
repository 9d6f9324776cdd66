"""Published files of DAPT, IDPT and PPT: random tensors by their published names become a backbone and an adapter."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from point_peft_hf import AutoModelForPointCloudClassification, DAPTConfig, IDPTConfig, PPTConfig
from point_peft_hf.models.convert import convert_checkpoint

WIDTH, DEPTH, CLASSES, RANK = 24, 3, 5, 6
OPTIONS = {"trans_dim": WIDTH, "depth": DEPTH, "num_heads": 6, "num_group": 16, "group_size": 8}
ENCODER = "base_model.model.point_mae"


def linear(name, in_size, out_size):
    return {f"{name}.weight": torch.randn(out_size, in_size), f"{name}.bias": torch.randn(out_size)}


def scale_and_shift(place, number, size):
    return {f"{place}tfts_{kind}_{number}": torch.randn(size) for kind in ("gamma", "beta")}


def dapt():
    tensors = scale_and_shift("", 1, WIDTH) | scale_and_shift("", 2, WIDTH)
    for index in range(DEPTH):
        block = f"blocks.blocks.{index}."
        for number in (1, 2, 3):
            tensors |= scale_and_shift(block, number, WIDTH)
        for place, sizes in (("attn.", (3 * WIDTH, WIDTH)), ("mlp.", (4 * WIDTH, WIDTH))):
            for number, size in enumerate(sizes, 1):
                tensors |= scale_and_shift(block + place, number, size)
        adapter = f"{block}Adapter_MLP."
        norm = {f"{adapter}adapter_layer_norm_before.{kind}": torch.randn(WIDTH) for kind in ("weight", "bias")}
        tensors |= norm | linear(f"{adapter}scale", WIDTH, 1)
        tensors |= linear(f"{adapter}down_proj", WIDTH, RANK) | linear(f"{adapter}up_proj", RANK, WIDTH)
    return tensors


def idpt():
    tensors = {"prompt_pos": torch.randn(1, 1, WIDTH)}
    for number, inputs in ((1, 2), (2, 2), (3, 2), (5, 3)):
        ones = (1,) if number == 5 else (1, 1)
        tensors[f"blocks.cls.conv{number}.0.weight"] = torch.randn(WIDTH, inputs * WIDTH, *ones)
        norm = {kind: torch.randn(WIDTH) for kind in ("weight", "bias", "running_mean")}
        norm |= {"running_var": torch.rand(WIDTH) + 0.5, "num_batches_tracked": torch.tensor(7)}
        for kind, tensor in norm.items():
            tensors[f"blocks.cls.bn{number}.{kind}"] = tensors[f"blocks.cls.conv{number}.1.{kind}"] = tensor
    return tensors


def ppt():
    tensors = {}
    for name in ("prompt_mlp", "prompt_pos_mlp", "prompt_all_mlp"):
        tensors |= linear(f"blocks.{name}.0", WIDTH, RANK) | linear(f"blocks.{name}.2", RANK, WIDTH)
    return tensors


METHODS = {"dapt": dapt, "idpt": idpt, "ppt": ppt}


@pytest.fixture
def convert(published, tmp_path):
    """Make a file of a method whose head reads a number of features, and convert it."""

    def run(method, options=None, parts=3, classes=CLASSES):
        torch.manual_seed(0)
        backbone = published.point_mae_encoder(WIDTH, DEPTH) | published.class_token(WIDTH)
        tensors = backbone | published.deep_head(parts * WIDTH, classes) | METHODS[method]()
        path = tmp_path / "file.pth"
        torch.save({"base_model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
        config = tmp_path / "published.json"
        config.write_text(json.dumps({**OPTIONS, **(options or {})}))
        return tensors, convert_checkpoint(path, tmp_path / "out", "point_mae", config, method=method)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_lost(convert, tmp_path, method):
    tensors, report = convert(method)
    assert not report.new
    assert not report.ignored
    assert {*report.adapter, *report.loaded} == {f"module.{name}" for name in tensors}
    backbone = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "out" / "backbone")
    model = PeftModel.from_pretrained(backbone, tmp_path / "out" / "adapter").eval()
    logits = model(torch.randn(2, 64, 3)).logits
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("method", "published_name", "own_name"),
    [
        ("dapt", "tfts_gamma_2", "layernorm_slot.dapt_scale_shift.scale"),
        ("dapt", "blocks.blocks.1.tfts_beta_3", "encoder.layers.1.output_slot.dapt_internal_prompt.shift"),
        (
            "dapt",
            "blocks.blocks.2.Adapter_MLP.up_proj.weight",
            "encoder.layers.2.ffn_slot.dapt_dynamic_adapter.up_weight",
        ),
        ("idpt", "blocks.cls.conv3.0.weight", "encoder.layers.2.entry_slot.idpt_edge3.linear_weight"),
        ("idpt", "blocks.cls.bn5.running_var", "encoder.layers.2.entry_slot.idpt_fusion.running_var"),
        ("idpt", "prompt_pos", "encoder.token_slot.idpt_prompt_position.weight"),
        ("ppt", "blocks.prompt_all_mlp.2.bias", "encoder.token_slot.ppt_token_network.up_bias"),
        ("ppt", "encoder.first_conv.0.weight", "patch_embedding.first_linear1.weight"),
        ("ppt", "encoder.first_conv.1.running_mean", "patch_embedding.first_norm1.running_mean"),
        ("ppt", "pos_embed.2.weight", "position_embedding.linear2.weight"),
    ],
)
def test_tensors(convert, tmp_path, method, published_name, own_name):
    tensors, _ = convert(method)
    saved = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    own = saved[f"{ENCODER}.{own_name}"]
    assert torch.equal(own, tensors[published_name].view_as(own))
    assert torch.equal(saved["base_model.model.classifier.output.bias"], tensors["cls_head_finetune.8.bias"])


@torch.no_grad()
def test_queries_keys_and_values(convert, tmp_path):
    tensors, _ = convert("dapt")
    saved = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    slots = [f"{ENCODER}.encoder.layers.1.attention.{name}_proj_slot.dapt_scale_shift.shift" for name in "qkv"]
    assert torch.equal(torch.cat([saved[slot] for slot in slots]), tensors["blocks.blocks.1.attn.tfts_beta_1"])


@pytest.mark.parametrize(
    ("method", "options", "parts", "classes", "expected"),
    [
        ("dapt", {}, 3, 5, DAPTConfig(bottleneck_size=RANK, position="once")),
        ("dapt", {"prompt_token": "max"}, 3, 5, DAPTConfig(bottleneck_size=RANK, prompt_pooling="max")),
        ("dapt", {"patch_token": None, "dropout": 0}, 2, 5, DAPTConfig(bottleneck_size=RANK, patch_pooling=None)),
        ("dapt", {}, 2, 40, DAPTConfig.for_modelnet40(bottleneck_size=RANK)),
        ("idpt", {}, 3, 5, IDPTConfig()),
        ("idpt", {}, 1, 5, IDPTConfig(class_token=False, patch_pooling=None)),
        ("idpt", {"cls_type": "pointcls", "prompt_layer": 1}, 2, 5, IDPTConfig(prompt_token=False)),
        ("idpt", {"cls_type": "promptcls", "knn": 7}, 2, 5, IDPTConfig(patch_pooling=None)),
        ("ppt", {"prompt_num_group": 9, "prompt_group_size": 4}, 3, 5, PPTConfig(bottleneck_size=RANK)),
    ],
)
def test_options(convert, tmp_path, method, options, parts, classes, expected):
    convert(method, options, parts, classes)
    config = type(expected).from_pretrained(tmp_path / "out" / "adapter")
    for field in ("class_token", "prompt_token", "prompt_pooling", "patch_pooling", "bottleneck_size"):
        assert getattr(config, field, None) == getattr(expected, field, None), field
    if method == "idpt":
        assert config.prompt_layers == [options.get("prompt_layer", DEPTH - 1)]
        assert config.num_neighbors == options.get("knn", 20)
        assert not config.train_prompt_position
    elif method == "dapt":
        assert (config.position, config.dropout) == ("once", options.get("dropout", 0.2))
    else:
        assert (config.num_prompt_groups, config.prompt_group_size) == (9, 4)


@pytest.mark.parametrize(
    ("method", "options", "parts", "message"),
    [
        ("dapt", {}, 2, r"reads 2 features of the width of a token, but .* are 3. Give the options"),
        ("dapt", {"rank": 7}, 3, "The configuration says rank=7, but the tensors of the file have 6"),
        ("idpt", {}, 2, "'cls_type' can be 'promptcls' or 'pointcls'"),
        ("idpt", {}, 4, "which does not fit any published read-out"),
        ("idpt", {"prompt_layer": 5}, 3, r"`prompt_layers`=\[5\] must be blocks of the backbone"),
        ("ppt", {}, 2, "reads 2 features of the width of a token, that of PPT 3"),
        ("ppt", {"mlp_hidden": 7}, 3, "The configuration says mlp_hidden=7, but the tensors of the file have 6"),
    ],
)
def test_what_is_unclear_or_does_not_fit(convert, method, options, parts, message):
    with pytest.raises(ValueError, match=message):
        convert(method, options, parts)
