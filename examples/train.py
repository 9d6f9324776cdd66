"""Fine-tune a pre-trained point transformer.

    accelerate launch examples/train.py                                    # linear probe and Point-PEFT, built-in data
    accelerate launch examples/train.py --method point_peft --data path/to/modelnet40_ply_hdf5_2048
    accelerate launch examples/train.py --task segmentation --augmentation segmentation --data path/to/shapenetpart
    accelerate launch examples/train.py --method lora --config '{"r": 16}' --learning_rate 1e-3
    PYTHONPATH=. accelerate launch examples/train.py --method my_types:TokenScaleConfig    # a type of your own
    accelerate launch examples/train.py --resume_from_checkpoint latest    # go on where a run was stopped
    accelerate launch --config_file examples/accelerate_configs/multi_gpu.yaml examples/train.py --sync_batch_norm

Several methods may be given; they are trained one after the other on the same data and shown in one table. The epoch
is chosen on a validation split that is cut from the training data; the test split is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace

from accelerate import PartialState
from accelerate.utils import release_memory

from point_peft_hf.training import (
    FinetuneArguments,
    Finetuning,
    TrainingStopped,
    results_table,
    show_only_own_messages,
)


def parse_arguments() -> tuple[list[str], FinetuneArguments]:
    """Read the methods and the other arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    types = {"int | None": int, "float | None": float, "str | None": str, "int": int, "float": float, "str": str}
    for field in fields(FinetuneArguments):
        help_text = f"{field.metadata['help']} (default: %(default)s)"
        if field.name == "method":
            parser.add_argument(
                "--method",
                nargs="+",
                default=["linear", "point_peft"],
                metavar="METHOD",
                help=f"One or more: {field.metadata['help']} (default: linear point_peft)",
            )
        elif field.type == "bool":
            parser.add_argument(f"--{field.name}", action="store_true", help=help_text)
        elif field.name.endswith("config"):
            parser.add_argument(f"--{field.name}", type=json.loads, default={}, help=help_text)
        else:
            parser.add_argument(f"--{field.name}", type=types[field.type], default=field.default, help=help_text)
    values = vars(parser.parse_args())
    methods = values.pop("method")
    return methods, FinetuneArguments(**values)


def main() -> None:
    """Train each method, then print the table."""
    methods, args = parse_arguments()
    show_only_own_messages()
    runs = [replace(args, method=method) for method in methods]
    for args in runs:
        args.check()
    task, records = None, []
    for args in runs:
        run = Finetuning(args, task)
        task = run.task
        records.append(run.run())
        is_main_process, output_dir = run.accelerator.is_main_process, run.output_dir
        run.accelerator.free_memory()
        run = release_memory(run)
    if is_main_process:
        print(f"\n{results_table(records)}\n")
        # Whoever loads an adapter has to know its type.
        own_type = f" --method {args.method}" if ":" in args.method else ""
        print(
            f"Saved to {output_dir.parent}/. To predict: python examples/predict.py FILE --adapter "
            f"{output_dir}{own_type}"
        )
    PartialState().destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError, TrainingStopped) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
