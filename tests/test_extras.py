import json
from types import SimpleNamespace

import pytest

from point_peft_hf import extras

EDITABLE = {"url": "file:///home/me/point%20peft", "dir_info": {"editable": True}}
WHEEL = {"url": "file:///tmp/point_peft_hf-0.2.0-py3-none-any.whl", "archive_info": {}}
GIT = {"url": "https://example.org/me/point_peft_hf", "vcs_info": {"vcs": "git", "commit_id": "1234"}}


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (None, "pip install 'point-peft-hf[viz]'"),
        (json.dumps(EDITABLE), "pip install -e '/home/me/point peft[viz]'"),
        (json.dumps(WHEEL), f"pip install 'point-peft-hf[viz] @ {WHEEL['url']}'"),
        (json.dumps(GIT), "pip install 'point-peft-hf[viz] @ git+https://example.org/me/point_peft_hf'"),
    ],
    ids=["index", "editable", "wheel", "git"],
)
def test_the_command_is_that_of_the_installation(source, command, monkeypatch):
    monkeypatch.setattr(
        extras.metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: source), raising=True
    )
    assert extras.install_command("viz") == command


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(name):
        raise extras.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "distribution", missing)
    assert extras.install_command("viz") == "pip install 'point-peft-hf[viz]'"
