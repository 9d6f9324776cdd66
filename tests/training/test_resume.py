"""A run that was stopped anywhere ends as one that was not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf import PointMAEConfig, PointMAEModel
from point_peft_hf.training import load_task
from point_peft_hf.training.checkpoints import checkpoint_paths


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.mark.parametrize(
    ("method", "stop", "options"),
    [
        ("point_peft", 3, {}),  # between two epochs
        ("point_peft", 5, {"extra_save_steps": 2}),  # in the middle of one, not where a checkpoint was saved
        ("full", 2, {"extra_save_steps": 1}),
        ("geometry", 3, {"extra_save_steps": 1, "gradient_accumulation_steps": 2}),
        ("point_peft", 5, {"extra_save_steps": 1, "augmentation": "rotate_jitter", "dataloader_num_workers": 2}),
    ],
)
def test_a_resumed_run_ends_as_an_unbroken_one(method, stop, options, finetune, crash, last_weights, tmp_path):
    unbroken = finetune(tmp_path / "a", method=method, **(options | {"dataloader_num_workers": 0})).run()
    crash(finetune(tmp_path / "b", method=method, **options), stop)
    torch.manual_seed(1234)
    resumed = finetune(tmp_path / "b", method=method, resume_from_checkpoint="latest", **options).run()
    assert_same_weights(last_weights(tmp_path / "a" / method), last_weights(tmp_path / "b" / method))
    assert without_seconds(resumed["history"]) == without_seconds(unbroken["history"])
    assert resumed["test"] == unbroken["test"]
    assert resumed["parameters"] == unbroken["parameters"]


def test_what_was_saved_after_the_checkpoint_is_done_again(finetune, crash, last_weights, tmp_path):
    crash(finetune(tmp_path / "b", extra_save_steps=1), 5)
    folder = tmp_path / "b" / "point_peft"
    (folder / "checkpoint-5").rename(folder / "checkpoint-99")
    with pytest.raises(ValueError, match="checkpoint-9 holds no checkpoint to resume from"):
        finetune(tmp_path / "b", resume_from_checkpoint=str(folder / "checkpoint-9")).run()
    finetune(tmp_path / "b", resume_from_checkpoint=str(folder / "checkpoint-3")).run()
    assert not (folder / "checkpoint-99").exists()
    finetune(tmp_path / "a").run()
    assert_same_weights(last_weights(tmp_path / "a" / "point_peft"), last_weights(folder))


@pytest.mark.parametrize("score", [0.9, 0.0])
def test_a_checkpoint_goes_on_in_another_folder_with_the_best_model(score, finetune, crash, tmp_path, monkeypatch):
    """The first epoch is the best one, or the third."""

    def start(folder, scores, **options):
        run = finetune(tmp_path / folder, num_train_epochs=3, **options)
        scores = iter(scores)
        monkeypatch.setattr(
            run.trainer, "compute_metrics", lambda _: {"accuracy": next(scores), "mean_class_accuracy": 0.0}
        )
        return run

    scores = [score, 0.1, 0.2, 0.0]
    unbroken = start("a", scores).run()
    crash(start("b", scores, extra_save_steps=2), 8)
    checkpoint = (tmp_path / "b" / "point_peft" / "checkpoint-8").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "b")
    resumed = start("c", scores[2:], resume_from_checkpoint=str(checkpoint)).run()
    assert resumed["best_epoch"] == unbroken["best_epoch"] == (1 if score else 3)
    assert_same_weights(
        *(load_file(tmp_path / folder / "point_peft" / "adapter_model.safetensors") for folder in "ac")
    )


def test_a_finished_run_that_is_resumed_gives_its_record_again(finetune, tmp_path):
    first = finetune(tmp_path, method="linear").run()
    again = finetune(tmp_path, method="linear", resume_from_checkpoint="latest").run()
    assert (again["test"], again["history"]) == (first["test"], first["history"])


def test_latest_starts_anew_where_there_is_nothing_yet_and_says_so(finetune, tmp_path):
    lines = []
    run = finetune(tmp_path, method="linear", num_train_epochs=1, resume_from_checkpoint="latest", report=lines.append)
    assert len(run.run()["history"]) == 1
    assert lines[0] == "[linear] nothing to resume yet, starting anew"


def test_a_folder_without_a_checkpoint_is_named(finetune, tmp_path):
    run = finetune(tmp_path, resume_from_checkpoint=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"elsewhere holds no checkpoint to resume from"):
        run.run()


def test_an_unfinished_run_is_not_overwritten_by_mistake(finetune, crash, tmp_path):
    crash(finetune(tmp_path, method="linear", extra_save_steps=1), 2)
    with pytest.raises(ValueError, match=r"an unfinished run. Pass --resume_from_checkpoint latest"):
        finetune(tmp_path, method="linear")
    run = finetune(tmp_path, method="linear", num_train_epochs=1, overwrite_output_dir=True)
    run.run()
    assert [path.name for path in checkpoint_paths(run.folder.path)] == ["checkpoint-3"]
    # A finished one is.
    finetune(tmp_path, method="linear", num_train_epochs=1).run()


# -- Another run is refused -------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(finetune, crash, tmp_path):
    crash(finetune(tmp_path, extra_save_steps=1), 2)
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 1e-3, r"\(--learning_rate: was 0.004, now 0.001\)"),
        ("num_train_epochs", 3, r"\(--num_train_epochs: was 2, now 3\)"),
        ("per_device_train_batch_size", 8, r"\(--per_device_train_batch_size: was 16, now 8\)"),
        ("config", {"bottleneck_size": 4}, r"\(--config: was {}, now {'bottleneck_size': 4}\)"),
        ("bf16 use_cpu", True, r"\(the precision: was no, now bf16\)"),
    ],
)
def test_other_arguments_are_refused_by_name(field, value, message, stopped, finetune):
    run = finetune(stopped, resume_from_checkpoint="latest", **dict.fromkeys(field.split(), value))
    with pytest.raises(ValueError, match=message):
        run.run()


def test_all_fields_that_differ_are_named(stopped, finetune):
    run = finetune(stopped, resume_from_checkpoint="latest", seed=1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"--weight_decay: was 0.05, now 0.1; --seed: was 0, now 1\)"):
        run.run()


def test_another_number_of_processes_is_refused(stopped, finetune):
    run = finetune(stopped, resume_from_checkpoint="latest")
    run.identity["processes"] = 2
    with pytest.raises(ValueError, match=r"\(the number of processes: was 1, now 2\)"):
        run.run()


def test_other_data_are_refused(stopped, finetune):
    task = load_task(num_points=128, clouds_per_class=5, max_test_clouds=37, seed=1)
    run = finetune(stopped, task=task, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="the train clouds: was .*the validation clouds: was .*the test clouds: was"):
        run.run()


def test_another_backbone_is_refused_and_a_moved_one_is_not(stopped, finetune, tiny_backbone, tmp_path):
    moved = shutil.copytree(tiny_backbone, tmp_path / "moved")
    finetune(stopped, resume_from_checkpoint="latest", model=str(moved), save_total_limit=9).run()

    torch.manual_seed(1)
    other = PointMAEModel(PointMAEConfig.from_pretrained(tiny_backbone), use_class_token=False)
    other.save_pretrained(moved)
    run = finetune(stopped, resume_from_checkpoint="latest", model=str(moved))
    with pytest.raises(ValueError, match="the weights of the backbone: was "):
        run.run()


def test_harmless_arguments_may_change(stopped, finetune):
    options = {"dataloader_num_workers": 1, "save_total_limit": 1, "logging_steps": 1, "extra_save_steps": 5}
    run = finetune(stopped, resume_from_checkpoint="latest", **options)
    assert len(run.run()["history"]) == 2


def test_killed_at_random_moments():
    """The same with 20 kills: python tests/training/kill_and_resume.py."""
    script = Path(__file__).with_name("kill_and_resume.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--kills", "2", "--epochs", "3", "--seed", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "all weights and files are the same" in done.stdout
