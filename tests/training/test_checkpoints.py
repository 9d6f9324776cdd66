"""The folder of checkpoints: each is whole or not there."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator

from point_peft_hf.training import Checkpoints, register_adapter_checkpoints
from point_peft_hf.training.checkpoints import find_problem, read_state


class Model(torch.nn.Linear):
    def save_pretrained(self, folder, state_dict=None):
        folder.mkdir(parents=True)
        torch.save(self.state_dict(), folder / "weights.pt")


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(Model(2, 3))
    register_adapter_checkpoints(accelerator)
    return accelerator


@pytest.fixture
def checkpoints(accelerator, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (5, 10, 15):
        checkpoints.save(accelerator, step, {"step": step})
    return checkpoints


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_so_many_are_kept_and_nothing_else(checkpoints):
    assert names(checkpoints) == ["step-00000010", "step-00000015"]
    assert checkpoints.latest(pytest.fail).name == "step-00000015"
    assert read_state(checkpoints.latest(pytest.fail)) == {"step": 15}


def test_the_manifest_lists_all_files(checkpoints):
    folder = checkpoints.paths()[-1]
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    found = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert {**{name: entry["bytes"] for name, entry in listed.items()}, "manifest.json": found["manifest.json"]} == found
    assert {"model_0/weights.pt", "random_states_0.pkl", "training_state.json"} <= listed.keys()


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model_0/weights.pt", cut, r"weights.pt has \d+ bytes instead of \d+"),
        ("random_states_0.pkl", flip, r"random_states_0.pkl has other contents than were written"),
        ("training_state.json", lambda path: path.unlink(), r"training_state.json: No such file"),
        ("manifest.json", cut, r"manifest.json cannot be read"),
        ("manifest.json", lambda path: path.write_text("[]"), r"manifest.json cannot be read"),
        ("manifest.json", lambda path: path.unlink(), r"manifest.json: No such file"),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_warning(name, damage, message, checkpoints):
    damage(checkpoints.paths()[-1] / name)
    warnings = []
    assert checkpoints.latest(warnings.append).name == "step-00000010"
    assert len(warnings) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(warnings[0])


def test_asked_for_by_name_a_damaged_one_is_an_error(checkpoints):
    cut(checkpoints.paths()[-1] / "model_0" / "weights.pt")
    with pytest.raises(ValueError, match=r"step-00000015 is not whole: model_0/weights.pt has"):
        read_state(checkpoints.paths()[-1])


def test_none_that_is_whole_is_an_error_and_none_at_all_is_not(checkpoints):
    for path in checkpoints.paths():
        cut(path / "manifest.json")
    with pytest.raises(ValueError, match=r"None of the 2 checkpoints in .* is whole.*--overwrite_output_dir"):
        checkpoints.latest(lambda line: None)
    shutil.rmtree(checkpoints.folder)
    assert checkpoints.latest(pytest.fail) is None


def test_a_step_that_is_there_already_is_replaced(checkpoints, accelerator):
    cut(checkpoints.paths()[-1] / "manifest.json")
    checkpoints.save(accelerator, 15, {"step": 15, "again": True})
    assert read_state(checkpoints.latest(pytest.fail))["again"]
    assert names(checkpoints) == ["step-00000010", "step-00000015"]


def test_what_killed_processes_left_is_cleaned_up(checkpoints):
    folder = checkpoints.folder
    shutil.copytree(folder / "step-00000015", folder / ".step-00000020.tmp")  # killed while writing
    (folder / ".step-00000005.tmp").mkdir()  # killed while deleting
    (folder / "step-00000015").rename(folder / ".step-00000015.old")  # killed while replacing
    shutil.copytree(folder / "step-00000010", folder / ".step-00000010.old")  # killed after replacing
    checkpoints.clean()
    assert names(checkpoints) == ["step-00000010", "step-00000015"]
    assert [find_problem(path) for path in checkpoints.paths()] == [None, None]


def test_a_failed_save_leaves_the_others_and_nothing_half_written(checkpoints, accelerator, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(accelerator, 20, {})
    assert names(checkpoints) == ["step-00000010", "step-00000015"]
