"""What is particular to PointGPT."""

import copy

import pytest
import torch
from torch.nn import functional as F

from point_peft_hf import (
    AutoModelForPointCloudSegmentation,
    PointGPTConfig,
    PointGPTForClassification,
    PointGPTForPreTraining,
    PointGPTForSegmentation,
    PointGPTModel,
)
from point_peft_hf.models.point_gpt.layers import PointGPTPositionEmbedding, causal_mask

TINY = {
    "hidden_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_groups": 16,
    "group_size": 8,
    "patch_hidden_sizes": [8, 12, 10, 16],
    "generator_num_hidden_layers": 1,
    "classifier_hidden_size": 20,
    "num_labels": 5,
    "num_seen_groups": 4,
}


def make(model_class, **kwargs):
    torch.manual_seed(0)
    model = model_class(PointGPTConfig(**{**TINY, **kwargs}))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


def test_positions_by_hand():
    # 10 channels: one pair of sine and cosine would fit three times into 6; 2 * (10 // 3 // 2) = 2 a axis, 4 are left.
    embedding = PointGPTPositionEmbedding(10)(torch.tensor([[[0.25, 0.5, -0.25]]]))
    expected = torch.tensor([1.0, 0, 0, -1, -1, 0, 0, 0, 0, 0])
    torch.testing.assert_close(embedding[0, 0], expected, atol=1e-6, rtol=0)
    # All frequencies are equal: of 13 channels each axis has the same pair twice.
    embedding = PointGPTPositionEmbedding(13)(torch.tensor([[[0.25, 0.5, -0.25]]]))
    expected = torch.tensor([1.0, 0, 1, 0, 0, -1, 0, -1, -1, 0, -1, 0, 0])
    torch.testing.assert_close(embedding[0, 0], expected, atol=1e-6, rtol=0)


def test_mask_by_hand():
    hidden = torch.tensor([False, True, False])
    seen = (causal_mask(hidden)[0, 0] == 0).int().tolist()
    # The last does not see the one in the middle, which sees itself.
    assert seen == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


@torch.no_grad()
def test_tokens_see_only_those_in_front(points):
    model = make(PointGPTModel)
    neighborhoods, centers = model.group(points)
    before = model.encode_groups(neighborhoods, centers)
    neighborhoods[:, 9] *= 2
    after = model.encode_groups(neighborhoods, centers)
    changed = (before != after).any(dim=-1).all(dim=0)
    assert changed.tolist() == [False] * 11 + [True] * 7


@torch.no_grad()
def test_class_token_is_the_same_for_every_cloud(points):
    pooled = make(PointGPTModel)(points).pooler_output
    assert pooled.shape == (4, 2 * TINY["hidden_size"])
    assert (pooled[:, : TINY["hidden_size"]] == pooled[:1, : TINY["hidden_size"]]).all()
    assert pooled[:, TINY["hidden_size"] :].std(dim=0).min() > 1e-3


@torch.no_grad()
def test_clouds_of_a_batch_are_independent(points):
    model = make(PointGPTForClassification)
    together = model(points).logits
    alone = torch.cat([model(cloud[None]).logits for cloud in points])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_generator_only_where_its_loss_is_asked_for(points):
    labels = torch.tensor([0, 1, 2, 3])
    plain, model = make(PointGPTForClassification), make(PointGPTForClassification, generation_loss_weight=2.0)
    assert plain.generator is None
    calls = []
    model.generator.register_forward_hook(lambda *args: calls.append(1))
    logits = model(points).logits
    assert not calls
    output = model(points, labels=labels)
    assert len(calls) == 1
    generation = model.generation_loss(model.point_gpt.encode(points))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, labels) + 2 * generation)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("model_class", [PointGPTForClassification, PointGPTForPreTraining])
def test_repeated_points_give_no_nan(model_class):
    distinct = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(3))
    points = distinct.repeat(1, 8, 1)  # 16 groups of 10 places
    model = make(model_class, generation_loss_weight=3.0)
    kwargs = {"labels": torch.tensor([0, 1])} if model_class is PointGPTForClassification else {}
    loss = model(points, **kwargs).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_pre_training(points):
    model = make(PointGPTForPreTraining)
    torch.manual_seed(0)
    output = model(points)
    # 12 of 16 groups can be hidden, and 0.7 of them are; one draw for the batch.
    assert output.mask.sum(dim=1).tolist() == [8] * 4
    assert not output.mask[:, :4].any()
    assert output.reconstruction.shape == output.target.shape == (4, 16, 8, 3)
    again = model(points, mask=output.mask[0])
    assert torch.equal(again.loss, output.loss)
    assert not torch.equal(model(points).loss, output.loss)
    output.loss.backward()
    assert all(
        parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "k_proj.b" not in name
    )
    with pytest.raises(ValueError, match=r"\(16,\)"):
        model(points, mask=torch.zeros(4, 16, dtype=torch.bool))


@torch.no_grad()
def test_a_group_is_not_predicted_from_itself(points):
    model = make(PointGPTForPreTraining)
    visible = torch.zeros(16, dtype=torch.bool)
    before = model(points, mask=visible).reconstruction
    # Group 7 has other points now, around the same centre.
    group = model.point_gpt.group
    model.point_gpt.group = lambda points: (other, group(points)[1])
    other = group(points)[0].clone()
    other[:, 7] *= 2
    after = model(points, mask=visible).reconstruction
    changed = (before != after).flatten(2).any(dim=-1).all(dim=0)
    assert changed.tolist() == [False] * 8 + [True] * 8


def test_segmentation(points, tmp_path):
    sizes = {"num_categories": 2, "segmentation_token_size": 16}
    model = make(PointGPTForSegmentation, **sizes)
    labels = torch.randint(0, 5, (4, 96), generator=torch.Generator().manual_seed(2))
    output = model(points, labels=labels, category_ids=torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.reshape(-1, 5), labels.reshape(-1)))
    output.loss.backward()
    # The last block is read before the final norm, which nothing depends on.
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"point_gpt.layernorm.weight", "point_gpt.layernorm.bias"}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path)
    assert torch.equal(loaded(points).logits, model(points).logits)


@pytest.mark.parametrize(("depth", "layers"), [(12, (3, 7, 11)), (24, (3, 7, 11)), (3, (0, 1, 2)), (1, (0,))])
def test_layers_that_the_segmentation_reads(depth, layers):
    assert PointGPTConfig(num_hidden_layers=depth).feature_layers == layers


def test_gradient_checkpointing_and_attention_implementations(points):
    labels = torch.tensor([0, 1, 2, 3])
    model = make(PointGPTForClassification, drop_path_rate=0.0, classifier_dropout=0.0).train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    gradients = []
    for one in (model, other, eager):
        one(points, labels=labels).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters()]))
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-4)


def test_wrong_input():
    model = make(PointGPTForClassification)
    with pytest.raises(ValueError, match="16"):
        model(torch.randn(2, 10, 3))
    with pytest.raises(ValueError, match="num_labels=5"):
        model(torch.randn(2, 40, 3), labels=torch.tensor([0, 5]))
