from types import SimpleNamespace

import numpy as np
import pytest
import torch
from measures import corrupted_accuracies, inference_ms, kept_memory_mib, probe_accuracy
from torch import nn

from point_peft_hf.data import CORRUPTIONS, PointCloudDataset, PointCloudProcessor

PROCESSOR = PointCloudProcessor(num_points=32, normalize="none")
INK = nn.Parameter(torch.zeros(1))


def dataset(count, seed, size):
    """Two classes of clouds: flat and tall ones."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return PointCloudDataset(
        [rng.normal(size=(size, 3)) * (1, 0.1 + 2 * y, 1) for y in labels], labels, ["flat", "tall"]
    )


class Heights(nn.Module):
    """An "encoder" with two features: the height of a cloud, or nothing of use."""

    def __init__(self, is_useful):
        super().__init__()
        self.is_useful, self.weight = is_useful, INK

    def forward(self, points):
        height = points[..., 1].std(dim=1)
        constant = torch.ones_like(height)
        return SimpleNamespace(pooler_output=torch.stack([height if self.is_useful else constant, constant], dim=1))


def test_a_probe_finds_what_the_features_hold_and_nothing_else():
    train, test = dataset(40, 0, 32), dataset(20, 1, 32)
    accuracies = [probe_accuracy(Heights(useful), train, test, PROCESSOR, 16) for useful in (True, False)]
    assert accuracies == [1.0, 0.5]


def test_kept_memory_by_hand():
    # A linear layer keeps its input, 4 MiB; tanh its output, 4 MiB, which the second layer keeps as its input as well.
    width = 1024
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    assert kept_memory_mib(model, torch.zeros(1024, width), {}) == pytest.approx(8, rel=0.01)
    # Where nothing is trained nothing is kept.
    assert kept_memory_mib(model.requires_grad_(False), torch.zeros(8, width), {}) == 0


def test_kept_memory_of_sparse_tensors():
    class Sparse(nn.Module):
        def forward(self, points):
            return torch.sparse.mm(torch.eye(1024).to_sparse(), points.requires_grad_(True))

    # 1,024 values of 4 bytes, and two int64 indices of each.
    assert kept_memory_mib(Sparse(), torch.zeros(1024, 2), {}) == pytest.approx(20 / 1024)


def test_inference_is_timed_in_eval_mode_without_gradient():
    seen = []

    class Model(nn.Module):
        def forward(self, points, scale):
            seen.append((self.training, torch.is_grad_enabled(), scale))
            return points

    assert inference_ms(Model(), torch.zeros(4, 8, 3), {"scale": 2}, rounds=3) > 0
    assert seen == [(False, False, 2)] * 4


def test_corrupted_clouds_are_spread_over_the_test_split_and_the_same_for_every_model():
    test, seen = dataset(10, 0, 64), []

    def predict_classes(clouds, batch_size):
        seen.append(clouds)
        return np.ones(len(clouds), dtype=int)

    predictor = SimpleNamespace(processor=PROCESSOR, predict_classes=predict_classes)
    found = [corrupted_accuracies(predictor, test, 4, 8) for _ in range(2)]
    assert found[0] == found[1]
    assert list(found[0]) == list(CORRUPTIONS)
    # Of the clouds 0, 3, 6 and 9 two are tall.
    assert all(accuracies == [0.5] * 5 for accuracies in found[0].values())
    # Larger clouds are cut to the points of the model before points are removed.
    assert all(len(cloud) <= 32 for clouds in seen for cloud in clouds)
    assert len(seen) == 2 * 30
    assert all(np.array_equal(a, b) for a, b in zip(seen[0], seen[30], strict=True))
