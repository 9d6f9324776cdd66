import numpy as np
import pytest

from point_peft_hf.data import PointCloudError
from point_peft_hf.data.scenes import cut_tiles


@pytest.fixture
def points(rng):
    """A hilly floor of 12 by 8 metres."""
    plane = rng.uniform((0, 0), (12, 8), (4000, 2))
    return np.column_stack([plane, np.sin(plane[:, 0])]).astype(np.float32)


def cells_of(points, low, size):
    return np.floor((points.astype(np.float64) - low) / size).astype(int)


@pytest.mark.parametrize(("max_voxels", "overlap"), [(300, 0.4), (1000, 0.0), (100_000, None)])
def test_each_point_is_in_one_core(points, max_voxels, overlap):
    tiles = list(cut_tiles(points, 0.1, max_voxels, overlap))
    owners = np.zeros(len(points), int)
    for tile in tiles:
        owners[tile.rows[tile.core]] += 1
        assert (np.diff(tile.rows) > 0).all()
        assert len(np.unique(cells_of(points[tile.rows], points.min(axis=0), 0.1), axis=0)) <= max_voxels
    assert (owners == 1).all()
    assert (len(tiles) == 1) == (max_voxels == 100_000)


def test_a_tile_reaches_into_its_neighbours(points):
    for tile in cut_tiles(points, 0.1, 1000, 0.5):
        core, low, high = (
            points[tile.rows[tile.core]],
            *(function(points[tile.rows[tile.core]], axis=0) for function in (np.min, np.max)),
        )
        near = ((points > low - 0.3) & (points < high + 0.3)).all(axis=1)
        assert np.isin(np.flatnonzero(near), tile.rows).all()
        assert len(core) < len(tile.rows)


def test_tiles_do_not_depend_on_the_order_of_points(points, rng):
    order = rng.permutation(len(points))
    one = [np.sort(tile.rows[tile.core]) for tile in cut_tiles(points, 0.1, 500)]
    other = [np.sort(order[tile.rows[tile.core]]) for tile in cut_tiles(points[order], 0.1, 500)]
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_long_scan_is_cut_where_the_grid_ends():
    points = np.zeros((100, 3), np.float32)
    points[:, 0] = np.linspace(0, 100_000, 100)
    tiles = list(cut_tiles(points, 0.2, 10_000, 1.0))
    assert max(np.ptp(points[tile.rows, 0]) for tile in tiles) < 0.2 * 2**16
    assert sum(int(tile.core.sum()) for tile in tiles) == 100


def test_refused(points):
    with pytest.raises(PointCloudError, match=r"more than a tile may have \(max_voxels 2\); take a larger max_voxels"):
        list(cut_tiles(points, 0.1, 2, 1.0))
    with pytest.raises(ValueError, match="max_voxels must be at least 1"):
        list(cut_tiles(points, 0.1, 0))
