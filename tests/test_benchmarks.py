"""The benchmarks: every peer that is installed keeps the bound, the tables say what was measured, the command runs."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import fields, rates, report
from benchmarks.__main__ import main
from benchmarks.peers import FAMILIES, NotApplicable, lattice, select

PACKAGES = {"sz3": "pysz", "sperr": "imagecodecs", "jpegxl": "imagecodecs", "pcodec": "pcodec", "zfp": "zfpy"}
INSTALLED = [family for family in FAMILIES if importlib.util.find_spec(PACKAGES.get(family, "aesz_codec"))]


def arrays():
    field = fields.synthetic((4, 12, 20))
    holes = field.copy()
    holes[:, 3:7, 5:9] = np.nan
    holes[0, 0, :2] = np.nan
    infinite = holes.copy()
    infinite[1, 2, 3], infinite[2, 2, 3] = np.inf, -np.inf
    return {
        "float32": field,
        "float64": field.astype(np.float64),
        "NaN": holes,
        "infinities": infinite,
        "nothing but NaN": np.full_like(field, np.nan),
        "constant": np.full_like(field, 3.5),
        "two axes": field[0],
        "four axes": field.reshape(2, 2, 12, 20),
        "axes of size 1": field[:1, :, :1],
        "two values": field[:1, :1, :2].copy(),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", arrays())
def test_peers_keep_the_bound_and_what_is_not_finite(family, name):
    if family not in INSTALLED:
        pytest.skip(f"{PACKAGES[family]} is not installed")
    array = arrays()[name]
    for peer in select([family], ["default"]):
        for tolerance in (1.0, 1e-2):
            errors = rates.Errors(tolerance)
            for piece in fields.slices(array, peer.max_ndim):
                try:
                    stream = peer.compress(piece, tolerance)
                except NotApplicable:
                    assert family == "sperr" and np.squeeze(piece).ndim < 2
                    continue
                errors.add(piece, peer.decompress(stream, piece.shape, piece.dtype))
            assert errors.violations == 0, peer.name


def test_integers_of_float32_keep_the_bound_near_the_spacing_of_the_values():
    values = np.linspace(9e4, 1e5, 5000, dtype=np.float32)
    spacing = float(np.spacing(values[-1]))
    for tolerance in (0.6 * spacing, 3.3 * spacing):
        codes, place = lattice.quantize(values, tolerance)
        decoded = lattice.dequantize(codes, place, values.dtype)
        assert np.abs(decoded.astype(np.float64) - values).max() <= tolerance
    with pytest.raises(NotApplicable, match="below the spacing"):
        lattice.quantize(values, 0.5 * spacing)


def test_parts_of_a_stream_come_back():
    parts = [b"", b"a" * 127, b"b" * 128, b"", b"c" * 70000, b"d"]
    assert lattice.take_apart(lattice.join(parts), len(parts)) == parts


def test_errors_count_what_did_not_stay_itself():
    original = np.array([1, np.nan, np.inf, 2, 3], np.float32)
    errors = rates.Errors(0.5)
    errors.add(original, np.array([1.5, 7, -np.inf, np.nan, 3.75], np.float32))
    assert (errors.violations, errors.largest) == (4, np.inf)
    errors.add(original, original.astype(np.float64))
    assert errors.violations == 9


def rate(peer, size, **changes):
    made = rates.Rate(
        "f", "float32", "4", "4", "1e-2", 1.0, 400, 100, peer, peer.split("-")[0], size, 0.9, 0, 50.0
    )
    return replace(made, **changes)


def test_the_oracle_is_the_smallest_peer_that_kept_the_bound():
    table = rates.Table(
        [
            rate("sz3-a", 90),
            rate("sz3-b", 80),
            rate("zfp", 40, violations=3),
            rate("sperr", 70),
            rate("aesz-max", 35),
        ]
    )
    assert table.best(("f", "1e-2")).peer == "sperr"
    assert table.best(("f", "1e-2"), "sz3").peer == "sz3-b"
    text = "\n".join(table.parts())
    assert "| oracle / aesz-max | 1e-2 | 1 | **2.000** |" in text
    assert "f 1e-2: 3 values" in text


def test_rows_survive_a_csv_file(tmp_path):
    rows = [rate("sz3-a", 90), rate("zfp", 40, psnr=np.inf, tolerance=0.1 + 0.2)]
    report.write_rows(tmp_path / "rates.csv", rates.Rate, rows)
    assert report.read_rows(tmp_path / "rates.csv", rates.Rate) == rows


def test_chunks_are_cut_to_the_field():
    field = fields.Field("f", "file", "v", (8, 64), fields.DEFAULT_BOUNDS)
    assert field.chunk_shape(np.empty((3, 5, 100))) == (1, 5, 64)
    small = replace(field, small=True)
    assert small.chunk_shape(np.empty((100, 100))) == (64, 64)
    assert small.chunk_shape(np.empty((2, 3, 100, 30))) == (1, 3, 64, 30)
    with pytest.raises(fields.BadArgument, match="chunks of f"):
        field.chunk_shape(np.empty(5))


def test_the_command_measures_a_file(tmp_path, capsys):
    pytest.importorskip("pysz")
    pytest.importorskip("matplotlib")
    xarray = pytest.importorskip("xarray")
    values = fields.synthetic((6, 16, 24))
    variables = {"t": (("time", "lat", "lon"), values), "count": (("time",), np.arange(6))}
    xarray.Dataset(variables).to_netcdf(tmp_path / "f.nc")
    arguments = [
        str(tmp_path / "f.nc"),
        "--peers",
        "aesz,sz3",
        "--efforts",
        "default",
        "--range-rel",
        "1e-2,1e-3",
    ]
    arguments += ["--chunks", "time=4", "--repeats", "1", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--measure", "rates,small-chunks,speed"]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "rates.csv",
        "parts.csv",
        "speed.csv",
        "report.md",
        "rate-distortion.png",
        "ratio-speed.png",
    } <= written
    rows = report.read_rows(tmp_path / "out" / "rates.csv", rates.Rate)
    assert {row.chunks for row in rows} == {"4x16x24"}
    sections = report.read_rows(tmp_path / "out" / "parts.csv", rates.Part)
    for row in rows:
        mine = [part.coded_bytes for part in sections if (part.bound, part.peer) == (row.bound, row.peer)]
        assert row.family != "aesz" or sum(mine) == 2 * row.coded_bytes  # once by section, once by predictor
    text = (tmp_path / "out" / "report.md").read_text()
    assert "best sz3 / aesz-default" in text and "| f:t | 1e-3 |" in text and "(ratio-speed.png)" in text
    assert main(["--measure", "nothing", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "sz2"], "found 'sz2', expected one of aesz, sz3"),
        (["--range-rel", "none"], "expected numbers"),
        (["--measure", "size"], "expected some of rates"),
        (["--chunks", "time=4"], "need a FILE"),
        (["missing.nc"], "cannot be opened"),
    ],
)
def test_bad_arguments_are_said_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AESZ_DATA", raising=False)
    with pytest.raises(SystemExit) as status:
        main([*arguments, "--output", str(tmp_path)])
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zfpy", None)
    monkeypatch.delitem(__import__("sys").modules, "benchmarks.peers.zfp", raising=False)
    with pytest.raises(fields.BadArgument, match=r"aesz-codec\[benchmark\]"):
        select(["zfp"], [])
