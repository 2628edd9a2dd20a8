"""Cycles: what is known of a grid by the hour and the day of the year is taken away, and the encoder finds out which it is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from aesz_codec import encoding_for, errors, inspect_store, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.packs import Pack
from aesz_codec.predictors.side import Cycle
from aesz_codec.train.cycle import fit
from aesz_codec.train.packing import write_pack

BOUND = ErrorBound("abs", 0.25)
GRID = (12, 17)


def climate(ticks: np.ndarray, seed: int = 0, per_day: int = 8, noise: float = 1.0) -> np.ndarray:
    """Land warms by day and in summer, the sea in autumn; and weather that is new in every frame."""
    rng = np.random.default_rng(1)
    land, height = rng.uniform(0, 1, GRID), rng.normal(0, 3, GRID)
    day = 2 * np.pi * ticks[:, None, None] / per_day
    year = day / 365
    season, hour = 8 * np.cos(year), 6 * (1 - 0.5 * np.cos(year)) * np.sin(day)
    weather = np.random.default_rng(seed + 2).normal(0, noise, (len(ticks), *GRID))
    sea = (1 - land) * 8 * np.sin(year)
    return (280 + height + land * (season + hour) + sea + weather).astype("f4")


def packed(network: object, tensors: dict[str, np.ndarray], id_: str = "climate") -> Pack:
    manifest = {"id": id_, "kind": "cycle", "licence": "CC0-1.0", "network": network}
    return Pack.from_bytes(write_pack(manifest, tensors))


@pytest.fixture(scope="module")
def pack() -> Pack:
    ticks = np.arange(0, 8 * 365, 2), np.arange(1, 8 * 365, 2)
    return packed(*fit([climate(t, 10 + i) for i, t in enumerate(ticks)], ticks, 8, 2, 1))


def coded(data: np.ndarray, *models: Pack, effort: str = "default", bound: ErrorBound = BOUND) -> bytes:
    return pipeline.encode(data, bound, effort=effort, models=models)


def decoded(stream: bytes, *models: Pack) -> np.ndarray:
    return pipeline.decode(stream, find_model={model.digest: model for model in models}.__getitem__)


@pytest.mark.parametrize(("first", "step"), [(0, 1), (1203, 1), (2919, 1), (700, 2), (700, 8), (300, 3)])
def test_the_time_of_the_first_frame_and_the_step_are_found(pack, first, step):
    data = climate(first + step * np.arange(32), 5)
    stream = coded(data, pack)
    info = pipeline.describe(stream)
    assert (info.models, info.format_version) == ((pack.digest,), "1.5")
    found = info.parameters["first_tick"], info.parameters["ticks_a_step"]
    assert found[1] == step
    if step < 8:  # once a day, the hour and the season are much alike
        assert found[0] % 8 == first % 8
        assert abs((found[0] - first + 1460) % 2920 - 1460) <= 8 * 20  # the year is known to some weeks
    assert len(stream) < (0.85 if step < 8 else 0.95) * len(coded(data))
    assert np.abs(decoded(stream, pack).astype(float) - data).max() <= 0.25


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(32, *GRID), (16, 2, *GRID), (1, *GRID), GRID, (32, 1, *GRID)])
def test_time_is_the_first_axis(pack, shape, dtype):
    frames = shape[0] if len(shape) > 2 else 1
    data = climate(1203 + np.arange(frames), 5)
    if shape[1:2] == (2,):
        data = np.stack([data, data + np.float32(0.5) * climate(np.arange(16), 6, noise=0.1).std()], axis=1)
    data = data.reshape(shape).astype(dtype)
    stream = coded(data, pack)
    assert pipeline.describe(stream).models == (pack.digest,)
    assert np.abs(decoded(stream, pack).astype(float) - data).max() <= 0.25


def test_gaps_and_padding_stay(pack):
    data = np.full((48, *GRID), np.nan, "f4")
    data[:40] = climate(np.arange(40), 5)
    data[:40, 3:6, 4:9] = np.nan
    data[7] = np.nan
    data[9, 1, 1], data[9, 1, 2] = np.inf, -np.inf
    stream = coded(data, pack)
    assert pipeline.describe(stream).parameters["first_tick"] % 8 == 0
    back, finite = decoded(stream, pack), np.isfinite(data)
    assert np.array_equal(back[~finite], data[~finite], equal_nan=True)
    assert np.abs(back[finite].astype(float) - data[finite]).max() <= 0.25


def test_gaps_that_stay_where_they_are_hide_no_time(pack):
    data = climate(1203 + np.arange(32), 5)
    data[:, 3:9, 4:12] = np.nan
    assert pipeline.describe(coded(data, pack)).parameters["first_tick"] % 8 == 1203 % 8


@pytest.mark.parametrize(
    "data",
    [
        climate(np.arange(20))[:, :11],
        climate(np.arange(20))[:, :, 1:],
        climate(np.arange(1))[0, 0],
        np.rint(climate(np.arange(20)) * 8).astype("i2"),
        climate(np.arange(20)).astype("f2"),
        np.full((20, *GRID), 280, "f4"),
    ],
    ids=["lines", "columns", "axis", "integers", "halves", "constant"],
)
def test_what_it_is_not_for_is_coded_as_without(pack, data):
    assert coded(data, pack) == coded(data)


def test_fast_and_relative_bounds_take_none(pack):
    data = climate(np.arange(20))
    assert coded(data, pack, effort="fast") == coded(data, effort="fast")
    relative = ErrorBound("pw_rel", 1e-3)
    assert coded(data, pack, bound=relative) == coded(data, bound=relative)


def test_a_cycle_of_noise_costs_nothing():
    rng = np.random.default_rng(0)
    noise = packed(
        {"grid": list(GRID), "shift": 12},
        {
            "hours": rng.integers(-9, 10, (5, 2)).astype(np.int8),
            "days": rng.integers(-9, 10, (7, 2)).astype(np.int16),
            "modes": rng.integers(-999, 1000, (4, *GRID)).astype(np.int32),
        },
    )
    data = climate(np.arange(48))
    assert coded(data, noise) == coded(data)


def test_the_prediction_is_that_of_integers(pack):
    cycle = Cycle.load(pack)
    network, tensors = pack.manifest["network"], pack.tensors
    hours, days, modes = (tensors[key].astype(object) for key in ("hours", "days", "modes"))
    field = cycle.predict(np.array([[2917, 1205]], np.int32), 0.0, (5, 2, *GRID))
    for t in range(5):
        day, hour = divmod((2917 + 1205 * t) % 2920, 8)
        weights = np.outer(hours[hour], days[day]).reshape(-1)
        expected = np.tensordot(weights, modes, 1).astype(np.float64) * 2.0 ** -network["shift"]
        assert np.array_equal(field[t, 0], expected) and np.array_equal(field[t, 1], expected)


def test_a_missing_pack_is_told(pack):
    with pytest.raises(errors.ModelNotFoundError, match=pack.digest):
        pipeline.decode(coded(climate(np.arange(32)), pack))


SOUND = {
    "hours": np.ones((4, 3), np.int16),
    "days": np.ones((5, 2), np.int8),
    "modes": np.ones((6, *GRID), np.int32),
}
NETWORK = {"grid": list(GRID), "shift": 5}


@pytest.mark.parametrize(
    ("network", "tensors", "message"),
    [
        (None, {}, "network"),
        ({**NETWORK, "more": 1}, {}, "network"),
        ({**NETWORK, "grid": []}, {}, "grid"),
        ({**NETWORK, "grid": [12, True]}, {}, "grid"),
        ({**NETWORK, "shift": 81}, {}, "shift"),
        ({**NETWORK, "shift": -1}, {}, "shift"),
        ({**NETWORK, "shift": 0.5}, {}, "shift"),
        (NETWORK, {"days": None}, "tensors"),
        (NETWORK, {"extra": np.ones(1, np.int8)}, "tensors"),
        (NETWORK, {"hours": np.ones(4, np.int8)}, "hours"),
        (NETWORK, {"days": np.ones((5, 2), np.int32)}, "days"),
        (NETWORK, {"modes": np.ones((5, *GRID), np.int32)}, "modes"),
        (NETWORK, {"modes": np.ones((6, 17, 12), np.int32)}, "modes"),
        (NETWORK, {"days": np.ones((16385, 2), np.int8)}, "ticks"),
        (
            {**NETWORK, "grid": [1]},
            {
                "hours": np.ones((1, 64), np.int8),
                "days": np.ones((1, 65), np.int8),
                "modes": np.ones((4160, 1), np.int32),
            },
            "ticks",
        ),
        (
            {**NETWORK, "grid": [1]},
            {
                "hours": np.ones((64, 20), np.int8),
                "days": np.ones((512, 20), np.int8),
                "modes": np.ones((400, 1), np.int32),
            },
            "ticks",
        ),
        (
            NETWORK,
            {
                "hours": np.full((4, 3), -(2**15), np.int16),
                "days": np.full((5, 2), 2**15 - 1, np.int16),
                "modes": np.full((6, *GRID), 2**22, np.int32),
            },
            "modes.*2\\^53",
        ),
    ],
)
def test_packs_that_are_not_sound(network, tensors, message):
    wanted = {key: value for key, value in {**SOUND, **tensors}.items() if value is not None}
    with pytest.raises(errors.InvalidModelError, match=message):
        coded(climate(np.arange(4)), packed(network, wanted))


def test_archives_bring_their_cycle_and_every_chunk_decodes_alone(pack, tmp_path):
    data = xr.Dataset({"t": (("time", "y", "x"), climate(np.arange(96)))})
    encoding = encoding_for(data, 0.25, chunks={"time": 32}, model=pack)
    data.to_zarr(tmp_path / "a.zarr", encoding=encoding, consolidated=False)
    (report,) = inspect_store(tmp_path / "a.zarr").variables
    assert [(model.id, model.chunks) for model in report.models] == [("climate", 3)]
    code = (
        "import sys, numpy as np, xarray as xr; "
        "x = xr.open_zarr(sys.argv[1], consolidated=False)['t'][40:50].values; np.save(sys.argv[2], x); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.zarr", tmp_path / "x.npy"], check=True)
    assert np.abs(np.load(tmp_path / "x.npy").astype(float) - data["t"].values[40:50]).max() <= 0.25


# Training


def test_fit_needs_frames_that_differ_on_one_grid():
    frames, ticks = climate(np.arange(80)), np.arange(80)
    with pytest.raises(errors.InvalidModelError, match="one grid"):
        fit([frames, frames[:, 1:]], [ticks, ticks], 8)
    with pytest.raises(errors.InvalidModelError, match="at least four"):
        fit([frames[:19]], [ticks[:19]], 8)
    for value in (np.nan, 3.0):
        with pytest.raises(errors.InvalidModelError, match="only NaN, or constant"):
            fit([np.full((80, *GRID), value)], [ticks], 8)


def test_a_few_days_have_no_year():
    network, tensors = fit([climate(np.arange(80))], [np.arange(80)], 8)
    assert tensors["days"].shape == (1, 1) and tensors["hours"].shape == (8, 5)
    assert packed(network, tensors).nbytes < 3000


def test_daily_means_have_a_year_only():
    ticks = np.arange(800)
    network, tensors = fit([climate(8 * ticks)], [ticks], 1)
    assert tensors["hours"].shape == (1, 1) and tensors["days"].shape == (365, 5)
    data = climate(8 * np.arange(900, 930), 7)
    pack = packed(network, tensors)
    assert pipeline.describe(coded(data, pack)).models == (pack.digest,)
