"""Labels of points in files of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from .errors import PointCloudError
from .folder_tree import LABEL_SUFFIXES
from .names import COORDINATES, LABELS, printable

_SUFFIXES = (*LABEL_SUFFIXES, ".npy", ".txt", ".csv")
# What stands instead of the ending of a cloud for its labels; each of these is looked for.
_WORDS = ("label", "labels", "seg", "segment", "part", "parts")
_ENDINGS = (*LABEL_SUFFIXES, *(f"_{word}{suffix}" for word in _WORDS for suffix in (".npy", ".txt", ".seg")))
# SemanticKITTI's labels: the class of a point in the lower half, the object that it belongs to in the upper.
_CLASS_BITS = 0xFFFF
_DIGITS = re.compile(rb"[\s\d.+\-eE]*")


def find_label_file(path: Path) -> Path | None:
    """Find the file with the labels of a cloud; None without one, an error with several.

    It is one of the same name that ends with .seg, .label or .labels in the same folder; or `1_label.npy` for `1.npy`,
    `segment.npy` for `coord.npy` (Pointcept), `points_label/1.seg` for `points/1.pts` (ShapeNetPart), or
    `labels/1.label` for `velodyne/1.bin` (SemanticKITTI).
    """
    base = os.path.splitext(path)[0]
    names = [f"{base}{ending}" for ending in _ENDINGS]
    found = [Path(name) for name in names if os.access(name, os.F_OK)]  # three times faster than to ask for a file
    if path.stem.lower() in COORDINATES:  # the folder is the cloud
        found += [
            entry
            for entry in path.parent.iterdir()
            if entry.suffix.lower() in _SUFFIXES and re.sub(r"\d+$", "", entry.stem.lower()) in LABELS
        ]
    folder = path.parent.name.lower()
    if folder in COORDINATES:
        names = {*LABELS, *(f"{folder}_{word}" for word in LABELS)}
        sides = [entry for entry in path.parent.parent.iterdir() if entry.name.lower() in names]
        found += [side / f"{path.stem}{suffix}" for side in sides for suffix in _SUFFIXES]
    found = sorted({candidate for candidate in found if candidate.is_file()})
    if len(found) > 1:
        raise PointCloudError(
            f"{printable(path)}: both {printable(found[0])} and {printable(found[1])} can hold its labels; keep one"
        )
    return found[0] if found else None


def read_label_file(path: Path) -> np.ndarray:
    """Read one label a point, of shape `(num_points,)`.

    The file is text with one number a line, .npy of shape `(num_points,)` or `(num_points, 1)`, or the binary .label
    of SemanticKITTI, of which the class is taken (the lower 16 bits).
    """
    if path.suffix.lower() == ".npy":
        try:
            labels = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise PointCloudError(f"{path}: not a readable .npy file: {error}") from None
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "fiu":
            raise PointCloudError(
                f"{path}: labels must be numbers of shape (num_points,), got {labels.dtype} of {labels.shape}"
            )
        return labels
    data = path.read_bytes()
    if path.suffix.lower() == ".label" and not _DIGITS.fullmatch(data):
        if len(data) % 4:
            raise PointCloudError(f"{path}: its {len(data)} bytes are not a uint32 for each point; truncated?")
        return np.frombuffer(data, "<u4") & _CLASS_BITS
    try:
        labels = np.loadtxt(path, ndmin=1, dtype=np.float64)
    except ValueError as error:
        raise PointCloudError(f"{path}: must hold one number a line: {error}") from None
    if labels.ndim != 1:
        raise PointCloudError(f"{path}: must hold one number a line, got {labels.shape[1]} columns")
    return labels
