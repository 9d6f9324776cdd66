"""Parameter-efficient fine-tuning of pre-trained point-cloud transformers, as PEFT types.

Importing this package registers its PEFT types with `peft` and its models with the Auto classes of `transformers`.
"""

from . import models, tuners
from .auto import AutoPointPeftModel
from .data import PointCloudProcessor, load_dataset, read_point_cloud, register_processor, write_point_cloud
from .data.scenes import SceneProcessor, load_scenes, read_scene, register_scene_processor
from .models import *  # noqa: F403
from .models.auto import CONFIGURATIONS, SCENE_CONFIGURATIONS
from .ops import farthest_point_sample, group_points, knn_indices
from .scenes import ScenePredictor
from .tuners import *  # noqa: F403

for _config_class in CONFIGURATIONS:
    register_processor(_config_class)
for _config_class in SCENE_CONFIGURATIONS:
    register_scene_processor(_config_class)

__version__ = "0.2.0"

__all__ = [
    *models.__all__,
    *tuners.__all__,
    "AutoPointPeftModel",
    "PointCloudProcessor",
    "ScenePredictor",
    "SceneProcessor",
    "farthest_point_sample",
    "group_points",
    "knn_indices",
    "load_dataset",
    "load_scenes",
    "read_point_cloud",
    "read_scene",
    "write_point_cloud",
]
