"""Models as files that run without this package: programs of PyTorch (.pt2) and ONNX files (.onnx).

    from point_peft_hf.export import export_model
    from point_peft_hf.training import Predictor

    predictor = Predictor.from_pretrained("outputs/point_peft")
    export_model(predictor.model, predictor.processor, "point_peft.onnx")

A file takes `points`, float32 of shape `(batch_size, num_points, 3)`, as the processor prepares them, and gives
`logits` of shape `(batch_size, num_labels)`, or of a part segmentation `(batch_size, num_points, num_labels)`. A part
segmentation with categories also takes `category_ids`, int64 of shape `(batch_size,)`. The metadata in the file say
how clouds are prepared and what the labels are called.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from .data import PointCloudProcessor
from .data.procedural import BASE_CLASSES, sample_shape
from .extras import install_command
from .models.configuration import class_names_of
from .models.modeling import PointClassificationMixin
from .models.segmentation import PointSegmentationMixin, leave_out_other_parts
from .ops.exporting import exporting_for_onnx

__all__ = ["FORMATS", "PRECISIONS", "Exported", "check_format", "describe", "export_model"]

FORMATS = {"torch": ".pt2", "onnx": ".onnx"}
PRECISIONS = ("float32", "int8")
# In a .pt2, where `torch.export.load(path, extra_files={METADATA_NAME: ""})` reads it.
METADATA_NAME = "metadata.json"
TOLERANCE = 1e-5
# Batches that the file is checked on; the program is traced with another size.
_CHECKED, _TRACED = (1, 3), 2
_QUANTIZED_CHECKED = 32
# Operators of our adapters that ONNX does not have, and what they are.
_NOT_IN_ONNX = {"aten.linalg_eigh.default": "the eigenvectors of a matrix, which PointGST computes of each cloud"}
_Run = Callable[[dict[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: Where it is.
        format: "torch" or "onnx".
        opset: Version of the operators of an ONNX file; `None` for a program of PyTorch.
        num_bytes: Size of the file.
        difference: Largest difference between its logits and those of the model, as a share of the largest logit.
        metadata: What the file says about itself.
        agreement: Share of the clouds (of a part segmentation: of the points) that both give the same label.
    """

    path: Path
    format: str
    opset: int | None
    num_bytes: int
    difference: float
    metadata: dict[str, Any]
    agreement: float = 1.0


def export_model(
    model: nn.Module,
    processor: PointCloudProcessor,
    path: str | os.PathLike,
    *,
    format: str | None = None,
    opset: int | None = None,
    precision: str = "float32",
) -> Exported:
    """Write a model, with its active adapters, to a file that runs without this package.

    The batch size is free, the number of points is that of the processor. The file is compared with the model on a few
    clouds, and takes its place only if they agree.

    Args:
        model: A classifier or a part segmentation, on the CPU; a `PeftModel` or the backbone itself.
        processor: What prepares its clouds.
        path: The file.
        format: "torch" for a program that `torch.export.load` reads (.pt2), "onnx" for an ONNX file (.onnx). Default:
            what the ending of the file says.
        opset: Version of the ONNX operators. Default: the one that PyTorch translates to without conversion.
        precision: "float32", or "int8" for an ONNX file whose weights are of 8 bits, about a third of the size. Its
            logits differ from the model's by a few per cent: how much on 32 clouds is measured, and not limited.

    Returns:
        What was written.

    Raises:
        ValueError: If the model cannot be exported, an option does not fit, or the file computes something else.
        ImportError: If the extra `export` is not installed, which ONNX files need.
    """
    path = Path(path)
    format = check_format(path, format, opset, precision)
    described = describe(model, processor) | {"precision": precision}
    inputs = {size: _example(processor, size, described) for size in (_TRACED, *_CHECKED)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, _still(model):
        new = Path(folder, path.name)
        logits = _Logits(model)
        program = _trace(logits, inputs[_TRACED], format, described)
        if format == "onnx":
            opset, run = _write_onnx(program, inputs[_TRACED], new, opset, described)
        else:
            run = _write_torch(program, new, described)
        difference = max(_difference(run(inputs[size]), logits(**inputs[size])) for size in _CHECKED)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The {format} file of this model gives other logits than the model: they differ by {difference:.1e} "
                f"of the largest, and {TOLERANCE:.0e} is allowed. Nothing was written. Export with another format"
                f"{' or opset' if format == 'onnx' else ''}, and report it with the type of the adapter."
            )
        agreement = 1.0
        if precision == "int8":
            new, run = _quantize(new)
            inputs = _example(processor, _QUANTIZED_CHECKED, described)
            got, expected = run(inputs), logits(**inputs)
            difference = _difference(got, expected)
            agreement = _agreement(got, expected, inputs.get("category_ids"), described.get("category_parts"))
            if math.isnan(difference):
                raise ValueError("The int8 file of this model gives no numbers. Nothing was written. Use float32.")
        num_bytes = new.stat().st_size
        del run  # it may hold the file open
        os.replace(new, path)
    return Exported(path, format, opset, num_bytes, difference, described, agreement)


def check_format(path: Path, format: str | None, opset: int | None = None, precision: str = "float32") -> str:
    """The format of a file.

    Raises:
        ValueError: If name, format, opset and precision do not fit together.
        ImportError: If libraries that the format needs are not installed.
    """
    if format is None:
        format = next((name for name, ending in FORMATS.items() if ending == path.suffix.lower()), None)
    if format not in FORMATS or path.suffix.lower() != FORMATS[format]:
        known = ", ".join(f"{ending} for the format {name}" for name, ending in FORMATS.items())
        raise ValueError(f"The name of an exported file ends with {known}; got {path} with the format {format}.")
    if precision not in PRECISIONS or (precision == "int8" and format != "onnx"):
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}, and int8 is for ONNX files (format='onnx', --format "
            f"onnx); got {precision!r} for a file of the format {format}."
        )
    if format == "torch" and opset is not None:
        raise ValueError(f"`opset`={opset} is for ONNX files. Leave it out, or use the format onnx.")
    if format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            command = install_command("export")
            raise ImportError(f"ONNX files need {error.name}, which is not installed: {command}") from error
    return format


def describe(model: nn.Module, processor: PointCloudProcessor) -> dict[str, Any]:
    """What a file says about itself.

    Raises:
        ValueError: If the model is none that can be exported.
    """
    backbone = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(backbone, PointClassificationMixin | PointSegmentationMixin):
        raise ValueError(
            f"A {type(backbone).__name__} cannot be exported: only classifiers and part segmentations of point "
            "transformers can. Encoders of scenes sort and pack the voxels of all clouds, so that no size in them is "
            "fixed; use `point-peft serve` or `point-peft predict` for them."
        )
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        raise ValueError(f"The model is on {', '.join(sorted(devices))}. Move it to the CPU first: model.cpu().")
    config, is_parts = backbone.config, isinstance(backbone, PointSegmentationMixin)
    described = {
        "task": "part_segmentation" if is_parts else "classification",
        "class_names": class_names_of(config),
        "num_points": processor.num_points,
        "processor": processor.to_dict(),
        "model_type": config.model_type,
        "adapter_type": ", ".join(_adapter_types(model)) or None,
        "package_version": metadata.version("point-peft-hf"),
    }
    if is_parts and config.num_categories:
        described["category_names"] = list(config.category_names or ())
        described["category_parts"] = [list(parts) for parts in config.category_parts or ()]
        described["num_categories"] = config.num_categories
    return described


def _adapter_types(model: nn.Module) -> list[str]:
    """Types of the adapters that are at work."""
    configs = getattr(model, "peft_config", {})
    if not configs:
        return []
    active = model.active_adapters
    return [configs[name].peft_type.value.lower() for name in (active() if callable(active) else active)]


class _Logits(nn.Module):
    """The model as a function of tensors to one tensor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, points: torch.Tensor, category_ids: torch.Tensor | None = None) -> torch.Tensor:
        further = {} if category_ids is None else {"category_ids": category_ids}
        return self.model(points=points, **further).logits


def _example(processor: PointCloudProcessor, size: int, described: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Inputs for a batch of different shapes, the last one of few points, so that some occur more than once."""
    count = processor.num_points
    names = [BASE_CLASSES[number % len(BASE_CLASSES)] for number in range(size)]
    clouds = [sample_shape(name, 2 * count, seed) for seed, name in enumerate(names)]
    clouds[-1] = clouds[-1][: max(count // 2, 1)]
    inputs = {"points": processor(clouds)["points"]}
    if "num_categories" in described:
        inputs["category_ids"] = torch.arange(size) % described["num_categories"]
    return inputs


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Keep the model as it predicts, with nothing to be trained, which a program would remember."""
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _muted() -> Iterator[None]:
    """Mute what the libraries say about their own functions, and about operators that no model here has."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _trace(
    logits: nn.Module, inputs: dict[str, torch.Tensor], format: str, described: Mapping[str, Any]
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    with exporting_for_onnx() if format == "onnx" else nullcontext(), _muted():
        try:
            # Not strict: adapters pass dictionaries and closures around, which only this mode looks through.
            return torch.export.export(logits, (), inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # of any class, as it comes out of the code of any adapter
            raise _cannot(described, error) from error


def _cannot(described: Mapping[str, Any], error: Exception) -> ValueError:
    while error.__cause__ is not None:
        error = error.__cause__
    reason = str(error).strip().split("\n")[0]
    what = described["adapter_type"] or "a model without an adapter"
    return ValueError(f"{described['model_type']} with {what} cannot be exported: {type(error).__name__}: {reason}")


# -- PyTorch ----------------------------------------------------------------------------------------------------------


def _write_torch(program: torch.export.ExportedProgram, path: Path, described: Mapping[str, Any]) -> _Run:
    torch.export.save(program, path, extra_files={METADATA_NAME: json.dumps(described)})
    loaded = torch.export.load(path).module()
    return lambda inputs: loaded(**inputs)


# -- ONNX -------------------------------------------------------------------------------------------------------------


def _write_onnx(
    program: torch.export.ExportedProgram,
    inputs: dict[str, torch.Tensor],
    path: Path,
    opset: int | None,
    described: Mapping[str, Any],
) -> tuple[int, _Run]:
    targets = {str(node.target) for node in program.graph.nodes}
    for name in sorted(targets & set(_NOT_IN_ONNX)):
        raise ValueError(
            f"ONNX has no operator for {_NOT_IN_ONNX[name]} ({name}). Export a program of PyTorch instead: "
            "format='torch' (--format torch)."
        )
    with _muted():
        try:
            # The optimizer takes a constant of up to 1e-8 for 0 and drops its addition: a distance of 0 plus epsilon,
            # by which is divided, would be 0.
            translated = torch.onnx.export(
                program,
                (),
                kwargs=inputs,
                opset_version=opset,
                output_names=["logits"],
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise _cannot(described, error) from error
        _simplify(translated.model)
    for name, value in described.items():
        translated.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    translated.save(path)
    return translated.model.opset_imports[""], _session(path)


def _session(path: Path) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        (logits,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(logits)

    return run


def _quantize(path: Path) -> tuple[Path, _Run]:
    """Write the file beside itself with weights of 8 bits; inputs of products are rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    new = path.with_name(f"int8_{path.name}")
    with _muted():
        quantize_dynamic(path, new, weight_type=QuantType.QInt8)
    return new, _session(new)


def _simplify(model: Any) -> None:
    """Fold constants and leave out what is not needed, without a rule that compares numbers loosely."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model, onnx_shape_inference=False)
    for simplify in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.ClearMetadataAndDocStringPass(),  # where in which file of Python a node comes from
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        simplify(model)


# -- The check --------------------------------------------------------------------------------------------------------


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit; not a number where one has none."""
    if got.shape != expected.shape:
        raise ValueError(f"The file gives logits of shape {tuple(got.shape)} in place of {tuple(expected.shape)}.")
    return float((got - expected).abs().max() / expected.abs().max())


def _agreement(
    got: torch.Tensor,
    expected: torch.Tensor,
    category_ids: torch.Tensor | None,
    category_parts: list[list[int]] | None,
) -> float:
    """Share of equal labels, of objects with categories among their own parts."""
    first, second = (leave_out_other_parts(each, category_ids, category_parts).argmax(-1) for each in (got, expected))
    return float((first == second).float().mean())
