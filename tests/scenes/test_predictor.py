import laspy
import numpy as np
import pytest
import torch

from point_peft_hf.data import write_point_cloud
from point_peft_hf.data.scenes import Scene, SceneProcessor, read_scene
from point_peft_hf.scenes import ScenePredictor

from ..data.scenes.conftest import SCENES


def test_one_tile_is_the_model_on_the_scan(make_model, processor, scan):
    model = make_model()
    prediction = ScenePredictor(model, processor).predict(scan, probabilities=True)
    batch = processor(scan, return_inverse=True)
    inverse = batch.pop("inverse")
    batch.pop("labels")
    with torch.no_grad():
        shares = model(**batch).logits.softmax(dim=1)[inverse].numpy()
    np.testing.assert_array_equal(prediction.labels, shares.argmax(axis=1))
    np.testing.assert_allclose(prediction.probabilities, shares, atol=1e-6)
    np.testing.assert_allclose(prediction.confidence, shares.max(axis=1), atol=1e-6)
    assert sum(prediction.shares().values()) == pytest.approx(1)


def test_tiles_are_small_cover_all_and_are_deterministic(make_model, processor, scan):
    model = make_model()
    predictor = ScenePredictor(model, processor, max_voxels=900, overlap=0.3)
    one, other = predictor.predict(scan, probabilities=True), predictor.predict(scan, probabilities=True)
    assert len(model.sizes) > 8
    assert max(model.sizes) < 1000
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert one.labels.min() >= 0
    assert np.isfinite(one.probabilities).all()


def test_logits_are_averaged_where_tiles_overlap(make_model, scan):
    processor = SceneProcessor(1e-4, ["coordinates"])  # each point is a voxel
    model = make_model(in_channels=3)
    points = scan["points"][:300]
    predictor = ScenePredictor(model, processor, max_voxels=120, overlap=0.4)
    prediction = predictor.predict(points, probabilities=True)
    sums, counts = np.zeros((300, 3)), np.zeros(300)
    for tile in predictor._tiles(Scene.make(points)):
        part = points[tile.rows]
        low, high = part.min(axis=0), part.max(axis=0)
        shifted = part - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
        sums[tile.rows] += model.linear(torch.tensor(shifted, dtype=torch.float32)).detach().numpy()
        counts[tile.rows] += 1
    assert counts.max() > 1
    assert counts.min() == 1
    expected = torch.from_numpy(sums / counts[:, None]).softmax(dim=1).numpy()
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)


def test_an_object_is_not_cut(make_model, scan):
    model = make_model(in_channels=3)
    processor = SceneProcessor(0.02, ["coordinates"], shift="unit_sphere")
    ScenePredictor(model, processor, max_voxels=50).predict(scan["points"])
    assert len(model.sizes) == 1


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_a_las_file_keeps_all_else(tmp_path, make_model, processor, scan, suffix, rng):
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [0.001] * 3, [300_000, 5_000_000, 50]
    header.add_extra_dim(laspy.ExtraBytesParams("height", np.float32))
    las = laspy.LasData(header)
    las.xyz = scan["points"] + header.offsets
    las.red, las.green, las.blue = scan["colors"].T.astype(np.uint16) * 257
    las.intensity = rng.integers(0, 999, 5000)
    las.gps_time = rng.uniform(0, 1, 5000)
    las.height = rng.uniform(0, 1, 5000)
    las.vlrs.append(laspy.VLR("somebody", 7, "a record", b"12345"))
    las.write(tmp_path / f"scan{suffix}")
    prediction = ScenePredictor(make_model(label_values=[2, 5, 6]), processor).predict(tmp_path / f"scan{suffix}")
    prediction.write(tmp_path / f"out{suffix}")
    before, after = laspy.read(tmp_path / f"scan{suffix}"), laspy.read(tmp_path / f"out{suffix}")
    for name in before.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(before[name], after[name])
    np.testing.assert_array_equal(np.asarray(after.classification), np.array([2, 5, 6])[prediction.labels])
    records = {(vlr.user_id, vlr.record_id): vlr for vlr in after.header.vlrs}
    assert ("somebody", 7) in records
    names = records["LASF_Spec", 0].record_data_bytes()
    assert names[16 * 5 + 1 : 16 * 6].rstrip(b"\0") == b"class 1"
    again = ScenePredictor(make_model(label_values=[2, 5, 6]), processor).predict(tmp_path / f"out{suffix}")
    again.write(tmp_path / f"out2{suffix}")  # a record of names is replaced, not repeated
    assert len(laspy.read(tmp_path / f"out2{suffix}").header.vlrs) == len(after.header.vlrs)


@pytest.mark.parametrize("name", ["a.ply", "a.laz", "a.las", "a.txt", "a.csv", "a.npy"])
@pytest.mark.parametrize("far", [False, True])
def test_what_is_written_is_read_back(tmp_path, make_model, processor, scan, name, far):
    shift = np.array([400_000.0, 5_000_000.0, 10.0]) if far else np.zeros(3)
    scan = {"points": scan["points"].astype(np.float64) + shift, "colors": scan["colors"]}
    prediction = ScenePredictor(make_model(label_values=[1, 4, 9]), processor).predict(scan)
    prediction.write(tmp_path / name)
    found = read_scene(tmp_path / name)
    np.testing.assert_array_equal(found.labels, np.array([1, 4, 9])[prediction.labels])
    np.testing.assert_allclose(found.points + found.origin, scan["points"], atol=2e-4)
    if name == "a.ply":
        np.testing.assert_array_equal(found.colors, prediction.palette()[prediction.labels])
    elif name != "a.npy":
        np.testing.assert_array_equal(found.colors, scan["colors"])


def test_numbers_that_a_file_has_no_room_for(tmp_path, make_model, processor, scan):
    prediction = ScenePredictor(make_model(label_values=[1, 300, 301]), processor).predict(scan)
    with pytest.raises(ValueError, match="up to 30[01], and point format 7 has room for 0 to 255; write a .ply file"):
        prediction.write(tmp_path / "a.laz")
    with pytest.raises(ValueError, match="labelled scans are written as .las, .laz, .ply.*got .obj"):
        prediction.write(tmp_path / "a.obj")
    assert not list(tmp_path.iterdir())


def test_labels_of_the_scan_are_not_needed(tmp_path, make_model, processor, scan):
    # Two columns could be labels: of no account for a prediction.
    write_point_cloud(tmp_path / "a.ply", scan["points"], scan["colors"], scan["labels"])
    data = (
        (tmp_path / "a.ply").read_bytes().replace(b"property int label", b"property float part\nproperty float class")
    )
    (tmp_path / "b.ply").write_bytes(data[: data.index(b"end_header\n") + 11] + b"".join(
        data[data.index(b"end_header\n") + 11 :][19 * i : 19 * i + 19] + b"\0" * 4 for i in range(5000)
    ))  # fmt: skip
    one, other = (ScenePredictor(make_model(), processor).predict(tmp_path / name) for name in ("a.ply", "b.ply"))
    np.testing.assert_array_equal(one.labels, other.labels)


def test_bad_scans_and_processors(make_model, processor, scan):
    predictor = ScenePredictor(make_model(), processor)
    points = scan["points"].copy()
    points[5] = np.nan
    with pytest.raises(ValueError, match="1 of 5000 points have NaN"):
        predictor.predict({**scan, "points": points})
    assert len(predictor.predict({**scan, "points": points}, drop_invalid=True).labels) == 4999
    with pytest.raises(ValueError, match="the model takes 6 features a voxel, and the processor gives"):
        ScenePredictor(make_model(), SceneProcessor())


def test_a_real_park_comes_out_labelled(tmp_path, make_model):
    if not SCENES.is_dir():
        pytest.skip("needs the scans of data/scenes")
    predictor = ScenePredictor(make_model(), SceneProcessor(0.2, ["coordinates", "colors"]), max_voxels=20_000)
    prediction = predictor.predict(SCENES / "forest_park" / "Area_1" / "Park_1")
    prediction.write(tmp_path / "park.laz")
    assert len(prediction.labels) == 235_967 == laspy.read(tmp_path / "park.laz").header.point_count
