"""What training recorded of an adapter, and the data that it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.files import RECORD_NAME, find_file, read_json
from ..training import PointCloudArguments
from ..training.task import PROCEDURAL


def read_runs(adapter: str) -> list[dict[str, Any]]:
    """The records of an adapter's runs: of one, or of several seeds; none where nothing is recorded."""
    path = find_file(adapter, RECORD_NAME)
    record = read_json(path) if path is not None else {}
    return [run for run in record.get("runs", [record]) if run]


def recorded_data(
    arguments: Mapping[str, Any], data: str | None, layout: str | None, **given: Any
) -> PointCloudArguments:
    """The data as training describes them: those of the record, or others.

    Args:
        arguments: What is recorded.
        data: Other data, with no limit and no layout of the recorded ones.
        layout: Their layout.
        **given: Arguments in place of the recorded ones; `None` leaves those.

    Raises:
        ValueError: If the record does not say which data it was trained on.
        FileNotFoundError: If the recorded data are not on this machine.
    """
    known = {field.name for field in dataclasses.fields(PointCloudArguments)}
    recorded = {name: value for name, value in arguments.items() if name in known}
    if data is not None:
        recorded |= {"data": data, "layout": None, "max_train_clouds": None, "max_test_clouds": None}
    elif "data" not in recorded:
        raise ValueError(f"There is no record ({RECORD_NAME}) of the data that it was trained on. Pass --data.")
    elif recorded["data"] != PROCEDURAL and not Path(recorded["data"]).exists():
        # An adapter from the Hub knows what its data were called, but does not bring them.
        raise FileNotFoundError(f"the data {recorded['data']!r} are not here. Pass them: --data.")
    given["layout"] = layout
    return PointCloudArguments(**recorded | {name: value for name, value in given.items() if value is not None})


def check_names(names: Sequence[str], known: Sequence[str], data: str) -> None:
    """Refuse data of other classes than the adapter's, on which every number would be wrong.

    Args:
        names: Names of the classes of the data, in the order of their labels.
        known: Those of the adapter.
        data: Name of the data.

    Raises:
        ValueError: If they are not the same.
    """
    if list(names) == list(known):
        return
    differences = [
        f"{what} {_few(others)}"
        for what, others in (
            ("the adapter does not know", [name for name in names if name not in known]),
            ("the data lack", [name for name in known if name not in names]),
        )
        if others
    ]
    raise ValueError(
        f"The {len(names)} classes of the data {data} are not the {len(known)} of the adapter: "
        f"{' and '.join(differences) or 'they come in another order'}. Pass data of the same classes, such as those "
        "it was trained on: --data."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")
