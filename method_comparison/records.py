"""Results as files: one JSON for each experiment, with one line for each of its runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from experiments import Experiment, Run
from training import DATA_AND_MODEL

ENVIRONMENT = ("device", "processor", "threads", "mixed_precision", "commit", "versions")


class Result:
    """The runs of one experiment.

    A file is replaced as a whole after each run, so that it is complete whenever a program is stopped.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.content: dict[str, Any] = {"settings": {}, "environments": [], "runs": []}
        if self.path.is_file():
            try:
                self.content = json.loads(self.path.read_text(encoding="utf-8"))
                keys = self.content.keys() & {"settings", "environments", "runs"}
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{self.path} is not JSON. Restore or remove it.") from error
            if len(keys) < 3:
                raise ValueError(f"{self.path} is not a result: it lacks settings, environments or runs.")

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs, in the order they were made."""
        return self.content["runs"]

    def find(self, run: Run) -> dict[str, Any] | None:
        """The record of a run, if it is done."""
        return next((record for record in self.runs if key_of(record) == run), None)

    def of(self, setting: str, stage: str = "final", learning_rate: float | None = None) -> list[dict[str, Any]]:
        """The records of a setting and a stage; with a rate only those."""
        wanted = [record for record in self.runs if (record["setting"], record["stage"]) == (setting, stage)]
        return [record for record in wanted if learning_rate in (None, record["learning_rate"])]

    def validation_by_rate(self) -> dict[float, list[float]]:
        """Validation scores of the search by learning rate."""
        found: dict[float, list[float]] = {}
        for record in self.runs:
            if record["stage"] == "search":
                found.setdefault(record["learning_rate"], []).append(record["validation"])
        return found

    def begin(self, experiment: Experiment) -> None:
        """Check that the recorded runs belong to the experiment as it is now.

        Raises:
            ValueError: If they were made with other arguments, with their names.
        """
        for setting in experiment.settings:
            now = json.loads(json.dumps(_portable(experiment.arguments_in(setting))))
            then = self.content["settings"].get(setting, now)
            names = sorted((now.keys() | then.keys()) - set(DATA_AND_MODEL))
            changed = [f"{n} ({then.get(n)!r}, now {now.get(n)!r})" for n in names if now.get(n) != then.get(n)]
            if changed:
                raise ValueError(f"{self.path} was made with another {', '.join(changed)}. Remove it to run it again.")
            self.content["settings"].setdefault(setting, now)
        self.content = {"experiment": experiment.id, "task": experiment.task.name} | self.content

    def add(self, record: dict[str, Any], environment: dict[str, Any] | None) -> None:
        """Add a run with the environment it was made in, and save the file."""
        if environment is not None:
            environments = self.content["environments"]
            if environment not in environments:
                environments.append(environment)
            record = record | {"environment": environments.index(environment)}
        self.runs.append(record)
        self.save()

    def save(self) -> None:
        """Write the file, one run a line."""
        head = json.dumps({name: value for name, value in self.content.items() if name != "runs"}, indent=1)
        runs = ",\n".join(json.dumps(record, separators=(",", ":")) for record in self.runs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n]}}\n', encoding="utf-8")
        os.replace(temporary, self.path)


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    # Where the folders of a machine are says nothing; fingerprints tell whether their content is the same.
    places = {name: Path(arguments[name]) for name in DATA_AND_MODEL if arguments.get(name)}
    return arguments | {name: path.resolve().name for name, path in places.items() if path.is_dir()}


def key_of(record: dict[str, Any]) -> Run:
    """What distinguishes a recorded run from the others of its experiment."""
    return Run(record["setting"], record["stage"], record["seed"], record["learning_rate"])
