import warnings

import laspy
import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, write_point_cloud
from point_peft_hf.data.scenes import SceneDataset, hold_out, load_scenes
from point_peft_hf.data.scenes.classes import S3DIS_CLASSES


@pytest.fixture
def write_scans(rng):
    """Write .ply scans with the labels given."""

    def write(folder, number=4, labels=(0, 1, 2)):
        for index in range(number):
            points = rng.uniform(0, 1, (30, 3)).astype(np.float32)
            folder.mkdir(parents=True, exist_ok=True)
            write_point_cloud(
                folder / f"scan_{index}.ply", points, np.full((30, 3), 9), rng.permutation(np.resize(labels, 30))
            )
        return folder

    return write


def write_las(path, classes):
    las = laspy.create(point_format=6, file_version="1.4")
    las.header.scales = [0.001] * 3
    las.xyz = np.random.default_rng(0).uniform(0, 1, (len(classes), 3))
    las.classification = classes
    path.parent.mkdir(parents=True, exist_ok=True)
    las.write(path)


def names_of(dataset):
    return sorted({dataset.scenes.names[dataset.scene_of(index)] for index in range(len(dataset))})


def test_folders_of_splits_and_class_file(tmp_path, write_scans):
    for split, number in (("train", 3), ("val", 1), ("test", 2)):
        write_scans(tmp_path / split, number)
    (tmp_path / "classes.txt").write_text("floor\nwall\nchair\n")
    splits = load_scenes(tmp_path)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 3, "validation": 1, "test": 2}
    assert splits["train"].class_names == ["floor", "wall", "chair"]
    item = splits["train"][0]
    assert set(item) == {"points", "colors", "labels", "sample_ids"}
    np.testing.assert_array_equal(splits["train"].class_counts, [30, 30, 30])


def test_numbers_of_classes_with_gaps(tmp_path, write_scans):
    write_scans(tmp_path, labels=(2, 5, 255, -1))
    (tmp_path / "classes.txt").write_text("2 ground\n5: high vegetation\n")
    train = load_scenes(tmp_path)["train"]
    assert train.class_names == ["ground", "high vegetation"]
    assert train.label_values == [2, 5]
    assert set(train[0]["labels"].tolist()) == {0, 1, -100}


def test_255_with_a_name_is_a_class(tmp_path, write_scans):
    write_scans(tmp_path, labels=(2, 255))
    assert load_scenes(tmp_path, class_names={2: "a", 255: "b"})["train"].class_names == ["a", "b"]


def test_classes_of_las_files(tmp_path):
    for index in range(4):
        write_las(tmp_path / f"{index}.laz", [0, 1, 2, 5, 64] * 4)
    train = load_scenes(tmp_path)["train"]
    assert train.class_names == ["unclassified", "ground", "high_vegetation", "class_64"]
    assert load_scenes(tmp_path, ignore_labels=[1, 64])["train"].class_names == ["ground", "high_vegetation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, r"the labels \[2\] occur, but the classes have the numbers 0 to 1"),
        ({"class_names": ["a", "b", "a"]}, "gives the name 'a' twice"),
        ({"ignore_labels": [1, 2]}, "have 1 class"),
    ],
)
def test_classes_that_do_not_fit(tmp_path, write_scans, options, message):
    write_scans(tmp_path)
    with pytest.raises(PointCloudError, match=message):
        load_scenes(tmp_path, **options)


def test_lists_of_scenes(tmp_path, write_scans):
    write_scans(tmp_path / "scans", 5)
    (tmp_path / "train.txt").write_text("scan_0\nscans/scan_3.ply\nscan_4\n")
    (tmp_path / "test.txt").write_text("scan_1\n")
    splits = load_scenes(tmp_path)
    assert [len(splits[split]) for split in ("train", "test")] == [3, 1]
    assert names_of(splits["test"]) == [str(tmp_path / "scans" / "scan_1.ply")]
    (tmp_path / "test.txt").write_text("scan_9\n")
    with pytest.raises(PointCloudError, match="list of the test split has 'scan_9': no scene of that name"):
        load_scenes(tmp_path)
    (tmp_path / "test.txt").write_text("scan_3\n")
    with pytest.raises(PointCloudError, match="'scan_3' is in the lists of train and test"):
        load_scenes(tmp_path)


def test_area_5_is_the_test_of_s3dis(tmp_path, make_rooms):
    make_rooms(tmp_path, {"Area_1": 2, "Area_2": 1, "Area_5": 2})
    splits = load_scenes(tmp_path)
    assert len(splits["train"]) == 3
    assert all("Area_5" in name for name in names_of(splits["test"]))
    assert splits["train"].class_names == list(S3DIS_CLASSES)
    counts = dict(zip(S3DIS_CLASSES, splits["train"].class_counts.tolist(), strict=True))
    assert counts["wall"] == 90
    assert counts["chair"] == 90
    assert sum(counts.values()) == 180


def test_other_names_of_objects(tmp_path, make_rooms):
    make_rooms(tmp_path, {"Area_1": 3}, ("tree", "ground"))
    splits = load_scenes(tmp_path)
    assert splits["train"].class_names == ["ground", "tree"]
    assert len(splits["train"]) == 2
    assert len(splits["test"]) == 1
    with pytest.raises(PointCloudError, match=r"objects of the classes \['tree'\], which are not among"):
        load_scenes(tmp_path, class_names=["ground", "house"])


def test_a_changed_object_is_read_again(tmp_path, make_rooms):
    make_rooms(tmp_path, {"Area_1": 3}, ("tree", "ground"))
    before = sum(dataset.class_counts for dataset in load_scenes(tmp_path).values())
    file = tmp_path / "Area_1" / "office_0" / "Annotations" / "tree_1.txt"
    file.write_text("\n".join(file.read_text().splitlines()[:10]))
    after = sum(dataset.class_counts for dataset in load_scenes(tmp_path).values())
    assert (before - after).tolist() == [0, 20]


def test_tiles_count_each_label_once(tmp_path, write_scans, rng):
    points = rng.uniform((0, 0, 0), (20, 4, 0.1), (3000, 3)).astype(np.float32)
    labels = (points[:, 0] // 5).astype(np.int64)
    write_point_cloud(tmp_path / "scan.ply", points, None, labels)
    splits = load_scenes(tmp_path, grid_size=0.1, max_voxels=700, overlap=0.5)
    assert len(splits["train"]) + len(splits["test"]) > 4
    total = splits["train"].class_counts + splits["test"].class_counts
    np.testing.assert_array_equal(total, np.bincount(labels))
    item = splits["test"][0]
    assert (item["labels"] == -100).any()
    assert "colors" not in item


def test_unlabelled_tiles_are_left_out_and_counted(tmp_path, rng):
    points = rng.uniform((0, 0, 0), (20, 4, 0.1), (3000, 3)).astype(np.float32)
    labels = np.where(points[:, 0] < 12, points[:, 1] // 2, -1).astype(np.int64)
    write_point_cloud(tmp_path / "scan.ply", points, None, labels)
    with pytest.warns(
        UserWarning, match=r"\d of \d+ scenes or tiles of the train split have no label, and are left out"
    ):
        splits = load_scenes(tmp_path, grid_size=0.1, max_voxels=700, overlap=0.2)
    assert all(dataset.label_counts(index).any() for dataset in splits.values() for index in range(len(dataset)))


def test_no_labels_at_all(tmp_path, write_scans):
    write_scans(tmp_path, labels=(-1,))
    with pytest.raises(PointCloudError, match="its labels have 0 classes"):
        load_scenes(tmp_path)


def test_validation_is_tested_on_where_the_test_has_no_labels(tmp_path, write_scans):
    for split, labels in (("train", (0, 1)), ("val", (0, 1)), ("test", (-1,))):
        write_scans(tmp_path / split, 2, labels)
    with pytest.warns(UserWarning, match="the test split has no labels; the validation split is tested on instead"):
        splits = load_scenes(tmp_path)
    assert set(splits) == {"train", "test"}
    assert names_of(splits["test"])[0].endswith("val/scan_0.ply")


def test_one_tile_cannot_be_cut(tmp_path, write_scans):
    write_scans(tmp_path, number=1)
    with pytest.raises(PointCloudError, match="the test needs scenes of its own.*a smaller max_voxels"):
        load_scenes(tmp_path)


def test_bad_files_are_named_or_skipped(tmp_path, write_scans):
    write_scans(tmp_path)
    (tmp_path / "scan_9.ply").write_text("ply\nnonsense")
    with pytest.raises(PointCloudError, match="scan_9.ply"):
        load_scenes(tmp_path)
    with pytest.warns(UserWarning, match="1 of 5 files are skipped"):
        load_scenes(tmp_path, skip_bad_files=True)


def test_without_cache(tmp_path, write_scans):
    write_scans(tmp_path)
    one, other = load_scenes(tmp_path), load_scenes(tmp_path, cache_dir=None)
    for a, b in zip(one["train"], other["train"], strict=True):
        np.testing.assert_array_equal(a["points"], b["points"])


def test_no_scenes(tmp_path):
    with pytest.raises(PointCloudError, match="no scenes for the train split"):
        load_scenes(tmp_path)
    with pytest.raises(PointCloudError, match="no such folder"):
        load_scenes(tmp_path / "away")


def test_hold_out_keeps_classes_in_both_parts(scene):
    scenes = [scene] * 8 + [scene.select(scene.labels == 2)] * 2
    dataset = SceneDataset(scenes, ["a", "b", "c"])
    first, second = hold_out(dataset, 0.3, 0, "the test")
    assert len(first) == 7
    assert len(second) == 3
    assert (second.class_counts > 0).all()
    assert set(first.sample_ids) | set(second.sample_ids) == set(range(10))


def test_real_park(real_scenes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_scenes(real_scenes / "forest_park", grid_size=0.1, max_voxels=20_000)
    assert splits["train"].class_names == ["clutter", "ground", "tree"]
    assert (splits["train"].class_counts + splits["test"].class_counts).tolist() == [34534, 192408, 9025]
