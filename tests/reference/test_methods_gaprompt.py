"""GAPrompt against values of the published code (arXiv 2505.04119), from its own file."""

import pytest
import torch

from point_peft_hf.tuners.gaprompt import layer


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
    point_layer = model.get_base_model().point_mae.point_slot
    features, code = point_layer.look("default", values["points"], True)
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


@pytest.fixture
def read_other_clouds(monkeypatch):
    """Let local groups look up their rows as the published code does: as if no cloud had prompts in its table."""

    def read(num_patches):
        def gather(table, indices):
            first_rows = torch.arange(len(table)).view(-1, *[1] * (indices.dim() - 1)) * num_patches
            return table.flatten(0, 1)[indices + first_rows]

        monkeypatch.setattr(layer, "gather_points", gather)

    return read


@pytest.mark.parametrize("mode", ["train_frozen", "train_published"])
def test_gradients_in_training(method, mode, check_gradients, use_published_norms, read_other_clouds):
    # The values of "train_published" are those of batches whose clouds read each other.
    model, values = without_dropout(method, propagation="replacement").train(), method.values
    if mode == "train_published":
        model.peft_config["default"].propagation = "shifted"
        use_published_norms()
        read_other_clouds(method.settings["num_group"])
    output = model(values["points"], labels=values["labels"])
    output.loss.backward()
    expected = values[f"{mode}.logits"]
    assert (output.logits - expected).abs().max() < 1e-5 * expected.abs().max()
    notes = method.notes["rounding_fp32_vs_fp64"][mode]
    zero = method.named({name: torch.zeros_like(method.tensors[name]) for name in notes["zero_grads"]})
    expected = method.under(f"{mode}.grad.")
    # Left out of the file for its size.
    parameters = {
        name.replace(".modules_to_save.default", "").replace(".default", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    left_out = {f"base_model.model.classifier.dense{number}.weight" for number in (1, 2)}
    assert parameters - set(expected) <= left_out
    check_gradients(model, {**dict.fromkeys(parameters), **expected}, {*zero, *(parameters - set(expected))}, 5e-4)
    statistics = method.under(f"{mode}.bn_after.")
    assert statistics or mode == "train_published"
    state = {name.replace(".default", ""): tensor for name, tensor in model.state_dict().items()}
    for name, value in statistics.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)
