from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from point_peft_hf.data.scenes import SceneProcessor


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch):
    """Keep the cache of parsed scenes out of the home folder."""
    monkeypatch.setenv("POINT_PEFT_HF_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class LinearModel(nn.Module):
    """A model of scenes that looks at the features of each voxel alone; it counts its calls."""

    def __init__(self, num_labels=3, label_values=None, in_channels=6):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(in_channels, num_labels)
        self.config = SimpleNamespace(
            num_labels=num_labels,
            id2label={index: f"class {index}" for index in range(num_labels)},
            in_channels=in_channels,
            label_values=label_values,
        )
        self.sizes = []

    def forward(self, coordinates, grid_coordinates, features, batch_index, labels=None):
        self.sizes.append(len(features))
        logits = self.linear(features)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels, ignore_index=-100)
        return SimpleNamespace(logits=logits, loss=loss)


@pytest.fixture
def make_model():
    return LinearModel


@pytest.fixture
def processor():
    return SceneProcessor(0.1, ["coordinates", "colors"])


@pytest.fixture
def scan(rng):
    """A floor of 8 by 5 metres with three stripes of colour."""
    points = rng.uniform((0, 0, 0), (8, 5, 0.3), (5000, 3)).astype(np.float32)
    colors = np.full((5000, 3), 20, dtype=np.uint8)
    stripe = (points[:, 0] // 3).astype(int)
    colors[np.arange(5000), stripe] = 230
    return {"points": points, "colors": colors, "labels": stripe}
