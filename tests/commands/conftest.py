import pytest

from point_peft_hf.commands import main


@pytest.fixture
def point_peft(monkeypatch, tmp_path):
    """Run a command in a folder of its own; its exit status."""

    def run(*arguments) -> int:
        monkeypatch.chdir(tmp_path)
        return main(list(map(str, arguments)))

    return run
