"""Measure time and memory of the adapters against full fine-tuning, LoRA and the published way to compute Point-PEFT.

    python examples/benchmark.py --threads 1    # everything, batches of 4: 10 minutes on a core of a CPU
    python examples/benchmark.py --sections step memory --batch_size 1 8 32
    python examples/benchmark.py --sections export --threads 1 --batch_size 1 16    # ONNX Runtime against PyTorch
    python examples/benchmark.py --sections methods --threads 1 --batch_size 1 8 32    # every published method
    python examples/benchmark.py --sections known sharing --threads 1    # what is computed once
    python examples/benchmark.py --bf16 --compile --batch_size 32 256

Everything runs in one process, in alternation, with random weights; times are medians, `ratio` is to the first line of
a group. On a machine that others use, too, `--clock cpu` reads the computing time of the process instead of the clock
on the wall. At the end the figures that this project is held to are shown: those that were not measured are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import torch
import transformers
from benchmarks import measuring, sections
from benchmarks.models import FROZEN, PUBLISHED, PUBLISHED_FULL, SHAPES, TWO_PASSES, Setting


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(sections.SECTIONS)
    # This one needs an extra.
    default = [name for name in names if name != "export"]
    parser.add_argument(
        "--sections", nargs="+", choices=names, default=default, metavar="SECTION", help=", ".join(names)
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batch_size", nargs="+", type=int, default=[4], help="one or more (default: 4)")
    parser.add_argument("--hidden_size", type=int, default=384, help="width of the backbone (default: 384)")
    parser.add_argument("--num_layers", type=int, default=12, help="blocks of the backbone (default: 12)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each thing is timed (default: 5)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="forward passes under autocast in bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--output", default="benchmark.json", help="file for the results (default: benchmark.json)")
    return parser.parse_args()


def targets(report: measuring.Report, batch_size: int) -> list[tuple[str, float | None, str, float]]:
    """The figures that this project is held to: what, what was reached, "<=" or ">=", and the limit."""
    scan, modelnet = f"scanobjectnn x{batch_size}", f"modelnet x{batch_size}"
    found = []
    for clouds, points, centers in sections.GEOMETRY_SHAPES:
        case = f"{clouds}x{points}->{centers}"
        for name, limit in (("farthest points", 10), ("neighbours", 5)):
            found.append((f"{name}, {case}: {PUBLISHED} / ours", _ops_ratio(report, case, name), ">=", limit))
    rows = [
        (f"frozen patch embedding: {PUBLISHED} / ours", ("embedding", scan, PUBLISHED, "patch embedding"), ">=", 3),
        (f"training step: {PUBLISHED} / point_peft", ("step", scan, PUBLISHED, "point_peft"), ">=", 3),
        (f"inference: {PUBLISHED} / point_peft", ("inference", scan, PUBLISHED, "point_peft"), ">=", 3),
        (f"training step: point_peft / {PUBLISHED_FULL}", ("step", scan, "point_peft", PUBLISHED_FULL), "<=", 0.6),
        (
            f"training step, modelnet: point_peft / {PUBLISHED_FULL}",
            ("step", modelnet, "point_peft", PUBLISHED_FULL),
            *("<=", 0.75),
        ),
        ("training step: point_peft / full", ("step", scan, "point_peft", "full"), "<=", 0.75),
        ("training step, modelnet: point_peft / full", ("step", modelnet, "point_peft", "full"), "<=", 0.75),
        ("training step: point_peft / lora", ("step", scan, "point_peft", "lora"), "<=", 1.4),
        (f"training step: {TWO_PASSES} / full", ("step", scan, TWO_PASSES, "full"), "<=", 1.0),
        (f"training step, modelnet: {TWO_PASSES} / full", ("step", modelnet, TWO_PASSES, "full"), "<=", 1.0),
        ("saved for backward: point_peft / full", ("memory", scan, "point_peft", "full", "saved_MiB"), "<=", 0.45),
        (
            "saved for backward: point_peft with checkpointing / full",
            ("memory", scan, "point_peft, checkpointing", "full", "saved_MiB"),
            *("<=", 0.05),
        ),
        (f"inference: point_peft / {FROZEN}", ("inference", scan, "point_peft", FROZEN), "<=", 1.35),
        (f"inference: {TWO_PASSES} / {FROZEN}", ("inference", scan, TWO_PASSES, FROZEN), "<=", 2.1),
    ]
    for name in ("stag", "stag, sl"):
        rows.append((f"training step: {name} / full", ("methods", scan, name, "full", "step_ms"), "<=", 0.5))
        rows.append((f"kept for backward: {name} / full", ("methods", scan, name, "full", "kept_MiB"), "<=", 0.25))
    entries = ("retrieval", "10,000 entries", PUBLISHED, "float32")
    rows.append((f"retrieval, 10,000 entries: {PUBLISHED} / ours", entries, ">=", 5))
    found += [(name, report.ratio(*query), sign, limit) for name, query, sign, limit in rows]
    share = report.value("inference", scan, "retrieval and geometry of the tokens", "ratio")
    return [*found, ("geometry of the tokens / forward pass", share, "<=", 0.05)]


def _ops_ratio(report: measuring.Report, case: str, name: str) -> float | None:
    return report.ratio("ops", case, f"{name}, {PUBLISHED}", name)


def targets_table(report: measuring.Report, batch_size: int) -> str:
    """The targets that were measured as a Markdown table."""
    lines = ["| figure | reached | target | met |", "|---|---:|---:|---|"]
    for name, reached, sign, limit in targets(report, batch_size):
        if reached is not None:
            met = reached >= limit if sign == ">=" else reached <= limit
            lines.append(f"| {name} | {reached:.3g} | {sign} {limit} | {'yes' if met else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    """Run the sections, print their tables, and write the file."""
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    report = measuring.Report()
    run = sections.Run(
        setting=Setting(arguments.hidden_size, arguments.num_layers, device, arguments.bf16, arguments.compile),
        shapes=tuple(arguments.shapes),
        batch_sizes=tuple(arguments.batch_size),
        rounds=arguments.rounds,
        clock=measuring.Clock(device, arguments.clock),
        report=report,
    )
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    environment = {"hardware": hardware, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    for name in arguments.sections:
        start = time.perf_counter()
        torch.manual_seed(0)
        sections.SECTIONS[name](run)
        print(f"\n{report.table(name)}\n({time.perf_counter() - start:.0f} s)", flush=True)
    for batch_size in arguments.batch_size:
        print(f"\nBatches of {batch_size}:\n\n{targets_table(report, batch_size)}")
    results = {"environment": environment, "arguments": vars(arguments), "rows": report.as_list()}
    Path(arguments.output).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
