"""Tasks: how they are cut, and that threads, processes and clusters write the same bytes as no Dask at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aesz_codec.bounds import ErrorBound
from aesz_codec.conversion import convert, plan_conversion, plan_tasks
from aesz_codec.conversion.engine import open_engine
from aesz_codec.conversion.plan import default_shards, memory_in_bytes
from aesz_codec.errors import ConversionError, InvalidConfigError
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")


class TestPlan:
    @pytest.mark.parametrize("shape", [(100, 30, 40), (7, 5, 3), (1, 1, 1), (64, 30, 40)])
    @pytest.mark.parametrize("source", [(1, 30, 40), (100, 7, 9), (13, 11, 40)])
    @pytest.mark.parametrize("shards", [None, (16, 20, 40)])
    def test_tasks_are_whole_units_and_all_of_them(self, shape, source, shards):
        chunks = (8, 10, 20)
        source = tuple(map(min, source, shape))
        tasks, amplification = plan_tasks(shape, source, chunks, shards, itemsizes=(4, 4))
        covered = np.zeros(shape, int)
        for region in tasks:
            covered[region] += 1
            for side, unit, size in zip(region, shards or chunks, shape, strict=True):
                assert side.start % unit == 0 and (side.stop % unit == 0 or side.stop == size)
        assert (covered == 1).all()
        assert amplification >= 1

    def test_memory_bounds_tasks_and_what_is_read_twice(self):
        """A source of whole series, a target of frames: the more memory, the fewer times a series is read."""
        factors = []
        for limit in (420_000_000, 500_000_000, 1_500_000_000):
            tasks, factor = plan_tasks(
                (512, 256, 256), (512, 8, 8), (8, 256, 256), None, itemsizes=(4, 4), memory_limit=limit
            )
            largest = max(np.prod([s.stop - s.start for s in region]) for region in tasks)
            assert largest * 4 < limit
            factors.append(factor)
        assert factors == sorted(factors, reverse=True)
        assert factors[0] > 2 and factors[-1] == 1

    def test_a_chunk_above_the_limit_says_which_would_fit(self):
        shape = (64, 721, 1440)
        with pytest.raises(
            InvalidConfigError, match=r"t2m.*at most 1000 MB.*time=\d+,lat=721,lon=1440 would fit"
        ) as caught:
            plan_tasks(shape, shape, shape, None, itemsizes=(4, 4), memory_limit=10**9, name="t2m", dims=DIMS)
        fitting = int(str(caught.value).rpartition("time=")[2].partition(",")[0])
        plan_tasks(shape, (1, *shape[1:]), (fitting, *shape[1:]), None, itemsizes=(4, 4), memory_limit=10**9)

    def test_the_plan_of_a_dataset_reads_nothing(self, tmp_path):
        noise = np.zeros((4, 10, 10), "float32")
        xr.Dataset({"v": (DIMS, noise)}).to_netcdf(tmp_path / "in.nc")
        with xr.open_dataset(tmp_path / "in.nc", cache=False, chunks=None) as data:
            plan = plan_conversion(data, {"v": ErrorBound("abs", 0.1)}, chunks={"time": 2})
            (v,) = plan.variables
            assert v.chunks == (2, 10, 10) and v.shards is None and len(v.tasks) == 2
            assert not isinstance(data.variables["v"]._data, np.ndarray)

    def test_shards_by_default_where_there_are_many_chunks(self, tmp_path):
        assert default_shards((8760, 721, 1440), (4, 721, 1440), 4) == (16, 721, 1440)
        assert default_shards((33, 10), (1, 10), 4) == (33, 10)
        assert default_shards((32, 10), (1, 10), 4) is None
        assert (
            default_shards((90, 5000, 5000), (1, 5000, 5000), 4) is None
        )  # one chunk is as large as a shard
        data = xr.Dataset({"v": (("t", "x"), np.random.default_rng(0).normal(size=(70, 9)))})
        convert(data, tmp_path / "a.zarr", 0.1, chunks={"t": 2})
        convert(data, tmp_path / "b.zarr", 0.1, chunks={"t": 2}, shards=None)
        for name, shards in (("a.zarr", (70, 9)), ("b.zarr", None)):
            with xr.open_zarr(tmp_path / name, chunks=None) as stored:
                assert stored.v.encoding["shards"] == shards
                assert np.abs(stored.v - data.v).max() <= 0.1

    @pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "1PB", "1..2GB"])
    def test_memory_is_a_number_of_bytes(self, text):
        with pytest.raises(InvalidConfigError, match="memory_limit"):
            memory_in_bytes(text, 1)

    def test_memory_that_is_not_named(self):
        assert memory_in_bytes(None, 2) >= memory_in_bytes(None, 4) >= 10**9


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for number in range(3):
        t, y, x = np.meshgrid(np.arange(8) + 8 * number, np.arange(40), np.arange(50), indexing="ij")
        field = 280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3) + rng.normal(0, 0.02, t.shape)
        data = {"t2m": (DIMS, field.astype("float32")), "msl": (DIMS, field * 350)}
        xr.Dataset(data, {"time": ("time", t[:, 0, 0], {"units": "hours since 2000-01-01"})}).to_netcdf(
            folder / f"{number}.nc"
        )
    return f"{folder}/*.nc"


ARGUMENTS = {"error_bound": {"t2m": 0.05, "msl": ("range_rel", 1e-3)}, "chunks": {"time": 2}}


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    store = tmp_path_factory.mktemp("expected") / "out.zarr"
    convert(source, store, **ARGUMENTS, scheduler="synchronous")
    return tree(store)


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers, each a process with an address of its own, as on a cluster."""
    distributed = pytest.importorskip("distributed")
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0}
    with distributed.LocalCluster(**how) as made:
        yield made


class TestEngines:
    @pytest.mark.parametrize("options", [{}, {"scheduler": "threads", "workers": 3}, {"workers": 1}], ids=str)
    def test_in_this_process(self, source, expected, tmp_path, options):
        convert(source, tmp_path / "out.zarr", **ARGUMENTS, **options)
        assert tree(tmp_path / "out.zarr") == expected

    def test_processes(self, source, expected, tmp_path):
        summary = convert(source, tmp_path / "out.zarr", **ARGUMENTS, workers=2)
        assert tree(tmp_path / "out.zarr") == expected
        assert summary.workers == 2 and summary.variables[0].errors.n == 24 * 40 * 50
        assert verify(source, tmp_path / "out.zarr", workers=2).ok

    def test_a_client_and_an_address(self, source, expected, tmp_path, cluster):
        with cluster.get_client() as client:
            convert(source, tmp_path / "a.zarr", **ARGUMENTS, client=client)
        convert(source, tmp_path / "b.zarr", **ARGUMENTS, scheduler=cluster.scheduler_address)
        assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr") == expected

    def test_datasets_of_dask_and_in_memory(self, source, expected, tmp_path, cluster):
        with cluster.get_client() as client, xr.open_mfdataset(source, decode_times=False) as data:
            for number, dataset in enumerate((data, data.load().chunk(time=5), data.compute())):
                store = tmp_path / f"{number}.zarr"
                convert(dataset, store, **ARGUMENTS, client=client)
                chunks = {key: value for key, value in tree(store).items() if "/c/" in key}
                assert chunks == {key: value for key, value in expected.items() if "/c/" in key}

    def test_a_worker_that_is_killed_is_replaced(self, source, expected, tmp_path, cluster):
        """Dask runs its tasks again; they write the same objects."""
        killed = []

        def kill(event):
            if event.phase == "write" and event.done and not killed:
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        with cluster.get_client() as client:
            convert(source, tmp_path / "out.zarr", **ARGUMENTS, client=client, progress=kill)
        assert killed
        assert tree(tmp_path / "out.zarr") == expected

    def test_a_cluster_that_dies(self, source, expected, tmp_path):
        """A scheduler that is killed in the middle: a typed error, and the rest is done without it."""
        run = "import sys; from distributed.cli.dask_{0} import main; sys.exit(main())"
        file = tmp_path / "scheduler.json"
        common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        arguments = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        scheduler = subprocess.Popen([sys.executable, "-c", run.format("scheduler"), *arguments], **common)
        arguments = ["--scheduler-file", str(file), "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        worker = None
        try:
            wait_for(file.exists)
            worker = subprocess.Popen([sys.executable, "-c", run.format("worker"), *arguments], **common)

            def kill(event):
                if event.phase == "write" and event.done:
                    scheduler.kill()

            from distributed import Client

            with Client(scheduler_file=str(file)) as client:
                client.wait_for_workers(1, timeout=60)
                address = client.scheduler.address
            with pytest.raises(ConversionError, match=r"cluster: .*died.*resume"):
                convert(source, tmp_path / "out.zarr", **ARGUMENTS, scheduler=address, progress=kill)
        finally:
            for process in (scheduler, worker):
                if process is not None:
                    process.kill()
                    process.wait()
        summary = convert(source, tmp_path / "out.zarr", **ARGUMENTS, resume=True)
        assert summary.resumed >= 1
        assert tree(tmp_path / "out.zarr") == expected

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"scheduler": "nope"}, "'nope'"),
            ({"workers": 0}, "workers"),
            ({"scheduler": "tcp://127.0.0.1:1", "workers": 2}, "workers"),
            ({"client": object(), "workers": 2}, "client"),
            ({"overwrite": True, "resume": True}, "resume"),
            ({"on_error": "ignore"}, "on_error"),
            ({"memory_limit": "1MB"}, "memory_limit"),
            ({"shards": "many"}, "shards"),
        ],
    )
    def test_wrong_options(self, source, tmp_path, options, words):
        with pytest.raises(InvalidConfigError, match=words):
            convert(source, tmp_path / "out.zarr", 0.1, **options)
        assert list(tmp_path.iterdir()) == []

    def test_no_scheduler_at_the_address(self, source, tmp_path, monkeypatch):
        monkeypatch.setattr("aesz_codec.conversion.engine._CONNECT", "1s")
        with pytest.raises(ConversionError, match="no Dask scheduler at tcp://127.0.0.1:9"):
            convert(source, tmp_path / "out.zarr", 0.1, scheduler="tcp://127.0.0.1:9")
        assert list(tmp_path.iterdir()) == []


def test_without_dask(source, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("aesz_codec.conversion.engine.find_spec", lambda name: None)
    summary = convert(source, tmp_path / "out.zarr", **ARGUMENTS)
    assert summary.workers == 1 and tree(tmp_path / "out.zarr") == expected
    for options in ({"workers": 2}, {"scheduler": "threads"}):
        with pytest.raises(InvalidConfigError, match=r"aesz-codec\[dask\]"):
            convert(source, tmp_path / "b.zarr", **ARGUMENTS, **options)


def test_ranges_take_one_pass(source, tmp_path, monkeypatch):
    """Every value is read once for its range and once to be written."""
    from aesz_codec import _source

    read = {"msl": 0, "t2m": 0}
    original = _source._Joined._read

    def counted(self, key):
        values = original(self, key)
        if values.ndim == 3:
            read["msl" if values.dtype == "float64" else "t2m"] += values.size
        return values

    monkeypatch.setattr(_source._Joined, "_read", counted)
    convert(source, tmp_path / "out.zarr", **ARGUMENTS, scheduler="synchronous")
    assert read == {"t2m": 24 * 40 * 50, "msl": 2 * 24 * 40 * 50}


def test_an_error_waits_for_what_is_under_way():
    """What the callback raises ends the run, and nothing goes on behind it."""
    begun, ended = [], []

    def work(number):
        begun.append(number)
        time.sleep(0.05)
        ended.append(number)
        return number

    def stop(number):
        raise KeyboardInterrupt

    with open_engine("threads", 3) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(work, range(50), stop)
    assert sorted(begun) == sorted(ended) and len(begun) < 20


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
