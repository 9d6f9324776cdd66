"""Checkpoints that a Trainer writes: whole, or not taken."""

import json
import shutil

import pytest

from point_peft_hf.training.checkpoints import checkpoint_paths, delete_unfinished, find_checkpoint, find_problem


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_backbone_of_module):
    from point_peft_hf.training import finetune, load_task

    folder = tmp_path_factory.mktemp("run")
    arguments = {"method": "linear", "model": tiny_backbone_of_module, "output_dir": str(folder)}
    task = load_task(num_points=128, clouds_per_class=5, max_test_clouds=12)
    finetune(arguments | {"num_train_epochs": 3, "save_total_limit": 2}, task, report=lambda line: None)
    return folder / "linear"


@pytest.fixture(scope="module")
def tiny_backbone_of_module(tmp_path_factory):
    import torch

    from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel

    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
    torch.manual_seed(0)
    config = PointMAEConfig(**sizes, patch_hidden_sizes=(8, 16, 16), classifier_hidden_size=16)
    PointMAEModel(config, use_class_token=False).save_pretrained(folder)
    PointCloudProcessor(num_points=128).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def names(folder):
    return [path.name for path in checkpoint_paths(folder)]


def test_the_last_and_the_best_are_kept(folder):
    state = json.loads((folder / "checkpoint-9" / "trainer_state.json").read_text())
    assert set(names(folder)) == {"checkpoint-9", f"checkpoint-{state['best_global_step']}"} | (
        {"checkpoint-6"} if state["best_global_step"] == 9 else set()
    )
    assert find_checkpoint(folder, "latest", pytest.fail) == folder / "checkpoint-9"
    assert find_checkpoint(folder, "True", pytest.fail) == folder / "checkpoint-9"


def test_a_checkpoint_holds_what_was_trained_and_a_manifest_of_it(folder):
    checkpoint = folder / "checkpoint-9"
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    found = {file.relative_to(checkpoint).as_posix() for file in checkpoint.rglob("*") if file.is_file()}
    assert listed.keys() == found - {"manifest.json"}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= listed.keys()
    # The backbone is in none of them.
    assert not any("backbone" in name or name.startswith("model.") for name in listed)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("adapter_model.safetensors", cut, r"adapter_model.safetensors has \d+ bytes instead of \d+"),
        ("rng_state.pth", flip, r"rng_state.pth has changed since it was written"),
        ("trainer_state.json", lambda path: path.unlink(), r"trainer_state.json: No such file"),
        ("manifest.json", cut, r"manifest.json cannot be read"),
        ("manifest.json", lambda path: path.write_text("[]"), r"manifest.json cannot be read"),
        ("manifest.json", lambda path: path.unlink(), r"manifest.json: No such file"),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_warning(name, damage, message, folder):
    damage(folder / "checkpoint-9" / name)
    warnings = []
    assert find_checkpoint(folder, "latest", warnings.append).name == names(folder)[0]
    assert len(warnings) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(warnings[0])


def test_asked_for_by_name_a_damaged_one_is_an_error(folder):
    cut(folder / "checkpoint-9" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint-9 is damaged: adapter_model.safetensors has"):
        find_checkpoint(folder, str(folder / "checkpoint-9"), pytest.fail)


def test_none_that_is_whole_is_an_error_and_none_at_all_is_not(folder):
    for path in checkpoint_paths(folder):
        cut(path / "manifest.json")
    with pytest.raises(ValueError, match=r"All 2 checkpoints in .* are damaged.*--overwrite_output_dir"):
        find_checkpoint(folder, "latest", lambda line: None)
    for path in checkpoint_paths(folder):
        shutil.rmtree(path)
    assert find_checkpoint(folder, "latest", pytest.fail) is None


def test_what_a_killed_process_left_half_written_is_deleted(folder):
    (folder / "checkpoint-12").mkdir()
    (folder / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
    before = names(folder)[:-1]
    delete_unfinished(folder)
    assert names(folder) == before
    assert [find_problem(path) for path in checkpoint_paths(folder)] == [None, None]
