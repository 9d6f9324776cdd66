"""Measure an adapter on labelled data, class by class.

    point-peft evaluate outputs/point_peft                              # the test split it was trained beside
    point-peft evaluate outputs/point_peft --data new_scans --split all
    point-peft evaluate you/my-adapter --data path/to/modelnet40_ply_hdf5_2048 --output_dir evaluation

Prints the measures, a table by class (or part) and the files that are farthest from right, and writes to the output
folder

    summary.json       the measures
    classes.csv        accuracy, precision and F1 of each class; IoU of each part
    predictions.csv    every cloud, true and predicted class and probabilities, the worst first
    confusion.csv      counts by true (rows) and predicted class (columns); confusion.png with the extra `viz`
    calibration.csv    how often predictions of a probability are right

The data are a folder in any layout of training. `--split test` takes the test split (cut as in training where the
folder has none), `--split all` every cloud: use it for data that the adapter has not seen.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import load_dataset
from ..data.scenes import load_scenes
from ..scenes import ScenePredictor, SceneSegmentationTask
from ..training import (
    ClassificationTask,
    PartPredictor,
    PointCloudArguments,
    Predictor,
    SegmentationTask,
    data_fingerprint,
    load_predictor,
    load_task_of,
)
from ..training.evaluation import Evaluation, evaluate_model
from ..training.precision import in_precision
from ..training.task import PROCEDURAL
from ..visualization import plot_confusion_matrix
from ..visualization.figure import in_words
from . import add_precision, make_adapter_parser, prepare
from .recorded import check_names, read_runs, recorded_data

SPLITS = ("test", "validation", "train", "all")
_TASKS = {
    Predictor: "classification",
    PartPredictor: "segmentation",
    ScenePredictor: "scene_segmentation",
}


def main(arguments: Sequence[str], prog: str) -> None:
    """Measure, print and write."""
    args = _parse(arguments, prog)
    prepare(args)
    predictor = load_predictor(args.adapter, args.model, args.device, args.precision)
    record = next(iter(read_runs(args.adapter)), {})
    what = recorded_data(
        record.get("arguments", {}),
        args.data,
        args.layout,
        model=args.model,
        task=_TASKS[type(predictor)],
        skip_bad_files=args.skip_bad_files or None,
        drop_invalid=args.drop_invalid or None,
    )
    task, datasets = _data(what, args.split, predictor)
    print(f"{what.data}: {sum(map(len, datasets))} {task.noun}, split {args.split}", flush=True)
    if _are_same(what.data, record.get("arguments", {}).get("data")):
        if args.split in ("train", "all"):
            print("Note: the adapter was trained on some of these.")
        elif record["fingerprints"]["data"][args.split] != data_fingerprint(task)[args.split]:
            print("Note: these are others than in training, where they may have been among the training clouds.")
    batch_size = args.batch_size or task.batch_size
    if isinstance(predictor, Predictor):
        task = dataclasses.replace(task, class_names=predictor.class_names)
    with in_precision(args.precision, torch.device(args.device)):
        evaluation = evaluate_model(predictor.model, task, datasets, predictor.processor, batch_size)
    _print(evaluation, args.worst, task)
    for path in evaluation.write(args.output_dir):
        print(path)
    try:
        print(plot_confusion_matrix(evaluation.confusion, evaluation.class_names, args.output_dir / "confusion.png"))
    except ImportError as error:
        print(f"No confusion.png: {error}")


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = make_adapter_parser(__doc__, prog)
    parser.add_argument("adapter", metavar="ADAPTER", help="Folder or Hub repository of the adapter.")
    parser.add_argument("--data", help="Folder of labelled data (default: what it was trained on).")
    parser.add_argument("--split", choices=SPLITS, default="test", help="Which clouds (default: test).")
    parser.add_argument("--layout", help="Layout of the folder, if it holds several data sets. Default: detected.")
    parser.add_argument("--output_dir", type=Path, default=Path("evaluation"), help="Default: evaluation.")
    parser.add_argument("--batch_size", type=int, help="Clouds at a time (default: as in training).")
    parser.add_argument("--worst", type=int, default=5, help="Wrong files to print (default: 5).")
    parser.add_argument("--skip_bad_files", action="store_true", help="Skip files that cannot be read.")
    parser.add_argument(
        "--drop_invalid", action="store_true", help="Leave out points with NaN or infinite coordinates."
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_precision(parser)
    return parser.parse_args(arguments)


def _are_same(data: str, other: str | None) -> bool:
    return other is not None and (data == other or Path(data).resolve() == Path(other).resolve())


def _data(what: PointCloudArguments, split: str, predictor: Any) -> tuple[Any, list[Any]]:
    """The task, and the data sets to measure, with the labels of the predictor."""
    if split == "all" and what.data != PROCEDURAL:
        task, datasets = _everything(what, predictor)
    else:
        task = load_task_of(what)
        names = ("train", "validation", "test") if split == "all" else (split,)
        datasets = [getattr(task, name) for name in names]
    if isinstance(predictor, Predictor):
        datasets = [_renumbered(dataset, predictor.class_names, what.data) for dataset in datasets]
    else:
        check_names(task.class_names, _names(predictor), what.data)
    datasets = [dataset for dataset in datasets if len(dataset)]
    if not datasets:
        raise ValueError(f"The {split} split of {what.data} is empty. Pass another --split.")
    return task, datasets


def _everything(what: PointCloudArguments, predictor: Any) -> tuple[Any, list[Any]]:
    """All clouds of a folder, without a cut."""
    options: dict[str, Any] = {"skip_bad_files": what.skip_bad_files, "drop_invalid": what.drop_invalid}
    if what.task == "scene_segmentation":
        splits = load_scenes(what.data, grid_size=predictor.processor.voxel_size, **options)
    else:
        splits = load_dataset(what.data, what.layout, parts=what.task == "segmentation", **options)
    datasets = list(splits.values())
    first = datasets[0]
    if what.task == "scene_segmentation":
        return SceneSegmentationTask(list(first.class_names), first, first, first), datasets
    if what.task == "segmentation":
        names = first.part_names, first.class_names, first.class_parts
        return SegmentationTask(*names, first, first, first), datasets
    return ClassificationTask(list(first.class_names), first, first, first), datasets


def _names(predictor: Any) -> list[str]:
    return predictor.part_names if isinstance(predictor, PartPredictor) else predictor.class_names


def _renumbered(dataset: Any, class_names: list[str], data: str) -> Any:
    """A data set with the labels that the adapter gives its classes, which may be more than the data have."""
    unknown = [name for name in dataset.class_names if name not in class_names]
    if unknown:
        raise ValueError(
            f"The adapter does not know the classes {', '.join(unknown)} of {data}. It knows "
            f"{', '.join(class_names)}. Rename the folders, or leave these classes out."
        )
    numbers = np.array([class_names.index(name) for name in dataset.class_names])
    renumbered = dataset.select(np.arange(len(dataset)))
    renumbered.labels, renumbered.class_names = numbers[dataset.labels], class_names
    return renumbered


def _print(evaluation: Evaluation, worst: int, task: Any) -> None:
    for name, value in evaluation.summary.items():
        if name == "accuracy" and "accuracy_lower" in evaluation.summary:
            ends = [100 * evaluation.summary[f"accuracy_{end}"] for end in ("lower", "upper")]
            print(f"accuracy: {100 * value:.1f} % (95 % interval {ends[0]:.1f} to {ends[1]:.1f})")
        elif name != "count" and not name.startswith("accuracy_"):
            print(f"{in_words(name)}: {100 * value:.1f} %")
    rows = [list(evaluation.classes[0])]
    rows += [[_cell(value) for value in row.values()] for row in evaluation.classes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    wrong = [row for row in evaluation.predictions if row.get("true") != row.get("predicted") or "miou" in row][:worst]
    if wrong:
        print(f"\nWorst predictions of the {evaluation.summary['count']} {task.noun}:")
    for row in wrong:
        if "miou" in row:
            print(f"  {row['file']}: mIoU {100 * row['miou']:.1f} %")
        else:
            print(
                f"  {row['file']}: {row['true']}, predicted {row['predicted']} with {100 * row['probability']:.1f} %"
            )
    print()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{100 * value:.1f} %"
    return str(value)
