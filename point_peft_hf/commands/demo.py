"""A page to try adapters on: drop a cloud, see what it or its parts are, and which training clouds it is like.

    point-peft demo outputs/point_peft outputs/lora
    point-peft demo you/my-adapter --port 7861

Needs the extra `demo`. Adapters of one backbone share its weights, so that many can be served at
once; the page switches between them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import visualization
from ..data import HELD_OUT_CLASSES, READERS, sample_shape
from ..extras import install_command
from ..io.examples import TrainingExamples
from ..training import PartPredictor, Predictor, load_resident
from ..training.resident import short_names
from . import make_server_parser, prepare

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


THUMBNAIL = 96


def draw_thumbnail(points: np.ndarray) -> np.ndarray:
    """Draw a stored thumbnail.

    Args:
        points: From 0 to 255, y up, of shape `(num_points, 3)`.

    Returns:
        A picture, uint8 of shape `(96, 96, 3)`, what is near darker.
    """
    yaw, pitch = np.radians((35, 20))
    x, y, z = (points.astype(np.float64).T - 127.5) / 127.5
    x, z = np.cos(yaw) * x + np.sin(yaw) * z, np.cos(yaw) * z - np.sin(yaw) * x
    y, z = np.cos(pitch) * y - np.sin(pitch) * z, np.cos(pitch) * z + np.sin(pitch) * y
    image = np.full((THUMBNAIL, THUMBNAIL, 3), 246, dtype=np.uint8)
    half = THUMBNAIL / 2
    columns, rows = (half + 0.62 * half * np.stack([x, -y])).round().astype(int)
    # From far to near, a dot of five pixels each.
    for place in np.argsort(z):
        shade = np.array([0, 90, 140]) + int(110 * (1 - (z[place] + 1.5) / 3))
        for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            row, column = np.clip((rows[place] + down, columns[place] + right), 0, THUMBNAIL - 1)
            image[row, column] = np.clip(shade, 0, 255)
    return image


@dataclass
class Answer:
    """What a model says about a cloud.

    Attributes:
        page: The cloud to look at, as an HTML page.
        scores: Probability of each class, or share of the points of each part that occurs.
        references: Rows of `REFERENCE_COLUMNS`: training clouds that the adapter draws from, if it draws from any.
        thumbnails: Pictures of these with what stands below them, of those that are stored with the adapter.
        source: Where these come from.
    """

    page: str
    scores: dict[str, float]
    references: list[list[str]]
    source: str
    thumbnails: list[tuple[np.ndarray, str]]


def answer(
    predictor: Predictor | PartPredictor,
    cloud: str | np.ndarray,
    title: str,
    category: str | None = None,
    examples: TrainingExamples | None = None,
) -> Answer:
    """Let a model look at a cloud.

    Args:
        predictor: The model.
        cloud: A file, or coordinates of shape `(num_points, 3)`.
        title: What the cloud is called.
        category: Category of the object, for a model of parts that is told.
        examples: Training clouds that are stored with the adapter.

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
    references, thumbnails = [], []
    for found in inspection.references:
        for label, sample, weight in zip(found.labels, found.sample_ids, found.weights, strict=True):
            name = reference_names[label] if 0 <= label < len(reference_names) else "unknown"
            (place,) = examples.find([sample]) if examples is not None else (None,)
            number = str(sample) if sample >= 0 else "unknown"
            cloud_name = number if place is None else examples.names[place]
            references.append([name, f"{100 * weight:.1f} %", cloud_name])
            if place is not None:
                caption = f"{name}, {100 * weight:.1f} % · {cloud_name}"
                thumbnails.append((draw_thumbnail(examples.thumbnails[place]), caption))
    source = ", ".join(found.name for found in inspection.references)
    return Answer(visualization.cloud_page(points, colorings, title), scores, references, source, thumbnails)


def categories_of(predictor: Predictor | PartPredictor) -> list[str]:
    """Names of the categories that a person has to choose from; none where the model does not ask."""
    return predictor.category_names if isinstance(predictor, PartPredictor) and predictor.needs_category else []


def choices_of(predictor: Predictor | PartPredictor, examples: TrainingExamples | None) -> list[str]:
    """Names of the clouds to start with: those stored with the adapter, then built-in shapes."""
    if examples is None:
        return list(HELD_OUT_CLASSES)
    names = predictor.category_names if isinstance(predictor, PartPredictor) else predictor.class_names
    stored = [f"{names[examples.labels[place]]}: {examples.names[place]}" for place in examples.places]
    return [*stored, *HELD_OUT_CLASSES]


def build_page(
    predictors: dict[str, Predictor | PartPredictor], examples: dict[str, TrainingExamples | None] | None = None
):
    """Build the page.

    Args:
        predictors: The models by name.
        examples: Training clouds that are stored with them, by the same names.

    Returns:
        The gradio page; `launch` serves it.
    """
    import gradio

    stored = dict.fromkeys(predictors) | (examples or {})
    choices = {name: choices_of(predictor, stored[name]) for name, predictor in predictors.items()}
    first = next(iter(predictors))

    def change_adapter(adapter: str, category: str | None, sample: str, source: tuple[str, str]):
        names = categories_of(predictors[adapter])
        # What was chosen stays where the next adapter knows it as well.
        value = category if category in names else next(iter(names), None)
        sample = sample if sample in choices[adapter] else choices[adapter][0]
        return (
            gradio.Dropdown(names, value=value, visible=bool(names)),
            gradio.Dropdown(choices[adapter], value=sample),
            source if source[0] == "file" else ("sample", sample),
        )

    def load(adapter: str, source: tuple[str, str]) -> tuple[str | np.ndarray, str, str | None]:
        """The cloud, its title, and its category where it is known."""
        kind, what = source
        if kind == "file":
            return what, Path(what).name, None
        if what in HELD_OUT_CLASSES:
            # Another teapot for everybody would be no help in comparing adapters.
            return sample_shape(what, SAMPLE_POINTS, rng=0), f"{what} (built-in shape)", None
        return stored[adapter].clouds[choices[adapter].index(what)], what, what.partition(": ")[0]

    def show(adapter: str, source: tuple[str, str], category: str | None):
        try:
            cloud, title, known = load(adapter, source)
            chosen = (known or category) if categories_of(predictors[adapter]) else None
            result = answer(predictors[adapter], cloud, f"{title} · {adapter}", chosen, stored[adapter])
        except (ImportError, OSError, ValueError) as error:
            # Uploads lie in folders of the server, which nobody wants to read.
            problem = html.escape(str(error).replace(source[1], Path(source[1]).name))
            message = f"<div class='problem' role='alert'><b>This cloud cannot be shown.</b> {problem}</div>"
            # What was shown before stays.
            return gradio.HTML(message, visible=True), *[gradio.skip()] * 4
        # A frame of its own: the page brings its own style and script, and has no access to this one.
        frame = f'<iframe sandbox="allow-scripts" title="Point cloud" srcdoc="{html.escape(result.page)}"></iframe>'
        label = f"Training clouds: {result.source}"
        has_table = bool(result.references) and not result.thumbnails
        return (
            gradio.HTML("", visible=False),
            frame,
            result.scores,
            gradio.Dataframe(result.references, label=label, visible=has_table),
            gradio.Gallery(result.thumbnails, label=label, visible=bool(result.thumbnails)),
        )

    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(f"## {TITLE}")
        source = gradio.State(("sample", choices[first][0]))
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300, elem_classes="stack"):
                names = categories_of(predictors[first])
                adapter = gradio.Dropdown(list(predictors), value=first, label="Adapter")
                category = gradio.Dropdown(
                    names, value=next(iter(names), None), visible=bool(names), label="Category of the object"
                )
                sample = gradio.Dropdown(choices[first], value=choices[first][0], label="Example")
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
                gallery = gradio.Gallery(
                    label="Training clouds", columns=4, height=220, elem_classes="references", visible=False
                )
        outputs = [message, viewer, scores, references, gallery]
        shown = {"fn": show, "inputs": [adapter, source, category], "outputs": outputs, "api_name": False}
        page.load(**shown)
        adapter.change(
            change_adapter, [adapter, category, sample, source], [category, sample, source], api_name=False
        ).then(**shown)
        category.input(**shown)
        sample.input(lambda name: (("sample", name), None), sample, [source, file], api_name=False).then(**shown)
        file.upload(lambda path: ("file", path), file, source, api_name=False).then(**shown)
        file.clear(lambda name: ("sample", name), sample, source, api_name=False).then(**shown)
    return page


def main(arguments: Sequence[str], prog: str) -> None:
    """Load the adapters and serve the page."""
    args = make_server_parser(__doc__, prog, 7860).parse_args(arguments)
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"The demo needs gradio, which is not installed: {install_command('demo')}") from error
    prepare(args)
    predictors = load_resident(args.adapters, args.model)
    examples = {
        name: TrainingExamples.load(adapter)
        for name, adapter in zip(short_names(args.adapters), args.adapters, strict=True)
    }
    build_page(predictors, examples).launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size="200mb",
        theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        footer_links=[],
    )
