"""The command line: what it prints, where, and its exit status."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from aesz_codec.cli import main

DIMS = ("time", "lat", "lon")
COMMAND = [sys.executable, "-c", "import sys; from aesz_codec.cli import main; sys.exit(main())"]


def write_source(path, frames=10):
    t, y, x = np.meshgrid(np.arange(frames), np.arange(12), np.arange(16), indexing="ij")
    field = (280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3)).astype("float32")
    data = xr.Dataset(
        {
            "t2m": (DIMS, field, {"units": "K"}),
            "msl": (DIMS, field * 350, {"units": "Pa"}),
            "counts": (DIMS[1:], np.arange(192, dtype="int32").reshape(12, 16)),
        },
        coords={"time": ("time", np.arange(frames) * 6.0, {"units": "hours since 2000-01-01"})},
    )
    data.to_netcdf(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_source(tmp_path / "in.nc")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")

    def call(*arguments):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # of argparse
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def rows(table):
    """Parse a printed table: first word of each row to its words."""
    return {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}


class TestConvert:
    def test_the_example_of_the_readme(self, folder, run):
        arguments = ["--abs", "t2m=0.05", "--range-rel", "1e-3", "--chunks", "time=4"]
        status, out, err = run("convert", "in.nc", "out.zarr", *arguments)
        assert (status, err) == (0, "")  # no bars where standard error is no terminal
        table = rows(out)
        assert table["t2m"][1:6] == ["float32", "10x12x16", "4x12x16", "abs", "0.05"]
        assert table["msl"][4:6] == ["range_rel", "0.001"]
        assert 0 < float(table["t2m"][7]) <= 1
        assert "counts" in out and "t2m" not in out.splitlines()[-1]
        with xr.open_zarr("out.zarr", chunks=None) as stored, xr.open_dataset("in.nc") as source:
            for name, bound in (("t2m", 0.05), ("msl", 1e-3 * float(source.msl.max() - source.msl.min()))):
                error = np.abs(stored[name].values.astype("f8") - source[name].values.astype("f8"))
                assert error.max() <= bound

    def test_all_options(self, folder, run):
        arguments = [
            "--pw-rel",
            "msl=0.01",
            "--lossless",
            "t2m",
            "--variables",
            "t2m,msl",
            "--zarr-format",
            "3",
        ]
        layout = ["--chunks", "time=2,lat=6", "--chunks", "lon=-1", "--shards", "time=4", "--effort", "fast"]
        assert run("convert", "in.nc", "out.zarr", *arguments, *layout)[0] == 0
        with xr.open_zarr("out.zarr", chunks=None) as stored, xr.open_dataset("in.nc") as source:
            assert set(stored.data_vars) == {"t2m", "msl"}
            assert stored.t2m.encoding["chunks"] == (2, 6, 16)
            assert stored.t2m.encoding["shards"] == (4, 12, 16)
            assert stored.t2m.encoding["serializer"].effort == "fast"
            assert np.array_equal(stored.t2m.values, source.t2m.values)
            assert np.allclose(stored.msl, source.msl, rtol=0.01, atol=0)

    def test_lossless_for_all_others(self, folder, run):
        status, out, _ = run("convert", "in.nc", "out.zarr", "--abs", "t2m=0.1", "--lossless")
        assert status == 0
        assert rows(out)["msl"][4] == "lossless"

    def test_overwrite(self, folder, run):
        assert run("convert", "in.nc", "out.zarr", "--abs", "0.1")[0] == 0
        status, out, err = run("convert", "in.nc", "out.zarr", "--abs", "0.2")
        assert (status, out) == (2, "")
        assert "--overwrite" in err
        assert run("convert", "in.nc", "out.zarr", "--abs", "0.2", "--overwrite")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--abs", "nope=1"], "'nope'"),
            (["--abs", "time=1"], "coordinate"),
            (["--abs", "-1"], "-1.0"),
            (["--abs", "0"], "0.0"),
            (["--abs", "nan"], "nan"),
            (["--abs", "inf"], "inf"),
            (["--abs", "much"], "'much'"),
            (["--abs", "=1"], "--abs"),
            (["--pw-rel", "2"], "2.0"),
            (["--abs", "1", "--range-rel", "0.1"], "--range-rel"),
            (["--abs", "t2m=1", "--abs", "t2m=2"], "'t2m'"),
            ([], "bound"),
            (["--abs", "1", "--chunks", "time"], "--chunks"),
            (["--abs", "1", "--chunks", "time=x"], "--chunks"),
            (["--abs", "1", "--chunks", "time=0"], "--chunks"),
            (["--abs", "1", "--chunks", "time=4,time=5"], "time"),
            (["--abs", "1", "--chunks", "tim=4"], "'tim'"),
            (["--abs", "1", "--chunks", "time=4", "--shards", "time=6"], "multiple"),
            (["--abs", "1", "--zarr-format", "2", "--shards", "time=8"], "shards"),
            (["--abs", "1", "--variables", "nope"], "nope"),
        ],
    )
    def test_wrong_arguments(self, folder, run, arguments, words):
        status, out, err = run("convert", "in.nc", "out.zarr", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("aesz-codec: error: ") and err.count("\n") == 1
        assert words in err
        assert sorted(p.name for p in folder.iterdir()) == ["in.nc"]

    def test_unreadable_source(self, folder, run):
        (folder / "bad.nc").write_text("nothing")
        status, _, err = run("convert", "bad.nc", "out.zarr", "--abs", "1")
        assert status == 2 and "bad.nc" in err and err.count("\n") == 1


@pytest.fixture
def store(folder, run):
    assert (
        run("convert", "in.nc", "out.zarr", "--abs", "t2m=0.05", "--lossless", "--chunks", "time=4")[0] == 0
    )
    return folder / "out.zarr"


class TestVerify:
    def test_all_is_well(self, store, run):
        status, out, err = run("verify", "in.nc", "out.zarr")
        assert (status, err) == (0, "")
        assert rows(out)["t2m"][:4] == ["t2m", "ok", "abs", "0.05"]
        assert out.endswith("All values are within their bounds.\n")

    def test_says_where_a_value_is_outside(self, store, run):
        with netCDF4.Dataset("in.nc", "r+") as file:
            file["t2m"][5, 2, 3] = 290.0
        status, out, _ = run("verify", "in.nc", "out.zarr")
        assert status == 1
        assert rows(out)["t2m"][1] == "FAILED"
        text = " ".join(out.split())
        assert "t2m: 1 of 1920 values outside, the first at index (5, 2, 3), time 2000-01-02T06:00:00" in text
        assert "value 290.0, reconstruction 28" in text and "expected within abs 0.05 of it" in text

    def test_names_a_chunk_that_cannot_be_read(self, store, run):
        path = store / "t2m" / "c" / "1" / "0" / "0"
        path.write_bytes(path.read_bytes()[:-10])
        status, out, _ = run("verify", "in.nc", "out.zarr")
        assert status == 1
        assert "t2m: chunk (1, 0, 0) cannot be read: TruncatedStreamError" in out

    def test_no_store(self, folder, run):
        status, out, err = run("verify", "in.nc", "nope.zarr")
        assert (status, out) == (2, "") and "nope.zarr" in err

    def test_unfinished_store(self, store, run):
        store.rename("out.zarr.partial")
        for name in ("out.zarr", "out.zarr.partial"):
            status, _, err = run("verify", "in.nc", name)
            assert status == 2 and "convert again" in err


class TestInspect:
    def test_table(self, store, run):
        status, out, err = run("inspect", "out.zarr")
        assert (status, err) == (0, "")
        assert "t2m: 3 chunks" in out and "predictor: " in out and "bytes: " in out
        assert rows(out)["t2m"][1:6] == ["float32", "10x12x16", "4x12x16", "abs", "0.05"]

    def test_json(self, store, run):
        status, out, _ = run("inspect", "out.zarr", "--json")
        report = json.loads(out)
        assert status == 0
        assert {v["name"]: v["mode"] for v in report["variables"]} == {"t2m": "abs", "msl": "lossless"}

    def test_chunk(self, store, run):
        status, out, _ = run("inspect", "out.zarr", "--chunk", "t2m=2,0,0")
        assert status == 0 and rows(out)["index"] == ["index", "(2,", "0,", "0)"]
        status, out, _ = run("inspect", "out.zarr", "--chunk", "t2m=2,0,0", "--json")
        assert json.loads(out)["index"] == [2, 0, 0]

    def test_what_a_chunk_could_have_been(self, store, run):
        status, out, err = run("inspect", "out.zarr", "--chunk", "t2m=0,0,0")
        assert (status, err) == (0, "")
        assert "innovation gain" in out and "estimated from the decoded values" in out and "chosen" in out
        status, out, _ = run("inspect", "out.zarr", "--chunk", "t2m=0,0,0", "--source", "in.nc", "--json")
        chunk = json.loads(out)
        assert status == 0 and chunk["candidates_from"] == "source" and chunk["forecast"]["gains"]
        assert [c["nbytes"] for c in chunk["candidates"] if c["chosen"]] == [chunk["stored_bytes"]]
        status, out, _ = run("inspect", "out.zarr", "--chunk", "t2m=0,0,0", "--header-only", "--json")
        assert status == 0 and json.loads(out)["candidates"] == []

    def test_every_chunk(self, store, run):
        status, out, _ = run("inspect", "out.zarr", "--chunk", "t2m")
        assert status == 0 and [line for line in out.splitlines() if line.startswith("t2m=")] == [
            f"t2m={i},0,0" for i in range(3)
        ]
        status, out, _ = run("inspect", "out.zarr", "--chunk", "t2m", "--json")
        assert [chunk["index"] for chunk in json.loads(out)] == [[i, 0, 0] for i in range(3)]

    @pytest.mark.parametrize(
        "options",
        [
            ("--source", "in.nc"),
            ("--header-only",),
            ("--chunk", "t2m=0,0,0", "--source", "in.nc", "--header-only"),
            ("--chunk", "t2m=0,0,0", "--source", "none.nc"),
        ],
    )
    def test_options_that_do_not_go_together(self, store, run, options):
        status, out, err = run("inspect", "out.zarr", *options)
        assert (status, out) == (2, "") and err.count("\n") == 1

    @pytest.mark.parametrize("chunk", ["nope", "t2m=x", "t2m=9,0,0", "nope=0,0,0", "=0"])
    def test_no_such_chunk(self, store, run, chunk):
        status, out, err = run("inspect", "out.zarr", "--chunk", chunk)
        assert (status, out) == (2, "") and err.count("\n") == 1

    def test_a_reader_that_goes_away(self, store):
        reader = subprocess.Popen(
            [*COMMAND, "inspect", "out.zarr", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        reader.stdout.close()
        assert reader.stderr.read() == b""
        assert reader.wait(60) == 0


def test_a_store_of_a_newer_format(store, run):
    path = store / "t2m" / "c" / "1" / "0" / "0"
    stream = bytearray(path.read_bytes())
    stream[NEWER_MAJOR_AT] = 99
    path.write_bytes(stream)
    status, out, err = run("verify", "in.nc", "out.zarr")
    assert (status, out) == (2, "")
    assert "99" in err and err.count("\n") == 1
    assert run("inspect", "out.zarr", "--chunk", "t2m=1,0,0")[0] == 2


NEWER_MAJOR_AT = 4  # docs/format.md: the major version follows the magic


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_what_is_done(tmp_path, number):
    noise = np.random.default_rng(0).normal(size=(60, 150, 200)).astype("float32")
    xr.Dataset({"v": (DIMS, noise)}).to_netcdf(tmp_path / "in.nc")
    arguments = [
        "convert",
        "in.nc",
        "out.zarr",
        "--abs",
        "1e-3",
        "--chunks",
        "time=1",
        "--shards",
        "none",
        "--effort",
        "max",
    ]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background makes them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    begun = tmp_path / "out.zarr.partial" / "v" / "c" / "3"
    deadline = time.monotonic() + 60
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun.exists(), "the conversion never began"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "aesz-codec: error: interrupted: what is done is kept: go on with --resume\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.zarr.partial"]
    assert not (tmp_path / "out.zarr.partial" / ".aesz" / "lock").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_full_disk_is_one_line(folder):
    """A limit on the size of files stands in for the disk: the same error from the same calls."""
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); "
    command = [sys.executable, "-c", script + COMMAND[2].removeprefix("import sys; ")]
    done = subprocess.run(
        [*command, "convert", "in.nc", "out.zarr", "--lossless"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("aesz-codec: error: store: cannot write out.zarr: File too large")
    assert done.stderr.count("\n") == 1
    assert [p.name for p in folder.iterdir()] == ["in.nc"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bars_in_a_terminal(folder):
    import pty

    main_end, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [*COMMAND, "convert", "in.nc", "out.zarr", "--abs", "0.1"],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(main_end)
    assert process.wait(60) == 0
    assert b"compressing t2m" in shown


def test_narrow_terminals_cut_no_numbers(folder, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run("convert", "in.nc", "out.zarr", "--range-rel", "1e-3")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out and "MB/s" in out


@pytest.mark.parametrize("arguments", [[], ["nope"], ["convert"], ["convert", "in.nc"], ["verify", "in.nc"]])
def test_usage(run, arguments):
    status, _, err = run(*arguments)
    assert status == 2 and "usage" in err


@pytest.mark.parametrize("command", ["demo", "convert", "append", "verify", "inspect"])
def test_help_of_each_command(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0 and f"usage: aesz-codec {command}" in out


def test_version(run):
    from importlib.metadata import version

    assert run("--version")[:2] == (0, f"aesz-codec {version('aesz-codec')}\n")


def test_installed_command():
    command = shutil.which("aesz-codec", path=str(Path(sys.executable).parent)) or shutil.which("aesz-codec")
    assert command, "the console script is not installed"
    done = subprocess.run([command, "--version"], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("aesz-codec ")


class TestDemo:
    def test_it_leaves_a_table_a_picture_and_a_store(self, tmp_path, run):
        pytest.importorskip("iris_sample_data")
        pytest.importorskip("matplotlib")
        status, out, err = run("demo", "--out", tmp_path / "demo")
        assert (status, err) == (0, "")
        assert "each value is within its bound" in out
        for name, bound in (("air_temperature", 0.05), ("tos", 0.01)):
            assert name in out
            source = xr.open_dataset(tmp_path / "demo" / "sample.nc", decode_times=False)
            stored = xr.open_zarr(tmp_path / "demo" / "sample.zarr", chunks=None, decode_times=False)
            with source, stored:
                error = np.abs(source[name].values.astype("f8") - stored[name].values.astype("f8"))
                assert np.nanmax(error) <= bound
                assert np.array_equal(np.isnan(source[name]), np.isnan(stored[name]))
        import matplotlib.image

        picture = matplotlib.image.imread(tmp_path / "demo" / "sample.png")
        assert picture.shape[0] > 800 and picture.shape[1] > 1000
        assert picture[..., :3].std() > 0.1  # something is drawn
        assert run("verify", tmp_path / "demo" / "sample.nc", tmp_path / "demo" / "sample.zarr")[0] == 0
        assert run("demo", "--out", tmp_path / "demo")[0] == 0  # once more into the same folder

    def test_without_the_extra(self, tmp_path, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "iris_sample_data", None)
        status, _, err = run("demo", "--out", tmp_path / "demo")
        assert status == 2
        assert "pip install 'aesz-codec[demo]'" in err and err.count("\n") == 1
        assert not (tmp_path / "demo").exists()
