"""The real classes of microsoft-aurora, tiny and with random weights, through the real loading of a checkpoint."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aesz_codec import encoding_for, errors, foundation, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.coordinates import Coordinates

try:
    version("microsoft-aurora")
except PackageNotFoundError:
    pytest.skip(
        "needs the package microsoft-aurora: pip install 'aesz-codec[aurora]'", allow_module_level=True
    )

from aesz_codec.adapters.aurora import Aurora, _package
from aesz_codec.predictors.verified import Decoded, Encoded, Forecast
from aesz_codec.stream import Method, Stream

torch = pytest.importorskip("torch")

ROWS, COLUMNS = 17, 32
TINY = {
    "embed_dim": 16,
    "num_heads": 2,
    "encoder_depths": (1, 1, 1),
    "encoder_num_heads": (1, 2, 4),
    "decoder_depths": (1, 1, 1),
    "decoder_num_heads": (4, 2, 1),
}
LEVELS = (500, 850)
SURFACE, UPPER = ("2t", "10u", "10v", "msl"), ("z", "u", "v", "t", "q")
CHANNELS = (*SURFACE, *(f"{name}@{level}" for name in UPPER for level in LEVELS))
PLACE = Coordinates(CHANNELS, "2020-06-01T06:00", 21600, (90.0, -180 / (ROWS - 1)), (0.0, 360 / COLUMNS))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def package():
    return _package()[1]


@pytest.fixture(scope="module")
def checkpoint(package, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("aurora") / "tiny.ckpt"
    torch.save(package.AuroraPretrained(**TINY).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def static() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.random((ROWS, COLUMNS)).astype("f4") for name in ("lsm", "z", "slt")}


@pytest.fixture(scope="module")
def model(checkpoint, static) -> Aurora:
    return Aurora(checkpoint, static, configuration=TINY)


@pytest.fixture(scope="module")
def states(package) -> np.ndarray:
    """Six states that look like the atmosphere to the model's normalisation, shape (time, channel, latitude, longitude)."""
    from aurora.normalisation import locations, scales

    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    fields = []
    for t in range(6):
        for i, channel in enumerate(CHANNELS):
            key = channel.replace("@", "_")
            wave = np.sin(2 * np.pi * (x / COLUMNS * (1 + i % 3) + t / 9) + y / 5)
            fields.append(locations[key] + scales[key] * wave)
    return np.stack(fields).reshape(6, len(CHANNELS), ROWS, COLUMNS).astype("f4")


def test_a_step_is_that_of_the_package(package, checkpoint, static, model, states):
    import datetime

    own = package.AuroraPretrained(**TINY, autocast=False)
    own.load_checkpoint_local(str(checkpoint))
    own.eval()
    upper = {
        name: torch.from_numpy(states[None, :2, 4 + 2 * i : 6 + 2 * i].copy()) for i, name in enumerate(UPPER)
    }
    batch = package.Batch(
        surf_vars={name: torch.from_numpy(states[None, :2, i].copy()) for i, name in enumerate(SURFACE)},
        static_vars={name: torch.from_numpy(field) for name, field in static.items()},
        atmos_vars=upper,
        metadata=package.Metadata(
            lat=torch.linspace(90, -90, ROWS),
            lon=torch.linspace(0, 360, COLUMNS + 1)[:-1],
            time=(datetime.datetime(2020, 6, 1, 12),),
            atmos_levels=LEVELS,
        ),
    )
    with torch.inference_mode():
        expected = own(batch)
    found = model.step(states[:2], PLACE.at(2))
    assert found.shape == states[0].shape and found.dtype == np.float32
    np.testing.assert_allclose(found[0, :16], expected.surf_vars["2t"][0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[12:14, :16], expected.atmos_vars["q"][0, 0], rtol=1e-6, atol=1e-9)
    assert np.array_equal(found[:, 16], states[1, :, 16])  # the last row fills no patch
    again = model.step(states[:2], PLACE.at(2), other=True)
    assert 0 < np.abs(again - found).max() < 0.1 and np.array_equal(
        found, model.step(states[:2], PLACE.at(2))
    )


def test_time_and_place_reach_the_model(model, states):
    one = model.step(states[:2], PLACE.at(2))
    later = model.step(states[:2], PLACE.at(700))
    assert np.abs(one - later)[0, :16].max() > 1e-4
    rows, columns = slice(None, None, -1), np.roll(np.arange(COLUMNS), COLUMNS // 2)
    turned = Coordinates(CHANNELS, "2020-06-01T06:00", 21600, (-90, 180 / (ROWS - 1)), (-180, 360 / COLUMNS))
    static = {key: field[rows][:, columns] for key, field in model._static.items()}
    other = Aurora.__new__(Aurora)
    other.__dict__ = {**model.__dict__, "_static": static}
    other.check(turned, (ROWS, COLUMNS))
    found = other.step(np.ascontiguousarray(states[:2, :, rows][..., columns]), turned.at(2))
    np.testing.assert_allclose(
        found[:, rows][..., np.argsort(columns)][:, :16], one[:, :16], rtol=1e-5, atol=1e-5
    )


def test_a_forecast_through_the_verified_profile(model, states):
    shape = (6 * len(CHANNELS), ROWS, COLUMNS)
    frames = states.reshape(shape)

    def asked(end):
        decoded = np.full(shape, np.nan, "f4")
        told = []
        for frame in range(len(frames)):
            told.append(end.predict(frame, decoded))
            decoded[frame] = frames[frame]
        return told

    first = Encoded(model, PLACE, frames, None, 1e-5, bytes)
    told = asked(first)
    assert not first.unstable
    assert [x is None for x in told] == [True] * 2 * len(CHANNELS) + [False] * 4 * len(CHANNELS)

    class InFloat64:
        """A machine whose kernels round otherwise."""

        def __getattr__(self, name):
            return getattr(model, name)

        def step(self, states, coordinates, *, other=False):
            return model.step(states, coordinates, other=True)

    section = first.section().pack()
    for other in (model, InFloat64()):
        end = Decoded(Forecast.unpack(section, shape), other, shape, bytes)
        assert all(
            np.array_equal(a, b)
            for a, b in zip(asked(end), told, strict=True)
            if a is not None or b is not None
        )
        end.finish()


def test_half_precision_and_noise_are_refused(checkpoint, static):
    with pytest.raises(errors.InvalidConfigError, match="half precision"):
        Aurora(checkpoint, static, configuration={**TINY, "autocast": True})
    with pytest.raises(errors.InvalidConfigError, match="random noise"):
        Aurora(checkpoint, static, model="AuroraV1p5Ensemble", configuration=TINY)


@pytest.mark.parametrize(
    ("place", "grid", "message"),
    [
        ({"channels": ("2m", *CHANNELS[1:])}, (ROWS, COLUMNS), "found '2m', expected 2t, 10u"),
        ({"channels": CHANNELS[1:]}, (ROWS, COLUMNS), "found no 2t"),
        ({"channels": (*CHANNELS[:-1], "q@925")}, (ROWS, COLUMNS), "found no z@925"),
        ({"channels": (*CHANNELS[:-1], "q@851")}, (ROWS, COLUMNS), "'q@851'.*levels 50, 100"),
        ({"channels": (*SURFACE, "lsm", *CHANNELS[5:])}, (ROWS, COLUMNS), "found 'lsm'"),
        ({"channels": SURFACE}, (ROWS, COLUMNS), "all at the same levels"),
        ({"step": 3600}, (ROWS, COLUMNS), "found 3600 s, expected 21600 s"),
        ({}, (ROWS, 30), "multiples of 4"),
        ({}, (13, COLUMNS), r"static variable 'lsm' of aurora: found shape \(17, 32\), expected \(13, 32\)"),
        ({"latitude": (95.0, -11.25)}, (ROWS, COLUMNS), "latitudes 95 to"),
    ],
)
def test_states_that_it_is_not_for(model, place, grid, message):
    given = {
        "channels": CHANNELS,
        "start": 0,
        "step": 21600,
        "latitude": (90.0, -11.25),
        "longitude": (0.0, 11.25),
    }
    with pytest.raises(errors.ModelInputError, match=message):
        model.check(Coordinates(**{**given, **place}), grid)


def test_missing_and_other_checkpoints(tmp_path, checkpoint, static, model, monkeypatch):
    right = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    gone = checkpoint.parent / "aurora-0.25.ckpt"
    with pytest.raises(
        errors.ModelNotFoundError, match=rf"no readable file aurora-0.25.ckpt in {gone.parent}.*{right}"
    ):
        Aurora(gone, static, sha256=right)
    with pytest.raises(errors.ModelDigestError, match=rf"{checkpoint}: found SHA-256 {right}, expected abc"):
        Aurora(checkpoint, static, sha256="abc")
    with pytest.raises(
        errors.InvalidModelError, match=r"tiny.ckpt: found .*expected weights of AuroraPretrained"
    ):
        Aurora(checkpoint, static, configuration={**TINY, "embed_dim": 32})
    with pytest.raises(errors.InvalidConfigError, match="found no slt"):
        Aurora(checkpoint, {"lsm": static["lsm"], "z": static["z"]}, configuration=TINY)
    with pytest.raises(
        errors.InvalidConfigError, match="'AuroraHuge', expected one of Aurora, AuroraPretrained"
    ):
        Aurora(checkpoint, static, model="AuroraHuge")

    np.savez(tmp_path / "static.npz", **static)
    lists = "\n".join(
        f"{key} = {[*value] if isinstance(value, tuple) else value}" for key, value in TINY.items()
    )
    (tmp_path / "models.toml").write_text(
        f'[tiny]\nadapter = "aurora"\ncheckpoint = "{checkpoint}"\nstatic = "{tmp_path / "static.npz"}"\n'
        f'digest = "{model.digest}"\n[tiny.configuration]\n{lists}\n'
    )
    monkeypatch.setenv("AESZ_FOUNDATION", str(tmp_path / "models.toml"))
    assert foundation.get(model.digest).levels == model.levels
    other = Aurora(checkpoint, {**static, "slt": static["slt"] + 1}, configuration=TINY)
    assert other.digest != model.digest
    with pytest.raises(errors.ModelNotFoundError, match=rf"none with the digest {other.digest}.*models.toml"):
        foundation.get(other.digest)


def test_streams_and_their_model_free_copies(model, states):
    """Random weights save nothing, so the candidate is asked for; the encoder itself leaves it."""
    bound = ErrorBound("abs", 1.0)
    small = (states / np.abs(states).max(axis=(0, 2, 3), keepdims=True) * 100).astype("f4")
    forecasting = foundation.Forecasting(Scaled(model, states), PLACE)
    blank = Stream(small.dtype, small.shape, "abs", 1.0, 0.0, Method.LOSSLESS)
    stream = next(pipeline._forecast(small, bound, blank, "default", forecasting)).to_bytes()
    assert pipeline.describe(stream).foundation == model.digest

    def find(digest):
        return {model.digest: forecasting.model}[digest]

    back = pipeline.decode(stream, find_forecaster=find)
    assert np.abs(back - small).max() <= 1.0
    free = pipeline.materialise(stream, find_forecaster=find)
    assert pipeline.describe(free).foundation is None and pipeline.decode(free).tobytes() == back.tobytes()
    plain = pipeline.encode(small, bound)
    assert len(pipeline.encode(small, bound, forecast=forecasting)) <= len(plain)


def test_a_dataset_and_its_store(tmp_path, model, states):
    """What `encoding_for` reads off a dataset is what the model wants; a store names it, whether a chunk needs it or not."""
    ds = xr.Dataset(
        {"state": (("time", "channel", "lat", "lon"), states[:3])},
        {
            "time": np.datetime64("2020-06-01T06", "ns") + np.arange(3) * np.timedelta64(6, "h"),
            "channel": list(CHANNELS),
            "lat": PLACE.latitudes(ROWS),
            "lon": PLACE.longitudes(COLUMNS),
        },
    )
    encoding = encoding_for(ds, 1e-3, "range_rel", forecaster={"state": model})
    configuration = encoding["state"]["serializer"]["configuration"]
    assert configuration["forecaster"] == {"name": model.name, "digest": model.digest}
    assert Coordinates.from_json(configuration["coordinates"]) == PLACE
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding)
    back = xr.open_zarr(tmp_path / "a.zarr").state.values
    assert np.abs(back - ds.state.values).max() <= configuration["error_bound"]
    ds["channel"] = [*CHANNELS[:-1], "q@851"]
    with pytest.raises(errors.ModelInputError, match="state: channels of .*found 'q@851'"):
        encoding_for(ds, 1.0, forecaster={"state": model})
    foundation.unregister(model.digest)


class Scaled:
    """The model for states whose channels were brought to one scale."""

    def __init__(self, model, states):
        self._model, self._scale = model, np.abs(states).max(axis=(0, 2, 3))[:, None, None] / np.float32(100)

    def __getattr__(self, name):
        return getattr(self._model, name)

    def step(self, states, coordinates, *, other=False):
        return self._model.step(states * self._scale, coordinates, other=other) / self._scale
