"""Classify files with a backbone and an adapter, or label their parts, or all points of scans.

    python examples/predict.py scan.ply part.obj --adapter outputs/point_peft
    python examples/predict.py cloud.npy --adapter outputs/point_peft --model path/to/backbone --top 3
    python examples/predict.py chair.ply --adapter outputs/point_peft --category chairs    # chair_parts.ply
    python examples/predict.py street.laz --adapter outputs/lora                           # street_labelled.laz

The adapter's folder says which backbone it belongs to, what its classes are called and how clouds are prepared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from point_peft_hf.scenes import ScenePredictor
from point_peft_hf.training import PartPredictor, find_method, load_predictor, show_only_own_messages


def parse_arguments() -> argparse.Namespace:
    """Read the arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Point clouds or meshes.")
    parser.add_argument("--adapter", required=True, help="Folder or Hub repository of the adapter.")
    parser.add_argument("--method", help="package.module:Config, where the adapter is of a type of your own.")
    parser.add_argument("--model", help="Backbone: a name, a folder or a Hub repository (default: the adapter's).")
    parser.add_argument("--top", type=int, default=3, help="Classes to print for each file (default: 3).")
    parser.add_argument("--category", help="Parts: category of the objects in the files.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path(),
        help="Parts and scenes: folder of the labelled files (default: this).",
    )
    parser.add_argument(
        "--drop_invalid",
        action="store_true",
        help="Leave out points with NaN or infinite coordinates, as depth cameras write them.",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def labelled_files(files: list[str], output_dir: Path, scenes: bool) -> list[Path]:
    """Say where the labelled points of each file go.

    Raises:
        ValueError: If those of two files would go to the same place, or over a file that is read.
    """
    targets: dict[Path, str] = {}
    read = {Path(file).resolve() for file in files}
    for file in files:
        suffix = Path(file).suffix.lower()
        ending = f"_labelled{suffix if suffix in ('.las', '.laz') else '.ply'}" if scenes else "_parts.ply"
        target = output_dir / f"{Path(file).stem}{ending}"
        if target in targets:
            raise ValueError(
                f"The labels of {targets[target]} and of {file} would both go to {target}. Predict them one by one, "
                "each with an --output_dir of its own."
            )
        if target.resolve() in read:
            raise ValueError(
                f"The labels of {file} would replace {target}, which is to be read as well. Pass another --output_dir."
            )
        targets[target] = file
    return list(targets)


def main() -> None:
    """Print the top classes of each file, or write its parts."""
    args = parse_arguments()
    show_only_own_messages()
    if args.method:
        find_method(args.method)  # registers its type
    predictor = load_predictor(args.adapter, args.model, device=args.device)
    scenes = isinstance(predictor, ScenePredictor)
    is_labelling = scenes or isinstance(predictor, PartPredictor)
    targets = labelled_files(args.files, args.output_dir, scenes) if is_labelling else [None] * len(args.files)
    for file, target in zip(args.files, targets, strict=True):
        if is_labelling:
            if scenes:
                prediction = predictor.predict(file, drop_invalid=args.drop_invalid)
            else:
                prediction = predictor.predict(file, args.category, drop_invalid=args.drop_invalid)
            prediction.write(target)
            shares = sorted(prediction.shares().items(), key=lambda item: -item[1])
            print(f"{file}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares) + f" -> {target}")
            continue
        ranked = predictor.predict(file, top=args.top, drop_invalid=args.drop_invalid)
        print(f"{file}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in ranked))


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
