"""Tests of the procedural shapes: determinism, geometry, variety, corruptions and errors."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from point_peft_hf.data import procedural
from point_peft_hf.data.procedural import (
    ALL_CLASSES,
    ASSEMBLY,
    BASE_CLASSES,
    CORRUPTION_PRESETS,
    HELD_OUT_CLASSES,
    ProceduralShapes,
    ScanCorruption,
    Surface,
    add_outliers,
    cut_holes,
    get_corruption,
    jitter,
    normalize_unit_sphere,
    remove_hidden_points,
    resample,
    rotate_about_up,
    sample_shape,
    thin_density,
    tilt,
)
from point_peft_hf.data.procedural.assemblies import assembly

TWO = ["mug", "stool"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------------- classes and single shapes


def test_class_lists_are_disjoint_and_complete():
    assert ALL_CLASSES == BASE_CLASSES + HELD_OUT_CLASSES
    assert len(set(ALL_CLASSES)) == len(ALL_CLASSES) >= 24
    assert not set(BASE_CLASSES) & set(HELD_OUT_CLASSES)
    assert ASSEMBLY not in ALL_CLASSES
    assert 10 <= len(HELD_OUT_CLASSES) <= 12


@pytest.mark.parametrize("class_name", [*ALL_CLASSES, ASSEMBLY])
def test_shapes_fill_the_unit_sphere_and_vary(class_name):
    proportions = []
    for seed in range(20):
        points = sample_shape(class_name, 256, rng(seed))
        assert points.shape == (256, 3)
        assert points.dtype == np.float32
        assert np.isfinite(points).all()
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-5)
        extent = np.ptp(points, axis=0)
        proportions.append(extent / np.linalg.norm(extent))
    proportions = np.array(proportions)
    distance = np.linalg.norm(proportions[:, None] - proportions[None], axis=-1)
    # The sampling alone moves the proportions by about 0.01.
    assert distance[np.triu_indices(20, 1)].mean() > 0.04


def test_sample_shape_follows_its_generator():
    np.testing.assert_array_equal(sample_shape("car", 64, rng(3)), sample_shape("car", 64, 3))
    assert not np.array_equal(sample_shape("car", 64, rng(3)), sample_shape("car", 64, rng(4)))
    assert sample_shape("car", 1).shape == (1, 3)


def test_some_assemblies_are_symmetric_and_some_are_not():
    mirrored = 0
    for seed in range(60):
        points = assembly(rng(seed)).sample(4096, rng(seed))
        twin = points * [-1.0, 1.0, 1.0]
        nearest = np.linalg.norm(points[::16, None] - twin[None], axis=-1).min(axis=1)
        mirrored += nearest.max() < 0.15 * np.ptp(points, axis=0).max()
    assert 15 <= mirrored <= 55


def _d2(points: np.ndarray) -> np.ndarray:
    """Histogram of the distances between fixed random pairs, a classic descriptor of the shape."""
    i, j = rng(0).integers(0, len(points), (2, 2000))
    heights = np.histogram(points[:, 1], 12, (-1, 1))[0] / len(points)
    return np.sqrt(
        np.concatenate([np.histogram(np.linalg.norm(points[i] - points[j], axis=1), 24, (0, 2))[0] / 2000, heights])
    )


@pytest.mark.parametrize(("corruption", "floor"), [("clean", 0.6), ("scan", 0.35)])
def test_classes_are_told_apart_by_their_nearest_neighbour(corruption, floor):
    per_class, classes = 10, list(ALL_CLASSES)
    data = ProceduralShapes(classes, per_class, 384, corruption=corruption)
    features = np.array([_d2(data[i]["points"].numpy()) for i in range(len(data))])
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    accuracy = (data.labels[distance.argmin(axis=1)] == data.labels).mean()
    assert accuracy > floor  # chance is 0.026
    assert accuracy < 0.98  # a descriptor of 36 numbers must not solve the task


# ---------------------------------------------------------------------------- primitives


def test_a_box_is_sampled_in_proportion_to_its_face_areas():
    surface = Surface()
    surface.box((0.0, 0.0, 0.0), (2.0, 1.0, 1.0))
    points = surface.sample(20000, rng())
    on = [np.isclose(np.abs(points[:, axis]), half).mean() for axis, half in enumerate((1.0, 0.5, 0.5))]
    # Areas: 2 faces of 1 across x, 2 of 2 across y and 2 of 2 across z, of 10 in all.
    np.testing.assert_allclose(on, [0.2, 0.4, 0.4], atol=0.01)
    top = points[np.isclose(points[:, 1], 0.5)]
    assert np.histogram(top[:, 0], 4, (-1, 1))[0] / len(top) == pytest.approx(np.full(4, 0.25), abs=0.02)


def test_round_primitives_are_uniform_by_area():
    disc = Surface()
    disc.lathe([(0.0, 0.0), (2.0, 0.0)])
    radius = np.linalg.norm(disc.sample(20000, rng())[:, [0, 2]], axis=1)
    assert (radius < 1.0).mean() == pytest.approx(0.25, abs=0.01)
    cone = Surface()
    cone.frustum((0.0, 0.0, 0.0), (0.0, 3.0, 0.0), 1.0, 0.0, caps=False)
    assert (cone.sample(20000, rng())[:, 1] > 1.5).mean() == pytest.approx(0.25, abs=0.01)
    sphere = Surface()
    sphere.ellipsoid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    points = sphere.sample(20000, rng())
    # Archimedes: equal bands of height have equal areas. The sphere is a stack of ten frusta.
    assert (np.abs(points[:, 1]) < 0.5).mean() == pytest.approx(0.5, abs=0.015)
    assert np.linalg.norm(points, axis=1).min() > 0.98


def test_a_rotated_copy_keeps_the_shape():
    part = Surface()
    part.box((0.0, 0.0, 0.0), (2.0, 0.2, 0.2))
    part.frustum((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), 0.1)
    part.plate((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.1))
    whole = Surface()
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    whole.add(part, quarter, (0.0, 0.0, 5.0))
    expected = part.sample(500, rng()) @ quarter.T + [0.0, 0.0, 5.0]
    np.testing.assert_allclose(whole.sample(500, rng()), expected, atol=1e-12)


def test_a_surface_without_area_is_refused():
    with pytest.raises(ValueError, match="no area"):
        Surface().sample(8, rng())


# ---------------------------------------------------------------------------- corruptions


def test_hidden_points_of_a_sphere_are_its_far_side():
    sphere = Surface()
    sphere.ellipsoid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    points = sphere.sample(4096, rng())
    for seed in range(5):
        seen = remove_hidden_points(points, rng(seed))
        assert 0.45 < len(seen) / len(points) < 0.65
        toward = seen.mean(axis=0) / np.linalg.norm(seen.mean(axis=0))
        assert (seen @ toward > -0.2).mean() > 0.9
    assert len(remove_hidden_points(points, rng(), 0.5)) > len(remove_hidden_points(points, rng(), 1.0))


def test_a_slanted_plate_stays_whole():
    plate = Surface()
    plate.plate((-1.0, 0.0, -1.0), (2.0, 0.0, 0.0), (0.0, 0.0, 2.0))
    points = plate.sample(4096, rng())
    shares = [len(remove_hidden_points(points, rng(seed))) / 4096 for seed in range(20)]
    assert np.median(shares) > 0.98


def test_rigid_corruptions_keep_distances_and_the_up_axis():
    points = rng().normal(size=(50, 3))
    turned = rotate_about_up(points, rng())
    np.testing.assert_allclose(turned[:, 1], points[:, 1])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1))
    assert not np.allclose(turned, points)
    up = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for seed in range(10):
        leaning = tilt(up, rng(seed), 15.0)
        np.testing.assert_allclose(leaning @ leaning.T, np.eye(3), atol=1e-12)
        assert math.degrees(math.acos(leaning[0, 1])) <= 15.0


def test_removing_corruptions_remove_what_they_say():
    points = rng().normal(size=(2000, 3))
    assert len(cut_holes(points, rng(), 0.2, 2)) == 1600
    assert len(cut_holes(points, rng(), 0.0)) == 2000
    assert len(thin_density(points, rng(), 0.0)) == 2000
    # A symmetric cloud lies at 0.5 of its depth on average, so about 0.4 of it is lost.
    assert len(thin_density(points, rng(), 0.8)) == pytest.approx(1200, abs=100)
    assert len(thin_density(points[:1], rng(), 1.0)) == 1


def test_noise_and_outliers_have_the_stated_size():
    points = np.zeros((4000, 3))
    noisy = jitter(points, rng(), 0.02)
    assert noisy.std() == pytest.approx(0.02, rel=0.05)
    assert np.abs(noisy).max() <= 0.06
    cloud = rng().normal(size=(1000, 3))
    changed = (add_outliers(cloud, rng(), 0.05) != cloud).any(axis=1)
    assert changed.sum() == 50
    assert add_outliers(cloud, rng(), 0.0) is cloud


def test_resample_pads_by_repetition():
    points = np.arange(12.0).reshape(4, 3)
    assert len(np.unique(resample(points, rng(), 4), axis=0)) == 4
    padded = resample(points, rng(), 10)
    assert padded.shape == (10, 3)
    assert len(np.unique(padded, axis=0)) == 4


@pytest.mark.parametrize("name", CORRUPTION_PRESETS)
@pytest.mark.parametrize("class_name", ["bicycle", "bowl", "sofa"])
def test_presets_return_the_fixed_number_of_points(name, class_name):
    preset = get_corruption(name)
    cloud = preset.apply(sample_shape(class_name, 512 * preset.oversample, rng()), rng(1), 512)
    assert cloud.shape == (512, 3)
    assert cloud.dtype == np.float32
    assert np.isfinite(cloud).all()
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(
        cloud, preset.apply(sample_shape(class_name, 512 * preset.oversample, rng()), rng(1), 512)
    )


def test_clean_is_the_shape_itself_and_normalisation_is_optional():
    points = sample_shape("mug", 128, rng())
    clean = get_corruption("clean").apply(points, rng(), 128)
    assert {tuple(p) for p in clean.round(4).tolist()} == {tuple(p) for p in points.round(4).tolist()}
    seen = ScanCorruption(partial_view=1.0, normalize=False).apply(sample_shape("bottle", 4096, rng()), rng(), 256)
    assert np.linalg.norm(seen.mean(axis=0)) > 0.02
    with_defaults = ScanCorruption(partial_view=1.0)
    assert get_corruption(with_defaults) is with_defaults


def test_normalising_one_repeated_point_gives_zeros():
    np.testing.assert_array_equal(normalize_unit_sphere(np.full((3, 3), 7.0)), np.zeros((3, 3)))


# ---------------------------------------------------------------------------- dataset


def test_items_have_the_fields_of_a_batch():
    data = ProceduralShapes(TWO, clouds_per_class=3, num_points=64)
    assert len(data) == 6
    assert data.class_names == TWO
    assert data.num_classes == 2
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [0, 1] * 3
    for index in range(6):
        item = data[index]
        assert set(item) == {"points", "labels", "sample_ids"}
        assert item["points"].dtype == torch.float32
        assert item["points"].shape == (64, 3)
        assert (item["labels"], item["sample_ids"]) == (data.labels[index], index)
        assert type(item["labels"]) is int
    torch.testing.assert_close(data[-1]["points"], data[5]["points"])
    assert data[-1]["sample_ids"] == 5
    with pytest.raises(IndexError, match="6 is out of range"):
        data[6]


@pytest.mark.parametrize("corruption", ["clean", "scan"])
def test_a_cloud_depends_only_on_seed_split_class_and_number(corruption):
    options = {"num_points": 64, "corruption": corruption}
    wide = ProceduralShapes(["sofa", "mug", "stool", "car"], clouds_per_class=4, **options)
    narrow = ProceduralShapes(["stool", "sofa"], clouds_per_class=3, **options)
    for number in (2, 0, 1):
        for name in ("sofa", "stool"):
            a = wide[number * 4 + wide.class_names.index(name)]["points"]
            b = narrow[number * 2 + narrow.class_names.index(name)]["points"]
            assert torch.equal(a, b)


def test_seeds_splits_and_numbers_give_different_clouds():
    clouds = [
        ProceduralShapes(["mug"], 2, 64, seed=seed, split=split)[index]["points"].numpy().tobytes()
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for index in (0, 1)
    ]
    assert len(set(clouds)) == len(clouds)
    assert torch.equal(
        ProceduralShapes(["mug"], 1, 64, split="val")[0]["points"],
        ProceduralShapes(["mug"], 1, 64, split="validation")[0]["points"],
    )


def test_clouds_are_the_same_in_another_process():
    # The folder is imported as a package of its own: importing its parents takes several seconds.
    code = (
        "import sys, zlib; sys.path.insert(0, sys.argv[1]); from procedural import ProceduralShapes as P; "
        "d = P(['mug', 'stool'], 2, 64, seed=7, corruption='scan'); "
        "print([zlib.crc32(d[i]['points'].numpy().tobytes()) for i in (3, 1)])"
    )
    folder = Path(procedural.__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )
    data = ProceduralShapes(TWO, 2, 64, seed=7, corruption="scan")
    assert result.stdout.strip() == str([zlib.crc32(data[i]["points"].numpy().tobytes()) for i in (3, 1)])


def test_workers_do_not_change_the_clouds():
    data = ProceduralShapes(TWO, 4, 64, corruption="scan")
    alone = torch.cat([batch["points"] for batch in DataLoader(data, batch_size=2)])
    fresh = ProceduralShapes(TWO, 4, 64, corruption="scan")
    workers = torch.cat([batch["points"] for batch in DataLoader(fresh, batch_size=2, num_workers=2)])
    assert torch.equal(alone, workers)


def test_materialising_and_caching_do_not_change_the_clouds():
    lazy = ProceduralShapes(TWO, 3, 64, cache=False)
    cached = ProceduralShapes(TWO, 3, 64)
    cached[1]["points"].zero_()  # an in-place transform must not reach the cache
    stored = ProceduralShapes(TWO, 3, 64)
    stored[0]
    assert stored.materialize() is stored
    assert stored.materialize() is stored
    stored[0]["points"].zero_()
    copied = pickle.loads(pickle.dumps(stored))
    for index in range(6):
        for other in (cached, stored, copied):
            assert torch.equal(lazy[index]["points"], other[index]["points"])


# ---------------------------------------------------------------------------- errors


def test_unknown_class_names_the_closest_one():
    with pytest.raises(ValueError, match="Unknown class 'mugg'.*Did you mean 'mug'.*Known classes: airplane"):
        sample_shape("mugg", 16, rng())
    with pytest.raises(ValueError, match="Unknown class 'stol'"):
        ProceduralShapes(["mug", "stol"])


@pytest.mark.parametrize("num_points", [0, -1, 2.5, True])
def test_bad_number_of_points(num_points):
    with pytest.raises(ValueError, match="num_points must be an integer of at least 1"):
        sample_shape("mug", num_points, rng())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": []}, "class_names is empty"),
        ({"class_names": "mug"}, "sequence of names, got the string 'mug'"),
        ({"class_names": ["mug", "mug"]}, "repeats mug"),
        ({"clouds_per_class": 0}, "clouds_per_class must be .* got 0"),
        ({"num_points": 0}, "num_points must be .* got 0"),
        ({"seed": -1}, "seed must be .* got -1"),
        ({"split": "trian"}, "Unknown split 'trian'"),
        ({"corruption": "scna"}, "Unknown corruption 'scna'. Did you mean 'scan'"),
        ({"corruption": None}, "Unknown corruption None"),
    ],
)
def test_bad_dataset_options(options, message):
    with pytest.raises(ValueError, match=message):
        ProceduralShapes(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partial_view": 1.5}, "partial_view must be between 0 and 1, got 1.5"),
        ({"noise": -0.1}, "noise must be"),
        ({"noise": math.nan}, "noise must be"),
        ({"noise": math.inf}, "noise must be"),
        ({"holes": 1.0}, "holes must be"),
        ({"rotation": 200.0}, "rotation must be between 0 and 180"),
        ({"oversample": 0}, "oversample must be"),
        ({"oversample": 2.5}, "oversample must be"),
    ],
)
def test_bad_corruption_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScanCorruption(**options)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (rotate_about_up, 181.0),
        (tilt, -1.0),
        (remove_hidden_points, 1.1),
        (cut_holes, 1.0),
        (thin_density, -0.1),
        (jitter, math.inf),
        (add_outliers, 2.0),
    ],
)
def test_bad_severities(function, value):
    with pytest.raises(ValueError, match=f"must be between 0 and .* got {value}"):
        function(np.zeros((8, 3)), rng(), value)


def test_bad_clouds_for_a_corruption():
    with pytest.raises(ValueError, match=r"shape \(M, 3\).*got \(4, 2\)"):
        ScanCorruption().apply(np.zeros((4, 2)), rng(), 4)
    with pytest.raises(ValueError, match="num_points must be"):
        ScanCorruption().apply(np.zeros((4, 3)), rng(), 0)
