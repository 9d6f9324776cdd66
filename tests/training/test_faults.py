"""What can go wrong in hours of training, and what is left when it does."""

import json
import os
import re
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from point_peft_hf import locks
from point_peft_hf.data import write_point_cloud
from point_peft_hf.training import TrainingInterrupted, TrainingStopped, load_task
from point_peft_hf.training import checkpoints as checkpoints_module
from point_peft_hf.training import trainer as trainer_module
from point_peft_hf.training.checkpoints import checkpoint_paths, find_checkpoint, find_problem
from point_peft_hf.training.interruption import StopRequest


def within_step(run, step, act):
    """Let something happen between the forward and the backward pass of a step."""
    count = run.trainer._check_and_count

    def count_and_act(outputs, batch):
        count(outputs, batch)
        if run.trainer.state.global_step + 1 == step:
            act()

    run.trainer._check_and_count = count_and_act


# -- Signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [2, 3])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, code, step, finetune, last_weights, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    lines = []
    run = finetune(tmp_path / "b", report=lines.append)
    within_step(run, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(TrainingInterrupted) as caught:
        run.run()
    assert caught.value.code == code
    assert run.trainer.state.global_step == step
    checkpoint = find_checkpoint(run.folder.path, "latest", pytest.fail)
    assert checkpoint.name == f"checkpoint-{step}"
    assert f"{number.name}: stopped after step {step} of 6. {checkpoint} is safe" in lines[-1]
    assert lines[-1].endswith("--resume_from_checkpoint latest.")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers

    finetune(tmp_path / "a").run()
    finetune(tmp_path / "b", resume_from_checkpoint="latest").run()
    expected, got = last_weights(tmp_path / "a" / "point_peft"), last_weights(tmp_path / "b" / "point_peft")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.fixture
def listening():
    """Listen to Ctrl-C, which a process that was started in the background by a script ignores."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("listening")
def test_a_second_ctrl_c_ends_at_once_but_not_under_a_launcher():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with StopRequest(insist=False) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT


def test_signals_are_left_alone_outside_of_the_main_thread():
    handler, seen = signal.getsignal(signal.SIGINT), []

    def enter():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [handler]


# -- The disk ---------------------------------------------------------------------------------------------------------


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["write_json", "file_checksum", "save_model"])
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(where, finetune, monkeypatch, tmp_path):
    run = finetune(tmp_path, extra_save_steps=1)
    module = trainer_module if where == "save_model" else checkpoints_module
    within_step(run, 3, lambda: monkeypatch.setattr(module, where, full_disk))
    with pytest.raises(TrainingStopped) as caught:
        run.run()
    message = str(caught.value)
    assert "Could not write the checkpoint of step 3" in message
    assert "No space left on device" in message
    assert re.search(r"checkpoint-2 is safe: continue from it with --resume_from_checkpoint latest", message)
    monkeypatch.undo()
    folder = tmp_path / "point_peft"
    assert find_problem(folder / "checkpoint-2") is None
    assert not (folder / "checkpoint-3" / "manifest.json").exists()
    assert len(finetune(tmp_path, resume_from_checkpoint="latest").run()["history"]) == 2


def test_a_full_disk_at_the_end_keeps_the_checkpoint(finetune, monkeypatch, tmp_path):
    run = finetune(tmp_path, method="linear")
    monkeypatch.setattr("point_peft_hf.training.finetuning.save_adapter", full_disk)
    with pytest.raises(
        TrainingStopped, match=r"Could not write the trained model .*No space left.*checkpoint-6 is safe"
    ):
        run.run()
    monkeypatch.undo()
    assert finetune(tmp_path, method="linear", resume_from_checkpoint="latest").run()["test"]


def test_a_real_full_disk(finetune, tmp_path, monkeypatch):
    """/dev/full answers each write as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    run = finetune(tmp_path, method="linear")
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, path, **options: save(content, "/dev/full", **options))
    with pytest.raises(TrainingStopped, match=r"Could not write the checkpoint of step 3 "):
        run.run()
    assert [find_problem(path) for path in checkpoint_paths(tmp_path / "linear")] == [
        "manifest.json: No such file or directory"
    ]


@pytest.mark.parametrize("place", ["file/runs", "/proc/runs"])
def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(place, finetune, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output_dir .*runs cannot be written: .*Pass a folder that can"):
        finetune(tmp_path / place, model="a backbone that is not there")


def test_a_folder_that_another_process_writes_to_is_refused(finetune, locked_elsewhere, monkeypatch, tmp_path):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    with locked_elsewhere(tmp_path / "point_peft"):
        with pytest.raises(ValueError, match=r"Another process is writing to .*point_peft.* another --output_dir"):
            finetune(tmp_path, model="a backbone that is not there")
    with pytest.raises(OSError, match="a backbone that is not there"):
        finetune(tmp_path, model="a backbone that is not there")
    # What failed to begin has let go of the folder.
    with locked_elsewhere(tmp_path / "point_peft"):
        pass


# -- The loss ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_names_the_clouds_and_saves_them(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", extra_save_steps=1)
    head = next(p for name, p in run.trainer.model.named_parameters() if "modules_to_save" in name)

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    head.fill_(float("inf"))

    run.trainer.add_callback(Spoil)
    with pytest.raises(TrainingStopped) as caught:
        run.run()
    message = str(caught.value)
    assert re.search(r"The loss is nan in step 3 \(epoch 1\), on cloud \d+, cloud \d+", message)
    assert "checkpoint-2 is safe" in message
    failure = tmp_path / "linear" / "failure"
    facts = json.loads((failure / "failure_0.json").read_text())
    batch = load_file(failure / "batch_0.safetensors")
    assert facts["clouds"] == [f"cloud {number}" for number in batch["sample_ids"].tolist()]
    assert batch["points"].shape == (16, 128, 3)
    assert (failure / "adapter_model.safetensors").is_file()


def test_the_files_of_the_clouds_are_named(finetune, tiny_task, tmp_path):
    for index in range(len(tiny_task.train)):
        item = tiny_task.train[index]
        for split in ("train", "test"):
            folder = tmp_path / "data" / split / tiny_task.class_names[item["labels"]]
            folder.mkdir(parents=True, exist_ok=True)
            write_point_cloud(folder / f"{index}.npy", item["points"].numpy())
    run = finetune(tmp_path, method="linear", task=load_task(str(tmp_path / "data")))
    with torch.no_grad():
        next(p for name, p in run.trainer.model.named_parameters() if "modules_to_save" in name).fill_(float("inf"))
    with pytest.raises(TrainingStopped, match=r"on .*train/\w+/\d+.npy, .*No checkpoint was saved before"):
        run.run()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(finetune, tmp_path):
    run = finetune(tmp_path, method="linear")
    head = next(p for name, p in run.trainer.model.named_parameters() if "modules_to_save" in name)
    head.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingStopped, match=r"The norm of the gradient is nan in step 1"):
        run.run()
    assert head.isfinite().all()


# -- Workers ----------------------------------------------------------------------------------------------------------


class KillsItsWorker(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset
        self.main = os.getpid()

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __getitem__(self, index):
        if os.getpid() != self.main and index == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


def test_a_worker_that_dies_is_told_with_what_to_do(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", dataloader_num_workers=1, extra_save_steps=1)
    run.task = replace(run.task, train=KillsItsWorker(run.task.train))
    run.trainer.task = run.task
    with pytest.raises(
        TrainingStopped, match=r"A worker process of the data loader died .*lower --dataloader_num_workers \(now 1"
    ):
        run.run()
