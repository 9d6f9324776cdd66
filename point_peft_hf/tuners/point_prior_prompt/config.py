"""Configuration of the Point-prior Prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config import PointTunerConfig

RETRIEVALS = ("top_k", "softmax", "class_balanced")
QUERIES = ("encoder", "tokens")
BANK_DTYPES = ("float32", "float16", "int8")
BANK_SELECTIONS = ("all", "class_balanced", "kmeans", "herding")
BANK_UPDATES = ("none", "ema", "queue")
# What a new adapter does where the paper has nothing to say: the bank of any data set adds at most 1.6 MB to the file
# of an adapter of width 384. In the file of an adapter all fields are spelt out.
DEFAULT_BANK_DTYPE = "int8"
DEFAULT_BANK_SELECTION = "herding"
DEFAULT_MAX_BANK_SIZE = 4096


@dataclass
class PromptOptions:
    """Fields of the Point-prior Prompt (Point-PEFT, arXiv 2310.03059, section 3.2); defaults are the paper's values.

    Args:
        num_prompt_tokens: Prompt tokens of a block (the paper has 10 for ScanObjectNN, 16 for ModelNet40).
        prompt_depth: The first so many blocks get prompts (the paper has 6 of 12 for ScanObjectNN, all for
            ModelNet40); `None`: all. Default: 6; on a backbone of several stages all, as only the blocks of the last
            stage use the bank. An adapter that is attached has the number here.
        prompt_bottleneck_size: Width of the bottleneck that adapts the retrieved features.
        prompt_dropout: Dropout on the prompt embeddings and inside the bottleneck.
        use_bank: Whether prompts are enhanced with features from a memory bank; if not, they are plain deep prompts.
        num_retrieved: Entries of the bank that are averaged; default: as many as there are prompt tokens beside the
            cloud's own feature and the average, `num_prompt_tokens - 2`.
        retrieval: How the average is formed. "top_k": over the most similar entries, weighted by the softmax of their
            similarities, as published. "softmax": over the whole bank, weighted likewise; the single entries stay the
            most similar ones. "class_balanced": as "top_k", but the best entry of each class comes before the second
            best of any, and so on; needs labels.
        retrieval_temperature: Temperature of the softmax over the similarities.
        leave_own_entry_out: Whether a training cloud does not retrieve its own entry, as it never will be able to when
            it is a test cloud. The model must be passed the `sample_ids` that the bank was built with; -1 is no cloud.
        query: What the bank holds and is asked with. "encoder": the feature of the whole frozen encoder, as published,
            which takes a second pass through it. "tokens": the mean over the patch tokens of the frozen encoder behind
            `query_depth` blocks, for a single pass.
        query_depth: Number of blocks in front of the query, for `query="tokens"`; 0: behind the patch embedding. On a
            backbone of several stages 0 means the tokens that enter the last stage, and nothing else does. Prompts
            start behind these blocks. What trained adapters on these blocks change is not seen: they are then run a
            second time without adapters.
        bank_size: Number of entries of the bank, kept up to date when a bank is set, so that loading can allocate it.
        bank_dtype: What the bank is stored as, in memory as in the file: "float32", "float16", or "int8" with a scale
            for each entry. Default: "int8" ("float32" for a file that does not say).
        bank_selection: What becomes of a bank with more than `max_bank_size` entries. "all": it is refused.
            "class_balanced": a random choice, equally many of each class as far as there are. "herding": of each class
            those that approximate its mean best, the default. "kmeans": centroids, which are no clouds any more.
        max_bank_size: Largest number of entries; `None`: no limit.
        bank_update: How the bank changes in training. "none": it does not. "ema": the entries of the batch's clouds
            move towards their features in the adapted model, read in the place of the query. "queue": these features
            replace the oldest entries.
        bank_momentum: What remains of an entry in a step of "ema".
        use_prompt_coordinates: Whether prompts have learnable coordinates, with which a Geometry-aware Adapter groups
            them with the tokens. Default: `False` here; `True` in [`PointPeftConfig`].
    """

    num_prompt_tokens: int = field(default=10, metadata={"help": "Prompt tokens of a block."})
    prompt_depth: int | str | None = field(default="auto", metadata={"help": "Blocks with prompts; None: all."})
    prompt_bottleneck_size: int = field(default=8, metadata={"help": "Width of the prompts' bottleneck."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout on the prompts."})
    use_bank: bool = field(default=True, metadata={"help": "Enhance prompts with a memory bank."})
    num_retrieved: int | None = field(
        default=None, metadata={"help": "Averaged entries; None: two less than prompts."}
    )
    retrieval: str = field(default="top_k", metadata={"help": f"One of {', '.join(RETRIEVALS)}."})
    retrieval_temperature: float = field(default=1.0, metadata={"help": "Temperature of the softmax."})
    leave_own_entry_out: bool = field(default=False, metadata={"help": "Training clouds do not see their own entry."})
    query: str = field(default="encoder", metadata={"help": f"One of {', '.join(QUERIES)}."})
    query_depth: int = field(default=0, metadata={"help": "Blocks in front of the query 'tokens'."})
    bank_size: int = field(default=0, metadata={"help": "Entries of the bank; set with the bank."})
    bank_dtype: str | None = field(default=None, metadata={"help": f"One of {', '.join(BANK_DTYPES)}."})
    bank_selection: str = field(
        default=DEFAULT_BANK_SELECTION, metadata={"help": f"One of {', '.join(BANK_SELECTIONS)}."}
    )
    max_bank_size: int | None = field(
        default=DEFAULT_MAX_BANK_SIZE, metadata={"help": "Largest number of entries; None: no limit."}
    )
    bank_update: str = field(default="none", metadata={"help": f"One of {', '.join(BANK_UPDATES)}."})
    bank_momentum: float = field(default=0.99, metadata={"help": "What remains of an entry in a step of 'ema'."})
    use_prompt_coordinates: bool = field(default=False, metadata={"help": "Give prompts coordinates."})

    @property
    def retrieved_count(self) -> int:
        """Number of bank entries that are averaged, unless all are."""
        return self.num_retrieved if self.num_retrieved is not None else max(self.num_prompt_tokens - 2, 1)

    @property
    def required_bank_size(self) -> int:
        """The smallest bank that can be used."""
        return max(self.retrieved_count, self.num_prompt_tokens - 2)

    def resolve_prompt_depth(self, has_stages: bool) -> None:
        """Put a number of blocks for "auto".

        Args:
            has_stages: Whether the backbone has several stages.

        Raises:
            ValueError: If that leaves no block behind `query_depth`.
        """
        if self.prompt_depth == "auto":
            self.prompt_depth = None if has_stages else 6
            self._check_query()

    def _check_prompts(self) -> None:
        self._check_at_least("num_prompt_tokens", self.num_prompt_tokens, 1)
        self._check_at_least("prompt_bottleneck_size", self.prompt_bottleneck_size, 1)
        self._check_at_least("bank_size", self.bank_size, 0)
        self._check_at_least("query_depth", self.query_depth, 0)
        for name in ("prompt_depth", "num_retrieved"):
            if getattr(self, name) not in (None, "auto"):
                if isinstance(getattr(self, name), str):
                    raise ValueError(f"`{name}` must be a number, None or 'auto', got {getattr(self, name)!r}.")
                self._check_at_least(name, getattr(self, name), 1)
        self._check_above_zero("retrieval_temperature")
        self._check_rates("prompt_dropout", "bank_momentum")
        if self.bank_dtype is None:
            # A file that names its backbone but not this field was written when there was only one dtype.
            self.bank_dtype = DEFAULT_BANK_DTYPE if self.backbone is None else "float32"
        self._check_choice("retrieval", RETRIEVALS)
        self._check_choice("query", QUERIES)
        self._check_choice("bank_dtype", BANK_DTYPES)
        self._check_choice("bank_selection", BANK_SELECTIONS)
        self._check_choice("bank_update", BANK_UPDATES)
        self._check_query()
        self._check_bank()

    def _check_query(self) -> None:
        if self.query == "encoder" and self.query_depth > 0:
            raise ValueError(
                f"`query_depth`={self.query_depth} goes with `query='tokens'`; the query 'encoder' is behind all "
                "blocks. Set `query`, or leave `query_depth` out."
            )
        if isinstance(self.prompt_depth, int) and self.query_depth >= self.prompt_depth:
            raise ValueError(
                f"`query_depth`={self.query_depth} leaves no block for prompts, which start behind the query: "
                f"`prompt_depth`={self.prompt_depth} takes the first {self.prompt_depth} blocks. Lower the one, or "
                "raise the other."
            )

    def _check_bank(self) -> None:
        if self.max_bank_size is not None:
            # One more than is retrieved, so that a cloud's own entry can be left out.
            self._check_at_least("max_bank_size", self.max_bank_size, self.required_bank_size + 1)
        elif self.bank_selection == "kmeans":
            raise ValueError(
                f"`bank_selection`={self.bank_selection!r} needs a `max_bank_size`, got None. Set one or choose 'all'."
            )
        if self.bank_selection == "kmeans" and (self.leave_own_entry_out or self.bank_update == "ema"):
            name = "leave_own_entry_out" if self.leave_own_entry_out else "bank_update"
            raise ValueError(
                f"`{name}`={getattr(self, name)!r} needs entries that belong to single clouds, and "
                "`bank_selection='kmeans'` leaves none. Choose 'class_balanced' or 'herding'."
            )


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

    @classmethod
    def describe(cls, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """See [`~point_peft_hf.tuners.config.PointTunerConfig.describe`]."""
        names = ("num_prompt_tokens", "prompt_depth")
        if not fields.get("use_bank", True):
            return "deep prompts (VPT, arXiv 2203.12119): prompt tokens in the blocks, without a memory bank", names
        text = "Point-prior Prompts (Point-PEFT, arXiv 2310.03059): prompt tokens enhanced from a memory bank"
        return text, (*names, "bank_size")
