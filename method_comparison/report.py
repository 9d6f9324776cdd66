"""Make tables, the page and its picture from the results: `python method_comparison/report.py`.

Each task gets `tables.md` and `tables.tex`; the whole comparison gets `results.csv`, `index.html` (one file that needs
no server and no network) and `overview.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from experiments import DEFAULTS_NAME, ROOT, Experiment, Task, find_experiments, read_task
from intervals import Interval, mean_interval, paired_difference
from records import Result

from point_peft_hf.training import find_method

PERCENT, CHANGE = (0.0, 100.0), (-100.0, 100.0)
UNBOUNDED = (-math.inf, math.inf)


class Metric(NamedTuple):
    """A column of the tables.

    Attributes:
        label: What it is, with its unit.
        higher: Whether more is better.
        value: Its value in the record of a run.
        bounds: The range it can have; bounded metrics are given with their interval.
    """

    label: str
    higher: bool
    value: Callable[[dict[str, Any]], float]
    bounds: tuple[float, float] = UNBOUNDED


def _corrupted(record: dict[str, Any]) -> float:
    return 100 * float(np.mean(list(record["corruption"].values())))


METRICS = {
    "score": Metric("test accuracy or mIoU (%)", True, lambda r: 100 * r["test"][r["score"]], PERCENT),
    "by_class": Metric("mean over classes (%)", True, lambda r: 100 * list(r["test"].values())[1], PERCENT),
    "validation": Metric("validation (%)", True, lambda r: 100 * r["validation"], PERCENT),
    "corrupted": Metric("corrupted clouds (%)", True, _corrupted, PERCENT),
    "probe_change": Metric("probe, change", True, lambda r: 100 * (r["probe"] - r["probe_before"]), CHANGE),
    "trainable": Metric("trainable parameters", False, lambda r: r["parameters"]["trainable"]),
    "file_mb": Metric("file (MB)", False, lambda r: r["file_bytes"] / 1e6),
    "step_ms": Metric("time a step (ms)", False, lambda r: 1e3 * r["seconds_per_step"]),
    "best_s": Metric("time to the best epoch (s)", False, lambda r: r["seconds_to_best"]),
    "kept_mib": Metric("kept for backward (MiB)", False, lambda r: r["kept_memory_mib"]),
    "peak_mib": Metric("peak memory (MiB)", False, lambda r: r["peak_memory_mib"]),
    "inference_ms": Metric("inference a cloud (ms)", False, lambda r: r["inference_ms"]),
}


@dataclass
class Row:
    """An experiment in a setting, summed up over its seeds.

    Attributes:
        experiment: The experiment.
        setting: Name of the setting.
        learning_rate: The rate of its final runs.
        seeds: Number of seeds.
        values: Metrics by name, and differences by "difference to REFERENCE".
    """

    experiment: Experiment
    setting: str
    learning_rate: float
    seeds: int
    values: dict[str, Interval] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in tables and pictures."""
        return self.experiment.method if self.experiment.name == "default" else self.experiment.id


def summarize(task: Task) -> list[Row]:
    """The rows of a task, setting by setting; experiments without a result are left out.

    Raises:
        ValueError: If a result was made with other arguments, or two results have other clouds for the same seed.
    """
    final: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    rows = []
    for experiment in find_experiments([task.folder]):
        if not experiment.result_path.is_file():
            continue
        result = Result(experiment.result_path)
        result.begin(experiment)
        rate = experiment.chosen_rate(result.validation_by_rate())
        for setting in experiment.settings:
            if rate is not None and (records := result.of(setting, learning_rate=rate)):
                final[setting, experiment.id] = {record["seed"]: record for record in records}
                rows.append(Row(experiment, setting, rate, len(records)))
    primary = "score" if task.compare_on == "test" else "validation"
    for row in rows:
        records = final[row.setting, row.experiment.id]
        for name, metric in METRICS.items():
            values = _values(records, metric)
            if values:
                row.values[name] = mean_interval(list(values.values()), metric.bounds)
        for reference in task.references:
            other = final.get((row.setting, reference), {})
            if reference == row.experiment.id or not other:
                continue
            _refuse_other_clouds(row, records, reference, other)
            own, against = (_values(each, METRICS[primary]) for each in (records, other))
            if difference := paired_difference(own, against, CHANGE):
                row.values[_difference_to(reference)] = difference
    order = list(task.settings)
    return sorted(rows, key=lambda row: (order.index(row.setting), -row.values[primary].mean))


def _values(records: dict[int, dict[str, Any]], metric: Metric) -> dict[int, float]:
    found = {}
    for seed, record in records.items():
        try:
            found[seed] = float(metric.value(record))
        except (KeyError, IndexError, TypeError):
            continue  # not measured: a task without a probe, a platform without peak memory
    return found


def _refuse_other_clouds(row: Row, records: dict[int, Any], reference: str, other: dict[int, Any]) -> None:
    for seed in sorted(records.keys() & other.keys()):
        if records[seed]["fingerprints"]["data"] != other[seed]["fingerprints"]["data"]:
            raise ValueError(
                f"{row.experiment.id} and {reference} have other clouds for seed {seed} of {row.setting}, so their "
                f"difference means nothing. Remove one of the results in {row.experiment.task.folder}/results."
            )


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The names of all values that a row has, in the order of the tables: scores, differences, costs."""
    found = {name for row in rows for name in row.values}
    references = [name for row in rows for name in row.experiment.task.references]
    differences = dict.fromkeys(_difference_to(name) for name in references)
    names = list(METRICS)
    return [name for name in (*names[:3], *differences, *names[3:]) if name in found]


def _difference_to(reference: str) -> str:
    return f"difference to {reference.removesuffix('/default')}"


def label_of(name: str) -> str:
    """The heading of a column."""
    return METRICS[name].label if name in METRICS else name


def cell(row: Row, name: str) -> str:
    """A value for a table."""
    value = row.values.get(name)
    if value is None:
        return ""
    if name in METRICS and METRICS[name].bounds == UNBOUNDED:
        return f"{value.mean:,.0f}" if value.mean >= 1e3 else f"{value.mean:.3g}"
    return value.text(sign=name not in METRICS or METRICS[name].bounds == CHANGE)


def _grid(rows: Sequence[Row]) -> list[list[str]]:
    names = columns_of(rows)
    lines = [["", *map(label_of, names), "rate", "seeds"]]
    lines += [[r.label, *(cell(r, name) for name in names), f"{r.learning_rate:g}", str(r.seeds)] for r in rows]
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """The rows of a setting as a table in Markdown."""
    lines = _grid(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def latex(rows: Sequence[Row]) -> str:
    """The rows of a setting as a tabular with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        escaped = [re.sub(r"([_%&#])", r"\\\1", text).replace("±", r"$\pm$") for text in cells]
        return " & ".join(escaped) + r" \\"

    head, *body = _grid(rows)
    lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", line(head), r"\midrule"]
    return "\n".join([*lines, *map(line, body), r"\bottomrule", r"\end{tabular}"])


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write all rows with the ends of all intervals."""
    names = columns_of(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
        writer.writerow(["task", "setting", "experiment", "seeds", "learning_rate", *ends])
        for row in rows:
            found = [_ends(row.values[name]) if name in row.values else (None,) * 3 for name in names]
            first = (row.experiment.task.name, row.setting, row.experiment.id, row.seeds, row.learning_rate)
            writer.writerow([*first, *(value for triple in found for value in triple)])


def _ends(interval: Interval) -> tuple[float | None, ...]:
    # JSON and CSV have no "not a number".
    return tuple(None if math.isnan(value) else float(f"{value:.6g}") for value in interval[:3])


_MARKS = {
    "baseline": ("s", "#6a6a64", "baselines"),
    "peft": ("^", "#c2410c", "methods of PEFT"),
    "point": ("o", "#1d4ed8", "methods for point clouds"),
}


def group_of(method: str) -> str:
    """The kind of a method: "baseline", "peft" if it belongs to PEFT, else "point"."""
    if method in ("full", "linear"):
        return "baseline"
    return "peft" if find_method(method).config_class.__module__.startswith("peft.") else "point"


def page(rows: Sequence[Row]) -> str:
    """The page as HTML, with the rows in it."""
    metrics = {
        name: {
            "label": label_of(name),
            "higher": METRICS[name].higher if name in METRICS else True,
            "digits": None if name in METRICS and METRICS[name].bounds == UNBOUNDED else 1,
            "sign": name not in METRICS or METRICS[name].bounds == CHANGE,
        }
        for name in columns_of(rows)
    }
    content = [
        {
            "task": row.experiment.task.name,
            "setting": row.setting,
            "experiment": row.experiment.id,
            "method": row.experiment.method,
            "name": row.experiment.name,
            "group": group_of(row.experiment.method),
            "learning_rate": row.learning_rate,
            "seeds": row.seeds,
            "config": json.dumps(row.experiment.arguments_in(row.setting) | {"learning_rate": row.learning_rate}),
            "command": f"python method_comparison/run.py method_comparison/{row.experiment.task.name}/experiments/"
            f"{row.experiment.id}",
            "values": {name: _ends(interval) for name, interval in row.values.items()},
        }
        for row in rows
    ]
    tasks = {row.experiment.task.name: row.experiment.task.description for row in rows}
    data = json.dumps({"tasks": tasks, "metrics": metrics, "rows": content}, separators=(",", ":"))
    # "</script>" in a description must not end the script.
    return (ROOT / "page.html").read_text(encoding="utf-8").replace("__DATA__", data.replace("</", "<\\/"))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, the first value being a cost and the second a score."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


_GREEN = "#15803d"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the scores with their intervals, the best first, and the parameters that are trained for them.

    A panel for the first setting of each task; what is on the Pareto front of both is in green.
    """
    from point_peft_hf.visualization.figure import GRID, new_figure, save_figure

    first = [row for row in rows if row.setting == next(iter(row.experiment.task.settings))]
    names = list(dict.fromkeys(row.experiment.task.name for row in first))
    largest = max(sum(row.experiment.task.name == name for row in first) for name in names)
    columns = 2 if len(names) in (2, 4) else min(len(names), 3)
    lines = math.ceil(len(names) / columns)
    height = (0.27 * largest + 1.2) * lines
    figure, axes = new_figure(4.6 * columns, height, squeeze=False, nrows=lines, ncols=columns)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        own = [row for row in first if row.experiment.task.name == name]
        score = "score" if "score" in own[0].values else "validation"
        own.sort(key=lambda row: row.values[score].mean)
        front = pareto_front([(row.values["trainable"].mean, row.values[score].mean) for row in own])
        for place, row in enumerate(own):
            marker, color, _ = _MARKS[group_of(row.experiment.method)]
            panel.hlines(place, *row.values[score][1:3], color=color, alpha=0.45, linewidth=2)
            panel.plot(row.values[score].mean, place, marker, color=color, markersize=6)
            text, at = f"{row.values['trainable'].mean / 1e6:.2f} M", panel.get_yaxis_transform()
            panel.text(
                1.02, place, text, transform=at, va="center", fontsize=8.5, color=_GREEN if place in front else None
            )
        panel.set_yticks(range(len(own)), [row.label for row in own])
        for place in front:
            panel.get_yticklabels()[place].set_color(_GREEN)
        panel.set(title=name.replace("_", " "), xlabel=label_of(score))
        panel.grid(color=GRID, linewidth=0.6, axis="x")
    legend = [axes.flat[0].plot([], [], mark, color=color, label=label)[0] for mark, color, label in _MARKS.values()]
    figure.get_layout_engine().set(w_pad=0.15)
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make everything from the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="Folder of the tasks.")
    args = parser.parse_args(arguments)
    tables, rows = {}, []
    for path in sorted(args.folder.glob(f"*/{DEFAULTS_NAME}")):
        task = read_task(path.parent)
        own = summarize(task)
        rows += own
        by_setting = {name: [row for row in own if row.setting == name] for name in task.settings}
        by_setting = {name: chosen for name, chosen in by_setting.items() if chosen}
        tables |= {f"{task.name}/{name}": markdown(chosen) for name, chosen in by_setting.items()}
        if by_setting:
            sections = [f"## {name}\n\n{tables[f'{task.name}/{name}']}\n" for name in by_setting]
            (task.folder / "tables.md").write_text(f"# {task.name}\n\n{task.description}\n\n" + "\n".join(sections))
            tabulars = [f"% {task.name}, {name}\n{latex(chosen)}\n" for name, chosen in by_setting.items()]
            (task.folder / "tables.tex").write_text("\n".join(tabulars))
    if not rows:
        raise ValueError(f"No task in {args.folder} has a result yet. Run method_comparison/run.py first.")
    write_csv(rows, args.folder / "results.csv")
    (args.folder / "index.html").write_text(page(rows), encoding="utf-8")
    draw(rows, args.folder / "overview.png")
    print("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()))
    print(f"\nThe page: {args.folder / 'index.html'}")


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        # What a person can correct needs no traceback.
        sys.exit(f"error: {error}")
