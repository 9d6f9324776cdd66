"""Checkpoints that must not convert: other models, methods on a model, and files that are not whole."""

import pytest
import torch
from safetensors.torch import save_file

from point_peft_hf import AutoModelForPointCloudClassification, PointMAEForClassification, PointMAEModel
from point_peft_hf.models.convert import convert_checkpoint, load_checkpoint

HEADS = {"num_attention_heads": 6}
BLOCK, WIDTH = "blocks.blocks.1.", 24
NORM = {"weight": (24,), "bias": (24,), "running_mean": (24,), "running_var": (24,), "num_batches_tracked": ()}


def batch_norm(prefix):
    return {f"{prefix}.{name}": shape for name, shape in NORM.items()}


# What a file has besides the tensors of a Point-MAE classifier, by part of the message.
METHODS = {
    "IDPT": {"prompt_pos": (1, 1, 24), "blocks.cls.conv1.0.weight": (24, 48, 1, 1), **batch_norm("blocks.cls.bn1")},
    "IDPT ": {"blocks.dgcnn_cls3.conv5.0.weight": (24, 24, 1)},
    "DAPT": {f"{BLOCK}tfts_gamma_1": (24,), f"{BLOCK}Adapter_MLP.scale.weight": (1, 24), "tfts_beta_1": (24,)},
    "PPT": {"blocks.prompt_mlp.0.weight": (48, 24), "blocks.prompt_all_mlp.0.bias": (48,)},
    "PointLoRA": {"lora_mask_predictor.fc1.weight": (8, 24), f"{BLOCK}attn.qkv.lora_A": (8, 24)},
    "PointGST": {f"{BLOCK}gft_adapter.down.weight": (6, 24)},
    "GAPrompt": {"prompt_cor": (10, 3), "point_prompt.points": (1, 5, 3), f"{BLOCK}adapter.ln1.weight": (6, 24)},
    "STAG": {"blocks.addparam_downproj_dict.0.0.weight": (12, 24, 1)},
    "Point-PEFT": {f"{BLOCK}adapter.ln1.weight": (8, 24), f"{BLOCK}ad_gate": (1,), "attn1.qkv.weight": (18, 24)},
    "LoRA": {f"{BLOCK}mlp.fc1.lora_A.default.weight": (8, 24)},
}
MODELS = {
    "ReCon": {
        "img_token": (1, 1, 24),
        "text_pos": (1, 1, 24),
        f"{BLOCK}attn_contrast.q.weight": (24, 24),
        f"{BLOCK}norm1_contrast.weight": (24,),
    },
    "ReCon ": {f"{BLOCK}mlp_contrast.fc1.weight": (96, 24)},
    "Point-FEMAE": {f"{BLOCK}cls.conv1.0.weight": (24, 48, 1, 1), **batch_norm(f"{BLOCK}cls.bn1")},
    "does not know": {f"{BLOCK}gamma_1": (24,)},
    "does not know ": {"norm_extra": (24,)},
    "does not know  ": {"encoder.first_conv.2.weight": (24,)},
    "does not know   ": {"pos_embed.4.weight": (24, 24)},
}


def random_tensors(shapes):
    return {name: torch.rand(shape) + 0.5 for name, shape in shapes.items()}


@pytest.fixture
def save(tmp_path):
    def write(tensors, key="base_model"):
        path = tmp_path / "checkpoint.pth"
        torch.save({key: {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 300}, path)
        return path

    return write


def check_refused(path, tmp_path, message, model_type="point_mae"):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path, tmp_path / "out", model_type, HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["classifier", "pretraining"])
@pytest.mark.parametrize("name", sorted({**METHODS, **MODELS}))
def test_other_models_and_methods(name, form, published, save, tmp_path):
    extra = random_tensors({**METHODS, **MODELS}[name])
    if form == "classifier":
        tensors = published.point_mae_classifier() | extra
    else:
        tensors = published.point_mae_pretraining() | {f"MAE_encoder.{key}": value for key, value in extra.items()}
    path = save(tensors)
    check_refused(path, tmp_path, name.strip())
    model = PointMAEForClassification.from_pretrained(convert(published.point_mae_classifier(), save, tmp_path))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=name.strip()):
        load_checkpoint(model, save(tensors))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_point_peft_says_what_its_file_lacks(published, save, tmp_path):
    path = save(published.point_mae_classifier() | random_tensors(METHODS["Point-PEFT"]))
    message = "memory bank, which is not in the file, .* biases .* across the clouds of a batch"
    for method in (None, "point_peft"):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "model", "point_mae", HEADS, method=method)
    assert not (tmp_path / "model").exists()


def convert(tensors, save, tmp_path, model_type="point_mae"):
    convert_checkpoint(save(tensors), tmp_path / "model", model_type, HEADS)
    return tmp_path / "model"


@pytest.mark.parametrize(
    "names",
    [
        ("module.backbone.embedding.stem.conv.weight", "module.backbone.enc.enc0.block0.cpe.0.weight"),
        ("embedding.stem.linear.weight", "enc.enc0.block0.norm1.0.weight"),
        ("encoder.stem.stem.weight", "encoder.blocks.0.blocks.0.cpe_conv.weight"),
    ],
)
def test_point_transformer_v3(names, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: torch.rand(4, 4) for name in names}, path)
    check_refused(path, tmp_path, "Point Transformer V3")
    for model_class in (PointMAEModel, AutoModelForPointCloudClassification):
        with pytest.raises(ValueError, match="Point Transformer V3"):
            model_class.from_pretrained(tmp_path)


def test_a_folder_of_another_model(published, tmp_path):
    tensors = published.point_mae_classifier() | random_tensors(MODELS["Point-FEMAE"])
    save_file(tensors, tmp_path / "model.safetensors")
    for model_class in (PointMAEForClassification, AutoModelForPointCloudClassification):
        with pytest.raises(ValueError, match="Point-FEMAE"):
            model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # A head that was trained with a class token, without it.
        ({"cls_token": None, "cls_pos": None}, "class_token"),
        ({"cls_pos": None}, "class_token.position"),
        ({"cls_head_finetune.0.weight": None}, "not its first layer"),
        ({"cls_head_finetune.8.bias": None}, "classifier.output.bias"),
        ({"cls_head_finetune.12.weight": (5, 5)}, "cls_head_finetune.12"),
        ({"blocks.blocks.7.norm1.weight": (24,)}, "no tensor with the number 2"),
        ({"blocks.blocks.01.norm1.weight": (24,)}, "01.norm1"),
        ({"blocks.blocks.1.attn.qkv.bias": (72,)}, "k_proj.bias"),
        ({"blocks.blocks.0.norm1.weight": ()}, r"blocks.0.norm1.weight' has shape \(\)"),
        ({"blocks.blocks.0.mlp.fc1.weight": (96,)}, r"has shape \(96,\)"),
        ({"blocks.blocks.0.mlp.fc1.weight": (96, 0)}, r"has shape \(96, 0\)"),
        ({"blocks.blocks.0.attn.qkv.weight": (71, 24)}, "does not divide by 3"),
        ({"cls_token": torch.full((1, 1, 24), torch.nan)}, "cls_token.*not finite"),
        ({"encoder.first_conv.1.running_var": -torch.ones(8)}, "negative"),
        ({"norm.weight": torch.ones(24, dtype=torch.int8)}, "torch.int8"),
        ({"norm.weight": torch.ones(24, dtype=torch.complex64)}, "torch.complex64"),
        ({"norm.weight": torch.ones(24).to_sparse()}, "not a dense tensor"),
        ({"model.norm.weight": (24,)}, "the same tensor"),
        ({"other.encoder.first_conv.0.weight": (8, 3, 1)}, "several encoders"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_files_that_are_not_whole(change, message, published, save, tmp_path):
    tensors = published.point_mae_classifier()
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value if isinstance(value, torch.Tensor) else torch.rand(value)
    check_refused(save(tensors), tmp_path, message)


def test_class_token_outside_of_the_prefix_of_the_encoder(published, save, tmp_path):
    tensors = published.point_mae_pretraining() | {"cls_token": torch.rand(1, 1, 24)}
    check_refused(save(tensors), tmp_path, "unclear")


def test_point_bert_needs_its_class_token(published, save, tmp_path):
    tensors = published.point_bert_encoder()
    del tensors["cls_token"], tensors["cls_pos"]
    check_refused(save(tensors), tmp_path, "class_token", "point_bert")


def test_pre_training_with_a_class_token_is_not_that_of_point_mae(published, save, tmp_path):
    token = published.class_token()
    tensors = published.point_mae_pretraining() | {f"MAE_encoder.{name}": value for name, value in token.items()}
    report = convert_checkpoint(save(tensors), tmp_path / "out", "point_mae", HEADS)
    assert report.architecture == "PointMAEModel"
    assert torch.equal(PointMAEModel.from_pretrained(tmp_path / "out").class_token.token, token["cls_token"])


def test_more_blocks_than_the_model(published, save, tmp_path):
    model = PointMAEModel.from_pretrained(convert(published.point_mae_classifier(depth=1), save, tmp_path))
    with pytest.raises(ValueError, match=r"blocks\.1\..* has no place"):
        load_checkpoint(model, save(published.point_mae_classifier(depth=2)))


def test_incomplete_folder_of_torch_pointcloud(published, tmp_path):
    tensors = published.point_mae_classifier()
    del tensors["blocks.blocks.1.norm2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="norm2.bias"):
        PointMAEForClassification.from_pretrained(tmp_path)


def test_nested_files(published, tmp_path):
    tensors, path = published.point_mae_classifier(), tmp_path / "checkpoint.pth"
    for content in (
        {"state_dict": {"model": tensors}, "epoch": 3},
        {"net": tensors, "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}}},
        {
            "model": {"blocks": {"blocks": {"0": {"norm1": {"weight": tensors["blocks.blocks.0.norm1.weight"]}}}}}
            | {name: tensor for name, tensor in tensors.items() if name != "blocks.blocks.0.norm1.weight"}
        },
    ):
        torch.save(content, path)
        report = convert_checkpoint(path, tmp_path / "out", "point_mae", HEADS)
        assert len(report.loaded) == len(tensors)
        assert not report.new
    torch.save({"model": tensors, "state_dict": published.point_mae_classifier()}, path)
    with pytest.raises(ValueError, match="'state_dict' and 'model'"):
        convert_checkpoint(path, tmp_path / "out", "point_mae", HEADS)


def test_mixed_precision_and_tied_tensors(published, save, tmp_path):
    tensors = published.point_mae_classifier()
    tensors["encoder.first_conv.0.weight"] = tensors["encoder.first_conv.0.weight"].half()
    tensors["blocks.blocks.1.norm1.weight"] = tensors["blocks.blocks.0.norm1.weight"]
    tensors["blocks.blocks.1.norm1.bias"] = torch.ones(1).expand(24)
    model = PointMAEForClassification.from_pretrained(convert(tensors, save, tmp_path))
    assert model.dtype == torch.float32
    assert torch.equal(model.point_mae.encoder.layers[1].norm1.weight, tensors["blocks.blocks.0.norm1.weight"])
