"""Many threads at once, each with its own arrays or all with the same: the results are those of one thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from aesz_codec import AESZ, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.errors import CorruptStreamError

THREADS = 8


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def arrays() -> list[tuple[np.ndarray, ErrorBound, str]]:
    """Return small arrays that take every way through the pipeline."""
    rng = np.random.default_rng(1)
    smooth = np.sin(np.linspace(0, 9, 40))[:, None] * np.cos(np.linspace(0, 7, 50)) * 20
    land = smooth.astype("f4")
    land[10:20, 5:30] = np.nan
    frames = (smooth[None, :12, :16] + 0.01 * rng.standard_normal((6, 12, 16))).astype("f4")
    signed = (smooth + 1e-3).astype("f8")
    signed[3] = 0
    return [
        (smooth.astype("f4"), ErrorBound("abs", 1e-2), "default"),
        (smooth.astype("f4"), ErrorBound("abs", 1.0), "fast"),
        (smooth + 0.1 * rng.standard_normal(smooth.shape), ErrorBound("abs", 1e-4), "max"),
        (land, ErrorBound("range_rel", 1e-3), "fast"),
        (frames, ErrorBound("abs", 5e-3), "default"),
        (signed, ErrorBound("pw_rel", 1e-3), "default"),
        (np.round(smooth * 100).astype(">i4").T, ErrorBound("abs", 3.0), "fast"),
        (rng.standard_normal((30, 40)).astype("f4"), ErrorBound("lossless"), "default"),
        (rng.integers(0, 255, (20, 20), dtype="u1"), ErrorBound("lossless"), "fast"),
        (np.full((9, 9), 4, "f8"), ErrorBound("abs", 1.0), "default"),
        (smooth.astype("f2"), ErrorBound("abs", 0.1), "default"),
        (smooth + 0.3 * rng.standard_normal((2, *smooth.shape)), ErrorBound("abs", 1e-2), "max"),
        (np.where(np.isnan(land), land, smooth + rng.random(land.shape)), ErrorBound("abs", 1e-2), "max"),
    ]


def at_once(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Run the tasks in as many threads as there are, which start together."""
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        start.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, task) for task in tasks]]


def test_the_pipeline_in_many_threads() -> None:
    cases = arrays()
    streams = [pipeline.encode(array, bound, effort=effort) for array, bound, effort in cases]
    decoded = [pipeline.decode(stream).tobytes() for stream in streams]
    assert {pipeline.describe(stream).predictor for stream in streams} >= {
        "interpolation",
        "causal",
        "local",
        "lossless",
        "constant",
    }

    def worker(first: int) -> Callable[[], list[tuple[bytes, bytes]]]:
        def run() -> list[tuple[bytes, bytes]]:
            out = []
            for k in range(len(cases)):  # every thread begins elsewhere
                array, bound, effort = cases[(first + k) % len(cases)]
                stream = pipeline.encode(array, bound, effort=effort)
                out.append((stream, pipeline.decode(stream).tobytes()))
            return out

        return run

    for first, results in enumerate(at_once([worker(i) for i in range(THREADS)])):
        for k, (stream, data) in enumerate(results):
            i = (first + k) % len(cases)
            assert stream == streams[i]
            assert data == decoded[i]


def test_one_codec_shared_by_many_threads() -> None:
    codec = AESZ(1e-2)
    rng = np.random.default_rng(2)
    inputs = [
        np.cumsum(rng.standard_normal((20, 25)), axis=1).astype(dtype, order=order)
        for _ in range(4)
        for dtype in ("f4", ">f8")
        for order in "CF"
    ]
    serial = [codec.encode(array) for array in inputs]

    def worker(array: np.ndarray, stream: bytes) -> Callable[[], bool]:
        def run() -> bool:
            out = np.empty_like(array)
            for _ in range(20):
                assert codec.encode(array) == stream
                decoded = codec.decode(stream)
                codec.decode(stream, out)
                assert decoded.dtype == array.dtype and np.array_equal(decoded, out)
                assert abs(decoded - array).max() <= 1e-2
            return True

        return run

    assert all(at_once([worker(*pair) for pair in zip(inputs, serial, strict=True)]))


def test_damaged_streams_among_sound_ones() -> None:
    """An error in one thread does not reach another."""
    array = np.cumsum(np.random.default_rng(3).standard_normal((50, 60)), axis=0).astype("f4")
    stream = pipeline.encode(array, ErrorBound("abs", 1e-2))
    expected = pipeline.decode(stream).tobytes()
    damaged = stream[:-9] + bytes([stream[-9] ^ 1]) + stream[-8:]

    def sound() -> bool:
        return all(pipeline.decode(stream).tobytes() == expected for _ in range(50))

    def broken() -> bool:
        for data in (damaged, stream[:-1]) * 25:
            with pytest.raises(CorruptStreamError):
                pipeline.decode(data)
        return True

    assert all(at_once([sound, broken] * (THREADS // 2)))


def test_the_first_calls_of_a_process_may_be_concurrent() -> None:
    """The tables of the entropy coder are built at first use: by one thread, once."""
    script = """
import threading
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from aesz_codec import pipeline
from aesz_codec.bounds import ErrorBound
array = np.sin(np.arange(3000.0)).reshape(50, 60)
start = threading.Barrier(8)
def run(_):
    start.wait()
    return pipeline.encode(array, ErrorBound("abs", 1e-3))
with ThreadPoolExecutor(8) as pool:
    streams = set(pool.map(run, range(8)))
assert streams == {pipeline.encode(array, ErrorBound("abs", 1e-3))}
"""
    for _ in range(3):
        subprocess.run(
            [sys.executable, *(["-S"] if sys.flags.no_site else []), "-P", "-c", script],
            check=True,
            timeout=60,
        )
