import numpy as np
import pytest
import torch

from point_peft_hf.ops import farthest_point_sample, gather_points, group_points, inverse_distance_weights, knn_indices


def test_gather_by_hand():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    # The same indices take rows of the own sample.
    assert gather_points(values, torch.tensor([[1], [1]])).tolist() == [[[3.0, 4.0]], [[7.0, 8.0]]]
    assert gather_points(values, torch.tensor([[[0, 1]], [[1, 1]]])).tolist() == [
        [[[1.0, 2.0], [3.0, 4.0]]],
        [[[7.0, 8.0], [7.0, 8.0]]],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 7), (3, 4, 5), (3, 2, 2, 2), (3, 0)])
def test_gather_equals_torch_gather(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 9, 6, generator=generator).to(dtype).requires_grad_()
    indices = torch.randint(0, 9, shape, generator=generator)
    rows = gather_points(values, indices)
    expanded = indices.reshape(3, -1, 1).expand(-1, -1, 6)
    expected = torch.gather(values, 1, expanded).reshape(*shape, 6)
    assert rows.dtype == dtype
    assert torch.equal(rows, expected)
    weights = torch.randint(-3, 4, expected.shape, generator=generator).to(dtype)  # whole numbers: exact sums
    (got,) = torch.autograd.grad(rows, values, weights)
    (want,) = torch.autograd.grad(expected, values, weights)
    assert torch.equal(got, want)


def test_gather_accepts_int32_and_strided_values():
    values = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    indices = torch.tensor([[4, 0], [2, 2]])
    assert torch.equal(gather_points(values, indices.int()), gather_points(values.contiguous(), indices))


def test_gather_wrong_arguments():
    values = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"\(B, N, C\), got \(4, 3\)"):
        gather_points(values[0], torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"B=2 as in values, got \(3, 1\)"):
        gather_points(values, torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="got torch.float32"):
        gather_points(values, torch.zeros(2, 1))
    # Row 4 of sample 0 would be row 0 of sample 1.
    with pytest.raises(ValueError, match="within 0 and 3, got 0 to 4"):
        gather_points(values, torch.tensor([[0, 4], [0, 0]]))
    with pytest.raises(ValueError, match="got -1 to 0"):
        gather_points(values, torch.tensor([[0], [-1]]))


def test_group_by_hand():
    # On the x axis: 0 1 2 | 10 11 12 | 20 21. Farthest points: 0, then 21, then 10 and 11 tie at 10: index 3.
    x = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 20.0, 21.0])
    points = torch.stack([x, torch.zeros(8), torch.ones(8)], dim=-1)[None]
    neighborhoods, group_centers = group_points(points, 3, 2)
    assert group_centers[0].tolist() == [[0.0, 0.0, 1.0], [21.0, 0.0, 1.0], [10.0, 0.0, 1.0]]
    # Relative to the centre, itself first: (0, 1), (21, 20), (10, 11).
    assert neighborhoods[0, :, :, 0].tolist() == [[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]]
    assert torch.equal(neighborhoods[..., 1:], torch.zeros(1, 3, 2, 2))


def test_group_is_made_of_the_parts():
    points = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(2)) * 0.1
    for skip in (False, True):
        neighborhoods, group_centers = group_points(points, 8, 5, skip_near_origin=skip)
        assert torch.equal(
            group_centers, gather_points(points, farthest_point_sample(points, 8, skip_near_origin=skip))
        )
        rows = gather_points(points, knn_indices(group_centers, points, 5))
        assert torch.equal(neighborhoods, rows - group_centers[:, :, None])
        assert torch.equal(neighborhoods[:, :, 0], torch.zeros(3, 8, 3))


def test_group_follows_a_shift():
    # Whole numbers, so that the shift is exact.
    points = torch.randint(-50, 50, (2, 40, 3), generator=torch.Generator().manual_seed(3)).float()
    neighborhoods, group_centers = group_points(points, 6, 4)
    shifted, shifted_centers = group_points(points + 1000, 6, 4)
    assert torch.equal(shifted, neighborhoods)
    assert torch.equal(shifted_centers, group_centers + 1000)


def test_group_wrong_arguments():
    points = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match="4 points of a cloud, got 5"):
        group_points(points, 5, 2)
    with pytest.raises(ValueError, match="4 points of a cloud, got 6"):
        group_points(points, 2, 6)


def test_compiles_without_graph_break():
    def geometry(points):
        neighborhoods, group_centers = group_points(points, 8, 4, skip_near_origin=True)
        weights = inverse_distance_weights(group_centers, group_centers[:, :4], num_neighbors=3)
        return neighborhoods, group_centers, weights

    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(4))
    # This backend traces forward and backward as the default one does, but needs no compiler.
    compiled = torch.compile(geometry, fullgraph=True, backend="aot_eager")
    inputs = [points.clone().requires_grad_() for _ in range(2)]
    outputs = [function(x) for function, x in zip((geometry, compiled), inputs, strict=True)]
    for expected, got in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected)
    for output in outputs:
        sum(part.square().sum() for part in output).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)


def test_sampling_is_one_call_in_the_graph():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda p: farthest_point_sample(p, 30), fullgraph=True, backend=backend)(torch.randn(1, 64, 3))
    names = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("farthest_point_sample" in name for name in names) == 1
    assert len(names) < 10  # not unrolled


def test_operator_registration():
    for skip in (False, True):
        torch.library.opcheck(torch.ops.point_peft_hf.farthest_point_sample.default, (torch.randn(2, 16, 3), 4, skip))


def test_reference(reference_dir):
    with np.load(reference_dir / "point_mae.npz") as data:
        points, centers, indices, neighbors = (
            torch.from_numpy(data[key]) for key in ("points", "center", "knn_idx", "neighborhood")
        )
        assert torch.equal(farthest_point_sample(points, 16), torch.from_numpy(data["fps_idx"]))
    neighborhoods, group_centers = group_points(points, 16, 8)
    assert torch.equal(group_centers, centers)
    found = knn_indices(centers, points, 8)
    assert torch.equal(found.sort(dim=-1).values, indices.sort(dim=-1).values)
    # Bring both into the order of the indices, as the order within a group has no meaning.
    ours, theirs = (
        rows.gather(2, order.argsort(dim=-1)[..., None].expand(-1, -1, -1, 3))
        for rows, order in ((neighborhoods, found), (neighbors, indices))
    )
    assert torch.equal(ours, theirs)
