"""What the configurations of all 3D adapter types share."""

from __future__ import annotations

import functools
import math
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import PeftType

from ..io.backbone import check_backbone
from ..io.files import (
    PICKLE_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    check_files,
    check_unchanged,
    find_adapter,
    write_checksums,
)


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    is_rate: bool = False,
    choices: tuple | None = None,
) -> Any:
    """A field of a configuration, and what its value can be. A number may be `None` where its type allows it.

    Args:
        default: Default value, which is not mutable.
        help: What it is, in a few words.
        at_least: The smallest value.
        above: What the value must be above.
        is_rate: Whether the value must be at least 0 and below 1.
        choices: The possible values.
    """
    checks = {"at_least": at_least, "above": above, "is_rate": is_rate, "choices": choices}
    return field(default=default, metadata={"help": help, **checks})


@dataclass
class PointTunerConfig(PeftConfig):
    """Base of the configurations of 3D adapters.

    Args:
        target_modules: Names of the slots to attach to, as a list of endings or a regular expression; default: all
            slots that the method uses.
        exclude_modules: Names of slots to leave out, in the same form.
        layers_to_transform: Numbers of the blocks to attach to, counted from 0 over all stages; default: all.
        modules_to_save: Modules that are trained and saved as a whole; default: those that the model declares as part
            of the task (its head and class token). Pass an empty list for none.
        bottleneck_pattern: Widths of single bottlenecks, by a regular expression on the slot's name.
        init_weights: `True`: a fresh adapter adds nothing to the frozen function, where the method allows it.
            "published": as in the published code. `False`: random weights (for tests).
        backbone: Written into the file when an adapter is saved: the backbone it was made for, and the names of its
            classes. An adapter whose file names another backbone is refused.
        checksums: Written into the file when an adapter is saved, so that damage is noticed.
    """

    target_modules: list[str] | str | None = option(None, "Slots to attach to.")
    exclude_modules: list[str] | str | None = option(None, "Slots to leave out.")
    layers_to_transform: list[int] | int | None = option(None, "Blocks to attach to.")
    modules_to_save: list[str] | None = option(None, "Modules trained and saved whole.")
    bottleneck_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Widths by slot name."})
    init_weights: bool | str = option(True, "True, 'published', or False: random.", choices=(True, False, "published"))
    backbone: dict[str, Any] | None = option(None, "The backbone it was made for.")
    checksums: dict[str, str] | None = option(None, "Written when an adapter is saved.")

    # For the model card of an adapter: what it adds, with the source, and the fields that a reader wants to know.
    card_text: ClassVar[str] = ""
    card_fields: ClassVar[tuple[str, ...]] = ()
    _peft_type_name: ClassVar[str] = ""
    # Where the configuration was loaded from, until the weights are loaded as well.
    _files: ClassVar[AdapterFiles | None] = None
    # Task modules that another adapter of the same model brings, for this one to do without.
    _brought_by_others: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        if not vars(type(self)).get("_peft_type_name"):
            # It would pass for the type of its parent, whose file cannot hold its fields.
            raise ValueError(
                f"{type(self).__name__} belongs to no PEFT type. Register it with its tuner: "
                f'@register_method("name_of_the_type", {type(self).__name__}), from point_peft_hf.tuners.'
            )
        self.peft_type = PeftType[self._peft_type_name]
        check_types(self)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "`layers_to_transform` cannot be combined with a regular expression in `target_modules`: put the "
                f"blocks into the expression {self.target_modules!r}, or pass a list of slot names."
            )
        self._check_fields()
        for name in ("id2label", "unsaved_modules", "weights"):
            part = (self.backbone or {}).get(name)
            if part is not None and not isinstance(part, dict):
                raise ValueError(f"`backbone` must have an object as its `{name}`, got {part!r}.")
        for pattern, width in self.bottleneck_pattern.items():
            self._check_at_least(f"bottleneck_pattern[{pattern!r}]", width, 1)

    @classmethod
    def describe(cls, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """What an adapter adds, for its model card; default: `card_text` and `card_fields`.

        Args:
            fields: Fields of its saved configuration, maybe of a version that had fewer.

        Returns:
            A phrase with the source, and the names of the fields that a reader wants to know.
        """
        return cls.card_text or cls._peft_type_name, cls.card_fields

    @property
    def comes_with_weights(self) -> bool:
        """Whether the configuration was loaded from a folder with weights, which are not loaded yet."""
        return self._files is not None and bool(self._files.tensors)

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes of the adapter's head, if it is loaded from a file that has them."""
        names = (self.backbone or {}).get("id2label")
        return None if names is None else {int(index): name for index, name in names.items()}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any):
        """Load a configuration, and look at the weights that belong to it (if there are any) before they are loaded.

        Args:
            pretrained_model_name_or_path: Folder, or repository of the Hub.
            subfolder: Where in it.
            **kwargs: `revision`, `token`, `cache_dir` and the like, for a repository.

        Returns:
            The configuration.

        Raises:
            ValueError: If a field does not fit, the weights are a pickle, or a file is damaged; with the name of the
                file.
        """
        hub, *_ = cls._split_kwargs(kwargs)
        files = check_files(find_adapter(pretrained_model_name_or_path, subfolder=subfolder, **hub))
        try:
            config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if files.config is None or "peft_type" not in files.fields:
                raise  # PEFT's own words for what is not a configuration of an adapter.
            raise ValueError(f"{files.config}: {error}") from error
        check_unchanged(files)
        config._files = files
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the configuration; if the adapter's weights lie in the same folder, with checksums of both.

        Args:
            save_directory: The folder.
            **kwargs: As in PEFT.
        """
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if (folder / PICKLE_NAME).is_file() and not (folder / WEIGHTS_NAME).is_file():
            warnings.warn(
                f"{folder / PICKLE_NAME} is a pickle, and adapters of this package are never loaded from one. Save "
                "without `safe_serialization=False`.",
                stacklevel=2,
            )
        write_checksums(save_directory)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is saved, with the backbone that the adapter is attached to."""
        backbone = getattr(self, "_attached_to", None) or self.backbone
        # Checksums belong to a file: they are written after everything else.
        return {**super().to_dict(), "backbone": backbone, "checksums": None}

    def attach_to(self, description: dict[str, Any]) -> None:
        """Note the backbone that the adapter is being attached to.

        Args:
            description: What identifies the backbone, from [`describe_backbone`].

        Raises:
            ValueError: If the configuration comes from a file that was made for another backbone.
        """
        check_backbone(self.backbone or {}, description, self.base_model_name_or_path, self.revision)
        self._attached_to = description

    def _check_fields(self) -> None:
        """Check the fields as their [`option`] says."""
        for each in fields(self):
            name, value, checks = each.name, getattr(self, each.name), each.metadata
            choices = checks.get("choices")
            if choices is not None and value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
            if value is None:
                continue
            if checks.get("at_least") is not None:
                self._check_at_least(name, value, checks["at_least"])
            if checks.get("above") is not None and not value > checks["above"]:
                raise ValueError(f"`{name}` must be a number above {checks['above']}, got {value!r}.")
            if checks.get("is_rate") and not 0 <= value < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}.")

    def _check_reads(self, *names: str) -> None:
        """Check that not all of the fields say that the head reads nothing."""
        values = {name: getattr(self, name) for name in names}
        if not any(values.values()):
            *first, last = (f"`{name}`={value}" for name, value in values.items())
            raise ValueError(
                f"{', '.join(first)} and {last} leave nothing for the head to read. Choose at least one of them."
            )

    def _check_at_least(self, name: str, value: int | float | None, minimum: int | float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < minimum:
            raise ValueError(f"`{name}` must be a number of at least {minimum}, got {value!r}.")


def check_types(config: Any) -> None:
    """Check the types of all fields of a dataclass. A whole number is a number, but a truth value is not."""
    declared = _declared_types(type(config))
    for each in fields(config):
        value = getattr(config, each.name)
        if value is not each.default and not _fits(value, declared[each.name]):
            wanted = _name(declared[each.name])
            raise ValueError(f"`{each.name}` must be {wanted}, got {value!r} ({type(value).__name__}).")


@functools.cache
def _declared_types(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _fits(value: Any, declared: Any) -> bool:
    if declared is Any:
        return True
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is list:
        # PEFT turns lists of names into sets.
        return isinstance(value, list | set | tuple | range) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if declared is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, declared)


def _name(declared: Any) -> str:
    options = (
        typing.get_args(declared) if typing.get_origin(declared) in (typing.Union, types.UnionType) else (declared,)
    )
    return " or ".join(
        "None" if option is type(None) else getattr(option, "__name__", str(option)) for option in options
    )
