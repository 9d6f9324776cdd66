"""The folder of a run: how far it is, what is saved of it, and how it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from ..data import PointCloudProcessor
from ..io import save_adapter
from ..io.files import RECORD_NAME, read_json, write_json
from ..io.folders import recover_folder, replaced_folder
from ..locks import locked_folder
from .arguments import FinetuneArguments
from .checkpoints import BEST_NAME, Checkpoints, link_or_copy, read_state, save_model
from .interruption import TrainingStopped
from .record import RunLog

CHECKPOINTS_NAME = "checkpoints"
FAILURE_NAME = "failure"
# The files of a model among those of a run.
_MODEL_FILES = ("*.safetensors", "*config.json", "backbone.json")


@dataclass
class Progress:
    """How far a run is; a part of its checkpoints.

    Attributes:
        epoch: The epoch under way, from 1.
        batches: How many of its batches each process has trained on.
        step: Optimizer steps since the beginning.
        seconds: Time that training took in this epoch.
        loss: Sum of the losses of the batches of this epoch.
        right: How many of its predictions were right.
        predictions: How many there were.
        best: The best "epoch" so far and its "score" on the validation split.
        history: One row for each finished epoch.
        parameters: Numbers of parameters, from `count_parameters`.
    """

    epoch: int = 1
    batches: int = 0
    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    right: int = 0
    predictions: int = 0
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": 0, "score": -1.0})
    history: list[dict[str, float]] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)

    def count(self, loss: float, right: int, predictions: int) -> None:
        """Count a batch."""
        self.loss += loss
        self.right += right
        self.predictions += predictions

    def means(self) -> dict[str, float]:
        """Mean "loss" and "train_accuracy" of this epoch so far; to be called after `count` and `batches`."""
        return {"loss": self.loss / self.batches, "train_accuracy": self.right / self.predictions}

    def end_epoch(self, row: dict[str, float], score: float) -> bool:
        """Go on to the next epoch.

        Args:
            row: What was measured in this one.
            score: The score on the validation split that the epoch is chosen by.

        Returns:
            Whether it is the best so far; of equals the first is, as in `transformers.Trainer`.
        """
        self.history.append(row)
        is_best = score > self.best["score"]
        if is_best:
            self.best = {"epoch": self.epoch, "score": score}
        self.epoch += 1
        self.batches, self.seconds, self.loss, self.right, self.predictions = 0, 0.0, 0.0, 0, 0
        return is_best


class RunFolder:
    """The folder of a run, on all its processes; the main one writes.

    Args:
        folder: The folder; made if need be.
        args: Arguments of the run.
        accelerator: Its accelerator.
        report: Called with each line that a person should see.

    Raises:
        ValueError: If the folder cannot be written, another process writes to it, or it holds an unfinished run that
            is neither to be resumed nor overwritten.
    """

    def __init__(self, folder: Path, args: FinetuneArguments, accelerator: Accelerator, report: Callable[[str], None]):
        self.folder = folder
        self.args = args
        self.accelerator = accelerator
        self.log = RunLog(folder, report)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS_NAME, args.keep_checkpoints)
        self.failure = folder / FAILURE_NAME
        self.identity: dict[str, Any] = {}
        self.open = ExitStack()
        if accelerator.is_main_process:
            try:
                self._open()
            except BaseException:
                self.close()
                raise
        accelerator.wait_for_everyone()

    def _open(self) -> None:
        probe = self.folder / ".writable"
        try:
            self.open.enter_context(locked_folder(self.folder))
            recover_folder(self.folder)
            self.folder.mkdir(exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"--output_dir {self.args.output_dir} cannot be written: {error}. Pass a folder that can."
            ) from error
        self.checkpoints.clean()
        if self.args.resume_from_checkpoint is None and not self.args.overwrite_output_dir and self._is_unfinished():
            raise ValueError(
                f"{self.folder} holds a run that is not finished. Pass --resume_from_checkpoint latest to go on with "
                "it, --overwrite_output_dir to start anew, or another --output_dir."
            )

    def close(self) -> None:
        """Let other processes write to the folder."""
        self.open.close()

    def refuse_to_replace(self, identity: Mapping[str, Any]) -> None:
        """Refuse to replace a finished run on other data, or with other arguments; the same again may replace it.

        Args:
            identity: What the weights depend on.

        Raises:
            ValueError: If another finished run lies in the folder, and is not to be overwritten.
        """
        record = self._read_record()
        if "test" not in record or self.args.overwrite_output_dir:
            return
        way_out = "Pass another --output_dir, or --overwrite_output_dir to replace it."
        if record.get("fingerprints", {}).get("data") not in (None, identity["data"]):
            raise ValueError(
                f"{self.folder} holds what a run on other data has learned ({record['arguments']['data']}, "
                f"{len(record['class_names'])} classes). {way_out}"
            )
        # A checkpoint says by itself what it belongs to.
        if self.args.resume_from_checkpoint is None and (different := self._differences(record, identity)):
            raise ValueError(f"{self.folder} holds a finished run that differs ({', '.join(different)}). {way_out}")

    def _differences(self, record: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
        """In which arguments a run differs from one that was recorded, maybe by a version that had fewer of them."""
        now = identity["arguments"]
        then = now | {name: value for name, value in record["arguments"].items() if name in now}
        then |= {name: record[name] for name in ("learning_rate", "warmup_ratio") if name in record}
        different = [f"--{name} was {then[name]}, is {value}" for name, value in now.items() if value != then[name]]
        if record.get("fingerprints", {}).get("backbone", identity["backbone"]) != identity["backbone"]:
            different.append(f"--model was {record['arguments']['model']}, is {self.args.model} or has other weights")
        return different

    def _read_record(self) -> dict[str, Any]:
        try:
            return read_json(self.folder / RECORD_NAME)
        except (OSError, ValueError):
            return {}

    def _is_unfinished(self) -> bool:
        if not self.checkpoints.paths():
            return False
        return "test" not in self._read_record()

    # -- Beginning ----------------------------------------------------------------------------------------------------

    def begin(self, identity: dict[str, Any], processor: PointCloudProcessor) -> Progress:
        """Resume the run that the arguments ask for, or begin anew; to be called when everything is prepared.

        Args:
            identity: What the weights depend on; a checkpoint of another is refused.
            processor: Preprocessing of the run, to be saved with its best model.

        Returns:
            How far the run is.

        Raises:
            ValueError: If there is nothing that can be resumed, or it belongs to another run.
        """
        self.identity = identity
        checkpoint = self._find_checkpoint()
        if checkpoint is None:
            if self.accelerator.is_main_process:
                self.log.clear()
                shutil.rmtree(self.checkpoints.folder, ignore_errors=True)
                shutil.rmtree(self.failure, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            if self.args.resume_from_checkpoint is not None:
                self.tell("nothing to resume yet, starting anew")
            return Progress()
        state = read_state(checkpoint)
        self._refuse_another_run(checkpoint, state["identity"])
        progress = Progress(**state["progress"])
        self.accelerator.load_state(str(checkpoint))
        with self.writing("what the checkpoint holds"):
            if self.accelerator.is_main_process:
                self._put_back_best(checkpoint)
                self.log.rewind(progress.step, progress.epoch - 1)
                shutil.rmtree(self.failure, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.tell(f"resuming after step {progress.step} (epoch {progress.epoch}) from {checkpoint}")
        return progress

    def _find_checkpoint(self) -> Path | None:
        wanted = self.args.resume_from_checkpoint
        if wanted is None:
            return None
        return self.checkpoints.latest(self.tell) if wanted == "latest" else Path(wanted)

    def _refuse_another_run(self, checkpoint: Path, saved: Mapping[str, Any]) -> None:
        def flat(identity: Mapping[str, Any]) -> dict[str, Any]:
            arguments = {f"--{name}": value for name, value in identity["arguments"].items()}
            data = {f"the {name} clouds": digest for name, digest in identity["data"].items()}
            rest = {
                "--mixed_precision": identity["mixed_precision"],
                "the number of processes": identity["processes"],
                "the weights of the backbone": identity["backbone"],
            }
            return {**arguments, **rest, **data}

        before, now = flat(saved), flat(self.identity)
        different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if different:
            listed = "; ".join(f"{name}: was {before.get(name)}, now {now.get(name)}" for name in different)
            raise ValueError(
                f"The checkpoint {checkpoint} belongs to another run ({listed}). Resume with the same arguments and "
                "data, or start anew in another --output_dir."
            )

    def _put_back_best(self, checkpoint: Path) -> None:
        """A model that was chosen after the checkpoint belongs to what will be done again."""
        files = list((checkpoint / BEST_NAME).iterdir())
        if files:
            with replaced_folder(self.folder) as new:
                for file in files:
                    link_or_copy(file, new / file.name)

    # -- Saving -------------------------------------------------------------------------------------------------------

    def begin_record(self, record: Mapping[str, Any]) -> None:
        """Write down what the run is, unless a finished one lies there: its model and its record are a pair."""
        if self.accelerator.is_main_process and "test" not in self._read_record():
            write_json(self.folder / RECORD_NAME, record)

    def save_best(self, model: nn.Module, processor: PointCloudProcessor, record: Mapping[str, Any]) -> None:
        """Save the best model so far, as a whole or not at all: it may be the last good state for a long time."""
        with self.writing("the best model so far"):
            if self.accelerator.is_main_process:
                if isinstance(model, PeftModel):
                    save_adapter(model, self.folder, processor=processor, record=record, card=False)
                else:
                    with replaced_folder(self.folder) as new:
                        save_model(model, new)
                        processor.save_pretrained(new)
                        write_json(new / RECORD_NAME, record)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self, progress: Progress) -> None:
        """Save a checkpoint; to be called on all processes, between two optimizer steps."""
        state = {"identity": self.identity, "progress": asdict(progress)}
        with self.writing(f"the checkpoint of step {progress.step}"):
            best = [file for pattern in _MODEL_FILES for file in self.folder.glob(pattern)] if progress.history else []
            self.checkpoints.save(self.accelerator, progress.step, state, best)

    def save_failure(
        self,
        what: str,
        progress: Progress,
        model: nn.Module,
        batch: Mapping[str, torch.Tensor] | None,
        names: list[str],
    ) -> None:
        """Save what is needed to find out why a step failed: the model before it, and its batch.

        Args:
            what: What happened.
            progress: Where.
            model: The model.
            batch: The batch, on the processes where it happened.
            names: Names of its clouds.
        """
        with self.writing("the failed step"):
            self.failure.mkdir(exist_ok=True)
            if self.accelerator.is_main_process:
                save_model(model, self.failure)
            if batch is not None:
                index = self.accelerator.process_index
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}
                save_file(tensors, self.failure / f"batch_{index}.safetensors")
                facts = {"what": what, "step": progress.step + 1, "epoch": progress.epoch, "clouds": names}
                write_json(self.failure / f"failure_{index}.json", facts)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn any failure to write, such as a full disk, into a message about what is safe and how to go on."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise TrainingStopped(
                f"Could not write {what} to {self.folder}: {error}. If the disk is full, make room. "
                f"{self.what_is_safe()}"
            ) from error

    def what_is_safe(self) -> str:
        """Say which checkpoint the run can go on from, and how."""
        paths = self.checkpoints.paths()
        if not paths:
            return "No checkpoint was saved before."
        return f"{paths[-1]} is safe: go on from there with --resume_from_checkpoint latest."

    # -- Telling ------------------------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Tell people something about this run."""
        if self.accelerator.is_main_process:
            self.log.line(f"[{self.args.method}] {text}")

    def log_metrics(self, kind: str, values: dict[str, Any]) -> None:
        """Write a line of metrics."""
        if self.accelerator.is_main_process:
            with self.writing("the metrics"):
                self.log.metrics(kind, values)

    def log_error(self, error: Exception) -> None:
        """Write down why the run stopped, if that can be written; the caller is told by the error itself."""
        if self.accelerator.is_main_process:
            with suppress(OSError):
                self.log.write(f"[{self.args.method}] {error}")
