"""The same bits with and without the loops for AVX2: what a process without them reads and writes is compared."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from aesz_codec import pipeline
from aesz_codec.bounds import ErrorBound

PLAIN = """
import hashlib, sys
import numpy as np
from aesz_codec import pipeline
from aesz_codec.bounds import ErrorBound
folder, mode, value, effort = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
with open(folder + "/stream", "rb") as file:
    stream = file.read()
print(hashlib.sha256(pipeline.decode(stream).tobytes()).hexdigest())
again = pipeline.encode(np.load(folder + "/array.npy"), ErrorBound(mode, value), effort=effort)
print(hashlib.sha256(again).hexdigest())
"""


def field(shape, dtype):
    rng = np.random.default_rng(5)
    values = rng.normal(size=shape)
    for axis in range(len(shape)):
        values = np.cumsum(values - values.mean(axis, keepdims=True), axis)
    return (values / values.std()).astype(dtype)


@pytest.mark.parametrize("effort", ["fast", "default", "max"])
@pytest.mark.parametrize(
    ("shape", "dtype", "mode", "value"),
    [
        ((7, 61, 83), "float32", "abs", 0.05),
        ((7, 61, 83), "float64", "abs", 1e-4),
        ((113, 97), "float32", "abs", 0.3),
        ((5, 4, 31, 33), "float32", "pw_rel", 0.01),
    ],
)
def test_portable_loops_give_the_same_bits(tmp_path, shape, dtype, mode, value, effort):
    array = field(shape, dtype)
    stream = pipeline.encode(array, ErrorBound(mode, value), effort=effort)
    np.save(tmp_path / "array.npy", array)
    (tmp_path / "stream").write_bytes(stream)
    out = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path), mode, str(value), effort],
        env={**os.environ, "AESZ_SIMD": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    decoded, encoded = out.stdout.split()
    assert decoded == hashlib.sha256(pipeline.decode(stream).tobytes()).hexdigest()
    assert encoded == hashlib.sha256(stream).hexdigest()


LOCAL = """
import hashlib
import numpy as np
from aesz_codec.predictors import Local, Quantizer

rng = np.random.default_rng(9)
for shape in [(40, 61), (9, 2), (2, 9), (5, 13, 24), (2, 3, 17, 31)]:
    for dtype in ("f4", "f8"):
        for step in (1.0, 0.01, 1e-5):
            array = np.cumsum(rng.normal(size=shape), -1).astype(dtype)
            array[..., 3:] += 100 * (rng.random(array[..., 3:].shape) < 0.01).astype(dtype)
            mask = (rng.random(shape) < 0.1).astype("u1")
            for labels in (None, mask):
                codes, _ = Local().encode(array, labels, Quantizer(2 * step, step, 0.25))
                out = np.zeros_like(array)
                Local().decode(codes, b"", out, labels, step, 0.25)
                assert labels is not None or abs(out - array).max() < 0.6 * step + 1e-4
                print(hashlib.sha256(codes + out.tobytes()).hexdigest())
"""


def test_local_least_squares_give_the_same_bits():
    def run(simd):
        env = {**os.environ, "AESZ_SIMD": simd}
        return subprocess.run([sys.executable, "-c", LOCAL], env=env, capture_output=True, check=True).stdout

    assert run("1") == run("0")
