"""The value that moves through a backbone: tokens, and what adapters know of the clouds they belong to.

[`Tokens`] goes from slot to slot and from block to block. It is immutable: whoever changes it returns a new one. So an
adapter has no place to keep anything of a forward pass in, and one model can serve several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree

START = "start"
CLASS = "class"
PATCH = "patch"


class Span(NamedTuple):
    """Tokens that stand side by side in the sequence and belong together.

    Attributes:
        owner: "start" (some backbones have such a token), "class", "patch", or the key of the adapter that inserted
            them.
        count: Number of tokens.
        keeps: Whether they stay for the following blocks of the stage; if not, they leave at the end of the block.
        coordinates: Their place in the unit of the cloud, of shape `(batch_size, count, 3)` or `(count, 3)`, or `None`
            for tokens without one, which join no neighbourhood.
    """

    owner: str
    count: int
    keeps: bool = True
    coordinates: torch.Tensor | None = None


class Memo:
    """What is computed once in a forward pass and has no gradient: neighbourhoods, frozen features, bases.

    Args:
        kept: Values of each cloud that outlive the pass, by name. What is there is not computed again, and what is not
            there is added. The backbone asks for its own constant parts here as well then: groups, embedded groups,
            tokens that leave frozen blocks.
    """

    def __init__(self, kept: dict[str, torch.Tensor] | None = None):
        self.kept = kept
        self.values: dict[str, Any] = dict(kept or {})

    def once(
        self,
        name: str,
        compute: Callable[[], Any],
        *,
        per_cloud: bool = False,
        shape: tuple[int, ...] | None = None,
    ) -> Any:
        """Return the value of this name; `compute` is called without gradient where there is none yet.

        Args:
            name: Name of the value. It starts with the key of the adapter that asks.
            compute: What returns the value.
            per_cloud: Whether the value is a tensor that depends on each cloud alone, one row a cloud, so that it can
                be kept for a later pass on these clouds.
            shape: Shape that the value must have if it is passed in; default: any.

        Raises:
            ValueError: If a value that was passed in has another shape.
        """
        if name not in self.values:
            with torch.no_grad():
                self.values[name] = compute()
            if per_cloud and self.kept is not None:
                self.kept[name] = self.values[name]
        return self._checked(name, shape)

    def all_once(
        self, shapes: Mapping[str, tuple[int, ...]], compute: Callable[[], Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Values of each cloud that are computed together, of the given names and shapes; see `once`."""
        if any(name not in self.values for name in shapes):
            with torch.no_grad():
                values = dict(zip(shapes, compute(), strict=True))
            self.values |= values
            if self.kept is not None:
                self.kept |= values
        return [self._checked(name, shape) for name, shape in shapes.items()]

    def _checked(self, name: str, shape: tuple[int, ...] | None) -> Any:
        value = self.values[name]
        if shape is not None and value.shape != shape:
            raise ValueError(
                f"`precomputed[{name!r}]` must have shape {shape}, got {tuple(value.shape)}. Take it from "
                "`model.precompute(points)` of the same clouds."
            )
        return value


@dataclass(frozen=True)
class Cloud:
    """The clouds of a batch: the same for all blocks.

    Attributes:
        points: The clouds as the backbone groups them, of shape `(batch_size, num_points, 3)`.
        source: The clouds as they were passed in, of shape `(batch_size, num_source_points, 3)`.
        sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`, -1 where unknown, or `None`.
        memo: What is computed once.
        shared: What an adapter's layer in front of the blocks hands to its layers in the blocks and the read-out, by
            the adapter's key: tensors (with their graph), parameters, modules.
    """

    points: torch.Tensor
    source: torch.Tensor
    sample_ids: torch.Tensor | None = None
    memo: Memo = field(default_factory=Memo)
    shared: Mapping[str, Any] = field(default_factory=dict)

    def sharing(self, key: str, value: Any) -> Cloud:
        """Return these clouds with a value for the layers of an adapter, under its key."""
        return replace(self, shared={**self.shared, key: value})


@dataclass(frozen=True)
class Tokens:
    """The tokens of a stage.

    The sequence is start token (if the backbone has one), class token, then what adapters inserted, then patch tokens:
    in a backbone whose tokens only see those in front of them, patch tokens see them all.

    Attributes:
        features: Of shape `(batch_size, sequence_length, hidden_size)`, without position embeddings.
        positions: Position embeddings, of the same shape, which every block adds to its input; `None` for none.
        spans: What the sequence consists of, in order.
        cloud: The clouds.
        carry: What an adapter carries from slot to slot and from block to block, by its key: a tensor with its graph,
            or a tuple of tensors.
        losses: Scalars that adapters add to the loss of the task.
        mask: Additive attention mask of shape `(batch_size or 1, 1, sequence_length, sequence_length)`, or `None`.
        is_causal: Whether a token only sees itself and those in front of it.
        lasting_positions: Where tokens live for one block only: their `positions`, and the tensor that is left when
            they leave. So all blocks share one, which is kept for the backward pass once.
        constant: Where these tokens depend on nothing but their cloud and weights that nothing trains or adapts: what
            their values in the memo are known by. `None` elsewhere; the blocks see to it.
    """

    features: torch.Tensor
    positions: torch.Tensor | None
    spans: tuple[Span, ...]
    cloud: Cloud
    carry: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[torch.Tensor, ...] = ()
    mask: torch.Tensor | None = None
    is_causal: bool = False
    lasting_positions: tuple[torch.Tensor, torch.Tensor] | None = None
    constant: str | None = None

    # -- Reading ------------------------------------------------------------------------------------------------------

    @property
    def patches(self) -> torch.Tensor:
        """Features of the patch tokens, of shape `(batch_size, num_groups, hidden_size)`."""
        return self.features[:, self.features.shape[1] - self.num_patches :]

    @property
    def num_patches(self) -> int:
        """Number of patch tokens, the last ones of the sequence."""
        return self.spans[-1].count

    @property
    def centers(self) -> torch.Tensor:
        """Centres of the patch tokens, of shape `(batch_size, num_groups, 3)`, in the unit of the cloud."""
        return self.spans[-1].coordinates

    @property
    def num_prefix(self) -> int:
        """Number of start and class tokens, the first ones of the sequence."""
        count = 0
        for span in self.spans:
            if span.owner not in (START, CLASS):
                break
            count += span.count
        return count

    def ranges(self) -> list[tuple[Span, int, int]]:
        """The spans with their first row and the row after their last, in order."""
        ranges, start = [], 0
        for span in self.spans:
            ranges.append((span, start, start + span.count))
            start += span.count
        return ranges

    def places(self, owner: str) -> list[slice]:
        """Where the spans of an owner are in the sequence, in order."""
        return [slice(start, stop) for span, start, stop in self.ranges() if span.owner == owner]

    def of(self, owner: str, values: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of an owner, of shape `(batch_size, count, size)`.

        Args:
            owner: "class", "patch" or the key of an adapter.
            values: Rows of the whole sequence; default: the features.
        """
        values = self.features if values is None else values
        pieces = [values[:, place] for place in self.places(owner)]
        return pieces[0] if len(pieces) == 1 else torch.cat([values[:, :0], *pieces], dim=1)

    def own(self) -> torch.Tensor:
        """Features of the backbone's own tokens, of shape `(batch_size, num_prefix + num_groups, hidden_size)`."""
        own = self.num_prefix + self.num_patches
        if own == self.features.shape[1]:
            return self.features
        return torch.cat([self.features[:, : self.num_prefix], self.patches], dim=1)

    def embedded(self) -> torch.Tensor:
        """Features with their position embeddings: what a block works on."""
        return self.features if self.positions is None else self.features + self.positions

    # -- Changing -----------------------------------------------------------------------------------------------------

    def with_features(self, features: torch.Tensor) -> Tokens:
        """Return these tokens with other features, of the same shape."""
        # Not `replace`, which takes several times as long: three times in each block.
        return Tokens(
            features,
            self.positions,
            self.spans,
            self.cloud,
            self.carry,
            self.losses,
            self.mask,
            self.is_causal,
            self.lasting_positions,
        )

    def in_dtype(self, dtype: torch.dtype) -> Tokens:
        """Return these tokens with features and position embeddings in another dtype."""
        positions = None if self.positions is None else self.positions.to(dtype)
        return replace(self, features=self.features.to(dtype), positions=positions)

    def add_to(self, owner: str, update: torch.Tensor) -> Tokens:
        """Return these tokens with an update added to the rows of an owner.

        Args:
            owner: "class", "patch" or the key of an adapter.
            update: Of shape `(batch_size, count, hidden_size)`, the spans of the owner one after the other.
        """
        pieces, taken = [], 0
        for span, start, stop in self.ranges():
            rows = self.features[:, start:stop]
            if span.owner == owner:
                rows = rows + update[:, taken : taken + span.count]
                taken += span.count
            pieces.append(rows)
        return self.with_features(torch.cat(pieces, dim=1))

    def carrying(self, key: str, value: Any) -> Tokens:
        """Return these tokens with a state of an adapter, under its key, for the slots and blocks to come."""
        return replace(self, carry={**self.carry, key: value})

    def taking(self, key: str) -> tuple[Any, Tokens]:
        """What is carried under a key, `None` if nothing is, and these tokens without it."""
        rest = {name: value for name, value in self.carry.items() if name != key}
        return self.carry.get(key), replace(self, carry=rest)

    def continuing(self, carry: Mapping[str, Any], losses: tuple[torch.Tensor, ...]) -> Tokens:
        """Return these tokens, which enter a stage, with what the stage before carried on."""
        return replace(self, carry=carry, losses=losses)

    def with_loss(self, loss: torch.Tensor) -> Tokens:
        """Return these tokens with one more scalar for the loss of the task."""
        return replace(self, losses=(*self.losses, loss))

    def sharing(self, key: str, value: Any) -> Tokens:
        """Return these tokens with [`Cloud.sharing`]."""
        return replace(self, cloud=self.cloud.sharing(key, value))

    def insert(
        self,
        owner: str,
        features: torch.Tensor,
        positions: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        keeps: bool = False,
    ) -> Tokens:
        """Return these tokens with others inserted in front of the patch tokens, which see and are seen by all.

        Args:
            owner: Key of the adapter they belong to.
            features: Of shape `(batch_size, count, hidden_size)`.
            positions: Their position embeddings, of shape `(batch_size, count, hidden_size)`; `None` for none.
            coordinates: Their place in the unit of the cloud, of shape `(batch_size, count, 3)` or `(count, 3)`.
            keeps: Whether they stay for the following blocks of the stage.
        """
        count, start = features.shape[1], self.features.shape[1] - self.num_patches
        merged = _spliced(self.features, features.to(self.features.dtype), start)
        merged_positions = None
        if self.positions is not None or positions is not None:
            own = torch.zeros_like(self.features) if self.positions is None else self.positions
            rows = torch.zeros_like(features) if positions is None else positions
            merged_positions = _spliced(own, rows.to(own.dtype), start)
        lasting = None if keeps else self._known_lasting_positions()
        return replace(
            self,
            features=merged,
            positions=merged_positions,
            spans=(*self.spans[:-1], Span(owner, count, keeps, coordinates), self.spans[-1]),
            mask=self._grown_mask(count, start),
            lasting_positions=None if lasting is None else (merged_positions, lasting),
        )

    def without(self, *owners: str) -> Tokens:
        """Return these tokens without those of some adapters, and without those that live for one block only."""
        if not any(self.places(owner) for owner in owners):
            return self
        spans = tuple(span._replace(keeps=span.keeps and span.owner not in owners) for span in self.spans)
        return replace(self, spans=spans).drop_passing()

    def drop_passing(self) -> Tokens:
        """Return these tokens without those that live for one block only."""
        for span in self.spans:
            if not span.keeps:
                break
        else:
            return self
        lasting = self._known_lasting_positions()
        merged = _merged([(start, stop) for span, start, stop in self.ranges() if span.keeps])

        def rows(values: torch.Tensor, dim: int = 1) -> torch.Tensor:
            pieces = [values.narrow(dim, first, last - first) for first, last in merged]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)

        return replace(
            self,
            features=rows(self.features),
            positions=rows(self.positions) if lasting is None and self.positions is not None else lasting,
            spans=tuple([span for span in self.spans if span.keeps]),
            mask=None if self.mask is None else rows(rows(self.mask, 2), 3),
            lasting_positions=None,
        )

    def _known_lasting_positions(self) -> torch.Tensor | None:
        """The positions of the tokens that stay, if they are at hand."""
        if self.lasting_positions is not None and self.lasting_positions[0] is self.positions:
            return self.lasting_positions[1]
        return None if False in [span.keeps for span in self.spans] else self.positions

    def _grown_mask(self, count: int, start: int) -> torch.Tensor | None:
        """The mask with rows and columns of 0 for tokens that see and are seen by all."""
        mask = self.mask
        if mask is None:
            return None
        if start == 0:
            return F.pad(mask, (count, 0, count, 0))
        for dim in (2, 3):
            shape = [*mask.shape]
            shape[dim] = count
            first, last = mask.split([start, mask.shape[dim] - start], dim=dim)
            mask = torch.cat([first, mask.new_zeros(shape), last], dim=dim)
        return mask

    # -- As plain tensors ---------------------------------------------------------------------------------------------

    def to_tensors(self) -> tuple[list[Any], Callable[[Sequence[Any]], Tokens]]:
        """Everything that may be part of the graph, as a list, and what makes tokens of such a list again."""
        coordinates = [span.coordinates for span in self.spans]
        tree = (self.features, self.positions, coordinates, dict(self.carry), self.losses, dict(self.cloud.shared))
        leaves, structure = pytree.tree_flatten(tree)

        def rebuild(leaves: Sequence[Any]) -> Tokens:
            features, positions, coordinates, carry, losses, shared = pytree.tree_unflatten(leaves, structure)
            spans = tuple(
                span._replace(coordinates=place) for span, place in zip(self.spans, coordinates, strict=True)
            )
            cloud = replace(self.cloud, shared=shared)
            return replace(
                self, features=features, positions=positions, spans=spans, carry=carry, losses=losses, cloud=cloud
            )

        return leaves, rebuild


def start_tokens(
    features: torch.Tensor,
    centers: torch.Tensor,
    cloud: Cloud,
    positions: torch.Tensor | None = None,
    num_class: int = 0,
    num_start: int = 0,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> Tokens:
    """The tokens that enter a stage.

    Args:
        features: Of shape `(batch_size, num_start + num_class + num_groups, hidden_size)`, in this order.
        centers: Centres of the patch tokens, of shape `(batch_size, num_groups, 3)`, in the unit of the cloud.
        cloud: The clouds.
        positions: Position embeddings, of the shape of `features`; `None` for none.
        num_class: Number of class tokens.
        num_start: Number of start tokens.
        mask: Additive attention mask between these tokens, of shape `(batch_size or 1, 1, length, length)`.
        is_causal: Whether a token only sees itself and those in front of it.
    """
    prefix = [Span(owner, count) for owner, count in ((START, num_start), (CLASS, num_class)) if count]
    patches = Span(PATCH, features.shape[1] - num_start - num_class, coordinates=centers)
    return Tokens(features, positions, (*prefix, patches), cloud, mask=mask, is_causal=is_causal)


def _spliced(values: torch.Tensor, rows: torch.Tensor, start: int) -> torch.Tensor:
    pieces = [values[:, :start], rows, values[:, start:]] if start else [rows, values]
    return torch.cat(pieces, dim=1)


def _merged(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that follow each other, as one."""
    merged: list[tuple[int, int]] = []
    for first, last in places:
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return merged


def _flatten(tokens: Tokens) -> tuple[list[Any], Tokens]:
    # Coordinates and masks stay in the context: whoever casts what a module is called with (FSDP's mixed precision)
    # must not round the places of tokens.
    return [tokens.features, tokens.positions, dict(tokens.carry), tokens.losses], tokens


def _unflatten(children: Sequence[Any], tokens: Tokens) -> Tokens:
    features, positions, carry, losses = children
    return replace(tokens, features=features, positions=positions, carry=carry, losses=losses)


# Hooks of FSDP2 and the like look for tensors through pytrees.
pytree.register_pytree_node(Tokens, _flatten, _unflatten, serialized_type_name="point_peft_hf.tokens.Tokens")
