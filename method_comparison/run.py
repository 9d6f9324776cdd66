"""Run experiments: learning rates are chosen on validation, then every seed is trained and measured.

    python method_comparison/run.py                                             # the procedural task
    python method_comparison/run.py method_comparison/modelnet40 --data path/to/modelnet40_ply_hdf5_2048 --jobs 2
    python method_comparison/run.py method_comparison/procedural/experiments/lora --seeds 0 1 2
    python method_comparison/run.py --rerun method_comparison/procedural/results/lora--default.json --seed 0

Each experiment writes one JSON file to the `results` folder of its task. A command that was stopped continues where it
was; `report.py` makes tables and the page from the results. `--rerun` repeats a recorded run and compares its numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from experiments import DATA_PROTOCOL, ROOT, Experiment, Run, find_experiments, read_task
from measures import measure
from records import ENVIRONMENT, Result, key_of
from training import backbone_fingerprint, load_clouds, train_once

from point_peft_hf.locks import locked_folder
from point_peft_hf.training import TrainingDiverged, TrainingStopped, data_fingerprint, show_only_own_messages

_CURVES = ("loss", "train_accuracy", "seconds")


@dataclass(frozen=True)
class Job:
    """A run with everything that a process needs to do it."""

    experiment: Experiment
    run: Run
    folder: Path
    threads: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, or repeat a recorded run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "procedural"], help="Tasks or experiments.")
    parser.add_argument("--data", help="Folder of the data set, instead of the task's.")
    parser.add_argument("--model", help="Backbone, instead of the task's.")
    parser.add_argument("--jobs", type=int, default=1, help="Number of trainings at the same time (%(default)s).")
    parser.add_argument("--seeds", type=int, nargs="+", help="Seeds of the final runs, instead of the task's.")
    parser.add_argument("--rerun", type=Path, metavar="RESULT", help="Repeat a run of this file and compare.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the run to repeat (%(default)s).")
    parser.add_argument("--setting", help="Setting of the run to repeat. Default: the first one of the task.")
    args = parser.parse_args(arguments)
    show_only_own_messages()
    overrides = {name: getattr(args, name) for name in ("data", "model") if getattr(args, name)}
    if args.rerun:
        rerun(args.rerun, args.seed, args.setting, overrides)
        return
    experiments = find_experiments(args.folders, **overrides, **({"seeds": args.seeds} if args.seeds else {}))
    run_all(experiments, args.jobs)
    print(f"Results: {', '.join(sorted({str(e.result_path.parent) for e in experiments}))}. Tables: report.py.")


def run_all(experiments: Sequence[Experiment], jobs: int = 1, report: Callable[[str], None] = print) -> None:
    """Run what the results lack: first the searches for learning rates, then the final runs.

    Args:
        experiments: The experiments.
        jobs: Number of trainings at the same time, each with its share of the cores.
        report: Called with each line that a person should read.

    Raises:
        ValueError: If results were made with other arguments, data or weights, or another process writes to them.
        TrainingStopped: If a final run failed, after all others are done.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}.")
    with ExitStack() as stack:
        for folder in sorted({experiment.task.folder for experiment in experiments}):
            stack.enter_context(locked_folder(folder / "results"))
        pairs = [(experiment, Result(experiment.result_path)) for experiment in experiments]
        for experiment, result in pairs:
            result.begin(experiment)
            _refuse_other_inputs(experiment, result)
        _run_missing([(e, r, run) for e, r in pairs for run in e.search_runs()], jobs, report)
        finals = []
        for experiment, result in pairs:
            rate, rates = experiment.chosen_rate(result.validation_by_rate()), experiment.learning_rates
            if len(rates) > 1:
                end = {min(rates): ", the lowest one", max(rates): ", the highest one"}.get(rate, "")
                report(f"{experiment.id}: learning rate {rate:g}{end}")
            finals += [(experiment, result, run) for run in experiment.final_runs(rate)]
        _run_missing(finals, jobs, report)


def _refuse_other_inputs(experiment: Experiment, result: Result) -> None:
    """Refuse to continue a result whose runs had other clouds or another backbone than there are now."""
    for setting in experiment.settings:
        record = next((r for r in result.runs if r["setting"] == setting and r.get("fingerprints")), None)
        if record is None:
            continue
        arguments, protocol = _split(experiment.arguments_in(setting))
        arguments |= {"split_seed": arguments.get("split_seed", record["seed"])}
        blind = experiment.task.is_blind(record["stage"])
        needed = {k: v for k, v in arguments.items() if k not in ("method", "config", "learning_rate")}
        now = _fingerprints(json.dumps(needed, sort_keys=True), json.dumps(protocol), not blind)
        if changed := [what for what in ("data", "backbone") if record["fingerprints"][what] != now[what]]:
            raise ValueError(f"{result.path} was made with another {changed[0]}. Remove it to run it again.")


@functools.cache
def _fingerprints(arguments: str, protocol: str, with_test: bool) -> dict[str, Any]:
    values = json.loads(arguments)
    task = load_clouds(values, json.loads(protocol), with_test)
    return {"data": data_fingerprint(task), "backbone": backbone_fingerprint(values, task)}


def _split(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of training, and those that choose the clouds."""
    protocol = {name: value for name, value in arguments.items() if name in DATA_PROTOCOL}
    return {name: value for name, value in arguments.items() if name not in protocol}, protocol


def _run_missing(plan: Sequence[tuple[Experiment, Result, Run]], jobs: int, report: Callable[[str], None]) -> None:
    threads = int(os.environ.get("OMP_NUM_THREADS") or max((os.cpu_count() or 1) // jobs, 1))
    pending = [
        (Job(experiment, run, experiment.task.folder / "unfinished", threads), result)
        for experiment, result, run in plan
        if result.find(run) is None
    ]
    # All experiments of a seed come first, so that an early look compares like with like.
    pending.sort(key=lambda pair: pair[0].run.seed)
    errors = []
    for done, (job, result, outcome) in enumerate(_outcomes(pending, jobs), 1):
        name = f"[{done}/{len(pending)}] {job.experiment.id}, {', '.join(map(str, job.run))}"
        try:
            record, environment = outcome()
        except (TrainingStopped, OSError, RuntimeError, ValueError) as error:
            # One that fails does not keep the others from being run.
            report(f"{name}: {error}")
            errors.append(error)
            continue
        result.add(record, environment)
        scores = {"validation": record["validation"], "test": record.get("test", {}).get(record.get("score"))}
        text = ", ".join(f"{split} {100 * value:.1f} %" for split, value in scores.items() if value is not None)
        report(f"{name}: {'diverged' if 'diverged' in record else text}")
    if errors:
        raise errors[0]


def _outcomes(pending: list[tuple[Job, Result]], jobs: int) -> Iterator[tuple[Job, Result, Callable[[], Any]]]:
    if jobs == 1:
        for job, result in pending:
            yield job, result, functools.partial(execute, job)
        return
    # Fresh processes: a fork would copy the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(execute, job): (job, result) for job, result in pending}
        try:
            for future in as_completed(futures):
                yield *futures[future], future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would wait for its next training for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def execute(job: Job) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Train and measure.

    Args:
        job: The run.

    Returns:
        The record of the run, and the environment it was made in.
    """
    show_only_own_messages()
    torch.set_num_threads(job.threads)
    run, task = job.run, job.experiment.task
    arguments, protocol = _split(job.experiment.arguments_in(run.setting))
    folder = job.folder / "--".join([job.experiment.method, job.experiment.name, *map(str, run)])
    arguments = {"split_seed": run.seed} | arguments
    arguments |= {"seed": run.seed, "learning_rate": run.learning_rate, "output_dir": str(folder)}
    arguments["resume_from_checkpoint"] = "latest"
    clouds = load_clouds(arguments, protocol, not task.is_blind(run.stage))
    try:
        record = train_once(arguments, clouds)
    except TrainingDiverged as error:
        if run.stage != "search":
            raise
        # A rate that is too high is what a search is there to find out.
        shutil.rmtree(folder, ignore_errors=True)
        return {**run._asdict(), "validation": 0.0, "diverged": str(error)}, None
    score, history = record["score"], record["history"]
    found = {
        **run._asdict(),
        "validation": record[f"validation_{score}"],
        **{name: record[name] for name in ("best_epoch", "fingerprints")},
    }
    if run.stage == "final":
        batch_size = record["arguments"]["per_device_train_batch_size"]
        curves = [name for name in (*_CURVES, f"validation_{score}") if name in history[0]]
        found |= {
            **{name: record[name] for name in ("score", "clouds", "parameters", "file_bytes")},
            "test": {name: record["test"][name] for name in sorted(record["test"], key=lambda name: name != score)},
            "seconds_per_step": _rounded(sum(row["seconds"] for row in history) / record["steps"]),
            "seconds_to_best": _rounded(sum(row["seconds"] for row in history[: record["best_epoch"]])),
            "peak_memory_mib": record["peak_memory_mib"] and round(record["peak_memory_mib"]),
            "curves": {name: [_rounded(row[name]) for row in history] for name in curves},
        }
        if not task.is_blind(run.stage):
            saved = next(folder.rglob("run.json")).parent
            found |= measure(
                saved, clouds, batch_size, task.corruption_clouds, task.probe_data, arguments.get("model")
            )
    shutil.rmtree(folder)
    return found, {name: record[name] for name in ENVIRONMENT}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


# The numbers that a repeated run has to give again; times and memory depend on the machine.
_REPEATABLE = ("validation", "best_epoch", "test", "corruption", "probe", "probe_before")


def rerun(
    path: Path, seed: int, setting: str | None, overrides: dict[str, str], report: Callable[[str], None] = print
) -> None:
    """Repeat a recorded run from its record alone, and compare the numbers.

    Args:
        path: The result file.
        seed: Seed of the run.
        setting: Its setting; `None`: the first one of the file.
        overrides: Where data or backbone are now.
        report: Called with each line that a person should read.

    Raises:
        ValueError: If there is no such run, or the numbers differ, with what else is different.
    """
    result = Result(path)
    setting = setting or next(iter(result.content["settings"]), "")
    found = [record for record in result.of(setting) if record["seed"] == seed]
    if not found:
        seeds = sorted({record["seed"] for record in result.of(setting)})
        raise ValueError(f"{path} has no final run with seed {seed} in the setting {setting!r}. It has seeds {seeds}.")
    recorded = found[-1]
    environment = result.content["environments"][recorded["environment"]]
    task = read_task(path.resolve().parents[1])
    # Records name data without the folder they were in.
    arguments = result.content["settings"][setting] | {"data": task.arguments["data"]} | overrides
    method, config = arguments.pop("method"), arguments.pop("config")
    task = replace(task, settings={setting: {}}, arguments=arguments)
    experiment = Experiment(task, method, path.stem.partition("--")[2], config, {}, (), (setting,))
    with tempfile.TemporaryDirectory() as folder:
        again, now = execute(Job(experiment, key_of(recorded), Path(folder), environment.get("threads", 1)))
    for name in _REPEATABLE:
        report(f"{name}: recorded {recorded.get(name)}, again {again.get(name)}")
    if different := [name for name in _REPEATABLE if recorded.get(name) != again.get(name)]:
        then = {**environment, "fingerprints": recorded["fingerprints"]}
        now["fingerprints"] = again["fingerprints"]
        changed = [
            f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value
        ]
        reason = "; ".join(changed) or "Nothing that is recorded has changed"
        raise ValueError(f"{', '.join(different)} differ. {reason}.")


if __name__ == "__main__":
    try:
        main()
    except (OSError, TrainingStopped, ValueError) as error:
        # What a person can correct needs no traceback.
        sys.exit(f"error: {error}")
