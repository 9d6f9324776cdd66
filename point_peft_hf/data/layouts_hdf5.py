"""Releases as HDF5: ModelNet40, ScanObjectNN, ShapeNetPart."""

from __future__ import annotations

import json
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .dataset import PointCloudDataset, check_class_names, check_labels
from .errors import PointCloudError
from .formats.arrays import open_h5, read_h5_array
from .names import read_lines
from .sources import LoadOptions

SCANOBJECTNN_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)


class JoinedClouds(Sequence):
    """Arrays of clouds one after the other, without the copy that joining them would take."""

    def __init__(self, arrays: list[np.ndarray]):
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        array = bisect_right(self.starts, index) - 1
        return self.arrays[array][index - self.starts[array]]


def read_h5_clouds(
    path: Path, num_classes: int, options: LoadOptions, parts: bool = False, cut: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read the clouds of a release from an .h5 file with `data`, `label` and, with parts, `pid`.

    Args:
        path: The file.
        num_classes: Number of classes, to check the labels.
        options: How to load.
        parts: Read the part of each point.
        cut: Keep only the first `options.num_points` points of each cloud.

    Returns:
        Clouds, float32, of shape `(num_clouds, num_points, 3)`; labels of shape `(num_clouds,)`; parts of shape
        `(num_clouds, num_points)` or None.
    """
    with open_h5(path) as file:
        clouds = read_h5_array(file, "data", path)
        labels = check_labels(read_h5_array(file, "label", path), num_classes, str(path))
        part_labels = read_h5_array(file, "pid", path) if parts else None
    if clouds.ndim != 3 or clouds.shape[2] < 3 or clouds.shape[1] < 2:
        raise PointCloudError(f"{path}: 'data' must be of shape (num_clouds, num_points, 3), got {clouds.shape}")
    if len(clouds) != len(labels):
        raise PointCloudError(f"{path}: 'data' has {len(clouds)} clouds and 'label' {len(labels)} labels")
    if parts and (part_labels.shape != clouds.shape[:2] or part_labels.dtype.kind not in "iu"):
        raise PointCloudError(
            f"{path}: 'pid' must be integers of shape {clouds.shape[:2]}, got {part_labels.dtype} of "
            f"{part_labels.shape}"
        )
    if cut and options.num_points is not None and options.num_points < clouds.shape[1]:
        clouds = clouds[:, : options.num_points].copy()  # a copy, so that the rest is freed
    clouds = clouds[:, :, :3].astype(np.float32, copy=False)
    return drop_bad_clouds(path, clouds, labels, part_labels, options)


def drop_bad_clouds(
    path: Path, clouds: np.ndarray, labels: np.ndarray, part_labels: np.ndarray | None, options: LoadOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Refuse clouds of a file that are not finite or all in one place, or leave these clouds or points out.

    Args:
        path: The file, for messages.
        clouds: Clouds of shape `(num_clouds, num_points, 3)`; with `drop_invalid` changed in place.
        labels: Their labels, of shape `(num_clouds,)`.
        part_labels: Labels of their points, of shape `(num_clouds, num_points)`, or None.
        options: How to load.

    Returns:
        What is left of clouds, labels and part labels.

    Raises:
        PointCloudError: If there are bad clouds that are not to be skipped.
    """
    if options.drop_invalid:
        for index in np.flatnonzero(~np.isfinite(clouds).all(axis=(1, 2))):
            # The shape of the array stays: other points of the cloud are repeated instead.
            valid = np.flatnonzero(np.isfinite(clouds[index]).all(axis=1))
            if len(valid) > 1:
                chosen = valid[np.arange(clouds.shape[1]) % len(valid)]
                clouds[index] = clouds[index][chosen]
                if part_labels is not None:
                    part_labels[index] = part_labels[index][chosen]
    finite = np.isfinite(clouds).all(axis=(1, 2))
    flat = (clouds == clouds[:, :1]).all(axis=(1, 2))
    way_out = "skip_bad_files=True leaves such clouds out"
    for bad, what, more in (
        (~finite, "have NaN or infinite coordinates", ", drop_invalid=True such points"),
        (flat, "have all their points in one place", ""),
    ):
        if not bad.any():
            continue
        reason = f"{path}: {int(bad.sum())} of {len(bad)} clouds {what}"
        if not options.files.skip_bad_files:
            raise PointCloudError(f"{reason}, the first is cloud {int(bad.argmax())} ({way_out}{more})")
        warnings.warn(f"{reason}: they are skipped", stacklevel=2)
    good = finite & ~flat
    if not good.all():
        clouds, labels = clouds[good], labels[good]
        part_labels = None if part_labels is None else part_labels[good]
    return clouds, labels, part_labels


def listed_files(root: Path, name: str) -> list[Path]:
    """Read a list of files; its lines have the folder of whoever made the release, so that only the names count."""
    paths = [root / line.replace("\\", "/").rsplit("/", 1)[-1] for line in read_lines(root / name)]
    if not paths:
        raise PointCloudError(f"{root / name}: lists no file")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    return paths


def read_names(path: Path) -> list[str]:
    """Read the names of the classes, one a line."""
    return check_class_names(read_lines(path), str(path))


def load_modelnet40_hdf5(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load the layout of modelnet40_ply_hdf5_2048."""
    names = read_names(root / "shape_names.txt")
    splits = {}
    for split, listing in (("train", "train_files.txt"), ("test", "test_files.txt")):
        if split == "test" and not (root / listing).exists():
            continue
        read = [read_h5_clouds(path, len(names), options, cut=True) for path in listed_files(root, listing)]
        splits[split] = PointCloudDataset(
            JoinedClouds([clouds for clouds, _, _ in read]),
            np.concatenate([labels for _, labels, _ in read]),
            names,
            num_points=options.num_points,
            sampling="first",  # the points of the release are in random order
            seed=options.seed,
        )
    return splits


def scanobjectnn_folder(path: Path, variant: str) -> Path | None:
    """Find the folder of a variant of ScanObjectNN: main_split or main_split_nobg, in the given one or above it."""
    stem = "objectdataset_augmentedrot_scale75" if variant == "PB_T50_RS" else "objectdataset"
    name = "main_split_nobg" if variant == "OBJ_ONLY" else "main_split"
    candidates = [path / name, path / "h5_files" / name]
    # A folder of another name that holds the files is taken for the variant with background.
    if (variant == "OBJ_ONLY") == ("nobg" in path.name):
        candidates.insert(0, path)
    return next((folder for folder in candidates if (folder / f"training_{stem}.h5").is_file()), None)


def load_scanobjectnn(root: Path, options: LoadOptions, variant: str) -> dict[str, PointCloudDataset]:
    """Load a variant of ScanObjectNN."""
    stem = "objectdataset_augmentedrot_scale75" if variant == "PB_T50_RS" else "objectdataset"
    splits = {}
    for split, prefix in (("train", "training"), ("test", "test")):
        path = root / f"{prefix}_{stem}.h5"
        if not path.is_file():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        clouds, labels, _ = read_h5_clouds(path, len(SCANOBJECTNN_CLASSES), options)
        splits[split] = PointCloudDataset(
            clouds, labels, SCANOBJECTNN_CLASSES, num_points=options.num_points, seed=options.seed
        )
    return splits


def load_shapenetpart_hdf5(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load the layout of the HDF5 release of ShapeNetPart."""
    categories = [line.split() for line in read_lines(root / "all_object_categories.txt")]
    names = check_class_names([words[0] for words in categories], str(root / "all_object_categories.txt"))
    read = {}
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        listing = f"{short}_hdf5_file_list.txt"
        if (root / listing).exists():
            read[split] = [read_h5_clouds(p, len(names), options, parts=True) for p in listed_files(root, listing)]
    class_parts = _parts_by_category(root, [words[1] for words in categories if len(words) > 1])
    if class_parts is None:
        class_parts = parts_of_classes(
            [(label, pid) for files in read.values() for _, label, pid in files], len(names)
        )
    for files, paths in ((read[split], split) for split in read):
        for _, labels, pid in files:
            check_parts(labels, pid, class_parts, f"{root}: {paths}")
    return {
        split: PointCloudDataset(
            JoinedClouds([clouds for clouds, _, _ in files]),
            np.concatenate([labels for _, labels, _ in files]),
            names,
            part_labels=JoinedClouds([pid for _, _, pid in files]),
            num_points=options.num_points,
            seed=options.seed,
            class_parts=class_parts,
        )
        for split, files in read.items()
    }


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


def parts_of_classes(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[list[int]]:
    """Collect the parts that the clouds of each class have."""
    found: list[set[int]] = [set() for _ in range(num_classes)]
    for labels, parts in pairs:
        for label in np.unique(labels):
            found[label] |= set(np.unique(parts[labels == label]).tolist())
    return [sorted(parts) for parts in found]


def check_parts(labels: np.ndarray, parts: np.ndarray, class_parts: list[list[int]], where: str) -> None:
    """Check that each cloud has parts of its class only."""
    for label in np.unique(labels):
        wrong = set(np.unique(parts[labels == label]).tolist()) - set(class_parts[label])
        if wrong:
            raise PointCloudError(
                f"{where}: part {min(wrong)} is out of range for class {label}, whose parts are {class_parts[label]}"
            )
