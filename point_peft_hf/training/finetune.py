"""Fine-tuning under Accelerate: one method, one backbone, one task."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, set_seed
from peft import PeftModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import get_augmentation
from ..io import write_model_card
from ..io.backbone import fingerprint
from ..io.files import RECORD_NAME, write_json
from ..models.segmentation import IGNORE_INDEX
from ..tuners import build_point_prior_bank
from ..visualization.figure import in_words
from .arguments import FinetuneArguments
from .batch_norm import synchronize_batch_norms
from .batches import evaluation_loader, training_loader
from .checkpoints import load_model, register_adapter_checkpoints
from .interruption import StopRequest, TrainingDiverged, TrainingInterrupted, TrainingStopped
from .methods import METHODS, load_backbone, load_processor, prepare_method, uses_bank
from .optimization import parameter_groups, warmup_cosine
from .precomputed import PrecomputedValues
from .record import check_tracker, data_fingerprint, describe_environment
from .resources import PeakMemory, count_parameters, folder_bytes
from .run_folder import Progress, RunFolder
from .sharding import WholeModel
from .tasks import Task, task_from_arguments
from .voting import judge_by_votes

# Fewer optimizer steps than this are said to be few: with them no method gets far from where it starts.
FEW_STEPS = 50
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class Finetuning:
    """One run: train, choose the epoch on the validation split, look at the test split once.

    Whatever ends the run, it can go on where the last checkpoint was saved, and ends with the same weights (to the
    bit, on a CPU with the same number of threads).

    Args:
        args: What to fine-tune, and how.
        task: The data; loaded from the arguments by default (pass it to share it between runs).
        report: Called with each line that a person should see.
        progress: Whether to show progress bars where there is a terminal for them.

    Raises:
        ValueError: If an argument does not fit, the output folder cannot be written, or an unfinished run lies there.
    """

    def __init__(
        self,
        args: FinetuneArguments,
        task: Task | None = None,
        report: Callable[[str], None] = print,
        progress: bool = True,
    ):
        args.check()
        check_tracker(args.report_to)
        self.args = args
        self.output_dir = Path(args.output_dir) / args.method_name
        if AcceleratorState._shared_state and AcceleratorState().distributed_type not in SHARDED:
            # A run before this one in the same process may have had another precision.
            AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=None if args.report_to == "none" else args.report_to,
            # Beside the run's folder, which is replaced as a whole whenever there is a new best model.
            project_dir=self.output_dir.parent / args.report_to,
        )
        self.report = report
        self.show_bars = progress and sys.stderr.isatty()
        self.folder = RunFolder(self.output_dir, args, self.accelerator, self._show)
        self.memory = PeakMemory()
        self.memory.start()
        try:
            set_seed(args.seed)
            with self.accelerator.main_process_first():
                self.task = task or task_from_arguments(args)
            self.progress = Progress()
            self._prepare()
        except BaseException:
            self.folder.close()
            raise

    # -- Setting up ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        args, accelerator = self.args, self.accelerator
        fields = self.task.model_fields | args.model_config
        backbone = load_backbone(args.model, self.task.class_names, self.task.auto_class, **fields)
        self.processor = load_processor(args.model, **args.processor_fields)
        self.identity = {
            "arguments": args.recipe(),
            "mixed_precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "backbone": fingerprint(backbone).get("float32"),
            "data": data_fingerprint(self.task),
        }
        self.folder.refuse_to_replace(self.identity)
        model = prepare_method(args.method, backbone, **args.config)
        if uses_bank(model):
            model.to(accelerator.device)
            # The bank holds classes of whole clouds, also where parts are told apart.
            clouds = self._evaluation_loader(self.task.train, segmentation=False)
            build_point_prior_bank(model, clouds, accelerator=accelerator, progress=self.show_bars)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if args.sync_batch_norm:
            synchronize_batch_norms(model)
        train_loader = training_loader(
            self.task.train,
            self.processor,
            get_augmentation(args.augmentation),
            batch_size=args.batch_size,
            seed=args.seed,
            num_workers=args.num_workers,
            num_processes=accelerator.num_processes,
            segmentation=self.task.is_segmentation,
        )
        self.sampler = train_loader.sampler
        self.whole_model = WholeModel(model, accelerator)
        optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.peak_learning_rate)
        self.model, self.optimizer, self.train_loader, self.validation_loader = accelerator.prepare(
            model, optimizer, train_loader, self._evaluation_loader(self.task.validation)
        )
        # What adapters compute of a cloud is computed once where it comes with the same points in every epoch.
        is_fixed = args.augmentation == "none" and self.processor.sampling != "random"
        self.known = {"train": self._precomputed() if is_fixed else None, "validation": self._precomputed()}
        self.total_steps = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps) * args.epochs
        warmup_steps = max(int(self.total_steps * args.warmup_share), 1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, self.total_steps, warmup_steps)
        )
        accelerator.register_for_checkpointing(self.scheduler)
        register_adapter_checkpoints(accelerator)

    def _precomputed(self) -> PrecomputedValues | None:
        # A part of a sharded model cannot be run on its own.
        is_whole = self.accelerator.distributed_type not in SHARDED
        return PrecomputedValues(self.model, self.accelerator) if is_whole else None

    def _evaluation_loader(self, dataset: torch.utils.data.Dataset, segmentation: bool | None = None) -> DataLoader:
        return evaluation_loader(
            dataset,
            self.processor,
            batch_size=self.args.batch_size,
            num_workers=self.args.num_workers,
            segmentation=self.task.is_segmentation if segmentation is None else segmentation,
        )

    # -- Running ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train, choose, test, and save everything.

        Returns:
            The record of the run, as it is saved to "run.json".

        Raises:
            ValueError: If the run cannot be resumed as asked for.
            TrainingStopped: If it cannot go on: a loss that is not finite, a full disk, a worker that died.
            TrainingInterrupted: After Ctrl-C or SIGTERM, when everything is saved.
        """
        # The order of the clouds is the same for all processes, dropout is not.
        set_seed(self.args.seed, device_specific=True)
        with StopRequest(insist=self.accelerator.num_processes == 1) as self.stop:
            try:
                self._begin()
                while self.progress.epoch <= self.args.epochs:
                    with self._explained_workers():
                        self._train_epoch()
                        self._end_epoch()
                record = self._finish()
            except TrainingStopped as error:
                self.folder.log_error(error)
                raise
            finally:
                self.bar.close()
                for tracker in self.accelerator.trackers:
                    tracker.finish()
                self.train_loader.end()
                self.folder.close()
        if self.stop.signal_number:
            raise TrainingInterrupted(128 + self.stop.signal_number)
        return record

    def _begin(self) -> None:
        self.bar = tqdm(disable=True)
        self.progress = self.folder.begin(self.identity, self.processor)
        if self.args.method not in METHODS and self.args.learning_rate is None:
            self.folder.tell(
                f"learning rate {self.args.peak_learning_rate:g}, the default of types that have none of their own; "
                "another: --learning_rate"
            )
        if self.total_steps < FEW_STEPS:
            self.folder.tell(
                f"only {self.total_steps} steps of {self.args.batch_size} clouds in {self.args.epochs} epochs; with "
                "more --epochs or a smaller --batch_size it may learn more"
            )
        self.record = {
            "method": self.args.method,
            "arguments": asdict(self.args),
            "learning_rate": self.args.peak_learning_rate,
            "warmup_ratio": self.args.warmup_share,
            "class_names": self.task.class_names,
            "clouds": {name: len(getattr(self.task, name)) for name in ("train", "validation", "test")},
            "fingerprints": {"backbone": self.identity["backbone"], "data": self.identity["data"]},
            **describe_environment(self.accelerator),
        }
        self.folder.begin_record(self.record)
        if self.args.report_to != "none":
            self.accelerator.init_trackers(
                self.args.method_name if self.args.report_to == "tensorboard" else "point_peft_hf",
                config={name: str(value) for name, value in asdict(self.args).items()},
                init_kwargs={
                    "tensorboard": {"purge_step": self.progress.step + 1},
                    "trackio": {"name": self.args.method_name, "resume": "allow"},
                },
            )
        self.bar = tqdm(
            desc=self.args.method,
            total=self.total_steps,
            initial=self.progress.step,
            unit="step",
            disable=not self.accelerator.is_main_process or not self.show_bars,
            leave=False,
        )

    def _train_epoch(self) -> None:
        """Train the rest of the epoch under way."""
        accelerator, progress = self.accelerator, self.progress
        self.train_loader.set_epoch(progress.epoch - 1)
        self.sampler.set_epoch(progress.epoch - 1)
        self.model.train()
        started = time.perf_counter()
        losses = []
        for batch in skip_first_batches(self.train_loader, progress.batches):
            with accelerator.accumulate(self.model):
                outputs = self.model(**batch, **self._ahead("train", batch))
                losses.append(self._check_and_count(outputs, batch))
                accelerator.backward(outputs.loss * self._weight_of_batch())
                norm = self._clip_gradients(batch) if accelerator.sync_gradients else None
                if not progress.parameters:
                    progress.parameters = count_parameters(accelerator.unwrap_model(self.model))
                self.optimizer.step()
                self.optimizer.zero_grad()
            progress.batches += 1
            progress.seconds += time.perf_counter() - started
            started = time.perf_counter()
            if accelerator.sync_gradients:
                learning_rate = self.scheduler.get_last_lr()[0]
                if not self.optimizer.step_was_skipped:
                    self.scheduler.step()
                progress.step += 1
                measured = {"loss": sum(losses) / len(losses), "gradient_norm": norm, "learning_rate": learning_rate}
                self._after_step(measured)
                losses.clear()

    def _ahead(self, split: str, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What the model need not compute again of a batch, as its argument."""
        values = known.of(batch) if (known := self.known.get(split)) is not None else None
        return {} if values is None else {"precomputed": values}

    def _weight_of_batch(self) -> float:
        """Let the last group of accumulated batches of an epoch be their mean, as the others are, if it is smaller."""
        group_size = self.args.gradient_accumulation_steps
        first = self.progress.batches - self.progress.batches % group_size
        return group_size / min(group_size, len(self.train_loader) - first)

    def _check_and_count(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> float:
        """Count loss and accuracy of a batch over all processes, which also agree here on whether to go on."""
        loss = outputs.loss.detach().float()
        predictions, targets = self.task.judge(outputs, batch)[:2]
        labelled = targets != IGNORE_INDEX
        right = (predictions == targets) & labelled
        is_stopping = torch.full_like(loss, self.stop.signal_number > 0)
        values = torch.stack([loss, right.sum(), labelled.sum(), ~loss.isfinite(), is_stopping])
        totals = self.accelerator.reduce(values) if self.accelerator.num_processes > 1 else values
        total_loss, num_right, count, num_bad, num_stopping = totals.tolist()
        if num_bad:
            self._fail(f"The loss is {float(loss)}", None if loss.isfinite() else batch)
        self.is_stopping = num_stopping > 0
        mean = total_loss / self.accelerator.num_processes
        self.progress.count(mean, int(num_right), int(count))
        return mean

    def _clip_gradients(self, batch: Mapping[str, torch.Tensor]) -> float | None:
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_gradient_norm))
        if math.isfinite(norm):
            return norm
        if self.accelerator.scaler is None:
            self._fail(f"The norm of the gradient is {norm}", batch)
        # With fp16 this happens now and then, and the scaler leaves the step out.
        return None

    def _fail(self, what: str, batch: Mapping[str, torch.Tensor] | None) -> None:
        names = self.task.train.names_of(batch["sample_ids"].tolist()) if batch is not None else []
        self.folder.save_failure(what, self.progress, self.whole_model.gather(self.model), batch, names)
        clouds = f", on {', '.join(names)}" if names else ", in another process"
        raise TrainingDiverged(
            f"{what} in step {self.progress.step + 1} (epoch {self.progress.epoch}){clouds}. The model and the batch "
            f"are in {self.folder.failure}. Look at these clouds, or try a lower --learning_rate. "
            f"{self.folder.what_is_safe()}"
        )

    def _after_step(self, measured: dict[str, float]) -> None:
        args, progress = self.args, self.progress
        means = progress.means()
        self.bar.set_postfix(loss=f"{means['loss']:.3f}", accuracy=f"{100 * means['train_accuracy']:.1f} %")
        self.bar.update()
        if progress.step % args.log_every_steps == 0:
            self.folder.log_metrics("step", {"step": progress.step, "epoch": progress.epoch, **measured})
            self.accelerator.log({k: v for k, v in measured.items() if v is not None}, step=progress.step)
        # Several processes stop where they have agreed to, in their next step.
        is_stopping = self.is_stopping or (self.stop.signal_number > 0 and self.accelerator.num_processes == 1)
        is_last = progress.batches == len(self.train_loader)
        is_due = args.checkpoint_every_steps and progress.step % args.checkpoint_every_steps == 0 and not is_last
        if is_due or is_stopping:
            self.folder.save_checkpoint(progress)
        if is_stopping:
            number = self.stop.signal_number or signal.SIGTERM
            self.folder.tell(
                f"{signal.Signals(number).name}: stopped after step {progress.step} of "
                f"{self.total_steps}. {self.folder.what_is_safe()}"
            )
            raise TrainingInterrupted(128 + number)

    def _end_epoch(self) -> None:
        """Look at the validation split, keep the model if it is the best so far, and save a checkpoint."""
        args, progress = self.args, self.progress
        epoch, seconds = progress.epoch, progress.seconds
        scores = self._evaluate(self.validation_loader, "validation") if len(self.task.validation) else {}
        row = {
            "epoch": epoch,
            **progress.means(),
            **{f"validation_{name}": value for name, value in scores.items()},
            "seconds": seconds,
        }
        # Without a validation split the last epoch is taken.
        is_best = progress.end_epoch(row, scores.get(self.task.score, float(epoch)))
        if is_best:
            self.folder.save_best(self.whole_model.gather(self.model), self.processor, self.record)
        self.folder.log_metrics("epoch", {"step": progress.step, **row})
        self.accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=progress.step)
        self.folder.save_checkpoint(progress)
        text = f"epoch {epoch}/{args.epochs}: loss {row['loss']:.4f}"
        if scores:
            name, best = self.task.score, " (best)" if is_best else ""
            text += f", validation {in_words(name)} {100 * scores[name]:.1f} %{best}"
        self.folder.tell(f"{text}, {seconds:.1f} s")

    @torch.no_grad()
    def _evaluate(self, loader: DataLoader, split: str = "test") -> dict[str, float]:
        self.model.eval()
        metrics = self.task.metrics()
        for batch in loader:
            outputs = self.model(**self.task.inputs(batch), **self._ahead(split, batch))
            judged = self.task.judge(outputs, batch)
            # A last batch that is filled up for the sake of other processes is cut back here.
            metrics.update(*self.accelerator.gather_for_metrics(judged))
        return metrics.compute()

    def _finish(self) -> dict[str, Any]:
        """Go back to the best epoch and look at the test split, once."""
        model = self.whole_model.gather(self.model)
        load_model(model, self.output_dir)
        self.whole_model.scatter(model, self.model)
        history = self.progress.history
        seconds = sum(row["seconds"] for row in history)
        clouds = len(history) * len(self.train_loader) * self.train_loader.total_batch_size
        memory = torch.tensor([self.memory.mebibytes()], device=self.accelerator.device)
        peak = float(self.accelerator.gather(memory).max())
        record = {
            **self.record,
            "parameters": self.progress.parameters,
            "best_epoch": self.progress.best["epoch"],
            "score": self.task.score,
            f"validation_{self.task.score}": self.progress.best["score"] if len(self.task.validation) else None,
            "test": self._test() if len(self.task.test) else {},
            "file_bytes": folder_bytes(self.output_dir),
            "seconds_per_epoch": seconds / len(history),
            "clouds_per_second": clouds / seconds,
            "peak_memory_mib": None if math.isnan(peak) else peak,
            "history": history,
        }
        with self.folder.writing("the record of the run"):
            if self.accelerator.is_main_process:
                write_json(self.output_dir / RECORD_NAME, record)
                if isinstance(model, PeftModel):
                    write_model_card(self.output_dir)
        return record

    def _test(self) -> dict[str, float]:
        if self.args.test_votes > 1:
            return judge_by_votes(self.model, self.task, self.processor, self.args, self.accelerator)
        return self._evaluate(self.accelerator.prepare(self._evaluation_loader(self.task.test)))

    # -- Telling ------------------------------------------------------------------------------------------------------

    def _show(self, line: str) -> None:
        with tqdm.external_write_mode():
            self.report(line)

    @contextmanager
    def _explained_workers(self) -> Iterator[None]:
        """Turn the end of a worker process into a message about what to do."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise TrainingStopped(
                f"A worker process of the data loader died after step {self.progress.step}: {error}. Mostly this is "
                f"want of memory: try a lower --num_workers (now {self.args.num_workers}). "
                f"{self.folder.what_is_safe()}"
            ) from error
