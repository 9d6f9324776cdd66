"""Experiments as folders: what is trained (PEFT's adapter_config.json), and how (training_params.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from training import check_arguments

from point_peft_hf.training import find_method

ROOT = Path(__file__).parent
DEFAULTS_NAME = "default_training_params.json"
PARAMS_NAME, ADAPTER_NAME = "training_params.json", "adapter_config.json"
# Which clouds a run gets; everything else in a file of parameters is an argument of training.
DATA_PROTOCOL = ("labels_per_class", "few_shot", "validation_by_order")
_TASK_ONLY = {
    *("description", "seeds", "search_seeds", "learning_rates", "settings", "references", "compare_on"),
    *("corruption_clouds", "probe_data"),
}
_OF_EXPERIMENT = {"learning_rates", "settings"}
_SET_BY_RUN = {"method", "config", "seed", "output_dir", "resume_from_checkpoint"}


class Run(NamedTuple):
    """One training of an experiment.

    Attributes:
        setting: Name of the setting.
        stage: "search" (for the learning rate) or "final". Only "final" looks at the test split.
        seed: Seed of the weights, the order and, unless `split_seed` is fixed, the clouds.
        learning_rate: Peak learning rate.
    """

    setting: str
    stage: str
    seed: int
    learning_rate: float


@dataclass(frozen=True)
class Task:
    """A data set with a recipe, under which methods are compared.

    Attributes:
        folder: Its folder, which holds "default_training_params.json".
        arguments: Arguments of training, the same for all experiments.
        settings: By name, the arguments that replace them. Learning rates are searched in the first one.
        seeds: Seeds of the final runs.
        learning_rates: Rates that an experiment tries; none: each experiment has one rate.
        search_seeds: Seeds of that search, different from `seeds`: no final run is chosen by its own luck.
        references: Experiments that the paired differences are taken to.
        compare_on: "test", or "validation" to choose a recipe without looking at the test split.
        corruption_clouds: Number of test clouds that are corrupted; 0: robustness is not measured.
        probe_data: Data set of the probe that measures forgetting; `None`: it is not measured.
        description: One sentence for the tables.
    """

    folder: Path
    arguments: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = ()
    search_seeds: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    compare_on: str = "test"
    corruption_clouds: int = 0
    probe_data: str | None = None
    description: str = ""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    def is_blind(self, stage: str) -> bool:
        """Whether the runs of a stage may not know the test split."""
        return stage == "search" or self.compare_on == "validation"


@dataclass(frozen=True)
class Experiment:
    """One row of a comparison.

    Attributes:
        task: Its task.
        method: Name of the method, as for `--method` of training.
        name: Name of this variant of it.
        config: Fields of adapter_config.json; empty without one.
        arguments: Arguments of training that replace those of the task.
        learning_rates: Rates that it tries, as many as every experiment of the task.
        settings: Names of the settings that it runs in.
    """

    task: Task
    method: str
    name: str
    config: dict[str, Any]
    arguments: dict[str, Any]
    learning_rates: tuple[float, ...]
    settings: tuple[str, ...]

    @property
    def id(self) -> str:
        """Method and name."""
        return f"{self.method}/{self.name}"

    @property
    def result_path(self) -> Path:
        """The file of its result."""
        return self.task.folder / "results" / f"{self.method}--{self.name}.json"

    def arguments_in(self, setting: str) -> dict[str, Any]:
        """The arguments of all runs in a setting, the data protocol included."""
        own = {"method": self.method, "config": self.config}
        return own | self.task.arguments | self.task.settings[setting] | self.arguments

    def search_runs(self) -> Iterator[Run]:
        """The runs that choose the learning rate, none where it is fixed."""
        for rate in self.learning_rates:
            for seed in self.task.search_seeds:
                yield Run(next(iter(self.task.settings)), "search", seed, rate)

    def final_runs(self, rate: float) -> Iterator[Run]:
        """The runs of the tables. All settings of a seed come first, so that seeds are complete early."""
        for seed in self.task.seeds:
            for setting in self.settings:
                yield Run(setting, "final", seed, rate)

    def chosen_rate(self, validation: dict[float, list[float]]) -> float | None:
        """The learning rate: the best one on validation, or the fixed one if there is no search.

        Args:
            validation: Validation scores of the search by rate. At equal means the lower rate is taken.

        Returns:
            The rate; `None` if a rate has not been tried with every seed yet.
        """
        if not self.learning_rates:
            return self.arguments_in(self.settings[0]).get("learning_rate") or find_method(self.method).learning_rate
        if any(len(validation.get(rate, ())) < len(self.task.search_seeds) for rate in self.learning_rates):
            return None
        # Rounded: equal counts of right predictions need not give equal sums of shares.
        return max(sorted(self.learning_rates), key=lambda r: round(sum(validation[r]) / len(validation[r]), 6))


def find_experiments(folders: Iterable[str | Path], **changes: Any) -> list[Experiment]:
    """The experiments in folders: of a task, of a method in it, or of one experiment.

    Args:
        folders: The folders.
        **changes: What replaces the values of the tasks, for example `data`.

    Raises:
        ValueError: If a folder holds none, or a file has something that does not fit.
    """
    found: dict[Path, Experiment] = {}
    for folder in map(Path, folders):
        parents = [folder.resolve(), *folder.resolve().parents]
        root = next((path for path in parents if (path / DEFAULTS_NAME).is_file()), None)
        if root is None:
            raise ValueError(f"{folder} is not part of a task: neither it nor a folder above it has {DEFAULTS_NAME}.")
        task = read_task(root, **changes)
        inside = [
            path
            for path in sorted((root / "experiments").glob("*/*"))
            if path.is_dir() and (folder.resolve() in (root, path, path.parent, path.parent.parent))
        ]
        if not inside:
            raise ValueError(f"{folder} holds no experiment. Expected is {root}/experiments/METHOD/NAME.")
        found.update({path: read_experiment(task, path) for path in inside})
    return list(found.values())


def read_task(folder: Path, **changes: Any) -> Task:
    """Read "default_training_params.json", with some of its values replaced.

    Raises:
        ValueError: If it does not describe a task, with the key that is wrong.
    """
    path = folder / DEFAULTS_NAME
    values = {"data": "procedural"} | _read_json(path) | changes
    own = {name: values.pop(name) for name in sorted(_TASK_ONLY & values.keys())}
    _refuse(path, values.keys() & _SET_BY_RUN, "which every run sets itself")
    for name in ("seeds", "search_seeds", "learning_rates", "references"):
        own[name] = tuple(own.get(name, ()))
    own["seeds"] = own["seeds"] or (0,)
    return _checked(Task(folder, values, **{"settings": {"all_labels": {}}, **own}))


def _checked(task: Task) -> Task:
    path = task.folder / DEFAULTS_NAME
    for name in ("seeds", "search_seeds"):
        seeds = getattr(task, name)
        if len(set(seeds)) < len(seeds) or not all(type(seed) is int for seed in seeds):
            raise ValueError(f"`{name}` in {path} must be different whole numbers, got {list(seeds)}.")
    if shared := sorted(set(task.seeds) & set(task.search_seeds)):
        raise ValueError(f"The seeds {shared} in {path} choose learning rates and count in the tables. Choose others.")
    if bool(task.learning_rates) != bool(task.search_seeds):
        raise ValueError(f"{path} needs both `learning_rates` and `search_seeds`, or neither.")
    if task.compare_on not in ("test", "validation"):
        raise ValueError(f"`compare_on` in {path} must be test or validation, got {task.compare_on!r}.")
    if not task.settings or not all(isinstance(values, dict) for values in task.settings.values()):
        raise ValueError(
            f"`settings` in {path} must have a name and arguments for each setting, got {task.settings!r}."
        )
    first = next(iter(task.settings.values()))
    if task.learning_rates and {"labels_per_class", "few_shot"} & (task.arguments | first).keys():
        raise ValueError(f"The first setting in {path} has no validation clouds to search `learning_rates` with.")
    return task


def read_experiment(task: Task, folder: Path) -> Experiment:
    """Read the folder of an experiment.

    Raises:
        ValueError: If something in it does not fit, with its file and key.
    """
    path = folder / PARAMS_NAME
    values = _read_json(path) if path.is_file() else {}
    _refuse(path, values.keys() & (_TASK_ONLY - _OF_EXPERIMENT), f"which belongs in {DEFAULTS_NAME}")
    _refuse(path, values.keys() & _SET_BY_RUN, "which every run sets itself")
    rates = tuple(values.pop("learning_rates", () if "learning_rate" in values else task.learning_rates))
    if len(rates) != len(task.learning_rates):
        raise ValueError(
            f"{path} gives {len(rates)} `learning_rates`, the task {len(task.learning_rates)}. Every experiment tries "
            "the same number: with more tries a better one is found."
        )
    settings = tuple(values.pop("settings", tuple(task.settings)[:1]))
    if not settings or not set(settings) <= set(task.settings):
        raise ValueError(f"`settings` in {path} must be some of {list(task.settings)}, got {list(settings)}.")
    adapter = folder / ADAPTER_NAME
    experiment = Experiment(task, folder.parent.name, folder.name, {}, values, rates, settings)
    if adapter.is_file():
        experiment = replace(experiment, config=_adapter_fields(adapter, experiment.method))
    for setting in settings:
        arguments = experiment.arguments_in(setting)
        try:
            check_arguments({name: value for name, value in arguments.items() if name not in DATA_PROTOCOL})
        except ValueError as error:
            raise ValueError(f"{folder}, setting {setting!r}: {error}") from error
    return experiment


def _adapter_fields(path: Path, method: str) -> dict[str, Any]:
    fields = _read_json(path)
    config_class = find_method(method).config_class
    expected = None if config_class is None else config_class().peft_type.value
    if fields.pop("peft_type", None) != expected:
        raise ValueError(f"{path} must have the `peft_type` of the method {method!r}, {expected!r}.")
    return fields


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object with names and values, got {type(values).__name__}.")
    return values


def _refuse(path: Path, names: Iterable[str], reason: str) -> None:
    if names := sorted(names):
        raise ValueError(f"{path} has {', '.join(names)}, {reason}. Remove it.")
