"""Few-shot classification: 5 and 10 classes, 10 and 20 clouds of each to learn from, 10 folds.

    python examples/few_shot.py --data path/to/modelnet40_ply_hdf5_2048 --jobs 2
    python examples/few_shot.py --data path/to/data --settings 5x10 --rows linear point_peft
    python examples/few_shot.py --data path/to/ModelNetFewshot --jobs 2    # published: 5way_10shot/0.pkl, ...

All clouds come from the training split of the data set, 20 of each class to test on; or the folds are those of the
files of Point-BERT, which published tables use. With so few clouds none can be
spared for validation: the last epoch is taken, and the learning rates are those of the study's file. The table has
the mean over the folds with its 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from point_peft_hf.studies import FewShot, Study, draw_report, run_study, summarize, write_report
from point_peft_hf.training import TrainingStopped

SETTINGS = ("5x10", "5x20", "10x10", "10x20")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Folder of the data set.")
    parser.add_argument("--study", type=Path, default=Path(__file__).parent / "studies" / "few_shot.yaml")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="Classes x clouds of each.")
    parser.add_argument("--rows", nargs="+", help="Only these rows of the study.")
    parser.add_argument("--folds", type=int, default=10, help="Number of folds (default: %(default)s).")
    parser.add_argument("--output_dir", type=Path, default=Path("results/few_shot"))
    parser.add_argument("--jobs", type=int, default=1, help="Trainings side by side (default: %(default)s).")
    return parser.parse_args()


def main() -> None:
    """Run each setting as a study of its own, then print the tables."""
    args = parse_arguments()
    for setting in args.settings:
        way, shot = map(int, setting.split("x"))
        study = Study.from_yaml(args.study, data=args.data).few_shots(FewShot(way, shot), args.folds)
        if args.rows:
            study = study.only(args.rows)
        output_dir = args.output_dir / setting
        book, rates = run_study(study, output_dir, jobs=args.jobs)
        print(f"\n{study.description}\n\n{write_report(study, summarize(study, book, rates), output_dir)}\n")
        draw_report(study, book, rates, output_dir)


if __name__ == "__main__":
    try:
        main()
    except (OSError, TrainingStopped, ValueError) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
