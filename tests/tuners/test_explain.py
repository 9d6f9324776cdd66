"""What layers have to show: the records, and those of the methods of this package."""

import numpy as np
import pytest
import torch
from peft import get_peft_model

import point_peft_hf as pp
from point_peft_hf.tuners import Picture, Places, References, SlotLayer

FIELDS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_groups": 8, "group_size": 4}
CLOUD = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0))


def make_model(config, bank_size=7):
    torch.manual_seed(0)
    fields = FIELDS | {"patch_hidden_sizes": (8, 8, 16), "classifier_hidden_size": 16, "num_labels": 3}
    model = get_peft_model(pp.PointMAEForClassification(pp.PointMAEConfig(**fields)), config).eval()
    if bank_size:
        clouds = torch.randn(bank_size, 40, 3, generator=torch.Generator().manual_seed(1))
        ids = torch.arange(bank_size)
        batch = {"points": clouds, "labels": ids % 3, "sample_ids": ids + 100}
        pp.build_point_prior_bank(model, [batch], progress=False)
    return model


def records_of(model):
    """What each layer shows after a pass: layer, what it returned, records."""
    shown = []

    def ask(layer, inputs, result):
        shown.extend(
            (layer, result, record)
            for name in layer.working_adapters()
            for record in layer.explain(name, result, *inputs)
        )

    for module in model.modules():
        if isinstance(module, SlotLayer):
            module.register_forward_hook(ask)
    with torch.no_grad():
        model(points=CLOUD)
    return shown


@pytest.mark.parametrize("num_prompts", [1, 2, 5])
def test_prompts_show_what_they_are_enhanced_with(num_prompts):
    model = make_model(pp.PointPeftConfig(num_prompt_tokens=num_prompts, prompt_depth=2))
    shown = records_of(model)
    (references,) = [record for _, _, record in shown if isinstance(record, References)]
    report = pp.explain_retrieval(model, CLOUD)
    for field in ("labels", "sample_ids", "similarities", "weights"):
        np.testing.assert_allclose(getattr(references, field), getattr(report, field)[0].numpy(), rtol=1e-5)
    assert (references.sample_ids % 100 % 3 == references.labels).all()
    prompts = [record for _, _, record in shown if record.name == "source of the prompts"]
    assert len(prompts) == 2
    own, mean, single = prompts[0].places
    assert [len(places.coordinates) for places in (own, mean)] == [1, min(num_prompts - 1, 1)]
    assert single.labels.tolist() == references.labels[: max(num_prompts - 2, 0)].tolist()
    weight = model.get_base_model().point_mae.point_slot.part("prompt_coordinates", "default").weight
    coordinates = np.concatenate([places.coordinates for places in prompts[0].places])
    np.testing.assert_array_equal(coordinates, weight.detach().numpy())


@pytest.mark.parametrize(
    ("fields", "source"), [({}, "prompt: own feature"), ({"use_bank": False}, "prompt: not enhanced")]
)
def test_prompts_without_entries(fields, source):
    shown = records_of(make_model(pp.PointPeftConfig(num_prompt_tokens=4, **fields), bank_size=0))
    assert not any(isinstance(record, References) for _, _, record in shown)
    sources = [record.places for _, _, record in shown if record.name == "source of the prompts"]
    assert [(places.name, len(places.coordinates)) for (places,) in sources] == [(source, 4)] * 3


def test_prompts_without_a_place_show_none():
    shown = records_of(make_model(pp.PointPriorPromptConfig(num_prompt_tokens=4)))
    assert [type(record) for _, _, record in shown] == [References]


@pytest.mark.parametrize("config", [pp.GeometryAdapterConfig(), pp.PointPeftConfig(prompt_depth=2, use_bank=False)])
def test_local_centres_and_the_distance_to_them(config):
    shown = records_of(make_model(config, bank_size=0))
    pictures = [(result, record) for _, result, record in shown if record.name.startswith("distance of the token")]
    assert len(pictures) == 3
    for result, picture in pictures:
        chosen, inserted = (places.coordinates for places in picture.places)
        assert len(chosen) + len(inserted) == 4
        centers = result.centers[0].numpy()
        np.testing.assert_array_equal(picture.coordinates, centers)
        for place in chosen:
            assert (centers == place).all(axis=1).any()
        everything = np.concatenate([chosen, inserted])
        expected = np.linalg.norm(centers[:, None] - everything, axis=-1).min(axis=1)
        np.testing.assert_allclose(picture.values, expected, atol=1e-6)
    # The blocks without prompts have none among their local centres.
    has_prompts = isinstance(config, pp.PointPeftConfig)
    assert [len(picture.places[1].coordinates) > 0 for _, picture in pictures] == [has_prompts, has_prompts, False]


def test_a_layer_shows_nothing_unless_it_says_what():
    assert records_of(make_model(pp.PointPeftConfig(use_prompts=False, use_geometry=False), bank_size=0)) == []


def test_records_take_tensors():
    places = Places("a", torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True), labels=torch.tensor([1, -1]))
    assert (places.coordinates.dtype, places.labels.tolist()) == (np.float32, [1, -1])
    picture = Picture("b", values=torch.ones(2), coordinates=torch.zeros(2, 3))
    assert picture.values.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Places("x", np.zeros((1, 4, 3))), r"`coordinates` of 'x' must have shape .*\(1, 4, 3\).*one cloud"),
        (lambda: Places("x", np.zeros((4, 3)), labels=[1, 2]), r"`labels` of 'x' must have shape \(4,\), got \(2,\)"),
        (lambda: Picture("x", values=np.zeros(4)), "'x' must have both `values` and `coordinates`, or neither"),
        (lambda: Picture("x", values=np.zeros(4), coordinates=np.zeros((3, 3))), r"`values`.*\(3,\), got \(4,\)"),
        (lambda: References("x", [1, 2], [1, 2], [0.5, 0.4], [1.0]), r"`weights` of 'x' must have shape \(2,\)"),
    ],
)
def test_records_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
