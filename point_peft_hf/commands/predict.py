"""Classify files with a backbone and an adapter, or label their parts, or all points of scans.

    point-peft predict scan.ply part.obj --adapter outputs/point_peft
    point-peft predict scans/ clouds.h5 --adapter outputs/point_peft --output predictions.csv
    point-peft predict cloud.npy --adapter outputs/point_peft --model path/to/backbone --top 3
    point-peft predict scans/ --adapter outputs/cups --adapter outputs/tools  # several, on one backbone
    point-peft predict chair.ply --adapter outputs/parts --category chairs    # chair_parts.ply
    point-peft predict street.laz --adapter outputs/lora                      # street_labelled.laz

The adapter's folder says which backbone it belongs to, what its classes are called and how clouds are prepared. A
folder stands for all clouds in it and below it. `--output` writes a row for each cloud: the class and its probability,
the probability of every class (of parts and scenes: the share of the points), and what is wrong with a file that
cannot be read. Such files do not stop the others; the exit status is then 3. Several adapters of classes give a row
each for a cloud; what they compute alike of it (groups and their tokens) is computed once.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..data.listing import ListedCloud, list_clouds
from ..scenes import ScenePredictor
from ..training import PartPredictor, Predictor, SharedValues, load_resident
from . import add_precision, make_adapter_parser, prepare

SOME_FAILED = 3
_FORMATS = (".csv", ".json", ".jsonl")
_ERRORS = (ImportError, OSError, ValueError)


def main(arguments: Sequence[str], prog: str) -> int:
    """Predict, and print or write a line for each cloud."""
    args = _parse(arguments, prog)
    prepare(args)
    predictors = load_resident(args.adapter, args.model, args.device, args.precision)
    predictor = next(iter(predictors.values()))
    labels = [name for name, each in predictors.items() if not isinstance(each, Predictor)]
    if labels and len(predictors) > 1:
        raise ValueError(f"--adapter {labels[0]} labels points, which is done with one adapter at a time.")
    if args.category is not None and not isinstance(predictor, PartPredictor):
        raise ValueError(f"--category is for parts of objects, and {args.adapter[0]} predicts classes. Leave it out.")
    clouds = list(list_clouds(args.paths, scenes=isinstance(predictor, ScenePredictor)))
    rows = _label(predictor, clouds, args) if labels else _classify(predictors, clouds, args)
    with _writer(args.output, predictors, clouds) as write:
        failed = set()
        for place, row in enumerate(rows):
            if row["error"] is not None:
                failed.add(place // len(predictors))
            if args.output is None or row["error"]:
                print(_line(row, args.top), flush=True)
            write(row)
    if args.output is not None:
        print(f"{len(clouds) - len(failed)} of {len(clouds)} clouds predicted -> {args.output}")
    if failed:
        place = "the messages above" if args.output is None else "the messages above or the column `error`"
        print(f"{len(failed)} of {len(clouds)} clouds could not be read; see {place}.")
    return SOME_FAILED if failed else 0


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = make_adapter_parser(__doc__, prog)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="Point clouds, meshes, or folders of them.")
    parser.add_argument(
        "--adapter",
        action="append",
        required=True,
        help="Folder or Hub repository of the adapter. Give it again for several adapters.",
    )
    parser.add_argument("--output", type=Path, help="File for the predictions: .csv, .json or .jsonl.")
    parser.add_argument("--top", type=int, default=3, help="Classes to print for each cloud (default: 3).")
    parser.add_argument("--batch_size", type=int, default=16, help="Clouds at a time (default: 16).")
    parser.add_argument("--category", help="Parts: category of the objects in the files.")
    parser.add_argument("--columns", help="Scenes: what the columns of the files are, as in 'x y z intensity'.")
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
    add_precision(parser)
    args = parser.parse_args(arguments)
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}.")
    if args.output is not None and args.output.suffix.lower() not in _FORMATS:
        raise ValueError(f"--output must end with {', '.join(_FORMATS)}, got {args.output}.")
    return args


def _classify(
    predictors: dict[str, Predictor], clouds: list[ListedCloud], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(clouds), args.batch_size):
        batch = clouds[start : start + args.batch_size]
        sources = [cloud.source for cloud in batch]
        shared = SharedValues() if len(predictors) > 1 else None
        answers = [
            predictor.predict_many(sources, args.batch_size, drop_invalid=args.drop_invalid, shared=shared)
            for predictor in predictors.values()
        ]
        for cloud, *found in zip(batch, *answers, strict=True):
            for (adapter, predictor), answer in zip(predictors.items(), found, strict=True):
                row: dict[str, Any] = {"file": cloud.name} | ({"adapter": adapter} if shared is not None else {})
                if isinstance(answer, Exception):
                    # A file's own name stands for the place of its cloud in the batch.
                    error = re.sub(r"^cloud \d+: ", "", str(answer))
                    yield row | {"class": None, "probability": None, "error": error}
                    continue
                name, probability = predictor.ranked(answer)[0]
                values = dict(zip(predictor.class_names, answer.tolist(), strict=True))
                yield row | {"class": name, "probability": probability, "error": None, "probabilities": values}


def _label(
    predictor: PartPredictor | ScenePredictor, clouds: list[ListedCloud], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    is_scene = isinstance(predictor, ScenePredictor)
    if not is_scene:
        predictor.category_index(args.category)  # what is wrong for every file is said before the first
    targets = _targets(clouds, args.output_dir, is_scene)
    options = {"drop_invalid": args.drop_invalid}
    options |= {"columns": args.columns} if is_scene else {"category": args.category}
    for cloud, target in zip(clouds, targets, strict=True):
        row: dict[str, Any] = {"file": cloud.name, "labelled": None, "error": None}
        try:
            prediction = predictor.predict(cloud.source, **options)
            target.parent.mkdir(parents=True, exist_ok=True)
            prediction.write(target)
            yield row | {"labelled": str(target), "shares": prediction.shares()}
        except _ERRORS as error:
            yield row | {"error": str(error)}


def _targets(clouds: list[ListedCloud], output_dir: Path, is_scene: bool) -> list[Path]:
    """Choose where the labelled points of each cloud go.

    Raises:
        ValueError: If those of two clouds would go to the same place, or over a file that is read.
    """
    targets: dict[Path, str] = {}
    read = {cloud.file.resolve() for cloud in clouds}
    for cloud in clouds:
        suffix = cloud.place.suffix.lower()
        ending = f"_labelled{suffix if suffix in ('.las', '.laz') else '.ply'}" if is_scene else "_parts.ply"
        stem = cloud.place.stem if cloud.number is None else f"{cloud.place.stem}_{cloud.number}"
        target = output_dir / cloud.place.with_name(f"{stem}{ending}")
        if target in targets:
            raise ValueError(
                f"The labels of {targets[target]} and of {cloud.name} would both go to {target}. Predict them one by "
                "one, each with an --output_dir of its own."
            )
        if target.resolve() in read:
            raise ValueError(
                f"The labels of {cloud.name} would replace {target}, which is to be read as well. Pass another "
                "--output_dir."
            )
        targets[target] = cloud.name
    return list(targets)


def _line(row: dict[str, Any], top: int) -> str:
    start = f"{row['file']}, {row['adapter']}" if "adapter" in row else row["file"]
    if row["error"] is not None:
        # Most messages start with the file.
        return f"{start}: {row['error'].removeprefix(row['file'] + ': ')}"
    values = row["probabilities"] if "probabilities" in row else row["shares"]
    ranked = sorted(values.items(), key=lambda item: -item[1])
    if "probabilities" in row:
        ranked = ranked[:top]
    text = f"{start}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in ranked)
    return text if "probabilities" in row else f"{text} -> {row['labelled']}"


@contextmanager
def _writer(path: Path | None, predictors: dict[str, Any], clouds: list[ListedCloud]) -> Iterator[Any]:
    """Give a function that writes a row; each row is in the file as soon as it is known, but for .json."""
    if path is None:
        yield lambda row: None
        return
    if path.resolve() in {cloud.file.resolve() for cloud in clouds}:
        raise ValueError(f"--output {path} is a cloud to be read. Pass another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".csv":
            yield _csv_rows(file, list(predictors.values()))
        elif path.suffix.lower() == ".jsonl":
            yield lambda row: print(json.dumps(row), file=file, flush=True)
        else:
            rows: list[dict[str, Any]] = []
            yield rows.append
            json.dump(rows, file, indent=1)


def _csv_rows(file: Any, predictors: list[Any]) -> Any:
    predictor = predictors[0]
    if isinstance(predictor, Predictor):
        first = ["file", *(["adapter"] if len(predictors) > 1 else []), "class", "probability", "error"]
        # Adapters with classes of the same name share a column.
        values, names = "probabilities", list(dict.fromkeys(name for each in predictors for name in each.class_names))
    else:
        names = predictor.part_names if isinstance(predictor, PartPredictor) else predictor.class_names
        first, values = ["file", "labelled", "error"], "shares"
    prefix = {"probabilities": "probability", "shares": "share"}[values]
    writer = csv.writer(file)
    writer.writerow([*first, *(f"{prefix}_{name}" for name in names)])

    def write(row: dict[str, Any]) -> None:
        found = row.get(values)
        absent = "" if values == "probabilities" else "0.000000"
        cells = [f"{found[name]:.6f}" if name in found else absent for name in names] if found else [""] * len(names)
        fixed = [row[name] for name in first]
        fixed = [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in fixed]
        writer.writerow(["" if cell is None else cell for cell in fixed] + cells)
        file.flush()

    return write
