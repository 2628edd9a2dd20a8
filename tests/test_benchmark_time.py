"""The benchmark of time: its variants of the codec keep the bound and see what they should, its Huffman code decodes."""

import json

import numpy as np
import pytest
import zstandard

from aesz_codec import pipeline
from benchmarks import fields, rates, report

pytest.importorskip("pysz")
from benchmarks import time as benchmark

FIELD = fields.synthetic((12, 24, 32))


@pytest.mark.parametrize("shape", [(12, 24, 32), (4, 3, 24, 32)])
@pytest.mark.parametrize(
    "peer",
    [
        benchmark.WithoutTime(),
        benchmark.WithoutTime("max"),
        benchmark.WithoutForecasts(),
        benchmark.WithNoise(),
        benchmark.Forced(distance=0),
        benchmark.Forced(distance=4),
        benchmark.Forced(distance=1, forecaster="noise"),
        benchmark.Forced(distance=4, forecaster="motion"),
    ],
    ids=lambda peer: peer.name,
)
def test_variants_keep_the_bound(peer, shape):
    values = FIELD.reshape(shape).copy()
    values[1, ..., :3, 5:7] = np.nan
    for tolerance in (0.02, 0.5):
        with benchmark._known():
            errors = rates.Errors(tolerance)
            errors.add(values, peer.decompress(peer.compress(values, tolerance), shape, values.dtype))
        assert errors.violations == 0


def test_without_time_nothing_is_gained_from_frames_that_are_the_same():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(1, 32, 32)), 12, axis=0).astype("f4")
    other = rng.normal(size=(12, 32, 32)).astype("f4")
    for tolerance in (0.02, 0.3):
        sizes = [len(benchmark.WithoutTime().compress(values, tolerance)) for values in (same, other)]
        assert sizes[0] > 0.8 * sizes[1]
        assert len(benchmark.Aesz().compress(same, tolerance)) < 0.3 * sizes[0]


def test_what_forecasts_are_without():
    stream = benchmark.WithoutForecasts().compress(FIELD, 0.02)
    assert pipeline.describe(stream).predictor != "frames"
    with benchmark._known():
        forced = pipeline.describe(benchmark.Forced(forecaster="noise").compress(FIELD, 0.02))
    assert (forced.predictor, forced.parameters["forecaster"]) == ("frames", "noise")


@pytest.mark.parametrize("spread", [0.0, 0.6, 40.0])
def test_huffman_decodes(spread):
    values = np.rint(np.random.default_rng(1).normal(0, spread, 500)).astype(np.int64)
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    coded = benchmark._huffman(values)
    table = decompressor.decompress(coded)
    bits = np.unpackbits(np.frombuffer(zstandard.decompress(decompressor.unused_data), np.uint8))
    n = len(table) // 5
    symbols = np.cumsum(np.frombuffer(table[: 4 * n], np.int32))
    lengths = np.frombuffer(table[4 * n :], np.uint8)
    codes, code, last = {}, 0, 0
    for i in np.argsort(lengths, kind="stable"):
        code <<= int(lengths[i]) - last
        last = int(lengths[i])
        codes[format(code, f"0{last}b")] = int(symbols[i])
        code += 1
    decoded, word = [], ""
    for bit in bits:
        word += str(bit)
        if word in codes and len(decoded) < len(values):
            decoded.append(codes[word])
            word = ""
    assert decoded == values.tolist()
    counts = np.unique(values, return_counts=True)[1]
    entropy = -(counts * np.log2(counts / len(values))).sum()
    assert entropy <= (counts * lengths).sum() <= entropy + len(values)


def test_the_command_measures_a_suite(tmp_path):
    series = np.concatenate([fields.synthetic((8, 16, 24), seed) for seed in range(3)])
    series[:, :2, 3] = np.nan
    np.save(tmp_path / "series.npy", series)
    entries = [{"id": "series", "chunks": [4, 16, 24]}, {"id": "frame", "chunks": [16, 24]}]
    (tmp_path / "suite.json").write_text(json.dumps({"range_rel": [1e-2, 1e-3], "fields": entries}))
    (tmp_path / "load.py").write_text(
        "import pathlib, numpy\ndef load(name):\n"
        "    return numpy.load(pathlib.Path(__file__).parent / 'series.npy'), {}\n"
    )
    arguments = ["--suite", str(tmp_path), "--parts", "dataset,peers,study", "--efforts", "default"]
    assert benchmark.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    rows = report.read_rows(tmp_path / "out" / "dataset.csv", benchmark.Cell)
    assert {row.series for row in rows} == {"series"}
    assert all(row.violations == 0 and row.max_error_over_bound <= 1 for row in rows)
    found = report.read_rows(tmp_path / "out" / "study.csv", benchmark.Forecasted)
    assert {row.predictor for row in found} == set(benchmark._PREDICTORS)
    assert all(0 <= row.gain <= 1 and row.coded_bytes > 0 for row in found)
    text = (tmp_path / "out" / "time.md").read_text()
    assert "## The dataset level" in text and "## The study in small" in text
    with pytest.raises(SystemExit):
        benchmark.main(["--suite", str(tmp_path), "--parts", "nothing"])


def test_some_chunks_of_a_long_series_keep_its_range(tmp_path):
    values = np.arange(40.0, dtype="f4")[:, None, None] * np.ones((1, 8, 8), "f4")
    np.save(tmp_path / "series.npy", values)
    (tmp_path / "suite.json").write_text(
        json.dumps({"range_rel": [1e-2], "fields": [{"id": "s", "chunks": [4, 8, 8]}]})
    )
    (tmp_path / "load.py").write_text(
        "import pathlib, numpy\ndef load(name):\n"
        "    return numpy.load(pathlib.Path(__file__).parent / 'series.npy'), {}\n"
    )
    (field,) = fields.suite_fields(tmp_path / "suite.json")
    short = benchmark._short(field, 12)
    part = short.read("float32")
    assert part[:, 0, 0].tolist() == [4, 5, 6, 7, 20, 21, 22, 23, 32, 33, 34, 35]
    assert short.bounds[0].tolerance(part) == pytest.approx(0.39) and short.bounds[0].label == "1e-2"
    assert benchmark._short(field, 40).read("float32").shape == values.shape
