"""Folders of clouds with a label for each point."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .dataset import PointCloudDataset
from .errors import PointCloudError
from .formats.encoding import read_text_lines
from .layouts_files import SPLIT_NAMES, find_classes, find_folders, has_files, list_clouds, load_classes, subfolders
from .layouts_hdf5 import parts_of_classes
from .part_files import LABEL_SUFFIX, read_labelled_cloud
from .sources import LoadOptions, open_files

NAMES_FILE = "parts.txt"


def find_part_folder(path: Path) -> Path | None:
    """Tell whether a folder has clouds, names of parts, or subfolders for its splits or categories."""
    return path if has_files(path) or (path / NAMES_FILE).is_file() else find_folders(path)


def load_part_folder(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load clouds with a label for each point, a folder a category, or all in one folder.

    Train and test folders may be above the categories, below them, or hold the clouds of the only category. A number
    means the same part in every category. `parts.txt` in the root names the parts, one a line, from 0 on.
    """
    names_file = root / NAMES_FILE
    opened: list[tuple[PointCloudDataset, Sequence]] = []

    def make(
        files: list[Path], labels: list[int], names: list[str], root: Path, options: LoadOptions
    ) -> PointCloudDataset:
        reader = partial(read_labelled_cloud, drop_invalid=options.drop_invalid)
        clouds, kept = open_files(files, root, reader, options.files, beside=LABEL_SUFFIX)
        labels = np.array(labels, dtype=np.int64)[kept]
        dataset = PointCloudDataset(clouds, labels, names, num_points=options.num_points, seed=options.seed)
        opened.append((dataset, clouds))
        return dataset

    splits = load_classes(_find_categories(root, options), root, options, make)
    pairs = [
        (dataset.labels[index : index + 1], clouds[index][None, :, 3].astype(np.int64))
        for dataset, clouds in opened
        for index in range(len(clouds))
    ]
    class_names = opened[0][0].class_names
    class_parts = [[part for part in parts if part >= 0] for parts in parts_of_classes(pairs, len(class_names))]
    for name, parts in zip(class_names, class_parts, strict=True):
        if not parts:
            raise PointCloudError(f"{root}: no point of the category {name!r} has a label of 0 or above")
    part_names = None
    if names_file.is_file():
        part_names = [line.strip() for line in read_text_lines(names_file) if line.strip()]
        num_parts = 1 + max(map(max, class_parts))
        if len(part_names) < num_parts:
            raise PointCloudError(
                f"{names_file}: has {len(part_names)} names, but the labels go up to {num_parts - 1}; write a name "
                "for each part from 0 on, one a line"
            )
    for dataset, _ in opened:
        dataset.set_parts(class_parts, part_names)
    return splits


def _find_categories(root: Path, options: LoadOptions) -> dict[str, dict[str, list[Path]]]:
    """Find the files of each category of each split; a folder that holds clouds itself is the only category."""
    folders = subfolders(root)
    splits = {SPLIT_NAMES[name]: folder for folder in folders if (name := folder.name.lower()) in SPLIT_NAMES}
    if "train" not in splits or not has_files(splits["train"]):
        if folders:
            return find_classes(root, options)
        splits = {"": root}
    category = root.name or "object"
    return {
        split: {category: [file for file in list_clouds(folder, root, options) if file != root / NAMES_FILE]}
        for split, folder in splits.items()
    }
