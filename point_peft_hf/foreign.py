"""3D adapters on somebody else's point transformer: any `nn.Module` with a list of blocks, without subclassing ours.

Two steps. `add_slots` gives the blocks places that adapters attach to; it changes no weight and no key of the model.
The model's own forward pass then hands its blocks tokens that know where they are:

    tokens = enter_blocks(self, hidden_states, group_centers, num_prefix_tokens=1)
    for block in self.blocks:
        tokens = block(tokens)
    hidden_states = tokens.own()

From then on `get_peft_model` works with all adapter types that need no more than this. A model for Point-prior Prompts
with a bank also passes `points` and defines `frozen_features(points)`, which runs its blocks with `frozen=True` and
takes other layers through [`original`].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .models.layers import check_not_trained, original
from .slots import AdapterSlot, Backbone, BranchSlot, EntrySlot, LayerSlot, OutputSlot, PointSlot, Stage, TokenSlot
from .tokens import Cloud, Memo, Tokens, start_tokens

_NAMES = ("norm1", "attn", "norm2", "mlp")


class SlottedActivation(nn.Module):
    """The activation inside of a feed-forward network, after a slot for the layer in front of it."""

    def __init__(self, activation: nn.Module, slot: LayerSlot):
        super().__init__()
        self.activation = activation
        self.fc1_slot = slot

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `activation(hidden_states)`."""
        return self.activation(self.fc1_slot(hidden_states, hidden_states))


class SlottedBlock(nn.Module):
    """A pre-norm block in the style of timm, with slots: x += attn(norm1(x)), x += mlp(norm2(x)).

    It takes over the modules, parameters and buffers of the block under the same names, so that no key of the model
    changes.
    Layer scales (`ls1`, `ls2`) and stochastic depth (`drop_path`, or `drop_path1` and `drop_path2`) are applied where
    the block has them.

    Args:
        block: The block.
        stage: What all blocks work on.
        layer_index: Number of the block.
    """

    def __init__(self, block: nn.Module, stage: Stage, layer_index: int):
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        for name, parameter in block.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in block.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in block._non_persistent_buffers_set)
        self.entry_slot = EntrySlot(stage, layer_index)
        self.norm1_slot = LayerSlot(stage, "norm1", layer_index)
        self.out_proj_slot = LayerSlot(stage, "out_proj", layer_index)
        self.attention_slot = BranchSlot(stage, layer_index, "attention")
        self.norm2_slot = LayerSlot(stage, "norm2", layer_index)
        self.fc2_slot = LayerSlot(stage, "fc2", layer_index)
        self.ffn_slot = BranchSlot(stage, layer_index, "ffn")
        self.output_slot = OutputSlot(stage, layer_index)
        # The bias of the first feed-forward layer can only be shifted from inside.
        first, activation = getattr(self.mlp, "fc1", None), getattr(self.mlp, "act", None)
        if isinstance(first, nn.Linear) and isinstance(activation, nn.Module) and not list(activation.parameters()):
            self.mlp.act = SlottedActivation(activation, LayerSlot(stage, "fc1", layer_index, first.out_features))
        self.train(block.training)

    def forward(self, tokens: Tokens | torch.Tensor, frozen: bool = False) -> Tokens | torch.Tensor:
        """Run the block.

        Args:
            tokens: Tokens from [`enter_blocks`]. Without adapters also plain features of shape
                `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
            frozen: Whether to run it as it was pre-trained: without adapters, dropout and stochastic depth.

        Returns:
            What was passed in, adapted.

        Raises:
            ValueError: If an adapter gets plain features, which do not know where they are.
        """
        if isinstance(tokens, torch.Tensor):
            self._check_no_adapter()
            return self.forward(start_tokens(tokens, None, Cloud(tokens, tokens)), frozen).features
        if frozen:
            return self._run_frozen(tokens)
        tokens = self.entry_slot(tokens)
        hidden_states = tokens.embedded()
        inputs = self.norm1_slot(self.norm1(hidden_states), hidden_states)
        output = self.out_proj_slot(self.attn(inputs), inputs)
        tokens = tokens.with_features(hidden_states)
        update, tokens = self.attention_slot(output, inputs, tokens, lambda x: self._branch(x, "1"))
        hidden_states = hidden_states + update
        inputs = self.norm2_slot(self.norm2(hidden_states), hidden_states)
        output = self.fc2_slot(self.mlp(inputs), inputs)
        tokens = tokens.with_features(hidden_states)
        update, tokens = self.ffn_slot(output, inputs, tokens, lambda x: self._branch(x, "2"))
        return self.output_slot(tokens.with_features(hidden_states + update)).drop_passing()

    def _branch(self, hidden_states: torch.Tensor, number: str, modules: Mapping | None = None) -> torch.Tensor:
        modules = self._modules if modules is None else modules
        for name in (f"ls{number}", f"drop_path{number}", "drop_path"):
            if name in modules:
                hidden_states = modules[name](hidden_states)
        return hidden_states

    def _run_frozen(self, tokens: Tokens) -> Tokens:
        parts = {name: frozen_view(module) for name, module in self.named_children() if not name.endswith("_slot")}
        hidden_states = tokens.embedded()
        attended = parts["attn"](parts["norm1"](hidden_states))
        hidden_states = hidden_states + self._branch(attended, "1", parts)
        update = self._branch(parts["mlp"](parts["norm2"](hidden_states)), "2", parts)
        return tokens.with_features(hidden_states + update)

    def _check_no_adapter(self) -> None:
        for name, module in self.named_children():
            if name.endswith("_slot") and not isinstance(module, AdapterSlot):
                index = module.get_base_layer().layer_index
                raise ValueError(
                    f"The adapter at {name} of block {index} got no geometry: the block was called with plain "
                    "features. Pass it the tokens of `enter_blocks(model, hidden_states, "
                    "group_centers)` (see point_peft_hf.foreign)."
                )


def frozen_view(module: nn.Module) -> nn.Module:
    """A copy of a module as it was pre-trained, in eval mode: the same weights, no adapters."""
    module = original(module)
    if isinstance(module, SlottedActivation):
        return frozen_view(module.activation)
    view = copy.copy(module)
    view.__dict__["_modules"] = {
        name: None if child is None else frozen_view(child) for name, child in module._modules.items()
    }
    view.__dict__["training"] = False
    return view


class ForeignBackbone(Backbone):
    """What adapters in front of the blocks may ask of somebody else's model."""

    def frozen_features(self, cloud: Cloud) -> torch.Tensor:
        """Features of the model as it was pre-trained, of shape `(batch_size, hidden_size)`."""
        name = type(self._model).__name__
        if not hasattr(self._model, "frozen_features"):
            raise ValueError(
                f"A point-prior bank is asked with features of the pre-trained model, but {name} has no method "
                "`frozen_features(points)`. Define it (see point_peft_hf.foreign), or set `use_bank=False`."
            )
        if cloud.source is cloud.points and cloud.memo.values.get("foreign.has_points") is None:
            raise ValueError(
                f"A point-prior bank is asked with features of the pre-trained model, which {name} can only compute "
                "from the clouds. Pass `points` to `enter_blocks`."
            )
        return self._model.frozen_features(cloud.source)

    def frozen_tokens(self, cloud: Cloud, depth: int | None = None) -> Tokens:
        """Refuse: a foreign model has no such way."""
        raise ValueError(
            f"`query='tokens'` needs a backbone of point_peft_hf, but {type(self._model).__name__} is not one. Use "
            "'encoder'."
        )

    def check_frozen(self, reason: str) -> None:
        """Check that nothing is trained of the pre-trained model; see the backbones of this package."""
        check_not_trained(self._model, reason)


def add_slots(
    model: nn.Module,
    blocks: str = "blocks",
    *,
    hidden_size: int,
    group_size: int,
    block_class: type[nn.Module] = SlottedBlock,
    task_modules: Iterable[str] = (),
    final_norms: Iterable[str] = (),
) -> nn.Module:
    """Give the blocks of a model the slots that 3D adapters attach to. No weight and no key of the model changes.

    Args:
        model: The model. Its forward pass must call the blocks as `tokens = block(tokens)`, with the tokens of
            [`enter_blocks`].
        blocks: Name of the list of blocks in the model, such as "blocks" or "encoder.layers".
        hidden_size: Width of the tokens.
        group_size: Number of points of a group; half of it is the default size of a neighbourhood.
        block_class: What a block becomes; called with the block, the [`~point_peft_hf.slots.Stage`] and the number of
            the block. The default is for blocks in the style of timm (`norm1`, `attn`, `norm2`, `mlp`). For others
            write a class with the same slots and the forward pass of your block.
        task_modules: Names of the modules that belong to the task (the head), which adapters train and save by
            default.
        final_norms: Names of the norms after the last block, which [`PointPeftConfig`] tunes as well.

    Returns:
        The model itself.

    Raises:
        ValueError: If there is no such list, if its blocks do not look as expected, or if it has slots already.
    """
    try:
        layers = model.get_submodule(blocks)
    except AttributeError:
        lists = [name for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
        raise ValueError(
            f"{type(model).__name__} has no module {blocks!r}. Pass the name of its list of blocks as `blocks`; it "
            f"has the lists {lists}."
        ) from None
    if not isinstance(layers, (nn.ModuleList, nn.Sequential)) or not len(layers):
        raise ValueError(f"`blocks`={blocks!r} must name a ModuleList of blocks, but it is a {type(layers).__name__}.")
    _check_names(model, task_modules, "task_modules")
    _check_names(model, final_norms, "final_norms")
    stage, slotted = Stage(hidden_size, group_size, len(layers)), []
    for index, block in enumerate(layers):
        if any(isinstance(module, EntrySlot) for module in block.modules()):
            raise ValueError(f"The blocks of {type(model).__name__} have slots already: call `add_slots` only once.")
        if block_class is SlottedBlock:
            _check_block(block, f"{blocks}.{index}")
        slotted.append(block_class(block, stage, index))
    for index, block in enumerate(slotted):
        layers[index] = block
    model.point_slot = PointSlot(stage)
    model.token_slot = TokenSlot(stage)
    model.task_module_names = tuple(task_modules)
    model.final_norm_names = tuple(final_norms)
    return model


def enter_blocks(
    model: nn.Module,
    hidden_states: torch.Tensor,
    group_centers: torch.Tensor,
    *,
    num_prefix_tokens: int = 0,
    positions: torch.Tensor | None = None,
    points: torch.Tensor | None = None,
    sample_ids: torch.Tensor | None = None,
    precomputed: dict[str, torch.Tensor] | None = None,
    frozen: bool = False,
) -> Tokens:
    """The tokens that enter the blocks of a model, once in a forward pass.

    Args:
        model: A model that [`add_slots`] was called on.
        hidden_states: Features of shape `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
        group_centers: Where the patch tokens are, of shape `(batch_size, num_groups, 3)`, in the order of the tokens
            and in the unit of the cloud.
        num_prefix_tokens: Number of tokens in front of the patch tokens that belong to no place (the class token).
        positions: Position embeddings that every block adds to its input, of the shape of `hidden_states`; leave them
            out if they are added already.
        points: The clouds, of shape `(batch_size, num_points, 3)`, for adapters that ask a bank.
        sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`. Needed in training by adapters
            that leave a cloud's own entry out of its bank.
        precomputed: What adapters need not compute again, by name.
        frozen: Whether these tokens are for blocks that run with `frozen=True`.

    Returns:
        The tokens.

    Raises:
        ValueError: If the model has no slots, the centres have the wrong shape, or an adapter changes the points.
    """
    if not hasattr(model, "token_slot"):
        raise ValueError(f"{type(model).__name__} has no slots: call `add_slots(model, ...)` first.")
    if group_centers.ndim != 3 or group_centers.shape[-1] != 3:
        raise ValueError(
            f"`group_centers` must have shape (batch_size, num_groups, 3), got {tuple(group_centers.shape)}."
        )
    given = group_centers if points is None else points
    cloud = Cloud(given, given, sample_ids, Memo(precomputed))
    tokens = start_tokens(hidden_states, group_centers, cloud, positions, num_prefix_tokens)
    if frozen:
        return tokens
    cloud.memo.values["foreign.has_points"] = None if points is None else True
    backbone = ForeignBackbone(model)
    cloud = model.point_slot(cloud, backbone)
    if cloud.points is not given:
        raise ValueError(
            f"An adapter changes the points before they are grouped, which {type(model).__name__} has done already. "
            "Use a backbone of point_peft_hf for this adapter."
        )
    return model.token_slot(start_tokens(hidden_states, group_centers, cloud, positions, num_prefix_tokens), backbone)


def _check_names(model: nn.Module, names: Iterable[str], field: str) -> None:
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in names:
        if name not in modules:
            raise ValueError(
                f"`{field}` names {name!r}, but {type(model).__name__} has no such module. Parameters outside of a "
                "module, such as a class token, can only be trained and saved with an adapter if a module holds them."
            )


def _check_block(block: nn.Module, name: str) -> None:
    missing = [part for part in _NAMES if not isinstance(getattr(block, part, None), nn.Module)]
    if missing:
        raise ValueError(
            f"{name}, a {type(block).__name__}, has no {', '.join(missing)}: it is not a block in the style of timm. "
            "Pass `block_class`, a class with the slots of SlottedBlock and the forward pass of your block."
        )


__all__ = ["SlottedBlock", "add_slots", "enter_blocks", "original"]
