"""The layers that 3D adapters put around the slots of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn

from ..slots import AdapterSlot, BranchSlot
from ..tokens import Tokens
from .config import PointTunerConfig
from .explain import Picture, References

HALF_PRECISION = (torch.float16, torch.bfloat16)
MERGE_MESSAGE = (
    "An adapter of type {name} cannot be merged into the backbone: what it adds depends on the input, not only on "
    "weights. Use `unload()` to get the backbone back without it, or keep the adapter attached to predict."
)


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
        if getattr(result.features if isinstance(result, Tokens) else result, "dtype", None) in HALF_PRECISION:
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
        raise ValueError(MERGE_MESSAGE.format(name=self.prefix.rstrip("_").upper()))

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
        if output.dtype in HALF_PRECISION:
            adapt_output, adapt_update = (partial(self.in_own_dtype, adapt) for adapt in (adapt_output, adapt_update))
        for name in names:
            output, tokens = adapt_output(name, output, inputs, tokens)
        update, tokens = self.base_layer(output, inputs, tokens, drop_path)
        for name in names:
            update, tokens = adapt_update(name, update, inputs, tokens)
        return update, tokens


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Features in another dtype; what has none stays as it is."""
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if isinstance(value, Tokens):
        return value.in_dtype(dtype)
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


def _parameters(module: nn.Module | None) -> Iterator[nn.Parameter]:
    return iter(()) if module is None else module.parameters()


def bottleneck_size(config: PointTunerConfig, slot_name: str, default: int) -> int:
    """Width of the bottleneck at a slot: that of `bottleneck_pattern` if a pattern matches, else the default."""
    key = get_pattern_key(config.bottleneck_pattern.keys(), slot_name)
    return config.bottleneck_pattern.get(key, default)
