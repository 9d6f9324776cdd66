"""The files of adapters: read, check, save, push; the model card. From files to a model: `point_peft_hf.auto`."""

from .card import is_generated, model_card, write_model_card
from .push import push_adapter
from .save import save_adapter

__all__ = ["is_generated", "model_card", "push_adapter", "save_adapter", "write_model_card"]
