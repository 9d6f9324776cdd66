"""The frozen embedding with fewer products, against its plain form."""

import pytest
import torch

from point_peft_hf.models.layers import PatchEmbedding
from point_peft_hf.models.layers import patch_embedding as module


def plain(embedding, groups):
    return module._embed_plain(groups, frozen=False, **dict(embedding.named_children()))


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    embedding = PatchEmbedding(3, (8, 12, 16), 10).double().requires_grad_(False)
    for norm in (embedding.first_norm1, embedding.second_norm1):
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


def test_eval_gradients_of_the_weights_equal_the_plain_ones(embedding):
    embedding.requires_grad_(True).eval()
    groups = torch.randn(2, 5, 6, 3, dtype=torch.float64)
    assert module._can_fold(dict(embedding.named_children()), frozen=False)
    outputs = embedding(groups), plain(embedding, groups.flatten(0, 1)).unflatten(0, (2, 5))
    parameters = list(embedding.parameters())
    gradients = [torch.autograd.grad(output.square().sum(), parameters) for output in outputs]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
