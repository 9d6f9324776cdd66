"""Published checkpoints: reading them, and bringing their tensors to the names of this package.

Nothing in a file can run code: pickles are opened with `weights_only=True`, and of what they hold only tensors are
used.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .convert_checks import check_guess, check_names, check_values, size_of
from .convert_config import infer_sizes, published_settings
from .convert_keys import (
    check_model_type,
    converted_tensors,
    is_torch_pointcloud,
    name_table,
    research_names,
)
from .convert_parts import convert_segmentation_head, has_segmentation_head
from .convert_ptv3 import convert_ptv3, rename_ptv3

# With a part segmentation that is published, and converted.
_WITH_PARTS = ("point_gpt", "point_mae")
WEIGHTS_NAME = "model.safetensors"
# Where training scripts keep the weights among other things.
_STATE_DICT_KEYS = ("base_model", "state_dict", "model_state_dict", "model")
_MAX_DEPTH = 8
_HEAD = "cls_head_finetune."


@dataclass
class ConversionReport:
    """What became of a checkpoint.

    Attributes:
        source: The file.
        model_type: The model type.
        architecture: The class that the output is for.
        loaded: By name in the file, the names of the tensors that it became.
        new: Tensors of the class that the file does not have; they start untrained.
        ignored: Tensors of the file that were not used.
        assumed: Fields of the configuration that neither the tensors nor the user gave: as in the published model.
        weights_license: Licence of the weights, if it is known.
        method: The fine-tuning method of the file, if an adapter was made of it.
        adapter: Tensors of the file that became the adapter's own.
        switches: What was set other than by default, so that the adapter computes what the published code does.
        unused: By name in the file, why an ignored tensor has no say in what the model computes.
        not_asked_for: Options that neither backbone nor method has a use for.
    """

    source: str
    model_type: str
    architecture: str
    loaded: dict[str, list[str]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)
    weights_license: str | None = None
    method: str | None = None
    adapter: list[str] = field(default_factory=list)
    switches: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    not_asked_for: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = {"loaded": self.loaded, "new": self.new, "ignored": self.ignored}
        if self.method is not None:
            parts = {f"adapter of type {self.method.upper()}": self.adapter, **parts}
        lines = [f"{self.source} -> {self.architecture}"]
        for title, names in parts.items():
            lines.append(f"  {title}: {len(names)} tensors")
            lines += [f"    {group} ({count})" for group, count in _grouped(names).items()]
        lines += [f"  ignored because {reason}" for reason in dict.fromkeys(self.unused.values())]
        lines += [f"  set as in the published code: {switch}" for switch in self.switches]
        if self.not_asked_for:
            lines.append(f"  options without use here: {', '.join(self.not_asked_for)}")
        if self.weights_license:
            lines.append(f"  licence of the weights: {self.weights_license}, that of the repository of the model")
        if self.assumed:
            values = ", ".join(f"{name}={value}" for name, value in self.assumed.items())
            lines.append(f"  assumed, as in the published model: {values}")
        return "\n".join(lines)


def _grouped(names: Mapping[str, Any] | list[str]) -> dict[str, int]:
    """Count names by module, taking lists of modules as one."""
    counts: dict[str, int] = {}
    for name in names:
        module = name.rpartition(".")[0] or name
        group = re.split(r"\.\d+(?=\.|$)", module)[0]
        counts[group] = counts.get(group, 0) + 1
    return counts


@dataclass
class ConvertedTensors:
    """A checkpoint in the names of this package.

    Attributes:
        tensors: Tensors by name, as in a model with a head or a decoder.
        sources: By name of a tensor here, the names in the file that it was made of.
        config_fields: Fields of the configuration.
        assumed: Which of them neither the tensors nor the caller gave: as in the published model.
    """

    tensors: dict[str, torch.Tensor]
    sources: dict[str, tuple[str, ...]]
    config_fields: dict[str, Any]
    assumed: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint without running anything that is in it.

    Args:
        path: A `.safetensors` file, or one that `torch.save` wrote: a state dict, or a dictionary with one under
            "base_model", "state_dict", "model_state_dict" or "model", which may be nested.

    Returns:
        Tensors by name, on the CPU; where the format allows it, they are read from the disk when they are used.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no file {str(path)!r}. Pass a .pth or .safetensors file, or a folder with {WEIGHTS_NAME}."
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} is not a readable safetensors file: {error}. Download it again."
            ) from None
    content = _read_pickle(path)
    tensors = _flatten(_state_dict(content, str(path)))
    if not tensors:
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{str(path)!r} has no tensors by name. Looked in the file itself and under "
            f"{', '.join(_STATE_DICT_KEYS)}; found: {found}."
        )
    return tensors


def _state_dict(content: Any, name: str) -> Any:
    """What is under the keys that training scripts keep the weights under, however often they are nested."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        found = [key for key in _STATE_DICT_KEYS if _flatten(content.get(key))]
        if len(found) > 1:
            raise ValueError(
                f"{name!r} has weights under {' and '.join(map(repr, found))}, so it is unclear which are meant. Save "
                f"the ones to use alone: torch.save(torch.load({name!r})[{found[0]!r}], 'weights.pth')."
            )
        if not found:
            break
        content = content[found[0]]
    return content


def _flatten(content: Any, prefix: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    """The tensors in nested dictionaries, their names joined by dots."""
    tensors: dict[str, torch.Tensor] = {}
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return tensors
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        elif isinstance(name, str):
            tensors.update(_flatten(value, f"{prefix}{name}.", depth + 1))
    return tensors


def _read_pickle(path: Path) -> Any:
    # Published files keep their accuracy as a NumPy number; restoring one runs nothing.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")]
    try:
        with torch.serialization.safe_globals([scalar, np.dtype, *dtypes]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "GLOBAL" in str(error):
            raise ValueError(
                f"{str(path)!r} holds objects that could run code when they are restored, so it is not opened "
                f"({str(error).splitlines()[0]}). If you trust where it is from, save its tensors alone, in a process "
                "without access to anything: torch.save(torch.load(path, weights_only=False)['base_model'], "
                "'weights.pth')."
            ) from None
        raise ValueError(f"{str(path)!r} is not a checkpoint of PyTorch: {error}. Download it again.") from None
    except (EOFError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged or not a checkpoint of PyTorch: {error}. Download it again."
        ) from None


def convert_tensors(
    tensors: Mapping[str, torch.Tensor],
    model_type: str,
    config_fields: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    has_head: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    variant: str | None = None,
) -> ConvertedTensors:
    """Bring the tensors of a published checkpoint to the names and shapes of this package.

    Args:
        tensors: Tensors by name, in the layout of a research repository or of torch-pointcloud.
        model_type: The model type.
        config_fields: Fields of the configuration that no tensor shows, or that differ from the published model.
        name: Name of the file or repository, for the published settings and for messages.
        has_head: Whether there is a classification head of any width; default: if it fits the backbone.
        arguments: Of a ptv3, the arguments of the published model, from [`read_arguments`].
        variant: Of a ptv3, one of `convert_ptv3.VARIANTS`.
    """
    check_model_type(model_type)
    if model_type == "ptv3":
        check_guess(tensors, model_type, name)
        return ConvertedTensors(*convert_ptv3(tensors, config_fields or {}, arguments or {}, variant, name))
    if variant is not None:
        raise ValueError(f"`variant`={variant!r} is for model_type='ptv3', not for {model_type!r}.")
    names = research_names(tensors)
    shapes = {names[key]: tuple(tensor.shape) for key, tensor in tensors.items()}
    num_stages = len({match[1] for n in shapes if (match := re.match(r"h_encoder\.token_embed\.(\d+)\.", n))})
    if has_head is None:
        has_head = _has_classification_head(model_type, shapes)
    if not has_head:
        shapes = {n: shape for n, shape in shapes.items() if not n.startswith(_HEAD)}
        tensors = {key: tensor for key, tensor in tensors.items() if names[key] in shapes}
    converted, sources = rename_tensors(tensors, model_type, num_stages, name=name)
    if not converted:
        raise ValueError(
            f"Nothing in {name or 'the checkpoint'!r} belongs to a {model_type}: none of its {len(tensors)} tensors "
            f"is known (for example {', '.join(list(tensors)[:3])}). Check `model_type`, and that it is a checkpoint "
            "of that model."
        )
    used = {key for keys in sources.values() for key in keys}
    if has_head and (unknown := [key for key in tensors if names[key].startswith(_HEAD) and key not in used]):
        raise ValueError(
            f"{name or 'The checkpoint'!r} has {unknown[0]!r} in its head, which the head of a {model_type} does not "
            "have. Remove the head to convert the encoder alone."
        )
    sizes = infer_sizes(model_type, shapes)
    fields, assumed = _merge_fields(model_type, sizes, dict(config_fields or {}), name)
    return ConvertedTensors(converted, sources, fields, assumed)


def _has_classification_head(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether there is a head, and reads the pooled tokens: the head for segmentation has the same names."""
    head = f"{_HEAD}0.weight"
    if head not in shapes:
        if any(re.match(rf"{re.escape(_HEAD)}\d", name) for name in shapes):
            raise ValueError(f"The checkpoint has a head, but not its first layer, {head!r}. Is the file complete?")
        return False
    norm = "blocks.ln_f.weight" if model_type == "point_gpt" else "norm.weight"
    if norm not in shapes:
        return False
    pooled, width = size_of(shapes, head, 1), size_of(shapes, norm)
    is_read_out = pooled == (4 if model_type == "recon" else 2) * width
    return is_read_out or (model_type == "point_m2ae" and pooled == width)


def rename_tensors(
    tensors: Mapping[str, torch.Tensor], model_type: str, num_stages: int = 1, *, name: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, ...]]]:
    """Rename, split and reshape the tensors that are known, and leave out the others outside of the encoder.

    Returns:
        Tensors by name here, and by name here the names in the file that they were made of.
    """
    if model_type == "ptv3":
        return rename_ptv3(tensors, name)[:2]
    names, foreign = research_names(tensors), is_torch_pointcloud(tensors)
    has_parts = model_type in _WITH_PARTS and has_segmentation_head(names.values())
    table = name_table(model_type, num_stages, has_parts)
    found = {key: table(names[key]) for key in tensors}
    known = {key: targets for key, targets in found.items() if targets is not None}
    check_names(tensors, model_type, known.keys(), name)
    converted: dict[str, torch.Tensor] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for key, targets in known.items():
        if targets and targets[0] in sources:
            raise ValueError(
                f"{name or 'The checkpoint'!r} has {sources[targets[0]][0]!r} and {key!r}, which are the same tensor "
                f"of a {model_type}. Save the one to use in a file of its own."
            )
        converted.update(converted_tensors(names[key], targets, tensors[key], foreign) if targets else {})
        sources.update(dict.fromkeys(targets, (key,)))
    if has_parts:
        head, made_of = convert_segmentation_head({names[key]: tensor for key, tensor in tensors.items()})
        keys = {name: key for key, name in names.items()}
        converted.update(head)
        sources.update({target: tuple(keys[name] for name in made) for target, made in made_of.items()})
    check_values(converted, sources, name)
    return converted, sources


def _merge_fields(
    model_type: str, sizes: dict[str, Any], given: dict[str, Any], name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All fields, and which of them are only assumed."""
    for key, value in sizes.items():
        wanted = given.get(key, value)
        if (list(wanted) if isinstance(wanted, tuple) else wanted) != value:
            raise ValueError(
                f"The configuration says {key}={given[key]!r}, but the tensors of {name or 'the checkpoint'!r} have "
                f"{value!r}. Leave it out of the configuration: it is read from the tensors."
            )
    settings = published_settings(model_type, sizes, name)
    named = {*given, *sizes, "weights_license"}
    assumed = {key: value for key, value in settings.items() if key not in named}
    fields = {**settings, **sizes, **given}
    if model_type == "point_mae":
        fields.setdefault("decoder_num_attention_heads", fields["num_attention_heads"])
    return fields, assumed
