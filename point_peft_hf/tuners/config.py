"""What the configurations of all 3D adapter types share."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import PeftType
from torch import nn

from ..adapter_files import (
    PICKLE_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    check_files,
    check_unchanged,
    find_adapter,
    write_checksums,
)
from .fingerprint import common_precision, fingerprint, unsaved_fingerprints
from .type_checks import check_types

# Fields of a backbone that must be those an adapter was made with: what follows from them is in no weight.
BACKBONE_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_groups",
    "group_size",
    "group_sizes",
)
# Modules that tell classes or parts apart: adapters that bring one remember the names of the classes.
HEADS = {
    "classifier": "AutoModelForPointCloudClassification",
    "segmentation_head": "AutoModelForPointCloudSegmentation",
}
# Fields that a segmentation head is built from.
SEGMENTATION_FIELDS = (
    "num_categories",
    "category_names",
    "category_parts",
    "segmentation_token_size",
    "segmentation_propagation_sizes",
    "segmentation_hidden_sizes",
    "segmentation_layers",
)


# What is not compared as a value that has to be the same.
_COMPARED_OTHERWISE = (
    "architecture",
    "encoder",
    "head",
    "id2label",
    "revision",
    "unsaved_modules",
    "weights",
)


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

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots to attach to."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Blocks to attach to."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})
    bottleneck_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Widths by slot name."})
    init_weights: bool | str = field(default=True, metadata={"help": "True, 'published', or False: random."})
    backbone: dict[str, Any] | None = field(default=None, metadata={"help": "The backbone it was made for."})
    checksums: dict[str, str] | None = field(default=None, metadata={"help": "Written when an adapter is saved."})

    _peft_type_name: ClassVar[str] = ""
    # Where the configuration was loaded from, until the weights are loaded as well.
    _files: ClassVar[AdapterFiles | None] = None
    # Task modules that another adapter of the same model brings, for this one to do without.
    _brought_by_others: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
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
        self._check_choice("init_weights", (True, False, "published"))
        for name in ("id2label", "unsaved_modules", "weights"):
            part = (self.backbone or {}).get(name)
            if part is not None and not isinstance(part, dict):
                raise ValueError(f"`backbone` must have an object as its `{name}`, got {part!r}.")
        for pattern, width in self.bottleneck_pattern.items():
            self._check_at_least(f"bottleneck_pattern[{pattern!r}]", width, 1)

    @classmethod
    def describe(cls, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Tell what an adapter adds, for its model card.

        Args:
            fields: Fields of its saved configuration, maybe of a version that had fewer.

        Returns:
            A phrase with the source, and the names of the fields that a reader wants to know.
        """
        return cls._peft_type_name, ()

    @property
    def comes_with_weights(self) -> bool:
        """Whether the configuration was loaded from a folder with weights, which are not loaded yet."""
        return self._files is not None and bool(self._files.tensors)

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes that the adapter's head tells apart, if it is loaded from a file that has them."""
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
                raise  # PEFT's own words for what is no configuration of an adapter.
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
        # Checksums belong to a file: they are written behind everything else.
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

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")

    def _check_at_least(self, name: str, value: int | float | None, minimum: int | float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < minimum:
            raise ValueError(f"`{name}` must be a number of at least {minimum}, got {value!r}.")

    def _check_above_zero(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"`{name}` must be a number above 0, got {value!r}.")

    def _check_rates(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}.")


def check_backbone(
    expected: dict[str, Any], description: dict[str, Any], name: str | None = None, revision: str | None = None
) -> None:
    """Check that a backbone is the one that an adapter was made for.

    Args:
        expected: What the adapter remembers of its backbone.
        description: What the backbone is, from [`describe_backbone`]. If it has the right weights, all that is known
            of their fingerprint goes in here.
        name: Name of the expected one, for the message.
        revision: Its revision, for the message.

    Raises:
        ValueError: If the backbone is another.
    """
    base = f" ({name})" if name else ""
    if description.get("model_type") == expected.get("model_type"):
        _check_architecture(expected, description, base)
    for field_name, value in expected.items():
        got = description.get(field_name)
        if field_name in _COMPARED_OTHERWISE or got is None or value is None or got == value:
            continue
        hint = "Load the backbone that the adapter was made for"
        if field_name in ("num_labels", "num_groups", "group_size", "group_sizes", *SEGMENTATION_FIELDS):
            hint = f"Load the backbone with `{field_name}={value}`"
        raise ValueError(
            f"The adapter was made for a backbone{base} with {field_name}={value!r}, but this one has "
            f"{field_name}={got!r}. {hint}."
        )
    weights, own_weights = expected.get("weights") or {}, description.get("weights") or {}
    precision = common_precision(weights, own_weights)
    if precision is not None and weights[precision] != own_weights[precision]:
        revision = expected.get("revision") or revision
        raise ValueError(
            f"The adapter was made for a backbone{base} with other weights: their {precision} fingerprint is "
            f"{weights[precision]}{f' (revision {revision})' if revision else ''}, but that of this one is "
            f"{own_weights[precision]}. Load the backbone that the adapter was made for, and make sure that no "
            "warning says that some of its weights were not found."
        )
    _check_unsaved_modules(expected, description, base)
    if precision is not None:
        # A backbone that is loaded in half precision does not tell all about the weights.
        description["weights"] = {**own_weights, **weights}


def _check_architecture(expected: dict[str, Any], description: dict[str, Any], base: str) -> None:
    """Check that the modules have the names that the adapter's file has, and that there is a head for its own."""
    head, encoder, own_encoder = expected.get("head"), expected.get("encoder"), description.get("encoder")
    needed, own = expected.get("architecture"), description.get("architecture")
    load = f"Load the backbone with {HEADS.get(head, needed or 'the class that the adapter was made for')}"
    if encoder is not None and own_encoder is not None and encoder != own_encoder:
        features = f"; for features, call its encoder: `model.get_base_model().{encoder}(points)`" if encoder else ""
        raise ValueError(
            f"The adapter was made for a {needed}{base}, but this is a {own}, whose modules have other names. "
            f"{load}{features}."
        )
    if head is not None and description.get("head") != head:
        found = f"has head={description['head']!r}" if "head" in description else f"is a {own} without a head"
        raise ValueError(
            f"The adapter was made for a backbone{base} with head={head!r}, but this one {found}. {load}."
        )


def _check_unsaved_modules(expected: dict[str, Any], description: dict[str, Any], base: str) -> None:
    """Check the head and the like where the adapter brings none of its own."""
    own, others = description.get("unsaved_modules") or {}, []
    for part, digests in (expected.get("unsaved_modules") or {}).items():
        precision = common_precision(digests, own.get(part, {}))
        if precision is not None and digests[precision] != own[part][precision]:
            others.append(part)
    if others:
        raise ValueError(
            f"The adapter was made for a backbone{base} in which {others} have other weights, and it brings none of its "
            "own, as they were not in its `modules_to_save`. Load the backbone from the folder in which it was saved "
            f"with these weights, or train the adapter again with `modules_to_save={others}`."
        )


def describe_backbone(
    model: nn.Module, modules_to_save: Collection[str] = (), brought_by_others: Collection[str] = ()
) -> dict[str, Any]:
    """What an adapter remembers of its backbone.

    Args:
        model: The backbone.
        modules_to_save: Modules that the adapter brings. If a head is among them, the classes matter.
        brought_by_others: Modules that another adapter is going to bring.

    Returns:
        Class, type and sizes of the backbone, the fingerprint of its weights (of those of task modules that no adapter
        brings: each by itself), and the classes.
    """
    config = getattr(model, "config", None)
    description = {name: getattr(config, name, None) for name in BACKBONE_FIELDS}
    description["architecture"] = type(getattr(model, "_orig_mod", model)).__name__
    if encoder := getattr(model, "base_model_prefix", None):
        description["encoder"] = encoder if hasattr(model, encoder) else ""
    brings_head = any(name in modules_to_save for name in HEADS)
    if brings_head:
        description["head"] = next((name for name in HEADS if hasattr(model, name)), None)
    # Where it was loaded from the Hub: which commit.
    description["revision"] = getattr(config, "_commit_hash", None)
    description["weights"] = fingerprint(model, modules_to_save) or None
    description["unsaved_modules"] = unsaved_fingerprints(model, modules_to_save, brought_by_others) or None
    if brings_head and hasattr(config, "id2label"):
        description["num_labels"] = config.num_labels
        description["id2label"] = {str(index): name for index, name in config.id2label.items()}
    if "segmentation_head" in modules_to_save:
        description |= {name: getattr(config, name, None) for name in SEGMENTATION_FIELDS}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in description.items()
        if value is not None
    }
