"""Published checkpoints -> folders and models of this package."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..io.folders import replaced_folder
from ..io.save import save_adapter
from ..io.weights import KEY_PREFIX
from .auto import MODEL_CLASSES
from .convert_checks import check_encoder, check_shapes, shapes_of
from .convert_config import backbone_fields, read_config_file
from .convert_keys import check_model_type
from .convert_method import (
    PUBLISHED_SAMPLING,
    adapter_tensors,
    attach_adapter,
    complete_report,
    read_adapter,
    read_settings,
)
from .convert_parts import has_segmentation_head
from .convert_ptv3 import check_rotation, read_arguments
from .convert_tensors import (
    WEIGHTS_NAME,
    ConversionReport,
    ConvertedTensors,
    convert_tensors,
    read_checkpoint,
    rename_tensors,
)
from .modeling import BackbonePreTrainedModel

REPORT_NAME = "conversion_report.json"
# The two folders that a file of a method becomes.
BACKBONE, ADAPTER = "backbone", "adapter"


def choose_class(
    model_type: str, converted: ConvertedTensors, name: str
) -> tuple[type[BackbonePreTrainedModel], dict[str, torch.Size]]:
    """Choose the class that a checkpoint has all parts of.

    Returns:
        The class, and the shapes of its tensors.
    """
    model_class, expected = _choose_class(model_type, converted)
    check_shapes({key: tensor for key, tensor in converted.tensors.items() if key in expected}, expected, name)
    check_encoder(converted.tensors, expected, MODEL_CLASSES[model_type].encoder, model_class, name)
    return model_class, expected


def _choose_class(
    model_type: str, converted: ConvertedTensors
) -> tuple[type[BackbonePreTrainedModel], dict[str, torch.Size]]:
    _, encoder, classifier, segmentation, pretraining = MODEL_CLASSES[model_type]
    fields, tensors = converted.config_fields, converted.tensors
    heads = {"segmentation_head.": segmentation, "semantic_head.": segmentation, "classifier.": classifier}
    for prefix, model_class in heads.items():
        if any(key.startswith(prefix) for key in tensors):
            return model_class, shapes_of(model_class, fields)
    # PCP-MAE's decoder has the names of Point-MAE's, but another task.
    has_decoder = any(key.startswith(("decoder", "generator")) for key in tensors)
    if pretraining is not None and has_decoder and fields.get("position_embedding") != "sincos":
        shapes = shapes_of(pretraining, fields)
        # The decoders of other methods on the same encoder are not this one.
        is_whole = all(key in tensors and tensors[key].shape == shape for key, shape in shapes.items())
        if is_whole and all(key in shapes for key in tensors if key.startswith(f"{encoder.base_model_prefix}.")):
            return pretraining, shapes
    return encoder, shapes_of(encoder, fields)


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    model_type: str,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    variant: str | None = None,
) -> ConversionReport:
    """Convert a published checkpoint to a folder that `from_pretrained` loads.

    The folder is for the class that the file has all parts of: with a classification head the classifier, with
    published head for parts the segmentation, with a decoder pre-training, else the encoder. Any of the classes of
    the model type can be loaded from it; what it lacks starts untrained, and what the class has no place for is left
    out. What is inside of the encoder is never left out: a file with more than such a model has is refused.

    Args:
        checkpoint: A `.pth` or `.safetensors` file of a research repository (Point-BERT, Point-MAE, Point-M2AE, ACT,
            PCP-MAE, PointGPT, ReCon, Point Transformer V3, Sonata, Concerto, Utonia) or of torch-pointcloud, or a
            folder with `model.safetensors`.
        output_dir: Folder to write `config.json`, `model.safetensors` and `conversion_report.json` into.
        model_type: "point_bert", "point_gpt", "point_mae", "point_m2ae", "ptv3" or "recon".
        config: Fields of the configuration that no tensor shows, if they are not the published ones: a dictionary or a
            JSON file. Widths, depth and classes are read from the tensors. With a method, its options as well, all in
            one flat object, under their published names.
        method: The fine-tuning method that the file is of, by the name of its PEFT type ("stag", ...). Then two
            folders are written: `backbone`, the encoder, for any of the classes of the model type, and `adapter`, with
            head and class token, for `PeftModel.from_pretrained`. Together they compute what was published.
        variant: Of a ptv3, what its file does not say: "ptv3" (the released supervised weights), "ptv3-repaired",
            "sonata", "concerto" or "utonia".

    Returns:
        What was loaded, what is new, and what was ignored.

    Raises:
        ValueError: If the file cannot be read, does not fit, is incomplete or damaged, or is of another model or of a
            method on such a model; the message names what was recognised.
    """
    path, output_dir = Path(checkpoint), Path(output_dir)
    name = str(path)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    tensors = read_checkpoint(path)
    if method is not None:
        if model_type == "ptv3":
            raise ValueError(f"No published method for a ptv3 is known, got method={method!r}.")
        return _convert_with_adapter(tensors, output_dir, model_type, config, method, name)
    if config is not None and not isinstance(config, Mapping):
        config = read_config_file(config, model_type)
    arguments = read_arguments(path) if model_type == "ptv3" else None
    converted = convert_tensors(tensors, model_type, config, name=name, arguments=arguments, variant=variant)
    model_class, expected = choose_class(model_type, converted, name)
    kept = {key: tensor for key, tensor in converted.tensors.items() if key in expected}
    report = _report(name, model_type, model_class, kept, converted.sources, expected, tensors)
    report.assumed = converted.assumed
    report.weights_license = converted.config_fields.get("weights_license")
    _write_folder(model_class, kept, converted.config_fields, output_dir)
    _write_report(report, output_dir)
    return report


def _convert_with_adapter(
    tensors: Mapping[str, torch.Tensor],
    output_dir: Path,
    model_type: str,
    config: str | Path | Mapping[str, Any] | None,
    method: str,
    name: str,
) -> ConversionReport:
    check_model_type(model_type)
    settings, classes = read_settings(config), MODEL_CLASSES[model_type]
    adapter = read_adapter(tensors, settings, model_type, method, name)
    given = PUBLISHED_SAMPLING | backbone_fields(settings, model_type, classes.encoder.config_class)
    has_parts = has_segmentation_head(adapter.base)
    converted = convert_tensors(adapter.base, model_type, given, name=name, has_head=None if has_parts else True)
    expected = shapes_of(classes.encoder, converted.config_fields)
    kept = {key: tensor for key, tensor in converted.tensors.items() if key in expected}
    check_shapes(kept, expected, name)
    check_encoder(converted.tensors, expected, classes.encoder, classes.encoder, name)
    saved = adapter_tensors(adapter, converted.tensors)
    model_class = classes.segmentation if has_parts else classes.classifier
    with replaced_folder(output_dir) as folder:
        _write_folder(classes.encoder, kept, converted.config_fields, folder / BACKBONE)
        model = model_class(model_class.config_class.from_pretrained(folder / BACKBONE))
        model.load_state_dict(kept, strict=False)
        state = model.state_dict()
        # Where it is going to be.
        model.name_or_path = model.config.name_or_path = str(output_dir / BACKBONE)
        save_adapter(attach_adapter(model, adapter, saved, name), folder / ADAPTER)
        brought = {
            key: tensor for key, tensor in converted.tensors.items() if key in kept or KEY_PREFIX + key in saved
        }
        # A model for part segmentation has no class token.
        expected = {key: shape for key, shape in expected.items() if key in state}
        report = _report(name, model_type, model_class, brought, converted.sources, expected, adapter.base)
        report.assumed, report.method = converted.assumed, method
        complete_report(report, tensors, adapter, settings)
        _write_report(report, folder)
    return report


def _write_report(report: ConversionReport, folder: Path) -> None:
    fields = {field: getattr(report, field) for field in report.__dataclass_fields__}
    (folder / REPORT_NAME).write_text(json.dumps(fields, indent=2) + "\n")


def _report(
    name: str,
    model_type: str,
    model_class: type[BackbonePreTrainedModel],
    kept: Mapping[str, torch.Tensor],
    sources: Mapping[str, tuple[str, ...]],
    expected: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> ConversionReport:
    """What became of `tensors`, of which those `kept` go into a model with the tensors `expected`."""
    loaded: dict[str, list[str]] = {}
    for target in kept:
        for name_in_file in sources[target]:
            loaded.setdefault(name_in_file, []).append(target)
    return ConversionReport(
        source=name,
        model_type=model_type,
        architecture=model_class.__name__,
        loaded=loaded,
        new=[key for key in expected if key not in kept],
        ignored=[key for key in tensors if key not in loaded],
    )


def _write_folder(
    model_class: type[BackbonePreTrainedModel],
    tensors: dict[str, torch.Tensor],
    config_fields: dict[str, Any],
    output_dir: Path,
) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    config = model_class.config_class(**config_fields)
    config.architectures = [model_class.__name__]
    # Of several types the widest, in which all of them are exact.
    dtypes = {tensor.dtype for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    config.dtype = functools.reduce(torch.promote_types, dtypes)
    config.save_pretrained(output_dir)
    prefix = model_class.base_model_prefix + "."
    if all(key.startswith(prefix) for key in tensors):
        # An encoder alone is saved without the name it has inside of other models.
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    save_file(_apart(tensors), output_dir / WEIGHTS_NAME, metadata={"format": "pt"})


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors without memory in common, which tied ones have and which cannot be saved."""
    result: dict[str, torch.Tensor] = {}
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        overlaps = not tensor.is_contiguous() or tensor.data_ptr() < end
        result[key] = tensor.clone(memory_format=torch.contiguous_format) if overlaps else tensor
        end = end if overlaps else tensor.data_ptr() + tensor.nbytes
    return result


@torch.no_grad()
def load_checkpoint(model: BackbonePreTrainedModel, checkpoint: str | Path) -> ConversionReport:
    """Load what a published checkpoint has into a model, and leave the rest of the model as it is.

    Args:
        model: A model of this package.
        checkpoint: As in [`convert_checkpoint`]; it need not be complete.

    Returns:
        What was loaded, what of the model the file does not have, and what was ignored.

    Raises:
        ValueError: If the file cannot be read, does not fit, or nothing in it belongs to the model.
    """
    path = Path(checkpoint)
    tensors = read_checkpoint(path / WEIGHTS_NAME if path.is_dir() else path)
    config = model.config
    if config.model_type == "ptv3":
        check_rotation(tensors, config.rope_base, str(checkpoint))
    converted, sources = rename_tensors(
        tensors, config.model_type, getattr(config, "num_stages", 1), name=str(checkpoint)
    )
    # Inside of the encoder's own class, names have no prefix.
    prefix = f"{model.base_model_prefix}." if model.base_model is model else ""
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    kept = {key: tensor for key, tensor in converted.items() if key in state}
    if not kept:
        raise ValueError(
            f"Nothing in {str(checkpoint)!r} belongs to a {type(model).__name__} ({len(tensors)} tensors)."
        )
    check_shapes(kept, {key: tensor.shape for key, tensor in state.items()}, str(checkpoint))
    base = f"{model.base_model_prefix}."
    left = [key for key in converted if key.startswith(base) and key not in state and ".class_token." not in key]
    if left:
        raise ValueError(
            f"{str(checkpoint)!r} has {sources[left[0]][0]!r}, which this {type(model).__name__} has no place for "
            f"({len(left)} tensors). Is the configuration of the model that of the file?"
        )
    for key, tensor in kept.items():
        state[key].copy_(tensor)
    return _report(str(checkpoint), config.model_type, type(model), kept, sources, state, tensors)
