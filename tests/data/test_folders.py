import os
import warnings

import numpy as np
import pytest
import trimesh
from torch.utils.data import DataLoader

from point_peft_hf.data import (
    PointCloudCollator,
    PointCloudError,
    PointCloudProcessor,
    load_dataset,
    read_point_cloud,
    write_point_cloud,
)


def test_scans_in_metres(tmp_path, make_scans):
    root = make_scans(tmp_path / "scans", number=10)
    splits = load_dataset(root)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 24, "test": 6}
    assert splits["train"].class_names == ["chair", "lamp", "table"]
    assert np.bincount(splits["train"].labels).tolist() == [8, 8, 8]
    assert not set(splits["train"].sample_ids) & set(splits["test"].sample_ids)
    names = sorted(root.rglob("*.xyz"))
    for item in splits["test"]:
        path = names[item["sample_ids"]]
        np.testing.assert_array_equal(item["points"], read_point_cloud(path))
        assert splits["test"].class_names[item["labels"]] == path.parent.name
    loader = DataLoader(splits["train"], 8, shuffle=True, collate_fn=PointCloudCollator(PointCloudProcessor()))
    batch = next(iter(loader))
    assert batch["points"].shape == (8, 1024, 3)
    assert load_dataset(root)["test"].sample_ids.tolist() == splits["test"].sample_ids.tolist()
    assert load_dataset(root, seed=1)["test"].sample_ids.tolist() != splits["test"].sample_ids.tolist()
    assert len(load_dataset(root, test_fraction=0.5)["test"]) == 15
    fixed = load_dataset(root, num_points=100)["train"]
    assert next(iter(DataLoader(fixed, 24)))["points"].shape == (24, 100, 3)


def test_meshes(tmp_path):
    for name, mesh in (("ball", trimesh.creation.icosphere(1)), ("box", trimesh.creation.box())):
        for index in range(5):
            (tmp_path / name / "models").mkdir(parents=True, exist_ok=True)
            mesh.export(tmp_path / name / "models" / f"{index}.obj")
            (tmp_path / name / "models" / f"{index}.mtl").write_text("newmtl wood\n")
    (tmp_path / "README.md").write_text("two classes")
    splits = load_dataset(tmp_path, num_points=256)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 8, "test": 2}
    first, second = splits["train"][0]["points"], splits["train"][4]["points"]
    assert first.shape == (256, 3)
    assert abs(first.norm(dim=1) - 1).max() < 0.1
    np.testing.assert_allclose(abs(second).max(dim=1).values, 0.5, atol=1e-6)
    assert load_dataset(tmp_path)["train"][0]["points"].shape == (8192, 3)


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "val"), ("TRAIN", "Testing")])
def test_split_folders(tmp_path, make_scans, train, test):
    make_scans(tmp_path / train)
    make_scans(tmp_path / test, classes=("chair", "table"), number=2)
    splits = load_dataset(tmp_path)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 18, "test": 4}
    assert splits["test"].class_names == ["chair", "lamp", "table"]
    assert splits["test"].labels.tolist() == [0, 0, 2, 2]


def test_three_splits_and_train_alone(tmp_path, make_scans):
    make_scans(tmp_path / "a" / "train")
    assert [len(dataset) for dataset in load_dataset(tmp_path / "a").values()] == [15, 3]
    for split, number in (("test", 1), ("valid", 2)):
        make_scans(tmp_path / "a" / split, number=number)
    splits = load_dataset(tmp_path / "a")
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 18, "test": 3, "validation": 6}


def test_splits_within_classes(tmp_path):
    # ModelNet40 as it comes from Princeton, its broken headers included.
    for name in ("bed", "sofa"):
        for split, number in (("train", 3), ("test", 2)):
            for index in range(number):
                path = tmp_path / "ModelNet40" / name / split / f"{name}_{index:04}.off"
                path.parent.mkdir(parents=True, exist_ok=True)
                text = trimesh.creation.box().export(file_type="off")
                path.write_text(text.replace("OFF\n", "OFF", 1))
    splits = load_dataset(tmp_path)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 6, "test": 4}
    assert splits["train"].class_names == ["bed", "sofa"]


@pytest.mark.parametrize("notes", [[], ["README.txt"], ["labels.csv"], ["notes.txt", "labels.csv"], [".list.txt"]])
def test_notes_above_the_classes(tmp_path, notes):
    for name in ("bed", "chair"):
        for split, number in (("train", 3), ("test", 2)):
            for index in range(number):
                path = tmp_path / "ModelNet10" / name / split / f"{index}.off"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("OFF\n2 0 0\n1 2 3\n4 5 6\n")
    for name in notes:
        (tmp_path / "ModelNet10" / name).write_text("1,2,3\n" if name == "labels.csv" else "ten classes\n")
    splits = load_dataset(tmp_path)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 6, "test": 4}
    assert splits["train"].class_names == ["bed", "chair"]


BAD_FILES = {
    "empty.ply": b"",
    "header_only.ply": b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
    b"property float z\nend_header\n",
    "nan.xyz": b"0 0 0\nnan 0 0\n1 1 1\n",
    "one_point.xyz": b"0 0 0\n",
    "words.txt": b"these are not numbers\nat all\n",
    "truncated.npy": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (9, 3), }".ljust(127)
    + b"\n123",
    "half_a_header.npy": b"\x93NUMPY\1\0\x10\0{'descr': '<f8'(\n",
    "short_line.obj": b"v 0 0 0\nv 1 0 0\nv 0 0\nf 1 2 3\n",
    "pickle.npy": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    "renamed.pcd": b"ply\nformat ascii 1.0\n",
    "strange.docx": b"PK\3\4",
}


@pytest.mark.parametrize("cache", ["auto", None])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, make_scans, cache_dir, files_under, name, cache):
    root = make_scans(tmp_path / "scans")
    (root / "lamp" / name).write_bytes(BAD_FILES[name])
    if cache == "auto" or name == "strange.docx":
        with pytest.raises(PointCloudError, match=f"{name}: .*--skip_bad_files leaves"):
            load_dataset(root, cache_dir=cache)
        assert files_under(cache_dir) == []  # nothing half-written
    else:
        splits = load_dataset(root, cache_dir=None)
        with pytest.raises(PointCloudError, match=f"{name}: "):
            [list(dataset) for dataset in splits.values()]
    message = (
        "1 files of other kinds are skipped: .docx" if name == "strange.docx" else f"1 of 19 files are.*\n.*{name}"
    )
    for _ in range(2):  # the warning comes from the cache, too
        with pytest.warns(UserWarning, match=message):
            splits = load_dataset(root, skip_bad_files=True, cache_dir=cache)
        assert sum(map(len, splits.values())) == 18
        assert all(len(item["points"]) >= 40 for dataset in splits.values() for item in dataset)
    if name == "nan.xyz":
        splits = load_dataset(root, drop_invalid=True, cache_dir=cache)
        assert sum(map(len, splits.values())) == 19


def test_all_files_bad(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.xyz").write_text("oops")
    with pytest.raises(PointCloudError, match="none of its 2 files can be read; the first: .*x.xyz"):
        load_dataset(tmp_path, skip_bad_files=True)


def test_class_names_that_differ_in_case(tmp_path, make_scans):
    make_scans(tmp_path, classes=("chair", "Chair", "lamp"))
    with pytest.raises(PointCloudError, match="the classes 'Chair' and 'chair' differ by upper and lower case"):
        load_dataset(tmp_path)


def test_empty_class_folder(tmp_path, make_scans):
    make_scans(tmp_path)
    (tmp_path / "vase").mkdir()
    with pytest.raises(PointCloudError, match="class folder 'vase' has no readable file"):
        load_dataset(tmp_path)
    with pytest.warns(UserWarning, match="1 class folders without a readable file are skipped.*vase"):
        assert load_dataset(tmp_path, skip_bad_files=True)["train"].num_classes == 3


def test_class_that_is_not_in_train(tmp_path, make_scans):
    make_scans(tmp_path / "train", classes=("chair", "lamp"))
    make_scans(tmp_path / "test", classes=("chair", "vase"))
    with pytest.raises(PointCloudError, match="the class 'vase' has no cloud in train"):
        load_dataset(tmp_path)


def test_unreadable_class_folder(tmp_path, make_scans, monkeypatch):
    make_scans(tmp_path)
    listing = os.scandir

    def scandir(path="."):
        if os.path.basename(path) == "lamp":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)  # file modes do not stop root, who may run the tests
    with pytest.raises(PointCloudError, match="lamp.*: .*cannot be read: Permission denied"):
        load_dataset(tmp_path)
    with (
        pytest.warns(UserWarning, match="lamp: the folder cannot be read and is skipped"),
        pytest.warns(UserWarning, match="1 class folders without a readable file"),
    ):
        assert load_dataset(tmp_path, skip_bad_files=True)["train"].class_names == ["chair", "table"]


def test_files_beside_the_splits_are_reported(tmp_path, make_scans):
    make_scans(tmp_path / "train")
    make_scans(tmp_path / "raw")
    with pytest.warns(UserWarning, match=r"the folders \['raw'\] are ignored"):
        load_dataset(tmp_path)
    make_scans(tmp_path / "training")
    with pytest.raises(PointCloudError, match="both 'train' and 'training' look like the train split"):
        load_dataset(tmp_path)


def test_one_cloud_a_class(tmp_path, make_scans):
    make_scans(tmp_path, number=1)
    with pytest.raises(PointCloudError, match="the test split is empty"):
        load_dataset(tmp_path)


def test_hidden_files_are_no_clouds(tmp_path, make_scans):
    make_scans(tmp_path)
    (tmp_path / "chair" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "chair" / "._scan_0.xyz").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".git").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(map(len, load_dataset(tmp_path).values())) == 18


def test_all_formats_in_one_folder(tmp_path, rng):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cloud = rng.normal(size=(50, 3)).astype(np.float32)
        write_point_cloud(tmp_path / name / "1.ply", cloud)
        write_point_cloud(tmp_path / name / "2.npy", cloud)
        np.savetxt(tmp_path / name / "3.csv", cloud, delimiter=",")
        trimesh.creation.box().export(tmp_path / name / "4.STL")
    assert sum(map(len, load_dataset(tmp_path).values())) == 8
