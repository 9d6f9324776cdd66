"""Batch normalisation in training: over the clouds of all processes, and with exact statistics to evaluate with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import distributed, nn

from ..layers import FreezableBatchNorm1d


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; each process's share gets the gradients of all."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient


class SyncFreezableBatchNorm1d(FreezableBatchNorm1d):
    """A `FreezableBatchNorm1d` that normalises by mean and variance over the rows of all processes.

    `nn.SyncBatchNorm` of PyTorch needs a GPU, and goes on counting while it is frozen; this one works everywhere.

    Shapes:
        - input: `(rows, num_features)` or `(batch_size, num_features, length)`
        - output: as the input
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise `hidden_states`."""
        if self.uses_running_stats or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return super().forward(hidden_states)
        if self.observer is not None:
            self.observer(hidden_states)
        dims = [0] if hidden_states.ndim == 2 else [0, 2]
        shape = (1, -1) if hidden_states.ndim == 2 else (1, -1, 1)
        values = hidden_states.float()
        sums = torch.cat([values.sum(dims), values.new_full((1,), values.numel() / self.num_features)])
        sums = _SumOverProcesses.apply(sums)
        count = sums[-1].detach()
        # Two passes, as the mean of the squares minus the square of the mean cancels where the mean is large.
        centered = values - (sums[:-1] / count).view(shape)
        variance = _SumOverProcesses.apply(centered.square().sum(dims)) / count
        if not self._is_recomputing():
            self._update_statistics(sums[:-1].detach() / count, variance.detach() * count / (count - 1))
        normalized = centered * torch.rsqrt(variance + self.eps).view(shape)
        return (normalized * self.weight.view(shape) + self.bias.view(shape)).to(hidden_states.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Let the trained BatchNorms of a model see the clouds of all processes; frozen ones stay as they are.

    Args:
        model: A model whose BatchNorms are `FreezableBatchNorm1d`, as in this package; changed in place. Parameters,
            statistics and their names stay the same.

    Returns:
        The model.
    """
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) is FreezableBatchNorm1d and not child.is_frozen:
                synced = SyncFreezableBatchNorm1d(child.num_features, child.eps, child.momentum)
                synced._parameters, synced._buffers, synced.training = (
                    child._parameters,
                    child._buffers,
                    child.training,
                )
                setattr(module, name, synced)
    return model


def trained_batch_norms(model: nn.Module) -> list[FreezableBatchNorm1d]:
    """The BatchNorms of a model whose statistics change in training."""
    return [norm for norm in model.modules() if isinstance(norm, FreezableBatchNorm1d) and not norm.is_frozen]


class _Moments:
    """Sums of the inputs of a BatchNorm and of their squares, in float64."""

    def __init__(self, norm: FreezableBatchNorm1d):
        self.norm = norm
        # A mean that is about right keeps the squares small.
        self.center = norm.running_mean.double().clone()
        self.sums = torch.zeros(2, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        self.count = torch.zeros(1, dtype=torch.float64, device=norm.running_mean.device)

    def add(self, inputs: torch.Tensor) -> None:
        rows = inputs.detach().double()
        # (rows, features)
        rows = (rows if rows.ndim == 2 else rows.transpose(1, 2).flatten(0, 1)) - self.center
        self.sums += torch.stack([rows.sum(0), rows.square().sum(0)])
        self.count += len(rows)

    def apply(self, accelerator: Accelerator) -> None:
        values = torch.cat([self.sums.flatten(), self.count])
        if accelerator.num_processes > 1:
            values = accelerator.reduce(values.float() if values.device.type == "mps" else values)
        mean, square = (values[:-1] / values[-1]).view(2, -1)
        variance = (square - mean.square()).clamp(min=0) * values[-1] / (values[-1] - 1).clamp(min=1)
        self.norm.running_mean.copy_(self.center + mean)
        self.norm.running_var.copy_(variance)


@contextmanager
def estimate_statistics(norms: Sequence[FreezableBatchNorm1d], accelerator: Accelerator) -> Iterator[None]:
    """Give BatchNorms the mean and variance of what passes through them within this context, over all processes.

    The running statistics of training lag behind the weights, more so in every layer above, so that the accuracy of an
    epoch can be read far too low. Within this context the norms normalise each batch by itself, as in training; all
    other layers should be in eval mode.
    """
    before = [(norm.training, norm.num_batches_tracked.clone()) for norm in norms]
    moments = [_Moments(norm) for norm in norms]
    try:
        for norm, each in zip(norms, moments, strict=True):
            norm.train()
            norm.observer = each.add
        yield
    finally:
        for norm in norms:
            norm.observer = None
    for norm, each, (mode, count) in zip(norms, moments, before, strict=True):
        each.apply(accelerator)
        norm.train(mode)
        norm.num_batches_tracked.copy_(count)
