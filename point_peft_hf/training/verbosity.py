"""What of other libraries' messages reaches a person who trains or predicts."""

from __future__ import annotations

import warnings

import transformers


def show_only_own_messages() -> None:
    """Mute in this process that a backbone from pre-training has no head yet, and what PEFT asks of transformers."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
