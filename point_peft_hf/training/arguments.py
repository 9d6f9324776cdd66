"""What to fine-tune, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..data import get_augmentation
from ..pretrained import DEFAULT_BACKBONE
from .methods import DEFAULT_LEARNING_RATE, METHODS, find_method
from .task import PROCEDURAL

# Fields with which a run may be resumed although they were others before: they change no weight. Backbone and data are
# compared by their contents, so that their folders may be moved.
FREE_FIELDS = frozenset(
    {
        *("model", "data", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "num_workers"),
        *("checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "gradient_checkpointing", "test_votes"),
        *("skip_bad_files", "drop_invalid", "layout"),
    }
)


TASKS = ("classification", "segmentation")


@dataclass
class FinetuneArguments:
    """What to fine-tune, and how. The fields are the options of `examples/train.py`."""

    method: str = field(
        default="point_peft",
        metadata={
            "help": f"One of {', '.join(METHODS)}; a type of peft by its name (boft, hira, ...); or "
            "package.module:Config, the configuration class of a type of your own (default learning rate of both: "
            f"{DEFAULT_LEARNING_RATE:g})."
        },
    )
    model: str = field(default=DEFAULT_BACKBONE, metadata={"help": "Backbone: a name, a folder or a Hub repository."})
    data: str = field(default=PROCEDURAL, metadata={"help": "'procedural', or a folder of a data set."})
    layout: str | None = field(
        default=None, metadata={"help": "Layout of the folder, where it holds several data sets; default: by looking."}
    )
    skip_bad_files: bool = field(
        default=False, metadata={"help": "Leave out files that cannot be read, and name them, instead of stopping."}
    )
    drop_invalid: bool = field(
        default=False,
        metadata={"help": "Leave out points with NaN or infinite coordinates, as depth cameras write them."},
    )
    task: str = field(default="classification", metadata={"help": "classification or segmentation (of parts)."})
    num_points: int | None = field(default=None, metadata={"help": "Points of a cloud; default: the backbone's."})
    output_dir: str = field(
        default="outputs", metadata={"help": "The result goes to a folder of the method's name in it."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew where an unfinished run lies, or one on other data, and delete it."},
    )
    epochs: int = field(default=8, metadata={"help": "Number of epochs."})
    batch_size: int = field(default=16, metadata={"help": "Clouds of a step and process."})
    learning_rate: float | None = field(default=None, metadata={"help": "Default: that of the method."})
    weight_decay: float = field(default=0.05, metadata={"help": "Not for biases, norms and tokens."})
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Share of the steps with rising learning rate. Default: that of the method."}
    )
    max_gradient_norm: float = field(default=10.0, metadata={"help": "Gradients are clipped to this norm."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of an optimizer step."})
    mixed_precision: str | None = field(default=None, metadata={"help": "no, fp16 or bf16."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations again in the backward pass instead of keeping them."}
    )
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Trained BatchNorms see the clouds of all processes."}
    )
    augmentation: str = field(default="scale_translate", metadata={"help": "Augmentation of the training clouds."})
    clouds_per_class: int = field(default=50, metadata={"help": "Procedural data: training clouds of a class."})
    corruption: str = field(default="scan", metadata={"help": "Procedural data: clean, scan or hard_scan."})
    max_train_clouds: int | None = field(default=None, metadata={"help": "Use only so many training clouds."})
    max_test_clouds: int | None = field(default=None, metadata={"help": "Use only so many test clouds."})
    test_votes: int = field(
        default=1,
        metadata={"help": "Average over so many views of a test cloud, drawn and augmented as in training."},
    )
    validation_fraction: float = field(default=0.2, metadata={"help": "Share of training clouds for validation."})
    data_seed: int = field(default=0, metadata={"help": "Seed of the validation split and of limits."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, augmentation and dropout."})
    num_workers: int = field(default=0, metadata={"help": "Worker processes of a data loader."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'latest' (starts anew where there is none yet), or a checkpoint's folder."}
    )
    checkpoint_every_steps: int | None = field(
        default=None, metadata={"help": "Save a checkpoint after so many optimizer steps, beside that of each epoch."}
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "Keep so many checkpoints."})
    log_every_steps: int = field(default=10, metadata={"help": "Write a line of metrics after so many steps."})
    report_to: str = field(default="none", metadata={"help": "Tracker: none, tensorboard or trackio."})
    processor_config: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": 'Fields of the preprocessing, as JSON: \'{"up_axis": "z"}\'; default: the backbone\'s.'},
    )
    model_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of the backbone's config, as JSON."}
    )
    config: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the method's config, as JSON."})

    @property
    def method_name(self) -> str:
        """The method as the name of a folder."""
        return self.method.replace(":", ".")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: the one asked for, else that of the method."""
        return self.learning_rate or find_method(self.method).learning_rate

    @property
    def warmup_share(self) -> float:
        """The share of the steps with rising learning rate: the one asked for, else that of the method."""
        return find_method(self.method).warmup_ratio if self.warmup_ratio is None else self.warmup_ratio

    @property
    def processor_fields(self) -> dict[str, Any]:
        """Fields of the preprocessing that are to be other than the backbone's."""
        return self.processor_config | ({} if self.num_points is None else {"num_points": self.num_points})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one does not fit, with its name and the value got.
        """
        if self.task not in TASKS:
            raise ValueError(f"--task must be one of {', '.join(TASKS)}, got {self.task!r}.")
        for name in ("config", "model_config", "processor_config"):
            value = getattr(self, name)
            if not isinstance(value, dict):
                raise ValueError(f"--{name} must be a JSON object with names and values, got {value!r}.")
        # Both say what is wrong.
        find_method(self.method).config(**self.config)
        names = ("epochs", "batch_size", "gradient_accumulation_steps", "clouds_per_class", "test_votes")
        for name in (*names, "num_points", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--learning_rate must be above 0, got {self.learning_rate}.")
        for name in ("validation_fraction", "warmup_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"--{name} must be between 0 and 1, got {value}.")
        if self.test_votes > 1 and self.task == "segmentation":
            raise ValueError(
                f"--test_votes {self.test_votes} is for classification: the views of a cloud have other points, so "
                "that their parts cannot be averaged. Leave it out."
            )
        get_augmentation(self.augmentation)

    def recipe(self) -> dict[str, Any]:
        """The fields that decide the weights that come out, beside backbone and data."""
        fields = {name: value for name, value in asdict(self).items() if name not in FREE_FIELDS}
        return fields | {"learning_rate": self.peak_learning_rate, "warmup_ratio": self.warmup_share}
