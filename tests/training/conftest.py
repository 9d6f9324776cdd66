import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel
from point_peft_hf.training import FinetuneArguments, Finetuning, load_task


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> str:
    """Folder of an untrained backbone, as pre-training leaves one: no head, no class token."""
    folder = tmp_path_factory.mktemp("backbone")
    config = PointMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_groups=8,
        group_size=8,
        patch_hidden_sizes=(8, 16, 16),
        position_hidden_size=8,
        classifier_hidden_size=16,
    )
    PointMAEModel(config, use_class_token=False).save_pretrained(folder)
    PointCloudProcessor(num_points=128).save_pretrained(folder)
    return str(folder)


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
