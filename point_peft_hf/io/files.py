"""The files of an adapter: where they are, and whether they are what they claim to be.

Everything here looks before it loads: a file of weights is judged by its header, so that a claim of 10 GB is refused
before anything is allocated, and nothing in a file is ever executed. Errors name the file, and the key or field in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
# What adapters of PEFT's own types, whose configurations have no room for it, remember of their backbone.
BACKBONE_NAME = "backbone.json"
# What training recorded, the preprocessing, and the model card.
RECORD_NAME = "run.json"
PROCESSOR_NAME = "preprocessor_config.json"
CARD_NAME = "README.md"
AGAIN = "Save or download it again."

# Fields that change nothing about what an adapter computes, so that a person may edit them.
FREE_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "checksums", "inference_mode", "peft_version", "revision"}
)
# Fields that sizes of tensors follow from, by their names; what begins with "max_" is only a limit.
_SIZE_FIELD = re.compile(r"r|rank|(?!max_)\w+_(?:size|sizes|tokens|rank|dim|pattern)")
_TWO_FILES = "The two files do not belong together: download both again."
# Defaults of parts that are switched off may be larger than all that is in the file, but never this large.
_HARMLESS_SIZE = 4096
_MAX_JSON_BYTES = 16 * 2**20
_SNAPSHOT = re.compile(r"snapshots[/\\]([0-9a-f]{40})[/\\]")


class TensorInfo(NamedTuple):
    """What the header of a safetensors file says about a tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass
class AdapterFiles:
    """The files of an adapter, and what is known of them without loading anything.

    Attributes:
        name: Folder or repository, as it was given.
        config: Its `adapter_config.json`, or `None` if there is none.
        weights: Its `adapter_model.safetensors`, or `None`.
        sidecar: Its `backbone.json`, for an adapter whose configuration has no room for what is in there.
        commit: The commit they come from; `None` for a folder.
        fields: What is in the configuration.
        tensors: What the header of the weights says, by key.
        problem: Why the weights must not be used although their header is sound; `None` if they may.
    """

    name: str
    config: Path | None = None
    weights: Path | None = None
    sidecar: Path | None = None
    commit: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    problem: str | None = None


def find_file(name: str | os.PathLike, filename: str, *, subfolder: str | None = None, **hub: Any) -> Path | None:
    """Find a file in a folder or a repository of the Hub, downloading it if need be; `None` if it is not there.

    `hub` has `revision`, `token`, `cache_dir` and the like, for a repository.

    Raises:
        ConnectionError: If the Hub cannot be asked, and the cache does not know.
        ValueError: If `name` is neither a folder nor a possible name of a repository.
    """
    folder = Path(name)
    if folder.is_dir():
        path = folder / (subfolder or "") / filename
        return path if path.is_file() else None
    refuse_missing_folder(name)
    try:
        return Path(hf_hub_download(str(name), filename, subfolder=subfolder or None, **hub))
    except LocalEntryNotFoundError as error:
        # The cache remembers what a repository does not have.
        where = {key: hub[key] for key in ("cache_dir", "revision") if key in hub}
        path = f"{subfolder}/{filename}" if subfolder else filename
        if try_to_load_from_cache(str(name), path, **where) is _CACHED_NO_EXIST:
            return None
        raise ConnectionError(
            f"There is no folder {str(name)!r} here, and whether the repository {str(name)!r} has {path} could not be "
            "found out: the Hub cannot be reached (no connection, or offline mode), and the cache does not know. Pass "
            "the folder of an adapter, or try again with a connection."
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError:
        raise ValueError(
            f"{str(name)!r} is neither a folder nor the name of a repository. Pass the folder that holds "
            f"{CONFIG_NAME}, or 'owner/name'."
        ) from None


def refuse_missing_folder(name: str | os.PathLike) -> None:
    """Refuse a folder that is not there, but whose neighbours hold adapters or models: hardly a repository.

    Raises:
        FileNotFoundError: If so, with the names of the neighbours.
    """
    folder = Path(name)
    if folder.exists() or folder.parent == Path() or not folder.parent.is_dir():
        return
    files = (CONFIG_NAME, "config.json")
    neighbours = [path.name for path in folder.parent.iterdir() if any((path / file).is_file() for file in files)]
    if neighbours:
        names = ", ".join(sorted(neighbours))
        raise FileNotFoundError(f"There is no folder {str(name)!r}. {folder.parent} holds {names}.")


def refuse_adapter(name: str | os.PathLike) -> None:
    """Refuse a folder that was passed as a backbone, but holds an adapter, or is not there; see above.

    Raises:
        FileNotFoundError: If so.
    """
    refuse_missing_folder(name)
    if (Path(name) / CONFIG_NAME).is_file() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name} holds an adapter ({CONFIG_NAME}), not a backbone (config.json). Pass it as the adapter, or the "
            "backbone that it was made for."
        )


def find_adapter(name: str | os.PathLike, *, subfolder: str | None = None, **hub: Any) -> AdapterFiles:
    """Find the files of an adapter, arguments as for `find_file`; nothing is read yet.

    All files of a repository come from one commit. Weights in a pickle are an error.
    """
    files = AdapterFiles(str(name), find_file(name, CONFIG_NAME, subfolder=subfolder, **hub))
    if files.config is None:
        return files
    if match := _SNAPSHOT.search(str(files.config)):
        files.commit = match[1]
        hub = {**hub, "revision": files.commit}
    files.weights = find_file(name, WEIGHTS_NAME, subfolder=subfolder, **hub)
    # The name of a pickle is enough to refuse it; it need not be downloaded for that where the repository has both.
    if files.weights is None and (pickle := find_file(name, PICKLE_NAME, subfolder=subfolder, **hub)) is not None:
        raise ValueError(
            f"{pickle} is a pickle, which can run code when it is loaded, so it is not loaded. Ask the author for "
            f"{WEIGHTS_NAME}; or, if you trust the author, load it with torch.load and save it with "
            "safetensors.torch.save_file."
        )
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object; one that is too large or has a key twice is an error."""
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: has {size:,} bytes, more than any such file needs. {AGAIN}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = next((key for key, count in Counter(key for key, _ in pairs).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"the key {twice!r} occurs twice")
        return dict(pairs)

    try:
        parsed = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not valid JSON ({error}). {AGAIN}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {_short(parsed)}.")
    return parsed


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file, without reading its tensors: type and shape by key."""
    try:
        # It checks the whole header, but reads no tensor.
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {key: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    except (SafetensorError, OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{path}: is not a sound safetensors file ({error}). {AGAIN}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def file_checksum(path: Path) -> str:
    """The sha256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fields_checksum(fields: Mapping[str, Any]) -> str:
    """The sha256 of the fields of a configuration that matter for what the adapter computes."""
    kept = {name: value for name, value in fields.items() if name not in FREE_FIELDS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checksums(folder: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """The checksums of an adapter in a folder: of its fields, and of its weights."""
    return {CONFIG_NAME: fields_checksum(fields), WEIGHTS_NAME: file_checksum(folder / WEIGHTS_NAME)}


def write_checksums(folder: str | os.PathLike) -> None:
    """Write the checksums of an adapter into its configuration, which is brought into one order as well.

    The folder has an `adapter_config.json` of one of this package's types, and the weights that belong to it. A
    configuration without weights gets no checksums: it is not an adapter yet, and a person writes it.
    """
    folder = Path(folder)
    fields = read_json(folder / CONFIG_NAME)
    for name in ("target_modules", "exclude_modules"):
        # Sets, which Python writes in another order each time: an unchanged adapter should give an unchanged file.
        if isinstance(fields.get(name), list):
            fields[name] = sorted(fields[name])
    fields["checksums"] = checksums(folder, fields) if (folder / WEIGHTS_NAME).is_file() else None
    write_json(folder / CONFIG_NAME, dict(sorted(fields.items())))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is either complete or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def check_files(files: AdapterFiles) -> AdapterFiles:
    """Read configuration and header into `files`, and check all that can be checked without a model.

    What does not fit is a ValueError with the name of the file and of the key or field.
    """
    if files.config is None:
        return files
    files.fields = read_json(files.config)
    if files.sidecar is not None:
        files.fields.setdefault("checksums", read_json(files.sidecar).get("checksums"))
    expected = _expected_checksums(files)
    if files.weights is not None:
        files.tensors = read_header(files.weights)
        _check_sizes(files)
        if WEIGHTS_NAME in expected and file_checksum(files.weights) != expected[WEIGHTS_NAME]:
            files.problem = (
                f"{files.weights}: is not the file that {CONFIG_NAME} was saved with (its sha256 is another); it is "
                f"damaged, or was changed or exchanged. {_on_purpose(files)}"
            )
    return files


def check_unchanged(files: AdapterFiles) -> None:
    """Check that nobody changed the fields of a configuration since it was saved."""
    # After the fields themselves: what is wrong with one of them says more.
    expected = _expected_checksums(files).get(CONFIG_NAME)
    if expected is not None and expected != fields_checksum(files.fields):
        raise ValueError(
            f"{files.config}: its fields are not those that were saved; it is damaged, or was changed. "
            f"{_on_purpose(files)}"
        )


def _on_purpose(files: AdapterFiles) -> str:
    where = files.sidecar or files.config
    return f"Download it again; if you changed it on purpose, delete `checksums` from {where}."


def _expected_checksums(files: AdapterFiles) -> dict[str, str]:
    expected = files.fields.get("checksums")
    if expected is None:
        return {}
    if not isinstance(expected, dict) or not all(isinstance(value, str) for value in expected.values()):
        raise ValueError(f"{files.config}: `checksums` must be an object of texts, got {_short(expected)}.")
    return expected


def _check_sizes(files: AdapterFiles) -> None:
    """Check the sizes that a configuration claims against the tensors that are there."""
    largest = max((size for info in files.tensors.values() for size in info.shape), default=0)
    for name in filter(_SIZE_FIELD.fullmatch, files.fields):
        value = files.fields[name]
        for size in value.values() if isinstance(value, dict) else (value,):
            if isinstance(size, int | float) and size > max(largest, _HARMLESS_SIZE):
                raise ValueError(
                    f"{files.config}: `{name}` is {_short(size)}, but no tensor in {files.weights} has a dimension "
                    f"above {largest}. {_TWO_FILES}"
                )
