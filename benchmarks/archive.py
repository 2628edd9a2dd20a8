"""What converting an archive costs beside the codec alone, what `verify` finds, and what survives `kill -9` and faults.

    python examples/make_archive.py --out era5 --gigabytes 4
    python -m benchmarks.archive era5 --output benchmarks/results/archive

Every measurement is a process of its own. Peak memory is that of the largest process (VmHWM of /proc, so Linux only); CPU
seconds are those of it and its children, and depend less on what else the machine does than the elapsed ones. What a process
takes before it has work (Python, packages, Dask's workers) is measured with an archive of 1 MB. The rows on S3 are tests of
tests/cloud, which start a server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from examples.make_archive import make_archive

BOUNDS = {"t2m": 0.05, "msl": 5.0, "*": ("range_rel", 1e-3)}
_KILLS = 10
_S3 = "opening or requests_that_fail or restarts or client_that_is_killed"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def bare(archive: str, store: str, every: str = "1") -> dict[str, Any]:
    """Code the chunks of a finished store again, or one of so many; reading their values is timed apart."""
    import numpy as np
    import zarr

    from aesz_codec import pipeline
    from aesz_codec._source import open_source
    from aesz_codec._store import open_store, regions

    seconds, coded, cpu, reading, values_coded = 0.0, 0, 0.0, 0.0, 0
    with open_source(f"{archive}/*.nc") as source:
        for name, stored in open_store(store).items():
            if stored.bound is None:
                continue
            array: zarr.Array[Any] = stored.array
            for region in itertools.islice(regions(array.shape, array.chunks), 0, None, int(every)):
                began = time.thread_time()
                values = np.asarray(source.variables[name][region].values)
                reading += time.thread_time() - began
                full = np.full(array.chunks, np.nan, array.dtype)
                full[tuple(slice(0, n) for n in values.shape)] = values
                began, cpu_began = time.perf_counter(), time.thread_time()
                coded += len(pipeline.encode(full, stored.bound, effort=stored.effort or "default"))
                values_coded += values.size
                seconds, cpu = seconds + time.perf_counter() - began, cpu + time.thread_time() - cpu_began
    return {
        "codec_seconds": seconds,
        "codec_cpu_seconds": cpu,
        "reading_cpu_seconds": reading,
        "stored_bytes": coded,
        "values": values_coded,
    }


def convert_it(archive: str, store: str, workers: str, effort: str, existing: str) -> dict[str, Any]:
    """Convert with a number of worker processes."""
    from aesz_codec import convert

    how: dict[str, Any] = {"workers": int(workers), "effort": effort, "memory_limit": "1GB", existing: True}
    summary = convert(f"{archive}/*.nc", store, BOUNDS, **how)
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
        "resumed": summary.resumed,
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
    process = _started(function, *arguments)
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


def _started(function: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.archive", "--run", function, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **_ONE_THREAD}, start_new_session=True
    )


def twice(archive: str, store: str) -> dict[str, Any]:
    """Code a fifth of the chunks in each of two processes at the same time: what two cores have beside one another."""
    both = [_started("bare", archive, store, "5") for _ in range(2)]
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in both]
    return {key: sum(result[key] for result in results) for key in ("codec_cpu_seconds", "values")}


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


def killed(archive: Path, folder: Path) -> dict[str, Any]:
    """Kill conversions of a few files with two workers, all their processes, and go on; then compare every byte."""
    few, whole, store = folder / "few", folder / "whole.zarr", folder / "killed.zarr"
    few.mkdir()
    for file in sorted(archive.glob("*.nc"))[:2]:
        (few / file.name).symlink_to(file.resolve())
    arguments = ("2", "fast", "resume")
    seconds = measured("convert", str(few), str(whole), *arguments)["elapsed"]
    seed, kills, finished = random.randrange(10**6), 0, 0
    moments = random.Random(seed)
    same = True
    while kills < _KILLS:
        process = _started("convert", str(few), str(store), *arguments)
        try:
            process.wait(moments.uniform(0.1, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if store.exists():  # and from the beginning
            finished += 1
            same = same and _tree(store) == _tree(whole)
            shutil.rmtree(store)
    tasks = measured("convert", str(few), str(store), *arguments)["resumed"]
    left = [path.name for path in folder.iterdir() if path.name not in ("few", whole.name, store.name)]
    return {
        "kills": kills,
        "stores": finished + 1,
        "tasks_found_done_by_the_last": tasks,
        "identical": same and _tree(store) == _tree(whole),
        "left_over": left,
        "seed": seed,
    }


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def on_s3(folder: Path) -> dict[str, Any]:
    """Run the tests of faults and of requests against a server of their own."""
    results = folder / "s3.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "tests/cloud",
        "-k",
        _S3,
        f"--junitxml={results}",
    ]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    found: dict[str, Any] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag != "properties"), "passed")
        found[case.attrib["name"]] = {
            "outcome": outcome,
            **{entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")},
        }
    return found


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
    parser.add_argument("--effort", default="default", choices=("fast", "default", "max"))
    parser.add_argument("--scratch", type=Path, help="folder for stores and a damaged copy of the archive")
    options = parser.parse_args()
    results: dict[str, Any] = {"effort": options.effort, "files": len(list(options.archive.glob("*.nc")))}
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder, archive = Path(temporary), str(options.archive)
        store, tiny = folder / "out.zarr", folder / "tiny"
        make_archive(tiny, hours=24, step=4.0)
        how = (options.effort, "overwrite")
        for workers in ("1", "2"):
            results[f"start, {workers}"] = measured("convert", str(tiny), str(store), workers, *how)
            results[f"convert, {workers}"] = measured("convert", archive, str(store), workers, *how)
        results["codec alone"] = measured("bare", archive, str(store))
        results["codec alone, twice"] = twice(archive, str(store))
        results["verify, 2"] = measured("verify", archive, str(store), "2")
        source, other = damaged(options.archive, store, folder)
        results["verify, damaged"] = measured("verify", str(source), str(other), "2")
        shutil.rmtree(source)
        (folder / "kills").mkdir()
        results["kill -9"] = killed(options.archive, folder / "kills")
        results["S3"] = on_s3(folder)
    results["machine"] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "archive.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "archive.md").write_text(table(results))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """Lay the results out."""
    one, two, alone = results["convert, 1"], results["convert, 2"], results["codec alone"]
    megabytes = one["raw_bytes"] / 1e6
    codec, reading = alone["codec_cpu_seconds"], alone["reading_cpu_seconds"]
    starts = [results[f"start, {workers}"]["cpu_seconds"] for workers in (1, 2)]
    at_work = [one["cpu_seconds"] - starts[0], two["cpu_seconds"] - starts[1]]
    rows = [
        ("codec alone, one thread", alone["codec_seconds"], codec, alone["peak_bytes"][0]),
        ("convert, 1 worker", one["seconds"], one["cpu_seconds"], one["peak_bytes"][0]),
        ("convert, 2 workers", two["seconds"], two["cpu_seconds"], max(two["peak_bytes"])),
    ]
    lines = [
        "# An archive, converted whole",
        "",
        "`python -m benchmarks.archive`, whose docstring says what is measured. Elapsed seconds are those of a machine that "
        "may have other work: see its load.",
        "",
        f"{megabytes:.0f} MB in {results['files']} files, effort `{results['effort']}`, ratio {one['ratio']:.2f}, "
        f"largest error / bound {one['largest_error_over_bound']:.4f}; "
        f"{results['machine']['cores']} cores, load of the machine at the end "
        f"{results['machine']['load']:.1f}.",
        "",
        "| | seconds | MB/s | CPU seconds | peak MB of a process |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {n} | {s:.1f} | {megabytes / s:.1f} | {c:.1f} | {m / 1e6:.0f} |" for n, s, c, m in rows]
    parts = ", ".join(f"{key} {value:.1f}" for key, value in one["worker_seconds"].items())
    checked, found = results["verify, 2"], results["verify, damaged"]
    kills, s3 = results["kill -9"], results["S3"]
    double = results["codec alone, twice"]
    beside = double["codec_cpu_seconds"] / double["values"] / (codec / alone["values"])
    lines += [
        "",
        f"Of the CPU seconds, processes take {starts[0]:.1f} (one worker) and {starts[1]:.1f} (two) before they have work. "
        f"Of the rest, of one worker, the codec alone is {codec / at_work[0]:.2f}, with reading the source once "
        f"{(codec + reading) / at_work[0]:.2f} (of all: {codec / one['cpu_seconds']:.2f}); "
        f"by elapsed seconds {alone['codec_seconds'] / one['seconds']:.2f}. "
        f"One worker's elapsed seconds: {parts}.",
        "",
        f"Two workers against one: {one['seconds'] / two['seconds']:.2f} by elapsed seconds; work of two takes "
        f"{at_work[1] / at_work[0]:.2f} of the CPU seconds of one, so {2 * at_work[0] / at_work[1]:.2f} where both have a core. "
        f"The codec alone takes {beside:.2f} of its CPU seconds a value where two processes code beside one another.",
        "",
        f"`verify` with two workers: {checked['values']:,} values in {checked['seconds']:.1f} s, ok: {checked['ok']}, peak "
        f"{max(checked['peak_bytes']) / 1e6:.0f} MB. With one value moved and one byte flipped: {found['violations']} value "
        f"outside, at {found['first']}; unreadable: {found['unreadable']}.",
        "",
        f"`kill -9` of client and workers at {kills['kills']} random moments of converting two files ({kills['stores']} stores, "
        f"seed {kills['seed']}), each time gone on with `--resume`: bytes identical: {kills['identical']}, "
        f"left over: {kills['left_over']}.",
        "",
        "On an S3 server (tests/cloud):",
        "",
        *(
            f"- `{name}`: {case['outcome']}" + (f"; {case['requests']}" if "requests" in case else "")
            for name, case in s3.items()
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
