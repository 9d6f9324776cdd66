"""Smaller banks: a subset of the entries, or prototypes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from .bank import PointPriorBank

METHODS = ("class_balanced", "herding", "kmeans")
_KMEANS_ITERATIONS = 25
_KMEANS_TRIALS = 8


@torch.no_grad()
def compress_bank(bank: PointPriorBank, size: int, method: str = "class_balanced", seed: int = 0) -> PointPriorBank:
    """Make a bank smaller. It does not depend on the process or the state of any random generator.

    Args:
        bank: The bank.
        size: Number of entries to keep; a bank that has no more is returned as it is.
        method: "class_balanced": a random choice, equally many of each class, and all of a class that has fewer.
            "herding": as many of each class, chosen one after the other so that their mean comes closest to that of
            the class (iCaRL, arXiv 1611.07725, section 2). "kmeans": L2-normalised centroids of spherical k-means with
            the label that most of their members have; they belong to no cloud, so their sample id is -1. Entries
            without a label count as one class.
        seed: Seed of the choice, and of the start of k-means.

    Returns:
        A bank of `size` entries; those that are kept are in their old order.

    Raises:
        ValueError: If there is no such method, or `size` is no number above 0.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"`size` must be a number of at least 1, got {size!r}.")
    if len(bank) <= size:
        return bank
    generator = torch.Generator().manual_seed(seed)
    if method == "kmeans":
        return _prototypes(bank, size, generator)
    choose = _random_choice if method == "class_balanced" else _herd
    kept = [
        members[choose(bank.features[members.to(bank.features.device)].cpu(), quota, generator)]
        for members, quota in _quotas(bank.labels.cpu(), size)
    ]
    index = torch.cat(kept).sort().values
    parts = {name: getattr(bank, name) for name in ("features", "labels", "sample_ids")}
    return replace(bank, **{name: part[index.to(part.device)] for name, part in parts.items()})


def _quotas(labels: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, int]]:
    """For each class its entries, and how many of them to keep: equally many, as far as there are."""
    members = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    # From the smallest class up; what it does not use is shared by the others.
    members.sort(key=len)
    for position, entries in enumerate(members):
        quota = min(len(entries), size // (len(members) - position))
        size -= quota
        yield entries, quota


def _random_choice(features: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(len(features), generator=generator)[:count]


def _herd(features: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    features = features.double()
    target = features.mean(dim=0)
    left = torch.ones(len(features), dtype=torch.bool)
    chosen, total, norms = [], torch.zeros_like(target), features.square().sum(dim=1)
    for step in range(1, count + 1):
        # |step * target - total - feature| is smallest; the part without the feature is the same for all.
        wanted = step * target - total
        distances = norms - 2 * (features @ wanted)
        best = int(distances.masked_fill(~left, torch.inf).argmin())
        chosen.append(best)
        left[best] = False
        total += features[best]
    return torch.tensor(chosen, dtype=torch.long)


def _prototypes(bank: PointPriorBank, size: int, generator: torch.Generator) -> PointPriorBank:
    """Spherical k-means: the nearest centroid is that of the highest cosine."""
    features = F.normalize(bank.features.cpu().float(), dim=1)
    centroids = _far_apart(features, size, generator)
    nearest = None
    for _ in range(_KMEANS_ITERATIONS):
        similarities, assigned = (features @ centroids.T).max(dim=1)
        assigned = _fill_empty(assigned, similarities, size)
        if nearest is not None and torch.equal(assigned, nearest):
            break
        nearest = assigned
        sums = torch.zeros_like(centroids).index_add_(0, nearest, features)
        # Members that cancel out have no direction; such a centroid stays where it was.
        has_direction = sums.norm(dim=1, keepdim=True) > 1e-6
        centroids = torch.where(has_direction, F.normalize(sums, dim=1), centroids)
    labels = bank.labels.cpu().long()
    offset = int(labels.min())
    votes = torch.zeros(size, int(labels.max()) - offset + 1)
    votes.index_put_((nearest, labels - offset), torch.ones(len(labels)), accumulate=True)
    return replace(
        bank,
        features=centroids.to(bank.features),
        labels=(votes.argmax(dim=1) + offset).to(bank.labels),
        sample_ids=torch.full((size,), -1).to(bank.sample_ids),
    )


def _far_apart(features: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Entries to start from, as greedy k-means++ draws them.

    Several at a time, the likelier the further from those before; the one stays that leaves all entries closest.
    """
    first = int(torch.randint(len(features), (1,), generator=generator))
    chosen, distances = [first], 1 - features @ features[first]
    for _ in range(count - 1):
        chances = distances.clamp_min(0).double()
        chances[chosen] = 0
        if not float(chances.sum()) > 0:
            # All that is left are copies of what was chosen.
            chances = torch.ones_like(chances).index_fill_(0, torch.tensor(chosen), 0)
        cumulated = chances.cumsum(dim=0)
        drawn = torch.rand(_KMEANS_TRIALS, generator=generator, dtype=torch.float64) * cumulated[-1]
        candidates = torch.searchsorted(cumulated, drawn, right=True).clamp_max(len(features) - 1)
        left = torch.minimum(distances[:, None], 1 - features @ features[candidates].T)
        best = int(left.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        distances = left[:, best]
    return features[chosen]


def _fill_empty(assigned: torch.Tensor, similarities: torch.Tensor, count: int) -> torch.Tensor:
    """Give each centroid without members the entry that fits its own centroid worst, if that keeps another."""
    sizes = assigned.bincount(minlength=count)
    empty = (sizes == 0).nonzero().squeeze(1).tolist()
    if not empty:
        return assigned
    assigned, worst_first = assigned.clone(), iter(similarities.argsort(stable=True).tolist())
    for centroid in empty:
        entry = next(entry for entry in worst_first if sizes[assigned[entry]] > 1)
        sizes[assigned[entry]] -= 1
        sizes[centroid] += 1
        assigned[entry] = centroid
    return assigned
