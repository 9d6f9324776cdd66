import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from point_peft_hf.data import (
    PointCloudCollator,
    PointCloudDataset,
    PointCloudError,
    PointCloudProcessor,
    from_hf_dataset,
    get_augmentation,
    write_point_cloud,
)


@pytest.fixture
def clouds(rng):
    return rng.normal(size=(6, 20, 3)).astype(np.float32)


LABELS = [0, 1, 2, 0, 1, 2]
NAMES = ["chair", "lamp", "table"]


def test_items(clouds):
    dataset = PointCloudDataset(clouds, LABELS, NAMES)
    assert (len(dataset), dataset.num_classes, dataset.class_names, dataset.num_parts) == (6, 3, NAMES, None)
    assert dataset.labels.dtype == np.int64
    item = dataset[4]
    assert set(item) == {"points", "labels", "sample_ids"}
    assert item["points"].dtype == torch.float32
    np.testing.assert_array_equal(item["points"], clouds[4])
    assert (item["labels"], item["sample_ids"]) == (1, 4)
    assert type(item["labels"]) is type(item["sample_ids"]) is int
    assert dataset[-1]["sample_ids"] == 5
    item["points"].zero_()
    np.testing.assert_array_equal(dataset[4]["points"], clouds[4])
    assert len(list(dataset)) == 6
    with pytest.raises(IndexError, match="item 6 of a data set of 6 clouds"):
        dataset[6]


@pytest.mark.parametrize("kind", ["list", "paths", "float64"])
def test_kinds_of_clouds(clouds, tmp_path, kind):
    given = {"list": list(clouds), "float64": clouds.astype(np.float64)}.get(kind)
    if kind == "paths":
        given = [tmp_path / f"{index}.ply" for index in range(6)]
        for path, cloud in zip(given, clouds, strict=True):
            write_point_cloud(path, cloud)
    dataset = PointCloudDataset(given, LABELS, NAMES)
    for index in range(6):
        assert dataset[index]["points"].dtype == torch.float32
        np.testing.assert_array_equal(dataset[index]["points"], clouds[index])


def test_coordinates_far_from_the_origin(rng):
    """Maps in metres, where neighbours in float32 are half a metre apart."""
    near = rng.uniform(size=(2, 500, 3))
    clouds = near + [350000, 5600000, 100]
    rows = [{"points": cloud.tolist(), "label": label} for label, cloud in enumerate(clouds)]
    for dataset in (
        PointCloudDataset(clouds, [0, 1], NAMES[:2], num_points=100),
        from_hf_dataset(Rows(rows), num_points=100),
    ):
        with pytest.warns(UserWarning, match="far from the origin are shifted"):
            points = dataset[1]["points"].numpy()
        assert points.dtype == np.float32
        np.testing.assert_allclose(points, near[1][dataset._choose(500, 1)], atol=1e-6)


def test_shift_of_a_cloud_does_not_depend_on_the_points_that_stay(rng):
    cloud = np.concatenate([rng.uniform(size=(50, 3)) + 5600000, [[5600000.0] * 3]])
    near = PointCloudDataset([cloud], [0], ["a"], num_points=10)
    with pytest.warns(UserWarning, match="shifted"):
        np.testing.assert_allclose(near[0]["points"], cloud[near._choose(51, 0)] - 5600000, atol=1e-6)


def test_clouds_in_memory_are_passed_on_as_they_are(recwarn):
    cloud = np.array([[0, 0, 0], [np.nan, 1, 2], [100, 1, 3]])
    np.testing.assert_array_equal(PointCloudDataset([cloud], [0], ["a"])[0]["points"], cloud)
    assert not recwarn.list
    with pytest.raises(PointCloudError, match="cloud 0: coordinates up to 1e.200 are too large for float32"):
        PointCloudDataset([cloud * 1e198], [0], ["a"])[0]


def test_num_points(clouds):
    ragged = [cloud[: 5 + 3 * index] for index, cloud in enumerate(clouds)]
    dataset = PointCloudDataset(ragged, LABELS, NAMES, num_points=10)
    for index in range(6):
        points = dataset[index]["points"].numpy()
        assert points.shape == (10, 3)
        np.testing.assert_array_equal(points, dataset[index]["points"])  # the same ones every time
        known = {tuple(point) for point in ragged[index]}
        assert {tuple(point) for point in points} <= known
        assert len({tuple(point) for point in points}) == min(10, len(known))
    other = PointCloudDataset(ragged, LABELS, NAMES, num_points=10, seed=1)
    assert not torch.equal(other[5]["points"], dataset[5]["points"])
    first = PointCloudDataset(ragged, LABELS, NAMES, num_points=10, sampling="first")
    np.testing.assert_array_equal(first[5]["points"], ragged[5][:10])


def test_part_labels_follow_their_points(clouds):
    parts = np.arange(120).reshape(6, 20)
    class_parts = [list(range(120))] * 3
    for num_points in (None, 8, 30):
        dataset = PointCloudDataset(
            clouds, LABELS, NAMES, part_labels=parts, num_points=num_points, class_parts=class_parts
        )
        assert dataset.num_parts == 120
        item = dataset.select([2, 4])[1]
        assert item["part_labels"].dtype == torch.int64
        np.testing.assert_array_equal(item["points"], clouds.reshape(-1, 3)[item["part_labels"]])


def test_select_and_keep_classes(clouds):
    dataset = PointCloudDataset(clouds, LABELS, NAMES, sample_ids=[10, 11, 12, 13, 14, 15], num_points=7)
    subset = dataset.select([5, 1]).select(np.array([1, 0]))
    assert [subset[index]["sample_ids"] for index in range(2)] == [11, 15]
    assert subset.labels.tolist() == [1, 2]
    assert torch.equal(subset[0]["points"], dataset[1]["points"])  # cut in the same way
    kept = dataset.keep_classes([2, 0])
    assert kept.class_names == ["table", "chair"]
    assert kept.labels.tolist() == [1, 0, 1, 0]
    assert kept.sample_ids.tolist() == [10, 12, 13, 15]
    assert dataset.labels.tolist() == LABELS
    assert len(dataset.select([])) == 0
    for wrong in ([6], [-1], [0.5], [[0]]):
        with pytest.raises(ValueError, match="indices"):
            dataset.select(wrong)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2, 0, 1, 3], NAMES, "label 3 of cloud 5 is out of range; 3 classes have the labels 0 to 2"),
        ([0, 1, 2, 0, -1, 1], NAMES, "label -1 of cloud 4 is out of range"),
        ([0, 1], NAMES, "there are 6 clouds and 2 labels"),
        ([0.0] * 6, NAMES, "labels must be integers"),
        (LABELS, ["chair", "lamp", "Chair"], "'chair' and 'Chair' differ by upper and lower case at most"),
        (LABELS, ["chair", "chair", "lamp"], "'chair' and 'chair' differ"),
        (LABELS, [], "is empty; name at least one class"),
    ],
)
def test_unusable(clouds, labels, names, message):
    with pytest.raises(PointCloudError, match=message):
        PointCloudDataset(clouds, labels, names)


def test_workers_and_collator(clouds):
    ragged = [cloud[: 5 + 3 * index] for index, cloud in enumerate(clouds)]
    dataset = PointCloudDataset(ragged, LABELS, NAMES)
    processor = PointCloudProcessor(num_points=16)
    collator = PointCloudCollator(processor)
    for workers in (0, 2):
        batches = list(DataLoader(dataset, 4, num_workers=workers, collate_fn=collator))
        assert {key: tuple(value.shape) for key, value in batches[0].items()} == {
            "points": (4, 16, 3),
            "labels": (4,),
            "sample_ids": (4,),
        }
        torch.testing.assert_close(torch.cat([batch["points"] for batch in batches]), processor(ragged).points)
    assert "sample_ids" not in PointCloudCollator(processor, sample_ids=False)([dataset[0]])
    with pytest.raises(ValueError, match="the clouds have 5 to 8 points; give the collator a processor"):
        PointCloudCollator()([dataset[0], dataset[1]])
    augmented = [
        PointCloudCollator(processor, get_augmentation("rotate"), generator=torch.Generator().manual_seed(0))(
            [dataset[0], dataset[5]]
        )["points"]
        for _ in range(2)
    ]
    assert torch.equal(*augmented)
    assert not torch.equal(augmented[0], processor([ragged[0], ragged[5]]).points)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("sample_ids", r"no 'sample_ids', it has \['labels', 'points'\]; pass sample_ids=False"),
        ("labels", "no 'labels', .*; rename the column"),
        ("points", "no 'points', it has"),
    ],
)
def test_collator_names_what_an_item_lacks(clouds, missing, message):
    items = [{"points": clouds[0], "labels": 1, "sample_ids": 7}, {"points": clouds[1], "labels": 0, "sample_ids": 8}]
    del items[1][missing]
    with pytest.raises(ValueError, match=message):
        PointCloudCollator(PointCloudProcessor(num_points=8))(items)


def test_collator_of_rows_of_lists(clouds):
    """As `datasets.Dataset` gives them."""
    rows = [{"points": cloud.tolist(), "labels": 1} for cloud in clouds]
    for processor in (None, PointCloudProcessor(num_points=20, normalize="none")):
        batch = PointCloudCollator(processor, sample_ids=False)(rows)
        np.testing.assert_array_equal(batch["points"], clouds)


def test_collator_says_which_cloud_is_bad(clouds):
    clouds[4, 3] = np.nan
    dataset, processor = PointCloudDataset(clouds, LABELS, NAMES), PointCloudProcessor(num_points=19)
    with pytest.raises(PointCloudError, match="the cloud with sample_ids 4: 1 of 20 points .* drop_invalid=True"):
        PointCloudCollator(processor)([dataset[2], dataset[4]])
    batch = PointCloudCollator(processor, drop_invalid=True)([dataset[2], dataset[4]])
    expected = processor([clouds[2], np.delete(clouds[4], 3, axis=0)]).points
    torch.testing.assert_close(batch["points"], expected)


def test_files_with_points_that_are_not_finite(tmp_path, clouds):
    clouds[0, 3] = np.nan
    np.save(tmp_path / "0.npy", clouds[0])
    options = {"labels": [0], "class_names": NAMES}
    with pytest.raises(PointCloudError, match="0.npy: 1 of 20 points have NaN .* drop_invalid=True"):
        PointCloudDataset([tmp_path / "0.npy"], **options)[0]
    item = PointCloudDataset([tmp_path / "0.npy"], **options, drop_invalid=True)[0]
    np.testing.assert_array_equal(item["points"], np.delete(clouds[0], 3, axis=0))


def test_collator_with_parts(clouds):
    parts = np.arange(120).reshape(6, 20)
    dataset = PointCloudDataset(clouds, LABELS, NAMES, part_labels=parts, class_parts=[list(range(120))] * 3)
    for processor in (None, PointCloudProcessor(num_points=8, normalize="none")):
        batch = PointCloudCollator(processor)([dataset[1], dataset[3]])
        assert batch["part_labels"].shape == batch["points"].shape[:2]
        flat = clouds.reshape(-1, 3)
        np.testing.assert_array_equal(batch["points"], flat[batch["part_labels"].numpy()])


def test_collator_for_segmentation(clouds):
    parts = np.arange(120).reshape(6, 20)
    dataset = PointCloudDataset(clouds, LABELS, NAMES, part_labels=parts, class_parts=[list(range(120))] * 3)
    batch = PointCloudCollator(segmentation=True)([dataset[1], dataset[3]])
    assert set(batch) == {"points", "labels", "category_ids", "sample_ids"}
    np.testing.assert_array_equal(batch["labels"], parts[[1, 3]])
    assert batch["category_ids"].tolist() == [LABELS[1], LABELS[3]]
    with pytest.raises(ValueError, match="needs a label for each point, but the items have none"):
        PointCloudCollator(segmentation=True)([PointCloudDataset(clouds, LABELS, NAMES)[0]])


def test_pickled_data_set_is_the_same(clouds):
    dataset = pickle.loads(pickle.dumps(PointCloudDataset(clouds, LABELS, NAMES)))
    np.testing.assert_array_equal(dataset[3]["points"], clouds[3])


class Feature:
    def __init__(self, names):
        self.names = names


class Rows:
    """The part of `datasets.Dataset` that is used."""

    def __init__(self, rows, features=None):
        self.rows, self.features = rows, features or {}
        self.column_names = list(rows[0])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def select_columns(self, columns):
        return Rows([{name: row[name] for name in columns} for row in self.rows])


@pytest.fixture
def rows(clouds):
    return [
        {"points": cloud.tolist(), "label": label, "name": NAMES[label]}
        for cloud, label in zip(clouds, LABELS, strict=True)
    ]


def test_hugging_face_data_set(rows, clouds):
    dataset = from_hf_dataset(Rows(rows, {"label": Feature(NAMES)}), num_points=9)
    assert dataset.class_names == NAMES
    assert dataset.labels.tolist() == LABELS
    assert dataset[2]["points"].shape == (9, 3)
    by_name = from_hf_dataset(Rows(rows), label_column="name")
    assert by_name.class_names == NAMES
    np.testing.assert_allclose(by_name[2]["points"], clouds[2])
    splits = from_hf_dataset({"train": Rows(rows[:2]), "test": Rows(rows)}, label_column="name")
    assert {name: split.labels.tolist() for name, split in splits.items()} == {"train": [0, 1], "test": LABELS}
    assert splits["train"].class_names == NAMES
    assert from_hf_dataset(Rows(rows)).class_names == ["0", "1", "2"]
    library = pytest.importorskip("datasets")
    found = from_hf_dataset(library.Dataset.from_list(rows))
    np.testing.assert_allclose(found[2]["points"], clouds[2])


def test_unusable_hugging_face_data_set(rows):
    with pytest.raises(PointCloudError, match="has no column 'xyz'; it has .*points"):
        from_hf_dataset(Rows(rows), "xyz")
    with pytest.raises(PointCloudError, match=r"\['table'\] are not among"):
        from_hf_dataset(Rows(rows), label_column="name", class_names=["chair", "lamp"])
    with pytest.raises(PointCloudError, match="out of range"):
        from_hf_dataset(Rows(rows), class_names=["chair", "lamp"])
    with pytest.raises(PointCloudError, match="row 0, column 'name': not an array of points: 'chair'"):
        from_hf_dataset(Rows(rows), "name")[0]
    rows[1]["points"][3][0] = float("nan")
    with pytest.raises(PointCloudError, match="row 1, column 'points': .* with NaN"):
        from_hf_dataset(Rows(rows))[1]
