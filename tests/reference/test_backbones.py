"""The three backbones against values of the published research code, from each of its checkpoint formats."""

import numpy as np
import pytest
import torch

import point_peft_hf
from point_peft_hf.models.convert import convert_checkpoint, load_checkpoint

MODEL_TYPES = ("point_mae", "point_bert", "point_m2ae")
NAMES = {"point_mae": "PointMAE", "point_bert": "PointBert", "point_m2ae": "PointM2AE"}
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=MODEL_TYPES)
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def values(model_type, reference_dir):
    with np.load(reference_dir / f"{model_type}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def convert(model_type, reference_dir, tmp_path_factory):
    """Convert a file, and load the folder with the class that it is for, or another one."""

    def load(filename, class_suffix=None):
        folder = tmp_path_factory.mktemp("converted")
        report = convert_checkpoint(reference_dir / filename, folder, model_type, reference_dir / f"{model_type}.json")
        name = report.architecture if class_suffix is None else NAMES[model_type] + class_suffix
        return getattr(point_peft_hf, name).from_pretrained(folder)

    return load


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < TOLERANCE


def assert_blocks_close(hidden_states, values, prefix):
    names = sorted(name for name in values if name.startswith(prefix) and "block" in name)
    assert len(hidden_states) == len(names) + 1
    for hidden_state, name in zip(hidden_states[1:], names, strict=True):
        assert_close(hidden_state, values[name])


@torch.no_grad()
@pytest.mark.parametrize("filename", ["{}_classifier.pth", "torch_pointcloud_{}_classifier.safetensors"])
def test_fine_tuned_classifier(filename, model_type, convert, values):
    model = convert(filename.format(model_type))
    encoded = model.base_model(values["points"], output_hidden_states=True)
    assert_blocks_close(encoded.hidden_states, values, "cls.")
    assert_close(encoded.last_hidden_state, values["cls.hidden"])
    assert_close(encoded.pooler_output, values["cls.pooled"])
    assert_close(encoded.group_centers, values["center2" if model_type == "point_m2ae" else "center"])
    assert_close(model(values["points"]).logits, values["cls.logits"])


@torch.no_grad()
@pytest.mark.parametrize("filename", ["{}_pretrain.pth", "torch_pointcloud_{}_pretrain.safetensors"])
def test_pre_trained_encoder(filename, model_type, convert, values):
    model = convert(filename.format(model_type))
    encoded = model.base_model(values["points"], output_hidden_states=True)
    assert_blocks_close(encoded.hidden_states, values, "pre.")
    last = "pre.hidden2" if model_type == "point_m2ae" else "pre.hidden"
    assert_close(encoded.last_hidden_state, values[last])
    features = values["pre.hidden"][:, 1:].amax(dim=1) if model_type == "point_bert" else values["pre.feature"]
    assert_close(model.frozen_features(values["points"]), features)


@torch.no_grad()
def test_classifier_from_pre_training_has_the_features_of_the_pre_trained_encoder(model_type, convert, values):
    model = convert(f"{model_type}_pretrain.pth", "ForClassification")
    features = values["pre.hidden"][:, 1:].amax(dim=1) if model_type == "point_bert" else values["pre.feature"]
    assert_close(model.frozen_features(values["points"]), features)


@torch.no_grad()
def test_pre_training_loaded_over_a_classifier(model_type, convert, values, reference_dir):
    model = convert(f"{model_type}_classifier.pth")
    layernorm = {name: tensor.clone() for name, tensor in model.base_model.layernorm.state_dict().items()}
    load_checkpoint(model, reference_dir / f"{model_type}_pretrain.pth")
    if model_type == "point_m2ae":
        # The published loader knows no norm of the last stage, and leaves that of the classifier.
        model.base_model.layernorm.load_state_dict(layernorm)
    assert_close(model.base_model(values["points"]).last_hidden_state, values["init.hidden"])
    assert_close(model(values["points"]).logits, values["init.logits"])


@torch.no_grad()
def test_grouping(model_type, convert, values):
    model = convert(f"{model_type}_classifier.pth")
    if model_type == "point_m2ae":
        hierarchy = model.base_model.group(values["points"])
        assert_close(hierarchy.neighborhoods.sum(dim=2), values["neighborhood0"].sum(dim=2))
        for stage in range(3):
            assert torch.equal(hierarchy.centers[stage], values[f"center{stage}"])
            found, expected = hierarchy.neighbor_indices[stage], values[f"knn_idx{stage}"]
            assert torch.equal(found.sort(dim=-1).values, expected.sort(dim=-1).values)
    else:
        neighborhoods, centers = model.base_model.group(values["points"])
        assert torch.equal(centers, values["center"])
        assert_close(neighborhoods.sum(dim=2), values["neighborhood"].sum(dim=2))
        assert_close(model.base_model.position_embedding(centers), values["cls.pos"][:, -centers.shape[1] :])


@torch.no_grad()
def test_point_bert_pre_training_heads(reference_dir, tmp_path):
    """The heads of the pre-training are not part of a model here; their inputs are."""
    with np.load(reference_dir / "point_bert.npz") as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files}
    source = reference_dir / "point_bert_pretrain.pth"
    convert_checkpoint(source, tmp_path, "point_bert", reference_dir / "point_bert.json")
    model = point_peft_hf.PointBertModel.from_pretrained(tmp_path)
    hidden_states = model(values["points"]).last_hidden_state
    weights = torch.load(source, weights_only=True)["base_model"]

    def head(name, tokens):
        return torch.nn.functional.linear(
            tokens, *(weights[f"module.transformer_q.{name}.{k}"] for k in ("weight", "bias"))
        )

    assert_close(head("lm_head", hidden_states[:, 1:]), values["pre.token_logits"])
    assert_close(
        head("cls_head.2", torch.nn.functional.gelu(head("cls_head.0", hidden_states[:, 0]))),
        values["pre.cls_feature"],
    )


@torch.no_grad()
def test_point_m2ae_stages_and_scan_read_out(reference_dir, tmp_path):
    with np.load(reference_dir / "point_m2ae.npz") as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files}
    config = reference_dir / "point_m2ae.json"
    convert_checkpoint(reference_dir / "point_m2ae_pretrain.pth", tmp_path / "pre", "point_m2ae", config)
    pretraining = point_peft_hf.PointM2AEForPreTraining.from_pretrained(tmp_path / "pre")
    hidden_states = pretraining.base_model(values["points"], output_hidden_states=True).hidden_states
    for stage, norm in enumerate([*pretraining.stage_layernorms, pretraining.point_m2ae.layernorm]):
        tokens = norm(hidden_states[2 * stage + 2])
        assert_close(tokens, values[f"pre.hidden{stage}"])
        assert_close(tokens.mean(dim=1) + tokens.amax(dim=1), values[f"pre.feature{stage}"])

    convert_checkpoint(reference_dir / "point_m2ae_classifier.pth", tmp_path / "cls", "point_m2ae", config)
    model = point_peft_hf.PointM2AEForClassification.from_pretrained(
        tmp_path / "cls", num_labels=15, pooling="concat", ignore_mismatched_sizes=True
    )
    load_checkpoint(model, reference_dir / "point_m2ae_scan_head.pth")
    encoded = model.base_model(values["points"])
    assert_close(encoded.last_hidden_state, values["scan.hidden"])
    assert_close(encoded.pooler_output, values["scan.pooled"])
    assert_close(model(values["points"]).logits, values["scan.logits"])


def test_point_m2ae_radius_masks(reference_dir):
    from point_peft_hf.models.point_m2ae.hierarchy import radius_mask

    with np.load(reference_dir / "point_m2ae.npz") as file:
        for stage, radius in enumerate((0.32, 0.64, 1.28)):
            mask = radius_mask(torch.from_numpy(file[f"center{stage}"]), radius, torch.float32)
            assert torch.equal(mask[:, 0] < 0, torch.from_numpy(file[f"local_mask{stage}"]))
