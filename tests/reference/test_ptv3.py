"""Models of the Point Transformer V3 family, converted as a user converts them, and the values of their authors' code.

Values within 1e-5 of the largest, gradients within 1e-5 of the largest entry of each. The published batch has one
curve for all of its clouds, so its values hold in the rows of the largest; each cloud alone has values of its own.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudSemanticSegmentation,
    PointTransformerV3Model,
)
from point_peft_hf.models.convert import convert_checkpoint, load_checkpoint
from point_peft_hf.models.convert_ptv3_keys import research_names, target_name, with_stem
from point_peft_hf.ops import spread
from point_peft_hf.voxels import VoxelStage

HEADS = {"sonata": "sonata_linear_head", "utonia": "utonia_linear_head"}
# The supervised files do not say how they were trained; the others do not say how many heads they have.
VARIANTS = {"ptv3": "ptv3", "ptv3_rpe": "ptv3"}
CONFIGS = {
    "ptv3": {"num_attention_heads": [2, 3, 4], "decoder_num_attention_heads": [3, 3], "patch_sizes": [32] * 3},
    "ptv3_rpe": {"num_attention_heads": [1, 3, 2], "decoder_num_attention_heads": [3, 2], "patch_sizes": [16] * 3},
    "sonata_decoder": {
        "num_attention_heads": [1, 2, 3],
        "decoder_num_attention_heads": [3, 2],
        "patch_sizes": [32] * 3,
    },
}
NAMES = ("sonata", "utonia", "sonata_decoder", "ptv3", "ptv3_rpe")


class Reference:
    """A published model, and what its code computes."""

    def __init__(self, folder, name, out):
        self.folder, self.name = folder, name
        with np.load(folder / f"{name}.npz") as arrays:
            self.values = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        self.notes = json.loads((folder / f"{name}.json").read_text())
        self.out = out / name
        self.report = self.convert(self.out)

    def convert(self, out, **options):
        options = {"config": CONFIGS.get(self.name), "variant": VARIANTS.get(self.name)} | options
        return convert_checkpoint(self.folder / f"{self.name}.pth", out, "ptv3", **options)

    def model(self, folder=None, **fields):
        """With a linear head, from the same or from a second file, without chance."""
        fields = {"drop_path_rate": 0.0, "num_labels": 13} | fields
        model = AutoModelForPointCloudSemanticSegmentation.from_pretrained(folder or self.out, **fields)
        if self.name in HEADS:
            load_checkpoint(model, self.folder / f"{HEADS[self.name]}.pth")
        return model.eval()

    def inputs(self, cloud=None):
        given = {
            "coordinates": self["in.coord"],
            "grid_coordinates": self["in.grid_coord"],
            "features": self["in.feat"],
            "batch_index": self["in.batch"],
        }
        if cloud is None:
            return given
        rows = self["in.batch"] == cloud
        alone = {key: value[rows] for key, value in given.items()}
        return {**alone, "batch_index": alone["batch_index"] - cloud}

    def __getitem__(self, key):
        return self.values[key]


@pytest.fixture(scope="module", params=NAMES)
def reference(request, reference_dir, tmp_path_factory):
    return Reference(reference_dir / "backbones", request.param, tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def model(reference):
    return reference.model()


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


def upcast(encoded):
    """Features of all stages side by side, for each voxel of the input."""
    rows = encoded.levels[-1]
    for level, finer in zip(encoded.levels[-2::-1], encoded.voxels[:0:-1], strict=True):
        rows = torch.cat([level, spread(rows, finer.clusters)], dim=-1)
    return rows


def test_conversion(reference):
    report = reference.report
    assert not [name for name in report.new if "semantic_head" not in name]
    assert set(report.ignored) <= {"embedding.mask_token"} | {name for name in report.ignored if "inv_freq" in name}
    assert report.weights_license == ("mit" if "ptv3" in reference.name else "cc-by-nc-4.0")


@torch.no_grad()
def test_each_cloud_alone_and_in_a_batch(reference, model):
    together = model(**reference.inputs()).logits
    for cloud in (0, 1):
        expected = reference[f"alone{cloud}.logits"] if f"alone{cloud}.logits" in reference.values else None
        alone = model(**reference.inputs(cloud)).logits
        rows = together[reference["in.batch"] == cloud]
        assert_close(rows, alone)
        if expected is not None:
            assert_close(alone, expected)


@pytest.fixture
def one_curve(monkeypatch):
    """Curves through as many levels for all clouds, as published."""
    depth = torch.ones(1, dtype=torch.int64)

    def largest(values):
        return grid_depth(values.max() + 0 * values) * depth

    from point_peft_hf.ops import grid_depth

    monkeypatch.setattr("point_peft_hf.voxels.grid_depth", largest)


@torch.no_grad()
def test_values_in_a_published_batch(reference, model, one_curve):
    if reference.name == "ptv3_rpe":
        # Published without FlashAttention, where the patches of all clouds are those of the smallest.
        pytest.skip("its patches are of the published size here for all but single clouds")
    encoded = model.ptv3.encode(**reference.inputs())
    seen = {}
    for s, stage in enumerate(model.ptv3.stages):
        for i, layer in enumerate(stage.layers):
            layer.register_forward_hook(lambda _, __, out, key=f"enc{s}.block{i}.feat": seen.update({key: out[0]}))
    output = model(**reference.inputs())
    expected = [key for key in reference.values if key.startswith("enc") and key.endswith(".feat") and "block" in key]
    assert len(expected) == sum(model.config.depths)
    for key in expected:
        assert_close(seen[key], reference[key])
    for s, voxels in enumerate(encoded.voxels):
        codes = voxels.codes + (voxels.batch_index << 3 * int(reference[f"enc{s}.depth"]))
        assert torch.equal(codes, reference[f"enc{s}.code"].long())
        if s:
            assert torch.equal(voxels.grid, reference[f"enc{s}.down.grid_coord"].long())
            assert torch.equal(voxels.clusters.parents, reference[f"enc{s}.down.inverse"].long())
            assert_close(voxels.coordinates, reference[f"enc{s}.down.coord"])
    if "upcast_all" in reference.values:
        assert_close(upcast(encoded), reference["upcast_all"])
    if "feat" in reference.values:
        assert_close(output.last_hidden_state, reference["feat"])
    assert_close(output.logits, reference["logits"])


def test_gradients(reference, one_curve):
    if reference.name == "ptv3_rpe":
        pytest.skip("see above")
    model = reference.model()
    (model(**reference.inputs()).logits * reference["R"]).sum().backward()
    state = dict(model.named_parameters())
    expected = {key.removeprefix("grad."): value for key, value in reference.values.items() if key.startswith("grad.")}
    assert expected
    for name, gradient in expected.items():
        gradient = gradient.permute(1, 2, 3, 4, 0) if gradient.ndim == 5 else gradient
        assert_close(state[target_name(name)].grad, gradient)


@torch.no_grad()
def test_repaired_position_features(reference, tmp_path, one_curve):
    if "fixed.logits" not in reference.values or reference.name == "ptv3_rpe":
        pytest.skip("no such variant")
    reference.convert(tmp_path, variant="ptv3-repaired")
    assert_close(reference.model(tmp_path)(**reference.inputs()).logits, reference["fixed.logits"])


@torch.no_grad()
def test_shuffled_curves(reference, one_curve, monkeypatch):
    if "shuffled.perms" not in reference.values:
        pytest.skip("no such values")
    model = reference.model()
    shuffles = iter(reference["shuffled.perms"].tolist())
    monkeypatch.setattr(PointTransformerV3Model, "_shuffle", lambda self: next(shuffles))
    assert_close(model(**reference.inputs()).logits, reference["shuffled.logits"])


@torch.no_grad()
def test_classification(reference, one_curve):
    if "cls.logits" not in reference.values:
        pytest.skip("no such values")
    model = AutoModelForPointCloudClassification.from_pretrained(reference.out, num_labels=15).eval()
    load_checkpoint(model, reference.folder / f"{reference.name}_cls_head.pth")
    output = model(**reference.inputs())
    assert_close(output.pooler_output, reference["cls.pooled"])
    assert_close(output.logits, reference["cls.logits"])


@torch.no_grad()
def test_from_pretrained_reads_the_file_itself(reference, model):
    fields = CONFIGS.get(reference.name, {}) | (
        {"legacy_position_features": True} if VARIANTS.get(reference.name) else {}
    )
    other = reference.model(reference.folder / f"{reference.name}.pth", **fields)
    assert torch.equal(other(**reference.inputs()).logits, model(**reference.inputs()).logits)


@torch.no_grad()
def test_the_layout_of_the_hub(reference_dir, tmp_path):
    reference = Reference(reference_dir / "backbones", "sonata", tmp_path)
    hub = reference.model(reference_dir / "backbones" / "sonata_hub")
    inputs = reference.inputs()
    assert torch.equal(hub(**inputs).logits, reference.model()(**inputs).logits)


@pytest.mark.parametrize(
    ("file", "name"),
    [("sonata_linear_probe", "sonata"), ("utonia_linear_probe", "utonia"), ("ptv3_segmentor", "ptv3")],
)
def test_torch_pointcloud(file, name, reference_dir, tmp_path):
    reference = Reference(reference_dir / "backbones", name, tmp_path)
    tensors = load_file(reference.folder / f"torch_pointcloud_{file}.safetensors")
    pairs = json.loads((reference.folder / "torch_pointcloud_keys2.json").read_text())[file]
    names = with_stem(research_names(tensors), {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    assert names == {own: official.removeprefix("backbone.") for own, official in pairs}
    config = reference.model().config
    fields = {field: getattr(config, field) for field in ("num_attention_heads", "patch_sizes")}
    fields["decoder_num_attention_heads"] = config.decoder_num_attention_heads
    fields = {field: value for field, value in fields.items() if value is not None}
    convert_checkpoint(reference.folder / f"torch_pointcloud_{file}.safetensors", tmp_path / "other", "ptv3", fields)
    with torch.no_grad():
        expected = reference.model()(**reference.inputs()).logits
        other = AutoModelForPointCloudSemanticSegmentation.from_pretrained(tmp_path / "other")
        assert_close(other.eval()(**reference.inputs()).logits, expected)


def test_full_size_models_of_torch_pointcloud(reference_dir):
    from point_peft_hf.models.convert import choose_class
    from point_peft_hf.models.convert_keys import guess_model_type
    from point_peft_hf.models.convert_tensors import convert_tensors

    models = json.loads((reference_dir / "backbones" / "torch_pointcloud_full_keys2.json").read_text())
    models = {name: model for name, model in models.items() if "pointgpt" not in name.lower()}
    assert models
    for name, model in models.items():
        tensors = {key: torch.empty(shape, device="meta") for key, shape in model["keys"].items()}
        if guess_model_type(tensors) != "ptv3":
            assert not any("blocks.0.blocks.0" in key for key in tensors), name
            continue
        converted = convert_tensors(tensors, "ptv3", name=name)
        _, expected = choose_class("ptv3", converted, name)
        assert {key: tensor.shape for key, tensor in converted.tensors.items()} == expected


@pytest.mark.parametrize("case", ["k3", "k5"])
def test_submanifold_convolution(case, reference_dir):
    from point_peft_hf.ops import NeighborTable, submanifold_conv

    with np.load(reference_dir / "backbones" / "submanifold_conv.npz") as arrays:
        v = {key.removeprefix(f"{case}."): torch.from_numpy(arrays[key]) for key in arrays.files if case in key}
    x, bias = v["x"].requires_grad_(), v["bias"].requires_grad_()
    weight = v["weight"].permute(1, 2, 3, 4, 0).contiguous().requires_grad_()
    table = NeighborTable.build(v["grid_coord"], v["batch"], int(case[1]))
    y = submanifold_conv(x, weight, bias, table)
    (y * v["R"]).sum().backward()
    assert_close(y, v["y"])
    assert_close(x.grad, v["grad_x"])
    assert_close(weight.grad, v["grad_weight"].permute(1, 2, 3, 4, 0))
    assert_close(bias.grad, v["grad_bias"])


def test_serialization(reference_dir):
    from point_peft_hf.ops import CURVES, curve_codes

    with np.load(reference_dir / "backbones" / "serialization.npz") as arrays:
        values = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    depths = {int(key[1:].partition(".")[0]) for key in values}
    for depth in depths:
        grid, batch = values[f"d{depth}.grid_coord"], values[f"d{depth}.batch"]
        for curve in CURVES:
            for given in (depth, torch.full_like(batch, depth)):
                codes = batch << 3 * depth | curve_codes(grid, given, curve)
                assert torch.equal(codes, values[f"d{depth}.{curve}"])


@pytest.mark.parametrize("case", range(4))
def test_patches(case, reference_dir):
    """Each voxel attends to the published ones: those of its padded patch."""
    from point_peft_hf.voxels import Patches

    with np.load(reference_dir / "backbones" / "patches.npz") as arrays:
        v = {key.removeprefix(f"{case}."): arrays[key] for key in arrays.files if key.startswith(f"{case}.")}
    counts, size = v["counts"].tolist(), int(v["patch_size"])
    edges = v["cu_seqlens"].tolist()
    expected = {}
    for place, slot in enumerate(v["unpad"].tolist()):
        start = max(edge for edge in edges if edge <= slot)
        stop = min(edge for edge in edges if edge > slot)
        expected[place] = sorted(v["pad"][start:stop].tolist())
    patches = Patches.cut(counts, size)
    numbers = range(sum(counts)) if patches.arrangement is None else patches.arrangement.tolist()
    found = {}
    for place in range(patches.num_full * size):
        start = place // size * size
        found[numbers[place]] = sorted(numbers[i] for i in range(start, start + size))
    for piece in patches.pieces:
        seen = sorted(numbers[i] for i in (*piece.more, *range(piece.start, piece.stop)))
        found |= {numbers[i]: seen for i in range(piece.start, piece.stop)}
    assert found == expected


def test_the_stage_of_a_batch_is_that_of_its_clouds(reference):
    inputs = reference.inputs()
    geometry = [inputs["coordinates"], inputs["grid_coordinates"].long(), inputs["batch_index"].long()]
    together = VoxelStage.first(*geometry, ["hilbert"], 32)
    for cloud in (0, 1):
        rows = geometry[2] == cloud
        alone = VoxelStage.first(geometry[0][rows], geometry[1][rows], geometry[2][rows] - cloud, ["hilbert"], 32)
        assert torch.equal(together.codes[:, rows], alone.codes)
