"""Stores in a bucket: written once, resumed, read anonymously, with requests that fail and a server that restarts."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xarray as xr

from aesz_codec._store import open_address
from aesz_codec.cli import main
from aesz_codec.conversion import append, convert
from aesz_codec.errors import ConversionError
from aesz_codec.inspection import inspect_chunk, inspect_store
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")
SHAPE = (40, 40, 50)
ARGUMENTS = {
    "error_bound": {"v": 0.05, "w": ("range_rel", 1e-3)},
    "chunks": {"time": 2},
    "effort": "fast",
    "shards": None,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "in.nc"
    noise = np.random.default_rng(0).normal(size=SHAPE).cumsum(axis=0).astype("float32")
    coordinates = {"time": ("time", np.arange(SHAPE[0]), {"units": "hours since 2000-01-01"})}
    xr.Dataset({"v": (DIMS, noise), "w": (DIMS, noise[::-1])}, coordinates).to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    store = tmp_path_factory.mktemp("expected") / "out.zarr"
    convert(source, store, **ARGUMENTS)
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def objects(server, url):
    filesystem = server.filesystem()
    root = url.removeprefix("s3://")
    return {path.removeprefix(root + "/"): filesystem.cat_file(path) for path in filesystem.find(root)}


def obstore_store(server, bucket, prefix, **options):
    obstore = pytest.importorskip("obstore.store")
    from zarr.storage import ObjectStore

    how = {"allow_http": True}
    made = obstore.S3Store(
        bucket,
        prefix=prefix,
        endpoint=server.endpoint,
        access_key_id="test-key",
        secret_access_key="test-secret",
        region="us-east-1",
        client_options=how,
        **options,
    )
    return ObjectStore(made)


class TestStores:
    @pytest.mark.parametrize("options", [{}, {"workers": 2}], ids=["threads", "processes"])
    def test_the_objects_are_those_of_a_folder(self, server, bucket, source, expected, options):
        url = f"s3://{bucket}/a/out.zarr"
        summary = convert(source, url, **ARGUMENTS, **options, storage_options=server.options())
        assert objects(server, url) == expected
        assert summary.store == url
        assert summary.stored_bytes == sum(
            len(data) for key, data in expected.items() if re.match("[vw]/c", key)
        )
        report = verify(source, url, storage_options=server.options())
        assert report.ok and {v.name for v in report.variables} == {"v", "w", "time"}

    @pytest.mark.parametrize("layout", [{"zarr_format": 2}, {"shards": {"time": 8}}], ids=["v2", "shards"])
    def test_other_layouts(self, server, bucket, source, layout):
        url, options = f"s3://{bucket}/out.zarr", server.options()
        convert(source, url, **{**ARGUMENTS, **layout}, storage_options=options)
        with xr.open_zarr(url, storage_options=options) as stored, xr.open_dataset(source) as data:
            assert float(np.abs(stored.v - data.v).max()) <= 0.05
        v, _ = inspect_store(url, storage_options=options).variables
        assert v.stored_bytes > sum(v.sections.values()) > 0 or not v.shards
        assert inspect_chunk(url, "w", (3, 0, 0), storage_options=options).stored
        assert verify(source, url, storage_options=options).ok

    def test_obstore(self, server, bucket, source, expected):
        store = obstore_store(server, bucket, "out.zarr")
        convert(source, store, **ARGUMENTS)
        assert objects(server, f"s3://{bucket}/out.zarr") == expected
        assert verify(source, store).ok
        assert inspect_store(store).variables[0].stored_bytes > 0
        with pytest.raises(ConversionError, match="exists"):
            convert(source, store, **ARGUMENTS)

    def test_sources_in_a_bucket(self, server, bucket, source, tmp_path):
        options = server.options()
        convert(source, f"s3://{bucket}/out.zarr", **ARGUMENTS, storage_options=options)
        convert(f"s3://{bucket}/out.zarr", tmp_path / "b.zarr", "lossless", source_options=options)
        assert verify(f"s3://{bucket}/out.zarr", tmp_path / "b.zarr", source_options=options).ok
        pytest.importorskip("h5netcdf")
        server.filesystem().put(str(source), f"{bucket}/in.nc")
        convert(f"s3://{bucket}/*.nc", tmp_path / "c.zarr", **ARGUMENTS, source_options=options)
        assert verify(source, tmp_path / "c.zarr").ok

    def test_reading_without_credentials(self, server, source, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        url = "s3://public/open.zarr"
        convert(source, url, **ARGUMENTS, storage_options=server.options(), overwrite=True)
        anonymous = {"anon": True, "endpoint_url": server.endpoint}
        assert verify(source, url, storage_options=anonymous).ok
        with xr.open_zarr(url, storage_options=anonymous) as stored:
            assert stored.v[3, 4, 5].values == pytest.approx(
                xr.open_dataset(source).v[3, 4, 5].values, abs=0.05
            )
        with pytest.raises(ConversionError, match=r"store: cannot .*s3://public/no\.zarr"):
            convert(source, "s3://public/no.zarr", **ARGUMENTS, storage_options=anonymous)

    def test_the_command_and_the_usual_credentials(self, server, bucket, source, monkeypatch, capsys):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        option = ["--storage-option", f"endpoint_url={server.endpoint}"]
        url = f"s3://{bucket}/out.zarr"
        assert main(["convert", str(source), url, "--abs", "0.1", *option]) == 0
        assert main(["verify", str(source), url, *option]) == 0
        assert main(["inspect", url, *option]) == 0
        out = capsys.readouterr().out
        assert f"{url}: " in out and "All values are within their bounds." in out
        assert main(["convert", str(source), url, "--abs", "0.1", *option]) == 2
        assert "--overwrite" in capsys.readouterr().err


class TestRefused:
    def test_no_such_bucket(self, server, source):
        with pytest.raises(ConversionError, match=r"store: cannot .*s3://nowhere/out\.zarr"):
            convert(source, "s3://nowhere/out.zarr", **ARGUMENTS, storage_options=server.options())

    def test_wrong_credentials(self, server, bucket, source):
        wrong = server.options(secret="wrong")
        with pytest.raises(ConversionError, match=r"store: cannot "):
            convert(source, f"s3://{bucket}/out.zarr", **ARGUMENTS, storage_options=wrong)

    def test_overwriting(self, server, bucket, source, expected):
        url, options = f"s3://{bucket}/out.zarr", server.options()
        convert(source, url, 0.5, storage_options=options)
        with pytest.raises(ConversionError, match="exists"):
            convert(source, url, **ARGUMENTS, storage_options=options)
        convert(source, url, **ARGUMENTS, storage_options=options, overwrite=True)
        assert objects(server, url) == expected

    def test_only_a_store_is_overwritten(self, server, bucket, source):
        server.filesystem().pipe(f"{bucket}/thesis/text", b"years of work")
        with pytest.raises(ConversionError, match="no Zarr store"):
            convert(
                source, f"s3://{bucket}/thesis", **ARGUMENTS, storage_options=server.options(), overwrite=True
            )
        assert objects(server, f"s3://{bucket}") == {"thesis/text": b"years of work"}


class TestFaults:
    def test_requests_that_fail(self, server, proxy, bucket, source, expected):
        """Five in a hundred, where the network of an archive loses one."""
        proxy.share = {"reset": 0.02, "unavailable": 0.02, "slow": 0.01}
        url = f"s3://{bucket}/out.zarr"
        convert(source, url, **ARGUMENTS, storage_options=server.options(proxy.endpoint))
        assert proxy.failed["reset"] and proxy.failed["unavailable"], proxy.failed
        proxy.share = {}
        assert objects(server, url) == expected

    def test_a_server_that_restarts(self, server, proxy, bucket, source, expected):
        restarted = []

        def restart(event):
            if event.phase == "write" and event.done and not restarted:
                restarted.append(threading.Thread(target=again))
                restarted[0].start()

        def again():
            server.stop(signal.SIGTERM)
            time.sleep(1)
            server.start()

        proxy.share = {"unavailable": 0.01}
        url = f"s3://{bucket}/out.zarr"
        convert(source, url, **ARGUMENTS, storage_options=server.options(proxy.endpoint), progress=restart)
        restarted[0].join()
        assert objects(server, url) == expected

    def test_a_client_that_is_killed(self, server, bucket, source, expected, tmp_path):
        url, options = f"s3://{bucket}/out.zarr", server.options()
        script = tmp_path / "convert.py"
        script.write_text(
            "import sys\nfrom aesz_codec.conversion import convert\n"
            "if __name__ == '__main__':\n    convert(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))\n"
        )
        arguments = repr({**ARGUMENTS, "resume": True, "storage_options": options})
        address = open_address(url, storage_options=options)
        for moment in (".aesz/done-000001.json", ".aesz/lock"):
            process = subprocess.Popen(
                [sys.executable, str(script), str(source), url, arguments], start_new_session=True
            )
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                owner = address.get(".aesz/lock") or b""
                if f'"pid": {process.pid},'.encode() in owner and address.get(moment):
                    break
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with pytest.raises(ConversionError, match="never finished"):
            inspect_store(url, storage_options=options)
        with pytest.raises(Exception, match=r"out\.zarr|group|Group"):
            xr.open_zarr(url, storage_options=options)
        with pytest.raises(ConversionError, match="unfinished"):
            convert(source, url, **ARGUMENTS, storage_options=options)
        convert(source, url, **ARGUMENTS, storage_options=options, resume=True)
        assert objects(server, url) == expected

    def test_a_month_is_appended(self, server, proxy, bucket, source, tmp_path):
        """Though requests fail and the first try is stopped; readers see the old store until the end."""
        url, options = f"s3://{bucket}/out.zarr", server.options(proxy.endpoint)
        with xr.open_dataset(source, decode_times=False) as data:
            first, later = data.isel(time=slice(0, 20)).load(), data.isel(time=slice(20, 40)).load()
        convert(first, url, **ARGUMENTS, storage_options=server.options())
        proxy.share = {"reset": 0.02, "unavailable": 0.02}

        def stop(event):
            if event.phase == "write" and event.done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            append(later, url, storage_options=options, progress=stop)
        with xr.open_zarr(url, storage_options=server.options(), chunks=None) as stored:
            assert stored.sizes["time"] == 20
        append(later, url, storage_options=options, resume=True)
        proxy.share = {}
        assert verify(source, url, storage_options=server.options()).ok
        assert not [key for key in objects(server, url) if ".aesz" in key]

    def test_two_converters(self, server, bucket, source):
        url, options = f"s3://{bucket}/out.zarr", server.options()
        refused = []

        def second(event):
            if event.phase == "write" and not refused:
                with pytest.raises(ConversionError, match="another conversion") as caught:
                    convert(source, url, **ARGUMENTS, storage_options=options, resume=True)
                refused.append(caught.value)

        convert(source, url, **ARGUMENTS, storage_options=options, progress=second)
        assert refused


def test_opening_needs_no_more_requests_than_with_zstd(server, proxy, bucket, record_property):
    """And one chunk of 64 frames is one request; in a shard two, of which the first is its index."""
    counts = {}
    noise = np.random.default_rng(0).normal(size=(128, 40, 50)).cumsum(axis=0).astype("float32")
    data = xr.Dataset({"v": (DIMS, noise), "w": (DIMS, noise[::-1])}, {"time": np.arange(128)})
    data.to_zarr(
        f"s3://{bucket}/zstd.zarr",
        storage_options=server.options(),
        encoding={n: {"chunks": (64, 40, 50)} for n in "vw"},
    )
    for name, shards in (("plain.zarr", None), ("shards.zarr", {"time": 128})):
        arguments = {**ARGUMENTS, "chunks": {"time": 64}, "shards": shards}
        convert(data, f"s3://{bucket}/{name}", **arguments, storage_options=server.options())
    for name in ("zstd.zarr", "plain.zarr", "shards.zarr"):
        proxy.requests.clear()
        options = server.options(proxy.endpoint, skip_instance_cache=True)
        with xr.open_zarr(f"s3://{bucket}/{name}", storage_options=options, chunks=None) as stored:
            opened = len(proxy.requests)
            stored.v[:64].values  # noqa: B018
            read = [
                size
                for method, path, status, size in proxy.requests[opened:]
                if method == "GET" and status < 300
            ]
        counts[name] = {"open": opened, "chunk": len(read), "bytes": sum(read)}
    record_property("requests", counts)
    print(counts)
    assert counts["plain.zarr"]["open"] <= counts["zstd.zarr"]["open"]
    assert counts["shards.zarr"]["open"] <= counts["zstd.zarr"]["open"]
    assert (counts["plain.zarr"]["chunk"], counts["shards.zarr"]["chunk"]) == (1, 2)


@pytest.mark.parametrize("layout", [{"shards": None}, {"shards": {"time": 20}}], ids=["plain", "shards"])
def test_through_a_web_server_with_ranges(web, source, layout):
    """Read only: opened by its consolidated metadata, verified value by value."""
    pytest.importorskip("aiohttp")
    folder, url, requests = web
    convert(source, folder / "out.zarr", **{**ARGUMENTS, **layout})
    assert verify(source, f"{url}/out.zarr").ok
    requests.clear()
    with xr.open_zarr(f"{url}/out.zarr", chunks=None) as stored, xr.open_dataset(source) as data:
        assert float(np.abs(stored.v[5:7] - data.v[5:7]).max()) <= 0.05
    ranged = [sent for sent in requests if sent]
    assert bool(ranged) == (layout["shards"] is not None)
    with pytest.raises(ConversionError, match="cannot"):
        convert(source, f"{url}/b.zarr", **ARGUMENTS)
