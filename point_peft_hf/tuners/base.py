"""The base of 3D adapter types: tuners that attach to slots, and the layers that they put there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from torch import nn

from ..slots import AdapterSlot, BlockSlot, LocalitySlot, OutputSlot, PromptSlot
from .config import PointTunerConfig, describe_backbone
from .loading import check_loaded, check_saved_modules


class SlotLayer(nn.Module, BaseTunerLayer):
    """An adapter layer around a slot.

    A subclass names its `parts`, and creates them for an adapter in `create_parts`. A part is one flat `ModuleDict`
    from adapter names to modules, stored as the attribute `<prefix><part>`: PEFT finds, saves, renames, freezes and
    deletes parts by these names.

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
        self._set_by_hand: set[str] = set()
        self.merged_adapters = []
        self.train(base_layer.training)

    @property
    def slot(self) -> AdapterSlot:
        """The slot under this layer."""
        return self.get_base_layer()

    @property
    def in_features(self) -> int:
        """Width of the tokens that come in, by the name that PEFT's layers have it."""
        return self.slot.hidden_size

    @property
    def out_features(self) -> int:
        """Width of the tokens that go out."""
        return self.slot.hidden_size

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
            # What is not active is not trained.
            module.train(self.training).requires_grad_(False)
            getattr(self, self.prefix + part)[adapter_name] = module
        self.configs[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters, and train them and no others; see PEFT's method of this name.

        PEFT goes through all adapters; here only those are looked at that were active or will be, or whose parameters
        `set_requires_grad` has changed since.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in {*self.active_adapters, *names, *self._set_by_hand}:
            for part in self.parts:
                module = self.part(part, name)
                if module is not None:
                    module.requires_grad_(name in names and not inference_mode)
        self._active_adapter = names
        self._set_by_hand = set()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Train adapters or not, whether active or not; see PEFT's method of this name."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._set_by_hand |= {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)

    def _get_available_adapters(self) -> set[str]:
        return set(self.configs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see [`SlotTuner`]."""
        raise ValueError(_MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

    def unmerge(self) -> None:
        """Do nothing: there is never anything merged."""

    def extra_repr(self) -> str:
        """The names of the adapters, for `print(model)`."""
        return f"adapters={sorted(self.configs)}"


_MERGE_MESSAGE = (
    "An adapter of type {name} cannot be merged into the backbone: what it adds depends on the input, not only on "
    "weights. Use `unload()` to get the backbone back without it, or keep the adapter attached to predict."
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

    # -- Choosing slots -----------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: PointTunerConfig, model_config: dict) -> PointTunerConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(self.default_target_modules)
        return peft_config

    def _prepare_model(self, peft_config: PointTunerConfig, model: nn.Module) -> None:
        # All that can be wrong is found here, before anything is attached.
        self._slots = dict(_named_slots(model))
        if not self._slots:
            raise ValueError(
                f"{type(model).__name__} has no slots that an adapter of type {peft_config.peft_type.value} could "
                "attach to. Use a backbone of point_peft_hf (for example AutoModelForPointCloudClassification), or "
                "give your own blocks slots (see point_peft_hf.foreign.add_slots)."
            )
        if peft_config.modules_to_save is None:
            peft_config.modules_to_save = self._default_modules_to_save(peft_config, model)
        if peft_config.modules_to_save and not any(self._has_use_for(peft_config, s) for s in self._slots.values()):
            # Every part is switched off: an adapter that is nothing but a head. PEFT knows this by a name of its own.
            peft_config.target_modules = DUMMY_TARGET_MODULES
        self._check_targets(peft_config, model)
        # First whether it is the backbone that the adapter was made for: that says more than a module it lacks.
        peft_config.attach_to(describe_backbone(model, peft_config.modules_to_save or ()))
        _check_modules_to_save(peft_config, model)
        check_saved_modules(model, peft_config)

    def _check_targets(self, peft_config: PointTunerConfig, model: nn.Module) -> None:
        """Check that `target_modules` names slots of this type, and blocks that exist."""
        if peft_config.target_modules == DUMMY_TARGET_MODULES:
            return
        self._check_targets_exist(peft_config)
        inside = tuple(name + "." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
        by_name = copy.copy(peft_config)
        by_name.layers_to_transform = None
        supported = tuple(self.layer_classes)
        for name, module in model.named_modules():
            # An expression may well match more slots than a type has a use for; a list of names says what is meant.
            is_slot = name in self._slots
            if is_slot and (isinstance(self._slots[name], supported) or isinstance(peft_config.target_modules, str)):
                continue
            found = bool(name) and not name.startswith(inside) and super()._check_target_module_exists(by_name, name)
            if found and not isinstance(found, _ExcludedModule):
                wrong = self._slots[name] if is_slot else module
                names = ", ".join(sorted(slot_class.__name__ for slot_class in supported))
                raise ValueError(
                    f"An adapter of type {peft_config.peft_type.value} attaches to slots ({names}), but "
                    f"`target_modules` also matches {name!r}, a {type(wrong).__name__}. Leave `target_modules` out "
                    f"to use {sorted(self.default_target_modules)}."
                )
        blocks = {name: slot for name, slot in self._slots.items() if isinstance(slot, BlockSlot)}
        if peft_config.layers_to_transform is not None and not any(
            self._check_target_module_exists(peft_config, name) is True for name in blocks
        ):
            depth = getattr(peft_config, "prompt_depth", None)
            raise ValueError(
                f"`layers_to_transform`={peft_config.layers_to_transform!r} leaves no block to attach to: the "
                f"backbone has blocks 0 to {max((slot.layer_index for slot in blocks.values()), default=-1)}"
                + (f", and `prompt_depth`={depth} takes the first {depth} of them." if depth is not None else ".")
            )

    def _check_targets_exist(self, peft_config: PointTunerConfig) -> None:
        targets = peft_config.target_modules
        wanted = [targets] if isinstance(targets, str) else sorted(set(targets) - set(self.default_target_modules))
        for target in wanted:
            by_name = copy.copy(peft_config)
            by_name.target_modules = target if isinstance(targets, str) else {target}
            by_name.exclude_modules = by_name.layers_to_transform = None
            if not any(super(SlotTuner, self)._check_target_module_exists(by_name, name) for name in self._slots):
                known = sorted({name.rpartition(".")[2] for name in self._slots})
                raise ValueError(
                    f"`target_modules` has {target!r}, but the backbone has no such slot. Its slots are {known}."
                )

    def _default_modules_to_save(self, peft_config: PointTunerConfig, model: nn.Module) -> list[str] | None:
        """Modules that belong to the task: without them in the file, an adapter could not be used anywhere else."""
        return list(getattr(model, "task_module_names", ())) or None

    def wants_slot(self, peft_config: PointTunerConfig, slot: AdapterSlot) -> bool:
        """Whether the configuration has anything to put around this slot.

        Args:
            peft_config: The configuration.
            slot: A slot of one of the kinds in `layer_classes`.
        """
        return True

    def _has_use_for(self, peft_config: PointTunerConfig, slot: AdapterSlot) -> bool:
        return isinstance(slot, tuple(self.layer_classes)) and self.wants_slot(peft_config, slot)

    def _check_target_module_exists(self, peft_config: PointTunerConfig, key: str) -> Any:
        slot = self._slots.get(key)
        if slot is not None and not isinstance(slot, BlockSlot):
            return self._serves_a_block(peft_config, key, slot)
        # Slots know the number of their block: no need to read names.
        config = peft_config
        if slot is not None and not peft_config.layers_pattern:
            config = copy.copy(peft_config)
            config.layers_to_transform = None
        found = super()._check_target_module_exists(config, key)
        if not found or isinstance(found, _ExcludedModule) or slot is None:
            return found
        wanted = peft_config.layers_to_transform
        if not peft_config.layers_pattern and wanted is not None:
            if slot.layer_index not in ([wanted] if isinstance(wanted, int) else wanted):
                return False
        return self._has_use_for(peft_config, slot)

    def _serves_a_block(self, peft_config: PointTunerConfig, key: str, slot: AdapterSlot) -> bool:
        """Whether a slot before the blocks of a stage prepares anything for a block that is attached to.

        Such slots follow from the blocks: whoever names blocks in `target_modules` need not know of them.
        """
        # Retrieval for the prompts goes through all stages, neighbourhoods belong to one.
        kind, stage = (OutputSlot, key.rpartition(".")[0]) if isinstance(slot, LocalitySlot) else (PromptSlot, "")
        usable = self._has_use_for(peft_config, slot)
        return usable and any(
            isinstance(other, kind)
            and name.startswith(stage)
            and self._check_target_module_exists(peft_config, name) is True
            for name, other in self._slots.items()
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
        for layer in self.model.modules():
            if isinstance(layer, self.tuner_layer_cls) and adapter_name in layer.configs:
                # PEFT has put the new configuration in the place of the attached one already.
                self.peft_config[adapter_name] = layer.configs[adapter_name]
                raise ValueError(
                    f"The model already carries an adapter {adapter_name!r} of type {type_name}: `get_peft_model` "
                    "was called on it before. Use another `adapter_name`, or call `unload()` first."
                )
        if any(name != adapter_name and other is config for name, other in self.peft_config.items()):
            # Adapters that were made from one object may get banks of different sizes.
            self.peft_config[adapter_name] = copy.copy(config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

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
        slot = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        layer_class = next(layer for slot_class, layer in self.layer_classes.items() if isinstance(slot, slot_class))
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
        raise ValueError(_MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        """Refuse: what these adapters compute is not linear in their weights."""
        raise ValueError(
            f"Adapters of type {self.prefix.rstrip('_').upper()} cannot be averaged: what they compute is not linear "
            "in their weights. Activate several at once with `set_adapter` of `model.base_model`, or average their "
            "predictions."
        )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return `False`: what these adapters add is no change of a weight."""
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
        # Two types on one slot sit inside of each other; which one is outside must not show in a file.
        return super()._remove_adapter_name_from_key(key, adapter_name).replace("_slot.base_layer.", "_slot.")

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


def _check_modules_to_save(config: PointTunerConfig, model: nn.Module) -> None:
    """Check that `modules_to_save` names modules of the model, which PEFT would go on without."""
    names = [name for name, _ in model.named_modules() if name]
    unknown = [wanted for wanted in config.modules_to_save or () if not any(n.endswith(wanted) for n in names)]
    # For its own task types PEFT adds names of heads that a model may have.
    if unknown and config.task_type is None:
        raise ValueError(
            f"`modules_to_save` has {unknown}, but {type(model).__name__} has no such modules. Those that it declares "
            f"as part of the task are {list(getattr(model, 'task_module_names', ()))}."
        )


def _named_slots(model: nn.Module) -> Iterator[tuple[str, AdapterSlot]]:
    for name, module in model.named_modules():
        slot = module.get_base_layer() if isinstance(module, SlotLayer) else module
        if isinstance(slot, AdapterSlot) and not name.endswith("base_layer"):
            yield name, slot
