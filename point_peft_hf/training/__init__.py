"""Fine-tuning on `transformers.Trainer`: methods, tasks, adapter-only checkpoints, metrics."""

from .arguments import PointCloudArguments, PointCloudTrainingArguments, parse_arguments
from .batch_norm import SyncFreezableBatchNorm1d, synchronize_batch_norms
from .batches import EpochSampler, TrainingCollator, evaluation_loader, training_loader
from .checkpoints import load_model, save_model
from .command import train_methods
from .finetuning import Finetuning, finetune
from .interruption import TrainingDiverged, TrainingInterrupted, TrainingStopped
from .methods import (
    METHODS,
    find_method,
    load_backbone,
    load_processor,
    method_config,
    prepare_method,
)
from .part_predictor import PartPrediction, PartPredictor
from .predictor import Predictor, load_predictor
from .record import data_fingerprint, results_table, versions
from .resident import load_resident
from .segmentation import SegmentationMetrics, SegmentationTask, load_segmentation_task, predict_parts
from .sharing import SharedValues, share_weights
from .task import ClassificationMetrics, ClassificationTask, load_task
from .tasks import Task, load_task_of
from .trainer import PointCloudTrainer
from .verbosity import show_only_own_messages

__all__ = [
    "METHODS",
    "ClassificationMetrics",
    "ClassificationTask",
    "EpochSampler",
    "Finetuning",
    "PointCloudArguments",
    "PointCloudTrainer",
    "PointCloudTrainingArguments",
    "finetune",
    "train_methods",
    "versions",
    "load_task_of",
    "parse_arguments",
    "PartPrediction",
    "PartPredictor",
    "Predictor",
    "SegmentationMetrics",
    "SegmentationTask",
    "SharedValues",
    "SyncFreezableBatchNorm1d",
    "Task",
    "TrainingCollator",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TrainingStopped",
    "evaluation_loader",
    "data_fingerprint",
    "find_method",
    "load_backbone",
    "load_processor",
    "load_model",
    "load_resident",
    "load_predictor",
    "load_segmentation_task",
    "load_task",
    "method_config",
    "predict_parts",
    "prepare_method",
    "results_table",
    "save_model",
    "show_only_own_messages",
    "synchronize_batch_norms",
    "training_loader",
    "share_weights",
]
