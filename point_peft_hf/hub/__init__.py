"""Adapters on the Hub: save, push, pull; the model card."""

from .auto import AutoPointPeftModel
from .card import is_generated, model_card, write_model_card
from .push import push_adapter
from .saving import save_adapter

__all__ = [
    "AutoPointPeftModel",
    "is_generated",
    "model_card",
    "push_adapter",
    "save_adapter",
    "write_model_card",
]
