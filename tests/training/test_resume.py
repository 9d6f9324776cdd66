"""A run that was stopped anywhere ends as one that was not."""

import json
import shutil

import pytest
import torch

from point_peft_hf import PointMAEConfig, PointMAEModel
from point_peft_hf.training import load_task


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.mark.parametrize(
    ("method", "stop", "options"),
    [
        ("point_peft", 3, {}),  # between two epochs
        ("point_peft", 5, {"checkpoint_every_steps": 2}),  # in the middle of one, not where a checkpoint was saved
        ("full", 2, {"checkpoint_every_steps": 1}),
        ("geometry", 3, {"checkpoint_every_steps": 1, "gradient_accumulation_steps": 2}),
        ("point_peft", 5, {"checkpoint_every_steps": 1, "augmentation": "rotate_jitter", "num_workers": 2}),
    ],
)
def test_a_resumed_run_ends_as_an_unbroken_one(method, stop, options, finetune, crash, last_weights, tmp_path):
    unbroken = finetune(tmp_path / "a", method=method, **(options | {"num_workers": 0})).run()
    crash(finetune(tmp_path / "b", method=method, **options), stop)
    torch.manual_seed(1234)
    resumed = finetune(tmp_path / "b", method=method, resume_from_checkpoint="latest", **options).run()
    assert_same_weights(last_weights(tmp_path / "a" / method), last_weights(tmp_path / "b" / method))
    assert without_seconds(resumed["history"]) == without_seconds(unbroken["history"])
    assert resumed["test"] == unbroken["test"]
    assert resumed["parameters"] == unbroken["parameters"]

    def metrics(folder):
        lines = map(json.loads, (tmp_path / folder / method / "metrics.jsonl").read_text().splitlines())
        return [(line["kind"], line["step"], line["loss"]) for line in lines]

    assert metrics("b") == metrics("a")


def test_the_best_model_goes_back_with_the_checkpoint(finetune, crash, tmp_path):
    """A model that was chosen after the checkpoint belongs to what is done again."""
    crash(finetune(tmp_path, checkpoint_every_steps=1), 4)
    folder = tmp_path / "point_peft"
    best = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").rename(folder / "later")
    (folder / "adapter_model.safetensors").write_bytes(b"from an epoch that will be done again")
    run = finetune(tmp_path, resume_from_checkpoint="latest", checkpoint_every_steps=1)
    run.folder.begin(run.identity, run.processor)
    assert (folder / "adapter_model.safetensors").read_bytes() == best


def test_a_checkpoint_goes_on_in_another_folder(finetune, crash, last_weights, tmp_path):
    finetune(tmp_path / "a").run()
    crash(finetune(tmp_path / "b", checkpoint_every_steps=2), 5)
    checkpoint = max((tmp_path / "b" / "point_peft" / "checkpoints").iterdir()).rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "b")
    finetune(tmp_path / "c", resume_from_checkpoint=str(checkpoint)).run()
    assert_same_weights(last_weights(tmp_path / "a" / "point_peft"), last_weights(tmp_path / "c" / "point_peft"))


def test_a_finished_run_that_is_resumed_gives_its_record_again(finetune, tmp_path):
    first = finetune(tmp_path, method="linear").run()
    again = finetune(tmp_path, method="linear", resume_from_checkpoint="latest").run()
    assert (again["test"], again["history"]) == (first["test"], first["history"])


def test_latest_starts_anew_where_there_is_nothing_yet_and_says_so(finetune, tmp_path):
    lines = []
    run = finetune(tmp_path, method="linear", epochs=1, resume_from_checkpoint="latest", report=lines.append)
    assert len(run.run()["history"]) == 1
    assert lines[0] == "[linear] nothing to resume yet, starting anew"


def test_a_folder_without_a_checkpoint_is_named(finetune, tmp_path):
    run = finetune(tmp_path, resume_from_checkpoint=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"elsewhere holds no checkpoint to resume from"):
        run.run()


def test_an_unfinished_run_is_not_overwritten_by_mistake(finetune, crash, tmp_path):
    crash(finetune(tmp_path, method="linear", checkpoint_every_steps=1), 2)
    with pytest.raises(ValueError, match=r"a run that is not finished. Pass --resume_from_checkpoint latest"):
        finetune(tmp_path, method="linear")
    run = finetune(tmp_path, method="linear", epochs=1, overwrite_output_dir=True)
    run.run()
    assert [path.name for path in run.folder.checkpoints.paths()] == ["step-00000003"]
    # A finished one is.
    finetune(tmp_path, method="linear", epochs=1).run()


# -- Another run is refused -------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(finetune, crash, tmp_path):
    crash(finetune(tmp_path, checkpoint_every_steps=1), 2)
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 1e-3, r"\(--learning_rate: was 0.004, now 0.001\)"),
        ("epochs", 3, r"\(--epochs: was 2, now 3\)"),
        ("batch_size", 8, r"\(--batch_size: was 16, now 8\)"),
        ("config", {"bottleneck_size": 4}, r"\(--config: was {}, now {'bottleneck_size': 4}\)"),
        ("mixed_precision", "bf16", r"\(--mixed_precision: was no, now bf16\)"),
    ],
)
def test_other_arguments_are_refused_by_name(field, value, message, stopped, finetune):
    run = finetune(stopped, resume_from_checkpoint="latest", **{field: value})
    with pytest.raises(ValueError, match=message):
        run.run()


def test_all_fields_that_differ_are_named(stopped, finetune):
    run = finetune(stopped, resume_from_checkpoint="latest", seed=1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"--weight_decay: was 0.05, now 0.1; --seed: was 0, now 1\)"):
        run.run()


def test_other_data_are_refused(stopped, finetune):
    task = load_task(num_points=128, clouds_per_class=5, max_test_clouds=37, seed=1)
    run = finetune(stopped, task=task, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="the train clouds: was .*the validation clouds: was .*the test clouds: was"):
        run.run()


def test_another_backbone_is_refused_and_a_moved_one_is_not(stopped, finetune, tiny_backbone, tmp_path):
    moved = shutil.copytree(tiny_backbone, tmp_path / "moved")
    finetune(stopped, resume_from_checkpoint="latest", model=str(moved), keep_checkpoints=9).run()

    torch.manual_seed(1)
    other = PointMAEModel(PointMAEConfig.from_pretrained(tiny_backbone), use_class_token=False)
    other.save_pretrained(moved)
    run = finetune(stopped, resume_from_checkpoint="latest", model=str(moved))
    with pytest.raises(ValueError, match="the weights of the backbone: was "):
        run.run()


def test_harmless_arguments_may_change(stopped, finetune):
    options = {"num_workers": 1, "keep_checkpoints": 1, "log_every_steps": 1, "checkpoint_every_steps": 5}
    run = finetune(stopped, resume_from_checkpoint="latest", **options)
    assert len(run.run()["history"]) == 2
