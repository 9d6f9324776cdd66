"""Tiny scene encoders, and voxels for them."""

import torch

from point_peft_hf import PointTransformerV3Config

SIZES = {
    "depths": (2, 1, 2),
    "hidden_sizes": (12, 24, 36),
    "num_attention_heads": (1, 2, 3),
    "patch_sizes": (16, 16, 16),
    "classifier_hidden_sizes": (16, 8),
    "num_labels": 5,
    "initializer_range": 0.2,
    "drop_path_rate": 0.0,
}
DECODER = {
    "decoder_depths": (2, 1),
    "decoder_hidden_sizes": (12, 24),
    "decoder_num_attention_heads": (2, 4),
}
SUPERVISED = {"stem": "sparse", "pooling": "code", "norm": "batch", **DECODER}
VARIANTS = {
    "sonata": {},
    "utonia": {"rope_base": 10},
    "sonata_decoder": DECODER,
    "ptv3": SUPERVISED,
    "ptv3_legacy": {**SUPERVISED, "legacy_position_features": True},
    "ptv3_table": {**SUPERVISED, "relative_positions": True},
    "scaled": {"layer_scale": 0.1, "hidden_dropout": 0.1, "attention_dropout": 0.1, "orders": ("hilbert", "z")},
}


def tiny_config(variant="sonata", **fields):
    """The configuration of a tiny model."""
    return PointTransformerV3Config(**{**SIZES, **VARIANTS[variant], **fields})


def make_voxels(counts=(90, 37, 5), size=12, seed=0, channels=9):
    """Voxels of clouds of these sizes, each in a grid of its own extent."""
    generator = torch.Generator().manual_seed(seed)
    grids = []
    for number, count in enumerate(counts):
        extent = max(size // (number + 1), 3)
        cells = torch.randperm(extent**3, generator=generator)[:count]
        grids.append(torch.stack([cells // extent**2, cells // extent % extent, cells % extent], dim=1))
    grid = torch.cat(grids)
    jitter = torch.rand(len(grid), 3, generator=generator)
    return {
        "coordinates": (grid + jitter) * 0.02,
        "grid_coordinates": grid,
        "features": torch.randn(len(grid), channels, generator=generator),
        "batch_index": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
    }


def cloud_of(voxels, number):
    """One cloud of a batch, by itself."""
    rows = voxels["batch_index"] == number
    alone = {name: tensor[rows] for name, tensor in voxels.items()}
    return {**alone, "batch_index": torch.zeros(int(rows.sum()), dtype=torch.int64)}


def shake(model, seed=0):
    """Let norms, scales and statistics be those of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1 and tensor.numel():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith("table"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()
