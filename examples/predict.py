"""Classify files with a backbone and an adapter.

    python examples/predict.py scan.ply part.obj --adapter outputs/point_peft
    python examples/predict.py cloud.npy --adapter outputs/point_peft --model path/to/backbone --top 3

The adapter's folder says which backbone it belongs to, what its classes are called and how clouds are prepared.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch
import transformers

from point_peft_hf.training import Predictor


def parse_arguments() -> argparse.Namespace:
    """Read the arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Point clouds or meshes.")
    parser.add_argument("--adapter", required=True, help="Folder or Hub repository of the adapter.")
    parser.add_argument("--model", help="Backbone: a name, a folder or a Hub repository (default: the adapter's).")
    parser.add_argument("--top", type=int, default=3, help="Classes to print for each file (default: 3).")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Print the top classes of each file."""
    args = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    predictor = Predictor.from_pretrained(args.adapter, args.model, device=args.device)
    for file in args.files:
        ranked = predictor.predict(file, top=args.top)
        print(f"{file}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in ranked))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
