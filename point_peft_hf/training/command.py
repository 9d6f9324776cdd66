"""The training command: several methods, one after the other, and the table that compares them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import release_memory

from ..visualization.figure import in_words
from .arguments import folder_name, parse_arguments
from .callbacks import FEW_STEPS
from .finetuning import Finetuning
from .record import results_table
from .threads import use_all_cores
from .verbosity import show_only_own_messages

# Up to so many labelled clouds a class, full fine-tuning was behind the linear probe in most comparisons of ours.
_FEW_LABELS = 50


def train_methods(
    arguments: Sequence[str] | None = None, description: str | None = None, prog: str | None = None
) -> list[dict[str, Any]]:
    """Train the methods of a command line on the same data, and print the table.

    Args:
        arguments: The command line; default: that of this process.
        description: The description that `--help` prints.
        prog: The name of the program in it; default: that of the script.

    Returns:
        The record of each run.

    Raises:
        ValueError: If an argument does not fit.
        TrainingStopped: If a run cannot go on.
    """
    show_only_own_messages()
    methods, what, how = parse_arguments(arguments, description, prog)
    if how.push_to_hub and len(methods) > 1:
        raise ValueError(f"--push_to_hub pushes one method, got {', '.join(methods)}. Pass one --method.")
    use_all_cores()
    task, records = None, []
    for method in methods:
        run = Finetuning(method, what, how, task)
        task = run.task
        records.append(run.run())
        run.trainer.accelerator.free_memory()
        run = release_memory(run)
    if PartialState().is_main_process:
        print(f"\n{results_table(records)}\n")
        print(conclusion(records))
        print(next_step(records, len(task.class_names), task.noun))
        best = best_record(records)
        folder = Path(how.output_dir) / folder_name(best["method"])
        # Whoever loads an adapter has to know its type.
        own_type = f" --method {best['method']}" if ":" in best["method"] else ""
        path = f"PYTHONPATH={os.environ['PYTHONPATH']} " if own_type and "PYTHONPATH" in os.environ else ""
        category = " --category NAME" if len(getattr(task, "category_names", ())) > 1 else ""
        print(f"To predict: {path}point-peft predict FILE --adapter {folder}{own_type}{category}")
    PartialState().destroy_process_group()
    return records


def next_step(records: Sequence[dict[str, Any]], num_classes: int, noun: str) -> str:
    """What to compare next, from what our comparisons have found (docs/methods.md has the whole guide).

    Args:
        records: The record of each run on the same data.
        num_classes: Number of classes or parts.
        noun: What is labelled, "clouds" or "scenes".
    """
    methods = {record["method"] for record in records}
    per_class = records[0]["clouds"]["train"] / num_classes
    if "full" in methods and "linear" not in methods and noun == "clouds" and per_class <= _FEW_LABELS:
        return (
            f"Next: --method linear. With so few clouds ({per_class:.0f} a class) full fine-tuning was behind it in "
            "most of our comparisons."
        )
    candidates = ("linear", "lora", "point_peft" if noun == "clouds" else "voxel_adapter")
    if others := [name for name in candidates if name not in methods]:
        return f"Next: compare with --method {' '.join(others)}, on the same {noun}."
    return "Next: other seeds (--seed 1, --seed 2 in other folders), which tell apart what one seed cannot."


def best_record(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record with the highest score on the validation split; the first one of equals, or without a split."""
    return max(records, key=lambda record: record[f"validation_{record['score']}"] or 0.0)


def conclusion(records: Sequence[dict[str, Any]]) -> str:
    """The best method by validation, and what its numbers leave open."""
    best = best_record(records)
    score = f"validation_{best['score']}"
    if best[score] is None:
        return "There is no validation split, so the last epoch was taken and no method is better than another."
    text = f"{'Best by validation' if len(records) > 1 else 'Chosen by validation'}: {best['method']}"
    text += f", {in_words(best['score'])} {100 * best[score]:.1f} % in epoch {best['best_epoch']}."
    last, steps = best["history"][-1], best["steps"]
    if len(records) > 1:
        second = sorted((record[score] for record in records), reverse=True)[1]
        lead, share, count = best[score] - second, best[score], best["clouds"]["validation"]
        # At most the standard error of a difference of two shares of the same clouds.
        if lead < 1.96 * math.sqrt(max(share * (1 - share), 0.01) / count):
            if lead:
                text += f" Its lead of {100 * lead:.1f} points may be chance: it is one seed on {count} clouds."
            else:
                *others, last_name = (record["method"] for record in records if record[score] == best[score])
                text += f" {', '.join(others)} and {last_name} are equal."
    if best["best_epoch"] == last["epoch"] > 1:
        text += " Still improving in the last epoch: more --num_train_epochs may help."
    if steps < FEW_STEPS:
        text += f" Only {steps} step{'s' * (steps != 1)}: the numbers say little."
    return text
