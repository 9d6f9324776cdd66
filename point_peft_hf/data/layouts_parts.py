"""Folders of clouds with a label for each point."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .dataset import MAX_PARTS, PointCloudDataset, too_many_parts
from .errors import PointCloudError
from .folder_tree import CloudFinder, has_files, is_scene, subfolders
from .label_files import find_label_file
from .layouts_folders import find_classes, find_folders, list_classes, load_classes
from .layouts_hdf5 import parts_of_classes
from .names import class_name, find_attributes, find_splits, read_lines
from .part_files import read_labelled_cloud
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
        clouds, kept = open_files(files, root, reader, options.files, beside=find_label_file)
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
    if max((part for parts in class_parts for part in parts), default=0) >= MAX_PARTS:
        _refuse_numbers(opened)
    for name, parts in zip(class_names, class_parts, strict=True):
        if not parts:
            raise PointCloudError(f"{root}: no point of the category {name!r} has a label of 0 or above")
    part_names = None
    if names_file.is_file():
        part_names = read_lines(names_file)
        num_parts = 1 + max(map(max, class_parts))
        if len(part_names) < num_parts:
            raise PointCloudError(
                f"{names_file}: has {len(part_names)} names, but the labels go up to {num_parts - 1}; write a name "
                "for each part from 0 on, one a line"
            )
    for dataset, _ in opened:
        dataset.set_parts(class_parts, part_names)
    return splits


def _refuse_numbers(opened: list[tuple[PointCloudDataset, Sequence]]) -> None:
    """Name the first file with a number that cannot be that of a part."""
    for dataset, clouds in opened:
        for sample_id, cloud in zip(dataset.sample_ids, clouds, strict=True):
            if cloud[:, 3].max() >= MAX_PARTS:
                raise PointCloudError(f"{dataset.names_of([sample_id])[0]}: {too_many_parts(int(cloud[:, 3].max()))}")


def _find_categories(root: Path, options: LoadOptions) -> dict[str, dict[str, list[Path]]]:
    """Find the files of each category of each split; a folder that holds clouds itself is the only category."""
    finder = CloudFinder(root, options)
    folders = subfolders(root)
    splits = find_splits(folders)
    if splits and (has_files(splits["train"]) or _is_category(splits["train"])):
        places = splits
    elif folders and not _is_category(root):
        return list_classes(find_classes(root), finder)
    else:
        places = {"": root}
    category = class_name(Path(os.path.abspath(root))) or "object"
    files = {
        split: {category: [file for file in finder.list(folder, split or category) if file != root / NAMES_FILE]}
        for split, folder in places.items()
    }
    finder.report()
    return files


def _is_category(folder: Path) -> bool:
    """Tell whether a folder holds clouds itself: as files, as folders of arrays, or with their labels beside them."""
    folders = subfolders(folder)
    paired = find_attributes([entry.name for entry in folders], only_of_coordinates=True)
    return not folders or bool(paired) or any(map(is_scene, folders))
