import numpy as np
import pytest

from point_peft_hf.data import HELD_OUT_CLASSES, PointCloudDataset, stratified_split, write_point_cloud
from point_peft_hf.training import PointCloudArguments, load_segmentation_task, load_task, load_task_of
from point_peft_hf.training.task import cut_splits


@pytest.fixture
def rng_points():
    return np.random.default_rng(0).normal(size=(50, 3))


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


@pytest.mark.parametrize(
    ("counts", "maximum", "left"),
    [
        ((10, 10, 1), 10, [4, 5, 1]),
        ((10, 1, 1, 1), 6, [3, 1, 1, 1]),
        ((4, 1, 1, 1), 3, [1, 1, 1, 0]),
        ((1, 1, 1), 2, [1, 1, 0]),
    ],
)
def test_a_limit_keeps_classes_of_one_cloud(counts, maximum, left):
    labels = np.repeat(np.arange(len(counts)), counts)
    dataset = PointCloudDataset(np.zeros((len(labels), 8, 3), np.float32), labels, list("abcd")[: len(counts)])
    splits = {"train": dataset, "validation": dataset, "test": dataset}
    options = {"validation_fraction": 0.2, "max_test_clouds": None, "seed": 0}
    first, second = (cut_splits(splits, "data", max_train_clouds=maximum, **options)[0] for _ in range(2))
    assert np.bincount(first.labels, minlength=len(counts)).tolist() == left
    assert np.array_equal(first.sample_ids, second.sample_ids)


def test_a_limit_draws_what_the_stratified_split_draws():
    """The clouds of recorded studies."""
    labels = np.repeat(np.arange(4), (20, 3, 2, 11))
    dataset = PointCloudDataset(np.zeros((36, 8, 3), np.float32), labels, list("abcd"))
    options = {"validation_fraction": 0.2, "max_test_clouds": 5, "seed": 3}
    _, _, test = cut_splits({"train": dataset, "test": dataset}, "data", max_train_clouds=None, **options)
    assert np.array_equal(test.sample_ids, stratified_split(labels, 5 / 36, seed=3)[1])


def test_a_folder_with_one_cloud_a_class_says_what_is_missing(tmp_path):
    for split in ("train", "test"):
        for name in ("bolt", "nut"):
            (tmp_path / split / name).mkdir(parents=True)
            write_point_cloud(tmp_path / split / name / "0.npy", np.random.default_rng(0).normal(size=(50, 3)))
    with pytest.raises(ValueError, match=r"validation split of .* is empty.*at least 2 training clouds"):
        load_task(str(tmp_path))


def test_one_class_is_no_classification(tmp_path):
    for index in range(5):
        (tmp_path / "bolt").mkdir(exist_ok=True)
        points, labels = np.random.default_rng(index).normal(size=(50, 3)), np.arange(50) % 2
        write_point_cloud(tmp_path / "bolt" / f"{index}.ply", points, labels=labels)
    with pytest.raises(ValueError, match="has the class 'bolt' alone; .* needs 2 or more. Expected is a folder for"):
        load_task(str(tmp_path))
    assert load_segmentation_task(str(tmp_path)).category_names == ["bolt"]


def test_files_that_cannot_be_read_may_be_left_out(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("bolt", "nut"):
        (tmp_path / name).mkdir()
        for index in range(5):
            labels = np.zeros(50, dtype=int)
            write_point_cloud(tmp_path / name / f"{index}.ply", rng.normal(size=(50, 3)), labels=labels)
    (tmp_path / "nut" / "broken.ply").write_text("no cloud")
    for task in ("classification", "segmentation"):
        arguments = PointCloudArguments(data=str(tmp_path), task=task)
        with pytest.raises(ValueError, match="broken.ply: .* starts with 'ply'"):
            load_task_of(arguments)
        arguments.skip_bad_files = True
        with pytest.warns(UserWarning, match=r"1 of 11 files are skipped:\n.*broken.ply"):
            loaded = load_task_of(arguments)
        assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 10


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_points_that_are_not_finite_are_left_out_when_asked_for(tmp_path, rng_points, task):
    for name in ("bolt", "nut"):
        for index in range(5):
            rows = np.c_[rng_points, np.arange(50) % 2]
            rows[::10, 1] = np.nan
            (tmp_path / name).mkdir(exist_ok=True)
            np.savetxt(
                tmp_path / name / f"{index}.txt", rows + 0.01 * index * (np.arange(4) < 3), header="x y z label"
            )
    arguments = PointCloudArguments(data=str(tmp_path), task=task)
    with pytest.raises(ValueError, match="5 of 50 points have NaN .*--drop_invalid"):
        load_task_of(arguments)
    arguments.drop_invalid = True
    loaded = load_task_of(arguments)
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 10
    assert {len(item["points"]) for item in loaded.train} == {45}
