"""The local attention on CPUs, one neighbourhood after the other in registers and the nearest cache, with Numba.

PyTorch's operations read and write the scores of many neighbourhoods again and again; here nothing but the maximum and
its position leaves the cache, and the backward pass visits only the member that is the maximum.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch.nn import functional as F

from ...ops.kernels import share_out
from .local_attention import NORM_EPS, without_autocast

# Width of a head that the loops below are written for.
HEAD_SIZE = 3
# The position of a maximum is stored in 8 bits.
MAX_MEMBERS = 256

_FLOAT = np.float32
# Products may be fused with sums; the latter may also be reordered, to fill vectors, where that is faster.
_FUSED = {"contract", "nsz"}
_ANY_ORDER = {*_FUSED, "reassoc"}


class FusedAttendAndTakeMaximum(torch.autograd.Function):
    """The maximum over each neighbourhood of tokens + kept * attention, as `LocalAttention` without its last bias.

    Of equal members the first takes the gradient of the maximum.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, tokens, norm_weight, norm_bias, qkv_weight, proj_weight, rows, kept, scale, num_clouds):
        """Compute the maxima of float32 `tokens` of shape `(num_rows, hidden_size)`.

        `rows` is of shape `(num_neighborhoods, num_neighbors)`, cloud by cloud, as many for each, no row in two;
        `kept` is of shape `(num_neighborhoods,)` or `None`.
        """
        tokens = tokens.contiguous()
        normed = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, NORM_EPS)
        qkv = torch.mm(normed, qkv_weight.t())
        shapes = _FLOAT(scale), len(rows) // num_clouds
        kept = tokens.new_ones(len(rows)) if kept is None else kept.contiguous()
        maxima = tokens.new_empty(len(rows), tokens.shape[-1])
        positions = torch.empty(maxima.shape, dtype=torch.uint8)
        arrays = [_numpy(t) for t in (tokens, qkv, rows, proj_weight.t().contiguous(), kept, maxima, positions)]
        share_out(lambda first, last: _forward(*arrays, *shapes, first, last), num_clouds)
        ctx.save_for_backward(tokens, norm_weight, norm_bias, qkv_weight, proj_weight, rows, kept, positions)
        ctx.shapes, ctx.num_clouds = shapes, num_clouds
        return maxima

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx, grad):
        """Compute the queries, keys and values again, which is cheaper than keeping them."""
        tokens, norm_weight, norm_bias, qkv_weight, proj_weight, rows, kept, positions = ctx.saved_tensors
        shape = tokens.shape[-1:]
        normed, mean, inverse_std = torch.native_layer_norm(tokens, shape, norm_weight, norm_bias, NORM_EPS)
        qkv = torch.mm(normed, qkv_weight.t())
        grad_tokens, grad_qkv = torch.zeros_like(tokens), torch.zeros_like(qkv)
        # A sum for each cloud: which thread takes which cloud does not change the result.
        grad_proj = proj_weight.new_zeros(ctx.num_clouds, *proj_weight.shape)
        # A copy of the weight: FSDP frees its storage, which it cannot where an array of NumPy has it.
        tensors = (qkv, rows, proj_weight.clone(memory_format=torch.contiguous_format), kept, positions)
        arrays = [_numpy(t) for t in (*tensors, grad.contiguous(), grad_tokens, grad_qkv, grad_proj)]
        share_out(lambda first, last: _backward(*arrays, *ctx.shapes, first, last), ctx.num_clouds)
        grad_normed = torch.mm(grad_qkv, qkv_weight)
        through_norm, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed, tokens, shape, mean, inverse_std, norm_weight, norm_bias, (True, True, True)
        )
        grad_weights = grad_norm_weight, grad_norm_bias, torch.mm(grad_qkv.t(), normed), grad_proj.sum(dim=0)
        return grad_tokens.add_(through_norm), *grad_weights, None, None, None, None


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


@njit(nogil=True, cache=True, inline="always", fastmath=_FUSED)
def _exp(x):
    """Compute exp(x) of x <= 0 with a relative error of 2e-7: 2^n times the polynomial of Cephes' expf."""
    x = max(x, _FLOAT(-87.0))
    n = np.floor(x * _FLOAT(1.44269504) + _FLOAT(0.5))
    r = x - n * _FLOAT(0.693359375) - n * _FLOAT(-2.12194440e-4)
    p = _FLOAT(1.9875691500e-4)
    p = p * r + _FLOAT(1.3981999507e-3)
    p = p * r + _FLOAT(8.3334519073e-3)
    p = p * r + _FLOAT(4.1665795894e-2)
    p = p * r + _FLOAT(1.6666665459e-1)
    p = p * r + _FLOAT(5.0000001201e-1)
    p = p * r * r + r + _FLOAT(1.0)
    exponent = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return p * exponent.view(_FLOAT)


@njit(nogil=True, cache=True, fastmath=_FUSED)
def _attend(qkv, members, scale, query, key, value, exponentials, inverse_total, context):
    """Fill the arrays of one neighbourhood, in which the members come last.

    The innermost loops run over the queries, which fill vectors: nothing has to be summed inside of a vector. What
    they do not change is read before, as the compiler cannot know that no array lies in another.

    Args:
        qkv: Of all tokens, of shape (num_rows, 3 * inner_size).
        members: Rows of the members.
        scale: Factor of the scores.
        query: Scaled queries, (inner_size, members); `key`, `value` and `context` alike.
        key: Keys.
        value: Values.
        exponentials: Of the scores, (heads, keys, queries); times `inverse_total` they are the attention.
        inverse_total: One over their sums, (heads, queries).
        context: What is attended to.
    """
    inner_size, num_members = query.shape
    largest, total = np.empty(num_members, _FLOAT), np.empty(num_members, _FLOAT)
    for j in range(num_members):
        row = members[j]
        for w in range(inner_size):
            query[w, j] = qkv[row, w] * scale
            key[w, j] = qkv[row, inner_size + w]
            value[w, j] = qkv[row, 2 * inner_size + w]
    for head in range(len(inverse_total)):
        x, y, z = HEAD_SIZE * head, HEAD_SIZE * head + 1, HEAD_SIZE * head + 2
        for i in range(num_members):
            largest[i] = _FLOAT(-np.inf)
        for j in range(num_members):
            k_x, k_y, k_z = key[x, j], key[y, j], key[z, j]
            for i in range(num_members):
                score = query[x, i] * k_x + query[y, i] * k_y + query[z, i] * k_z
                exponentials[head, j, i] = score
                largest[i] = max(largest[i], score)
        for j in range(num_members):
            for i in range(num_members):
                exponentials[head, j, i] = _exp(exponentials[head, j, i] - largest[i])
        for i in range(num_members):
            total[i] = _FLOAT(0)
            context[x, i] = _FLOAT(0)
            context[y, i] = _FLOAT(0)
            context[z, i] = _FLOAT(0)
        for j in range(num_members):
            v_x, v_y, v_z = value[x, j], value[y, j], value[z, j]
            for i in range(num_members):
                weight = exponentials[head, j, i]
                total[i] += weight
                context[x, i] += weight * v_x
                context[y, i] += weight * v_y
                context[z, i] += weight * v_z
        for i in range(num_members):
            factor = _FLOAT(1) / total[i]
            inverse_total[head, i] = factor
            context[x, i] *= factor
            context[y, i] *= factor
            context[z, i] *= factor


@njit(nogil=True, cache=True)
def _four(inner_size, num_members):
    """Return arrays for queries, keys, values and what is attended to."""
    shape = (inner_size, num_members)
    return np.empty(shape, _FLOAT), np.empty(shape, _FLOAT), np.empty(shape, _FLOAT), np.empty(shape, _FLOAT)


@njit(nogil=True, cache=True)
def _scores(inner_size, num_members):
    """Return arrays for the exponentials of the scores and their sums."""
    heads = inner_size // HEAD_SIZE
    return np.empty((heads, num_members, num_members), _FLOAT), np.empty((heads, num_members), _FLOAT)


@njit(nogil=True, cache=True, fastmath=_FUSED)
def _forward(tokens, qkv, rows, proj, kept, maxima, positions, scale, num_neighborhoods, first, last):
    """Fill maxima and positions, (num_neighborhoods, hidden_size), of the clouds from `first` to before `last`.

    `proj` is of shape (inner_size, hidden_size).
    """
    (inner_size, hidden_size), num_members = proj.shape, rows.shape[1]
    query, key, value, context = _four(inner_size, num_members)
    exponentials, inverse_total = _scores(inner_size, num_members)
    member = np.empty(hidden_size, _FLOAT)
    for n in range(first * num_neighborhoods, last * num_neighborhoods):
        _attend(qkv, rows[n], scale, query, key, value, exponentials, inverse_total, context)
        maximum, position = maxima[n], positions[n]
        for j in range(num_members):
            token = tokens[rows[n, j]]
            for c in range(hidden_size):
                member[c] = token[c]
            # Two heads at a time: each sum is read and written once for six products.
            for w in range(0, inner_size - 5, 6):
                a0, a1, a2 = context[w, j] * kept[n], context[w + 1, j] * kept[n], context[w + 2, j] * kept[n]
                a3, a4, a5 = context[w + 3, j] * kept[n], context[w + 4, j] * kept[n], context[w + 5, j] * kept[n]
                p0, p1, p2, p3, p4, p5 = proj[w], proj[w + 1], proj[w + 2], proj[w + 3], proj[w + 4], proj[w + 5]
                for c in range(hidden_size):
                    member[c] += a0 * p0[c] + a1 * p1[c] + a2 * p2[c] + a3 * p3[c] + a4 * p4[c] + a5 * p5[c]
            for w in range(inner_size - inner_size % 6, inner_size):
                factor, row = context[w, j] * kept[n], proj[w]
                for c in range(hidden_size):
                    member[c] += factor * row[c]
            for c in range(hidden_size):
                is_larger = j == 0 or member[c] > maximum[c]
                maximum[c] = member[c] if is_larger else maximum[c]
                position[c] = j if is_larger else position[c]


@njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _backward(
    qkv, rows, proj, kept, positions, grad, grad_tokens, grad_qkv, grad_proj, scale, num_neighborhoods, first, last
):
    """Add to the gradients what comes from the clouds from `first` to before `last`.

    `proj` is of shape (hidden_size, inner_size), `grad_proj` (clouds, hidden_size, inner_size).
    """
    (hidden_size, inner_size), num_members = proj.shape, rows.shape[1]
    query, key, value, context = _four(inner_size, num_members)
    grad_query, grad_key, grad_value, grad_context = _four(inner_size, num_members)
    exponentials, inverse_total = _scores(inner_size, num_members)
    # With the width last, as the projection has it: (members, inner_size).
    context_rows = np.empty((num_members, inner_size), _FLOAT)
    grad_rows = np.empty((num_members, inner_size), _FLOAT)
    inner = np.empty(num_members, _FLOAT)
    for n in range(first * num_neighborhoods, last * num_neighborhoods):
        cloud = n // num_neighborhoods
        _attend(qkv, rows[n], scale, query, key, value, exponentials, inverse_total, context)
        for j in range(num_members):
            for w in range(inner_size):
                context_rows[j, w] = context[w, j] * kept[n]
                grad_rows[j, w] = 0
        for c in range(hidden_size):
            # Only the member that is the maximum has a gradient.
            j, value_of_grad = positions[n, c], grad[n, c]
            grad_tokens[rows[n, j], c] += value_of_grad
            for w in range(inner_size):
                grad_proj[cloud, c, w] += value_of_grad * context_rows[j, w]
                grad_rows[j, w] += value_of_grad * proj[c, w]
        for w in range(inner_size):
            for j in range(num_members):
                grad_context[w, j] = grad_rows[j, w] * kept[n]
                grad_query[w, j] = 0
        for head in range(len(inverse_total)):
            x, y, z = HEAD_SIZE * head, HEAD_SIZE * head + 1, HEAD_SIZE * head + 2
            for i in range(num_members):
                inner[i] = 0
                for w in range(x, x + HEAD_SIZE):
                    inner[i] += grad_context[w, i] * context[w, i]
            for j in range(num_members):
                k_x, k_y, k_z, v_x, v_y, v_z = key[x, j], key[y, j], key[z, j], value[x, j], value[y, j], value[z, j]
                key_x = key_y = key_z = value_x = value_y = value_z = _FLOAT(0)
                for i in range(num_members):
                    g_x, g_y, g_z = grad_context[x, i], grad_context[y, i], grad_context[z, i]
                    weight = exponentials[head, j, i] * inverse_total[head, i]
                    value_x += weight * g_x
                    value_y += weight * g_y
                    value_z += weight * g_z
                    # The gradient of a softmax.
                    score = (g_x * v_x + g_y * v_y + g_z * v_z - inner[i]) * weight
                    key_x += score * query[x, i]
                    key_y += score * query[y, i]
                    key_z += score * query[z, i]
                    grad_query[x, i] += score * k_x
                    grad_query[y, i] += score * k_y
                    grad_query[z, i] += score * k_z
                grad_key[x, j], grad_key[y, j], grad_key[z, j] = key_x, key_y, key_z
                grad_value[x, j], grad_value[y, j], grad_value[z, j] = value_x, value_y, value_z
        for j in range(num_members):
            target = grad_qkv[rows[n, j]]
            for w in range(inner_size):
                target[w] += grad_query[w, j] * scale
                target[inner_size + w] += grad_key[w, j]
                target[2 * inner_size + w] += grad_value[w, j]
