"""What a study found, as a table."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.files import write_json
from .book import RunBook, score_name, validation_score
from .plan import Study
from .statistics import Interval, mean_interval, paired_difference

# Beside each score over all clouds, that over the classes or categories.
_BY_CLASS = {"accuracy": "mean_class_accuracy", "instance_miou": "category_miou"}


@dataclass(frozen=True)
class RowSummary:
    """One line of a study's table.

    Attributes:
        name: Name of the line.
        learning_rate: Learning rate of its runs.
        tried: Mean validation score of each learning rate that was tried for it.
        trainable: Number of trainable parameters.
        file_bytes: Size of what a run saves.
        score: Name of the measure: "accuracy", or "instance_miou" for parts.
        validation: Validation score over the seeds; `None` under the few-shot protocol, which has no such split.
        test: Test score over the seeds; `None` in a study that compares on validation.
        test_by_class: Mean over the classes of their test accuracies, or over the categories of their mIoUs.
        difference: Paired difference of the score that is compared to the reference; `None` for the reference itself.
        reference: Name of the line that the difference is taken to.
        seconds_per_epoch: Median.
        peak_memory_mib: Median; `None` where it was not measured for each run by itself.
    """

    name: str
    learning_rate: float
    tried: dict[float, float]
    trainable: int
    file_bytes: int
    score: str
    validation: Interval | None
    test: Interval | None
    test_by_class: Interval | None
    difference: Interval | None
    reference: str | None
    seconds_per_epoch: float
    peak_memory_mib: float | None

    @property
    def compared(self) -> Interval:
        """The score that rows are compared by."""
        return self.test or self.validation


def validation_by_rate(study: Study, book: RunBook) -> dict[str, dict[float, list[float]]]:
    """The validation scores of a study's search, by line and learning rate."""
    scores: dict[str, dict[float, list[float]]] = {}
    for run in study.search_runs():
        if run.key in book:
            record = book.records[run.key]
            scores.setdefault(run.row, {}).setdefault(record["learning_rate"], []).append(validation_score(record))
    return scores


def final_records(study: Study, book: RunBook, rates: dict[str, float | None]) -> dict[str, dict[int, dict[str, Any]]]:
    """The records of a study's table that are in its book, by line and seed.

    Args:
        study: The study.
        book: Its book; runs with other arguments than the study has now do not count.
        rates: The learning rate of each line.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in study.final_runs(rates):
        if run.key in book:
            found.setdefault(run.row, {})[run.seed] = book.records[run.key]
    return {name: found[name] for name in study.rows if name in found}


def summarize(study: Study, book: RunBook, rates: dict[str, float | None]) -> list[RowSummary]:
    """Sum up the runs of [`final_records`]; lines without a run are left out."""
    found = final_records(study, book, rates)
    compared = {
        name: {seed: _compared_score(study, record) for seed, record in records.items()}
        for name, records in found.items()
    }
    tried = {
        name: {rate: statistics.fmean(scores) for rate, scores in sorted(by_rate.items())}
        for name, by_rate in validation_by_rate(study, book).items()
    }
    return [
        _summarize_row(study, name, records, compared, tried.get(study.rows[name].learning_rate_from or name, {}))
        for name, records in found.items()
    ]


def _compared_score(study: Study, record: dict[str, Any]) -> float:
    return validation_score(record) if study.compare_on == "validation" else record["test"][score_name(record)]


def _summarize_row(
    study: Study,
    name: str,
    records: dict[int, dict[str, Any]],
    compared: dict[str, dict[int, float]],
    tried: dict[float, float],
) -> RowSummary:
    # Learning rate, parameters and file are the same for every seed.
    first = records[min(records)]
    score, on_test = score_name(first), study.compare_on == "test"
    by_class = [record["test"][_BY_CLASS[score]] for record in records.values()] if on_test else []
    reference = compared.get(study.reference_of(name))
    memory = [record["peak_memory_mib"] for record in records.values()]
    return RowSummary(
        name=name,
        learning_rate=first["learning_rate"],
        tried=tried,
        trainable=first["parameters"]["trainable"],
        file_bytes=first["file_bytes"],
        score=score,
        validation=None if study.few_shot else mean_interval([validation_score(r) for r in records.values()]),
        test=mean_interval(list(compared[name].values())) if on_test else None,
        test_by_class=mean_interval(by_class) if on_test else None,
        difference=paired_difference(compared[name], reference) if reference else None,
        reference=study.reference_of(name) if reference else None,
        seconds_per_epoch=statistics.median(r["seconds_per_epoch"] for r in records.values()),
        peak_memory_mib=statistics.median(memory) if None not in memory else None,
    )


def common_reference(rows: list[RowSummary]) -> str | None:
    """What all differences of a table are taken to; `None` if it is not the same for all."""
    references = {row.reference for row in rows if row.reference}
    return references.pop() if len(references) == 1 else None


def study_table(rows: list[RowSummary]) -> str:
    """The summary as a table in Markdown: scores in per cent, with 95 % intervals.

    A difference that is not taken to the same line as all others says to which.
    """
    columns = ["", "trainable", "file", "learning rate", *_score_columns(rows)]
    has_differences, reference = any(row.difference for row in rows), common_reference(rows)
    columns += [f"difference to {reference}" if reference else "difference"] if has_differences else []
    has_memory = all(row.peak_memory_mib is not None for row in rows)
    lines = [[*columns, "seeds", "s/epoch", *(["peak memory"] if has_memory else [])]]
    for row in rows:
        cells = [row.name, f"{row.trainable:,}", f"{row.file_bytes / 1e6:.2f} MB", f"{row.learning_rate:g}"]
        cells += _score_cells(row)
        cells += [_difference(row, reference)] if has_differences else []
        cost = [f"{row.seconds_per_epoch:.1f}", *([f"{row.peak_memory_mib:.0f} MiB"] if has_memory else [])]
        lines.append([*cells, str(row.compared.count), *cost])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def _difference(row: RowSummary, reference: str | None) -> str:
    if row.difference is None:
        return ""
    return _percent(row.difference, sign=True) + ("" if reference else f" to {row.reference}")


def _score_columns(rows: list[RowSummary]) -> list[str]:
    parts = any(row.score == "instance_miou" for row in rows)
    if any(row.test is None for row in rows):
        return ["validation mIoU" if parts else "validation accuracy"]
    validation = ["validation"] if any(row.validation for row in rows) else []
    return [*validation, *(("test mIoU", "category mIoU") if parts else ("test accuracy", "mean class"))]


def _score_cells(row: RowSummary) -> list[str]:
    if row.test is None:
        return [_percent(row.validation)]
    validation = [f"{100 * row.validation.mean:.1f}"] if row.validation else []
    return [*validation, _percent(row.test), _percent(row.test_by_class)]


def write_report(study: Study, rows: list[RowSummary], output_dir: str | Path) -> str:
    """Write "table.md" and "summary.json", and return the table."""
    table = study_table(rows)
    output_dir = Path(output_dir)
    (output_dir / "table.md").write_text(f"{study.description}\n\n{table}\n" if study.description else f"{table}\n")
    write_json(output_dir / "summary.json", {"rows": [_as_json(row) for row in rows], "reference": study.reference})
    return table


def _percent(interval: Interval, sign: bool = False) -> str:
    mean = f"{100 * interval.mean:+.1f}" if sign else f"{100 * interval.mean:.1f}"
    return mean if math.isnan(interval.low) else f"{mean} ± {100 * interval.half_width:.1f}"


def _as_json(row: RowSummary) -> dict[str, Any]:
    content = dict(vars(row))
    for name in ("validation", "test", "test_by_class", "difference"):
        if content[name] is not None:
            # JSON has no word for "not a number".
            content[name] = {k: None if math.isnan(v) else v for k, v in content[name]._asdict().items()}
    return content
