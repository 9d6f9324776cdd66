"""A `transformers.Trainer` for point clouds: its batches, its metrics, and checkpoints that are whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, wait_for_everyone
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, FeatureExtractionMixin
from transformers.trainer_utils import PredictionOutput, rotate_checkpoints

from ..models.segmentation import IGNORE_INDEX
from .arguments import PointCloudArguments, PointCloudTrainingArguments
from .base_trainer import BaseTrainer
from .batch_norm import estimate_statistics, synchronize_batch_norms, trained_batch_norms
from .batches import evaluation_loader, training_loader
from .checkpoints import keep_best, load_model, save_failure, save_model, seal_checkpoint, what_is_safe
from .interruption import TrainingDiverged, TrainingStopped
from .precomputed import PrecomputedValues
from .record import count_parameters
from .tasks import Task


class PointCloudTrainer(BaseTrainer):
    """A Trainer for a point-cloud task.

    What it adds to `transformers.Trainer`: batches that depend on the seed, the epoch and the numbers of their clouds
    alone; the measures of the task; exact statistics of the trained BatchNorms before each evaluation; values of
    adapters that are computed once for each cloud; a loss that is not finite stops training with the names of the
    clouds; checkpoints that hold what was trained and a manifest, so that one that is not whole is never resumed from.

    Args:
        model: The model; of a `PeftModel` only the adapter is saved.
        args: How to train, from `PointCloudTrainingArguments.for_method`.
        task: The clouds.
        processor: Prepares them.
        what: Which augmentation, among others.
        identity: What the weights depend on; kept in each checkpoint.
        callbacks: Further callbacks.
    """

    def __init__(
        self,
        model: nn.Module,
        args: PointCloudTrainingArguments,
        task: Task,
        processor: FeatureExtractionMixin,
        what: PointCloudArguments,
        identity: Mapping[str, Any] | None = None,
        callbacks: list | None = None,
    ):
        self.task, self.processor, self.what, self.identity = task, processor, what, dict(identity or {})
        if args.sync_batch_norm:
            synchronize_batch_norms(model)
        super().__init__(
            model,
            args,
            train_dataset=task.train,
            eval_dataset=task.validation,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
        )
        # What depends on a cloud alone is computed once where it comes again with the same points: in another epoch,
        # or to estimate the statistics of the BatchNorms. Sharded models are left to themselves.
        is_whole = self.accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        fixed = task.fixed_splits(processor, what.augmentation)
        self.num_views = 1 if "train" in fixed else what.cache_views
        names = {"train", *fixed} if is_whole and fixed else ()
        self.known = {name: PrecomputedValues(int(what.cache_gib * 2**30 / len(names))) for name in names}
        self.split = "eval"
        # What is counted since the beginning of the epoch; a part of the checkpoints.
        self.progress = {"right": 0.0, "labelled": 0.0, "loss": 0.0, "batches": 0, "seconds": 0.0, "parameters": {}}

    # -- Batches ------------------------------------------------------------------------------------------------------

    def _training_loader(self, num_workers: int) -> DataLoader:
        loader = training_loader(
            self.task.train,
            partial(self.task.training_collator, self.processor, self.what.augmentation),
            batch_size=self.args.per_device_train_batch_size,
            seed=self.args.seed,
            num_workers=num_workers,
            num_processes=self.accelerator.num_processes,
            num_views=self.num_views,
        )
        return self.accelerator.prepare(loader)

    def get_train_dataloader(self) -> DataLoader:
        """The batches to train on; the Trainer sets the epoch of their sampler."""
        return self._training_loader(self.args.dataloader_num_workers)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The batches of a split, by default of the validation split, in the order of its clouds."""
        loader = evaluation_loader(
            self.task.validation if eval_dataset is None else eval_dataset,
            self.task.evaluation_collator(self.processor),
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """The batches of another split, in the order of its clouds."""
        return self.get_eval_dataloader(test_dataset)

    # -- Steps --------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of a batch; in training it is counted and checked.

        Raises:
            TrainingDiverged: If it is not finite.
        """
        given = {name: value for name, value in inputs.items() if name not in (*self.task.only_for_metrics, "views")}
        with self._known("train" if model.training else self.split, inputs) as known:
            outputs = model(**given, **known)
        if model.training:
            self._check_and_count(outputs, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    @contextmanager
    def _known(self, split: str, batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
        """What the model need not compute again of a batch, as its argument; what it adds to that is kept."""
        known = self.known.get(split)
        # Of views that do not come again, those are kept that the BatchNorms will see.
        done = self.progress["batches"] // self.accelerator.num_processes
        comes_again = split != "train" or self.num_views or not self.model.training
        if known is None or not (comes_again or done < self.num_refresh_batches):
            yield {}
            return
        values = known.of(batch)
        yield {"precomputed": values}
        known.keep(batch, values)

    @cached_property
    def num_refresh_batches(self) -> int:
        """Number of the batches of an epoch, of each process, that statistics of BatchNorms are estimated on."""
        if not self.args.exact_batch_norm or not trained_batch_norms(self.model):
            return 0
        batch_size = self.args.per_device_train_batch_size * self.accelerator.num_processes
        return max(math.ceil(self.args.exact_batch_norm / batch_size), 2)

    def _check_and_count(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> None:
        """Count loss and accuracy over all processes, which agree here on whether to go on."""
        loss = outputs.loss.detach().float()
        predictions, targets = self.task.judge(outputs, batch)[:2]
        labelled = targets != IGNORE_INDEX
        right = (predictions == targets) & labelled
        values = torch.stack([right.sum(), labelled.sum(), loss, ~loss.isfinite()])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values)
        right, labelled, loss, num_bad = values.tolist()
        if num_bad:
            self._fail(f"The loss is {float(outputs.loss)}", None if outputs.loss.isfinite() else batch)
        counted = {"right": right, "labelled": labelled, "loss": loss, "batches": self.accelerator.num_processes}
        for name, value in counted.items():
            self.progress[name] += value
        self._batch = batch

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | float:
        if not self.progress["parameters"]:
            self.progress["parameters"] = count_parameters(self.accelerator.unwrap_model(model))
        norm = super()._clip_grad_norm(model)
        # With fp16 this happens now and then, and the scaler skips the step.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            self._fail(f"The norm of the gradient is {float(norm)}", self._batch)
        return norm

    def _fail(self, what: str, batch: Mapping[str, torch.Tensor] | None) -> None:
        names = self.task.train.names_of(batch["sample_ids"].tolist()) if batch is not None else []
        step, epoch = self.state.global_step + 1, int(self.state.epoch or 0) + 1
        folder = Path(self.args.output_dir) / "failure"
        model = self.accelerator.unwrap_model(self.model)
        facts = {"what": what, "step": step, "epoch": epoch, "clouds": names}
        with self.writing("the failed step"):
            save_failure(folder, model, batch, facts, self.args.process_index)
        clouds = f", on {', '.join(names)}" if names else ", in another process"
        raise TrainingDiverged(
            f"{what} in step {step} (epoch {epoch}){clouds}. The model and the batch are in {folder}. Look at these "
            f"clouds, or try a lower --learning_rate. {what_is_safe(Path(self.args.output_dir))}"
        )

    def end_epoch(self) -> dict[str, float]:
        """Mean "loss" and "train_accuracy" and "seconds" of the epoch; counting begins anew."""
        progress = self.progress
        row = {
            "loss": progress["loss"] / progress["batches"],
            "train_accuracy": progress["right"] / max(progress["labelled"], 1),
            "seconds": progress["seconds"],
        }
        self.progress = dict.fromkeys(progress, 0.0) | {"batches": 0, "parameters": progress["parameters"]}
        return row

    # -- Evaluation ---------------------------------------------------------------------------------------------------

    def refresh_batch_norms(self) -> None:
        """Estimate the statistics of the trained BatchNorms anew, with the present weights and clouds of the epoch."""
        if not (count := self.num_refresh_batches):
            return
        norms = trained_batch_norms(self.model)
        loader = self._training_loader(num_workers=0)
        epoch = max(math.ceil(self.state.epoch or 0) - 1, 0)
        loader.set_epoch(epoch)
        self.model.eval()
        with torch.no_grad(), estimate_statistics(norms, self.accelerator):
            for batch in islice(loader, count):
                with self._known("train", batch) as known:
                    self.model_wrapped(**self.task.inputs(batch), **known)
        if "train" in self.known and not self.num_views:
            self.known["train"].clear()

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the model on a split, by default the validation split."""
        if self.is_in_train:
            self.refresh_batch_norms()
        # Values are kept of the validation split alone: the numbers of other clouds may be the same.
        self.split = "eval" if eval_dataset is None else "other"
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Dataset, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Measure the model on another split, and give what was predicted."""
        self.split = "other"
        return super().predict(test_dataset, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...] | None]:
        """The loss of a batch, its predictions, and what else the measures of the task need."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        first, *rest = self.task.rows(outputs, inputs)
        return loss.detach(), first, tuple(rest)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.task.measure(*gathered_rows(prediction))

    # -- Checkpoints --------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, what: str):
        """Turn a failure to write, such as a full disk, into a message about what is safe and how to go on."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise TrainingStopped(
                f"Could not write {what} to {self.args.output_dir}: {error}. If the disk is full, free some space. "
                f"{what_is_safe(Path(self.args.output_dir))}"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_model(self.accelerator.unwrap_model(self.model), folder, state_dict)
            self.processor.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # An older checkpoint is only deleted when the new one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with self.writing(f"the checkpoint of step {self.state.global_step}"):
                super()._save_checkpoint(model, trial)
                wait_for_everyone()
                if self.args.should_save:
                    if self.state.best_model_checkpoint is not None:
                        keep_best(folder, Path(self.state.best_model_checkpoint))
                    seal_checkpoint(folder, {"identity": self.identity, "progress": self.progress})
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)
        wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            load_model(self.model, self.state.best_model_checkpoint)


def gathered_rows(prediction: EvalPrediction | PredictionOutput) -> list[torch.Tensor]:
    """What `task.rows` gave, of a whole split, as the Trainer hands it on: the first apart from the others."""
    others = prediction.label_ids
    others = others if isinstance(others, tuple | list) else (others,)
    return [torch.as_tensor(values) for values in (prediction.predictions, *others)]
