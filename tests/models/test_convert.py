import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import point_peft_hf
from point_peft_hf import (
    AutoModelForPointCloudClassification,
    PointBertForClassification,
    PointBertModel,
    PointGPTForClassification,
    PointGPTForPreTraining,
    PointM2AEForClassification,
    PointM2AEForPreTraining,
    PointM2AEModel,
    PointMAEForClassification,
    PointMAEForPreTraining,
    PointMAEModel,
)
from point_peft_hf.commands import main
from point_peft_hf.models.convert import convert_checkpoint, load_checkpoint
from point_peft_hf.models.convert_keys import research_names

HEADS = {"num_attention_heads": 6}
M2AE = {"num_attention_heads": 6, "num_groups": [32, 16, 8], "group_sizes": [8, 4, 4]}


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint as the research repositories do."""

    def write(tensors, prefix="module.", key="base_model", **extra):
        state = {prefix + name: tensor for name, tensor in tensors.items()}
        path = tmp_path / "checkpoint.pth"
        torch.save({key: state, "epoch": 300, "optimizer": {"state": {}}, **extra} if key else state, path)
        return path

    return write


def check_block(block, tensors, prefix):
    query, key, value = tensors[f"{prefix}.attn.qkv.weight"].chunk(3)
    assert torch.equal(block.attention.q_proj.weight, query)
    assert torch.equal(block.attention.k_proj.weight, key)
    assert torch.equal(block.attention.v_proj.weight, value)
    assert torch.equal(block.attention.out_proj.bias, tensors[f"{prefix}.attn.proj.bias"])
    assert torch.equal(block.mlp.fc2.weight, tensors[f"{prefix}.mlp.fc2.weight"])
    assert torch.equal(block.norm2.bias, tensors[f"{prefix}.norm2.bias"])


@pytest.mark.parametrize("prefix", ["module.", "", "base_model.", "module.base_model."])
def test_fine_tuned_point_mae(published, save, tmp_path, prefix):
    tensors = published.point_mae_classifier()
    report = convert_checkpoint(save(tensors, prefix), tmp_path / "out", "point_mae", HEADS)
    assert report.architecture == "PointMAEForClassification"
    assert (len(report.loaded), report.new, report.ignored) == (len(tensors), [], [])
    assert report.assumed == {"num_groups": 64, "group_size": 32}
    model, info = PointMAEForClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_labels) == (24, 2, 5)
    assert (list(config.patch_hidden_sizes), config.position_hidden_size) == ([8, 12, 16], 10)
    assert (config.classifier_hidden_size, config.mlp_ratio, config.qkv_bias) == (20, 4.0, False)
    check_block(model.point_mae.encoder.layers[1], tensors, "blocks.blocks.1")
    assert torch.equal(model.point_mae.class_token.position, tensors["cls_pos"])
    embedding = model.point_mae.patch_embedding
    assert torch.equal(embedding.second_linear1.weight, tensors["encoder.second_conv.0.weight"].squeeze(-1))
    assert torch.equal(embedding.first_norm1.running_var, tensors["encoder.first_conv.1.running_var"])
    assert torch.equal(model.classifier.output.weight, tensors["cls_head_finetune.8.weight"])


def test_bias_of_the_fused_projection_is_split(published, save, tmp_path):
    tensors = published.point_mae_classifier(qkv_bias=True)
    convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)
    model = PointMAEForClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(
        model.point_mae.encoder.layers[0].attention.k_proj.bias, tensors["blocks.blocks.0.attn.qkv.bias"][24:48]
    )


def test_pre_trained_point_mae(published, save, tmp_path):
    tensors = published.point_mae_pretraining(decoder_depth=3, group_size=7)
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)
    assert report.architecture == "PointMAEForPreTraining"
    assert not report.new
    assert not report.ignored
    model = PointMAEForPreTraining.from_pretrained(tmp_path / "out")
    assert (model.config.decoder_num_hidden_layers, model.config.group_size) == (3, 7)
    check_block(model.decoder.layers[2], tensors, "MAE_decoder.blocks.2")
    assert torch.equal(model.mask_token, tensors["mask_token"])
    assert torch.equal(model.reconstruction_head.weight, tensors["increase_dim.0.weight"].squeeze(-1))
    # The same folder starts a classifier: class token and head are new.
    classifier, info = PointMAEForClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True, num_labels=3
    )
    assert not info["unexpected_keys"]
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier", "point_mae"}
    assert all("class_token" in name for name in info["missing_keys"] if name.startswith("point_mae"))
    check_block(classifier.point_mae.encoder.layers[0], tensors, "MAE_encoder.blocks.blocks.0")


@pytest.mark.parametrize(
    ("prefix", "extra"),
    [
        ("MAE_encoder.", {"MAE_encoder.mask_token": (1, 1, 24), "MAE_decoder.q": (3,)}),
        ("ACT_encoder.", {"dvae.codebook": (4, 4), "ACT_decoder.blocks.0.norm1.weight": (24,)}),
        ("student.", {"head.weight": (4, 4)}),
    ],
)
def test_encoders_of_other_methods(published, save, tmp_path, prefix, extra):
    encoder = published.point_mae_encoder()
    tensors = {prefix + name: tensor for name, tensor in encoder.items()}
    tensors |= {name: torch.randn(shape) for name, shape in extra.items()}
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)
    assert report.architecture == "PointMAEModel"
    assert sorted(report.ignored) == sorted("module." + name for name in extra)
    assert report.new == ["point_mae.class_token.token", "point_mae.class_token.position"]
    model = PointMAEModel.from_pretrained(tmp_path / "out")
    check_block(model.encoder.layers[1], encoder, "blocks.blocks.1")
    check_block(
        PointMAEForClassification.from_pretrained(tmp_path / "out").point_mae.encoder.layers[1],
        encoder,
        "blocks.blocks.1",
    )


@pytest.mark.parametrize("form", ["classifier", "pretraining"])
def test_pcp_mae(published, save, tmp_path, form):
    tensors = published.point_mae_classifier() if form == "classifier" else published.point_mae_pretraining()
    prefix = "" if form == "classifier" else "MAE_encoder."
    tensors |= published.linear(f"{prefix}pos_embed.0.", 24, 10)
    if form == "pretraining":
        tensors["MAE_encoder.mask_pos_token"] = torch.randn(1, 1, 24)
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)
    # Its decoder has the names of Point-MAE's, but another task.
    assert report.architecture == ("PointMAEForClassification" if form == "classifier" else "PointMAEModel")
    model = PointMAEModel.from_pretrained(tmp_path / "out")
    assert model.config.position_embedding == "sincos"
    embedding = model.position_embedding
    assert torch.equal(embedding.linear1.weight, tensors[f"{prefix}pos_embed.0.weight"])
    # Channels of width 24: four frequencies, 10000 to the power of 0, -1/4, -1/2, -3/4; sines of x, cosines of x, ...
    centers = torch.tensor([[[0.5, -1.0, 2.0]]])
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    waves = torch.cat([f(axis * frequencies) for axis in centers[0, 0] for f in (torch.sin, torch.cos)])
    hidden = torch.nn.functional.gelu(embedding.linear1(waves))
    torch.testing.assert_close(embedding(centers)[0, 0], embedding.linear2(hidden), rtol=1e-5, atol=1e-6)


def test_pre_trained_point_bert_takes_the_right_encoder(published, save, tmp_path):
    tensors = published.point_bert_pretraining()
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_bert", HEADS)
    assert report.architecture == "PointBertModel"
    assert not report.new
    assert {name.split(".")[1] for name in report.loaded} == {"transformer_q"}
    assert "module.transformer_q.lm_head.weight" in report.ignored
    model = PointBertModel.from_pretrained(tmp_path / "out")
    check_block(model.encoder.layers[0], tensors, "transformer_q.blocks.blocks.0")
    assert torch.equal(model.class_token.token, tensors["transformer_q.cls_token"])
    assert model.config.patch_embedding_size == 18


def test_fine_tuned_point_bert(published, save, tmp_path):
    tensors = published.point_bert_encoder()
    tensors |= published.linear("cls_head_finetune.0.", 48, 20) | published.linear("cls_head_finetune.3.", 20, 7)
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_bert", HEADS)
    assert (report.architecture, report.new, report.ignored) == ("PointBertForClassification", [], [])
    model = PointBertForClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 7
    assert torch.equal(model.point_bert.patch_projection.weight, tensors["reduce_dim.weight"])
    assert torch.equal(model.classifier.dense.weight, tensors["cls_head_finetune.0.weight"])


@pytest.mark.parametrize(("pooled", "pooling"), [(24, "sum"), (48, "concat")])
def test_fine_tuned_point_m2ae(published, save, tmp_path, pooled, pooling):
    tensors = published.point_m2ae_classifier(pooled=pooled)
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_m2ae", M2AE)
    assert (report.architecture, report.new, report.ignored) == ("PointM2AEForClassification", [], [])
    model = PointM2AEForClassification.from_pretrained(tmp_path / "out")
    assert (list(model.config.hidden_sizes), list(model.config.depths)) == ([12, 18, 24], [2, 2, 2])
    assert model.config.pooling == pooling
    check_block(model.point_m2ae.stages[1].layers[1], tensors, "h_encoder.encoder_blocks.1.blocks.1")
    assert torch.equal(model.point_m2ae.layernorm.weight, tensors["norm.weight"])


def test_pre_trained_point_m2ae(published, save, tmp_path):
    tensors = published.point_m2ae_pretraining()
    report = convert_checkpoint(save(tensors, prefix=""), tmp_path / "out", "point_m2ae", M2AE)
    assert (report.architecture, report.new, report.ignored) == ("PointM2AEForPreTraining", [], [])
    model = PointM2AEForPreTraining.from_pretrained(tmp_path / "out")
    assert torch.equal(model.point_m2ae.layernorm.weight, tensors["h_encoder.encoder_norms.2.weight"])
    assert torch.equal(model.stage_layernorms[1].bias, tensors["h_encoder.encoder_norms.1.bias"])
    check_block(model.decoder_stages[1].layers[0], tensors, "h_decoder.1.blocks.0")
    propagation = model.token_propagations[0]
    assert torch.equal(propagation.fuse_linear.weight, tensors["token_prop.0.fuse.net.0.weight"].squeeze(-1))
    assert torch.equal(
        propagation.layers[0].norm2.weight, tensors["token_prop.0.extraction.operation.0.net2.1.weight"]
    )
    _, info = PointM2AEForClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all(name.startswith("classifier.") for name in info["missing_keys"])
    _, info = PointM2AEModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


@pytest.mark.parametrize("first", [(8, 12), (8, 12, 14)])
def test_fine_tuned_point_gpt(published, save, tmp_path, first):
    tensors = published.point_gpt_classifier(first=first)
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_gpt", HEADS)
    assert (report.architecture, report.new) == ("PointGPTForClassification", [])
    assert {name.split(".")[1] for name in report.ignored} == {"blocks", "generator_blocks", "norm"}
    model, info = PointGPTForClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert (list(model.config.patch_hidden_sizes), model.config.num_labels) == ([*first, 16], 5)
    assert model.config.qkv_bias
    layer = model.point_gpt.encoder.layers[1]
    for part in ("weight", "bias"):
        query, key, value = tensors[f"blocks.layers.1.attn.in_proj_{part}"].chunk(3)
        assert torch.equal(getattr(layer.attention.q_proj, part), query)
        assert torch.equal(getattr(layer.attention.k_proj, part), key)
        assert torch.equal(getattr(layer.attention.v_proj, part), value)
    assert torch.equal(layer.mlp.fc2.weight, tensors["blocks.layers.1.mlp.2.weight"])
    assert torch.equal(layer.norm2.bias, tensors["blocks.layers.1.ln_2.bias"])
    assert torch.equal(model.point_gpt.start_token.token[0, 0], tensors["blocks.sos"])
    assert torch.equal(model.point_gpt.start_token.position, tensors["sos_pos"])
    assert torch.equal(model.point_gpt.class_token.position, tensors["cls_pos"])
    assert torch.equal(model.point_gpt.readout_norm.weight, tensors["blocks.cls_norm.weight"])
    last = f"first_linear{len(first)}"
    weight = tensors[f"encoder.first_conv.{3 * len(first) - 3}.weight"].squeeze(-1)
    assert torch.equal(getattr(model.point_gpt.patch_embedding, last).weight, weight)
    # With the generation loss, the generator is of use.
    report = convert_checkpoint(
        save(tensors), tmp_path / "generator", "point_gpt", {**HEADS, "generation_loss_weight": 3}
    )
    assert "module.generator_blocks.ln_f.weight" in report.loaded
    generator = PointGPTForClassification.from_pretrained(tmp_path / "generator").generator
    assert torch.equal(
        generator.reconstruction_head.weight, tensors["generator_blocks.increase_dim.0.weight"].squeeze(-1)
    )


def test_pre_trained_point_gpt(published, save, tmp_path):
    tensors = published.point_gpt_pretraining(group_size=6)
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_gpt", HEADS)
    assert (report.architecture, report.new) == ("PointGPTForPreTraining", [])
    model = PointGPTForPreTraining.from_pretrained(tmp_path / "out")
    assert (model.config.group_size, model.config.generator_num_hidden_layers) == (6, 1)
    assert torch.equal(
        model.generator.blocks.layers[0].norm1.weight,
        tensors["GPT_Transformer.generator_blocks.layers.0.ln_1.weight"],
    )
    _, info = PointGPTForClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"]
    new = {name.split(".")[1] for name in info["missing_keys"] if name.startswith("point_gpt.")}
    assert new == {"class_token", "readout_norm"}


def test_plain_state_dicts_and_other_keys(published, save, tmp_path):
    tensors = published.point_mae_classifier()
    for key in (None, "state_dict", "model"):
        report = convert_checkpoint(save(tensors, key=key), tmp_path / "out", "point_mae", HEADS)
        assert len(report.loaded) == len(tensors)


def test_numpy_numbers_beside_the_weights(published, save, tmp_path):
    path = save(
        published.point_mae_classifier(), best_metrics={"acc": np.float64(91.2)}, metrics={"acc": np.float32(1)}
    )
    assert convert_checkpoint(path, tmp_path / "out", "point_mae", HEADS).loaded


def test_code_in_a_file_does_not_run(published, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "evil.pth"
    torch.save({"base_model": published.point_mae_classifier(), "metrics": Payload()}, path)
    with pytest.raises(ValueError, match="could run code"):
        convert_checkpoint(path, tmp_path / "out", "point_mae")
    assert not (tmp_path / "out").exists()
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps({"base_model": {"x": Payload()}}, protocol=protocol))
        with pytest.raises(ValueError, match="evil.pth"):
            convert_checkpoint(path, tmp_path / "out", "point_mae")
    assert not (tmp_path / "ran").exists()


def test_published_settings_by_name_and_classes(published, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(published.point_mae_classifier(num_labels=15), path)
    assert convert_checkpoint(path, tmp_path / "a", "point_mae").assumed["num_groups"] == 128
    save_file(published.point_mae_classifier(num_labels=40), path)
    assert convert_checkpoint(path, tmp_path / "b", "point_mae").assumed["num_groups"] == 64
    folder = tmp_path / "point-mae-base.modelnet40-8k.yatian-pang"
    folder.mkdir()
    path.rename(folder / "model.safetensors")
    assert convert_checkpoint(folder, tmp_path / "c", "point_mae").assumed["num_groups"] == 512
    (tmp_path / "scanobjectnn").mkdir()
    path = tmp_path / "scanobjectnn" / "weights.safetensors"
    save_file(published.point_mae_classifier(num_labels=40), path)
    assert convert_checkpoint(path, tmp_path / "e", "point_mae").assumed["num_groups"] == 64
    path = tmp_path / "scan.safetensors"
    save_file(published.point_m2ae_classifier(pooled=48, num_labels=15), path)
    assert convert_checkpoint(path, tmp_path / "d", "point_m2ae").assumed["group_sizes"] == [32, 16, 16]


def test_config_file_in_either_naming(published, save, tmp_path):
    path = save(published.point_mae_classifier())
    for fields in (
        {"num_attention_heads": 3, "num_groups": 10, "group_size": 9},
        {
            "model": {
                "NAME": "PointTransformer",
                "trans_dim": 24,
                "depth": 2,
                "num_heads": 3,
                "num_group": 10,
                "group_size": 9,
            }
        },
    ):
        config = tmp_path / "config.json"
        config.write_text(json.dumps(fields))
        report = convert_checkpoint(path, tmp_path / "out", "point_mae", config)
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (written["num_attention_heads"], written["num_groups"], written["group_size"]) == (3, 10, 9)
        assert report.assumed == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 48}, "hidden_size=48"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_grups": 5}, "num_grups"),
        ({"num_labels": 4}, "num_labels"),
    ],
)
def test_wrong_configuration(published, save, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(published.point_mae_classifier()), tmp_path / "out", "point_mae", config)


def test_missing_configuration_file(published, save, tmp_path):
    with pytest.raises(ValueError, match=r"no configuration file .*nowhere\.json"):
        convert_checkpoint(
            save(published.point_mae_classifier()), tmp_path / "out", "point_mae", tmp_path / "nowhere.json"
        )


def test_nothing_matches(save, tmp_path):
    path = save({"layer1.0.conv1.weight": torch.randn(3, 3)})
    with pytest.raises(ValueError, match="Nothing in"):
        convert_checkpoint(path, tmp_path / "out", "point_mae")
    assert not (tmp_path / "out").exists()


def test_wrong_model_type(published, save, tmp_path):
    with pytest.raises(ValueError, match="not of Point-M2AE"):
        convert_checkpoint(save(published.point_mae_classifier()), tmp_path / "out", "point_m2ae")
    with pytest.raises(ValueError, match="model_type"):
        convert_checkpoint(save(published.point_mae_classifier()), tmp_path / "out", "pointnet")
    with pytest.raises(ValueError, match="of Point-MAE, .* not of Point-BERT"):
        convert_checkpoint(save(published.point_mae_classifier()), tmp_path / "out", "point_bert")


def test_incomplete_and_contradicting_files(published, save, tmp_path):
    tensors = published.point_mae_classifier()
    del tensors["blocks.blocks.1.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"mlp\.fc1\.weight"):
        convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)
    tensors = published.point_mae_classifier() | {"blocks.blocks.1.norm1.weight": torch.randn(25)}
    with pytest.raises(ValueError, match=r"norm1.*\(25,\)"):
        convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"<html>not found</html>"])
@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="broken"):
        convert_checkpoint(tmp_path / name, tmp_path / "out", "point_mae")


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        convert_checkpoint(tmp_path / "nowhere.pth", tmp_path / "out", "point_mae")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="epoch"):
        convert_checkpoint(tmp_path / "empty.pth", tmp_path / "out", "point_mae")


def test_load_into_an_existing_model(published, save):
    tensors = published.point_mae_pretraining()
    config = point_peft_hf.PointMAEConfig(
        hidden_size=24, num_hidden_layers=2, patch_hidden_sizes=[8, 12, 16], position_hidden_size=10, num_labels=3
    )
    path = save(tensors)
    for model in (PointMAEForClassification(config), PointMAEModel(config)):
        head = {name: tensor.clone() for name, tensor in model.state_dict().items() if "classifier" in name}
        report = load_checkpoint(model, path)
        check_block(model.base_model.encoder.layers[1], tensors, "MAE_encoder.blocks.blocks.1")
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in head.items())
        assert all("class_token" in name or "classifier" in name for name in report.new)
        assert "module.mask_token" in report.ignored
    with pytest.raises(ValueError, match="Nothing in"):
        load_checkpoint(
            PointM2AEModel(point_peft_hf.PointM2AEConfig(depths=[1, 1, 1])), save({"encoder.x": torch.ones(1)})
        )


def test_report_names_what_became_of_every_tensor(published, save, tmp_path):
    tensors = published.point_bert_pretraining()
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_bert", HEADS)
    assert sorted([*report.loaded, *report.ignored]) == sorted("module." + name for name in tensors)
    written = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert written["loaded"] == report.loaded
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {"point_bert." + name for name in saved} == {
        target for targets in report.loaded.values() for target in targets
    }
    text = str(report)
    for part in ("PointBertModel", "loaded: ", "new: 0", "ignored: ", "transformer_k", "num_groups=64"):
        assert part in text


def torch_pointcloud_names(tensors, head=None):
    """Rename a fine-tuned Point-MAE as torch-pointcloud does."""
    table = {"0": "lins.0", "1": "norms.0.module", "3": "lins.1"}
    head = head or {"0": "lins.0", "1": "norms.0.module", "4": "lins.1", "5": "norms.1.module", "8": "lins.2"}
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "encoder":
            name = ".".join(["encoder", {"first_conv": "local_mlp", "second_conv": "global_mlp"}[parts[1]]])
            name += f".{table[parts[2]]}.{parts[3]}"
        elif parts[0] == "pos_embed":
            name = f"pos_embed.lins.{int(parts[1]) // 2}.{parts[2]}"
        elif parts[0] == "norm":
            name = f"norm_f.{parts[1]}"
        elif parts[0] == "cls_head_finetune":
            name = f"head.{head[parts[1]]}.{parts[2]}"
        else:
            name = name.replace("mlp.fc1", "mlp.lins.0").replace("mlp.fc2", "mlp.lins.1")
        renamed[name] = tensor.squeeze(-1).contiguous() if tensor.ndim == 3 and tensor.shape[-1] == 1 else tensor
    return renamed


def test_names_of_torch_pointcloud(published):
    tensors = published.point_mae_classifier()
    assert list(research_names(torch_pointcloud_names(tensors)).values()) == list(tensors)


def test_from_pretrained_of_a_torch_pointcloud_folder(published, tmp_path):
    tensors = published.point_mae_classifier(num_labels=15)
    folder = tmp_path / "point-mae-base.scanobjectnn-hardest.yatian-pang"
    folder.mkdir()
    save_file(torch_pointcloud_names(tensors), folder / "model.safetensors")
    model, info = PointMAEForClassification.from_pretrained(folder, output_loading_info=True, group_size=16)
    assert not any(info.values())
    check_block(model.point_mae.encoder.layers[1], tensors, "blocks.blocks.1")
    assert (model.config.num_labels, model.config.num_groups, model.config.group_size) == (15, 128, 16)
    assert model.name_or_path == model.config.name_or_path == str(folder)
    assert not model.training
    for loaded in (
        AutoModelForPointCloudClassification.from_pretrained(folder),
        PointMAEForClassification.from_pretrained(str(folder), dtype=torch.bfloat16),
        PointMAEForClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True),
        PointMAEForClassification.from_pretrained(folder, config=model.config),
    ):
        assert type(loaded) is PointMAEForClassification
        assert loaded.config.hidden_size == 24
    encoder = PointMAEModel.from_pretrained(folder)
    check_block(encoder.encoder.layers[0], tensors, "blocks.blocks.0")
    with pytest.raises(ValueError, match="PointBertModel is a point_bert"):
        PointBertModel.from_pretrained(folder)
    # A folder that was saved by this package stays what it is.
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(
        PointMAEForClassification.from_pretrained(tmp_path / "saved").classifier.output.weight,
        model.classifier.output.weight,
    )


def test_from_pretrained_of_a_torch_pointcloud_repository(published, tmp_path):
    """From the cache of the Hub, as after the first download."""
    tensors = published.point_mae_classifier(num_labels=40)
    name = "torch-pointcloud/point-mae-base.modelnet40-8k.yatian-pang"
    cached = tmp_path / ("models--" + name.replace("/", "--"))
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    save_file(torch_pointcloud_names(tensors), snapshot / "model.safetensors")
    for model_class in (PointMAEForClassification, AutoModelForPointCloudClassification):
        model = model_class.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
        check_block(model.point_mae.encoder.layers[0], tensors, "blocks.blocks.0")
        assert (model.name_or_path, model.config.num_groups) == (name, 512)


def test_segmentation_head_is_not_taken_for_a_classification_head(published, tmp_path):
    tensors = published.point_mae_encoder() | published.deep_head(200, 50)
    folder = tmp_path / "point-mae-base.shapenetpart.yatian-pang"
    folder.mkdir()
    save_file(torch_pointcloud_names(tensors), folder / "model.safetensors")
    model, info = PointMAEForClassification.from_pretrained(folder, output_loading_info=True, num_labels=6)
    assert all("classifier" in name or "class_token" in name for name in info["missing_keys"])
    assert (model.config.num_groups, model.config.num_labels) == (128, 6)


def test_command_line(published, save, tmp_path, capsys):
    path = save(published.point_mae_classifier())
    assert main(["convert", str(path), str(tmp_path / "out"), "--model_type", "point_mae"]) == 0
    assert "loaded: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: .*no file"):
        main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "out"), "--model_type", "point_mae"])
