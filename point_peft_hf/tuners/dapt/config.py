"""Configuration of DAPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import PointTunerConfig, option


@dataclass
class DAPTConfig(PointTunerConfig):
    """Configuration of DAPT, Dynamic Adapter meets Prompt Tuning (arXiv 2403.01439; type DAPT).

    Three parts. Trained scales and shifts follow every norm, every linear layer of the blocks and the patch embedding.
    An adapter parallel to each feed-forward network scales what it adds to a token by a number that it computes from
    the token. And the mean over what it adds becomes a prompt token, which stays for the following blocks; the head
    reads class token, prompts and patch tokens.

    The defaults are the published values for the hardest variant of ScanObjectNN (PB_T50_RS), where the backbone's
    `drop_path_rate` is 0.3. OBJ_BG has `dropout=0.5`; OBJ_ONLY has `dropout=0.0, patch_pooling=None` and a
    `drop_path_rate` of 0.1; [`for_modelnet40`] has the values for ModelNet40.

    Prompts take part in the attention, so a fresh adapter changes the function. In a backbone of several stages the
    prompts of a stage leave at its end, and the head reads those of the last stage. In part segmentation the head gets
    the prompts in addition to its own summary of the cloud.

    Where the number that scales is 0 for all tokens of a block (a ReLU decides that), its adapter gets no gradient any
    more; the picture "scale of the adapter" of `point-peft visualize` shows it. Three groups of parameters are
    declared as in the published code, but have the gradient 0: the shift of the keys, which leaves the softmax as it
    is; the shift after the final norm, where the head begins with a batch normalisation, which removes it; and with
    `prompt_pooling=None` scale and shift of the prompt of the last block, which nothing reads.

    Args:
        bottleneck_size: Width inside of the adapters (`bottleneck_pattern` for single blocks).
        dropout: Dropout inside of the adapters.
        class_token: Whether the head reads the class token, where the backbone has one.
        prompt_pooling: How the head reads the prompts: "mean", "max", or `None` for not at all.
        patch_pooling: How the head reads the patch tokens: "max", "mean", or `None` for not at all.
        position: "every": position embeddings are added in front of every block, as in pre-training. "once": in front
            of the first block only, as in the published code, so checkpoints from it need that.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    bottleneck_size: int = option(64, "Width inside of the adapters.", at_least=1)
    dropout: float = option(0.2, "Dropout inside of the adapters.", is_rate=True)
    class_token: bool = option(True, "Whether the head reads the class token.")
    prompt_pooling: str | None = option(
        "mean", "Prompts in the head: mean, max or None.", choices=("mean", "max", None)
    )
    patch_pooling: str | None = option("max", "Patches in the head: max, mean or None.", choices=("mean", "max", None))
    position: str = option("every", "Positions in front of 'every' block, or 'once'.", choices=("every", "once"))

    card_text = "DAPT (arXiv 2403.01439): adapters with a scale for each token, and prompts made of what they add"
    card_fields = ("bottleneck_size", "prompt_pooling", "patch_pooling", "position")

    def __post_init__(self):
        super().__post_init__()
        self._check_reads("class_token", "prompt_pooling", "patch_pooling")

    @classmethod
    def for_modelnet40(cls, **fields: Any) -> DAPTConfig:
        """The published values for ModelNet40; the backbone's `drop_path_rate` is 0.1 there.

        Args:
            **fields: Fields that are to have other values.
        """
        return cls(**{"bottleneck_size": 72, "dropout": 0.0, "prompt_pooling": None, **fields})
