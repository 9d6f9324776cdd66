"""A page to try adapters on: drop a cloud, see what it or its parts are, and which training clouds it is like.

    point-peft demo outputs/point_peft outputs/lora
    point-peft demo you/my-adapter --port 7861

Needs `pip install 'point-peft-hf[demo]'`. Adapters of one backbone share its weights, so that many can be served at
once; the page switches between them.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import visualization
from ..data import HELD_OUT_CLASSES, READERS, sample_shape
from ..extras import install_command
from ..training import PartPredictor, Predictor, find_method, load_resident, show_only_own_messages
from . import make_parser

TITLE = "Point clouds, adapters on one backbone"
SAMPLE_POINTS = 20_000
MAX_CLASSES = 5
# Without their similarities: these are as high for clouds unlike anything in training.
REFERENCE_COLUMNS = ["class", "weight", "cloud"]
# Fonts of the system: nothing is loaded from elsewhere.
FONTS = ["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
STYLE = """
.viewer iframe { width: 100%; height: min(74vh, 720px); border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--background-fill-primary); }
/* On a phone everything is in one column: the cloud comes before the numbers about it. */
@media (max-width: 640px) {
  .stack { display: contents !important; }
  .stack > * { flex: 1 1 100%; }
  .viewer { order: 1; }
  .scores { order: 2; }
  .references { order: 3; }
}
.problem { padding: 10px 14px; border: 2px solid #d55e00; border-radius: 8px; overflow-wrap: anywhere; }
"""


@dataclass
class Answer:
    """What a model says about a cloud.

    Attributes:
        page: The cloud to look at, as an HTML page.
        scores: Probability of each class, or share of the points of each part that occurs.
        references: Rows of `REFERENCE_COLUMNS`: training clouds that the adapter draws from, if it draws from any.
        source: Where these come from.
    """

    page: str
    scores: dict[str, float]
    references: list[list[str]]
    source: str


def answer(
    predictor: Predictor | PartPredictor, cloud: str | np.ndarray, title: str, category: str | None = None
) -> Answer:
    """Let a model look at a cloud.

    Args:
        predictor: The model.
        cloud: A file, or coordinates of shape `(num_points, 3)`.
        title: What the cloud is called.
        category: Category of the object, for a model of parts that is told.

    Returns:
        What it says.

    Raises:
        ValueError: If the cloud cannot be read or used.
    """
    has_parts = isinstance(predictor, PartPredictor)
    names = predictor.part_names if has_parts else predictor.class_names
    reference_names = predictor.category_names if has_parts else names
    category_index = predictor.category_index(category) if has_parts else None
    points, model_points = visualization.prepare_for_display(cloud, predictor.processor)
    inspection = visualization.inspect_cloud(predictor.model, model_points, category_index)
    colorings = visualization.inspection_colorings(inspection, names, points, reference_names)
    if has_parts:
        shares = np.bincount(colorings[0].values, minlength=len(names)).astype(float)
    else:
        shares = np.exp(inspection.logits - inspection.logits.max())
    scores = {name: share for name, share in zip(names, (shares / shares.sum()).tolist(), strict=True) if share > 0}
    references = []
    for found in inspection.references:
        for label, sample, weight in zip(found.labels, found.sample_ids, found.weights, strict=True):
            name = reference_names[label] if 0 <= label < len(reference_names) else "unknown"
            number = str(sample) if sample >= 0 else "unknown"
            references.append([name, f"{100 * weight:.1f} %", number])
    source = ", ".join(found.name for found in inspection.references)
    return Answer(visualization.cloud_page(points, colorings, title), scores, references, source)


def categories_of(predictor: Predictor | PartPredictor) -> list[str]:
    """Names of the categories that a person has to choose from; none where the model does not ask."""
    return predictor.category_names if isinstance(predictor, PartPredictor) and predictor.needs_category else []


def build_page(predictors: dict[str, Predictor | PartPredictor]):
    """Build the page.

    Args:
        predictors: The models by name.

    Returns:
        The gradio page; `launch` serves it.
    """
    import gradio

    first_sample = HELD_OUT_CLASSES[0]

    def choose_categories(adapter: str, category: str | None):
        names = categories_of(predictors[adapter])
        # What was chosen stays where the next adapter knows it as well.
        value = category if category in names else next(iter(names), None)
        return gradio.Dropdown(names, value=value, visible=bool(names))

    def show(adapter: str, source: tuple[str, str], category: str | None):
        kind, what = source
        try:
            # Another teapot for everybody would be no help in comparing adapters.
            cloud = what if kind == "file" else sample_shape(what, SAMPLE_POINTS, rng=0)
            title = Path(what).name if kind == "file" else f"{what} (built-in shape)"
            chosen = category if categories_of(predictors[adapter]) else None
            result = answer(predictors[adapter], cloud, f"{title} · {adapter}", chosen)
        except (ImportError, OSError, ValueError) as error:
            # Uploads lie in folders of the server, which nobody wants to read.
            problem = html.escape(str(error).replace(what, Path(what).name))
            message = f"<div class='problem' role='alert'><b>This cloud cannot be shown.</b> {problem}</div>"
            # What was shown before stays.
            return gradio.HTML(message, visible=True), gradio.skip(), gradio.skip(), gradio.skip()
        # A frame of its own: the page brings its own style and script, and has no access to this one.
        frame = f'<iframe sandbox="allow-scripts" title="Point cloud" srcdoc="{html.escape(result.page)}"></iframe>'
        references = gradio.Dataframe(
            result.references, label=f"Training clouds: {result.source}", visible=bool(result.references)
        )
        return gradio.HTML("", visible=False), frame, result.scores, references

    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(f"## {TITLE}")
        source = gradio.State(("sample", first_sample))
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300, elem_classes="stack"):
                first = next(iter(predictors))
                names = categories_of(predictors[first])
                adapter = gradio.Dropdown(list(predictors), value=first, label="Adapter")
                category = gradio.Dropdown(
                    names, value=next(iter(names), None), visible=bool(names), label="Category of the object"
                )
                sample = gradio.Dropdown(list(HELD_OUT_CLASSES), value=first_sample, label="Built-in shape")
                file = gradio.File(label="Or a file of yours", height=130)
                gradio.Markdown(f"<small>Read are {', '.join(sorted(READERS))}</small>")
                scores = gradio.Label(
                    label="Class, or share of each part", num_top_classes=MAX_CLASSES, elem_classes="scores"
                )
            with gradio.Column(scale=2, min_width=320, elem_classes="stack"):
                message = gradio.HTML(visible=False)
                viewer = gradio.HTML(elem_classes="viewer")
                references = gradio.Dataframe(
                    headers=REFERENCE_COLUMNS,
                    elem_classes="references",
                    column_widths=["44%", "28%", "28%"],
                    wrap=True,
                    label="Training clouds",
                    interactive=False,
                    visible=False,
                )
        outputs = [message, viewer, scores, references]
        shown = {"fn": show, "inputs": [adapter, source, category], "outputs": outputs, "api_name": False}
        page.load(**shown)
        adapter.change(choose_categories, [adapter, category], category, api_name=False).then(**shown)
        category.input(**shown)
        sample.input(lambda name: (("sample", name), None), sample, [source, file], api_name=False).then(**shown)
        file.upload(lambda path: ("file", path), file, source, api_name=False).then(**shown)
        file.clear(lambda name: ("sample", name), sample, source, api_name=False).then(**shown)
    return page


def main(arguments: Sequence[str], prog: str) -> None:
    """Load the adapters and serve the page."""
    args = _parse(arguments, prog)
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"The demo needs gradio, which is not installed: {install_command('demo')}") from error
    show_only_own_messages()
    if args.method:
        find_method(args.method)  # registers its type
    predictors = load_resident(args.adapters, args.model)
    build_page(predictors).launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size="200mb",
        theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        footer_links=[],
    )


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="Folders or Hub repositories of adapters.")
    parser.add_argument("--method", help="package.module:Config, where adapters are of a type of your own.")
    parser.add_argument("--model", help="Backbone of all: a name, a folder or a Hub repository (default: theirs).")
    parser.add_argument("--host", default="127.0.0.1", help="Address to serve at; 0.0.0.0 for the whole network.")
    parser.add_argument("--port", type=int, default=7860, help="Default: 7860.")
    return parser.parse_args(arguments)
