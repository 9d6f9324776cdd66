"""The memory bank: retrieval by hand, building, and what does not fit."""

import pytest
import torch
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.tuners.point_prior_prompt import retrieve

BANK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])


def make_bank(features, labels=None):
    unknown = torch.full((len(features),), -1)
    return pp.PointPriorBank(features, unknown if labels is None else labels, unknown)


def test_retrieval_by_hand():
    # Similarities to the query (3, 4) / 5: 0.6, 0.8, 1.0, -0.6.
    rows = retrieve(torch.tensor([[3.0, 4.0]]), BANK, num_rows=4, num_retrieved=2)
    weights = torch.tensor([1.0, 0.8]).softmax(0)
    expected = torch.stack([torch.tensor([3.0, 4.0]), weights[0] * BANK[2] + weights[1] * BANK[1], BANK[2], BANK[1]])
    torch.testing.assert_close(rows, expected[None])


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_few_prompts(num_rows):
    assert retrieve(torch.ones(2, 2), BANK, num_rows, num_retrieved=1).shape == (2, num_rows, 2)


def test_empty_bank_returns_the_clouds_own_direction():
    rows = retrieve(torch.tensor([[3.0, 4.0]]), torch.empty(0, 2), num_rows=3, num_retrieved=1)
    torch.testing.assert_close(rows, torch.tensor([[[3.0, 4.0], [0.6, 0.8], [0.6, 0.8]]]))


def test_bank_is_what_the_frozen_encoder_sees(backbone, points):
    batches = [{"points": points, "labels": torch.arange(4)}, {"points": points[:1]}]
    bank = pp.build_point_prior_bank(backbone, batches, query="encoder", progress=False)
    assert bank.features.shape == (5, 48)
    torch.testing.assert_close(bank.features[:4], F.normalize(backbone.frozen_features(points), dim=-1))
    assert bank.labels.tolist() == [0, 1, 2, 3, -1]


@pytest.fixture
def prompted(make_backbone):
    from peft import get_peft_model

    return get_peft_model(make_backbone(), pp.PointPriorPromptConfig(num_prompt_tokens=4))


def test_bank_size_is_kept_in_the_configuration(prompted):
    pp.set_point_prior_bank(prompted, make_bank(F.normalize(torch.randn(9, 48), dim=-1)))
    assert prompted.peft_config["default"].bank_size == 9


def test_two_adapters_have_banks_of_their_own_size(prompted, points, logits, tmp_path, make_backbone):
    from peft import PeftModel

    prompted.add_adapter("other", prompted.peft_config["default"])
    pp.set_point_prior_bank(prompted, make_bank(torch.randn(9, 48)), "default")
    pp.set_point_prior_bank(prompted, make_bank(torch.randn(5, 48)), "other")
    prompted.save_pretrained(tmp_path)
    prompted.set_adapter("other")
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path / "other")
    assert torch.equal(logits(loaded, points), logits(prompted, points))


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (make_bank(torch.randn(9, 32)), r"shape \(9, 32\), but the backbone has width 48"),
        (make_bank(torch.full((9, 48), float("nan"))), "not finite"),
        (make_bank(torch.randn(1, 48)), "1 entries, but the adapter retrieves 2"),
        (make_bank(torch.randn(9, 48), torch.zeros(3)), "9 features but 3 labels"),
    ],
    ids=["width", "nan", "small", "labels"],
)
def test_a_bank_that_does_not_fit(prompted, bank, message):
    with pytest.raises(ValueError, match=message):
        pp.set_point_prior_bank(prompted, bank)


def test_a_bank_nobody_asked_for(make_backbone, prompted):
    with pytest.raises(ValueError, match="No active adapter of this model uses a bank"):
        pp.set_point_prior_bank(make_backbone(), make_bank(torch.randn(9, 48)))
    with pytest.raises(ValueError, match="Adapter 'typo' of this model uses a bank|Adapter 'typo'"):
        pp.set_point_prior_bank(prompted, make_bank(torch.randn(9, 48)), "typo")


def test_batches_that_do_not_do(prompted):
    with pytest.raises(ValueError, match="no batches"):
        pp.build_point_prior_bank(prompted, [], progress=False)
    with pytest.raises(ValueError, match=r"key 'points', got the keys \['cloud'\]"):
        pp.build_point_prior_bank(prompted, [{"cloud": 1}], progress=False)
    with pytest.raises(ValueError, match="Linear has no method `frozen_features"):
        pp.build_point_prior_bank(torch.nn.Linear(1, 1), [{"points": torch.zeros(1, 128, 3)}], progress=False)
