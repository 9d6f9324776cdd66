"""Convert a published checkpoint of an encoder of objects or scenes to a folder for `from_pretrained`.

    python examples/convert_checkpoint.py pretrain.pth point-mae-base --model_type point_mae
    python examples/convert_checkpoint.py scan_hardest.pth point-mae-scan --model_type point_mae --config config.json
    python examples/convert_checkpoint.py stag_scan.pth stag-scan --model_type point_mae --method stag
    python examples/convert_checkpoint.py concerto_base.pth concerto-base --model_type ptv3
    python examples/convert_checkpoint.py model_best.pth ptv3-run --model_type ptv3 --variant ptv3-repaired

Reads the files of the research repositories (pre-training and fine-tuned, and those of ACT and PCP-MAE, which have the
encoder of Point-MAE; Sonata, Concerto, Utonia and supervised Point Transformer V3) and of the package
torch-pointcloud. Widths, depth and classes are read from the tensors;
`--config` gives heads, groups, their sizes and radii where they are not the published ones. A file with more inside of
the encoder than the model has is refused. Nothing in the file can run code.

With `--method` the file of a fine-tuning method becomes two folders, `backbone` and `adapter`, which together compute
what was published; `--config` then holds the options of backbone and method by their published names, in one flat
object.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from point_peft_hf.models.convert import ADAPTER, BACKBONE, MODEL_CLASSES, convert_checkpoint
from point_peft_hf.models.convert_ptv3 import VARIANTS


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was loaded, what is new and what was ignored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="A .pth or .safetensors file, or a folder with model.safetensors.")
    parser.add_argument("output_dir", help="Folder to write.")
    parser.add_argument("--model_type", required=True, choices=sorted(MODEL_CLASSES))
    parser.add_argument("--config", help="JSON file with fields of the configuration.")
    parser.add_argument(
        "--method", help="Fine-tuning method that the file is of, such as stag: make an adapter of it."
    )
    parser.add_argument(
        "--variant", choices=sorted(VARIANTS), help="Of a ptv3: what it is, where its file does not say it."
    )
    args = parser.parse_args(argv)
    try:
        report = convert_checkpoint(
            args.input, args.output_dir, args.model_type, args.config, method=args.method, variant=args.variant
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    folder = args.output_dir if args.method is None else str(Path(args.output_dir) / BACKBONE)
    print(f"Load it with point_peft_hf.{report.architecture}.from_pretrained({folder!r}).")
    if args.method is not None:
        adapter = str(Path(args.output_dir) / ADAPTER)
        print(f"Then attach the adapter with peft.PeftModel.from_pretrained(model, {adapter!r}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
