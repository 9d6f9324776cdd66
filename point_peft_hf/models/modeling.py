"""What the models share."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..ops import validate_points
from ..tokens import Tokens
from .adapters import AdapterModelMixin
from .configuration import PointConfig, PointTransformerConfig
from .layers import ClassificationHead, ClassToken, PointAttention, check_not_trained
from .layers.encoder import OwnTokens
from .modeling_outputs import PointClassifierOutput, PointModelOutput
from .published import find_published_weights, load_published_weights


class BackbonePreTrainedModel(AdapterModelMixin, PreTrainedModel):
    """Base of all models, of objects and of scenes: weights, loading, and what adapters ask of any backbone."""

    supports_gradient_checkpointing = True
    # The losses here are means over the batch. With `**kwargs` in forward, Trainer would take it that they are divided
    # by the items of all batches of a step, and not divide them itself.
    accepts_loss_kwargs = False

    # Modules that belong to a task, not to the pre-training: adapters train them and save them in their file.
    task_module_names: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a model from a folder or a repository of the Hub.

        Beside those of this package, files, folders and repositories with published weights can be loaded, for
        example those of the organisation torch-pointcloud: weights in other names, and no configuration of
        transformers. Widths, depth and classes are then read from the tensors; heads, groups, their sizes and radii
        are those of the published model, unless fields of the configuration are passed (`num_groups=128`).

        Args:
            pretrained_model_name_or_path: Name of a repository, a folder, or a file of published weights.
            *model_args: As in transformers.
            **kwargs: As in transformers.

        Returns:
            The model, in eval mode.

        Raises:
            ValueError: If the weights are those of another model type.
        """
        weights = find_published_weights(pretrained_model_name_or_path, kwargs)
        if weights is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        name = str(pretrained_model_name_or_path)
        config, state_dict, kwargs = load_published_weights(cls, weights, name, kwargs)
        loaded = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Adapters remember the name of their backbone.
        model.name_or_path = model.config.name_or_path = name
        return loaded


class PointPreTrainedModel(BackbonePreTrainedModel):
    """Base of the models of objects, which encode groups of points."""

    config_class = PointTransformerConfig
    main_input_name = "points"
    input_modalities = ("points",)
    _no_split_modules = ["PointTransformerLayer"]
    _supports_sdpa = True
    _supports_flex_attn = False
    _supports_flash_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(OwnTokens, capture_initial_hidden_state=False),
        "attentions": OutputRecorder(PointAttention, index=1),
    }

    # The norm after the last block, which the paper's method tunes as well.
    final_norm_names: tuple[str, ...] = ("layernorm",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassToken):
            init.trunc_normal_(module.token, std=self.config.initializer_range)
            init.trunc_normal_(module.position, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that turns groups into tokens; gradient checkpointing hooks its output."""
        return getattr(self, self.base_model_prefix, self).patch_embedding

    @torch.no_grad()
    def precompute(self, points: torch.Tensor, sample_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """What depends on each cloud alone while the model is trained: of the adapters at work and the frozen parts.

        Groups of points, embedded groups, tokens that leave frozen blocks, queries of a bank, bases. Where clouds are
        not augmented all this is the same in every epoch: `model(points, precomputed=...)` does not compute it again.
        It holds until other weights are trained, or other adapters are at work, than now.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`.

        Returns:
            Tensors by name, one row a cloud.
        """
        known: dict[str, torch.Tensor] = {}
        self.base_model.encode(points, sample_ids, known)
        return known

    def frozen_features(self, points: torch.Tensor) -> torch.Tensor:
        """Features of the pre-trained encoder, untouched by any adapter.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        return self.base_model.frozen_features(points)


class Encoded(NamedTuple):
    """What an encoder makes of clouds.

    Attributes:
        tokens: The tokens that left the last block, with those that adapters inserted to stay.
        normed: The same after the final norm.
        pooled: What a classification head reads, of shape `(batch_size, pooled_size)`.
        levels: The tokens that left the blocks that were asked for.
    """

    tokens: Tokens
    normed: Tokens
    pooled: torch.Tensor
    levels: tuple[Tokens, ...]


class PointEncoderMixin:
    """The forward pass of an encoder, around its `encode`."""

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor,
        sample_ids: torch.Tensor | None = None,
        precomputed: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> PointModelOutput | tuple:
        """Encode clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least as many points as there are groups and
                as a group has points.
            sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`, -1 where unknown. Only
                adapters need them that know single training clouds, and only in training.
            precomputed: What need not be computed again of these clouds: from `precompute(points)`, or from an earlier
                pass, as what a dict lacks is added to it.
            **kwargs: `output_hidden_states`: whether to return the tokens at every block (class and patch tokens; of a
                backbone of several stages, each in its own number and width). `output_attentions`: whether to return
                the attention weights; needs `attn_implementation="eager"`. `return_dict`. Other keys, which trainers
                pass along, are ignored.

        Returns:
            The tokens after the final norm (class token first), the pooled features and the centres.

        Raises:
            ValueError: If the clouds are not a float tensor of that shape, not finite or too small.
        """
        encoded = self.encode(points, sample_ids, precomputed)
        return PointModelOutput(
            last_hidden_state=encoded.normed.own(),
            pooler_output=encoded.pooled,
            group_centers=encoded.normed.centers,
        )

    def check_frozen(self, reason: str) -> None:
        """Check that nothing is trained of the pre-trained encoder.

        Args:
            reason: Why not, for the message.

        Raises:
            ValueError: If something is, with its name.
        """
        left_out = () if getattr(self, "is_pretrained_with_class_token", False) else self.task_module_names
        check_not_trained(self, reason, left_out)

    def modules_behind(self, name: str) -> tuple[nn.Module, ...] | None:
        """What the value of this name in `precompute` is computed with.

        Encoders of one configuration in which these modules have the same weights compute the same value of a cloud.

        Args:
            name: Name of the value.

        Returns:
            Modules of the encoder, none for what depends on the points alone; `None` for a value of an adapter, or of
            a copy that an adapter has of a module.
        """
        owner, kind, detail = (*name.split(".", 2), "", "")[:3]
        if owner == "backbone" and kind in ("centers", "neighborhoods", "neighbors"):
            return ()
        if owner == "backbone" and kind == "embedded" and detail in ("", "0"):
            return self._embedding_modules()
        if owner == "backbone" and (kind == "embedded" or (kind == "block" and detail.isdigit())):
            return (self,)
        return None

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        """What makes the tokens of the first stage of groups."""
        raise NotImplementedError

    def check_points(self, points: torch.Tensor, num_groups: int, group_size: int) -> torch.Tensor:
        """Check the clouds; geometry is computed in float32 whatever the weights are in."""
        validate_points(points, minimum=max(num_groups, group_size))
        return points if points.dtype == torch.float64 else points.float()


class PointClassificationMixin:
    """A classifier: the encoder, then `classifier` on its pooled features."""

    encoder_class: ClassVar[type[PreTrainedModel]]
    head_class: ClassVar[type[nn.Module]] = ClassificationHead

    def __init__(self, config: PointTransformerConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.encoder_class(config))
        self.classifier = self.build_head(self.base_model.readout_slot.hidden_size)
        self._build_more(config)
        self.post_init()

    def _build_more(self, config: PointTransformerConfig) -> None:
        """Build what a classifier has besides encoder and head; by default nothing."""

    def build_head(self, in_size: int) -> nn.Module:
        """A new head for features of shape `(batch_size, in_size)`."""
        config = self.config
        return self.head_class(in_size, config.classifier_hidden_size, config.num_labels, config.classifier_dropout)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        precomputed: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> PointClassifierOutput | tuple:
        """Classify clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least as many points as there are groups and
                as a group has points.
            labels: Class indices of shape `(batch_size,)`, for the loss.
            sample_ids: As for the encoder.
            precomputed: As for the encoder.
            **kwargs: As for the encoder.

        Returns:
            Logits of shape `(batch_size, num_labels)`, and the loss if `labels` are given.

        Raises:
            ValueError: If the clouds or the labels do not fit the model.
        """
        encoded = self.base_model.encode(points, sample_ids, precomputed)
        logits = self.classifier(encoded.pooled)
        loss = None
        if labels is not None:
            losses = (*encoded.tokens.losses, *self.further_losses(encoded))
            loss = sum(losses, classification_loss(logits, labels, self.config))
        return PointClassifierOutput(loss=loss, logits=logits)

    def further_losses(self, encoded: Encoded) -> tuple[torch.Tensor, ...]:
        """Scalars that the backbone itself adds to the loss of the task."""
        return ()


class MaskedAutoencoderMixin:
    """What masked autoencoders share: a `mask_token`, and which groups are masked."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedAutoencoderMixin):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    def _random_mask(self, centers: torch.Tensor) -> torch.Tensor:
        """Mask groups with centres of shape `(batch_size, num_groups, 3)`; at least one of each cloud, and not all."""
        batch_size, num_groups, _ = centers.shape
        num_masked = min(max(int(self.config.mask_ratio * num_groups), 1), num_groups - 1)
        noise = torch.rand(batch_size, num_groups, device=centers.device)
        return torch.zeros_like(noise, dtype=torch.bool).scatter(1, noise.argsort(dim=1)[:, :num_masked], True)

    @staticmethod
    def _check_mask(mask: torch.Tensor, centers: torch.Tensor, count: str = "num_groups") -> torch.Tensor:
        expected = tuple(centers.shape[:2])
        if tuple(mask.shape) != expected or mask.dtype != torch.bool:
            raise ValueError(
                f"`mask` must be a bool tensor of shape (batch_size, {count}) = {expected}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        if mask.all(dim=1).any() or not mask.any(dim=1).all():
            raise ValueError(
                "`mask` must mask at least one group of each cloud and not all, got "
                f"{mask.sum(dim=1).tolist()} of {expected[1]}."
            )
        return mask


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: PointConfig) -> torch.Tensor:
    """Cross-entropy with the label smoothing of the configuration.

    Args:
        logits: Class scores of shape `(batch_size, num_labels)`.
        labels: Class indices of shape `(batch_size,)`.
        config: Configuration of the model.

    Returns:
        The mean loss, a scalar.

    Raises:
        ValueError: If the labels have another shape or are not classes of this model.
    """
    labels = labels.to(logits.device)
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`labels` must have shape (batch_size,) = ({logits.shape[0]},), got {tuple(labels.shape)}. ModelNet40's "
            "hdf5 files store (batch_size, 1): use labels.flatten()."
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be class indices of an integer type, got {labels.dtype}. Use labels.long().")
    if not torch.compiler.is_compiling() and labels.numel():
        low, high = torch.stack(torch.aminmax(labels)).tolist()  # one wait for the GPU
        if low < 0 or high >= config.num_labels:
            raise ValueError(
                f"`labels` contain {high if high >= config.num_labels else low}, but the model has num_labels="
                f"{config.num_labels} classes (0 to {config.num_labels - 1}). Load the backbone with "
                "`num_labels=` the number of your classes."
            )
    return F.cross_entropy(logits.float(), labels.long(), label_smoothing=config.label_smoothing)
