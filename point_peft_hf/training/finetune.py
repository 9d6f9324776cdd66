"""Fine-tuning under Accelerate: one method, one backbone, one task."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..adapter_files import write_json
from ..data import PointCloudCollator, PointCloudProcessor, get_augmentation
from ..hub import save_adapter, write_model_card
from ..hub.facts import RECORD_NAME
from ..models import AutoModelForPointCloudClassification
from ..pretrained import DEFAULT_BACKBONE, backbone_folder
from ..tuners import build_point_prior_bank
from .checkpoints import (
    load_checkpoint,
    load_model,
    recover_folder,
    register_adapter_checkpoints,
    save_checkpoint,
    save_model,
)
from .methods import METHODS, prepare_method, uses_bank
from .metrics import ClassificationMetrics
from .optimization import parameter_groups, warmup_cosine
from .resources import PeakMemory, count_parameters, folder_bytes, versions
from .task import PROCEDURAL, ClassificationTask, load_task


@dataclass
class FinetuneArguments:
    """What to fine-tune, and how. The fields are the options of `examples/train.py`."""

    method: str = field(default="point_peft", metadata={"help": f"One of {', '.join(METHODS)}."})
    model: str = field(default=DEFAULT_BACKBONE, metadata={"help": "Backbone: a name, a folder or a Hub repository."})
    data: str = field(default=PROCEDURAL, metadata={"help": "'procedural', or a folder of a data set."})
    output_dir: str = field(
        default="outputs", metadata={"help": "The result goes to a folder of the method's name in it."}
    )
    epochs: int = field(default=8, metadata={"help": "Number of epochs."})
    batch_size: int = field(default=16, metadata={"help": "Clouds of a step and process."})
    learning_rate: float | None = field(default=None, metadata={"help": "Default: that of the method."})
    weight_decay: float = field(default=0.05, metadata={"help": "Not for biases, norms and tokens."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of the steps with rising learning rate."})
    max_gradient_norm: float = field(default=10.0, metadata={"help": "Gradients are clipped to this norm."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of an optimizer step."})
    mixed_precision: str | None = field(default=None, metadata={"help": "no, fp16 or bf16."})
    augmentation: str = field(default="scale_translate", metadata={"help": "Augmentation of the training clouds."})
    clouds_per_class: int = field(default=50, metadata={"help": "Procedural data: training clouds of a class."})
    corruption: str = field(default="scan", metadata={"help": "Procedural data: clean, scan or hard_scan."})
    max_train_clouds: int | None = field(default=None, metadata={"help": "Use only so many training clouds."})
    max_test_clouds: int | None = field(default=None, metadata={"help": "Use only so many test clouds."})
    validation_fraction: float = field(default=0.2, metadata={"help": "Share of training clouds for validation."})
    data_seed: int = field(default=0, metadata={"help": "Seed of the splits."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, augmentation and dropout."})
    num_workers: int = field(default=0, metadata={"help": "Worker processes of a data loader."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest', or a checkpoint's folder."})
    report_to: str = field(default="none", metadata={"help": "Tracker: none, tensorboard, ..."})
    config: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the method's config, as JSON."})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one does not fit, with its name and the value got.
        """
        if self.method not in METHODS:
            raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "clouds_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--learning_rate must be above 0, got {self.learning_rate}.")
        for name in ("validation_fraction", "warmup_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"--{name} must be between 0 and 1, got {getattr(self, name)}.")
        get_augmentation(self.augmentation)


def load_backbone(name: str, class_names: list[str]) -> nn.Module:
    """Load a backbone with a head for the given classes.

    Args:
        name: Name of a shipped backbone, a folder, or a Hub repository.
        class_names: Names of the classes.

    Returns:
        The model.
    """
    id2label = dict(enumerate(class_names))
    backbone = AutoModelForPointCloudClassification.from_pretrained(
        backbone_folder(name),
        num_labels=len(class_names),
        id2label=id2label,
        label2id={label: index for index, label in id2label.items()},
        ignore_mismatched_sizes=True,
    )
    # A shipped backbone goes by its name: its folder is another on every machine.
    backbone.name_or_path = backbone.config.name_or_path = name
    return backbone


class Finetuning:
    """One run: train, choose the epoch on the validation split, look at the test split once.

    Args:
        args: What to fine-tune, and how.
        task: The data; loaded from the arguments by default (pass it to share it between runs).
        report: Called with each line that a person should see.
    """

    def __init__(
        self, args: FinetuneArguments, task: ClassificationTask | None = None, report: Callable[[str], None] = print
    ):
        args.check()
        self.args = args
        self.output_dir = Path(args.output_dir) / args.method
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
            log_with=None if args.report_to == "none" else args.report_to,
            project_dir=self.output_dir,
        )
        self.report = report if self.accelerator.is_main_process else lambda line: None
        self.memory = PeakMemory()
        self.memory.start()
        set_seed(args.seed)
        with self.accelerator.main_process_first():
            self.task = task or load_task(
                args.data,
                clouds_per_class=args.clouds_per_class,
                corruption=args.corruption,
                validation_fraction=args.validation_fraction,
                max_train_clouds=args.max_train_clouds,
                max_test_clouds=args.max_test_clouds,
                seed=args.data_seed,
            )
        self.processor = PointCloudProcessor.from_pretrained(backbone_folder(args.model))
        self.augment = get_augmentation(args.augmentation)
        self._prepare()

    # -- Setting up ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        args, accelerator = self.args, self.accelerator
        model = prepare_method(args.method, load_backbone(args.model, self.task.class_names), **args.config)
        if uses_bank(model):
            model.to(accelerator.device)
            build_point_prior_bank(model, self._loader(self.task.train, shuffle=False), accelerator=accelerator)
        train_loader = self._loader(self.task.train, shuffle=True)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, args.weight_decay), lr=args.learning_rate or METHODS[args.method].learning_rate
        )
        self.model, self.optimizer, self.train_loader, self.validation_loader = accelerator.prepare(
            model, optimizer, train_loader, self._loader(self.task.validation, shuffle=False)
        )
        steps = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps) * args.epochs
        warmup_steps = max(int(steps * args.warmup_ratio), 1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, steps, warmup_steps)
        )
        accelerator.register_for_checkpointing(self.scheduler)
        register_adapter_checkpoints(accelerator)
        self.history: list[dict[str, float]] = []
        self.best = {"epoch": 0, "accuracy": -1.0}
        self.counts: dict[str, int] = {}

    def _loader(self, dataset: torch.utils.data.Dataset, shuffle: bool) -> DataLoader:
        processor = self.processor
        if shuffle:
            # Other points of a larger cloud in each epoch.
            processor = PointCloudProcessor.from_dict({**self.processor.to_dict(), "seed": None})
        return DataLoader(
            dataset,
            batch_size=self.args.batch_size,
            shuffle=shuffle,
            # A last batch of a single cloud cannot go through the batch normalisation of the head.
            drop_last=shuffle and len(dataset) > self.args.batch_size,
            collate_fn=PointCloudCollator(processor),
            num_workers=self.args.num_workers,
        )

    # -- Running ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train, choose, test, and save everything.

        Returns:
            The record of the run, as it is saved to "run.json".

        Raises:
            RuntimeError: If the loss is not finite.
        """
        args, accelerator = self.args, self.accelerator
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        first_epoch = self._resume()
        if args.report_to != "none":
            accelerator.init_trackers("point_peft_hf", config={k: str(v) for k, v in asdict(args).items()})
        for epoch in range(first_epoch, args.epochs + 1):
            started = time.perf_counter()
            loss = self._train_epoch(epoch)
            seconds = time.perf_counter() - started
            scores = self._evaluate(self.validation_loader)
            row = {
                "epoch": epoch,
                "loss": loss,
                **{f"validation_{k}": v for k, v in scores.items()},
                "seconds": seconds,
            }
            self.history.append(row)
            accelerator.log(row, step=epoch)
            if scores["accuracy"] > self.best["accuracy"]:
                self.best = {"epoch": epoch, "accuracy": scores["accuracy"]}
                self._save(self.output_dir)
            save_checkpoint(accelerator, self.output_dir / "checkpoint", self._state(epoch))
            best = " (best)" if self.best["epoch"] == epoch else ""
            self.report(
                f"[{args.method}] epoch {epoch}/{args.epochs}: loss {loss:.4f}, validation accuracy "
                f"{100 * scores['accuracy']:.1f} %{best}, {seconds:.1f} s"
            )
        record = self._finish()
        accelerator.end_training()
        return record

    def _train_epoch(self, epoch: int) -> float:
        args, accelerator, model = self.args, self.accelerator, self.model
        self.train_loader.set_epoch(epoch)
        model.train()
        total, count = torch.zeros((), device=accelerator.device), 0
        progress = tqdm(
            self.train_loader,
            desc=f"{args.method} {epoch}/{args.epochs}",
            disable=not accelerator.is_local_main_process or not sys.stderr.isatty(),
            leave=False,
        )
        for batch in progress:
            with accelerator.accumulate(model):
                points = self.augment(batch["points"])
                loss = model(points=points, labels=batch["labels"], sample_ids=batch["sample_ids"]).loss
                self._check_loss(loss, epoch, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_gradient_norm)
                if not self.counts:
                    self.counts = count_parameters(accelerator.unwrap_model(model))
                self.optimizer.step()
                if accelerator.sync_gradients:
                    self.scheduler.step()
                self.optimizer.zero_grad()
            total += loss.detach()
            count += 1
            progress.set_postfix(loss=f"{loss.item():.3f}")
        return float(accelerator.reduce(total / count, reduction="mean"))

    def _check_loss(self, loss: torch.Tensor, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        if not torch.isfinite(loss):
            clouds = ", ".join(map(str, batch["sample_ids"].tolist()))
            raise RuntimeError(
                f"The loss is {loss.item()} in epoch {epoch}, on the clouds {clouds}. Look at these clouds, or try a "
                f"lower --learning_rate. The last good state is in {self.output_dir}."
            )

    @torch.no_grad()
    def _evaluate(self, loader: DataLoader) -> dict[str, float]:
        self.model.eval()
        metrics = ClassificationMetrics(len(self.task.class_names))
        for batch in loader:
            predictions = self.model(points=batch["points"]).logits.argmax(dim=-1)
            # A last batch that is filled up for the sake of other processes is cut back here.
            metrics.update(*self.accelerator.gather_for_metrics((predictions, batch["labels"])))
        return metrics.compute()

    # -- Saving -------------------------------------------------------------------------------------------------------

    def _save(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            if isinstance(model, PeftModel):
                # As a whole or not at all: this may be the last good state for a long time.
                save_adapter(model, folder, processor=self.processor, card=False)
            else:
                save_model(model, folder)
                self.processor.save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    def _state(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "best": self.best, "history": self.history, "counts": self.counts}

    def _resume(self) -> int:
        wanted = self.args.resume_from_checkpoint
        if wanted is None:
            return 1
        folder = self.output_dir / "checkpoint" if wanted == "latest" else Path(wanted)
        if self.accelerator.is_main_process:
            recover_folder(folder)
        self.accelerator.wait_for_everyone()
        if wanted == "latest" and not folder.exists():
            self.report(f"[{self.args.method}] nothing to resume in {self.output_dir}, starting anew")
            return 1
        state = load_checkpoint(self.accelerator, folder)
        self.best, self.history, self.counts = state["best"], state["history"], state["counts"]
        self.report(f"[{self.args.method}] resuming after epoch {state['epoch']} from {folder}")
        return state["epoch"] + 1

    def _finish(self) -> dict[str, Any]:
        """Go back to the best epoch and look at the test split, once."""
        load_model(self.accelerator.unwrap_model(self.model), self.output_dir)
        test_loader = self.accelerator.prepare(self._loader(self.task.test, shuffle=False))
        record = {
            "method": self.args.method,
            "arguments": asdict(self.args),
            "learning_rate": self.args.learning_rate or METHODS[self.args.method].learning_rate,
            "class_names": self.task.class_names,
            "clouds": {name: len(getattr(self.task, name)) for name in ("train", "validation", "test")},
            "parameters": self.counts,
            "best_epoch": self.best["epoch"],
            "validation_accuracy": self.best["accuracy"],
            "test": self._evaluate(test_loader),
            "file_bytes": folder_bytes(self.output_dir),
            "seconds_per_epoch": sum(row["seconds"] for row in self.history) / len(self.history),
            "peak_memory_mib": self.memory.mebibytes(),
            "history": self.history,
            "versions": versions(),
        }
        if self.accelerator.is_main_process:
            write_json(self.output_dir / RECORD_NAME, record)
            if isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
                write_model_card(self.output_dir)
        return record


def results_table(records: list[dict[str, Any]]) -> str:
    """The records of runs as a table in Markdown."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "method": lambda r: r["method"],
        "trainable": lambda r: f"{r['parameters']['trainable']:,}",
        "with gradient": lambda r: f"{r['parameters']['received_gradient']:,}",
        "file": lambda r: f"{r['file_bytes'] / 1e6:.2f} MB",
        "validation": lambda r: f"{100 * r['validation_accuracy']:.1f} %",
        "test accuracy": lambda r: f"{100 * r['test']['accuracy']:.1f} %",
        "mean class": lambda r: f"{100 * r['test']['mean_class_accuracy']:.1f} %",
        "s/epoch": lambda r: f"{r['seconds_per_epoch']:.1f}",
        "peak memory": lambda r: f"{r['peak_memory_mib']:.0f} MiB",
    }
    cells = [list(columns), *([cell(record) for cell in columns.values()] for record in records)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
