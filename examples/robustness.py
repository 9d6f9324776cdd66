"""How the accuracy of trained models falls with corrupted clouds: six corruptions at five strengths.

    python examples/robustness.py results/main/adapters --rows full linear point_peft --data path/to/data
    python examples/robustness.py outputs --rows linear point_peft                   # what examples/train.py saved

Kinds and strengths are those of `point_peft_hf.data.corrupt`. Every model sees the same corrupted clouds. The table
shows the accuracy on clean clouds, the mean over the five strengths of each corruption, and the mean over all of them,
with 95 % intervals where a row has several seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from point_peft_hf.data import CORRUPTIONS, PointCloudDataset, corrupt
from point_peft_hf.data.corruptions import STRENGTHS
from point_peft_hf.studies import mean_interval
from point_peft_hf.training import Predictor, load_task, show_only_own_messages
from point_peft_hf.training.task import PROCEDURAL

CLEAN = "clean"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder with a folder for each row.")
    parser.add_argument("--rows", nargs="+", required=True, help="Names of the rows' folders.")
    parser.add_argument("--data", default=PROCEDURAL, help="Data set whose test clouds are corrupted.")
    parser.add_argument("--max_test_clouds", type=int, default=300, help="Test clouds (default: %(default)s).")
    parser.add_argument("--batch_size", type=int, default=50, help="Clouds at a time (default: %(default)s).")
    parser.add_argument("--output_dir", type=Path, default=Path("results/robustness"), help="Where the numbers go.")
    return parser.parse_args()


def main() -> None:
    """Measure each model under each corruption, then write and print the table."""
    args = parse_arguments()
    show_only_own_messages()
    test = load_task(args.data, max_test_clouds=args.max_test_clouds).test
    models = {row: trained_models(args.folder / row) for row in args.rows}
    conditions = [(CLEAN, 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
    results = []
    for name, strength in tqdm(conditions, desc="Corruptions", disable=not sys.stderr.isatty()):
        # The same clouds, corrupted in the same way, for every model.
        clouds = [corrupted(test, index, name, strength) for index in range(len(test))]
        for row, predictors in models.items():
            for model, predictor in predictors.items():
                right = predictor.predict_classes(clouds, args.batch_size) == np.asarray(test.labels)
                results.append(
                    {"row": row, "model": model, "corruption": name, "strength": strength, "accuracy": right.mean()}
                )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "accuracies.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output_dir / "table.md").write_text(table(results) + "\n")
    print(f"\n{table(results)}\n\nSaved to {args.output_dir}/.")


def trained_models(folder: Path) -> dict[str, Predictor]:
    """The models of a row, by the name of their folder: the row's folder itself, or one for each seed.

    Raises:
        ValueError: If there is none.
    """
    found = [path for path in (folder, *sorted(folder.glob("seed-*"))) if (path / "run.json").exists()]
    if not found:
        raise ValueError(f"{folder} holds no trained model: neither a run.json nor folders seed-* with one.")
    return {path.name: Predictor.from_pretrained(str(path)) for path in found}


def corrupted(test: PointCloudDataset, index: int, name: str, strength: int) -> np.ndarray:
    """One cloud under a condition; the random numbers depend on the cloud and the condition alone."""
    points = np.asarray(test[index]["points"])
    if name == CLEAN:
        return points
    return corrupt(points, name, strength, np.random.default_rng([index, list(CORRUPTIONS).index(name), strength]))


def table(results: list[dict]) -> str:
    """Accuracies in per cent by row and corruption, in Markdown."""
    columns = [CLEAN, *CORRUPTIONS, "mean"]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in dict.fromkeys(result["row"] for result in results):
        cells = []
        for column in columns:
            by_model: dict[str, list[float]] = {}
            for result in results:
                if result["row"] == row and column in (result["corruption"], "mean"):
                    if column != "mean" or result["corruption"] != CLEAN:
                        by_model.setdefault(result["model"], []).append(result["accuracy"])
            interval = mean_interval([100 * float(np.mean(values)) for values in by_model.values()])
            cells.append(f"{interval.mean:.1f}" + (f" ± {interval.half_width:.1f}" if interval.count > 1 else ""))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
