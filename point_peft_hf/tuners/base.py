"""The base of 3D adapter types: tuners that attach to slots, and the layers that they put there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from torch import nn

from ..slots import AdapterSlot, BlockSlot
from .config import PointTunerConfig, describe_backbone


class SlotLayer(nn.Module, BaseTunerLayer):
    """An adapter layer around a slot.

    A subclass names its `parts`, and creates them for an adapter in `create_parts`. A part is one flat `ModuleDict` from
    adapter names to modules, stored as the attribute `<prefix><part>`: PEFT finds, saves, renames, freezes and deletes
    parts by these names.

    Args:
        base_layer: The slot, or the layer of another adapter type around it.
    """

    # Set by the classes of a method: the prefix of its parameters.
    prefix: ClassVar[str] = ""
    # Trained, and saved.
    parts: ClassVar[tuple[str, ...]] = ()
    # Saved, but not trained.
    buffer_parts: ClassVar[tuple[str, ...]] = ()

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("configs",)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.adapter_layer_names = tuple(cls.prefix + part for part in cls.parts)
        cls.other_param_names = (*(cls.prefix + part for part in cls.buffer_parts), "configs")

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        for part in (*self.parts, *self.buffer_parts):
            setattr(self, self.prefix + part, nn.ModuleDict())
        self.configs: dict[str, PointTunerConfig] = {}
        self._disable_adapters = False
        self._active_adapter = []
        self.merged_adapters = []
        self.train(base_layer.training)

    @property
    def slot(self) -> AdapterSlot:
        """The slot under this layer."""
        return self.get_base_layer()

    def part(self, name: str, adapter_name: str) -> nn.Module | None:
        """The module of a part, or `None` if the adapter has switched it off."""
        modules = getattr(self, self.prefix + name)
        return modules[adapter_name] if adapter_name in modules else None

    def working_adapters(self) -> tuple[str, ...]:
        """Names of the adapters that act in the next forward pass."""
        if self._disable_adapters:
            return ()
        return tuple(name for name in self.active_adapters if name in self.configs)

    def create_parts(self, adapter_name: str, config: PointTunerConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the modules of an adapter, by part. Parts that are left out are switched off.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            slot_name: Full name of the slot.
        """
        raise NotImplementedError(f"{type(self).__name__} must define create_parts.")

    def update_layer(self, adapter_name: str, config: PointTunerConfig, slot_name: str) -> None:
        """Add an adapter.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            slot_name: Full name of the slot.
        """
        for part, module in self.create_parts(adapter_name, config, slot_name).items():
            module.train(self.training)
            getattr(self, self.prefix + part)[adapter_name] = module
        self.configs[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_available_adapters(self) -> set[str]:
        return set(self.configs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see [`SlotTuner`]."""
        raise ValueError(_MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

    def unmerge(self) -> None:
        """Do nothing: there is never anything merged."""

    def extra_repr(self) -> str:
        return f"adapters={sorted(self.configs)}"


_MERGE_MESSAGE = (
    "An adapter of type {name} cannot be merged into the backbone: what it adds depends on the input, not only on weights. "
    "Use `unload()` to get the backbone back without it, or keep the adapter attached to predict."
)


class SlotTuner(BaseTuner):
    """Base of the tuners that attach to slots.

    Class attributes to set:
        prefix: Name of the type in lower case and "_".
        tuner_layer_cls: The class that all layers of the type derive from.
        layer_classes: By slot class, the layer that goes around it.
        default_target_modules: Names of the slots that the method uses.
    """

    layer_classes: ClassVar[dict[type[AdapterSlot], type[SlotLayer]]] = {}
    default_target_modules: ClassVar[tuple[str, ...]] = ()
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    # -- Choosing slots ------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: PointTunerConfig, model_config: dict) -> PointTunerConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(self.default_target_modules)
        return peft_config

    def _prepare_model(self, peft_config: PointTunerConfig, model: nn.Module) -> None:
        self._slots = {name: slot for name, slot in _named_slots(model)}
        if not self._slots:
            raise ValueError(
                f"{type(model).__name__} has no slots that an adapter of type {peft_config.peft_type.value} could attach "
                "to. Use a backbone of point_peft_hf (for example AutoModelForPointCloudClassification), or give your "
                "own blocks slots (see point_peft_hf.slots)."
            )
        if peft_config.modules_to_save is None:
            peft_config.modules_to_save = self._default_modules_to_save(peft_config, model)
        if peft_config.modules_to_save and not any(self.wants_slot(peft_config, s) for s in self._slots.values()):
            # Every part is switched off: an adapter that is nothing but a head. PEFT knows this by a name of its own.
            peft_config.target_modules = DUMMY_TARGET_MODULES
        peft_config.attach_to(describe_backbone(model, with_labels="classifier" in (peft_config.modules_to_save or ())))

    def _default_modules_to_save(self, peft_config: PointTunerConfig, model: nn.Module) -> list[str] | None:
        """Modules that belong to the task: without them in the file, an adapter could not be used anywhere else."""
        return list(getattr(model, "task_module_names", ())) or None

    def wants_slot(self, peft_config: PointTunerConfig, slot: AdapterSlot) -> bool:
        """Whether the configuration has anything to put around this slot."""
        return True

    def _check_target_module_exists(self, peft_config: PointTunerConfig, key: str) -> Any:
        slot = self._slots.get(key)
        # Slots know the number of their block, and those of a stage belong to every block: no need to read names.
        config = peft_config
        if slot is not None and not peft_config.layers_pattern or not isinstance(slot, BlockSlot):
            config = copy.copy(peft_config)
            config.layers_to_transform = None
        found = super()._check_target_module_exists(config, key)
        if not found or isinstance(found, _ExcludedModule) or slot is None:
            return found
        if isinstance(slot, BlockSlot) and not peft_config.layers_pattern:
            wanted = peft_config.layers_to_transform
            if wanted is not None and slot.layer_index not in ([wanted] if isinstance(wanted, int) else wanted):
                return False
        return self.wants_slot(peft_config, slot)

    # -- Attaching -----------------------------------------------------------------------------------------------------

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
        layer_class = self._layer_class(peft_config, target, current_key)
        existing = target
        while isinstance(existing, SlotLayer):
            if isinstance(existing, layer_class):
                existing.update_layer(adapter_name, peft_config, current_key)
                return
            existing = existing.base_layer
        layer = layer_class(target)
        layer._active_adapter = list(self.active_adapters)
        layer.update_layer(adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    def _layer_class(self, peft_config: PointTunerConfig, target: nn.Module, key: str) -> type[SlotLayer]:
        slot = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        for slot_class, layer_class in self.layer_classes.items():
            if isinstance(slot, slot_class):
                return layer_class
        names = ", ".join(sorted(slot_class.__name__ for slot_class in self.layer_classes))
        raise ValueError(
            f"An adapter of type {peft_config.peft_type.value} attaches to slots ({names}), but `target_modules` also "
            f"matches {key!r}, a {type(slot).__name__}. Leave `target_modules` out to use "
            f"{sorted(self.default_target_modules)}."
        )

    # -- What cannot be done -------------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise ValueError(_MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return `False`: what these adapters add is no change of a weight."""
        return False

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"`adapter_names`={kwargs['adapter_names']!r}: adapters of type {self.prefix.rstrip('_').upper()} cannot "
                "be mixed within one batch. Split the batch by adapter and call `set_adapter` between the parts."
            )
        yield

    # -- Files ---------------------------------------------------------------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Two types on one slot sit inside of each other; which one is outside must not show in a file.
        return super()._remove_adapter_name_from_key(key, adapter_name).replace("_slot.base_layer.", "_slot.")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            return
        # PEFT casts the parameters of an adapter to float32, but not its buffers (the statistics of a BatchNorm).
        for layer in self.model.modules():
            if isinstance(layer, SlotLayer) and adapter_name in layer.configs:
                for part in layer.parts:
                    module = layer.part(part, adapter_name)
                    for name, buffer in module.named_buffers() if module is not None else ():
                        if buffer.dtype in (torch.float16, torch.bfloat16):
                            setattr(module, name, buffer.float())


def bottleneck_size(config: PointTunerConfig, slot_name: str, default: int) -> int:
    """Width of the bottleneck at a slot: that of `bottleneck_pattern` if a pattern matches, else the default."""
    key = get_pattern_key(config.bottleneck_pattern.keys(), slot_name)
    return config.bottleneck_pattern.get(key, default)


def _named_slots(model: nn.Module) -> Iterator[tuple[str, AdapterSlot]]:
    for name, module in model.named_modules():
        slot = module.get_base_layer() if isinstance(module, SlotLayer) else module
        if isinstance(slot, AdapterSlot) and not name.endswith("base_layer"):
            yield name, slot
