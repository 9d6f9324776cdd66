"""Auto classes: from a folder or a repository to the right class."""

from collections import OrderedDict

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .point_mae import PointMAEConfig, PointMAEForClassification, PointMAEForPreTraining, PointMAEModel


class AutoModelForPointCloudClassification(_BaseAutoModelClass):
    """The classifier that belongs to a configuration: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


AutoConfig.register(PointMAEConfig.model_type, PointMAEConfig)
AutoModel.register(PointMAEConfig, PointMAEModel)
AutoModelForPreTraining.register(PointMAEConfig, PointMAEForPreTraining)
AutoModelForPointCloudClassification.register(PointMAEConfig, PointMAEForClassification)

__all__ = ["AutoModelForPointCloudClassification"]
