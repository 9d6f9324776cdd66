"""Configuration of the Point-prior Prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..config import PointTunerConfig


@dataclass
class PromptOptions:
    """Fields of the Point-prior Prompt (Point-PEFT, arXiv 2310.03059, section 3.2); defaults are the paper's values.

    Args:
        num_prompt_tokens: Prompt tokens of a block (the paper has 10 for ScanObjectNN, 16 for ModelNet40).
        prompt_depth: The first so many blocks get prompts (the paper has 6 of 12 for ScanObjectNN, all for
            ModelNet40); `None`: all.
        prompt_bottleneck_size: Width of the bottleneck that adapts the retrieved features.
        prompt_dropout: Dropout on the prompt embeddings and inside the bottleneck.
        use_bank: Whether prompts are enhanced with features from a memory bank; if not, they are plain deep prompts.
        num_retrieved: Entries of the bank that are averaged; default: as many as there are prompt tokens beside the
            cloud's own feature and the average, `num_prompt_tokens - 2`.
        retrieval_temperature: Temperature of the softmax over the similarities of the retrieved entries.
        bank_size: Number of entries of the bank, kept up to date when a bank is set, so that loading can allocate it.
        use_prompt_coordinates: Whether prompts have learnable coordinates, with which a Geometry-aware Adapter groups
            them with the tokens. Default: `False` here; `True` in [`PointPeftConfig`].
    """

    num_prompt_tokens: int = field(default=10, metadata={"help": "Prompt tokens of a block."})
    prompt_depth: int | None = field(default=6, metadata={"help": "Blocks with prompts; None: all."})
    prompt_bottleneck_size: int = field(default=8, metadata={"help": "Width of the prompts' bottleneck."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout on the prompts."})
    use_bank: bool = field(default=True, metadata={"help": "Enhance prompts with a memory bank."})
    num_retrieved: int | None = field(
        default=None, metadata={"help": "Averaged entries; None: two less than prompts."}
    )
    retrieval_temperature: float = field(default=1.0, metadata={"help": "Temperature of the softmax."})
    bank_size: int = field(default=0, metadata={"help": "Entries of the bank; set with the bank."})
    use_prompt_coordinates: bool = field(default=False, metadata={"help": "Give prompts coordinates."})

    @property
    def retrieved_count(self) -> int:
        """Number of bank entries that are averaged."""
        return self.num_retrieved if self.num_retrieved is not None else max(self.num_prompt_tokens - 2, 1)

    @property
    def required_bank_size(self) -> int:
        """The smallest bank that can be used."""
        return max(self.retrieved_count, self.num_prompt_tokens - 2)

    def _check_prompts(self) -> None:
        self._check_at_least("num_prompt_tokens", self.num_prompt_tokens, 1)
        self._check_at_least("prompt_bottleneck_size", self.prompt_bottleneck_size, 1)
        self._check_at_least("bank_size", self.bank_size, 0)
        if self.prompt_depth is not None:
            self._check_at_least("prompt_depth", self.prompt_depth, 1)
        if self.num_retrieved is not None:
            self._check_at_least("num_retrieved", self.num_retrieved, 1)
        self._check_above_zero("retrieval_temperature")
        self._check_rates("prompt_dropout")


@dataclass
class PointPriorPromptConfig(PromptOptions, PointTunerConfig):
    """Configuration of Point-prior Prompts (type POINT_PRIOR_PROMPT).

    See [`PromptOptions`] for the fields of the method and [`~point_peft_hf.tuners.config.PointTunerConfig`] for those
    of all 3D adapters.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    _peft_type_name: ClassVar[str] = "POINT_PRIOR_PROMPT"

    def __post_init__(self):
        super().__post_init__()
        self._check_prompts()
