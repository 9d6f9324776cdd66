"""Configuration of PointLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import PointTunerConfig, option


@dataclass
class PointLoRAConfig(PointTunerConfig):
    """Configuration of PointLoRA (arXiv 2504.16023; type POINTLORA).

    The cloud is grouped once more at each of several scales, a small network scores the tokens, and the best of them
    join the sequence. Small MLPs, one instance for all blocks, change patch tokens and selected tokens at the start of
    a block and add to queries, keys, values and attention output. These also get low-rank updates, with one way down
    for queries, keys and values (PEFT's own LoRA trains one for each). The defaults are the values published for
    ScanObjectNN. The selected tokens join the attention, so even a fresh adapter changes the function; its MLPs and
    low-rank updates start at 0.

    The first half of the patch embedding and the position embedding are trained and saved along with head and class
    token, as published; `modules_to_save` overrides that. In a backbone of several stages the selected tokens live in
    the first stage, whose tokens embed points, and every stage has its own MLPs. In part segmentation the head reads
    the patch tokens alone.

    Args:
        r: Rank of the updates, which are not scaled (`lora_alpha` is `r`).
        bottleneck_size: Inner width of the MLPs (`bottleneck_pattern` for those of single stages, at "token_slot").
        scales: For each scale the number of groups, the points of a group, and the number of tokens that are kept.
        mask_loss_weights: For each scale the weight of the loss on its scores.
        train_scores_by_task: Whether a selected token hands on the gradient of the task to its score; its value does
            not change. In the published code the scores learn nothing from the task.
        confident_scores: Whether the loss on the scores drives them away from 0.5. The published code drives them
            there, so that the selection becomes arbitrary.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    r: int = option(8, "Rank of the updates.", at_least=1)
    bottleneck_size: int = option(32, "Inner width of the MLPs.", at_least=1)
    scales: list[list[int]] = field(
        default_factory=lambda: [[128, 32, 32], [64, 64, 8]],
        metadata={"help": "Groups, points of a group and kept tokens of each scale."},
    )
    mask_loss_weights: list[float] = field(
        default_factory=lambda: [0.004, 0.001], metadata={"help": "Weights of the losses on the scores."}
    )
    train_scores_by_task: bool = option(True, "Scores get a gradient of the task.")
    confident_scores: bool = option(True, "The loss drives scores away from 0.5.")

    card_text = (
        "PointLoRA (arXiv 2504.16023): low-rank updates of the attention, and tokens selected at several scales"
    )
    card_fields = ("r", "scales", "bottleneck_size")

    def __post_init__(self):
        super().__post_init__()
        if not self.scales or len(self.scales) != len(self.mask_loss_weights):
            raise ValueError(
                "`scales` and `mask_loss_weights` must have one entry for each scale, got "
                f"{len(self.scales)} and {len(self.mask_loss_weights)}."
            )
        for scale in self.scales:
            if len(scale) != 3 or min(scale) < 1 or scale[2] > scale[0]:
                raise ValueError(
                    "Each of `scales` must be [groups, points of a group, kept tokens], numbers of at least 1 and not "
                    f"more tokens than groups, got {scale}."
                )
        for weight in self.mask_loss_weights:
            self._check_at_least("mask_loss_weights", weight, 0)
