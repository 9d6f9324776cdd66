"""The only place that knows how the package trains: arguments by the names of `transformers.TrainingArguments`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from point_peft_hf.data import few_shot_fold, load_dataset, read_few_shot_fold
from point_peft_hf.io.backbone import fingerprint
from point_peft_hf.training import (
    ClassificationTask,
    PointCloudArguments,
    Task,
    finetune,
    load_backbone,
    load_task_of,
    parse_arguments,
)

# Arguments that name a place: their content is compared by fingerprints.
DATA_AND_MODEL = ("data", "model")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check arguments of training without loading anything.

    Raises:
        ValueError: If one is unknown or does not fit.
    """
    try:
        parse_arguments(arguments)
    except TypeError as error:
        raise ValueError(f"An argument has a value of another type: {error}.") from error


def backbone_fingerprint(arguments: Mapping[str, Any], task: Task) -> str | None:
    """The digest of the weights of a backbone, as records have it."""
    _, args, _ = parse_arguments(arguments)
    fields = task.model_fields | args.model_config
    return fingerprint(load_backbone(args.model, task.class_names, task.auto_class, **fields)).get("float32")


def train_once(arguments: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Train, choose the epoch on validation and look at the test split once.

    Args:
        arguments: Arguments of training.
        task: The clouds.

    Returns:
        The record of the run, as it is saved to "run.json".
    """
    return finetune(arguments, task, report=lambda line: None)


def load_clouds(arguments: Mapping[str, Any], protocol: Mapping[str, Any], with_test: bool = True) -> Task:
    """The clouds of a run.

    Args:
        arguments: Arguments of training.
        protocol: `labels_per_class`: that number of labelled clouds of each class, drawn by the split's seed, is all
            there is: no validation split, so the last epoch is taken. `few_shot`: a fold of `way` classes with `shot`
            clouds to learn from and `query` to test on, numbered by the split's seed; published folds are taken from
            "5way_10shot/0.pkl" and the like. `validation_by_order`: the last clouds of each class by file name are the
            validation split, for views of one object that follow each other.
        with_test: Whether the run may know the test split.

    Raises:
        ValueError: If the data cannot be loaded, or have too few clouds for the protocol.
    """
    _, args, _ = parse_arguments(arguments)
    if "few_shot" in protocol:
        task = _few_shot_task(args, **protocol["few_shot"])
    else:
        task = load_task_of(args)
        if protocol.get("validation_by_order"):
            _hold_out_last(task, args)
        if "labels_per_class" in protocol:
            _keep_few_labels(task, protocol["labels_per_class"], args.split_seed)
    if not with_test:
        task.test = task.test.select([])
    return task


def _keep_few_labels(task: Task, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.asarray(task.train.labels)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise ValueError(
                f"Class {task.train.class_names[label]!r} has {len(members)} training clouds; `labels_per_class` asks "
                f"for {count}."
            )
        chosen.extend(rng.choice(members, count, replace=False))
    task.train, task.validation = task.train.select(np.sort(chosen)), task.validation.select([])


def _hold_out_last(task: Task, args: PointCloudArguments) -> None:
    if args.max_train_clouds is not None:
        raise ValueError("`validation_by_order` uses all training clouds. Leave out max_train_clouds.")
    parts = args.task == "segmentation"
    whole = load_dataset(args.data, args.layout, parts=parts, drop_invalid=args.drop_invalid)["train"]
    names = whole.names_of(whole.sample_ids)
    order = sorted(
        range(len(whole)), key=lambda i: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", names[i])]
    )
    last = []
    for label in np.unique(whole.labels):
        members = [index for index in order if whole.labels[index] == label]
        last.extend(members[len(members) - max(round(args.validation_fraction * len(members)), 1) :])
    task.train = whole.select(np.setdiff1d(np.arange(len(whole)), last))
    task.validation = whole.select(np.sort(last))


def _few_shot_task(args: PointCloudArguments, way: int, shot: int, query: int = 20) -> ClassificationTask:
    published = Path(args.data) / f"{way}way_{shot}shot" / f"{args.split_seed}.pkl"
    if published.is_file():
        splits = read_few_shot_fold(published)
    else:
        splits = few_shot_fold(load_dataset(args.data, args.layout)["train"], way, shot, query, args.split_seed)
    empty = splits["train"].select([])
    return ClassificationTask(list(splits["train"].class_names), splits["train"], empty, splits["test"])
