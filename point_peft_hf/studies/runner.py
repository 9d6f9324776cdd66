"""Running a study: each training once, several side by side, and nothing twice after a stop."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import release_memory

from ..data import few_shot_fold, load_dataset, read_few_shot_fold
from ..locks import locked_folder
from ..training import (
    ClassificationTask,
    FinetuneArguments,
    Finetuning,
    Task,
    TrainingDiverged,
    backbone_digest,
    data_fingerprint,
    show_only_own_messages,
    task_from_arguments,
)
from .book import RunBook, score_name, validation_score
from .plan import FewShot, PlannedRun, Study
from .report import validation_by_rate

# What decides the clouds of a run.
_DATA_ARGUMENTS = (
    *("task", "data", "layout", "clouds_per_class", "corruption", "validation_fraction", "max_train_clouds"),
    *("max_test_clouds", "skip_bad_files", "drop_invalid", "data_seed"),
)
# What of a run's record goes into the book; the whole of it stays beside the adapter.
_KEPT_FIELDS = (
    "learning_rate",
    "clouds",
    "fingerprints",
    "parameters",
    "best_epoch",
    "score",
    "test",
    "file_bytes",
    "seconds_per_epoch",
    "peak_memory_mib",
    "history",
    "versions",
    "commit",
    "device",
    "mixed_precision",
)


def run_study(
    study: Study, output_dir: str | Path, *, jobs: int = 1, report: Callable[[str], None] = print
) -> tuple[RunBook, dict[str, float | None]]:
    """Run what of a study is not yet in its book: first the search for learning rates, then the runs of the table.

    Args:
        study: What to run.
        output_dir: The book "runs.jsonl" goes here, and what the final runs save to "adapters/<row>/seed-<n>".
        jobs: Trainings side by side, each with its share of the cores. A training on a single core is slower but
            wastes nothing, so on a CPU as many jobs as cores finish first.
        report: Called with each line that a person should see.

    Returns:
        The book, and the learning rate of each line.

    Raises:
        ValueError: If the book has runs on another backbone or other data of the same name, or another process runs a
            study in the folder.
        TrainingStopped: If a run of the table could not be finished, after all others are done.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}.")
    show_only_own_messages()
    output_dir = Path(output_dir)
    with locked_folder(output_dir):
        output_dir.mkdir(exist_ok=True)
        book = RunBook(output_dir / "runs.jsonl")
        searches = list(study.search_runs())
        refuse_other_inputs(searches, book)
        _run_all(searches, book, output_dir, jobs, report)
        scores = validation_by_rate(study, book)
        rates = study.chosen_rates(scores)
        for name, rate in rates.items():
            if study.learning_rates:
                report(f"{name}: {_describe_rate(rate, scores.get(name, {}))}")
        finals = list(study.final_runs(rates))
        refuse_other_inputs(finals, book)
        _run_all(finals, book, output_dir, jobs, report)
    return book, rates


def _describe_rate(rate: float | None, tried: dict[float, list[float]]) -> str:
    if rate is None:
        return "the method's learning rate"
    end = {min(tried): "lowest", max(tried): "highest"}.get(rate) if len(tried) > 1 else None
    return f"learning rate {rate:g}" + (f", the {end} of those tried" if end else "")


def refuse_other_inputs(runs: Iterable[PlannedRun], book: RunBook) -> None:
    """Refuse to go on with a book whose runs were made on another backbone or other data than there are now.

    Args:
        runs: What is planned.
        book: What is done.

    Raises:
        ValueError: If a planned run is in the book, but its backbone has other weights since, or its data are others.
    """
    digest, data_digests = functools.cache(_backbone_digest), functools.cache(_data_digests)
    for run in runs:
        then = book.records.get(run.key, {}).get("fingerprints") or {}
        arguments = FinetuneArguments(**run.arguments, seed=run.seed)
        now = {}
        if "backbone" in then:
            now["backbone"] = digest(arguments.model, json.dumps(arguments.model_config))
        if "data" in then:
            about = {name: getattr(arguments, name) for name in _DATA_ARGUMENTS}
            if run.few_shot is not None:
                about["seed"] = run.seed  # the fold
            now["data"] = data_digests(json.dumps(about), run.few_shot, run.stage == "final")
        for what, value in now.items():
            if value != then[what]:
                name = "weights of " + arguments.model if what == "backbone" else "clouds in " + arguments.data
                raise ValueError(
                    f"{book.path} has a run of {run.row!r} (seed {run.seed}) on other {name} than there are now. "
                    "Remove its lines to run them again, or pass another --output_dir."
                )


def _backbone_digest(name: str, model_config: str) -> str | None:
    return backbone_digest(name, **json.loads(model_config))


def _data_digests(arguments: str, few_shot: FewShot | None, with_test: bool) -> dict[str, str]:
    return data_fingerprint(_load_task(FinetuneArguments(**json.loads(arguments)), few_shot, with_test))


def _load_task(arguments: FinetuneArguments, few_shot: FewShot | None, with_test: bool) -> Task:
    """The data of a run; what chooses must not know the test split."""
    if few_shot is None:
        task = task_from_arguments(arguments)
    else:
        task = few_shot_task(arguments.data, few_shot, fold=arguments.seed, layout=arguments.layout)
    return task if with_test else replace(task, test=task.test.select([]))


def rerun(record: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """Do a run of a book again, from its record alone.

    Args:
        record: A line of the book.
        **overrides: Arguments that have changed since, for example `data`, where the data have been moved.

    Returns:
        The new record. With the versions, the kind of machine and the number of threads of the old one, its numbers
        are the same.
    """
    few_shot = FewShot(**record["few_shot"]) if record["few_shot"] else None
    run = PlannedRun(record["row"], record["stage"], record["seed"], record["arguments"] | overrides, few_shot)
    with tempfile.TemporaryDirectory() as folder:
        return _execute(run, Path(folder), record["threads"])


def _run_all(
    runs: Iterable[PlannedRun], book: RunBook, output_dir: Path, jobs: int, report: Callable[[str], None]
) -> None:
    pending = [run for run in runs if run.key not in book]
    threads = max((os.cpu_count() or 1) // jobs, 1)
    for done, record in enumerate(_results(pending, output_dir, jobs, threads), 1):
        book.add(record)
        scores = {"validation": validation_score(record), "test": record["test"].get(score_name(record))}
        score = ", ".join(f"{split} {100 * value:.1f} %" for split, value in scores.items() if value is not None)
        score = "diverged" if "diverged" in record else score
        name = f"{record['row']}, {record['stage']}, seed {record['seed']}, learning rate {record['learning_rate']:g}"
        report(f"[{done}/{len(pending)}] {name}: {score}")


def _results(runs: list[PlannedRun], output_dir: Path, jobs: int, threads: int) -> Iterator[dict[str, Any]]:
    """The records of runs, as they are done. One that fails does not keep the others from it."""
    errors = []
    for result in _attempts(runs, output_dir, jobs, threads):
        try:
            yield result()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _attempts(
    runs: list[PlannedRun], output_dir: Path, jobs: int, threads: int
) -> Iterator[Callable[[], dict[str, Any]]]:
    if jobs == 1:
        for run in runs:
            yield functools.partial(_execute, run, output_dir, threads, progress=True)
        return
    # Fresh processes: a fork would copy the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(_execute, run, output_dir, threads) for run in runs]
        try:
            for future in as_completed(futures):
                yield future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker not outlive a study that was killed: it would wait for its next training for good."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _execute(run: PlannedRun, output_dir: Path, threads: int, progress: bool = False) -> dict[str, Any]:
    show_only_own_messages()
    torch.set_num_threads(threads)
    work_dir = output_dir / "unfinished" / run.key
    arguments = FinetuneArguments(
        **run.arguments, seed=run.seed, output_dir=str(work_dir), resume_from_checkpoint="latest"
    )
    task = _load_task(arguments, run.few_shot, run.stage == "final")
    finetuning = Finetuning(arguments, task, report=lambda line: None, progress=progress)
    try:
        record = finetuning.run()
    except TrainingDiverged as error:
        if run.stage != "search":
            raise
        # A rate that is too high is what a search is there to find out.
        score = {"learning_rate": arguments.peak_learning_rate, "score": task.score, f"validation_{task.score}": 0.0}
        record = {**dict.fromkeys(_KEPT_FIELDS), **finetuning.record, **score, "test": {}, "diverged": str(error)}
    folder = finetuning.output_dir
    finetuning.accelerator.free_memory()
    release_memory(finetuning)
    if run.stage == "final":
        _keep(folder, output_dir / "adapters" / run.row / f"seed-{run.seed}")
    shutil.rmtree(work_dir)
    return {
        "key": run.key,
        "row": run.row,
        "stage": run.stage,
        "seed": run.seed,
        "arguments": run.arguments,
        "few_shot": run.few_shot and vars(run.few_shot),
        "threads": threads,
        **{name: record[name] for name in (*_KEPT_FIELDS, f"validation_{record['score']}")},
        **({"diverged": record["diverged"]} if "diverged" in record else {}),
    }


def _keep(folder: Path, target: Path) -> None:
    """Keep what predicts and what tells how it was made; the checkpoints have done their service."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=lambda _, names: [name for name in names if name.startswith("checkpoint")])


def few_shot_task(data: str, protocol: FewShot, fold: int, layout: str | None = None) -> ClassificationTask:
    """A fold of the few-shot protocol as a task.

    There is no validation split: with so few clouds none can be spared, and the last epoch is taken.

    Args:
        data: Folder of the data set; the clouds of a fold come from its training split. Or a folder of published
            folds, "5way_10shot/0.pkl" and so on, which are taken as they are.
        protocol: Classes and clouds of a fold.
        fold: Number of the fold.
        layout: Name of the folder's layout; by default it is found by looking.
    """
    published = Path(data) / f"{protocol.way}way_{protocol.shot}shot" / f"{fold}.pkl"
    if published.is_file():
        splits = read_few_shot_fold(published)
    else:
        dataset = load_dataset(data, layout)["train"]
        splits = few_shot_fold(dataset, protocol.way, protocol.shot, protocol.query, fold)
    empty = splits["train"].select([])
    return ClassificationTask(list(splits["train"].class_names), splits["train"], empty, splits["test"])
