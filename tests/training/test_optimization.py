import pytest
from torch import nn

from point_peft_hf.training import parameter_groups, warmup_cosine


def test_the_learning_rate_rises_then_falls():
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_biases_norms_tokens_and_frozen_weights_have_no_weight_decay():
    model = nn.ModuleDict({"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "frozen": nn.Linear(3, 1)})
    model["frozen"].requires_grad_(False)
    model.mask_token = nn.Parameter(model["linear"].weight.detach().clone())
    decayed, exempt = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model["linear"].weight)]
    assert {id(p) for p in exempt["params"]} == {
        id(p) for p in (model["linear"].bias, model["norm"].weight, model["norm"].bias, model.mask_token)
    }
