"""The base of 3D adapter types: tuners that attach to slots, and the layers that they put there."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _ExcludedModule
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from torch import nn

from ..attaching import all_or_nothing, check_adapter_name, complete_modules_to_save, is_under
from ..io.backbone import HEADS, describe_backbone
from ..io.weights import check_file, check_loaded
from ..slots import AdapterSlot, BranchSlot, LayerSlot, ReadoutSlot, VoxelSlot
from ..tokens import Tokens
from .config import PointTunerConfig
from .embeddings import embedding_modules
from .explain import Picture, References
from .lifecycle import AdapterLifecycle
from .selection import Selection, matching, select_slots


class SlotLayer(nn.Module, BaseTunerLayer):
    """An adapter layer around a slot.

    A subclass says which kind of slot it goes around, names its `parts`, creates them for an adapter in
    `create_parts`, and says in `adapt` what the adapter makes of the slot's result. A part is one flat `ModuleDict`
    from adapter names to modules, stored as the attribute `<prefix><part>`: PEFT finds, saves, renames, freezes and
    deletes parts by these names.

    Args:
        base_layer: The slot, or the layer of another adapter type around it.
        prefix: What the parameters of the method start with: its name and "_".
    """

    # The kind of slot it goes around.
    slot_class: ClassVar[type[AdapterSlot]] = AdapterSlot
    # Outside of the blocks: the kinds of slots in the blocks that it does something for.
    serves: ClassVar[tuple[type[AdapterSlot], ...]] = (AdapterSlot,)
    # Trained, and saved.
    parts: ClassVar[tuple[str, ...]] = ()
    # At the start of a block: whether the tokens go on as they are, so that frozen blocks may be known already.
    only_reads: ClassVar[bool] = False
    # Saved, but not trained.
    buffer_parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, base_layer: nn.Module, prefix: str):
        super().__init__()
        self.base_layer = base_layer
        # The slot under this layer. Not registered: it is part of the base layer.
        self.__dict__["slot"] = base_layer.slot if isinstance(base_layer, SlotLayer) else base_layer
        self.prefix = prefix
        for part in (*self.parts, *self.buffer_parts):
            setattr(self, prefix + part, nn.ModuleDict())
        # What PEFT knows the parts by.
        names = tuple(self._modules)[1:]
        self.adapter_layer_names = names[: len(self.parts)]
        self.other_param_names = (*names[len(self.parts) :], "configs")
        self.configs: dict[str, PointTunerConfig] = {}
        self._disable_adapters = False
        self._active_adapter = []
        self._set_by_hand: set[str] = set()
        self.merged_adapters = []
        self.train(base_layer.training)

    # -- For a method -------------------------------------------------------------------------------------------------

    @classmethod
    def wants(cls, config: PointTunerConfig, slot: AdapterSlot) -> bool:
        """Whether there is anything to put around a slot of this kind, with this configuration."""
        return True

    def create_parts(self, adapter_name: str, config: PointTunerConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the modules of an adapter, by part. Parts that are left out are switched off.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            slot_name: Full name of the slot.
        """
        return {}

    def adapt(self, name: str, result: Any, *inputs: Any) -> Any:
        """What an adapter makes of the result of the slot.

        Args:
            name: Name of the adapter.
            result: What the slot, and the adapters before this one, return.
            *inputs: The other arguments of the slot's `forward`, after the first.
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt.")

    def shift(self) -> torch.Tensor | None:
        """What the adapters at work add to every row, of shape `(hidden_size,)`, if that is all they do.

        The layer in front of the slot then adds it with its own bias, and `forward` is not called.
        """
        return None

    def explain(self, name: str, result: Any, *inputs: Any) -> Iterable[Picture | References]:
        """What there is to show of what the layer has just done with one cloud; default: nothing.

        It is called for pictures, after `forward`, in eval mode and without gradient. Of layers in several blocks that
        show something of the same name, the last one counts.

        Args:
            name: Name of the adapter.
            result: What `forward` has returned.
            *inputs: What `forward` has got.
        """
        return ()

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Run the slot, then the adapters at work."""
        result = self.base_layer(value, *inputs)
        adapt = self.adapt
        if getattr(result.features if isinstance(result, Tokens) else result, "dtype", None) in _HALF:
            adapt = partial(self.in_own_dtype, adapt)
        for name in () if self._disable_adapters else self._active_adapter:
            if name in self.configs:
                result = adapt(name, result, *inputs)
        return result

    def in_own_dtype(self, adapt: Callable, name: str, result: Any, *inputs: Any) -> Any:
        """Call `adapt(name, result, *inputs)` in the dtype of the adapter, and return its result in the backbone's.

        PEFT keeps adapters in float32 on a backbone in half precision.
        """
        dtype = result.features.dtype if isinstance(result, Tokens) else result.dtype
        if torch.is_autocast_enabled(self.slot.weight.device.type):
            return adapt(name, result, *inputs)
        parameters = (p for part in self.parts for p in _parameters(self.part(part, name)))
        own = next((p.dtype for p in parameters), getattr(self.configs[name], "_adapter_dtype", None) or dtype)
        adapted = adapt(name, _cast(result, own), *(_cast(value, own) for value in inputs))
        return _cast(adapted, dtype)

    def key(self, adapter_name: str) -> str:
        """What an adapter's state, tokens and shared values go by: unique among all adapters of a model."""
        return self.prefix + adapter_name

    def part(self, name: str, adapter_name: str) -> nn.Module | None:
        """The module of a part, or `None` if the adapter has switched it off."""
        modules = self._modules[self.prefix + name]._modules
        return modules.get(adapter_name)

    def shared(self, name: str, tokens: Tokens, what: str, key: str | None = None) -> Any:
        """What the layer in front of the blocks shares with those in the blocks.

        Args:
            name: Name of the adapter.
            tokens: The tokens.
            what: What it is, for the message.
            key: What it goes by; default: the key of the adapter.

        Raises:
            ValueError: If the tokens did not pass the token slot.
        """
        value = tokens.cloud.shared.get(self.key(name) if key is None else key)
        if value is None:
            raise ValueError(
                f"Block {self.slot.layer_index} got no {what} of adapter {name!r}. Let its tokens pass the token slot "
                "first (see point_peft_hf.slots), and leave that slot out of `exclude_modules`."
            )
        return value

    def working_adapters(self) -> Sequence[str]:
        """Names of the adapters that act in the next forward pass."""
        if self._disable_adapters:
            return ()
        return [name for name in self._active_adapter if name in self.configs]

    # -- For PEFT -----------------------------------------------------------------------------------------------------

    @property
    def in_features(self) -> int:
        """Width of the tokens that come in, by the name that PEFT's layers have it."""
        return self.slot.hidden_size

    @property
    def out_features(self) -> int:
        """Width of the tokens that go out."""
        return self.slot.hidden_size

    def update_layer(self, adapter_name: str, config: PointTunerConfig, slot_name: str) -> None:
        """Add an adapter.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            slot_name: Full name of the slot.
        """
        # What is not active is not trained.
        is_trained = adapter_name in self._active_adapter and not config.inference_mode
        for part, module in self.create_parts(adapter_name, config, slot_name).items():
            module.train(self.training).requires_grad_(is_trained and part in self.parts)
            self._modules[self.prefix + part][adapter_name] = module
        self.configs[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters, and train them and no others; see PEFT's method of this name.

        PEFT goes through all adapters; here only those are looked at that were active or will be, or whose parameters
        `set_requires_grad` has changed since.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for part in self.adapter_layer_names:
            modules = self._modules[part]._modules
            for name in {*self._active_adapter, *names, *self._set_by_hand}:
                if name in modules:
                    modules[name].requires_grad_(name in names and not inference_mode)
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


class BranchLayer(SlotLayer):
    """An adapter layer around a [`~point_peft_hf.slots.BranchSlot`], inside or outside of stochastic depth."""

    slot_class = BranchSlot
    # The branch that it goes around, "attention" or "ffn"; `None` for both.
    branch: ClassVar[str | None] = None

    @classmethod
    def wants(cls, config: PointTunerConfig, slot: AdapterSlot) -> bool:
        """Whether it is the branch that the layer is for."""
        return cls.branch in (None, slot.branch)

    def adapt_output(
        self, name: str, output: torch.Tensor, inputs: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, Tokens]:
        """Change what the branch puts out, inside of stochastic depth.

        Args:
            name: Name of the adapter.
            output: Output of the branch, of shape `(batch_size, sequence_length, hidden_size)`.
            inputs: Its input, after the norm, of the same shape.
            tokens: The tokens; their features are the residual stream.
        """
        return output, tokens

    def adapt_update(
        self, name: str, update: torch.Tensor, inputs: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, Tokens]:
        """Change what is added to the residual stream, outside of stochastic depth; arguments likewise."""
        return update, tokens

    def forward(
        self, output: torch.Tensor, inputs: torch.Tensor, tokens: Tokens, drop_path: Callable[[torch.Tensor], Any]
    ) -> tuple[torch.Tensor, Tokens]:
        """Run the adapters at work around the slot."""
        names, adapt_output, adapt_update = self.working_adapters(), self.adapt_output, self.adapt_update
        if output.dtype in _HALF:
            adapt_output, adapt_update = (partial(self.in_own_dtype, adapt) for adapt in (adapt_output, adapt_update))
        for name in names:
            output, tokens = adapt_output(name, output, inputs, tokens)
        update, tokens = self.base_layer(output, inputs, tokens, drop_path)
        for name in names:
            update, tokens = adapt_update(name, update, inputs, tokens)
        return update, tokens


_HALF = (torch.float16, torch.bfloat16)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Features in another dtype; what has none stays as it is."""
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if isinstance(value, Tokens):
        return value.in_dtype(dtype)
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


def _parameters(module: nn.Module | None) -> Iterator[nn.Parameter]:
    return iter(()) if module is None else module.parameters()


# A slot, maybe one of a list, with a layer around it.
_NESTED_LAYER = re.compile(r"(_slots?(?:\.\d+)?)(?:\.base_layer)+\.")

_MERGE_MESSAGE = (
    "An adapter of type {name} cannot be merged into the backbone: what it adds depends on the input, not only on "
    "weights. Use `unload()` to get the backbone back without it, or keep the adapter attached to predict."
)


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
        raise ValueError(_MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

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
                        if buffer.dtype in _HALF:
                            setattr(inner, name, buffer.float())


def bottleneck_size(config: PointTunerConfig, slot_name: str, default: int) -> int:
    """Width of the bottleneck at a slot: that of `bottleneck_pattern` if a pattern matches, else the default."""
    key = get_pattern_key(config.bottleneck_pattern.keys(), slot_name)
    return config.bottleneck_pattern.get(key, default)


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
