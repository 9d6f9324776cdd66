"""Convert a published checkpoint of Point-MAE, Point-BERT, Point-M2AE or PointGPT to a folder for `from_pretrained`.

    python examples/convert_checkpoint.py pretrain.pth point-mae-base --model_type point_mae
    python examples/convert_checkpoint.py scan_hardest.pth point-mae-scan --model_type point_mae --config config.json

Reads the files of the research repositories (pre-training and fine-tuned, and those of ACT and PCP-MAE, which have the
encoder of Point-MAE) and of the package torch-pointcloud. Widths, depth and classes are read from the tensors;
`--config` gives heads, groups, their sizes and radii where they are not the published ones. A file with more inside of
the encoder than the model has is refused. Nothing in the file can run code.
"""

from __future__ import annotations

import argparse
import sys

from point_peft_hf.models.convert import MODEL_CLASSES, convert_checkpoint


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was loaded, what is new and what was ignored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="A .pth or .safetensors file, or a folder with model.safetensors.")
    parser.add_argument("output_dir", help="Folder to write.")
    parser.add_argument("--model_type", required=True, choices=sorted(MODEL_CLASSES))
    parser.add_argument("--config", help="JSON file with fields of the configuration.")
    args = parser.parse_args(argv)
    try:
        report = convert_checkpoint(args.input, args.output_dir, args.model_type, args.config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    print(f"Load it with point_peft_hf.{report.architecture}.from_pretrained({args.output_dir!r}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
