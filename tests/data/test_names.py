import os
import unicodedata

import pytest

from point_peft_hf.data import PointCloudError
from point_peft_hf.data.dataset import check_class_names
from point_peft_hf.data.names import class_name, find_attributes, find_splits, looks_like, printable, read_lines


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test"), ("train", "test")),
        (("train_set", "test_set"), ("train", "test")),
        (("trainset", "valset", "testset"), ("train", "validation", "test")),
        (("TrainSet", "TestSet"), ("train", "test")),
        (("trainval", "test"), ("train", "test")),
        (("train_val", "test"), ("train", "test")),
        (("training", "validation", "testing"), ("train", "validation", "test")),
        (("Training Data", "Test Data"), ("train", "test")),
        (("train", "eval"), ("train", "test")),
        (("train", "eval", "test"), ("train", "validation", "test")),
        (("train", "val", "holdout"), ("train", "validation", "test")),
        (("01_train", "02_test"), ("train", "test")),
        (("train_2048", "test_2048"), ("train", "test")),
        (("scans_train", "scans_test"), ("train", "test")),
        (("train", "raw"), ("train", None)),
        (("train_data", "test_set"), ("train", "test")),
        (("toy_train", "bus"), (None, None)),  # a vehicle
        (("trainer", "tester"), (None, None)),
        (("test", "bus"), (None, None)),  # without a train split there is none
        (("latest", "valley", "contest"), (None, None, None)),
    ],
)
def test_names_of_splits(tmp_path, names, expected):
    found = find_splits([tmp_path / name for name in names])
    assert found == {split: tmp_path / name for name, split in zip(names, expected, strict=True) if split}


@pytest.mark.parametrize("names", [("train", "train_set"), ("train1", "train2"), ("train", "eval", "test", "val")])
def test_two_folders_of_one_split(tmp_path, names):
    with pytest.raises(PointCloudError, match="look like the (train|validation) split"):
        find_splits([tmp_path / name for name in names])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("coord color normal segment instance", "color normal segment instance"),
        ("coord segment20 segment200", "segment20 segment200"),
        ("xyz rgb label", "rgb label"),
        ("1 1_normals 2 2_label", "1_normals 2_label"),
        ("s0_coord s0_color", "s0_color"),
        ("points points_label seg_img", "points_label"),
        ("velodyne labels", "labels"),
        ("1_normals 2", ""),
        ("color normal", ""),
        ("chair table", ""),
    ],
)
def test_attributes_of_clouds(names, expected):
    assert find_attributes(names.split()) == set(expected.split())


def test_attributes_of_folders_belong_to_coordinates():
    """chair_parts is a class beside chair."""
    assert find_attributes(["chair", "chair_parts"], only_of_coordinates=True) == set()
    assert find_attributes(["points", "points_label"], only_of_coordinates=True) == {"points_label"}


def test_names_of_classes(tmp_path):
    assert class_name(tmp_path / unicodedata.normalize("NFD", "Tür")) == unicodedata.normalize("NFC", "Tür")
    latin = tmp_path / os.fsdecode(b"M\xfchle")
    with pytest.raises(PointCloudError, match=r"M\\xfchle: the name of this folder is not UTF-8.* to 'Mühle'"):
        class_name(latin)
    assert printable(latin).endswith("M\\xfchle")
    assert looks_like("Tür  A") == looks_like(unicodedata.normalize("NFD", "tür a ")) != looks_like("Tor a")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Tür", "Tu\u0308r"], "look the same, 'Tür', but are written in two ways"),
        (["a b", "a  b"], "look the same"),
        (["\u24b6", "A"], "look the same"),
        (["M\udcfchle"], "cannot be shown"),
        (["two\nlines"], "cannot be shown"),
        (["ball", "Ball"], "differ by upper and lower case"),
        (["ball", "ball"], "differ by upper and lower case"),
    ],
)
def test_class_names_that_are_refused(names, message):
    with pytest.raises(PointCloudError, match=message):
        check_class_names(names)


def test_class_names_of_all_scripts():
    names = ["椅子", "стол", "می\u200cز", "Tür", "naïve", "été", "A1", "a 1"]
    assert check_class_names(names) == names


def test_lists_of_names(write):
    assert read_lines(write("names.txt", "\ufeffmug\r\n\n  Tür \n")) == ["mug", "Tür"]
    with pytest.raises(PointCloudError, match=r"latin.txt: is not UTF-8 \(byte 1: b'\\xfc'\); save it as UTF-8"):
        read_lines(write("latin.txt", b"T\xfcr\n"))
