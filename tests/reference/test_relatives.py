"""Relatives of Point-MAE and models fine-tuned with other methods: right, or refused by name."""

import numpy as np
import pytest
import torch

from point_peft_hf import PointMAEForClassification, PointMAEModel, ReConForClassification, ReConModel
from point_peft_hf.models.convert import convert_checkpoint

REFUSED = {
    "backbones/recon_classifier": "ReCon.*model_type='recon'",
    "backbones/recon_pretrain": "ReCon.*model_type='recon'",
    "backbones/femae_classifier": "Point-FEMAE",
    "backbones/femae_pretrain": "Point-FEMAE",
    "backbones/ptv3": "Point Transformer V3",
    "backbones/sonata": "Sonata",
    "backbones/sonata_decoder": "Sonata",
    "backbones/utonia": "Utonia",
    "methods/idpt": "IDPT",
    "methods/idpt_seg": "IDPT",
    "methods/dapt": "DAPT",
    "methods/ppt": "PPT",
    "methods/ppt_seg": "PPT",
    "methods/pointlora": "PointLoRA",
    "methods/pointgst": "PointGST",
    "methods/gaprompt": "GAPrompt",
    "methods/stag_std": "STAG",
    "methods/stag_sl": "STAG",
    "methods/most_point_monarch": "MoST",
    "geometry_adapter_block": "Point-PEFT",
}


@pytest.mark.parametrize("file", sorted(REFUSED))
def test_refused(file, reference_dir, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[file]):
        convert_checkpoint(reference_dir / f"{file}.pth", tmp_path / "out", "point_mae")


CLASSES = {"recon": (ReConForClassification, ReConModel)}


@pytest.fixture(scope="module", params=["act", "pcp", "recon"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def values(name, reference_dir):
    with np.load(reference_dir / "backbones" / f"{name}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def check_encoder_without_class_token(model, values, folder, tmp_path):
    """The file has no class token; with that of the classifier, the encoder gives its values."""
    convert_checkpoint(folder / "pcp_classifier.pth", tmp_path / "classifier", "point_mae", folder / "pcp.json")
    model.class_token = PointMAEModel.from_pretrained(tmp_path / "classifier").class_token
    encoded = model(values["points"])
    assert_close(encoded.last_hidden_state, values["cls.hidden"])
    assert_close(encoded.pooler_output, values["cls.pooled"])


@pytest.mark.parametrize("task", ["classifier", "pretrain"])
def test_right(task, name, values, reference_dir, tmp_path):
    folder = reference_dir / "backbones"
    model_type = "recon" if name == "recon" else "point_mae"
    report = convert_checkpoint(folder / f"{name}_{task}.pth", tmp_path, model_type, folder / f"{name}.json")
    classifier, encoder = CLASSES.get(name, (PointMAEForClassification, PointMAEModel))
    model_class = classifier if task == "classifier" else encoder
    assert report.architecture == model_class.__name__
    model = model_class.from_pretrained(tmp_path)
    if name == "pcp" and task == "pretrain":
        check_encoder_without_class_token(model, values, folder, tmp_path)
        return
    encoded = model.base_model(values["points"], output_hidden_states=True)
    assert_close(encoded.group_centers, values["center"])
    for index in range(3):
        assert_close(encoded.hidden_states[index + 1], values[f"cls.block{index}"])
    assert_close(encoded.last_hidden_state, values["cls.hidden"])
    assert_close(encoded.pooler_output, values["cls.pooled"])
    if task == "pretrain":
        return
    logits = model(values["points"]).logits
    assert_close(logits, values["cls.logits"])
    (logits * values["R"]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in values.items():
        if name.startswith("grad."):
            parts = [gradients[target] for target in report.loaded["module." + name.removeprefix("grad.")]]
            assert_close(torch.cat(parts), expected.squeeze(-1) if expected.shape[-1] == 1 else expected)
