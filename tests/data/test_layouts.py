import json
import pickle

import h5py
import numpy as np
import pytest

from point_peft_hf.data import LAYOUTS, PointCloudError, few_shot_fold, load_dataset, read_few_shot_fold
from point_peft_hf.data.layouts_releases import MODELNET40_CLASSES, SCANOBJECTNN_CLASSES


def write_h5(path, clouds, labels, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = np.asarray(clouds, np.float32)
        file["label"] = np.asarray(labels, np.uint8)
        for name, array in more.items():
            file[name] = array


@pytest.fixture
def modelnet(tmp_path, rng):
    """The layout of modelnet40_ply_hdf5_2048, in small: 5 + 3 clouds to train on in two files, 2 to test on."""
    root = tmp_path / "modelnet40_ply_hdf5_2048"
    clouds = rng.normal(size=(10, 20, 3)).astype(np.float32)
    labels = np.array([[0], [1], [2], [0], [1], [2], [0], [1], [1], [2]])
    for name, part in (("train0", slice(0, 5)), ("train1", slice(5, 8)), ("test0", slice(8, 10))):
        write_h5(root / f"ply_data_{name}.h5", clouds[part], labels[part])
    prefix = "data/modelnet40_ply_hdf5_2048/ply_data_"
    (root / "train_files.txt").write_text(f"{prefix}train0.h5\n{prefix}train1.h5\n")
    (root / "test_files.txt").write_text(f"{prefix}test0.h5\n")
    (root / "shape_names.txt").write_text("airplane\nbathtub\nbed\n")
    return root, clouds, labels[:, 0]


@pytest.mark.parametrize("layout", [None, "modelnet40_hdf5"])
def test_modelnet40_hdf5(modelnet, layout):
    root, clouds, labels = modelnet
    splits = load_dataset(root, layout)
    assert list(splits) == ["train", "test"]
    assert splits["train"].class_names == ["airplane", "bathtub", "bed"]
    for split, start in (("train", 0), ("test", 8)):
        for index, item in enumerate(splits[split]):
            np.testing.assert_array_equal(item["points"], clouds[start + index])
            assert item["labels"] == labels[start + index]
            assert item["sample_ids"] == index
    assert [len(splits[split]) for split in splits] == [8, 2]
    cut = load_dataset(root.parent, num_points=7)["train"]  # one folder up, and the first points only
    np.testing.assert_array_equal(cut[6]["points"], clouds[6, :7])


def test_modelnet40_hdf5_without_test_files_is_split(modelnet):
    root, _, _ = modelnet
    (root / "test_files.txt").unlink()
    splits = load_dataset(root, test_fraction=0.4, seed=3)
    assert [len(splits[split]) for split in ("train", "test")] == [5, 3]
    assert sorted([*splits["train"].sample_ids, *splits["test"].sample_ids]) == list(range(8))
    assert set(splits["test"].labels) == {0, 1, 2}


def test_modelnet40_hdf5_errors(modelnet):
    root, clouds, labels = modelnet
    train1 = root / "ply_data_train1.h5"

    def expect(message):
        with pytest.raises(PointCloudError, match=message):
            load_dataset(root)

    whole = train1.read_bytes()
    train1.write_bytes(whole[: len(whole) // 2])
    expect("ply_data_train1.h5: not a readable HDF5 file, or truncated")
    write_h5(train1, clouds[:3], [[0], [7], [1]])
    expect("ply_data_train1.h5: label 7 of cloud 1 is out of range; 3 classes have the labels 0 to 2")
    write_h5(train1, clouds[:3], [[0], [1]])
    expect("'data' has 3 clouds and 'label' 2 labels")
    write_h5(train1, clouds[:3, :, :2], [[0], [1], [2]])
    expect(r"'data' must be of shape \(num_clouds, num_points, 3\), got \(3, 20, 2\)")
    with h5py.File(train1, "w") as file:
        file["points"] = clouds
    expect(r"has no array 'data'; it has \['points'\]")
    train1.unlink()
    expect("(?s)ply_data_train1.h5: no such file.*expected: train_files.txt.*from: https://shapenet")
    (root / "train_files.txt").write_text("\n")
    expect("train_files.txt: lists no file")
    (root / "shape_names.txt").write_text("bed\nBed\n")
    expect("shape_names.txt: the classes 'bed' and 'Bed' differ by upper and lower case")


def test_modelnet40_hdf5_with_nan(modelnet):
    root, clouds, labels = modelnet
    clouds[6, 3, 1] = np.nan
    write_h5(root / "ply_data_train1.h5", clouds[5:8], labels[5:8])
    with pytest.raises(PointCloudError, match="train1.h5: 1 of 3 clouds have NaN .* the first is cloud 1"):
        load_dataset(root)
    with pytest.warns(UserWarning, match="1 of 3 clouds have NaN .* skipped"):
        assert len(load_dataset(root, skip_bad_files=True)["train"]) == 7


def test_modelnet40_normal(tmp_path, rng, cache_dir):
    root = tmp_path / "modelnet40_normal_resampled"
    shapes = {"train": ["airplane_0001", "night_stand_0001", "airplane_0002"], "test": ["night_stand_0002"]}
    tables = {}
    for name in [shape for names in shapes.values() for shape in names]:
        path = root / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables[name] = rng.normal(size=(12, 6)).astype(np.float32)
        np.savetxt(path, tables[name], delimiter=",", fmt="%.6f")
    (root / "modelnet40_shape_names.txt").write_text("airplane\nnight_stand\n")
    for split, names in shapes.items():
        (root / f"modelnet40_{split}.txt").write_text("\n".join(names) + "\n")
    for _ in range(2):  # parsed, and from the cache
        splits = load_dataset(root, num_points=5)
        assert splits["train"].labels.tolist() == [0, 1, 0]
        for split, names in shapes.items():
            for item, name in zip(splits[split], names, strict=True):
                np.testing.assert_allclose(item["points"], tables[name][:5, :3], atol=1e-6)
    (root / "airplane" / "airplane_0002.txt").unlink()
    with pytest.raises(
        PointCloudError,
        match=r"(?s)airplane_0002.txt: no such file \(1 of 4 are missing\).*expected: modelnet40_shape_names",
    ):
        load_dataset(root)
    (root / "modelnet40_test.txt").write_text("sofa_0001\n")
    with pytest.raises(PointCloudError, match="modelnet40_test.txt: names shapes of the class .*sofa"):
        load_dataset(root, cache_dir=None)


def write_dat(path, clouds, labels):
    path.write_bytes(pickle.dumps([list(clouds), [np.array([label], np.int32) for label in labels]], protocol=4))


def test_modelnet40_dat(tmp_path, rng):
    clouds = rng.normal(size=(4, 9, 6)).astype(np.float32)
    write_dat(tmp_path / "modelnet40_train_8192pts_fps.dat", clouds[:3], [3, 39, 0])
    write_dat(tmp_path / "modelnet40_test_8192pts_fps.dat", clouds[3:], [8])
    write_dat(tmp_path / "modelnet40_test_1024pts_fps.dat", clouds[:1], [1])
    splits = load_dataset(tmp_path, num_points=4)
    assert splits["train"].class_names == list(MODELNET40_CLASSES)
    assert len(MODELNET40_CLASSES) == 40
    assert sorted(MODELNET40_CLASSES) == list(MODELNET40_CLASSES)
    assert splits["train"].labels.tolist() == [3, 39, 0]
    np.testing.assert_array_equal(splits["train"][1]["points"], clouds[1, :4, :3])
    assert splits["test"].labels.tolist() == [8]
    write_dat(tmp_path / "modelnet40_train_8192pts_fps.dat", clouds[:3], [3, 40, 0])
    with pytest.raises(PointCloudError, match="train_8192pts_fps.dat: label 40 of cloud 1 is out of range"):
        load_dataset(tmp_path)
    (tmp_path / "modelnet40_test_8192pts_fps.dat").unlink()
    (tmp_path / "modelnet40_test_1024pts_fps.dat").unlink()
    write_dat(tmp_path / "modelnet40_train_8192pts_fps.dat", clouds[:3], [3, 3, 0])
    with pytest.raises(PointCloudError, match="(?s)test_8192pts_fps.dat: no such file.*Point-BERT"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "loaded", [7, [1], [[1], [2]], [[np.zeros((4, 3))], [0.5]], [[np.zeros((4, 2))], [0]], [[], []], {"a": 1}]
)
def test_dat_of_other_content(tmp_path, loaded):
    (tmp_path / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps(loaded))
    with pytest.raises(PointCloudError, match="train_8192pts_fps.dat"):
        load_dataset(tmp_path)


def test_published_few_shot_fold(tmp_path, rng):
    clouds = rng.normal(size=(6, 9, 6)).astype(np.float32)
    rows = [(cloud, label, "name") for cloud, label in zip(clouds, [0, 1, 0, 1, 1, 0], strict=True)]
    path = tmp_path / "0.pkl"
    path.write_bytes(pickle.dumps({"train": rows[:4], "test": rows[4:]}))
    splits = read_few_shot_fold(path, num_points=5)
    assert splits["train"].labels.tolist() == [0, 1, 0, 1]
    assert splits["test"].labels.tolist() == [1, 0]
    np.testing.assert_array_equal(splits["test"][1]["points"], clouds[5, :5, :3])
    named = read_few_shot_fold(path, class_names=["chair", "lamp"])
    assert named["train"].class_names == ["chair", "lamp"]
    for wrong in ([1], {"train": rows}, {"train": [], "test": rows}, {"train": [(clouds[0],)], "test": rows}):
        path.write_bytes(pickle.dumps(wrong))
        with pytest.raises(PointCloudError, match="0.pkl: "):
            read_few_shot_fold(path)


@pytest.mark.parametrize(
    ("variant", "folder", "stem"),
    [
        ("obj_bg", "main_split", "objectdataset"),
        ("obj_only", "main_split_nobg", "objectdataset"),
        ("pb_t50_rs", "main_split", "objectdataset_augmentedrot_scale75"),
    ],
)
def test_scanobjectnn(tmp_path, rng, variant, folder, stem):
    clouds = rng.normal(size=(5, 16, 3)).astype(np.float32)
    write_h5(tmp_path / "h5_files" / folder / f"training_{stem}.h5", clouds[:3], [0, 14, 7], mask=np.ones((3, 16)))
    write_h5(tmp_path / "h5_files" / folder / f"test_{stem}.h5", clouds[3:], [1, 2])
    layout = f"scanobjectnn_{variant}"
    given = [(tmp_path, None), (tmp_path / "h5_files", layout), (tmp_path / "h5_files" / folder, None)]
    for path, name in given:
        splits = load_dataset(path, name)
        assert splits["train"].class_names == list(SCANOBJECTNN_CLASSES)
        assert splits["train"].labels.tolist() == [0, 14, 7]
        np.testing.assert_array_equal(splits["test"][1]["points"], clouds[4])
    other = "scanobjectnn_obj_only" if variant != "obj_only" else "scanobjectnn_obj_bg"
    with pytest.raises(PointCloudError, match=f"(?s)is not of layout '{other}'.*from: https://hkust-vgd"):
        load_dataset(tmp_path, other)
    (tmp_path / "h5_files" / folder / f"test_{stem}.h5").unlink()
    with pytest.raises(PointCloudError, match=f"test_{stem}.h5: no such file"):
        load_dataset(tmp_path)


def test_scanobjectnn_with_several_variants_asks(tmp_path, rng):
    for stem in ("objectdataset", "objectdataset_augmentedrot_scale75"):
        for split in ("training", "test"):
            write_h5(tmp_path / "main_split" / f"{split}_{stem}.h5", rng.normal(size=(2, 8, 3)), [0, 1])
    with pytest.raises(PointCloudError, match="choose one with layout: scanobjectnn_obj_bg, scanobjectnn_pb_t50_rs"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path, "scanobjectnn_pb_t50_rs")["train"]) == 2


@pytest.fixture
def shapenetpart_hdf5(tmp_path, rng):
    clouds = rng.normal(size=(6, 16, 3)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1])
    parts = rng.integers(0, 2, (6, 16)).astype(np.uint8) + 2 * labels[:, None].astype(np.uint8)
    for index, split in enumerate(("train", "val", "test")):
        part = slice(2 * index, 2 * index + 2)
        write_h5(tmp_path / f"ply_data_{split}0.h5", clouds[part], labels[part, None], pid=parts[part])
        (tmp_path / f"{split}_hdf5_file_list.txt").write_text(f"ply_data_{split}0.h5\n")
    (tmp_path / "all_object_categories.txt").write_text("Airplane\t02691156\nBag\t02773838\n")
    table = [["02691156", 0], ["02691156", 1], ["02773838", 0], ["02773838", 1]]
    (tmp_path / "overallid_to_catid_partid.json").write_text(json.dumps(table))
    return tmp_path, clouds, labels, parts


@pytest.mark.parametrize("table", [True, False])
def test_shapenetpart_hdf5(shapenetpart_hdf5, table):
    root, clouds, labels, parts = shapenetpart_hdf5
    if not table:
        (root / "overallid_to_catid_partid.json").unlink()
    splits = load_dataset(root)
    assert list(splits) == ["train", "validation", "test"]
    for index, dataset in enumerate(splits.values()):
        assert dataset.class_names == ["Airplane", "Bag"]
        assert dataset.class_parts == [[0, 1], [2, 3]]
        assert dataset.num_parts == 4
        for place, item in enumerate(dataset, start=2 * index):
            np.testing.assert_array_equal(item["points"], clouds[place])
            np.testing.assert_array_equal(item["part_labels"], parts[place])
            assert item["labels"] == labels[place]
    cut = load_dataset(root, num_points=5)["test"][0]
    for point, part in zip(cut["points"].numpy(), cut["part_labels"], strict=True):
        assert parts[4][(clouds[4] == point).all(axis=1)] == part


def test_shapenetpart_hdf5_errors(shapenetpart_hdf5):
    root, clouds, labels, parts = shapenetpart_hdf5
    parts[3, 0] = 0
    write_h5(root / "ply_data_val0.h5", clouds[2:4], labels[2:4, None], pid=parts[2:4])
    with pytest.raises(PointCloudError, match="part 0 is out of range for class 1, whose parts are"):
        load_dataset(root)
    write_h5(root / "ply_data_val0.h5", clouds[2:4], labels[2:4, None], pid=parts[2:4, :5])
    with pytest.raises(PointCloudError, match="ply_data_val0.h5: 'pid' must be integers of shape"):
        load_dataset(root)


def test_shapenetpart_txt(tmp_path, rng):
    (tmp_path / "synsetoffset2category.txt").write_text("Airplane\t02691156\nBag\t02773838\n")
    tables, shapes = {}, {"train": [], "val": [], "test": []}
    for split in shapes:
        for code, first in (("02691156", 0), ("02773838", 4)):
            name = f"{split}{code[-3:]}"
            table = rng.normal(size=(int(rng.integers(10, 30)), 7)).round(4)
            table[:, 6] = rng.integers(first, first + 2, len(table))
            (tmp_path / code).mkdir(exist_ok=True)
            np.savetxt(tmp_path / code / f"{name}.txt", table, fmt="%.4f")
            tables[name] = table
            shapes[split].append(f"shape_data/{code}/{name}")
    (tmp_path / "train_test_split").mkdir()
    for split, names in shapes.items():
        (tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))
    splits = load_dataset(tmp_path)
    assert list(splits) == ["train", "validation", "test"]
    for dataset, names in zip(splits.values(), shapes.values(), strict=True):
        assert dataset.class_parts == [[0, 1], [4, 5]]
        for item, name in zip(dataset, names, strict=True):
            np.testing.assert_allclose(item["points"], tables[name.rpartition("/")[2]][:, :3], atol=1e-6)
            np.testing.assert_array_equal(item["part_labels"], tables[name.rpartition("/")[2]][:, 6])
    bad = tmp_path / "02691156" / "test156.txt"
    bad.write_text("1 2 3 0 0 1 0.5\n1 2 3 0 0 1 1\n")
    with pytest.raises(
        PointCloudError, match="test156.txt: labels must be whole numbers, got 0.5; is the last column the label"
    ):
        load_dataset(tmp_path)
    bad.unlink()
    with pytest.raises(PointCloudError, match="(?s)test156.txt: no such file.*from: https://shapenet"):
        load_dataset(tmp_path)


def test_unusable_folders(tmp_path):
    with pytest.raises(PointCloudError, match="none: no such folder; .* layouts are modelnet40_hdf5"):
        load_dataset(tmp_path / "none")
    with pytest.raises(PointCloudError, match="none: no such folder.*\n  expected: .*\n  from: https"):
        load_dataset(tmp_path / "none", "modelnet40_dat")
    (tmp_path / "a.ply").write_bytes(b"")
    with pytest.raises(PointCloudError, match="is a file"):
        load_dataset(tmp_path / "a.ply")
    with pytest.raises(PointCloudError, match="(?s)has none of the layouts.*modelnet40_hdf5: .*folder: a folder for"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match="unknown layout 'modelnet'; there are modelnet40_hdf5"):
        load_dataset(tmp_path, "modelnet")
    assert all(item.expected and item.source for item in LAYOUTS.values())


def test_real_modelnet40(modelnet40_dev):
    splits = load_dataset(modelnet40_dev)
    train, test = splits["train"], splits["test"]
    assert (len(train), len(test), train.num_classes) == (7873, 1970, 40)
    assert train.class_names == list(MODELNET40_CLASSES)
    assert set(train.labels) == set(test.labels) == set(range(40))
    points = train[4321]["points"]
    assert points.shape == (1024, 3)
    assert points.norm(dim=1).max().item() == pytest.approx(1, abs=1e-4)
    fold = few_shot_fold(train, way=10, shot=20, fold=9)
    assert [len(fold[split]) for split in fold] == [200, 200]


def test_real_parts(coseg_parts):
    splits = load_dataset(coseg_parts, num_points=512)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 758, "test": 134}
    train = splits["train"]
    assert (train.class_names, train.num_parts) == (["aliens", "chairs", "vases"], 11)
    assert train.class_parts == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10]]
    for index in (0, 300, 757):
        item = train[index]
        assert item["points"].shape == (512, 3)
        assert set(item["part_labels"].tolist()) <= set(train.class_parts[item["labels"]])
