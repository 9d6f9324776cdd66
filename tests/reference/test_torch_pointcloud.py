"""Names and shapes of the full-size models of torch-pointcloud: all are understood, with the published settings."""

import json
import re

import pytest
import torch

from point_peft_hf.models.convert import MODEL_CLASSES, choose_class
from point_peft_hf.models.convert_keys import guess_model_type
from point_peft_hf.models.convert_tensors import convert_tensors

# By part of the name: number of groups, and group size.
SETTINGS = {
    "point-mae-base.pretrain": (64, 32),
    "point-mae-base.modelnet40": (64, 32),
    "point-mae-base.scanobjectnn": (128, 32),
    "point-bert-base": (64, 32),
    "point-m2ae-base.modelnet40": ([512, 256, 64], [16, 8, 8]),
    "point-m2ae-base.scanobjectnn": ([512, 256, 64], [32, 16, 16]),
    "point-m2ae-base.pretrain": ([512, 256, 64], [16, 8, 8]),
}


@pytest.fixture(scope="module")
def models(reference_dir):
    return json.loads((reference_dir / "torch_pointcloud_full_keys.json").read_text())


def test_full_size_models(models):
    for name, model in models.items():
        tensors = {key: torch.empty(shape, device="meta") for key, shape in model["keys"].items()}
        model_type = re.match(r"(point-[a-z0-9]+)-", name)[1].replace("-", "_")
        assert guess_model_type(tensors) == model_type
        converted = convert_tensors(tensors, model_type, name=f"torch-pointcloud/{name}")
        model_class, expected = choose_class(model_type, converted, name)
        classes = MODEL_CLASSES[model_type]
        expected_class = classes.pretraining if ".pretrain." in name else classes.classifier
        assert model_class is (expected_class or classes.encoder)
        # All parts of the class are there, in the shapes that its configuration gives.
        assert {key: converted.tensors[key].shape for key in expected} == expected
        fields = converted.config_fields
        groups, sizes = next(value for part, value in SETTINGS.items() if name.startswith(part))
        assert fields["num_groups"] == groups
        assert fields["group_sizes" if model_type == "point_m2ae" else "group_size"] == sizes
        if expected_class is not None:
            loaded = sum(
                converted.tensors[key].numel() for key in expected if "running_" not in key and "num_b" not in key
            )
            assert loaded == model["params"], name
