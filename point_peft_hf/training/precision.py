"""What matrices are multiplied in when a model predicts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> str:
    """Check that there is a precision of this name, and return it.

    Raises:
        ValueError: If there is none of this name.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}. (int8 is for exported files: "
            "`point-peft export --format onnx --precision int8`.)"
        )
    return precision


def in_precision(precision: str, device: torch.device) -> AbstractContextManager:
    """Multiply matrices in a precision; weights and geometry stay in float32.

    Args:
        precision: One of `PRECISIONS`.
        device: Where the model is.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)
