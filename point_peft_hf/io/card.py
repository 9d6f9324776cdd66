"""The model card of an adapter: `card_template.md`, filled in with what is known; what is not known has no line."""

from __future__ import annotations

import math
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PEFT_TYPE_TO_CONFIG_MAPPING

from ..pretrained import backbone_folder
from .files import (
    BACKBONE_NAME,
    CARD_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    AdapterFiles,
    check_files,
    find_adapter,
    read_json,
)
from .folders import final_name

MARK = "<!-- Written by point_peft_hf; delete this line to keep your own changes. -->"
TEMPLATE = Path(__file__).with_name("card_template.md")
# What PEFT and transformers leave: a form to be filled in, and what the Trainer says that nobody has read yet.
_BLANK = "[More Information Needed]"
_TRAINER_NOTE = "You should probably proofread and complete it, then remove this comment"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Types of peft itself: in words, and the fields that a reader wants to know.
_OTHERS = {
    "LORA": ("LoRA (arXiv 2106.09685)", ("r",)),
    "LN_TUNING": ("LN tuning: the norms of the blocks", ()),
}
# Scores that a run records of the test split, and what they are called.
_SCORES = {
    "miou": "mIoU",
    "accuracy": "accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "mean_accuracy": "mean class accuracy",
    "instance_miou": "instance mIoU",
    "category_miou": "category mIoU",
}
_NORMALIZE = {
    "unit_sphere": "moved to their centroid and scaled to the unit sphere",
    "center": "moved to their centroid, in their own unit",
    "none": "coordinates as they are",
}


def is_shipped(name: str | None) -> bool:
    """Whether a backbone comes with this package."""
    return bool(name) and backbone_folder(name) != name


def is_public(name: str | None) -> bool:
    """Whether others find a backbone by a name: on the Hub, or in this package."""
    return bool(name) and (is_shipped(name) or (_REPOSITORY.fullmatch(name) is not None and not os.path.exists(name)))


def is_generated(path: str | os.PathLike) -> bool:
    """Whether a card may be written anew: it is ours and untouched, an empty form, or not there.

    Args:
        path: The card.
    """
    path = Path(path)
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    # transformers fills one of the blanks of the form by itself.
    blanks = ModelCard.from_template(ModelCardData()).text.count(_BLANK) - 1
    return MARK in text or _TRAINER_NOTE in text or text.count(_BLANK) >= blanks


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None, **kwargs: Any) -> bool:
    """Write the model card of an adapter into its folder, unless there is one that a person wrote.

    Args:
        folder: The folder of the adapter.
        repo_id: The repository that it goes to; the code in the card loads it from there.
        **kwargs: Passed to [`model_card`].

    Returns:
        Whether the card was written.
    """
    path = Path(folder) / CARD_NAME
    if not is_generated(path):
        return False
    path.unlink(missing_ok=True)
    path.write_text(model_card(folder, repo_id, **kwargs), encoding="utf-8")
    return True


def model_card(
    folder: str | os.PathLike, repo_id: str | None = None, *, subfolder: str | None = None, license: str = "apache-2.0"
) -> str:
    """The model card of an adapter.

    Args:
        folder: The folder of the adapter.
        repo_id: The repository that it goes to; default: the folder's name.
        subfolder: Where in the repository it goes.
        license: Licence of the adapter, in the spelling of the Hub.

    Returns:
        The card: metadata in YAML, then Markdown.

    Raises:
        ValueError: If the folder holds no sound adapter.
    """
    folder = Path(folder)
    files = read_adapter(folder)
    record = _read_optional(folder / RECORD_NAME)
    runs = record.get("runs", [record] if record else [])
    values = _adapter_values(files, folder) | _run_values(files.fields, runs)
    # What a run recorded says more than what the file does.
    values["class_names"] = runs[0].get("class_names") or values["class_names"] if runs else values["class_names"]
    title = (subfolder or repo_id or final_name(folder)).rsplit("/", 1)[-1]
    place = f'"{repo_id or "path/to/adapter"}"' + (f', subfolder="{subfolder}"' if subfolder else "")
    data = _metadata(values, runs, title, license)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), title=title, place=place, **values)
    return card.content.rstrip() + "\n"


def read_adapter(folder: Path) -> AdapterFiles:
    """Read what the files of a saved adapter say of it; a folder without a sound adapter is an error."""
    files = check_files(find_adapter(folder))
    if files.config is None or files.weights is None:
        raise ValueError(f"{folder} holds no complete adapter. Pass a folder that `save_adapter` or training wrote.")
    if files.problem is not None:
        raise ValueError(files.problem)
    return files


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _adapter_values(files: AdapterFiles, folder: Path) -> dict[str, Any]:
    """What the template needs from the adapter's own files."""
    fields, name = files.fields, files.fields.get("base_model_name_or_path")
    backbone = fields.get("backbone") or _read_optional(folder / BACKBONE_NAME).get("backbone") or {}
    processor = _read_optional(folder / PROCESSOR_NAME)
    parts, scenes = (backbone.get("head") == head for head in ("segmentation_head", "semantic_head"))
    labels = backbone.get("id2label") or {}
    class_names = [labels[index] for index in sorted(labels, key=int)]
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(fields["peft_type"])
    if hasattr(config_class, "describe"):
        method, shown = config_class.describe(fields)
    else:
        method, shown = _OTHERS.get(fields["peft_type"], (fields["peft_type"], ()))
    drawn = "drawn at random" + (", the same ones each time" if processor.get("seed") is not None else "")
    sampling = {"random": drawn, "fps": "by farthest point sampling", "first": "the first ones"}
    trained = (
        math.prod(info.shape)
        for key, info in files.tensors.items()
        if info.dtype.startswith(("F", "BF")) and "_bank." not in key and ".running_" not in key
    )
    return {
        "peft_type": fields["peft_type"],
        "method": method,
        "fields": [f"{field}={fields[field]}" for field in shown if fields.get(field) is not None],
        # Without the folders of the machine that it was trained on.
        "backbone": name if not name or is_public(name) else Path(name).name,
        "is_public": is_public(name),
        "is_shipped": is_shipped(name),
        "repository": name if is_public(name) and not is_shipped(name) else None,
        "revision": fields.get("revision") or backbone.get("revision"),
        "digest": max((backbone.get("weights") or {}).items(), key=lambda item: item[0] == "float32", default=None),
        "weights_license": backbone.get("weights_license"),
        "parts": parts,
        "scenes": scenes,
        "noun": "parts" if parts else "classes",
        "class_names": [] if all(re.fullmatch(r"LABEL_\d+", label) for label in class_names) else class_names,
        "categories": list(backbone.get("category_names") or ()) if backbone.get("num_categories") else [],
        "processor": processor,
        "sampling": sampling.get(processor.get("sampling")),
        "normalize": _NORMALIZE.get(processor.get("normalize")),
        "num_trained": sum(trained),
        "file_bytes": files.weights.stat().st_size,
    }


def _run_values(fields: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template needs from what training recorded."""
    run = runs[0] if runs else {}
    arguments, score = run.get("arguments", {}), run.get("score", "accuracy")
    data = str(arguments.get("data") or "its data set")
    versions = run.get("versions") or {"peft": fields.get("peft_version")}
    try:
        versions = {"point_peft_hf": version("point-peft-hf"), **versions}
    except PackageNotFoundError:
        pass  # from a folder, without having been installed
    values = {
        "run": run,
        # Without the folders of the author.
        "data": "procedural shapes" if data == "procedural" else Path(data).name,
        "recipe": _recipe(run),
        "votes": arguments.get("test_votes", 1),
        "versions": [f"{name} {value}" for name, value in versions.items() if value],
    }
    if "best_epoch" in run and run.get(f"validation_{score}") is not None:
        values["chosen"] = run["best_epoch"], _percent(run[f"validation_{score}"])
    counts = run.get("parameters", {})
    if "trainable" in counts and "total" in counts:
        values |= {"num_trained": counts["trainable"], "num_all": counts["total"]}
    tested = [run for run in runs if run.get("test")]
    if not tested:
        return values
    results, num_test = [run["test"][score] for run in tested], run.get("clouds", {}).get("test")
    names = [score, *(name for name in _SCORES if name != score)]
    values["scores"] = [
        (_SCORES[name], _percent(mean(run["test"][name] for run in tested)))
        for name in names
        if all(name in run["test"] for run in tested)
    ]
    values["seeds"] = [run["arguments"]["seed"] for run in tested if "seed" in run.get("arguments", {})]
    if len(tested) > 1:
        values |= {"num_runs": len(tested), "seeds_range": (_percent(min(results)), _percent(max(results)))}
    if num_test and score == "accuracy":
        interval = wilson_interval(mean(results), num_test)
        values |= {"num_test": num_test, "interval": [_percent(end) for end in interval]}
    return values


def _recipe(run: dict[str, Any]) -> list[str]:
    arguments = run.get("arguments", {})
    epochs, batch, rate, warmup = (
        run.get(name) or arguments.get(name)
        for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps")
    )
    share = f"{warmup or 0:.0%} of the steps" if warmup and warmup < 1 else f"{warmup} steps"
    parts = (
        (epochs, f"{epochs or 0:g} epoch{'s' * (epochs != 1)}"),
        (batch, f"batch size {batch}"),
        (rate, f"AdamW with learning rate {rate or 0:g}"),
        (warmup, f"warm-up over {share}"),
        ("weight_decay" in arguments, f"weight decay {arguments.get('weight_decay', 0):g}"),
        (arguments.get("augmentation"), f"augmentation `{arguments.get('augmentation')}`"),
    )
    return [text for is_known, text in parts if is_known]


def _metadata(values: dict[str, Any], runs: list[dict[str, Any]], title: str, license: str) -> ModelCardData:
    task = "point-cloud-segmentation" if values["parts"] or values["scenes"] else "point-cloud-classification"
    tags = ["point-cloud", task, "point_peft_hf", values["peft_type"].lower().replace("_", "-"), "peft"]
    if values["repository"]:
        tags.append(f"base_model:adapter:{values['repository']}")
    results = [
        EvalResult(
            task_type=task,
            dataset_name=values["data"],
            dataset_type=values["data"],
            dataset_split="test",
            metric_type=metric,
            metric_name=name[0].upper() + name[1:],
            metric_value=round(mean(run["test"][metric] for run in runs), 4),
        )
        for metric, name in _SCORES.items()
        if runs and all(metric in run.get("test", {}) for run in runs)
    ]
    return ModelCardData(
        library_name="peft",
        license=license,
        # The Hub has no task of this name; this is its word for those it has none for.
        pipeline_tag="other",
        base_model=values["repository"],
        tags=tags,
        eval_results=results or None,
        model_name=title if results else None,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share of `count`, at the quantile `z` of the normal distribution."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    factor = 1 / (1 + z * z / count)
    return max(factor * (centre - spread), 0.0), min(factor * (centre + spread), 1.0)
