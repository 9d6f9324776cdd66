"""Smaller banks: which entries, and what they are stored as."""

import copy
import logging

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.io.files import WEIGHTS_NAME

METHODS = ("random", "herding")


def make_bank(counts=(30, 10, 4), width=48, spread=0.3, seed=0):
    """Clusters of features, one for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    centers = torch.randn(len(counts), width, generator=generator)
    features = centers[labels] + spread * torch.randn(len(labels), width, generator=generator)
    return pp.PointPriorBank(F.normalize(features, dim=-1), labels, torch.arange(len(labels)))


@pytest.mark.parametrize("method", METHODS)
def test_size_and_determinism(method):
    bank = make_bank()
    small = pp.compress_bank(bank, 12, method)
    torch.manual_seed(123)
    again = pp.compress_bank(bank, 12, method)
    assert len(small) == len(small.labels) == len(small.sample_ids) == 12
    assert torch.equal(small.features, again.features)
    assert torch.equal(small.labels, again.labels)
    torch.testing.assert_close(small.features.norm(dim=-1), torch.ones(12))
    assert set(small.labels.tolist()) == {0, 1, 2}
    assert pp.compress_bank(bank, 44, method) is bank


@pytest.mark.parametrize("method", METHODS)
def test_entries_are_kept_as_they_are(method):
    bank = make_bank()
    small = pp.compress_bank(bank, 18, method)
    # The class of 4 is kept whole, the others share the rest.
    assert small.labels.bincount().tolist() == [7, 7, 4]
    assert torch.equal(small.features, bank.features[small.sample_ids])
    assert torch.equal(small.labels, bank.labels[small.sample_ids])
    assert small.sample_ids.tolist() == sorted(small.sample_ids.tolist())


def test_herding_comes_closer_to_the_mean_of_a_class_than_chance():
    bank = make_bank(counts=(200,), spread=2.0)
    mean = bank.features.mean(dim=0)
    herd, chance = (
        (pp.compress_bank(bank, 10, method).features.mean(dim=0) - mean).norm() for method in METHODS[::-1]
    )
    assert herd < 0.5 * chance
    nearest = int((bank.features - mean).norm(dim=1).argmin())
    assert pp.compress_bank(bank, 1, "herding").sample_ids.tolist() == [nearest]


@pytest.mark.parametrize("method", METHODS)
def test_without_labels(method):
    bank = make_bank()
    bank.labels = torch.full_like(bank.labels, -1)
    assert len(pp.compress_bank(bank, 12, method)) == 12


def test_what_cannot_be_compressed():
    with pytest.raises(ValueError, match="`method` must be one of .*, got 'best'"):
        pp.compress_bank(make_bank(), 12, "best")
    with pytest.raises(ValueError, match="`size` must be a number of at least 1, got 0"):
        pp.compress_bank(make_bank(), 0)


@pytest.fixture
def attach(make_backbone):
    def make(**fields):
        return get_peft_model(make_backbone(), pp.PointPriorPromptConfig(num_prompt_tokens=4, **fields))

    return make


def stored_bank(model):
    return next(m for m in model.modules() if type(m).__name__ == "BankBuffers")


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_keeps_as_many_as_it_may(attach, method, caplog):
    model = attach(bank_selection=method, max_bank_size=12)
    with caplog.at_level(logging.WARNING):
        pp.set_point_prior_bank(model, make_bank())
    assert "44 entries, of which 12 are kept" in caplog.text
    assert model.peft_config["default"].bank_size == len(stored_bank(model)) == 12


# -- Storage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("half", [False, True])
def test_stored_as_asked_whatever_the_backbones_dtype(attach, make_backbone, points, logits, tmp_path, dtype, half):
    model = attach(bank_dtype=dtype, init_weights=False)
    model = model.to(torch.bfloat16) if half else model
    pp.set_point_prior_bank(model, make_bank())
    model = model.to(torch.float32)
    bank = stored_bank(model)
    assert bank.features.dtype == getattr(torch, dtype)
    assert bank.labels.dtype == bank.sample_ids.dtype == torch.int32
    expected = {name: tensor.clone() for name, tensor in bank.named_buffers()}
    cast = stored_bank(copy.deepcopy(model).half())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in cast.named_buffers())

    model.save_pretrained(tmp_path)
    file = load_file(tmp_path / WEIGHTS_NAME)
    assert next(v for k, v in file.items() if k.endswith("bank.features")).dtype == getattr(torch, dtype)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(make_backbone(), tmp_path, **options)
        got = dict(stored_bank(loaded).named_buffers())
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    if not half:
        assert torch.equal(logits(loaded, points), logits(model, points))
        through_transformers = make_backbone()
        through_transformers.load_adapter(str(tmp_path))
        assert torch.equal(logits(through_transformers, points), logits(model, points))


def test_the_file_of_a_full_size_adapter_stays_below_five_million_bytes(tmp_path):
    config = pp.PointMAEConfig(num_labels=40)
    assert (config.hidden_size, config.num_hidden_layers) == (384, 12)
    backbone = pp.PointMAEForClassification(config)
    # The larger of the paper's two settings, and as many clouds as ScanObjectNN's hardest split has for training.
    model = get_peft_model(backbone, pp.PointPeftConfig(num_prompt_tokens=16, prompt_depth=None))
    bank = make_bank(counts=[286] * 36 + [280] * 4, width=384)
    assert len(bank) == 11416
    pp.set_point_prior_bank(model, bank)
    model.save_pretrained(tmp_path)
    size = (tmp_path / WEIGHTS_NAME).stat().st_size
    assert 4_500_000 < size < 5_000_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retrieval", "best"),
        ("query", "head"),
        ("bank_dtype", "int4"),
        ("bank_selection", "kmeans"),
        ("bank_update", "sgd"),
        ("max_bank_size", 8),
    ],
)
def test_values_that_do_not_fit(field, value):
    with pytest.raises(ValueError, match=rf"`{field}` must be .*{value}"):
        pp.PointPriorPromptConfig(**{field: value})
