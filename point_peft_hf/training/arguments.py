"""What to fine-tune on which data, and how to train: two dataclasses, the second one of transformers."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from ..data import get_augmentation
from ..pretrained import DEFAULT_BACKBONE, SCENE_BACKBONE
from .methods import DEFAULT_LEARNING_RATE, METHODS, SCENE_METHODS, find_method
from .presets import PRESETS, find_preset, with_preset
from .task import PROCEDURAL

TASKS = ("classification", "segmentation", "scene_segmentation")
_JSON_FIELDS = ("config", "model_config", "processor_config")


@dataclass
class PointCloudArguments:
    """What is fine-tuned on which data."""

    model: str | None = field(
        default=None, metadata={"help": "Backbone: a name, a folder or a Hub repository. Default: the shipped one."}
    )
    data: str = field(default=PROCEDURAL, metadata={"help": "'procedural', or the folder of a data set."})
    task: str = field(
        default="classification", metadata={"help": "classification, segmentation (of parts) or scene_segmentation."}
    )
    layout: str | None = field(
        default=None, metadata={"help": "Layout of the folder, if it holds several data sets. Default: detected."}
    )
    skip_bad_files: bool = field(default=False, metadata={"help": "Skip files that cannot be read, with a warning."})
    drop_invalid: bool = field(
        default=False, metadata={"help": "Drop points with NaN or infinite coordinates, as depth cameras write them."}
    )
    num_points: int | None = field(default=None, metadata={"help": "Points of a cloud. Default: the backbone's."})
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "Augmentation of the training clouds. Default: rotate for the built-in scans, scale_translate for "
            "other objects, scene for scenes."
        },
    )
    cache_views: int | None = field(
        default=None,
        metadata={
            "help": "Draw and augment each training cloud in so many ways only, which repeat from epoch to epoch, and "
            "compute the frozen parts of the model once for each. Default: another view in every epoch."
        },
    )
    cache_gib: float = field(
        default=1.0,
        metadata={"help": "Memory of the CPU, in GiB, for what is computed once of clouds that come again unchanged."},
    )
    clouds_per_class: int = field(default=50, metadata={"help": "Procedural data: training clouds of a class."})
    corruption: str = field(default="scan", metadata={"help": "Procedural data: clean, scan or hard_scan."})
    max_train_clouds: int | None = field(default=None, metadata={"help": "Limit of the training clouds."})
    max_test_clouds: int | None = field(default=None, metadata={"help": "Limit of the test clouds."})
    validation_fraction: float = field(
        default=0.2, metadata={"help": "Share of the training clouds that chooses the epoch, if there is no split."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the validation split and of the limits."})
    test_votes: int = field(
        default=1, metadata={"help": "Number of views of a test cloud to average, drawn and augmented as in training."}
    )
    save_examples: bool = field(
        default=False,
        metadata={"help": "Store some training clouds, and names and thumbnails of all, with the adapter (demo)."},
    )
    class_weights: str = field(
        default="none", metadata={"help": "Scenes: weights of the classes in the loss: none, balanced, inverse_sqrt."}
    )
    config: dict | str | None = field(
        default=None, metadata={"help": "Fields of the method's configuration, as JSON: '{\"r\": 16}'."}
    )
    model_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of the backbone's configuration, as JSON."}
    )
    processor_config: dict | str | None = field(
        default=None, metadata={"help": 'Fields of the preprocessing, as JSON: \'{"up_axis": "z"}\'.'}
    )

    def __post_init__(self):
        for name in _JSON_FIELDS:
            value = getattr(self, name)
            try:
                value = json.loads(value) if isinstance(value, str) else value or {}
            except ValueError:
                pass
            if not isinstance(value, dict):
                raise ValueError(f"--{name} must be a JSON object with names and values, got {value!r}.")
            setattr(self, name, value)
        if self.task not in TASKS:
            raise ValueError(f"--task must be one of {', '.join(TASKS)}, got {self.task!r}.")
        for name in (
            "cache_views",
            "clouds_per_class",
            "test_votes",
            "num_points",
            "max_train_clouds",
            "max_test_clouds",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction must be between 0 and 1, got {self.validation_fraction}.")
        if not self.cache_gib >= 0:
            raise ValueError(f"--cache_gib must be at least 0, got {self.cache_gib}.")
        if self.test_votes > 1 and self.task == "segmentation":
            raise ValueError(
                f"--test_votes {self.test_votes} needs --task classification: the views of a cloud have different "
                "points, so their parts cannot be averaged."
            )
        if self.task == "scene_segmentation":
            if self.cache_views is not None:
                raise ValueError("--cache_views is for objects: of scenes, nothing is computed ahead.")
            self.augmentation = self.augmentation or "scene"
            if self.augmentation not in ("scene", "none"):
                raise ValueError(f"--augmentation of scenes is scene or none, got {self.augmentation!r}.")
            if self.test_votes > 1 or self.num_points is not None:
                raise ValueError("--test_votes and --num_points are for objects; of scenes all voxels are used.")
        else:
            is_turned = self.data == PROCEDURAL and self.corruption != "clean"
            self.augmentation = self.augmentation or ("rotate" if is_turned else "scale_translate")
            get_augmentation(self.augmentation)
        self.model = self.model or (SCENE_BACKBONE if self.task == "scene_segmentation" else DEFAULT_BACKBONE)

    @property
    def processor_fields(self) -> dict[str, Any]:
        """Fields of the preprocessing that replace those of the backbone."""
        return self.processor_config | ({} if self.num_points is None else {"num_points": self.num_points})


@dataclass
class PointCloudTrainingArguments(TrainingArguments):
    """The arguments of `transformers.Trainer` with the defaults of this package, and a few more.

    `learning_rate` and `warmup_steps` default to those of the method, `per_device_eval_batch_size` to the training
    batch size, `metric_for_best_model` to the score of the task.
    """

    output_dir: str | None = field(
        default="outputs", metadata={"help": "Each method gets a folder of its name in this one."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that lies in the output folder and start anew."}
    )
    num_train_epochs: float = field(default=8.0, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Clouds of a step and process. Default: 16, or 4 scenes."}
    )
    per_device_eval_batch_size: int | None = field(
        default=None, metadata={"help": "Clouds of an evaluation step. Default: those of a training step."}
    )
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate. Default: the method's."})
    warmup_steps: float | None = field(
        default=None, metadata={"help": "Warm-up steps, or below 1 their share of all steps. Default: the method's."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Not applied to biases, norms, tokens and prompts."})
    max_grad_norm: float = field(default=10.0, metadata={"help": "Gradients are clipped to this norm."})
    lr_scheduler_type: str = field(
        default="cosine_warmup_with_min_lr", metadata={"help": "Learning-rate schedule of transformers."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Options of the schedule. Default: a minimum of 0.002 of the peak."}
    )
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer of transformers."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch or steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: epoch or steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep. The best and the last one are always kept."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Choose the epoch on the validation split."})
    logging_steps: float = field(default=10, metadata={"help": "Log after this number of steps."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops training."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Batches are used as they are."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Continue a run that was stopped: 'latest', or the folder of a checkpoint."}
    )
    extra_save_steps: int | None = field(
        default=None, metadata={"help": "Save further checkpoints between the epochs, after this number of steps."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this number of evaluations without a better one."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, augmentation and dropout."})
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Trained BatchNorms normalise over the clouds of all processes."}
    )
    exact_batch_norm: int = field(
        default=256,
        metadata={
            "help": "Clouds that re-estimate the statistics of trained BatchNorms before an evaluation; 0: off."
        },
    )

    def __post_init__(self):
        names = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        for name in (*names, "extra_save_steps", "save_total_limit", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be above 0, got {value}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--learning_rate must be above 0, got {self.learning_rate}.")
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_warmup_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr_rate": 2e-3}
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        # `TrainingArguments` replaces or compares these, which depend on the method and the task.
        unset = {"warmup_steps": self.warmup_steps, "metric_for_best_model": self.metric_for_best_model}
        self.warmup_steps = self.warmup_steps or 0
        super().__post_init__()
        for name, value in unset.items():
            setattr(self, name, value)

    def for_method(self, method: str, task: Any) -> PointCloudTrainingArguments:
        """These arguments with what depends on the method and the task filled in.

        Args:
            method: A name that [`find_method`] knows.
            task: The task, which has a `batch_size` and the `score` that chooses the epoch.
        """
        chosen = find_method(method)
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.output_dir = f"{self.output_dir}/{folder_name(method)}"
        copy.learning_rate = self.learning_rate or chosen.learning_rate
        copy.warmup_steps = chosen.warmup_ratio if self.warmup_steps is None else self.warmup_steps
        copy.per_device_train_batch_size = self.per_device_train_batch_size or task.batch_size
        copy.per_device_eval_batch_size = self.per_device_eval_batch_size or copy.per_device_train_batch_size
        copy.metric_for_best_model = self.metric_for_best_model or task.score
        copy.greater_is_better = not copy.metric_for_best_model.endswith("loss")
        copy.run_name = self.run_name or method
        return copy


@dataclass
class MethodArguments:
    """Which methods to train."""

    method: list[str] = field(
        default_factory=lambda: ["linear", "point_peft"],
        metadata={
            "help": f"One or more of {', '.join(METHODS)}; for scenes also {', '.join(SCENE_METHODS)}; a type of peft "
            "by its name (boft, hira, ...); or package.module:Config, the configuration class of a type of your own "
            f"(default learning rate of both: {DEFAULT_LEARNING_RATE:g})."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": f"Settings of papers, {' or '.join(PRESETS)}; other arguments take precedence."},
    )


# Options that are the Trainer's own, and that many runs need.
_OFTEN_USED = (
    "activation_checkpointing",
    "bf16",
    "dataloader_num_workers",
    "gradient_accumulation_steps",
    "hub_model_id",
    "hub_private_repo",
    "label_smoothing_factor",
    "max_steps",
    "push_to_hub",
    "report_to",
    "use_cpu",
)


# Options with a default of this package that nobody should have to change.
_NOT_TO_CHANGE = ("ddp_find_unused_parameters", "logging_nan_inf_filter", "remove_unused_columns")


class _HelpAll(argparse.Action):
    """Prints all options and ends, as --help does with the most used ones."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, *args: Any) -> NoReturn:
        parser.print_all()
        parser.exit()


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Each option by one name, and its default where the text does not say it."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_said = action.default is None or "efault: " in (action.help or "")
        return action.help if is_said else super()._get_help_string(action)


def folder_name(method: str) -> str:
    """The name of a method as that of a folder."""
    return method.replace(":", ".")


def parse_arguments(
    arguments: Sequence[str] | Mapping[str, Any] | None = None,
    description: str | None = None,
    prog: str | None = None,
) -> tuple[list[str], PointCloudArguments, PointCloudTrainingArguments]:
    """Read the methods, [`PointCloudArguments`] and [`PointCloudTrainingArguments`].

    Args:
        arguments: A command line; default: that of this process. Or names and values, "method" among them.
        description: The description that `--help` prints.
        prog: The name of the program in it; default: that of the script.

    Returns:
        The methods, and the two sets of arguments.

    Raises:
        ValueError: If a value does not fit, or a name is unknown.
    """
    if isinstance(arguments, Mapping):
        arguments = with_preset(arguments)
        method = arguments.get("method", "point_peft")
        methods = [method] if isinstance(method, str) else list(method)
        kinds = (PointCloudArguments, PointCloudTrainingArguments)
        known = {each.name for kind in kinds for each in fields(kind)}
        if unknown := sorted(arguments.keys() - known - {"method"}):
            raise ValueError(f"There are no arguments {unknown}. See `point-peft train --help`.")
        what, how = (
            kind(**{f.name: arguments[f.name] for f in fields(kind) if f.name in arguments}) for kind in kinds
        )
    else:
        kinds = (MethodArguments, PointCloudArguments, PointCloudTrainingArguments)
        parser = _Parser(kinds, prog=prog, description=description, formatter_class=_HelpFormatter)
        parser.set_defaults(**find_preset(_preset_of(arguments)))
        chosen, what, how, *unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if unknown := [text for texts in unknown for text in texts]:
            parser.refuse(unknown)
        methods = chosen.method
    for method in methods:
        find_method(method).config(**what.config)
    return methods, what, how


class _Parser(HfArgumentParser):
    """Prints the options that most runs need; errors come without options, among which nobody would find them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, usage="%(prog)s [OPTION ...]", **kwargs)
        own = PointCloudTrainingArguments.__annotations__.keys() - set(_NOT_TO_CHANGE)
        rare = {f.name for f in fields(TrainingArguments)} - own - set(_OFTEN_USED)
        self._rare_help: dict[argparse.Action, str | None] = {}
        for action in self._actions:
            if action.dest in rare:
                self._rare_help[action], action.help = action.help, argparse.SUPPRESS
        self.add_argument("--help_all", action=_HelpAll, help="Also list every option of transformers.Trainer.")

    def print_all(self) -> None:
        """Print the rare options, too."""
        for action, text in self._rare_help.items():
            action.help = text
        self.print_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists the options.\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Refuse words of the command line that are no options, and name those that may be meant."""
        options = [option for action in self._actions for option in action.option_strings if "-" not in option[2:]]
        found = []
        for text in unknown:
            near = difflib.get_close_matches(text.partition("=")[0], options, n=2) if text[:1] == "-" else []
            found.append(f"{text} (did you mean {' or '.join(near)}?)" if near else text)
        self.error(f"There is no option {', '.join(found)}.")


def _preset_of(arguments: Sequence[str] | None) -> str | None:
    # Abbreviated, too, as the parser of all arguments takes it.
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset")
    return parser.parse_known_args(arguments)[0].preset


# What the trained weights depend on, beside the weights of the backbone and the data.
_FREE = {"model", "data", "layout", "skip_bad_files", "drop_invalid", "test_votes", "save_examples", "cache_gib"}
_DECISIVE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "seed"),
    *("eval_strategy", "eval_steps", "metric_for_best_model", "sync_batch_norm", "exact_batch_norm"),
)


def recipe(method: str, what: PointCloudArguments, how: PointCloudTrainingArguments) -> dict[str, Any]:
    """What decides the weights that come out, as JSON can hold it, without the backbone and the data.

    Args:
        method: The method.
        what: What is trained.
        how: How, from `for_method`.
    """
    values = {name: getattr(how, name) for name in _DECISIVE}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    return {"method": method} | {k: v for k, v in asdict(what).items() if k not in _FREE} | values
