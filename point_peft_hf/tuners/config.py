"""What the configurations of all 3D adapter types share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig
from peft.utils import PeftType

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
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots to attach to."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Blocks to attach to."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})
    bottleneck_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Widths by slot name."})
    initialization: str = field(default="zero", metadata={"help": "'zero' or 'published'."})
    init_weights: bool = field(default=True, metadata={"help": "False: random weights, for tests."})

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
