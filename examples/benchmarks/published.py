"""The yardstick: Point-PEFT computed as the published code does, in plain PyTorch.

Farthest points by a loop over the whole batch, neighbours from a sort of the whole matrix of distances, a
mini-PointNet of 1x1 convolutions, norm and projection of the local attention on every member of every neighbourhood, a
sort of all distances and a gather of the features of all local centres in every block, and a second pass through the
encoder, with its own grouping and embedding and with autograd, for the query. Weights are random: only times and
memory are asked for.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def sample_farthest(points: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Farthest point sampling of `(batch_size, num_points, 3)`, one point of all clouds at a time."""
    batch_size, num_points, _ = points.shape
    clouds = torch.arange(batch_size, device=points.device)
    picked = torch.zeros(batch_size, num_samples, dtype=torch.long, device=points.device)
    nearest = torch.full((batch_size, num_points), torch.inf, device=points.device)
    last = picked[:, 0]
    for step in range(num_samples):
        picked[:, step] = last
        distance = ((points - points[clouds, last][:, None]) ** 2).sum(-1)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        last = nearest.argmax(-1)
    return picked


def sample_farthest_leanly(points: torch.Tensor, num_samples: int) -> torch.Tensor:
    """The same loop with a minimum instead of a masked assignment, the best that plain PyTorch does."""
    batch_size, num_points, _ = points.shape
    clouds = torch.arange(batch_size, device=points.device)
    picked = torch.zeros(batch_size, num_samples, dtype=torch.long, device=points.device)
    nearest = torch.full((batch_size, num_points), torch.inf, device=points.device)
    for step in range(1, num_samples):
        distance = ((points - points[clouds, picked[:, step - 1]][:, None]) ** 2).sum(-1)
        nearest = torch.minimum(nearest, distance)
        picked[:, step] = nearest.argmax(-1)
    return picked


def squared_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """All squared distances, of shape `(batch_size, num_left, num_right)`."""
    products = left @ right.transpose(1, 2)
    return (left**2).sum(-1)[:, :, None] + (right**2).sum(-1)[:, None] - 2 * products


def nearest_by_sorting(queries: torch.Tensor, points: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest points from a full sort."""
    return squared_distances(queries, points).sort(dim=-1).indices[:, :, :k]


def take(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows `indices`, of shape `(batch_size, ...)`, of `values`, by an expanded gather."""
    flat = indices.flatten(1)[:, :, None].expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).unflatten(1, indices.shape[1:])


def group(points: torch.Tensor, num_groups: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbourhoods relative to their centres, and the centres."""
    centers = take(points, sample_farthest(points, num_groups))
    return take(points, nearest_by_sorting(centers, points, group_size)) - centers[:, :, None], centers


def retrieve_by_sorting(query: torch.Tensor, bank: torch.Tensor, num_rows: int, num_averaged: int) -> torch.Tensor:
    """Own feature, average and single entries for queries `(batch_size, hidden_size)`, one sample at a time."""
    rows = []
    for own in query:
        similarities, order = (bank @ F.normalize(own, dim=-1)).sort(descending=True)
        mean = similarities[:num_averaged].softmax(-1) @ bank[order[:num_averaged]]
        rows.append(torch.cat([own[None], mean[None], bank[order[: num_rows - 2]]]))
    return torch.stack(rows)


class ConvPatchEmbedding(nn.Module):
    """The mini-PointNet of 1x1 convolutions.

    Args:
        hidden_size: Width of a token.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, hidden_size, 1)
        )

    def forward(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Embed groups of shape `(batch_size, num_groups, group_size, 3)`."""
        features = self.first(neighborhoods.flatten(0, 1).transpose(1, 2))
        pooled = features.max(dim=2, keepdim=True).values.expand_as(features)
        return (
            self.second(torch.cat([pooled, features], dim=1)).max(dim=2).values.unflatten(0, neighborhoods.shape[:2])
        )


def bottleneck(hidden_size: int, width: int) -> nn.Module:
    """Linear down, an activation, linear up."""
    return nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, hidden_size))


class SharedLocalAttention(nn.Module):
    """Norm and attention on the gathered members of the neighbourhoods, shared by all blocks.

    Args:
        hidden_size: Width of a token.
    """

    def __init__(self, hidden_size: int, inner_size: int = 18, num_heads: int = 6):
        super().__init__()
        self.num_heads, self.scale = num_heads, inner_size**-0.5
        self.norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * inner_size, bias=False)
        self.proj = nn.Linear(inner_size, hidden_size)

    def forward(self, neighbors: torch.Tensor) -> torch.Tensor:
        """Attend inside neighbourhoods of shape `(num_neighborhoods, num_neighbors, hidden_size)`."""
        qkv = self.qkv(self.norm(neighbors)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (qkv[0] @ qkv[1].transpose(-1, -2) * self.scale).softmax(-1)
        return self.proj((attention @ qkv[2]).transpose(1, 2).flatten(-2))


class PublishedBlock(nn.Module):
    """A transformer block with both modules of Point-PEFT.

    Args:
        hidden_size: Width of a token.
        num_heads: Attention heads.
        num_prompts: Prompt tokens of this block; 0 for none.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_prompts: int):
        super().__init__()
        self.num_heads, self.num_prompts = num_heads, num_prompts
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.requires_grad_(False)
        for module in (self.norm1, self.norm2, self.proj, self.mlp[0], self.mlp[2]):
            module.bias.requires_grad_(True)
        self.ffn_bottleneck, self.output_bottleneck = bottleneck(hidden_size, 16), bottleneck(hidden_size, 16)
        self.pooled_bn = nn.BatchNorm1d(hidden_size)
        if num_prompts:
            self.prompts = nn.Parameter(0.02 * torch.randn(1, num_prompts, hidden_size))
            self.prompt_bottleneck = bottleneck(hidden_size, 8)

    def forward(self, x, geometry=None, cache=None, local_attention=None):
        """Run the block; without `geometry`, from [`find_neighbors`], as it was pre-trained."""
        if geometry is not None and self.num_prompts:
            prompts = F.dropout(self.prompts, 0.1, self.training) + cache + self.prompt_bottleneck(cache)
            x = torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1)
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.proj((attention @ value).transpose(1, 2).flatten(-2))
        update = self.mlp(self.norm2(x))
        if geometry is None:
            return x + update
        x = x + update + 0.7 * self.ffn_bottleneck(update)
        tokens = self._propagate(x[:, 1:], *geometry, local_attention)
        x = torch.cat([x[:, : 1 + self.num_prompts], tokens], dim=1)
        x = x + self.output_bottleneck(x)
        return torch.cat([x[:, :1], x[:, 1 + self.num_prompts :]], dim=1)

    def _propagate(self, tokens, centers, local_centers, chosen, neighbor_indices, local_attention):
        neighbors = take(tokens, neighbor_indices).flatten(0, 1)
        neighbors = neighbors + local_attention(neighbors)
        features = F.gelu(self.pooled_bn(neighbors.max(dim=1).values)).unflatten(0, chosen.shape)
        features = features + 0.3 * take(tokens, chosen)
        distances, order = squared_distances(centers, local_centers).sort(dim=-1)
        weights = 1 / (distances.clamp(min=0) + 1e-8)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        # (batch_size, num_groups, num_local_centers, hidden_size)
        spread = (take(features, order) * weights[..., None]).sum(dim=2)
        return tokens[:, -centers.shape[1] :] + 0.3 * spread


def find_neighbors(centers: torch.Tensor, coordinates: torch.Tensor | None, num_neighbors: int) -> tuple:
    """Group centres, local centres, which tokens these are, and their neighbours."""
    points = centers
    if coordinates is not None:
        points = torch.cat([coordinates.expand(len(centers), -1, -1), centers], dim=1)
    chosen = sample_farthest(points.detach(), centers.shape[1] // 2)
    local_centers = take(points, chosen)
    return centers, local_centers, chosen, nearest_by_sorting(local_centers.detach(), points.detach(), num_neighbors)


class PublishedPointPeft(nn.Module):
    """Classifier of clouds.

    Args:
        hidden_size: Width of a token.
        num_layers: Number of blocks.
        num_heads: Attention heads.
        num_groups: Groups of a cloud.
        group_size: Points of a group.
        num_prompts: Prompt tokens of a block.
        prompt_depth: How many blocks have prompts.
        bank: Normalised features, of shape `(bank_size, hidden_size)`.
        num_labels: Number of classes.
    """

    def __init__(
        self, hidden_size, num_layers, num_heads, num_groups, group_size, num_prompts, prompt_depth, bank, num_labels
    ):
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size
        self.embedding = ConvPatchEmbedding(hidden_size).requires_grad_(False)
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, hidden_size)).requires_grad_(False)
        self.blocks = nn.ModuleList(
            PublishedBlock(hidden_size, num_heads, num_prompts if index < prompt_depth else 0)
            for index in range(num_layers)
        )
        self.local_attention = SharedLocalAttention(hidden_size)
        self.coordinates = nn.Parameter(0.5 * F.normalize(torch.randn(num_prompts, 3), dim=-1))
        self.class_token = nn.Parameter(torch.zeros(1, 2, hidden_size))
        self.norm = nn.LayerNorm(hidden_size)
        self.register_buffer("bank", bank)
        self.num_retrieved = num_prompts - 2
        self.head = nn.Sequential(
            *[nn.Linear(2 * hidden_size, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256)],
            *[nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, num_labels)],
        )

    def query(self, points: torch.Tensor) -> torch.Tensor:
        """Features of the frozen encoder, of shape `(batch_size, hidden_size)`."""
        neighborhoods, centers = group(points, self.num_groups, self.group_size)
        x, position = self.embedding(neighborhoods), self.position(centers)
        for block in self.blocks:
            x = block(x + position)
        return self.norm(x).amax(dim=1)

    def forward(self, points: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss if there are labels, else the class scores."""
        feature = self.query(points)
        similarities, indices = (F.normalize(feature, dim=-1) @ self.bank.t()).topk(self.num_retrieved)
        entries = take(self.bank.expand(len(points), -1, -1), indices)
        mean = similarities.softmax(-1)[:, None] @ entries
        cache = torch.cat([feature[:, None], mean, entries], dim=1)

        neighborhoods, centers = group(points, self.num_groups, self.group_size)
        first, first_position = self.class_token.expand(len(points), -1, -1).split(1, dim=1)
        x = torch.cat([first, self.embedding(neighborhoods)], dim=1)
        position = torch.cat([first_position, self.position(centers)], dim=1)
        with_prompts = find_neighbors(centers, self.coordinates, self.group_size // 2)
        without = find_neighbors(centers, None, self.group_size // 2)
        for block in self.blocks:
            geometry = with_prompts if block.num_prompts else without
            x = block(x + position, geometry, cache, self.local_attention)
        return self.classify(x, labels)

    def classify(self, tokens: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The loss or the scores from the tokens behind the last block."""
        tokens = self.norm(tokens)
        logits = self.head(torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1))
        return logits if labels is None else F.cross_entropy(logits, labels)


class PublishedFullFinetuning(PublishedPointPeft):
    """The same classifier without adapters and with every weight of the backbone trained."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.requires_grad_(True)

    def forward(self, points: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss if there are labels, else the class scores."""
        neighborhoods, centers = group(points, self.num_groups, self.group_size)
        first, first_position = self.class_token.expand(len(points), -1, -1).split(1, dim=1)
        x = torch.cat([first, self.embedding(neighborhoods)], dim=1)
        position = torch.cat([first_position, self.position(centers)], dim=1)
        for block in self.blocks:
            x = block(x + position)
        return self.classify(x, labels)
