import numpy as np
import pytest

from point_peft_hf.data import HELD_OUT_CLASSES, write_point_cloud
from point_peft_hf.training import load_task


def test_the_validation_split_is_cut_from_the_training_clouds(tiny_task):
    assert tiny_task.class_names == list(HELD_OUT_CLASSES)
    train, validation = set(tiny_task.train.sample_ids), set(tiny_task.validation.sample_ids)
    assert not train & validation
    assert train | validation == set(range(5 * len(HELD_OUT_CLASSES)))
    assert set(tiny_task.train.labels) == set(tiny_task.validation.labels) == set(range(len(HELD_OUT_CLASSES)))


def test_the_cut_depends_on_its_seed_alone():
    first, second = (load_task(num_points=16, clouds_per_class=5) for _ in range(2))
    other = load_task(num_points=16, clouds_per_class=5, seed=1)
    assert np.array_equal(first.validation.sample_ids, second.validation.sample_ids)
    assert not np.array_equal(first.validation.sample_ids, other.validation.sample_ids)


def test_a_limit_keeps_all_classes():
    task = load_task(num_points=16, clouds_per_class=10, max_train_clouds=48, max_test_clouds=24)
    assert len(task.train) + len(task.validation) == 48
    assert len(task.test) == 24
    assert set(task.test.labels) == set(range(len(HELD_OUT_CLASSES)))


def test_a_folder_with_one_cloud_a_class_says_what_is_missing(tmp_path):
    for split in ("train", "test"):
        for name in ("bolt", "nut"):
            (tmp_path / split / name).mkdir(parents=True)
            write_point_cloud(tmp_path / split / name / "0.npy", np.random.default_rng(0).normal(size=(50, 3)))
    with pytest.raises(ValueError, match=r"validation split of .* is empty.*at least 2 training clouds"):
        load_task(str(tmp_path))
