"""What converting an archive costs beside the codec alone: time, memory of each worker, and what `verify` finds.

    python examples/make_archive.py --out era5 --gigabytes 4
    python -m benchmarks.archive era5 --output benchmarks/results/archive

Every measurement is a process of its own. Peak memory is that of the largest process (VmHWM of /proc, so Linux only); CPU
seconds are those of it and its children, and do not depend on what else the machine does as the elapsed ones do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BOUNDS = {"t2m": 0.05, "msl": 5.0, "*": ("range_rel", 1e-3)}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def bare(archive: str, store: str) -> dict[str, Any]:
    """Code the chunks of a finished store again, one after another, from arrays in memory: the codec and nothing else."""
    import numpy as np
    import zarr

    from aesz_codec import pipeline
    from aesz_codec._source import open_source
    from aesz_codec._store import open_store, regions

    seconds, coded, cpu = 0.0, 0, 0.0
    with open_source(f"{archive}/*.nc") as source:
        for name, stored in open_store(store).items():
            if stored.bound is None:
                continue
            array: zarr.Array[Any] = stored.array
            for region in regions(array.shape, array.chunks):
                values = np.asarray(source.variables[name][region].values)
                full = np.full(array.chunks, np.nan, array.dtype)
                full[tuple(slice(0, n) for n in values.shape)] = values
                began, cpu_began = time.perf_counter(), time.thread_time()
                coded += len(pipeline.encode(full, stored.bound, effort=stored.effort or "default"))
                seconds, cpu = seconds + time.perf_counter() - began, cpu + time.thread_time() - cpu_began
    return {"codec_seconds": seconds, "codec_cpu_seconds": cpu, "stored_bytes": coded}


def convert_it(archive: str, store: str, workers: str) -> dict[str, Any]:
    """Convert with a number of worker processes."""
    from aesz_codec import convert

    summary = convert(
        f"{archive}/*.nc", store, BOUNDS, workers=int(workers), memory_limit="1GB", overwrite=True
    )
    timings: dict[str, float] = {}
    for variable in summary.variables:
        for key, value in variable.timings.items():
            timings[key] = timings.get(key, 0.0) + value
    return {
        "seconds": summary.seconds,
        "raw_bytes": summary.raw_bytes,
        "stored_bytes": summary.stored_bytes,
        "ratio": summary.compression_ratio,
        "largest_error_over_bound": max(v.errors.max_error_over_bound for v in summary.variables),
        "worker_seconds": timings,
    }


def verify_it(archive: str, store: str, workers: str) -> dict[str, Any]:
    """Compare a store with its source."""
    from aesz_codec import verify

    began = time.perf_counter()
    report = verify(f"{archive}/*.nc", store, workers=int(workers))
    return {
        "seconds": time.perf_counter() - began,
        "ok": report.ok,
        "values": sum(v.n for v in report.variables),
        "violations": sum(v.violations for v in report.variables),
        "unreadable": [[v.name, list(chunk.index)] for v in report.variables for chunk in v.unreadable],
        "first": next((list(v.first.index) for v in report.variables if v.first is not None), None),
    }


def measured(function: str, *arguments: str) -> dict[str, Any]:
    """Run one of the functions above in a process of its own, watched."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.archive", "--run", function, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **_ONE_THREAD})
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    began = time.perf_counter()
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{function} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    result["elapsed"] = time.perf_counter() - began
    result["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result["peak_bytes"] = sorted(peaks.values(), reverse=True)[:3]
    return result


def _watch(process: subprocess.Popen[str], peaks: dict[int, int]) -> None:
    while process.poll() is None:
        for pid in _family(process.pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
            if line is not None:
                peaks[pid] = max(peaks.get(pid, 0), 1024 * int(line.split()[1]))
        time.sleep(0.1)


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            found.extend(int(child) for task in tasks for child in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def damaged(archive: Path, store: Path, folder: Path) -> tuple[Path, Path]:
    """Copy both: one value of the source is moved out of its bound, one byte of the store is flipped."""
    import netCDF4

    source, other = folder / "archive", folder / "store.zarr"
    shutil.copytree(archive, source)
    shutil.copytree(store, other)
    with netCDF4.Dataset(sorted(source.glob("*.nc"))[-1], "r+") as file:
        file["t2m"][0, 100, 200] += 1
    chunk = next(path for path in sorted((other / "msl" / "c").rglob("*")) if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    return source, other


def main() -> None:
    """Measure all, and write ``archive.json`` and ``archive.md``."""
    if sys.argv[1:2] == ["--run"]:
        function = {"bare": bare, "convert": convert_it, "verify": verify_it}[sys.argv[2]]
        print(json.dumps(function(*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="folder with the files of examples/make_archive.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary) / "out.zarr"
        for workers in ("1", "2"):
            results[f"convert, {workers}"] = measured("convert", str(options.archive), str(store), workers)
        results["codec alone"] = measured("bare", str(options.archive), str(store))
        results["verify, 2"] = measured("verify", str(options.archive), str(store), "2")
        source, other = damaged(options.archive, store, Path(temporary))
        results["verify, damaged"] = measured("verify", str(source), str(other), "2")
    results["machine"] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "archive.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "archive.md").write_text(table(results))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """Lay the results out."""
    one, two, alone = results["convert, 1"], results["convert, 2"], results["codec alone"]
    megabytes = one["raw_bytes"] / 1e6
    rows = [
        (
            "codec alone, one thread",
            alone["codec_seconds"],
            alone["codec_cpu_seconds"],
            alone["peak_bytes"][0],
        ),
        ("convert, 1 worker", one["seconds"], one["cpu_seconds"], one["peak_bytes"][0]),
        ("convert, 2 workers", two["seconds"], two["cpu_seconds"], max(two["peak_bytes"])),
    ]
    lines = [
        f"{megabytes:.0f} MB in 24 files, ratio {one['ratio']:.2f}, largest error / bound {one['largest_error_over_bound']:.4f}; "
        f"{results['machine']['cores']} cores, load of the machine at the end {results['machine']['load']:.1f}.",
        "",
        "| | seconds | MB/s | CPU seconds | peak MB of a process |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {n} | {s:.1f} | {megabytes / s:.1f} | {c:.1f} | {m / 1e6:.0f} |" for n, s, c, m in rows]
    parts = ", ".join(f"{key} {value:.1f}" for key, value in one["worker_seconds"].items())
    checked, found = results["verify, 2"], results["verify, damaged"]
    lines += [
        "",
        f"Of one worker's seconds: {parts}. Throughput of the codec that one worker reaches: "
        f"{alone['codec_seconds'] / one['seconds']:.2f}, by CPU seconds "
        f"{alone['codec_cpu_seconds'] / one['cpu_seconds']:.2f}. Two workers against one: {one['seconds'] / two['seconds']:.2f}.",
        "",
        f"`verify` with two workers: {checked['values']:,} values in {checked['seconds']:.1f} s, ok: {checked['ok']}, peak "
        f"{max(checked['peak_bytes']) / 1e6:.0f} MB. With one value moved and one byte flipped: {found['violations']} value "
        f"outside, at {found['first']}; unreadable: {found['unreadable']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
