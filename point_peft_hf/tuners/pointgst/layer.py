"""The layer of PointGST (arXiv 2410.08114)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...ops import gather_points, morton_keys
from ...tokens import Tokens
from ..explain import Picture
from ..slot_layer import BranchLayer, bottleneck_size
from .basis import graph_basis, published_graph_basis
from .config import PointGSTConfig

_NORM_EPS = 1e-5


class Spectrum(NamedTuple):
    """The spectral domain of the tokens of a stage, in the order of the tokens but for `local_basis`.

    Attributes:
        basis: Eigenvectors of the graph of each cloud, in columns, of shape `(batch_size, num_groups, num_groups)`;
            `None` where there is no such graph.
        local_basis: Those of its local graphs, of shape
            `(batch_size, num_groups / local_size, local_size, local_size)`.
        order: The tokens of the local graphs, one graph after the other, of shape `(batch_size, num_groups)`.
    """

    basis: torch.Tensor | None
    local_basis: torch.Tensor
    order: torch.Tensor


class SpectralFilter(nn.Module):
    """Down to a narrow space, a filter in the spectral domain, up again; no residual connection of its own.

    Args:
        hidden_size: Width of the tokens.
        inner_size: Width in between.
        has_global_graph: Whether there is a graph of the whole cloud besides the local ones.
    """

    def __init__(self, hidden_size: int, inner_size: int, has_global_graph: bool):
        super().__init__()
        self.down_weight = nn.Parameter(torch.empty(inner_size, hidden_size))
        self.down_bias = nn.Parameter(torch.empty(inner_size))
        names = ("global", "local") if has_global_graph else ("local",)
        for name in names:
            self.register_parameter(f"{name}_norm_weight", nn.Parameter(torch.ones(inner_size)))
            self.register_parameter(f"{name}_norm_bias", nn.Parameter(torch.zeros(inner_size)))
        self.filter_weight = nn.Parameter(torch.empty(inner_size, inner_size))
        self.filter_bias = nn.Parameter(torch.empty(inner_size))
        self.up_weight = nn.Parameter(torch.empty(hidden_size, inner_size))
        self.up_bias = nn.Parameter(torch.empty(hidden_size))

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        """Initialise as the published code: the filter and the way up are 0. For `False` they are random."""
        nn.init.xavier_uniform_(self.down_weight)
        bound = self.down_weight.shape[1] ** -0.5
        nn.init.uniform_(self.down_bias, -bound, bound)
        for weight, bias in ((self.filter_weight, self.filter_bias), (self.up_weight, self.up_bias)):
            if init_weights is False:
                nn.init.xavier_uniform_(weight)
                nn.init.normal_(bias, std=0.1)
            else:
                nn.init.zeros_(weight)
                nn.init.zeros_(bias)

    def forward(self, features: torch.Tensor, spectrum: Spectrum, transpose: bool) -> torch.Tensor:
        """Filter tokens.

        Args:
            features: Of shape `(batch_size, sequence_length, hidden_size)`; the patch tokens come last, and those in
                front of them take no part in the filter.
            spectrum: The spectral domain.
            transpose: Whether the transposed eigenvectors lead into it.

        Returns:
            What is to be added, of the shape of `features`.
        """
        inner = F.linear(features.to(self.down_weight.dtype), self.down_weight, self.down_bias)
        num_front = inner.shape[1] - spectrum.order.shape[1]
        filtered = self._filter_patches(inner[:, num_front:], spectrum, transpose)
        inner = F.silu(inner) + F.pad(filtered, (0, 0, num_front, 0))
        return F.linear(inner, self.up_weight, self.up_bias)

    def _filter_patches(self, patches: torch.Tensor, spectrum: Spectrum, transpose: bool) -> torch.Tensor:
        batch_size, num_groups, size = patches.shape
        index = spectrum.order.unsqueeze(-1).expand(-1, -1, size)
        sets = patches.gather(1, index).view(*spectrum.local_basis.shape[:3], size)  # (B, G / m, m, r)
        sets = self._filter("local", sets, spectrum.local_basis, transpose).reshape(batch_size, num_groups, size)
        filtered = torch.zeros_like(sets).scatter(1, index, sets)
        if spectrum.basis is None:
            return filtered
        return filtered + self._filter("global", patches, spectrum.basis, transpose)

    def _filter(self, name: str, tokens: torch.Tensor, basis: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Filter in the spectral domain: there f + SiLU(W norm(f)), and back."""
        basis = basis.to(tokens.dtype)
        into, back = (basis.mT, basis) if transpose else (basis, basis.mT)
        spectral = into @ tokens
        norm = (getattr(self, f"{name}_norm_weight"), getattr(self, f"{name}_norm_bias"))
        normed = F.layer_norm(spectral, spectral.shape[-1:], *norm, _NORM_EPS)
        return back @ (spectral + F.silu(F.linear(normed, self.filter_weight, self.filter_bias)))


class PointGSTLayer(BranchLayer):
    """Parallel to the feed-forward network: filters the residual stream in front of its norm."""

    branch = "ffn"
    parts = ("spectral_filter",)

    def create_parts(self, adapter_name: str, config: PointGSTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the filter."""
        if self.slot.stage.num_groups is not None:
            self._local_size(config, self.slot.stage.num_groups)
        self._check_stages(config)
        size = bottleneck_size(config, slot_name, config.bottleneck_size)
        spectral_filter = SpectralFilter(self.slot.hidden_size, size, self._has_global_graph(config))
        spectral_filter.reset_parameters(config.init_weights)
        return {"spectral_filter": spectral_filter}

    def adapt_update(
        self, name: str, update: torch.Tensor, inputs: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, Tokens]:
        """Add what the filter makes of the residual stream, `(batch_size, sequence_length, hidden_size)`."""
        spectrum = self.spectrum(name, tokens)
        added = self.part("spectral_filter", name)(tokens.features, spectrum, self.configs[name].transpose)
        return update + added, tokens

    def explain(self, name: str, result: tuple[torch.Tensor, Tokens], *inputs) -> Iterator[Picture]:
        """Show the local graphs, and the slowest wave on the graph of the cloud."""
        tokens = result[1]
        spectrum, centers = self.spectrum(name, tokens), tokens.centers[0]
        numbers = torch.arange(len(centers), device=centers.device) // spectrum.local_basis.shape[-1]
        sets = torch.empty_like(numbers).scatter(0, spectrum.order[0], numbers)
        yield Picture("local graph that the token belongs to", values=sets, coordinates=centers, unit="number")
        if spectrum.basis is not None:
            slowest = spectrum.basis[0, :, min(1, centers.shape[0] - 1)]
            yield Picture("slowest wave on the graph of the tokens", values=slowest, coordinates=centers)

    # -- The spectral domain ------------------------------------------------------------------------------------------

    def spectrum(self, name: str, tokens: Tokens) -> Spectrum:
        """The spectral domain of the tokens; the blocks of a stage share it."""
        config, centers = self.configs[name], tokens.centers.detach()
        compute = published_graph_basis if config.basis == "published" else graph_basis
        batch_size, num_groups, _ = centers.shape
        local_size = self._local_size(config, num_groups)
        local_shape = (batch_size, num_groups // local_size, local_size, local_size)

        def known(part: str, function, shape: tuple[int, ...], depends_on_cloud: bool = True) -> torch.Tensor:
            value_name = f"{self.key(name)}.{part}.{self.slot.stage.index}"
            per_cloud = depends_on_cloud and tokens.cloud.points is tokens.cloud.source
            value = tokens.cloud.memo.once(value_name, function, per_cloud=per_cloud, shape=shape)
            return value.to(centers.device)

        def local_basis() -> torch.Tensor:
            return compute(gather_points(centers, order).view(-1, local_size, 3)).view(local_shape)

        is_own = config.basis == "cloud"
        order = known("order", lambda: morton_keys(centers).argsort(dim=1, stable=True), (batch_size, num_groups))
        local = known("local_basis", local_basis, local_shape, is_own)
        basis = None
        if self._has_global_graph(config):
            basis = known("basis", lambda: compute(centers), (batch_size, num_groups, num_groups), is_own)
        return Spectrum(basis, local, order)

    def _has_global_graph(self, config: PointGSTConfig) -> bool:
        stage = self.slot.stage
        return stage.is_last if config.global_stages is None else stage.index in config.global_stages

    def _check_stages(self, config: PointGSTConfig) -> None:
        count = self.slot.stage.count
        if config.global_stages is not None and not set(config.global_stages) <= set(range(count)):
            raise ValueError(
                f"`global_stages`={config.global_stages} names a stage that the backbone does not have: its stages "
                f"are {list(range(count))}."
            )

    @staticmethod
    def _local_size(config: PointGSTConfig, num_groups: int) -> int:
        """Tokens of a local graph: as many as there are, where they are fewer than configured."""
        size = min(config.local_size, num_groups)
        if num_groups % size:
            possible = [size for size in range(2, num_groups + 1) if num_groups % size == 0]
            raise ValueError(
                f"`local_size`={size} does not divide {num_groups} tokens into local graphs. Use one of {possible}."
            )
        return size
