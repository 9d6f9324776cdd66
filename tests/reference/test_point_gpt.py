"""PointGPT against values of the published research code, from its own files and from those of torch-pointcloud."""

import json

import numpy as np
import pytest
import torch

import point_peft_hf
from point_peft_hf.models.convert import MODEL_CLASSES, choose_class, convert_checkpoint, load_checkpoint
from point_peft_hf.models.convert_keys import guess_model_type
from point_peft_hf.models.convert_tensors import convert_tensors
from point_peft_hf.models.point_gpt.layers import causal_mask, generation_loss

LAYOUTS = ["pointgpt_{}_{}.pth", "torch_pointcloud_pointgpt_{}_{}.safetensors"]
# Parameters that the logits depend on, of classifiers of 15 classes; and of pre-training.
CLASSIFIER_PARAMETERS = {"s": 22_058_639, "b": 91_958_287, "l": 309_870_863}
PRETRAINING_PARAMETERS = {"s": 28_926_304, "b": 119_920_224, "l": 359_759_968}


@pytest.fixture(scope="module")
def folder(reference_dir):
    return reference_dir / "backbones"


@pytest.fixture
def values(folder):
    def read(name):
        with np.load(folder / f"{name}.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}

    return read


@pytest.fixture
def convert(folder, tmp_path):
    """Convert a file, and load the folder with the class that it is for; also the names of its tensors here."""

    def load(filename, config, **fields):
        settings = json.loads((folder / f"{config}.json").read_text())
        names = {"num_heads": "num_attention_heads", "num_group": "num_groups", "group_size": "group_size"}
        fields |= {names[key]: value for key, value in settings.items() if key in names}
        report = convert_checkpoint(folder / filename, tmp_path / "out", "point_gpt", fields)
        return getattr(point_peft_hf, report.architecture).from_pretrained(tmp_path / "out"), report

    return load


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def assert_gradients_close(model, report, values, prefix):
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    sources = {name.removeprefix("module.").replace("GPT_Transformer.", ""): t for name, t in report.loaded.items()}
    names = [name for name in values if name.startswith(prefix)]
    assert names
    for name in names:
        parts = [gradients[target] for target in sources[name.removeprefix(prefix)]]
        gradient = torch.cat(parts).view_as(values[name])
        assert_close(gradient, values[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["s", "l"])
def test_classifier(size, layout, convert, values):
    model, report = convert(layout.format(size, "classifier"), f"pointgpt_{size}_classifier")
    expected = values(f"pointgpt_{size}_classifier")
    points = expected["points"]
    assert type(model) is point_peft_hf.PointGPTForClassification
    assert model.generator is None
    neighborhoods, centers = model.point_gpt.group(points)
    assert torch.equal(centers, expected["center"])
    assert_close(model.point_gpt.patch_embedding(neighborhoods), expected["cls.tokens"])
    assert_close(model.point_gpt.position_embedding(centers), expected["cls.pos"])
    encoded = model.point_gpt(points, output_hidden_states=True)
    for index in range(model.config.num_hidden_layers):
        assert_close(encoded.hidden_states[index + 1], expected[f"cls.block{index}"])
    assert_close(model.point_gpt.final_norm(model.point_gpt.encode(points).tokens).features, expected["cls.ln_f"])
    assert_close(encoded.last_hidden_state, expected["cls.hidden"])
    assert_close(encoded.pooler_output, expected["cls.pooled"])
    # The class token sees the start token only.
    assert (encoded.pooler_output[:, : model.config.hidden_size].std(dim=0) == 0).all()
    logits = model(points).logits
    assert_close(logits, expected["cls.logits"])
    if layout == LAYOUTS[0]:
        (logits * expected["R"]).sum().backward()
        assert_gradients_close(model, report, expected, "grad.")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["s", "l"])
def test_generation_of_a_classifier(size, layout, convert, values):
    model, report = convert(
        layout.format(size, "classifier"), f"pointgpt_{size}_classifier", generation_loss_weight=3.0
    )
    expected = values(f"pointgpt_{size}_classifier")
    encoded = model.point_gpt.encode(expected["points"])
    states = model.point_gpt.final_norm(encoded.tokens).features
    predicted = model.generator(torch.cat([states[:, :1], states[:, 2:-1]], dim=1), encoded.tokens.centers)
    assert_close(predicted.flatten(0, 1), expected["gen.points"])
    loss = model.generation_loss(encoded)
    assert_close(loss, expected["gen.loss"])
    if layout == LAYOUTS[0]:
        loss.backward()
        assert_gradients_close(model, report, expected, "gengrad.")
    labels = torch.tensor([0, 1, 2])
    output = model(expected["points"], labels=labels)
    cross_entropy = torch.nn.functional.cross_entropy(output.logits, labels)
    assert_close(output.loss, cross_entropy + 3 * expected["gen.loss"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["s", "l"])
def test_pre_training(size, layout, convert, values):
    model, report = convert(layout.format(size, "pretrain"), f"pointgpt_{size}_pretrain")
    expected = values(f"pointgpt_{size}_pretrain")
    assert type(model) is point_peft_hf.PointGPTForPreTraining
    blocked = expected["pre.attn_mask"]
    hidden = blocked.tril(-1).any(dim=0)
    mask = causal_mask(hidden)
    assert torch.equal(mask[0, 0] < 0, blocked)
    output = model(expected["points"], mask=hidden)
    assert torch.equal(output.group_centers, expected["center"])
    assert_close(output.reconstruction.flatten(0, 1), expected["pre.points"])
    assert_close(output.loss, expected["pre.loss"])
    assert_close(generation_loss(output.reconstruction, output.target), expected["pre.loss"])
    if layout == LAYOUTS[0]:
        output.loss.backward()
        assert_gradients_close(model, report, expected, "grad.")
    causal = model(expected["points"], mask=torch.zeros_like(hidden))
    assert_close(causal.reconstruction.flatten(0, 1), expected["causal.points"])
    assert_close(causal.loss, expected["causal.loss"])


def test_pre_training_loaded_over_a_classifier(convert, values, folder):
    for size in ("s", "l"):
        model, _ = convert(f"pointgpt_{size}_classifier.pth", f"pointgpt_{size}_classifier", generation_loss_weight=3)
        expected = values(f"pointgpt_{size}_classifier")
        load_checkpoint(model, folder / f"pointgpt_{size}_pretrain.pth")
        assert_close(model(expected["points"]).logits, expected["init.logits"])
        assert_close(model.generation_loss(model.point_gpt.encode(expected["points"])), expected["init.gen_loss"])


def test_part_segmentation(convert, values):
    model, _ = convert("pointgpt_s_segmentation.pth", "pointgpt_s_segmentation")
    expected = values("pointgpt_s_segmentation")
    assert type(model) is point_peft_hf.PointGPTForSegmentation
    logits = model(expected["points"], category_ids=expected["category"]).logits
    assert_close(logits, expected["seg.scores"])
    (logits * expected["R"]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_close(gradients["point_gpt.level_norm.weight"], expected["grad.norm.weight"])
    assert_close(gradients["point_gpt.class_token.token"], expected["grad.cls_token"])
    attention = [f"point_gpt.encoder.layers.3.attention.{name}_proj.weight" for name in "qkv"]
    assert_close(
        torch.cat([gradients[name] for name in attention]), expected["grad.blocks.layers.3.attn.in_proj_weight"]
    )
    assert_close(gradients["segmentation_head.output.weight"], expected["grad.convs3.weight"].squeeze(-1))


def test_from_pretrained_of_a_torch_pointcloud_folder(folder, values, tmp_path):
    expected = values("pointgpt_s_classifier")
    name = "torch_pointcloud_pointgpt_s_classifier.safetensors"
    (tmp_path / "model.safetensors").symlink_to((folder / name).resolve())
    model = point_peft_hf.AutoModelForPointCloudClassification.from_pretrained(tmp_path, num_groups=32)
    assert type(model) is point_peft_hf.PointGPTForClassification
    assert_close(model(expected["points"]).logits, expected["cls.logits"])


def test_full_size_files_of_torch_pointcloud(folder):
    models = json.loads((folder / "torch_pointcloud_full_keys2.json").read_text())
    names = [name for name in models if name.startswith("pointgpt-")]
    assert names
    for name in names:
        tensors = {key: torch.empty(shape, device="meta") for key, shape in models[name]["keys"].items()}
        assert guess_model_type(tensors) == "point_gpt"
        converted = convert_tensors(tensors, "point_gpt", name=f"torch-pointcloud/{name}")
        model_class, expected = choose_class("point_gpt", converted, name)
        is_pretraining = ".pretrain." in name
        classes = MODEL_CLASSES["point_gpt"]
        assert model_class is (classes.pretraining if is_pretraining else classes.classifier)
        assert {key: converted.tensors[key].shape for key in expected} == expected
        fields = converted.config_fields
        size = name.removeprefix("pointgpt-")[0]
        assert fields["num_attention_heads"] == {"s": 6, "b": 12, "l": 16}[size]
        assert fields["num_groups"] == (128 if "scanobjectnn" in name else 64)
        counts = [converted.tensors[key].numel() for key in expected if "running_" not in key and "num_b" not in key]
        if is_pretraining:
            # There, a norm and a start token of the generator are counted that play no part.
            assert sum(counts) == PRETRAINING_PARAMETERS[size] - 3 * fields["hidden_size"]
        elif fields["num_labels"] == 15:
            assert sum(counts) == CLASSIFIER_PARAMETERS[size]
