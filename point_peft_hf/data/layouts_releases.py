"""The public releases: ModelNet40 as .h5, .txt and .dat, ScanObjectNN, ShapeNetPart, and few-shot folds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import MAX_PARTS, PointCloudDataset, check_class_names, check_labels, find_class_parts
from .errors import PointCloudError, shorten
from .layouts_arrays import Arrays, check_arrays, join_arrays, read_arrays
from .layouts_folders import open_dataset
from .names import read_lines
from .part_files import find_label_file, read_labelled_cloud, read_part_table
from .restricted_pickle import load_restricted_pickle
from .sources import LoadOptions, check_extent, require_files

MODELNET40_CLASSES = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone"),
    *("cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp"),
    *("laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink"),
    *("sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox"),
)
SCANOBJECTNN_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)
_SHAPENET_SPLITS = {"train": "train", "validation": "val", "test": "test"}
Splits = dict[str, PointCloudDataset]


def read_names(path: Path) -> list[str]:
    """Read the names of the classes, one a line."""
    return check_class_names(read_lines(path), str(path))


def _require(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return path


def _read_h5(
    path: Path, num_classes: int, options: LoadOptions, parts: bool = False, first: int | None = None
) -> Arrays:
    """Read and check a file with `data`, `label` and, with parts, `pid`; of each cloud the `first` points."""
    arrays = read_arrays(path, ("data", "label", "pid" if parts else None))
    return check_arrays(path, arrays, num_classes, options, first)


def _listed_files(root: Path, name: str) -> list[Path]:
    """Read a list of files; its lines have the folder of whoever made the release, so that only the names count."""
    paths = [root / line.replace("\\", "/").rsplit("/", 1)[-1] for line in read_lines(root / name)]
    if not paths:
        raise PointCloudError(f"{root / name}: lists no file")
    return [_require(path) for path in paths]


def load_modelnet40_hdf5(root: Path, options: LoadOptions) -> Splits:
    """Load the layout of modelnet40_ply_hdf5_2048."""
    names = read_names(root / "shape_names.txt")
    splits = {}
    for split in ("train", "test"):
        listing = f"{split}_files.txt"
        if split == "train" or (root / listing).exists():
            files = _listed_files(root, listing)
            read = [_read_h5(path, len(names), options, first=options.num_points) for path in files]
            splits[split] = join_arrays(read, names, options, "first")  # the points are in random order
    return splits


def load_modelnet40_normal(root: Path, options: LoadOptions) -> Splits:
    """Load the layout of modelnet40_normal_resampled, or its ModelNet10 lists when those are the only ones."""
    prefix = "modelnet40" if (root / "modelnet40_train.txt").exists() else "modelnet10"
    names = read_names(root / f"{prefix}_shape_names.txt")
    listed = {}
    for split in ("train", "test"):
        listing = root / f"{prefix}_{split}.txt"
        shapes = [(shape.rpartition("_")[0], shape) for shape in read_lines(listing)]
        listed[split] = _list_shapes(listing, shapes, names, "class", f"{prefix}_shape_names.txt", root)
    require_files([file for files, _ in listed.values() for file in files], options)
    # The points of the release are ordered so that the first ones cover the shape.
    return {split: open_dataset(*listed[split], names, root, options, sampling="first") for split in listed}


def _list_shapes(
    listing: Path, shapes: Sequence[tuple[str, str]], known: Sequence[str], what: str, where: str, root: Path
) -> tuple[list[Path], list[int]]:
    """Give the files and labels of shapes, pairs of folder and name; a label is the place of the folder in `known`."""
    unknown = sorted({folder for folder, _ in shapes} - set(known))
    if unknown or not shapes:
        raise PointCloudError(f"{listing}: names shapes of the {what} {unknown[:1]}, which {where} lacks")
    return [root / folder / f"{shape}.txt" for folder, shape in shapes], [known.index(folder) for folder, _ in shapes]


def find_scanobjectnn(path: Path, folder: str, stem: str) -> Path | None:
    """Find the folder, main_split or main_split_nobg, of a variant of ScanObjectNN: the one given or one below it."""
    candidates = [path / folder, path / "h5_files" / folder]
    # A folder of another name that holds the files is taken for the variant with background.
    if ("nobg" in folder) == ("nobg" in path.name):
        candidates.insert(0, path)
    return next((place for place in candidates if (place / f"training_{stem}.h5").is_file()), None)


def load_scanobjectnn(root: Path, options: LoadOptions, stem: str) -> Splits:
    """Load a variant of ScanObjectNN."""
    splits = {}
    for split, prefix in (("train", "training"), ("test", "test")):
        read = _read_h5(_require(root / f"{prefix}_{stem}.h5"), len(SCANOBJECTNN_CLASSES), options)
        splits[split] = join_arrays([read], SCANOBJECTNN_CLASSES, options)
    return splits


def load_shapenetpart_hdf5(root: Path, options: LoadOptions) -> Splits:
    """Load the layout of the HDF5 release of ShapeNetPart."""
    categories = [line.split() for line in read_lines(root / "all_object_categories.txt")]
    names = check_class_names([words[0] for words in categories], str(root / "all_object_categories.txt"))
    splits = {}
    for split, short in _SHAPENET_SPLITS.items():
        listing = f"{short}_hdf5_file_list.txt"
        if (root / listing).exists():
            read = [_read_h5(path, len(names), options, parts=True) for path in _listed_files(root, listing)]
            splits[split] = join_arrays(read, names, options)
    class_parts = _parts_by_category(root, [words[1] for words in categories if len(words) > 1])
    if class_parts is None:
        class_parts = find_class_parts(splits.values())
    for split, dataset in splits.items():
        for label, (found, allowed) in enumerate(zip(dataset.occurring_parts(), class_parts, strict=False)):
            if found - set(allowed):
                raise PointCloudError(
                    f"{root}: {split}: part {min(found - set(allowed))} is out of range for class {label}, whose "
                    f"parts are {allowed}"
                )
        dataset.set_parts(class_parts)
    return splits


def _parts_by_category(root: Path, codes: list[str]) -> list[list[int]] | None:
    """Read which parts each category has from the table of the release, None without it."""
    path = root / "overallid_to_catid_partid.json"
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text())
        return [[part for part, (code, _) in enumerate(table) if code == wanted] for wanted in codes]
    except (ValueError, TypeError) as error:
        raise PointCloudError(f"{path}: cannot be read as a list of [category, part]: {error}") from None


def load_shapenetpart_txt(root: Path, options: LoadOptions) -> Splits:
    """Load a text release of ShapeNetPart.

    That with normals has rows of x y z, normal, part; the first one has `points/*.pts` and `points_label/*.seg` in the
    folder of each category, whose parts are counted from 1 in each category and get numbers of their own here.
    """
    listing = root / "synsetoffset2category.txt"
    rows = [line.split() for line in read_lines(listing)]
    if any(len(row) < 2 for row in rows):
        raise PointCloudError(f"{listing}: expected a name and a number in each line")
    names, codes = check_class_names([row[0] for row in rows], str(listing)), [row[1] for row in rows]
    listed = {}
    for split, short in _SHAPENET_SPLITS.items():
        path = root / "train_test_split" / f"shuffled_{short}_file_list.json"
        if split == "validation" and not path.exists():
            continue
        try:
            shapes = [Path(entry).parts[-2:] for entry in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise PointCloudError(f"{path}: cannot be read as a list of shapes: {error}") from None
        listed[split] = _list_shapes(path, shapes, codes, "category", listing.name, root)
    first_version = any((root / code / "points").is_dir() for code in codes)
    reader = partial(read_part_table, drop_invalid=options.drop_invalid)
    if first_version:
        listed = {
            split: ([file.parent / "points" / f"{file.stem}.pts" for file in files], labels)
            for split, (files, labels) in listed.items()
        }
        reader = partial(read_labelled_cloud, drop_invalid=options.drop_invalid)
    require_files([file for files, _ in listed.values() for file in files], options)
    how = {"reader": reader, "find_labels": find_label_file if first_version else None}
    splits = {split: open_dataset(*listed[split], names, root, options, **how) for split in listed}
    if first_version:
        _number_parts_anew(splits.values(), len(names))
    class_parts = find_class_parts(splits.values())
    for dataset in splits.values():
        dataset.set_parts(class_parts)
    return splits


class _Renumbered(Sequence):
    """Clouds whose parts, counted from 1 in each category, start with the `first` number of theirs."""

    def __init__(self, clouds: Sequence, first: np.ndarray):
        self.clouds, self.first, self.files = clouds, first, clouds.files

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> np.ndarray:
        cloud = np.array(self.clouds[index])
        cloud[:, 3] = np.where(cloud[:, 3] > 0, cloud[:, 3] - 1 + self.first[index], cloud[:, 3])
        return cloud


def _number_parts_anew(datasets: Sequence[PointCloudDataset], num_classes: int) -> None:
    """Give the parts of each category, counted from 1, numbers that no other category has."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for dataset in datasets:
        for file, cloud, label in zip(dataset.clouds.files, dataset.clouds, dataset.labels, strict=True):
            parts = cloud[:, 3]
            if (parts == 0).any() or parts.max() >= MAX_PARTS:
                raise PointCloudError(
                    f"{file}: has the label {0 if (parts == 0).any() else int(parts.max())}, but this release counts "
                    "the parts of a category from 1; is it another data set? Load it with layout='part_folder', where "
                    "a number is the same part in each category"
                )
            counts[label] = max(counts[label], int(parts.max()))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for dataset in datasets:
        dataset.clouds = _Renumbered(dataset.clouds, starts[dataset.labels])


def load_modelnet40_dat(root: Path, options: LoadOptions) -> Splits:
    """Load modelnet40_train_8192pts_fps.dat and its test file: pickles of a list of clouds and a list of labels."""
    names = next((read_names(path) for path in sorted(root.glob("modelnet40_shape_names.txt"))), MODELNET40_CLASSES)
    splits = {}
    for split in ("train", "test"):
        paths = list(root.glob(f"modelnet40_{split}_*.dat"))
        if not paths:
            raise FileNotFoundError(2, "No such file", str(root / f"modelnet40_{split}_8192pts_fps.dat"))
        largest = max(sorted(paths), key=lambda path: int((re.search(r"_(\d+)pts", path.name) or "00")[1]))
        clouds, labels = read_dat(largest, len(names), options.num_points)
        splits[split] = PointCloudDataset(
            clouds, labels, names, num_points=options.num_points, sampling="first", seed=options.seed
        )
    return splits


def read_dat(
    path: str | os.PathLike, num_classes: int, num_points: int | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Read a .dat file of ModelNet40, a pickle of `[clouds, labels]`, without running code from it.

    Of each cloud the first points are kept; those of the published files are ordered by farthest point sampling.
    Returns clouds of shape `(num_points, 3)`, float32, and labels of shape `(num_clouds,)`, int64.
    """
    path = Path(path)
    loaded = load_restricted_pickle(path)
    is_pair = isinstance(loaded, list | tuple) and len(loaded) == 2
    if not is_pair or not all(isinstance(item, list | tuple | np.ndarray) and np.ndim(item) != 0 for item in loaded):
        raise PointCloudError(f"{path}: expected a list of clouds and a list of labels, got {_describe(loaded)}")
    clouds, labels = loaded
    if len(clouds) != len(labels) or len(clouds) == 0:
        raise PointCloudError(f"{path}: has {len(clouds)} clouds and {len(labels)} labels")
    clouds = [_cloud(cloud, f"{path}: cloud {index}", num_points) for index, cloud in enumerate(clouds)]
    labels = [_label(label, f"{path}: cloud {index}") for index, label in enumerate(labels)]
    return clouds, check_labels(np.array(labels), num_classes, str(path))


def read_few_shot_fold(
    path: str | os.PathLike, *, num_points: int | None = None, class_names: list[str] | None = None
) -> Splits:
    """Read a published fold of few-shot classification, such as `5way_10shot/0.pkl`.

    Args:
        path: The file: a pickle of `{"train": [...], "test": [...]}`, lists of (cloud, label, ...).
        num_points: Points of an item: the first ones of each cloud.
        class_names: Names of the classes 0, 1, ...; by default their numbers.

    Returns:
        Data sets `"train"` (the clouds to learn from) and `"test"`.

    Raises:
        PointCloudError: If the file is broken, would run code, or holds something else.
    """
    path = Path(path)
    loaded = load_restricted_pickle(path)
    if not isinstance(loaded, dict) or not {"train", "test"} <= set(loaded):
        raise PointCloudError(f"{path}: expected a dictionary of 'train' and 'test', got {_describe(loaded)}")
    read = {}
    for split in ("train", "test"):
        rows = loaded[split]
        if not isinstance(rows, list | tuple) or not rows:
            raise PointCloudError(f"{path}: {split!r} must be a list of (cloud, label), got {_describe(rows)}")
        for index, row in enumerate(rows):
            if not isinstance(row, list | tuple) or len(row) < 2:
                raise PointCloudError(f"{path}: {split} {index} must be (cloud, label), got {_describe(row)}")
        clouds = [_cloud(row[0], f"{path}: {split} {index}", num_points) for index, row in enumerate(rows)]
        read[split] = clouds, np.array([_label(row[1], f"{path}: {split} {i}") for i, row in enumerate(rows)])
    if class_names is None:
        class_names = [str(number) for number in range(1 + max(int(labels.max()) for _, labels in read.values()))]
    return {
        split: PointCloudDataset(
            clouds,
            check_labels(labels, len(class_names), str(path)),
            class_names,
            num_points=num_points,
            sampling="first",
        )
        for split, (clouds, labels) in read.items()
    }


def _cloud(value: Any, where: str, num_points: int | None) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] < 3 or len(value) < 2:
        raise PointCloudError(f"{where}: expected an array of shape (num_points, 3 or more), got {_describe(value)}")
    cloud = np.array(value[:num_points, :3], dtype=np.float32)  # a copy, so that normals and later points are freed
    if not np.isfinite(cloud).all():
        raise PointCloudError(f"{where}: has NaN or infinite coordinates")
    check_extent(cloud, where)
    return cloud


def _label(value: Any, where: str) -> int:
    array = np.asarray(value) if isinstance(value, int | np.integer | np.ndarray | list | tuple) else np.empty(0)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise PointCloudError(f"{where}: expected one integer as its label, got {shorten(value)}")
    return int(array.reshape(-1)[0])


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return shorten(value)
