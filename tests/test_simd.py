"""The same bits with and without the loops for AVX2: what a process without them reads and writes is compared."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aesz_codec import _core, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.nets import Network
from aesz_codec.packs import Pack, plain
from aesz_codec.predictors.interpolation import MOST_SEEN

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


MODELS = Path(__file__).parent / "golden" / "models"
LEARNED = """
import hashlib
import numpy as np
from aesz_codec import _core


def coded(nets):
    rng = np.random.default_rng(11)
    for shape in [(113, 97), (40, 3), (3, 71), (2, 3), (5, 33, 40), (9, 2, 3), (13, 21, 34), (2, 2, 19, 20)]:
        for dtype in ("f4", "f8"):
            array = np.cumsum(rng.normal(size=shape), -1).astype(dtype)
            array[..., 1:][rng.random(array[..., 1:].shape) < 0.002] = 1e30
            mask = (rng.random(shape) < 0.1).astype("u1")
            for batch in range(len(shape) - 1):
                for coder in (0, 2, 3):
                    choices = batch, bool(batch), False, coder, 20, 32, nets
                    for labels, step in ((None, 1.0), (mask, 0.01), (None, 1e-5)):
                        codes, wild = _core.encode_interpolation(array, labels, step / 2, step, 0.25, *choices)
                        out = np.zeros_like(array)
                        _core.decode_interpolation(codes, wild, out, labels, step, 0.25, *choices)
                        assert labels is not None or abs(out.astype("f8") - array).max() <= step / 2
                        yield hashlib.sha256(codes + wild + out.tobytes()).hexdigest()
"""
LEARNED_ALONE = """
import sys
from aesz_codec.packs import Pack
from aesz_codec.predictors.interpolation import networks_of

print(*coded(networks_of(Pack.from_file(sys.argv[1]))[0]))
"""


@pytest.mark.parametrize("name", ["interpolation", "interpolation_few"])
def test_learned_interpolation_gives_the_same_bits_at_every_level(name):
    """Loops around networks at both levels, networks at all; those of the processor at hand."""
    model = MODELS / f"{name}.aeszpack"

    def run(simd):
        env = {**os.environ, "AESZ_SIMD": simd}
        command = [sys.executable, "-c", LEARNED + LEARNED_ALONE, str(model)]
        return subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout.split()

    expected, names = run("0"), {}
    assert len(set(expected)) > 100
    exec(LEARNED, names)
    pack = Pack.from_file(model)
    for level in range(len(_core.network_levels())):
        nets = []
        for slot in range(13):
            network = Network.load(plain(pack.manifest["network"]["slots"][str(slot)]), pack.tensors)
            layers = [layer.packed() for layer in network.layers]
            nets.append(_core.Mlp(layers, network.input.lo, network.input.hi, level))
        sees = pack.manifest["network"].get("sees", MOST_SEEN)
        coded = list(names["coded"](_core.LearnedNets(nets, sees)))
        assert coded == expected, _core.network_levels()[level]


FORECASTS = """
import hashlib, sys
import numpy as np
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Quantizer
from aesz_codec.stream import Coder

rng = np.random.default_rng(13)
for name, shape in (("forecaster", (6, 9, 11)), ("forecaster", (9, 11)), ("forecaster_narrow", (7, 3, 2))):
    pack = Pack.from_file(sys.argv[1] + "/" + name + ".aeszpack")
    for dtype in ("f4", "f8"):
        for step in (1.0, 0.01, 1e-5):
            array = np.cumsum(rng.normal(size=shape), -1).astype(dtype)
            array[..., 1:][rng.random(array[..., 1:].shape) < 0.01] = 1e30
            mask = (rng.random(shape) < 0.1).astype("u1")
            for labels in (None, mask):
                for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED):
                    predictor = Causal(coder, pack)
                    codes, outliers = predictor.encode(array, labels, Quantizer(step / 2, step, 0.25))
                    out = np.zeros_like(array)
                    predictor.decode(codes, outliers, out, labels, step, 0.25)
                    print(hashlib.sha256(codes + outliers + out.tobytes()).hexdigest())
"""


def test_forecasters_give_the_same_bits():
    def run(simd):
        env = {**os.environ, "AESZ_SIMD": simd}
        command = [sys.executable, "-c", FORECASTS, str(MODELS)]
        return subprocess.run(command, env=env, capture_output=True, check=True).stdout.split()

    assert run("1") == run("0") and len(set(run("1"))) == 108


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_measured_errors_are_the_same(tmp_path, dtype):
    """The sum too, which is added up in one order."""
    np.save(tmp_path / "x.npy", field((37, 83), dtype))
    np.save(tmp_path / "y.npy", field((37, 83), dtype)[:, ::-1].copy())
    code = (
        "import sys\nimport numpy as np\nfrom aesz_codec import _core\n"
        "print(_core.error_moments(*(np.load(f'{sys.argv[1]}/{n}.npy') for n in 'xy')))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "AESZ_SIMD": simd},
            capture_output=True, text=True, check=True,
        ).stdout
        for simd in "01"
    ]  # fmt: skip
    assert found[0] == found[1] and len(found[0].split()) == 4
