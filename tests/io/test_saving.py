"""A folder is at any time either as it was or complete."""

import os
import shutil

import pytest
import torch
from peft import PeftModel

from point_peft_hf import AutoPointPeftModel, PointCloudProcessor
from point_peft_hf.io import folders, save, save_adapter


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def saved(make_adapter, tmp_path, record):
    folder = save_adapter(make_adapter(), tmp_path / "adapter", processor=PointCloudProcessor(64), record=record)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "optimizer.bin").write_bytes(b"state")
    return folder


def test_everything_is_there_and_nothing_else(saved, tmp_path):
    assert {path.name for path in saved.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint",
        "preprocessor_config.json",
        "run.json",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_does_not_belong_to_the_adapter_stays(saved, make_adapter, logits):
    other = make_adapter(seed=1)
    save_adapter(other, saved)
    assert (saved / "checkpoint" / "optimizer.bin").read_bytes() == b"state"
    assert (saved / "preprocessor_config.json").is_file()
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained(saved)), logits(other))
    # Its results were not those of this one.
    assert not (saved / "run.json").exists()
    assert "accuracy" not in (saved / "README.md").read_text()


def test_a_folder_that_a_person_keeps_beside_it_stays(saved, make_adapter):
    shutil.copytree(saved, saved.with_name("adapter.old"))
    kept = contents(saved.with_name("adapter.old"))
    save_adapter(make_adapter(seed=1), saved)
    folders.recover_folder(saved)
    assert contents(saved.with_name("adapter.old")) == kept
    shutil.rmtree(saved)
    folders.recover_folder(saved)
    assert not saved.exists()


def test_what_cannot_be_replaced_is_refused(saved, make_adapter, monkeypatch):
    before = contents(saved)
    (saved / "inside").mkdir()
    monkeypatch.chdir(saved / "inside")
    for folder in (".", ".."):
        with pytest.raises(ValueError, match=r"is the working directory, holds it, .* Pass a folder inside of it"):
            save_adapter(make_adapter(seed=1), folder)
    monkeypatch.chdir(saved.parent)
    monkeypatch.setattr(folders.os.path, "ismount", lambda path: path == saved)
    with pytest.raises(ValueError, match="is a mount point"):
        save_adapter(make_adapter(seed=1), saved)
    assert contents(saved) == before


@pytest.mark.parametrize("failing", ["_write_adapter", "write_model_card", "read_header", "flush_files", "_take_over"])
def test_a_failed_save_leaves_the_last_good_state(saved, make_adapter, monkeypatch, failing, tmp_path):
    before = contents(saved)

    def fail(*args, **kwargs):
        raise OSError("no space left on the device")

    monkeypatch.setattr(folders if hasattr(folders, failing) else save, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        save_adapter(make_adapter(seed=1), saved, processor=PointCloudProcessor(128))
    assert contents(saved) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_renaming_puts_the_old_folder_back(saved, make_adapter, monkeypatch):
    before, rename = contents(saved), type(saved).rename

    def fail(self, target):
        if self.name.startswith(".adapter.") and self.name != ".adapter.replaced":
            raise OSError("interrupted")
        return rename(self, target)

    monkeypatch.setattr(type(saved), "rename", fail)
    with pytest.raises(OSError, match="interrupted"):
        save_adapter(make_adapter(seed=1), saved)
    assert contents(saved) == before


def test_a_process_that_was_killed_between_the_renamings_loses_nothing(saved, make_adapter, logits):
    before = contents(saved)
    saved.rename(saved.with_name(".adapter.replaced"))
    with pytest.raises(RuntimeError), folders.replaced_folder(saved):
        raise RuntimeError("fails again")
    assert contents(saved) == before


def test_writing_never_goes_through_a_hard_link(saved, make_adapter):
    before = contents(saved)
    shutil.copytree(saved, saved.with_name("linked"), copy_function=os.link)
    save_adapter(make_adapter(seed=1), saved, processor=PointCloudProcessor(128))
    assert contents(saved.with_name("linked")) == before


def test_another_adapter_than_the_default_one(make_adapter, load_backbone, tmp_path, logits):
    model = make_adapter("geometry")
    model.add_adapter("second", type(model.active_peft_config)(init_weights=False))
    model.set_adapter("second")
    save_adapter(model, tmp_path / "second", adapter_name="second")
    assert torch.equal(logits(PeftModel.from_pretrained(load_backbone(), tmp_path / "second")), logits(model))
    with pytest.raises(ValueError, match="no adapter 'third'"):
        save_adapter(model, tmp_path / "third", adapter_name="third")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save_adapter(model, tmp_path / "file")


def test_lora_gets_a_fingerprint_as_well(make_adapter, load_backbone, tmp_path, logits, read_json):
    model = make_adapter("lora")
    save_adapter(model, tmp_path / "lora")
    assert set(read_json(tmp_path / "lora" / "backbone.json")["backbone"]["weights"]) == {
        "float32",
        "bfloat16",
        "float16",
    }
    loaded = AutoPointPeftModel.from_pretrained(tmp_path / "lora")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.id2label[2] == "torus"
    other = load_backbone()
    with torch.no_grad():
        other.point_mae.layernorm.weight[0] += 1
    with pytest.raises(ValueError, match="with other weights"):
        AutoPointPeftModel.from_pretrained(tmp_path / "lora", backbone=other)


def test_what_killed_processes_left_is_cleaned_up(saved, tmp_path):
    before = contents(saved)
    shutil.copytree(saved, tmp_path / ".adapter.0123abcd")  # killed while writing
    shutil.copytree(saved, tmp_path / ".adapter.replaced")  # killed after renaming
    (tmp_path / ".adapter.mine").mkdir()
    folders.recover_folder(saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".adapter.mine", "adapter"]
    saved.rename(tmp_path / ".adapter.replaced")  # killed between two renamings
    folders.recover_folder(saved)
    assert contents(saved) == before
