"""The functions that blocks and adapters share."""

import pytest
import torch

from point_peft_hf.layers import add_product, recompute_in_backward, with_known_value
from point_peft_hf.tuners.bottleneck import Bottleneck


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def assert_same(result, expected, leaves):
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(result, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_add_product(batch):
    target, left, right = random(*batch, 5, 4), random(*batch, 5, 3), random(*batch, 3, 4)
    assert_same(add_product(target, left, right, 0.3), target + 0.3 * (left @ right), (target, left, right))


def test_add_product_keeps_the_dtype_of_the_target():
    target, left, right = (random(2, 2, dtype=torch.float32) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        result = add_product(target, left, right)
    assert result.dtype == torch.float32
    # Only the product is in the lower precision, not what it is added to.
    torch.testing.assert_close(result - target, (left.bfloat16() @ right.bfloat16()).float())
    assert add_product(target.bfloat16(), left, right).dtype == torch.bfloat16


def test_bottleneck_in_one_pass():
    torch.manual_seed(0)
    bottleneck = Bottleneck(6, 2, dropout=0.0, init_weights=False).double()
    torch.nn.init.normal_(bottleneck.up_bias)
    target, other = random(2, 3, 6), random(2, 3, 6)
    leaves = (target, *bottleneck.parameters())
    assert_same(bottleneck.add_to(target), target + bottleneck(target), leaves)
    assert_same(bottleneck.add_to(target, other, 0.7), target + 0.7 * bottleneck(other), (other, *leaves))


def test_recomputing_keeps_the_arguments_only_and_draws_the_same_numbers():
    value = random(50, 40)

    def function(value):
        return torch.dropout(torch.exp(value).cos(), 0.5, True).sin()

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        torch.manual_seed(0)
        result = recompute_in_backward(function, value)
    assert {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel()} == {value.data_ptr()}
    torch.manual_seed(0)
    assert_same(result, function(value), (value,))


def test_a_known_value_is_not_computed_until_backward():
    left, right = random(3), random(3)
    calls = []

    def function(left, right):
        calls.append(1)
        return left * right.exp()

    result = with_known_value((left * right.exp()).detach(), function, left, right)
    assert not calls
    assert_same(result, left * right.exp(), (left, right))
    assert len(calls) == 1


def test_a_known_value_that_depends_on_nothing_leaves_no_gradient():
    place = random(3)
    result = with_known_value(torch.ones(3, dtype=torch.float64), lambda place: (place > 9).to(place.dtype), place)
    (result.sum() + place.sum()).backward()
    assert place.grad.eq(1).all()
