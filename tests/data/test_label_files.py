"""Labels of points in files of their own, and numbers that cannot be those of parts."""

import json

import numpy as np
import pytest

from point_peft_hf.data import PointCloudDataset, PointCloudError, load_dataset, read_labelled_cloud
from point_peft_hf.data.part_files import find_label_file, read_label_file

LABELS = np.arange(12) // 4


@pytest.fixture
def cloud(rng):
    return rng.normal(size=(12, 3)).astype(np.float32)


def put(path, array, header=""):
    """Write an array in the format of the ending; .label with an object in the upper half of each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".bin":
        array.tofile(path)
    elif path.suffix == ".label":
        (np.asarray(array, np.uint32) | np.arange(1, len(array) + 1, dtype=np.uint32) << 16).tofile(path)
    else:
        np.savetxt(path, array, "%.10g", header=header, comments="")


PLACES = (
    *(("1.xyz", "1.seg"), ("1.ply.xyz", "1.ply.seg"), ("1.txt", "1.labels"), ("1.npy", "1.label")),
    *(("1.npy", "1_label.npy"), ("1.npy", "1_part.txt"), ("1.xyz", "1_seg.seg")),
    *(("s0/coord.npy", "s0/segment.npy"), ("s0/coord.npy", "s0/segment20.npy"), ("s0/xyz.npy", "s0/labels.npy")),
    *(("points/1.pts", "points_label/1.seg"), ("velodyne/1.bin", "labels/1.label"), ("points/1.npy", "labels/1.npy")),
)


@pytest.mark.parametrize(("name", "labels"), PLACES)
def test_every_place(tmp_path, cloud, name, labels):
    put(tmp_path / name, cloud)
    put(tmp_path / labels, LABELS)
    assert find_label_file(tmp_path / name) == tmp_path / labels
    read = read_labelled_cloud(tmp_path / name)
    np.testing.assert_allclose(read[:, :3], cloud, atol=1e-6)
    np.testing.assert_array_equal(read[:, 3], LABELS)


@pytest.mark.parametrize("columns", [3, 4, 5])
def test_columns_of_a_bin_file_by_its_labels(tmp_path, rng, columns):
    rows = rng.normal(size=(12, columns)).astype(np.float32)
    put(tmp_path / "velodyne/1.bin", rows)
    put(tmp_path / "labels/1.label", LABELS)
    read = read_labelled_cloud(tmp_path / "velodyne/1.bin")
    np.testing.assert_array_equal(read, np.c_[rows[:, :3], LABELS])
    put(tmp_path / "labels/1.label", LABELS[:7])
    with pytest.raises(PointCloudError, match="1.bin: its .* bytes are not x, y, z .* for each of the 7 points"):
        read_labelled_cloud(tmp_path / "velodyne/1.bin")


def test_labels_of_semantickitti(tmp_path, cloud):
    """The folder of a sequence: the class is in the lower 16 bits; the labels are no category of their own."""
    for index in range(5):
        put(tmp_path / f"00/velodyne/{index:06}.bin", np.c_[cloud, cloud[:, 0]])
        put(tmp_path / f"00/labels/{index:06}.label", np.array([0, 40, 252, 259] * 3))
    for name in ("calib.txt", "poses.txt", "times.txt"):
        (tmp_path / "00" / name).write_text("P0: 1 0 0\n1 0 0 0\n")
    splits = load_dataset(tmp_path / "00", parts=True, progress=False)
    assert (splits["train"].class_names, sum(map(len, splits.values()))) == (["00"], 5)
    assert splits["train"].class_parts == [[0, 40, 252, 259]]
    with pytest.raises(PointCloudError, match="'labels' is not a class"):
        load_dataset(tmp_path / "00", progress=False)


@pytest.mark.parametrize(
    ("points", "labels"), [("points/%d.pts", "points_label/%d.seg"), ("xyz/%d.npy", "labels/%d.npy")]
)
def test_folders_of_labels_in_categories(tmp_path, cloud, points, labels):
    for name in ("chair", "table"):
        for index in range(4):
            put(tmp_path / name / (points % index), cloud)
            put(tmp_path / name / (labels % index), LABELS)
    for options in ({}, {"parts": True}):
        splits = load_dataset(tmp_path, progress=False, **options)
        assert (splits["train"].class_names, sum(map(len, splits.values()))) == (["chair", "table"], 8)
    assert splits["train"].class_parts == [[0, 1, 2]] * 2


def test_label_files_that_cannot_be_used(tmp_path, cloud):
    put(tmp_path / "1.npy", cloud)
    put(tmp_path / "1.seg", LABELS)
    put(tmp_path / "1_label.npy", LABELS)
    with pytest.raises(PointCloudError, match="both .*1.seg and .*1_label.npy can hold its labels; keep one"):
        read_labelled_cloud(tmp_path / "1.npy")
    (tmp_path / "cut.label").write_bytes(b"\0\1\2\3\4")
    with pytest.raises(PointCloudError, match="5 bytes are not a uint32 for each point"):
        read_label_file(tmp_path / "cut.label")
    (tmp_path / "text.label").write_text("0\n2\n1\n")
    assert read_label_file(tmp_path / "text.label").tolist() == [0, 2, 1]
    np.save(tmp_path / "wide.npy", cloud)
    with pytest.raises(PointCloudError, match="wide.npy: labels must be numbers of shape"):
        read_label_file(tmp_path / "wide.npy")
    np.save(tmp_path / "column.npy", LABELS[:, None])
    assert read_label_file(tmp_path / "column.npy").tolist() == LABELS.tolist()


def test_labels_that_change_are_read_again(tmp_path, cloud):
    for index in range(3):
        put(tmp_path / f"set/{index}/coord.npy", cloud)
        put(tmp_path / f"set/{index}/segment.npy", LABELS)

    def parts():
        return load_dataset(tmp_path / "set", parts=True, progress=False)["train"].class_parts

    before = parts()
    for index in range(3):
        put(tmp_path / f"set/{index}/segment.npy", LABELS.astype(np.int16) + 5)
    assert (before, parts()) == ([[0, 1, 2]], [[5, 6, 7]])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2048, "the label 2048 is not the number of a part: .* up to 2047; number them anew"),
        (70000, "the label 70000 .* SemanticKITTI's labels .* labels & 0xFFFF"),
        (300 << 16, "label 19660800 is too large .*of a SemanticKITTI label the lower 16 bits are the class"),
        (2**24 + 1, "label 16777217 is too large"),
        (2**32 - 1, "label 4294967295 is too large"),
    ],
)
def test_numbers_that_are_no_parts(tmp_path, cloud, label, message):
    """A model has an output for each number up to the highest, so these would fill the memory."""
    for name in ("chair", "table"):
        for index in range(2):
            put(
                tmp_path / f"{name}/{index}.txt", np.c_[cloud, LABELS + (label - 2) * (name == "table")], "x y z label"
            )
    with pytest.raises(PointCloudError, match=f"table.*{message}"):
        load_dataset(tmp_path, parts=True, progress=False)


def test_highest_number_of_a_part(tmp_path, cloud):
    for index in range(2):
        put(tmp_path / f"chair/{index}.txt", np.c_[cloud, LABELS + 2045], "x y z label")
    assert load_dataset(tmp_path, parts=True, progress=False)["train"].num_parts == 2048
    with pytest.raises(PointCloudError, match="class_parts: the label 4000 is not the number of a part"):
        PointCloudDataset([cloud], [0], ["chair"], class_parts=[[0, 4000]])


@pytest.fixture
def first_shapenetpart(tmp_path, rng):
    """The first release of ShapeNetPart: parts are counted from 1 in each category."""
    (tmp_path / "synsetoffset2category.txt").write_text("Airplane\t02691156\nBag\t02773838\n")
    for split in ("train", "val", "test"):
        shapes = []
        for code, parts in (("02691156", 4), ("02773838", 2)):
            points = rng.normal(size=(12, 3)).round(4)
            put(tmp_path / code / f"points/{split}.pts", points)
            put(tmp_path / code / f"points_label/{split}.seg", 1 + np.arange(12) % parts)
            (tmp_path / code / "seg_img").mkdir(exist_ok=True)
            shapes.append(f"shape_data/{code}/{split}")
        path = tmp_path / f"train_test_split/shuffled_{split}_file_list.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(shapes))
    return tmp_path


def test_first_release_of_shapenetpart(first_shapenetpart):
    splits = load_dataset(first_shapenetpart, progress=False)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 2, "validation": 2, "test": 2}
    assert splits["train"].class_names == ["Airplane", "Bag"]
    assert splits["train"].class_parts == [[0, 1, 2, 3], [4, 5]]
    for dataset in splits.values():
        assert dataset[0]["part_labels"].tolist() == [0, 1, 2, 3] * 3
        assert dataset[1]["part_labels"].tolist() == [4, 5] * 6
    points = np.loadtxt(first_shapenetpart / "02773838/points/test.pts")
    np.testing.assert_allclose(splits["test"][1]["points"], points, atol=1e-6)
    assert splits["test"].names_of([1])[0].endswith("02773838/points/test.pts")
    put(first_shapenetpart / "02773838/points_label/test.seg", np.arange(12) % 2)
    with pytest.raises(PointCloudError, match="test.pts: has the label 0, but this release counts .* from 1"):
        load_dataset(first_shapenetpart, progress=False)
