"""Months that are appended to a finished store, and regions that are written again: docs/archives.md."""

import json

import numpy as np
import pytest
import xarray as xr
import zarr

from aesz_codec._store import StoreAddress
from aesz_codec.cli import main
from aesz_codec.conversion import append, convert
from aesz_codec.conversion.journal import Lock
from aesz_codec.errors import ConversionError, InvalidConfigError
from aesz_codec.inspection import inspect_store
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")
CHUNK = 6


def month(first, steps, seed=0):
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(first, first + steps), np.arange(20), np.arange(30), indexing="ij")
    field = 280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3) + rng.normal(0, 0.02, t.shape)
    return xr.Dataset(
        {"t2m": (DIMS, field.astype("float32"), {"units": "K"})},
        {
            "time": ("time", np.arange(first, first + steps), {"units": "hours since 2000-01-01"}),
            "lat": np.arange(20.0),
        },
    )


@pytest.fixture(params=[{}, {"zarr_format": 2}, {"shards": {"time": 2 * CHUNK}}], ids=["v3", "v2", "shards"])
def store(request, tmp_path):
    convert(month(0, 24), tmp_path / "a.zarr", {"t2m": 0.05}, chunks={"time": CHUNK}, **request.param)
    return tmp_path / "a.zarr"


def configurations(store):
    with xr.open_zarr(store, chunks=None) as stored:
        encoding = stored.t2m.encoding
        codec = encoding.get("serializer") or encoding["compressors"][0]
        return codec.error_bound, codec.mode, encoding["chunks"]


def test_a_month_is_appended(store):
    """In whole chunks, and with no encoding: the array has its own."""
    before = configurations(store)
    later = month(24, 12, seed=1)
    later.to_zarr(store, append_dim="time")
    both = xr.concat([month(0, 24), later], "time", data_vars="minimal")
    assert configurations(store) == before
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        assert stored.sizes["time"] == 36
        assert float(np.abs(stored.t2m - both.t2m).max()) <= 0.05
        assert np.array_equal(stored.time, both.time)
    assert verify(both, store).ok
    assert inspect_store(store).variables[0].chunk_count == 6


def test_appending_keeps_what_was_there(store):
    def chunks():
        return {
            p: p.read_bytes()
            for p in (store / "t2m").rglob("*")
            if p.is_file() and p.name not in ("zarr.json", ".zarray")
        }

    before = chunks()
    month(24, 12, seed=1).to_zarr(store, append_dim="time")
    after = chunks()
    assert all(after[path] == data for path, data in before.items()) and len(after) > len(before)


def test_a_region_is_written_again(store):
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        untouched = stored.t2m.values
    changed = month(0, 24, seed=2).isel(time=slice(12, 24)).drop_vars("lat")
    changed.to_zarr(store, region={"time": slice(12, 24)})
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        assert np.array_equal(stored.t2m.values[:12], untouched[:12])
        assert np.abs(stored.t2m.values[12:] - changed.t2m.values).max() <= 0.05


def test_a_part_of_a_chunk_encodes_the_rest_anew(store):
    """Documented: what was in the chunk before may be off by twice the bound."""
    changed = month(0, 24, seed=2).isel(time=slice(13, 15)).drop_vars("lat")
    changed.to_zarr(store, region={"time": slice(13, 15)})
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        error = np.abs(stored.t2m.values - month(0, 24).t2m.values).max(axis=(1, 2))
        assert error[:12].max() <= 0.05
        assert error[[12, 15, 16, 17]].max() <= 0.1
        assert np.abs(stored.t2m.values[13:15] - changed.t2m.values).max() <= 0.05


def test_dask_refuses_to_append_across_chunks(store):
    pytest.importorskip("dask")
    month(24, 12).chunk(time=4).to_zarr(store, append_dim="time", align_chunks=True)
    with pytest.raises(ValueError, match="chunk"):
        month(36, 12).chunk(time=4).to_zarr(store, append_dim="time")


def both(*parts):
    return xr.concat(parts, "time", data_vars="minimal")


def tree(store):
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


class TestAppend:
    """`append` and ``aesz-codec append``: journaled, and shown at once."""

    def test_a_month(self, store):
        before, there = configurations(store), tree(store)
        summary = append(month(24, 12, seed=1), store)
        assert configurations(store) == before
        data = both(month(0, 24), month(24, 12, seed=1))
        for consolidated in (True, False):
            with xr.open_zarr(store, chunks=None, decode_times=False, consolidated=consolidated) as stored:
                assert float(np.abs(stored.t2m - data.t2m).max()) <= 0.05
                assert np.array_equal(stored.time, data.time) and np.array_equal(stored.lat, data.lat)
        assert verify(data, store).ok
        assert summary.variables[0].errors.n == 12 * 20 * 30 and not summary.variables[0].errors.violations
        after = tree(store)
        assert not [name for name in after if ".aesz" in name] and not (store / ".aesz").exists()
        chunks = {
            name for name in there if name.startswith("t2m/") and "zarr.json" not in name and ".z" not in name
        }
        assert chunks and all(after[name] == there[name] for name in chunks)

    def test_it_is_what_converting_both_would_have_written(self, store, tmp_path):
        """But for coordinates, whose chunks are as long as the first part."""
        append(month(24, 12, seed=1), store)
        sharded = zarr.open_array(store, path="t2m", mode="r").shards
        convert(
            both(month(0, 24), month(24, 12, seed=1)), tmp_path / "b.zarr", {"t2m": 0.05}, chunks={"time": CHUNK},
            shards=None if sharded is None else {"time": 2 * CHUNK},
            zarr_format=zarr.open_group(store, mode="r").metadata.zarr_format,
        )  # fmt: skip
        found, expected = tree(store), tree(tmp_path / "b.zarr")
        names = [name for name in expected if name.startswith("t2m/")]
        assert [name for name in found if name.startswith("t2m/")] == names or set(names) <= set(found)
        for name in names:
            same = json.loads if name.endswith((".json", ".zarray", ".zattrs")) else bytes
            assert same(found[name]) == same(expected[name])

    def test_times_in_other_units(self, tmp_path):
        """As files of months have them, and as xarray decodes them."""
        convert(month(0, 24), tmp_path / "a.zarr", {"t2m": 0.05}, chunks={"time": CHUNK})
        later = month(0, 12, seed=1)
        later["time"] = ("time", np.arange(12), {"units": "hours since 2000-01-02"})
        later.to_netcdf(tmp_path / "b.nc")
        append(tmp_path / "b.nc", tmp_path / "a.zarr")
        decoded = xr.decode_cf(month(36, 6, seed=2))
        append(decoded, tmp_path / "a.zarr", scheduler="threads")
        with xr.open_zarr(tmp_path / "a.zarr", chunks=None, decode_times=False) as stored:
            assert np.array_equal(stored.time, np.arange(42)) and stored.time.dtype == "int64"
            assert np.abs(stored.t2m.values[24:36] - later.t2m.values).max() <= 0.05
            assert np.abs(stored.t2m.values[36:] - decoded.t2m.values).max() <= 0.05
        half = month(0, 12)
        half["time"] = ("time", 42 * 60 + 30 + np.arange(12), {"units": "minutes since 2000-01-01"})
        with pytest.raises(ConversionError, match="minutes"):
            append(half, tmp_path / "a.zarr")

    def test_readers_see_the_old_store_until_the_end(self, store):
        seen = []

        def look(event):
            if event.phase == "write":
                with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
                    seen.append((stored.sizes["time"], stored.t2m.shape[0], float(stored.t2m[-1, 0, 0])))

        append(month(24, 12), store, progress=look)
        assert len(set(seen)) == 1 and seen[0][:2] == (24, 24)

    def test_one_that_was_stopped_goes_on(self, store, tmp_path):
        whole = tmp_path / "whole.zarr"
        whole.mkdir()
        for name, content in tree(store).items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).write_bytes(content)
        later = month(24, 36, seed=1)
        append(later, whole)

        def stop(event):
            if event.phase == "write" and event.done:
                raise KeyboardInterrupt

        before = tree(store)
        with pytest.raises(KeyboardInterrupt):
            append(later, store, progress=stop, scheduler="synchronous")
        assert all(tree(store)[name] == content for name, content in before.items())
        with pytest.raises(ConversionError, match="--resume"):
            append(later, store)
        assert inspect_store(store).appending.startswith("unfinished")
        with pytest.raises(ConversionError, match="another part"):
            append(month(24, 12), store, resume=True)
        with pytest.raises(ConversionError, match="append"):
            convert(later, store, {"t2m": 0.05}, resume=True)
        assert append(later, store, resume=True).resumed >= 1
        assert tree(store) == tree(whole)

    def test_what_was_dropped_leaves_nothing(self, store):
        """The second part has gaps, which have no objects, where the first had written."""

        def stop(event):
            if event.phase == "write" and event.done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            append(month(24, 36), store, progress=stop, scheduler="synchronous")
        gaps = month(24, 24)
        gaps["t2m"] = gaps.t2m * np.nan
        append(gaps, store, overwrite=True)
        with xr.open_zarr(store, chunks=None) as stored:
            assert np.isnan(stored.t2m.values[24:]).all() and not np.isnan(stored.t2m.values[:24]).any()
        assert not (store / ".aesz").exists()

    def test_packed_integers(self, tmp_path):
        """Decoded where they have a bound, else copied as they are, in one piece or block by block."""

        def packed(first, steps, scale=0.01):
            data = month(first, steps)
            data["p"] = data.t2m.astype("f8")
            data["raw"] = data.t2m.astype("f8")
            encoding = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}
            data.to_netcdf(
                tmp_path / f"{first}.nc", encoding={"p": encoding, "raw": {**encoding, "scale_factor": scale}}
            )
            return tmp_path / f"{first}.nc"

        bounds = {"t2m": 0.05, "p": 0.02}
        convert(packed(0, 24), tmp_path / "a.zarr", bounds, chunks={"time": CHUNK})
        append(packed(24, 12), tmp_path / "a.zarr")
        files = [tmp_path / "0.nc", tmp_path / "24.nc"]
        assert verify(files, tmp_path / "a.zarr").ok
        with pytest.raises(ConversionError, match="raw packed"):
            append(packed(36, 12, scale=0.02), tmp_path / "a.zarr")

    def test_large_copies(self, tmp_path, monkeypatch):
        def counts(first, steps):
            return month(first, steps).assign(
                n=(DIMS, np.arange(first * 600, (first + steps) * 600).reshape(-1, 20, 30))
            )

        convert(counts(0, 24), tmp_path / "a.zarr", {"t2m": 0.05}, chunks={"time": CHUNK})
        monkeypatch.setattr("aesz_codec.conversion.appending.WHOLE_COPY", 100)
        append(counts(24, 24), tmp_path / "a.zarr")
        assert verify(both(counts(0, 24), counts(24, 24)), tmp_path / "a.zarr").ok
        with pytest.raises(ConversionError, match="whole number"):
            append(counts(48, 6), tmp_path / "a.zarr")
            append(counts(54, 6), tmp_path / "a.zarr")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda d: d.isel(lat=slice(5)), "another lat"),
            (lambda d: d.assign_coords(lat=d.lat + 1), "another lat"),
            (lambda d: d.rename(t2m="t"), "no variable 't2m'"),
            (lambda d: d.assign(other=d.t2m), "a variable 'other'"),
            (lambda d: d.assign(t2m=d.t2m.assign_attrs(units="degC")), "in 'degC'"),
            (
                lambda d: d.assign_coords(time=d.time.copy(data=d.time.values - 1)),
                "later ones than the store's last, 23",
            ),
            (lambda d: d.assign(t2m=d.t2m.astype("i4")), "int32"),
            (lambda d: d.isel(time=slice(0)), "no 'time'"),
            (lambda d: d.transpose("lat", "lon", "time"), "t2m of"),
            (lambda d: d.assign_coords(time=d.time.copy(data=d.time.values[::-1])), "time 35 to 24"),
        ],
    )
    def test_what_does_not_fit(self, store, change, words):
        before = tree(store)
        with pytest.raises(ConversionError, match=words):
            append(change(month(24, 12)), store)
        assert tree(store) == before

    def test_a_part_of_a_chunk_at_the_end(self, store):
        append(month(24, 7), store)
        with pytest.raises(ConversionError, match=r"t2m of length 31 .* whole number"):
            append(month(31, 6), store)

    def test_options(self, store, tmp_path):
        with pytest.raises(InvalidConfigError, match="overwrite"):
            append(month(24, 6), store, resume=True, overwrite=True)
        with pytest.raises(ConversionError, match="no 'level'"):
            append(month(24, 6), store, "level")
        with pytest.raises(ConversionError, match="a Zarr store"):
            append(month(24, 6), tmp_path / "nothing.zarr")
        with pytest.raises(ConversionError, match="stopped"):
            (store / ".aesz").mkdir()
            (store / ".aesz" / "plan.json").write_text('{"version": 1}')
            append(month(24, 6), store, resume=True)

    def test_a_source_that_cannot_be_read_leaves_nothing(self, store):
        dask = pytest.importorskip("dask.array")

        def broken(block):
            raise OSError("broken")

        later = month(24, 12)
        later["t2m"] = (
            DIMS,
            dask.from_array(later.t2m.values).map_blocks(broken, dtype="f4"),
            later.t2m.attrs,
        )
        before = tree(store)
        with pytest.raises(ConversionError, match="broken"):
            append(later, store)
        assert tree(store) == before

    def test_the_command(self, tmp_path, capsys):
        convert(month(0, 24), tmp_path / "a.zarr", {"t2m": 0.05}, chunks={"time": CHUNK})
        month(24, 12).to_netcdf(tmp_path / "b.nc")
        month(36, 12).to_netcdf(tmp_path / "c.nc")
        files = [str(tmp_path / "b.nc"), str(tmp_path / "c.nc")]
        assert main(["append", *files, str(tmp_path / "a.zarr"), "--workers", "1"]) == 0
        assert "Appended" in capsys.readouterr().out
        assert main(["append", *files, str(tmp_path / "a.zarr"), "--workers", "1"]) == 2
        assert "later ones than the store's last, 47" in capsys.readouterr().err

    def test_a_crash_at_any_moment(self, store, tmp_path, monkeypatch):
        """Whatever was put last: readers see all of the part or nothing, and going on ends with the same bytes."""
        later, before = month(24, 9, seed=1), tree(store)
        puts, crash_at = [], None
        put = StoreAddress.put

        def crashing(address, key, data):
            if address.path is not None and address.path.suffix == ".zarr" and "lock" not in key:
                if len(puts) == crash_at:
                    raise KeyboardInterrupt
                puts.append(key)
            put(address, key, data)

        def restored(name):
            for key, content in before.items():
                (tmp_path / name / key).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / key).write_bytes(content)
            return tmp_path / name

        monkeypatch.setattr(StoreAddress, "put", crashing)
        append(later, restored("whole.zarr"), scheduler="synchronous")
        expected, count = tree(tmp_path / "whole.zarr"), len(puts)
        assert count >= 7
        for crash_at in range(count):
            puts.clear()
            broken = restored(f"{crash_at}.zarr")
            with pytest.raises(KeyboardInterrupt):
                append(later, broken, scheduler="synchronous")
            with xr.open_zarr(broken, chunks=None) as stored:
                assert stored.sizes["time"] == stored.t2m.shape[0] == 24
            crash_at = None
            append(later, broken, scheduler="synchronous", resume=True)
            assert tree(broken) == expected

    def test_two_at_the_same_time(self, store):
        """One is refused while the other runs; or after it, if it had looked at the store before."""
        refused = []

        def second(event):
            if event.phase == "write" and not refused:
                with pytest.raises(
                    ConversionError, match="another conversion|unfinished|not finished"
                ) as caught:
                    append(month(24, 12), store)
                refused.append(caught.value)

        append(month(24, 12), store, progress=second)
        assert refused
        enter, began = Lock.__enter__, []

        def after_another(lock):
            if not began:
                began.append(lock)
                append(month(36, 12), store)
            return enter(lock)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Lock, "__enter__", after_another)
            with pytest.raises(ConversionError, match="another append has changed"):
                append(month(36, 6), store)
        with xr.open_zarr(store, chunks=None) as stored:
            assert stored.sizes["time"] == 48 and not (store / ".aesz").exists()

    def test_models_come_with_the_store(self, tmp_path):
        model = {"model": "general-interpolation-2"}
        convert(month(0, 12), tmp_path / "a.zarr", {"t2m": 0.05}, chunks={"time": CHUNK}, **model)
        append(month(12, 12), tmp_path / "a.zarr")
        data = both(month(0, 12), month(12, 12))
        convert(data, tmp_path / "b.zarr", {"t2m": 0.05}, chunks={"time": CHUNK}, **model)
        found, expected = tree(tmp_path / "a.zarr"), tree(tmp_path / "b.zarr")
        assert all(found[name] == content for name, content in expected.items() if name.startswith("t2m/c/"))
