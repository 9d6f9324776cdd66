import importlib.util
import json
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

    def run(folder, *more, kill=False):
        options = {"depths": [1, 1], "hidden_sizes": [16, 32], "grid_size": [0.3], "max_steps": [2]}
        options |= {"test_rooms": [1], "save_steps": [1], "dataloader_num_workers": [0], "warmup_steps": [1]}
        options |= {"per_device_train_batch_size": [1]}
        arguments = [part for name, values in options.items() for part in (f"--{name}", *map(str, values))]
        monkeypatch.setattr(sys, "argv", ["pretrain_scenes.py", "--output_dir", str(folder), *arguments, *more])
        # A module by its name, as its arguments are pickled into checkpoints.
        spec = importlib.util.spec_from_file_location("pretrain_scenes", SCRIPT)
        script = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "pretrain_scenes", script)
        spec.loader.exec_module(script)
        if kill:
            step = script.SceneTrainer.compute_loss

            def stop(self, *args, **kwargs):
                if self.state.global_step:
                    raise Killed
                return step(self, *args, **kwargs)

            monkeypatch.setattr(script.SceneTrainer, "compute_loss", stop)
            with pytest.raises(Killed):
                script.main()
        else:
            script.main()

    return run


def test_a_killed_run_comes_to_the_same(tmp_path, pretrain):
    pretrain(tmp_path / "whole")
    pretrain(tmp_path / "killed", kill=True)
    assert not (tmp_path / "killed" / "config.json").exists()
    pretrain(tmp_path / "killed", "--resume_from_checkpoint", "latest")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "whole" / "pretraining.json").read_text())["loss"] > 0
    assert "--max_steps 2" in (tmp_path / "whole" / "README.md").read_text()

    # The encoder takes a new head, and labels a scan.
    model = AutoModelForPointCloudSemanticSegmentation.from_pretrained(tmp_path / "whole", num_labels=4)
    processor = AutoProcessor.from_pretrained(tmp_path / "whole")
    points, _, _ = make_room("kitchen", 0, 3000)
    prediction = ScenePredictor(model, processor, max_voxels=300).predict(points)
    assert len(prediction.labels) == len(points)
    assert np.isfinite(prediction.confidence).all()
