"""Pre-train a backbone by masked autoencoding, on procedural shapes or on the training clouds of a data set.

    accelerate launch examples/pretrain.py --output_dir outputs/point-mae-small --seed 0
    accelerate launch examples/pretrain.py --data path/to/modelnet40_ply_hdf5_2048 --output_dir outputs/backbone
    accelerate launch examples/pretrain.py --model_type point_m2ae --output_dir outputs/point-m2ae-small
    torchrun --nproc_per_node 2 examples/pretrain.py --per_device_train_batch_size 32 --use_cpu --ddp_backend gloo

The first is how the backbone that ships with the package was made (its model card has the exact command). Of the
procedural shapes only the base classes are used, and only clean clouds: the held-out classes and the scan corruptions
are kept for fine-tuning. `--assembly_share 0.5` makes half of them random assemblies of primitives. Of a data set only
the training split is used, and never its labels.

The same options give backbones of similar size for `--model_type` point_mae, point_bert and point_m2ae, to compare the
architectures. Point-BERT is pre-trained with Point-MAE's decoder, not with the tokens of a discrete autoencoder as
published; its class token takes part. Point-M2AE has three stages with a third of the blocks each: of one, two and
four thirds of the width, and with four times, twice and once the groups.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.utils.data import ConcatDataset, Dataset, RandomSampler
from transformers import HfArgumentParser, PreTrainedConfig, PreTrainedModel

from point_peft_hf import (
    PointBertConfig,
    PointBertModel,
    PointCloudProcessor,
    PointM2AEConfig,
    PointM2AEForPreTraining,
    PointMAEConfig,
    PointMAEForPreTraining,
)
from point_peft_hf.data import (
    ASSEMBLY,
    BASE_CLASSES,
    PointCloudCollator,
    ProceduralShapes,
    get_augmentation,
    load_dataset,
)
from point_peft_hf.training import TrainingDiverged, versions
from point_peft_hf.training.pretraining import PretrainingArguments, PretrainingTrainer
from point_peft_hf.training.task import PROCEDURAL

ARCHITECTURES = {
    "point_mae": ("Point-MAE", "2203.06604"),
    "point_bert": ("Point-BERT", "2111.14819"),
    "point_m2ae": ("Point-M2AE", "2205.14401"),
}


@dataclass
class PretrainArguments:
    """What is pre-trained on which clouds."""

    model_type: str = field(default="point_mae", metadata={"choices": list(ARCHITECTURES)})
    data: str = PROCEDURAL
    layout: str | None = field(default=None, metadata={"help": "Layout of the folder, if it holds several data sets."})
    hidden_size: int = 144
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    patch_hidden_sizes: list[int] = field(default_factory=lambda: [48, 96, 192])
    num_groups: int = 64
    group_size: int = 32
    decoder_num_hidden_layers: int = 2
    num_points: int = 1024
    clouds_per_class: int = 5000
    assembly_share: float = field(
        default=0.0, metadata={"help": "Share of random assemblies of primitives among the procedural shapes."}
    )

    def __post_init__(self):
        if not 0.0 <= self.assembly_share < 1.0:
            raise ValueError(f"--assembly_share must be from 0 to below 1, got {self.assembly_share}.")


@dataclass
class PretrainTrainingArguments(PretrainingArguments):
    """The arguments of the Trainer, with the defaults of this script."""

    output_dir: str | None = "outputs/point-mae-small-procedural"
    max_steps: int = 1500
    warmup_steps: float = 100
    per_device_train_batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    max_grad_norm: float = 10.0
    dataloader_drop_last: bool = True
    logging_steps: float = 50
    save_strategy: str = "no"


class PreTrainer(PretrainingTrainer):
    """Masked autoencoding of clouds that are drawn with replacement, and augmented on their device."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.augment = get_augmentation("scale_translate")

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RandomSampler:
        count = self.args.max_steps * self.args.per_device_train_batch_size * self.args.world_size
        generator = torch.Generator().manual_seed(self.args.seed)
        return RandomSampler(self.train_dataset, replacement=True, num_samples=count, generator=generator)

    def loss_of(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The Chamfer distance of the masked groups."""
        return model(self.augment(inputs["points"])).loss


def model_card(record: dict) -> str:
    """The card of the backbone, written from the record of its pre-training."""
    args = record["arguments"]
    defaults = asdict(PretrainArguments()) | vars(PretrainTrainingArguments())
    options = [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in args.items()
        if name not in ("output_dir", "seed") and value != defaults[name]
    ]
    name, data = (
        Path(args["output_dir"]).name,
        f"{record['clouds']} clouds of {Path(args['data']).name}, training split",
    )
    if args["data"] == PROCEDURAL:
        classes = ", ".join(record["classes"])
        share = ""
        if args["assembly_share"]:
            share = f"{100 * args['assembly_share']:g} % random assemblies of primitives, the rest "
        data = f"procedural shapes, clean, seed {args['seed']}: {share}{len(record['classes'])} classes: {classes}"
    untrained = "The head is not part of the pre-training; it is new in each classifier."
    if args["model_type"] == "point_mae":
        untrained = "The class token and the head are not part of the pre-training; they are new in each classifier."
    launch = "accelerate launch"
    if record["processes"] > 1:
        launch = f"torchrun --nproc_per_node {record['processes']}"  # on CPUs as well, with --ddp_backend gloo
    command = " ".join([f"{launch} examples/pretrain.py", *options, f"--seed {args['seed']}"])
    return f"""---
library_name: transformers
license: apache-2.0
tags:
- point-cloud
- {args["model_type"]}
- masked-autoencoding
---

# {name}

{introduction(args["model_type"], args["data"], name)}

| | |
|---|---|
| blocks | {record["shape"]["blocks"]}, {args["num_attention_heads"]} heads |
| input | {args["num_points"]} points, unit sphere, y up; {record["shape"]["groups"]} |
| data | {data} |
| training | {args["max_steps"]} steps of {record["batch"]} clouds, AdamW, learning rate {args["learning_rate"]} |
| Chamfer distance of masked groups at the end | {record["final_chamfer_x1000"]:.3f} / 1000 |
| versions | {", ".join(f"{k} {v}" for k, v in record["versions"].items())} |

Made by

```bash
{command}
```

{untrained} License: Apache-2.0.
"""


def introduction(model_type: str, data: str, name: str) -> str:
    """The first lines of the card."""
    architecture, paper = ARCHITECTURES[model_type]
    if data != PROCEDURAL:
        return f"A {architecture} encoder (arXiv {paper}), pre-trained by masked autoencoding."
    return f"""A small {architecture} encoder (arXiv {paper}), pre-trained by masked autoencoding on procedural shapes.
Made for quick starts and tests; for real work use a backbone that was pre-trained on real shapes.

```python
from point_peft_hf import AutoModelForPointCloudClassification
from point_peft_hf.pretrained import backbone_folder

model = AutoModelForPointCloudClassification.from_pretrained(backbone_folder("{name}"), num_labels=10)
```"""


def build_model(args: PretrainArguments) -> PreTrainedModel:
    """A model for masked autoencoding; its encoder is the attribute that its `base_model_prefix` names."""
    common = {
        "num_attention_heads": args.num_attention_heads,
        "patch_hidden_sizes": args.patch_hidden_sizes,
        "drop_path_rate": 0.0,
    }
    if args.model_type == "point_m2ae":
        return PointM2AEForPreTraining(
            PointM2AEConfig(
                hidden_sizes=[thirds * args.hidden_size // 3 for thirds in (1, 2, 4)],
                depths=[max(args.num_hidden_layers // 3, 1)] * 3,
                num_groups=[times * args.num_groups for times in (4, 2, 1)],
                group_sizes=[max(args.group_size // divisor, 1) for divisor in (2, 4, 4)],
                **common,
            )
        )
    common |= {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_hidden_layers,
        "num_groups": args.num_groups,
        "group_size": args.group_size,
    }
    decoder = {
        "decoder_num_hidden_layers": args.decoder_num_hidden_layers,
        "decoder_num_attention_heads": args.num_attention_heads,
    }
    model = PointMAEForPreTraining(PointMAEConfig(**common, **decoder))
    if args.model_type == "point_bert":
        model.point_mae = PointBertModel(PointBertConfig(**common, patch_embedding_size=args.hidden_size))
    return model


def shape_of(config: PreTrainedConfig) -> dict[str, str]:
    """Blocks and groups of a backbone in words."""
    if isinstance(config, PointM2AEConfig):
        return {
            "blocks": f"{sum(config.depths)} in stages of width {', '.join(map(str, config.hidden_sizes))}",
            "groups": f"{', '.join(map(str, config.num_groups))} groups of {', '.join(map(str, config.group_sizes))}",
        }
    return {
        "blocks": f"{config.num_hidden_layers} of width {config.hidden_size}",
        "groups": f"{config.num_groups} groups of {config.group_size}",
    }


def load_clouds(args: PretrainArguments, seed: int) -> tuple[Dataset, PointCloudCollator | None]:
    """The clouds to pre-train on, and what makes batches of them."""
    if args.data == PROCEDURAL:
        options = {"num_points": args.num_points, "seed": seed, "cache": False}
        shapes = ProceduralShapes(BASE_CLASSES, args.clouds_per_class, **options)
        # Clouds are drawn with replacement and all alike, so shares are those of the numbers of clouds.
        assemblies = round(args.assembly_share / (1.0 - args.assembly_share) * len(shapes))
        if assemblies:
            shapes = ConcatDataset([shapes, ProceduralShapes([ASSEMBLY], assemblies, **options)])
        return shapes, None
    # Other points of a cloud each time it is seen.
    processor = PointCloudProcessor(num_points=args.num_points, seed=None)
    return load_dataset(args.data, args.layout)["train"], PointCloudCollator(processor)


def main() -> None:
    """Pre-train, then save backbone, preprocessing and the record of the run."""
    parser = HfArgumentParser((PretrainArguments, PretrainTrainingArguments), description=__doc__)
    what, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)
    model = build_model(what)
    dataset, collate = load_clouds(what, args.seed)
    trainer = PreTrainer(model, args, train_dataset=dataset, data_collator=collate)
    # The weights are the same on all processes, the masks are not.
    set_seed(args.seed, device_specific=True)
    started = time.perf_counter()
    loss = trainer.pretrain(args.resume_from_checkpoint)
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(model)
    backbone = getattr(model, model.base_model_prefix)
    backbone.config.dtype = "float32"
    backbone.save_pretrained(output_dir)
    PointCloudProcessor(num_points=what.num_points).save_pretrained(output_dir)
    recorded = ("output_dir", "seed", "max_steps", "warmup_steps", "per_device_train_batch_size", "learning_rate")
    recorded += ("weight_decay", "use_cpu", "ddp_backend")
    record = {
        "arguments": asdict(what) | {name: getattr(args, name) for name in recorded},
        "shape": shape_of(backbone.config),
        "processes": args.world_size,
        "batch": args.per_device_train_batch_size * args.world_size,
        "clouds": len(dataset),
        "classes": list(BASE_CLASSES if what.data == PROCEDURAL else dataset.class_names),
        "final_chamfer_x1000": 1000 * loss,
        "seconds": round(time.perf_counter() - started),
        "versions": versions(),
    }
    (output_dir / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    (output_dir / "README.md").write_text(model_card(record))
    print(f"Saved the backbone to {output_dir} after {record['seconds']} s.")


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError, TrainingDiverged) as error:
        sys.exit(f"error: {error}")
