"""Attaching adapters to a backbone and taking them off again: what the tuners and the models' own methods share.

Two rules hold for every way to attach an adapter: if it fails, the model is as it was before, and what the backbone's
checkpoint did not bring (a head, a class token) must be in the adapter's file, or there is a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

# Names that PEFT's own structure has in the keys of a state dict.
_RESERVED_NAMES = frozenset({"base_layer", "base_model", "model", "modules_to_save", "original_module"})
_CONTAINERS = (dict, list, set)
_ADAPTER_WRAPPERS = (AuxiliaryTrainingWrapper, BaseTunerLayer)
# What adapters put into the names of a backbone's own tensors.
_WRAPPERS = re.compile(r"\b(?:original_module|base_layer)\.")


@contextmanager
def all_or_nothing(model: nn.Module, config: Any = None) -> Iterator[None]:
    """Restore the structure of a model if anything inside of the block fails.

    Modules, attributes and `requires_grad` come back, and so do the fields of a configuration; weights are not copied.
    """
    attributes, containers, flags = [], [], []
    seen, stack = set(), [model]
    # Loops instead of `model.modules()`: this runs at each attaching, and generators inside of generators are slow.
    while stack:
        module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        attributes.append((vars(module), vars(module).copy()))
        for value in vars(module).values():
            if isinstance(value, _CONTAINERS):
                containers.append((value, value.copy()))
        for parameter in module._parameters.values():
            if parameter is not None:
                flags.append((parameter, parameter.requires_grad))
        for child in module._modules.values():
            if child is not None:
                stack.append(child)
    fields = dict(vars(config)) if config is not None else {}
    try:
        yield
    except BaseException:
        if config is not None:
            attributes.append((vars(config), fields))
        # In place, because others hold the same objects: a tuner shares the dictionary of configurations.
        for container, before in (*containers, *attributes):
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        raise


# -- Names ---------------------------------------------------------------------------------------------------------


def check_adapter_name(model: nn.Module, adapter_name: str, modules_to_save: Iterable[str] = ()) -> None:
    """Check that an adapter can be saved under its name.

    PEFT finds what belongs to an adapter by its name in the keys of the state dict. A name that a part of the head has
    as well would be cut out of that part's keys.
    """
    if not isinstance(adapter_name, str) or not adapter_name or set(adapter_name) & set("./\\"):
        raise ValueError(
            f"The name of an adapter must be a text without '.', '/' and '\\', got {adapter_name!r}. It becomes the "
            "name of a module and of a folder."
        )
    is_taken = adapter_name in _RESERVED_NAMES or hasattr(nn.ModuleDict, adapter_name) or adapter_name == "training"
    wanted = (*modules_to_save, *getattr(model, "task_module_names", ()))
    for name, _, owners in backbone_tensors(model):
        if adapter_name in name.split(".") and (owners or is_under(name, wanted)):
            is_taken = True
    if is_taken:
        raise ValueError(
            f"An adapter cannot be called {adapter_name!r}: a module or parameter that is saved with adapters has "
            "that name as well, and PEFT could not keep the two apart in a file. Use another `adapter_name`."
        )


def is_under(tensor_name: str, modules: Collection[str]) -> bool:
    """Whether PEFT would save a tensor with one of the modules in `modules_to_save`, which are endings of names."""
    modules = tuple(modules)
    end = tensor_name.find(".")
    while end >= 0:
        if tensor_name.endswith(modules, 0, end):
            return True
        end = tensor_name.find(".", end + 1)
    return False


def backbone_tensors(
    model: nn.Module, left_out: Collection[str] = ()
) -> list[tuple[str, torch.Tensor, Collection[str]]]:
    """All parameters and saved statistics of a backbone under its adapters.

    Returns:
        Name and tensor as they are without adapters, and the adapters that bring a copy of their own.
    """
    tensors: list[tuple[str, torch.Tensor, Collection[str]]] = []
    stack: list[tuple[str, nn.Module, Collection[str]]] = [("", model, ())]
    while stack:
        prefix, module, owners = stack.pop()
        while isinstance(module, _ADAPTER_WRAPPERS):
            if isinstance(module, AuxiliaryTrainingWrapper):
                owners, module = module._adapters, module.original_module
            else:
                module = module.get_base_layer()
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                tensors.append((prefix + name, tensor, owners))
        for name, child in reversed([*module.named_children()]):
            if name not in left_out:
                stack.append((f"{prefix}{name}.", child, owners))
    return tensors


# -- Active adapters -----------------------------------------------------------------------------------------------


def check_active_together(model: nn.Module, adapter_names: str | Iterable[str]) -> None:
    """Check that no two of the adapters that are to be active bring the same module."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    if len(names) < 2:
        return
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            owners = [owner for owner in names if owner in module.modules_to_save]
            if len(owners) > 1:
                raise ValueError(
                    f"The adapters {owners} all bring {name.removeprefix('base_model.model.')!r}, so only one of them "
                    "can be active. Attach the others with `modules_to_save=[]`, or activate one after the other."
                )


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the active adapters, in their order; none for a backbone without adapters.

    Args:
        model: A backbone.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # A layer may know a part of the names only; the order is that of the layers that know them all.
    layers.sort(key=lambda layer: len(layer.active_adapters), reverse=True)
    known = getattr(model, "peft_config", {})
    return [name for name in dict.fromkeys(n for layer in layers for n in layer.active_adapters) if name in known]


def activate(model: nn.Module, adapter_names: list[str], *, inference_mode: bool = False) -> None:
    """Activate adapters, or none, in all layers and in all modules that adapters bring."""
    check_active_together(model, adapter_names)
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            own = [name for name in adapter_names if name in module._adapters]
            module.set_adapter(own, inference_mode=inference_mode)
        elif isinstance(module, BaseTunerLayer):
            if module.merged:
                module.unmerge()
            # PEFT's norms refuse to run with any other adapter, even one that has nothing at their place.
            is_norm = isinstance(module, LNTuningLayer)
            own = [name for name in adapter_names if not is_norm or name in module.ln_tuning_layers]
            module.set_adapter(own, inference_mode=inference_mode)


def deactivate(model: nn.Module, adapter_names: Collection[str], active: Iterable[str]) -> list[str]:
    """Take adapters out of use before PEFT deletes them.

    PEFT chooses the next active adapter for each layer by itself, and leaves the heads of adapters out that bring one
    where the deleted adapter did not (huggingface/peft#3716).

    Returns:
        The adapters that are active from now on: those that are left of them, or else the first of all others.
    """
    active = list(active)
    remaining = [name for name in active if name not in adapter_names]
    others = [name for name in model.peft_config if name not in adapter_names]
    if active and not remaining and others:
        remaining = others[:1]
        # In PEFT's words, which people look for.
        warnings.warn(
            f"Adapter {active[0]} was active which is now deleted. Setting active adapter to {remaining[0]}.",
            stacklevel=4,
        )
    if remaining != active:
        is_frozen = all(model.peft_config[name].inference_mode for name in remaining)
        activate(model, remaining, inference_mode=is_frozen)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name in set(adapter_names) & set(module.modules_to_save):
                # Its own method refuses to delete where several other adapters are active.
                module._adapters.discard(name)
                del module.modules_to_save[name]
    return remaining


# -- What the checkpoint of a backbone did not bring ---------------------------------------------------------------


def parts_without_checkpoint(model: nn.Module, adapter_names: Collection[str] | None = None) -> dict[str, list[str]]:
    """What of a model was not loaded from its checkpoint, and is in no adapter's file either.

    Returns:
        Names of tensors, by the module to name in `modules_to_save`.
    """
    unloaded = getattr(model, "_not_in_checkpoint", ())
    parts: dict[str, list[str]] = {}
    task = _task_modules(model)
    for name, _, owners in backbone_tensors(model) if unloaded else ():
        if name in unloaded and not (owners if adapter_names is None else set(owners) & set(adapter_names)):
            module = next(iter(task.intersection(name.split("."))), name.rpartition(".")[0])
            parts.setdefault(module, []).append(name)
    return parts


def pretrained_parts(model: nn.Module) -> set[str]:
    """Modules of the task that the pre-training has as well, so that they count as a part of the encoder."""
    has_class_token = getattr(getattr(model, "base_model", model), "is_pretrained_with_class_token", False)
    return {"class_token"} if has_class_token else set()


def _task_modules(model: nn.Module) -> set[str]:
    """The declared modules of the task that the pre-training does not have."""
    return set(getattr(model, "task_module_names", ())) - pretrained_parts(model)


def complete_modules_to_save(config: Any, model: nn.Module) -> None:
    """Add to `modules_to_save` what would be random after loading, because neither checkpoint nor file has it."""
    saved = list(config.modules_to_save or ())
    parts = getattr(model, "task_module_names", ())
    if set(saved) - set(parts):
        if config.task_type is not None:
            # PEFT wraps the head of such a model as a whole, if it finds one, when the adapter is attached already.
            saved += [part for part in parts if any(_is_inside(model, part, wanted) for wanted in saved)]
        # And it would wrap what is inside of a module that it wraps already.
        for name in list(saved):
            if _is_inside_of_others(model, name, saved):
                saved.remove(name)
        config.modules_to_save = saved
    missing = {
        part: [name for name in names if not is_under(name, saved)]
        for part, names in parts_without_checkpoint(model).items()
        if part not in config._brought_by_others
    }
    task = [part for part in parts if missing.get(part)]
    if rest := [part for part, names in missing.items() if names and part not in task]:
        warnings.warn(
            f"The checkpoint of the backbone has no {_listed(rest)}: random weights, which the adapter is trained on "
            "but does not save. Load a checkpoint that is complete; or save this backbone with `save_pretrained`, and "
            "attach the adapter to what `from_pretrained` makes of that folder.",
            stacklevel=4,
        )
    added = []
    for part in task:
        is_whole = not any(part in wanted.split(".") or _is_inside(model, part, wanted) for wanted in saved)
        added += [part] if is_whole else dict.fromkeys(name.rpartition(".")[0] for name in missing[part])
    if not added:
        return
    if not saved:
        warnings.warn(
            f"The checkpoint of the backbone has no {_listed(added)}, and with `modules_to_save=[]` the adapter's "
            "file has none either: the random weights are lost. Leave `modules_to_save` out, or save the backbone as "
            "well.",
            stacklevel=4,
        )
        return
    if config.task_type is None:
        # Whoever passes a task type has chosen no names: PEFT fills in its own.
        warnings.warn(
            f"`modules_to_save`={saved} leaves out {_listed(added)}, which the checkpoint of the backbone does not "
            "have: random weights, and others after loading. So they are trained and saved with the adapter, too. Add "
            "them to `modules_to_save`, or leave it out, to be rid of this warning.",
            stacklevel=4,
        )
    config.modules_to_save = [*saved, *added]


def _is_inside_of_others(model: nn.Module, wanted: str, saved: Collection[str]) -> bool:
    """Whether all modules that a name in `modules_to_save` stands for are inside of those of the other names."""
    others = list(saved)
    others.remove(wanted)
    found = [name for name, _ in model.named_modules() if name.endswith(wanted)]
    return bool(others and found) and all(is_under(f"{name}.", others) for name in found)


def _is_inside(model: nn.Module, part: str, wanted: str) -> bool:
    """Whether a name in `modules_to_save` is that of a module inside of a part."""
    return any(f".{part}." in f".{name}" and name.endswith(wanted) for name, _ in model.named_modules())


def unsaved_task_tensors(
    model: nn.Module, modules_to_save: Collection[str], brought_by_others: Collection[str] = ()
) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of the task modules that no adapter brings: what an adapter needs from its backbone."""
    result: dict[str, dict[str, torch.Tensor]] = {}
    task = _task_modules(model).difference(brought_by_others)
    for name, tensor, owners in backbone_tensors(model):
        part = next(iter(task.intersection(name.split("."))), None)
        if part and not owners and tensor.is_floating_point() and not is_under(name, modules_to_save):
            result.setdefault(part, {})[name] = tensor
    return result


def _listed(names: Iterable[str]) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# -- Adapters of PEFT's own types, which know nothing of all this ---------------------------------------------------


class RandomPartsGuard:
    """Part of a model: it remembers what its checkpoint did not bring, and sees to it that adapters do not lose it.

    The tuners of this package ask before they attach. PEFT's own have no room for that, so the model watches itself
    for them: PEFT announces an adapter by setting `peft_config`, and loads weights with `load_state_dict`.
    """

    _not_in_checkpoint: frozenset[str] = frozenset()
    # Adapters of PEFT's own types that were looked at.
    _known_adapters: frozenset[str] = frozenset()
    # Those that this very model was run with: its random parts are those that they were trained on.
    _run_with: frozenset[str] = frozenset()
    _waits_for_more_adapters = False

    def note_loading(self, missing: Collection[str]) -> None:
        """Note what was not loaded from a checkpoint."""
        missing, task = set(missing), _task_modules(self)
        self._not_in_checkpoint = frozenset(
            name
            for name, tensor, _ in backbone_tensors(self)
            # Norms that start with ones and zeros are not random: they are the same each time.
            if name in missing
            and (task.intersection(name.split(".")) or tensor.is_meta or bool((tensor != tensor.flatten()[:1]).any()))
        )

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "peft_config":
            self._look_at_adapters()

    def _look_at_adapters(self) -> None:
        configs = getattr(self, "peft_config", {})
        others = {name: c for name, c in configs.items() if not hasattr(c, "comes_with_weights")}
        for name in others.keys() - self._known_adapters:
            check_adapter_name(self, name, getattr(others[name], "modules_to_save", None) or ())
        if self._waits_for_more_adapters:
            return
        added = [name for name in others if name not in self._known_adapters]
        self._known_adapters |= others.keys()
        parts = parts_without_checkpoint(self)
        if not parts or not added:
            return
        self.register_forward_pre_hook(_note_run)
        trained = [name for name in added if not others[name].inference_mode]
        if trained:
            warnings.warn(
                f"The checkpoint of the backbone has no {_listed(parts)}: random weights, and the adapter "
                f"{_listed(trained)} of type {others[trained[0]].peft_type.value} neither trains nor saves them. Pass "
                f"`modules_to_save={list(parts)}`; without it, the adapter cannot be loaded again.",
                stacklevel=2,
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args) -> None:
        keys = [key.removeprefix(prefix) for key in state_dict]
        self._not_in_checkpoint -= {_WRAPPERS.sub("", key) for key in keys}
        self._look_at_adapters()  # A `PeftModel` says nothing of its second adapter.
        found = {part for key in keys for part in key.split(".")}
        loaded = found & self._known_adapters - self._run_with
        if loaded and not self._waits_for_more_adapters:
            self.check_no_random_parts(loaded)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_no_random_parts(self, adapter_names: Collection[str]) -> None:
        """Check that adapters that were loaded leave nothing random."""
        parts = parts_without_checkpoint(self)
        if parts:
            raise ValueError(
                f"The file of adapter {_listed(adapter_names)} has no {_listed(parts)}, and neither has the "
                "checkpoint of the backbone: random weights, and so would be the predictions. Load the backbone from "
                "a folder in which it was saved with them, or train the adapter again with "
                f"`modules_to_save={list(parts)}`."
            )
        if parts := parts_without_checkpoint(self, adapter_names):
            warnings.warn(
                f"The file of adapter {_listed(adapter_names)} has no {_listed(parts)}, and neither has the "
                "checkpoint of the backbone. Activate the adapter only together with the one that brings them.",
                stacklevel=2,
            )

    @contextmanager
    def several_adapters(self) -> Iterator[None]:
        """Attach several adapters in the block, and look at them together at its end."""
        self._waits_for_more_adapters = True
        try:
            yield
        finally:
            self._waits_for_more_adapters = False
        self._look_at_adapters()


def _note_run(model: RandomPartsGuard, inputs: Any) -> None:
    if not torch.compiler.is_compiling():
        model._run_with |= model._known_adapters
