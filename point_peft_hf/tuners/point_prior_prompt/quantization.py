"""How the features of a bank are stored: float32, or int8 with a scale for each entry."""

from __future__ import annotations

import torch

FEATURE_DTYPES = {"float32": torch.float32, "int8": torch.int8}


def quantize(features: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Round features to the dtype that they are stored in.

    Args:
        features: Features of shape `(bank_size, hidden_size)`.
        dtype: One of `FEATURE_DTYPES`.

    Returns:
        The stored features, and the scales of shape `(bank_size,)` that they are multiples of (`None` unless int8).
    """
    if dtype != torch.int8:
        return features.to(dtype), None
    features = features.float()
    largest = features.abs().amax(dim=1) if features.shape[1] else features.new_zeros(len(features))
    scales = largest.clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (features / scales[:, None]).round().to(torch.int8), scales


def dequantize(features: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Features as numbers to compute with.

    Args:
        features: Stored features of shape `(..., hidden_size)`.
        scales: Their scales, of shape `(...)`, or `None`.
        dtype: Dtype of the result.

    Returns:
        Features of the shape of those stored.
    """
    features = features.to(dtype)
    return features if scales is None else features * scales[..., None].to(dtype)
