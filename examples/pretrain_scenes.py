"""Pre-train a small encoder of scenes on procedural rooms, from their labels.

    python examples/pretrain_scenes.py --output_dir outputs/ptv3-small-procedural

The rooms are offices, meeting rooms, classrooms, corridors and stores: none of the room types of the default
fine-tuning task, and none of its classes bed, sofa, lamp, curtain and counter. Some rooms lose their colours, so that
the encoder can do without. A run that was stopped goes on where it was when the command is given again; what it comes
to does not depend on that.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch.utils.data import DataLoader

import point_peft_hf
from point_peft_hf import PointTransformerV3Config, PointTransformerV3ForSemanticSegmentation
from point_peft_hf.data.files import atomic_write
from point_peft_hf.data.rooms import PRETRAINING_CLASSES, PRETRAINING_ROOMS, ProceduralRooms
from point_peft_hf.data.scenes import SceneAugmentation, SceneCollator, SceneDataset, SceneProcessor
from point_peft_hf.scenes import SceneMetrics
from point_peft_hf.training import parameter_groups, warmup_cosine

CHECKPOINT = "checkpoint.pt"
FEATURES = ("coordinates", "colors")
# Arguments that do not change what comes out.
_NO_MATTER = ("output_dir", "num_workers", "log_every", "save_every")


@dataclass
class PretrainArguments:
    """Arguments of the script; each is a command-line option of the same name."""

    output_dir: str = "outputs/ptv3-small-procedural"
    depths: tuple[int, ...] = (1, 1, 3, 1)
    hidden_sizes: tuple[int, ...] = (16, 32, 64, 128)
    grid_size: float = 0.08
    steps: int = 800
    warmup_steps: int = 40
    batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    drop_colors: float = 0.2
    test_rooms: int = 20
    num_workers: int = 1
    seed: int = 0
    log_every: int = 25
    save_every: int = 50


def parse_arguments() -> PretrainArguments:
    """Read the arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(PretrainArguments):
        if isinstance(field.default, tuple):
            parser.add_argument(f"--{field.name}", type=int, nargs="+", default=field.default)
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return PretrainArguments(**vars(parser.parse_args()))


def build_model(args: PretrainArguments) -> PointTransformerV3ForSemanticSegmentation:
    """A new model; attention heads have 16 channels, as published."""
    config = PointTransformerV3Config(
        depths=list(args.depths),
        hidden_sizes=list(args.hidden_sizes),
        num_attention_heads=[max(1, size // 16) for size in args.hidden_sizes],
        in_channels=3 * len(FEATURES),
        feature_names=list(FEATURES),
        grid_size=args.grid_size,
        drop_path_rate=0.1,
        num_labels=len(PRETRAINING_CLASSES),
        id2label=dict(enumerate(PRETRAINING_CLASSES)),
        label2id={name: index for index, name in enumerate(PRETRAINING_CLASSES)},
    )
    return PointTransformerV3ForSemanticSegmentation(config)


def rooms(args: PretrainArguments, number: int, split: str) -> SceneDataset:
    """So many rooms of all types for pre-training, made when they are asked for."""
    scenes = ProceduralRooms(
        tuple(PRETRAINING_ROOMS), PRETRAINING_CLASSES, number, seed=args.seed, split=split, cache=False
    )
    return SceneDataset(scenes, PRETRAINING_CLASSES)


def train(args: PretrainArguments, model, processor: SceneProcessor, folder: Path) -> float:
    """Train, or go on training; returns the mean of the last losses."""
    dataset = rooms(args, args.steps * args.batch_size, "train")
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.learning_rate)
    done, losses = 0, []
    if (folder / CHECKPOINT).is_file():
        state = torch.load(folder / CHECKPOINT, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, losses = state["step"], state["losses"]
        print(f"going on after step {done}", flush=True)
    epoch = SimpleNamespace(seed=args.seed, epoch=0)  # each room is seen once
    collate = SceneCollator(processor, SceneAugmentation(drop_colors=args.drop_colors), epoch=epoch)
    left = range(done * args.batch_size, len(dataset))
    loader = DataLoader(dataset, args.batch_size, sampler=left, num_workers=args.num_workers, collate_fn=collate)
    model.train()
    for step, batch in enumerate(loader, start=done + 1):
        torch.manual_seed(args.seed + step)  # of stochastic depth and the order of the curves
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warmup_cosine(step, args.steps, args.warmup_steps, floor=1e-3)
        loss = model(**batch).loss
        if not torch.isfinite(loss):
            raise RuntimeError(f"The loss is {loss.item()} at step {step}; try a lower --learning_rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % args.log_every == 0:
            print(f"step {step}: loss {sum(losses[-args.log_every :]) / args.log_every:.3f}", flush=True)
        if step % args.save_every == 0 or step == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "losses": losses}
            with atomic_write(folder / CHECKPOINT) as file:
                torch.save(state, file)
    last = losses[-args.log_every :]
    return sum(last) / len(last)


@torch.no_grad()
def test(args: PretrainArguments, model, processor: SceneProcessor) -> SceneMetrics:
    """Judge the model on rooms of the same types that it has not seen."""
    metrics, collate = SceneMetrics(PRETRAINING_CLASSES), SceneCollator(processor, all_points=True)
    model.eval()
    dataset = rooms(args, args.test_rooms, "test")
    for index in range(len(dataset)):
        batch = collate([dataset[index]])
        inverse, labels = batch.pop("inverse"), batch.pop("point_labels")
        metrics.update(model(**batch).logits.argmax(dim=-1)[inverse], labels)
    return metrics


def model_card(args: PretrainArguments, record: dict) -> str:
    """The card of the encoder, written from the record of its pre-training."""
    defaults = asdict(PretrainArguments())
    options = [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in asdict(args).items()
        if name not in _NO_MATTER and list_of(value) != list_of(defaults[name])
    ]
    scores = ", ".join(f"{name} {100 * value:.1f} %" for name, value in record["test"].items())
    classes = ", ".join(f"{name} {100 * iou:.0f}" for name, iou in record["iou"].items())
    return f"""---
library_name: transformers
license: apache-2.0
tags:
- point-cloud
- ptv3
---

# {Path(args.output_dir).name}

A small encoder of scenes (Point Transformer V3 as in Sonata, arXiv 2312.10035 and 2503.16429), trained to segment
procedural rooms. Made for quick starts and tests; for real work use an encoder that was pre-trained on real scans.

| | |
|---|---|
| blocks | {", ".join(map(str, args.depths))} in stages of width {", ".join(map(str, args.hidden_sizes))} |
| input | voxels of {args.grid_size} m; coordinates and colours, which may be absent; z up |
| data | procedural rooms, seed {args.seed}: {", ".join(PRETRAINING_ROOMS)} |
| training | {args.steps} steps of {args.batch_size} rooms, AdamW, learning rate {args.learning_rate} |
| on {args.test_rooms} unseen rooms | {scores} |
| IoU of classes, % | {classes} |
| versions | {", ".join(f"{name} {value}" for name, value in record["versions"].items())} |

Made by

```bash
{" ".join(["python examples/pretrain_scenes.py", *options])}
```

The head is not part of the file; it is new in each model. License: Apache-2.0.
"""


def list_of(value: object) -> object:
    """Tuples as lists, as the command line has them."""
    return list(value) if isinstance(value, tuple) else value


def main() -> None:
    """Pre-train, then save encoder, preprocessing and the record of the run."""
    args = parse_arguments()
    folder = Path(args.output_dir)
    torch.manual_seed(args.seed)
    model, started = build_model(args), time.perf_counter()
    processor = SceneProcessor(args.grid_size, FEATURES, optional_features=("colors",))
    loss = train(args, model, processor, folder)
    metrics = test(args, model, processor)
    encoder = getattr(model, model.base_model_prefix)
    encoder.save_pretrained(folder)
    processor.save_pretrained(folder)
    record = {
        "arguments": asdict(args),
        "loss": loss,
        "test": metrics.compute(),
        "iou": {name: values["iou"] for name, values in metrics.per_class().items()},
        "seconds_of_the_last_start": round(time.perf_counter() - started),
        "versions": {
            "point_peft_hf": point_peft_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(args, record))
    (folder / CHECKPOINT).unlink()
    print(f"Saved the encoder to {folder}: {record['test']}", flush=True)


if __name__ == "__main__":
    main()
