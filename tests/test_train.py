"""Training of packs, from files to a model that saves bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("torch")

from aesz_codec import pipeline, zoo
from aesz_codec.bounds import ErrorBound
from aesz_codec.cli import main
from aesz_codec.errors import InvalidConfigError, InvalidModelError
from aesz_codec.packs import Pack
from aesz_codec.train.training import train


def waves(seed: int, shape: tuple[int, ...] = (24, 48, 64)) -> np.ndarray:
    """Travelling waves with a little noise: what interpolation leaves over has structure to learn."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    field = np.zeros(shape)
    for _ in range(12):
        kx, ky, w, phase = rng.normal(0, 0.25), rng.normal(0, 0.25), rng.normal(0, 0.2), rng.uniform(0, 6.3)
        field += np.sin(kx * x + ky * y + w * t + phase)
    return (field + 0.01 * rng.normal(size=shape)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    paths = []
    for seed in range(3):
        paths.append(folder / f"waves{seed}.nc")
        xr.Dataset(
            {"waves": (("t", "y", "x"), waves(seed)), "flag": (("t",), np.zeros(24, np.int8))}
        ).to_netcdf(paths[-1])
    return paths


def settings(**more):
    return {
        "id": "waves",
        "licence": "CC0-1.0",
        "steps": 160,
        "hidden": (12,),
        "bounds": [ErrorBound("range_rel", 1e-2)],
        **more,
    }


@pytest.fixture(scope="module")
def report(files, tmp_path_factory):
    return train(
        "interpolation",
        files[:2],
        tmp_path_factory.mktemp("packs") / "waves.aeszpack",
        validate=files[2:],
        **settings(),
    )


def test_a_trained_model_saves_bytes_on_data_it_has_not_seen(report):
    assert report.judged and all(j.with_model < j.without for j in report.judged)
    assert report.break_even < 100
    assert set(report.slots) == set(range(13))
    array = waves(9)
    bound = ErrorBound("abs", 0.4)
    plain, learned = pipeline.encode(array, bound), pipeline.encode(array, bound, models=(report.pack,))
    assert len(learned) < len(plain)
    decoded = pipeline.decode(learned, find_model=lambda digest: report.pack)
    assert np.abs(decoded.astype(np.float64) - array).max() <= 0.4


def test_the_pack_says_what_it_was_trained_on_and_what_it_saved(report):
    pack = Pack.from_file(report.path)
    assert pack.digest == report.pack.digest
    assert list(pack.manifest["training"]["data"]) == ["waves0.nc", "waves1.nc"]
    assert pack.manifest["rates"][0]["data"] == "waves2.nc:waves"


def test_the_same_data_and_seed_give_the_same_pack(files, report, tmp_path):
    again = train("interpolation", files[:2], tmp_path / "again.aeszpack", validate=files[2:], **settings())
    assert again.pack.digest == report.pack.digest


def test_an_interrupted_run_goes_on(files, tmp_path, report):
    out = tmp_path / "waves.aeszpack"
    done = []

    def stop(what, steps, total):
        done.append((what, steps))
        if what == "training" and steps >= 240:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("interpolation", files[:2], out, validate=files[2:], progress=stop, **settings())
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["waves.aeszpack.partial"]
    trained = []
    result = train(
        "interpolation",
        files[:2],
        out,
        validate=files[2:],
        progress=lambda what, steps, total: trained.append(steps) if what == "training" else None,
        **settings(),
    )
    assert min(trained) > 160, "networks 0 and 1 were trained again"
    assert result.pack.digest == report.pack.digest
    assert [p.name for p in tmp_path.iterdir()] == ["waves.aeszpack"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kind": "horoscope"}, InvalidConfigError, "'interpolation'"),
        ({"variables": ["t2m"]}, InvalidConfigError, "t2m"),
        ({"bounds": [ErrorBound("pw_rel", 1e-2)]}, InvalidConfigError, "abs or range_rel"),
    ],
)
def test_bad_requests_are_refused(files, tmp_path, change, error, text):
    options = settings(**{k: v for k, v in change.items() if k != "kind"})
    with pytest.raises(error, match=text):
        train(change.get("kind", "interpolation"), files[:1], tmp_path / "x.aeszpack", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, 3.5])
def test_nothing_to_learn_from(tmp_path, value):
    path = tmp_path / "flat.nc"
    xr.Dataset({"v": (("y", "x"), np.full((40, 40), value, np.float32))}).to_netcdf(path)
    with pytest.raises(InvalidModelError, match="NaN, or constant"):
        train("interpolation", [path], tmp_path / "x.aeszpack", **settings())
    assert [p.name for p in tmp_path.iterdir()] == ["flat.nc"]


def test_the_command_trains_and_tells(files, tmp_path, capsys):
    arguments = [
        "train",
        "interpolation",
        str(files[0]),
        "--validate",
        str(files[2]),
        "--out",
        str(tmp_path / "w.aeszpack"),
    ]
    assert (
        main([*arguments, "--id", "w", "--licence", "CC0-1.0", "--steps", "40", "--bound", "range_rel=1e-2"])
        == 0
    )
    out = capsys.readouterr().out
    assert "waves2.nc:waves" in out and "digest" in out
    assert main([*arguments, "--id", "w", "--licence", "CC0-1.0", "--bound", "1e-2"]) == 2
    assert "range_rel=VALUE" in capsys.readouterr().err


def test_nothing_but_training_imports_torch():
    code = (
        "import sys, aesz_codec, aesz_codec.cli, aesz_codec.zoo, aesz_codec.packs, aesz_codec.nets, aesz_codec.codec, "
        "aesz_codec.zarr_codec, aesz_codec.conversion, aesz_codec.train.packing; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_basis_from_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    patterns = rng.normal(0, 1, (4, 10, 14))
    for name in ("past", "future"):
        field = 280 + np.tensordot(rng.normal(0, 3, (200, 4)), patterns, 1)
        xr.Dataset(
            {
                "t2m": (
                    ("time", "latitude", "longitude"),
                    field.astype("f4"),
                    {"standard_name": "air_temperature", "units": "K"},
                ),
                "other": (("time", "latitude", "longitude"), field.astype("f4")),
            },
            {"latitude": 60.0 - np.arange(10), "longitude": np.arange(14.0)},
        ).to_netcdf(tmp_path / f"{name}.nc")
    out = tmp_path / "basis.aeszpack"
    given = ["--out", str(out), "--id", "t2m-here", "--licence", "CC0-1.0", "--bound", "abs=0.1"]
    assert main(["train", "basis", str(tmp_path / "past.nc"), *given]) == 2
    assert "one for a basis" in capsys.readouterr().err and not out.exists()
    more = ["--variable", "t2m", "--modes", "6", "--validate", str(tmp_path / "future.nc")]
    assert main(["train", "basis", str(tmp_path / "past.nc"), *given, *more]) == 0
    assert "Pays for itself" in capsys.readouterr().out
    pack = Pack.from_file(out)
    (variable,) = pack.manifest["variables"]
    assert dict(variable) == {"short_name": "t2m", "standard_name": "air_temperature", "units": "K"}
    assert pack.manifest["grid"] == zoo.grid_hash(60.0 - np.arange(10), np.arange(14.0))
    assert all(row["with"] < 0.7 * row["without"] for row in pack.manifest["rates"])


@pytest.mark.parametrize("calendar", ["standard", "noleap", None])
def test_a_cycle_from_files(tmp_path, capsys, calendar):
    if calendar == "noleap":
        pytest.importorskip("cftime")
    rng = np.random.default_rng(0)
    land = rng.uniform(0, 9, (8, 10))
    for name, hours in (("past", np.arange(0, 720, 3)), ("future", np.arange(9, 345, 3))):
        field = (
            280
            + land * np.sin(2 * np.pi * hours / 24)[:, None, None]
            + rng.normal(0, 0.4, (len(hours), 8, 10))
        )
        data = xr.Dataset({"t2m": (("time", "lat", "lon"), field.astype("f4"), {"units": "K"})})
        data["other"] = data["t2m"][0]
        if calendar:
            units = {
                "units": f"hours since {'2001' if name == 'past' else '2003'}-03-01",
                "calendar": calendar,
            }
            data["time"] = ("time", hours, units)
        data.to_netcdf(tmp_path / f"{name}.nc")
    out = tmp_path / "cycle.aeszpack"
    command = ["train", "cycle", str(tmp_path / "past.nc"), "--out", str(out), "--id", "t2m-here"]
    command += ["--licence", "CC0-1.0", "--bound", "abs=0.25", "--validate", str(tmp_path / "future.nc")]
    if calendar is None:
        assert main(command) == 2 and "--per-day" in capsys.readouterr().err and not out.exists()
        assert main([*command, "--per-day", "1441"]) == 2 and not out.exists()
        command += ["--per-day", "8"]
    assert main(command) == 0
    assert "Pays for itself" in capsys.readouterr().out
    pack = Pack.from_file(out)
    assert pack.kind == "cycle" and pack.tensors["hours"].shape == (8, 5)
    (rates,) = (row for row in pack.manifest["rates"] if row["data"].endswith(":t2m"))
    assert rates["with"] < 0.7 * rates["without"]


def test_a_forecaster_from_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    share, mean = rng.uniform(0.1, 0.8, (6, 9)), rng.normal(1e5, 500, (6, 9))
    for name, frames in (("past", 1500), ("future", 200)):
        values, field = np.zeros((6, 9)), np.empty((frames, 6, 9))
        for t in range(frames):
            values = share * np.roll(values, 1, 1) + (0.9 - share) * values + rng.normal(0, 20, (6, 1))
            field[t] = mean + values
        field[rng.random(field.shape) < 0.001] = np.nan
        xr.Dataset(
            {"msl": (("time", "lat", "lon"), field.astype("f4"), {"units": "Pa"})},
            {"lat": 60.0 - np.arange(6), "lon": np.arange(9.0)},
        ).to_netcdf(tmp_path / f"{name}.nc")
    out = tmp_path / "msl.aeszpack"
    command = ["train", "forecaster", str(tmp_path / "past.nc"), "--out", str(out), "--licence", "CC0-1.0"]
    command += ["--id", "msl-here", "--variable", "msl", "--validate", str(tmp_path / "future.nc")]
    assert main([*command, "--bound", "abs=2", "--bound", "range_rel=1e-3"]) == 0
    assert "Pays for itself" in capsys.readouterr().out
    pack = Pack.from_file(out)
    assert pack.kind == "forecaster" and pack.manifest["grid"] == zoo.grid_hash(
        60.0 - np.arange(6), np.arange(9.0)
    )
    assert len(pack.manifest["rates"]) == 2
    assert all(row["with"] < 0.9 * row["without"] for row in pack.manifest["rates"])
    assert main([*command[:2], str(tmp_path / "future.nc"), *command[3:], "--bound", "abs=2"]) == 2
    assert "frames with" in capsys.readouterr().err
