"""The sections of the report."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from point_peft_hf import PointCloudProcessor, PointPeftConfig
from point_peft_hf.export import PRECISIONS, export_model
from point_peft_hf.models.layers import PatchEmbedding
from point_peft_hf.ops import farthest_point_sample, gather_points, group_points, knn_indices
from point_peft_hf.slots import Backbone
from point_peft_hf.tokens import Cloud, Memo, Tokens, start_tokens
from point_peft_hf.tuners.point_prior_prompt import retrieve
from point_peft_hf.tuners.point_prior_prompt.quantization import quantize
from point_peft_hf.tuners.point_prior_prompt.retrieval import Entries

from . import models, published
from .bank import bank
from .measuring import Clock, Report, alternate, peak_memory, saved_for_backward
from .methods import known, methods, sharing
from .models import FROZEN, PUBLISHED, PUBLISHED_FULL, SHAPES, TWO_PASSES, Setting, Shape

# Clouds, points of each, and centres: the shapes of the two data sets, and one large.
GEOMETRY_SHAPES = ((32, 1024, 64), (32, 2048, 128), (8, 8192, 512))


@dataclass(frozen=True)
class Run:
    """What is measured, and how.

    Attributes:
        setting: Sizes of the backbone, device and precision.
        shapes: Names of `SHAPES`.
        batch_sizes: Clouds in a batch.
        rounds: How often each thing is timed.
        clock: The clock.
        report: Where the results go.
    """

    setting: Setting
    shapes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    rounds: int
    clock: Clock
    report: Report

    def time(self, section: str, case: str, functions: dict[str, Callable[[], object]]) -> None:
        """Time functions in alternation; `ratio` is their time over that of the first."""
        times = alternate(functions, self.clock, self.rounds)
        first = next(iter(times.values()))
        for name, milliseconds in times.items():
            self.report.add(section, case, name, ms=milliseconds, ratio=milliseconds / first)

    def cases(self, smallest: int = 1) -> list[tuple[Shape, int, str]]:
        """All shapes and batch sizes from `smallest` on, with a name for each."""
        pairs = itertools.product(self.shapes, (size for size in self.batch_sizes if size >= smallest))
        return [(SHAPES[name], batch_size, f"{name} x{batch_size}") for name, batch_size in pairs]


def ops(run: Run) -> None:
    """Farthest points, neighbours and grouping, against a loop over the batch and a sort of all distances."""
    for batch_size, num_points, num_centers in GEOMETRY_SHAPES:
        points = run.setting.clouds(batch_size, num_points)
        centers = gather_points(points, farthest_point_sample(points, num_centers))
        case = f"{batch_size}x{num_points}->{num_centers}"
        if not torch.equal(published.sample_farthest(points, num_centers), farthest_point_sample(points, num_centers)):
            raise RuntimeError(f"The two ways of sampling differ at {case}.")
        for functions in _ways_to_group(points, centers):
            run.time("ops", case, functions)


def _ways_to_group(points: torch.Tensor, centers: torch.Tensor) -> list[dict[str, Callable[[], object]]]:
    """The published way and ours, by piece."""
    num_centers = centers.shape[1]
    return [
        {
            f"farthest points, {PUBLISHED}": lambda: published.sample_farthest(points, num_centers),
            "farthest points, lean loop": lambda: published.sample_farthest_leanly(points, num_centers),
            "farthest points": lambda: farthest_point_sample(points, num_centers),
        },
        {
            f"neighbours, {PUBLISHED}": lambda: published.nearest_by_sorting(centers, points, 32),
            "neighbours": lambda: knn_indices(centers, points, 32),
        },
        {
            f"grouping, {PUBLISHED}": lambda: published.group(points, num_centers, 32),
            "grouping": lambda: group_points(points, num_centers, 32),
        },
    ]


def embedding(run: Run) -> None:
    """The frozen mini-PointNet against one of convolutions."""
    for shape, batch_size, case in run.cases():
        neighborhoods = 0.1 * torch.randn(batch_size, shape.num_groups, shape.group_size, 3, device=run.setting.device)
        convolutions = published.ConvPatchEmbedding(run.setting.hidden_size)
        ours = PatchEmbedding(3, (128, 256, 512), run.setting.hidden_size)
        for model in (convolutions, ours):
            model.requires_grad_(False).eval().to(run.setting.device)
        pair = {PUBLISHED: convolutions, "patch embedding": ours}
        run.time("embedding", case, {name: lambda m=m, n=neighborhoods: m(n) for name, m in pair.items()})


def block(run: Run) -> None:
    """Forward and backward through one block, by what sits on it, and the way from clouds to neighbourhoods."""
    setting = run.setting
    for shape, batch_size, case in run.cases():
        single = replace(setting, num_layers=1, compile=False)
        functions = {}
        for method in (FROZEN, "lora", "geometry", "prompt", "point_peft"):
            functions[method] = _block_pass(models.make_model(single, shape, method), setting, shape, batch_size)
        functions[PUBLISHED] = _published_block_pass(setting, shape, batch_size)
        run.time("block", case, functions)
        encoder = _encoder(models.make_model(single, shape, "geometry"))
        tokens = _entering(encoder, {}, setting, shape, batch_size)
        output_layer = encoder.encoder.layers[0].output_slot
        find = {"neighbourhoods of the tokens": lambda o=output_layer, t=tokens: o.find_neighborhoods("default", t)}
        run.time("block", case, find)


def _encoder(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("point_mae"))


def _entering(
    encoder: nn.Module, precomputed: dict[str, torch.Tensor], setting: Setting, shape: Shape, batch_size: int
) -> Tokens:
    """Random tokens that enter the first block, with what adapters share with the blocks."""
    points, backbone = setting.clouds(batch_size, shape.num_points), Backbone(encoder)
    cloud = encoder.point_slot(Cloud(points, points, memo=Memo(precomputed)), backbone)
    features = torch.randn(batch_size, 1 + shape.num_groups, setting.hidden_size, device=setting.device)
    centers = setting.clouds(batch_size, shape.num_groups)
    return encoder.encoder.token_slot(start_tokens(features, centers, cloud, num_class=1), backbone)


def _block_pass(model: nn.Module, setting: Setting, shape: Shape, batch_size: int) -> Callable[[], None]:
    precomputed = model.precompute(setting.clouds(batch_size, shape.num_points))
    tokens = _entering(_encoder(model), precomputed, setting, shape, batch_size)
    features = tokens.features.requires_grad_()
    layer = _encoder(model).encoder.layers[0]

    def run() -> None:
        with setting.autocast():
            output = layer(tokens.with_features(features)).features
        output.sum().backward()

    return run


def _published_block_pass(setting: Setting, shape: Shape, batch_size: int) -> Callable[[], None]:
    layer = published.PublishedBlock(setting.hidden_size, setting.num_heads, shape.num_prompts).to(setting.device)
    attention = published.SharedLocalAttention(setting.hidden_size).to(setting.device)
    hidden_states = torch.randn(batch_size, 1 + shape.num_groups, setting.hidden_size, device=setting.device)
    hidden_states.requires_grad_()
    cache = torch.randn(batch_size, shape.num_prompts, setting.hidden_size, device=setting.device)
    coordinates = torch.randn(shape.num_prompts, 3, device=setting.device)
    centers = setting.clouds(batch_size, shape.num_groups)
    geometry = published.find_neighbors(centers, coordinates, shape.group_size // 2)

    def run() -> None:
        with setting.autocast():
            output = layer(hidden_states, geometry, cache, attention)
        output.sum().backward()

    return run


def retrieval(run: Run) -> None:
    """Asking the bank for a batch of 32, by its size and how it is stored."""
    device = run.setting.device
    query = torch.randn(32, run.setting.hidden_size, device=device)
    for bank_size in (1_000, 10_000, 100_000, 1_000_000):
        features = models.random_bank(bank_size, run.setting.hidden_size)
        stored = {"float32": Entries(features.to(device))}
        stored["int8"] = Entries(*(part.to(device) for part in quantize(features, torch.int8)))
        functions = {name: lambda entries=entries: retrieve(query, entries, 10, 8) for name, entries in stored.items()}
        sizes = {name: entries.features.nbytes / 2**20 for name, entries in stored.items()}
        # A sort of the largest bank would take minutes.
        if bank_size <= 100_000:
            entries = stored["float32"].features
            functions[PUBLISHED] = lambda entries=entries: published.retrieve_by_sorting(query, entries, 10, 8)
        times = alternate(functions, run.clock, run.rounds)
        for name, function in functions.items():
            run.report.add(
                *("retrieval", f"{bank_size:,} entries", name),
                ms=times[name],
                bank_MiB=sizes.get(name, sizes["float32"]),
                peak_MiB=peak_memory(device, function),
            )


def inference(run: Run) -> None:
    """Forward passes in eval mode."""
    for shape, batch_size, case in run.cases():
        # Nothing but its weights tells a model that was fine-tuned as a whole from the backbone.
        methods = [FROZEN, *(m for m in models.compared_methods() if m not in ("full", PUBLISHED_FULL))]
        points = run.setting.clouds(batch_size, shape.num_points)
        functions = {
            m: models.prediction(run.setting, models.make_model(run.setting, shape, m), points) for m in methods
        }
        run.time("inference", case, functions)
        _geometry_share(run, shape, batch_size, case)


def _geometry_share(run: Run, shape: Shape, batch_size: int, case: str) -> None:
    """How long retrieval and neighbourhoods take of a forward pass, the latter with prompts and without."""
    setting = run.setting
    model = models.make_model(replace(setting, compile=False), shape, "point_peft").eval()
    points, encoder = setting.clouds(batch_size, shape.num_points), _encoder(model)
    precomputed = model.precompute(points)
    # Blocks whose tokens are laid out alike share their neighbourhoods.
    entering = _entering(encoder, precomputed, setting, shape, batch_size)
    blocks = {len(layer.entry_slot(entering).spans): layer for layer in encoder.encoder.layers}.values()

    def find() -> None:
        with torch.no_grad():
            tokens = _entering(encoder, precomputed, setting, shape, batch_size)
            for block in blocks:
                block.output_slot.find_neighborhoods("default", block.entry_slot(tokens))

    times = alternate({"find": find, "all": models.prediction(setting, model, points)}, run.clock, run.rounds)
    name = "retrieval and geometry of the tokens"
    run.report.add("inference", case, name, ms=times["find"], ratio=times["find"] / times["all"])


def export(run: Run) -> None:
    """Forward passes of exported ONNX files, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    for shape in map(SHAPES.get, run.shapes):
        for method in (FROZEN, "geometry"):
            model = models.make_model(replace(run.setting, compile=False), shape, method).eval()
            processor, sessions = PointCloudProcessor(shape.num_points), {}
            with tempfile.TemporaryDirectory() as folder:
                for precision in PRECISIONS:
                    path = Path(folder, f"{precision}.onnx")
                    export_model(model, processor, path, precision=precision)
                    sessions[precision] = onnxruntime.InferenceSession(path.read_bytes(), options)
            for batch_size in run.batch_sizes:
                points = run.setting.clouds(batch_size, shape.num_points)
                inputs = {"points": points.numpy()}
                functions = {
                    "PyTorch": models.prediction(run.setting, model, points),
                    **{
                        f"ONNX Runtime, {precision}": partial(session.run, None, inputs)
                        for precision, session in sessions.items()
                    },
                }
                run.time("export", f"{shape.name} x{batch_size}, {method}", functions)


def step(run: Run) -> None:
    """Training steps: forward, backward, optimizer."""
    for shape, batch_size, case in run.cases(models.SMALLEST_TRAINED):
        points = run.setting.clouds(batch_size, shape.num_points)
        functions = {
            m: models.training_step(run.setting, models.make_model(run.setting, shape, m), points)
            for m in models.compared_methods()
        }
        run.time("step", case, functions)
        tokens = batch_size * shape.num_groups
        for row in run.report.rows:
            if row.section == "step" and row.case == case:
                row.values["tokens/s"] = 1e3 * tokens / row.values["ms"]


def memory(run: Run) -> None:
    """What a forward pass keeps for the backward pass, and the peak of a training step."""
    for shape, batch_size, case in run.cases(models.SMALLEST_TRAINED):
        points = run.setting.clouds(batch_size, shape.num_points)
        labels = torch.zeros(batch_size, dtype=torch.long, device=run.setting.device)
        for method in models.compared_methods():
            for checkpointing in (False, True) if method in ("full", "point_peft", TWO_PASSES) else (False,):
                model = models.make_model(replace(run.setting, compile=False), shape, method)
                if checkpointing:
                    model.gradient_checkpointing_enable({"use_reentrant": False})

                def forward(model=model, points=points, labels=labels) -> torch.Tensor:
                    with run.setting.autocast():
                        return models.loss_of(model, points, labels)

                saved = saved_for_backward(model, forward)
                peak = peak_memory(run.setting.device, models.training_step(run.setting, model, points))
                name = f"{method}, checkpointing" if checkpointing else method
                full = run.report.value("memory", case, "full", "saved_MiB") or saved
                run.report.add("memory", case, name, saved_MiB=saved, ratio=saved / full, peak_MiB=peak)


def scaling(run: Run) -> None:
    """A training step and a forward pass of point_peft, one size at a time away from the first shape."""
    base, batch_size = SHAPES[run.shapes[0]], run.batch_sizes[0]
    variants = {f"{base.name} x{batch_size}": (base, batch_size)}
    for factor in (2, 4):
        variants[f"{factor * base.num_points} points"] = replace(base, num_points=factor * base.num_points), batch_size
        variants[f"{factor * base.num_groups} groups"] = replace(base, num_groups=factor * base.num_groups), batch_size
        variants[f"batch {factor * batch_size}"] = base, factor * batch_size
    for bank_size in (100, 100_000):
        variants[f"{bank_size:,} entries"] = replace(base, bank_size=bank_size), batch_size
    for num_prompts in (3, 64):
        variants[f"{num_prompts} prompts"] = replace(base, num_prompts=num_prompts), batch_size
    first = None
    for name, (shape, size) in variants.items():
        trained, used = (models.make_model(run.setting, shape, "point_peft") for _ in range(2))
        points = run.setting.clouds(size, shape.num_points)
        functions = {
            "step": models.training_step(run.setting, trained, points),
            "forward": models.prediction(run.setting, used, points),
        }
        times = alternate(functions, run.clock, run.rounds)
        first = first or times
        ratios = {f"{key}_ratio": times[key] / first[key] for key in times}
        run.report.add("scaling", "point_peft", name, step_ms=times["step"], forward_ms=times["forward"], **ratios)


def adapters(run: Run, count: int = 100) -> None:
    """Many adapters on one backbone in memory: the time to change over, and what one more takes."""
    shape = replace(SHAPES[run.shapes[0]], bank_size=100)
    model = models.make_model(replace(run.setting, compile=False), shape, "point_peft").eval()
    points = run.setting.clouds(1, shape.num_points)
    # The bank of the first adapter came after its configuration.
    config = PointPeftConfig(**{**model.peft_config["default"].to_dict(), "bank_size": shape.bank_size})
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file_size = Path(folder, "adapter_model.safetensors").stat().st_size
    for number in range(count):
        if number in (1, 10, count - 1):
            before = _bytes_of(model)
        model.add_adapter(f"number{number}", replace(config))
        if number in (1, 10, count - 1):
            names = itertools.cycle([f"number{number}", "default"])
            times = alternate(
                {
                    "set_adapter": lambda names=names: model.set_adapter(next(names)),
                    "forward": models.prediction(run.setting, model, points),
                },
                run.clock,
                max(run.rounds, 5),
            )
            run.report.add(
                *("adapters", f"{number + 2} adapters", "point_peft"),
                set_adapter_ms=times["set_adapter"],
                forward_ms=times["forward"],
                MiB_of_one_more=(_bytes_of(model) - before) / 2**20,
                file_MiB=file_size / 2**20,
            )


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


SECTIONS: dict[str, Callable[[Run], None]] = {
    "ops": ops,
    "embedding": embedding,
    "block": block,
    "retrieval": retrieval,
    "bank": bank,
    "inference": inference,
    "export": export,
    "step": step,
    "memory": memory,
    "scaling": scaling,
    "adapters": adapters,
    "methods": methods,
    "known": known,
    "sharing": sharing,
}
