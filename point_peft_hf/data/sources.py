"""The clouds of a data set: one file each, or packed in one file of a cache that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import tqdm

from .errors import PointCloudError
from .files import atomic_write
from .readers import read_point_cloud

CloudReader = Callable[[Path], np.ndarray]
LabelFinder = Callable[[Path], Path | None]
# Part of what a cache is checked against: raised whenever parsed clouds would differ from those of older versions.
_CACHE_VERSION = 3
# More points than any of the models takes, kept small enough that 10,000 scans of any size fit on a disk.
MAX_CACHED_POINTS = 65536
# Share of points in one place above which those that are drawn for a model may have no extent.
_IN_ONE_PLACE = 0.99
_STALE_SECONDS = 86400


def default_cache_dir() -> Path:
    """Give the folder of the cache: `$POINT_PEFT_HF_CACHE`, else `point_peft_hf` in the cache of Hugging Face."""
    chosen = os.environ.get("POINT_PEFT_HF_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "point_peft_hf"


def read_cloud(
    path: Path, num_points: int | None, seed: int, drop_invalid: bool, max_points: int = MAX_CACHED_POINTS
) -> np.ndarray:
    """Read a cloud for a data set: as `read_point_cloud`, but thinned at random to `max_points` when it has more."""
    points = read_point_cloud(path, num_points, seed, drop_invalid=drop_invalid)
    points = points[thin(len(points), seed, max_points)]
    check_extent(points, path)
    return points


def thin(count: int, seed: int, most: int = MAX_CACHED_POINTS) -> np.ndarray | slice:
    """Choose `most` of the points of a cloud at random, in their order; all where there are no more."""
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False)) if count > most else slice(None)


def check_extent(points: np.ndarray, where: object) -> None:
    """Refuse a cloud of which (almost) all points are in one place, as a sensor without returns writes them.

    `points` are of shape `(num_points, 3)`; the error names `where`.
    """
    # What most points have, most of a few have: all are looked at where that is so only, which spares time.
    some = points[:: max(1, len(points) // 16), 0].tolist()
    if 2 * some.count(sorted(some)[len(some) // 2]) <= len(some):
        return
    common = np.sort(points, axis=0)[len(points) // 2]
    number = int((points == common).all(axis=1).sum())
    if number >= _IN_ONE_PLACE * len(points):
        share = "all its" if number == len(points) else f"{number} of its"
        raise PointCloudError(
            f"{where}: {share} {len(points)} points are in one place, {common.tolist()}; a sensor without returns?"
        )


class FileClouds(Sequence):
    """Clouds of files that `reader`, which gives arrays of shape `(num_points, 3 or more)`, reads at each access."""

    def __init__(self, files: Sequence[Path], reader: CloudReader):
        self.files = list(files)
        self.reader = reader

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.reader(self.files[index])


class PackedClouds(Sequence):
    """Clouds one after the other in a single .npy file, mapped into memory: only what is asked for is read.

    The file is float32 of shape `(total_points, num_columns)`. `offsets`, of shape `(num_clouds + 1,)`, are the rows
    where the clouds start, and the end; `files` are those that the clouds were read from, for messages.
    """

    def __init__(self, path: Path, offsets: np.ndarray, files: Sequence[Path] = ()):
        self.path = path
        self.offsets = offsets
        self.files = list(files)
        self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._rows.ndim != 2 or len(self._rows) != offsets[-1]:
            raise ValueError(f"{path}: expected {offsets[-1]} rows, got shape {self._rows.shape}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self.view(index))

    def view(self, index: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Give some rows of a cloud as the file has them; only those that are looked at are read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"cloud {index} of {len(self)}")
        index %= len(self)
        return self._rows[self.offsets[index] : self.offsets[index + 1]][start:end]

    def __getstate__(self) -> dict:
        # The map is opened again in a worker; pickled, it would be the whole file.
        return {"path": self.path, "offsets": self.offsets, "files": self.files}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


@dataclass(frozen=True)
class LoadOptions:
    """How the files of a data set are read; the fields are the arguments of `load_dataset`."""

    num_points: int | None = None
    seed: int = 0
    drop_invalid: bool = False
    cache_dir: str | os.PathLike | None = "auto"
    skip_bad_files: bool = False
    num_workers: int = 0
    progress: bool = True


def open_files(
    files: Sequence[Path],
    root: Path,
    reader: CloudReader,
    options: LoadOptions,
    find_labels: LabelFinder | None = None,
) -> tuple[Sequence, np.ndarray]:
    """Open the files of a data set, one a cloud, through the cache unless there is none.

    Args:
        files: The files.
        root: Folder of the data set, for names in the cache.
        reader: `functools.partial` of a function of this package with its options, which become part of the cache key.
        options: Cache, skipping, workers, bar.
        find_labels: Gives the file with the labels of a cloud; when it changes, the cloud is read again.

    Returns:
        The clouds, a sequence of arrays, and the indices of the files that they come from.
    """
    cache_dir = options.cache_dir
    if cache_dir is not None:
        cache_dir = default_cache_dir() if cache_dir == "auto" else Path(cache_dir)
        try:
            return _open_cache(files, root, reader, options, cache_dir, find_labels)
        except OSError as error:
            if options.cache_dir != "auto":
                raise PointCloudError(
                    f"{cache_dir}: the cache cannot be written: {error.strerror or error}"
                ) from error
            warnings.warn(
                f"{cache_dir}: the cache cannot be written ({error.strerror or error}), so the files are parsed at "
                "each access; set POINT_PEFT_HF_CACHE to a folder with room",
                stacklevel=2,
            )
    if not options.skip_bad_files:
        return FileClouds(files, reader), np.arange(len(files))
    kept, bad = [], []
    for index, (_, error) in enumerate(_read_all(files, reader, options)):
        (kept.append(index) if error is None else bad.append(error))
    _report_bad(bad, len(files), root)
    return FileClouds([files[index] for index in kept], reader), np.array(kept, dtype=np.int64)


def require_files(files: Sequence[Path], options: LoadOptions) -> None:
    """Raise FileNotFoundError for missing files, before hours are spent on reading; not if bad files are skipped."""
    missing = [] if options.skip_bad_files else [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(2, f"No such file ({len(missing)} of {len(files)} are missing)", str(missing[0]))


class _Attempts(FileClouds):
    """The files as a data set of (array, error), so that the workers of a DataLoader parse them."""

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, str | None]:
        try:
            return super().__getitem__(index), None
        except PointCloudError as error:
            return None, str(error)


def _same(item: object) -> object:
    return item


def _read_all(
    files: Sequence[Path], reader: CloudReader, options: LoadOptions
) -> Iterator[tuple[np.ndarray | None, str | None]]:
    """Read files in order, in parallel if asked for, with a bar; an error ends it unless bad files are skipped."""
    reading = _Attempts(files, reader)
    items = (reading[index] for index in range(len(reading)))
    if options.num_workers > 0:
        items = torch.utils.data.DataLoader(
            reading, batch_size=None, num_workers=options.num_workers, collate_fn=_same, prefetch_factor=16
        )
    # disable=None: no bar where the output is not a terminal.
    disable = None if options.progress else True
    for cloud, error in tqdm(items, total=len(files), desc="Reading clouds", unit="file", disable=disable):
        if error is not None and not options.skip_bad_files:
            raise PointCloudError(f"{error} (--skip_bad_files leaves such files out)")
        yield cloud, error


def _report_bad(bad: list[str], number: int, root: Path) -> None:
    if not bad:
        return
    if len(bad) == number:
        raise PointCloudError(f"{root}: none of its {number} files can be read; the first: {bad[0]}")
    listed = "\n".join(f"  {reason}" for reason in bad[:5]) + ("\n  ..." if len(bad) > 5 else "")
    warnings.warn(f"{root}: {len(bad)} of {number} files are skipped:\n{listed}", stacklevel=3)


def _open_cache(
    files: Sequence[Path],
    root: Path,
    reader: CloudReader,
    options: LoadOptions,
    cache_dir: Path,
    find_labels: LabelFinder | None,
) -> tuple[Sequence, np.ndarray]:
    settings = [_CACHE_VERSION, options.skip_bad_files]
    if isinstance(reader, partial):
        settings += [reader.func.__name__, sorted(reader.keywords.items()), list(map(str, reader.args))]
    prefix, root = os.path.join(root, ""), Path(os.path.abspath(root))
    names = [os.fspath(file).removeprefix(prefix) for file in files]
    stats = [_stat(file) for file in files]
    if find_labels is not None:
        stats += [_stat_labels(file, find_labels) for file in files]
    place = f"{root.name or 'clouds'}-{_hash([str(root), names, settings])}"
    fingerprint = _hash([settings, names, stats])
    index_path = cache_dir / f"{place}.json"
    try:
        index = json.loads(index_path.read_text())
        if index["fingerprint"] == fingerprint:
            opened = _open_packed(files, index, cache_dir)
            _report_bad(index["bad"], len(files), root)
            return opened
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, cut short or of other files: made again
    cache_dir.mkdir(parents=True, exist_ok=True)
    index = _write_cache(files, reader, options, cache_dir / f"{place}-{fingerprint}.npy", root)
    # The index comes last: without it, a finished or unfinished file of clouds is never looked at.
    with atomic_write(index_path) as file:
        file.write(json.dumps({"fingerprint": fingerprint, **index}).encode())
    _clean(cache_dir, place, index["file"])
    return _open_packed(files, index, cache_dir)


def _open_packed(files: Sequence[Path], index: dict, cache_dir: Path) -> tuple[PackedClouds, np.ndarray]:
    kept = np.array(index["kept"], dtype=np.int64)
    offsets = np.array(index["offsets"], dtype=np.int64)
    return PackedClouds(cache_dir / index["file"], offsets, [files[number] for number in kept]), kept


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:  # for its reader to report
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _stat_labels(file: Path, find_labels: LabelFinder) -> tuple[str, int, int] | None:
    try:
        found = find_labels(file)
    except (PointCloudError, OSError):  # for its reader to report
        return None
    return None if found is None else (found.name, *_stat(found))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:20]


def _write_cache(files: Sequence[Path], reader: CloudReader, options: LoadOptions, path: Path, root: Path) -> dict:
    """Parse files into one .npy file, one cloud at a time, and describe it."""
    kept, bad, offsets, columns = [], [], [0], 3
    with atomic_write(path) as file:
        # The header is written twice: numpy leaves room in it for the final number of rows.
        _write_header(file, 0, columns)
        start = file.tell()
        for number, (cloud, error) in enumerate(_read_all(files, reader, options)):
            if error is not None:
                bad.append(error)
                continue
            if not kept and cloud.shape[1] != columns:
                columns = cloud.shape[1]
                file.seek(0)
                _write_header(file, 0, columns)
            kept.append(number)
            offsets.append(offsets[-1] + len(cloud))
            file.write(np.ascontiguousarray(cloud, dtype=np.float32).tobytes())
        _report_bad(bad, len(files), root)
        file.seek(0)
        _write_header(file, offsets[-1], columns)
        if file.tell() != start:
            raise RuntimeError("the header of the .npy file changed its length")
    return {"file": path.name, "kept": kept, "bad": bad, "offsets": offsets}


def _write_header(file, rows: int, columns: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})


def _clean(cache_dir: Path, place: str, current: str) -> None:
    """Delete what an earlier state of the same files left, and what a killed process left unfinished."""
    for old in [*cache_dir.glob(f"{place}-*.npy"), *cache_dir.glob(f".{place}*.tmp")]:
        try:
            if old.name != current and (old.suffix == ".npy" or time.time() - old.stat().st_mtime > _STALE_SECONDS):
                old.unlink()
        except OSError:
            pass
