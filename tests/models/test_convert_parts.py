"""Part segmentation checkpoints of Point-MAE's research repository."""

import pytest
import torch
from torch.nn import functional as F

from point_peft_hf import PointMAEForClassification, PointMAEForSegmentation
from point_peft_hf.models.convert import convert_checkpoint, load_checkpoint
from point_peft_hf.ops import inverse_distance_weights

WIDTH, DEPTH, CATEGORIES, PARTS = 24, 3, 4, 6
TOKENS = 3 * WIDTH
# The published model has 1536 and 1024, 64, 512 and 256.
PROPAGATION, LABEL, HIDDEN = (14, 10), 8, (12, 9)


def conv(name, in_size, out_size, bias=True):
    tensors = {f"{name}.weight": torch.randn(out_size, in_size, 1) * in_size**-0.5}
    return tensors | ({f"{name}.bias": torch.randn(out_size)} if bias else {})


def batch_norm(name, size):
    return {
        f"{name}.weight": torch.rand(size) + 0.5,
        f"{name}.bias": torch.randn(size),
        f"{name}.running_mean": torch.randn(size),
        f"{name}.running_var": torch.rand(size) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


@pytest.fixture
def tensors(published):
    torch.manual_seed(0)
    return (
        published.point_mae_encoder(WIDTH, DEPTH)
        | conv("label_conv.0", CATEGORIES, LABEL, bias=False)
        | batch_norm("label_conv.1", LABEL)
        | conv("propagation_0.mlp_convs.0", TOKENS + 3, PROPAGATION[0])
        | conv("propagation_0.mlp_convs.1", *PROPAGATION)
        | batch_norm("propagation_0.mlp_bns.0", PROPAGATION[0])
        | batch_norm("propagation_0.mlp_bns.1", PROPAGATION[1])
        | conv("convs1", PROPAGATION[1] + 2 * TOKENS + LABEL, HIDDEN[0])
        | batch_norm("bns1", HIDDEN[0])
        | conv("convs2", *HIDDEN)
        | batch_norm("bns2", HIDDEN[1])
        | conv("convs3", HIDDEN[1], PARTS)
    )


def published_head(tensors, depths, centers, points, category_ids):
    """The published head as it is published: channels first, all that is concatenated repeated for every point."""

    def layer(x, linear, norm, activation=torch.relu):
        x = F.conv1d(x, tensors[f"{linear}.weight"], tensors.get(f"{linear}.bias"))
        names = ("running_mean", "running_var", "weight", "bias")
        return activation(F.batch_norm(x, *(tensors[f"{norm}.{name}"] for name in names)))

    x = torch.cat(depths, dim=-1)
    spread = inverse_distance_weights(points, centers, num_neighbors=3) @ x
    features = torch.cat([points, spread], dim=-1).transpose(1, 2)
    for index in range(2):
        features = layer(features, f"propagation_0.mlp_convs.{index}", f"propagation_0.mlp_bns.{index}")
    one_hot = F.one_hot(category_ids, CATEGORIES).float()[..., None]
    label = layer(one_hot, "label_conv.0", "label_conv.1", lambda values: F.leaky_relu(values, 0.2))
    cloud = torch.cat([x.amax(dim=1)[..., None], x.mean(dim=1)[..., None], label], dim=1)
    features = torch.cat([features, cloud.expand(-1, -1, points.shape[1])], dim=1)
    for index in (1, 2):
        features = layer(features, f"convs{index}", f"bns{index}")
    return F.conv1d(features, tensors["convs3.weight"], tensors["convs3.bias"]).transpose(1, 2)


@pytest.fixture
def folder(tensors, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"model_state_dict": state, "epoch": 300}, tmp_path / "best_model.pth")
    fields = {"num_attention_heads": 6, "num_groups": 16, "group_size": 8}
    report = convert_checkpoint(tmp_path / "best_model.pth", tmp_path / "out", "point_mae", fields)
    assert report.architecture == "PointMAEForSegmentation"
    assert report.new == []
    # The counter of a BatchNorm that is no more.
    assert report.ignored == ["module.label_conv.1.num_batches_tracked"]
    assert report.loaded["module.convs1.weight"] == [
        f"segmentation_head.{name}.weight" for name in ("linears.1", "cloud_linear")
    ]
    return tmp_path / "out"


@torch.no_grad()
def test_same_scores(folder, tensors):
    model, info = PointMAEForSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert (model.config.num_labels, model.config.num_categories) == (PARTS, CATEGORIES)
    points, category_ids = torch.randn(2, 50, 3), torch.tensor([3, 1])
    model.eval()
    output = model.point_mae(points, output_hidden_states=True)
    depths = [model.point_mae.layernorm(tokens) for tokens in output.hidden_states[1:]]
    expected = published_head(tensors, depths, output.group_centers, points, category_ids)
    logits = model(points, category_ids=category_ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_another_class_from_the_same_folder(folder):
    model, info = PointMAEForClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier", "point_mae"}


def test_into_a_model_that_exists(folder, tensors):
    model = PointMAEForSegmentation(PointMAEForSegmentation.from_pretrained(folder).config)
    report = load_checkpoint(model, folder.parent / "best_model.pth")
    assert not report.new
    assert torch.equal(model.segmentation_head.output.bias, tensors["convs3.bias"])


def test_published_number_of_groups(folder, tmp_path):
    report = convert_checkpoint(tmp_path / "best_model.pth", tmp_path / "again", "point_mae")
    assert report.assumed == {"num_attention_heads": 6, "num_groups": 128, "group_size": 32}
