"""What a study found, as a table."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter_files import write_json
from .book import RunBook
from .plan import Study
from .statistics import Interval, mean_interval, paired_difference


@dataclass(frozen=True)
class RowSummary:
    """One line of a study's table.

    Attributes:
        name: Name of the line.
        learning_rate: Learning rate of its runs.
        trainable: Number of trainable parameters.
        file_bytes: Size of what a run saves.
        validation: Validation accuracy over the seeds; `None` under the few-shot protocol, which has no such split.
        test: Test accuracy over the seeds.
        difference: Paired difference of the test accuracy to the reference; `None` for the reference itself.
        seconds_per_epoch: Median.
        peak_memory_mib: Median.
    """

    name: str
    learning_rate: float
    trainable: int
    file_bytes: int
    validation: Interval | None
    test: Interval
    difference: Interval | None
    seconds_per_epoch: float
    peak_memory_mib: float


def summarize(study: Study, book: RunBook, rates: dict[str, float | None]) -> list[RowSummary]:
    """Sum up the final runs of a study; lines without a run are left out.

    Args:
        study: The study.
        book: Its book; runs with other arguments than the study has now do not count.
        rates: The learning rate of each line.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in study.final_runs(rates):
        if run.key in book:
            found.setdefault(run.row, {})[run.seed] = book.records[run.key]
    accuracies = {
        name: {seed: record["test"]["accuracy"] for seed, record in records.items()} for name, records in found.items()
    }
    return [
        RowSummary(
            name=name,
            learning_rate=records[min(records)]["learning_rate"],
            # The parameters and the file are the same for every seed.
            trainable=records[min(records)]["parameters"]["trainable"],
            file_bytes=records[min(records)]["file_bytes"],
            validation=None
            if study.few_shot
            else mean_interval([record["validation_accuracy"] for record in records.values()]),
            test=mean_interval(list(accuracies[name].values())),
            difference=paired_difference(accuracies[name], accuracies[study.reference])
            if study.reference in accuracies and name != study.reference
            else None,
            seconds_per_epoch=statistics.median(r["seconds_per_epoch"] for r in records.values()),
            peak_memory_mib=statistics.median(r["peak_memory_mib"] for r in records.values()),
        )
        for name, records in found.items()
    ]


def study_table(rows: list[RowSummary], reference: str | None = None) -> str:
    """The summary as a table in Markdown: accuracies in per cent, with 95 % intervals."""
    header = ["", "trainable", "file", "learning rate", "validation", "test accuracy"]
    header += [f"difference to {reference}"] if reference else []
    header += ["seeds", "s/epoch", "peak memory"]
    lines = [header]
    for row in rows:
        cells = [
            row.name,
            f"{row.trainable:,}",
            f"{row.file_bytes / 1e6:.2f} MB",
            f"{row.learning_rate:g}",
            f"{100 * row.validation.mean:.1f}" if row.validation else "",
            _percent(row.test),
        ]
        cells += [_percent(row.difference, sign=True) if row.difference else ""] if reference else []
        lines.append([*cells, str(row.test.count), f"{row.seconds_per_epoch:.1f}", f"{row.peak_memory_mib:.0f} MiB"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def write_report(study: Study, rows: list[RowSummary], output_dir: str | Path) -> str:
    """Write "table.md" and "summary.json", and return the table."""
    table = study_table(rows, study.reference)
    output_dir = Path(output_dir)
    (output_dir / "table.md").write_text(f"{study.description}\n\n{table}\n" if study.description else f"{table}\n")
    write_json(output_dir / "summary.json", {"rows": [_as_json(row) for row in rows], "reference": study.reference})
    return table


def _percent(interval: Interval, sign: bool = False) -> str:
    mean = f"{100 * interval.mean:+.1f}" if sign else f"{100 * interval.mean:.1f}"
    return mean if math.isnan(interval.low) else f"{mean} ± {100 * interval.half_width:.1f}"


def _as_json(row: RowSummary) -> dict[str, Any]:
    content = dict(vars(row))
    for name in ("validation", "test", "difference"):
        if content[name] is not None:
            # JSON has no word for "not a number".
            content[name] = {k: None if math.isnan(v) else v for k, v in content[name]._asdict().items()}
    return content
