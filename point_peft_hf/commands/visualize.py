"""Draw what an adapter makes of a cloud, and how its training went.

    point-peft visualize scan.ply --adapter outputs/point_peft
    point-peft visualize --adapter outputs/point_peft --projection tsne --output_dir pictures
    point-peft visualize chair.ply --adapter outputs/parts --category chair

Pictures need the extra `viz`. Writes to the output folder

    cloud.html               the cloud to turn and zoom, coloured by what is chosen in the page
    cloud_*.png              the same as pictures: prediction, groups, attention, and what the adapter has to show
    features.png             features of test clouds before and after tuning
    confusion_matrix.png     which classes of the test clouds are taken for which
    learning_curves.png      loss and validation score of each epoch

The last three need what training wrote, "run.json", and the data it was trained on; features and confusion matrix are
those of classifiers.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from .. import visualization
from ..data import PointCloudCollator, sample_shape
from ..io.files import RECORD_NAME
from ..training import (
    PartPredictor,
    Predictor,
    load_predictor,
    load_task_of,
)
from . import make_adapter_parser, prepare
from .recorded import check_names, read_runs, recorded_data


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = make_adapter_parser(__doc__, prog)
    parser.add_argument("file", nargs="?", metavar="FILE", help="Point cloud or mesh (default: a built-in shape).")
    parser.add_argument("--adapter", required=True, help="Folder or Hub repository of the adapter.")
    parser.add_argument("--category", help="Parts: category of the object in the file.")
    parser.add_argument("--data", help="Folder of the data set (default: what the adapter was trained on).")
    parser.add_argument("--layout", help="Layout of that folder, where it holds several data sets.")
    parser.add_argument("--max_clouds", type=int, default=240, help="Test clouds to draw at most (default: 240).")
    parser.add_argument("--projection", choices=visualization.features.PROJECTIONS, default="pca")
    parser.add_argument("--output_dir", type=Path, default=Path("pictures"), help="Default: pictures.")
    return parser.parse_args(arguments)


def draw_cloud(args: argparse.Namespace, predictor: Predictor | PartPredictor) -> Iterator[Path]:
    """Draw the cloud, coloured by all that the model makes of it."""
    if isinstance(predictor, PartPredictor):
        category, names = predictor.category_index(args.category), predictor.part_names
        reference_names = predictor.category_names
    else:
        category, names, reference_names = None, predictor.class_names, predictor.class_names
    cloud, title = args.file, Path(args.file or "teapot (built-in shape)").name
    points, model_points = visualization.prepare_for_display(
        sample_shape("teapot", 8192, rng=0) if cloud is None else cloud, predictor.processor
    )
    inspection = visualization.inspect_cloud(predictor.model, model_points, category)
    colorings = visualization.inspection_colorings(inspection, names, points, reference_names)
    yield visualization.save_cloud_page(points, colorings, args.output_dir / "cloud.html", title)
    for coloring in colorings:
        name = re.sub(r"\W+", "_", coloring.name)
        path = args.output_dir / f"cloud_{name}.png"
        yield visualization.save_cloud_image(points, coloring, path, title)


def draw_training(args: argparse.Namespace, runs: list[dict]) -> Iterator[Path]:
    """Draw how training went."""
    histories = {f"{run['method']}, seed {run['arguments']['seed']}": run["history"] for run in runs}
    yield visualization.plot_learning_curves(histories, args.output_dir / "learning_curves.png")


def draw_test_clouds(args: argparse.Namespace, predictor: Predictor, arguments: dict) -> Iterator[Path]:
    """Draw what a classifier makes of the test clouds."""
    try:
        what = recorded_data(arguments, args.data, args.layout)
    except FileNotFoundError as error:
        print(f"No features and confusion matrix: {error}")
        return
    task = load_task_of(dataclasses.replace(what, max_test_clouds=args.max_clouds))
    check_names(task.class_names, predictor.class_names, what.data)
    loader = DataLoader(task.test, batch_size=16, collate_fn=PointCloudCollator(predictor.processor))
    clouds = visualization.classify_clouds(predictor.model, loader)
    features, confusion = args.output_dir / "features.png", args.output_dir / "confusion_matrix.png"
    names = predictor.class_names
    yield visualization.plot_features(clouds.features, clouds.labels, names, features, method=args.projection)
    yield visualization.plot_confusion_matrix(clouds.confusion, names, confusion)


def draw_all(args: argparse.Namespace) -> Iterator[Path]:
    """Draw everything there is."""
    predictor = load_predictor(args.adapter, args.model)
    yield from draw_cloud(args, predictor)
    # One that was not finished, or not made here, has nothing to draw.
    runs = [run for run in read_runs(args.adapter) if "history" in run and "arguments" in run]
    if not runs:
        print(f"{args.adapter} has no {RECORD_NAME} of a finished run: no learning curves, features, confusions.")
        return
    yield from draw_training(args, runs)
    if isinstance(predictor, Predictor):
        yield from draw_test_clouds(args, predictor, runs[0]["arguments"])


def main(arguments: Sequence[str], prog: str) -> None:
    """Draw, and say where each picture is as soon as it is there."""
    args = _parse(arguments, prog)
    prepare(args)
    path = None
    try:
        for path in draw_all(args):
            print(path, flush=True)
    except ImportError as error:
        # The page of the cloud, which needs no extra, comes first. Without it there is nothing to show.
        if path is None:
            raise
        print(f"No pictures: {error}")
