"""Damaged streams give a documented error or an array: no crash, no other exception, no hang, no huge allocation.

Damage is done twice: as it is, which the checksums notice, and with the checksums made right again, which lets
it through to the decoders.  `make fuzz` runs this under sanitizers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard

from aesz_codec import _core, pipeline, zoo
from aesz_codec.bounds import ErrorBound
from aesz_codec.errors import (
    CorruptStreamError,
    ModelNotFoundError,
    TruncatedStreamError,
    UnsupportedFormatError,
)
from aesz_codec.predictors import Causal, Interpolation, Local, Quantizer
from aesz_codec.stream import DTYPES, Method, Section, Stream, Transform, Writer

from .fuzz import CASES
from .samples import claimed_bytes, golden, header_length, repaired, samples

DOCUMENTED = (CorruptStreamError, TruncatedStreamError, UnsupportedFormatError, ModelNotFoundError)
SECONDS = 2.0
LARGE = (
    1 << 26
)  # bytes of output from which on a damaged shape is not followed: constants of any size are sound
FIXED = 1 << 20  # bytes that a decoder may take whatever the output

STREAMS = samples()
GOLDEN = golden()
ALL = {**STREAMS, **GOLDEN}
every_stream = pytest.mark.parametrize("name", ALL)
every_sample = pytest.mark.parametrize("name", STREAMS)


def survives(data: bytes, what: object) -> np.ndarray | None:
    """Decode and describe; only a documented error may come, and soon.  None for an error."""
    start = time.perf_counter()
    array = None
    try:
        array = pipeline.decode(data)
    except DOCUMENTED as error:
        assert str(error), what
    try:
        pipeline.describe(data)
    except DOCUMENTED:
        assert array is None, f"{what}: decoded, but not described"
    assert time.perf_counter() - start < SECONDS, what
    if array is not None:
        assert array.nbytes == claimed_bytes(data), what
    return array


def rejected(data: bytes, error: type[Exception] = CorruptStreamError) -> None:
    with pytest.raises(error):
        pipeline.decode(data)


def followable(data: bytes) -> bool:
    """Say whether the array that the header speaks of is small enough to be made here."""
    return claimed_bytes(data) <= LARGE or not _fills(data)


def _fills(data: bytes) -> bool:
    """Say whether there is a constant or a crop: then few bytes soundly stand for an array of any size."""
    try:
        parsed = Stream.from_bytes(data, payloads=False)
    except DOCUMENTED:
        return False
    return parsed.method is Method.CONSTANT or Section.CROP in parsed.stored


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def test_the_samples_use_all_of_the_format() -> None:
    parsed = [Stream.from_bytes(data) for data in STREAMS.values()]
    assert {stream.method for stream in parsed} == set(Method)
    assert {stream.transform for stream in parsed} == set(Transform)
    assert {tag for stream in parsed for tag in stream.sections} == set(Section)
    assert {stream.dtype for stream in parsed} >= {np.dtype(t) for t in ("f2", "f4", "f8", "u1", "i2", "i4")}
    plans = [pipeline.describe(data).parameters for data in STREAMS.values()]
    assert {p.get("frame_axes") for p in plans} >= {0, 1, 2}
    assert {p.get("reference_frames") for p in plans} >= {True, False}
    assert any(
        len(stream.stored) and stream.stored[tag] < len(stream.sections[tag])
        for stream in parsed
        for tag in stream.stored
    )
    assert all(repaired(data) == data for data in STREAMS.values())


# ---- damage that is noticed --------------------------------------------------------------------------------


@every_stream
def test_every_prefix_is_rejected(name: str) -> None:
    data = ALL[name]
    for n in range(0, len(data), 1 if name in STREAMS else 7):  # the golden streams are many
        with pytest.raises(DOCUMENTED):
            pipeline.decode(data[:n])


@every_stream
def test_every_bit_flip_is_rejected(name: str) -> None:
    """No bit is outside the checksums; of the golden streams, which are many, one in 13 is tried."""
    damaged = bytearray(ALL[name])
    slowest = 0.0
    for bit in range(0, 8 * len(damaged), 1 if name in STREAMS else 13):
        start = time.perf_counter()
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(*DOCUMENTED):
            pipeline.decode(damaged)
            pytest.fail(f"bit {bit} does not matter")
        damaged[bit // 8] ^= 1 << bit % 8
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < SECONDS


@every_sample
def test_appended_bytes_are_rejected(name: str) -> None:
    data = STREAMS[name]
    for tail in (b"\0", b"\xff", bytes(1000), data):
        rejected(data + tail)
        survives(repaired(data + tail), tail)


def test_what_is_no_stream_is_rejected() -> None:
    for data in (
        b"",
        b"A",
        b"AESZ",
        b"AESY" + STREAMS["smooth"][4:],
        bytes(100),
        b"\xff" * 100,
        b"AESZ\1\0" + b"\xff" * 100,
    ):
        rejected(data)


# ---- damage that the checksums do not notice ---------------------------------------------------------------


@every_stream
def test_every_repaired_prefix_is_survived(name: str) -> None:
    data = ALL[name]
    for n in range(0, len(data), 1 if name in STREAMS else 5):
        shorter = repaired(data[:n])
        if followable(shorter):
            survives(shorter, n)


@every_stream
def test_repaired_bit_flips_are_survived(name: str) -> None:
    """The header's bits and many of the rest; fewer of the golden streams, which are many."""
    data, rng = ALL[name], random.Random(name)
    head = 8 * (header_length(data) or len(data))
    body = range(head, 8 * len(data))
    bits = [*range(head), *rng.sample(body, min(len(body), 600))]
    if name in GOLDEN:
        bits = rng.sample(bits, min(len(bits), 150))
    for bit in bits:
        damaged = repaired(flipped(data, bit))
        if followable(damaged):
            survives(damaged, bit)


@every_sample
def test_codes_of_any_bytes_are_survived(name: str) -> None:
    parsed, rng = Stream.from_bytes(STREAMS[name]), random.Random(name)
    for tag in parsed.sections:
        size = len(parsed.sections[tag])
        for data in (
            b"",
            b"\0",
            bytes(size),
            b"\xff" * size,
            b"\xff" * 4 * size,
            *(rng.randbytes(size) for _ in range(20)),
        ):
            damaged = replaced(STREAMS[name], tag, data)
            if followable(damaged):
                survives(damaged, (tag.name, data))


@every_sample
def test_swapped_payloads_are_survived(name: str) -> None:
    parsed = Stream.from_bytes(STREAMS[name])
    for a, b in itertools.permutations(parsed.sections, 2):
        damaged = replaced(STREAMS[name], a, parsed.sections[b])
        if followable(damaged):
            survives(damaged, (a, b))


@every_sample
def test_any_dtype_method_and_transform_is_survived(name: str) -> None:
    """The bytes that say how to read the rest, in all combinations, reserved ones among them."""
    for numbers in itertools.product(
        range(len(DTYPES) + 1), range(5), range(len(Method) + 1), range(len(Transform) + 1)
    ):
        damaged = bytearray(STREAMS[name])
        damaged[7:11] = bytes(numbers)
        survives(repaired(bytes(damaged)), numbers)


# ---- what no encoder writes --------------------------------------------------------------------------------


def replaced(data: bytes, tag: Section, payload: bytes | None) -> bytes:
    """Return the stream with another section, or without it."""
    parsed = Stream.from_bytes(data)
    parsed.sections.pop(tag, None)
    if payload is not None:
        parsed.sections[tag] = payload
    return parsed.to_bytes()


def assembled(
    *,
    dtype: int = 1,
    method: int = Method.CAUSAL,
    transform: int = 0,
    shape: tuple[int, ...] = (4, 5),
    sections: list[tuple[int, int, int, int | None, bytes]],
    version: tuple[int, int] = (1, 0),
    flags: int = 0,
) -> bytes:
    """Put a stream together from raw fields; a section is (tag, coding, stored, expanded, payload)."""
    head = Writer().raw(b"AESZ").pack("8B", *version, flags, dtype, 1, method, transform, len(shape))
    for n in shape:
        head.varint(n)
    head.pack("ddB", 0.1, 0.1, len(sections))
    for tag, coding, stored, expanded, _ in sections:
        head.pack("BB", tag, coding).varint(stored)
        if expanded is not None:
            head.varint(expanded)
    return checked(head.done(), b"".join(section[-1] for section in sections))


def checked(head: bytes, body: bytes) -> bytes:
    return head + struct.pack("<I", zlib.crc32(head)) + body + struct.pack("<I", zlib.crc32(body))


def stored(tag: Section, payload: bytes) -> tuple[int, int, int, int | None, bytes]:
    return tag, 0, len(payload), None, payload


def with_plan(name: str, changes: dict[int, bytes]) -> bytes:
    """Return a sample with other bytes in its plan, from the given offsets on."""
    plan = bytearray(Stream.from_bytes(STREAMS[name]).sections[Section.PLAN])
    for at, data in changes.items():
        plan[at : at + len(data)] = data
    return replaced(STREAMS[name], Section.PLAN, bytes(plan))


@pytest.mark.parametrize(
    "step, offset",
    [(math.nan, 0), (0, 0), (-0.0, 0), (-1, 0), (math.inf, 0), (-math.inf, 0)]
    + [(1, math.nan), (1, math.inf), (1, -math.inf)],
)
def test_a_plan_out_of_range_is_rejected(step: float, offset: float) -> None:
    for name in ("causal-plane", "plane", "local-plane"):
        rejected(with_plan(name, {0: struct.pack("<dd", step, offset)}))


LOSSY = [
    name
    for name, data in STREAMS.items()
    if pipeline.describe(data).predictor in ("interpolation", "causal", "local")
]


@pytest.mark.parametrize("name", LOSSY)
def test_any_finite_step_and_offset_is_survived(name: str) -> None:
    steps, offsets = (5e-324, 1e-310, 1.0, 1e38, 1e308), (0.0, -1e308, 1.7e308, 3.5e38, 5e-324)
    for step, offset in itertools.product(steps, offsets):
        array = survives(with_plan(name, {0: struct.pack("<dd", step, offset)}), (step, offset))
        # what models say of codes depends on the step, and gains follow codes that networks had a part in
        assert array is not None or name.startswith(("learned", "forecast"))


BATCH, FLAGS, ALPHA, BETA = 16, 17, 18, 19  # offsets in the plan of the interpolation
UNKNOWN_FLAG = 16


@pytest.mark.parametrize(
    "at, value",
    [(BATCH, 2), (BATCH, 3), (BATCH, 200), (BATCH, 255), (FLAGS, UNKNOWN_FLAG), (FLAGS, 128), (FLAGS, 255)]
    + [(ALPHA, 15), (ALPHA, 0), (BETA, 15), (BETA, 0)],
)
def test_choices_of_the_interpolation_out_of_range_are_rejected(at: int, value: int) -> None:
    rejected(with_plan("plane", {at: bytes([value])}))


def test_choices_of_the_causal_predictor_out_of_range_are_rejected() -> None:
    for value in (4, 5, 128, 255):
        rejected(with_plan("causal-plane", {16: bytes([value])}))


@pytest.mark.parametrize("name", ["line", "plane", "frames", "four-axes"])
def test_choices_of_the_interpolation_at_their_limits_are_survived(name: str) -> None:
    axes = len(pipeline.describe(STREAMS[name]).shape)
    for choices in itertools.product(range(axes), range(UNKNOWN_FLAG), (16, 255), (16, 255)):
        survives(with_plan(name, {BATCH: bytes(choices)}), choices)


@pytest.mark.parametrize("name", ["plane", "causal-plane", "local-plane", "lossless-f4"])
def test_a_plan_of_another_length_is_rejected(name: str) -> None:
    plan = Stream.from_bytes(STREAMS[name]).sections[Section.PLAN]
    for other in (None, b"", plan[:-1], plan + b"\0"):
        rejected(replaced(STREAMS[name], Section.PLAN, other))


def test_axes_of_the_lossless_predictor_out_of_range_are_rejected() -> None:
    for dims in (3, 4, 200, 255):
        rejected(replaced(STREAMS["lossless-f4"], Section.PLAN, bytes([dims])))


def test_outliers_must_be_as_many_as_are_used() -> None:
    outliers = Stream.from_bytes(STREAMS["spiky"]).sections[Section.OUTLIERS]
    for other in (
        None,
        b"",
        outliers[:-8],
        outliers[:-1],
        outliers + bytes(1),
        outliers + bytes(8),
        2 * outliers,
    ):
        rejected(replaced(STREAMS["spiky"], Section.OUTLIERS, other))
    for name in ("plane", "causal-plane", "frames"):
        rejected(replaced(STREAMS[name], Section.OUTLIERS, bytes(8)))


def test_outliers_may_have_any_bits() -> None:
    outliers = Stream.from_bytes(STREAMS["spiky"]).sections[Section.OUTLIERS]
    for value in (math.nan, math.inf, -math.inf, 1.7e308, 5e-324):
        data = replaced(STREAMS["spiky"], Section.OUTLIERS, struct.pack("<d", value) * (len(outliers) // 8))
        assert survives(data, value) is not None


def test_labels_out_of_range_are_rejected() -> None:
    labels = Stream.from_bytes(STREAMS["land"]).sections[Section.LABELS]
    count = labels[0]
    assert count > 1
    for other in (
        b"",
        b"\0",
        bytes([0]) + labels[1:],
        bytes([16]) + labels[1:],
        bytes([255]) + labels[1:],
        labels[:3],
    ):
        rejected(replaced(STREAMS["land"], Section.LABELS, other))
    fewer = bytes([count - 1]) + labels[1 : 1 + 4 * (count - 1)] + labels[1 + 4 * count :]
    rejected(replaced(STREAMS["land"], Section.LABELS, fewer))  # a label above the count


def test_everything_may_be_masked() -> None:
    """A region of labels alone; the predictors then run on their own predictions."""
    for name in ("plane", "causal-plane", "frames", "local-plane", "local-box"):
        parsed = Stream.from_bytes(STREAMS[name])
        labels = np.ones(parsed.shape, np.uint8)
        section = struct.pack("<Bf", 1, math.nan) + _core.encode_labels(labels)
        array = survives(replaced(STREAMS[name], Section.LABELS, section), name)
        assert array is None or np.isnan(array).all()


def varints(*values: int) -> bytes:
    out = Writer()
    for value in values:
        out.varint(value)
    return out.done()


@pytest.mark.parametrize(
    "section",
    [
        b"",
        varints(1),
        varints(1, 90) + bytes(4),
        varints(2, 89, 0) + bytes(8),
        varints(1, 2**62) + bytes(4),
        varints(2**62),
        varints(2**62) + bytes(1000),
        varints(91) + bytes(91 + 4 * 91),
        varints(1, 0) + bytes(3),
        varints(1, 0) + bytes(5),
        varints(0) + bytes(1),
        b"\x81\x00" + bytes(5),
        b"\xff" * 9 + bytes(8),
        b"\xff" * 40,
    ],
    ids=lambda section: section[:12].hex() or "empty",
)
def test_corrections_out_of_range_are_rejected(section: bytes) -> None:
    rejected(replaced(STREAMS["plane"], Section.CORRECTIONS, section))


@pytest.mark.parametrize(
    "section",
    [
        b"",
        varints(9),
        varints(9, 10) + bytes(3),
        varints(9, 10) + bytes(5),
        varints(10, 10) + bytes(4),
        varints(9, 11) + bytes(4),
        varints(2**62, 2**62) + bytes(4),
        varints(0, 10) + bytes(4),
        varints(9, 0) + bytes(4),
        varints(9, 9) + bytes(4),  # fewer values than the codes hold need not be noticed
    ],
    ids=lambda section: section.hex() or "empty",
)
def test_a_crop_out_of_range_is_rejected_or_survived(section: bytes) -> None:
    data = replaced(STREAMS["plane"], Section.CROP, section)
    if section.startswith(varints(9, 9)):
        survives(data, section)
    else:
        rejected(data)


def test_method_and_region_must_agree() -> None:
    rejected(assembled(method=Method.CONSTANT, sections=[]))
    rejected(assembled(method=Method.CONSTANT, sections=[stored(Section.CROP, varints(1, 1) + bytes(4))]))
    nothing = stored(Section.CROP, varints(0, 5) + bytes(4))
    for method in (Method.INTERPOLATION, Method.CAUSAL, Method.LOSSLESS, Method.BYTES, Method.LOCAL):
        version = (1, int(method is Method.LOCAL))
        for shape, sections in (((4, 5), []), ((0, 3), []), ((4, 5), [nothing])):
            rejected(assembled(method=method, shape=shape, sections=sections, version=version))


def sound_sections() -> tuple[tuple[int, int, int, int | None, bytes], ...]:
    """Return plan and codes of a causal stream of 9 x 11 float32."""
    parsed = Stream.from_bytes(STREAMS["causal-plane"])
    return tuple(stored(tag, parsed.sections[tag]) for tag in (Section.PLAN, Section.CODES))


def test_the_table_of_sections_must_be_in_order() -> None:
    plan, codes = sound_sections()
    assert survives(assembled(shape=(9, 11), sections=[plan, codes]), "in order") is not None
    for sections in (
        [codes, plan],
        [plan, plan, codes],
        [plan, codes, codes],
        [(0, 0, 0, None, b""), plan, codes],
        [plan, codes, (8, 0, 0, None, b"")],
        [plan, codes, (255, 0, 0, None, b"")],
        [plan, (Section.CODES, 2, codes[2], None, codes[-1])],
        [plan, (Section.CODES, 255, codes[2], None, codes[-1])],
        [plan] * 200,
    ):
        rejected(assembled(shape=(9, 11), sections=sections))


def test_newer_formats_say_so() -> None:
    plan, codes = sound_sections()
    for major in (2, 3, 255):
        rejected(assembled(shape=(9, 11), version=(major, 0), sections=[plan, codes]), UnsupportedFormatError)
    assert survives(assembled(shape=(9, 11), version=(1, 9), sections=[plan, codes]), "minor") is not None
    newer = (
        assembled(shape=(9, 11), version=(1, 9), sections=[plan, codes, (max(Section) + 1, 0, 0, None, b"")]),
        assembled(shape=(9, 11), version=(1, 9), method=max(Method) + 1, sections=[plan, codes]),
        assembled(shape=(9, 11), version=(1, 9), transform=max(Transform) + 1, sections=[plan, codes]),
        assembled(shape=(9, 11), version=(1, 9), flags=4, sections=[plan, codes]),
    )
    for data in newer:
        rejected(data, UnsupportedFormatError)
        rejected(data[:5] + b"\0" + data[6:])  # in 1.0 they are damage
    lattice = (8, 0, 17, None, bytes(14) + b"\xf0\x3f\0")  # origin 0, unit 1
    for transform, sections in ((3, [plan, codes, lattice]), (0, [plan, codes, lattice])):
        data = assembled(shape=(9, 11), version=(1, 1), transform=transform, sections=sections)
        assert survives(data, "1.1") is not None
        rejected(data[:5] + b"\0" + data[6:])  # of 1.1, and not marked with it
    local = STREAMS["local-plane"]
    rejected(repaired(local[:5] + b"\0" + local[6:]))


# ---- bombs -------------------------------------------------------------------------------------------------


def squeezed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


def zstd_frame(window: int, blocks: bytes) -> bytes:
    """Return a frame without content size and checksum whose window descriptor is `window`."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([window]) + blocks


def bombs() -> dict[str, bytes]:
    """Return few bytes that speak of many."""
    plan, tiny = stored(Section.PLAN, Causal().pack(0.2, 1.0)), stored(Section.CODES, bytes(10))
    zeros = squeezed(bytes(1 << 26))
    out = {}
    for name, shape in {
        "2^31 x 2^31": (2**31, 2**31),
        "2^62": (2**62,),
        "2^40 x 1": (1, 2**40, 1),
        "2^26": (2**26,),
        "2^62 x 2^62": (2**62, 2**62),
        "2 x 2^40": (2, 2**40),
        "32 axes of 2^62": (2**62,) * 32,
    }.items():
        for method in (Method.INTERPOLATION, Method.CAUSAL, Method.LOSSLESS, Method.BYTES, Method.LOCAL):
            sections = [plan if method is not Method.LOSSLESS else stored(Section.PLAN, b"\1"), tiny]
            if method is Method.INTERPOLATION:
                sections[0] = stored(Section.PLAN, Interpolation().pack(0.2, 1.0))
            if method is Method.LOCAL:
                sections[0] = stored(Section.PLAN, Local().pack(0.2, 1.0))
            for dtype in (3, 1):
                out[f"{name}, {method.name.lower()}, {DTYPES[dtype]}"] = assembled(
                    dtype=dtype,
                    transform=2 if dtype == 3 else 0,
                    method=method,
                    shape=shape,
                    sections=sections,
                    version=(1, int(method is Method.LOCAL)),
                )
    for dtype, shape in itertools.product((3, 2), ((4, 5), (2**20,), (2**31, 2**31), (2**40,), (2**62,))):
        for tag, length, payload in itertools.product(
            (Section.CODES, Section.LABELS),
            (2**20, 2**26, 2**34, 2**39, 2**46, 2**62),
            (zeros, squeezed(b"x")),
        ):
            out[f"{DTYPES[dtype]} {shape}: {tag.name.lower()} of {length} in {len(payload)}"] = assembled(
                dtype=dtype,
                method=Method.BYTES,
                shape=shape,
                sections=[(tag, 1, len(payload), length, payload)],
            )
    for length in (2**31, 2**32, 2**62, 2**63 - 1):
        out[f"stored {length}"] = assembled(sections=[(Section.PLAN, 0, length, None, plan[-1]), tiny])
        out[f"twice stored {length}"] = assembled(
            sections=[(Section.PLAN, 0, length, None, plan[-1]), (Section.CODES, 0, length, None, b"")]
        )
    run = (3 | 100 << 3).to_bytes(3, "little") + b"\0"  # the last block: 100 zeros
    for exponent in range(10, 32):
        frame = zstd_frame(exponent << 3, run)
        out[f"zstd window 2^{10 + exponent}"] = assembled(
            dtype=3, method=Method.BYTES, shape=(100,), sections=[(Section.CODES, 1, len(frame), 100, frame)]
        )
    return out


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_allocate_nothing_to_speak_of(name: str) -> None:
    tracemalloc.start()
    try:
        survives(BOMBS[name], name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 64 * min(claimed_bytes(BOMBS[name]), 1 << 20) + FIXED, f"{peak} bytes"


def test_local_is_asked_for_no_more_columns_than_its_codes_can_hold() -> None:
    """It keeps sums for every block of columns: they are not to be made for bytes that cannot code so many."""
    plan, tiny = stored(Section.PLAN, Local().pack(0.2, 1.0)), stored(Section.CODES, bytes(10))
    for shape in ((2, 1 << 22), (3, 2, 1 << 20)):
        bomb = assembled(dtype=1, method=Method.LOCAL, shape=shape, sections=[plan, tiny], version=(1, 1))
        with pytest.raises(CorruptStreamError, match="more for"):
            pipeline.decode(bomb)
    zeros = np.zeros((2, 1 << 20), np.float32)  # nothing is cheaper
    codes, _ = Local().encode(zeros, None, Quantizer(0.1, 0.2, 0.0))
    assert 4 * zeros.size < len(codes) << 17


def test_damaged_zstd_sections_are_rejected() -> None:
    def of(frame: bytes, length: int = 100) -> bytes:
        return assembled(
            dtype=3,
            method=Method.BYTES,
            shape=(100,),
            sections=[(Section.CODES, 1, len(frame), length, frame)],
        )

    frame = squeezed(bytes(range(100)))
    array = survives(of(frame), "sound")
    assert array is not None and array.tolist() == list(range(100))
    for other in (
        b"",
        frame[:4],
        frame[:-1],
        frame[1:],
        b"\x50\x2a\x4d\x18\x08\0\0\0" + bytes(8),
        frame[:4] + b"\x01\0\5" + frame[6:],
    ):
        rejected(of(other))
    for length in (0, 1, 99, 101, 1000):
        rejected(of(frame, length))


def test_memory_is_bounded_by_the_output() -> None:
    """What NumPy and Python allocate; the native core takes 2 bytes a value and fixed tables besides."""
    rng = random.Random(0)
    zoo.list()  # packs are read once, when the first digest is looked for
    for name, data in STREAMS.items():
        for bit in rng.sample(range(8 * len(data)), 60):
            damaged = repaired(flipped(data, bit))
            if not followable(damaged):
                continue
            tracemalloc.start()
            try:
                survives(damaged, (name, bit))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak <= 64 * claimed_bytes(damaged) + FIXED, (name, bit, peak)


CHILD = """
import pickle, resource, sys
import numpy as np
from aesz_codec import errors, pipeline, zoo
from aesz_codec.bounds import ErrorBound

pipeline.decode(pipeline.encode(np.arange(100.0).reshape(10, 10), ErrorBound("abs", 0.1)))
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (96 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, data in pickle.load(sys.stdin.buffer).items():
    try:
        pipeline.decode(data)
    except (errors.CorruptStreamError, errors.UnsupportedFormatError):
        pass
    except BaseException as error:
        print(name, repr(error))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets RLIMIT_AS, reads /proc")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer reserves the address space"
)
def test_bombs_fit_into_a_small_address_space() -> None:
    """Native allocations too: 96 MiB beyond what the process has at first."""
    child = subprocess.run(
        [sys.executable, "-P", "-c", CHILD],
        input=pickle.dumps(BOMBS),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert child.stdout.decode() == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed for a while"
)
def test_networks_that_are_refused_leave_nothing() -> None:
    """A process may be given the same unsound pack again and again."""

    def network(inputs: int) -> _core.Mlp:
        weight, bias = np.ones((2, 1, inputs), np.int16), np.zeros(2, np.int32)
        return _core.Mlp([_core.Dense(weight, bias, None, 511, 0, 0, 0)], -511, 511)

    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    networks = [network(36)] * 12 + [network(37)]
    for times in (100, 4000):
        before = taken()
        for _ in range(times):
            with pytest.raises(ValueError):
                _core.LearnedNets(networks, [(24, 0)] * 13)
    assert taken() - before < 16 << 20  # 4 KB each time


def test_an_array_beyond_all_memory_is_an_error() -> None:
    """A constant needs no bytes: its size is sound, and only memory can refuse it."""
    for shape in ((2**62,), (2**31, 2**31)):
        crop = stored(Section.CROP, varints(*(0 for _ in shape)) + bytes(1))
        with pytest.raises((CorruptStreamError, MemoryError)):
            pipeline.decode(assembled(dtype=3, method=Method.CONSTANT, shape=shape, sections=[crop]))


@pytest.mark.parametrize("part", range(8))
def test_decisions_that_no_encoder_takes(part: int) -> None:
    """The native core and the reference decoder agree on codes made up decision by decision, up to the rarest."""
    for number in range(40):
        case = f"composed:{part}:{number}"
        try:
            CASES["composed"](random.Random(case))
        except AssertionError as error:
            raise AssertionError(f"python -m tests.robustness.fuzz --case {case}") from error


def test_the_fuzzer_runs_every_kind_of_case() -> None:
    for kind, run in CASES.items():
        for number in range(25):
            run(random.Random(f"{kind}:0:{number}"))


def test_encode_survives_what_it_cannot_code_well() -> None:
    """Shapes at the edge of the limits, and sizes that only the shape knows."""
    for shape in ((1,) * 32, (0,) * 32, (2,) * 12, (1, 2**40, 0), (0, 2**61)):
        array = np.empty(shape, "u1")
        array.fill(3)
        decoded = pipeline.decode(pipeline.encode(array, ErrorBound("abs", 1.0)))
        assert decoded.shape == shape and (decoded == 3).all()
