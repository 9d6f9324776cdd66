"""Fine-tuning under Accelerate: methods, tasks, adapter-only checkpoints, metrics."""

from .checkpoints import load_checkpoint, load_model, register_adapter_checkpoints, save_checkpoint, save_model
from .finetune import FinetuneArguments, Finetuning, load_backbone, results_table
from .methods import METHODS, method_config, prepare_method
from .metrics import ClassificationMetrics
from .optimization import parameter_groups, warmup_cosine
from .predictor import Predictor
from .resident import load_resident, share_weights
from .task import ClassificationTask, load_task

__all__ = [
    "METHODS",
    "ClassificationMetrics",
    "ClassificationTask",
    "FinetuneArguments",
    "Finetuning",
    "Predictor",
    "load_backbone",
    "load_checkpoint",
    "load_model",
    "load_resident",
    "load_task",
    "method_config",
    "parameter_groups",
    "prepare_method",
    "register_adapter_checkpoints",
    "results_table",
    "save_checkpoint",
    "save_model",
    "share_weights",
    "warmup_cosine",
]
