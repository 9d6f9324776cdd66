"""Kill a run with SIGKILL at random moments, resume it each time, and compare it with one that nobody killed.

    python tests/training/kill_and_resume.py --kills 20

Each attempt is a fork of this process, so that it begins to train within a fraction of a second; the moments are drawn
over all that an attempt does: reading the checkpoint, training, saving the best model, saving checkpoints.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel
from point_peft_hf.training import finetune, load_task

RUNS = ("unbroken", "killed")


def fork(action) -> int:
    """Do something in a child process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid


def leftovers(folder: Path) -> list[str]:
    """What a killed process left half written or half deleted."""
    checkpoints = folder.glob("point_peft/checkpoint-*")
    unfinished = [path.name for path in checkpoints if not (path / "manifest.json").is_file()]
    return unfinished + [path.name for path in folder.glob(".*") if path.suffix != ".lock"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights after the last step, and those of the best epoch."""
    places = {"last": last_checkpoint(folder), "best": folder / "point_peft"}
    return {
        f"{name}.{key}": tensor
        for name, place in places.items()
        for key, tensor in load_file(place / "adapter_model.safetensors").items()
    }


def last_checkpoint(folder: Path) -> Path | None:
    paths = (folder / "point_peft").glob("checkpoint-*")
    return max(paths, key=lambda path: int(path.name.split("-")[1]), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        torch.manual_seed(0)
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
        config = PointMAEConfig(**sizes, patch_hidden_sizes=(8, 16, 16), classifier_hidden_size=16)
        PointMAEModel(config, use_class_token=False).save_pretrained(root / "backbone")
        PointCloudProcessor(num_points=128).save_pretrained(root / "backbone")
        task = load_task(num_points=128, clouds_per_class=5, max_test_clouds=37)

        def train(folder: str) -> None:
            arguments = {
                "model": str(root / "backbone"),
                "output_dir": str(root / folder),
                "num_train_epochs": options.epochs,
                "extra_save_steps": 1,
                "resume_from_checkpoint": "latest",
            }
            finetune(arguments, task, report=lambda line: None)

        started = time.perf_counter()
        assert os.waitpid(fork(lambda: train("unbroken")), 0)[1] == 0
        duration = time.perf_counter() - started
        print(f"unbroken: {duration:.1f} s", flush=True)

        kills, finished, half_written = 0, False, 0
        while kills < options.kills and not finished:
            pid = fork(lambda: train("killed"))
            # Long enough to get on, short enough that there are steps left for all kills.
            time.sleep(moments.uniform(0, 2.5 * duration / options.kills))
            os.kill(pid, signal.SIGKILL)
            finished = os.waitpid(pid, 0)[1] == 0
            kills += not finished
            left = leftovers(root / "killed")
            half_written += bool(left)
            last = last_checkpoint(root / "killed")
            print(f"kill {kills}: last checkpoint {last and last.name}, half written: {left}", flush=True)
        assert os.waitpid(fork(lambda: train("killed")), 0)[1] == 0

        expected, got = weights(root / "unbroken"), weights(root / "killed")
        assert expected.keys() == got.keys()
        different = [key for key in expected if not torch.equal(expected[key], got[key])]
        assert not different, different
        assert files(root / "killed") == files(root / "unbroken"), files(root / "killed") ^ files(root / "unbroken")
        histories = [json.loads((root / run / "point_peft" / "run.json").read_text())["history"] for run in RUNS]
        kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in history] for history in histories]
        assert kept[0] == kept[1]
        print(f"{kills} kills, {half_written} of them left something half written; all weights and files are the same")


if __name__ == "__main__":
    main()
