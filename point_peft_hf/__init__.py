"""Parameter-efficient fine-tuning of pre-trained point-cloud transformers, as PEFT types.

Importing this package registers its PEFT types with `peft` and its models with the Auto classes of `transformers`.
"""

from .data import PointCloudProcessor, load_dataset, read_point_cloud, write_point_cloud
from .models import (
    AutoModelForPointCloudClassification,
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForPreTraining,
    PointMAEModel,
)
from .ops import farthest_point_sample, group_points, knn_indices
from .tuners import (
    GeometryAdapterConfig,
    GeometryAdapterModel,
    PointPeftConfig,
    PointPeftModel,
    PointPriorBank,
    PointPriorPromptConfig,
    PointPriorPromptModel,
    build_point_prior_bank,
    set_point_prior_bank,
)


__version__ = "0.1.0"
