"""What a training says and obeys while it runs: progress, the end of each epoch, signals, checkpoints in between."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..visualization.figure import in_words
from .interruption import StopRequest

if TYPE_CHECKING:
    from .trainer import PointCloudTrainer

# The remaining time is estimated from this number of steps, and given if it is longer than this.
_TIMED_STEPS, _LONG_SECONDS = 4, 20.0
# Fewer optimizer steps than this are few: with them no method gets far from where it starts.
FEW_STEPS = 50


class ProgressBar(ProgressCallback):
    """The progress bar of transformers without the lines of metrics between, as each epoch has its own."""

    def on_log(self, *args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss at the end of the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show no bar of an evaluation."""


class RunCallback(TrainerCallback):
    """Reports each epoch, keeps the history, and turns signals into a checkpoint and the end of training.

    Args:
        tell: Called with each line that a person should read; on the main process only.
        stop: Signals that have come.

    Attributes:
        trainer: The trainer; set after it is made.
        history: One row for each finished epoch, or for each evaluation if there is one every few steps: "epoch",
            "loss", "train_accuracy", "validation_..." and "seconds".
        is_cut_short: Whether a signal ended training within an epoch.
    """

    def __init__(self, tell: Callable[[str], None], stop: StopRequest):
        self.tell, self.stop = tell, stop
        self.trainer: PointCloudTrainer | None = None
        self.history: list[dict[str, float]] = []
        self.is_cut_short = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Start the clock, warn of few steps, and put back the history of a run that is resumed."""
        if state.max_steps < FEW_STEPS:
            self.tell(
                f"only {state.max_steps} step{'s' * (state.max_steps != 1)} of {args.per_device_train_batch_size} "
                f"{self.trainer.task.noun}; more --num_train_epochs or a smaller --per_device_train_batch_size may "
                "learn more"
            )
        self.history = [row["history"] for row in state.log_history if "history" in row]
        if state.best_global_step:
            # The folder may have been moved since.
            state.best_model_checkpoint = f"{args.output_dir}/checkpoint-{state.best_global_step}"
        self.first_step, self.started = state.global_step, 0.0

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Start the clock of the epoch."""
        self.step_started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Estimate the time, save a checkpoint if it is due, and stop if a signal asks for it."""
        now = time.perf_counter()
        self.trainer.progress["seconds"] += now - self.step_started
        self.step_started = now
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        if done == 1:
            self.started = now  # the first step takes longer: it compiles loops
        elif done == _TIMED_STEPS and (seconds := (now - self.started) / (done - 1) * left) > _LONG_SECONDS:
            self.tell(f"about {in_time(seconds)} for the remaining {left} steps")
        # The end of an epoch is evaluated and saved in any case.
        is_within_epoch = state.epoch % 1 > 1e-9 and left > 0
        if is_within_epoch and args.extra_save_steps and state.global_step % args.extra_save_steps == 0:
            control.should_save = True
        number = self.stop.signal_number
        if self.trainer.accelerator.num_processes > 1:
            # All processes stop after the same step.
            largest = torch.tensor(number, device=args.device)
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
            number = self.stop.signal_number = int(largest)
        if number:
            self.is_cut_short = is_within_epoch
            control.should_training_stop = True
            control.should_save = control.should_save or is_within_epoch

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Finish the row of the epoch; one that a signal cut short is neither evaluated nor counted."""
        if self.is_cut_short:
            control.should_evaluate = control.should_save = False
            return
        if not len(self.trainer.task.validation):
            self.trainer.refresh_batch_norms()
        if args.eval_strategy != IntervalStrategy.STEPS:
            self.history.append({"epoch": len(self.history) + 1, **self.trainer.end_epoch()})
            if not control.should_evaluate:
                self._end_row(args, state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ):
        """Add the measures of the validation split to the row of the epoch, or to one since the last evaluation."""
        if not self.trainer.is_in_train or not self.trainer.progress["batches"] and not self.history:
            return
        if args.eval_strategy == IntervalStrategy.STEPS:
            self.history.append({"epoch": round(state.epoch, 3), **self.trainer.end_epoch()})
        row = self.history[-1]
        for name in self.trainer.task.metrics().compute():
            row[f"validation_{name}"] = metrics[f"eval_{name}"]
        row["validation_loss"] = metrics["eval_loss"]
        self._end_row(args, state)

    def _end_row(self, args: TrainingArguments, state: TrainerState) -> None:
        row, score = self.history[-1], self.trainer.task.score
        state.log_history.append({"history": row, "step": state.global_step})
        text = f"epoch {row['epoch']:g}/{args.num_train_epochs:g}: loss {row['loss']:.4f}"
        if (value := row.get(f"validation_{score}")) is not None:
            # With --eval_delay the first epochs have no score.
            is_best = all(value > other.get(f"validation_{score}", -1.0) for other in self.history[:-1])
            text += f", validation {in_words(score)} {100 * value:.1f} %{' (best)' if is_best else ''}"
        self.tell(f"{text}, {row['seconds']:.1f} s")

    def tell_why(self, state: TrainerState, safe: str) -> None:
        """Say that a signal stopped training, and how to continue."""
        name = signal.Signals(self.stop.signal_number).name
        self.tell(f"{name}: stopped after step {state.global_step} of {state.max_steps}. {safe}")


def in_time(seconds: float) -> str:
    """A duration in words: "40 s", "3 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
