"""Auto classes: from a folder or a repository to the right class."""

from collections import OrderedDict

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .point_bert import PointBertConfig, PointBertForClassification, PointBertForSegmentation, PointBertModel
from .point_gpt import (
    PointGPTConfig,
    PointGPTForClassification,
    PointGPTForPreTraining,
    PointGPTForSegmentation,
    PointGPTModel,
)
from .point_m2ae import (
    PointM2AEConfig,
    PointM2AEForClassification,
    PointM2AEForPreTraining,
    PointM2AEForSegmentation,
    PointM2AEModel,
)
from .point_mae import (
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForPreTraining,
    PointMAEForSegmentation,
    PointMAEModel,
)
from .ptv3 import (
    PointTransformerV3Config,
    PointTransformerV3ForClassification,
    PointTransformerV3ForSemanticSegmentation,
    PointTransformerV3Model,
)
from .published import find_published_weights, published_model_type
from .recon import ReConConfig, ReConForClassification, ReConForSegmentation, ReConModel


class _AutoPointModel(_BaseAutoModelClass):
    """An Auto class that reads weights of torch-pointcloud as well."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load the model from a folder or a repository, of this package or of torch-pointcloud.

        Args:
            pretrained_model_name_or_path: Name of a repository, or a folder.
            *model_args: As in transformers.
            **kwargs: As in transformers.

        Returns:
            The model, in eval mode.
        """
        weights = find_published_weights(pretrained_model_name_or_path, kwargs)
        if weights is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model_class = cls._model_mapping[CONFIG_MAPPING[published_model_type(weights)]]
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class AutoModelForPointCloudClassification(_AutoPointModel):
    """The classifier that belongs to a configuration: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudSegmentation(_AutoPointModel):
    """The part segmentation of a configuration: `AutoModelForPointCloudSegmentation.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


# The configurations of all backbones, of objects and of scenes.
CONFIGURATIONS: list[type] = []
SCENE_CONFIGURATIONS: list[type] = [PointTransformerV3Config]


class AutoModelForPointCloudSemanticSegmentation(_AutoPointModel):
    """The segmentation of scenes: `AutoModelForPointCloudSemanticSegmentation.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


def _register(
    config: type, model: type, classifier: type, segmentation: type, pretraining: type | None = None
) -> None:
    CONFIGURATIONS.append(config)
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForPointCloudClassification.register(config, classifier)
    AutoModelForPointCloudSegmentation.register(config, segmentation)
    if pretraining is not None:
        AutoModelForPreTraining.register(config, pretraining)


_register(PointBertConfig, PointBertModel, PointBertForClassification, PointBertForSegmentation)
_register(PointGPTConfig, PointGPTModel, PointGPTForClassification, PointGPTForSegmentation, PointGPTForPreTraining)
_register(
    PointM2AEConfig, PointM2AEModel, PointM2AEForClassification, PointM2AEForSegmentation, PointM2AEForPreTraining
)
_register(PointMAEConfig, PointMAEModel, PointMAEForClassification, PointMAEForSegmentation, PointMAEForPreTraining)
_register(ReConConfig, ReConModel, ReConForClassification, ReConForSegmentation)


AutoConfig.register(PointTransformerV3Config.model_type, PointTransformerV3Config)
AutoModel.register(PointTransformerV3Config, PointTransformerV3Model)
AutoModelForPointCloudClassification.register(PointTransformerV3Config, PointTransformerV3ForClassification)
AutoModelForPointCloudSemanticSegmentation.register(
    PointTransformerV3Config, PointTransformerV3ForSemanticSegmentation
)

__all__ = [
    "AutoModelForPointCloudClassification",
    "AutoModelForPointCloudSegmentation",
    "AutoModelForPointCloudSemanticSegmentation",
]
