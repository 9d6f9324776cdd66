import numpy as np
import pytest
import torch

from point_peft_hf.ops import knn_indices
from point_peft_hf.ops import neighbors as neighbors_module


def distances(queries: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return (queries.double().unsqueeze(2) - points.double().unsqueeze(1)).norm(dim=-1)


def by_sorting(queries: torch.Tensor, points: torch.Tensor, k: int) -> torch.Tensor:
    """Sort all distances, in the precision of `knn_indices`; what is equal stays in order."""
    dtype = torch.promote_types(points.dtype, torch.float32)
    differences = queries.to(dtype).unsqueeze(2) - points.to(dtype).unsqueeze(1)
    x, y, z = (differences * differences).unbind(-1)
    return ((x + y) + z).sort(dim=-1, stable=True).indices[..., :k]


def test_eight_points_by_hand():
    # Points on the x axis at 0 1 3 6 10 15 21 28.
    # From 6 (index 3): 3 is 3 away (index 2), 10 is 4 away (index 4), 1 is 5 away (index 1).
    # From 27: 28 is 1 away (index 7), 21 is 6 away (index 6), 15 is 12 away (index 5), 10 is 17 away (index 4).
    x = torch.tensor([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    points = torch.stack([torch.zeros(8), x, torch.zeros(8)], dim=-1)[None]
    queries = torch.tensor([[[0.0, 6.0, 0.0], [0.0, 27.0, 0.0]]])
    assert knn_indices(queries, points, 4).tolist() == [[[3, 2, 4, 1], [7, 6, 5, 4]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_naive(dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch, num_queries, num_points = (int(torch.randint(1, n, (), generator=generator)) for n in (5, 20, 60))
        k = int(torch.randint(1, num_points + 1, (), generator=generator))
        queries = torch.randn(batch, num_queries, 3, generator=generator).to(dtype)
        points = torch.randn(batch, num_points, 3, generator=generator).to(dtype)
        found = knn_indices(queries, points, k)
        assert found.shape == (batch, num_queries, k)
        assert found.dtype == torch.int64
        assert torch.equal(found, by_sorting(queries, points, k))
        everything = distances(queries, points)
        expected = everything.sort(dim=-1).values[..., :k]
        torch.testing.assert_close(everything.gather(-1, found), expected, rtol=1e-6, atol=1e-7)


@pytest.fixture
def grid():
    """Clouds on a coarse grid, full of equal distances and equal points."""
    return torch.randint(-3, 4, (3, 100, 3), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5, 60, 100])
def test_equal_distances_come_by_index(grid, dtype, k):
    found = knn_indices(grid[:, :11].to(dtype), grid.to(dtype), k)
    assert torch.equal(found, by_sorting(grid[:, :11], grid, k))


@pytest.mark.parametrize("entries", [1, 7, 64, 200, 1000, 10000])
def test_blocks_do_not_matter(grid, entries, monkeypatch):
    expected = by_sorting(grid[:, :11], grid, 5)
    monkeypatch.setattr(neighbors_module, "_CPU_ENTRIES", entries)
    assert torch.equal(knn_indices(grid[:, :11], grid, 5), expected)
    for cloud in range(3):
        assert torch.equal(knn_indices(grid[cloud : cloud + 1, :11], grid[cloud : cloud + 1], 5)[0], expected[cloud])


def test_every_way_to_select_finds_the_same(grid, monkeypatch):
    expected = by_sorting(grid[:, :11], grid, 20)
    compiled = torch.compile(knn_indices, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(grid[:, :11], grid, 20), expected)
    monkeypatch.setattr(neighbors_module, "_NUMPY_THREADS", 0)  # as with many threads, and as on a GPU
    assert torch.equal(knn_indices(grid[:, :11], grid, 20), expected)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("scale", [1.0, 1e-2])
def test_far_from_the_origin(offset, scale):
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(2, 300, 3, generator=generator) * scale + offset
    found = knn_indices(points, points, 8)
    everything = distances(points, points)
    taken = everything.gather(-1, found)
    assert torch.equal(taken[..., 0], torch.zeros(2, 300, dtype=torch.float64))  # itself, or a point of the same place
    torch.testing.assert_close(taken, everything.sort(dim=-1).values[..., :8], rtol=1e-6, atol=0)


def test_small_cluster_in_a_large_cloud():
    # Neighbours 1e-4 apart at 1 from the middle: the expanded form of the squared distance does not resolve them.
    generator = torch.Generator().manual_seed(3)
    points = torch.cat([torch.randn(1, 100, 3, generator=generator) * 1e-4 + 1, torch.randn(1, 100, 3) - 1], dim=1)
    assert torch.equal(knn_indices(points, points, 1)[0, :, 0], torch.arange(200))
    everything = distances(points, points)
    taken = everything.gather(-1, knn_indices(points, points, 8))
    torch.testing.assert_close(taken, everything.sort(dim=-1).values[..., :8], rtol=1e-6, atol=0)


def test_duplicates_are_all_found_in_order():
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).repeat(4, 1)[None]
    found = knn_indices(points[:, :2], points, 4)
    assert found.tolist() == [[[0, 2, 4, 6], [1, 3, 5, 7]]]


def test_permutation():
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(2, 60, 3, generator=generator)
    queries = torch.randn(2, 9, 3, generator=generator)
    order = torch.randperm(60, generator=generator)
    assert torch.equal(order[knn_indices(queries, points[:, order], 7)], knn_indices(queries, points, 7))


def test_autocast_does_not_matter():
    points = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(5)) + 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = knn_indices(points, points, 4)
    assert torch.equal(found, knn_indices(points, points, 4))


def test_no_gradient_and_empty():
    points = torch.randn(1, 5, 3, requires_grad=True)
    assert not knn_indices(points, points, 2).requires_grad
    assert knn_indices(torch.zeros(2, 0, 3), torch.zeros(2, 5, 3), 2).shape == (2, 0, 2)
    assert knn_indices(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3), 2).shape == (0, 4, 2)


def test_wrong_arguments():
    points = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="k must be within 1 and the 5 points of a cloud, got 6"):
        knn_indices(points, points, 6)
    with pytest.raises(ValueError, match="got 0"):
        knn_indices(points, points, 0)
    with pytest.raises(ValueError, match="differ in batch size: 1 and 2"):
        knn_indices(points[:1], points, 1)
    with pytest.raises(ValueError, match=r"got \(2, 5, 2\) and \(2, 5, 3\)"):
        knn_indices(points[..., :2], points, 1)


def test_reference(reference_dir):
    with np.load(reference_dir / "fps_knn.npz") as data:
        k = int(data["k"])
        for case in sorted({key.split(".")[0] for key in data.files if "." in key}):
            points = torch.from_numpy(data[f"{case}.points"])[None]
            centers = torch.from_numpy(data[f"{case}.center"])[None]
            found = knn_indices(centers, points, k)
            taken = distances(centers, points).gather(-1, found)[0]
            expected = torch.from_numpy(data[f"{case}.knn_dist"]).double()
            torch.testing.assert_close(taken, expected, rtol=1e-6, atol=1e-7, msg=lambda text, case=case: case + text)
            if case in ("random", "clustered", "planar", "near_origin"):  # no ties
                assert torch.equal(found[0], torch.from_numpy(data[f"{case}.knn_idx"]))
