"""`point-peft export`: the file, what is printed, and what is refused before anything is loaded."""

import re

import numpy as np
import pytest
import torch

from point_peft_hf.training import Predictor


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_printed_runs(point_peft, adapter, tmp_path, capsys):
    assert point_peft("export", adapter) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"linear\.pt2: 0\.\d MB; its logits differ .* by \d\.\de[-+]\d\d of the largest\.", first)
    predictor = Predictor.from_pretrained(str(adapter))
    cloud = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    names = {"torch": torch, "points": predictor.processor(cloud)["points"]}
    exec("\n".join(line.strip() for line in lines), names)
    (probabilities,) = predictor.predict_many([cloud])
    torch.testing.assert_close(names["logits"].softmax(dim=-1)[0], torch.from_numpy(probabilities))
    assert "unit_sphere" in names["metadata"]["metadata.json"]


def test_options_that_do_not_fit_are_refused_at_once(point_peft, tmp_path):
    for options, message in (
        (["--output", "model.bin"], "ends with .pt2"),
        (["--output", "model.pt2", "--format", "onnx"], "got model.pt2 with the format onnx"),
        (["--opset", "20"], "`opset`=20 is for ONNX files"),
        (["--precision", "int8"], "int8 is for ONNX files"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            point_peft("export", "no/such/adapter", *options)
