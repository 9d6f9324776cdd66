import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf.training import FinetuneArguments, Finetuning, load_task


@pytest.fixture(scope="session")
def tiny_task():
    return load_task(num_points=128, clouds_per_class=5, max_test_clouds=37)


@pytest.fixture
def finetune(tiny_backbone, tiny_task):
    """Make a run on the tiny backbone: 3 steps an epoch."""

    def make(output_dir, *, task=None, report=lambda line: None, **options) -> Finetuning:
        arguments = {"method": "point_peft", "epochs": 2, "batch_size": 16, "mixed_precision": "no"} | options
        arguments = {"model": tiny_backbone} | arguments
        return Finetuning(FinetuneArguments(output_dir=str(output_dir), **arguments), task or tiny_task, report)

    return make


class Killed(BaseException):
    """Stands for a SIGKILL: nothing gets to save anything."""


@pytest.fixture
def crash():
    """Run until a step is done, and not further."""

    def run_until(run: Finetuning, step: int) -> None:
        after_step = run._after_step

        def after(measured):
            after_step(measured)
            if run.progress.step == step:
                raise Killed

        run._after_step = after
        with pytest.raises(Killed):
            run.run()

    return run_until


@pytest.fixture
def last_weights():
    """The trained weights at the end of a run, from its last checkpoint."""

    def load(folder) -> dict[str, torch.Tensor]:
        checkpoint = max((folder / "checkpoints").glob("step-*"))
        return load_file(next((checkpoint / "model_0").glob("*.safetensors")))

    return load
