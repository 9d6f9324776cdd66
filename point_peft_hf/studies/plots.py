"""What a study found, as pictures."""

from __future__ import annotations

import importlib.util
import math
import statistics
from pathlib import Path
from typing import Any

from ..visualization import plot_accuracy_against_parameters, plot_intervals, plot_learning_curves
from ..visualization.figure import in_words
from .book import RunBook
from .plan import Study
from .report import common_reference, final_records, summarize
from .statistics import Interval


def draw_report(study: Study, book: RunBook, rates: dict[str, float | None], output_dir: str | Path) -> list[Path]:
    """Draw scores, differences to the reference and learning curves; for several methods also scores over parameters.

    Learning curves are means over the seeds.

    Args:
        study: The study.
        book: Its book.
        rates: The learning rate of each line.
        output_dir: Where the PNG files go.

    Returns:
        The files; none without matplotlib (extra `viz`) or without a run.
    """
    rows, output_dir = summarize(study, book, rates), Path(output_dir)
    if not rows or importlib.util.find_spec("matplotlib") is None:
        return []
    label = f"{study.compare_on} {in_words(rows[0].score)} (%)"
    scores = [{"name": row.name, "parameters": row.trainable, **_percent(row.compared)} for row in rows]
    files = [plot_intervals(scores, output_dir / "scores.png", label)]
    if len({row.arguments["method"] for row in study.rows.values()}) > 1:
        files.append(plot_accuracy_against_parameters(scores, output_dir / "parameters.png", label))
    reference = common_reference(rows)
    differences = [
        {
            "name": row.name if reference else f"{row.name} - {row.reference}",
            "style": style,
            **_percent(row.difference),
        }
        for style, row in enumerate(rows)
        if row.difference
    ]
    if differences:
        label = f"difference to {reference} (points)" if reference else "difference (points)"
        files.append(plot_intervals(differences, output_dir / "differences.png", label, baseline=0.0))
    if not study.few_shot:
        histories = {
            name: _mean_history([record["history"] for record in records.values()])
            for name, records in final_records(study, book, rates).items()
        }
        files.append(plot_learning_curves(histories, output_dir / "learning_curves.png"))
    return files


def _percent(interval: Interval) -> dict[str, float]:
    mean, low, high = (100 * value for value in interval[:3])
    # One seed: a mark without a spread.
    return {"mean": mean, "low": mean, "high": mean} if math.isnan(low) else {"mean": mean, "low": low, "high": high}


def _mean_history(histories: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    return [
        {name: statistics.fmean(row[name] for row in epoch) for name in epoch[0]}
        for epoch in zip(*histories, strict=True)
    ]
