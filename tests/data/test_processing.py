import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, PreTrainedConfig

from point_peft_hf.data import PointCloudError, PointCloudProcessor, processing, register_processor, write_point_cloud

SQUARE = np.array([[0, 0, 0], [4, 0, 0], [4, 0, 4], [0, 0, 4]], dtype=np.float32)


@pytest.fixture
def cloud(rng):
    return rng.normal(size=(300, 3)).astype(np.float32) * 3 + [10, 20, 30]


def test_values_by_hand():
    batch = PointCloudProcessor(num_points=4)(SQUARE)
    assert isinstance(batch, BatchFeature)
    assert list(batch) == ["points"]
    assert batch.points.dtype == torch.float32
    half = 2 / 8**0.5
    expected = [[-half, 0, -half], [half, 0, -half], [half, 0, half], [-half, 0, half]]
    torch.testing.assert_close(batch["points"], torch.tensor([expected]))
    centred = PointCloudProcessor(num_points=4, normalize="center")(SQUARE).points[0]
    torch.testing.assert_close(centred, torch.from_numpy(SQUARE) - torch.tensor([2.0, 0, 2]))
    kept = PointCloudProcessor(num_points=4, normalize="none")(SQUARE).points[0]
    torch.testing.assert_close(kept, torch.from_numpy(SQUARE))


@pytest.mark.parametrize(("up_axis", "expected"), [("y", [1, 2, 3]), ("z", [1, 3, -2]), ("x", [-2, 1, 3])])
def test_up_axis_becomes_y_by_a_rotation(up_axis, expected):
    processor = PointCloudProcessor(num_points=4, normalize="none", up_axis=up_axis)
    points = processor(np.array([[1.0, 2, 3], [1, 0, 0], [0, 1, 0], [0, 0, 1]])).points[0]
    torch.testing.assert_close(points[0], torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(torch.linalg.det(points[1:]), torch.tensor(1.0))  # not mirrored
    assert points[1 + "xyz".index(up_axis)].tolist() == [0, 1, 0]


@pytest.mark.parametrize("sampling", ["random", "fps", "first"])
def test_all_kinds_of_input_give_the_same(tmp_path, cloud, sampling):
    processor = PointCloudProcessor(num_points=64, sampling=sampling)
    cloud = cloud.astype(np.float32)
    write_point_cloud(tmp_path / "a.ply", cloud)
    expected = processor(cloud).points
    assert expected.shape == (1, 64, 3)
    tensor = torch.from_numpy(cloud)
    for given in (
        tmp_path / "a.ply",
        str(tmp_path / "a.ply"),
        [tmp_path / "a.ply"],
        tensor,
        [cloud],
        tensor[None],
        cloud[None],
        np.hstack([cloud, cloud]),
        cloud.tolist(),
        [cloud.tolist()],
    ):
        torch.testing.assert_close(processor(given).points, expected)
    together = processor([tmp_path / "a.ply", cloud[:50], tensor, cloud[:200]]).points
    assert together.shape == (4, 64, 3)
    torch.testing.assert_close(together[[0]], expected)  # whatever else is in the batch
    torch.testing.assert_close(together[[2]], expected)
    assert isinstance(processor(cloud, return_tensors="np")["points"], np.ndarray)


def test_unit_sphere(cloud):
    for number in (64, 300, 1000):
        points = PointCloudProcessor(num_points=number)(cloud).points[0]
        assert points.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6)
        if number <= 300:
            torch.testing.assert_close(points.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


def test_small_clouds_repeat_their_points():
    points = PointCloudProcessor(num_points=10, normalize="none")(SQUARE).points[0]
    torch.testing.assert_close(points, torch.from_numpy(SQUARE)[torch.arange(10) % 4])


def test_fps_covers_the_cloud_and_thins_large_ones(monkeypatch, rng):
    line = np.zeros((1000, 3), np.float32)
    line[:, 0] = np.arange(1000)
    fps = PointCloudProcessor(num_points=3, normalize="none", sampling="fps")
    assert sorted(fps(line).points[0, :, 0].tolist()) == [0, 499, 999]
    monkeypatch.setattr(processing, "FPS_MAX_POINTS", 100)
    shuffled = rng.permutation(line)
    points = fps(shuffled).points[0, :, 0]
    assert points.max() - points.min() > 800
    torch.testing.assert_close(fps(shuffled).points[0, :, 0], points)


def test_seeds(cloud):
    processor = PointCloudProcessor(num_points=50)
    torch.testing.assert_close(processor(cloud).points, processor(cloud).points)
    assert not torch.equal(processor(cloud).points, PointCloudProcessor(num_points=50, seed=1)(cloud).points)
    training = PointCloudProcessor(num_points=50, seed=None)
    assert not torch.equal(training(cloud).points, training(cloud).points)
    first, second = (training([cloud, cloud], generator=torch.Generator().manual_seed(3)).points for _ in range(2))
    torch.testing.assert_close(first, second)
    assert not torch.equal(first[0], first[1])


def test_far_away_float64(rng):
    cloud = rng.normal(size=(100, 3))
    processor = PointCloudProcessor(num_points=100)
    far = processor(cloud + [5e5, 4e6, 100]).points
    torch.testing.assert_close(far, processor(cloud).points, atol=1e-5, rtol=0)


def test_part_labels_follow_their_points(cloud):
    labels = np.arange(300)
    for sampling in ("random", "fps", "first"):
        processor = PointCloudProcessor(num_points=20, normalize="none", sampling=sampling)
        batch = processor([cloud, cloud[:10]], part_labels=[labels, torch.arange(10)])
        assert batch["part_labels"].shape == (2, 20)
        for points, parts in zip(batch["points"], batch["part_labels"], strict=True):
            np.testing.assert_allclose(points, cloud[parts.numpy()], rtol=1e-6)
    for wrong in ([labels], [labels, labels], [labels, labels[:10, None]]):
        with pytest.raises(PointCloudError, match="part_labels"):
            processor([cloud, cloud[:10]], part_labels=wrong)


def test_nan(cloud):
    cloud[7, 1] = np.nan
    processor = PointCloudProcessor(num_points=299, normalize="none")
    with pytest.raises(PointCloudError, match="cloud 1: 1 of 300 points have NaN .* drop_invalid=True"):
        processor([cloud[8:], cloud])
    batch = processor(cloud, drop_invalid=True, part_labels=[np.arange(300)])
    assert batch["part_labels"].tolist() == [[*range(7), *range(8, 300)]]
    assert torch.isfinite(batch["points"]).all()


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ([], "clouds is empty"),
        ([SQUARE, SQUARE[:1]], "cloud 1: holds 1 point; a cloud has at least 2"),
        ([SQUARE, SQUARE[:0]], "cloud 1: holds 0 points"),
        ([SQUARE, SQUARE[:, :2]], r"cloud 1: must be of shape \(num_points, 3\), got \(4, 2\)"),
        (np.zeros((2, 3, 1024)), "cloud 0: .* looks transposed"),
        (np.zeros(3), r"got \(3,\)"),
        (np.zeros((2, 2, 2, 3)), r"got \(2, 2, 2, 3\)"),
        ([SQUARE, [[1, 2, 3], [4, 5]]], "cloud 1: rows of different lengths"),
        ([SQUARE, [["a", "b", "c"]]], "cloud 1: must be of real numbers"),
        ([SQUARE, np.zeros((9, 3), bool)], "cloud 1: must be of real numbers"),
        (np.ones((9, 3)), "cloud 0: all its points are in one place"),
        ({"points": SQUARE}, "got dict"),
        (7, "got int"),
        (["nowhere.ply"], "nowhere.ply: no such file"),
    ],
)
def test_unusable_clouds(clouds, message):
    with pytest.raises(PointCloudError, match=message):
        PointCloudProcessor(num_points=4)(clouds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 0}, "num_points must be an integer of at least 1, got 0"),
        ({"num_points": 10.5}, "num_points"),
        ({"normalize": "sphere"}, "normalize must be one of unit_sphere, center, none, got 'sphere'"),
        ({"up_axis": "w"}, "up_axis"),
        ({"sampling": "grid"}, "sampling must be one of random, fps, first"),
        ({"seed": -1}, "seed"),
        ({"num_point": 10}, "has no field num_point; its fields are num_points"),
    ],
)
def test_unusable_fields(options, message):
    with pytest.raises(ValueError, match=message):
        PointCloudProcessor(**options)
    with pytest.raises(ValueError, match="return_tensors"):
        PointCloudProcessor()(SQUARE, return_tensors="tf")


class SomeConfig(PreTrainedConfig):
    model_type = "some_points"


def test_saved_and_found_by_the_auto_classes(tmp_path, cloud):
    register_processor(SomeConfig)
    processor = PointCloudProcessor(num_points=77, normalize="center", up_axis="z", sampling="fps", seed=5)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        "feature_extractor_type": "PointCloudProcessor",
        "processor_class": "PointCloudProcessor",
        "num_points": 77,
        "normalize": "center",
        "up_axis": "z",
        "sampling": "fps",
        "seed": 5,
    }
    for auto_class in (PointCloudProcessor, AutoProcessor, AutoFeatureExtractor):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is PointCloudProcessor
        assert loaded.to_dict() == processor.to_dict()
        torch.testing.assert_close(loaded(cloud).points, processor(cloud).points)
    assert PointCloudProcessor.from_pretrained(tmp_path, num_points=5).num_points == 5
    assert PointCloudProcessor.from_pretrained(tmp_path / "preprocessor_config.json").num_points == 77


def test_half_precision_and_integers(cloud):
    processor = PointCloudProcessor(num_points=4)
    expected = processor(SQUARE).points
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        found = processor(torch.from_numpy(SQUARE).to(dtype)).points
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


def test_input_is_left_as_it_is(cloud):
    before = cloud.copy()
    PointCloudProcessor(num_points=300)(cloud)
    np.testing.assert_array_equal(cloud, before)
