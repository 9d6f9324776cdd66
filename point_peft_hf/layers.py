"""Layers that backbones and adapters are both made of."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class FreezableBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation that uses and keeps its running statistics while its parameters are frozen.

    `nn.BatchNorm1d` goes on updating its running statistics in train mode even if its weight and bias are frozen, so a
    "frozen" backbone drifts away from the weights that an adapter is saved for. Here frozen means frozen, with nothing
    to switch: no parameter asks for a gradient, so nothing changes.

    Shapes:
        - input: `(rows, num_features)` or `(batch_size, num_features, length)`
        - output: as the input
    """

    # Called with what is about to be normalised; see `training.batch_norm.estimate_statistics`.
    observer: Callable[[torch.Tensor], None] | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter of this layer is trained."""
        return not (self.weight.requires_grad or self.bias.requires_grad)

    @property
    def uses_running_stats(self) -> bool:
        """Whether the next forward pass normalises by the running statistics."""
        return not self.training or self.is_frozen

    def forward(self, hidden_states: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Normalise `hidden_states`, in any case by the running statistics if `frozen`."""
        if self.observer is not None:
            self.observer(hidden_states)
        if not (frozen or self.uses_running_stats):
            if hidden_states.numel() < 2 * self.num_features:
                raise ValueError(
                    f"Batch normalisation cannot be trained on a batch of one value a channel, got an input of shape "
                    f"{tuple(hidden_states.shape)}. Use a batch size of at least 2 (for the last batch of an epoch: "
                    "`drop_last=True`), or call `model.eval()` to predict."
                )
            if self._is_recomputing():
                # Gradient checkpointing runs a block twice; its statistics must count once.
                mean, variance = self.running_mean.clone(), self.running_var.clone()
                return F.batch_norm(hidden_states, mean, variance, self.weight, self.bias, True, 0.0, self.eps)
            return super().forward(hidden_states)
        return F.batch_norm(
            hidden_states, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    @staticmethod
    def _is_recomputing() -> bool:
        """Whether this forward pass belongs to a backward pass, as it does under gradient checkpointing."""
        return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

    def folded_scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and shift, of shape `(num_features,)`, with which this layer maps x to x * scale + shift."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class DropPath(nn.Module):
    """Drop a residual branch of whole samples in training (stochastic depth, arXiv 1603.09382).

    Args:
        rate: Probability with which the branch of a sample is dropped, 0 to below 1.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Set whole samples of `hidden_states`, of shape `(batch_size, ...)`, to 0 and scale the others up."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1.0 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Describe the layer where the model is printed."""
        return f"rate={self.rate:.3f}"


class TaskModule(nn.Module):
    """A module of a task, trained and saved as a whole by adapters (PEFT's `modules_to_save`).

    When PEFT unloads an adapter it copies the attribute `weight` from the wrapper of such a module to the module,
    whether it has one or not. So these modules have one to read, and setting it to what it is already does nothing.
    """

    @property
    def weight(self) -> torch.Tensor:
        """The first parameter."""
        return next(self.parameters())

    def __setattr__(self, name: str, value) -> None:
        if name == "weight" and value is self.weight:
            return
        super().__setattr__(name, value)


def add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return target + scale * left @ right in the dtype of `target`, in one pass where that is possible.

    Args:
        target: Of shape `(rows, columns)` or `(batch_size, rows, columns)`.
        left: Of shape `(..., rows, inner_size)`.
        right: Of shape `(..., inner_size, columns)`.
        scale: A factor.
    """
    # Autocast would return the sum, not only the product, in its lower precision.
    if not target.dtype == left.dtype == right.dtype or torch.is_autocast_enabled(target.device.type):
        return target + scale * (left @ right).to(target.dtype)
    return (torch.addmm if target.dim() == 2 else torch.baddbmm)(target, left, right, alpha=scale)


def recompute_in_backward(function: Callable[..., torch.Tensor], *arguments) -> torch.Tensor:
    """Call a function, but keep only its arguments for the backward pass, which calls it again."""
    # The compiler decides on its own what it keeps.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


def with_known_value(
    value: torch.Tensor, function: Callable[..., torch.Tensor], *arguments: torch.Tensor
) -> torch.Tensor:
    """Return what `function(*arguments)` would, whose value is known: it is only called in the backward pass.

    Args:
        value: The value.
        function: How to compute it; what it is differentiable with respect to gets a gradient.
        *arguments: Its arguments.
    """
    if torch.compiler.is_compiling():
        return function(*arguments)
    return _KnownValue.apply(function, value, *arguments)


class _KnownValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, value, *arguments):
        ctx.function = function
        ctx.save_for_backward(*arguments)
        return value.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        arguments = [argument.detach().requires_grad_() for argument in ctx.saved_tensors]
        with torch.enable_grad():
            value = ctx.function(*arguments)
        if not value.requires_grad:
            return None, None, *(None for _ in arguments)
        return None, None, *torch.autograd.grad(value, arguments, grad)
