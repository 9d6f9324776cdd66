"""The frozen embedding with fewer products, against its plain form."""

import pytest
import torch

from point_peft_hf.models.layers import PatchEmbedding
from point_peft_hf.models.layers import patch_embedding as module


def plain(embedding, groups):
    *first, second_linear1, second_norm1, second_linear2 = embedding.children()
    return module._embed_plain(groups, first, second_linear1, second_norm1, second_linear2, frozen=False)


@pytest.fixture(params=[(8, 12, 16), (8, 9, 12, 16)])
def embedding(request):
    torch.manual_seed(0)
    embedding = PatchEmbedding(3, request.param, 10).double().requires_grad_(False)
    for norm in (child for name, child in embedding.named_children() if "norm" in name):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return embedding


@pytest.mark.parametrize("chunk_size", [2, 100])
@pytest.mark.parametrize("training", [False, True])
def test_frozen_equals_plain_forward_and_backward(embedding, training, chunk_size, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SIZE", chunk_size)
    embedding.train(training)
    groups = torch.randn(2, 5, 6, 3, dtype=torch.float64, requires_grad=True)
    result = embedding(groups)
    expected = plain(embedding, groups.flatten(0, 1)).unflatten(0, (2, 5))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    gradients = [torch.autograd.grad(output, groups, grad)[0] for output in (result, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_trained_weights_are_not_folded(embedding):
    embedding.eval()
    layers = dict(embedding.named_children())
    assert module._can_fold(layers, frozen=False)
    embedding.requires_grad_(True)
    assert not module._can_fold(layers, frozen=False)
    with torch.no_grad():
        assert module._can_fold(layers, frozen=False)
