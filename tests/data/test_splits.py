import numpy as np
import pytest

from point_peft_hf.data import PointCloudDataset, PointCloudError, few_shot_fold, stratified_split
from point_peft_hf.data.splits import few_shot_indices


def test_split_by_class():
    labels = np.repeat([3, 0, 7, 5], [10, 2, 1, 100])
    first, second = stratified_split(labels, 0.2, seed=0)
    assert first.dtype == second.dtype == np.int64
    assert sorted([*first, *second]) == list(range(113))
    assert {label: int((labels[second] == label).sum()) for label in (3, 0, 7, 5)} == {3: 2, 0: 1, 7: 0, 5: 20}
    assert (np.diff(first) > 0).all()
    again = stratified_split(labels.tolist(), 0.2, seed=0)
    np.testing.assert_array_equal(again[1], second)
    assert not np.array_equal(stratified_split(labels, 0.2, seed=1)[1], second)
    for fraction in (0.001, 0.999):
        for part in stratified_split(labels, fraction, seed=0):
            assert {3, 0, 5} <= set(labels[part])
    assert [len(part) for part in stratified_split([], 0.5, seed=0)] == [0, 0]


@pytest.mark.parametrize(
    ("labels", "fraction"), [([0, 1], 0.0), ([0, 1], 1), ([0.5], 0.5), ([[0, 1]], 0.5), (["a"], 0.5)]
)
def test_unusable_split(labels, fraction):
    with pytest.raises(ValueError, match="fraction must be|labels must be"):
        stratified_split(labels, fraction, seed=0)


LABELS = np.repeat(np.arange(12), 35)


def test_few_shot_indices():
    fold = classes, train, test = few_shot_indices(LABELS, way=5, shot=10)
    assert [len(part) for part in fold] == [5, 50, 100]
    assert not set(train) & set(test)
    np.testing.assert_array_equal(LABELS[train], np.repeat(classes, 10))
    np.testing.assert_array_equal(LABELS[test], np.repeat(classes, 20))
    again = few_shot_indices(LABELS.tolist(), way=5, shot=10)
    for first, second in zip(fold, again, strict=True):
        np.testing.assert_array_equal(first, second)
    folds = [tuple(few_shot_indices(LABELS, 5, 10, fold=number)[1]) for number in range(10)]
    assert len(set(folds)) == 10
    assert tuple(few_shot_indices(LABELS, 5, 10, seed=1)[1]) not in folds


def test_published_fold_does_not_change():
    # The numbers that results are reported for: another draw would be another protocol.
    classes, train, _ = few_shot_indices(LABELS, way=5, shot=2, query=3, fold=4, seed=0)
    assert classes.tolist() == [2, 3, 4, 7, 9]
    assert train.tolist() == [99, 84, 119, 105, 155, 170, 251, 268, 320, 336]


def test_few_shot_data_sets():
    names = [f"class_{label}" for label in range(12)]
    clouds = np.arange(12 * 35, dtype=np.float32)[:, None, None] * np.ones((1, 4, 3), np.float32)
    dataset = PointCloudDataset(clouds, LABELS, names)
    splits = few_shot_fold(dataset, way=5, shot=10, fold=3)
    classes, train, test = few_shot_indices(LABELS, way=5, shot=10, fold=3)
    assert splits["train"].class_names == splits["test"].class_names == [names[label] for label in classes]
    for split, indices in (("train", train), ("test", test)):
        assert sorted(splits[split].sample_ids) == sorted(indices)
        for item in splits[split]:
            assert item["points"][0, 0] == item["sample_ids"]
            assert classes[item["labels"]] == LABELS[item["sample_ids"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 13, "shot": 10}, "needs 13 classes of 30 clouds or more; there are 12 such classes of 12"),
        ({"way": 5, "shot": 16}, "there are 0 such classes"),
        ({"way": 1, "shot": 10}, "way must be at least 2, got 1"),
        ({"way": 5, "shot": 0}, "shot must be"),
        ({"way": 5, "shot": 1, "fold": -1}, "fold must be"),
    ],
)
def test_unusable_few_shot(options, message):
    with pytest.raises(ValueError, match=message):
        few_shot_indices(LABELS, **options)
    assert issubclass(PointCloudError, ValueError)
