"""Text of any of the usual encodings as lines, and lines as rows of numbers: shared by the readers of text formats."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten

# A mark of UTF-32 starts with that of UTF-16, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 512
# How C libraries, spreadsheets and databases write what is not a number.
_NAN = re.compile(r"[+-]?(?:nan(?:\(\w*\))?|\d+\.\d*#(?:q?nan|snan|ind)\d*|n/?a|null)", re.IGNORECASE)
_INF = re.compile(r"([+-]?)\d+\.\d*#inf\d*", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d*[.,])?\d+(?:[eE][+-]?\d+)?")
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def find_encoding(head: bytes) -> str:
    """Find the encoding of a text by its first bytes: by a byte order mark, else by where UTF-16 has its zeros."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    sample = head[:_SAMPLE]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) * 4 > len(sample) and min(even, odd) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return "utf-8"


def to_utf8(data: bytes) -> bytes:
    """Give a text as UTF-8 without a byte order mark; data in UTF-8 or of unknown encoding stay as they are."""
    encoding = find_encoding(data)
    if encoding == "utf-8":
        return data
    if encoding == "utf-8-sig":
        return data[len(codecs.BOM_UTF8) :]
    return data.decode(encoding, errors="replace").encode()


def split_lines(text: str) -> list[str]:
    r"""Split at \n, \r\n and \r alone; `str.splitlines` also splits at form feeds, which numpy does not."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def read_text_lines(path: Path, limit: int = -1) -> list[str]:
    """Read a text file as lines, without line ends; a binary one is an error.

    It is UTF-8 or, with a byte order mark or recognisable by its zeros, UTF-16 or UTF-32; other bytes become
    replacement characters. With a `limit` of bytes to read, a last line that it cuts is left out.
    """
    with open(path, "rb") as file:
        data = file.read(limit)
    encoding = find_encoding(data)
    text = data.decode(encoding, errors="replace")
    if "\0" in text:
        raise PointCloudError(f"is binary, but its name ends with {path.suffix!r}, a text format")
    lines = split_lines(text)
    if len(data) == limit and len(lines) > 1:
        lines.pop()
    return lines


def parse_number(token: str) -> float:
    """Read a number, also one with a decimal comma or one of the ways to write NaN; an empty text is NaN."""
    try:
        if "_" not in token:  # which Python allows between digits
            return float(token)
    except ValueError:
        pass
    if not token or _NAN.fullmatch(token):
        return float("nan")
    infinite = _INF.fullmatch(token)
    if infinite:
        return float(f"{infinite[1]}inf")
    if _NUMBER.fullmatch(token):
        return float(token.replace(",", "."))
    raise ValueError(f"not a number: {shorten(token)}")


def is_number(token: str) -> bool:
    """Return whether `parse_number` reads a text that is not empty."""
    try:
        parse_number(token)
    except ValueError:
        return False
    return bool(token)


def thousands_or_decimals(tokens: Sequence[str]) -> None:
    """Refuse numbers of a file, if in all of them the comma may separate thousands as well as decimals."""
    if all(_EITHER.fullmatch(token) for token in tokens):
        whole, fraction = tokens[0].split(",")
        raise PointCloudError(
            f"cannot tell whether {tokens[0]} is {whole}{fraction} or {whole}.{fraction}; write decimals with "
            "a point and thousands without a mark"
        )


def parse_rows(lines: Sequence[str], columns: Sequence[int], first_line: int, dtype: type = np.float64) -> np.ndarray:
    """Parse some columns of lines of numbers with white space between them: `(len(lines), len(columns))`.

    No line is blank. Errors count lines from `first_line`, the number of the first one in its file, counted from 1.
    """
    if len(lines) == 0:
        return np.empty((0, len(columns)), dtype=dtype)
    try:
        return np.loadtxt(lines, dtype=dtype, usecols=tuple(columns), ndmin=2, comments=None)
    except (ValueError, IndexError, OverflowError) as error:
        reason = error
    table = np.empty((len(lines), len(columns)))
    for offset, line in enumerate(lines):
        tokens = line.split()
        if len(tokens) <= max(columns):
            found = f"needs at least {max(columns) + 1} columns, has {len(tokens)}: {shorten(line.strip())}"
            raise PointCloudError(f"line {first_line + offset}: {found}")
        for place, column in enumerate(columns):
            if not is_number(tokens[column]):
                found = f"expected a number in column {column + 1}, got {shorten(tokens[column])}"
                raise PointCloudError(f"line {first_line + offset}: {found}")
            table[offset, place] = parse_number(tokens[column])
    if dtype is not np.float64:
        raise PointCloudError(f"rows that cannot be read as numbers: {reason}")
    return table
