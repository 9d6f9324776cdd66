"""Fine-tuning: one method, one backbone, one task, from the arguments to a folder that can be shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed, wait_for_everyone
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from ..data import PointCloudCollator
from ..data.orientation import likely_up_axis
from ..io import push_adapter, save_adapter, write_model_card
from ..io.backbone import fingerprint
from ..io.examples import EXAMPLES_NAME, TrainingExamples
from ..io.files import BACKBONE_NAME, RECORD_NAME, write_json
from ..io.folders import replaced_folder
from ..scenes import SceneSegmentationTask
from ..tuners import build_point_prior_bank
from .arguments import PointCloudArguments, PointCloudTrainingArguments, parse_arguments, recipe
from .batches import evaluation_loader
from .callbacks import ProgressBar, RunCallback
from .checkpoints import find_checkpoint, load_model, save_model, what_is_safe
from .evaluation import Evaluation, evaluate_rows, write_table
from .interruption import StopRequest, TrainingInterrupted, TrainingStopped
from .methods import (
    DEFAULT_LEARNING_RATE,
    METHODS,
    SCENE_METHODS,
    load_backbone,
    load_processor,
    prepare_method,
    uses_bank,
)
from .record import PeakMemory, data_fingerprint, describe_environment, folder_bytes
from .run_folder import RunFolder
from .tasks import Task, load_task_of
from .trainer import PointCloudTrainer, gathered_rows
from .voting import judge_by_votes

# Every test cloud with what was predicted, the worst first.
PREDICTIONS_NAME = "predictions.csv"
_JSON = (str, int, float, bool, dict, type(None))


def finetune(
    arguments: Mapping[str, Any], task: Task | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Fine-tune one method.

    Args:
        arguments: "method", and any field of [`PointCloudArguments`] and [`PointCloudTrainingArguments`].
        task: The data; loaded from the arguments by default (pass it to share it between runs).
        report: Called with each line that a person should read.

    Returns:
        The record of the run, as it is saved to "run.json".

    Raises:
        ValueError: If an argument does not fit, or the output folder holds another run.
        TrainingStopped: If training cannot go on: a loss that is not finite, a full disk, a worker that died.
        TrainingInterrupted: After Ctrl-C or SIGTERM, when everything is saved.
    """
    (method,), what, how = parse_arguments(arguments)
    return Finetuning(method, what, how, task, report).run()


class Finetuning:
    """One run: train, choose the epoch on the validation split, look at the test split once.

    Whatever ends the run, it can continue from its last checkpoint, and ends with the same weights (to the bit, on a
    CPU with the same number of threads).

    Args:
        method: What to train; see [`~point_peft_hf.training.find_method`].
        what: The backbone and the data.
        how: The arguments of the Trainer.
        task: The data; loaded from the arguments by default (pass it to share it between runs).
        report: Called with each line that a person should read.

    Raises:
        ValueError: If an argument does not fit, or the output folder holds another run.
    """

    def __init__(
        self,
        method: str,
        what: PointCloudArguments,
        how: PointCloudTrainingArguments,
        task: Task | None = None,
        report: Callable[[str], None] = print,
    ):
        self.method, self.what, self.report = method, what, report
        self.state = PartialState()
        self.stack = ExitStack()
        with self.stack as stack:
            set_seed(how.seed)
            with self.state.main_process_first():
                self.task = task or load_task_of(what)
            self.args = how.for_method(method, self.task)
            if isinstance(self.task, SceneSegmentationTask) and self.state.num_processes > 1:
                raise ValueError(
                    f"Scenes are trained by one process so far, got {self.state.num_processes}. Start one; "
                    "--gradient_accumulation_steps makes larger steps."
                )
            if isinstance(self.task, SceneSegmentationTask) and what.save_examples:
                raise ValueError("--save_examples stores clouds of objects; scenes are too large to travel along.")
            if not len(self.task.validation):
                # The last epoch is taken.
                self.args.load_best_model_at_end, self.args.eval_strategy = False, type(self.args.eval_strategy)("no")
            # The finished result is pushed in one commit, not each checkpoint.
            self.pushes, self.args.push_to_hub = self.args.push_to_hub, False
            self.folder = RunFolder(Path(self.args.output_dir), self.args.overwrite_output_dir, self.state)
            stack.enter_context(self.folder.opened(how.resume_from_checkpoint))
            self.tested: Evaluation | None = None  # every cloud of the test split, which votes do not give
            self.memory = PeakMemory()
            self.memory.start()
            self._prepare()
            # It stays open until the end of `run`.
            self.stack = stack.pop_all()

    def _prepare(self) -> None:
        what, args = self.what, self.args
        self.processor = load_processor(what.model, self.task.processor_class, **what.processor_fields)
        model = self._load_model()
        self.identity = {
            "recipe": recipe(self.method, what, args),
            "precision": args.mixed_precision,
            "processes": self.state.num_processes,
            "backbone": self.backbone_digest,
            "data": data_fingerprint(self.task),
        }
        self.folder.refuse_to_replace(self.identity, what.model, self.args.resume_from_checkpoint is not None)
        self.stop = StopRequest(insist=self.state.num_processes == 1)
        self.run_callback = RunCallback(self.tell, self.stop)
        callbacks = [self.run_callback]
        if args.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        self.trainer = PointCloudTrainer(
            model, args, self.task, self.processor, what, identity=self.identity, callbacks=callbacks
        )
        self.run_callback.trainer = self.trainer
        if uses_bank(model):
            # The bank holds the classes of whole clouds, also where the task is about parts.
            collator = PointCloudCollator(self.processor)
            clouds = evaluation_loader(self.task.train, collator, batch_size=args.per_device_train_batch_size)
            accelerator, progress = self.trainer.accelerator, not args.disable_tqdm
            build_point_prior_bank(model, clouds, accelerator=accelerator, progress=progress)
        self.trainer.remove_callback(PrinterCallback)
        if self.trainer.pop_callback(ProgressCallback):
            self.trainer.add_callback(ProgressBar)

    def _load_model(self) -> nn.Module:
        fields = self.task.model_fields | self.what.model_config
        if self.args.label_smoothing_factor:
            fields |= {"label_smoothing": self.args.label_smoothing_factor}
        backbone = load_backbone(self.what.model, self.task.class_names, self.task.auto_class, **fields)
        self.backbone_digest = fingerprint(backbone).get("float32")
        return prepare_method(self.method, backbone, **self.what.config)

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
        with self.stack, self.stop, self._explained_workers():
            checkpoint = self._find_checkpoint()
            self._introduce()
            set_seed(self.args.seed, device_specific=True)
            self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if self.stop.signal_number and self.trainer.state.global_step < self.trainer.state.max_steps:
                self.run_callback.tell_why(self.trainer.state, what_is_safe(self.folder.path))
                raise TrainingInterrupted(128 + self.stop.signal_number)
            record = self._finish()
        if self.stop.signal_number:
            raise TrainingInterrupted(128 + self.stop.signal_number)
        return record

    def _find_checkpoint(self) -> Path | None:
        wanted = self.args.resume_from_checkpoint
        checkpoint = find_checkpoint(self.folder.path, wanted, self.tell) if wanted else None
        if checkpoint is None:
            self.folder.clear()
            if wanted:
                self.tell("nothing to resume yet, starting anew")
            return None
        self.trainer.progress = self.folder.resume(checkpoint, self.identity)
        self.tell(f"resuming from {checkpoint}")
        return checkpoint

    def _introduce(self) -> None:
        task, args = self.task, self.args
        model = self.trainer.model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        self.tell(
            f"{self.what.data}: {task.describe(self.processor)}; {self.what.model}, {trained / 1e6:.2f} of "
            f"{total / 1e6:.2f} M parameters trained"
        )
        is_given = "up_axis" in self.what.processor_config or not hasattr(self.processor, "up_axis")
        if not is_given and (up_axis := likely_up_axis(task.train)) not in (None, self.processor.up_axis):
            self.tell(
                f"warning: the clouds look {up_axis} up, and are read as {self.processor.up_axis} up. If they stand "
                f'on their {up_axis} axis, pass --processor_config \'{{"up_axis": "{up_axis}"}}\'; if not, give '
                f'"{self.processor.up_axis}" there.'
            )
        if self.method not in (*METHODS, *SCENE_METHODS) and args.learning_rate == DEFAULT_LEARNING_RATE:
            self.tell(f"learning rate {args.learning_rate:g}, the default of types without one; see --learning_rate")

    def _finish(self) -> dict[str, Any]:
        """Look at the test split, once, with the best epoch; save the model and the record."""
        trainer, history = self.trainer, self.run_callback.history
        seconds = sum(row["seconds"] for row in history)
        score = f"validation_{self.task.score}"
        name = self.args.metric_for_best_model.removeprefix("eval_")
        pick = max if self.args.greater_is_better else min
        judged = [row for row in history if score in row]
        best = pick(judged, key=lambda row: row[f"validation_{name}"]) if judged else history[-1]
        peak = trainer.accelerator.gather(torch.tensor([self.memory.mebibytes()], device=self.args.device))
        record = {
            "method": self.method,
            "arguments": self._arguments(),
            "learning_rate": self.args.learning_rate,
            "warmup_steps": self.args.warmup_steps,
            "class_names": self.task.class_names,
            "layout": self.task.layout,
            "clouds": {name: len(getattr(self.task, name)) for name in ("train", "validation", "test")},
            "fingerprints": {"backbone": self.identity["backbone"], "data": self.identity["data"]},
            **describe_environment(trainer.accelerator),
            "parameters": trainer.progress["parameters"],
            "steps": trainer.state.global_step,
            "best_epoch": best["epoch"],
            "score": self.task.score,
            score: best.get(score),
            "test": self._test() if len(self.task.test) else {},
            "seconds_per_epoch": seconds / len(history),
            "clouds_per_second": len(history) * len(self.task.train) / seconds,
            "peak_memory_mib": None if math.isnan(float(peak.max())) else float(peak.max()),
            "history": history,
        }
        with trainer.writing("the trained model"):
            model = self._whole_model()
            if self.state.is_main_process:
                self._save(model, record)
        wait_for_everyone()
        return record

    def _arguments(self) -> dict[str, Any]:
        """The arguments of this run, for `finetune` to do it again."""
        defaults = {field.name: field.default for field in fields(self.args)}
        values = {name: getattr(value, "value", value) for name, value in vars(self.args).items() if name in defaults}
        changed = {
            name: value for name, value in values.items() if isinstance(value, _JSON) and value != defaults[name]
        }
        hidden = {"hub_token", "run_name", "output_dir", "local_rank", "use_cache"}
        decisive = self.identity["recipe"] | asdict(self.what)
        how = {name: value for name, value in changed.items() if name not in hidden}
        return decisive | how | {"output_dir": str(self.folder.path.parent)}

    def _test(self) -> dict[str, float]:
        if self.what.test_votes > 1:
            return judge_by_votes(self.trainer, self.what.test_votes)
        output = self.trainer.predict(self.task.test, metric_key_prefix="test")
        if self.state.is_main_process:
            self.tested = evaluate_rows(self.task, self.task.test, gathered_rows(output))
        return {name: output.metrics[f"test_{name}"] for name in self.task.metrics().compute()}

    def _whole_model(self) -> nn.Module:
        """The trained model; where it is spread over processes, a new one with the weights of the best checkpoint."""
        if not self.trainer.is_fsdp_enabled:
            return self.trainer.accelerator.unwrap_model(self.trainer.model)
        model = self._load_model()
        load_model(model, self.trainer.state.best_model_checkpoint)
        return model

    def _save(self, model: nn.Module, record: dict[str, Any]) -> None:
        folder = self.folder.path
        if isinstance(model, PeftModel):
            save_adapter(model, folder, processor=self.processor, card=False)
        else:
            # What was recorded of other weights must not stand next to these, not even for a moment.
            with replaced_folder(folder, dropped=(BACKBONE_NAME, RECORD_NAME)) as new:
                save_model(model, new)
                self.processor.save_pretrained(new)
        for name in (PREDICTIONS_NAME, EXAMPLES_NAME):
            (folder / name).unlink(missing_ok=True)  # of an earlier run
        record["file_bytes"] = folder_bytes(folder)
        if self.what.save_examples:
            TrainingExamples.of(self.task.train, self.processor).save(folder)
        if self.tested is not None:
            write_table(folder / PREDICTIONS_NAME, self.tested.predictions)
        write_json(folder / RECORD_NAME, record)
        if isinstance(model, PeftModel):
            write_model_card(folder)
        if self.pushes:
            self._push(model)

    def _push(self, model: nn.Module) -> None:
        args, folder = self.args, self.folder.path
        name, options = args.hub_model_id or folder.name, {"private": args.hub_private_repo, "token": args.hub_token}
        if isinstance(model, PeftModel):
            commit = push_adapter(folder, name, revision=args.hub_revision, **options)
        else:
            commit = model.push_to_hub(name, revision=args.hub_revision, **options)
            self.processor.push_to_hub(name, revision=args.hub_revision, **options)
        self.tell(f"pushed to {commit.repo_url.repo_id}")

    # -- Messages -----------------------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Report a line about this run."""
        if self.state.is_main_process:
            with tqdm.external_write_mode():
                self.report(f"[{self.method}] {text}")

    @contextmanager
    def _explained_workers(self) -> Iterator[None]:
        """Turn the end of a worker process into a message about what to do."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise TrainingStopped(
                f"A worker process of the data loader died after step {self.trainer.state.global_step}: {error}. The "
                "usual reason is a lack of memory: try a lower --dataloader_num_workers (now "
                f"{self.args.dataloader_num_workers}). {what_is_safe(self.folder.path)}"
            ) from error
