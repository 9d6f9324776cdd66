"""Retrieval from the bank, and an enhanced prompt, against the published code."""

import numpy as np
import pytest
import torch

from point_peft_hf.slots import EntrySlot, Stage
from point_peft_hf.tokens import Cloud, start_tokens
from point_peft_hf.tuners import PointPriorPromptConfig
from point_peft_hf.tuners.point_prior_prompt import retrieve
from point_peft_hf.tuners.point_prior_prompt.layer import Answer, PromptLayer


@pytest.fixture(scope="module")
def values(reference_dir):
    with np.load(reference_dir / "prompt_retrieval.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_retrieval(values):
    num_rows, num_retrieved = int(values["P"]), int(values["K"])
    rows = retrieve(values["f"], values["bank"].T.contiguous(), num_rows, num_retrieved)
    assert (rows - values["Z"]).abs().max() < 1e-5
    assert (rows[:, 1] - values["m"].squeeze(1)).abs().max() < 1e-5
    assert (rows[:, 2:] - values["neighbours"]).abs().max() < 1e-5


def test_enhanced_prompt(values):
    layer = PromptLayer(EntrySlot(Stage(48, 8, 1), 0), "point_prior_prompt_")
    layer.update_layer("default", PointPriorPromptConfig(num_prompt_tokens=10), "entry_slot")
    layer.set_adapter("default")
    layer.part("prompt_embedding", "default").weight.data = values["prompt_embeddings"]
    bottleneck = layer.part("prompt_bottleneck", "default")
    for part, name in (("down", "ln1"), ("up", "ln2")):
        for kind in ("weight", "bias"):
            getattr(bottleneck, f"{part}_{kind}").data = values[f"cp_adapter.{name}.{kind}"]
    points = torch.zeros(3, 1, 3)
    answer = Answer(values["Z"], values["Z"][:, 0], None)
    cloud = Cloud(points, points).sharing(layer.key("default"), answer)
    tokens = layer.eval()(start_tokens(torch.zeros(3, 1, 48), points, cloud))
    assert [span.count for span in tokens.spans] == [10, 1]
    assert (tokens.of(layer.key("default")) - values["enhanced_prompt"]).abs().max() < 1e-5
    with torch.no_grad():
        assert (values["Z"] + bottleneck(values["Z"]) - values["cp_adapter_out"]).abs().max() < 1e-5
