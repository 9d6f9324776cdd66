"""Differences and distances of pairs, without the expansion of squares, which cancels where points are close."""

import functools

import torch

from .exporting import is_exporting_for_onnx

# `squared_differences(left, right, out=out)` writes (left - right)^2, broadcast, into `out` and returns it: the same
# to the bit as subtracting and then squaring. The unreduced squared error is the one operator of PyTorch that does
# both; its functional form takes no `out`.
squared_differences = functools.partial(torch.ops.aten.mse_loss.out, reduction=0)


def pair_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Distances of all pairs of rows, from shapes `(B, M, C)` and `(B, N, C)` to `(B, M, N)`."""
    if is_exporting_for_onnx():  # which has no operator that computes them so
        return (left.unsqueeze(2) - right.unsqueeze(1)).square().sum(dim=-1).sqrt()
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
