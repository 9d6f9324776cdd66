"""What a model makes of one cloud: groups, attention, local centres, prompts, and what the bank answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.segmentation import leave_out_other_parts
from ..slots import BlockContext
from ..tuners import explain_retrieval
from ..tuners.geometry_adapter.layer import table_points
from ..tuners.point_prior_prompt.bank import bank_layers
from .scene import check_points


@dataclass
class BankAnswer:
    """What a point-prior bank answers for a cloud, from the most similar entry down.

    Attributes:
        labels: Class of each entry, of shape `(num_entries,)`, -1 where unknown.
        sample_ids: Number of its cloud in the data set, of the same shape, -1 where unknown.
        similarities: Cosine similarity to the cloud, of the same shape.
        weights: Share of the average that the prompts are enhanced with, of the same shape.
    """

    labels: np.ndarray
    sample_ids: np.ndarray
    similarities: np.ndarray
    weights: np.ndarray


@dataclass
class PromptPlaces:
    """Where the prompt tokens of an adapter are, and what they are enhanced with.

    Attributes:
        coordinates: Of shape `(num_prompt_tokens, 3)`, in the unit of the cloud.
        sources: For each prompt, what it is enhanced with, or "nothing".
        labels: For each prompt, the class of the bank's entry that it is enhanced with, or -1.
    """

    coordinates: np.ndarray
    sources: list[str]
    labels: list[int]


@dataclass
class CloudInspection:
    """What a model makes of one cloud; of a model with stages, in the last one.

    Attributes:
        points: The cloud, of shape `(num_points, 3)`.
        logits: Scores of shape `(num_labels,)`, or `(num_points, num_labels)` from a part segmentation; minus infinity
            for parts that the category of the object does not have.
        group_centers: Centres of the patch tokens, of shape `(num_groups, 3)`.
        attention: How much attention of the last block each patch token gets, mean over the heads, of shape
            `(num_groups,)`.
        attention_from: Whose attention: "the class token", or "all tokens" (their mean) in a model that has none.
        local_centers: Local centres of the geometry adapter, of shape `(num_local_centers, 3)`, or `None`.
        prompt_centers: Which of them are prompts, which have places of their own, of shape `(num_local_centers,)`.
        prompts: Where the prompts are, if they have places.
        bank: What the bank answers, by adapter name.
    """

    points: np.ndarray
    logits: np.ndarray
    group_centers: np.ndarray
    attention: np.ndarray
    attention_from: str
    local_centers: np.ndarray | None = None
    prompt_centers: np.ndarray | None = None
    prompts: list[PromptPlaces] = field(default_factory=list)
    bank: dict[str, BankAnswer] = field(default_factory=dict)

    @property
    def local_distances(self) -> np.ndarray | None:
        """Distance of each patch token to the nearest local centre, of shape `(num_groups,)`."""
        if self.local_centers is None:
            return None
        return np.linalg.norm(self.group_centers[:, None] - self.local_centers[None], axis=-1).min(axis=1)


@torch.no_grad()
def inspect_cloud(model: nn.Module, points: np.ndarray, category: int | None = None) -> CloudInspection:
    """Run a model on one cloud and keep what it did on the way.

    Args:
        model: A classifier or part segmentation of this package, with or without adapters.
        points: The cloud, of shape `(num_points, 3)`, as the model's processor prepared it.
        category: Number of the object's category, for a part segmentation that is told.

    Returns:
        What it did.

    Raises:
        ValueError: If the cloud does not fit the model, or the model is none of this package.
    """
    points = check_points(points)
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(backbone, "set_attn_implementation") or not hasattr(backbone, "extract_prior_features"):
        raise ValueError(
            f"Cannot look into a {type(backbone).__name__}: only classifiers and part segmentations of point_peft_hf, "
            "with or without adapters."
        )
    batch = torch.from_numpy(points)[None].to(next(model.parameters()).device)
    category_ids = None if category is None else torch.tensor([category], device=batch.device)
    was_training = model.training
    model.eval()
    try:
        with _recording(backbone) as record:
            inputs = {} if category_ids is None else {"category_ids": category_ids}
            logits = model(points=batch, **inputs).logits
    finally:
        model.train(was_training)
    logits = leave_out_other_parts(logits, category_ids, backbone.config.category_parts)
    context, attention = record["context"], record["attention"].float()
    num_groups, has_class_token = context.group_centers.shape[1], context.num_prefix_tokens > 0
    # Prefix tokens and prompts come before the patch tokens.
    rows = attention[0, :, 0] if has_class_token else attention[0, :, -num_groups:].mean(dim=1)
    bank = _ask_banks(backbone, batch)
    local_centers, prompt_centers = _local_centers(context)
    return CloudInspection(
        points=points,
        logits=_numpy(logits[0]),
        group_centers=_numpy(context.group_centers[0]),
        attention=_numpy(rows.mean(dim=0)[-num_groups:]),
        attention_from="the class token" if has_class_token else "all tokens",
        local_centers=local_centers,
        prompt_centers=prompt_centers,
        prompts=_prompt_places(context, bank),
        bank=bank,
    )


@contextmanager
def _recording(backbone: nn.Module) -> Iterator[dict[str, Any]]:
    """Keep the context and the attention weights of the last block that runs inside.

    The pass that asks the bank runs through the same blocks, but before the one that counts.
    """
    record: dict[str, Any] = {}

    def keep_context(module: nn.Module, args: Any, output: BlockContext) -> None:
        record["context"] = output

    def keep_attention(module: nn.Module, args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        record["attention"] = output[1]

    keepers = {"locality_slot": keep_context, "attention": keep_attention}
    handles = [
        module.register_forward_hook(keepers[name.rpartition(".")[2]])
        for name, module in backbone.named_modules()
        if name.rpartition(".")[2] in keepers
    ]
    implementation = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    try:
        yield record
    finally:
        backbone.set_attn_implementation(implementation)
        for handle in handles:
            handle.remove()


def _local_centers(context: BlockContext) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The places of the local centres, and which of them are prompts."""
    if not context.neighborhoods:
        return None, None
    # The adapter's local centres among the fewest prompts: those of the blocks that have none, if there are any.
    (_, _), neighborhoods = min(context.neighborhoods.items(), key=lambda item: len(item[0][1]))
    table = table_points(context.group_centers, neighborhoods.prompt_coordinates)[0]
    indices = neighborhoods.center_indices[0]
    # Prompts come before the groups.
    return _numpy(table[indices]), _numpy(indices < len(table) - context.group_centers.shape[1])


def _prompt_places(context: BlockContext, bank: dict[str, BankAnswer]) -> list[PromptPlaces]:
    places = []
    for name, prompts in context.prompts.items():
        if prompts.coordinates is None:
            continue
        labels, sources = [-1] * prompts.count, ["nothing"] * prompts.count
        if prompts.cache is not None and name in bank:
            answer = bank[name]
            sources = ["own feature", "average of the bank's answer"]
            sources += ["single entry"] * (prompts.count - 2)
            labels = [-1, -1, *map(int, answer.labels[: max(prompts.count - 2, 0)])]
        places.append(PromptPlaces(_numpy(prompts.coordinates), sources[: prompts.count], labels[: prompts.count]))
    return places


def _ask_banks(backbone: nn.Module, points: torch.Tensor) -> dict[str, BankAnswer]:
    """What each bank at work answers, as far down as prompts are enhanced with it."""
    names = [
        name
        for layer in bank_layers(backbone)
        for name in layer.working_adapters()
        if name in layer.banks and len(layer.banks[name]) > 0
    ]
    answers = {}
    for name in names:
        report = explain_retrieval(backbone, points, name)
        rows = (report.labels, report.sample_ids, report.similarities, report.weights)
        answers[name] = BankAnswer(*(_numpy(row[0]) for row in rows))
    return answers


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
