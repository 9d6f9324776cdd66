"""Configuration of the Point-prior Prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import PointTunerConfig, option

RETRIEVALS = ("top_k", "softmax")
QUERIES = ("tokens", "encoder")
BANK_DTYPES = ("float32", "int8")
BANK_SELECTIONS = ("herding", "random")
BANK_UPDATES = ("none", "ema", "queue")
# Where the paper says nothing: with these the bank of any data set adds at most 1.6 MB to the file of an adapter of
# width 384.
DEFAULT_BANK_DTYPE = "int8"
DEFAULT_MAX_BANK_SIZE = 4096


@dataclass
class PromptOptions:
    """Fields of the Point-prior Prompt (Point-PEFT, arXiv 2310.03059, section 3.2).

    Defaults are the paper's values, but for the query.

    Args:
        num_prompt_tokens: Prompt tokens of a block (the paper has 10 for ScanObjectNN, 16 for ModelNet40).
        prompt_depth: Number of blocks, from the first, that get prompts (the paper has 6 of 12 for ScanObjectNN, all
            for ModelNet40); `None`: all. Default: 6; on a backbone of several stages all, as only the blocks of the
            last stage use the bank. An adapter that is attached has the number here.
        prompt_bottleneck_size: Width of the bottleneck that adapts the retrieved features.
        dropout: Dropout on the prompt embeddings and inside the bottlenecks.
        use_bank: Whether prompts are enhanced with features from a memory bank; if not, they are plain deep prompts.
        retrieval: How the average of entries is formed. "top_k": over the most similar ones, as many as there are
            prompt tokens besides the cloud's own feature and the average (`num_prompt_tokens - 2`), weighted by the
            softmax of their similarities, as published. "softmax": over the whole bank, weighted likewise; the single
            entries stay the most similar ones.
        leave_own_entry_out: Whether a training cloud does not retrieve its own entry, as it never can when it is a
            test cloud. The model must be passed the `sample_ids` that the bank was built with; -1 stands for none.
        query: What the bank holds and is asked with. "tokens": the mean over the patch tokens that enter the blocks
            (of the last stage), for a single pass; no less accurate in the comparison, but not what was published.
            "encoder": the feature of the whole frozen encoder, as published, which takes a second pass through it.
            Backbones that are not of this package have "encoder" only.
        bank_size: Number of entries of the bank, kept up to date when a bank is set, so that loading can allocate it.
        bank_dtype: What the bank is stored as, in memory as in the file: "float32", or "int8" with a scale for each
            entry.
        bank_selection: Which entries of a bank with more than `max_bank_size` are kept. "herding": of each class those
            that approximate its mean best. "random": a random choice, equally many of each class as far as there are.
        max_bank_size: Largest number of entries; `None`: no limit.
        bank_update: How the bank changes in training. "none": it does not. "ema": the entries of the batch's clouds
            move towards their features in the adapted model, read in the place of the query. "queue": these features
            replace the oldest entries. Needs `query="encoder"`, but on a backbone of several stages.
    """

    num_prompt_tokens: int = option(10, "Prompt tokens of a block.", at_least=1)
    prompt_depth: int | str | None = option("auto", "Blocks with prompts; None: all.")
    prompt_bottleneck_size: int = option(8, "Width of the prompts' bottleneck.", at_least=1)
    dropout: float = option(0.1, "Dropout on prompts and inside the bottlenecks.", is_rate=True)
    use_bank: bool = option(True, "Enhance prompts with a memory bank.")
    retrieval: str = option("top_k", f"One of {', '.join(RETRIEVALS)}.", choices=RETRIEVALS)
    leave_own_entry_out: bool = option(False, "Training clouds do not see their own entry.")
    query: str = option("tokens", f"One of {', '.join(QUERIES)}.", choices=QUERIES)
    bank_size: int = option(0, "Entries of the bank; set with the bank.", at_least=0)
    bank_dtype: str = option(DEFAULT_BANK_DTYPE, f"One of {', '.join(BANK_DTYPES)}.", choices=BANK_DTYPES)
    bank_selection: str = option("herding", f"One of {', '.join(BANK_SELECTIONS)}.", choices=BANK_SELECTIONS)
    max_bank_size: int | None = option(DEFAULT_MAX_BANK_SIZE, "Largest number of entries; None: no limit.")
    bank_update: str = option("none", f"One of {', '.join(BANK_UPDATES)}.", choices=BANK_UPDATES)

    @property
    def retrieved_count(self) -> int:
        """Number of bank entries that are averaged, unless all are."""
        return max(self.num_prompt_tokens - 2, 1)

    @property
    def required_bank_size(self) -> int:
        """The smallest bank that can be used."""
        return self.retrieved_count

    def resolve_prompt_depth(self, has_stages: bool) -> None:
        """Put a number of blocks for "auto"."""
        if self.prompt_depth == "auto":
            self.prompt_depth = None if has_stages else 6

    def _check_prompts(self) -> None:
        if self.prompt_depth not in (None, "auto"):
            if isinstance(self.prompt_depth, str):
                raise ValueError(f"`prompt_depth` must be a number, None or 'auto', got {self.prompt_depth!r}.")
            self._check_at_least("prompt_depth", self.prompt_depth, 1)
        if self.max_bank_size is not None:
            # One more than is retrieved, so that a cloud's own entry can be left out.
            self._check_at_least("max_bank_size", self.max_bank_size, self.required_bank_size + 1)


@dataclass
class PointPriorPromptConfig(PromptOptions, PointTunerConfig):
    """Configuration of Point-prior Prompts (type POINT_PRIOR_PROMPT).

    See [`PromptOptions`] for the fields of the method and [`~point_peft_hf.tuners.config.PointTunerConfig`] for those
    of all 3D adapters.

    Args:
        use_prompt_coordinates: Whether prompts have learnable coordinates, with which a Geometry-aware Adapter on the
            same backbone groups them with the tokens.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    use_prompt_coordinates: bool = option(False, "Give prompts coordinates.")

    def __post_init__(self):
        super().__post_init__()
        self._check_prompts()

    @classmethod
    def describe(cls, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """See [`~point_peft_hf.tuners.config.PointTunerConfig.describe`]."""
        names = ("num_prompt_tokens", "prompt_depth")
        if not fields.get("use_bank", True):
            return "deep prompts (VPT, arXiv 2203.12119): prompt tokens in the blocks, without a memory bank", names
        text = "Point-prior Prompts (Point-PEFT, arXiv 2310.03059): prompt tokens enhanced from a memory bank"
        return text, (*names, "bank_size")
