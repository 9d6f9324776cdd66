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

    A study that was stopped goes on behind the last whole line.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number == len(lines):
                    # Cut off in the middle of a write: that run is done again.
                    self.path.write_text("".join(f"{line}\n" for line in lines[:-1]))
                    return
                raise ValueError(f"Line {number} of {self.path} is no record of a run. Remove it.") from error

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def add(self, record: dict[str, Any]) -> None:
        """Write a record down, for good."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def of_stage(self, stage: str) -> list[dict[str, Any]]:
        """The records of a stage, in the order they were written."""
        return [record for record in self.records.values() if record["stage"] == stage]
