"""PointGST against values of the published code (TPAMI 2025, arXiv 2410.08114), from its own file."""

import pytest
import torch

from point_peft_hf.ops import gather_points, morton_keys
from point_peft_hf.tuners.pointgst.basis import graph_basis, published_graph_basis


@pytest.fixture(scope="module")
def method(published_method):
    return published_method("pointgst")


def test_file_is_read_completely(method):
    assert not method.report.new
    assert not method.report.ignored
    assert set(method.report.adapter) | set(method.report.loaded) == set(method.tensors)
    assert any("single clouds only" in text for text in method.report.switches)
    config = method.model().peft_config["default"]
    assert (config.bottleneck_size, config.local_size, config.basis, config.transpose) == (6, 8, "published", False)


def test_bases(method):
    values = method.values
    centers = values["center"]
    order = morton_keys(centers).argsort(dim=1, stable=True)
    assert torch.equal(morton_keys(centers), values["morton_key"])
    assert torch.equal(order, values["idx0"])
    sets = gather_points(centers, order).view(6, 2, 8, 3)
    for name, found in (("U", graph_basis(centers)), ("sub_U", graph_basis(sets))):
        torch.testing.assert_close(found, values[f"right.{name}"], rtol=0, atol=1e-5)
    published = published_graph_basis(sets.flatten(0, 1)).view(6, 2, 8, 8)
    torch.testing.assert_close(published.abs(), values["published_sub_U"].abs(), rtol=0, atol=1e-3)
    torch.testing.assert_close(published_graph_basis(centers).abs(), values["published_U"].abs(), rtol=0, atol=1e-3)


def given(values):
    """The stored basis: that of another machine may have other signs."""
    names = {"basis": "published_U", "local_basis": "published_sub_U", "order": "idx0"}
    return {f"pointgst_default.{part}.0": values[name] for part, name in names.items()}


def has_stored_basis(values):
    """For which clouds this machine finds the stored eigenvectors: of almost equal eigenvalues they may be others."""
    centers = values["center"]
    sets = gather_points(centers, values["idx0"]).view(6, 2, 8, 3)
    local = published_graph_basis(sets.flatten(0, 1)).view(6, 2, 8, 8) - values["published_sub_U"]
    whole = published_graph_basis(centers) - values["published_U"]
    return (local.abs().flatten(1).amax(dim=1) < 1e-4) & (whole.abs().flatten(1).amax(dim=1) < 1e-4)


@torch.no_grad()
def test_logits(method):
    model, values = method.model(), method.values
    logits = model(values["points"], precomputed=given(values)).logits
    assert (logits - values["eval.logits"]).abs().max() < 1e-5
    hidden = model.base_model.model.point_mae(values["points"], precomputed=given(values)).last_hidden_state
    assert (hidden - values["eval.hidden"]).abs().max() < 1e-5 * values["eval.hidden"].abs().max()
    same = has_stored_basis(values)
    assert same.sum() >= 4  # of six
    assert (model(values["points"]).logits - values["eval.logits"])[same].abs().max() < 1e-5
    alone = torch.cat([model(cloud[None]).logits for cloud in values["points"]])
    equal = (alone - values["eval.logits_each_alone"]).abs().amax(dim=1) < 1e-5
    assert equal.sum() >= 4  # of six; the bases of clouds alone are not stored


@torch.no_grad()
@pytest.mark.parametrize(("transpose", "name"), [(True, "U_transposed"), (False, "U_as_published")])
def test_logits_with_the_right_basis(method, transpose, name):
    model, values = method.model(), method.values
    config = model.peft_config["default"]
    config.basis, config.transpose = "cloud", transpose
    expected = values[f"right.logits_{name}"]
    assert (model(values["points"]).logits - expected).abs().max() < 1e-5
    alone = torch.cat([model(cloud[None]).logits for cloud in values["points"]])
    assert (alone - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("mode", "tolerance"), [("grad_eval", 1e-4), ("train_frozen", 5e-4)])
def test_gradients(method, mode, tolerance, check_gradients):
    model, values = method.model().train(mode != "grad_eval"), method.values
    output = model(values["points"], labels=values["labels"], precomputed=given(values))
    output.loss.backward()
    assert (output.logits - values[f"{mode}.logits"]).abs().max() < 1e-5
    torch.testing.assert_close(output.loss, values[f"{mode}.loss"], rtol=1e-5, atol=1e-5)
    zero = method.notes["rounding_fp32_vs_fp64"][mode]["zero_grads"]
    left_out = method.named({name: torch.zeros_like(method.tensors[name]) for name in zero})
    check_gradients(model, method.under(f"{mode}.grad."), left_out, tolerance)
