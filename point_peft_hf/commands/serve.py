"""Serve adapters over HTTP: POST a file, get JSON.

    point-peft serve outputs/point_peft outputs/lora --port 8000
    curl -F file=@scan.ply http://127.0.0.1:8000/adapters/point_peft/predict
    curl -F file=@scan.ply http://127.0.0.1:8000/predict    # every adapter's answer
    curl -F file=@chair.ply "http://127.0.0.1:8000/adapters/parts/predict?category=chair"
    curl -F file=@street.laz http://127.0.0.1:8000/adapters/lora/label -o street_labelled.laz

Needs the extra `serve`. Adapters of one backbone share its weights, and what they compute alike of one cloud. GET /
lists the adapters with their classes, and /docs describes the interface. `predict` answers with classes and
probabilities, or with the share of each part; `label` gives the cloud back with a label for each point. A file that
cannot be used is answered with a status from 400 to 499 and the reason, and a request more than `--max_waiting` with
503. There is no access control: put a server that has one in front before others can reach it.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.readers import READERS
from ..extras import install_command
from ..scenes import ScenePredictor
from ..training import PartPredictor, Predictor, SharedValues, load_resident
from . import add_precision, make_server_parser, prepare

if TYPE_CHECKING:
    from fastapi import FastAPI

_CHUNK = 1 << 20
_ERRORS = (ImportError, OSError, ValueError)


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        max_bytes: Size of a file.
        max_waiting: Requests that are answered or wait at the same time.
        timeout: Seconds that a request waits for its turn and its answer.
    """

    max_bytes: int = 200_000_000
    max_waiting: int = 16
    timeout: float = 60.0


def main(arguments: Sequence[str], prog: str) -> None:
    """Load the adapters and serve them."""
    args = _parse(arguments, prog)
    try:
        import uvicorn

        _import_fastapi()
    except ImportError as error:
        raise ImportError(f"Serving needs {error.name}, which is not installed: {install_command('serve')}") from error
    prepare(args)
    predictors = load_resident(args.adapters, args.model, args.device, args.precision)
    limits = Limits(int(args.max_megabytes * 1e6), args.max_waiting, args.timeout)
    uvicorn.run(build_app(predictors, limits), host=args.host, port=args.port)


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = make_server_parser(__doc__, prog, 8000)
    parser.add_argument("--max_megabytes", type=float, default=200, help="Largest file (default: 200).")
    parser.add_argument("--max_waiting", type=int, default=16, help="Requests at the same time (default: 16).")
    parser.add_argument("--timeout", type=float, default=60, help="Seconds for an answer (default: 60).")
    parser.add_argument("--device", default="cpu", help="Default: cpu.")
    add_precision(parser)
    return parser.parse_args(arguments)


def _import_fastapi() -> Any:
    import fastapi
    import python_multipart  # noqa: F401  (fastapi reads uploads with it)

    return fastapi


def describe(predictor: Any) -> dict[str, Any]:
    """What a client has to know of an adapter."""
    if isinstance(predictor, Predictor):
        return {"task": "classification", "classes": predictor.class_names}
    if isinstance(predictor, PartPredictor):
        categories = predictor.category_names if predictor.needs_category else []
        return {"task": "segmentation", "classes": predictor.part_names, "categories": categories}
    return {"task": "scene_segmentation", "classes": predictor.class_names}


def build_app(predictors: dict[str, Any], limits: Limits | None = None) -> "FastAPI":
    """Build the web application.

    Args:
        predictors: The models by name.
        limits: What a request may take.

    Returns:
        The application, for any ASGI server.
    """
    fastapi = _import_fastapi()
    limits = limits or Limits()
    app = fastapi.FastAPI(title="point-peft", description="Adapters for point clouds.")
    # One request at a time: each uses all cores.
    worker, waiting = ThreadPoolExecutor(1), 0

    def find(adapter: str) -> Any:
        if adapter not in predictors:
            raise fastapi.HTTPException(404, f"There is no adapter {adapter!r}. There are {', '.join(predictors)}.")
        return predictors[adapter]

    @asynccontextmanager
    async def received(file: Any):
        """The uploaded file under its ending in a folder of its own."""
        name = Path(file.filename or "").name
        suffix = Path(name).suffix.lower()
        if suffix not in READERS:
            endings = ", ".join(sorted(READERS))
            what = name or "The file"
            raise fastapi.HTTPException(415, f"{what}: files of this kind are not read; read are {endings}.")
        with tempfile.TemporaryDirectory() as folder:
            path, size = Path(folder, f"upload{suffix}"), 0
            with open(path, "wb") as target:
                while chunk := await file.read(_CHUNK):
                    size += len(chunk)
                    if size > limits.max_bytes:
                        raise fastapi.HTTPException(413, f"{name}: is larger than {limits.max_bytes / 1e6:g} MB.")
                    target.write(chunk)
            yield path, name

    async def answer(function: Any, path: Path, name: str) -> Any:
        """Run when it is its turn."""
        nonlocal waiting
        if waiting >= limits.max_waiting:
            raise fastapi.HTTPException(503, "Too many requests are waiting; try again.", {"Retry-After": "5"})
        waiting += 1
        try:
            # What has begun cannot be stopped: the next request waits for its end.
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(worker, function), limits.timeout)
        except TimeoutError:
            raise fastapi.HTTPException(504, f"{name}: no answer within {limits.timeout:g} s.") from None
        except _ERRORS as error:
            # The folder of the upload is nobody's business.
            raise fastapi.HTTPException(422, str(error).replace(str(path), name)) from None
        finally:
            waiting -= 1

    @app.get("/")
    def adapters() -> dict[str, Any]:
        """List the adapters with their tasks and classes."""
        return {"adapters": {name: describe(predictor) for name, predictor in predictors.items()}}

    @app.post("/adapters/{adapter:path}/predict")
    async def predict(
        adapter: str, file: fastapi.UploadFile, category: str | None = None, drop_invalid: bool = False
    ) -> dict[str, Any]:
        """The classes of a cloud with their probabilities, or the share of its points that each part has."""
        predictor = find(adapter)
        async with received(file) as (path, name):
            found = await answer(lambda: _predict(predictor, path, category, drop_invalid), path, name)
            return {"file": name, **found}

    @app.post("/predict")
    async def predict_with_all(
        file: fastapi.UploadFile, category: str | None = None, drop_invalid: bool = False
    ) -> dict[str, Any]:
        """What each adapter predicts of a cloud, or why it cannot."""
        async with received(file) as (path, name):

            def run() -> dict[str, Any]:
                shared, found = SharedValues(), {}
                for adapter, predictor in predictors.items():
                    try:
                        # Not for adapters of one category.
                        own = category if getattr(predictor, "needs_category", False) else None
                        found[adapter] = _predict(predictor, path, own, drop_invalid, shared)
                    except _ERRORS as error:
                        found[adapter] = {"error": str(error).replace(str(path), name)}
                if all("error" in answer for answer in found.values()):
                    # With the same reason, as a rule: a file that cannot be read.
                    raise ValueError(" ".join(dict.fromkeys(answer["error"] for answer in found.values())))
                return found

            return {"file": name, "adapters": await answer(run, path, name)}

    @app.post("/adapters/{adapter:path}/label", response_class=fastapi.responses.Response)
    async def label(
        adapter: str, file: fastapi.UploadFile, category: str | None = None, drop_invalid: bool = False
    ) -> Any:
        """The cloud with a label for each of its points: .las and .laz as they came, others as .ply."""
        predictor = find(adapter)
        if isinstance(predictor, Predictor):
            raise fastapi.HTTPException(400, f"{adapter} tells classes apart, not points. Use /predict.")
        async with received(file) as (path, name):
            keeps = isinstance(predictor, ScenePredictor) and path.suffix in (".las", ".laz")
            target = path.with_name(f"labelled{path.suffix if keeps else '.ply'}")
            await answer(lambda: _label(predictor, path, category, drop_invalid).write(target), path, name)
            filename = f"{Path(name).stem}_labelled{target.suffix}".encode("ascii", "replace").decode()
            headers = {"Content-Disposition": f'attachment; filename="{filename.replace(chr(34), "_")}"'}
            return fastapi.Response(target.read_bytes(), media_type="application/octet-stream", headers=headers)

    return app


def _predict(
    predictor: Any, path: Path, category: str | None, drop_invalid: bool, shared: SharedValues | None = None
) -> dict[str, Any]:
    if isinstance(predictor, Predictor):
        count = len(predictor.class_names)
        ranked = predictor.predict(path, count, drop_invalid=drop_invalid, shared=shared)
        return {"class": ranked[0][0], "probabilities": dict(ranked)}
    found = _label(predictor, path, category, drop_invalid, shared)
    return {"points": len(found.labels), "shares": found.shares()}


def _label(
    predictor: Any, path: Path, category: str | None, drop_invalid: bool, shared: SharedValues | None = None
) -> Any:
    if isinstance(predictor, PartPredictor):
        return predictor.predict(path, category, drop_invalid=drop_invalid, shared=shared)
    return predictor.predict(path, drop_invalid=drop_invalid, progress=False)
