from types import SimpleNamespace

import numpy as np
import pytest
import torch

from point_peft_hf.data.scenes import Scene, SceneAugmentation, SceneCollator, SceneDataset, SceneProcessor
from point_peft_hf.data.scenes.augmentation import crop

STILL = SceneAugmentation(
    rotation=0, tilt=0, scale=(1, 1), flip=0, jitter=0, dropout=0, contrast=0, brightness=0, color_noise=0
)


@pytest.fixture
def dataset(scene, rng):
    other = Scene.make(rng.uniform(0, 1, (30, 3)), np.full((30, 3), 7), np.ones((30, 3)), np.arange(30) % 3)
    return SceneDataset([scene, other], ["a", "b", "c"])


def collate(dataset, epoch, order=(0, 1), augmentation=None):
    collator = SceneCollator(
        SceneProcessor(0.2), augmentation or SceneAugmentation(), epoch=SimpleNamespace(seed=3, epoch=epoch)
    )
    return collator([dataset[index] for index in order])


def test_evaluation_gives_the_labels_of_all_points(dataset):
    batch = SceneCollator(SceneProcessor(0.5), all_points=True)([dataset[0], dataset[1]])
    assert len(batch["point_labels"]) == len(batch["inverse"]) == 90
    torch.testing.assert_close(batch["point_labels"][60:], torch.arange(30) % 3)
    assert len(batch["labels"]) == len(batch["coordinates"]) < 90
    with pytest.raises(ValueError, match="all_points is for scenes as they are"):
        SceneCollator(SceneProcessor(), SceneAugmentation(), all_points=True)


def test_draws_depend_on_seed_epoch_and_scene_alone(dataset):
    first, again, later = collate(dataset, 0), collate(dataset, 0, (1, 0)), collate(dataset, 1)
    other = first["features"][first["batch_index"] == 1]
    torch.testing.assert_close(other, again["features"][again["batch_index"] == 0], rtol=0, atol=0)
    assert not torch.equal(first["features"], later["features"][: len(first["features"])])


def test_without_epoch_the_generator_of_torch_decides(dataset):
    collator = SceneCollator(SceneProcessor(0.2), SceneAugmentation())
    batches = []
    for _ in range(2):
        torch.manual_seed(5)
        batches.append(collator([dataset[0]])["coordinates"])
    torch.testing.assert_close(*batches, rtol=0, atol=0)
    assert not torch.equal(batches[0], collator([dataset[0]])["coordinates"])


def test_no_change_changes_the_order_only(scene, rng):
    changed = STILL(scene, rng, 0.1)
    order = np.lexsort(scene.colors.T)
    other = np.lexsort(changed.colors.T)
    np.testing.assert_allclose(
        changed.points[other], scene.points[order] - (scene.points.min(0) + scene.points.max(0)) / 2, atol=1e-6
    )
    np.testing.assert_array_equal(changed.labels[other], scene.labels[order])


def test_turned_normals_go_with_the_points(rng):
    # A plane whose normals are known: distances along the normal stay.
    points = np.column_stack([rng.uniform(0, 3, (50, 2)), np.zeros(50)])
    scene = Scene.make(points, normals=np.tile([0, 0, 1.0], (50, 1)))
    changed = SceneAugmentation(jitter=0, tilt=1.0)(scene, rng, 0.1)
    heights = (changed.points * changed.normals).sum(axis=1)
    np.testing.assert_allclose(heights, heights[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(changed.normals, axis=1), 1, atol=1e-5)


def test_up_stays_up_and_sizes_are_in_bounds(scene, rng):
    for _ in range(10):
        changed = SceneAugmentation(tilt=0, jitter=0, dropout=0)(scene, rng, 0.1)
        ratio = np.ptp(changed.points[:, 2]) / np.ptp(scene.points[:, 2])
        assert 0.9 <= ratio <= 1.1
        assert changed.colors.dtype == np.uint8


def test_dropped_colors_are_zeros_without_a_warning(dataset, recwarn):
    batch = collate(dataset, 0, augmentation=SceneAugmentation(drop_colors=1.0))
    assert not batch["features"][:, 3:6].any()
    assert batch["features"][:, 6:].any()
    assert not [warning for warning in recwarn if "colours" in str(warning.message)]


def test_crop_keeps_what_is_near(rng):
    points = rng.uniform(0, 10, (4000, 3)) * [1, 1, 0]
    scene = Scene.make(points, labels=np.arange(4000))
    small = crop(scene, rng, 200, 0.1)
    assert len(small) == 200
    assert np.ptp(small.points[:, 0]) < 6
    assert len(np.unique(small.labels)) == 200
    assert crop(scene, rng, 4000, 0.1) is scene


def test_a_tile_may_have_a_single_point(dataset):
    item = {name: part[:1] if name != "sample_ids" else part for name, part in dataset[0].items()}
    assert len(SceneCollator(SceneProcessor(0.2))([item])["coordinates"]) == 1


def test_items_without_labels(rng):
    batch = SceneCollator(SceneProcessor(0.2, ["coordinates"]), all_points=True)([{"points": rng.normal(size=(9, 3))}])
    assert "labels" not in batch
    assert "point_labels" not in batch
