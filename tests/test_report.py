"""The report of a conversion: what it says is what was measured, and it can be read on a phone, without a network."""

import base64
import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr

from aesz_codec.cli import main
from aesz_codec.conversion import convert
from aesz_codec.errors import AESZError

pytest.importorskip("matplotlib")

DIMS = ("time", "lat", "lon")
SHAPE = (12, 40, 60)
BOUNDS = {
    "t2m": 0.05,
    "msl": ("range_rel", 1e-3),
    "rain <mm>": ("pw_rel", 0.01),
    "w": "lossless",
    "line": 0.1,
}
BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("AESZ_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "in.nc"
    t, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    field = (280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3)).astype("float32")
    holes = field.copy()
    holes[:, :5] = np.nan
    xr.Dataset(
        {
            "t2m": (DIMS, field, {"units": "K"}),
            "msl": (DIMS, holes.astype("float64"), {"units": "Pa"}),
            "rain <mm>": (DIMS, np.maximum(field - 283, 0)),
            "w": (DIMS, field),
            "line": ("time", field[:, 0, 0]),
            "flags": ("lat", np.arange(40)),
        }
    ).to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    summary = convert(source, folder / "out.zarr", BOUNDS, chunks={"time": 4}, report=folder / "report.html")
    return folder, summary


def test_the_numbers_are_those_of_the_data(source, made):
    folder, summary = made
    content = json.loads((folder / "report.json").read_text())
    assert content["compression_ratio"] == summary.compression_ratio
    assert (content["copied"], content["skipped"]) == (["flags"], [])
    entries = {entry["name"]: entry for entry in content["variables"]}
    assert set(entries) == set(BOUNDS)
    with xr.open_dataset(source) as data, xr.open_zarr(folder / "out.zarr", chunks=None) as stored:
        x, x_hat = data.t2m.values.astype("f8"), stored.t2m.values.astype("f8")
    t2m = entries["t2m"]
    assert t2m["max_abs_error"] == np.abs(x - x_hat).max()
    assert t2m["psnr"] == pytest.approx(
        20 * np.log10((x.max() - x.min()) / np.sqrt(np.mean((x - x_hat) ** 2)))
    )
    assert t2m["values"] == x.size and t2m["values_outside"] == 0
    assert sum(t2m["predictors"].values()) == 3
    assert set(t2m["seconds"]) == {"read", "encode", "check", "write"}
    assert (
        entries["w"]["psnr"] is None
        and entries["w"]["max_error_over_bound"] is None
        and not entries["w"]["histogram"]
    )
    assert "spectrum" not in entries["line"]


def test_the_histogram_is_of_errors_over_their_bound(source, made):
    folder, _ = made
    entries = {
        entry["name"]: entry for entry in json.loads((folder / "report.json").read_text())["variables"]
    }
    with xr.open_dataset(source) as data, xr.open_zarr(folder / "out.zarr", chunks=None) as stored:
        error = (stored.t2m.values.astype("f8") - data.t2m.values)[:4].reshape(-1)[::2] / 0.05
    first, _ = np.histogram(error, 64, (-1, 1))
    counts = np.array(entries["t2m"]["histogram"])
    assert counts.sum() == 3 * error.size
    assert (counts >= first).all()
    assert sum(entries["msl"]["histogram"]) < counts.sum()  # gaps have no error


def test_the_spectrum_is_that_of_the_middle_frame(source, made):
    folder, _ = made
    spectrum = json.loads((folder / "report.json").read_text())["variables"][0]["spectrum"]
    with xr.open_dataset(source) as data:
        frame = data.t2m.values[6].astype("f8")
    power = (
        np.mean(np.abs(np.fft.rfft(frame - frame.mean(1, keepdims=True), axis=1)) ** 2, axis=0)[1:] / 60**2
    )
    assert spectrum["wavenumber"][:3] == [1, 2, 3]
    np.testing.assert_allclose(spectrum["original"][:3], power[:3])
    assert max(spectrum["error"]) < max(spectrum["original"])


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.sections, self.tags, self.words = [], [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "section":
            self.sections.append(given["id"])

    def handle_data(self, data):
        self.words += data + " "


def test_the_page_is_whole_and_alone(made):
    folder, _ = made
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.sections == [f"variable-{name}" for name in BOUNDS]
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"""(src|href)=["'](?!data:)""", text) and "url(" not in text
    assert "Each of 115,212 values is within its bound" in page.words
    assert "rain <mm>" in page.words and "Copied exactly, without this codec: flags" in page.words
    for image in page.images:
        kind, data = re.match(r"data:image/(png|svg\+xml);base64,(.*)", image["src"]).groups()
        assert base64.b64decode(data).startswith(b"\x89PNG" if kind == "png" else b"<?xml")
        assert image["alt"]
    # maps, histogram and spectra: of three lossy fields; of the lossless one no histogram; of the line only that
    assert len(page.images) == 3 * 3 + 2 + 1


MEASURE = """<script>
const smallest = Math.min(...[...document.querySelectorAll('p,dd,dt,span,b,figcaption')].map(
  e => parseFloat(getComputedStyle(e).fontSize)));
const images = [...document.images];
const wide = [...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length;
document.body.innerText.length;
document.title = JSON.stringify({width: innerWidth, scroll: document.documentElement.scrollWidth, smallest, wide,
  drawn: images.filter(i => i.complete && i.naturalWidth > 100 && i.getBoundingClientRect().width > 250).length,
  images: images.length, verdict: document.getElementById('verdict').innerText,
  ratio: document.querySelector('section .numbers b').innerText});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: AESZ_CHROMIUM names one")
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_legible_in_a_browser(made, tmp_path, width):
    folder, summary = made
    text = (folder / "report.html").read_text().replace("</body>", f"{MEASURE}</body>")
    (tmp_path / "page.html").write_text(text)
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += [f"--window-size={width},844", "--hide-scrollbars", "--virtual-time-budget=3000", "--dump-dom"]
    shown = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], check=True, capture_output=True, text=True, timeout=100
    ).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    assert found["width"] == width
    assert found["scroll"] <= width and found["wide"] == 0  # nothing reaches beyond the screen
    assert found["smallest"] >= 14
    assert found["drawn"] == found["images"] == 12
    assert found["verdict"].startswith("Each of")
    assert found["ratio"] == f"{summary.variables[0].compression_ratio:.2f}"


def test_the_command_writes_it(source, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert main(["convert", str(source), str(tmp_path / "o.zarr"), "--abs", "0.1", "--report", str(out)]) == 0
    assert f"Report: {out}" in capsys.readouterr().out
    assert out.exists() and out.with_suffix(".json").exists()


@pytest.mark.parametrize("name", ["nowhere/report.html", ".", "report.json"])
def test_a_place_where_it_cannot_be(source, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AESZError, match="report"):
        convert(source, "out.zarr", 0.1, report=name)
    assert list(tmp_path.iterdir()) == []


def test_models_and_when_they_have_paid(tmp_path):
    """A pack that travels in the metadata counts."""
    t, y, x = np.meshgrid(np.arange(4), np.arange(90), np.arange(120), indexing="ij")
    field = np.sin(x / 9 + t) * np.cos(y / 7) + 0.05 * np.random.default_rng(0).normal(size=t.shape).cumsum(
        axis=2
    )
    data = xr.Dataset({"v": (DIMS, field.astype("float32"))})
    summary = convert(
        data,
        tmp_path / "o.zarr",
        ("range_rel", 1e-2),
        model="general-interpolation-2",
        report=tmp_path / "r.html",
    )
    entry = json.loads((tmp_path / "r.json").read_text())["variables"][0]
    assert entry["models"] == dict(summary.variables[0].models)
    if entry["models"]:
        assert entry["break_even_values"] is None or entry["break_even_values"] > 0
        assert "break-even" in (tmp_path / "r.html").read_text()
