"""Published files of methods, converted as a user converts them, and the values of their authors' code."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from peft import PeftModel

import point_peft_hf as pp
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
        options = {"drop_path_rate": 0.0, "classifier_dropout": 0.0, "dtype": torch.float32}
        backbone = pp.AutoModelForPointCloudClassification.from_pretrained(self.folder / "backbone", **options)
        return PeftModel.from_pretrained(backbone, self.folder / "adapter", is_trainable=True).to(dtype).eval()

    def named(self, tensors):
        """Tensors with published names, such as gradients, by their names in the adapter's file."""
        before, after = (self._by_own_names(t) for t in (self.tensors, {**self.tensors, **tensors}))
        return {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}

    def _by_own_names(self, tensors):
        published = self.read(tensors, self.settings, "point_mae")
        renamed, _ = rename_tensors(published.base, "point_mae")
        return {**published.weights, **{f"base_model.model.{name}": tensor for name, tensor in renamed.items()}}

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
