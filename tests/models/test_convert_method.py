"""Published files of a fine-tuning method: a backbone and an adapter, which together are the published model."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from point_peft_hf import AutoModelForPointCloudClassification, STAGConfig
from point_peft_hf.commands import main
from point_peft_hf.models.convert import convert_checkpoint

WIDTH, RANK, CLASSES = 24, 6, 5
OPTIONS = {"num_heads": 6, "num_group": 16, "group_size": 8, "graph_k": 4, "batch": 32}
LINEAR = {
    "downproj": (WIDTH, RANK),
    "graphconv1": (RANK, RANK),
    "graphconv2": (RANK, RANK),
    "fc": (RANK, RANK),
    "upproj": (RANK, WIDTH),
}


def stag(down=(0,), graph=(2,)):
    """Random tensors of a side network under their published names."""
    tensors = {}
    for name, (in_size, out_size) in LINEAR.items():
        for number in down if name == "downproj" else graph:
            tensors[f"blocks.addparam_{name}_dict.{number}.0.weight"] = torch.randn(out_size, in_size, 1)
            tensors[f"blocks.addparam_{name}_dict.{number}.0.bias"] = torch.randn(out_size)
    return tensors


@pytest.fixture
def file(published):
    """A file of STAG on a Point-MAE of four blocks, its tensors by name."""
    torch.manual_seed(0)
    backbone = published.point_mae_encoder(WIDTH, 4) | published.class_token(WIDTH)
    return backbone | published.deep_head(WIDTH, CLASSES) | stag()


@pytest.fixture
def convert(tmp_path):
    """Write a file as the research repositories do, and convert it: `convert(tensors, options, method="stag")`."""

    def run(tensors, options=OPTIONS, method="stag", model_type="point_mae", prefix="module."):
        path = tmp_path / "checkpoint.pth"
        torch.save({"base_model": {prefix + name: tensor for name, tensor in tensors.items()}, "epoch": 300}, path)
        config = tmp_path / "published.json"
        config.write_text(json.dumps(options))
        return convert_checkpoint(path, tmp_path / "out", model_type, config, method=method)

    return run


def load(folder):
    backbone = AutoModelForPointCloudClassification.from_pretrained(folder / "backbone")
    return PeftModel.from_pretrained(backbone, folder / "adapter").eval()


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_backbone_and_adapter(file, convert, tmp_path, prefix):
    report = convert(file, prefix=prefix)
    assert (report.architecture, report.method) == ("PointMAEForClassification", "stag")
    assert not report.new
    assert not report.ignored
    assert set(report.adapter) | set(report.loaded) == {prefix + name for name in file}
    assert report.not_asked_for == ["batch"]
    (switch,) = report.switches
    assert switch.startswith("skip_near_origin=True in the backbone")
    saved = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    network = "base_model.model.point_mae.encoder.token_slot.stag_side_network."
    expected = {
        f"{network}up_weight": file["blocks.addparam_upproj_dict.2.0.weight"].squeeze(-1)[None],
        f"{network}neighbor_bias": file["blocks.addparam_graphconv2_dict.2.0.bias"][None],
        "base_model.model.point_mae.class_token.position": file["cls_pos"],
        "base_model.model.classifier.dense1.weight": file["cls_head_finetune.0.weight"],
        "base_model.model.classifier.norm2.running_var": file["cls_head_finetune.5.running_var"],
    }
    for name, tensor in expected.items():
        assert torch.equal(saved[name], tensor), name
    model = load(tmp_path / "out")
    norm = model.get_base_model().point_mae.patch_embedding.first_norm1
    assert torch.equal(norm.running_mean, file["encoder.first_conv.1.running_mean"])
    assert model.get_base_model().config.skip_near_origin
    config = model.peft_config["default"]
    assert (config.variant, config.rank, config.num_neighbors) == ("std", RANK, 4)
    assert config.base_model_name_or_path == str(tmp_path / "out" / "backbone")
    # Not the name of the folder that it was written to first.
    assert "\n# adapter\n" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    logits = model(torch.randn(2, 64, 3)).logits
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


def test_both_vocabularies(file, convert, tmp_path):
    options = {"hidden_size": WIDTH, "num_attention_heads": 6, "num_groups": 16, "group_size": 8, "graph_k": 4}
    for given in (options, OPTIONS):
        convert(file, given)
        config = load(tmp_path / "out").get_base_model().config
        assert (config.num_attention_heads, config.num_groups, config.group_size) == (6, 16, 8)


def test_published_settings_without_a_configuration(file, tmp_path):
    torch.save(file, tmp_path / "checkpoint.pth")
    report = convert_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "out", "point_mae", method="stag")
    assert report.assumed.items() >= {"num_attention_heads": 6, "num_groups": 64, "group_size": 32}.items()
    assert load(tmp_path / "out").peft_config["default"].num_neighbors == STAGConfig().num_neighbors


def test_options_decide_what_is_shared(published, convert, tmp_path):
    tensors = (
        published.point_mae_encoder(WIDTH, 4) | published.class_token(WIDTH) | published.deep_head(WIDTH, CLASSES)
    )
    options = {
        **OPTIONS,
        "token_accumulation_blocks": [0, 1, 2, 3],
        "graph_convolution_blocks": [1],
        "share_accumulation": 2,
        "share_graph": 2,
    }
    report = convert(tensors | stag(down=(0, 1), graph=(1,)), options)
    late = [f"module.blocks.addparam_downproj_dict.1.0.{kind}" for kind in ("weight", "bias")]
    assert sorted(report.unused) == sorted(report.ignored) == sorted(late)
    assert "ignored because no graph convolution follows" in str(report)
    with pytest.raises(ValueError, match=r"has the numbers \[0, 1\] of 'downproj', but .* make them \[0, 1, 2, 3\]"):
        convert(tensors | stag(down=(0, 1), graph=(1,)))


def test_on_another_backbone(published, convert, tmp_path):
    tensors = published.point_bert_encoder(WIDTH, 4) | published.class_token(WIDTH) | stag()
    head = published.linear("cls_head_finetune.0.", WIDTH, 20) | published.linear("cls_head_finetune.3.", 20, CLASSES)
    convert(tensors | head, model_type="point_bert")
    assert load(tmp_path / "out")(torch.randn(2, 64, 3)).logits.shape == (2, CLASSES)


def lacking(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: lacking(t, "blocks.addparam_fc_dict.2.0.bias"), "no tensor for .*stag_side_network.mix_bias"),
        (
            lambda t: lacking(t, "cls_head_finetune.4.weight"),
            "no tensor for 'base_model.model.classifier.dense2.weight'",
        ),
        (
            lambda t: lacking(t, "blocks.blocks.1.mlp.fc1.weight"),
            "only a part of a PointMAEModel.*1 tensors are missing",
        ),
        (lambda t: lacking(t, "blocks.addparam_downproj_dict.0.0.weight"), "has 'blocks.addparam_downproj_dict.0.0"),
        (lambda t: t | {"blocks.blocks.1.gamma": torch.ones(3)}, "'blocks.blocks.1.gamma' inside of the encoder"),
        (lambda t: t | {"blocks.addparam_new.weight": torch.ones(3)}, "no place in an adapter of type STAG"),
        (lambda t: t | {"cls_head_finetune.9.weight": torch.ones(3)}, "'cls_head_finetune.9.weight' in its head"),
        (lambda t: t | {"cls_head_finetune.0.weight": torch.ones(20, 7)}, r"shape \(20, 7\) .* instead of \(20, 24\)"),
        (lambda t: t | {"cls_pos": torch.full((1, 1, WIDTH), torch.nan)}, "'cls_pos' of .*not finite"),
    ],
)
def test_damaged_files(file, convert, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert(change(file))
    assert not (tmp_path / "out").exists()


def test_what_was_there_stays_if_a_file_is_refused(file, convert, tmp_path):
    convert(file)
    before = (tmp_path / "out" / "conversion_report.json").read_bytes()
    with pytest.raises(ValueError, match="no tensor for"):
        convert(lacking(file, "cls_head_finetune.4.weight"))
    assert (tmp_path / "out" / "conversion_report.json").read_bytes() == before
    load(tmp_path / "out")


def test_wrong_method(file, published, convert, tmp_path):
    with pytest.raises(ValueError, match=r"The method 'stagg' is not known. Files can be read of .*stag"):
        convert(file, method="stagg")
    with pytest.raises(ValueError, match="'boft' is a type of PEFT, but no published files of it are known"):
        convert(file, method="boft")
    with pytest.raises(ValueError, match="has no tensor that only a model fine-tuned with STAG .* convert it without"):
        convert(published.point_mae_classifier())
    other = published.point_mae_classifier() | {"blocks.blocks.1.gft_adapter.down.weight": torch.randn(6, WIDTH)}
    with pytest.raises(ValueError, match="fine-tuned with PointGST .*with the method 'pointgst', not 'stag'"):
        convert(other)
    point_peft = published.point_mae_classifier() | {"blocks.blocks.1.adapter.ln1.weight": torch.randn(6, WIDTH)}
    with pytest.raises(ValueError, match="made of a memory bank, which is not in the file"):
        convert(point_peft, method="point_peft")
    with pytest.raises(ValueError, match="with `--method stag`"):
        convert(file, method=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 7}, "says rank=7, but the tensors of the file have 6"),
        ({"trans_dim": 48}, "says hidden_size=48, but the tensors"),
        ({"graph_k": 0}, "`num_neighbors` must be a number of at least 1"),
        ({"graph_convolution_blocks": [7]}, r"`graph_layers` has \[7\], but .* blocks 0 to 3"),
        ({"num_heads": 5}, "num_attention_heads"),
        ([1], "must be a JSON object"),
    ],
)
def test_wrong_options(file, convert, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert(file, {**OPTIONS, **options} if isinstance(options, dict) else options)
    assert not (tmp_path / "out").exists()


def test_missing_configuration_file(file, tmp_path):
    torch.save(file, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="no configuration file .*nowhere.json"):
        convert_checkpoint(
            tmp_path / "checkpoint.pth", tmp_path / "out", "point_mae", tmp_path / "nowhere.json", method="stag"
        )


def test_command_line(file, tmp_path, capsys):
    torch.save(file, tmp_path / "checkpoint.pth")
    options = tmp_path / "published.json"
    options.write_text(json.dumps(OPTIONS))
    arguments = [str(tmp_path / "checkpoint.pth"), str(tmp_path / "out"), "--model_type", "point_mae"]
    assert main(["convert", *arguments, "--method", "stag", "--config", str(options)]) == 0
    output = capsys.readouterr().out
    assert "adapter of type STAG: 10 tensors" in output
    assert f"PeftModel.from_pretrained(model, {str(tmp_path / 'out' / 'adapter')!r})" in output
    load(tmp_path / "out")
    with pytest.raises(SystemExit, match="error: .*The method 'nothing' is not known"):
        main(["convert", *arguments, "--method", "nothing"])
