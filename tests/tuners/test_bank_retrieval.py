"""Forms of retrieval, chunks, own entries: against plain forms written down here."""

import math

import pytest
import torch
from torch.nn import functional as F

from point_peft_hf.tuners.point_prior_prompt import retrieval
from point_peft_hf.tuners.point_prior_prompt.quantization import FEATURE_DTYPES, dequantize, quantize
from point_peft_hf.tuners.point_prior_prompt.retrieval import Entries, retrieve, search

FORMS = ("top_k", "softmax")


def make_entries(size=200, width=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(size, width, dtype=dtype, generator=generator), dim=-1)
    labels = torch.randint(5, (size,), generator=generator, dtype=torch.int32)
    return Entries(features, labels=labels, sample_ids=torch.arange(size, dtype=torch.int32))


def make_queries(width=16, dtype=torch.float64):
    return F.normalize(torch.randn(6, width, dtype=dtype, generator=torch.Generator().manual_seed(1)), dim=-1)


def plain(query, features, count, form, left_out=None):
    """One cloud at a time: which entries, their weights, the average."""
    similarities = (features @ query).tolist()
    order = sorted((i for i in range(len(features)) if i != left_out), key=lambda i: -similarities[i])
    chosen = order[:count]
    averaged = order if form == "softmax" else chosen
    exponentials = {i: math.exp(similarities[i]) for i in averaged}
    total = sum(exponentials.values())
    mean = sum(exponentials[i] / total * features[i] for i in averaged)
    return chosen, [exponentials[i] / total for i in chosen], mean


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("chunk_size", [7, 64, 10**6])
def test_chunks_find_what_the_plain_form_finds(form, leave_out, chunk_size, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_SIZE", chunk_size)
    entries, queries = make_entries(), make_queries()
    # Of each cloud the entry that is most like it.
    own = (queries @ entries.features.T).argmax(dim=1) if leave_out else None
    found = search(queries, entries, 8, 8, form=form, own_ids=own)
    for row, query in enumerate(queries):
        left_out = int(own[row]) if leave_out else None
        chosen, weights, mean = plain(query, entries.features, 8, form, left_out)
        assert found.indices[row].tolist() == chosen
        torch.testing.assert_close(found.weights[row].tolist(), weights, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.mean[row], mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [9, 10**6])
def test_stored_entries_count_as_what_they_stand_for(dtype, form, chunk_size, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_SIZE", chunk_size)
    entries, queries = make_entries(dtype=torch.float32), make_queries()
    stored, scales = quantize(entries.features, FEATURE_DTYPES[dtype])
    meant = dequantize(stored, scales, torch.float64)
    assert (meant - entries.features).abs().max() <= {"float32": 0, "int8": 1 / 254}[dtype]
    got = retrieve(queries, entries._replace(features=stored, scales=scales), 6, 4, form=form)
    expected = retrieve(queries, entries._replace(features=meant), 6, 4, form=form)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_unknown_clouds_leave_nothing_out(form):
    entries = make_entries()._replace(sample_ids=torch.full((200,), -1))
    queries, unknown = make_queries(), torch.full((6,), -1)
    expected = retrieve(queries, entries, 6, 4, form=form)
    assert torch.equal(retrieve(queries, entries, 6, 4, form=form, own_ids=unknown), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_bank_of_the_clouds_own_entries_alone(form):
    entries = make_entries(size=5)._replace(sample_ids=torch.full((5,), 7))
    queries = make_queries()
    rows = retrieve(queries, entries, 5, 3, form=form, own_ids=torch.tensor([7, 7, 7, 7, 7, 1]))
    # Its own direction stands in for all of them, as with an empty bank.
    torch.testing.assert_close(rows[:5], queries[:5, None].expand(-1, 5, -1))
    torch.testing.assert_close(rows[5:], retrieve(queries[5:], entries, 5, 3, form=form))


def test_autocast_does_not_blur_the_similarities():
    entries, queries = make_entries(dtype=torch.float32), make_queries(dtype=torch.float32)
    expected = retrieve(queries, entries, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retrieve(queries, entries, 6, 4), expected)
