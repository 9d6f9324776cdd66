"""What read-outs of methods are made of."""

from __future__ import annotations

import torch

from ..tokens import Tokens


def pool(tokens: Tokens, owner: str, pooling: str) -> torch.Tensor:
    """One feature for each cloud from the tokens of an owner.

    Args:
        tokens: Tokens after the final norm.
        owner: "class", "patch" or the key of an adapter.
        pooling: "mean" or "max".

    Returns:
        Features of shape `(batch_size, hidden_size)`.

    Raises:
        ValueError: If the owner has no tokens.
    """
    rows = tokens.of(owner)  # (B, count, C)
    if rows.shape[1] == 0:
        raise ValueError(
            f"The head is to read the tokens of {owner!r}, but there are none in the last stage. Attach the adapter "
            "to blocks of that stage (`layers_to_transform`, `target_modules`), or choose another read-out."
        )
    return rows.mean(dim=1) if pooling == "mean" else rows.amax(dim=1)
