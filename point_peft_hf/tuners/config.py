"""What the configurations of all 3D adapter types share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import PeftType
from torch import nn

INITIALIZATIONS = ("zero", "published")


@dataclass
class PointTunerConfig(PeftConfig):
    """Base of the configurations of 3D adapters.

    Args:
        target_modules: Names of the slots to attach to, as a list of endings or a regular expression; default: all slots
            that the method uses.
        exclude_modules: Names of slots to leave out, in the same form.
        layers_to_transform: Numbers of the blocks to attach to, counted from 0 over all stages; default: all.
        layers_pattern: Name of the list of blocks, as in other PEFT methods. Rarely needed: slots know their number.
        modules_to_save: Modules that are trained and saved as a whole; default: those that the model declares as part of
            the task (its head and class token). Pass an empty list for none.
        bottleneck_pattern: Widths of single bottlenecks, by a regular expression on the slot's name.
        initialization: "zero": a fresh adapter adds nothing to the frozen function. "published": Xavier-initialised
            bottlenecks, as in the published code.
        init_weights: Set to `False` to start from random weights instead (for tests).
        backbone: Written into the file when an adapter is saved: the backbone it was made for, and the names of its
            classes. An adapter whose file names another backbone is refused.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots to attach to."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Blocks to attach to."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})
    bottleneck_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Widths by slot name."})
    initialization: str = field(default="zero", metadata={"help": "'zero' or 'published'."})
    init_weights: bool = field(default=True, metadata={"help": "False: random weights, for tests."})
    backbone: dict[str, Any] | None = field(default=None, metadata={"help": "The backbone it was made for."})

    _peft_type_name: ClassVar[str] = ""

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType[self._peft_type_name]
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"`layers_pattern`={self.layers_pattern!r} only narrows `layers_to_transform`, which is not set. Set it "
                "as well, or leave both out."
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "`layers_to_transform` cannot be combined with a regular expression in `target_modules`: put the blocks "
                f"into the expression {self.target_modules!r}, or pass a list of slot names."
            )
        self._check_choice("initialization", INITIALIZATIONS)
        for pattern, width in self.bottleneck_pattern.items():
            self._check_at_least(f"bottleneck_pattern[{pattern!r}]", width, 1)

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes that the adapter's head tells apart, if it is loaded from a file that has them."""
        names = (self.backbone or {}).get("id2label")
        return None if names is None else {int(index): name for index, name in names.items()}

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is saved, with the backbone that the adapter is attached to."""
        return {**super().to_dict(), "backbone": getattr(self, "_attached_to", None) or self.backbone}

    def attach_to(self, description: dict[str, Any]) -> None:
        """Note the backbone that the adapter is being attached to.

        Args:
            description: What identifies the backbone, from [`describe_backbone`].

        Raises:
            ValueError: If the configuration comes from a file that was made for another backbone.
        """
        for name, expected in (self.backbone or {}).items():
            got = description.get(name)
            if name == "id2label" or got is None or expected is None or got == expected:
                continue
            hint = "Load the backbone that the adapter was made for"
            if name == "num_labels":
                hint = f"Load the backbone with `num_labels={expected}`"
            base = f" ({self.base_model_name_or_path})" if self.base_model_name_or_path else ""
            raise ValueError(
                f"The adapter was made for a backbone{base} with {name}={expected!r}, but this one has {name}={got!r}. {hint}."
            )
        self._attached_to = description

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")

    def _check_at_least(self, name: str, value: int | float | None, minimum: int | float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < minimum:
            raise ValueError(f"`{name}` must be a number of at least {minimum}, got {value!r}.")

    def _check_rates(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}.")


def describe_backbone(model: nn.Module, with_labels: bool) -> dict[str, Any]:
    """What an adapter remembers of its backbone.

    Args:
        model: The backbone.
        with_labels: Whether the adapter brings a head, so that the classes matter.

    Returns:
        Type and sizes of the backbone, and the classes; empty for a model without a configuration.
    """
    config = getattr(model, "config", None)
    description = {name: getattr(config, name, None) for name in ("model_type", "hidden_size", "num_hidden_layers")}
    if with_labels and hasattr(config, "id2label"):
        description["num_labels"] = config.num_labels
        description["id2label"] = {str(index): name for index, name in config.id2label.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in description.items()
        if value is not None
    }
