import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoProcessor

from point_peft_hf import AutoModelForPointCloudSemanticSegmentation
from point_peft_hf.data.rooms import make_room
from point_peft_hf.scenes import ScenePredictor

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "pretrain_scenes.py"


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.fixture
def pretrain(monkeypatch):
    """Run the script with a tiny encoder; with `kill`, only until its first checkpoint is written."""

    def run(folder, kill=False):
        options = {"depths": [1, 1], "hidden_sizes": [16, 32], "grid_size": [0.3], "steps": [2], "test_rooms": [1]}
        options |= {"save_every": [1], "num_workers": [0], "batch_size": [1], "warmup_steps": [1]}
        arguments = [part for name, values in options.items() for part in (f"--{name}", *map(str, values))]
        monkeypatch.setattr(sys, "argv", ["pretrain_scenes.py", "--output_dir", str(folder), *arguments])
        script = runpy.run_path(str(SCRIPT))
        if kill:

            def save(*args, write=script["torch"].save):
                write(*args)
                written.append(args)

            written = []
            monkeypatch.setattr(script["torch"], "save", save)
            monkeypatch.setitem(script["main"].__globals__, "warmup_cosine", lambda *args, **kw: _stop(written, *args))
            with pytest.raises(Killed):
                script["main"]()
            monkeypatch.undo()
        else:
            script["main"]()

    def _stop(written, step, total, warmup):
        if written:
            raise Killed
        return 1.0  # the first step, at the end of the rise

    return run


def test_a_killed_run_comes_to_the_same(tmp_path, pretrain, capsys):
    pretrain(tmp_path / "whole")
    pretrain(tmp_path / "killed", kill=True)
    assert not (tmp_path / "killed" / "config.json").exists()
    pretrain(tmp_path / "killed")
    assert "going on after step 1" in capsys.readouterr().out
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "whole" / "checkpoint.pt").exists()
    assert json.loads((tmp_path / "whole" / "pretraining.json").read_text())["loss"] > 0
    assert "--steps 2" in (tmp_path / "whole" / "README.md").read_text()

    # The encoder takes a new head, and labels a scan.
    model = AutoModelForPointCloudSemanticSegmentation.from_pretrained(tmp_path / "whole", num_labels=4)
    processor = AutoProcessor.from_pretrained(tmp_path / "whole")
    points, _, _ = make_room("kitchen", 0, 3000)
    prediction = ScenePredictor(model, processor, max_voxels=300).predict(points)
    assert len(prediction.labels) == len(points)
    assert np.isfinite(prediction.confidence).all()
