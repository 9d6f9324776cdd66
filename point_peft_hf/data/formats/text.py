"""Clouds as rows of numbers: .xyz, .txt, .csv, .pts, .asc."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PointCloudError, shorten
from .arrays import check_not_transposed
from .columns import clean_name, find_axes, means_columns
from .rows import find_encoding, is_number, parse_number, read_text_lines, thousands_or_decimals

TEXT_SUFFIXES = (".xyz", ".txt", ".csv", ".pts", ".asc")
_COMMENTS = ("#", "//")
_DELIMITERS = (";", "\t", ",", "|")
_UNIT = re.compile(r"(?<=[^\s,;|\"'])\s*(\[[^\]]*\]|\([^)]*\))")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_PUNCTUATION = re.compile(r"[\"',;|\t]")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_EXCEL = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_HEAD = 65536
_LOOK_AHEAD = 50


def _cut(line: str, delimiter: str | None) -> list[str]:
    """Split a line; delimiters between quotes do not count."""
    if '"' not in line and "'" not in line:
        return [token.strip() for token in line.split(delimiter)]
    kept: list[str] = []
    masked = _QUOTED.sub(lambda match: kept.append(match[0]) or f"\0{len(kept) - 1}\0", line)
    restore = re.compile("\0(\\d+)\0")
    return [
        restore.sub(lambda match: kept[int(match[1])], token).strip().strip("\"'").strip()
        for token in masked.split(delimiter)
    ]


def _find_delimiter(line: str) -> str | None:
    """Find what stands between the numbers of a row; None for white space."""
    bare = _QUOTED.sub("q", line)
    if ";" in bare:
        return ";"
    if "\t" in bare and "" in [field.strip() for field in bare.strip().split("\t")]:
        return "\t"  # a value is missing
    words = bare.split()
    if "," in bare and not (
        len(words) > 2 and all(is_number(word) or _DECIMAL_COMMA.fullmatch(word) or word == "q" for word in words)
    ):
        return ","
    return "|" if "|" in bare else None


def _split(line: str, delimiter: str | None = None) -> tuple[str | None, list[str]]:
    if delimiter is None and not _PUNCTUATION.search(line):
        return None, line.split()
    delimiter = delimiter or _find_delimiter(line)
    return delimiter, _cut(line, delimiter)


@dataclass
class _Plan:
    """How the rows of a text file are to be read."""

    first: int  # number of lines before the first row
    columns: list[int]
    delimiter: str | None
    width: int  # number of columns of the first row, the others included
    promised: int | None  # number of points, when the file says it
    names: list[str] | None  # of the columns, when the file names them, in the order of `columns`


def read_table(path: Path) -> np.ndarray:
    """Read all the columns of numbers of a text file: `(num_points, num_columns)`, float64, NaN for missing values.

    A first line with the number of points (.pts, also of several blocks) and a line with the names of the columns,
    commented or not, are understood, as are comments after `#` or `//`; commas, semicolons, bars, tabs or blanks
    between the numbers; quoted numbers; and decimal commas. When the file names its columns, x, y, z come first.
    Fewer or more rows than it says, rows of different lengths, and names that do not fit the rows are errors.
    """
    head = read_text_lines(path, _HEAD)
    try:
        plan = _make_plan(head)
        with open(path, "rb") as file:
            encoding = find_encoding(file.read(1024))
        table = _load(path, plan, skiprows=plan.first, encoding=encoding)
    except ValueError:
        # Other comments, other numbers, several blocks, or an error that needs its line named: at leisure.
        lines = read_text_lines(path)
        plan = _make_plan(lines)
        table = np.concatenate([_parse_rows(block, plan) for block in _blocks(lines, plan)])
    else:
        if plan.promised is not None and plan.promised != len(table):
            raise _broken_promise(plan.promised, len(table))
    check_not_transposed(table.shape, "its table")
    return table


def read_text(path: Path) -> tuple[np.ndarray, None]:
    """Read the points of a text file: the columns named x, y and z or the like, without names the first three."""
    return read_table(path)[:, :3], None


def read_column_names(path: Path) -> list[str] | None:
    """Read the names of the columns that `read_table` gives, in lower case; None when the file does not name them."""
    return _make_plan(read_text_lines(path, _HEAD)).names


def holds_rows(path: Path) -> bool:
    """Return whether a text file can be a cloud, by its first row."""
    try:
        lines = read_text_lines(path, _HEAD)
        plan = _make_plan(lines)
    except (PointCloudError, OSError):
        return False
    return _bad_row(_cut(lines[plan.first], plan.delimiter), plan) is None


def _broken_promise(promised: int, found: int) -> PointCloudError:
    return PointCloudError(f"its first line promises {promised} points, {found} follow")


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(_COMMENTS)


def _make_plan(lines: list[str]) -> _Plan:
    """Look at the first lines of a text file."""
    excel = _EXCEL.fullmatch(lines[0]) if lines else None
    forced = excel[1] if excel else None
    numbers = (i for i in range(1 if excel else 0, len(lines)) if _is_row(lines[i]))
    ahead = list(islice(numbers, 3))
    if not ahead:
        raise PointCloudError("holds no row of numbers, only comments and blank lines; is it complete?")
    promised = None
    tokens = _split(lines[ahead[0]], forced)[1]
    if len(tokens) == 1 and tokens[0].isdecimal() and len(ahead) > 1 and len(_split(lines[ahead[1]], forced)[1]) >= 3:
        promised = int(tokens[0][:20])
        ahead.pop(0)
    rows = [_split(lines[i], forced) for i in ahead[:2]]
    others = (_split(lines[i], forced)[1] for i in chain(ahead[1:], islice(numbers, _LOOK_AHEAD)))
    named = _is_header(rows[0][1], others, rows[0][0])
    if named and len(rows) == 1:
        raise PointCloudError(f"holds a header, {shorten(lines[ahead[0]])}, and no row of numbers")
    first = ahead[1] if named else ahead[0]
    delimiter, tokens = rows[1] if named else rows[0]
    if len(tokens) < 3:
        raise PointCloudError(
            f"line {first + 1}: a point needs 3 numbers (x y z), got {len(tokens)} columns: "
            f"{shorten(lines[first].strip())}"
        )
    if named:
        names = _fit_names(lines[ahead[0]], tokens, delimiter)
        if names is None:
            found = _split_names(lines[ahead[0]], _find_delimiter(lines[ahead[0]]))
            raise PointCloudError(
                f"its header has {len(found)} names, {shorten(found, 200)}, and its first row {len(tokens)} "
                "columns, so that the names do not say which column is which; write one name a column"
            )
    else:
        names = _commented_names(lines[: ahead[0]], tokens, delimiter)
    columns = _column_order(names, tokens)
    if names is not None:
        names = [names[column] for column in columns]
    return _Plan(first, columns, delimiter, len(tokens), promised, names)


def _is_header(first: list[str], others: Iterator[list[str]], delimiter: str | None) -> bool:
    """Return whether the first row names the columns; an error where it can be names as well as a point."""
    words = [place for place, token in enumerate(first) if token and not is_number(token)]
    if words:
        if len(words) == sum(map(bool, first)):
            return True
        second = next(others, [])
        fits = len(second) == len(first) and all(is_number(second[place]) for place in words)
        return fits and find_axes([clean_name(token) for token in first]) is not None
    filled = first[1:] if first[0] == "" else first
    start = next((start for start in (0, 1) if filled == [str(start + place) for place in range(len(filled))]), None)
    if start is None or len(filled) < 3 + start:
        return False
    rows = list(others)
    if not rows:
        return False
    if first[0] == "":
        return True  # the name of the index of pandas
    fractions = all(re.search(r"[.,eE]", token) for row in rows for token in row[:3])
    if start == 0 and fractions and delimiter is not None:
        return True
    if not fractions and (start == 1 or delimiter is None):
        return False  # one row of whole numbers of many
    raise PointCloudError(
        f"its first row, {shorten(' '.join(first))}, can be the names of columns, as pandas writes them, or a "
        f"point; delete it, or write it with a decimal point, {filled[0]}.0 and so on"
    )


def _split_names(line: str, delimiter: str | None) -> list[str]:
    """Split a line of names of columns; in lower case, without units in brackets and the mark of a comment."""
    return [clean_name(name) for name in _cut(_UNIT.sub("", line.strip(" \r\n").lstrip("#/!%")), delimiter)]


def _fit_names(line: str, tokens: list[str], delimiter: str | None) -> list[str] | None:
    """Split a line into one name a column, by the delimiter of the rows or else by another one; None if none fits."""
    width = len(tokens)
    marks = [mark for mark in _DELIMITERS if mark in line]
    for candidate in (*([delimiter] if delimiter else ()), *marks, None):  # names may have blanks in them
        names = _split_names(line, candidate)
        if len(names) == width + 1 and names[-1] == "":
            names.pop()
        if len(names) == width - 1 and tokens[-1] == "":
            names.append("")
        if len(names) == width:
            return names
    return None


def _commented_names(lines: list[str], tokens: list[str], delimiter: str | None) -> list[str] | None:
    """Find the names of the columns in the comments before the first row."""
    for line in reversed(lines):
        if not line.lstrip().startswith(_COMMENTS):
            continue
        line = re.sub(r"^[\s#/]*\w+\s*:(?=\s)", "", line)  # "columns: x y z"
        names = _fit_names(line, tokens, delimiter)
        if names is not None and not any(is_number(name) for name in names):
            marked = any(mark in line for mark in _DELIMITERS) and all(names)
            if marked or means_columns(names):
                return names
        words = _split_names(line, next((mark for mark in _DELIMITERS if mark in line), None))
        if words[:3] == ["x", "y", "z"]:
            return ["x", "y", "z"] + [""] * (len(tokens) - 3)
        if {"x", "y", "z"} <= set(words):
            raise PointCloudError(
                f"the comment {shorten(line.strip(), 100)} names {len(words)} columns, and the first row has "
                f"{len(tokens)}; write one name a column, or delete the comment if x, y, z come first"
            )
    return None


def _column_order(names: list[str] | None, tokens: list[str]) -> list[int]:
    """Choose the columns: x, y, z by name where there are names, then the other columns of numbers, in order."""
    first = [0, 1, 2] if names is None else find_axes(names)
    if first is None:
        degrees = any(name.startswith(("lat", "lon")) for name in names)
        raise PointCloudError(
            f"cannot tell which columns are the coordinates; name them x, y and z in its header, which "
            f"has {shorten(names, 200)}"
            + ("; degrees have to be projected to metres before, for example with pyproj" if degrees else "")
        )
    numeric = [column for column, token in enumerate(tokens) if is_number(token)]
    return first + [column for column in numeric if column not in first]


def _load(source: Path | list[str], plan: _Plan, **options: Any) -> np.ndarray:
    """Parse rows with numpy; ValueError for whatever that does not understand."""
    everything = len(plan.columns) == plan.width  # then numpy checks that each row has that many
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = None if everything else tuple(plan.columns)
        table = np.loadtxt(source, delimiter=plan.delimiter, usecols=columns, ndmin=2, **options)
    return table[:, plan.columns] if everything and plan.columns != sorted(plan.columns) else table


def _blocks(lines: list[str], plan: _Plan) -> Iterator[list[tuple[int, str]]]:
    """Give the rows without comments, with the numbers of their lines; one list for each block of a .pts."""
    rows = [
        (number, re.split(r"#(?!(?:QNAN|SNAN|IND|INF|NAN))|//", lines[number - 1], flags=re.IGNORECASE)[0])
        for number in range(plan.first + 1, len(lines) + 1)
        if _is_row(lines[number - 1])
    ]
    if plan.promised is None:
        yield rows
        return
    start, promised = 0, plan.promised
    while True:
        end = min(start + promised, len(rows))
        following = rows[end][1].strip() if end < len(rows) else None
        if end - start < promised or (following is not None and not following.isdecimal()):
            raise _broken_promise(promised, (end if following is None else len(rows)) - start)
        yield rows[start:end]
        if following is None:
            return
        start, promised = end + 1, int(following[:20])


def _parse_rows(rows: list[tuple[int, str]], plan: _Plan) -> np.ndarray:
    """Parse the rows of a text file, one by one as far as numpy does not understand them."""
    table = np.empty((len(rows), len(plan.columns)))
    try:
        return _load([row for _, row in rows], plan, comments=None) if rows else table
    except ValueError:
        pass
    with_comma: list[str] = []
    for place, (number, row) in enumerate(rows):
        tokens = _cut(row, plan.delimiter)
        reason = _bad_row(tokens, plan)
        if reason:
            raise PointCloudError(f"line {number}: {reason}")
        chosen = [tokens[column] for column in plan.columns]
        with_comma += [token for token in chosen if "," in token]
        table[place] = [parse_number(token) for token in chosen]
    if with_comma:
        thousands_or_decimals(with_comma)
    return table


def _bad_row(tokens: Sequence[str], plan: _Plan) -> str | None:
    """Say what is wrong with a row of numbers, or None when it is fine."""
    if len(tokens) <= max(plan.columns):
        return f"needs at least {max(plan.columns) + 1} columns, has {len(tokens)}: {shorten(' '.join(tokens))}"
    for column in plan.columns:
        if not is_number(tokens[column]) and tokens[column] != "":
            return f"expected a number in column {column + 1}, got {shorten(tokens[column])}"
    if len(plan.columns) == plan.width != len(tokens) and any(tokens[plan.width :]):
        return f"has {len(tokens)} columns, and the first row {plan.width}: {shorten(' '.join(tokens))}"
    return None
