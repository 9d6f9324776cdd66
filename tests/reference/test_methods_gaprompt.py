"""GAPrompt against values of the published code (arXiv 2505.04119), from its own file."""

import pytest
import torch


@pytest.fixture(scope="module")
def method(published_method):
    return published_method("gaprompt")


def without_dropout(method, **fields):
    """The model, with other options, and without dropout in the adapter."""
    model = method.model()
    for name, value in {"local_drop_path": 0.0, **fields}.items():
        setattr(model.peft_config["default"], name, value)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_file_is_read_completely(method):
    assert not method.report.new
    # Of every block a layer, and of the blocks without prompts the prompts; and a factor or two.
    unused = ("scale.weight", "scale.bias", "scaler1", "scaler2", "prompt_embeddings")
    assert all(name.endswith(unused) for name in method.report.unused)
    assert set(method.report.ignored) == set(method.report.unused)
    config = method.published.config
    assert (config.num_points, config.num_prompt_tokens, config.prompt_depth, config.bottleneck_size) == (5, 10, 2, 6)
    assert (config.num_point_neighbors, config.num_center_neighbors, config.num_propagation_neighbors) == (4, 3, 5)
    assert (config.propagation, config.propagation_place) == ("shifted", "after")


@torch.no_grad()
def test_points_and_shape(method):
    model, values = method.model(), method.values
    layer = model.get_base_model().point_mae.point_slot
    features, code = layer.look("default", values["points"], True)
    assert (features - values["eval.shift.fp1"]).abs().max() < 1e-5
    assert (code - values["eval.shape_code"]).abs().max() < 1e-5
    tokens = model.get_base_model().point_mae.encode(values["points"]).tokens
    context = tokens.cloud.shared["gaprompt_default"]
    assert (tokens.cloud.points - values["eval.prompted_points"]).abs().max() < 1e-5
    assert (context.shape - values["eval.shape"]).abs().max() < 1e-5
    assert (context.prompt_positions[0] - values["eval.prompt_pos"]).abs().max() < 1e-5
    assert torch.equal(context.center_indices, values["level2.center_idx"])
    assert torch.equal(context.neighbor_indices.sort().values, values["level2.knn_idx"].sort().values)


@torch.no_grad()
def test_logits_of_single_clouds(method):
    model, values = method.model(), method.values
    alone = torch.cat([model(cloud[None]).logits for cloud in values["points"]])
    assert (alone - values["eval.logits_each_alone"]).abs().max() < 1e-5
    assert (model(values["points"]).logits - alone).abs().max() < 1e-5
    encoded = model.get_base_model().point_mae(values["points"][:1])
    # The published code reads no other cloud for the first of a batch.
    assert (encoded.pooler_output - values["eval.pooled"][:1]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("place", ["after", "before"])
@pytest.mark.parametrize("rule", ["permutation", "replacement"])
def test_all_rules(published_method, rule, place):
    method = published_method("gaprompt", options={"propagation_type": f"{rule}_{place}_attention"})
    model, values = method.model(), method.values
    expected = values[f"types.{rule}_{place}_attention.logits_each_alone"]
    assert (model(values["points"]).logits - expected).abs().max() < 1e-5
    if rule == "permutation":
        model.peft_config["default"].propagation = "aligned"
        expected = values[f"own.aligned.permutation_{place}_attention.logits"]
        assert (model(values["points"]).logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("rule", "prefix"), [("shifted", "own.per_cloud"), ("aligned", "own.aligned")])
def test_gradients_of_the_rules_that_keep_clouds_apart(method, rule, prefix):
    model, values = without_dropout(method, propagation=rule), method.values
    loss = model(values["points"], labels=values["labels"]).loss
    loss.backward()
    torch.testing.assert_close(loss, values[f"{prefix}.grad_eval.loss"], rtol=1e-5, atol=1e-5)
    expected = method.under(f"{prefix}.grad_eval.grad.")
    assert len(expected) >= 30
    for name, parameter in model.named_parameters():
        short = name.replace(".modules_to_save.default", "").replace(".default", "")
        if short in expected:
            difference = (parameter.grad - expected[short].view_as(parameter)).abs().max()
            assert difference < 1e-4 * expected[short].abs().max(), name


def test_gradients_in_training(method, check_gradients):
    model, values = without_dropout(method, propagation="replacement").train(), method.values
    output = model(values["points"], labels=values["labels"])
    output.loss.backward()
    assert (output.logits - values["train_frozen.logits"]).abs().max() < 1e-5
    notes = method.notes["rounding_fp32_vs_fp64"]["train_frozen"]
    zero = method.named({name: torch.zeros_like(method.tensors[name]) for name in notes["zero_grads"]})
    expected = method.under("train_frozen.grad.")
    # Left out of the file for its size.
    parameters = {
        name.replace(".modules_to_save.default", "").replace(".default", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    left_out = {f"base_model.model.classifier.dense{number}.weight" for number in (1, 2)}
    assert parameters - set(expected) <= left_out
    check_gradients(model, {**dict.fromkeys(parameters), **expected}, {*zero, *(parameters - set(expected))}, 5e-4)
    state = {name.replace(".default", ""): tensor for name, tensor in model.state_dict().items()}
    for name, statistics in method.under("train_frozen.bn_after.").items():
        torch.testing.assert_close(state[name], statistics, rtol=1e-5, atol=1e-5)
