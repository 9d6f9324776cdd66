"""Encoders of scenes: clouds by themselves, training, input, saving."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from point_peft_hf import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudSemanticSegmentation,
    PointTransformerV3Config,
    PointTransformerV3ForClassification,
    PointTransformerV3ForSemanticSegmentation,
    PointTransformerV3Model,
)
from point_peft_hf.models.ptv3.attention import PatchAttention
from point_peft_hf.ops import rotate, rotation
from point_peft_hf.slots import Stage
from point_peft_hf.voxels import Patches, VoxelStage

_SPEC = importlib.util.spec_from_file_location("tiny_scenes", Path(__file__).with_name("scenes.py"))
scenes = sys.modules["tiny_scenes"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(scenes)
make_voxels, cloud_of, tiny_config = scenes.make_voxels, scenes.cloud_of, scenes.tiny_config


def make_model(variant="sonata", model_class=PointTransformerV3ForSemanticSegmentation, **fields):
    torch.manual_seed(0)
    return scenes.shake(model_class(tiny_config(variant, **fields)))


@pytest.fixture(params=scenes.VARIANTS)
def variant(request):
    return request.param


@torch.no_grad()
def test_a_batch_gives_what_each_cloud_gives_alone(variant):
    model, voxels = make_model(variant), make_voxels()
    together = model(**voxels).logits
    for number in range(3):
        alone = model(**cloud_of(voxels, number)).logits
        rows = together[voxels["batch_index"] == number]
        assert (rows - alone).abs().max() < 1e-5 * alone.abs().max()


@torch.no_grad()
def test_the_order_of_the_rows_does_not_matter():
    model, voxels = make_model(), make_voxels((60,))
    order = torch.randperm(60)
    shuffled = {name: tensor[order] for name, tensor in voxels.items()}
    torch.testing.assert_close(model(**shuffled).logits, model(**voxels).logits[order], rtol=0, atol=1e-4)


@torch.no_grad()
def test_one_voxel_and_evaluation_without_chance(variant):
    model, voxels = make_model(variant), make_voxels((1,))
    assert model(**voxels).logits.shape == (1, 5)
    voxels = make_voxels((50,))
    assert torch.equal(model(**voxels).logits, model(**voxels).logits)


def test_all_parameters_are_trained(variant):
    model = make_model(variant, drop_path_rate=0.3).train()
    voxels = make_voxels((90, 60))
    labels = torch.randint(5, (150,))
    labels[::3] = -100
    model(**voxels, labels=labels).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_gradients_are_those_of_finite_differences():
    model = make_model("utonia").double()
    voxels = make_voxels((30, 12))
    voxels = {name: v.double() if v.is_floating_point() else v for name, v in voxels.items()}
    features = voxels["features"]
    direction = torch.randn_like(features)

    def value(step):
        return model(**{**voxels, "features": features + step * direction}).logits.square().sum()

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value(step).backward()
    with torch.no_grad():
        expected = (value(1e-6) - value(-1e-6)) / 2e-6
    torch.testing.assert_close(step.grad, expected, rtol=1e-5, atol=0)


def test_gradient_checkpointing_changes_nothing():
    voxels, labels = make_voxels((40, 30)), torch.randint(5, (70,))
    gradients = []
    for checkpointed in (False, True):
        model = make_model().train()
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(**voxels, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


def test_curves_are_shuffled_in_training_only_by_the_seed():
    model, voxels = make_model(shuffle_orders=True).train(), make_voxels((90,))

    def logits(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(**voxels).logits

    assert torch.equal(logits(0), logits(0))
    assert any(not torch.equal(logits(0), logits(seed)) for seed in (1, 2, 3))
    model.config.shuffle_orders = False
    assert torch.equal(logits(0), logits(1))


@torch.no_grad()
def test_hidden_states_and_the_encoder_alone():
    voxels = make_voxels()
    model = make_model(model_class=PointTransformerV3Model)
    output = model(**voxels, output_hidden_states=True)
    assert [state.shape[1] for state in output.hidden_states] == [12, 12, 12, 24, 36, 36]
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert output.coordinates.shape == (len(output.last_hidden_state), 3)
    assert output.batch_index.unique().tolist() == [0, 1, 2]
    decoded = make_model("sonata_decoder", PointTransformerV3Model)(**voxels)
    assert decoded.last_hidden_state.shape == (len(voxels["features"]), 12)
    assert torch.equal(decoded.grid_coordinates, voxels["grid_coordinates"])


@torch.no_grad()
def test_classification_reads_the_mean_of_each_cloud():
    model, voxels = make_model(model_class=PointTransformerV3ForClassification), make_voxels()
    output = model(**voxels, labels=torch.tensor([0, 4, 2]))
    encoded = model.ptv3(**voxels)
    expected = torch.stack(
        [encoded.last_hidden_state[encoded.batch_index == number].mean(dim=0) for number in range(3)]
    )
    torch.testing.assert_close(output.pooler_output, expected)
    assert output.logits.shape == (3, 5)
    assert output.loss.isfinite()
    with pytest.raises(ValueError, match="reads no decoder"):
        PointTransformerV3ForClassification(tiny_config("sonata_decoder"))


def test_loss_leaves_out_voxels_without_a_label():
    model, voxels = make_model(), make_voxels((40,))
    labels = torch.randint(5, (40,))
    labels[:30] = -100
    output = model(**voxels, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[30:], labels[30:])
    torch.testing.assert_close(output.loss, expected)
    none = model(**voxels, labels=torch.full((40,), -100)).loss
    none.backward()
    assert none.item() == 0
    weighted = make_model(class_weights=[1, 2, 3, 4, 5])
    weighted.load_state_dict(model.state_dict())
    loss = weighted(**voxels, labels=labels).loss
    weight = torch.arange(1.0, 6)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(output.logits[30:], labels[30:], weight))


def test_stochastic_depth_drops_single_voxels():
    model = make_model(drop_path_rate=0.5)
    drop_path = model.ptv3.stages[-1].layers[-1].drop_path.train()
    assert drop_path.rate == 0.5
    dropped = drop_path(torch.ones(1000, 3))
    assert 0.4 < dropped[:, 0].eq(0).float().mean() < 0.6
    assert (dropped == dropped[:, :1]).all()
    rates = [layer.drop_path.rate for stage in model.ptv3.stages for layer in stage.layers]
    torch.testing.assert_close(rates, [0.0, 0.125, 0.25, 0.375, 0.5])


@torch.no_grad()
def test_half_precision_is_near():
    model, voxels = make_model(), make_voxels((60,))
    expected = model(**voxels).logits
    found = model.bfloat16()(**voxels).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


# -- Parts ----------------------------------------------------------------------------------------------------------


def test_patches_with_a_short_tail():
    """Places of 5, 9 and 3 voxels in patches of 4."""
    patches = Patches.cut([5, 9, 3], 4)
    numbers = patches.arrangement.tolist()
    assert patches.num_full == 3
    assert numbers[:12] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    seen = {
        tuple(numbers[piece.start : piece.stop]): [numbers[i] for i in (*piece.more, *range(piece.start, piece.stop))]
        for piece in patches.pieces
    }
    assert seen == {(4,): [1, 2, 3, 4], (13,): [10, 11, 12, 13], (14, 15, 16): [14, 15, 16]}
    assert Patches.cut([8], 4).arrangement is None


@torch.no_grad()
def test_attention_is_within_patches():
    """Against attention with a mask over all voxels, in the order of the curve."""
    torch.manual_seed(0)
    config = tiny_config()
    attention = PatchAttention(config, Stage(12, 16, 1), 2, 0).eval()
    voxels = make_voxels((90, 37, 5))
    stage = VoxelStage.first(voxels["coordinates"], voxels["grid_coordinates"], voxels["batch_index"], ["hilbert"], 16)
    rows = torch.randn(132, 12)
    order = (voxels["batch_index"] << 48 | stage.codes[0]).argsort()
    sees, start = torch.zeros(132, 132, dtype=torch.bool), 0
    for count in (90, 37, 5):
        for place in range(count):
            first = place // 16 * 16
            if first + 16 > count:
                first = max(count - 16, 0)
            sees[start + place, start + first : start + min(first + 16, count)] = True
        start += count
    query, key, value = attention.qkv(rows)[order].unflatten(-1, (3, 2, 6)).permute(1, 2, 0, 3)
    scores = (query @ key.mT * 6**-0.5).masked_fill(~sees, -torch.inf)
    expected = torch.empty(132, 12)
    expected[order] = attention.out_proj((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    torch.testing.assert_close(attention(rows, stage, stage.orders[0]), expected)


def test_rotations_depend_on_differences_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 12, dtype=torch.float64)
    here, there, shift = torch.randn(3, 1, 3, dtype=torch.float64)

    def score(shift):
        return (rotate(query, rotation(here + shift, 10, 12)) * rotate(key, rotation(there + shift, 10, 12))).sum(-1)

    torch.testing.assert_close(score(0), score(shift))
    assert not torch.allclose(score(0), (query * key).sum(-1))
    torch.testing.assert_close(rotate(query, rotation(0 * here, 10, 12)), query)


def test_pooling_joins_cells_of_two_by_two_by_two():
    grid = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 0, 0], [0, 0, 1], [1, 0, 0], [3, 3, 3]])
    coordinates = grid * 0.02
    batch_index = torch.tensor([0, 0, 0, 0, 1, 1])
    stage = VoxelStage.first(coordinates, grid, batch_index, ["z"], 16)
    for by_code in (False, True):
        pooled = stage.pooled(2, 16, ["z"], None, by_code)
        assert pooled.grid.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
        assert pooled.batch_index.tolist() == [0, 0, 1, 1]
        assert pooled.counts == (2, 2)
        assert pooled.clusters.parents.tolist() == [0, 0, 1, 0, 2, 3]
        torch.testing.assert_close(pooled.coordinates[0], torch.tensor([1, 1, 2]) * 0.02 / 3)
        assert pooled.codes.tolist() == [[0, 4, 0, 7]]


# -- Input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("features", lambda v: v[:, :6], r"features.*\(40, 9\), got \(40, 6\).*'colors'"),
        ("features", lambda v: torch.where(v > 2, torch.nan, v), "not finite in row"),
        ("features", lambda v: v.long(), "floating-point"),
        ("coordinates", lambda v: v[:, :2], "coordinates.*shape"),
        ("grid_coordinates", lambda v: v - 3, "at least 0, got -3"),
        ("grid_coordinates", lambda v: v.float(), "integer type"),
        ("grid_coordinates", lambda v: v * 0, "a cell twice"),
        ("grid_coordinates", lambda v: v * 2**14, "65536 cells.*tiles"),
        ("batch_index", lambda v: v.flip(0), "ascend from 0"),
        ("batch_index", lambda v: 2 * v, "none of them empty"),
        ("batch_index", lambda v: v[:5], "batch_index.*shape"),
        ("labels", lambda v: v[:5], "labels.*shape"),
        ("labels", lambda v: v + 5, "num_labels=5"),
        ("labels", lambda v: v - 7, "num_labels=5"),
        ("labels", lambda v: v.float(), "integer type"),
    ],
)
def test_bad_input(field, change, message):
    voxels = {**make_voxels((30, 10)), "labels": torch.zeros(40, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        make_model()(**{**voxels, field: change(voxels[field])})


def test_no_voxels():
    voxels = {name: tensor[:0] for name, tensor in make_voxels((5,)).items()}
    with pytest.raises(ValueError, match="no voxels.*empty tiles"):
        make_model()(**voxels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": [2]}, "no field `depth`.*depths"),
        ({"stem": "conv"}, "`stem`.*'linear', 'sparse'"),
        ({"hidden_sizes": (12, 24)}, "`hidden_sizes`.*3 values"),
        ({"num_attention_heads": (5, 2, 3)}, "multiples of `num_attention_heads`"),
        ({"rope_base": 10, "num_attention_heads": (3, 2, 3)}, "multiple of 6"),
        ({"orders": ["peano"]}, "`orders`.*peano"),
        ({"pooling": "code", "strides": (3, 2)}, "powers of 2"),
        ({"in_channels": 6}, "`in_channels`.*feature_names"),
        ({"feature_names": ["xyz"]}, "feature_names.*xyz"),
        ({"read_out": "upcast", **scenes.DECODER}, "reads no decoder"),
        ({**scenes.DECODER, "decoder_hidden_sizes": (12,)}, "decoder_hidden_sizes"),
        ({"class_weights": [1.0]}, "class_weights.*5 classes"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_bad_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_a_new_decoder_has_the_published_sizes():
    config = PointTransformerV3Config(
        depths=(3, 3, 3, 12, 3),
        hidden_sizes=(48, 96, 192, 384, 512),
        num_attention_heads=(3, 6, 12, 24, 32),
        read_out="decoder",
    )
    assert list(config.decoder_hidden_sizes) == [64, 96, 192, 384]
    assert list(config.decoder_num_attention_heads) == [4, 6, 12, 24]
    with torch.device("meta"):
        model = PointTransformerV3Model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_792_848
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == 16_331_520


# -- Saving -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saving_and_loading(variant, tmp_path):
    model, voxels = make_model(variant), make_voxels()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPointCloudSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is PointTransformerV3ForSemanticSegmentation
    assert torch.equal(loaded(**voxels).logits, model(**voxels).logits)
    fields = {name: getattr(model.config, name) for name in scenes.SIZES | scenes.VARIANTS[variant]}
    assert {name: getattr(loaded.config, name) for name in fields} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }


def test_other_classes_from_the_same_folder(tmp_path):
    make_model("sonata").save_pretrained(tmp_path)
    classifier = AutoModelForPointCloudClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier) is PointTransformerV3ForClassification
    decoded = AutoModelForPointCloudSemanticSegmentation.from_pretrained(
        tmp_path, read_out="decoder", num_labels=3, ignore_mismatched_sizes=True
    )
    assert decoded.task_module_names == ("semantic_head", "decoder")
