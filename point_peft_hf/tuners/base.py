"""The base of 3D adapter types: tuners that attach to slots."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _ExcludedModule
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from ..attaching import all_or_nothing, check_adapter_name, complete_modules_to_save, is_under
from ..io.backbone import HEADS, describe_backbone
from ..io.weights import check_file, check_loaded
from ..slots import AdapterSlot, LayerSlot, ReadoutSlot, VoxelSlot
from .config import PointTunerConfig
from .embeddings import embedding_modules
from .lifecycle import AdapterLifecycle
from .selection import Selection, matching, select_slots
from .slot_layer import HALF_PRECISION, MERGE_MESSAGE, SlotLayer

# A slot, maybe one of a list, with a layer around it.
_NESTED_LAYER = re.compile(r"(_slots?(?:\.\d+)?)(?:\.base_layer)+\.")


class SlotTuner(AdapterLifecycle):
    """Base of the tuners that attach to slots.

    Class attributes to set:
        layer_classes: The layers of the method.

    [`~point_peft_hf.tuners.registry.register_method`] sets `prefix`, the name of the type in lower case and "_".
    """

    prefix = ""
    tuner_layer_cls = SlotLayer
    layer_classes: ClassVar[tuple[type[SlotLayer], ...]] = ()
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    # Whether an adapter trains and saves the first half of the patch embedding, and the position embeddings.
    trains_embedding: ClassVar[bool] = False

    # -- For a method -------------------------------------------------------------------------------------------------

    def layers_of(self, peft_config: PointTunerConfig) -> tuple[type[SlotLayer], ...]:
        """The layers of the method that a configuration has switched on."""
        return self.layer_classes

    def readout_size(self, peft_config: PointTunerConfig, slot: ReadoutSlot) -> int:
        """Width of what the method's read-out returns; the adapter's head is built for it.

        Args:
            peft_config: The configuration.
            slot: The read-out.
        """
        return slot.hidden_size

    def frozen_modules(self, peft_config: PointTunerConfig, model: nn.Module) -> tuple[str, ...]:
        """Names of modules of the backbone that are saved with the adapter, but not trained."""
        return ()

    def _default_modules_to_save(self, peft_config: PointTunerConfig, model: nn.Module) -> list[str] | None:
        """Modules that belong to the task: without them in the file, an adapter could not be used anywhere else."""
        names = list(getattr(model, "task_module_names", ()))
        return (names + embedding_modules(model) if self.trains_embedding else names) or None

    # -- Choosing slots -----------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: PointTunerConfig, model_config: dict) -> PointTunerConfig:
        return peft_config

    def _prepare_model(self, peft_config: PointTunerConfig, model: nn.Module) -> None:
        # All that can be wrong is found here, before anything is attached.
        slots = slots_by_name(model)
        if not slots:
            raise ValueError(
                f"{type(model).__name__} has no slots that an adapter of type {peft_config.peft_type.value} could "
                "attach to. Use a backbone of point_peft_hf (for example AutoModelForPointCloudClassification), or "
                "give your own blocks slots (see point_peft_hf.foreign.add_slots)."
            )
        if peft_config.modules_to_save is None:
            default = self._default_modules_to_save(peft_config, model)
            brought = peft_config._brought_by_others
            peft_config.modules_to_save = default and [name for name in default if not is_under(f"{name}.", brought)]
        saved = list(peft_config.modules_to_save or ())
        if missing := [name for name in self.frozen_modules(peft_config, model) if name not in saved]:
            peft_config.modules_to_save = saved + missing
        if not peft_config.comes_with_weights:
            complete_modules_to_save(peft_config, model)
        # What is trained as a whole needs no adapter inside.
        slots = {name: slot for name, slot in slots.items() if not is_under(name, peft_config.modules_to_save or ())}
        is_head_only = peft_config.target_modules == DUMMY_TARGET_MODULES
        self._selected = {} if is_head_only else self._select(peft_config, model, slots)
        self._slots = {name: slots[name] for name in self._selected}
        # First whether it is the backbone that the adapter was made for: that says more than a module it lacks.
        peft_config.attach_to(
            describe_backbone(_base_model(model), peft_config.modules_to_save or (), peft_config._brought_by_others)
        )
        _check_modules_to_save(peft_config, model)
        self._check_readout(peft_config, model)

    def _select(self, peft_config: PointTunerConfig, model: nn.Module, slots: dict[str, AdapterSlot]) -> Selection:
        layers = self.layers_of(peft_config)
        self._check_kind(peft_config, model, slots, layers)
        selected = select_slots(peft_config, slots, layers)
        if peft_config.target_modules is not None:
            self._check_targets(peft_config, model, slots_by_name(model))
        if not selected and peft_config.modules_to_save and not layers:
            # Every part is switched off: an adapter that is nothing but a head. PEFT knows this by a name of its own.
            peft_config.target_modules = DUMMY_TARGET_MODULES
        elif not selected:
            raise ValueError(
                f"`target_modules`={peft_config.target_modules!r} and `exclude_modules`="
                f"{peft_config.exclude_modules!r} leave no slot that an adapter of type "
                f"{peft_config.peft_type.value} has a use for. Leave both out for the default."
            )
        elif peft_config.target_modules is None:
            peft_config.target_modules = _short_names(selected)
        return selected

    def _check_kind(
        self,
        peft_config: PointTunerConfig,
        model: nn.Module,
        slots: dict[str, AdapterSlot],
        layers: Sequence[type[SlotLayer]],
    ) -> None:
        """Check that a type for objects is not put on an encoder of scenes, of which it would find a part, or v.v."""
        kind, name = peft_config.peft_type.value, type(_base_model(model)).__name__
        if any(isinstance(slot, VoxelSlot) for slot in slots.values()):
            if any(not issubclass(layer.slot_class, VoxelSlot | LayerSlot) for layer in layers):
                raise ValueError(
                    f"An adapter of type {kind} works on groups of points of single objects, but {name} encodes the "
                    "voxels of scenes. Use VOXEL_ADAPTER, PATCH_PROMPT, or a type of peft such as LoRA."
                )
        elif any(issubclass(layer.slot_class, VoxelSlot) for layer in layers):
            raise ValueError(
                f"An adapter of type {kind} works on the voxels of scenes, but {name} encodes groups of points of "
                "single objects. Use a scene encoder (PointTransformerV3ForSemanticSegmentation), or another type."
            )

    def _check_targets(self, peft_config: PointTunerConfig, model: nn.Module, slots: dict[str, AdapterSlot]) -> None:
        """Check that `target_modules` names slots of this type only."""
        targets, supported = peft_config.target_modules, tuple(layer.slot_class for layer in self.layer_classes)
        inside = tuple(name + "." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
        names = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
        for name in matching(targets, names):
            # An expression may well match more slots than a type has a use for; a list of names says what is meant.
            if name in slots and (isinstance(slots[name], supported) or isinstance(targets, str)):
                continue
            wrong = slots.get(name) or model.get_submodule(name)
            kinds = ", ".join(sorted({slot_class.__name__ for slot_class in supported}))
            raise ValueError(
                f"An adapter of type {peft_config.peft_type.value} attaches to slots ({kinds}), but `target_modules` "
                f"also matches {name!r}, a {type(wrong).__name__}. Leave `target_modules` out for the default."
            )

    def _check_target_module_exists(self, peft_config: PointTunerConfig, key: str) -> bool | _ExcludedModule:
        if key in self._selected:
            return True
        excluded = peft_config.exclude_modules
        return _ExcludedModule() if excluded and matching(excluded, (key,)) else False

    def _check_readout(self, peft_config: PointTunerConfig, model: nn.Module) -> None:
        """Check that an adapter that reads out something else brings a head for it."""
        for slot in self._slots.values():
            if not isinstance(slot, ReadoutSlot) or not slot.is_read:
                continue
            size, head = self.readout_size(peft_config, slot), head_name(model)
            if size != slot.hidden_size and head is not None and head not in (peft_config.modules_to_save or ()):
                raise ValueError(
                    f"An adapter of type {peft_config.peft_type.value} reads out {size} features where the head of "
                    f"the backbone takes {slot.hidden_size}, so it needs a head of its own. Name {head!r} in "
                    f"`modules_to_save` (got {peft_config.modules_to_save}), or leave `modules_to_save` out."
                )

    # -- Attaching ----------------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Attach an adapter; see PEFT's method of this name.

        Raises:
            ValueError: If the model carries this adapter already, or is wrapped by PEFT.
        """
        config = self.peft_config[adapter_name]
        type_name = config.peft_type.value
        if isinstance(self.model, PeftModel | PeftMixedModel):
            raise ValueError(
                f"The model is already a {type(self.model).__name__}; no adapter of type {type_name} can be wrapped "
                "around it. For a second adapter of the same type use its `add_adapter`, to mix types use "
                "`point_peft_hf.add_adapters` on the backbone, to start anew call `unload()` first."
            )
        for layer in self._own_layers():
            if adapter_name in layer.configs:
                # PEFT has put the new configuration in the place of the attached one already.
                self.peft_config[adapter_name] = layer.configs[adapter_name]
                raise ValueError(
                    f"The model already carries an adapter {adapter_name!r} of type {type_name}: `get_peft_model` "
                    "was called on it before. Use another `adapter_name`, or call `unload()` first."
                )
        if any(name != adapter_name and other is config for name, other in self.peft_config.items()):
            # Adapters that were made from one object may get banks of different sizes.
            self.peft_config[adapter_name] = copy.copy(config)
        config = self.peft_config[adapter_name]
        with all_or_nothing(model, config):
            check_adapter_name(model, adapter_name, config.modules_to_save or ())
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._finish_saved_modules(model, adapter_name)
            # If it comes from a file that does not fit, it is not attached.
            check_file(model, config, adapter_name)

    def _finish_saved_modules(self, model: nn.Module, adapter_name: str) -> None:
        """Give the adapter a head for its own read-out, and keep from training what is only saved."""
        config = self.peft_config[adapter_name]
        for slot in self._slots.values():
            if not isinstance(slot, ReadoutSlot) or not slot.is_read:
                continue
            size, head = self.readout_size(config, slot), head_name(model)
            if size != slot.hidden_size and head is not None:
                wrapper = model.get_submodule(head)
                old = wrapper.modules_to_save[adapter_name]
                reference = next(old.parameters())
                new = self.build_head(model, config, size)
                # Built where PEFT makes weights that a file fills, it stays empty till then.
                if not any(parameter.is_meta for parameter in new.parameters()):
                    new = new.to(reference.device, reference.dtype)
                new.train(old.training)
                for parameter in new.parameters():
                    parameter.requires_grad_(reference.requires_grad)
                wrapper.modules_to_save[adapter_name] = new
        frozen = self.frozen_modules(config, model)
        for name, module in model.named_modules():
            if isinstance(module, ModulesToSaveWrapper) and name.rpartition(".")[2] in frozen:
                if adapter_name in module.modules_to_save:
                    _parameters_to_buffers(module.modules_to_save[adapter_name])

    def build_head(self, model: nn.Module, peft_config: PointTunerConfig, in_size: int) -> nn.Module:
        """A new head of the adapter's own, for features of another width.

        Args:
            model: The backbone.
            peft_config: The configuration.
            in_size: The width.
        """
        return _base_model(model).build_head(in_size)

    def _own_layers(self) -> list[SlotLayer]:
        return [m for m in self.model.modules() if isinstance(m, SlotLayer) and m.prefix == self.prefix]

    def _create_and_replace(
        self,
        peft_config: PointTunerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs,
    ) -> None:
        existing = {}
        layer = target
        while isinstance(layer, SlotLayer):
            if layer.prefix == self.prefix:
                existing[type(layer)] = layer
            layer = layer.base_layer
        outermost = target
        for layer_class in self._selected[current_key]:
            layer = existing.get(layer_class)
            if layer is None:
                layer = outermost = layer_class(outermost, self.prefix)
                layer._active_adapter = list(self.active_adapters)
            layer.update_layer(adapter_name, peft_config, current_key)
        if outermost is not target:
            self._replace_module(parent, target_name, outermost, target)

    def unload(self) -> nn.Module:
        """Return the backbone as it was: without adapters, and with its own head, class token and norm.

        PEFT would leave the modules that an adapter trained as a whole in the backbone, and the next adapter would be
        made for a backbone that nobody else has.
        """
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module.original_module)
        return super().unload()

    # -- What cannot be done ------------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise ValueError(MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        """Refuse: what these adapters compute is not linear in their weights."""
        raise ValueError(
            f"Adapters of type {self.prefix.rstrip('_').upper()} cannot be averaged: what they compute is not linear "
            "in their weights. Average their predictions; or, if only one of them brings a head (the others have "
            "`modules_to_save=[]`), activate them at once with `model.base_model.set_adapter([...])`."
        )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return `False`: what these adapters add is not a change of a weight."""
        return False

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"`adapter_names`={kwargs['adapter_names']!r}: adapters of type {self.prefix.rstrip('_').upper()} "
                "cannot be mixed within one batch. Split the batch by adapter and call `set_adapter` between the "
                "parts."
            )
        yield

    # -- Files --------------------------------------------------------------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Two types on one slot sit inside of each other; which one is outside must not show in a file, nor whether the
        # model was compiled.
        key = super()._remove_adapter_name_from_key(key, adapter_name).replace("_orig_mod.", "")
        return _NESTED_LAYER.sub(r"\1.", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PointTunerConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        # PEFT goes on without what is missing, and takes whatever else there is, weights of the backbone included.
        check_loaded(model, config, adapter_name, remapped)
        return remapped

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        # For layers that have no parameters of their own.
        self.peft_config[adapter_name]._adapter_dtype = torch.float32 if autocast_adapter_dtype else None
        if not autocast_adapter_dtype:
            return
        # PEFT casts the parameters of an adapter to float32, but not its buffers (the statistics of a BatchNorm).
        for layer in self._own_layers():
            for part in layer.adapter_layer_names:
                module = layer._modules[part]._modules.get(adapter_name)
                for inner in module.modules() if module is not None else ():
                    for name, buffer in inner.named_buffers(recurse=False):
                        if buffer.dtype in HALF_PRECISION:
                            setattr(inner, name, buffer.float())


def _check_modules_to_save(config: PointTunerConfig, model: nn.Module) -> None:
    """Check that `modules_to_save` names modules of the model, which PEFT would go on without."""
    unknown = set(config.modules_to_save or ())
    for name, _ in model.named_modules() if unknown else ():
        if name.endswith(tuple(unknown)):
            unknown = {wanted for wanted in unknown if not name.endswith(wanted)}
    # For its own task types PEFT adds names of heads that a model may have.
    if unknown and config.task_type is None:
        raise ValueError(
            f"`modules_to_save` has {sorted(unknown)}, but {type(model).__name__} has no such modules. Those that it "
            f"declares as part of the task are {list(getattr(model, 'task_module_names', ()))}."
        )


def slots_by_name(model: nn.Module) -> dict[str, AdapterSlot]:
    """The slots of an encoder, whatever layers are around them."""
    slots = {}
    for name, module in model.named_modules():
        if isinstance(module, AdapterSlot | SlotLayer) and not name.endswith("base_layer"):
            slot = module.slot if isinstance(module, SlotLayer) else module
            if slot.stage.is_encoder:
                slots[name] = slot
    return slots


def head_name(model: nn.Module) -> str | None:
    """Name of the module that a model reads its features out with, or `None`."""
    return next((name for name in HEADS if hasattr(_base_model(model), name)), None)


def _base_model(model: nn.Module) -> nn.Module:
    # torch.compile wraps a model.
    return getattr(model, "_orig_mod", model)


def _short_names(names: Iterable[str]) -> set[str]:
    """The ends of the names of slots that say which slots they are: one of a list needs its number as well."""
    short = set()
    for name in names:
        rest, _, last = name.rpartition(".")
        short.add(f"{rest.rpartition('.')[2]}.{last}" if last.isdecimal() else last)
    return short


def _parameters_to_buffers(module: nn.Module) -> None:
    """Save a module without training it: under the same keys, but as buffers, which nothing ever trains."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, parameter.detach())
