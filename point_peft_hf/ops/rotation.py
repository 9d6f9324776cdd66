"""Rotary position embeddings of coordinates, as in Utonia (arXiv 2603.03283)."""

from __future__ import annotations

import torch


def rotation(coordinates: torch.Tensor, base: float, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines by which attention knows where voxels are.

    Args:
        coordinates: Of shape `(N, 3)`.
        base: Base of the frequencies.
        head_size: Width of an attention head, a multiple of 6.

    Returns:
        Two tensors of shape `(N, 1, 3, 1, head_size / 6)`: for each axis, the pairs of channels that are turned.
    """
    frequencies = rope_frequencies(base, head_size).to(coordinates.device, coordinates.dtype)
    angles = coordinates[:, None, :, None, None] * frequencies
    return angles.cos(), angles.sin()


def rope_frequencies(base: float, head_size: int) -> torch.Tensor:
    """Frequencies of the rotations of an axis, of shape `(head_size / 6,)`."""
    per_axis = head_size // 3
    return 1.0 / base ** (torch.arange(0, per_axis, 2).float() / per_axis)


def rotate(heads: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn the channels of queries or keys, of shape `(N, num_heads, head_size)`."""
    cos, sin = (part.to(heads.dtype) for part in rotation)
    pairs = heads.unflatten(-1, (3, 2, -1))  # (N, H, axis, half, pair)
    first, second = pairs.split(1, dim=-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(-3)
