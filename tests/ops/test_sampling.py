import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from point_peft_hf.ops import farthest_point_sample
from point_peft_hf.ops import sampling as sampling_module
from point_peft_hf.ops.sampling import _sample_torch

REFERENCE_CASES = [
    "random",
    "duplicated",
    "fewer_distinct_than_samples",
    "near_origin",
    "near_origin_start",
    "near_origin_few_far",
    "all_near_origin",
    "planar",
    "planar_grid",
    "clustered",
]


def naive_fps(cloud: torch.Tensor, num_samples: int, skip_near_origin: bool = False) -> list[int]:
    """Pick one point at a time from a single cloud, in plain Python."""
    points = cloud.numpy() if cloud.dtype == torch.float64 else cloud.float().numpy()
    squares = points * points
    norms = (squares[:, 0] + squares[:, 1]) + squares[:, 2]
    nearest = [np.inf] * len(points)
    picked = [0]
    while len(picked) < num_samples:
        best, best_distance = 0, -1.0
        for i, point in enumerate(points):
            if skip_near_origin and float(norms[i]) <= 1e-3:
                continue
            d = point - points[picked[-1]]
            nearest[i] = min(nearest[i], (d[0] * d[0] + d[1] * d[1]) + d[2] * d[2])
            if nearest[i] > best_distance:
                best, best_distance = i, nearest[i]
        picked.append(best)
    return picked


@pytest.fixture(autouse=True, params=["numba", "numpy"])
def loops(request, monkeypatch):
    """All tests with the compiled loop and without."""
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(sampling_module, "compiled_loops", lambda name: None)


def test_eight_points_by_hand():
    # Points on the x axis. Squared distance to the nearest pick after each step:
    #   index:            0   1   2   3   4   5   6   7
    #   x:                0   1   2   3   4   6   8  10
    #   after 0 (x=0):    0   1   4   9  16  36  64 100  -> 7
    #   after 7 (x=10):   0   1   4   9  16  16   4   0  -> 4 and 5 tie, the lower index wins
    #   after 4 (x=4):    0   1   4   1   0   4   4   0  -> 2, 5 and 6 tie, the lowest index wins
    #   after 2 (x=2):    0   1   0   1   0   4   4   0  -> 5
    #   after 5 (x=6):    0   1   0   1   0   0   4   0  -> 6
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0])
    points = torch.stack([x, torch.zeros(8), torch.zeros(8)], dim=-1)[None]
    assert farthest_point_sample(points, 6).tolist() == [[0, 7, 4, 2, 5, 6]]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_naive(dtype, skip):
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        batch, num_points = (int(torch.randint(1, high, (), generator=generator)) for high in (5, 40))
        num_samples = int(torch.randint(1, num_points + 1, (), generator=generator))
        # Half of the clouds shrunk, so that some of their points are near the origin.
        points = torch.randn(batch, num_points, 3, generator=generator) * 0.05
        points[::2] *= 20
        points = points.to(dtype)
        picked = farthest_point_sample(points, num_samples, skip_near_origin=skip)
        assert picked.dtype == torch.int64
        assert picked.tolist() == [naive_fps(cloud, num_samples, skip) for cloud in points]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip", [False, True])
def test_paths_agree(skip, dtype, monkeypatch):
    points = (torch.randn(5, 64, 3, generator=torch.Generator().manual_seed(1)) * 0.1).to(dtype)
    points[1] = points[1].mul(10).round()  # many ties
    expected = _sample_torch(points, 32, skip)
    assert torch.equal(farthest_point_sample(points, 32, skip_near_origin=skip), expected)
    monkeypatch.setattr(sampling_module, "_BLOCK_POINTS", 128)  # several blocks, the last one smaller
    assert torch.equal(farthest_point_sample(points, 32, skip_near_origin=skip), expected)


def test_duplicates_take_the_lowest_index():
    # Two places only, alternating: after 0 and 1 every distance is 0, and the lowest index is 0.
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).repeat(4, 1)[None]
    assert farthest_point_sample(points, 4).tolist() == [[0, 1, 0, 0]]


def test_near_origin_rule():
    # Indices 1 and 3 are near the origin (|p|^2 <= 1e-3). The start is index 0 all the same.
    points = torch.tensor([[[1.0, 0.0, 0.0], [0.01, 0.0, 0.0], [0.5, 0.0, 0.0], [-0.03, 0.0, 0.0]]])
    assert farthest_point_sample(points, 4).tolist() == [[0, 3, 2, 1]]
    # 2 is the only other candidate; then 0 and 2 tie at distance 0.
    assert farthest_point_sample(points, 4, skip_near_origin=True).tolist() == [[0, 2, 0, 0]]
    # A start near the origin counts as picked: 2 (at 0.5) is nearer to it than 0 (at 1).
    assert farthest_point_sample(points[:, [1, 2, 0, 3]], 3, skip_near_origin=True).tolist() == [[0, 2, 1]]
    assert farthest_point_sample(points * 0.01, 4, skip_near_origin=True).tolist() == [[0, 0, 0, 0]]


def test_near_origin_limit_is_double_precision():
    # float32(1e-3) is a little above 1e-3, so a point whose squared norm is float32(1e-3) is still a candidate.
    limit = np.float32(1e-3)
    assert float(limit) > 1e-3
    for x in np.linspace(0.01, 0.02, 200, dtype=np.float32):
        y = np.sqrt(limit - x * x)
        if x * x + y * y == limit:
            break
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.01, 0.0, 0.0], [float(x), float(y), 0.0]]])
    assert points[0, 2].square().sum() == torch.tensor(1e-3)
    assert farthest_point_sample(points, 2, skip_near_origin=True).tolist() == [[0, 2]]
    assert _sample_torch(points, 2, True).tolist() == [[0, 2]]
    lower = torch.nextafter(points, torch.zeros(()))
    assert farthest_point_sample(lower, 2, skip_near_origin=True).tolist() == [[0, 0]]


def test_permutation_of_all_but_the_start_picks_the_same_points():
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(2, 100, 3, generator=generator)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(99, generator=generator)])
    picked = farthest_point_sample(points, 20)
    assert torch.equal(order[farthest_point_sample(points[:, order], 20)], picked)


def test_batch_does_not_matter_and_all_points_are_picked_once():
    points = torch.randn(3, 30, 3, generator=torch.Generator().manual_seed(3))
    picked = farthest_point_sample(points, 30)
    for b in range(3):
        assert torch.equal(farthest_point_sample(points[b : b + 1], 30)[0], picked[b])
        assert sorted(picked[b].tolist()) == list(range(30))


def test_autocast_does_not_matter():
    points = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(5)) + 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        picked = farthest_point_sample(points, 20)
    assert torch.equal(picked, farthest_point_sample(points, 20))


def test_layout_and_gradient():
    points = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(4), requires_grad=True)
    view = points.transpose(1, 2)
    kept = view.detach().clone()
    picked = farthest_point_sample(view, 10)
    assert not picked.requires_grad
    assert torch.equal(picked, farthest_point_sample(kept, 10))
    assert torch.equal(view, kept)  # the input is left as it was
    assert farthest_point_sample(torch.zeros(0, 5, 3), 2).shape == (0, 2)


@pytest.mark.parametrize("num_samples", [0, 11])
def test_num_samples_out_of_range(num_samples):
    with pytest.raises(ValueError, match=f"10 points of a cloud, got {num_samples}"):
        farthest_point_sample(torch.zeros(1, 10, 3), num_samples)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"\(B, N, 3\), got \(10, 3\)"):
        farthest_point_sample(torch.zeros(10, 3), 2)


@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_reference(reference_dir, case):
    with np.load(reference_dir / "fps_knn.npz") as data:
        points = torch.from_numpy(data[f"{case}.points"])[None]
        for key, skip in [("fps_idx", True), ("fps_idx_noskip", False)]:
            expected = torch.from_numpy(data[f"{case}.{key}"])
            for picked in (
                farthest_point_sample(points, len(expected), skip_near_origin=skip),
                _sample_torch(points, len(expected), skip),
            ):
                assert torch.equal(picked[0], expected)


def test_the_kernel_for_gpus_in_the_interpreter_of_triton():
    pytest.importorskip("triton", reason="comes with the CUDA builds of PyTorch")
    script = """
import torch
from point_peft_hf.ops.sampling import _sample_torch
from point_peft_hf.ops.sampling_triton import sample_triton

torch.manual_seed(0)
for size in ((2, 50, 50), (3, 100, 17), (1, 1, 1)):
    clouds = {"random": torch.randn(*size[:2], 3), "near the origin": 0.03 * torch.randn(*size[:2], 3)}
    clouds["ties"] = torch.randint(-2, 3, (*size[:2], 3)).float()
    for name, points in clouds.items():
        for limit in (None, 1e-3):
            expected = _sample_torch(points, size[2], limit is not None)
            assert torch.equal(sample_triton(points, size[2], limit), expected), (name, size, limit)
# A squared norm of float32(1e-3), which is above 1e-3.
x = torch.tensor(1e-3).sqrt()
edge = torch.stack([x + k * torch.finfo(torch.float32).eps * x for k in range(-4, 5)])
points = torch.zeros(len(edge), 3, 3)
points[:, 1, 0], points[:, 2, 0] = 0.01, edge
assert (edge.square() == torch.tensor(1e-3)).any()
assert torch.equal(sample_triton(points, 2, 1e-3), _sample_torch(points, 2, True))
"""
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
