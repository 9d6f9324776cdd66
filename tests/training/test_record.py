"""What is written down of a run."""

import json

import numpy as np
import pytest
import torch

from point_peft_hf.training import FinetuneArguments, load_task, record
from point_peft_hf.training.record import RunLog, data_fingerprint


def test_the_record_says_all_that_is_needed_to_repeat_the_run(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", epochs=1)
    run.run()
    saved = json.loads((tmp_path / "linear" / "run.json").read_text())
    assert FinetuneArguments(**saved["arguments"]) == run.args
    assert saved["learning_rate"] == 2e-3
    assert saved["fingerprints"]["data"] == data_fingerprint(run.task)
    assert len(saved["fingerprints"]["backbone"]) == 32
    assert (saved["processes"], saved["device"], saved["threads"]) == (1, "cpu", torch.get_num_threads())
    assert {"python", "torch", "transformers", "peft", "accelerate", "point_peft_hf"} <= saved["versions"].keys()
    assert saved["command"]
    assert saved["clouds_per_second"] > 0
    assert saved["commit"] is None or len(saved["commit"].removesuffix("-dirty")) == 40


def test_the_record_of_an_unfinished_run_is_there_too(finetune, crash, tmp_path):
    crash(finetune(tmp_path, method="linear"), 1)
    saved = json.loads((tmp_path / "linear" / "run.json").read_text())
    assert "arguments" in saved
    assert "test" not in saved


def test_metrics_and_log_can_be_read_later(finetune, tmp_path):
    lines = []
    finetune(tmp_path, method="linear", log_every_steps=2, report=lines.append).run()
    metrics = [json.loads(line) for line in (tmp_path / "linear" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in metrics] == [
        *[("step", 2), ("epoch", 3), ("step", 4), ("step", 6), ("epoch", 6)]
    ]
    assert {"loss", "gradient_norm", "learning_rate"} <= metrics[0].keys()
    assert {"loss", "train_accuracy", "validation_accuracy", "seconds"} <= metrics[1].keys()
    log = (tmp_path / "linear" / "train.log").read_text().splitlines()
    assert [line[20:] for line in log] == lines


def test_going_back_leaves_out_what_will_be_done_again(tmp_path):
    log = RunLog(tmp_path, print)
    rows = [("step", 1, 1), ("step", 2, 1), ("epoch", 2, 1), ("step", 3, 2), ("step", 4, 2), ("epoch", 4, 2)]
    for kind, step, epoch in rows:
        log.metrics(kind, {"step": step, "epoch": epoch})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')
    log.rewind(step=3, epoch=1)
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"], line["epoch"]) for line in kept] == rows[:4]


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


def test_unknown_and_missing_trackers_are_refused(finetune, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"--report_to must be none or one of tensorboard, trackio, got 'paper'"):
        finetune(tmp_path, report_to="paper")
    monkeypatch.setattr(record.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--report_to trackio needs the package trackio, which is not installed"):
        finetune(tmp_path, report_to="trackio")


def test_tensorboard_gets_the_metrics_and_no_step_twice(finetune, crash, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"method": "linear", "log_every_steps": 1, "report_to": "tensorboard"}
    crash(finetune(tmp_path, checkpoint_every_steps=2, **options), 5)
    finetune(tmp_path, resume_from_checkpoint="latest", **options).run()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "linear")).Reload()
    assert [event.step for event in events.Scalars("gradient_norm")] == [1, 2, 3, 4, 5, 6]
