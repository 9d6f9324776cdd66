"""The command as a whole."""

import dataclasses
import subprocess
import sys

import pytest
from transformers import TrainingArguments

from point_peft_hf.commands import COMMANDS, main
from point_peft_hf.training import METHODS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: point-peft {name} ")
    assert f"point-peft {name}" in printed.split("\n", 1)[1]


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main([])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_help_of_training_is_short_and_help_all_is_complete(capsys):
    printed = {}
    for option in ("--help", "--help_all"):
        with pytest.raises(SystemExit, match="0"):
            main(["train", option])
        printed[option] = capsys.readouterr().out
    for name in ("method", "learning_rate", "extra_save_steps", "push_to_hub", "resume_from_checkpoint"):
        assert printed["--help"].count(f"\n  --{name} ") == 1
    options = {f"--{field.name}" for field in dataclasses.fields(TrainingArguments)}
    assert options <= set(printed["--help_all"].split())
    assert "--adam_beta1" not in printed["--help"]
    assert len(printed["--help"]) < 0.5 * len(printed["--help_all"])


def test_methods(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in METHODS)
    assert main(["methods", "lora"]) == 0
    assert "  r = 8\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: There is no method 'lore'"):
        main(["methods", "lore"])


def test_as_a_module():
    command = [sys.executable, "-m", "point_peft_hf", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("point-peft ")


def test_a_hub_that_cannot_be_reached(point_peft, monkeypatch):
    error = type("ConnectError", (Exception,), {"__module__": "httpx2"})("no route")

    def fail(*arguments):
        raise error

    monkeypatch.setattr("point_peft_hf.commands.methods.main", fail)
    with pytest.raises(SystemExit, match=r"error: The Hub cannot be reached \(ConnectError: no route\)"):
        point_peft("methods")
