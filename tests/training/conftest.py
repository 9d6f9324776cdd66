import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from point_peft_hf.training import Finetuning, load_task, parse_arguments


@pytest.fixture(scope="session")
def tiny_task():
    return load_task(num_points=128, clouds_per_class=5, max_test_clouds=37)


@pytest.fixture
def finetune(tiny_backbone, tiny_task):
    """Make a run on the tiny backbone: 3 steps an epoch."""

    def make(output_dir, *, task=None, report=lambda line: None, **options) -> Finetuning:
        arguments = {"model": tiny_backbone, "num_train_epochs": 2, "output_dir": str(output_dir)} | options
        (method,), what, how = parse_arguments(arguments)
        return Finetuning(method, what, how, task or tiny_task, report)

    return make


class Killed(BaseException):
    """Stands for a SIGKILL: nothing gets to save anything."""


@pytest.fixture
def crash():
    """Run until a step is done, with what is evaluated and saved after it, and not further."""

    def run_until(run: Finetuning, step: int) -> None:
        class Kill(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == step:
                    raise Killed

        run.trainer.add_callback(Kill)
        with pytest.raises(Killed):
            run.run()

    return run_until


@pytest.fixture
def last_weights():
    """The trained weights at the end of a run, from its last checkpoint."""

    def load(folder) -> dict[str, torch.Tensor]:
        checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        return load_file(next(checkpoint.glob("*.safetensors")))

    return load
