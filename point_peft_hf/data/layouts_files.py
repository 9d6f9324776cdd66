"""Releases of one file a cloud: ModelNet40 normal_resampled, ShapeNetPart as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .dataset import MAX_PARTS, PointCloudDataset, check_class_names
from .errors import PointCloudError
from .formats.text import read_table
from .label_files import find_label_file
from .layouts_folders import files_dataset
from .layouts_hdf5 import parts_of_classes, read_names
from .names import read_lines
from .part_files import read_labelled_cloud
from .readers import errors_of
from .sources import LoadOptions, check_extent, open_files, require_files


def load_modelnet40_normal(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load the layout of modelnet40_normal_resampled, or its ModelNet10 lists when those are the only ones."""
    prefix = "modelnet40" if (root / "modelnet40_train.txt").exists() else "modelnet10"
    names = read_names(root / f"{prefix}_shape_names.txt")
    listed = {}
    for split in ("train", "test"):
        listing = root / f"{prefix}_{split}.txt"
        shapes = read_lines(listing)
        classes = [shape.rpartition("_")[0] for shape in shapes]
        unknown = sorted(set(classes) - set(names))
        if unknown or not shapes:
            raise PointCloudError(
                f"{listing}: names shapes of the class {unknown[:1]}, which {prefix}_shape_names.txt lacks"
            )
        files = [root / name / f"{shape}.txt" for name, shape in zip(classes, shapes, strict=True)]
        listed[split] = files, [names.index(name) for name in classes]
    require_files([file for files, _ in listed.values() for file in files], options.files)
    # The points of the release are ordered so that the first ones cover the shape.
    return {
        split: files_dataset(files, labels, names, root, options, "first") for split, (files, labels) in listed.items()
    }


def load_shapenetpart_txt(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load a text release of ShapeNetPart.

    That with normals has rows of x y z, normal, part; the first one has `points/*.pts` and `points_label/*.seg` in the
    folder of each category, whose parts are counted from 1 in each category and get numbers of their own here.
    """
    listing = root / "synsetoffset2category.txt"
    rows = [line.split() for line in read_lines(listing)]
    if any(len(row) < 2 for row in rows):
        raise PointCloudError(f"{listing}: expected a name and a number in each line")
    names = check_class_names([row[0] for row in rows], str(listing))
    codes = {row[1]: label for label, row in enumerate(rows)}
    listed, opened, labels = {}, {}, {}
    first_version = any((root / code / "points").is_dir() for code in codes)
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        path = root / "train_test_split" / f"shuffled_{short}_file_list.json"
        if split == "validation" and not path.exists():
            continue
        try:
            shapes = [Path(entry).parts[-2:] for entry in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise PointCloudError(f"{path}: cannot be read as a list of shapes: {error}") from None
        unknown = sorted({shape[0] for shape in shapes} - set(codes))
        if unknown or not shapes:
            raise PointCloudError(f"{path}: names shapes of the category {unknown[:1]}, which {listing.name} lacks")
        files = [root / code / (f"points/{shape}.pts" if first_version else f"{shape}.txt") for code, shape in shapes]
        listed[split] = files, np.array([codes[code] for code, _ in shapes], dtype=np.int64)
    require_files([file for files, _ in listed.values() for file in files], options.files)
    reader = partial(read_labelled_cloud if first_version else read_part_cloud, drop_invalid=options.drop_invalid)
    beside = find_label_file if first_version else None
    for split, (files, all_labels) in listed.items():
        opened[split], kept = open_files(files, root, reader, options.files, beside)
        labels[split] = all_labels[kept]
    if first_version:
        opened = _number_parts_anew(opened, labels, len(names), root)
    pairs = [
        (labels[split][index : index + 1], clouds[index][None, :, 3].astype(np.int64))
        for split, clouds in opened.items()
        for index in range(len(clouds))
    ]
    class_parts = parts_of_classes(pairs, len(names))
    return {
        split: PointCloudDataset(
            clouds, labels[split], names, num_points=options.num_points, seed=options.seed, class_parts=class_parts
        )
        for split, clouds in opened.items()
    }


class _Renumbered(Sequence):
    """Clouds whose parts get the numbers of a table."""

    def __init__(self, clouds: Sequence, first: np.ndarray, files: list[Path]):
        self.clouds, self.first, self.files = clouds, first, files

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> np.ndarray:
        cloud = np.array(self.clouds[index])
        cloud[:, 3] = np.where(cloud[:, 3] > 0, cloud[:, 3] - 1 + self.first[index], cloud[:, 3])
        return cloud


def _number_parts_anew(
    opened: dict[str, Sequence], labels: dict[str, np.ndarray], num_classes: int, root: Path
) -> dict[str, Sequence]:
    """Give the parts of each category, counted from 1, numbers that no other category has."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for split, clouds in opened.items():
        for index, label in enumerate(labels[split]):
            parts = clouds[index][:, 3]
            if (parts == 0).any() or parts.max() >= MAX_PARTS:
                wrong = 0 if (parts == 0).any() else int(parts.max())
                raise PointCloudError(
                    f"{clouds.files[index]}: has the label {wrong}, but this release counts the parts of a category "
                    "from 1; is it another data set? Load it with layout='part_folder', where a number is the same "
                    "part in each category"
                )
            counts[label] = max(counts[label], int(parts.max()))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return {split: _Renumbered(clouds, starts[labels[split]], clouds.files) for split, clouds in opened.items()}


def read_part_cloud(path: Path, drop_invalid: bool) -> np.ndarray:
    """Read a text file of points with a part each.

    Args:
        path: The file: rows of x, y, z, anything, and the part in the last column.
        drop_invalid: Leave out points with NaN or infinite coordinates.

    Returns:
        Array of shape `(num_points, 4)`: x, y, z and the part, float32.

    Raises:
        PointCloudError: If the file is broken or the parts are not whole numbers.
    """
    if not path.is_file():
        raise PointCloudError(f"{path}: no such file")
    with errors_of(path):
        table = read_table(path)
    if table.shape[1] < 4:
        raise PointCloudError(f"{path}: needs x, y, z and a part in the last column, got {table.shape[1]} columns")
    table = table[:, [0, 1, 2, -1]]
    finite = np.isfinite(table).all(axis=1)
    if drop_invalid:
        table = table[finite]
    elif not finite.all():
        raise PointCloudError(
            f"{path}: {int((~finite).sum())} of {len(table)} rows have NaN or infinite values; drop_invalid=True "
            "(--drop_invalid) leaves them out"
        )
    if len(table) < 2:
        raise PointCloudError(f"{path}: holds {len(table)} points; a cloud has at least 2")
    if (table[:, 3] != np.round(table[:, 3])).any() or table[:, 3].min() < 0:
        raise PointCloudError(
            f"{path}: the last column must be the number of a part, got {table[:, 3].min()} and others"
        )
    check_extent(table[:, :3], path)
    return table.astype(np.float32)
