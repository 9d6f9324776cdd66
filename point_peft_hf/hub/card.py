"""The model card of an adapter, written from what is known; what is not known has no line."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PEFT_TYPE_TO_CONFIG_MAPPING

from ..tuners.config import PointTunerConfig
from .facts import AdapterFacts, is_shipped, read_facts

CARD_NAME = "README.md"
MARK = "<!-- Written by point_peft_hf; delete this line to keep your own changes. -->"
# What PEFT and transformers leave behind: a form to be filled in, and what the Trainer says that nobody has read yet.
_BLANK = "[More Information Needed]"
_TRAINER_NOTE = "You should probably proofread and complete it, then remove this comment"
# Types of peft itself: in words, and the fields that a reader wants to know.
_OTHERS = {
    "LORA": ("LoRA (arXiv 2106.09685)", ("r",)),
    "LN_TUNING": ("LN tuning: the norms of the blocks", ()),
}
# Scores that a run records of the test split, and what they are called.
_SCORES = {
    "accuracy": "accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "instance_miou": "instance mIoU",
    "category_miou": "category mIoU",
}


def is_generated(path: str | os.PathLike) -> bool:
    """Whether a card may be written anew: it is ours and untouched, an empty form, or not there.

    Args:
        path: The card.
    """
    path = Path(path)
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    if MARK in text or _TRAINER_NOTE in text:
        return True
    blanks = ModelCard.from_template(ModelCardData()).text.count(_BLANK)
    # transformers fills one of the blanks by itself.
    return text.count(_BLANK) >= blanks - 1


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
    """
    facts = read_facts(folder)
    title = (subfolder or repo_id or Path(folder).resolve().name.lstrip(".")).rsplit("/", 1)[-1]
    place = repo_id or "path/to/adapter"
    sections = [
        f"---\n{_metadata(facts, title, license)}\n---\n\n{MARK}\n\n# {title}\n\n{_summary(facts)}",
        _usage(facts, place, subfolder),
        _section("Backbone", _backbone(facts)),
        _section("Data", _data(facts)),
        _section("Preprocessing", _preprocessing(facts)),
        _section("Training", _recipe(facts)),
        _section("Results", _results(facts)),
        _section("Size", _size(facts)),
        _section("Versions", _versions(facts)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


# -- Metadata ---------------------------------------------------------------------------------------------------


def _metadata(facts: AdapterFacts, title: str, license: str) -> str:
    peft_type = facts.fields["peft_type"]
    task = "point-cloud-segmentation" if facts.is_segmentation else "point-cloud-classification"
    tags = ["point-cloud", task, "point_peft_hf", peft_type.lower().replace("_", "-"), "peft"]
    if facts.repository:
        tags.append(f"base_model:adapter:{facts.repository}")
    results = None
    if facts.runs:
        results = [
            EvalResult(
                task_type=task,
                dataset_name=_data_name(facts.runs[0]),
                dataset_type=_data_name(facts.runs[0]),
                dataset_split="test",
                metric_type=metric,
                metric_name=name[0].upper() + name[1:],
                metric_value=round(mean(run["test"][metric] for run in facts.runs), 4),
            )
            for metric, name in _SCORES.items()
            if all(metric in run.get("test", {}) for run in facts.runs)
        ] or None
    return ModelCardData(
        library_name="peft",
        license=license,
        # The Hub has no task of this name; this is its word for those it has none for.
        pipeline_tag="other",
        base_model=facts.repository,
        tags=tags,
        eval_results=results,
        model_name=title if results else None,
    ).to_yaml()


# -- Sections ---------------------------------------------------------------------------------------------------


def _section(title: str, lines: Iterator[str]) -> str:
    text = "\n".join(f"* {line}" for line in lines)
    return f"## {title}\n\n{text}" if text else ""


def _summary(facts: AdapterFacts) -> str:
    noun = "parts" if facts.is_segmentation else "classes"
    what = f"{len(facts.class_names)} {noun}" if facts.class_names else noun
    on = f" on {_data_name(facts.runs[0])}" if facts.runs else ""
    verb = "segments" if facts.is_segmentation else "classifies"
    text = f"An adapter that {verb} point clouds into {what}, trained{on}"
    if facts.backbone_name:
        text += f" on top of the frozen backbone `{facts.backbone_name}`"
    return f"{text}.\n\nMethod: {_describe(facts.fields)[0]}."


def _describe(fields: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """What the adapter adds, in words, and the fields that tell most."""
    peft_type = fields["peft_type"]
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if config_class is not None and issubclass(config_class, PointTunerConfig):
        return config_class.describe(fields)
    return _OTHERS.get(peft_type, (peft_type, ()))


def _usage(facts: AdapterFacts, place: str, subfolder: str | None) -> str:
    argument = f', subfolder="{subfolder}"' if subfolder else ""
    backbone = "" if facts.backbone_is_public else ', backbone="path/to/backbone"'
    lines = [
        "import torch",
        "import point_peft_hf  # teaches peft the adapter's type",
        "from point_peft_hf import AutoPointPeftModel, PointCloudProcessor",
        "",
        f'model = AutoPointPeftModel.from_pretrained("{place}"{argument}{backbone})',
    ]
    if facts.processor:
        lines += [f'processor = PointCloudProcessor.from_pretrained("{place}"{argument})', ""]
        lines.append('points = processor("my_scan.ply")["points"]  # or an array of shape (num_points, 3)')
    else:
        lines += ["", "points = torch.rand(1, 1024, 3) * 2 - 1  # your clouds, prepared as in training"]
    if facts.is_segmentation:
        known = ", category_ids=torch.tensor([0])" if facts.categories else ""
        lines += [
            "with torch.no_grad():",
            f"    logits = model(points=points{known}).logits  # (1, num_points, {len(facts.class_names)})",
            "print([model.config.id2label[label] for label in logits[0].argmax(dim=-1).tolist()])",
        ]
    else:
        lines += [
            "with torch.no_grad():",
            "    label = model(points=points).logits.argmax(dim=-1).item()",
            "print(model.config.id2label[label])",
        ]
    needs = "Needs the Python package `point_peft_hf`, which brings peft and transformers with it."
    return "\n".join(["## Use", "", needs, "", "```python", *lines, "```"])


def _backbone(facts: AdapterFacts) -> Iterator[str]:
    if not facts.backbone_name:
        return
    if is_shipped(facts.backbone_name):
        yield f"`{facts.backbone_name}`, which comes with point_peft_hf"
    elif facts.repository:
        yield f"[{facts.repository}](https://huggingface.co/{facts.repository})"
    else:
        yield f"`{facts.backbone_name}`, a folder of the author; ask for it"
    if facts.revision:
        yield f"revision `{facts.revision}`"
    if weights := facts.backbone.get("weights"):
        precision, digest = max(weights.items(), key=lambda item: item[0] == "float32")
        yield f"fingerprint of its weights `{digest}` ({precision}); a backbone with other weights is refused"


def _data(facts: AdapterFacts) -> Iterator[str]:
    if facts.runs:
        run = facts.runs[0]
        counts = ", ".join(f"{number:,} {split}" for split, number in run.get("clouds", {}).items())
        yield _data_name(run) + (f": {counts} clouds" if counts else "")
    if facts.class_names:
        noun = "parts" if facts.is_segmentation else "classes"
        yield f"{len(facts.class_names)} {noun}: {', '.join(facts.class_names)}"
    if facts.categories:
        numbered = ", ".join(f"{index} {name}" for index, name in enumerate(facts.categories))
        yield f"`category_ids` of the objects: {numbered}"


def _preprocessing(facts: AdapterFacts) -> Iterator[str]:
    fields = facts.processor
    if not fields:
        return
    drawn = "drawn at random" if fields.get("seed") is None else "drawn at random, the same ones each time"
    sampling = {"random": drawn, "fps": "by farthest point sampling", "first": "the first ones"}
    normalize = {
        "unit_sphere": "moved to their centroid and scaled to the unit sphere",
        "center": "moved to their centroid, in their own unit",
        "none": "coordinates as they are",
    }
    yield f"{fields['num_points']} points of a cloud, {sampling[fields['sampling']]}"
    yield normalize[fields["normalize"]]
    yield f"axis that is up in the input: {fields['up_axis']}"


def _recipe(facts: AdapterFacts) -> Iterator[str]:
    for run in facts.runs[:1]:
        arguments = run.get("arguments", {})
        rate = run.get("learning_rate") or arguments.get("learning_rate")
        warmup = run.get("warmup_ratio") or arguments.get("warmup_ratio")
        parts = [
            f"{arguments['epochs']} epoch{'s' * (arguments['epochs'] != 1)}" if "epochs" in arguments else "",
            f"batch size {arguments['batch_size']}" if "batch_size" in arguments else "",
            f"AdamW with learning rate {rate:g}" if rate else "",
            f"warm-up over {warmup:.0%} of the steps" if warmup else "",
            f"weight decay {arguments['weight_decay']:g}" if "weight_decay" in arguments else "",
            f"augmentation `{arguments['augmentation']}`" if arguments.get("augmentation") else "",
        ]
        if any(parts):
            yield ", ".join(part for part in parts if part)
        score = f"validation_{run.get('score', 'accuracy')}"
        if "best_epoch" in run and run.get(score) is not None:
            yield (
                f"epoch {run['best_epoch']} was chosen on a validation split of the training clouds "
                f"({_percent(run[score])})"
            )
    options = facts.fields
    shown = [name for name in _describe(options)[1] if options.get(name) is not None]
    if values := [f"{name}={options[name]}" for name in shown]:
        yield f"configuration: {', '.join(values)}; all fields are in `adapter_config.json`"


def _results(facts: AdapterFacts) -> Iterator[str]:
    runs = [run for run in facts.runs if run.get("test")]
    if not runs:
        return
    seeds = [run["arguments"]["seed"] for run in runs if "seed" in run.get("arguments", {})]
    score = runs[0].get("score", "accuracy")
    values = [run["test"][score] for run in runs]
    clouds = runs[0].get("clouds", {}).get("test")
    votes = runs[0].get("arguments", {}).get("test_votes", 1)
    text = f"test {_SCORES[score]} {_percent(mean(values))}"
    if votes > 1:
        text += f", averaged over {votes} views of each cloud"
    if len(runs) > 1:
        text += f", mean over {len(runs)} seeds, from {_percent(min(values))} to {_percent(max(values))}"
    if clouds and score == "accuracy":
        low, high = wilson_interval(mean(values), clouds)
        text += f" (95 % interval for {clouds:,} test clouds: {_percent(low)} to {_percent(high)})"
    yield text
    for other, name in _SCORES.items():
        if other != score and all(other in run["test"] for run in runs):
            yield f"{name} {_percent(mean(run['test'][other] for run in runs))}"
    if seeds:
        yield f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    yield "the test split was looked at once, after training"


def _size(facts: AdapterFacts) -> Iterator[str]:
    counts = facts.runs[0].get("parameters", {}) if facts.runs else {}
    if "trainable" in counts and "total" in counts:
        yield f"{counts['trainable']:,} trained parameters of {counts['total']:,}"
    else:
        yield f"{facts.num_weights:,} trained parameters"
    yield f"`adapter_model.safetensors`: {facts.file_bytes:,} bytes ({facts.file_bytes / 1e6:.2f} MB)"


def _versions(facts: AdapterFacts) -> Iterator[str]:
    versions = facts.runs[0].get("versions", {}) if facts.runs else {}
    versions = versions or {"peft": facts.fields.get("peft_version")}
    try:
        versions = {"point_peft_hf": version("point-peft-hf"), **versions}
    except PackageNotFoundError:
        pass  # from a folder, without having been installed
    yield ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _data_name(run: dict[str, Any]) -> str:
    data = str(run.get("arguments", {}).get("data") or "its data set")
    # The author's folders are nobody's business.
    return "procedural shapes" if data == "procedural" else Path(data).name


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share.

    Args:
        share: The share that was observed, from 0 to 1.
        count: Of how many.
        z: Quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        Its ends.
    """
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    factor = 1 / (1 + z * z / count)
    return max(factor * (centre - spread), 0.0), min(factor * (centre + spread), 1.0)
