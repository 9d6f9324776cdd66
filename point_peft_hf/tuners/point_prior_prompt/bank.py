"""The memory bank of the Point-prior Prompt: how it is asked, and how it is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..base import SlotLayer


@dataclass
class PointPriorBank:
    """Features of the training clouds, as a frozen encoder sees them.

    Attributes:
        features: L2-normalised features of shape `(bank_size, hidden_size)`.
        labels: Class index of each entry, of shape `(bank_size,)`, -1 where unknown.
        sample_ids: Number of the cloud in its data set, of shape `(bank_size,)`, -1 where unknown.
    """

    features: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor


class BankBuffers(nn.Module):
    """The bank inside of an adapter: saved in its file, never trained.

    Args:
        bank_size: Number of entries.
        hidden_size: Width of the features.
    """

    def __init__(self, bank_size: int, hidden_size: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(bank_size, hidden_size))
        self.register_buffer("labels", torch.full((bank_size,), -1))
        self.register_buffer("sample_ids", torch.full((bank_size,), -1))

    def __len__(self) -> int:
        return len(self.features)


def retrieve(
    query_features: torch.Tensor,
    bank: torch.Tensor,
    num_rows: int,
    num_retrieved: int,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Ask the bank: parameter-free attention of Point-PEFT (arXiv 2310.03059, section 3.2).

    With the cosine similarities s to the entries, the weights w are the softmax of the `num_retrieved` highest s, and
    the rows of the result are [own feature, sum of w * entries, entries from the most similar down].

    Args:
        query_features: Features of the clouds, of shape `(batch_size, hidden_size)`, not normalised.
        bank: L2-normalised features of shape `(bank_size, hidden_size)`; with no entries, the cloud's own normalised
            feature stands in for all that would be retrieved.
        num_rows: Number of rows to return.
        num_retrieved: Number of entries that are averaged.
        temperature: Temperature of the softmax.

    Returns:
        Features of shape `(batch_size, num_rows, hidden_size)`, without gradient.
    """
    with torch.no_grad():
        features = query_features[:, None]
        normalized = F.normalize(query_features.float(), dim=-1)
        if len(bank) == 0:
            retrieved = normalized[:, None].expand(-1, num_rows - 1, -1)
        else:
            bank = bank.float()
            num_entries = max(num_retrieved, num_rows - 2)
            similarities, indices = (normalized @ bank.T).topk(num_entries, dim=-1)
            weights = F.softmax(similarities[:, :num_retrieved] / temperature, dim=-1)
            entries = F.embedding(indices, bank)
            mean = weights[:, None] @ entries[:, :num_retrieved]
            retrieved = torch.cat([mean, entries[:, : max(num_rows - 2, 0)]], dim=1)[:, : num_rows - 1]
        return torch.cat([features, retrieved.to(features.dtype)], dim=1)


def build_point_prior_bank(
    model: nn.Module, dataloader: Iterable[Mapping[str, Any]], *, progress: bool = True
) -> PointPriorBank:
    """Build the memory bank of the training clouds, and give it to the prompt adapter if `model` carries one.

    The features come from the frozen pre-trained encoder, whatever adapters are attached. Nothing is trained.

    Args:
        model: A backbone of point_peft_hf, or a `PeftModel` around one.
        dataloader: Batches with "points" of shape `(batch_size, num_points, 3)` and, if known, "labels" and
            "sample_ids" of shape `(batch_size,)`. Not augmented, and of the training clouds only.
        progress: Whether to show a progress bar.

    Returns:
        The bank, on the CPU.

    Raises:
        ValueError: If the data loader is empty or lacks the points, if a feature is not finite, or if the bank does
            not fit the adapter.
    """
    if not hasattr(model, "extract_prior_features"):
        raise ValueError(
            f"{type(model).__name__} has no method `extract_prior_features(points)`, which returns the features of "
            "the "
            "frozen encoder, of shape (batch_size, hidden_size). The backbones of point_peft_hf have it; define it "
            "on your "
            "own backbone."
        )
    device = next(model.parameters()).device
    features, labels, sample_ids = [], [], []
    for batch in tqdm(dataloader, desc="Building the point-prior bank", disable=not progress, leave=False):
        if "points" not in batch:
            raise ValueError(f"A batch for the bank must have the key 'points', got the keys {sorted(batch)}.")
        batch_features = F.normalize(model.extract_prior_features(batch["points"].to(device)).float(), dim=-1).cpu()
        if not torch.isfinite(batch_features).all():
            raise ValueError(
                f"Clouds {len(features)} and following give features that are not finite: the weights of the "
                "backbone are "
                "broken, or its dtype overflows. Check the checkpoint, or load it in float32."
            )
        unknown = torch.full((len(batch_features),), -1)
        features.append(batch_features)
        labels.append(torch.as_tensor(batch["labels"]).flatten().cpu().long() if "labels" in batch else unknown)
        sample_ids.append(
            torch.as_tensor(batch["sample_ids"]).flatten().cpu().long() if "sample_ids" in batch else unknown
        )
    if not features:
        raise ValueError("The data loader for the bank has no batches: check the folder and `drop_last`.")
    bank = PointPriorBank(torch.cat(features), torch.cat(labels), torch.cat(sample_ids))
    if any(True for _ in _bank_layers(model)):
        set_point_prior_bank(model, bank)
    return bank


def set_point_prior_bank(model: nn.Module, bank: PointPriorBank, adapter_name: str | None = None) -> None:
    """Give a bank to a prompt adapter. Its size goes into the adapter's configuration.

    Args:
        model: A model with an adapter that has prompts and `use_bank=True`.
        bank: The bank, from [`build_point_prior_bank`].
        adapter_name: Which adapter; default: all active ones that use a bank.

    Raises:
        ValueError: If there is no such adapter, or if the bank does not fit it.
    """
    layers = [
        (layer, name)
        for layer in _bank_layers(model)
        for name in ([adapter_name] if adapter_name else layer.active_adapters)
        if layer.part("bank", name) is not None
    ]
    if not layers:
        raise ValueError(
            f"{'Adapter ' + repr(adapter_name) if adapter_name else 'No active adapter'} of this model uses a bank. "
            "Add one "
            "with PointPriorPromptConfig or PointPeftConfig (and `use_bank=True`) first."
        )
    for layer, name in layers:
        layer.set_bank(name, bank)


def check_bank(bank: PointPriorBank, hidden_size: int, required_size: int) -> None:
    """Check that a bank fits an adapter.

    Raises:
        ValueError: If it does not.
    """
    features = bank.features
    if features.ndim != 2 or features.shape[1] != hidden_size:
        raise ValueError(
            f"The bank has features of shape {tuple(features.shape)}, but the backbone has width {hidden_size}: it "
            "was "
            "built with another backbone. Build it with this one: build_point_prior_bank(model, dataloader)."
        )
    if not torch.isfinite(features).all():
        raise ValueError("The bank has features that are not finite. Build it again: build_point_prior_bank(...).")
    if len(features) < required_size:
        raise ValueError(
            f"The bank has {len(features)} entries, but the adapter retrieves {required_size} (from "
            "`num_prompt_tokens` and "
            "`num_retrieved`). Build it from more clouds, or lower these."
        )
    for name in ("labels", "sample_ids"):
        if len(getattr(bank, name)) != len(features):
            raise ValueError(f"The bank has {len(features)} features but {len(getattr(bank, name))} {name}.")


def _bank_layers(model: nn.Module) -> Iterable[SlotLayer]:
    return (m for m in model.modules() if isinstance(m, SlotLayer) and "bank" in m.buffer_parts and len(m.banks))
