import pytest

from point_peft_hf.commands import main
from point_peft_hf.training import finetune


@pytest.fixture
def point_peft(monkeypatch, tmp_path):
    """Run a command in a folder of its own; its exit status."""

    def run(*arguments) -> int:
        monkeypatch.chdir(tmp_path)
        return main(list(map(str, arguments)))

    return run


@pytest.fixture(scope="module")
def adapter(tiny_backbone, tmp_path_factory):
    """A linear probe of few clouds, as training saved it."""
    folder = tmp_path_factory.mktemp("run")
    arguments = {"model": tiny_backbone, "output_dir": str(folder), "num_train_epochs": 1, "method": "linear"}
    finetune(arguments | {"clouds_per_class": 4, "max_test_clouds": 24}, report=lambda line: None)
    return folder / "linear"
