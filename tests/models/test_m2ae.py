import pytest
import torch
from torch import nn

from point_peft_hf import PointM2AEConfig, PointM2AEForPreTraining, PointM2AEModel
from point_peft_hf.models.point_m2ae.hierarchy import group_nested, radius_mask
from point_peft_hf.models.point_m2ae.pretraining_point_m2ae import (
    TokenPropagation,
    masks_of_all_stages,
    select_visible,
)


@pytest.fixture
def config():
    return PointM2AEConfig(
        hidden_sizes=[12, 16, 24],
        depths=[1, 1, 1],
        num_attention_heads=4,
        num_groups=[32, 16, 8],
        group_sizes=[8, 4, 4],
        attention_radii=[0.5, 0.9, 1.5],
        patch_hidden_sizes=[8, 12, 16],
        drop_path_rate=0.0,
    )


def test_nested_groups_by_hand():
    line = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7])
    points = torch.stack([line, torch.zeros(8), torch.zeros(8)], dim=1)[None]
    hierarchy = group_nested(points, [4, 2], [2, 3])
    # Farthest points of a line: its ends, then the middle, then a quarter.
    assert hierarchy.centers[0][0, :, 0].tolist() == [0, 7, 3, 5]
    assert hierarchy.centers[1][0, :, 0].tolist() == [0, 7]
    assert sorted(hierarchy.neighbor_indices[0][0, 0].tolist()) == [0, 1]
    # In the second stage indices count the centres [0, 7, 3, 5].
    assert hierarchy.neighbor_indices[1][0].sort().values.tolist() == [[0, 2, 3], [1, 2, 3]]
    assert hierarchy.neighborhoods[0, 0, :, 0].tolist() == [0, 1]


def test_radius_mask_by_hand():
    centers = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0.9, 0, 0]]])
    mask = radius_mask(centers, 0.5, torch.float32)
    # Exactly at the radius counts as outside.
    assert mask.tolist() == [[[[0, -1e5, -1e5], [-1e5, 0, 0], [-1e5, 0, 0]]]]
    assert radius_mask(centers, 0, torch.float32) is None
    assert radius_mask(centers, 0.5, torch.float16).isfinite().all()


@torch.no_grad()
def test_local_attention_limits_what_a_token_sees(config, points):
    model = PointM2AEModel(config).eval()
    model.set_attn_implementation("eager")
    attentions = model(points, output_attentions=True).attentions
    centers = model.group(points).centers
    for stage in range(3):
        outside = torch.cdist(centers[stage], centers[stage]) >= config.attention_radii[stage] + 1e-4
        assert outside.any()
        assert (attentions[stage].amax(dim=1)[outside] == 0).all()
    unlimited = PointM2AEModel(config, use_local_attention=False).eval()
    unlimited.set_attn_implementation("eager")
    assert all((weights > 0).all() for weights in unlimited(points, output_attentions=True).attentions)


def test_a_token_is_visible_if_a_visible_group_has_it(config, points):
    hierarchy = PointM2AEModel(config).group(points)
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[:, 2] = False
    fine, middle, coarse = masks_of_all_stages(mask, hierarchy)
    assert torch.equal(coarse, mask)
    for cloud in range(4):
        expected = set(hierarchy.neighbor_indices[2][cloud, 2].tolist())
        assert set((~middle[cloud]).nonzero().flatten().tolist()) == expected
        expected = set(hierarchy.neighbor_indices[1][cloud][~middle[cloud]].flatten().tolist())
        assert set((~fine[cloud]).nonzero().flatten().tolist()) == expected


def test_visible_tokens_go_back_to_their_places():
    visible = select_visible(torch.tensor([[True, False, True, False], [True, True, True, False]]))
    assert visible.indices[0].tolist() == [1, 3]
    assert visible.indices[1, 0] == 3
    assert visible.is_valid.tolist() == [[True, True], [True, False]]
    table = visible.scatter(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.zeros(2, 4, 1))
    assert table[..., 0].tolist() == [[0, 1, 0, 2], [0, 0, 0, 3]]
    # Nobody sees what only fills up a row, except it itself.
    assert (visible.attention_mask(torch.float32)[1, 0] == 0).tolist() == [[True, False], [True, True]]


def test_token_propagation_interpolates():
    layer = TokenPropagation(coarse_size=1, fine_size=1, depth=0).eval()
    with torch.no_grad():
        layer.fuse_linear.weight.copy_(torch.tensor([[0.0, 1.0]]))
        layer.fuse_linear.bias.zero_()
    layer.fuse_norm = nn.Identity()
    coarse = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [100, 0, 0]]])
    tokens = torch.tensor([[[10.0], [20.0], [30.0], [1e6]]])
    fine = torch.tensor([[[1.0, 0, 0], [0.5, 0, 0]]])
    result = layer(fine, coarse, torch.zeros(1, 2, 1), tokens)
    # On a coarse centre its value; between two, weights 1/d^2 = 4, 4 and 4/9; the far centre has no say.
    expected = (10 * 4 + 20 * 4 + 30 * 4 / 9) / (8 + 4 / 9)
    torch.testing.assert_close(result[0, :, 0], torch.tensor([20.0, expected]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pre_training_predicts_the_masked_groups(config, points):
    model = PointM2AEForPreTraining(config).eval()
    output = model(points)
    count = int(output.mask.sum())
    assert output.mask.shape == (4, 16)
    assert output.reconstruction.shape == (count, 8, 3)
    assert output.target.shape == (count, 4, 3)
    assert output.group_centers.shape == (4, 16, 3)
    assert output.loss.isfinite()


@torch.no_grad()
def test_pre_training_encoder_sees_nothing_masked(config, points):
    """Moving points that belong to masked groups alone changes nothing that the encoder returns."""
    model = PointM2AEForPreTraining(config).eval()
    hierarchy = model.point_m2ae.group(points)
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[:, :3] = False
    visible = [select_visible(m) for m in masks_of_all_stages(mask, hierarchy)]
    before = model._encode_visible(hierarchy, visible)
    fine_mask = masks_of_all_stages(mask, hierarchy)[0]
    hierarchy.neighborhoods = hierarchy.neighborhoods + fine_mask[..., None, None] * torch.randn(4, 32, 8, 3)
    after = model._encode_visible(hierarchy, visible)
    for tokens, moved, stage in zip(before, after, visible, strict=True):
        torch.testing.assert_close(moved[stage.is_valid], tokens[stage.is_valid], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pre_training_does_not_depend_on_batch_mates(config, points):
    model = PointM2AEForPreTraining(config).eval()
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[0, :1] = mask[1, :4] = mask[2, :2] = mask[3, :7] = False
    output = model(points, mask=mask)
    alone = model(points[:1], mask=mask[:1])
    count = int(alone.mask.sum())
    torch.testing.assert_close(alone.reconstruction, output.reconstruction[:count], rtol=1e-4, atol=1e-5)


def test_pre_training_learns(config, points):
    torch.manual_seed(0)
    model = PointM2AEForPreTraining(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model(points).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    # The decoder ends at the second stage, so nothing reads the norm of the first.
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"stage_layernorms.0.weight", "stage_layernorms.0.bias"}


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(4, 8, dtype=torch.bool), torch.ones(4, 8, dtype=torch.bool), torch.ones(4, 8), torch.ones(4, 16) > 0],
)
def test_wrong_mask_is_refused(config, points, mask):
    with pytest.raises(ValueError, match="mask"):
        PointM2AEForPreTraining(config)(points, mask=mask)


def test_too_few_points_are_refused(config):
    with pytest.raises(ValueError, match="32"):
        PointM2AEModel(config)(torch.randn(2, 20, 3))
