import warnings

import numpy as np
import pytest
import torch

from point_peft_hf.data import PointCloudError
from point_peft_hf.data.scenes import PUBLISHED_PREPARATION, Scene, SceneProcessor
from point_peft_hf.data.scenes.voxels import occupied_cells, voxelize


def test_voxels_equal_the_published_ones(reference_dir):
    with np.load(reference_dir / "backbones" / "grid_sample.npz") as values:
        grid, first, inverse = voxelize(values["coord"], float(values["grid_size"]), "the reference")
        np.testing.assert_array_equal(grid[inverse], values["grid_coord_of_every_point"])
        assert len(first) == values["num_voxels"]
        # The same points share a voxel, whatever the order of the voxels.
        np.testing.assert_array_equal(values["published.grid_coord"][values["published.inverse"]], grid[inverse])


def test_the_first_point_of_a_voxel_stays():
    points = np.array([[0.0, 0, 0], [0.9, 0, 0], [0.15, 0, 0], [0.12, 0, 0.05]])
    grid, first, inverse = voxelize(points, 0.1, "a")
    assert grid.tolist() == [[0, 0, 0], [1, 0, 0], [9, 0, 0]]
    assert first.tolist() == [0, 2, 1]
    assert inverse.tolist() == [0, 2, 1, 1]


def test_division_in_float64():
    # 0.3 / 0.1 is 2.9999999999999996 in float64 and 3 in float32.
    assert voxelize(np.array([[0.3, 0, 0], [0.0, 0, 0]]), 0.1, "a")[0].max() == 2


def test_preparation_by_hand():
    points = np.array([[1.0, 2.0, 5.0], [3.0, 2.0, 6.0], [1.0, 4.0, 5.5]])
    scene = Scene.make(points, [[0, 255, 51]] * 3, labels=[4, 5, -1])
    batch = SceneProcessor(0.5, ["coordinates", "colors"])(scene, return_inverse=True)
    # In order of x, y, z of the voxels; the middle of x and y is (2, 3), the lowest z is 5.
    assert batch["coordinates"].tolist() == [[-1, -1, 0], [-1, 1, 0.5], [1, -1, 1]]
    assert batch["grid_coordinates"].tolist() == [[0, 0, 0], [0, 4, 1], [4, 0, 2]]
    torch.testing.assert_close(batch["features"][:, 3:], torch.tensor([[0.0, 1.0, 0.2]] * 3))
    assert batch["labels"].tolist() == [4, -100, 5]
    assert batch["inverse"].tolist() == [0, 2, 1]


def test_preparation_of_point_transformer_v3(scene):
    batch = SceneProcessor(**PUBLISHED_PREPARATION["ptv3"])(scene, return_inverse=True)
    expected = np.concatenate([scene.colors / 127.5 - 1, scene.normals], axis=1)
    found = batch["features"][batch["inverse"]].numpy()
    assert found.shape == (60, 6)
    assert (abs(found - expected).max(axis=1) < 1e-5).sum() == len(batch["coordinates"])


def test_preparation_of_utonia(scene):
    processor = SceneProcessor(**PUBLISHED_PREPARATION["utonia"])
    assert processor.voxel_size == pytest.approx(0.02)
    half = processor(scene)["coordinates"]
    np.testing.assert_allclose(np.ptp(half.numpy(), axis=0), np.ptp(scene.points, axis=0) / 2, rtol=1e-5)
    outdoors = SceneProcessor(0.01, ["coordinates"], shift="none")(scene, return_inverse=True)
    np.testing.assert_allclose(outdoors["coordinates"][outdoors["inverse"]], scene.points, atol=1e-6)
    with pytest.raises(PointCloudError, match="float32 cannot separate voxels of 0.01"):
        SceneProcessor(0.01, ["coordinates"], shift="none")(scene.points + np.array([450_000.0, 0, 0]))
    single = SceneProcessor(0.01, ["coordinates"], shift="unit_sphere")(scene)["coordinates"]
    assert float(single.norm(dim=1).max()) == pytest.approx(1, abs=1e-5)


def test_a_batch_is_its_scenes_one_after_the_other(scene, rng):
    other = Scene.make(rng.normal(size=(20, 3)), np.full((20, 3), 9), np.ones((20, 3)))
    processor = SceneProcessor(0.3)
    both, alone = (
        processor([scene, other], return_inverse=True),
        [processor(scene, return_inverse=True), processor(other)],
    )
    for name in ("coordinates", "grid_coordinates", "features"):
        torch.testing.assert_close(both[name], torch.cat([batch[name] for batch in alone]), rtol=0, atol=0)
    sizes = [len(batch["coordinates"]) for batch in alone]
    assert both["batch_index"].tolist() == [0] * sizes[0] + [1] * sizes[1]
    assert both["labels"].tolist() == [*alone[0]["labels"].tolist(), *[-100] * sizes[1]]
    assert both["inverse"][:60].tolist() == alone[0]["inverse"].tolist()
    assert both["inverse"][60:].min() == sizes[0]
    assert {name: both[name].dtype for name in ("coordinates", "grid_coordinates", "features", "batch_index")} == {
        **dict.fromkeys(("coordinates", "features"), torch.float32),
        **dict.fromkeys(("grid_coordinates", "batch_index"), torch.int64),
    }


@pytest.mark.parametrize(
    ("optional", "message"),
    [((), "trained on scenes with colours only, and may do worse"), (("colors",), "with and without colours")],
)
def test_absent_colors_are_zeros_and_said_once(rng, optional, message):
    processor = SceneProcessor(0.1, ["coordinates", "colors"], optional)
    points = rng.normal(size=(9, 3))
    with pytest.warns(UserWarning, match=message) as caught:
        batch = processor([points, points])
    assert len(caught) == 1
    assert not batch["features"][:, 3:].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(points)


def test_no_warning_where_the_model_wants_no_colors(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SceneProcessor(0.1, ["coordinates"])(rng.normal(size=(9, 3)))


def test_too_many_cells():
    points = np.zeros((1000, 3))
    points[:999, 0] = np.linspace(0, 10, 999)
    points[999, 0] = 5000.0
    message = (
        "spans 5000 along x, which is 250002 cells of 0.02, and a model takes 65536 at most.*99 % .* stray points"
    )
    with pytest.raises(PointCloudError, match=message) as error:
        SceneProcessor()(points)
    least = float(str(error.value).rsplit(" ", 1)[1])
    assert SceneProcessor(least * 1.01, ["coordinates"])(points)["grid_coordinates"].max() < 2**16


def test_cells_of_a_scan(rng):
    points = rng.uniform(-3, 3, (500, 3)).astype(np.float32)
    low = points.min(axis=0).astype(np.float64)
    expected = np.unique(np.floor((points - low) / 0.5).astype(int), axis=0)
    np.testing.assert_array_equal(occupied_cells(points, low, 0.5, "a"), expected)
    with pytest.raises(PointCloudError, match="are there stray points"):
        occupied_cells(points, low, 1e-6, "a")


def test_saving_and_loading(tmp_path, scene):
    processor = SceneProcessor(0.04, ("coordinates", "normals"), ("normals",), "signed", "none", 0.5)
    processor(Scene.make(scene.points, scene.colors, scene.normals))
    processor.save_pretrained(tmp_path)
    loaded = SceneProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    torch.testing.assert_close(loaded(scene)["features"], processor(scene)["features"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid_size": 0}, "grid_size must be a number above 0, got 0"),
        ({"scale": float("nan")}, "scale must be a number above 0"),
        ({"shift": "middle"}, "shift must be one of center"),
        ({"color_scale": "half"}, "color_scale must be one of unit, signed"),
        ({"feature_names": ["coordinates", "height"]}, "feature_names must be one or more of"),
        ({"feature_names": []}, "feature_names must be one or more of"),
        ({"optional_features": ["coordinates"]}, "optional_features can be colors and normals"),
        ({"voxel": 3}, "no field voxel"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        SceneProcessor(**fields)


def test_bad_calls(scene):
    with pytest.raises(PointCloudError, match="scenes is empty"):
        SceneProcessor()([])
    with pytest.raises(PointCloudError, match="scene 1: holds 1 point;"):
        SceneProcessor()([scene, np.zeros((1, 3))])
    with pytest.raises(ValueError, match="return_tensors"):
        SceneProcessor()(scene, "tf")
