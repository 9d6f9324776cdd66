"""What of other libraries' messages reaches a person who trains or predicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Mute the report of transformers that a pre-trained backbone has no head yet, which is what is expected."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def show_only_own_messages() -> None:
    """Mute in this process what is expected here, such as that a backbone from pre-training has no head yet."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # What PEFT still asks of transformers, and what it says to every LN tuning.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    warnings.filterwarnings("ignore", message="Unsupported layer type .*LayerNorm")
