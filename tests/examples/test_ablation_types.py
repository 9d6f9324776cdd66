"""The switches of the ablation: none of them acts unasked, and each acts when asked."""

import importlib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.slots import OutputSlot, Stage
from point_peft_hf.tokens import Cloud, start_tokens

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POINTS = torch.randn(3, 96, 3, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 1, 2])
# For each switch the value that is not its default.
SWITCHES = {
    "use_ffn_bottleneck": False,
    "use_output_bottleneck": False,
    "use_local_aggregation": False,
    "use_local_attention": False,
    "use_propagation": False,
    "use_prompt_coordinates": False,
    "local_pooling": "mean",
    "center_selection": "random",
    "neighbor_selection": "random",
}


@pytest.fixture
def types(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("ablation_types")


def backbone(num_layers=2):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": num_layers, "num_attention_heads": 2, "num_groups": 8}
    config = pp.PointMAEConfig(**sizes, group_size=8, patch_hidden_sizes=(8, 16, 16), num_labels=3)
    return pp.PointMAEForClassification(config)


def attach(config):
    model = get_peft_model(backbone(), config)
    pp.build_point_prior_bank(model, [{"points": POINTS.repeat(3, 1, 1)}], progress=False)
    return model


def options(**changes):
    return {"init_weights": False, "num_prompt_tokens": 4, **changes}


def run(model):
    """Logits, loss and gradients of a training step with dropout, the names without the type's."""
    torch.manual_seed(1)
    outputs = model.train()(POINTS, labels=LABELS)
    outputs.loss.backward()
    prefix = model.base_model.prefix
    gradients = {n.replace(prefix, ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
    return outputs, gradients


def test_without_a_switch_it_is_point_peft_to_the_bit(types):
    torch.manual_seed(0)
    (expected, expected_gradients), (got, gradients) = (
        run(attach(config_class(**options()))) for config_class in (pp.PointPeftConfig, types.AblationConfig)
    )
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected_gradients.items())


def test_every_switch_is_listed_here(types):
    own = {field.name for field in fields(types.AblationConfig)} - {field.name for field in fields(pp.PointPeftConfig)}
    assert own == SWITCHES.keys()


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_changes_the_function_and_can_be_trained_and_loaded(switch, types, tmp_path):
    whole = attach(types.AblationConfig(**options()))
    model = attach(types.AblationConfig(**options(**{switch: SWITCHES[switch]})))
    # The same weights, as far as there are any.
    _, unexpected = model.load_state_dict(whole.state_dict(), strict=False)
    assert bool(unexpected) == switch.startswith("use_")
    with torch.no_grad():
        expected, got = whole.eval()(POINTS).logits, model.eval()(POINTS).logits
    assert not torch.allclose(got, expected, atol=1e-4)
    _, gradients = run(model)
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())

    with torch.no_grad():
        got = model.eval()(POINTS).logits
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(backbone(), tmp_path).eval()(POINTS).logits, got)


def test_mean_pooling_and_no_propagation_by_hand(types):
    # Two clusters of four tokens each, far apart; sampling starts at the first token, the farthest is the last.
    centers = torch.tensor([[[x, 0.0, 0.0] for x in (0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2, 9.3)]])
    layer = types.AblationOutputLayer(OutputSlot(Stage(6, group_size=8, num_layers=1), 0), "ablation_")
    config = types.AblationConfig(
        use_local_attention=False,
        local_pooling="mean",
        use_propagation=False,
        use_output_bottleneck=False,
        num_local_centers=2,
        num_local_neighbors=4,
        propagation_scale=1.0,
        init_weights="published",
    )
    layer.update_layer("default", config, "slot")
    layer.set_adapter("default")
    rows = torch.randn(1, 8, 6)
    expected = rows[0].clone()
    # Fresh running statistics: BatchNorm divides by sqrt(1 + eps) only.
    for center, members in ((0, rows[0, :4]), (7, rows[0, 4:])):
        expected[center] += F.gelu(members.mean(0) / (1 + 1e-5) ** 0.5) + 0.3 * rows[0, center]
    tokens = layer.eval()(start_tokens(rows, centers, Cloud(centers, centers)))
    torch.testing.assert_close(tokens.features[0], expected)


def test_random_choices_are_the_same_in_every_cloud_and_every_time(types):
    layer = types.AblationOutputLayer(OutputSlot(Stage(6, group_size=8, num_layers=1), 0), "ablation_")
    layer.update_layer("a", types.AblationConfig(center_selection="random", neighbor_selection="random"), "slot")
    found = []
    for _ in range(2):
        centers = layer.choose_centers("a", POINTS, 5)
        neighbors = layer.choose_neighbors("a", POINTS[:, :5], POINTS, 4)
        assert (centers == centers[0]).all()
        assert (neighbors == neighbors[0]).all()
        assert len(set(centers[0].tolist())) == 5
        assert all(len(set(row)) == 4 for row in neighbors[0].tolist())
        found.append((centers, neighbors))
        torch.rand(3)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ["local_pooling", "center_selection", "neighbor_selection"])
def test_other_values_are_refused(name, types):
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*, got 'best'"):
        types.AblationConfig(**{name: "best"})


def test_the_study_uses_the_switches_of_this_type():
    study = yaml.safe_load((EXAMPLES / "studies" / "ablation.yaml").read_text())
    assert study["arguments"]["method"] == "ablation_types:AblationConfig"
    used = {name for row in study["rows"].values() for name in row.get("config", {})}
    assert used >= SWITCHES.keys()
