"""FSDP2 (`fully_shard`) on blocks with adapters: the same function and gradients."""

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from point_peft_hf.models.layers import TokenLayer


@pytest.fixture
def one_process(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("backbone_name", ["point_mae", "point_m2ae"])
def test_sharded_blocks(one_process, backbone, case, points, labels):
    model = case.attach(backbone, init_weights=False).eval()
    expected = model(points, labels=labels)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients
    model.zero_grad()
    for module in list(model.modules()):
        if isinstance(module, TokenLayer):
            fully_shard(module)
    fully_shard(model)
    output = model(points, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits)
    output.loss.backward()
    found = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
