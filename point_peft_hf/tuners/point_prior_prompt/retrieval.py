"""Asking the memory bank: parameter-free attention of Point-PEFT (arXiv 2310.03059, section 3.2) and other forms.

The bank is gone through in chunks, so that memory is bounded whatever its size and however it is stored; what is found
is merged as if the bank had been looked at as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .quantization import dequantize

# Entries that are looked at together. On a CPU, what int8 is converted to stays in the cache.
CHUNK_SIZE = 8192


class Entries(NamedTuple):
    """Entries of a bank, as they are stored.

    Attributes:
        features: L2-normalised features of shape `(bank_size, hidden_size)`, in float32 or int8.
        scales: For int8 what to multiply them by, of shape `(bank_size,)`.
        labels: Class index of each, of shape `(bank_size,)`.
        sample_ids: Number of the cloud of each, of shape `(bank_size,)`; needed to leave own entries out.
    """

    features: torch.Tensor
    scales: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    sample_ids: torch.Tensor | None = None

    def chunk(self, start: int, stop: int) -> Entries:
        """Some of the entries."""
        return Entries(*(None if part is None else part[start:stop] for part in self))

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The features of single entries, of the shape of `indices` and one dimension more."""
        flat = indices.flatten()
        scales = None if self.scales is None else self.scales[flat]
        return dequantize(self.features[flat], scales, dtype).unflatten(0, indices.shape)


class Found(NamedTuple):
    """What a bank answers to a batch of queries; all entries from the most similar down.

    Attributes:
        indices: Which entries, of shape `(batch_size, num_entries)`.
        similarities: Their cosine similarities to the query, of the same shape; -inf for those that are left out.
        weights: Their share of the average, of the same shape.
        mean: The weighted average, of shape `(batch_size, hidden_size)`.
    """

    indices: torch.Tensor
    similarities: torch.Tensor
    weights: torch.Tensor
    mean: torch.Tensor


@torch.no_grad()
def search(
    queries: torch.Tensor,
    entries: Entries,
    num_entries: int,
    num_averaged: int,
    *,
    form: str = "top_k",
    own_ids: torch.Tensor | None = None,
) -> Found:
    """Find the most similar entries of a bank, and average.

    Args:
        queries: L2-normalised features of the clouds, of shape `(batch_size, hidden_size)`, in float32 or float64.
        entries: The bank, with at least `num_entries` entries.
        num_entries: Number of entries to return.
        num_averaged: Number of them that are averaged.
        form: "top_k", or "softmax" (the average is over the whole bank). The weights are the softmax of the
            similarities.
        own_ids: Number of the clouds, of shape `(batch_size,)`; entries with this number are left out, except for -1.

    Returns:
        What was found.
    """
    best = _TopK(num_entries)
    average = _StreamingSoftmax() if form == "softmax" else None
    for start, chunk, features, similarities in _similarities(queries, entries):
        if own_ids is not None:
            is_own = (own_ids[:, None] == chunk.sample_ids) & (own_ids >= 0)[:, None]
            similarities = similarities.masked_fill(is_own, -math.inf)
        best.add(similarities, start)
        if average is not None:
            average.add(similarities, features, chunk.scales)
    similarities, indices = best.result()
    if average is not None:
        return Found(indices, similarities, average.weights(similarities), average.mean())
    weights = F.softmax(similarities[:, :num_averaged], dim=-1)
    # Nothing but own entries would give 0 / 0.
    weights = weights if own_ids is None else weights.nan_to_num()
    mean = (weights[:, None] @ entries.rows(indices[:, :num_averaged], queries.dtype)).squeeze(1)
    return Found(indices, similarities, F.pad(weights, (0, similarities.shape[1] - weights.shape[1])), mean)


def retrieve(
    query_features: torch.Tensor,
    bank: Entries | torch.Tensor,
    num_rows: int,
    num_retrieved: int,
    *,
    form: str = "top_k",
    own_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """What prompts are enhanced with: rows [own feature, average of what is found, single entries].

    Args:
        query_features: Features of the clouds, of shape `(batch_size, hidden_size)`, not normalised.
        bank: The entries, or their features of shape `(bank_size, hidden_size)`; with no entries, the cloud's own
            normalised feature stands in for all that would be retrieved.
        num_rows: Number of rows to return.
        num_retrieved: Number of entries that are averaged, as [`search`] does.
        form: "top_k" (as published) or "softmax", see [`search`].
        own_ids: Numbers of the clouds, of shape `(batch_size,)`, to leave their own entries out; the average stands in
            for an entry that is missing for that reason.

    Returns:
        Features of shape `(batch_size, num_rows, hidden_size)`, without gradient.
    """
    entries = bank if isinstance(bank, Entries) else Entries(bank)
    # Similarities differ in the third decimal: half precision would not tell which is the higher.
    with torch.no_grad(), torch.autocast(query_features.device.type, enabled=False):
        queries = normalized_queries(query_features)
        num_single = max(num_rows - 2, 0)
        if len(entries.features) == 0:
            retrieved = queries[:, None].expand(-1, num_rows - 1, -1)
        else:
            found = search(
                queries,
                entries,
                max(num_retrieved, num_single),
                num_retrieved,
                form=form,
                own_ids=own_ids,
            )
            mean, single = found.mean[:, None], entries.rows(found.indices[:, :num_single], queries.dtype)
            if own_ids is not None:
                is_left = found.similarities[:, :, None] > -math.inf
                mean = torch.where(is_left.any(dim=1, keepdim=True), mean, queries[:, None])
                single = torch.where(is_left[:, :num_single], single, mean)
            retrieved = torch.cat([mean, single], dim=1)[:, : num_rows - 1]
        return torch.cat([query_features[:, None], retrieved.to(query_features.dtype)], dim=1)


def normalized_queries(query_features: torch.Tensor) -> torch.Tensor:
    """L2-normalise features of shape `(batch_size, hidden_size)`, at least in float32."""
    dtype = torch.promote_types(query_features.dtype, torch.float32)
    return F.normalize(query_features.to(dtype), dim=-1)


def _similarities(
    queries: torch.Tensor, entries: Entries
) -> Iterator[tuple[int, Entries, torch.Tensor, torch.Tensor]]:
    """Chunks of a bank: where they start, as they are stored, their features before scaling, the similarities."""
    for start in range(0, len(entries.features), CHUNK_SIZE):
        chunk = entries.chunk(start, start + CHUNK_SIZE)
        features = chunk.features.to(queries.dtype)
        similarities = queries @ features.T
        if chunk.scales is not None:
            similarities = similarities * chunk.scales.to(queries.dtype)
        yield start, chunk, features, similarities


class _TopK:
    """The most similar entries of all chunks seen so far."""

    def __init__(self, count: int):
        self.count = count
        self.best: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, similarities: torch.Tensor, start: int) -> None:
        values, indices = similarities.topk(min(self.count, similarities.shape[1]), dim=-1)
        self.best = _merge(self.best, (values, indices + start), self.count)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.best


class _StreamingSoftmax:
    """The average over all entries weighted by the softmax of their similarities, chunk by chunk."""

    def __init__(self):
        self.largest, self.total, self.sum = None, 0.0, 0.0

    def add(self, similarities: torch.Tensor, features: torch.Tensor, scales: torch.Tensor | None) -> None:
        scores = similarities
        largest = scores.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        if self.largest is not None:
            largest = torch.maximum(self.largest, largest)
            shrink = (self.largest - largest).exp()
            self.total, self.sum = self.total * shrink, self.sum * shrink
        weights = (scores - largest).exp()
        self.largest, self.total = largest, self.total + weights.sum(dim=-1, keepdim=True)
        self.sum = self.sum + (weights if scales is None else weights * scales.to(weights.dtype)) @ features

    def weights(self, similarities: torch.Tensor) -> torch.Tensor:
        return ((similarities - self.largest).exp() / self.total).nan_to_num()

    def mean(self) -> torch.Tensor:
        return (self.sum / self.total).nan_to_num()


def _merge(
    best: tuple[torch.Tensor, torch.Tensor] | None, found: tuple[torch.Tensor, torch.Tensor], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of two lists of values and indices."""
    if best is None:
        return found
    values, indices = torch.cat([best[0], found[0]], dim=1), torch.cat([best[1], found[1]], dim=1)
    values, order = values.topk(min(count, values.shape[1]), dim=-1)
    return values, indices.gather(1, order)
