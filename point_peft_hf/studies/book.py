"""The book of a study: one line of JSON for each run that is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def score_name(record: dict[str, Any]) -> str:
    """Name of the measure that a run of a book is judged by: "accuracy", or "instance_miou" for parts."""
    return record.get("score", "accuracy")


def validation_score(record: dict[str, Any]) -> float | None:
    """The score on the validation split, from 0 to 1; `None` if there is no such split."""
    return record[f"validation_{score_name(record)}"]


class RunBook:
    """Records of runs in a file, one JSON object a line, only ever appended to.

    A study that was stopped goes on behind the last whole line. Any number of processes may read a book while one adds
    to it.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        # Where a line begins that was cut off, and whether the last record lacks its newline.
        self._cut, self._is_open = None, False
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        # Nothing is mended here: a study that runs may be in the middle of a line.
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            is_last = number == len(lines)
            if line.strip():
                try:
                    record = json.loads(line)
                    self.records[record["key"]] = record
                except (ValueError, KeyError, TypeError) as error:
                    if is_last:
                        # Cut off in the middle of a write: that run is done again.
                        self._cut = len(content) - len(line)
                        return
                    raise ValueError(f"Line {number} of {self.path} is no record of a run. Remove it.") from error
                self._is_open = is_last

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def add(self, record: dict[str, Any]) -> None:
        """Write a record down, for good."""
        line = ("\n" if self._is_open else "") + json.dumps(record) + "\n"
        with self.path.open("ab") as file:
            if self._cut is not None:
                file.truncate(self._cut)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._cut, self._is_open = None, False
        self.records[record["key"]] = record

    def of_stage(self, stage: str) -> list[dict[str, Any]]:
        """The records of a stage, in the order they were written."""
        return [record for record in self.records.values() if record["stage"] == stage]
