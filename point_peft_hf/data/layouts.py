"""The layouts of the public releases, by name or by looking at the folder: `load_dataset`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .errors import PointCloudError
from .folder_tree import holds_clouds, subfolders
from .layouts_arrays import ARRAY_SUFFIXES, find_arrays, load_arrays
from .layouts_folders import find_folders, find_part_folder, load_folders, load_part_folder
from .layouts_releases import (
    Splits,
    find_scanobjectnn,
    load_modelnet40_dat,
    load_modelnet40_hdf5,
    load_modelnet40_normal,
    load_scanobjectnn,
    load_shapenetpart_hdf5,
    load_shapenetpart_txt,
)
from .sources import LoadOptions
from .splits import stratified_split


@dataclass(frozen=True)
class Layout:
    """A layout of files.

    Args:
        expected: What the folder holds, for messages.
        source: Where the files come from, for messages.
        find: Finds the folder of the files in the one that the user gave, or None.
        load: Reads them.
    """

    expected: str
    source: str
    find: Callable[[Path], Path | None]
    load: Callable[[Path, LoadOptions], Splits]


def _has(*patterns: str) -> Callable[[Path], Path | None]:
    """Make a function that looks for files in a folder and in its subfolders one level down."""

    def find(path: Path) -> Path | None:
        for folder in (path, *subfolders(path)):
            if all(any(entry.is_file() for entry in folder.glob(pattern)) for pattern in patterns):
                return folder
        return None

    return find


_SCANOBJECTNN = "https://hkust-vgd.github.io/scanobjectnn/ (h5_files.zip, after agreeing to its terms)"
_STANFORD = "https://shapenet.cs.stanford.edu/media/"

LAYOUTS: dict[str, Layout] = {
    "modelnet40_hdf5": Layout(
        "train_files.txt, test_files.txt, shape_names.txt and the ply_data_*.h5 files that they list",
        f"{_STANFORD}modelnet40_ply_hdf5_2048.zip",
        _has("train_files.txt", "shape_names.txt"),
        load_modelnet40_hdf5,
    ),
    "modelnet40_normal": Layout(
        "modelnet40_shape_names.txt, modelnet40_train.txt, modelnet40_test.txt and airplane/airplane_0001.txt, ...",
        f"{_STANFORD}modelnet40_normal_resampled.zip",
        _has("modelnet*_shape_names.txt", "modelnet*_train.txt"),
        load_modelnet40_normal,
    ),
    "modelnet40_dat": Layout(
        "modelnet40_train_8192pts_fps.dat and modelnet40_test_8192pts_fps.dat",
        "https://github.com/Julie-tang00/Point-BERT (DATASET.md)",
        _has("modelnet*_train_*.dat"),
        load_modelnet40_dat,
    ),
    **{
        f"scanobjectnn_{variant.lower()}": Layout(
            f"{folder}/training_{stem}.h5 and {folder}/test_{stem}.h5",
            _SCANOBJECTNN,
            partial(find_scanobjectnn, folder=folder, stem=stem),
            partial(load_scanobjectnn, stem=stem),
        )
        for variant, folder, stem in (
            ("OBJ_BG", "main_split", "objectdataset"),
            ("OBJ_ONLY", "main_split_nobg", "objectdataset"),
            ("PB_T50_RS", "main_split", "objectdataset_augmentedrot_scale75"),
        )
    },
    "shapenetpart_hdf5": Layout(
        "train_hdf5_file_list.txt, test_hdf5_file_list.txt, all_object_categories.txt and the .h5 files listed",
        f"{_STANFORD}shapenet_part_seg_hdf5_data.zip",
        _has("train_hdf5_file_list.txt", "all_object_categories.txt"),
        load_shapenetpart_hdf5,
    ),
    "shapenetpart_txt": Layout(
        "synsetoffset2category.txt, train_test_split/shuffled_train_file_list.json, ... and 02691156/*.txt, ...",
        f"{_STANFORD}shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        _has("synsetoffset2category.txt"),
        load_shapenetpart_txt,
    ),
    "arrays": Layout(
        "train*.h5, test*.h5 (or .npz) with arrays of many clouds, (num_clouds, num_points, 3), and their label",
        "your own files",
        find_arrays,
        load_arrays,
    ),
    "folder": Layout(
        "a folder for each class with clouds or meshes in it; or train/ and test/, each with a folder for each class",
        "your own files",
        find_folders,
        load_folders,
    ),
    "part_folder": Layout(
        "a folder for each category with clouds in it that have a label for each point, or such clouds themselves; "
        "train/ and test/ as for 'folder'; parts.txt with the names of the parts may be next to them",
        "your own files (point_peft_hf.data.part_files says where in a file the labels may be)",
        find_part_folder,
        load_part_folder,
    ),
}
# Layouts with a label for each point, and those that are never found by looking at the folder: anything would do.
_PART_LAYOUTS = ("shapenetpart_hdf5", "shapenetpart_txt", "arrays", "part_folder")
_GENERIC = ("arrays", "folder", "part_folder")


def load_dataset(
    path: str | os.PathLike,
    layout: str | None = None,
    *,
    parts: bool = False,
    num_points: int | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    skip_bad_files: bool = False,
    drop_invalid: bool = False,
    cache_dir: str | os.PathLike | None = "auto",
    num_workers: int = 0,
    progress: bool = True,
) -> Splits:
    """Load a data set from a folder, in one of the layouts of `LAYOUTS`.

    Args:
        path: The folder, as it comes out of the archive of the release, or with a folder for each class; or an .h5 or
            .npz file of many clouds.
        layout: Name of the layout: modelnet40_hdf5, modelnet40_normal, modelnet40_dat, scanobjectnn_obj_bg,
            scanobjectnn_obj_only, scanobjectnn_pb_t50_rs, shapenetpart_hdf5, shapenetpart_txt, arrays, folder or
            part_folder. By default it is found by looking at the folder.
        parts: Find only layouts with a label for each point: ShapeNetPart's, else part_folder.
        num_points: Points of each item; by default clouds come whole, and 8192 points of a mesh.
        seed: Seed of points on meshes, of points that stay when a cloud is cut, and of the split.
        test_fraction: Share of the clouds that becomes the test split where the folder has only one, class by class.
        skip_bad_files: Leave files out that cannot be read, with a warning that counts them, instead of failing.
        drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing their file.
        cache_dir: Folder where parsed files are kept for the next time (layouts of one file a cloud only); they are
            parsed again when a file changes. `"auto"` is `$POINT_PEFT_HF_CACHE`, or `point_peft_hf` in the cache of
            Hugging Face; None parses a file whenever its cloud is asked for.
        num_workers: Processes that parse files on the first pass.
        progress: Show a bar on the first pass.

    Returns:
        Data sets by split: `"train"`, `"test"`, and `"validation"` when the release has one.

    Raises:
        PointCloudError: If the folder has none of the layouts, files are missing, or one is broken; the message says
            what is expected and where to get it.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
    is_array = path.is_file() and path.suffix.lower() in ARRAY_SUFFIXES
    if is_array and layout is None:
        layout = "arrays"
    if not path.is_dir() and not is_array:
        what = "is a file" if path.exists() else "no such folder"
        raise PointCloudError(f"{path}: {what}; give the folder of a data set{_sources(layout)}")
    options = LoadOptions(num_points, seed, drop_invalid, cache_dir, skip_bad_files, num_workers, progress)
    name = layout
    try:
        name, folder = _choose(path, layout, parts)
        splits = LAYOUTS[name].load(folder, options)
    except FileNotFoundError as error:
        reason = error.strerror.replace(" or directory", "").replace("No", "no", 1)
        raise PointCloudError(f"{error.filename}: {reason}{_sources(name)}") from error
    except OSError as error:
        raise PointCloudError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    if len(splits) == 1:
        (whole,) = splits.values()
        train, test = stratified_split(whole.labels, test_fraction, seed)
        splits = {"train": whole.select(train), "test": whole.select(test)}
    if parts and any(dataset.class_parts is None for dataset in splits.values()):
        raise PointCloudError(f"{path}: has no label for each point")
    empty = [split for split, dataset in splits.items() if len(dataset) == 0]
    if empty:
        raise PointCloudError(f"{path}: the {empty[0]} split is empty; every class has one cloud at most, or none")
    for dataset in splits.values():
        dataset.layout = name
    return splits


def _choose(path: Path, layout: str | None, parts: bool) -> tuple[str, Path]:
    """Find the layout of a folder, and where in it the files begin."""
    if parts and layout not in (None, *_PART_LAYOUTS):
        raise ValueError(
            f"layout {layout!r} has no label for each point; those with parts are {', '.join(_PART_LAYOUTS)}"
        )
    if layout is not None:
        folder = LAYOUTS[layout].find(path)
        if folder is None:
            raise PointCloudError(f"{path}: is not of layout {layout!r}{_sources(layout)}")
        return layout, folder
    names = [name for name in (_PART_LAYOUTS if parts else LAYOUTS) if name not in _GENERIC]
    found = {name: folder for name in names if (folder := LAYOUTS[name].find(path))}
    if len(found) > 1:
        raise PointCloudError(f"{path}: has several data sets; choose one with layout: {', '.join(found)}")
    if found:
        return next(iter(found.items()))
    generic = "part_folder" if parts else "folder"
    folder, arrays = LAYOUTS[generic].find(path), find_arrays(path)
    if arrays is not None and any(map(holds_clouds, subfolders(arrays))):
        raise PointCloudError(f"{path}: has several data sets; choose one with layout: arrays, {generic}")
    if arrays is not None:
        return "arrays", arrays
    if folder is None:
        known = "\n".join(f"  {name}: {item.expected}" for name, item in LAYOUTS.items())
        raise PointCloudError(f"{path}: has none of the layouts that are read:\n{known}")
    return generic, folder


def _sources(layout: str | None) -> str:
    """Say what a layout expects and where it comes from."""
    if layout is None:
        return f"; layouts are {', '.join(LAYOUTS)}"
    return f"\n  expected: {LAYOUTS[layout].expected}\n  from: {LAYOUTS[layout].source}"
