"""Configuration of PointGST."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PointTunerConfig, option


@dataclass
class PointGSTConfig(PointTunerConfig):
    """Configuration of PointGST, the Point cloud Graph Spectral Tuning (arXiv 2410.08114; type POINTGST).

    Parallel to the feed-forward network of every block, an adapter filters the patch tokens in the eigenvectors of two
    kinds of graphs of their centres: one graph of the whole cloud, and one of each set of neighbouring centres. The
    defaults are the published values, the same for ScanObjectNN and ModelNet40. A fresh adapter changes nothing.

    The eigenvectors depend on the centres of the cloud alone: `model.precompute(points)` computes them once for clouds
    that are not augmented, and `model(points, precomputed=...)` takes these, or any others. Where a cloud is
    symmetric, eigenvalues coincide, and which basis of their space is taken is left to rounding.

    In a backbone of several stages every stage has its own graphs. The graph of the whole cloud takes the
    eigendecomposition of a matrix with one row a token (6 ms for 128 tokens on one CPU core, 64 times that for 512),
    so by default only the last stage has it.

    Args:
        bottleneck_size: Width in which the tokens are filtered (`bottleneck_pattern` for single blocks).
        local_size: Centres of a local graph. It has to divide the number of tokens; fewer tokens are one graph.
        transpose: Whether tokens are taken into the spectral domain by the transposed eigenvectors, as a graph Fourier
            transform does. The published code forgets the transposition, so checkpoints from it need `False`.
        basis: "cloud": the eigenvectors of each cloud alone, computed in float64, with signs that follow a rule.
            "published": as in the published code, in float32, with the unit of length taken from the whole batch, so
            that a prediction depends on the other clouds, and with arbitrary signs.
        global_stages: Numbers of the stages with a graph of the whole cloud, counted from 0; default: the last one.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    bottleneck_size: int = option(36, "Width in which the tokens are filtered.", at_least=1)
    local_size: int = option(32, "Centres of a local graph.", at_least=2)
    transpose: bool = option(True, "Transposed eigenvectors; published: False.")
    basis: str = option("cloud", "'cloud', or 'published': depends on the batch.", choices=("cloud", "published"))
    global_stages: list[int] | None = option(None, "Stages with a graph of the cloud.")

    card_text = "PointGST (arXiv 2410.08114): filters in the eigenvectors of graphs of the tokens"
    card_fields = ("bottleneck_size", "local_size", "transpose", "basis")

    def __post_init__(self):
        super().__post_init__()
        for stage in self.global_stages or ():
            self._check_at_least("global_stages", stage, 0)
