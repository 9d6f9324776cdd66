"""The value that moves through a backbone."""

import pytest
import torch

from point_peft_hf.tokens import CLASS, START, Cloud, start_tokens

CLOUD = Cloud(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3))


def make(num_start=0, num_class=1, num_patches=4, positions=True):
    length = num_start + num_class + num_patches
    features = torch.arange(2.0 * length * 3).view(2, length, 3)
    centers = torch.zeros(2, num_patches, 3)
    return start_tokens(features, centers, CLOUD, features + 100 if positions else None, num_class, num_start)


@pytest.mark.parametrize(("num_start", "num_class"), [(0, 0), (0, 1), (1, 0), (1, 1), (0, 3)])
def test_own_tokens(num_start, num_class):
    tokens = make(num_start, num_class)
    assert tokens.num_prefix == num_start + num_class
    assert tokens.own() is tokens.features
    assert tokens.of(START).shape[1] == num_start
    assert tokens.of(CLASS).shape[1] == num_class
    longer = tokens.insert("adapter", torch.ones(2, 2, 3))
    assert torch.equal(longer.own(), tokens.features)
    # In front of the patch tokens, which see them where tokens only see those in front of them.
    assert torch.equal(longer.features[:, num_start + num_class :][:, :2], torch.ones(2, 2, 3))
    assert torch.equal(longer.patches, tokens.patches)


@pytest.mark.parametrize("positions", [True, False])
def test_passing_tokens_leave_what_was_there(positions):
    tokens = make(positions=positions)
    passing = tokens.insert("a", torch.ones(2, 2, 3)).insert("b", torch.ones(2, 1, 3), positions=torch.ones(2, 1, 3))
    left = passing.with_features(passing.features * 2).drop_passing()
    assert torch.equal(left.features, tokens.features * 2)
    assert left.spans == tokens.spans
    if positions:
        # The same tensor, so that it is kept for the backward pass once for all blocks.
        assert left.positions is tokens.positions
    else:
        assert torch.equal(left.positions, torch.zeros_like(left.features))


def test_tokens_that_stay_keep_their_positions():
    tokens = make()
    rows = torch.full((2, 1, 3), 7.0)
    mixed = tokens.insert("passing", torch.ones(2, 2, 3)).insert("staying", rows, positions=rows, keeps=True)
    left = mixed.drop_passing()
    assert torch.equal(left.of("staying"), rows)
    expected = torch.cat([tokens.positions[:, :1], rows, tokens.positions[:, 1:]], dim=1)
    assert torch.equal(left.positions, expected)
    # Who replaces positions is heard.
    passing = tokens.insert("passing", torch.ones(2, 2, 3)).in_dtype(torch.float64)
    assert passing.drop_passing().positions.dtype == torch.float64
