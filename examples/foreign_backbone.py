"""Put the three adapter types on a point transformer that is not ours.

    python examples/foreign_backbone.py

`ToyPointTransformer` stands for somebody else's model: a plain `nn.Module` with a list of blocks in the style of timm.
Two things make it take 3D adapters, both marked below: `add_slots`, and the context that its forward pass gives the
blocks. Each adapter type is then trained for a few steps (spheres against cubes), saved, and loaded onto a fresh
model.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F

from point_peft_hf import GeometryAdapterConfig, PointPeftConfig, PointPriorPromptConfig, build_point_prior_bank
from point_peft_hf.foreign import add_slots, enter_blocks, original
from point_peft_hf.ops import group_points


class Attention(nn.Module):
    """Fused self-attention."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend among tokens of shape `(B, N, dim)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Feed-forward network."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape `(B, N, dim)` to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm block; `add_slots` takes its four parts over."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on tokens of shape `(B, N, dim)`."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ToyPointTransformer(nn.Module):
    """Groups of points -> tokens -> blocks -> class scores."""

    def __init__(self, dim: int = 32, depth: int = 3, num_heads: int = 4, num_classes: int = 2):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(3, dim), nn.GELU(), nn.Linear(dim, dim))
        self.pos = nn.Linear(3, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def encode(self, points: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Pooled features of shape `(B, dim)` of clouds of shape `(B, N, 3)`."""
        neighborhoods, centers = group_points(points, num_groups=16, group_size=8)
        x = self.embed(neighborhoods).amax(dim=2) + self.pos(centers)
        tokens = enter_blocks(self, x, centers, points=points, frozen=frozen)  # 2. tokens that know where they are ...
        for block in self.blocks:
            tokens = block(tokens, frozen)  # ... go through the blocks
        norm = original(self.norm) if frozen else self.norm
        return norm(tokens.own()).amax(dim=1)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Class scores of clouds of shape `(B, N, 3)`."""
        return self.head(self.encode(points))

    @torch.no_grad()
    def frozen_features(self, points: torch.Tensor) -> torch.Tensor:
        """What a point-prior bank holds and is asked with: features of the model as it was before any adapter."""
        return self.encode(points, frozen=True)


def build_backbone() -> ToyPointTransformer:
    """A toy backbone with slots; the seed stands for its pre-trained weights."""
    torch.manual_seed(0)
    model = ToyPointTransformer()
    return add_slots(model, "blocks", hidden_size=32, group_size=8, task_modules=["head"], final_norms=["norm"])  # 1.


def make_clouds(count: int, num_points: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Spheres (class 0) and cubes (class 1) of different sizes."""
    labels = torch.arange(count) % 2
    points = torch.randn(count, num_points, 3)
    sphere = points / points.norm(dim=-1, keepdim=True)
    cube = points / points.abs().amax(dim=-1, keepdim=True)
    shapes = torch.where(labels[:, None, None] == 0, sphere, cube)
    return shapes * (0.5 + torch.rand(count, 1, 1)), labels


def main(steps: int = 30) -> dict[str, float]:
    """Train, save and load an adapter of each type; return the accuracy of each."""
    configs = [
        GeometryAdapterConfig(),
        PointPriorPromptConfig(num_prompt_tokens=4, query="encoder", prompt_depth=None),
        PointPeftConfig(num_prompt_tokens=4, query="encoder", prompt_depth=None),
    ]
    points, labels = make_clouds(16)
    accuracies = {}
    for config in configs:
        model = get_peft_model(build_backbone(), config)
        if getattr(config, "use_bank", False):
            build_point_prior_bank(model, [{"points": points, "labels": labels}], progress=False)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
        for _ in range(steps):
            loss = F.cross_entropy(model.train()(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model.eval().save_pretrained(folder)
            loaded = PeftModel.from_pretrained(build_backbone(), folder).eval()
            scores = model(points)
            if not torch.equal(loaded(points), scores):
                raise RuntimeError("The loaded adapter does not predict what the saved one did.")
        name = config.peft_type.value
        accuracies[name] = (scores.argmax(dim=1) == labels).float().mean().item()
        trained, _ = model.get_nb_trainable_parameters()
        print(
            f"{name}: loss {loss.item():.3f}, accuracy {accuracies[name]:.2f}, {trained} trained parameters, loads "
            "equal"
        )
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="Training steps of each adapter.")
    main(parser.parse_args().steps)
