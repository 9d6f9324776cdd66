"""Published files of methods, converted as a user converts them, and the values of their authors' code."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.layers import FreezableBatchNorm1d
from point_peft_hf.models.convert import convert_checkpoint
from point_peft_hf.models.convert_tensors import rename_tensors


class PublishedMethod:
    """A file of a method on Point-MAE, and the values that its authors' code gives."""

    def __init__(self, folder, name, method, options, out):
        file = folder / "methods" / f"{name}.pth"
        with np.load(file.with_suffix(".npz")) as arrays:
            self.values = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        self.notes = json.loads(file.with_suffix(".json").read_text())
        self.settings = {**self.notes["config"], **self.notes.get("method_config", {}), **options}
        self.tensors = torch.load(file, weights_only=True)
        # Second names of tensors that have two.
        self.second_names = set(self.notes.get("duplicate_keys", {}).values())
        self.read = import_module(f"point_peft_hf.tuners.{method}.published").read_published
        config = out / "published.json"
        config.write_text(json.dumps(self.settings))
        self.folder = out / "converted"
        self.report = convert_checkpoint(file, self.folder, "point_mae", config, method=method)

    @property
    def published(self):
        return self.read(self.tensors, self.settings, "point_mae")

    def model(self, dtype=torch.float32):
        """The converted model, in eval mode, as it is trained, but without dropout."""
        has_parts = "num_categories" in self.settings
        auto = pp.AutoModelForPointCloudSegmentation if has_parts else pp.AutoModelForPointCloudClassification
        dropout = {"segmentation_dropout": 0.0} if has_parts else {"classifier_dropout": 0.0}
        options = {"drop_path_rate": 0.0, **dropout, "dtype": torch.float32}
        backbone = auto.from_pretrained(self.folder / "backbone", **options)
        return PeftModel.from_pretrained(backbone, self.folder / "adapter", is_trainable=True).to(dtype).eval()

    def named(self, tensors):
        """Tensors with published names, such as gradients, by their names in the adapter's file."""
        before, after = (self._by_own_names(t) for t in (self.tensors, {**self.tensors, **tensors}))
        return {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}

    def _by_own_names(self, tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in self.second_names}
        published = self.read(tensors, self.settings, "point_mae")
        renamed, _ = rename_tensors(published.base, "point_mae")
        return {**published.weights, **{f"base_model.model.{name}": tensor for name, tensor in renamed.items()}}

    def zero(self, mode):
        """Names of the parameters whose gradient is 0 but for rounding."""
        names = self.notes["notes"][f"{mode}.grad_zero_in_exact_arithmetic"]
        return self.named({name: torch.zeros_like(self.tensors[name]) for name in names})

    def under(self, prefix):
        """The values whose names start so, by their names in the adapter's file."""
        return self.named({key.removeprefix(prefix): v for key, v in self.values.items() if key.startswith(prefix)})


@pytest.fixture(scope="module")
def published_method(reference_dir, tmp_path_factory):
    """Convert a file of a method: `published_method("stag_sl", "stag")`; its name is that of the method by default.

    `options` are those that the file was not made with.
    """

    def convert(name, method=None, options=()):
        return PublishedMethod(reference_dir, name, method or name, dict(options), tmp_path_factory.mktemp(name))

    return convert


@pytest.fixture
def check_gradients():
    """Compare gradients of a model with published ones, relative to the largest entry of each."""

    def check(model, expected, left_out, tolerance):
        parameters = {
            name.replace(".modules_to_save.default", "").replace(".default", ""): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        assert set(parameters) == set(expected)
        for name, gradient in expected.items():
            if name not in left_out:
                found = parameters[name].grad
                worst = float((found - gradient.view_as(found)).abs().max() / gradient.abs().max())
                assert worst < tolerance, (name, worst)

    return check


@pytest.fixture
def use_published_norms(monkeypatch):
    """Let all BatchNorms in train mode use the statistics of the batch, as the published code does."""

    def use():
        is_in_eval = property(lambda norm: not norm.training)
        monkeypatch.setattr(FreezableBatchNorm1d, "uses_running_stats", is_in_eval)

    return use


@pytest.fixture
def check_training(check_gradients, use_published_norms):
    """Compare one training step in float64: `check_training(method, "frozen_bn")`.

    Modes are "frozen_bn", where the statistics of what is not trained stay as they are, and "train", as published.
    """

    def check(method, mode, tolerance=1e-6, is_zero=lambda name: False):
        if mode == "train":
            use_published_norms()
        model, values = method.model(torch.float64).train(), method.values
        output = model(values["points"].double(), labels=values["labels"])
        output.loss.backward()
        assert (output.logits - values[f"{mode}.logits"]).abs().max() < tolerance
        assert (output.loss - values[f"{mode}.loss"]).abs() < tolerance
        expected = method.under(f"{mode}.grad.")
        check_gradients(model, expected, [*method.zero(mode), *filter(is_zero, expected)], tolerance)
        buffers = {name.replace(".modules_to_save.default", ""): buffer for name, buffer in model.named_buffers()}
        buffers = {name.replace(".default", ""): buffer for name, buffer in buffers.items()}
        expected = method.under(f"{mode}.buffer_after.")
        assert expected
        for name, buffer in expected.items():
            torch.testing.assert_close(buffers[name], buffer.double(), rtol=0, atol=tolerance)

    return check


@pytest.fixture
def check_part_training(check_gradients, use_published_norms):
    """The same for a part segmentation, whose head here has no network on the category: it gets the published one."""

    def check(method, mode, tolerance=1e-6):
        if mode == "train":
            use_published_norms()
        model, values = method.model(torch.float64).train(), method.values
        head = model.base_model.model.segmentation_head.modules_to_save["default"]
        mark = "_cls" if "convs1_cls.weight" in method.tensors else ""
        label = [method.tensors[f"label_conv{mark}.{name}"].double() for name in ("0.weight", "1.weight", "1.bias")]
        norms = [method.tensors[f"label_conv{mark}.1.{name}"].double() for name in ("running_mean", "running_var")]
        uses_batch = mode == "train" or f"label_conv{mark}.0.weight" in method.notes["trainable"]

        def describe_cloud(tokens, category_ids, read_out):
            pooled = read_out(torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1))
            features = F.one_hot(category_ids, label[0].shape[1]).double() @ label[0].squeeze(-1).T
            features = F.leaky_relu(F.batch_norm(features, *norms, *label[1:], training=uses_batch), 0.2)
            weight = method.tensors[f"convs1{mark}.weight"].squeeze(-1)[:, -features.shape[1] :].double()
            return F.linear(pooled, head.cloud_linear.weight[:, : pooled.shape[1]]) + features @ weight.T

        head._describe_cloud = describe_cloud
        output = model(values["points"].double(), labels=values["labels"], category_ids=values["category"])
        output.loss.backward()
        found = output.logits.log_softmax(dim=-1)
        assert (found - values[f"{mode}.log_probabilities"]).abs().max() < tolerance
        expected = method.under(f"{mode}.grad.")
        cloud_linear = "base_model.model.segmentation_head.cloud_linear.weight"
        num_features = head.cloud_linear.weight.shape[1] - head.num_categories
        gradient = expected.pop(cloud_linear)[:, :num_features]
        worst = (head.cloud_linear.weight.grad[:, :num_features] - gradient).abs().max() / gradient.abs().max()
        assert worst < tolerance
        head.cloud_linear.weight.requires_grad_(False)
        # The biases in front of the norms of the published head are a part of these here.
        expected = {name: gradient for name, gradient in expected.items() if "running_mean" not in name}
        check_gradients(model, expected, method.zero(mode), tolerance)

    return check
