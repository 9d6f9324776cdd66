"""A study: which methods are compared, on which data, over which seeds. One yaml file says all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..training import FinetuneArguments, find_method

# What a study sets for each run, and so no yaml may.
_SET_BY_STUDY = {"seed", "output_dir", "resume_from_checkpoint"}
_ARGUMENT_NAMES = {f.name for f in fields(FinetuneArguments)} - _SET_BY_STUDY
_MAPPINGS = {f.name for f in fields(FinetuneArguments) if str(f.type).startswith("dict")}
_NUMBERS = {f.name for f in fields(FinetuneArguments) if "float" in str(f.type)}
# What decides the clouds of a run, which under the few-shot protocol the fold does.
_NOT_FEW_SHOT = {"task", "max_train_clouds", "max_test_clouds", "validation_fraction"}
_NOT_FEW_SHOT |= {"skip_bad_files", "drop_invalid"}


@dataclass(frozen=True)
class StudyRow:
    """One line of a study's table.

    Attributes:
        name: Name of the line.
        arguments: Fields of [`~point_peft_hf.training.FinetuneArguments`], those of the whole study included.
        learning_rate_from: Name of a line whose learning rate is taken over.
        learning_rates: Rates that are tried for this line instead of those of the study; as many.
        reference: Name of the line that the difference is taken to, instead of the reference of the study.
    """

    name: str
    arguments: dict[str, Any]
    learning_rate_from: str | None = None
    learning_rates: tuple[float, ...] = ()
    reference: str | None = None


@dataclass(frozen=True)
class FewShot:
    """The few-shot protocol: each seed is a fold of `way` classes with `shot` training and `query` test clouds."""

    way: int
    shot: int
    query: int = 20


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        row: Name of the line it belongs to.
        stage: "search" (for the learning rate), "final" (for the table), or "validation" (for a table of validation
            scores). Only "final" looks at the test split.
        seed: Seed of everything: weights, order, and, unless `data_seed` is among the arguments, the splits.
        arguments: Fields of [`~point_peft_hf.training.FinetuneArguments`].
        few_shot: The few-shot protocol, if the study follows it.
    """

    row: str
    stage: str
    seed: int
    arguments: dict[str, Any]
    few_shot: FewShot | None = None

    @property
    def key(self) -> str:
        """What tells this run from any other, whatever the order of the fields: its name and a digest of it all.

        Of data and backbone only the name counts, so that their folders, or the book, can be moved.
        """
        paths = {field: Path(self.arguments[field]) for field in ("data", "model") if field in self.arguments}
        names = {field: path.name or path.resolve().name for field, path in paths.items()}
        content = [self.stage, self.seed, self.arguments | names, self.few_shot and vars(self.few_shot)]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.row}-{self.stage}-{self.seed}-{digest[:12]}"


@dataclass
class Study:
    """Methods x seeds on one task.

    Attributes:
        rows: The lines of the table, by name.
        seeds: Seeds of the final runs; under the few-shot protocol the numbers of the folds.
        reference: Name of the line that differences are taken to.
        description: What is asked, for the head of the report.
        learning_rates: Rates that are tried for each line without a rate of its own.
        search_seeds: Seeds of that search; other than `seeds`, so that no final run is chosen by its own luck.
        few_shot: The few-shot protocol.
        compare_on: The split whose scores are compared: "test", or "validation" where the study itself is to choose
            something (a recipe, say), which must not know the test split.
    """

    rows: dict[str, StudyRow]
    seeds: list[int]
    reference: str | None = None
    description: str = ""
    learning_rates: list[float] = field(default_factory=list)
    search_seeds: list[int] = field(default_factory=list)
    few_shot: FewShot | None = None
    compare_on: str = "test"

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Study:
        """Read a study.

        The keys: `description`, `arguments` (for all lines), `seeds`, `reference`, `learning_rates` with `values` and
        `seeds`, `few_shot` with `way`, `shot` and `query`, `compare_on` (`test` or `validation`), and `rows`: by name,
        the arguments of a line, where `method` is by default the name, `learning_rates` are tried for this line
        and `reference` is its reference instead of those of the study, and `learning_rate_from` takes over the rate
        of another line.

        Args:
            path: The yaml file.
            **overrides: Arguments of all lines that replace those of the file, for example `data`.

        Raises:
            ValueError: If the file is not a study, with the key that is wrong.
        """
        content = _load_yaml(path)
        if not isinstance(content, dict) or not isinstance(content.get("rows"), dict) or not content["rows"]:
            raise ValueError(f"{path} is not a study: it needs the key `rows`, with name and arguments of each line.")
        known = {"description", "arguments", "seeds", "reference", "learning_rates", "few_shot", "compare_on", "rows"}
        if unknown := sorted(content.keys() - known):
            raise ValueError(f"{path} has unknown keys {unknown}. A study has {sorted(known)}.")
        search = _mapping(path, content, "learning_rates", {"values", "seeds"})
        few_shot = _mapping(path, content, "few_shot", {"way", "shot", "query"}, needed={"way", "shot"})
        if wrong := [value for value in few_shot.values() if not isinstance(value, int) or value < 1]:
            raise ValueError(f"`few_shot` in {path} must have whole numbers from 1, got {wrong}.")
        common = content.get("arguments") or {}
        if not isinstance(common, dict):
            raise ValueError(f"`arguments` in {path} must have names and values, got {common!r}.")
        common |= overrides
        rows = {str(name): _row(path, str(name), common, line or {}) for name, line in content["rows"].items()}
        study = cls(
            rows=rows,
            seeds=_seeds(path, "seeds", content.get("seeds", [0])),
            reference=content.get("reference"),
            description=(content.get("description") or "").strip(),
            learning_rates=[_number(f"`learning_rates` of {path}", value) for value in search.get("values", ())],
            search_seeds=_seeds(path, "seeds of learning_rates", search["seeds"]) if search else [],
            few_shot=FewShot(**few_shot) if few_shot else None,
            compare_on=content.get("compare_on", "test"),
        )
        study._check(path)
        return study

    def _check(self, path: str | Path) -> None:
        names = {"reference": self.reference}
        for row in self.rows.values():
            names[f"learning_rate_from of {row.name}"] = row.learning_rate_from
            names[f"reference of {row.name}"] = row.reference
        for what, name in names.items():
            if name is not None and name not in self.rows:
                raise ValueError(f"{what} in {path} is {name!r}, which is none of the rows {sorted(self.rows)}.")
        for row in self.rows.values():
            other = self.rows.get(row.learning_rate_from)
            if other is not None and other.learning_rate_from is not None:
                raise ValueError(f"{row.name} in {path} takes its learning rate from {other.name}, which has none.")
            self._check_rates(path, row)
        if self.compare_on not in ("test", "validation"):
            raise ValueError(f"`compare_on` in {path} must be test or validation, got {self.compare_on!r}.")
        if self.few_shot:
            self._check_few_shot(path)
        if shared := sorted(set(self.seeds) & set(self.search_seeds)):
            raise ValueError(
                f"The seeds {shared} in {path} choose learning rates and count in the table. Use other seeds for one."
            )
        for run in self.final_runs(dict.fromkeys(self.rows)):
            try:
                FinetuneArguments(**run.arguments, seed=run.seed).check()
            except TypeError as error:
                raise ValueError(f"The row {run.row!r} in {path} has a value of another type: {error}.") from error
            except ValueError as error:
                raise ValueError(f"The row {run.row!r} in {path}: {error}") from error

    def _check_few_shot(self, path: str | Path) -> None:
        if self.compare_on == "validation":
            raise ValueError(f"{path} compares on validation, but a few-shot fold has no validation split.")
        if self.learning_rates:
            raise ValueError(
                f"{path} has `learning_rates` to try, but a few-shot fold has no validation split to choose by. Give "
                "each row its `learning_rate`."
            )
        for row in self.rows.values():
            if unused := sorted(row.arguments.keys() & _NOT_FEW_SHOT):
                raise ValueError(
                    f"{row.name} in {path} has {unused}, which the few-shot protocol decides. Remove them."
                )

    def few_shots(self, protocol: FewShot, folds: int) -> Study:
        """The same lines under the few-shot protocol.

        Args:
            protocol: Classes and clouds of a fold.
            folds: Number of folds.

        Raises:
            ValueError: If the lines do not fit the protocol.
        """
        if folds < 1:
            raise ValueError(f"The number of folds must be at least 1, got {folds}.")
        description = f"{protocol.way} classes, {protocol.shot} clouds of each, {folds} folds."
        study = replace(self, few_shot=protocol, seeds=list(range(folds)), description=description)
        study._check("the study")
        return study

    def reference_of(self, name: str) -> str | None:
        """Name of the line that the difference of a line is taken to; `None` if there is none."""
        reference = self.rows[name].reference or self.reference
        return None if reference == name else reference

    def compared_to(self, name: str) -> Study:
        """The study with all differences taken to one line, whatever its yaml says.

        Raises:
            ValueError: If the name is none of its lines.
        """
        if name not in self.rows:
            raise ValueError(f"The study has no row {name!r}. It has {list(self.rows)}.")
        return replace(self, reference=name, rows={n: replace(row, reference=None) for n, row in self.rows.items()})

    def _check_rates(self, path: str | Path, row: StudyRow) -> None:
        if not row.learning_rates:
            return
        if row.learning_rate_from is not None or row.arguments.get("learning_rate") is not None:
            raise ValueError(f"{row.name} in {path} has `learning_rates` to try and one that is fixed. Give it one.")
        if len(set(row.learning_rates)) != len(set(self.learning_rates)):
            raise ValueError(
                f"{row.name} in {path} has {len(set(row.learning_rates))} `learning_rates` and the study "
                f"{len(set(self.learning_rates))}. Give every row as many: who may try more often finds more."
            )

    def only(self, names: Iterable[str]) -> Study:
        """The study with some of its lines.

        Raises:
            ValueError: If a name is none of its lines.
        """
        names = list(names)
        if unknown := [name for name in names if name not in self.rows]:
            raise ValueError(f"The study has no rows {unknown}. It has {list(self.rows)}.")
        for name in names:
            if (other := self.rows[name].learning_rate_from) not in (None, *names):
                raise ValueError(f"The row {name!r} takes its learning rate from {other!r}. Name both.")
        return replace(self, rows={name: self.rows[name] for name in names})

    def search_runs(self) -> Iterator[PlannedRun]:
        """The runs that choose learning rates: each line without a rate, at each rate, over the search's seeds."""
        for row in self.rows.values():
            if row.learning_rate_from is None and row.arguments.get("learning_rate") is None:
                for rate in row.learning_rates or self.learning_rates:
                    for seed in self.search_seeds:
                        yield self._run(row, "search", seed, rate)

    def final_runs(self, rates: dict[str, float | None]) -> Iterator[PlannedRun]:
        """The runs of the table. All lines of a seed come first, so that an early look compares like with like.

        Args:
            rates: Learning rate of each line, from [`chosen_rates`].
        """
        for seed in self.seeds:
            for row in self.rows.values():
                yield self._run(row, "final" if self.compare_on == "test" else "validation", seed, rates[row.name])

    def chosen_rates(self, validation: dict[str, dict[float, list[float]]]) -> dict[str, float | None]:
        """The learning rate of each line: its own, that of another line, the best on validation, or the default.

        Args:
            validation: By line and rate, the validation scores of the search. At equal means the lower rate is taken.
        """

        def best(row: StudyRow) -> float | None:
            scores = validation.get(row.name)
            if row.arguments.get("learning_rate") is not None or not scores:
                return row.arguments.get("learning_rate")
            # Rounded: equal counts of right predictions need not give equal sums of shares.
            return max(sorted(scores), key=lambda rate: round(sum(scores[rate]) / len(scores[rate]), 6))

        own = {row.name: best(row) for row in self.rows.values()}
        return {
            row.name: own[row.learning_rate_from] if row.learning_rate_from else own[row.name]
            for row in self.rows.values()
        }

    def _run(self, row: StudyRow, stage: str, seed: int, rate: float | None) -> PlannedRun:
        arguments = {"data_seed": seed} | row.arguments | {"learning_rate": rate}
        # With the values that are the method's defaults now: another default is another run.
        full = FinetuneArguments(**arguments)
        arguments |= {"learning_rate": full.peak_learning_rate, "warmup_ratio": full.warmup_share}
        return PlannedRun(row.name, stage, seed, arguments, self.few_shot)


def _row(path: str | Path, name: str, common: dict[str, Any], line: dict[str, Any]) -> StudyRow:
    line = dict(line)
    learning_rate_from, reference = line.pop("learning_rate_from", None), line.pop("reference", None)
    rates = f"`learning_rates` of the row {name!r} of {path}"
    learning_rates = tuple(_number(rates, value) for value in line.pop("learning_rates", ()))
    arguments = {"method": name} | common | line
    if unknown := sorted(arguments.keys() - _ARGUMENT_NAMES):
        raise ValueError(
            f"The row {name!r} of {path} has unknown arguments {unknown}. Those of examples/train.py can be used, "
            f"except {sorted(_SET_BY_STUDY)}, which a study sets itself."
        )
    for key in sorted(_NUMBERS & arguments.keys()):
        if arguments[key] is not None:
            arguments[key] = _number(f"`{key}` of the row {name!r} of {path}", arguments[key])
    for key in sorted(_MAPPINGS & arguments.keys()):
        if not isinstance(arguments[key], dict):
            raise ValueError(
                f"`{key}` of the row {name!r} of {path} must have names and values, got {arguments[key]!r}."
            )
    if learning_rate_from is not None and arguments.get("learning_rate") is not None:
        raise ValueError(
            f"The row {name!r} of {path} has a `learning_rate`, and another by `learning_rate_from`. Give it one."
        )
    try:
        find_method(arguments["method"])
    except ValueError as error:
        raise ValueError(f"The row {name!r} of {path} has the method {arguments['method']!r}. {error}") from error
    return StudyRow(name, arguments, learning_rate_from, learning_rates, reference)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(problem=f"{twice} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(path: str | Path) -> Any:
    try:
        return yaml.load(Path(path).read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from error


def _mapping(
    path: str | Path, content: dict[str, Any], key: str, known: set[str], needed: set[str] | None = None
) -> dict[str, Any]:
    value = content.get(key) or {}
    if value and not (isinstance(value, dict) and (needed or known) <= value.keys() <= known):
        what = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"`{key}` in {path} needs the keys {sorted(needed or known)}, got {what}.")
    return value


def _seeds(path: str | Path, key: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not value or not all(isinstance(seed, int) for seed in value):
        raise ValueError(f"`{key}` in {path} must be a list of whole numbers, got {value!r}.")
    if len(set(value)) < len(value):
        raise ValueError(f"`{key}` in {path} names a seed twice: {value}.")
    return value


def _number(what: str, value: Any) -> float:
    # YAML takes 1e-3 for a word: it wants a point in it.
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be a number, got {value!r}.") from error
