"""The folder of a run: who may write to it, and what must not be replaced by accident."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.trainer import TRAINER_STATE_NAME

from ..io.files import RECORD_NAME, read_json
from ..io.folders import recover_folder
from ..locks import locked_folder
from .checkpoints import checkpoint_paths, delete_unfinished, read_manifest, restore_best

_WAY_OUT = "Pass another --output_dir, or --overwrite_output_dir to replace it."


class RunFolder:
    """The folder of a run, on all its processes; the main one writes."""

    def __init__(self, path: Path, overwrite: bool, state: PartialState):
        self.path, self.overwrite, self.state = path, overwrite, state

    @contextmanager
    def opened(self, resume: str | None) -> Iterator[None]:
        """Keep other processes from writing to the folder, and put it in order after one that was killed."""
        with ExitStack() as stack:
            if self.state.is_main_process:
                try:
                    stack.enter_context(locked_folder(self.path))
                    recover_folder(self.path)
                    self.path.mkdir(exist_ok=True)
                    probe = self.path / ".writable"
                    probe.write_bytes(b"")
                    probe.unlink()
                    delete_unfinished(self.path)
                except OSError as error:
                    raise ValueError(
                        f"--output_dir {self.path.parent} cannot be written: {error}. Pass a folder that can."
                    ) from error
                if resume is None and not self.overwrite and checkpoint_paths(self.path) and not self._record():
                    raise ValueError(
                        f"{self.path} holds an unfinished run. Pass --resume_from_checkpoint latest to continue it, "
                        "--overwrite_output_dir to start anew, or another --output_dir."
                    )
            self.state.wait_for_everyone()
            yield

    def refuse_to_replace(self, identity: Mapping[str, Any], model: str, resumes: bool) -> None:
        """Refuse to replace a finished run on other data, or with other arguments; the same again may replace it."""
        record = self._record()
        if not record or self.overwrite:
            return
        if record["fingerprints"]["data"] != identity["data"]:
            raise ValueError(
                f"{self.path} holds the result of a run on other data ({record['arguments']['data']}, "
                f"{len(record['class_names'])} classes). {_WAY_OUT}"
            )
        then, now = record["arguments"], identity["recipe"]
        different = [
            f"--{name} was {then.get(name)}, is {value}" for name, value in now.items() if value != then.get(name)
        ]
        if record["fingerprints"]["backbone"] != identity["backbone"]:
            different.append(f"--model was {then['model']}, is {model} or has other weights")
        if different and not resumes:
            raise ValueError(f"{self.path} holds a finished run that differs ({', '.join(different)}). {_WAY_OUT}")

    def _record(self) -> dict[str, Any]:
        """The record of a finished run in the folder; empty if there is none."""
        try:
            return read_json(self.path / RECORD_NAME)
        except (OSError, ValueError):
            return {}

    def clear(self) -> None:
        """Delete the checkpoints of another run."""
        if self.state.is_main_process:
            for folder in (*checkpoint_paths(self.path), self.path / "failure"):
                shutil.rmtree(folder, ignore_errors=True)
        self.state.wait_for_everyone()

    def resume(self, checkpoint: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Check that a checkpoint belongs to a run, and delete what was saved after it."""
        manifest = read_manifest(checkpoint)
        before, now = _flat(manifest["identity"]), _flat(identity)
        different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if different:
            listed = "; ".join(f"{name}: was {before.get(name)}, now {now.get(name)}" for name in different)
            raise ValueError(
                f"The checkpoint {checkpoint} belongs to another run ({listed}). Resume with the same arguments and "
                "data, or start anew in another --output_dir."
            )
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            paths = checkpoint_paths(self.path)
            places = [path.resolve() for path in paths]
            if checkpoint.resolve() in places:
                for later in paths[places.index(checkpoint.resolve()) + 1 :]:
                    shutil.rmtree(later)
            shutil.rmtree(self.path / "failure", ignore_errors=True)
            if step := read_json(checkpoint / TRAINER_STATE_NAME)["best_global_step"]:
                restore_best(checkpoint, self.path, step)
        self.state.wait_for_everyone()
        return manifest["progress"]


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{f"--{name}": value for name, value in identity["recipe"].items()},
        "the precision": identity["precision"],
        "the number of processes": identity["processes"],
        "the weights of the backbone": identity["backbone"],
        **{f"the {name} clouds": digest for name, digest in identity["data"].items()},
    }
