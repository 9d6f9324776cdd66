import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

import point_peft_hf as pp
from point_peft_hf.slots import OutputSlot
from point_peft_hf.tuners import (
    Picture,
    Places,
    PointTunerConfig,
    References,
    SlotLayer,
    SlotTuner,
    register_method,
)
from point_peft_hf.visualization import (
    CloudInspection,
    category_colors,
    classify_clouds,
    cloud_page,
    inspect_cloud,
    inspection_colorings,
    nearest,
    prepare_for_display,
)

NAMES = ["chair", "table", "cup"]
SMALL = {"num_attention_heads": 2, "patch_hidden_sizes": (8, 8, 16), "classifier_hidden_size": 16, "num_labels": 3}
SINGLE_STAGE = {**SMALL, "hidden_size": 16, "num_hidden_layers": 2, "num_groups": 12, "group_size": 6}
STAGES = {
    **SMALL,
    "hidden_sizes": (8, 16),
    "depths": (1, 1),
    "num_groups": (20, 10),
    "group_sizes": (6, 4),
    "attention_radii": (0.5, 1.0),
}
BACKBONES = {
    "point_mae": (pp.PointMAEForClassification, pp.PointMAEConfig, SINGLE_STAGE, "the class token"),
    "point_bert": (pp.PointBertForClassification, pp.PointBertConfig, SINGLE_STAGE, "the class token"),
    "point_m2ae": (pp.PointM2AEForClassification, pp.PointM2AEConfig, STAGES, "all tokens"),
}
CLOUD = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)


PROMPTS, LOCAL = "source of the prompts", "distance of the token to its nearest local centre"


def distances(places, others):
    """From each place to the nearest of the others."""
    return np.linalg.norm(places[:, None] - others, axis=-1).min(axis=1)


def make_backbone(name="point_mae"):
    torch.manual_seed(0)
    model_class, config_class, fields, _ = BACKBONES[name]
    return model_class(config_class(**fields)).eval()


def make_model(name="point_mae"):
    model = get_peft_model(make_backbone(name), pp.PointPeftConfig(num_prompt_tokens=5)).eval()
    clouds = torch.randn(6, 80, 3, generator=torch.Generator().manual_seed(1))
    batch = {"points": clouds, "labels": torch.tensor([0, 1, 2, 0, 1, 2]), "sample_ids": torch.arange(6) + 100}
    pp.build_point_prior_bank(model, [batch], progress=False)
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_what_a_model_does_with_a_cloud(name):
    model = make_model(name)
    with torch.no_grad():
        before = model(points=torch.from_numpy(CLOUD)[None]).logits[0].numpy()
    found = inspect_cloud(model, CLOUD)
    assert np.allclose(found.logits, before, atol=1e-5)
    # Centres are points of the cloud, and the local centres are centres or inserted tokens.
    assert distances(found.group_centers, CLOUD).max() < 1e-6
    pictures = {picture.name: picture for picture in found.pictures}
    assert list(pictures) == [PROMPTS, LOCAL]
    prompts = np.concatenate([places.coordinates for places in pictures[PROMPTS].places])
    assert len(prompts) == 5
    chosen, inserted = pictures[LOCAL].places
    assert distances(chosen.coordinates, found.group_centers).max() < 1e-6
    assert len(inserted.coordinates) == 0 or distances(inserted.coordinates, prompts).max() < 1e-6
    assert len(chosen.coordinates) + len(inserted.coordinates) == len(found.group_centers) // 2
    assert found.attention_from == BACKBONES[name][3]
    assert found.attention.shape == (len(found.group_centers),)
    # The rest of it goes to the class token and to inserted tokens.
    assert 0.1 < found.attention.sum() < 1


def test_attention_of_the_last_block_is_that_of_the_model():
    backbone = make_backbone()
    found = inspect_cloud(backbone, CLOUD)
    backbone.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = backbone(torch.from_numpy(CLOUD)[None], output_attentions=True)
    expected = outputs.attentions[-1][0].mean(dim=0)[0, 1:]
    assert np.allclose(found.attention, expected.numpy(), atol=1e-6)
    assert found.pictures == []
    assert found.references == []


def test_colourings_of_a_denser_cloud():
    found = inspect_cloud(make_model(), CLOUD)
    dense = np.random.default_rng(1).normal(size=(500, 3))
    colorings = inspection_colorings(found, NAMES, dense)
    prediction, group, attention, sources, distance = colorings
    assert all(len(coloring.values) == 500 for coloring in colorings)
    assert prediction.present == [found.logits.argmax()]
    expected = np.linalg.norm(dense[:, None] - found.group_centers, axis=-1).argmin(axis=1)
    assert (group.values == expected).all()
    assert (nearest(dense, found.group_centers) == expected).all()
    assert np.allclose(attention.values, 100 * found.attention[expected])
    assert np.allclose(distance.values, found.pictures[1].values[expected])
    assert sum(len(markers.points) for markers in sources.markers) == 5
    assert sources.markers[0].name == "prompt: own feature"
    assert {markers.name for markers in sources.markers[2:]} <= {f"prompt: single entry: {name}" for name in NAMES}
    # Neighbouring groups can be told apart.
    apart = np.linalg.norm(found.group_centers[:, None] - found.group_centers, axis=-1) + 9 * np.eye(12)
    assert all(group.colors[i] != group.colors[j] for i, j in enumerate(apart.argmin(axis=1)))


def test_parts_go_to_the_nearest_point():
    points = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0.0]])
    found = CloudInspection(points, np.eye(3), points, np.ones(3) / 3, "the class token")
    parts = inspection_colorings(found, NAMES, np.array([[0.2, 0, 0], [4, 0, 0], [1, 1, 0], [0.9, 0, 0]]))[0]
    assert parts.name == "predicted part"
    assert parts.values.tolist() == [0, 2, 1, 1]


def test_parts_of_the_objects_category():
    """Only these are predicted, they get the first colours, and the bank's entries go by the names of categories."""
    torch.manual_seed(0)
    fields = SINGLE_STAGE | {"num_labels": 4, "num_categories": 2, "category_parts": [[0, 1], [2, 3]]}
    model = get_peft_model(
        pp.PointMAEForSegmentation(pp.PointMAEConfig(**fields)).eval(), pp.PointPeftConfig(num_prompt_tokens=4)
    )
    batch = {"points": torch.randn(6, 80, 3), "labels": torch.tensor([0, 1] * 3)}
    pp.build_point_prior_bank(model, [batch], progress=False)
    found = inspect_cloud(model, CLOUD, category=1)
    with torch.no_grad():
        logits = model.eval()(points=torch.from_numpy(CLOUD)[None], category_ids=torch.tensor([1])).logits[0]
    assert np.isinf(found.logits[:, :2]).all()
    assert np.allclose(found.logits[:, 2:], logits[:, 2:], atol=1e-5)
    names = ["back", "seat", "body", "lid"]
    parts, _, _, sources, _ = inspection_colorings(found, names, reference_names=["chair", "vase"])
    assert set(parts.present) <= {2, 3}
    assert [parts.colors[index] for index in (2, 3, 0, 1)] == category_colors(4)
    assert {markers.name.rpartition(": ")[2] for markers in sources.markers[2:]} <= {"chair", "vase"}
    unnamed = inspection_colorings(found, names)[3]
    assert [markers.name for markers in unnamed.markers[2:]] == ["prompt: single entry"]


class OutermostConfig(PointTunerConfig):
    """Of a method that this package knows nothing of."""


class OutermostLayer(SlotLayer):
    slot_class = OutputSlot
    parts = ("scale",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"scale": nn.Linear(1, self.slot.hidden_size)}

    def adapt(self, name, tokens):
        return tokens.with_features(tokens.features * (1 + self.part("scale", name).bias))

    def explain(self, name, result, tokens):
        centers = result.centers[0]
        far = centers[centers.norm(dim=1).argmax()][None]
        number = self.slot.layer_index
        yield Picture(f"depth/{name}", [Places("outermost", far, [1])], centers[:, 1] + number, centers, "blocks")
        yield References("nearest of kin", [2, -1], [7, -1], [0.9, 0.5], [0.75, 0.25])


@register_method("outermost", OutermostConfig)
class OutermostModel(SlotTuner):
    layer_classes = (OutermostLayer,)


def test_a_new_method_is_drawn_without_any_change():
    found = inspect_cloud(get_peft_model(make_backbone(), OutermostConfig()), CLOUD)
    # Both blocks show it, the last one counts.
    (picture,), (references,) = found.pictures, found.references
    assert np.allclose(picture.values, found.group_centers[:, 1] + 1, atol=1e-6)
    assert references.sample_ids.tolist() == [7, -1]
    coloring = inspection_colorings(found, NAMES)[3]
    assert (coloring.name, coloring.label) == ("depth/default", "depth/default (blocks)")
    assert np.allclose(coloring.values, picture.values[nearest(CLOUD, found.group_centers)])
    (markers,) = coloring.markers
    assert (markers.name, markers.color, markers.on_top) == ("outermost: table", None, False)
    assert "outermost: table" in cloud_page(CLOUD, [coloring])


def test_two_adapters_that_show_the_same_go_by_their_names():
    model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig(), "first")
    model.add_adapter("second", pp.GeometryAdapterConfig(num_local_centers=3, modules_to_save=[]))
    model.base_model.set_adapter(["first", "second"])
    pictures = inspect_cloud(model, CLOUD).pictures
    assert [picture.name for picture in pictures] == [f"{LOCAL} of first", f"{LOCAL} of second"]
    assert [len(picture.places[0].coordinates) for picture in pictures] == [6, 3]


def test_what_is_no_record_is_refused(monkeypatch):
    monkeypatch.setattr(OutermostLayer, "explain", lambda *args: [np.zeros(3)])
    with pytest.raises(ValueError, match="`explain` of OutermostLayer must return .*, got a ndarray"):
        inspect_cloud(get_peft_model(make_backbone(), OutermostConfig()), CLOUD)


def test_names_must_be_those_of_the_model():
    with pytest.raises(ValueError, match="has 3 classes, but there are 2 names"):
        inspection_colorings(inspect_cloud(make_backbone(), CLOUD), NAMES[:2])


def test_models_of_others_are_refused():
    with pytest.raises(ValueError, match="Cannot look into a Linear"):
        inspect_cloud(nn.Linear(3, 3), CLOUD)


def test_features_before_and_after_tuning():
    model = make_model()
    clouds = torch.randn(7, 80, 3, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    batches = [{"points": clouds[:4], "labels": labels[:4]}, {"points": clouds[4:], "labels": labels[4:]}]
    found = classify_clouds(model, batches)
    with torch.no_grad():
        logits = model(points=clouds).logits
        assert np.allclose(found.features["before tuning"], model.frozen_features(clouds).numpy(), atol=1e-5)
        head = model.get_base_model().classifier
        assert np.allclose(head(torch.from_numpy(found.features["after tuning"])), logits, atol=1e-5)
    assert (found.predictions == logits.argmax(dim=-1).numpy()).all()
    assert found.confusion.sum(axis=1).tolist() == [2, 2, 3]
    assert found.confusion.trace() == (found.predictions == labels.numpy()).sum()
    assert list(classify_clouds(make_backbone(), batches).features) == ["after tuning"]
    with pytest.raises(ValueError, match="There are no clouds to classify"):
        classify_clouds(model, [])


@pytest.mark.parametrize("fields", [{}, {"up_axis": "z"}, {"normalize": "center"}, {"sampling": "fps"}])
def test_all_points_go_where_the_model_sees_them(fields):
    processor = pp.PointCloudProcessor(num_points=64, **fields)
    # Metres, far from the origin, as of a survey.
    cloud = np.random.default_rng(0).normal(size=(900, 3)) * [5, 2, 1] + [512_000, 5_403_000, 300]
    shown, points = prepare_for_display(cloud, processor)
    assert (points == processor(cloud)["points"][0].numpy()).all()
    assert len(shown) == 900
    assert np.linalg.norm(shown[:, None] - points, axis=-1).min(axis=0).max() < 1e-5
    # A similarity: distances keep their ratio.
    ratios = np.linalg.norm(shown[1:] - shown[0], axis=1) / np.linalg.norm(cloud[1:] - cloud[0], axis=1)
    assert np.allclose(ratios, ratios[0], rtol=1e-4)


def test_clouds_too_large_to_display_are_thinned_and_small_ones_repeated(tmp_path):
    processor = pp.PointCloudProcessor(num_points=64)
    cloud = np.random.default_rng(0).normal(size=(30, 3))
    pp.write_point_cloud(tmp_path / "cloud.ply", cloud)
    shown, points = prepare_for_display(tmp_path / "cloud.ply", processor)
    assert (len(shown), len(points)) == (30, 64)
    assert len(prepare_for_display(cloud, processor, max_points=20)[0]) == 20
    with pytest.raises(ValueError, match=r"must be of shape \(num_points, 3\)"):
        prepare_for_display(np.zeros((5, 2)), processor)
