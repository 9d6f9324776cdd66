"""How the accuracy of trained models falls with corrupted clouds: six corruptions at five strengths.

    python examples/robustness.py results/main/adapters --rows full linear point_peft --data path/to/data
    python examples/robustness.py outputs --rows linear point_peft                   # what examples/train.py saved

Kinds and strengths are those of `point_peft_hf.data.corrupt`. Every model sees the same corrupted clouds; a cloud of
more points than the models take is sampled first, or the lost points would be replaced by others. The tables show the
accuracy on the clouds as they are, the mean over the five strengths of each corruption, and the mean over all of them;
the same by strength; and paired differences to the first row; with 95 % intervals where there are several seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
from tqdm.auto import tqdm

from point_peft_hf.data import CORRUPTIONS, PointCloudDataset, corrupt
from point_peft_hf.data.corruptions import STRENGTHS
from point_peft_hf.studies import Interval, mean_interval, paired_difference
from point_peft_hf.training import Predictor, find_method, load_task, show_only_own_messages
from point_peft_hf.training.task import PROCEDURAL

CLEAN = "as they are"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder with a folder for each row.")
    parser.add_argument("--rows", nargs="+", required=True, help="Names of the rows' folders.")
    parser.add_argument("--method", help="package.module:Config, where adapters are of a type of your own.")
    parser.add_argument("--data", default=PROCEDURAL, help="Data set whose test clouds are corrupted.")
    parser.add_argument("--layout", help="Layout of the folder, where it holds several data sets.")
    parser.add_argument("--max_test_clouds", type=int, default=300, help="Test clouds (default: %(default)s).")
    parser.add_argument("--batch_size", type=int, default=50, help="Clouds at a time (default: %(default)s).")
    parser.add_argument("--output_dir", type=Path, default=Path("results/robustness"), help="Where the numbers go.")
    return parser.parse_args()


def main() -> None:
    """Measure each model under each corruption, then write and print the table."""
    args = parse_arguments()
    show_only_own_messages()
    if args.method:
        find_method(args.method)  # registers its type
    test = load_task(args.data, layout=args.layout, max_test_clouds=args.max_test_clouds).test
    models = {row: trained_models(args.folder / row) for row in args.rows}
    everyone = [predictor for predictors in models.values() for predictor in predictors.values()]
    for predictor in everyone:
        predictor.check_classes(test.class_names)
    num_points = max(predictor.processor.num_points for predictor in everyone)
    conditions = [(CLEAN, 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
    results = []
    for name, strength in tqdm(conditions, desc="Corruptions", disable=not sys.stderr.isatty()):
        # The same clouds, corrupted in the same way, for every model.
        clouds = [corrupted(test, index, num_points, name, strength) for index in range(len(test))]
        for row, predictors in models.items():
            for model, predictor in predictors.items():
                right = predictor.predict_classes(clouds, args.batch_size) == np.asarray(test.labels)
                results.append(
                    {"row": row, "model": model, "corruption": name, "strength": strength, "accuracy": right.mean()}
                )
    text = report(results)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "accuracies.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output_dir / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\nSaved to {args.output_dir}/.")


def trained_models(folder: Path) -> dict[str, Predictor]:
    """The models of a row, by the name of their folder in it: one for each seed, or "" for the row's folder itself.

    Raises:
        ValueError: If there is none.
    """
    found = [path for path in (folder, *sorted(folder.glob("seed-*"))) if (path / "run.json").exists()]
    if not found:
        raise ValueError(f"{folder} holds no trained model: neither a run.json nor folders seed-* with one.")
    return {"" if path == folder else path.name: Predictor.from_pretrained(str(path)) for path in found}


def corrupted(test: PointCloudDataset, index: int, num_points: int, name: str, strength: int) -> np.ndarray:
    """One cloud under a condition; the random numbers depend on the cloud and the condition alone."""
    points = np.asarray(test[index]["points"])
    if len(points) > num_points:
        points = points[np.random.default_rng(index).choice(len(points), num_points, replace=False)]
    if name == CLEAN:
        return points
    return corrupt(points, name, strength, np.random.default_rng([index, list(CORRUPTIONS).index(name), strength]))


def report(results: list[dict]) -> str:
    """Accuracies in per cent in Markdown: by corruption, by strength, and how the rows differ."""
    corruptions = {name: lambda result, name=name: result["corruption"] == name for name in (CLEAN, *CORRUPTIONS)}
    corruptions["mean"] = lambda result: result["corruption"] != CLEAN
    strengths = {f"strength {n}": lambda result, n=n: result["strength"] == n for n in STRENGTHS}
    by_corruption, by_strength = accuracies(results, corruptions), accuracies(results, strengths)
    first, *others = by_corruption
    sections = [table(by_corruption, mean_interval_of, "{:.1f}"), table(by_strength, mean_interval_of, "{:.1f}")]
    if others:
        differences = {row: by_corruption[row] for row in others}
        against = by_corruption[first]
        sections.append(f"Differences to {first}:")
        sections.append(
            table(differences, lambda values, column: paired_difference(values, against[column]), "{:+.1f}")
        )
    return "\n\n".join(sections)


def accuracies(
    results: list[dict], columns: dict[str, Callable[[dict], bool]]
) -> dict[str, dict[str, dict[str, float]]]:
    """By row, column and model the mean accuracy in per cent over the results that belong in the column."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in dict.fromkeys(result["row"] for result in results):
        own = [result for result in results if result["row"] == row]
        found[row] = {
            column: {
                model: 100 * fmean(r["accuracy"] for r in own if r["model"] == model and belongs(r))
                for model in dict.fromkeys(result["model"] for result in own)
            }
            for column, belongs in columns.items()
        }
    return found


def mean_interval_of(values: dict[str, float], column: str) -> Interval:
    """The mean over the models of a row."""
    return mean_interval(list(values.values()))


def table(
    rows: dict[str, dict[str, dict[str, float]]],
    interval: Callable[[dict[str, float], str], Interval | None],
    number: str,
) -> str:
    """A table in Markdown, each cell from the values of its models."""
    columns = next(iter(rows.values()))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, cells in rows.items():
        texts = [as_text(interval(values, column), number) for column, values in cells.items()]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines)


def as_text(interval: Interval | None, number: str) -> str:
    """An interval as a cell of a table; empty where two rows have no seed in common."""
    if interval is None:
        return ""
    return number.format(interval.mean) + (f" ± {interval.half_width:.1f}" if interval.count > 1 else "")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
