"""What is known of a saved adapter: from its configuration, the header of its weights, and what training recorded."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapter_files import BACKBONE_NAME, WEIGHTS_NAME, check_files, find_adapter, read_json
from ..pretrained import backbone_folder

RECORD_NAME = "run.json"
PROCESSOR_NAME = "preprocessor_config.json"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class AdapterFacts:
    """What is known of a saved adapter.

    Attributes:
        fields: Its configuration.
        backbone: What it remembers of its backbone.
        runs: What training recorded, once for each seed.
        processor: Its preprocessing.
        num_weights: Number of trained weights in its file, without the bank and counters.
        file_bytes: Size of its file.
    """

    fields: dict[str, Any]
    backbone: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    processor: dict[str, Any] = field(default_factory=dict)
    num_weights: int = 0
    file_bytes: int = 0

    @property
    def backbone_name(self) -> str | None:
        """Name of the backbone, without the folders of the machine that it was trained on."""
        name = self.fields.get("base_model_name_or_path")
        return name if not name or self.backbone_is_public else Path(name).name

    @property
    def backbone_is_public(self) -> bool:
        """Whether others find the backbone by its name: on the Hub, or in the package."""
        return is_public(self.fields.get("base_model_name_or_path"))

    @property
    def repository(self) -> str | None:
        """The backbone's repository on the Hub, if it is there."""
        name = self.fields.get("base_model_name_or_path")
        return name if self.backbone_is_public and not is_shipped(name) else None

    @property
    def revision(self) -> str | None:
        """The backbone's revision."""
        return self.fields.get("revision") or self.backbone.get("revision")

    @property
    def is_segmentation(self) -> bool:
        """Whether the classes are parts of objects."""
        return self.backbone.get("head") == "segmentation_head"

    @property
    def categories(self) -> list[str]:
        """Names of the categories that its objects are of, which it has to be told; none if it need not be."""
        return list(self.backbone.get("category_names") or ()) if self.backbone.get("num_categories") else []

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; none if nobody named them."""
        if self.runs and self.runs[0].get("class_names"):
            return list(self.runs[0]["class_names"])
        labels = self.backbone.get("id2label") or {}
        names = [labels[index] for index in sorted(labels, key=int)]
        return [] if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def is_shipped(name: str | None) -> bool:
    """Whether a backbone comes with this package."""
    return bool(name) and backbone_folder(name) != name


def is_public(name: str | None) -> bool:
    """Whether others find a backbone by a name: on the Hub, or in this package."""
    return bool(name) and (is_shipped(name) or (_REPOSITORY.fullmatch(name) is not None and not os.path.exists(name)))


def read_facts(folder: str | os.PathLike) -> AdapterFacts:
    """Read what is known of an adapter in a folder.

    Args:
        folder: The folder.

    Returns:
        The facts.

    Raises:
        ValueError: If the folder holds no sound adapter.
    """
    folder = Path(folder)
    files = check_files(find_adapter(folder))
    if files.config is None or files.weights is None:
        raise ValueError(f"{folder} holds no complete adapter. Pass a folder that `save_adapter` or training wrote.")
    if files.problem is not None:
        raise ValueError(files.problem)

    def optional(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).is_file() else {}

    record = optional(RECORD_NAME)
    trained = (
        math.prod(info.shape)
        for key, info in files.tensors.items()
        if info.dtype.startswith(("F", "BF")) and "_bank." not in key and ".running_" not in key
    )
    return AdapterFacts(
        fields=files.fields,
        backbone=files.fields.get("backbone") or optional(BACKBONE_NAME).get("backbone") or {},
        runs=record.get("runs", [record] if record else []),
        processor=optional(PROCESSOR_NAME),
        num_weights=sum(trained),
        file_bytes=(folder / WEIGHTS_NAME).stat().st_size,
    )
