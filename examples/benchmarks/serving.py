"""Load on `point-peft serve`: many clients, and some that send garbage, too much, or hang up.

    point-peft serve outputs/head outputs/lora --port 8000 --max_megabytes 1 &
    python examples/benchmarks/serving.py http://127.0.0.1:8000 --clients 8 --requests 1000

Every client sends clouds that were answered once before the load, and compares classes and probabilities with that
answer. At the end the numbers of wrong and lost answers and the latency are printed; the exit status is 1 if there are
any.
"""

from __future__ import annotations

import argparse
import io
import json
import socket
import statistics
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from itertools import count

import numpy as np

_BOUNDARY = "clouds-end-here"
# Answers of a server that has more to do than it takes on; clients try again.
_BUSY = 503


def post(url: str, content: bytes, name: str = "cloud.npy") -> tuple[int, dict]:
    """Post a file; the status and the JSON of the answer."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def cloud(seed: int) -> bytes:
    """A cloud of 2000 points as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(seed).normal(size=(2000, 3)).astype(np.float32))
    return buffer.getvalue()


def hang_up(url: str) -> None:
    """Announce a file, send a part of it, and close the connection."""
    place = urllib.parse.urlsplit(url)
    with socket.create_connection((place.hostname, place.port)) as connection:
        head = f"POST {place.path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        connection.sendall(head.encode() + b"Content-Length: 100000\r\n\r\n--")


def main() -> int:
    """Run the load, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    with urllib.request.urlopen(options.server) as answer:
        names = list(json.load(answer)["adapters"])
    urls = [f"{options.server}/adapters/{name}/predict" for name in names]
    clouds = [cloud(seed) for seed in range(8)]
    expected = {(url, number): post(url, content)[1] for url in urls for number, content in enumerate(clouds)}
    latencies, outcomes, numbers, lock = [], Counter(), count(), threading.Lock()

    def work() -> None:
        while (number := next(numbers)) < options.requests:
            key = urls[number % len(urls)], number % len(clouds)
            started = time.perf_counter()
            try:
                while (answer := post(key[0], clouds[key[1]]))[0] == _BUSY:
                    time.sleep(0.05)
                outcome = "right" if answer == (200, expected[key]) else "wrong"
            except OSError:
                outcome = "lost"
            with lock:
                latencies.append(time.perf_counter() - started)
                outcomes[outcome] += 1

    def disturb() -> None:
        while sum(outcomes.values()) < options.requests:
            for name, content in (("a.npy", b"garbage"), ("huge.npy", bytes(3_000_000)), ("a.exe", b"MZ")):
                try:
                    status, _ = post(urls[0], content, name)
                    disturbances[status] += 1
                except OSError:
                    disturbances["connection closed"] += 1
            hang_up(urls[0])
            disturbances["hung up"] += 1
            time.sleep(0.2)

    disturbances: Counter = Counter()
    threads = [threading.Thread(target=work) for _ in range(options.clients)] + [threading.Thread(target=disturb)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    tenths = statistics.quantiles(latencies, n=100)
    print(f"{outcomes['right']} right, {outcomes['wrong']} wrong, {outcomes['lost']} lost in {seconds:.1f} s")
    print(f"latency: median {1e3 * tenths[49]:.0f} ms, 95 % {1e3 * tenths[94]:.0f} ms, 99 % {1e3 * tenths[98]:.0f} ms")
    print(f"bad clients: {dict(disturbances)}")
    return int(outcomes["wrong"] + outcomes["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
