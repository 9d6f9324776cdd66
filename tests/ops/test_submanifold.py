"""Convolution over occupied voxels against a dense convolution."""

import pytest
import torch
from torch.nn import functional as F

import point_peft_hf.ops.submanifold as submanifold
from point_peft_hf.ops import NeighborTable, submanifold_conv

SIZE = 6


@pytest.fixture(params=[1 << 13, 7], ids=["one chunk", "many chunks"], autouse=True)
def chunk_size(request, monkeypatch):
    monkeypatch.setattr(submanifold, "_CPU_ROWS", request.param)


def random_voxels(seed=0, counts=(40, 25)):
    generator = torch.Generator().manual_seed(seed)
    cells = [torch.randperm(SIZE**3, generator=generator)[:count] for count in counts]
    grid = torch.cat([torch.stack([c // SIZE**2, c // SIZE % SIZE, c % SIZE], dim=1) for c in cells])
    batch = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return grid, batch


def dense(rows, weight, bias, grid, batch):
    """The same by a convolution of the whole box."""
    channels = rows.shape[1]
    box = rows.new_zeros(int(batch.max()) + 1, channels, SIZE, SIZE, SIZE)
    box = box.permute(0, 2, 3, 4, 1).index_put((batch, *grid.unbind(1)), rows).permute(0, 4, 1, 2, 3)
    result = F.conv3d(box, weight.permute(4, 3, 0, 1, 2), bias, padding=weight.shape[0] // 2)
    return result[batch, :, grid[:, 0], grid[:, 1], grid[:, 2]]


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_those_of_a_dense_convolution(kernel_size, has_bias):
    grid, batch = random_voxels()
    torch.manual_seed(0)
    rows = torch.randn(len(grid), 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*3 * [kernel_size], 4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True) if has_bias else None
    leaves = [leaf for leaf in (rows, weight, bias) if leaf is not None]
    result = submanifold_conv(rows, weight, bias, NeighborTable.build(grid, batch, kernel_size))
    expected = dense(rows, weight, bias, grid, batch)
    torch.testing.assert_close(result, expected)
    factor = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(result, leaves, factor), torch.autograd.grad(expected, leaves, factor), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("is_depth_wise", [False, True])
def test_gradcheck(is_depth_wise):
    grid, batch = random_voxels(counts=(9, 4))
    table = NeighborTable.build(grid // 2 * 2 + grid % 2, batch)
    torch.manual_seed(0)
    rows = torch.randn(len(grid), 2, dtype=torch.float64, requires_grad=True)
    shape = (2,) if is_depth_wise else (2, 3)
    weight = torch.randn(3, 3, 3, *shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *leaves: submanifold_conv(*leaves, table), (rows, weight, bias))


def test_depth_wise_is_a_diagonal_of_the_other():
    grid, batch = random_voxels()
    table = NeighborTable.build(grid, batch)
    torch.manual_seed(0)
    rows, weight = torch.randn(len(grid), 4), torch.randn(3, 3, 3, 4)
    torch.testing.assert_close(
        submanifold_conv(rows, weight, None, table), submanifold_conv(rows, weight.diag_embed(), None, table)
    )


def test_by_hand():
    """Two neighbours along x, one voxel elsewhere, and one at the same place in another cloud."""
    grid = torch.tensor([[0, 0, 0], [1, 0, 0], [3, 3, 3], [0, 0, 0]])
    table = NeighborTable.build(grid, torch.tensor([0, 0, 0, 1]))
    weight = torch.zeros(3, 3, 3, 1, 1)
    weight[1, 1, 1], weight[2, 1, 1], weight[0, 1, 1] = 1, 10, 100
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert submanifold_conv(rows, weight, None, table).flatten().tolist() == [1 + 20, 2 + 100, 3, 4]


def test_the_order_of_the_rows_does_not_matter():
    grid, batch = random_voxels(counts=(50,))
    torch.manual_seed(0)
    rows, weight = torch.randn(50, 3), torch.randn(3, 3, 3, 3, 2)
    order = torch.randperm(50)
    result = submanifold_conv(rows, weight, None, NeighborTable.build(grid, batch))
    other = submanifold_conv(rows[order], weight, None, NeighborTable.build(grid[order], batch))
    torch.testing.assert_close(other, result[order])


def test_what_is_kept_for_the_backward_pass():
    grid, batch = random_voxels()
    table = NeighborTable.build(grid, batch)
    rows = torch.randn(len(grid), 8, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        weight = torch.randn(3, 3, 3, 8, 8)
        submanifold_conv(rows, weight, None, table)
        assert {tensor.data_ptr() for tensor in kept} == {weight.data_ptr()}
        weight.requires_grad_()
        submanifold_conv(rows, weight, None, table)
    assert {tensor.data_ptr() for tensor in kept} == {weight.data_ptr(), rows.data_ptr()}


def test_half_precision_is_added_up_in_float32():
    grid, batch = torch.cartesian_prod(*3 * [torch.arange(3)]), torch.zeros(27, dtype=torch.int64)
    table = NeighborTable.build(grid, batch)
    rows, weight = torch.ones(27, 1, dtype=torch.bfloat16), torch.ones(3, 3, 3, 1, 1, dtype=torch.bfloat16)
    # In bfloat16, 32 + 0.125 is 32: added one by one, the 26 neighbours would be lost.
    weight[:] = 0.125
    weight[1, 1, 1] = 32
    assert submanifold_conv(rows, weight, None, table)[13].item() == 35.25
    with torch.autocast("cpu", torch.bfloat16):
        assert submanifold_conv(rows.float(), weight.float(), None, table).dtype == torch.bfloat16


def test_bad_grids():
    twice = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="a cell twice"):
        NeighborTable.build(twice, torch.zeros(2, dtype=torch.int64))
    NeighborTable.build(twice, torch.arange(2))
    with pytest.raises(ValueError, match="too large"):
        NeighborTable.build(torch.full((1, 3), 2**22), torch.zeros(1, dtype=torch.int64))
