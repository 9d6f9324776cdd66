"""Text of any of the usual encodings, as UTF-8 and as lines."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..errors import PointCloudError

# A mark of UTF-32 starts with that of UTF-16, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 512


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
