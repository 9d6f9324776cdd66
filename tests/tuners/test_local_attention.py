"""The attention that computes again what it does not keep, against its plain form."""

import pytest
import torch
from torch.nn import functional as F

from point_peft_hf.tuners.geometry_adapter import local_attention as module
from point_peft_hf.tuners.geometry_adapter.local_attention import LocalAttention


def make(num_rows=20, num_neighborhoods=7, num_neighbors=5, hidden_size=12, inner_size=6, num_heads=2, seed=0):
    torch.manual_seed(seed)
    attention = LocalAttention(hidden_size, inner_size, num_heads)
    attention.reset_parameters()
    attention.double()
    with torch.no_grad():
        attention.norm_weight.normal_()
        attention.norm_bias.normal_()
        attention.qkv_weight.mul_(3)
    tokens = torch.randn(num_rows, hidden_size, dtype=torch.float64, requires_grad=True)
    rows = torch.stack([torch.randperm(num_rows)[:num_neighbors] for _ in range(num_neighborhoods)])
    return attention, tokens, rows


def plain(attention, tokens, rows, kept=None):
    update = attention(tokens, rows)
    if kept is not None:
        update = update * kept[:, None, None]
    return (F.embedding(rows, tokens) + update).amax(dim=1)


def assert_same(attention, tokens, rows, kept=None, leaf=None):
    leaves = (tokens if leaf is None else leaf, *attention.parameters())
    expected, result = plain(attention, tokens, rows, kept), attention.attend_and_take_maximum(tokens, rows, kept)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(result, leaves, grad, retain_graph=True),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk", [1, 130, 10**6])  # one neighbourhood at a time, the last part smaller, all at once
@pytest.mark.parametrize("kept", [None, [1.0, 0.0, 2.0, 1.0, 0.0, 0.5, 1.0]])
def test_equals_the_plain_form_forward_and_backward(chunk, kept, monkeypatch):
    monkeypatch.setattr(module, "_CPU_CHUNK", chunk)
    assert_same(*make(), None if kept is None else torch.tensor(kept, dtype=torch.float64))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_neighbors": 1},
        {"num_neighborhoods": 1},
        {"inner_size": 2},
        {"inner_size": 5, "num_heads": 1},
        {"num_rows": 5},
    ],
)
def test_any_size(sizes):
    assert_same(*make(**sizes))


def test_equal_tokens_share_the_gradient():
    attention, tokens, rows = make()
    distinct = tokens.detach()[:10].requires_grad_()
    # Each token twice. Which of the two is larger by rounding depends on the processor; their sum does not.
    assert_same(attention, distinct[torch.arange(20) // 2], rows, leaf=distinct)


def test_gradients_by_finite_differences():
    attention, tokens, rows = make(num_rows=6, num_neighborhoods=2, num_neighbors=3, hidden_size=4, inner_size=2)
    kept = torch.tensor([1.0, 1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda tokens, *_: attention.attend_and_take_maximum(tokens, rows, kept), (tokens, *attention.parameters())
    )


def test_scores_of_any_size_are_no_overflow():
    attention, tokens, rows = make()
    with torch.no_grad():
        attention.qkv_weight.mul_(1e6)
    assert torch.isfinite(attention.attend_and_take_maximum(tokens, rows)).all()


def test_only_the_tokens_are_kept():
    attention, tokens, rows = make(num_neighborhoods=100)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        attention.attend_and_take_maximum(tokens, rows)
    assert {tensor.shape for tensor in kept} <= {tokens.shape, *(p.shape for p in attention.parameters())}


def test_autocast_leaves_the_tokens_in_float32():
    attention, tokens, rows = make()
    attention, tokens = attention.float(), tokens.detach().float().requires_grad_()
    expected = run(attention, tokens, rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, run(attention, tokens, rows), expected))


# -- Compiled loops ---------------------------------------------------------------------------------------------------


def run(attention, tokens, rows, kept=None, num_clouds=1):
    result = attention.attend_and_take_maximum(tokens, rows, kept, num_clouds)
    grad = torch.arange(result.numel(), dtype=result.dtype).view_as(result).sin()
    return result, *torch.autograd.grad(result, (tokens, *attention.parameters()), grad)


def make_clouds(num_clouds=3, num_rows=20, num_neighborhoods=7, num_neighbors=5, hidden_size=12, num_heads=2):
    attention, tokens, _ = make(num_clouds * num_rows, 1, 1, hidden_size, 3 * num_heads, num_heads)
    rows = [
        cloud * num_rows + torch.randperm(num_rows)[:num_neighbors]
        for cloud in range(num_clouds)
        for _ in range(num_neighborhoods)
    ]
    return attention.float(), tokens.detach().float().requires_grad_(), torch.stack(rows)


def without_loops(monkeypatch):
    monkeypatch.setattr(module, "compiled_loops", lambda name: None)


@pytest.mark.parametrize(
    "sizes", [{}, {"num_neighbors": 1}, {"num_heads": 1}, {"num_heads": 3}, {"num_heads": 6, "hidden_size": 36}]
)
@pytest.mark.parametrize("with_drop_path", [False, True])
def test_compiled_loops_equal_the_operations_of_pytorch(sizes, with_drop_path, monkeypatch):
    pytest.importorskip("numba")
    attention, tokens, rows = make_clouds(**sizes)
    kept = torch.arange(len(rows)) % 3 * 0.75 if with_drop_path else None
    found = run(attention, tokens, rows, kept, num_clouds=3)
    without_loops(monkeypatch)
    for got, wanted in zip(found, run(attention, tokens, rows, kept), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_compiled_loops_give_the_same_bits_with_any_number_of_threads(monkeypatch):
    pytest.importorskip("numba")
    arguments = make_clouds()
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(run(*arguments, num_clouds=3))
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


def test_the_first_of_equal_members_takes_the_gradient_in_compiled_loops():
    pytest.importorskip("numba")
    attention, tokens, rows = make_clouds(num_clouds=1, num_neighborhoods=1)
    with torch.no_grad():
        tokens.copy_(tokens[:1].clone())
        attention.proj_weight.zero_()
    grad = run(attention, tokens, rows)[1]
    assert grad[rows[0, 0]].abs().sum() > 0
    assert torch.equal(grad[rows[0, 1:]], torch.zeros(4, 12))


def test_compiled_loops_pass_on_what_is_not_a_number():
    pytest.importorskip("numba")
    attention, tokens, rows = make_clouds()
    with torch.no_grad():
        tokens[rows[0, 0]] = torch.nan
    result = attention.attend_and_take_maximum(tokens, rows, num_clouds=3)
    assert result[0].isnan().any()
    assert not result[7:].isnan().any()  # the other clouds


@pytest.mark.parametrize("case", ["width of a head", "members", "double"])
def test_what_compiled_loops_do_not_know_is_left_to_pytorch(case):
    attention, tokens, rows = make_clouds(num_rows=300, num_neighbors=257) if case == "members" else make_clouds()
    if case == "width of a head":
        attention.num_heads = 1
    elif case == "double":
        attention, tokens = attention.double(), tokens.detach().double().requires_grad_()
    result = attention.attend_and_take_maximum(tokens, rows, num_clouds=3)
    assert "Fused" not in str(result.grad_fn.next_functions)
    torch.testing.assert_close(result, plain(attention, tokens, rows))
