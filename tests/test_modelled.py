"""Foundation models in streams and stores: fewer bytes, the bound, what happens without the model, and how to get rid of it."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr

from aesz_codec import AESZ, AESZCodec, errors, foundation, inspect_store, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.cli import main
from aesz_codec.foundation import Forecasting
from aesz_codec.materialise import materialise
from aesz_codec.stream import Section, Stream
from aesz_codec.zarr_codec import write_states

flowing = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("flowing.py"))))
CHANNELS, ROWS, COLUMNS, PLACE = flowing.CHANNELS, flowing.ROWS, flowing.COLUMNS, flowing.PLACE
flow, weather, model, noisy = flowing.flow, flowing.weather, flowing.model, flowing.noisy
state_codec = flowing.state_codec
BOUND = ErrorBound("abs", 0.2)
STATES = 10


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    return weather(STATES, 3)


def coded(data: np.ndarray, of=None, bound: ErrorBound = BOUND, **options) -> bytes:
    return pipeline.encode(data, bound, forecast=Forecasting(of or model(), PLACE), **options)


def decoded(stream: bytes, of=None, **options) -> np.ndarray:
    of = of or model()
    return pipeline.decode(stream, find_forecaster={of.digest: of}.__getitem__, **options)


@pytest.fixture(scope="module")
def stream(states) -> bytes:
    return coded(states)


@pytest.mark.parametrize(
    ("dtype", "effort"), [("f4", "fast"), ("f4", "default"), ("f8", "default"), ("f4", "max")]
)
def test_forecasts_save_bytes_within_the_bound(states, dtype, effort):
    data = states.astype(dtype)
    with_model = coded(data, effort=effort)
    info = pipeline.describe(with_model)
    assert info.foundation == model().digest and info.format_version == "1.5" and info.predictor == "frames"
    assert info.parameters["forecaster"] == "foundation model" and info.parameters["channels"] == 2
    assert len(with_model) < 0.8 * len(pipeline.encode(data, BOUND, effort=effort))
    assert info.sections["forecast"] < 0.12 * len(with_model)
    back = decoded(with_model)
    assert back.dtype == data.dtype and np.abs(back.astype("f8") - data).max() <= 0.2
    assert np.array_equal(back, decoded(with_model, model(noisy(1e-6))))  # another machine


def test_one_channel_without_an_axis(states):
    place = foundation.Coordinates(("2t",), PLACE.start, PLACE.step, PLACE.latitude, PLACE.longitude)
    one = states[:, 0]
    stream = pipeline.encode(one, BOUND, forecast=Forecasting(model(), place))
    assert pipeline.describe(stream).foundation
    assert np.abs(decoded(stream) - one).max() <= 0.2
    again = pipeline.encode(one[:, None], BOUND, forecast=Forecasting(model(), place))
    assert np.array_equal(decoded(again)[:, 0], decoded(stream))


def test_a_codec_of_states_in_a_stream(states):
    """The first state has a prediction too."""
    place = foundation.Coordinates(CHANNELS, PLACE.start, PLACE.step, PLACE.latitude, PLACE.longitude)
    stream = pipeline.encode(states[:3], BOUND, forecast=Forecasting(state_codec(), place))
    assert np.abs(decoded(stream, state_codec()) - states[:3]).max() <= 0.2
    assert pipeline.describe(stream).foundation in (None, state_codec().digest)
    used = next(pipeline._forecast(*arguments(states[:3], Forecasting(state_codec(), place)))).to_bytes()
    assert pipeline.describe(used).foundation == state_codec().digest
    assert np.abs(decoded(used, state_codec()) - states[:3]).max() <= 0.2
    free = pipeline.materialise(used, find_forecaster=lambda digest: state_codec())
    assert np.array_equal(pipeline.decode(free), decoded(used, state_codec()))


def arguments(data: np.ndarray, forecast: Forecasting) -> tuple:
    blank = Stream(data.dtype, data.shape, "abs", BOUND.value, 0.0, pipeline.Method.LOSSLESS)
    return data, BOUND, blank, "default", forecast


def test_a_useless_model_costs_nothing(states):
    rng = np.random.default_rng(0)
    noise = {}

    def useless(state: np.ndarray) -> np.ndarray:
        key = state.tobytes()[:64]
        return noise.setdefault(key, rng.normal(size=state.shape).astype("f4"))

    plain = pipeline.encode(states, BOUND)
    assert coded(states, model(useless, other=useless)) == plain


def test_gaps_and_empty_frames(states):
    data = states.copy()
    data[4] = np.nan  # all channels
    data[6, 1] = np.nan  # one
    data[7, :, 20:30, 40:60] = np.nan
    data[8, 0, 0, 0], data[8, 0, 0, 1] = np.inf, -np.inf
    stream = coded(data)
    assert pipeline.describe(stream).foundation
    back, finite = decoded(stream), np.isfinite(data)
    assert np.array_equal(back[~finite], data[~finite], equal_nan=True)
    assert np.abs(back[finite] - data[finite]).max() <= 0.2


def test_padding_behind_the_last_state(states):
    data = np.full((STATES + 5, *states.shape[1:]), np.nan, "f4")
    data[:STATES] = states
    stream = coded(data)
    info = pipeline.describe(stream)
    assert info.foundation and info.parameters["region"] == [STATES, 2, ROWS, COLUMNS]
    assert np.abs(decoded(stream)[:STATES] - states).max() <= 0.2 and np.isnan(decoded(stream)[STATES:]).all()


def test_one_time(states):
    """It has no step, so the model is not even asked whether it likes it."""
    place = foundation.Coordinates(CHANNELS, PLACE.start, 1, PLACE.latitude, PLACE.longitude)
    stream = pipeline.encode(states[:1], BOUND, forecast=Forecasting(model(), place))
    assert stream == pipeline.encode(states[:1], BOUND)


def test_chunks_shorter_than_the_history(states):
    """They are coded as if there were no model."""
    for count in (1, 2):
        stream = coded(states[:count], model(lambda s: s[1], history=2))
        assert stream == pipeline.encode(states[:count], BOUND)
        assert np.abs(pipeline.decode(stream) - states[:count]).max() <= 0.2


def test_errors_do_not_grow():
    data = weather(40, 9)
    back = decoded(coded(data))
    errors_of = np.abs(back - data).reshape(40, -1)
    assert errors_of.max() <= 0.2
    rms = np.sqrt((errors_of**2).mean(axis=1))
    assert abs(rms[-5:].mean() / rms[1:6].mean() - 1) < 0.1


def test_coordinates_must_be_those_of_the_array(states):
    with pytest.raises(errors.InvalidConfigError, match=r"2 channels for an array of shape \(10, 70, 150\)"):
        coded(states[:, 0])
    with pytest.raises(errors.ModelInputError, match=r"found '2t', expected u"):
        coded(states, model(channels=("u",)))


# ---- without the model, or with another ------------------------------------------------------------------------


def test_a_missing_model(states, stream, monkeypatch, tmp_path):
    monkeypatch.setenv("AESZ_FOUNDATION", str(tmp_path / "models.toml"))
    with pytest.raises(errors.ModelNotFoundError, match=rf"{model().digest}.*models.toml.*materialise"):
        pipeline.decode(stream)
    with pytest.raises(errors.ModelDigestError, match="as the stream says"):
        pipeline.decode(stream, find_forecaster=lambda digest: model(version="2"))


def test_forecasts_that_cannot_be_made_again(states, stream):
    class Other:
        """From state 6 on this machine computes something else."""

        def __getattr__(self, name):
            return getattr(model(), name)

        def step(self, given, coordinates, *, other=False):
            forecast = model().step(given, coordinates)
            return forecast + 0.5 * (coordinates.start >= PLACE.at(6).start) * np.array(
                [[[0.0]], [[1.0]]], "f4"
            )

    with pytest.raises(
        errors.PredictionMismatchError, match=r"state 6, channel 't@850', rows 0:64, columns 0:64; state 6"
    ):
        pipeline.decode(stream, find_forecaster=lambda digest: Other())
    right = decoded(stream)
    part = pipeline.decode(stream, find_forecaster=lambda digest: Other(), partial=True)
    assert np.array_equal(part[:6], right[:6]) and np.array_equal(part[6, 0], right[6, 0])
    assert np.isnan(part[6, 1]).all() and np.isnan(part[7:]).all()


def test_an_unstable_model_is_refused(states):
    with pytest.raises(errors.UnstableForecastError, match="encode without the model"):
        coded(states, model(other=noisy(1.0)))


def sealed(stream: bytes, section: Section, change) -> bytes:
    """Change a section, and put the checksums right."""
    parsed = Stream.from_bytes(stream)
    parsed.sections[section] = change(bytearray(parsed.sections[section]))
    return parsed.to_bytes()


def test_damaged_sections(states):
    small = np.ascontiguousarray(states[:, :, ::4, ::4])
    place = foundation.Coordinates(CHANNELS, PLACE.start, PLACE.step, (90.0, -10), (0.0, 9.0))
    of = model(lambda s: 0.9 * s)
    stream = next(pipeline._forecast(*arguments(small, Forecasting(of, place)))).to_bytes()
    free = pipeline.materialise(stream, find_forecaster=lambda digest: of)
    if pipeline.describe(free).predictor != "frames":
        free = None
    refused = 0
    for given in filter(None, (stream, free)):
        for seed in range(60):
            rng = np.random.default_rng(seed)
            section = (Section.FORECAST, Section.PLAN, Section.CODES)[min(seed % 5, 2)]

            def damage(data: bytearray, rng=rng) -> bytes:
                if rng.random() < 0.2:
                    return bytes(data[: rng.integers(len(data))])
                data[rng.integers(min(len(data), 250))] ^= 1 << rng.integers(8)
                return bytes(data)

            try:
                back = pipeline.decode(sealed(given, section, damage), find_forecaster=lambda digest: of)
            except errors.AESZError:
                refused += 1
            else:
                assert back.shape == small.shape
    assert refused > 20


def test_a_section_that_is_not_there(stream):
    parsed = Stream.from_bytes(stream)
    del parsed.sections[Section.FORECAST]
    with pytest.raises(errors.CorruptStreamError, match="forecast"):
        decoded(parsed.to_bytes())


def test_old_formats_do_not_have_it(stream):
    data = bytearray(stream)
    data[5] = 4
    end = len(stream) - sum(len(p) for p in ()) - 0
    info = pipeline.describe(stream)
    header = info.sections["header"] - 8
    data[header : header + 4] = struct.pack("<I", zlib.crc32(bytes(data[:header])))
    with pytest.raises(errors.CorruptStreamError, match="method"):
        decoded(bytes(data[:end]))


# ---- model-free ------------------------------------------------------------------------------------------------


def test_materialised_streams_say_the_same(states, stream):
    of = model()
    free = pipeline.materialise(stream, find_forecaster={of.digest: of}.__getitem__)
    info = pipeline.describe(free)
    assert info.foundation is None and info.predictor == "frames" and info.tolerance == 0.2
    assert pipeline.decode(free).tobytes() == decoded(stream).tobytes()
    assert pipeline.materialise(free) == free
    plain = pipeline.encode(states, BOUND)
    assert pipeline.materialise(plain) == plain
    with pytest.raises(errors.PredictionMismatchError):
        pipeline.materialise(stream, find_forecaster=lambda digest: model(lambda s: flow(s) + 1))


@pytest.fixture
def registered():
    digest = foundation.register(model())
    yield digest
    foundation.unregister(digest)


@pytest.mark.parametrize("layout", ["chunks", "shards", "shards, index first", "format 2"])
def test_materialised_stores(tmp_path, states, registered, layout, monkeypatch, capsys):
    monkeypatch.setenv("AESZ_FOUNDATION", str(tmp_path / "none.toml"))
    path = tmp_path / "store.zarr"
    options: dict = {"chunks": (5, *states.shape[1:]), "compressors": None}
    config = {"error_bound": 0.2, "forecaster": "flow", "coordinates": PLACE}
    if layout == "format 2":
        options |= {"compressors": AESZ(**config)}
    else:
        options |= {"serializer": AESZCodec(**config)}
    if layout.startswith("shards"):
        options["shards"] = (
            {"shape": states.shape, "index_location": "start"} if "first" in layout else states.shape
        )
    names = ["time", "channel", "lat", "lon"]
    if layout != "format 2":
        options["dimension_names"] = names
    group = zarr.open_group(path, mode="w", zarr_format=2 if layout == "format 2" else 3)
    array = group.create_array("x", shape=states.shape, dtype="f4", **options)
    if layout == "format 2":
        array.attrs["_ARRAY_DIMENSIONS"] = names
    array[:] = states
    zarr.consolidate_metadata(path)
    (report,) = inspect_store(path).variables
    assert [(m.id, m.digest, m.chunks) for m in report.models] == [("flow", registered, 2)]
    before = xr.open_zarr(path).x.values
    assert np.abs(before - states).max() <= 0.2
    assert main(["inspect", str(path), "--chunk", "x=1,0,0,0"]) == 0
    assert "keyframes every 1, foundation model." in capsys.readouterr().out

    assert main(["materialise", str(path), str(tmp_path / "free.zarr")]) == 0
    assert registered[:12] in capsys.readouterr().out
    foundation.unregister(registered)
    with pytest.raises(errors.ModelNotFoundError, match=registered):
        xr.open_zarr(path).x.load()
    free = xr.open_zarr(tmp_path / "free.zarr").x
    assert free.values.tobytes() == before.tobytes()
    (report,) = inspect_store(tmp_path / "free.zarr").variables
    assert report.models == () and report.predictors == {"frames": 2}
    texts = [
        p.read_text()
        for p in (tmp_path / "free.zarr").rglob("*")
        if p.name in ("zarr.json", ".zarray", ".zmetadata")
    ]
    assert not any("forecaster" in text or registered in text for text in texts)
    zarr.open_group(tmp_path / "free.zarr", mode="r+")["x"][:5] = states[
        :5
    ]  # may be written to without the model

    assert main(["materialise", str(path)]) == 2
    assert "none with the digest" in capsys.readouterr().err
    foundation.register(model())
    summary = materialise(path)
    assert (summary.variables[0].chunks, summary.variables[0].rewritten) == (2, 2)
    foundation.unregister(registered)
    assert xr.open_zarr(path).x.values.tobytes() == before.tobytes()
    assert materialise(path).variables[0].rewritten == 0
    assert not [*tmp_path.rglob("*.partial")]


@pytest.mark.parametrize("layout", ["chunks", "shards", "format 2"])
def test_chunks_know_their_time(tmp_path, states, layout):
    """With `write_states` a model that looks at the clock is right in every chunk."""
    moments = []

    def clocked(state: np.ndarray, place: foundation.Coordinates) -> np.ndarray:
        moments.append(place.start)
        return flow(state)

    digest = foundation.register(model(clocked, with_coordinates=True, version="clock"))
    try:
        options: dict = {"chunks": (4, *states.shape[1:]), "compressors": None}
        config = {"error_bound": 0.2, "forecaster": digest, "coordinates": PLACE}
        if layout == "format 2":
            options["compressors"] = AESZ(**config)
        else:
            options["serializer"] = AESZCodec(**config)
        if layout == "shards":
            options["shards"] = (12, *states.shape[1:])
        format_ = 2 if layout == "format 2" else 3
        array = zarr.create_array(
            tmp_path / "a.zarr", shape=states.shape, dtype="f4", zarr_format=format_, **options
        )
        write_states(array, states[:8])
        write_states(array, states[8:], first=8)
        assert sorted({(m - PLACE.start) // PLACE.step for m in moments}) == [1, 2, 3, 5, 6, 7, 9]
        moments.clear()
        again = zarr.open_array(tmp_path / "a.zarr")[:]
        assert np.abs(again - states).max() <= 0.2
        assert {(m - PLACE.start) // PLACE.step for m in moments} >= {1, 2, 3, 5, 6, 7}
        assert "2020-02-28T18:00:00" in json.dumps(array.metadata.to_dict(), default=str)
        for wrong, first in ((states, 4), (states[:4], 2), (states[:4], 12)):
            with pytest.raises(errors.InvalidConfigError, match="whole chunks along time"):
                write_states(array, wrong, first)
    finally:
        foundation.unregister(digest)
    plain = zarr.create_array({}, shape=states.shape, dtype="f4", serializer=AESZCodec(0.2), compressors=None)
    with pytest.raises(errors.InvalidConfigError, match="without a foundation model"):
        write_states(plain, states)


def test_materialise_refuses_what_it_cannot_do(tmp_path, states):
    with pytest.raises(errors.ConversionError, match="expected a Zarr store"):
        materialise(tmp_path / "gone.zarr")
    zarr.save(tmp_path / "a.zarr", x=np.zeros(3))
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(errors.ConversionError, match="which exists"):
        materialise(tmp_path / "a.zarr", tmp_path / "b.zarr")
    with pytest.raises(errors.ConversionError, match="apart from the store"):
        materialise(tmp_path / "a.zarr", tmp_path / "a.zarr" / "b.zarr")


# ---- configuration ---------------------------------------------------------------------------------------------


def test_configuration(states, registered, monkeypatch, tmp_path):
    monkeypatch.setenv("AESZ_FOUNDATION", str(tmp_path / "none.toml"))
    codec = AESZ(0.2, forecaster=model(), coordinates=PLACE)
    assert repr(codec) == "AESZ(error_bound=0.2, mode='abs', forecaster='flow')"
    config = json.loads(json.dumps(codec.get_config()))
    assert config["forecaster"] == {"name": "flow", "digest": registered}
    assert config["coordinates"]["start"] == "2020-02-28T18:00:00"
    again = AESZ.from_config(config)
    assert again == codec == pickle.loads(pickle.dumps(codec)) and hash(again) == hash(codec)
    stream = again.encode(states)
    assert stream == coded(states)
    foundation.unregister(registered)
    cold = AESZ.from_config(config)  # opens without the model
    with pytest.raises(errors.ModelNotFoundError, match=registered):
        cold.decode(stream)
    with pytest.raises(errors.ModelNotFoundError, match=registered):
        cold.encode(states)
    with pytest.raises(errors.ModelNotFoundError, match="none with the name 'flow'"):
        AESZ(0.2, forecaster="flow", coordinates=PLACE)
    assert "forecaster" not in AESZ(0.2).get_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinates": PLACE}, "one without the other"),
        ({"forecaster": {"name": "x", "digest": "y"}, "coordinates": PLACE}, "digest of 64"),
        ({"forecaster": {"name": "x"}, "coordinates": PLACE}, "found 'x', expected one of none, nearest"),
        ({"forecaster": {"name": "x", "file": "y"}, "coordinates": PLACE}, "name and digest"),
        ({"forecaster": "nearest", "coordinates": PLACE}, "one without the other"),
        (
            {"forecaster": {"name": "x", "digest": "ab" * 32}, "coordinates": {"channels": ["t"]}},
            "an object with channels",
        ),
    ],
)
def test_configurations_that_make_no_sense(options, message):
    with pytest.raises(errors.InvalidConfigError, match=message):
        AESZ(0.2, **options)


def test_reading_elsewhere_needs_the_file_alone(tmp_path, states, stream):
    """Another process, which knows the model through its TOML file."""
    (tmp_path / "flow_of_test.py").write_text(
        "import numpy as np\n"
        "def flow(states):\n"
        f"    turn = np.exp(-15j * np.pi * np.arange({COLUMNS} // 2 + 1) / {COLUMNS})\n"
        f"    return (0.97 * np.fft.irfft(np.fft.rfft(states, axis=-1) * turn, {COLUMNS}, axis=-1)).astype('f4')\n"
    )
    (tmp_path / "models.toml").write_text(
        '[flow]\nadapter = "stepping"\nfunction = "flow_of_test:flow"\nversion = "1"\nchannels = ["2t", "t"]\ntimestep = 21600\n'
    )
    (tmp_path / "stream").write_bytes(stream)
    code = (
        "import sys, pathlib; from aesz_codec import AESZ; x = AESZ(0.2).decode(pathlib.Path('stream').read_bytes()); "
        "sys.stdout.buffer.write(x.tobytes())"
    )
    environment = {**os.environ, "AESZ_FOUNDATION": "models.toml", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(tmp_path), env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == decoded(stream).tobytes()
