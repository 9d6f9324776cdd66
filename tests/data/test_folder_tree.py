"""Which files of a tree are clouds: links, twins, scenes of arrays, what other programs leave, splits by any name."""

import os
import random
import shutil
import unicodedata
import warnings

import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, load_dataset


def sizes(root, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {split: len(dataset) for split, dataset in load_dataset(root, progress=False, **options).items()}


@pytest.fixture
def scan(rng, tmp_path):
    """Write clouds of 20 points, as text or as arrays."""

    def write(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cloud = rng.normal(size=(20, 3)).astype(np.float32)
            np.save(path, cloud) if path.suffix == ".npy" else np.savetxt(path, cloud)
        return tmp_path

    return write


def names_of(folder, number=3, classes=("ball", "box"), suffix="xyz"):
    return [f"{folder}{name}/{index}.{suffix}" for name in classes for index in range(number)]


@pytest.mark.parametrize("splits", [("train_set", "test_set"), ("training", "validation"), ("trainval", "eval")])
@pytest.mark.parametrize("above", [True, False])
def test_splits_by_other_names(scan, splits, above):
    for split, number in zip(splits, (3, 2), strict=True):
        for name in ("ball", "box"):
            folder = f"{split}/{name}" if above else f"{name}/{split}"
            root = scan(*(f"{folder}/{index}.xyz" for index in range(number)))
    assert sizes(root) == {"train": 6, "test": 4}
    assert load_dataset(root)["train"].class_names == ["ball", "box"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (names_of("set_a/") + names_of("set_b/"), "are 'set_a' and 'set_b' classes, or splits of .* 'ball', 'box'"),
        (names_of("train/") + names_of("my_test_clouds_2/"), "is 'my_test_clouds_2' a split, as 'train' is"),
        (names_of("train/") + names_of("", 2, ("bus", "car")), "is 'train' the training split, or a class like 'bus'"),
        (names_of("train/") + names_of("test/") + ["test/x.xyz"], "test: holds clouds next to the folders"),
        (["ball/train/0.xyz", "ball/test/0.xyz", "box/0.xyz"], "box: other classes have folders for their splits"),
        (["ball/train/0.xyz", "ball/test/0.xyz", "ball/x.xyz"], "ball: other .* and clouds"),
        (names_of("test/", classes=("ball",)) + names_of("train/") + names_of("training/"), "'train' and 'training'"),
    ],
)
def test_splits_that_cannot_be_told(scan, names, message):
    with pytest.raises(PointCloudError, match=message):
        load_dataset(scan(*names))


def test_class_of_trains(scan):
    root = scan(*names_of("", classes=("bus", "train", "toy_train")))
    assert load_dataset(root)["train"].class_names == ["bus", "toy_train", "train"]


def test_numbered_folders_of_classes(scan):
    root = scan(*(f"{name}/batch{batch}/{i}.xyz" for name in ("ball", "box") for batch in (1, 2) for i in range(2)))
    assert sizes(root) == {"train": 6, "test": 2}


def test_clouds_and_lists_that_are_not_used_are_named(scan):
    root = scan(*names_of("", 2), "stray.xyz")
    (root / "train.txt").write_text("ball/0.xyz\n")
    with (
        pytest.warns(UserWarning, match="to no class"),
        pytest.warns(UserWarning, match=r"lists \['train.txt'\]"),
    ):
        load_dataset(root)


def test_linked_folders_and_files(scan):
    root = scan(*names_of("set/"), *names_of("elsewhere/", classes=("more",)), "elsewhere/one.xyz")
    (root / "set/ball/batch").symlink_to(root / "elsewhere/more")
    (root / "set/box/9.xyz").symlink_to(root / "elsewhere/one.xyz")
    assert sum(sizes(root / "set").values()) == 10
    # Within a class what is reached twice counts once.
    (root / "set/ball/again").symlink_to(root / "elsewhere/more")
    (root / "set/box/10.xyz").symlink_to(root / "set/box/0.xyz")
    (root / "set/box/itself").symlink_to(root / "set/box")
    with pytest.warns(UserWarning, match="3 links lead to what is in the same class already"):
        splits = load_dataset(root / "set")
    assert sum(map(len, splits.values())) == 10


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("ball/loop", ".", "a link to .*, a folder that holds the link itself"),
        ("ball/root", "/", "a link to /, a folder that holds the link itself"),
        ("ball/other", "box", "by a link: a cloud belongs to one class"),
        ("ball/7.xyz", "box/0.xyz", r"7.xyz \(class 'ball'\).* the same file, by a link"),
        ("ball/7.xyz", "nowhere.xyz", "7.xyz: is a link that leads nowhere"),
        ("ball/7", "nowhere", "7: is a link that leads nowhere"),
        ("ball/7.xyz", "ball/7.xyz", "7.xyz: is a link that leads nowhere"),
    ],
)
def test_links_that_are_refused(scan, link, target, message):
    root = scan(*names_of(""))
    (root / link).symlink_to(root / target)
    with pytest.raises(PointCloudError, match=message):
        load_dataset(root)


def test_one_cloud_in_two_splits(scan):
    root = scan(*names_of("train/"), *names_of("test/", 1))
    (root / "test/ball/9.xyz").symlink_to(root / "train/ball/0.xyz")
    with pytest.raises(PointCloudError, match=r"\(class 'ball' of (train|test)\).*one split"):
        load_dataset(root)


@pytest.mark.parametrize(
    "twins",
    [
        ("ball/7.xyz", "ball/7.npy"),
        ("ball/7.csv", "ball/7.pts"),
        ("ball/7.asc", "ball/7.ASC"),
        ("ball/xyz/7.xyz", "ball/npy/7.npy"),
        ("ball/clouds/7.xyz", "ball/7.npy"),
        ("ball/Scan.xyz", "ball/scan.npy"),
    ],
)
def test_one_object_in_two_formats(scan, twins):
    with pytest.raises(PointCloudError, match="one object in two formats, or two objects"):
        load_dataset(scan(*names_of(""), *twins))


def test_names_that_are_not_twins(scan):
    root = scan(*names_of("ball/batch1/", 2, ("",)), "ball/batch2/0.npy", "ball/a.b.xyz", "ball/a.c.npy", "box/0.npy")
    assert sum(sizes(scan("box/1.npy")).values()) == 7
    assert load_dataset(root)["train"].class_names == ["ball", "box"]


def test_scenes_of_arrays(scan, rng):
    names = [f"{name}/s{index}/coord.npy" for name in ("ball", "box") for index in range(3)]
    root = scan(*names)
    for name in names:
        folder = (root / name).parent
        np.save(folder / "color.npy", rng.integers(0, 255, (20, 3)).astype(np.uint8))
        np.save(folder / "normal.npy", rng.normal(size=(20, 3)))
        np.save(folder / "segment.npy", np.arange(20) % 3)
        np.save(folder / "instance.npy", np.arange(20))
    assert sizes(root) == {"train": 4, "test": 2}
    splits = load_dataset(root, parts=True)
    assert splits["train"].class_parts == [[0, 1, 2], [0, 1, 2]]
    assert sorted(splits["train"][0]["part_labels"].tolist()) == sorted((np.arange(20) % 3).tolist())
    # Scenes in the splits themselves are of one category.
    scenes = root / "scenes"
    for split, name in (("train", "ball"), ("val", "box")):
        shutil.copytree(root / name, scenes / split)
    splits = load_dataset(scenes, "part_folder")
    assert (splits["train"].class_names, len(splits["train"]), len(splits["test"])) == (["scenes"], 3, 3)
    with pytest.raises(PointCloudError, match="'s0' is not a class"):
        load_dataset(root / "ball")
    shutil.rmtree(scenes)
    np.save(root / "ball/s0/segment200.npy", np.arange(20))
    with pytest.raises(PointCloudError, match="both .*segment.npy and .*segment200.npy can hold its labels"):
        load_dataset(root, parts=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ball/s/color.npy", "ball/s/normal.npy"), "color.npy: is it a cloud, or the color of one"),
        (("ball/s/coord.npy", "ball/s/color.npy", "ball/s/7.npy"), "an attribute of one cloud"),
        (("ball/s/coord.npy", "ball/s/points.npy", "ball/s/color.npy"), "an attribute of one cloud"),
        (("ball/coord.npy", "ball/color.npy"), "'ball' is not a class: it holds one cloud"),
    ],
)
def test_arrays_that_cannot_be_told(scan, names, message):
    with pytest.raises(PointCloudError, match=message):
        load_dataset(scan(*names_of("", classes=("box", "cone")), *names))


def test_attributes_by_appended_names_are_left_out(scan):
    root = scan(*names_of("", suffix="npy"), "ball/0_normals.npy", "ball/1_color.npy")
    with pytest.warns(UserWarning, match="2 files are taken for attributes .*0_normals.npy"):
        assert sum(map(len, load_dataset(root).values())) == 6


def test_what_other_programs_leave(scan):
    root = scan(
        *names_of("set/"),
        *("set/ball/._0.xyz", "set/@eaDir/0.xyz/SYNO@.xyz", "set/ball/@eaDir/0.xyz", "__MACOSX/set/ball/._0.xyz"),
        *("set/#recycle/old/1.xyz", "set/$RECYCLE.BIN/2.xyz", "set/box/__MACOSX/3.xyz", "set/.Trashes/4.xyz"),
        *("set/System Volume Information/5.xyz", "set/lost+found/6.xyz"),
    )
    for name in (".DS_Store", "set/.DS_Store", "set/ball/.DS_Store", "set/box/Thumbs.db", "set/box/desktop.ini"):
        (root / name).write_bytes(b"\0\0\0\1Bud1")
    assert sizes(root) == {"train": 4, "test": 2}
    # A release that was looked at by a Synology is found as well.
    (root / "@eaDir" / "train_files.txt").mkdir(parents=True)
    (root / "@eaDir" / "shape_names.txt").mkdir()
    assert sizes(root) == {"train": 4, "test": 2}


def test_names_in_other_writings(scan):
    twins = [unicodedata.normalize(form, "Tür") for form in ("NFC", "NFD")]
    root = scan(*names_of("a/", classes=("box", twins[1])), *names_of("b/", classes=("box", *twins)))
    splits = load_dataset(root / "a")
    assert splits["train"].class_names == ["Tür", "box"] or splits["train"].class_names == ["box", "Tür"]
    with pytest.raises(PointCloudError, match=r"folders '(Tu\\u0308r|T\\xfcr)' and .* look the same, 'Tür'"):
        load_dataset(root / "b")
    # Train and test folders from two machines are of the same class.
    root = scan(*names_of("c/train/", classes=("box", twins[0])), *names_of("c/test/", classes=("box", twins[1])))
    assert sizes(root / "c") == {"train": 6, "test": 6}


@pytest.mark.parametrize("place", ["%s/0.xyz", "train/%s/0.xyz"])
def test_class_folder_that_is_not_utf8(scan, place):
    name = os.fsdecode(b"M\xfchle")
    root = scan(*names_of("train/" if "train" in place else ""), place % name)
    with pytest.raises(PointCloudError, match=r"M\\xfchle: the name of this folder is not UTF-8"):
        load_dataset(root)


def test_file_whose_name_is_not_utf8(scan):
    """The names of files are in messages only."""
    root = scan(*names_of("", 2), os.fsdecode(b"ball/M\xfchle.xyz"), os.fsdecode(b"box/M\xfchle.xyz"))
    splits = load_dataset(root)
    names = [name for split in splits.values() for name in split.names_of(split.sample_ids)]
    assert sum(name.endswith("M\\xfchle.xyz") for name in names) == 2


# Few returns, of which a draw of points may have none.
ZEROS = "0 0 0\n" * 1000 + "1 2 3\n" + "0 0 0\n" * 1000


@pytest.mark.parametrize(
    "content", ["1 2 3\n" * 50, "0 0 0\n0 0 0\n", "1 2 3\n", "nan 0 0\n" * 5 + "1 2 3\n" * 5, ZEROS]
)
@pytest.mark.parametrize("parts", [False, True])
def test_clouds_in_one_place(scan, content, parts):
    root = scan(*names_of(""))
    if parts:
        for path in root.rglob("*.xyz"):
            path.with_suffix(".seg").write_text("0\n" * 20)
        (root / "ball/9.seg").write_text("0\n" * len(content.splitlines()))
    (root / "ball/9.xyz").write_text(content)
    options = {"parts": parts, "drop_invalid": "nan" in content}
    with pytest.raises(PointCloudError, match=r"9.xyz: ((all|2000 of) its \d+ points are in one place|holds 1 point)"):
        load_dataset(root, **options)
    with pytest.warns(UserWarning, match=r"1 of 7 files are skipped:\n.*9.xyz"):
        splits = load_dataset(root, skip_bad_files=True, **options)
    assert sum(map(len, splits.values())) == 6


_WORDS = (
    "ball",
    "box",
    "train",
    "test",
    "train_set",
    "points",
    "labels",
    "coord",
    "color",
    "segment",
    "1",
    "2",
    "a b",
)
_WORDS += (
    ".git",
    "__MACOSX",
    "@eaDir",
    "Tür",
    unicodedata.normalize("NFD", "Tür"),
    "Ball",
    os.fsdecode(b"\xfc"),
    "x\n",
)
_ENDINGS = ("", ".xyz", ".npy", ".txt", ".seg", ".label", ".ply", ".h5", ".npz", ".bin", ".XYZ", ".docx", ".json")


def grow(root, draw):
    """Make a random tree: clouds, junk under any ending, empty folders, links to anywhere in it."""
    folders = [root]
    for _ in range(draw.randint(1, 14)):
        parent, name = draw.choice(folders), draw.choice(_WORDS)
        kind = draw.random()
        path = parent / (name if kind < 0.4 else name + draw.choice(_ENDINGS))
        if os.path.lexists(path):
            continue
        if kind < 0.4:
            path.mkdir()
            folders.append(path)
        elif kind < 0.5:
            path.symlink_to(draw.choice([*folders, root.parent, root / "nowhere", path]))
        elif kind < 0.55:
            os.mkfifo(path)
        elif path.suffix == ".npy" and kind < 0.9:
            np.save(
                path, np.random.default_rng(draw.randint(0, 9)).normal(size=draw.choice([(9, 3), (9,), (2, 9, 3)]))
            )
        elif kind < 0.9:
            path.write_text("0 0 0 1\n1 2 3 0\n4 5 7 1\n" if draw.random() < 0.8 else "1\n0\n1\n")
        else:
            path.write_bytes(bytes(draw.choices(range(256), k=draw.randint(0, 40))))


@pytest.mark.parametrize("seed", range(4))
def test_random_trees_give_only_our_errors(tmp_path, scan, seed):
    draw, loaded = random.Random(seed), 0
    for number in range(40):
        root = tmp_path / f"tree{number}" / "set"
        root.mkdir(parents=True)
        if number % 2:  # a data set, and things that do not belong to it
            scan(*names_of(f"tree{number}/set/"))
        grow(root, draw)
        for options in ({}, {"parts": True}, {"skip_bad_files": True, "drop_invalid": True}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    splits = load_dataset(root, progress=False, cache_dir=None, **options)
                    items = [item for split in splits.values() for item in split]
                except PointCloudError:
                    continue
            loaded += 1
            assert all(len(item["points"]) >= 2 and np.ptp(item["points"].numpy(), axis=0).max() > 0 for item in items)
        shutil.rmtree(root.parent)
    assert loaded > 0
