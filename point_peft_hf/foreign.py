"""3D adapters on somebody else's point transformer: any `nn.Module` with a list of blocks, without subclassing ours.

Two steps. `add_slots` gives the blocks places that adapters attach to; it changes no weight and no key of the model.
The model's own forward pass then tells the blocks where their tokens are, with the one argument that is the whole
contract:

    context = slot_context(self, group_centers, num_prefix_tokens=1)
    for block in self.blocks:
        hidden_states = block(hidden_states, context)

From then on `get_peft_model` works with all adapter types. A model for Point-prior Prompts with a bank also defines
`extract_prior_features(points)`, with [`pretrained_behavior`] around what it runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .models.layers import pretrained_behavior
from .slots import (
    BiasSlot,
    BlockContext,
    FeedForwardSlot,
    LocalitySlot,
    OutputSlot,
    PriorSlot,
    PromptSlot,
    drop_prompts,
    prepare_context,
)

_NAMES = ("norm1", "attn", "norm2", "mlp")


class SlottedActivation(nn.Module):
    """The activation inside of a feed-forward network, behind a slot for the bias of the layer in front of it.

    Args:
        activation: The activation, without parameters.
        slot: The slot.
    """

    def __init__(self, activation: nn.Module, slot: BiasSlot):
        super().__init__()
        self.activation = activation
        self.fc1_bias_slot = slot

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `activation(hidden_states)`."""
        return self.activation(self.fc1_bias_slot(hidden_states))


class SlottedBlock(nn.Module):
    """A pre-norm block in the style of timm, with slots: x += attn(norm1(x)), x += mlp(norm2(x)).

    It takes over the modules, parameters and buffers of the block under the same names, so that no key of the model
    changes.
    Layer scales (`ls1`, `ls2`) and stochastic depth (`drop_path`, or `drop_path1` and `drop_path2`) are applied where
    the block has them.

    Args:
        block: The block.
        hidden_size: Width of its tokens.
        layer_index: Number of the block.
        num_layers: Number of blocks.
    """

    def __init__(self, block: nn.Module, hidden_size: int, layer_index: int, num_layers: int):
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        for name, parameter in block.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in block.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in block._non_persistent_buffers_set)
        place = (layer_index, num_layers)
        self.norm1_bias_slot = BiasSlot(hidden_size, *place)
        self.out_proj_bias_slot = BiasSlot(hidden_size, *place)
        self.norm2_bias_slot = BiasSlot(hidden_size, *place)
        self.fc2_bias_slot = BiasSlot(hidden_size, *place)
        self.prompt_slot = PromptSlot(hidden_size, *place)
        self.ffn_slot = FeedForwardSlot(hidden_size, *place)
        self.output_slot = OutputSlot(hidden_size, *place)
        # The bias of the first feed-forward layer can only be shifted from inside.
        first, activation = getattr(self.mlp, "fc1", None), getattr(self.mlp, "act", None)
        if isinstance(first, nn.Linear) and isinstance(activation, nn.Module) and not list(activation.parameters()):
            self.mlp.act = SlottedActivation(activation, BiasSlot(first.out_features, *place))
        self.train(block.training)

    def forward(self, hidden_states: torch.Tensor, context: BlockContext | None = None) -> torch.Tensor:
        """Run the block.

        Args:
            hidden_states: Tokens of shape `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
            context: What adapters must know of the clouds, from [`slot_context`]. Without adapters it may be left out.

        Returns:
            Tokens of the same shape.
        """
        hidden_states, prompts = self.prompt_slot(hidden_states, context)
        attended = self.out_proj_bias_slot(self.attn(self.norm1_bias_slot(self.norm1(hidden_states))))
        hidden_states = hidden_states + self._branch(attended, "1")
        ffn_output = self.fc2_bias_slot(self.mlp(self.norm2_bias_slot(self.norm2(hidden_states))))
        hidden_states = hidden_states + self.ffn_slot(self._branch(ffn_output, "2"), hidden_states, context)
        hidden_states = self.output_slot(hidden_states, context, prompts)
        return drop_prompts(hidden_states, context, prompts)

    def _branch(self, hidden_states: torch.Tensor, number: str) -> torch.Tensor:
        for name in (f"ls{number}", f"drop_path{number}", "drop_path"):
            module = getattr(self, name, None)
            if module is not None:
                hidden_states = module(hidden_states)
        return hidden_states


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
        model: The model. Its forward pass must call the blocks as `block(hidden_states, context)`, with a context from
            [`slot_context`].
        blocks: Name of the list of blocks in the model, such as "blocks" or "encoder.layers".
        hidden_size: Width of the tokens.
        group_size: Number of points of a group; half of it is the default size of a neighbourhood.
        block_class: What a block becomes; called with the block, `hidden_size`, the number of the block and the number
            of blocks. The default is for blocks in the style of timm (`norm1`, `attn`, `norm2`, `mlp`). For others
            write a class with the same slots and the forward pass of your block.
        task_modules: Names of the modules that belong to the task (the head), which adapters train and save by
            default.
        final_norms: Names of the norms behind the last block, which [`PointPeftConfig`] tunes as well.

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
    slotted = []
    for index, block in enumerate(layers):
        if any(isinstance(module, PromptSlot) for module in block.modules()):
            raise ValueError(f"The blocks of {type(model).__name__} have slots already: call `add_slots` only once.")
        if block_class is SlottedBlock:
            _check_block(block, f"{blocks}.{index}")
        slotted.append(block_class(block, hidden_size, index, len(layers)))
    for index, block in enumerate(slotted):
        layers[index] = block
    model.prior_slot = PriorSlot(hidden_size)
    model.locality_slot = LocalitySlot(hidden_size, group_size)
    model.slotted_blocks_name = blocks
    model.task_module_names = tuple(task_modules)
    model.final_norm_names = tuple(final_norms)
    return model


def slot_context(
    model: nn.Module,
    group_centers: torch.Tensor,
    *,
    num_prefix_tokens: int = 0,
    query_features: torch.Tensor | None = None,
    sample_ids: torch.Tensor | None = None,
) -> BlockContext:
    """Tell the adapters of a model about the clouds, once in a forward pass; pass what it returns to every block.

    Args:
        model: A model that [`add_slots`] was called on.
        group_centers: Where the patch tokens are, of shape `(batch_size, num_groups, 3)`, in the order of the tokens
            and in the unit of the cloud.
        num_prefix_tokens: Number of tokens in front of the patch tokens that belong to no place (the class token).
        query_features: Features that a point-prior bank is asked with, of shape `(batch_size, hidden_size)`: what
            `model.extract_prior_features(points)` returns. Needed if `model.prior_slot.needs_query_features`.
        sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`. Needed in training by adapters
            that leave a cloud's own entry out of its bank.

    Returns:
        The context.

    Raises:
        ValueError: If the model has no slots, or the centres have the wrong shape.
    """
    if not hasattr(model, "slotted_blocks_name"):
        raise ValueError(f"{type(model).__name__} has no slots: call `add_slots(model, ...)` first.")
    if group_centers.ndim != 3 or group_centers.shape[-1] != 3:
        raise ValueError(
            f"`group_centers` must have shape (batch_size, num_groups, 3), got {tuple(group_centers.shape)}."
        )
    context = BlockContext(group_centers, num_prefix_tokens, query_features, sample_ids=sample_ids)
    prompt_slots = [block.prompt_slot for block in model.get_submodule(model.slotted_blocks_name)]
    return prepare_context(context, prompt_slots, model.prior_slot, model.locality_slot)


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
            f"{name}, a {type(block).__name__}, has no {', '.join(missing)}: it is no block in the style of timm. "
            "Pass `block_class`, a class with the slots of SlottedBlock and the forward pass of your block."
        )


__all__ = ["SlottedBlock", "add_slots", "pretrained_behavior", "slot_context"]
