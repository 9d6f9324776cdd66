"""Classify files with a backbone and an adapter, or tell their parts apart.

    python examples/predict.py scan.ply part.obj --adapter outputs/point_peft
    python examples/predict.py cloud.npy --adapter outputs/point_peft --model path/to/backbone --top 3
    python examples/predict.py chair.ply --adapter outputs/point_peft --category chairs    # chair_parts.ply

The adapter's folder says which backbone it belongs to, what its classes are called and how clouds are prepared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from point_peft_hf.training import PartPredictor, load_predictor, show_only_own_messages


def parse_arguments() -> argparse.Namespace:
    """Read the arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Point clouds or meshes.")
    parser.add_argument("--adapter", required=True, help="Folder or Hub repository of the adapter.")
    parser.add_argument("--model", help="Backbone: a name, a folder or a Hub repository (default: the adapter's).")
    parser.add_argument("--top", type=int, default=3, help="Classes to print for each file (default: 3).")
    parser.add_argument("--category", help="Parts: category of the objects in the files.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path(), help="Parts: where FILE_parts.ply goes (default: this folder)."
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Print the top classes of each file, or write its parts."""
    args = parse_arguments()
    show_only_own_messages()
    predictor = load_predictor(args.adapter, args.model, device=args.device)
    for file in args.files:
        if isinstance(predictor, PartPredictor):
            prediction = predictor.predict(file, args.category)
            args.output_dir.mkdir(parents=True, exist_ok=True)
            target = args.output_dir / f"{Path(file).stem}_parts.ply"
            prediction.save(target)
            shares = sorted(prediction.shares().items(), key=lambda item: -item[1])
            print(f"{file}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares) + f" -> {target}")
            continue
        ranked = predictor.predict(file, top=args.top)
        print(f"{file}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in ranked))


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
