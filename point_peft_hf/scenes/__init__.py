"""Semantic segmentation of scenes: the task, its measures, and predictions for whole scans."""

from .metrics import SceneMetrics, class_weights
from .predictor import ScenePrediction, ScenePredictor
from .task import SceneSegmentationTask, load_scene_task

__all__ = [
    "SceneMetrics",
    "ScenePrediction",
    "ScenePredictor",
    "SceneSegmentationTask",
    "class_weights",
    "load_scene_task",
]
