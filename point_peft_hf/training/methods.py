"""Backbones, and the fine-tuning methods by name: what is attached, and with which learning rate it is trained."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LNTuningConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn

from ..data import PointCloudProcessor
from ..io.backbone import fingerprint
from ..models import AutoModelForPointCloudClassification
from ..pretrained import backbone_folder
from ..tuners import GeometryAdapterConfig, PointPeftConfig, PointPriorPromptConfig
from ..tuners.config import PointTunerConfig


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    Attributes:
        description: What is trained, in a few words.
        learning_rate: Default learning rate, from a coarse search on the validation split of the default task with one
            seed (`examples/train.py --learning_rate`): full, linear, lora and point_peft were compared at two to four
            rates each, where differences below three points are noise; the others go with what they are a part of.
        config_class: Class of its configuration; `None` for full fine-tuning.
        defaults: Fields of the configuration that are other than its defaults.
        warmup_ratio: Default share of the steps with rising learning rate: 0.1 or 0.3, whichever had the higher mean
            over three validation seeds (`examples/studies/recipe.yaml`; point_peft, full, linear and lora, all within
            noise). The others go with point_peft.
    """

    description: str
    learning_rate: float
    config_class: type[PeftConfig] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    warmup_ratio: float = 0.3


_HEAD = {"use_geometry": False, "use_prompts": False, "tune_norm": False, "tune_biases": False}
_BIASES = {**_HEAD, "tune_biases": True}
_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_LORA = {"r": 8, "lora_alpha": 16, "target_modules": _PROJECTIONS}
_DEEP_PROMPTS = {"use_bank": False, "prompt_depth": None}
METHODS = {
    "full": Method("all weights of the backbone, and the head", 1e-3),
    "linear": Method("the head and the class token", 2e-3, PointPeftConfig, _HEAD),
    "lora": Method("LoRA of rank 8 on all projections of the blocks, and the head", 2e-3, LoraConfig, _LORA, 0.1),
    "bias": Method("the biases of the blocks, and the head", 4e-3, PointPeftConfig, _BIASES),
    "ln_tuning": Method("the norms of the blocks, and the head", 4e-3, LNTuningConfig),
    "deep_prompts": Method(
        "prompt tokens in every block without a bank (VPT-deep), and the head",
        4e-3,
        PointPriorPromptConfig,
        _DEEP_PROMPTS,
    ),
    "geometry": Method("Geometry-aware Adapter, and the head", 4e-3, GeometryAdapterConfig),
    "prompt": Method("Point-prior Prompt, and the head", 4e-3, PointPriorPromptConfig),
    "point_peft": Method("Point-PEFT: geometry, prompts, biases, final norm, and the head", 4e-3, PointPeftConfig),
}


def method_config(name: str, backbone: nn.Module, **options) -> PeftConfig | None:
    """The PEFT configuration of a method.

    Args:
        name: One of `METHODS`.
        backbone: The model that will be tuned.
        **options: Fields of the configuration that differ from the method's defaults.

    Returns:
        The configuration, or `None` for full fine-tuning.

    Raises:
        ValueError: If there is no such method, or if full fine-tuning is given options.
    """
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}. Choose one of {', '.join(METHODS)}.")
    method = METHODS[name]
    if method.config_class is None:
        if options:
            raise ValueError(f"Full fine-tuning has no options, got {sorted(options)}.")
        return None
    # The configurations of this package find the modules of the task, those of peft have to be told.
    is_own = issubclass(method.config_class, PointTunerConfig)
    task = {} if is_own else {"modules_to_save": list(backbone.task_module_names)}
    return method.config_class(**(task | method.defaults | options))


def load_backbone(
    name: str, class_names: list[str], auto_class: type = AutoModelForPointCloudClassification, **fields: Any
) -> nn.Module:
    """Load a backbone with a head for the given classes.

    Args:
        name: Name of a shipped backbone, a folder, or a Hub repository.
        class_names: Names of the classes.
        auto_class: The Auto class of the task.
        **fields: Fields of the backbone's configuration that are to be other than they are saved.

    Returns:
        The model.
    """
    id2label = dict(enumerate(class_names))
    backbone = auto_class.from_pretrained(
        backbone_folder(name),
        num_labels=len(class_names),
        id2label=id2label,
        label2id={label: index for index, label in id2label.items()},
        ignore_mismatched_sizes=True,
        **fields,
    )
    # A shipped backbone goes by its name, as its folder is another on every machine; a relative folder by one that no
    # repository can have.
    is_relative_folder = os.path.isdir(name) and not os.path.isabs(name)
    backbone.name_or_path = backbone.config.name_or_path = os.path.join(".", name) if is_relative_folder else name
    return backbone


def backbone_digest(name: str, **fields: Any) -> str | None:
    """What tells the weights of a backbone from others, as a run's record has it.

    Args:
        name: Name of a shipped backbone, a folder, or a Hub repository.
        **fields: Fields of the backbone's configuration that are other than they are saved.
    """
    return fingerprint(load_backbone(name, ["one", "two"], **fields)).get("float32")


def load_processor(name: str, **fields: Any) -> PointCloudProcessor:
    """Load the preprocessing that is stored with a backbone.

    Args:
        name: Name of a shipped backbone, a folder, or a Hub repository.
        **fields: Fields of the preprocessing that are to be other than they are saved.

    Returns:
        The processor; with a warning the default one, where none is stored (with published checkpoints, say).
    """
    folder = backbone_folder(name)
    try:
        stored = PointCloudProcessor.from_pretrained(folder).to_dict()
    except OSError:
        if (Path(folder) / "preprocessor_config.json").exists():
            raise
        stored = PointCloudProcessor().to_dict()
        warnings.warn(
            f"{name} has no preprocessor_config.json. Clouds are sampled to {stored['num_points']} points, moved to "
            f"their centroid and scaled to the unit sphere, {stored['up_axis']} up. Other values: --num_points, "
            "--processor_config.",
            stacklevel=2,
        )
    return PointCloudProcessor.from_dict({**stored, **fields})


def prepare_method(name: str, backbone: nn.Module, **options) -> nn.Module:
    """Attach a method to a backbone.

    Args:
        name: One of `METHODS`.
        backbone: The model to tune; it is changed in place.
        **options: Fields of the method's configuration.

    Returns:
        A `PeftModel`, or for full fine-tuning the backbone with all its weights trainable.
    """
    config = method_config(name, backbone, **options)
    return backbone.requires_grad_(True) if config is None else get_peft_model(backbone, config)


def uses_bank(model: nn.Module) -> bool:
    """Whether an active adapter of the model asks a point-prior bank."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "use_bank", False) and getattr(config, "use_prompts", True))
