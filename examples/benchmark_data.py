"""Measure the time to the first batch, the time of a pass and the memory for a folder of many clouds.

    python examples/benchmark_data.py
    python examples/benchmark_data.py --clouds 10000 --formats xyz ply obj --workers 2

Each measurement is a process of its own: `cold` parses all the files and fills the cache, `cached` finds them parsed,
`no cache` parses a file whenever its cloud is asked for. Memory is the peak above that of the imported libraries,
without that of worker processes; the cache is mapped, so that its pages count while the system has no better use for
them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from point_peft_hf.data import PointCloudCollator, PointCloudProcessor, load_dataset, write_point_cloud

PASSES = ("cold", "cached", "no cache")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clouds", type=int, default=10_000, help="number of files")
    parser.add_argument("--formats", nargs="+", default=["xyz", "ply"], choices=["xyz", "ply", "npy", "obj"])
    parser.add_argument("--least-points", type=int, default=40, help="fewest points of a cloud")
    parser.add_argument("--most-points", type=int, default=3000, help="most points of a cloud")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that parse, and that make batches")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "CACHE", "PASS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def peak_megabytes() -> float:
    """Give the largest memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)


def write_folder(root: Path, suffix: str, arguments: argparse.Namespace) -> None:
    """Write the files, ten classes of them."""
    generator = np.random.default_rng(0)
    for index in range(arguments.clouds):
        path = root / f"class_{index % 10}" / f"{index:06}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int(generator.integers(arguments.least_points, arguments.most_points + 1))
        points = generator.normal(size=(number, 3)).astype(np.float32)
        if suffix == "xyz":
            np.savetxt(path, points, fmt="%.4f")
        elif suffix == "obj":
            faces = generator.integers(1, number + 1, (2 * number, 3))
            lines = [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in points] + [f"f {a} {b} {c}" for a, b, c in faces]
            path.write_text("\n".join(lines) + "\n")
        else:
            write_point_cloud(path, points)


def measure(folder: str, cache: str, which: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Load the folder and pass over it once."""
    before, start = peak_megabytes(), time.perf_counter()
    dataset = load_dataset(
        folder, cache_dir=None if which == "no cache" else cache, num_workers=arguments.workers, progress=False
    )["train"]
    loader = DataLoader(
        dataset,
        arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        collate_fn=PointCloudCollator(PointCloudProcessor(num_points=1024)),
    )
    first = 0.0
    for batch in loader:
        first = first or time.perf_counter() - start
        assert batch["points"].shape[1:] == (1024, 3)
    return {
        "first": first,
        "pass": time.perf_counter() - start - first,
        "memory": peak_megabytes() - before,
        "cache": sum(path.stat().st_size for path in Path(cache).glob("*")) / (1 << 20),
    }


def main() -> None:
    """Write the folders, measure each pass in its own process, and print the table."""
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments)))
        return
    print(
        f"{arguments.clouds} clouds of {arguments.least_points} to {arguments.most_points} points, "
        f"batches of {arguments.batch_size}, {arguments.workers} workers, {os.cpu_count()} cores\n"
    )
    print("| format | files MB | | first batch s | rest of the pass s | memory MB | cache MB |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for suffix in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            root, cache = Path(folder, "clouds"), Path(folder, "cache")
            cache.mkdir()
            write_folder(root, suffix, arguments)
            size = sum(path.stat().st_size for path in root.rglob(f"*.{suffix}")) / (1 << 20)
            for which in PASSES:
                command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(root), str(cache), which]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(output.splitlines()[-1])
                print(
                    f"| .{suffix} | {size:.0f} | {which} | {found['first']:.2f} | {found['pass']:.1f} | "
                    f"{found['memory']:.0f} | {found['cache']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
