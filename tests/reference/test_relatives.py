"""Relatives of Point-MAE and models fine-tuned with other methods: right, or refused with their name."""

import numpy as np
import pytest
import torch

from point_peft_hf import PointMAEForClassification, PointMAEModel
from point_peft_hf.models.convert import convert_checkpoint

REFUSED = {
    "backbones/recon_classifier": "ReCon",
    "backbones/recon_pretrain": "ReCon",
    "backbones/femae_classifier": "Point-FEMAE",
    "backbones/femae_pretrain": "Point-FEMAE",
    "backbones/pcp_classifier": "PCP-MAE",
    "backbones/pcp_pretrain": "PCP-MAE",
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


@pytest.fixture(scope="module")
def values(reference_dir):
    with np.load(reference_dir / "backbones" / "act.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("task", ["classifier", "pretrain"])
def test_act(task, values, reference_dir, tmp_path):
    folder = reference_dir / "backbones"
    report = convert_checkpoint(folder / f"act_{task}.pth", tmp_path, "point_mae", folder / "act.json")
    assert report.architecture == {"classifier": "PointMAEForClassification", "pretrain": "PointMAEModel"}[task]
    model = (PointMAEForClassification if task == "classifier" else PointMAEModel).from_pretrained(tmp_path)
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
