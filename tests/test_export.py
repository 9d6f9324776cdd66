"""Models as files: every type and backbone, what files say about themselves, and what cannot be exported."""

import json
import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model

import point_peft_hf as pp
from point_peft_hf import export
from point_peft_hf.data import PointCloudProcessor
from point_peft_hf.export import export_model
from point_peft_hf.ops import farthest_point_sample, inverse_distance_weights, knn_indices
from point_peft_hf.ops.exporting import exporting_for_onnx
from point_peft_hf.tuners.point_prior_prompt.bank import PointPriorBank

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    # Libraries about their own functions.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
]
NUM_POINTS = 32
BLOCKS = {"num_attention_heads": 2, "patch_hidden_sizes": (6, 8, 8), "classifier_hidden_size": 8, "num_labels": 3}
SINGLE = {"hidden_size": 12, "num_hidden_layers": 1, "num_groups": 8, "group_size": 4}
STAGES = {
    "hidden_sizes": (12, 12),
    "depths": (1, 1),
    "num_groups": (12, 8),
    "group_sizes": (4, 4),
    "attention_radii": (0.5, 1.0),
}
BACKBONES = {
    "point_mae": (pp.PointMAEForClassification, pp.PointMAEConfig),
    "point_bert": (pp.PointBertForClassification, pp.PointBertConfig),
    "point_m2ae": (pp.PointM2AEForClassification, pp.PointM2AEConfig),
    "point_gpt": (pp.PointGPTForClassification, pp.PointGPTConfig),
    "recon": (pp.ReConForClassification, pp.ReConConfig),
}
CONFIGS = {
    "lora": lambda: LoraConfig(r=2, target_modules=["q_proj", "fc1"]),
    "point_peft": lambda: pp.PointPeftConfig(num_prompt_tokens=4),
    "stag": lambda: pp.STAGConfig(rank=4, num_neighbors=3),
    "gaprompt": lambda: pp.GAPromptConfig(num_prompt_tokens=2, num_points=3),
    "dapt": lambda: pp.DAPTConfig(bottleneck_size=4),
    "idpt": lambda: pp.IDPTConfig(num_neighbors=3),
    "ppt": lambda: pp.PPTConfig(bottleneck_size=4, num_prompt_groups=6, prompt_group_size=3),
    "pointlora": lambda: pp.PointLoRAConfig(r=2, bottleneck_size=4, scales=[[12, 4, 6]], mask_loss_weights=[0.01]),
    "pointgst": lambda: pp.PointGSTConfig(bottleneck_size=4, local_size=4),
}


@pytest.fixture(autouse=True, scope="module")
def _no_trace_of_compilation():
    # pytest listens to all that is logged, and PyTorch then formats what nobody reads.
    logger = logging.getLogger("torch.__trace")
    logger.disabled = True
    yield
    logger.disabled = False


def spread(model):
    """Weights of such sizes that every part counts, whatever it starts with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1, generator=generator)
    return model.eval()


def make_backbone(name="point_mae", model_class=None, **fields):
    torch.manual_seed(0)
    classifier, config_class = BACKBONES[name]
    sizes = STAGES if name == "point_m2ae" else SINGLE
    config = config_class(**BLOCKS | sizes | {"id2label": dict(enumerate(("cup", "lamp", "chair")))} | fields)
    return (model_class or classifier)(config)


def make_model(adapter, backbone="point_mae"):
    model = spread(get_peft_model(make_backbone(backbone), CONFIGS[adapter]()))
    if adapter == "point_peft":
        features = torch.randn(9, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
        layers = [module for module in model.modules() if hasattr(module, "set_bank")]
        features = torch.nn.functional.normalize(features)
        entries = PointPriorBank(features, torch.arange(9) % 3, torch.arange(9))
        layers[0].set_bank("default", entries)
    return model


def clouds(count):
    return torch.randn(count, NUM_POINTS, 3, generator=torch.Generator().manual_seed(3)) / 2


def open_onnx(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(session, **inputs):
    (logits,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(logits)


@torch.no_grad()
def check(model, run, **inputs):
    expected, got = model(**inputs).logits, run(**inputs)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


PROCESSOR = PointCloudProcessor(num_points=NUM_POINTS)


# An export takes seconds however small the model is, so each type is tried on one backbone, and those with no
# operators of their own as programs of PyTorch, which takes half as long.
@pytest.mark.parametrize(
    ("adapter", "backbone", "format"),
    [
        ("point_peft", "point_mae", "onnx"),  # the geometry adapter, and prompts with a bank
        ("gaprompt", "point_mae", "onnx"),
        ("pointlora", "point_mae", "onnx"),
        ("lora", "point_m2ae", "onnx"),
        ("dapt", "point_gpt", "onnx"),
        ("stag", "point_bert", "torch"),
        ("ppt", "recon", "torch"),
    ],
)
def test_types_and_backbones(adapter, backbone, format, tmp_path):
    model = make_model(adapter, backbone)
    exported = export_model(model, PROCESSOR, tmp_path / f"model{export.FORMATS[format]}")
    if format == "onnx":
        session = open_onnx(exported.path)
        run = partial(run_onnx, session)
        assert [(value.name, value.shape[1:]) for value in session.get_inputs()] == [("points", [NUM_POINTS, 3])]
        found = session.get_modelmeta().custom_metadata_map
    else:
        files = {export.METADATA_NAME: ""}
        run, found = (
            torch.export.load(exported.path, extra_files=files).module(),
            json.loads(files[export.METADATA_NAME]),
        )
    for count in (1, 4):
        check(model, run, points=clouds(count))
    assert (found["adapter_type"], found["model_type"]) == (adapter, backbone)
    assert list(tmp_path.iterdir()) == [exported.path]


ALONE = """
import json, sys, torch
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("point_peft_hf", "peft", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
metadata = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=metadata).module()
logits = program(points=torch.load(sys.argv[2]))
assert not logits.requires_grad
torch.save(logits, sys.argv[3])
print(metadata["metadata.json"])
"""


def test_a_program_needs_no_package(tmp_path):
    model = make_model("pointgst").train()
    parameters = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    export_model(model, PROCESSOR, tmp_path / "model.pt2")
    # The model is as it was.
    assert model.training
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == parameters
    points = clouds(5)
    torch.save(points, tmp_path / "points.pt")
    files = [str(tmp_path / name) for name in ("model.pt2", "points.pt", "logits.pt")]
    done = subprocess.run([sys.executable, "-c", ALONE, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(model.eval(), lambda points: torch.load(tmp_path / "logits.pt"), points=points)
    described = json.loads(done.stdout)
    with pytest.raises(ValueError, match=r"ONNX has no operator for the eigenvectors.*--format torch"):
        export._write_onnx(torch.export.load(tmp_path / "model.pt2"), {}, tmp_path / "model.onnx", None, described)
    assert not (tmp_path / "model.onnx").exists()
    assert described.pop("package_version")
    assert described == {
        "task": "classification",
        "class_names": ["cup", "lamp", "chair"],
        "num_points": NUM_POINTS,
        "processor": PROCESSOR.to_dict(),
        "model_type": "point_mae",
        "adapter_type": "pointgst",
        "precision": "float32",
    }


def test_weights_of_8_bits(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = make_model("lora")
    exported = export_model(model, PROCESSOR, tmp_path / "model.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == [exported.path]
    kinds = {each.data_type for each in onnx.load(exported.path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    session = open_onnx(exported.path)
    found = session.get_modelmeta().custom_metadata_map
    assert (found["precision"], found["adapter_type"]) == ("int8", "lora")
    points = export._example(PROCESSOR, export._QUANTIZED_CHECKED, {})["points"]
    with torch.no_grad():
        expected, got = model(points=points).logits, run_onnx(session, points=points)
    assert exported.difference == pytest.approx(float((got - expected).abs().max() / expected.abs().max()), rel=1e-3)
    assert 0 < exported.difference < 0.2
    assert exported.agreement == float((got.argmax(-1) == expected.argmax(-1)).float().mean())


def test_parts_with_categories(tmp_path):
    fields = {"num_categories": 2, "category_names": ["lamp", "cup"], "category_parts": [[2], [0, 1]]}
    sizes = {
        "segmentation_token_size": 8,
        "segmentation_propagation_sizes": [6],
        "segmentation_hidden_sizes": [6],
        "segmentation_layers": [0],
    }
    backbone = make_backbone(model_class=pp.PointMAEForSegmentation, **fields, **sizes)
    model = spread(get_peft_model(backbone, CONFIGS["idpt"]()))
    exported = export_model(model, PROCESSOR, tmp_path / "parts.onnx")
    session = open_onnx(exported.path)
    inputs = {"points": clouds(3), "category_ids": torch.tensor([1, 0, 1])}
    check(model, partial(run_onnx, session), **inputs)
    found = session.get_modelmeta().custom_metadata_map
    assert found["task"] == "part_segmentation"
    assert {name: json.loads(found[name]) for name in fields} == fields


class Operations(torch.nn.Module):
    """What an exported program must find exactly."""

    def forward(self, points, targets):
        picked = [farthest_point_sample(points, 12, skip_near_origin=skip) for skip in (False, True)]
        return *picked, knn_indices(targets, points, 7), inverse_distance_weights(targets, points)


@pytest.mark.parametrize("for_onnx", [True, False])
def test_operations_are_exact_where_points_are_equal_or_equally_far(for_onnx, tmp_path):
    # On a grid most distances occur more than once, and so do points; some are at the origin.
    points = torch.randint(-2, 3, (3, 40, 3), generator=torch.Generator().manual_seed(4)) / 4
    points[0, :30] = 0
    inputs = {"points": points, "targets": points[:, ::5].clone()}
    expected = Operations()(**inputs)
    shapes = {name: {0: torch.export.Dim("batch", min=1)} for name in inputs}
    traced = {name: value[:2] for name, value in inputs.items()}
    if not for_onnx:
        program = torch.export.export(Operations(), (), traced, dynamic_shapes=shapes)
        assert "point_peft_hf" not in str(program.graph)
        got = program.module()(**inputs)
    else:
        with exporting_for_onnx():
            program = torch.export.export(Operations(), (), traced, dynamic_shapes=shapes)
        torch.onnx.export(program, (), kwargs=traced, optimize=False, verbose=False).save(tmp_path / "ops.onnx")
        session = open_onnx(tmp_path / "ops.onnx")
        got = map(torch.from_numpy, session.run(None, {name: value.numpy() for name, value in inputs.items()}))
    *indices, weights = zip(got, expected, strict=True)
    assert all(torch.equal(*pair) for pair in indices)
    # Here an epsilon that gets lost divides 0 by 0.
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_a_file_that_differs_does_not_take_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    monkeypatch.setattr(export, "_write_torch", lambda program, path, described: lambda inputs: torch.zeros(1))
    monkeypatch.setattr(export, "_trace", lambda *arguments: None)
    (tmp_path / "model.pt2").write_text("old")
    with pytest.raises(ValueError, match=r"logits of shape \(1,\) in place of \(1, 3\)"):
        export_model(make_backbone(), PROCESSOR, tmp_path / "model.pt2")
    wrong = torch.full((3, 3), torch.nan)
    monkeypatch.setattr(export, "TOLERANCE", 1e-5)
    monkeypatch.setattr(export, "_write_torch", lambda *arguments: lambda inputs: wrong[: len(inputs["points"])])
    with pytest.raises(ValueError, match="gives other logits than the model"):
        export_model(make_backbone(), PROCESSOR, tmp_path / "model.pt2")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.pt2", "old")]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, r"ends with .pt2 for the format torch, .onnx for the format onnx; got .*model.bin"),
        ("model.onnx", {"format": "torch"}, "got .*model.onnx with the format torch"),
        ("model.pt2", {"opset": 20}, "`opset`=20 is for ONNX files"),
        ("model.pt2", {"precision": "int8"}, "int8 is for ONNX files .*; got 'int8' for a file of the format torch"),
        ("model.onnx", {"precision": "int4"}, "must be one of float32, int8, .*; got 'int4'"),
    ],
)
def test_names_and_options_that_do_not_fit(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(make_backbone(), PROCESSOR, tmp_path / name, **options)


def test_models_that_cannot_be_exported(tmp_path):
    sizes = {"depths": (1,), "hidden_sizes": (12,), "num_attention_heads": (1,), "patch_sizes": (16,)}
    scenes = pp.PointTransformerV3ForSemanticSegmentation(pp.PointTransformerV3Config(**sizes))
    for model in (scenes, make_backbone().point_mae):
        with pytest.raises(ValueError, match=f"A {type(model).__name__} cannot be exported: only classifiers and"):
            export_model(model, PROCESSOR, tmp_path / "model.pt2")


def test_a_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"ONNX files need onnxscript, which is not installed: pip install .*export"):
        export_model(make_backbone(), PROCESSOR, tmp_path / "model.onnx")


def test_an_adapter_that_reads_values_says_what_stops_it(tmp_path, monkeypatch):
    model = make_backbone()
    head = model.classifier.forward
    monkeypatch.setattr(model.classifier, "forward", lambda pooled: head(pooled) if pooled.max() > 0 else pooled)
    with pytest.raises(ValueError, match="point_mae with a model without an adapter cannot be exported: "):
        export_model(model, PROCESSOR, tmp_path / "model.pt2")
