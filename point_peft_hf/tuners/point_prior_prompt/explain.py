"""A look inside: which training clouds the prompts of a cloud were drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .bank import BankBuffers, adapters_with_bank
from .build import query_features
from .config import PromptOptions
from .retrieval import normalized_queries, search


@dataclass
class RetrievalReport:
    """What a bank answered for a batch of clouds, on the CPU; entries from the most similar down.

    All have the shape `(batch_size, num_entries)`, with as many entries as are averaged or become a prompt.

    Attributes:
        indices: Which entries of the bank.
        sample_ids: Numbers of their clouds in the data set, -1 where unknown or where an entry is not a single cloud.
        labels: Their classes, -1 where unknown.
        weights: Their share of the average; 0 for an entry that only becomes a prompt of its own. They add up to 1,
            unless the average is over the whole bank (`retrieval="softmax"`).
        similarities: Their cosine similarity to the cloud.
    """

    indices: torch.Tensor
    sample_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    similarities: torch.Tensor


@torch.no_grad()
def explain_retrieval(model: nn.Module, points: torch.Tensor, adapter_name: str | None = None) -> RetrievalReport:
    """Find which training clouds the prompts of some clouds are drawn from, as in a prediction.

    Args:
        model: A model with an adapter that has prompts and a bank.
        points: Clouds of shape `(batch_size, num_points, 3)`.
        adapter_name: Which adapter; default: the active one that uses a bank.

    Returns:
        Entries, classes and weights.

    Raises:
        ValueError: If there is no such adapter, more than one, or its bank is empty.
    """
    found = adapters_with_bank(model, adapter_name)
    if len(found) != 1:
        who = f"Adapter {adapter_name!r}" if adapter_name else "No active adapter"
        problem = f"{who} of this model uses a bank." if not found else "Several active adapters use a bank."
        raise ValueError(f"{problem} Pass the name of one that does as `adapter_name`.")
    (layer, name) = found[0]
    config, bank = layer.configs[name], layer.banks[name]
    if len(bank) == 0:
        raise ValueError(f"Adapter {name!r} has an empty bank. Build it: build_point_prior_bank(model, dataloader).")
    query = query_features(model, config.query)(points.to(bank.features.device))
    return report_retrieval(query, bank, config)


def report_retrieval(query: torch.Tensor, bank: BankBuffers, config: PromptOptions) -> RetrievalReport:
    """What a bank answers, as far down as prompts are enhanced with it.

    Args:
        query: Features of the clouds, of shape `(batch_size, hidden_size)`.
        bank: The bank, with at least one entry.
        config: Configuration of the adapter.
    """
    answer = search(
        normalized_queries(query),
        bank.entries,
        config.required_bank_size,
        config.retrieved_count,
        form=config.retrieval,
    )
    return RetrievalReport(
        indices=answer.indices.cpu(),
        sample_ids=bank.sample_ids[answer.indices].long().cpu(),
        labels=bank.labels[answer.indices].long().cpu(),
        weights=answer.weights.cpu(),
        similarities=answer.similarities.cpu(),
    )
