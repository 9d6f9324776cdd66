"""What the columns, fields and arrays of a file mean, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..errors import PointCloudError, shorten

# Chooses columns, by their places, among the names of all.
Pick = Callable[[list[str]], list[int]]
# What the coordinates are called in lower case, in order of preference; with the names of ParaView.
_AXES = (
    ("x", "y", "z"),
    *(tuple(f"points{mark}{axis}" for axis in range(3)) for mark in (":", "_")),
    *((*plane, height) for plane in (("easting", "northing"), ("x", "y")) for height in ("height", "elevation", "z")),
    ("0", "1", "2"),  # pandas names columns so
)
# What may stand around x, y and z without changing their meaning; n and v, as in nx or vx, would.
_BEFORE = r"(?:pos(?:ition)?|points?|coord(?:inate)?s?|p|pt|cartesian|local|global|world)"
_AFTER = r"(?:\d|coord(?:inate)?s?|pos(?:ition)?|m|mm|cm|dm)"
_DECORATED = re.compile(rf"(?:{_BEFORE}[\s_.:-]*)?([xyz])(?:[\s_.:-]*{_AFTER})?")
_COLOR = re.compile(r"(?:scalar_|diffuse_|colou?rs?[_.:]?|rgb_)?([rgb])(?:ed|reen|lue)?f?")
_REST = {"r": "ed", "g": "reen", "b": "lue"}
_NORMAL = re.compile(r"(?:scalar_)?(?:n|normals?[_.:]?)([xyz])")
_UNIT = re.compile(r"(?<=[^\s,;|\"'])\s*(\[[^\]]*\]|\([^)]*\))")
_AROUND = "\"'`()[]{}<>: \t"
# What other columns are called; a comment with several such words is taken for the names of columns.
_OTHERS = re.compile(
    r"(?:scalar_)?(?:[rgb]|[nv][xyz]|normal_?[xyz]|red|green|blue|alpha|rgba?|colou?rs?|intensity|reflectance|range|"
    r"(?:gps_?)?time(?:stamp)?|lat(?:itude)?|lon(?:g(?:itude)?)?|alt(?:itude)?|height|elevation|easting|northing|depth|"
    r"(?:point_?|scan_?)?id|index|ring|curvature|label|class(?:ification)?|confidence|(?:longi|lati)tude_\w+|elevation_\w+)"
)
# What a column, a property, a field or an array of labels is called, upper and lower case aside; with the names that
# CloudCompare gives its scalar fields.
LABEL_NAMES = tuple(
    prefix + name
    for prefix in ("", "scalar_")
    for name in (
        *("part", "parts", "part_label", "part_labels", "part_id", "label", "labels", "seg", "segment", "segments"),
        *("class", "classes", "class_id", "classification", "segmentation", "segmentation_label", "seg_label"),
        *("semantic", "semantics", "semantic_label", "semantic_labels", "semantic_class", "semantic_segmentation"),
        *("sem_label", "sem_class", "point_label", "point_labels", "ground_truth"),
    )
)


def clean_name(name: str) -> str:
    """Give a name in lower case, without quotes, brackets around it, and a unit in brackets after it."""
    return _UNIT.sub("", name.strip()).strip(_AROUND).lower()


def find_axes(names: Sequence[str]) -> list[int] | None:
    """Find the places of x, y and z among names of columns, as `clean_name` gives them.

    None when they are not named, or not by one name each.
    """
    names = list(names)
    for axes in _AXES:
        if set(axes) <= set(names):
            return [names.index(axis) for axis in axes] if all(names.count(axis) == 1 for axis in axes) else None
    found = [(match[1], place) for place, name in enumerate(names) if (match := _DECORATED.fullmatch(name))]
    if sorted(axis for axis, _ in found) != ["x", "y", "z"]:
        return None
    return [place for _, place in sorted(found)]


def find_colors(names: Sequence[str]) -> list[int]:
    """Find the columns of red, green and blue among names, as `clean_name` gives them; empty where there are none."""
    return _find_triple(names, _COLOR, "rgb")


def find_normals(names: Sequence[str]) -> list[int]:
    """Find the columns of normals among names, as `clean_name` gives them; empty where there are none."""
    return _find_triple(names, _NORMAL, "xyz")


def _find_triple(names: Sequence[str], pattern: re.Pattern, letters: str) -> list[int]:
    """Find three names that agree but for their letter; the first such three."""
    found: dict[str, dict[str, int]] = {}
    for place, name in enumerate(names):
        match = pattern.fullmatch(name)
        if match:
            # What is around the letter: nx and normal_x in one file are two sets.
            around = name[: match.start(1)] + "|" + name[match.end(1) :].removeprefix(_REST.get(match[1], ""))
            found.setdefault(around, {}).setdefault(match[1], place)
    for places in found.values():
        if len(places) == 3:
            return [places[letter] for letter in letters]
    return []


def means_columns(names: Sequence[str]) -> bool:
    """Return whether words are names of columns, not a sentence: coordinates, or enough of the usual others."""
    known = sum(bool(_OTHERS.fullmatch(name)) for name in names)
    return find_axes(names) is not None or known >= max(2, len(names) / 3)


def find_labels(names: Sequence[str]) -> list[int]:
    """Find the columns of labels among names."""
    return [place for place, name in enumerate(names) if clean_name(name) in LABEL_NAMES]


def pick_label(names: Sequence[str], what: str) -> int:
    """Give the place of the only name that is one of labels; none or several are an error.

    `what` says what a column is in its file, for the error.
    """
    places = find_labels(names)
    if not places:
        raise PointCloudError(
            f"no {what} is named as labels are ({', '.join(LABEL_NAMES[:6])}, class, classification, "
            f"segmentation, semantic, ...); it has {shorten(list(names), 200)}"
        )
    if len(places) > 1:
        raise PointCloudError(
            f"cannot tell which {what} holds the labels, {' or '.join(names[place] for place in places)}; "
            "keep one of them, or write the labels to a .seg file next to the cloud"
        )
    return places[0]
