"""Backbones, and the fine-tuning methods by name: what is attached, and with which learning rate it is trained."""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LNTuningConfig, LoraConfig, PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import FeatureExtractionMixin

from ..data import PointCloudProcessor
from ..io.backbone import open_backbone
from ..models import AutoModelForPointCloudClassification
from ..pretrained import backbone_folder
from ..tuners import (
    DAPTConfig,
    GAPromptConfig,
    GeometryAdapterConfig,
    IDPTConfig,
    PatchPromptConfig,
    PointGSTConfig,
    PointLoRAConfig,
    PointPeftConfig,
    PointPriorPromptConfig,
    PPTConfig,
    STAGConfig,
    VoxelAdapterConfig,
)
from ..tuners.config import PointTunerConfig
from ..tuners.targets import SCENE_MODEL_TYPES
from .verbosity import quiet_loading


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
            over three validation seeds (docs/results.md, "The recipe"; point_peft, full, linear and lora, all within
            noise). The others go with point_peft.
    """

    description: str
    learning_rate: float
    config_class: type[PeftConfig] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    warmup_ratio: float = 0.3

    def config(self, **options: Any) -> PeftConfig | None:
        """Its PEFT configuration.

        Args:
            **options: Fields that differ from the method's defaults.

        Returns:
            The configuration, or `None` for full fine-tuning.

        Raises:
            ValueError: If it has no such field, or a value does not fit.
        """
        if self.config_class is None:
            if options:
                raise ValueError(f"Full fine-tuning has no options, got {sorted(options)}.")
            return None
        known = inspect.signature(self.config_class).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        if not takes_any and (unknown := sorted(options.keys() - known.keys())):
            raise ValueError(f"{self.config_class.__name__} has no fields {unknown}. It has {sorted(known)}.")
        return self.config_class(**(self.defaults | options))


# For types that are not in the table: what most of those in it have.
DEFAULT_LEARNING_RATE = 4e-3
_HEAD = {"use_geometry": False, "use_prompts": False, "tune_biases": False}
_HEAD_ALONE = {**_HEAD, "tune_class_token": False}
_BIASES = {**_HEAD, "tune_biases": True}
_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_LORA = {"r": 8, "lora_alpha": 16, "target_modules": _PROJECTIONS}
_DEEP_PROMPTS = {"use_bank": False, "prompt_depth": None}
METHODS = {
    "full": Method("all weights of the backbone, and the head", 1e-3),
    "linear": Method("the head and the class token", 2e-3, PointPeftConfig, _HEAD),
    "head": Method("the head alone, on frozen features", 2e-3, PointPeftConfig, _HEAD_ALONE),
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
    "stag": Method("STAG: a side network on the graph of the tokens, and the head", 4e-3, STAGConfig),
    "gaprompt": Method("GAPrompt: moved and added points, prompts with the shape, and the head", 4e-3, GAPromptConfig),
    "dapt": Method("DAPT: scales and shifts, dynamic adapters, prompts made of them, and the head", 4e-3, DAPTConfig),
    "idpt": Method("IDPT: a prompt that is generated from the tokens of each cloud, and the head", 4e-3, IDPTConfig),
    "ppt": Method("PPT: a second set of tokens, networks that all blocks share, and the head", 4e-3, PPTConfig),
    "pointgst": Method("PointGST: filters in the eigenvectors of graphs, and the head", 4e-3, PointGSTConfig),
    "pointlora": Method(
        "PointLoRA: low-rank updates, selected tokens, half of the embedding, and the head", 4e-3, PointLoRAConfig
    ),
}

# Those that need the voxels of an encoder of scenes; learning rates from a few runs on the procedural rooms.
SCENE_METHODS = {
    "voxel_adapter": Method(
        "a bottleneck with a local convolution in each block, and the head", 4e-3, VoxelAdapterConfig
    ),
    "patch_prompt": Method("keys and values that all patches attend to, and the head", 4e-3, PatchPromptConfig),
}

# Types of peft that need fields to fit a backbone: 16 divides the widths of all published ones.
_PEFT_DEFAULTS = {"c3a": {"block_size": 16}, "road": {"group_size": 16}, "vblora": {"vector_length": 16}}
_PROMPTS = "it puts tokens in front of those of a text"
# Types of peft that cannot be trained here.
PEFT_REFUSED = {
    "adalora": "its ranks change in training, so that the best epoch cannot be gone back to",
    "adaption_prompt": "it knows the attention of language models alone",
    "cartridge": _PROMPTS,
    "cpt": _PROMPTS,
    "multitask_prompt_tuning": _PROMPTS,
    "p_tuning": _PROMPTS,
    "poly": "it mixes tasks, whose numbers a forward pass has to be given",
    "prefix_tuning": _PROMPTS,
    "prompt_tuning": _PROMPTS,
    "shadow": "it runs a second decoder on the tokens of a text, and blocks that map plain features",
    "trainable_tokens": "it trains rows of a vocabulary",
    "xlora": "it mixes LoRA adapters of a language model",
}


def peft_types() -> dict[str, type[PeftConfig]]:
    """The types of peft itself that can be trained by their name, `METHODS` left out."""
    return {
        member.value.lower(): config_class
        for member, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if config_class.__module__.startswith("peft.") and member.value.lower() not in (*METHODS, *PEFT_REFUSED)
    }


def find_method(name: str) -> Method:
    """The method of a name.

    Args:
        name: One of `METHODS` or `SCENE_METHODS`, a type of peft by its name in lower case ("boft"), or
            "package.module:Config": the configuration class of a type that is registered with PEFT. The module is
            imported.

    Raises:
        ValueError: If there is no such method, the module cannot be imported, or it has no such class.
    """
    if method := METHODS.get(name) or SCENE_METHODS.get(name):
        return method
    if config_class := peft_types().get(name):
        described = f"{name} of peft, and the head"
        return Method(described, DEFAULT_LEARNING_RATE, config_class, _PEFT_DEFAULTS.get(name, {}))
    if name in PEFT_REFUSED:
        raise ValueError(f"The method {name!r} of peft cannot be trained here: {PEFT_REFUSED[name]}.")
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ValueError(
            f"There is no method {name!r}. Choose one of {', '.join((*METHODS, *SCENE_METHODS))}, a type of peft "
            f"({', '.join(sorted(peft_types()))}), or name the configuration class of another type: "
            "package.module:Config."
        )
    if not class_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"A method of your own is named as package.module:Config, got {name!r}.")
    config_class = _import(module_name, name, class_name)
    if not (inspect.isclass(config_class) and issubclass(config_class, PeftConfig)):
        raise ValueError(
            f"{name!r} is {config_class!r}, not a configuration class. Name a subclass of PeftConfig, such as "
            "point_peft_hf.tuners.config.PointTunerConfig."
        )
    if config_class not in PEFT_TYPE_TO_CONFIG_MAPPING.values():
        raise ValueError(
            f"{name!r} belongs to no PEFT type. Register its tuner in {module_name}: "
            f'@register_method("name_of_the_type", {class_name}), from point_peft_hf.tuners.'
        )
    return Method(f"{name}, and the head", DEFAULT_LEARNING_RATE, config_class)


def _import(module_name: str, method: str, class_name: str) -> Any:
    """The object of that name in a module."""
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # It runs somebody else's code, which can fail in any way.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"The method {method!r} cannot be imported: there is no module {missing!r} on the Python path. Put "
                "the folder that holds it there: PYTHONPATH=FOLDER."
            ) from error
        raise ValueError(
            f"The method {method!r} cannot be imported: {module_name} fails with {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, class_name):
        known = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, PeftConfig) and value.__module__ == module.__name__
        ]
        raise ValueError(f"{module_name} has no {class_name!r}. Its configuration classes are {known}.")
    return getattr(module, class_name)


def method_config(name: str, backbone: nn.Module, **options) -> PeftConfig | None:
    """The PEFT configuration of a method.

    Args:
        name: A name that [`find_method`] knows.
        backbone: The model that will be tuned.
        **options: Fields of the configuration that differ from the method's defaults.

    Returns:
        The configuration, or `None` for full fine-tuning.

    Raises:
        ValueError: If there is no such method, or an option does not fit.
    """
    method = find_method(name)
    # The configurations of this package find the modules of the task, those of peft need their names.
    if method.config_class is not None and not issubclass(method.config_class, PointTunerConfig):
        options = {"modules_to_save": list(backbone.task_module_names)} | options
        if backbone.config.model_type in SCENE_MODEL_TYPES:
            # Their projections have other names; PEFT knows them by the type of the model.
            options = {"target_modules": None} | options
    return method.config(**options)


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
    with quiet_loading():
        backbone = open_backbone(
            auto_class,
            name,
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


def load_processor(
    name: str, processor_class: type[FeatureExtractionMixin] = PointCloudProcessor, **fields: Any
) -> FeatureExtractionMixin:
    """Load the preprocessing that is stored with a backbone.

    Args:
        name: Name of a shipped backbone, a folder, or a Hub repository.
        processor_class: Its class: `PointCloudProcessor`, or `SceneProcessor` for scenes.
        **fields: Fields of the preprocessing that are to be other than they are saved.

    Returns:
        The processor; with a warning the default one, where none is stored (with published checkpoints, say).
    """
    folder = backbone_folder(name)
    try:
        stored = processor_class.from_pretrained(folder).to_dict()
    except OSError:
        if (Path(folder) / "preprocessor_config.json").exists():
            raise
        if processor_class is not PointCloudProcessor:
            # Voxel size and features differ from model to model: nothing can be assumed.
            raise
        stored = PointCloudProcessor().to_dict()
        warnings.warn(
            f"{name} has no preprocessor_config.json. Clouds are sampled to {stored['num_points']} points, moved to "
            f"their centroid and scaled to the unit sphere, {stored['up_axis']} up. Other values: --num_points, "
            "--processor_config.",
            stacklevel=2,
        )
    return processor_class.from_dict({**stored, **fields})


def prepare_method(name: str, backbone: nn.Module, **options) -> nn.Module:
    """Attach a method to a backbone.

    Args:
        name: A name that [`find_method`] knows.
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
