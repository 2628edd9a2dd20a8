"""Side predictions: a basis describes frames of its grid, and the closed loop codes what it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aesz_codec import AESZ, encoding_for, errors, inspect_store, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.packs import Pack
from aesz_codec.predictors.side import Basis
from aesz_codec.stream import Section, Stream, Transform
from aesz_codec.train.basis import fit
from aesz_codec.train.packing import write_pack

BOUND = ErrorBound("abs", 0.1)
GRID = (12, 17)


def weather(frames: int, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    """Eight rough patterns that come and go, and a little noise."""
    patterns = np.random.default_rng(1).normal(0, 1, (8, *GRID))
    rng = np.random.default_rng(seed + 2)
    shares = np.empty((frames, 8))
    shares[0] = rng.normal(0, 3, 8)
    for t in range(1, frames):
        shares[t] = 0.9 * shares[t - 1] + rng.normal(0, 1.3, 8)
    field = 280 + np.tensordot(shares, patterns, 1) + rng.normal(0, 0.15, (frames, *GRID))
    return field.astype(dtype)


def packed(network: object, tensors: dict[str, np.ndarray], id_: str = "weather") -> Pack:
    manifest = {"id": id_, "kind": "basis", "licence": "CC0-1.0", "network": network}
    return Pack.from_bytes(write_pack(manifest, tensors))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return packed(*fit([weather(500, 10), weather(300, 11)], 8))


def coded(data: np.ndarray, *models: Pack, effort: str = "default", bound: ErrorBound = BOUND) -> bytes:
    return pipeline.encode(data, bound, effort=effort, models=models)


def decoded(stream: bytes, *models: Pack) -> np.ndarray:
    return pipeline.decode(stream, find_model={model.digest: model for model in models}.__getitem__)


@pytest.mark.parametrize("effort", ["default", "max"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(90, *GRID), (5, 18, *GRID), (90, 1, *GRID)])
def test_frames_of_its_grid_take_fewer_bytes(pack, shape, dtype, effort):
    data = weather(90, dtype=dtype).reshape(shape)
    stream = coded(data, pack, effort=effort)
    assert len(stream) < 0.7 * len(coded(data, effort=effort))
    assert np.abs(decoded(stream, pack).astype(float) - data.astype(float)).max() <= 0.1
    info = pipeline.describe(stream)
    assert (info.models, info.format_version) == ((pack.digest,), "1.3")
    assert info.parameters["transform"] == "side" and info.parameters["latents"] == [90, 8]


def test_gaps_and_padding_stay(pack):
    data = np.full((64, *GRID), np.nan, "f4")
    data[:50] = weather(50)
    data[:50, 3:6, 4:9] = np.nan
    data[7, 0, 0], data[9, 1, 1] = np.inf, -np.inf
    stream = coded(data, pack)
    assert pipeline.describe(stream).models == (pack.digest,)
    back, finite = decoded(stream, pack), np.isfinite(data)
    assert np.array_equal(back[~finite], data[~finite], equal_nan=True)
    assert np.abs(back[finite].astype(float) - data[finite]).max() <= 0.1


@pytest.mark.parametrize(
    "data",
    [
        weather(40)[:, :11],
        weather(40)[:, :, 1:],
        weather(1)[0, 0],
        np.rint(weather(40) * 8).astype("i2"),
        weather(40).astype("f2"),
        np.random.default_rng(0).normal(280, 5, (40, *GRID)).astype("f4"),
        np.full((40, *GRID), 280, "f4"),
    ],
    ids=["lines", "columns", "axis", "integers", "halves", "noise", "constant"],
)
def test_what_it_is_not_for_is_coded_as_without(pack, data):
    assert coded(data, pack) == coded(data)


def test_fast_and_relative_bounds_take_none(pack):
    data = weather(40)
    assert coded(data, pack, effort="fast") == coded(data, effort="fast")
    relative = ErrorBound("pw_rel", 1e-3)
    assert coded(data, pack, bound=relative) == coded(data, bound=relative)


def test_a_basis_of_noise_costs_nothing():
    modes = np.random.default_rng(0).integers(-20, 21, (9, *GRID)).astype(np.int8)
    tensors = {"mean": np.zeros(GRID, np.int16), "modes": modes, "shift": np.zeros(9, np.uint8)}
    noise = packed({"grid": list(GRID), "mean_shift": 0, "shift": 8}, tensors)
    for data in (weather(60), np.cumsum(np.random.default_rng(1).normal(size=(60, *GRID)), 0).astype("f4")):
        assert len(coded(data, noise)) <= len(coded(data))


def test_tight_bounds_near_the_rounding_of_the_dtype(pack):
    data = weather(40)
    for value in (1e-3, 1e-4, 5e-5, 2e-5, 1e-5):
        stream = coded(data, pack, bound=ErrorBound("abs", value))
        assert np.abs(decoded(stream, pack).astype(float) - data).max() <= value


def test_the_prediction_is_that_of_integers(pack):
    basis = Basis.load(pack)
    latents = np.random.default_rng(3).integers(-(2**20), 2**20, (7, 8)).astype(np.int32)
    network, tensors = pack.manifest["network"], pack.tensors
    modes = tensors["modes"].astype(object) * 2 ** tensors["shift"].astype(object)[:, None, None]
    sums = np.tensordot(latents.astype(object), modes, 1).astype(np.float64)
    scale = 0.3 * 2.0 ** -network["shift"]
    expected = tensors["mean"] * 2.0 ** -network["mean_shift"] + scale * sums
    assert np.array_equal(basis.predict(latents, 0.3, (7, *GRID)), expected)


def test_latents_whose_sums_would_not_be_exact_are_refused():
    tensors = {
        "mean": np.zeros(GRID, np.int16),
        "modes": np.full((2, *GRID), 100, np.int8),
        "shift": np.full(2, 20, np.uint8),
    }
    large = packed({"grid": list(GRID), "mean_shift": 0, "shift": 20}, tensors)
    stream = Stream.from_bytes(coded(weather(40), packed(*fit([weather(300, 10)], 2))))
    assert stream.transform is Transform.SIDE
    latents = pipeline.encode(np.full((40, 2), 2**26, np.int32), ErrorBound("abs", 0.25))
    unit = stream.sections[Section.SIDE][32:40]
    stream.sections[Section.SIDE] = bytes.fromhex(large.digest) + unit + latents
    with pytest.raises(errors.CorruptStreamError, match="2\\^53"):
        decoded(stream.to_bytes(), large)


def test_a_missing_or_another_pack_is_told(pack):
    stream = coded(weather(40), pack)
    with pytest.raises(errors.ModelNotFoundError, match=pack.digest):
        pipeline.decode(stream)
    other = packed(*fit([weather(300, 12)], 3), id_="other")
    with pytest.raises(errors.PackDigestError):
        pipeline.decode(stream, find_model=lambda digest: other)


SOUND = {
    "mean": np.zeros(GRID, np.int16),
    "modes": np.ones((3, *GRID), np.int8),
    "shift": np.zeros(3, np.uint8),
}
NETWORK = {"grid": list(GRID), "mean_shift": 2, "shift": 5}


@pytest.mark.parametrize(
    ("network", "tensors", "message"),
    [
        (None, {}, "network"),
        ({**NETWORK, "more": 1}, {}, "network"),
        ({**NETWORK, "grid": []}, {}, "grid"),
        ({**NETWORK, "grid": [2, 3, 4, 5]}, {}, "grid"),
        ({**NETWORK, "grid": [12, 0]}, {}, "grid"),
        ({**NETWORK, "grid": [12, True]}, {}, "grid"),
        ({**NETWORK, "shift": 41}, {}, "shift"),
        ({**NETWORK, "mean_shift": -1}, {}, "mean_shift"),
        ({**NETWORK, "mean_shift": 0.5}, {}, "mean_shift"),
        (NETWORK, {"mean": None}, "tensors"),
        (NETWORK, {"extra": np.ones(1, np.int8)}, "tensors"),
        (NETWORK, {"mean": np.zeros((17, 12), np.int16)}, "mean"),
        (NETWORK, {"modes": np.ones((3, 12, 18), np.int8)}, "modes"),
        (NETWORK, {"shift": np.zeros(2, np.uint8)}, "shift"),
        (NETWORK, {"shift": np.zeros(3, np.int8)}, "shift"),
        (NETWORK, {"shift": np.full(3, 41, np.uint8)}, "shift"),
        (
            NETWORK,
            {"modes": np.full((3, *GRID), 2**15 - 1, np.int16), "shift": np.full(3, 40, np.uint8)},
            "modes",
        ),
        (
            {**NETWORK, "grid": [1]},
            {
                "mean": np.zeros(1, np.int16),
                "modes": np.ones((4097, 1), np.int8),
                "shift": np.zeros(4097, np.uint8),
            },
            "modes",
        ),
    ],
)
def test_packs_that_are_not_sound(network, tensors, message):
    wanted = {key: value for key, value in {**SOUND, **tensors}.items() if value is not None}
    with pytest.raises(errors.InvalidModelError, match=message):
        coded(weather(4), packed(network, wanted))


def test_archives_bring_their_basis(pack, tmp_path):
    data = xr.Dataset({"t": (("time", "y", "x"), weather(96))})
    encoding = encoding_for(data, 0.1, chunks={"time": 48}, model=pack)
    data.to_zarr(tmp_path / "a.zarr", encoding=encoding, consolidated=False)
    (report,) = inspect_store(tmp_path / "a.zarr").variables
    assert [(model.id, model.chunks) for model in report.models] == [("weather", 2)]
    code = (
        "import sys, numpy as np, xarray as xr; "
        "x = xr.open_zarr(sys.argv[1], consolidated=False)['t'].values; np.save(sys.argv[2], x); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.zarr", tmp_path / "x.npy"], check=True)
    assert np.abs(np.load(tmp_path / "x.npy").astype(float) - data["t"].values).max() <= 0.1


def test_with_networks_of_learned_interpolation(pack):
    networks = Pack.from_file(Path(__file__).parent / "golden" / "models" / "interpolation.aeszpack")
    codec = AESZ(error_bound=0.1, model=[networks, pack])
    data = weather(60)
    assert np.abs(codec.decode(codec.encode(data)).astype(float) - data).max() <= 0.1
    assert len(codec.encode(data)) <= len(coded(data, pack))


# Training


def test_fit_needs_frames_that_differ_on_one_grid():
    with pytest.raises(errors.InvalidModelError, match="one grid"):
        fit([weather(40), weather(40)[:, 1:]], 4)
    with pytest.raises(errors.InvalidModelError, match="at least two"):
        fit([weather(7)], 4)
    for value in (np.nan, 3.0):
        with pytest.raises(errors.InvalidModelError, match="only NaN, or constant"):
            fit([np.full((40, *GRID), value)], 4)


def test_fit_from_fewer_frames_than_points_and_with_gaps():
    frames = weather(120)
    frames[:, :2] = np.nan
    frames[3] = np.nan
    basis = Basis.load(packed(*fit([frames], 8)))
    new = weather(30, 5)
    left = (new - basis.predict(basis.describe(new.astype(float), 0.5), 0.5, new.shape))[:, 2:]
    assert left.std() < 0.3 < new.std()
