"""Published checkpoints of a fine-tuning method: the adapter in them.

Which tensors are the adapter's, and what they are called in its file, is known to the tuner of the method
(`read_published`, see `point_peft_hf.tuners.published`). All the rest is the same for all methods, and here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, get_peft_model_state_dict, set_peft_model_state_dict

from ..attaching import is_under
from ..io.weights import KEY_PREFIX
from .convert_config import read_options
from .convert_families import FAMILIES, Family, recognize_family
from .convert_keys import research_names

if TYPE_CHECKING:
    from .convert_tensors import ConversionReport
    from .modeling import BackbonePreTrainedModel


# Methods were trained with the sampling of a CUDA operator; those that move or add points have some near the origin.
PUBLISHED_SAMPLING = {"skip_near_origin": True}


class PublishedAdapter(Protocol):
    """What a tuner reads in a file: see `point_peft_hf.tuners.published`, where the fields are described."""

    config: Any
    weights: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]
    switches: tuple[str, ...]
    unused: Mapping[str, str]


class Settings(Mapping):
    """Options by their published names, which notes those that somebody asked for.

    Args:
        options: The options.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._options = dict(options)
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def not_asked_for(self) -> list[str]:
        """Names of the options that nobody asked for."""
        return [name for name in self._options if name not in self._asked]


def read_settings(config: str | Path | Mapping[str, Any] | None) -> Settings:
    """Read the options that a published file was trained with.

    Args:
        config: A JSON file with one flat object, or a dictionary: options of backbone and method by their published
            names; `None` for the published ones.
    """
    if config is None or isinstance(config, Mapping):
        return Settings(config or {})
    return Settings(read_options(config, "the options of backbone and method side by side"))


def read_adapter(
    tensors: Mapping[str, torch.Tensor], settings: Settings, model_type: str, method: str, name: str
) -> PublishedAdapter:
    """Find the adapter in a published file."""
    names = research_names(tensors)
    if len(set(names.values())) < len(names):
        twice = next(new for new in names.values() if list(names.values()).count(new) > 1)
        raise ValueError(f"{name!r} has {twice!r} twice, under different prefixes. Save the one to use.")
    found = recognize_family(names.values())
    if found is not None and found[0].method is None:
        raise ValueError(f"{name!r} is of {found[0].name}: it has {found[1]!r}. {found[0].advice}")
    reader = _reader(method)
    _check_family(found, method, name)
    by_name = {names[key]: tensor for key, tensor in tensors.items()}
    try:
        adapter = reader(by_name, settings, model_type)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error
    left = recognize_family(adapter.base)
    if left is not None and left[0].method == method:
        raise ValueError(
            f"{name!r} has {left[1]!r}, which belongs to {left[0].name}, but has no place in an adapter of type "
            f"{method.upper()}. The file is of another version of the method."
        )
    return adapter


def _reader(method: str) -> Any:
    readers = {
        str(peft_type.value).lower(): tuner.read_published
        for peft_type, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if hasattr(tuner, "read_published")
    }
    if method not in readers:
        is_type = method.upper() in PeftType.__members__
        reason = "is a type of PEFT, but no published files of it are known" if is_type else "is not known"
        raise ValueError(f"The method {method!r} {reason}. Files can be read of {', '.join(sorted(readers))}.")
    return readers[method]


def _check_family(found: tuple[Family, str] | None, method: str, name: str) -> None:
    if found is not None and found[0].method != method:
        raise ValueError(
            f"{name!r} is of {found[0].name}: it has {found[1]!r}. Convert it with the method {found[0].method!r}, "
            f"not {method!r}."
        )
    expected = next((family for family in FAMILIES if family.method == method), None)
    if found is None and expected is not None:
        raise ValueError(
            f"{name!r} has no tensor that only {expected.name} has. If it is a plain backbone, convert it without a "
            "method."
        )


def adapter_tensors(adapter: PublishedAdapter, converted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors of an adapter's file: its own, and those of the modules it brings."""
    saved = adapter.config.modules_to_save or ()
    brought = {KEY_PREFIX + key: tensor for key, tensor in converted.items() if is_under(key, saved)}
    return {**adapter.weights, **brought}


def complete_report(
    report: ConversionReport, tensors: Mapping[str, torch.Tensor], adapter: PublishedAdapter, settings: Settings
) -> None:
    """Add to the report of a backbone what became of the rest of the file, all under the names in the file."""
    by_tensor = {id(tensor): key for key, tensor in tensors.items()}
    names = {new: key for key, new in research_names(tensors).items()}
    # What is left of a file may have names there that another tensor of the file has.
    in_file = names | {new: by_tensor.get(id(tensor), new) for new, tensor in adapter.base.items()}
    report.loaded = {in_file[new]: targets for new, targets in report.loaded.items()}
    report.unused = {names[new]: reason for new, reason in adapter.unused.items()}
    report.ignored = [*(in_file[new] for new in report.ignored), *report.unused]
    known = {*report.loaded, *report.ignored}
    report.adapter = [key for key in tensors if key not in known]
    sampling = "skip_near_origin=True in the backbone: points close to the origin are never centres of groups"
    report.switches = [*adapter.switches, *([] if "skip_near_origin" in settings else [sampling])]
    report.not_asked_for = settings.not_asked_for()


def attach_adapter(
    model: BackbonePreTrainedModel, adapter: PublishedAdapter, tensors: Mapping[str, torch.Tensor], name: str
) -> PeftModel:
    """Attach an adapter with its weights to its backbone."""
    try:
        attached = get_peft_model(model, adapter.config)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error
    expected = get_peft_model_state_dict(attached, save_embedding_layers=False)
    # Counts of batches are in no file that is old enough, and no function depends on them.
    counts = {key: tensor for key, tensor in expected.items() if key.endswith("num_batches_tracked")}
    tensors = {**counts, **tensors}
    problems = [f"has no tensor for {key!r}" for key in sorted(expected.keys() - tensors.keys())]
    problems += [f"has a tensor for {key!r}, which does not exist" for key in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"has a tensor of shape {tuple(tensor.shape)} for {key!r} instead of {tuple(expected[key].shape)}"
        for key, tensor in tensors.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more of this kind)" if len(problems) > 1 else ""
        raise ValueError(
            f"{name!r} {problems[0]}{more}, in an adapter with the options of the configuration. Pass the options "
            "that the file was trained with, or check that it is complete."
        )
    set_peft_model_state_dict(attached, tensors)
    return attached
