"""Read damaged files of every format for as long as wanted.

    python tests/data/fuzz_readers.py --minutes 10
    python tests/data/fuzz_readers.py --formats .h5 .laz --minutes 5 --seed 7

Each format runs in processes of its own, 500 files each, so that a crash or a hang of a library in C ends only that
one; the file that did it is kept in `--keep`. `test_fuzz_readers.py` is the short form.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_files

from point_peft_hf.data import READERS

_FILES_OF_A_PROCESS = 500
_PIECES = (
    *(b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\x80", b"\n", b"\r", b"\x0c", b"\0", b"\xef\xbb\xbf", b"\xff" * 8),
    *(
        b"99999999999999999999",
        b"4294967295",
        b"-1",
        b"1e999",
        b"nan",
        b" ",
        b",",
        b"\t",
        b'"',
        b"#",
        b"0,1,2\n",
        b"[",
    ),
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2, help="for how long, over all formats")
    parser.add_argument("--formats", nargs="+", default=sorted(READERS), choices=sorted(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for files that went wrong")
    parser.add_argument("--run", nargs=2, metavar=("SUFFIX", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def damage(content: bytes, generator: random.Random) -> bytes:
    """Change up to eight pieces of a file."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        place, length = generator.randint(0, len(data)), generator.choice((1, 4, 20, 200))
        kind = generator.randrange(7)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length] * generator.choice((1, 2, 50))
        elif kind == 3:
            data[place:place] = generator.choice(_PIECES)
        elif kind == 4:
            piece = generator.choice(_PIECES)
            data[place : place + len(piece)] = piece
        elif place < len(data):
            data[place] = generator.randrange(256) if kind == 5 else data[place] ^ (1 << generator.randrange(8))
    return bytes(data)


def run(suffix: str, folder: Path, seed: int) -> None:
    """Read damaged files of one format, in this process."""
    generator = random.Random(f"{suffix} {seed}")
    (folder / "seeds").mkdir()
    files = fuzz_files.seeds(folder / "seeds")
    contents = files.get(suffix) or files[".h5" if suffix == ".hdf5" else ".txt"]
    outcomes = {"points": 0, "error": 0}
    for _ in range(_FILES_OF_A_PROCESS):
        outcomes[fuzz_files.check(folder / f"a{suffix}", damage(generator.choice(contents), generator))] += 1
    print(outcomes)


def main() -> None:
    """Go round the formats until the time is over, and list what went wrong."""
    arguments = parse_arguments()
    if arguments.run:
        run(arguments.run[0], Path(arguments.run[1]), arguments.seed)
        return
    end, seed, counts, bad = time.monotonic() + 60 * arguments.minutes, arguments.seed, {}, []
    while time.monotonic() < end:
        for suffix in arguments.formats:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--seed", str(seed), "--run", suffix, folder]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                    failed = done.returncode and f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
                except subprocess.TimeoutExpired:
                    failed = "no end after 120 s"
                counts[suffix] = counts.get(suffix, 0) + _FILES_OF_A_PROCESS
                if failed:
                    arguments.keep.mkdir(exist_ok=True)
                    kept = arguments.keep / f"seed_{seed}{suffix}"
                    shutil.copy(Path(folder, f"a{suffix}"), kept)
                    bad.append(f"{kept}: {failed}")
                    print(bad[-1], flush=True)
        seed += 1
    print(", ".join(f"{suffix} {number}" for suffix, number in counts.items()), "files read;", len(bad), "went wrong")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
