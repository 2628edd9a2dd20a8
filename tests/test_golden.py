"""Streams of every released format version decode forever, and what must fail fails with its error.

``tests/golden/make_golden.py`` wrote them.
"""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path

import pytest

from aesz_codec import errors, pipeline
from aesz_codec.packs import Pack
from aesz_codec.stream import DTYPES, Method, Section, Stream, Transform

GOLDEN = Path(__file__).with_name("golden")
VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5")
ACCEPTED = {
    f"{version}/{name}": expected
    for version in VERSIONS
    for name, expected in json.loads((GOLDEN / version / "index.json").read_text()).items()
}
REJECTED = json.loads((GOLDEN / "reject" / "index.json").read_text())
MODELS = {pack.digest: pack for pack in map(Pack.from_file, (GOLDEN / "models").glob("*.aeszpack"))}


def find_model(digest):
    if digest not in MODELS:
        raise errors.ModelNotFoundError(digest)
    return MODELS[digest]


FORECASTERS = runpy.run_path(str(GOLDEN / "foundation_models.py"))["MODELS"]


def find_forecaster(digest):
    if digest not in FORECASTERS:
        raise errors.ModelNotFoundError(digest)
    return FORECASTERS[digest]


def check(array, expected):
    assert array.dtype.name == expected["dtype"]
    assert list(array.shape) == expected["shape"]
    little = array.astype(array.dtype.newbyteorder("<"))
    assert hashlib.sha256(little.tobytes()).hexdigest() == expected["sha256"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_decodes(name):
    stream = (GOLDEN / f"{name}.aesz").read_bytes()
    check(pipeline.decode(stream, find_model=find_model, find_forecaster=find_forecaster), ACCEPTED[name])
    assert list(pipeline.describe(stream).shape) == ACCEPTED[name]["shape"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_reference_decodes(reference, name):
    check(
        reference.decode((GOLDEN / f"{name}.aesz").read_bytes(), find_model, find_forecaster), ACCEPTED[name]
    )


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(reference, name):
    stream = (GOLDEN / "reject" / f"{name}.aesz").read_bytes()
    with pytest.raises(errors.AESZError) as caught:
        pipeline.decode(stream, find_model=find_model, find_forecaster=find_forecaster)
    assert type(caught.value).__name__ == REJECTED[name]
    with pytest.raises(reference.RejectedStreamError):
        reference.decode(stream, find_model, find_forecaster)


@pytest.mark.parametrize("folder", [*VERSIONS, "reject"])
def test_index_names_every_file(folder):
    names = {path.stem for path in (GOLDEN / folder).glob("*.aesz")}
    assert names == set(json.loads((GOLDEN / folder / "index.json").read_text()))


def test_every_part_of_the_format_has_a_stream():
    streams = [Stream.from_bytes((GOLDEN / f"{name}.aesz").read_bytes()) for name in ACCEPTED]
    assert {stream.dtype for stream in streams} == set(DTYPES)
    assert {stream.method for stream in streams} == set(Method)
    assert {stream.transform for stream in streams} == set(Transform)
    assert {stream.mode for stream in streams} == {"lossless", "abs", "range_rel", "pw_rel"}
    assert {tag for stream in streams for tag in stream.sections} == set(Section)
    assert set(REJECTED.values()) == {
        "CorruptStreamError",
        "InvalidModelError",
        "ModelKindError",
        "ModelNotFoundError",
        "PredictionMismatchError",
        "TruncatedStreamError",
        "UnsupportedFormatError",
    }
