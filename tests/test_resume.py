"""Exactly once: a conversion that was killed goes on, and ends with the bytes of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aesz_codec._store import open_address
from aesz_codec.cli import main
from aesz_codec.conversion import convert
from aesz_codec.conversion.journal import Journal, Lock
from aesz_codec.errors import ConversionError
from aesz_codec.inspection import inspect_store
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")
SHAPE = (120, 50, 64)
KILLS = int(os.environ.get("AESZ_KILLS", "4"))
ARGUMENTS = {"error_bound": {"v": 0.05, "w": ("range_rel", 1e-3)}, "chunks": {"time": 2}, "effort": "fast"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "in.nc"
    noise = np.random.default_rng(0).normal(size=SHAPE).cumsum(axis=0).astype("float32")
    xr.Dataset({"v": (DIMS, noise), "w": (DIMS, noise[::-1])}, {"lon": np.arange(1.0 * SHAPE[2])}).to_netcdf(
        path
    )
    return path


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    convert(source, folder / "out.zarr", **ARGUMENTS, shards=None)
    return tree(folder)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def stopped(source, store, after, **options):
    """Convert, and stop after a share of the tasks: what is there is what a crash leaves, without its lock."""

    def stop(event):
        if event.phase == "write" and event.variable == "v" and event.done >= after * event.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, store, **{**ARGUMENTS, "shards": None, **options}, progress=stop)


SCRIPT = """
import sys
from aesz_codec.conversion import convert
if __name__ == "__main__":
    arguments = eval(sys.argv[3])
    summary = convert(sys.argv[1], sys.argv[2], **arguments)
    print(summary.resumed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("options", [{}, {"workers": 2}], ids=["threads", "processes"])
def test_kill_9_at_random_moments(source, expected, tmp_path, options):
    store, seed = tmp_path / "out.zarr", random.randrange(10**6)
    moments = random.Random(seed)
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(SCRIPT)
    kills = KILLS if not options else 1
    killed = 0
    for resume in [True] * kills:
        arguments = repr({**ARGUMENTS, "shards": None, "resume": resume, **options})
        process = subprocess.Popen(
            [sys.executable, str(script), str(source), str(store), arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        plan = tmp_path / "out.zarr.partial" / ".aesz" / "plan.json"
        lock = plan.with_name("lock")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if plan.exists() and lock.exists() and f'"pid": {process.pid},' in lock.read_text():
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.6))
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.communicate()
        if not store.exists():
            with pytest.raises(ConversionError, match="never finished.*--resume"):
                inspect_store(store)
    summary = convert(source, store, **ARGUMENTS, shards=None, resume=True)
    assert killed, seed
    assert summary.variables[0].errors.n == SHAPE[0] * SHAPE[1] * SHAPE[2]
    assert tree(tmp_path) == expected, seed  # and nothing else is there
    assert verify(source, store).ok


class TestResume:
    def test_only_what_is_missing_is_done(self, source, expected, tmp_path):
        stopped(source, tmp_path / "out.zarr", after=0.5)
        before = {
            p: p.stat().st_mtime_ns
            for p in (tmp_path / "out.zarr.partial" / "v" / "c").rglob("*")
            if p.is_file()
        }
        assert 20 < len(before) < 60
        events = []
        summary = convert(
            source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True, progress=events.append
        )
        assert summary.resumed >= 25
        assert min(e.done for e in events if e.variable == "v") >= SHAPE[0] * SHAPE[1] * SHAPE[2] * 4 // 2
        assert not any(e.phase == "range" for e in events)  # the journal has it
        partial = tmp_path / "out.zarr.partial"
        kept = [
            p
            for p, at in before.items()
            if (tmp_path / "out.zarr" / p.relative_to(partial)).stat().st_mtime_ns == at
        ]
        assert len(kept) >= 25
        assert tree(tmp_path) == expected

    @pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
    def test_what_was_written_is_checked(self, source, expected, tmp_path, damage):
        stopped(source, tmp_path / "out.zarr", after=0.5)
        path = tmp_path / "out.zarr.partial" / "v" / "c" / "3" / "0" / "0"
        content = bytearray(path.read_bytes())
        content[100] ^= 4
        {
            "flip": lambda: path.write_bytes(content),
            "truncate": lambda: path.write_bytes(content[:50]),
            "delete": path.unlink,
        }[damage]()
        convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True)
        assert tree(tmp_path) == expected

    def test_the_measurements_are_those_of_one_run(self, source, tmp_path):
        stopped(source, tmp_path / "a.zarr", after=0.3)
        a = convert(source, tmp_path / "a.zarr", **ARGUMENTS, shards=None, resume=True)
        b = convert(source, tmp_path / "b.zarr", **ARGUMENTS, shards=None)
        for x, y in zip(a.variables, b.variables, strict=True):
            assert x.errors.n == y.errors.n and x.errors.max_abs_error == y.errors.max_abs_error
            assert x.errors.sum_squared_error == pytest.approx(y.errors.sum_squared_error)
            assert (x.stored_bytes, x.histogram, x.predictors) == (y.stored_bytes, y.histogram, y.predictors)

    def test_with_more_memory(self, tmp_path):
        """The work is cut into other tasks than before: those that are not the same are done again."""
        noise = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
        lying = {"v": {"chunksizes": (SHAPE[0], 5, 8)}}
        xr.Dataset({"v": (DIMS, noise)}).to_netcdf(tmp_path / "in.nc", encoding=lying)
        arguments = {"error_bound": 0.05, "chunks": {"time": 2}, "effort": "fast", "shards": None}

        def stop(event):
            if event.phase == "write" and event.done > event.total // 2:
                raise KeyboardInterrupt

        with pytest.warns(UserWarning, match="is read"), pytest.raises(KeyboardInterrupt):
            convert(
                tmp_path / "in.nc", tmp_path / "a.zarr", **arguments, memory_limit=300_800_000, progress=stop
            )
        assert len(list((tmp_path / "a.zarr.partial" / "v" / "c").iterdir())) > 10
        convert(tmp_path / "in.nc", tmp_path / "a.zarr", **arguments, resume=True)
        convert(tmp_path / "in.nc", tmp_path / "b.zarr", **arguments)
        assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")

    def test_with_nothing_there_it_begins(self, source, expected, tmp_path):
        convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True)
        assert tree(tmp_path) == expected

    def test_a_store_that_is_finished(self, source, tmp_path):
        convert(source, tmp_path / "out.zarr", **ARGUMENTS)
        with pytest.raises(ConversionError, match="exists, finished"):
            convert(source, tmp_path / "out.zarr", **ARGUMENTS, resume=True)

    def test_killed_after_the_rename(self, source, expected, tmp_path, monkeypatch):
        """Finished, and its journal not yet deleted."""
        from aesz_codec.conversion.run import Target

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Target, "tidy", interrupt)
            convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None)
        assert (tmp_path / "out.zarr" / ".aesz" / "plan.json").exists()
        assert {v.name for v in inspect_store(tmp_path / "out.zarr").variables} == {"v", "w"}
        summary = convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True)
        assert summary.resumed == 120
        assert tree(tmp_path) == expected

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"error_bound": {"v": 0.1, "w": ("range_rel", 1e-3)}}, "bounds"),
            ({"chunks": {"time": 4}}, "chunks"),
            ({"effort": "default"}, "effort"),
            ({"zarr_format": 2}, "zarr_format"),
        ],
        ids=str,
    )
    def test_other_arguments_are_refused(self, source, tmp_path, changed, words):
        stopped(source, tmp_path / "out.zarr", after=0.2)
        before = tree(tmp_path)
        with pytest.raises(ConversionError, match=f"resume: found {words}.*same arguments"):
            convert(source, tmp_path / "out.zarr", **{**ARGUMENTS, "shards": None, "resume": True, **changed})
        assert tree(tmp_path) == before

    def test_another_source_is_refused(self, source, tmp_path):
        shutil.copy(source, tmp_path / "in.nc")
        stopped(tmp_path / "in.nc", tmp_path / "out.zarr", after=0.2)
        os.utime(tmp_path / "in.nc")
        with pytest.raises(ConversionError, match="files that have changed"):
            convert(tmp_path / "in.nc", tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}', b'{"version": 1}'])
    def test_a_damaged_journal(self, source, expected, tmp_path, content):
        stopped(source, tmp_path / "out.zarr", after=0.2)
        (tmp_path / "out.zarr.partial" / ".aesz" / "plan.json").write_bytes(content)
        with pytest.raises(ConversionError, match="--overwrite"):
            convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True)
        convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, overwrite=True)
        assert tree(tmp_path) == expected


def interrupt(*ignored):
    raise KeyboardInterrupt


class TestUnfinished:
    def test_inspect_says_how_far_it_is(self, source, tmp_path, capsys):
        stopped(source, tmp_path / "out.zarr", after=0.5)
        for name in ("out.zarr", "out.zarr.partial"):
            assert main(["inspect", str(tmp_path / name)]) == 2
            error = capsys.readouterr().err
            assert "unfinished" in error and "of 120 tasks done" in error and "--resume" in error
        with pytest.raises(Exception, match=r"out\.zarr"):
            xr.open_zarr(tmp_path / "out.zarr")

    def test_it_is_refused_without_a_word(self, source, tmp_path):
        stopped(source, tmp_path / "out.zarr", after=0.5)
        with pytest.raises(ConversionError, match=r"unfinished.*--resume.*--overwrite"):
            convert(source, tmp_path / "out.zarr", **ARGUMENTS)

    def test_a_full_disk_and_on(self, source, expected, tmp_path):
        """A limit on the size of files stands in for the disk; then there is room again."""
        arguments = repr({**ARGUMENTS, "shards": None})
        limit = limit_for(expected)
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        script = tmp_path.parent / f"{tmp_path.name}.py"
        script.write_text(limited + SCRIPT)
        done = subprocess.run(
            [sys.executable, str(script), str(source), str(tmp_path / "out.zarr"), arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "File too large" in done.stderr and "go on with resume (--resume)" in done.stderr
        convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, resume=True)
        assert tree(tmp_path) == expected


def limit_for(expected):
    """Return a size that the first chunks have, and later ones exceed."""
    sizes = [len(expected[f"out.zarr/v/c/{i}/0/0"]) for i in range(60)]
    return max(sizes[:10]) + 1 if max(sizes[10:]) > max(sizes[:10]) else sorted(sizes)[30]


class TestLock:
    def test_two_converters_refuse_each_other(self, source, tmp_path):
        """The second one begins while the first is at work."""
        refused = []

        def second(event):
            if event.phase == "write" and not refused:
                for options in ({"resume": True}, {"overwrite": True}):
                    with pytest.raises(
                        ConversionError, match=f"another conversion.*process {os.getpid()}"
                    ) as caught:
                        convert(source, tmp_path / "out.zarr", **ARGUMENTS, **options)
                    refused.append(caught.value)

        convert(source, tmp_path / "out.zarr", **ARGUMENTS, progress=second)
        assert len(refused) == 2
        assert verify(source, tmp_path / "out.zarr").ok

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a minute passes first")
    def test_a_dead_process_has_no_lock(self, tmp_path):
        address = open_address(tmp_path / "a.zarr")
        with Lock(address):
            taken = json.loads(address.get(".aesz/lock"))
        for changed in ({"began": "1"}, {"pid": 2**22 + 1}):
            address.put(".aesz/lock", json.dumps({**taken, **changed}).encode())
            with Lock(address):
                pass
        address.put(".aesz/lock", json.dumps(taken).encode())
        with pytest.raises(ConversionError, match="another conversion"), Lock(address):
            pass

    @pytest.mark.parametrize(("age", "free"), [(10, False), (100, True)])
    def test_another_machine_is_given_a_minute(self, tmp_path, age, free):
        address = open_address(tmp_path / "a.zarr")
        other = {
            "owner": "x",
            "host": "elsewhere",
            "system": "?",
            "pid": 1,
            "began": "2",
            "renewed": time.time() - age,
        }
        address.put(".aesz/lock", json.dumps(other).encode())
        if free:
            with Lock(address):
                assert json.loads(address.get(".aesz/lock"))["owner"] != "x"
            assert address.get(".aesz/lock") is None
        else:
            with pytest.raises(ConversionError, match="process 1 on elsewhere"), Lock(address):
                pass

    def test_a_lock_that_is_taken_away_ends_the_conversion(self, source, tmp_path, monkeypatch):
        monkeypatch.setattr("aesz_codec.conversion.journal._RENEW_SECONDS", 0.01)
        lock = tmp_path / "out.zarr.partial" / ".aesz" / "lock"

        def take(event):
            if event.phase == "write":
                lock.write_text(json.dumps({"owner": "somebody", "pid": 1, "host": "elsewhere"}))
                time.sleep(0.2)

        with pytest.raises(ConversionError, match="another conversion"):
            convert(source, tmp_path / "out.zarr", **ARGUMENTS, shards=None, progress=take)
        assert not (tmp_path / "out.zarr").exists()


def test_records_survive_json(source, tmp_path):
    stopped(source, tmp_path / "out.zarr", after=0.2)
    address = open_address(tmp_path / "out.zarr.partial")
    journal = Journal.find(address)
    for record in journal.records.values():
        again = type(record).from_json(json.loads(json.dumps(record.to_json())))
        assert again.to_json() == record.to_json()
        assert record.errors.n == 2 * SHAPE[1] * SHAPE[2] and record.objects
