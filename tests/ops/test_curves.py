"""Space-filling curves, by hand."""

import pytest
import torch

from point_peft_hf.ops import CURVES, curve_codes, grid_depth

CUBE = torch.cartesian_prod(*3 * [torch.arange(2)])


def all_cells(depth):
    return torch.cartesian_prod(*3 * [torch.arange(2**depth)])


@pytest.mark.parametrize(("largest", "depth"), [(0, 1), (1, 2), (2, 2), (3, 3), (6, 3), (7, 4), (65534, 16)])
def test_depth_is_the_number_of_bits_of_the_largest_plus_one(largest, depth):
    assert grid_depth(torch.tensor([largest])).tolist() == [depth]


def test_a_grid_that_is_too_large():
    with pytest.raises(ValueError, match="65535.*grid_size.*tiles"):
        grid_depth(torch.tensor([3, 65535]))


def test_z_order_interleaves_the_bits_of_x_y_z():
    assert curve_codes(CUBE, 1, "z").tolist() == list(range(8))
    # x = 0b10, y = 0b01, z = 0b11: 0b101 then 0b011.
    assert curve_codes(torch.tensor([[2, 1, 3]]), 2, "z").tolist() == [0b101_011]
    assert curve_codes(torch.tensor([[2, 1, 3]]), 2, "z-trans").tolist() == [0b011_101]


def test_the_hilbert_curve_of_one_level_walks_along_the_edges_of_a_cube():
    """With one level nothing is turned: the Gray code of (x, y, z)."""
    codes = curve_codes(CUBE, 1, "hilbert")
    walk = CUBE[codes.argsort()].tolist()
    assert walk == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_passes_every_cell_once(curve, depth):
    cells = all_cells(depth)
    codes = curve_codes(cells, depth, curve)
    assert sorted(codes.tolist()) == list(range(8**depth))
    if "hilbert" in curve:
        steps = cells[codes.argsort()].diff(dim=0).abs().sum(dim=1)
        assert steps.eq(1).all()


@pytest.mark.parametrize("curve", CURVES)
def test_each_cell_may_have_a_depth_of_its_own(curve):
    cells = all_cells(2)
    depth = torch.arange(len(cells)) % 4 + 2
    expected = torch.stack([curve_codes(cell[None], int(d), curve)[0] for cell, d in zip(cells, depth, strict=True)])
    assert torch.equal(curve_codes(cells, depth, curve), expected)


def test_an_unknown_curve():
    with pytest.raises(ValueError, match="'peano'"):
        curve_codes(CUBE, 1, "peano")
