"""Folders of scenes to data sets: `load_scenes`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from ..folder_tree import CloudFinder, subfolders
from ..names import find_splits, printable, read_lines
from ..part_files import find_label_file
from ..readers import READERS
from ..sources import LoadOptions, open_files
from .classes import NAMES_FILE, SceneClasses, find_classes_of_labels, given_names, names_of_objects
from .dataset import SceneDataset, ScenePieces, read_rows
from .reading import is_room, object_files
from .tiles import MAX_VOXELS

# Meshes are read as vertices without labels, and scans in .e57 have no labels.
SCENE_ENDINGS = sorted(set(READERS) - {".off", ".obj", ".stl", ".glb", ".e57"})
_SPLITS = ("train", "validation", "test")
_LISTS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
# The area that published results on S3DIS are tested on.
_TEST_AREA = "area_5"
_AREA = re.compile(r"area_\d+", re.IGNORECASE)
TEST_FRACTION = 0.2
# With fewer scenes, tiles of them are held out.
_MIN_SCENES = 3
_DRAWS = 50


def load_scenes(
    root: str | os.PathLike,
    *,
    grid_size: float = 0.02,
    max_voxels: int = MAX_VOXELS,
    overlap: float | None = None,
    columns: str | None = None,
    label_name: str | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    ignore_labels: Sequence[int] = (),
    drop_invalid: bool = False,
    skip_bad_files: bool = False,
    cache_dir: str | os.PathLike | None = "auto",
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, SceneDataset]:
    """Load the scenes of a folder, with a label for each point.

    Scenes are files or folders that `read_scene` reads. The splits are, in this order: folders `train`, `val` and
    `test`; lists `train.txt`, `val.txt` and `test.txt` in `root` with the names of scenes; Area_5 of S3DIS for the
    test, the other areas for training; or a fifth of the scenes for the test, always the same one, and of their tiles
    where there are fewer than three scenes. Scenes are parsed once, into a cache. Large ones are cut into tiles; those
    without any label are left out, with a warning that counts them.

    A test split without any label gives way to the validation split.

    The classes are named, in this order, by `class_names`, by `classes.txt` in `root`, by the files of objects in the
    layout of S3DIS, and by the standard of .las files. Labels below 0, 255 without a name, and 0 without a name in
    .las files are not classes.

    Args:
        root: The folder.
        grid_size: Edge of a voxel in metres, by which the size of tiles is measured: `voxel_size` of the processor.
        max_voxels: Voxels of a tile at most.
        overlap: How far a tile reaches into its neighbours, in metres; by default as `cut_tiles`.
        columns: As in `read_scene`.
        label_name: As in `read_scene`.
        class_names: Names of the classes, from number 0 on or by their number in the files.
        ignore_labels: Numbers in the files that are not classes.
        drop_invalid: As in `read_scene`.
        skip_bad_files: Leave out scenes that cannot be read, with a warning that names them, instead of failing.
        cache_dir: As in [`~point_peft_hf.data.load_dataset`].
        num_workers: Processes that parse.
        progress: Show a bar.

    Returns:
        The data sets `train` and `test`, and `validation` where there is one.

    Raises:
        PointCloudError: If there are no scenes, or no labels, or the numbers of labels and the names do not agree.
    """
    root = Path(root)
    if not root.is_dir():
        raise PointCloudError(f"{root}: no such folder of scenes")
    files = LoadOptions(cache_dir=cache_dir, skip_bad_files=skip_bad_files, num_workers=num_workers, progress=progress)
    splits = _find_scenes(root, files)
    names = given_names(class_names, root)
    rooms = [path for paths in splits.values() for path in paths if path.is_dir()]
    objects = _names_of_rooms(rooms, root, names) if rooms else None
    reader = partial(
        read_rows,
        grid_size=grid_size,
        max_voxels=max_voxels,
        overlap=overlap,
        drop_invalid=drop_invalid,
        columns=columns,
        label_name=label_name,
        class_names=objects,
    )
    pieces = {}
    for split, paths in splits.items():
        clouds, kept = open_files(paths, root, reader, files, find_labels=_newest_labels)
        pieces[split] = ScenePieces(clouds, [str(paths[number]) for number in kept])
    occurring = {value for part in pieces.values() for counts in part.counts for value in counts if value >= 0}
    is_las = any(path.suffix.lower() in (".las", ".laz") for paths in splits.values() for path in paths)
    if objects is not None:
        classes = SceneClasses(objects, tuple(range(len(objects))))
    else:
        classes = find_classes_of_labels(occurring, names, ignore_labels, is_las, root)
    datasets = {split: SceneDataset(part, classes) for split, part in pieces.items()}
    if {"validation", "test"} <= set(datasets) and not datasets["test"].class_counts.any():
        # As of ScanNet, whose labels of the test are kept by its authors.
        warnings.warn(
            f"{root}: the test split has no labels; the validation split is tested on instead, and no longer chooses "
            "the epoch",
            stacklevel=2,
        )
        datasets["test"] = datasets.pop("validation")
    datasets = {split: _with_labels(dataset, split, root) for split, dataset in datasets.items()}
    if "test" not in datasets:
        datasets["train"], datasets["test"] = hold_out(datasets["train"], TEST_FRACTION, 0, f"{root}: the test")
    return {split: datasets[split] for split in _SPLITS if split in datasets}


def hold_out(dataset: SceneDataset, fraction: float, seed: int, what: str) -> tuple[SceneDataset, SceneDataset]:
    """Cut a data set in two: by scenes, or by tiles where there are fewer than three scenes.

    Args:
        dataset: The scenes.
        fraction: Share of the second part; each part gets one or more.
        seed: Seed of the draw.
        what: What the second part is, for messages.

    Returns:
        The two parts.

    Raises:
        PointCloudError: If there is one tile only.
    """
    scenes = np.array([dataset.scene_of(index) for index in range(len(dataset))])
    units = scenes if len(np.unique(scenes)) >= _MIN_SCENES else np.arange(len(dataset))
    chosen = np.unique(units)
    if len(chosen) < 2:
        raise PointCloudError(
            f"{what} needs scenes of its own, and there is one scene of one tile; give more scenes, or a smaller "
            "max_voxels, so that tiles of it can be held out"
        )
    number = int(np.clip(round(fraction * len(chosen)), 1, len(chosen) - 1))
    occurs = np.stack([dataset.label_counts(index) > 0 for index in range(len(dataset))])
    generator = np.random.default_rng(seed)
    # Of some draws the one with most classes in both parts: a class of few scenes is easily lost in one of them.
    draws = [np.isin(units, generator.permutation(chosen)[:number]) for _ in range(_DRAWS)]
    second = max(draws, key=lambda drawn: int((occurs[drawn].any(axis=0) & occurs[~drawn].any(axis=0)).sum()))
    return dataset.select(np.flatnonzero(~second)), dataset.select(np.flatnonzero(second))


def _with_labels(dataset: SceneDataset, split: str, root: Path) -> SceneDataset:
    """Leave out tiles without labels, and say how many."""
    labelled = np.array([dataset.label_counts(index).any() for index in range(len(dataset))], dtype=bool)
    if not labelled.any():
        raise PointCloudError(
            f"{root}: no point of the {split} split has a label of a class; are there labels in the files, or files "
            "of labels next to them?"
        )
    if not labelled.all():
        warnings.warn(
            f"{root}: {int((~labelled).sum())} of {len(dataset)} scenes or tiles of the {split} split have no label, "
            "and are left out",
            stacklevel=3,
        )
    return dataset if labelled.all() else dataset.select(np.flatnonzero(labelled))


def _newest_labels(path: Path) -> Path | None:
    """Give the file whose change changes the labels of a scene; of the objects of a room, the newest."""
    if path.is_dir():
        return max((file for _, file in object_files(path)), key=lambda file: file.stat().st_mtime_ns)
    return find_label_file(path)


def _names_of_rooms(rooms: Sequence[Path], root: Path, names: Mapping[int, str] | None) -> tuple[str, ...]:
    """Name the classes of the objects of rooms."""
    found = {name for room in rooms for name, _ in object_files(room)}
    if names is None:
        return names_of_objects(found)
    given = tuple(names.values())
    unknown = sorted(found - {*given, *(() if "clutter" not in given else ("stairs",))})
    if unknown:
        raise PointCloudError(
            f"{root}: there are objects of the classes {unknown}, which are not among the names given, "
            f"{shorten(given)}; add them"
        )
    return given


def _find_scenes(root: Path, options: LoadOptions) -> dict[str, list[Path]]:
    """List the scenes of each split; of one split, `train`, where the folder does not cut them."""
    folders = subfolders(root)
    places = find_splits(folders)
    finder = CloudFinder(root, options, SCENE_ENDINGS)
    listed = {split: names for split, words in _LISTS.items() if (names := _read_list(root, words)) is not None}
    if places:
        splits = {split: _scenes_in(folder, split, finder, root) for split, folder in places.items()}
    elif "train" in listed:
        splits = _by_lists(_scenes_in(root, "", finder, root), listed, root)
    else:
        areas = [folder for folder in folders if _AREA.fullmatch(folder.name)]
        test = [area for area in areas if area.name.lower() == _TEST_AREA]
        if test and len(areas) > 1:
            others = [area for area in areas if area not in test]
            splits = {
                "train": [scene for area in others for scene in _scenes_in(area, "train", finder, root)],
                "test": _scenes_in(test[0], "test", finder, root),
            }
        else:
            splits = {"train": _scenes_in(root, "", finder, root)}
    finder.report()
    empty = [split for split, paths in splits.items() if not paths]
    if empty:
        raise PointCloudError(
            f"{root}: no scenes for the {empty[0]} split; scenes are files ({', '.join(SCENE_ENDINGS)}), folders with "
            "coord.npy (Pointcept), or rooms with a folder Annotations (S3DIS)"
        )
    return splits


def _scenes_in(folder: Path, place: str, finder: CloudFinder, root: Path) -> list[Path]:
    """List the scenes in a folder and the folders in it: rooms, or else files."""
    rooms = _rooms_in(folder)
    if rooms:
        return rooms
    special = {root / NAMES_FILE, *(root / f"{word}.txt" for words in _LISTS.values() for word in words)}
    return [file for file in finder.list(folder, place or "train") if file not in special]


def _rooms_in(folder: Path) -> list[Path]:
    rooms = []
    for entry in subfolders(folder):
        rooms += [entry] if is_room(entry) else _rooms_in(entry)
    return rooms


def _read_list(root: Path, words: Sequence[str]) -> list[str] | None:
    for word in words:
        file = root / f"{word}.txt"
        # A scan as text may be called train.txt as well: a list names scenes, it has no rows of numbers.
        if file.is_file() and not re.match(
            r"\s*[-+\d.]+[\s,;]+[-+\d.]+[\s,;]+[-+\d.]", file.open(errors="replace").readline()
        ):
            return read_lines(file)
    return None


def _by_lists(scenes: Sequence[Path], listed: Mapping[str, Sequence[str]], root: Path) -> dict[str, list[Path]]:
    """Sort scenes into splits by lists of their names: with or without folders and ending."""
    known: dict[str, list[Path]] = {}
    for scene in scenes:
        relative = scene.relative_to(root)
        whole = (
            relative.parent if scene.suffix == ".npy" and relative.parent.name and scene.stem == "coord" else relative
        )
        for name in {whole.as_posix(), whole.with_suffix("").as_posix(), whole.name, whole.stem}:
            known.setdefault(name, []).append(scene)
    splits: dict[str, list[Path]] = {}
    taken: dict[Path, str] = {}
    for split, names in listed.items():
        for name in names:
            found = known.get(name.strip("/"), [])
            if len(found) != 1:
                what = "no scene" if not found else f"{len(found)} scenes"
                raise PointCloudError(
                    f"{printable(root)}: the list of the {split} split has {name!r}: {what} of that name"
                )
            other = taken.setdefault(found[0], split)
            if other != split:
                raise PointCloudError(f"{printable(root)}: the scene {name!r} is in the lists of {other} and {split}")
            splits.setdefault(split, []).append(found[0])
    return splits
