"""Auto classes: from a folder or a repository to the right class."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from . import point_bert, point_gpt, point_m2ae, point_mae, ptv3, recon
from .modeling import BackbonePreTrainedModel
from .published import find_published_weights, published_model_type


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


class AutoModelForPointCloudSemanticSegmentation(_AutoPointModel):
    """The segmentation of scenes: `AutoModelForPointCloudSemanticSegmentation.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class ModelClasses(NamedTuple):
    """The classes of a model type; `segmentation` is that of parts, or of a scene encoder that of scenes."""

    config: type[PreTrainedConfig]
    encoder: type[BackbonePreTrainedModel]
    classifier: type[BackbonePreTrainedModel]
    segmentation: type[BackbonePreTrainedModel]
    pretraining: type[BackbonePreTrainedModel] | None = None


MODEL_CLASSES = {
    classes.config.model_type: classes
    for classes in (
        ModelClasses(
            point_bert.PointBertConfig,
            point_bert.PointBertModel,
            point_bert.PointBertForClassification,
            point_bert.PointBertForSegmentation,
        ),
        ModelClasses(
            point_gpt.PointGPTConfig,
            point_gpt.PointGPTModel,
            point_gpt.PointGPTForClassification,
            point_gpt.PointGPTForSegmentation,
            point_gpt.PointGPTForPreTraining,
        ),
        ModelClasses(
            point_m2ae.PointM2AEConfig,
            point_m2ae.PointM2AEModel,
            point_m2ae.PointM2AEForClassification,
            point_m2ae.PointM2AEForSegmentation,
            point_m2ae.PointM2AEForPreTraining,
        ),
        ModelClasses(
            point_mae.PointMAEConfig,
            point_mae.PointMAEModel,
            point_mae.PointMAEForClassification,
            point_mae.PointMAEForSegmentation,
            point_mae.PointMAEForPreTraining,
        ),
        ModelClasses(
            ptv3.PointTransformerV3Config,
            ptv3.PointTransformerV3Model,
            ptv3.PointTransformerV3ForClassification,
            ptv3.PointTransformerV3ForSemanticSegmentation,
        ),
        ModelClasses(
            recon.ReConConfig,
            recon.ReConModel,
            recon.ReConForClassification,
            recon.ReConForSegmentation,
        ),
    )
}
# The configurations of the backbones of objects, and of those of scenes.
SCENE_CONFIGURATIONS = [ptv3.PointTransformerV3Config]
CONFIGURATIONS = [c.config for c in MODEL_CLASSES.values() if c.config not in SCENE_CONFIGURATIONS]

for _classes in MODEL_CLASSES.values():
    _config, _is_scene = _classes.config, _classes.config in SCENE_CONFIGURATIONS
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _classes.encoder)
    AutoModelForPointCloudClassification.register(_config, _classes.classifier)
    _auto = AutoModelForPointCloudSemanticSegmentation if _is_scene else AutoModelForPointCloudSegmentation
    _auto.register(_config, _classes.segmentation)
    if _classes.pretraining is not None:
        AutoModelForPreTraining.register(_config, _classes.pretraining)

__all__ = [
    "AutoModelForPointCloudClassification",
    "AutoModelForPointCloudSegmentation",
    "AutoModelForPointCloudSemanticSegmentation",
]
