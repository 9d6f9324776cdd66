import pytest
import torch

from point_peft_hf.ops import chamfer_distance, greedy_path, morton_keys


def by_hand(points):
    path, left = [0], list(range(1, len(points)))
    while left:
        distances = [((points[i] - points[path[-1]]) ** 2).sum().item() for i in left]
        path.append(left.pop(distances.index(min(distances))))
    return path


def test_five_points_by_hand():
    # On the x axis at 0 5 1 -2 4: from 0 on to 1, 2 away like -2 is, but 1 is nearer; from 1 to -2 (3 away, as 4 is).
    x = torch.tensor([0.0, 5.0, 1.0, -2.0, 4.0])
    points = torch.stack([x, torch.zeros(5), torch.zeros(5)], dim=-1)[None]
    assert greedy_path(points).tolist() == [[0, 2, 3, 4, 1]]


def test_equals_naive():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4, 33, 3, generator=generator)
    assert greedy_path(points).tolist() == [by_hand(cloud) for cloud in points]


def test_ties_go_to_the_lower_index():
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[None]
    assert greedy_path(grid).tolist() == [by_hand(grid[0])]
    assert greedy_path(torch.zeros(2, 6, 3)).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 2), (2, 0, 3)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"\(B, N, 3\)"):
        greedy_path(torch.zeros(shape))


def test_chamfer_distances_by_hand():
    # 0 is 1 away from 1 and 3 is 2 away from it; 1 is 1 away from 0.
    predicted = torch.tensor([[[0.0, 0, 0], [3, 0, 0]]])
    target = torch.tensor([[[1.0, 0, 0]]])
    assert chamfer_distance(predicted, target).tolist() == [(1 + 4) / 2 + 1]
    assert chamfer_distance(predicted, target, squared=False).tolist() == [((1 + 2) / 2 + 1) / 2]


def test_chamfer_gradient_where_points_coincide():
    predicted = torch.tensor([[[1.0, 0, 0], [3, 0, 0]]], requires_grad=True)
    chamfer_distance(predicted, torch.tensor([[[1.0, 0, 0]]]), squared=False).sum().backward()
    # Only 3 is apart; it is one of two points, and this is one of two directions.
    assert predicted.grad.tolist() == [[[0, 0, 0], [0.25, 0, 0]]]


def test_morton_keys_by_hand():
    # Cells of 0.01 toward 0; y has the highest of each three bits, then x, then z.
    points = torch.tensor([[0.01, 0, 0], [0, 0.01, 0], [0, 0, 0.01], [0.009, -0.009, 0], [0.03, 0.02, 0.015]])
    assert morton_keys(points * 1.001).tolist() == [2, 4, 1, 0, 0b110 << 3 | 0b011]
    # -1 is 16 bits of 1.
    assert morton_keys(torch.tensor([[0, 0, -0.01]]) * 1.001).tolist() == [sum(8**i for i in range(16))]
