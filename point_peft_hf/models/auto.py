"""Auto classes: from a folder or a repository to the right class."""

from collections import OrderedDict

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .point_bert import PointBertConfig, PointBertForClassification, PointBertModel
from .point_m2ae import PointM2AEConfig, PointM2AEForClassification, PointM2AEForPreTraining, PointM2AEModel
from .point_mae import PointMAEConfig, PointMAEForClassification, PointMAEForPreTraining, PointMAEModel
from .published import find_published_weights, published_model_type


class AutoModelForPointCloudClassification(_BaseAutoModelClass):
    """The classifier that belongs to a configuration: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load the classifier from a folder or a repository, of this package or of torch-pointcloud.

        Args:
            pretrained_model_name_or_path: Name of a repository, or a folder.
            *model_args: As in transformers.
            **kwargs: As in transformers.

        Returns:
            The classifier, in eval mode.
        """
        weights = find_published_weights(pretrained_model_name_or_path, kwargs)
        if weights is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model_class = cls._model_mapping[CONFIG_MAPPING[published_model_type(weights)]]
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


def _register(config: type, model: type, classifier: type, pretraining: type | None = None) -> None:
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForPointCloudClassification.register(config, classifier)
    if pretraining is not None:
        AutoModelForPreTraining.register(config, pretraining)


_register(PointBertConfig, PointBertModel, PointBertForClassification)
_register(PointM2AEConfig, PointM2AEModel, PointM2AEForClassification, PointM2AEForPreTraining)
_register(PointMAEConfig, PointMAEModel, PointMAEForClassification, PointMAEForPreTraining)

__all__ = ["AutoModelForPointCloudClassification"]
