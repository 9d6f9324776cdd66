"""Parts of a backbone's embeddings that some methods train."""

from __future__ import annotations

import re

from torch import nn

# The patch embedding of points up to its first maximum, and where positions are embedded.
_EMBEDDINGS = re.compile(
    r"(?:.*\.)?(patch_embedding\.first_\w+|patch_embeddings\.0\.first_\w+|position_embedding|position_embeddings\.\d+)"
)


def embedding_modules(model: nn.Module) -> list[str]:
    """Names of the first half of a model's patch embedding and of its position embeddings, for `modules_to_save`."""
    found = (_EMBEDDINGS.fullmatch(name) for name, _ in model.named_modules())
    # A slot has the name of what it follows, and more.
    return [match[1] for match in found if match and not match[1].endswith("_slot")]
