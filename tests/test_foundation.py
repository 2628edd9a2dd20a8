"""Verified float forecasts: both ends have the same integers, or the decoder says which blocks it could not make."""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from aesz_codec import errors, foundation, pipeline
from aesz_codec.adapters.stepping import Stepping
from aesz_codec.bounds import ErrorBound
from aesz_codec.coordinates import Coordinates, split_channel
from aesz_codec.predictors.verified import Decoded, Encoded, Forecast, Stored, stored

flowing = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("flowing.py"))))
CHANNELS, ROWS, COLUMNS = flowing.CHANNELS, flowing.ROWS, flowing.COLUMNS
STATES, PLACE = flowing.STATES, flowing.PLACE
flow, weather, model, noisy = flowing.flow, flowing.weather, flowing.model, flowing.noisy
state_codec = flowing.state_codec
TOLERANCE = 0.01
SHAPE = (STATES * len(CHANNELS), ROWS, COLUMNS)


def pack(integers: np.ndarray) -> bytes:
    return pipeline.encode(integers, ErrorBound("abs", 0.25))


def unpack(stream: bytes, shape: tuple[int, ...]) -> np.ndarray:
    array = pipeline.decode(stream)
    assert array.shape == shape
    return array


def coded(end: object, frames: np.ndarray) -> list[np.ndarray | None]:
    """Ask for all frames as the closed loop does: each once, those before decoded."""
    decoded = np.full(frames.shape, np.nan, np.float32)
    told = []
    for frame, values in enumerate(frames):
        told.append(end.predict(frame, decoded))
        decoded[frame] = np.rint(values / (2 * TOLERANCE)) * (2 * TOLERANCE)
    return told


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return weather().reshape(SHAPE)


def encoder(
    frames: np.ndarray, of: foundation.FoundationModel, place: Coordinates = PLACE, mask=None
) -> Encoded:
    return Encoded(of, place, frames, mask, TOLERANCE, pack)


def decoder(section: bytes, of: foundation.FoundationModel, partial: bool = False) -> Decoded:
    return Decoded(Forecast.unpack(section, SHAPE), of, SHAPE, unpack, partial)


def same(a: list, b: list) -> bool:
    return all(
        (x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in zip(a, b, strict=True)
    )


def test_both_ends_have_the_same_forecast(frames):
    first = encoder(frames, model())
    told = coded(first, frames)
    assert told[:2] == [None, None] and all(x is not None for x in told[2:])
    grid = 2.0 ** first.section().exponents.astype(float)
    for frame, reference in enumerate(told[2:], 2):
        error = np.sqrt(np.mean((reference - frames[frame]) ** 2))
        assert error < 0.35 * np.sqrt(np.mean((frames[frame - 2] - frames[frame]) ** 2))
        assert np.array_equal(reference / grid[frame % 2], np.rint(reference / grid[frame % 2]))
        assert grid[frame % 2] in (2.0**-7, 2.0**-6)  # about the tolerance
    section = first.section().pack()
    assert len(section) < 10 * 48 + 150  # hashes of 2 x 3 blocks a frame, and a little
    other = decoder(section, model())
    assert same(coded(other, frames), told)
    other.finish()


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4])
def test_another_machine_is_mended(frames, size):
    told = coded(first := encoder(frames, model(other=noisy(size, 1))), frames)
    assert not first.unstable
    section = first.section().pack()
    for seed in range(2, 5):
        other = decoder(section, model(noisy(size, seed)))
        assert same(coded(other, frames), told)
        other.finish()


def test_without_mending_another_machine_would_be_wrong(frames):
    """The test above is of something: the nearest integers alone are not the same."""
    first = encoder(frames, model(other=noisy(1e-4, 1)))
    told = coded(first, frames)
    grid = 2.0 ** float(first.section().exponents[0])
    raw = np.floor(noisy(1e-4, 2)(np.rint(frames[0:2] / 0.02).astype("f4") * np.float32(0.02)) / grid + 0.5)
    assert (raw[0] != told[2] / grid).any()


@pytest.mark.parametrize("size", [1e-4, 3e-4])
def test_flags_hold_where_repair_would_not(frames, size):
    """The second size is beyond 1 % of the grid in some frames: these have no forecast."""
    first = encoder(frames, model(other=noisy(size, 1)))
    told = coded(first, frames)
    assert bool(first.unstable) == (size > 2e-4)
    section = first.section()
    assert min(len(flags) for flags in section.flags) > 100
    for seed in range(2, 5):
        other = decoder(section.pack(), model(noisy(size, seed)))
        assert same(coded(other, frames), told)
    blind = Forecast.unpack(section.pack(), SHAPE)
    blind = replace(blind, flags=tuple(flags[:0] for flags in blind.flags))
    with pytest.raises(errors.PredictionMismatchError):
        coded(decoder(blind.pack(), model(noisy(2 * size, 2))), frames)


def test_a_mismatch_names_the_blocks(frames):
    section = (first := encoder(frames, model())).section
    coded(first, frames)

    def broken(states: np.ndarray) -> np.ndarray:
        forecast = flow(states)
        if broken.calls == 2:
            forecast[1, 64:, 128:] += 1.0
        broken.calls += 1
        return forecast

    broken.calls = 0
    with pytest.raises(
        errors.PredictionMismatchError, match=r"state 3, channel 't@850', rows 64:70, columns 128:150, exp"
    ):
        coded(decoder(section().pack(), model(broken)), frames)
    broken.calls = 0
    some = decoder(section().pack(), model(broken), partial=True)
    told = coded(some, frames)
    assert np.flatnonzero(some.wrong).tolist() == [7, 8, 9, 10, 11]
    assert not told[7].any() and told[6].any()
    some.finish()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_forecasts_that_are_no_numbers(frames, wrong):
    def odd(states: np.ndarray) -> np.ndarray:
        forecast = flow(states)
        forecast[0, 3, 4] = wrong
        return forecast

    told = coded(first := encoder(frames, model(odd)), frames)
    assert told[2] is None and told[3] is not None
    sound = encoder(frames, model())
    coded(sound, frames)
    with pytest.raises(errors.PredictionMismatchError, match="'2t', rows 0:64, columns 0:64"):
        coded(decoder(sound.section().pack(), model(odd)), frames)
    assert first.section().present.tolist() == [False, False] + 5 * [False, True]


def test_a_model_in_half_precision_is_refused(frames):
    def half(states: np.ndarray) -> np.ndarray:
        bits = flow(states).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)

    with pytest.raises(errors.UnstableForecastError, match="'flow'.*differ.*bfloat16"):
        coded(encoder(frames, model(other=half)), frames)


def test_gaps_are_not_forecast_from(frames):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4] = 1  # the first channel of state 2 is missing
    mask[9, 10:20] = 1
    data = np.where(mask, np.nan, frames).astype("f4")
    first = encoder(data, model(), mask=mask)
    filled = np.nan_to_num(data)
    told = coded(first, filled)
    assert [x is not None for x in told] == [False] * 2 + [True] * 2 + [False, True] + [False] * 2 + [
        True
    ] * 4
    assert same(coded(decoder(first.section().pack(), model()), filled), told)


def test_the_grid_is_as_coarse_as_it_must_be(frames):
    """About the tolerance; coarser where forecasts differ, up to half of their error, where the places near ties are flagged."""
    exponents, flags = [], []
    for size in (1e-7, 1e-6, 1e-5, 3e-5):
        coded(first := encoder(frames, model(other=noisy(size, 1))), frames)
        exponents.append(first.section().exponents.tolist())
        flags.append(sum(len(f) for f in first.section().flags))
    assert exponents == sorted(exponents) and exponents[0] == [-7, -7] and -4 <= exponents[-1][0] <= -3
    assert flags[0] < flags[-1] / 10 and flags[-1] > 200


def test_two_states_and_any_order(frames):
    def two(states: np.ndarray) -> np.ndarray:
        return 1.5 * states[1] - 0.5 * states[0]

    def asked(end):
        decoded = np.full(SHAPE, np.nan, np.float32)
        order = [*range(8), 10, 11, 8, 9]  # the last state before the one that precedes it
        told = {}
        for frame in order:
            told[frame] = end.predict(frame, decoded)
            decoded[frame] = frames[frame]
        return [told[frame] for frame in range(12)]

    first = encoder(frames, model(two, history=2))
    told = asked(first)
    assert [x is not None for x in told] == [False] * 4 + [True] * 6 + [False] * 2
    end = decoder(first.section().pack(), model(two, history=2))
    assert same(asked(end), told)
    end.finish()


def test_too_few_states_make_no_section(frames):
    first = Encoded(model(history=8), PLACE, frames, None, TOLERANCE, pack)
    assert coded(first, frames) == [None] * 12 and first.section() is None


def test_stored_integers_say_the_same(frames):
    told = coded(first := encoder(frames, model()), frames)
    section = Forecast.unpack(first.section().pack(), SHAPE)
    end = decoder(first.section().pack(), model())
    end.kept = {}
    coded(end, frames)
    again = Forecast.unpack(stored(section, end.kept, pack).pack(), SHAPE)
    assert again.digest is None
    assert same(coded(Stored(again, SHAPE, unpack), frames), told)


def test_damaged_sections_are_refused_or_read(frames_section):
    """Whatever the bytes are: a typed error, or a section that packs to the same bytes."""
    refused = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        data = bytearray(frames_section)
        if seed % 3 == 0:
            data = data[: rng.integers(len(data))]
        for _ in range(rng.integers(1, 4) if data and seed % 3 else 0):
            data[rng.integers(min(len(data), 200))] = rng.integers(256)
        try:
            section = Forecast.unpack(bytes(data), SHAPE)
        except errors.CorruptStreamError:
            refused += 1
            continue
        assert Forecast.unpack(section.pack(), SHAPE).pack() == section.pack() == bytes(data)
    assert 130 < refused < 400


@pytest.fixture(scope="module")
def frames_section(frames) -> bytes:
    coded(first := encoder(frames, model(other=noisy(1e-4, 1))), frames)
    assert any(len(flags) for flags in first.section().flags)
    return first.section().pack()


# ---- codecs of states ------------------------------------------------------------------------------------------


def test_a_codec_of_states(frames):
    """Every state has a prediction, the first too; latents are in the section."""
    told = coded(first := encoder(frames, state_codec()), frames)
    assert all(x is not None for x in told)
    for reference, values in zip(told, frames, strict=True):
        assert np.sqrt(np.mean((reference - values) ** 2)) < 0.8 * values.std()
    end = decoder(first.section().pack(), state_codec())
    assert same(coded(end, frames), told)
    end.finish()
    with pytest.raises(errors.CorruptStreamError, match="latents"):
        decoder(first.section().pack(), model())


# ---- coordinates -----------------------------------------------------------------------------------------------


def dataset(times: object = None, **coords: object) -> xr.DataArray:
    times = (
        np.datetime64("2020-02-28T18", "ns") + np.arange(4) * np.timedelta64(6, "h")
        if times is None
        else times
    )
    values = {
        "time": times,
        "channel": list(CHANNELS),
        "lat": np.linspace(90, -90, 5),
        "lon": np.arange(0, 360, 60.0),
    }
    values |= coords
    return xr.DataArray(
        np.zeros((4, 2, 5, 6), "f4"), dims=("time", "channel", "lat", "lon"), coords=values, name="x"
    )


def test_coordinates_of_a_dataset():
    found = Coordinates.of(dataset())
    assert found == Coordinates(CHANNELS, "2020-02-28T18:00:00", 21600, (90, -45), (0, 60))
    assert Coordinates.from_json(found.to_json()) == found
    assert found.at(2).time.isoformat() == "2020-02-29T06:00:00"
    single = dataset().isel(channel=0, drop=True).rename("2t")
    assert Coordinates.of(single).channels == ("2t",)
    numbers = dataset(np.arange(4) * 6)
    numbers.coords["time"].attrs["units"] = "hours since 2020-02-28 18:00"
    assert Coordinates.of(numbers) == found
    fine = dataset().isel(lon=slice(0, 4)).assign_coords(lon=np.array([0, 0.1, 0.2, 0.3], "f4"))
    assert Coordinates.of(fine).longitude == (0.0, 0.1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            dataset(np.array(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-05"], "M8[ns]")),
            "time: found steps of 86400, 1728",
        ),
        (dataset(np.array(["2020-01-01", "2020-01-02", "NaT", "2020-01-05"], "M8[ns]")), "missing"),
        (dataset(np.arange(4)), "time: found int64"),
        (dataset(lat=np.array([90.0, 45, 0, -50, -90])), "lat: found steps that are not equal"),
        (dataset(channel=[1, 2]), "no names along the channel axis"),
        (dataset().drop_vars("lon"), "lon: found no coordinate"),
    ],
)
def test_coordinates_that_no_model_can_use(array, message):
    with pytest.raises(errors.InvalidConfigError, match=message):
        Coordinates.of(array)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": ()},
        {"channels": ("a", "a")},
        {"channels": ("t@",)},
        {"channels": ("t@-5",)},
        {"start": "soon"},
        {"start": 1 << 62},
        {"step": 0},
        {"step": 0.5},
        {"latitude": (90,)},
        {"longitude": (0, 0)},
        {"longitude": (float("nan"), 1)},
    ],
)
def test_coordinates_are_checked(change):
    with pytest.raises(errors.InvalidConfigError):
        Coordinates(
            **{
                **dict(
                    zip(
                        ("channels", "start", "step", "latitude", "longitude"),
                        (*PLACE.__reduce_ex__(2)[2].values(),),
                        strict=True,
                    )
                ),
                **change,
            }
        )


def test_channels_with_levels():
    assert split_channel("t@850") == ("t", 850.0) and split_channel("2t") == ("2t", None)


# ---- names and places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Coordinates(("2t", "w@850"), 0, 21600, (0, 1), (0, 1)), "found 'w@850', expected 2t, t"),
        (Coordinates(("2t", "t@851"), 0, 21600, (0, 1), (0, 1)), "found 't@851'.*levels 500, 850"),
        (
            Coordinates(CHANNELS, 0, 3600, (0, 1), (0, 1)),
            "time step for flow: found 3600 s, expected 21600 s",
        ),
    ],
)
def test_states_that_the_model_does_not_know(frames, place, message):
    with pytest.raises(errors.ModelInputError, match=message):
        encoder(frames, model(levels=(500, 850)), place)


def test_normalisation_is_of_channels(frames):
    shifted = (
        frames.reshape(STATES, 2, ROWS, COLUMNS) * np.array([2.0, 5.0])[:, None, None]
        + np.array([280.0, 250.0])[:, None, None]
    )
    shifted = shifted.astype("f4").reshape(SHAPE)
    normal = model(normalisation={"2t": (280.0, 2.0), "t@850": (250.0, 5.0)})
    told = coded(encoder(shifted, normal), shifted)
    assert np.sqrt(np.mean((told[3] - shifted[3]) ** 2)) < 0.4 * np.sqrt(
        np.mean((shifted[1] - shifted[3]) ** 2)
    )
    with pytest.raises(errors.ModelInputError, match="'t@850', expected one with a normalisation"):
        encoder(frames, model(normalisation={"2t": (0.0, 1.0)}))


def test_digests_are_of_all_that_decides(tmp_path):
    weights = tmp_path / "weights.npz"
    weights.write_bytes(b"1")
    one = model(files=[weights]).digest
    assert one == model(files=[weights], name="other").digest
    assert (
        len(
            {
                one,
                model().digest,
                model(version="2").digest,
                model(history=2).digest,
                model(levels=(1,)).digest,
            }
        )
        == 5
    )
    weights.write_bytes(b"22")
    assert model(files=[weights]).digest != one
    with pytest.raises(errors.InvalidConfigError, match="version"):
        model(version="")


def test_register_and_find(tmp_path, monkeypatch):
    monkeypatch.setenv("AESZ_FOUNDATION", str(tmp_path / "none.toml"))
    made = model()
    with pytest.raises(errors.ModelNotFoundError, match=rf"{made.digest}.*none.toml.*materialise"):
        foundation.get(made.digest)
    assert foundation.register(made) == made.digest
    try:
        assert (
            foundation.get(made.digest) is made
            and foundation.find("flow") is made
            and foundation.find(made.digest) is made
        )
    finally:
        foundation.unregister(made.digest)
    with pytest.raises(errors.InvalidConfigError, match="without name"):
        foundation.register(flow)


TOML = """
[doubling]
adapter = "stepping"
function = "{module}:double"
version = "1"
channels = ["2t"]
files = ["{weights}"]
digest = "{digest}"
"""


def test_models_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "doubling_of_test.py").write_text("def double(state):\n    return 2 * state\n")
    monkeypatch.syspath_prepend(tmp_path)
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    file = tmp_path / "foundation.toml"
    monkeypatch.setenv("AESZ_FOUNDATION", f"{tmp_path / 'none'}:{file}")
    digest = Stepping(lambda s: s, name="x", version="1", channels=("2t",), files=[weights]).digest

    def write(**values: object) -> None:
        file.write_text(
            TOML.format(**{"module": "doubling_of_test", "weights": weights, "digest": digest, **values})
        )

    write()
    found = foundation.get(digest)
    assert found.name == "doubling" and found is foundation.find("doubling")
    assert np.array_equal(found.step(np.ones((1, 1, 2, 2), "f4"), PLACE), np.full((1, 2, 2), 2, "f4"))
    other = f"of another digest, so another checkpoint.*: doubling of .*foundation.toml .{digest}."
    with pytest.raises(errors.ModelNotFoundError, match=other):
        foundation.get("cd" * 32)
    write(digest="ab" * 32)
    with pytest.raises(errors.ModelNotFoundError, match="foundation.toml .abab"):
        foundation.get("cd" * 32)
    with pytest.raises(
        errors.ModelDigestError, match=rf"'doubling' of .*found digest {digest}, expected abab"
    ):
        foundation.get("ab" * 32)
    write(weights=tmp_path / "gone")
    with pytest.raises(
        errors.ModelNotFoundError, match=r"could not be loaded: doubling.*no readable file gone in"
    ):
        foundation.get(digest)
    write(module="nowhere")
    with pytest.raises(errors.InvalidConfigError, match="nowhere:double"):
        foundation.find("doubling")
    file.write_text("[x]\nadapter = 5\n")
    with pytest.raises(errors.InvalidConfigError, match="adapter: found 5, expected aurora, stepping"):
        foundation.find("x")
    file.write_text("[x")
    with pytest.raises(errors.InvalidConfigError, match="foundation.toml"):
        foundation.find("x")


def test_checkpoints_by_digest(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(
        errors.ModelNotFoundError, match=rf"no readable file a.ckpt in {tmp_path} .*SHA-256 1234"
    ):
        foundation.file_digest(path, expected="1234")
    path.write_bytes(b"abc")
    right = hashlib.sha256(b"abc").hexdigest()
    assert foundation.file_digest(path, expected=right) == right
    with pytest.raises(errors.ModelDigestError, match=rf"found SHA-256 {right}, expected 1234"):
        foundation.file_digest(path, expected="1234")


def test_nothing_of_torch_is_imported():
    code = (
        "import sys, aesz_codec.foundation, aesz_codec.adapters.aurora, aesz_codec.adapters.stepping, aesz_codec.pipeline; "
        "sys.exit('torch' in sys.modules or 'aurora' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0
