"""Compare fine-tuning methods over seeds, with learning rates chosen on validation and 95 % intervals.

    python examples/compare.py examples/studies/main.yaml --jobs 2
    python examples/compare.py examples/studies/main.yaml --data path/to/modelnet40_ply_hdf5_2048
    python examples/compare.py examples/studies/main.yaml --rerun point_peft --seed 0    # the same number again
    python examples/compare.py examples/studies/main.yaml --reference lora    # differences to another line

A study is one yaml file: the methods, what differs from one line to the next, the seeds, and the learning rates that
are tried. It can be stopped at any time; started again, it goes on with what is missing. Each run is one line of JSON
in "runs.jsonl"; "table.md" has the means with Student's t interval and the paired differences to a reference. With
matplotlib both are drawn as well, with the learning curves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from point_peft_hf.studies import (
    RunBook,
    Study,
    draw_report,
    final_records,
    rerun,
    run_study,
    score_name,
    study_table,
    summarize,
    validation_by_rate,
    validation_score,
    write_report,
)
from point_peft_hf.training import TrainingStopped
from point_peft_hf.visualization.figure import in_words


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, or other arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="The yaml file.")
    parser.add_argument("--output_dir", type=Path, help="Default: results/ and the name of the yaml file.")
    parser.add_argument("--data", help="Folder of a data set, instead of the study's.")
    parser.add_argument("--model", help="Backbone, instead of the study's.")
    parser.add_argument("--jobs", type=int, default=1, help="Trainings side by side (default: %(default)s).")
    parser.add_argument(
        "--reference", metavar="ROW", help="Only print what is in the book, with the differences to this row."
    )
    parser.add_argument("--rerun", metavar="ROW", help="Only do one run of the book again, and compare.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the run to do again (default: %(default)s).")
    args = parser.parse_args(arguments)
    args.output_dir = args.output_dir or Path("results") / args.study.stem
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the table."""
    args = parse_arguments(arguments)
    overrides = {name: getattr(args, name) for name in ("data", "model") if getattr(args, name)}
    study = Study.from_yaml(args.study, **overrides)
    if args.rerun:
        compare_with_record(study, args.output_dir, args.rerun, args.seed, overrides)
        return
    if args.reference:
        print_differences(study.compared_to(args.reference), args.output_dir)
        return
    book, rates = run_study(study, args.output_dir, jobs=args.jobs)
    print(f"\n{write_report(study, summarize(study, book, rates), args.output_dir)}\n")
    if not draw_report(study, book, rates, args.output_dir):
        print("No plots: they need matplotlib (pip install 'point-peft-hf[viz]').")
    print(f"Saved to {args.output_dir}/.")


def print_differences(study: Study, output_dir: Path) -> None:
    """Print the table of the runs that are there; nothing is trained, and nothing written."""
    book = RunBook(output_dir / "runs.jsonl")
    rows = summarize(study, book, study.chosen_rates(validation_by_rate(study, book)))
    if study.reference not in [row.name for row in rows]:
        raise ValueError(f"{output_dir}/runs.jsonl has no run of {study.reference!r} yet for this study and its data.")
    print(study_table(rows))


def compare_with_record(study: Study, output_dir: Path, row: str, seed: int, overrides: dict[str, str]) -> None:
    """Do a recorded run again and print both results."""
    book = RunBook(output_dir / "runs.jsonl")
    found = [r for r in book.records.values() if (r["row"], r["seed"]) == (row, seed) and r["stage"] != "search"]
    if not found:
        raise ValueError(f"{output_dir}/runs.jsonl has no run of {row!r} with seed {seed}.")
    # The one in the table, where the study is what it was; its data may be elsewhere now.
    rates = study.chosen_rates(validation_by_rate(study, book))
    recorded = final_records(study, book, rates).get(row, {}).get(seed, found[-1])
    again = rerun(recorded, **overrides)
    for name, record in (("recorded", recorded), ("again", again)):
        score = score_name(record)
        for split, value in (("validation", validation_score(record)), ("test", record["test"].get(score))):
            if value is not None:
                print(f"{name}: {split} {in_words(score)} {value:.6f}")
    if (again["test"], validation_score(again)) != (recorded["test"], validation_score(recorded)):
        circumstances = ("versions", "commit", "device", "threads", "mixed_precision", "clouds", "fingerprints")
        changed = [
            f"{name} was {recorded.get(name) or 'not recorded'}, is {again[name]}"
            for name in circumstances
            if recorded.get(name) != again[name]
        ]
        sys.exit("The numbers differ. " + ("; ".join(changed) or "Nothing that is recorded has changed") + ".")


if __name__ == "__main__":
    try:
        main()
    except (OSError, TrainingStopped, ValueError) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
