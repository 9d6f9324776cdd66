"""Pre-train a small encoder of scenes on procedural rooms, from their labels.

    python examples/pretrain_scenes.py --output_dir outputs/ptv3-small-procedural

The rooms are offices, meeting rooms, classrooms, corridors and stores: none of the room types of the default
fine-tuning task, and none of its classes bed, sofa, lamp, curtain and counter. Some rooms lose their colours, so that
the encoder can do without. A run that was stopped continues with `--resume_from_checkpoint latest`, and ends with the
same weights.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset, SequentialSampler
from transformers import HfArgumentParser, TrainingArguments

from point_peft_hf import PointTransformerV3Config, PointTransformerV3ForSemanticSegmentation
from point_peft_hf.data.rooms import PRETRAINING_CLASSES, PRETRAINING_ROOMS, ProceduralRooms
from point_peft_hf.data.scenes import SceneAugmentation, SceneCollator, SceneDataset, SceneProcessor
from point_peft_hf.scenes import SceneMetrics
from point_peft_hf.training import TrainingDiverged, versions
from point_peft_hf.training.pretraining import PretrainingArguments, PretrainingTrainer

FEATURES = ("coordinates", "colors")


@dataclass
class PretrainArguments:
    """What is pre-trained on which rooms."""

    depths: list[int] = field(default_factory=lambda: [1, 1, 3, 1])
    hidden_sizes: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    grid_size: float = 0.08
    drop_colors: float = 0.2
    test_rooms: int = 20


@dataclass
class PretrainTrainingArguments(PretrainingArguments):
    """The arguments of the Trainer, with the defaults of this script."""

    output_dir: str | None = "outputs/ptv3-small-procedural"
    max_steps: int = 800
    warmup_steps: float = 40
    per_device_train_batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    max_grad_norm: float = 3.0
    logging_steps: float = 25
    save_steps: float = 50
    save_total_limit: int | None = 1


class SceneTrainer(PretrainingTrainer):
    """Segmentation of the labelled voxels; each room is seen once, in order."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


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


def rooms(number: int, seed: int, split: str) -> SceneDataset:
    """Rooms of all types for pre-training, made when they are asked for."""
    scenes = ProceduralRooms(
        tuple(PRETRAINING_ROOMS), PRETRAINING_CLASSES, number, seed=seed, split=split, cache=False
    )
    return SceneDataset(scenes, PRETRAINING_CLASSES)


@torch.no_grad()
def test(model, processor: SceneProcessor, number: int, seed: int) -> SceneMetrics:
    """Judge the model on rooms of the same types that it has not seen."""
    metrics, collate = SceneMetrics(PRETRAINING_CLASSES), SceneCollator(processor, all_points=True)
    model.eval()
    dataset = rooms(number, seed, "test")
    for index in range(len(dataset)):
        batch = collate([dataset[index]])
        inverse, labels = batch.pop("inverse"), batch.pop("point_labels")
        metrics.update(model(**batch).logits.argmax(dim=-1)[inverse], labels)
    return metrics


def model_card(what: PretrainArguments, args: TrainingArguments, record: dict) -> str:
    """The card of the encoder, written from the record of its pre-training."""
    defaults = asdict(PretrainArguments()) | vars(PretrainTrainingArguments())
    options = [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in record["arguments"].items()
        if value != defaults[name]
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
| blocks | {", ".join(map(str, what.depths))} in stages of width {", ".join(map(str, what.hidden_sizes))} |
| input | voxels of {what.grid_size} m; coordinates, and colours where there are any; z up |
| data | procedural rooms, seed {args.seed}: {", ".join(PRETRAINING_ROOMS)} |
| training | {args.max_steps} steps of {args.per_device_train_batch_size} rooms, AdamW, rate {args.learning_rate} |
| on {what.test_rooms} unseen rooms | {scores} |
| IoU of classes, % | {classes} |
| versions | {", ".join(f"{name} {value}" for name, value in record["versions"].items())} |

Made by

```bash
{" ".join(["python examples/pretrain_scenes.py", *options])}
```

The head is not part of the file; it is new in each model. License: Apache-2.0.
"""


def main() -> None:
    """Pre-train, then save encoder, preprocessing and the record of the run."""
    parser = HfArgumentParser((PretrainArguments, PretrainTrainingArguments), description=__doc__)
    what, args = parser.parse_args_into_dataclasses()
    folder, started = Path(args.output_dir), time.perf_counter()
    set_seed(args.seed)
    model = build_model(what)
    processor = SceneProcessor(what.grid_size, FEATURES, optional_features=("colors",))
    epoch = SimpleNamespace(seed=args.seed, epoch=0)  # each room is seen once
    trainer = SceneTrainer(
        model,
        args,
        train_dataset=rooms(args.max_steps * args.per_device_train_batch_size, args.seed, "train"),
        data_collator=SceneCollator(processor, SceneAugmentation(drop_colors=what.drop_colors), epoch=epoch),
    )
    loss = trainer.pretrain(args.resume_from_checkpoint)
    metrics = test(model, processor, what.test_rooms, args.seed)
    encoder = getattr(model, model.base_model_prefix)
    encoder.save_pretrained(folder)
    processor.save_pretrained(folder)
    recorded = ("max_steps", "warmup_steps", "per_device_train_batch_size", "learning_rate", "weight_decay", "seed")
    record = {
        "arguments": asdict(what) | {name: getattr(args, name) for name in recorded},
        "loss": loss,
        "test": metrics.compute(),
        "iou": {name: values["iou"] for name, values in metrics.per_class().items()},
        "seconds_of_the_last_start": round(time.perf_counter() - started),
        "versions": versions(),
    }
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(what, args, record))
    print(f"Saved the encoder to {folder}: {record['test']}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError, TrainingDiverged) as error:
        sys.exit(f"error: {error}")
