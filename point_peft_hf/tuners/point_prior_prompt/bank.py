"""The memory bank of the Point-prior Prompt: as data, and as part of an adapter."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ...io.backbone import common_precision, fingerprint
from ..slot_layer import SlotLayer
from .compression import compress_bank
from .config import PromptOptions
from .quantization import FEATURE_DTYPES, quantize
from .retrieval import Entries

logger = logging.getLogger(__name__)

_FORMAT = "point_prior_bank"


@dataclass
class PointPriorBank:
    """Features of the training clouds, as a frozen encoder sees them.

    Attributes:
        features: L2-normalised features of shape `(bank_size, hidden_size)`.
        labels: Class index of each entry, of shape `(bank_size,)`, -1 where unknown.
        sample_ids: Number of the cloud in its data set, of shape `(bank_size,)`, -1 where unknown.
        backbone: Fingerprint of the encoder, by precision; `None` where unknown.
        query: Where in the encoder the features come from: "encoder" or "tokens".
    """

    features: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    backbone: dict[str, str] | None = None
    query: str = "tokens"

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: str | Path) -> None:
        """Save the bank on its own, as one safetensors file.

        Args:
            path: The file.
        """
        about = {"backbone": self.backbone, "query": self.query}
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        save_file(tensors, path, metadata={"format": "pt", _FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> PointPriorBank:
        """Load what [`save`] wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If the file is not that of a bank.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})[_FORMAT])
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            return cls(**tensors, **about)
        except (KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(
                f"{path} is not the file of a point-prior bank ({error}). Write one with `PointPriorBank.save`."
            ) from error


_TENSORS = ("features", "labels", "sample_ids")


class BankBuffers(nn.Module):
    """The bank inside of an adapter: saved in its file, never trained by gradient.

    Args:
        bank_size: Number of entries.
        hidden_size: Width of the features.
        dtype: "float32" or "int8", whatever the dtype of the backbone.
        is_queue: Whether entries are replaced in turn, so that the next one has to be remembered.
    """

    def __init__(self, bank_size: int, hidden_size: int, dtype: str = "float32", is_queue: bool = False):
        super().__init__()
        self.feature_dtype = FEATURE_DTYPES[dtype]
        self.register_buffer("features", torch.zeros(bank_size, hidden_size, dtype=self.feature_dtype))
        self.register_buffer("scales", torch.zeros(bank_size) if dtype == "int8" else None)
        self.register_buffer("labels", torch.full((bank_size,), -1, dtype=torch.int32))
        self.register_buffer("sample_ids", torch.full((bank_size,), -1, dtype=torch.int32))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64) if is_queue else None)
        # What the stored entries were rounded from, while they change in training. Neither saved nor moved.
        self.exact_features: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def entries(self) -> Entries:
        """The entries, as they are stored."""
        return Entries(self.features, self.scales, self.labels, self.sample_ids)

    def fill(self, bank: PointPriorBank) -> None:
        """Take over the entries of a bank, on the device that this one is on."""
        device = self.features.device
        self.features, self.scales = quantize(bank.features.to(device), self.feature_dtype)
        self.labels = bank.labels.to(device, torch.int32)
        self.sample_ids = bank.sample_ids.to(device, torch.int32)
        if self.oldest is not None:
            self.oldest.zero_()
        self.exact_features = None

    def _apply(self, fn, recurse: bool = True):
        # The backbone's dtype, and what it is cast to, say nothing of how the bank is stored.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if buffer is not None and self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.exact_features = None


def set_point_prior_bank(model: nn.Module, bank: PointPriorBank, adapter_name: str | None = None) -> None:
    """Give a bank to a prompt adapter: selected, and stored, as its configuration says, which gets the size.

    Args:
        model: A model with an adapter that has prompts and `use_bank=True`.
        bank: The bank, from [`build_point_prior_bank`].
        adapter_name: Which adapter; default: all active ones that use a bank.

    Raises:
        ValueError: If there is no such adapter, or if the bank does not fit it or is of another backbone.
    """
    layers = adapters_with_bank(model, adapter_name)
    if not layers:
        raise ValueError(
            f"{'Adapter ' + repr(adapter_name) if adapter_name else 'No active adapter'} of this model uses a bank. "
            "Add one with PointPriorPromptConfig or PointPeftConfig (and `use_bank=True`) first."
        )
    own = backbone_fingerprint(model, layers[0][0].configs[layers[0][1]]) if bank.backbone else None
    for layer, name in layers:
        check_same_backbone(bank.backbone, own, f"The bank for adapter {name!r}")
        layer.set_bank(name, bank)


def select_entries(bank: PointPriorBank, config: PromptOptions) -> PointPriorBank:
    """Choose the entries that an adapter keeps."""
    size = config.max_bank_size
    if size is None or len(bank) <= size:
        return bank
    logger.warning(
        "The bank has %d entries, of which %d are kept (`bank_selection`=%r). Raise `max_bank_size` to keep more.",
        len(bank),
        size,
        config.bank_selection,
    )
    return compress_bank(bank, size, config.bank_selection)


def check_bank(bank: PointPriorBank, hidden_size: int, config: PromptOptions) -> None:
    """Check that a bank fits an adapter."""
    features = bank.features
    if features.ndim != 2 or features.shape[1] != hidden_size:
        raise ValueError(
            f"The bank has features of shape {tuple(features.shape)}, but the backbone has width {hidden_size}: it "
            "was built with another backbone. Build it with this one: build_point_prior_bank(model, dataloader)."
        )
    for name in ("labels", "sample_ids"):
        values = getattr(bank, name)
        if len(values) != len(features):
            raise ValueError(f"The bank has {len(features)} features but {len(values)} {name}.")
        if len(values) and int(values.max()) > torch.iinfo(torch.int32).max:
            raise ValueError(
                f"The `{name}` of a bank must be below 2**31, got {int(values.max())}. Number the clouds from 0."
            )
    if not torch.isfinite(features).all():
        raise ValueError("The bank has features that are not finite. Build it again: build_point_prior_bank(...).")
    if bank.query != config.query:
        raise ValueError(
            f"The bank was built with query={bank.query!r}, but the adapter asks with query={config.query!r}. Build "
            "it again for this adapter."
        )
    _check_entries(bank, config)


def _check_entries(bank: PointPriorBank, config: PromptOptions) -> None:
    """Check that an adapter finds the entries that it needs."""
    is_numbered = bank.sample_ids >= 0
    required, reason = config.required_bank_size, ""
    if config.leave_own_entry_out and bool(is_numbered.any()):
        own = int(bank.sample_ids[is_numbered].unique(return_counts=True)[1].max())
        required, reason = required + own, f", besides the {own} of the cloud itself"
    if len(bank) < required:
        raise ValueError(
            f"The bank has {len(bank)} entries, but the adapter retrieves {config.required_bank_size}{reason} (from "
            "`num_prompt_tokens`). Build it from more clouds, or lower that."
        )
    for name, is_on in (
        ("leave_own_entry_out", config.leave_own_entry_out),
        ("bank_update", config.bank_update == "ema"),
    ):
        if is_on and not bool(is_numbered.any()):
            raise ValueError(
                f"The bank has no sample ids, which `{name}`={getattr(config, name)!r} needs to find the entries of a "
                'cloud. Build it from batches with "sample_ids".'
            )


def backbone_fingerprint(model: nn.Module, config: PromptOptions | None = None) -> dict[str, str]:
    """The fingerprint of the backbone under all adapters, as it is now.

    Args:
        model: A backbone, or a `PeftModel` around one.
        config: Configuration of an adapter on it; what the adapter brings with it is left out of a backbone that does
            not declare its task modules itself.
    """
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    return fingerprint(backbone, (config.modules_to_save if config is not None else None) or ())


def check_same_backbone(expected: dict[str, str] | None, got: dict[str, str] | None, subject: str) -> None:
    """Check two fingerprints against each other, as far as both are known."""
    precision = common_precision(expected or {}, got or {})
    if precision is not None and expected[precision] != got[precision]:
        raise ValueError(
            f"{subject} was built with a backbone of other weights: their {precision} fingerprint is "
            f"{expected[precision]}, but that of this one is {got[precision]}. Build it again with this backbone: "
            "build_point_prior_bank(model, dataloader)."
        )


def adapters_with_bank(model: nn.Module, adapter_name: str | None) -> list[tuple[SlotLayer, str]]:
    """The layers that hold a bank of an adapter, by default of all active ones, and the names of these adapters."""
    return [
        (layer, name)
        for layer in bank_layers(model)
        for name in ([adapter_name] if adapter_name else layer.active_adapters)
        if layer.part("bank", name) is not None
    ]


def bank_layers(model: nn.Module) -> Iterator[SlotLayer]:
    """The layers of a model that hold banks."""
    return (m for m in model.modules() if isinstance(m, SlotLayer) and "bank" in m.buffer_parts and len(m.banks))
