"""What the labels of scenes mean: numbers in files, names, and classes from 0 on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import PointCloudError
from ..names import read_lines
from ..part_files import UNLABELLED

NAMES_FILE = "classes.txt"
# The classes of the S3DIS data set (Armeni et al., CVPR 2016), in the order of its published results.
S3DIS_CLASSES = ("ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase")
S3DIS_CLASSES += ("board", "clutter")
# Objects that the published results count to another class.
_JOINED = {"stairs": "clutter"}
# LAS specification 1.4 R15, table 17; 0 is "created, never classified".
LAS_CLASSES = {
    **{1: "unclassified", 2: "ground", 3: "low_vegetation", 4: "medium_vegetation", 5: "high_vegetation"},
    **{6: "building", 7: "low_noise", 8: "model_key_point", 9: "water", 10: "rail", 11: "road_surface"},
    **{13: "wire_guard", 14: "wire_conductor", 15: "transmission_tower", 16: "wire_connector", 17: "bridge_deck"},
    **{18: "high_noise", 19: "overhead_structure", 20: "ignored_ground", 21: "snow", 22: "temporal_exclusion"},
}
_BYTE = 255
_NUMBERED = re.compile(r"(\d+)[\s,;:=]+(\S.*)")


@dataclass(frozen=True)
class SceneClasses:
    """The classes of a data set of scenes.

    Attributes:
        names: Name of each class.
        values: The number that a label of each class has in the files.
        ignored: Numbers in the files that are no class.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    def table(self) -> np.ndarray:
        """Give the class of each number of a file, -100 where there is none; int64, by number, from 0 on."""
        table = np.full(1 + max((*self.values, *self.ignored), default=0), UNLABELLED, dtype=np.int64)
        table[list(self.values)] = np.arange(len(self.values))
        return table


def given_names(names: Sequence[str] | Mapping[int, str] | None, root: Path) -> dict[int, str] | None:
    """Collect the names of classes, by number, that a user or a file gives; None if there are none.

    They are by number, or one after the other, from 0 on; or None to look for `classes.txt` in `root`, which has one
    name a line, from 0 on, or lines of number and name.
    """
    where = "class_names"
    if names is None:
        file = root / NAMES_FILE
        if not file.is_file():
            return None
        where, lines = str(file), read_lines(file)
        matches = [_NUMBERED.fullmatch(line) for line in lines]
        numbered = all(matches) and bool(lines)
        pairs = [(int(match[1]), match[2].strip()) for match in matches] if numbered else list(enumerate(lines))
    else:
        pairs = list(names.items() if isinstance(names, Mapping) else enumerate(names))
    for place, what in ((0, "number"), (1, "name")):
        seen = [pair[place] for pair in pairs]
        twice = next((value for value in seen if seen.count(value) > 1), None)
        if twice is not None:
            raise PointCloudError(f"{where}: gives the {what} {twice!r} twice; give each class once")
    return dict(sorted((int(number), str(name)) for number, name in pairs))


def names_of_objects(found: Collection[str]) -> tuple[str, ...]:
    """Order the names of classes that objects in the layout of S3DIS have: as published, others by the alphabet."""
    if set(found) <= {*S3DIS_CLASSES, *_JOINED}:
        return S3DIS_CLASSES
    return tuple(sorted(found))


def number_of(name: str, numbers: Mapping[str, int]) -> int:
    """Give the number of the class of an object, -100 if it is of none."""
    return numbers.get(name, numbers.get(_JOINED.get(name, name), UNLABELLED))


def find_classes_of_labels(
    occurring: Collection[int], names: Mapping[int, str] | None, ignored: Collection[int], is_las: bool, root: Path
) -> SceneClasses:
    """Find out which of the numbers that occur in files are classes, with the names of `given_names`.

    No class are the numbers in `ignored`, and without a name of their own 255, the usual byte for "none", and in .las
    and .laz files 0, "never classified".
    """
    left_out = {*ignored, *({0} if is_las else ()), _BYTE} - (set(names or ()) - set(ignored))
    values = sorted(set(names) - left_out if names else set(occurring) - left_out)
    unnamed = sorted(set(occurring) - set(values) - left_out)
    if unnamed:
        raise PointCloudError(
            f"{root}: the labels {unnamed[:8]} occur, but the classes have the numbers {values[0]} to {values[-1]}; "
            f"name them in {NAMES_FILE}, or leave them out with ignore_labels={unnamed[:8]}"
        )
    if len(values) < 2:
        raise PointCloudError(
            f"{root}: its labels have {len(values)} class{'es' * (len(values) != 1)}, {values}, of the numbers "
            f"{sorted(occurring)[:8]}; a task needs 2 or more. Are the labels there, and the right ones?"
        )
    known = names or (LAS_CLASSES if is_las else {})
    default = "class_{}" if is_las else "{}"
    return SceneClasses(
        tuple(known.get(value, default.format(value)) for value in values),
        tuple(values),
        tuple(sorted(left_out & set(occurring))),
    )
