"""Which forecaster frames refer to is the user's choice: none, one of this package, one of another."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from aesz_codec import AESZ, AESZCodec, encoding_for, errors, foundation, pipeline
from aesz_codec.adapters.stepping import Stepping
from aesz_codec.bounds import ErrorBound
from aesz_codec.coordinates import Coordinates
from aesz_codec.predictors import external
from aesz_codec.predictors.external import EXTERNAL, register, unregister
from aesz_codec.predictors.forecasts import Motion
from aesz_codec.zarr_codec import write_states

from .acme_weather import Drift
from .test_frames import changing, drifting

BOUND = ErrorBound("abs", 0.02)
OWN = ("nearest", "least-squares", "motion")


@pytest.fixture
def drift():
    yield register(Drift)
    unregister(Drift.name)


@pytest.fixture(scope="module")
def moving():
    return drifting(8)


def series(**values):
    coords = {
        "time": np.datetime64("2020-02-28T18", "ns") + np.arange(8) * np.timedelta64(6, "h"),
        "lat": np.linspace(60, 36.5, 48),
        "lon": np.arange(56) * 0.5,
    }
    return xr.Dataset({name: (("time", "lat", "lon"), array) for name, array in values.items()}, coords)


def used(codec, array):
    """Return the forecaster of what a codec writes, None if frames do not refer; the bound is kept."""
    stream = codec.encode(array)
    assert np.abs(codec.decode(stream) - array).max() <= codec.error_bound
    info = pipeline.describe(stream)
    return info.parameters["forecaster"] if info.predictor == "frames" else None


# ---- the choice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["default", "max"])
@pytest.mark.parametrize("name", OWN)
def test_one_forecaster_alone(moving, name, effort):
    """`default` would never try motion, and `max` would take it here."""
    for array in (moving, changing(12)):
        found = used(AESZ(0.02, effort=effort, forecaster=name), array)
        assert found in (None, name.replace("-", " "))
    if name == "motion":
        assert used(AESZ(0.02, effort=effort, forecaster=name), moving) == "motion"


def test_none_at_all(moving):
    assert used(AESZ(0.02, effort="max"), moving) == "motion"
    assert used(AESZ(0.02, effort="max", forecaster="none"), moving) is None


def test_fast_has_no_frames(moving):
    assert AESZ(0.02, effort="fast", forecaster="motion").encode(moving) == AESZ(0.02, effort="fast").encode(
        moving
    )


def test_configuration(drift):
    for given, name in ((Motion, "motion"), ("none", "none"), (Drift, drift), (drift, drift)):
        codec = AESZ(0.02, forecaster=given)
        assert codec.get_config()["forecaster"] == {"name": name}
        assert AESZ.from_config(codec.get_config()) == codec == pickle.loads(pickle.dumps(codec))
        assert repr(codec) == f"AESZ(error_bound=0.02, mode='abs', forecaster={name!r})"
        assert AESZCodec.from_dict(AESZCodec(0.02, forecaster=given).to_dict()).forecaster.name == name
    assert "forecaster" not in AESZ(0.02).get_config()


@pytest.mark.parametrize("given", ["Motion", "motoin", "acme-weather:drift"])
def test_unknown_names(given, moving):
    known = f"{given!r}, expected one of none, nearest, least-squares, motion"
    with pytest.raises(errors.ModelNotFoundError, match=f"{known}, or a foundation model: found none with"):
        AESZ(0.02, forecaster=given)
    with pytest.raises(errors.ModelNotFoundError, match=known):
        encoding_for(series(t=moving), 0.02, forecaster={"t": given})
    with pytest.raises(errors.InvalidConfigError, match="a forecaster for 'u', which is no data variable"):
        encoding_for(series(t=moving), 0.02, forecaster={"u": "motion"})


@pytest.mark.parametrize(
    "given", [{"name": "motoin"}, {"name": 5}, {"name": "a" * 99 + ":b"}, {"nom": "x"}, 5]
)
def test_configurations_that_make_no_sense(given):
    with pytest.raises(errors.InvalidConfigError, match="forecaster|model"):
        AESZ(0.02, forecaster=given)


def test_datasets(moving, drift):
    ds = series(t=moving, u=moving)
    store = {}
    ds.to_zarr(
        store, encoding=encoding_for(ds, 0.02, forecaster={"t": "motion", "u": drift}), consolidated=False
    )
    for name, expected in (("t", "motion"), ("u", drift)):
        (chunk,) = [value for key, value in store.items() if key.startswith(f"{name}/c/")]
        assert pipeline.describe(chunk.to_bytes()).parameters["forecaster"] == expected
    for name, array in xr.open_zarr(store, consolidated=False).items():
        assert np.abs(array.values - moving).max() <= 0.02, name
    (encoding,) = encoding_for(ds[["t"]], 0.02, forecaster="none", zarr_format=2)["t"]["compressors"]
    assert encoding["forecaster"] == {"name": "none"}
    assert "forecaster" not in encoding_for(ds, 0.02)["t"]["serializer"]["configuration"]


# ---- those of other packages -----------------------------------------------------------------------------------


def test_another_packages_forecaster_pays(moving, drift):
    codec = AESZ(0.02, forecaster=Drift)
    assert used(codec, moving) == drift
    assert len(codec.encode(moving)) < 0.9 * len(AESZ(0.02, effort="default").encode(moving))
    assert external.names() == (*OWN, drift)


def test_it_is_never_used_unasked(moving, drift):
    assert used(AESZ(0.02, effort="max"), moving) == "motion"


def test_without_it_a_stream_is_described_and_not_decoded(moving):
    stream = AESZ(0.02, forecaster=Drift).encode(moving)
    cold = AESZ.from_config(AESZ(0.02, forecaster=Drift).get_config())
    unregister(Drift.name)
    assert pipeline.describe(stream).parameters["forecaster"] == "acme-weather:drift"
    missing = (
        "'acme-weather:drift'.*one of nearest, least-squares, motion; install the package 'acme-weather'"
    )
    for decode in (pipeline.decode, cold.decode):
        with pytest.raises(errors.ModelNotFoundError, match=missing):
            decode(stream)
    with pytest.raises(errors.ModelNotFoundError, match=missing):
        cold.encode(moving)


def installed(folder: Path, target: str = "acme_weather:Drift") -> dict[str, str]:
    """Put the package into a folder; return the environment of a process that finds it."""
    shutil.copy(Path(__file__).with_name("acme_weather.py"), folder)
    about = folder / "acme_weather-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-weather\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{external.GROUP}]\nacme-weather:drift = {target}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_archives_open_without_it_and_are_read_with_it(tmp_path, moving, drift):
    """In other processes: the entry point is all that a reader needs."""
    ds = series(t=moving, still=np.zeros_like(moving))
    store = tmp_path / "a.zarr"
    ds.to_zarr(store, encoding=encoding_for(ds, 0.02, forecaster=Drift))
    code = (
        "import sys, xarray; ds = xarray.open_zarr(sys.argv[1]); print(float(ds.still.sum())); "
        "print(float(ds.t.astype('f8').sum()))"
    )
    cold = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True)
    assert cold.stdout == "0.0\n" and "install the package 'acme-weather'" in cold.stderr
    (tmp_path / "site").mkdir()
    warm = subprocess.run(
        [sys.executable, "-c", code, str(store)],
        capture_output=True,
        text=True,
        env=installed(tmp_path / "site"),
    )
    there = float(xr.open_zarr(store).t.astype("f8").sum())
    assert warm.stdout.split() == ["0.0", str(there)], warm.stderr


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch, moving):
    stream = AESZ(0.02, forecaster=Drift).encode(moving)
    unregister(Drift.name)
    installed(tmp_path, "acme_weather:Nothing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        errors.InvalidConfigError, match=r"cannot be imported \(AttributeError.*mend the package"
    ):
        pipeline.decode(stream)
    assert pipeline.describe(stream).predictor == "frames"


def test_what_cannot_be_registered():
    class Nameless(Drift):
        name = "drift"

    class Numbered(Drift):
        tag = 3

    for wrong, message in (
        (Nameless, f"name 'drift', expected tag {EXTERNAL} and a name such as 'acme-weather:drift'"),
        (Numbered, "tag 3"),
        (Drift(), "a class"),
        (int, "without tag, name, every, fit, predict, pack, unpack"),
    ):
        with pytest.raises(errors.InvalidConfigError, match=message):
            register(wrong)


@pytest.mark.parametrize(
    "change", [lambda x: x[:-1], lambda x: x[..., None, :5], lambda x: None, np.float64, str]
)
def test_predictions_that_are_no_frames(moving, drift, change):
    class Wrong(Drift):
        def predict(self, step, plane, source):
            return change(super().predict(step, plane, source))

        def fit(self, examples, tolerance):
            return self

    with pytest.raises(
        errors.ModelInputError, match="weather:drift': prediction: found .* expected float32, shape .48, 28."
    ):
        AESZ(0.02, forecaster=Wrong).encode(moving)


# ---- foundation models -----------------------------------------------------------------------------------------


@pytest.fixture
def flow():
    model = Stepping(
        lambda state: np.roll(state, 1, axis=-1), name="flow", version="1", channels=("t",), timestep=21600
    )
    yield model
    foundation.unregister(model.digest)


def test_coordinates_come_from_the_dataset(flow, moving):
    ds = series(t=moving)
    (entry,) = encoding_for(ds, 0.02, forecaster=flow, chunks={"time": 4}).values()
    configuration = entry["serializer"]["configuration"]
    assert configuration["forecaster"] == {"name": "flow", "digest": flow.digest}
    assert configuration["coordinates"] == {
        "channels": ["t"],
        "start": "2020-02-28T18:00:00",
        "step": 21600,
        "latitude": [60.0, -0.5],
        "longitude": [0.0, 0.5],
    }
    ds.to_zarr(store := {}, encoding={"t": entry}, consolidated=False)
    assert np.abs(xr.open_zarr(store, consolidated=False).t.values - moving).max() <= 0.02
    assert (
        "coordinates"
        not in encoding_for(ds, mode="lossless", forecaster=flow)["t"]["serializer"]["configuration"]
    )


def test_variables_that_a_foundation_model_is_not_for(flow, moving):
    ds = series(t=moving, u=moving)
    with pytest.raises(errors.ModelInputError, match="u: .*found 'u', expected t"):
        encoding_for(ds, 0.02, forecaster=flow)
    assert "coordinates" in encoding_for(ds, 0.02, forecaster={"t": flow})["t"]["serializer"]["configuration"]
    uneven = ds.isel(time=[0, 1, 3])
    with pytest.raises(errors.InvalidConfigError, match="t: time: found steps of 21600, 43200 s"):
        encoding_for(uneven, 0.02, forecaster={"t": flow})
    with pytest.raises(errors.ModelInputError, match="t: time step for flow: found 43200 s"):
        encoding_for(ds.isel(time=[0, 2, 4]), 0.02, forecaster={"t": flow})
    with pytest.raises(errors.InvalidConfigError, match="t: chunks: found .*whole states, of shape .48, 56."):
        encoding_for(ds, 0.02, forecaster={"t": flow}, chunks=(4, 24, 56))
    single = encoding_for(
        ds.isel(time=[0]), 0.02, forecaster=flow, chunks={"time": 1}
    )  # one time has no step
    assert "coordinates" not in single["t"]["serializer"]["configuration"]
    flat = ds.assign(mean=ds.t.mean("time"))
    assert (
        "forecaster"
        not in encoding_for(flat[["mean"]], 0.02, forecaster=flow)["mean"]["serializer"]["configuration"]
    )
    with pytest.raises(errors.InvalidConfigError, match=r"mean: array: found dimensions"):
        encoding_for(flat, 0.02, forecaster={"mean": flow})


def test_every_chunk_with_its_own_time(tmp_path):
    """`to_zarr` makes the store, `write_states` fills it: the function sees what time it is."""
    rng = np.random.default_rng(0)
    place = Coordinates(("t",), "2020-02-28T18", 21600, (60.0, -0.5), (0.0, 0.5))
    fields = {place.at(k).start: rng.normal(size=(1, 48, 56)).astype("f4") for k in range(8)}
    model = Stepping(
        lambda state, at: fields[at.start], name="oracle", version="1", timestep=21600, with_coordinates=True
    )
    ds = series(t=np.concatenate([*fields.values()]))
    store = tmp_path / "a.zarr"
    encoding = encoding_for(ds, 0.02, forecaster={"t": model}, chunks={"time": 4})
    ds.chunk(time=4).to_zarr(store, encoding=encoding, compute=False)
    write_states(zarr.open_array(store, path="t"), ds.t)
    assert np.abs(xr.open_zarr(store).t.values - ds.t.values).max() <= 0.02
    told = (store / "t/c/0/0/0").stat().st_size, (store / "t/c/1/0/0").stat().st_size
    ds.to_zarr(tmp_path / "b.zarr", encoding=encoding)
    told_wrong = (tmp_path / "b.zarr/t/c/1/0/0").stat().st_size
    assert told[1] < 1.1 * told[0] < 0.5 * told_wrong
    foundation.unregister(model.digest)
