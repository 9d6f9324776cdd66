"""Attention inside the neighbourhoods of the tokens, and the maximum or mean over each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...ops.kernels import compiled_loops

NORM_EPS = 1e-5
# Numbers in the tokens of the neighbourhoods that are handled at a time: on a CPU few enough for the cache.
_CPU_CHUNK = 64 * 16 * 384
_GPU_CHUNK = 64_000_000


class LocalAttention(nn.Module):
    """Self-attention inside a neighbourhood, in a narrow space; no residual connection of its own.

    The scores are scaled by the inner width, not by that of a head, as in the published code.
    """

    def __init__(self, hidden_size: int, inner_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = inner_size**-0.5
        self.norm_weight = nn.Parameter(torch.empty(hidden_size))
        self.norm_bias = nn.Parameter(torch.empty(hidden_size))
        self.qkv_weight = nn.Parameter(torch.empty(3 * inner_size, hidden_size))
        self.proj_weight = nn.Parameter(torch.empty(hidden_size, inner_size))
        self.proj_bias = nn.Parameter(torch.empty(hidden_size))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as PyTorch's linear and norm layers."""
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        for weight in (self.qkv_weight, self.proj_weight):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        bound = self.proj_weight.shape[1] ** -0.5
        nn.init.uniform_(self.proj_bias, -bound, bound)

    def forward(self, tokens: torch.Tensor, neighbor_rows: torch.Tensor) -> torch.Tensor:
        """Attend inside each neighbourhood.

        Args:
            tokens: Tokens of all clouds, of shape `(num_rows, hidden_size)`.
            neighbor_rows: Rows of the neighbourhoods, of shape `(num_neighborhoods, num_neighbors)`.

        Returns:
            What is to be added to the tokens of the neighbourhoods, of shape
            `(num_neighborhoods, num_neighbors, hidden_size)`.
        """
        # Norm and projection act on single tokens, so they come before the gather: each token once instead of once for
        # every neighbourhood it is in.
        normed = F.layer_norm(tokens, tokens.shape[-1:], self.norm_weight, self.norm_bias, NORM_EPS)
        qkv = F.embedding(neighbor_rows, F.linear(normed, self.qkv_weight))
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = F.softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1)
        return F.linear((attention @ value).transpose(1, 2).flatten(-2), self.proj_weight, self.proj_bias)

    def attend_and_take_maximum(
        self, tokens: torch.Tensor, neighbor_rows: torch.Tensor, kept: torch.Tensor | None = None, num_clouds: int = 1
    ) -> torch.Tensor:
        """The maximum over each neighbourhood of tokens + kept * attention.

        Args:
            tokens: Tokens of all clouds, of shape `(num_rows, hidden_size)`.
            neighbor_rows: Rows of the neighbourhoods, of shape `(num_neighborhoods, num_neighbors)`; cloud by cloud,
                each with the same number of neighbourhoods and with rows of its own.
            kept: Factor of each neighbourhood's attention, of shape `(num_neighborhoods,)`; default: 1.
            num_clouds: Number of clouds, which threads share.

        Returns:
            Features of shape `(num_neighborhoods, hidden_size)`.
        """
        if torch.compiler.is_compiling():
            update = self(tokens, neighbor_rows)
            if kept is not None:
                update = update * kept[:, None, None]
            return (F.embedding(neighbor_rows, tokens) + update).amax(dim=1)
        dtype = tokens.dtype
        parameters = (self.norm_weight, self.norm_bias, self.qkv_weight, self.proj_weight)
        weights = [parameter.to(dtype) for parameter in parameters]
        loops = self._loops(tokens, neighbor_rows)
        if loops is not None:
            maximum = loops.FusedAttendAndTakeMaximum.apply(
                tokens, *weights, neighbor_rows, kept, self.scale, num_clouds
            )
        else:
            options = _Options(neighbor_rows.t().contiguous(), kept, self.num_heads, self.scale)
            maximum = _AttendAndTakeMaximum.apply(tokens, *weights, options)
        # The bias is the same for all members, so it can wait until after the maximum.
        bias = self.proj_bias.to(dtype)
        return maximum + (bias if kept is None else kept[:, None] * bias)

    def _loops(self, tokens: torch.Tensor, neighbor_rows: torch.Tensor) -> ModuleType | None:
        """The compiled form for CPUs, where it is installed and fits."""
        if tokens.device.type != "cpu" or tokens.dtype != torch.float32 or neighbor_rows.numel() == 0:
            return None
        loops = compiled_loops(f"{__package__}.local_attention_numba")
        if loops is None or neighbor_rows.shape[1] > loops.MAX_MEMBERS:
            return None
        return loops if len(self.qkv_weight) == 3 * loops.HEAD_SIZE * self.num_heads else None


class _Options(NamedTuple):
    """What [`_AttendAndTakeMaximum`] needs besides tensors with gradients; rows of shape `(k, num_neighborhoods)`."""

    rows: torch.Tensor
    kept: torch.Tensor | None
    num_heads: int
    scale: float

    def chunks(self, hidden_size: int) -> list[_Options]:
        """Cut into parts of few neighbourhoods."""
        numbers = _CPU_CHUNK if self.rows.device.type == "cpu" else _GPU_CHUNK
        size = max(1, numbers // (len(self.rows) * hidden_size))
        rows = self.rows.split(size, dim=1)
        kept = [None] * len(rows) if self.kept is None else self.kept.split(size)
        return [self._replace(rows=r, kept=k) for r, k in zip(rows, kept, strict=True)]


def without_autocast(method: Callable) -> Callable:
    """Let a pass of an autograd function, whose second argument is a tensor, compute in the precision it is given."""

    @functools.wraps(method)
    def wrapper(ctx, tensor, *arguments):
        with torch.autocast(tensor.device.type, enabled=False):
            return method(ctx, tensor, *arguments)

    return wrapper


class _AttendAndTakeMaximum(torch.autograd.Function):
    """Attention inside neighbourhoods and the maximum over them, in parts that fit the cache, without saving them.

    The tokens of all neighbourhoods are 8 times as large as the tokens of the clouds, the plain form keeps several
    tensors of that size for the backward pass, and most of its time goes into moving them. Here the backward pass
    computes each part again. Small tensors are laid out with the neighbourhoods last, (heads, width, members,
    neighbourhoods): matrices of 16 by 3 are too small for matrix products, but vector instructions run along the
    neighbourhoods.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, tokens, norm_weight, norm_bias, qkv_weight, proj_weight, options):
        ctx.save_for_backward(tokens, norm_weight, norm_bias, qkv_weight, proj_weight)
        ctx.options = options
        normed = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, NORM_EPS)
        qkv = torch.mm(qkv_weight, normed.t())
        parts = options.chunks(tokens.shape[-1])
        buffer = _buffer(tokens, parts)
        return torch.cat(
            [_members(tokens, _attend(qkv, part)[-1], proj_weight, part, buffer).amax(dim=0) for part in parts]
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx, grad):
        tokens, norm_weight, norm_bias, qkv_weight, proj_weight = ctx.saved_tensors
        shape = tokens.shape[-1:]
        normed, mean, inverse_std = torch.native_layer_norm(tokens, shape, norm_weight, norm_bias, NORM_EPS)
        qkv = torch.mm(qkv_weight, normed.t())
        grad_tokens, grad_qkv = torch.zeros_like(tokens), torch.zeros_like(qkv)
        grad_proj = torch.zeros_like(proj_weight.t(), memory_format=torch.contiguous_format)
        parts = ctx.options.chunks(tokens.shape[-1])
        buffer = _buffer(tokens, parts)
        for part, grad_part in zip(parts, grad.split([part.rows.shape[1] for part in parts]), strict=True):
            rows = part.rows.flatten()
            query, key, value, attention, context, kept_context = _attend(qkv, part)
            # The gradient of a maximum goes to the member that is the maximum; equal members share it.
            members = _members(tokens, kept_context, proj_weight, part, buffer)
            members.eq_(members.amax(dim=0))
            grad_members = members.mul_(grad_part / members.sum(dim=0)).flatten(0, 1)
            grad_tokens.index_add_(0, rows, grad_members)
            grad_proj.addmm_(kept_context.flatten(0, 1).flatten(1), grad_members)
            grad_context = torch.mm(proj_weight.t(), grad_members.t()).view_as(context)
            if part.kept is not None:
                grad_context = grad_context * part.kept
            # The gradient of a softmax; the sum over the keys of attention * its gradient is context * its gradient.
            grad_scores = _pair_products(grad_context, value)
            grad_scores = grad_scores.sub_((grad_context * context).sum(dim=1).unsqueeze(2)).mul_(attention)
            grad_query = _weighted_sums(grad_scores, key, over="keys") * part.scale
            grad_key = _weighted_sums(grad_scores, query, over="queries")
            grad_value = _weighted_sums(attention, grad_context, over="queries")
            grad_qkv.index_add_(1, rows, torch.stack([grad_query, grad_key, grad_value]).view(len(qkv), -1))
        grad_normed = torch.mm(grad_qkv.t(), qkv_weight)
        through_norm, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed, tokens, shape, mean, inverse_std, norm_weight, norm_bias, (True, True, True)
        )
        grad_tokens = grad_tokens.add_(through_norm)
        return grad_tokens, grad_norm_weight, grad_norm_bias, torch.mm(grad_qkv, normed), grad_proj.t(), None


def _attend(qkv: torch.Tensor, part: _Options) -> tuple[torch.Tensor, ...]:
    """Scaled queries, keys, values, attention, and what is attended to, the latter also times `kept`.

    Args:
        qkv: Of shape `(3 * inner_size, num_rows)`.
        part: Neighbourhoods of some rows.

    Returns:
        Tensors of shape `(heads, width, members, neighborhoods)`, the attention `(heads, queries, keys,
        neighborhoods)`.
    """
    num_members, num_neighborhoods = part.rows.shape
    gathered = qkv.index_select(1, part.rows.flatten())
    query, key, value = gathered.view(3, part.num_heads, -1, num_members, num_neighborhoods)
    query = query * part.scale
    attention = _pair_products(query, key)
    attention = attention.sub_(attention.amax(dim=2, keepdim=True)).exp_()
    attention.div_(attention.sum(dim=2, keepdim=True))
    context = _weighted_sums(attention, value, over="keys")
    return query, key, value, attention, context, context if part.kept is None else context * part.kept


def _buffer(tokens: torch.Tensor, parts: list[_Options]) -> torch.Tensor:
    """Room for the tokens of the neighbourhoods of any part; new memory for each part would cost more than its use."""
    return tokens.new_empty(max((part.rows.numel() for part in parts), default=0), tokens.shape[-1])


def _members(
    tokens: torch.Tensor, context: torch.Tensor, proj_weight: torch.Tensor, part: _Options, buffer: torch.Tensor
) -> torch.Tensor:
    """Tokens of neighbourhoods plus their projected attention, of shape `(members, neighborhoods, hidden_size)`.

    They lie in `buffer`, so they are good until the next call.
    """
    gathered = torch.index_select(tokens, 0, part.rows.flatten(), out=buffer[: part.rows.numel()])
    gathered.addmm_(context.flatten(0, 1).flatten(1).t(), proj_weight.t())
    return gathered.view(*part.rows.shape, -1)


def _pair_products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Products over the width of all pairs of members, of shape `(heads, members, members, neighborhoods)`."""
    products = left[:, 0, :, None] * right[:, 0, None]
    for index in range(1, left.shape[1]):
        products.addcmul_(left[:, index, :, None], right[:, index, None])
    return products


def _weighted_sums(weights: torch.Tensor, values: torch.Tensor, over: str) -> torch.Tensor:
    """Sums of `values` over the members that `weights` have as queries or as keys, of the shape of `values`."""
    dim = {"queries": 1, "keys": 2}[over]
    values = values.unsqueeze(2 if over == "keys" else 3)
    return torch.stack([(weights * values[:, index]).sum(dim=dim) for index in range(values.shape[1])], dim=1)
