"""What is written down of a run."""

import json
import re

import numpy as np
import pytest
import torch

from point_peft_hf import training
from point_peft_hf.training import load_task
from point_peft_hf.training.command import conclusion, next_step
from point_peft_hf.training.record import data_fingerprint


def test_the_record_says_all_that_is_needed_to_repeat_the_run(finetune, tiny_task, tmp_path):
    run = finetune(tmp_path / "a", method="linear", num_train_epochs=1, seed=3, adam_beta2=0.99)
    first = run.run()
    saved = json.loads((tmp_path / "a" / "linear" / "run.json").read_text())
    assert saved == first
    assert (saved["learning_rate"], saved["warmup_steps"]) == (2e-3, 0.3)
    assert saved["fingerprints"]["data"] == data_fingerprint(run.task)
    assert len(saved["fingerprints"]["backbone"]) == 32
    assert (saved["processes"], saved["device"], saved["threads"]) == (1, "cpu", torch.get_num_threads())
    assert {"python", "torch", "transformers", "peft", "accelerate", "point_peft_hf"} <= saved["versions"].keys()
    assert saved["command"]
    assert saved["clouds_per_second"] > 0
    assert saved["commit"] is None or len(saved["commit"].removesuffix("-dirty")) == 40

    arguments = saved["arguments"] | {"output_dir": str(tmp_path / "b")}
    assert arguments["adam_beta2"] == 0.99
    again = training.finetune(arguments, tiny_task, report=lambda line: None)
    assert again["test"] == first["test"]
    weights = [(tmp_path / name / "linear" / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_first_line_says_what_was_understood_and_each_epoch_has_one(finetune, tmp_path):
    lines = []
    finetune(tmp_path, method="linear", report=lines.append).run()
    assert re.match(
        r"\[linear\] procedural: 12 classes, \d+ training, 12 validation and 36 test clouds of 128 points, y up; .*, "
        r"0.\d\d of 0.\d\d M parameters trained",
        lines[0],
    )
    epochs = [line for line in lines if "epoch " in line]
    assert re.match(r"\[linear\] epoch 1/2: loss \d.\d{4}, validation accuracy \d+.\d % \(best\), ", epochs[0])
    assert len(epochs) == 2


def test_the_fingerprint_tells_data_apart(tiny_task):
    first = data_fingerprint(tiny_task)
    assert first == data_fingerprint(load_task(num_points=128, clouds_per_class=5, max_test_clouds=37))
    other = data_fingerprint(load_task(num_points=128, clouds_per_class=5, max_test_clouds=37, corruption="clean"))
    assert all(first[split] != other[split] for split in first)
    relabelled = tiny_task.train.select(np.arange(len(tiny_task.train)))
    relabelled.labels = np.roll(relabelled.labels, 1)
    changed = data_fingerprint(
        type(tiny_task)(tiny_task.class_names, relabelled, tiny_task.validation, tiny_task.test)
    )
    assert [split for split in first if first[split] != changed[split]] == ["train"]


def test_tensorboard_gets_the_metrics(finetune, crash, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    finetune(tmp_path, method="linear", logging_steps=1, report_to="tensorboard").run()
    (folder,) = {file.parent for file in (tmp_path / "tensorboard").rglob("events*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/grad_norm")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("eval/accuracy")] == [3, 6]


def record_of(method, validation, epochs=3, best=2, **options):
    history = [{"epoch": epoch + 1} for epoch in range(epochs)]
    clouds = {"train": 1000, "validation": 400, "test": 10}
    return {
        **{"method": method, "score": "accuracy", "validation_accuracy": validation, "best_epoch": best},
        **{"history": history, "clouds": clouds, "steps": 300, **options},
    }


def test_the_last_line_names_the_best_method_and_its_limits():
    text = conclusion([record_of("linear", 0.7), record_of("lora", 0.9)])
    assert text == "Best by validation: lora, accuracy 90.0 % in epoch 2."
    text = conclusion([record_of("linear", 0.89), record_of("lora", 0.9, best=3)])
    assert "Its lead of 1.0 points may be chance: it is one seed on 400 clouds." in text
    assert text.endswith("Still improving in the last epoch: more --num_train_epochs may help.")
    few = record_of("lora", 0.9, steps=15)
    assert conclusion([few]).endswith("Only 15 steps: the numbers say little.")
    assert "no validation split" in conclusion([record_of("lora", None)])


@pytest.mark.parametrize(
    ("methods", "num_classes", "noun", "expected"),
    [
        (
            ["full", "lora"],
            40,
            "clouds",
            "Next: --method linear. With so few clouds (25 a class) full fine-tuning was",
        ),
        (["full", "lora"], 10, "clouds", "Next: compare with --method linear point_peft, on the same clouds."),
        (["linear"], 40, "clouds", "Next: compare with --method lora point_peft, on the same clouds."),
        (["linear", "point_peft"], 40, "clouds", "Next: compare with --method lora, on the same clouds."),
        (["full"], 40, "scenes", "Next: compare with --method linear lora voxel_adapter, on the same scenes."),
        (["point_peft", "linear", "lora"], 40, "clouds", "Next: other seeds (--seed 1"),
    ],
)
def test_what_to_compare_next(methods, num_classes, noun, expected):
    assert next_step([record_of(name, 0.9) for name in methods], num_classes, noun).startswith(expected)
