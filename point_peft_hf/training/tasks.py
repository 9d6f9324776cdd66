"""The task that a run's arguments ask for."""

from __future__ import annotations

from .arguments import FinetuneArguments
from .segmentation import SegmentationTask, load_segmentation_task
from .task import ClassificationTask, load_task

Task = ClassificationTask | SegmentationTask


def task_from_arguments(args: FinetuneArguments) -> Task:
    """Load the data of a run."""
    options = {
        "validation_fraction": args.validation_fraction,
        "max_train_clouds": args.max_train_clouds,
        "max_test_clouds": args.max_test_clouds,
        "skip_bad_files": args.skip_bad_files,
        "drop_invalid": args.drop_invalid,
        "layout": args.layout,
        "seed": args.data_seed,
    }
    if args.task == "segmentation":
        return load_segmentation_task(args.data, **options)
    return load_task(args.data, clouds_per_class=args.clouds_per_class, corruption=args.corruption, **options)
