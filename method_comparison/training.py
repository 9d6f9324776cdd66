"""The only place that knows how the package trains: arguments by the names of `transformers.TrainingArguments`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from point_peft_hf.data import few_shot_fold, load_dataset, read_few_shot_fold
from point_peft_hf.io.backbone import fingerprint
from point_peft_hf.training import (
    ClassificationTask,
    FinetuneArguments,
    Finetuning,
    Task,
    load_backbone,
    task_from_arguments,
)

# Arguments that name a place: their content is compared by fingerprints.
DATA_AND_MODEL = ("data", "model")
_NAMES = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "warmup_steps": "warmup_ratio",
    "max_grad_norm": "max_gradient_norm",
    "split_seed": "data_seed",
}


def _translated(arguments: Mapping[str, Any]) -> FinetuneArguments:
    names = {name: _NAMES.get(name, name) for name in arguments}
    known = {field.name for field in fields(FinetuneArguments)} - set(_NAMES.values())
    if unknown := sorted(arguments.keys() - known - _NAMES.keys()):
        raise ValueError(f"There are no arguments {unknown}. See examples/train.py --help.")
    return FinetuneArguments(**{names[name]: value for name, value in arguments.items()})


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check arguments of training without loading anything.

    Raises:
        ValueError: If one is unknown or does not fit.
    """
    try:
        _translated(arguments).check()
    except TypeError as error:
        raise ValueError(f"An argument has a value of another type: {error}.") from error


def backbone_fingerprint(arguments: Mapping[str, Any], task: Task) -> str | None:
    """The digest of the weights of a backbone, as records have it."""
    args = _translated(arguments)
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
    return Finetuning(_translated(arguments), task, report=lambda line: None).run()


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
    args = _translated(arguments)
    if "few_shot" in protocol:
        task = _few_shot_task(args, **protocol["few_shot"])
    else:
        task = task_from_arguments(args)
        if protocol.get("validation_by_order"):
            _hold_out_last(task, args)
        if "labels_per_class" in protocol:
            _keep_few_labels(task, protocol["labels_per_class"], args.data_seed)
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


def _hold_out_last(task: Task, args: FinetuneArguments) -> None:
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


def _few_shot_task(args: FinetuneArguments, way: int, shot: int, query: int = 20) -> ClassificationTask:
    published = Path(args.data) / f"{way}way_{shot}shot" / f"{args.data_seed}.pkl"
    if published.is_file():
        splits = read_few_shot_fold(published)
    else:
        splits = few_shot_fold(load_dataset(args.data, args.layout)["train"], way, shot, query, args.data_seed)
    empty = splits["train"].select([])
    return ClassificationTask(list(splits["train"].class_names), splits["train"], empty, splits["test"])
