"""A fuzzer for the decoders and the native core, best run under sanitizers: ``make fuzz``.

::

    python -m tests.robustness.fuzz --seconds 60           # from the root of the repository
    python -m tests.robustness.fuzz --case composed:7:123  # one case again, as a failure names it

Kinds of cases, each determined by its name alone:

- ``stream``: a stream cut, flipped and spliced, its checksums made right again;
- ``core``: random bytes and parameters for every ``decode`` function of the native core;
- ``composed``: codes that make the decoder take decisions of our choice, up to the rarest, against the reference
  decoder: `Composer` stands in for its range coder, chooses, and encodes what it chose;
- ``encode``: arrays of random bits and scales through the whole pipeline;
- ``forecast``: likewise, as states that a foundation model forecasts, among models some that say nonsense.

Half of the streams are of format 1.5: frames with all forecasters and coders, cycles, networks with the static coder, verified
forecasts; the models that they name are there.

A crash leaves the name of its case in the file given by ``--last``.
"""

from __future__ import annotations

import argparse
import math
import random
import runpy
import struct
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from aesz_codec import _core, pipeline
from aesz_codec.adapters.stepping import StateCodec, Stepping
from aesz_codec.bounds import ErrorBound, first_violation
from aesz_codec.coordinates import Coordinates
from aesz_codec.errors import (
    CorruptStreamError,
    InvalidModelError,
    ModelInputError,
    ModelKindError,
    ModelNotFoundError,
    PredictionMismatchError,
    UnstableForecastError,
    UnsupportedFormatError,
)
from aesz_codec.foundation import Forecasting, FoundationModel
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Frames, Interpolation, Local, Predictor
from aesz_codec.predictors.forecasts import Forecaster, LeastSquares, Motion, Nearest
from aesz_codec.predictors.interpolation import networks_of
from aesz_codec.stream import Coder, Section, Stream, Writer
from aesz_codec.train.packing import write_pack

from .. import reference
from .samples import GOLDEN_MODELS, claimed_bytes, golden, repaired, samples

__all__ = ["CASES", "Composer"]

DOCUMENTED = (
    *(CorruptStreamError, UnsupportedFormatError, PredictionMismatchError),
    *(ModelNotFoundError, ModelKindError, ModelInputError, InvalidModelError),
)
"""What a decoder may say of a stream that no encoder wrote."""

LARGE = 1 << 22  # bytes of output beyond which a damaged shape is not followed
SPECIAL = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e-310, 3.5e38, -1e300, 1.7e308, math.inf, -math.inf, math.nan)


@cache
def _samples() -> list[bytes]:
    return list(samples().values())


@cache
def _foundation_models() -> dict[str, FoundationModel]:
    found: dict[str, FoundationModel] = runpy.run_path(str(GOLDEN_MODELS.with_name("foundation_models.py")))[
        "MODELS"
    ]
    return found


def _find_forecaster(digest: str) -> FoundationModel:
    """Return one that golden streams name."""
    if digest not in _foundation_models():
        raise ModelNotFoundError(digest)
    return _foundation_models()[digest]


@cache
def _in_time() -> list[bytes]:
    return [data for name, data in golden().items() if name.startswith("1.5/")]


@cache
def _interpolation_packs() -> list[Pack]:
    """Return the golden packs, and packs of one layer whose networks see any numbers of points, or are not there."""
    return [
        *(
            Pack.from_file(GOLDEN_MODELS / f"{name}.aeszpack")
            for name in ("interpolation", "interpolation_few")
        ),
        *(_pack_of_one_layer(seed) for seed in range(6)),
    ]


def _pack_of_one_layer(seed: int) -> Pack:
    rng = np.random.default_rng(seed)
    sees = [[int(rng.integers(4, 25)), int(rng.integers(14)) if 3 <= slot < 6 else 0] for slot in range(13)]
    tensors: dict[str, np.ndarray] = {}
    slots = {}
    for slot in np.flatnonzero(rng.random(13) < 0.9).tolist():
        inputs = sum(sees[slot]) + 12
        largest = rng.choice((20, 1000))
        tensors[f"{slot}.w"] = rng.integers(-largest, largest + 1, (2, inputs)).astype(np.int16)
        tensors[f"{slot}.b"] = rng.integers(-40000, 40001, 2).astype(np.int32)
        layer = {"type": "linear", "weight": f"{slot}.w", "bias": f"{slot}.b"}
        slots[str(slot)] = {"arithmetic": "INT-1", "input": {"channels": inputs}, "layers": [layer]}
    network = {"slots": slots, "sees": sees}
    manifest = {"id": f"any-{seed}", "kind": "interpolation", "licence": "CC0-1.0", "network": network}
    return Pack.from_bytes(write_pack(manifest, tensors))


def _any_pack(rng: random.Random) -> Pack | None:
    return rng.choice(_interpolation_packs()) if rng.random() < 0.3 else None


@cache
def _streams() -> list[bytes]:
    return [*_samples(), *(data for data in golden().values() if len(data) < 4096)]


# ---- streams ---------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to four damages."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 3:
            del out[at : at + rng.randint(1, 9)]
        elif kind == 4:
            other = rng.choice(_streams())
            start = rng.randrange(len(other))
            piece = other[start : start + rng.randint(1, 40)]
            out[at : at + len(piece)] = piece
        elif kind == 5:
            out[at : at + 8] = struct.pack("<d", rng.choice(SPECIAL))
        else:
            out[at : at + rng.randint(1, 30)] = bytes([rng.choice((0, 255))]) * rng.randint(1, 30)
    return bytes(out)


def with_damaged_section(data: bytes, rng: random.Random) -> bytes:
    """Return the stream with one section damaged, dropped, or taken from another stream; the table fits it."""
    parsed = Stream.from_bytes(data)
    if not parsed.sections:
        return data
    tag = rng.choice(list(parsed.sections))
    kind = rng.randrange(4)
    if kind == 0:
        del parsed.sections[tag]
    elif kind == 1:
        parsed.sections[tag] = rng.randbytes(rng.randint(0, 2 * len(parsed.sections[tag]) + 8))
    elif kind == 2:
        other = Stream.from_bytes(rng.choice(_samples())).sections
        if other:
            parsed.sections[rng.choice(list(Section))] = rng.choice(list(other.values()))
    else:
        section = parsed.sections[tag]  # its head says how the rest is to be read
        end = len(section) if rng.random() < 0.5 else min(rng.randint(1, 60), len(section))
        parsed.sections[tag] = mutated(section[:end], rng) + section[end:]
    return parsed.to_bytes()


def stream_case(rng: random.Random) -> None:
    """Decode a damaged stream: an array or a documented error."""
    recent = rng.random() < 0.5
    if rng.random() < 0.5:
        data = with_damaged_section(rng.choice(_in_time() if recent else _samples()), rng)
    else:
        data = mutated(rng.choice(_in_time() if recent else _streams()), rng)
    if rng.random() < 0.9:
        data = repaired(data)
    if claimed_bytes(data) > LARGE:
        return
    array = None
    start = time.perf_counter()
    with suppress(*DOCUMENTED):
        array = pipeline.decode(data, restore_layout=rng.random() < 0.5, find_forecaster=_find_forecaster)
    try:
        pipeline.describe(data)
    except (CorruptStreamError, UnsupportedFormatError):
        assert array is None, "decoded, but not described"
    assert array is None or array.nbytes == claimed_bytes(data)
    assert time.perf_counter() - start < 20, "too slow, even under sanitizers"


# ---- the native functions --------------------------------------------------------------------------------------


def _shape(rng: random.Random, largest: int, axes: int = 4) -> tuple[int, ...]:
    n = rng.randint(1, axes)
    shape = [1] * n
    for _ in range(rng.randint(0, 30)):
        a = rng.randrange(n)
        grown = shape[a] * 2 if rng.random() < 0.3 else shape[a] + 1
        if math.prod(shape) // shape[a] * grown <= largest:
            shape[a] = grown
    return tuple(shape)


def _codes(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    n = rng.randint(0, 200)
    if kind == 0:
        return bytes([rng.choice((0, 255, 128))]) * n
    if kind == 1:
        return rng.randbytes(rng.randint(0, 16)) + bytes([rng.choice((0, 255))]) * n
    if kind == 2:
        sections = Stream.from_bytes(rng.choice(_samples())).sections
        return mutated(sections.get(Section.CODES, b""), rng)
    return rng.randbytes(n)


def core_case(rng: random.Random) -> None:
    """Call a native decoder with anything: it fills the array, or raises a ValueError."""
    shape, codes = _shape(rng, 3000, axes=6), _codes(rng)
    size = math.prod(shape)
    kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 6, 7))
    try:
        if kind == 7:
            _frames_by_any_schedule(rng, codes)
        elif kind < 3 or kind == 6:
            dtype = rng.choice(("f4", "f8"))
            out = np.zeros(shape, dtype)
            outliers = rng.randbytes(out.itemsize * rng.choice((0, 0, 1, size)) + rng.choice((0, 0, 0, 1)))
            mask = None if rng.random() < 0.6 else np.frombuffer(rng.randbytes(size), np.uint8) & 1
            if mask is not None and rng.random() < 0.9:
                mask = mask.reshape(shape)
            step, offset = rng.choice((1.0, *SPECIAL)), rng.choice(SPECIAL)
            predictor: Predictor = Causal(
                coder=rng.choice((Coder.ADAPTIVE, Coder.ADAPTIVE_ZEROS, Coder.MIXED))
            )
            if kind == 1:
                predictor = Interpolation(
                    batch=rng.choice((0, 0, 1, 1, 2, 3, 5, 200, -1)),
                    reference=rng.random() < 0.5,
                    reversed=rng.random() < 0.5,
                    coder=rng.choice((Coder.ADAPTIVE, Coder.ADAPTIVE_ZEROS, Coder.MIXED)),
                    alpha16=rng.choice((16, 20, 255, 0, -1, 10**9)),
                    beta16=rng.choice((16, 40, 255, 0, -1, 10**9)),
                )
            if kind == 2:
                predictor = Local()
            if kind == 6:
                predictor = _any_frames(rng, rng.choice((0, 1, 1, 1, 2, 3, 200, -1)))
                codes = (
                    Writer().varint(len(fitted := _fitted(rng, predictor.forecaster))).raw(fitted).done()
                    + codes
                )
                predictor = replace(
                    predictor, coder=rng.choice((predictor.coder, Coder.ADAPTIVE_ZEROS, Coder.STATIC))
                )
            predictor.decode(codes, outliers, out, mask, step, offset)
        elif kind == 3:
            labels = np.zeros(shape, np.uint8)
            _core.decode_labels(codes, labels)
            assert labels.max() < 16
        elif kind == 4:
            exact = np.zeros(shape, rng.choice(("u1", "u2", "u4", "u8")))
            _core.decode_lossless(codes, exact, rng.randint(-1, 5), rng.randint(-1, 4))
        else:
            x = np.frombuffer(rng.randbytes(8 * size), np.float64)
            _core.exp2_into(x, np.empty(size if rng.random() < 0.9 else size + 1))
    except (ValueError, CorruptStreamError):  # `CorruptDataError` is the first, and a parameter out of range
        pass


def _any_frames(rng: random.Random, batch: int = 1) -> Frames:
    """Return a choice of method 6 that the reference decoder can compose for."""
    return Frames(
        batch,
        1 << rng.randrange(7),
        rng.choice((Nearest, LeastSquares, Motion))(),
        rng.choice((Coder.ADAPTIVE, Coder.MIXED)),
        _any_pack(rng),
    )


def _fitted(rng: random.Random, forecaster: Forecaster, times: int = 6, blocks: int = 2) -> bytes:
    """Return bytes that a forecaster could have fitted to so many times, one plane of so many blocks; seldom others."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 30))
    if isinstance(forecaster, LeastSquares):
        kinds = [(1 << e, sources) for e in range(7) for sources in (1, 2) if rng.random() < 0.6]
        largest = rng.choice((64, 4096))
        weights = [tuple(rng.randint(-largest, largest) for _ in range(5 * sources)) for _, sources in kinds]
        sound = [(kind, w) for kind, w in zip(kinds, weights, strict=True) if sum(w) >= 16]
        return LeastSquares(tuple(sound)).pack()
    if isinstance(forecaster, Motion):
        moved = [t for t in range(times) if rng.random() < 0.5]
        return Motion(tuple(((t, 0), rng.randbytes(2 * blocks)) for t in moved)).pack()
    return b""


def _frames_by_any_schedule(rng: random.Random, codes: bytes) -> None:
    """Decode frames in an order, with references and with sets, that need not make sense."""
    frames, lines, columns = rng.randint(1, 5), rng.randint(1, 20), rng.randint(1, 20)
    out = np.zeros((frames, lines, columns), rng.choice(("f4", "f8")))
    order = rng.sample(range(frames), frames) if rng.random() < 0.5 else list(range(frames))
    sound = [(f, rng.choice((0, 1, 2, 3)), order[i - 1] if i else -1, -1) for i, f in enumerate(order)]
    rows = np.array(sound, np.int64)
    if rng.random() < 0.3:
        rows[rng.randrange(frames), rng.randrange(4)] = rng.choice((-2, -1, 4, frames, 1 << 40))

    @np.errstate(all="ignore")
    def predict(frame: int) -> object:
        said = out[rng.randrange(frames)] * 2
        return rng.choice((said, said, said, np.full_like(said, rng.choice(SPECIAL)), None, said[1:]))

    step, offset = rng.choice((1.0, *SPECIAL)), rng.choice(SPECIAL)
    pack = _any_pack(rng)
    nets = None if pack is None else networks_of(pack)[0]
    coder = rng.choice(list(Coder))
    said = _any_sums(rng, frames) if rng.random() < 0.5 else predict
    _core.decode_frames(codes, b"", out, None, step, offset, 1, coder, 16, 16, nets, rows, said)


def _any_sums(rng: random.Random, frames: int) -> _core.FrameSums:
    """Return weighted sums of any frames, from near and far."""
    rows = np.array(
        [(rng.randrange(-1, 3), rng.randrange(frames), rng.randrange(-1, frames)) for _ in range(frames)]
    )
    if rng.random() < 0.1:
        rows[rng.randrange(frames), rng.randrange(3)] = rng.choice((-2, 3, frames, 1 << 40))
    sums = []
    for _ in range(3):
        far = rng.choice((0, 3, 30, 1 << 20, 1 << 62))
        taps = [
            (rng.choice((0, 0, 0, 1)), rng.randint(-far, far), rng.randint(-far, far))
            for _ in range(rng.randrange(12))
        ]
        weights = [
            rng.choice((*SPECIAL, rng.uniform(-2, 2))) for _ in range(len(taps) + (rng.random() < 0.02))
        ]
        sums.append((np.array(taps, np.int64).reshape(-1, 3), np.array(weights)))
    return _core.FrameSums(rows.astype(np.int64), sums)


# ---- decisions of our choice -----------------------------------------------------------------------------------


class Composer(reference.RangeDecoder):
    """Takes the place of a range decoder: it chooses every decision, and encodes it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.low, self.range, self.out = rng, 0, reference.MASK, bytearray()
        self.mood, self.left = "likely", 40  # the first decisions are mostly weights, which have limits

    def finish(self) -> bytes:
        """Return the codes that lead a decoder to the same decisions."""
        return bytes(self.out) + self.low.to_bytes(8, "big")

    def _next_mood(self) -> str:
        if self.left == 0:
            moods = ("likely", "likely", "likely", "ones", "zeros", "coin")
            self.mood, self.left = self.rng.choice(moods), self.rng.choice((1, 10, 60, 300))
        self.left -= 1
        return self.mood

    def _encode(self, start: int, width: int) -> None:
        self.low += start
        if self.low > reference.MASK:
            self.low &= reference.MASK
            for i in reversed(range(len(self.out))):
                self.out[i] = (self.out[i] + 1) & 255
                if self.out[i]:
                    break
        self.range = width
        if self.range < 1 << 32:
            self.out += (self.low >> 32).to_bytes(4, "big")
            self.low = self.low << 32 & reference.MASK
            self.range <<= 32

    def bit(self, p1: int) -> int:
        """Choose a bit."""
        mood = self._next_mood()
        p = {"likely": p1 / 65536, "ones": 1.0, "zeros": 0.0, "coin": 0.5}[mood]
        bit = int(self.rng.random() < p)
        bound = (self.range >> 16) * p1
        self._encode(0 if bit else bound, bound if bit else self.range - bound)
        return bit

    def symbol(self, edge: list[int]) -> int:
        """Choose a symbol."""
        mood, rng = self._next_mood(), self.rng
        target = rng.randrange(32768)
        likely = next(s for s in range(32) if target < edge[s + 1])
        s = {"likely": likely, "ones": 31, "zeros": 16, "coin": rng.choice((0, 1, 15, 17, 30, 31))}[mood]
        unit = self.range >> 15
        self._encode(unit * edge[s], unit * (edge[s + 1] - edge[s]))
        return s

    def raw(self, n: int) -> int:
        """Choose some bits."""
        top = (1 << n) - 1
        mood = self._next_mood()
        v = {"ones": top, "zeros": 0}.get(mood, self.rng.randint(0, top))
        width = self.range >> n
        self._encode(v * width, width)
        return v


class _Composing:
    """Within it, the reference decoder composes instead of decoding."""

    def __init__(self, rng: random.Random) -> None:
        self.composer = Composer(rng)

    def __enter__(self) -> Composer:
        self.original = reference.RangeDecoder
        reference.RangeDecoder = lambda data: self.composer  # type: ignore[assignment, misc]
        return self.composer

    def __exit__(self, *error: object) -> None:
        reference.RangeDecoder = self.original  # type: ignore[misc]


def composed_case(rng: random.Random) -> None:
    """Compare the native core with the reference decoder on decisions that no encoder would take."""
    shape = _shape(rng, 250)
    kind = rng.choice(
        (
            "interpolation",
            "interpolation",
            "causal",
            "causal",
            "local",
            "local",
            "labels",
            "lossless",
            "frames",
            "frames",
        )
    )
    if kind == "frames":
        shape = (rng.randint(1, 6), rng.randint(8, 11), rng.randint(8, 19))
    if kind == "labels":
        with _Composing(rng) as composer:
            expected = np.array(reference.decode_labels(b"", shape), np.uint8).reshape(shape)
        labels = np.zeros(shape, np.uint8)
        _core.decode_labels(composer.finish(), labels)
        assert np.array_equal(labels, expected)
    elif kind == "lossless":
        _composed_lossless(shape, rng)
    else:
        _composed_closed_loop(kind, shape, rng)


def _composed_lossless(shape: tuple[int, ...], rng: random.Random) -> None:
    name, order = rng.choice(
        (("u1", 0), ("i1", 1), ("i2", 1), ("f2", 2), ("u4", 0), ("f4", 2), ("i8", 1), ("f8", 2))
    )
    dtype, dims, rejected = np.dtype("<" + name), rng.randint(0, min(3, len(shape))), False
    with _Composing(rng) as composer:
        try:
            expected = reference.decode_lossless(dtype, shape, bytes([dims]), b"")
        except reference.RejectedStreamError:
            rejected = True
    exact = np.zeros(shape, f"u{dtype.itemsize}")
    try:
        _core.decode_lossless(composer.finish(), exact, dims, order)
    except _core.CorruptDataError:
        assert rejected, "only the native core rejects this"
        return
    assert not rejected, "only the reference decoder rejects this"
    assert exact.tobytes() == expected.tobytes()


def _composed_closed_loop(kind: str, shape: tuple[int, ...], rng: random.Random) -> None:
    dtype = np.dtype(rng.choice(("<f4", "<f8")))
    size = math.prod(shape)
    labels = [0] * size
    if rng.random() < 0.4:
        share = rng.choice((0.05, 0.5, 0.95))
        labels = [int(rng.random() < share) for _ in range(size)]
    step = rng.choice((1.0, 0.01, 1e-30, 1e38, 1e300, 5e-324))
    offset = rng.choice((0.0, 1.0, -1e5, 3e38, 1.7e308))
    outliers = np.array([rng.choice((*SPECIAL, rng.gauss(0, 1))) for _ in range(size)], np.float64)
    with np.errstate(all="ignore"):
        outliers = outliers.astype(dtype)
    predictor: Predictor = Causal(coder=rng.choice((Coder.ADAPTIVE, Coder.ADAPTIVE_ZEROS, Coder.MIXED)))
    if kind == "interpolation":
        predictor = Interpolation(
            batch=rng.randrange(len(shape)),
            reference=rng.random() < 0.5,
            reversed=rng.random() < 0.5,
            coder=rng.choice((Coder.ADAPTIVE, Coder.ADAPTIVE_ZEROS, Coder.MIXED)),
            alpha16=rng.choice((16, 20, 255)),
            beta16=rng.choice((16, 24, 255)),
        )
        if not predictor.reversed and predictor.coder is not Coder.ADAPTIVE_ZEROS:
            predictor = replace(predictor, model=_any_pack(rng))
    if kind == "local":
        predictor = Local()
    if kind == "frames":
        predictor = _any_frames(rng)
    plan, fitted = predictor.pack(step, offset), b""
    if isinstance(predictor, Frames):
        fitted = _fitted(rng, predictor.forecaster, shape[0], -(-shape[1] // 16) * -(-shape[2] // 16))
    rejected = False
    with _Composing(rng) as composer, np.errstate(all="ignore"):
        loop = reference.ClosedLoop(dtype, shape, labels, b"", outliers)
        try:
            if kind == "frames":
                reference.decode_frames(loop, plan, fitted, predictor.model)
            elif kind == "interpolation":
                reference.decode_interpolation(loop, plan, predictor.model)
            else:
                getattr(reference, f"decode_{kind}")(loop, plan)
        except reference.RejectedStreamError:
            rejected = True
    codes = composer.finish()
    if kind == "frames":
        codes = Writer().varint(len(fitted)).raw(fitted).raw(codes).done()
    out = np.zeros(shape, dtype)
    mask = np.array(labels, np.uint8).reshape(shape) if any(labels) or rng.random() < 0.2 else None
    try:
        predictor.decode(codes, outliers[: loop.outliers_used].tobytes(), out, mask, step, offset)
    except (_core.CorruptDataError, CorruptStreamError) as error:
        assert rejected, f"only the native core rejects this: {error}"
        return
    except ValueError:
        assert kind == "local" and len(shape) == 1
        return
    assert not rejected, "only the reference decoder rejects this"
    expected = loop.values.reshape(shape)
    same = (out == expected) & (np.signbit(out) == np.signbit(expected)) | np.isnan(out) & np.isnan(expected)
    assert same.all(), f"{int((~same).sum())} of {size} values differ, the first at {np.argmin(same.ravel())}"


# ---- the encoder -----------------------------------------------------------------------------------------------


def encode_case(rng: random.Random) -> None:
    """Encode random bits or noise at any scale, and check the result."""
    shape, np_rng = _shape(rng, 4000, axes=5), np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.3:
        shape = (rng.randint(2, 9), rng.randint(8, 20), rng.randint(8, 20))
    dtype = np.dtype(rng.choice(("f4", "f8", "f2", "i1", "i4", "i8", "u1", "u2", "u8")))
    array = np.frombuffer(np_rng.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()
    if dtype.kind == "f" and rng.random() < 0.8:
        with np.errstate(all="ignore"):
            noise = np_rng.standard_normal(shape) * 10.0 ** rng.randint(-40, 40)
            array = (np.cumsum(noise, axis=-1) if rng.random() < 0.5 else noise).astype(dtype)
        for _ in range(rng.randint(0, 3)):
            array[np_rng.random(shape) < 0.1] = dtype.type(rng.choice((math.nan, math.inf, -9999.0, 0.0)))
    modes = ("abs", "range_rel", "pw_rel") if dtype.kind == "f" else ("abs", "range_rel")
    mode = rng.choice(modes)
    value = 10.0 ** (rng.uniform(-7, -0.1) if mode != "abs" else rng.uniform(-40, 40))
    pack = _any_pack(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = pipeline.encode(
            array,
            ErrorBound(mode, value),
            effort=rng.choice(pipeline.EFFORTS),
            models=[] if pack is None else [pack],
            forecasters=rng.choice((None, None, [], [Nearest], [LeastSquares], [Motion])),
        )
    decoded, tolerance = pipeline.decode(stream), pipeline.describe(stream).tolerance
    kept = (
        ErrorBound("abs" if mode == "range_rel" else mode, tolerance) if tolerance else ErrorBound("lossless")
    )
    assert first_violation(array, decoded, kept) is None


def _model(rng: random.Random) -> Stepping | StateCodec:
    """Return a foundation model: a sound one, one whose numerics differ, or one that says nonsense."""
    wild = rng.choice((math.nan, math.inf, 3e38, 0.0))
    off = np.float32(10.0 ** rng.uniform(-9, 0))
    history = rng.choice((1, 1, 2))
    last: Callable[[np.ndarray], np.ndarray] = lambda states: states if history == 1 else states[-1]  # noqa: E731
    kind = rng.randrange(4)
    if kind == 3:
        return StateCodec(
            lambda state: (
                np.nan_to_num(state.reshape(-1)[:4], posinf=0, neginf=0).clip(-1e9, 1e9).astype(np.int32)
            ),
            lambda latents: np.full((1, *GRID), latents[0], np.float32),
            latents=4,
            name="fuzzed",
            version="1",
        )
    functions = (
        lambda states: np.float32(0.9) * last(states),
        lambda states: np.full_like(last(states), wild),
        lambda states: last(states)[..., ::-1],
    )
    return Stepping(
        functions[kind],
        other=lambda states: functions[kind](states) + off * np.float32(rng.choice((-1, 1))),
        name="fuzzed",
        version="1",
        history=history,
    )


GRID = (9, 11)


def forecast_case(rng: random.Random) -> None:
    """Encode states with a foundation model, and check the result, model-free too; or be told that the model will not do."""
    np_rng, model = np.random.default_rng(rng.getrandbits(32)), _model(rng)
    with np.errstate(all="ignore"):
        states = np_rng.standard_normal((rng.randint(1, 6), *GRID)).cumsum(axis=-1) * 10.0 ** rng.randint(
            -30, 30
        )
        if rng.random() < 0.7:
            states = states[:1] + 0.1 * states
        states = states.astype(rng.choice(("f4", "f8")))
    for _ in range(rng.randint(0, 3)):
        states[np_rng.random(states.shape) < 0.1] = rng.choice((math.nan, math.inf, -9999.0, 0.0))
    if rng.random() < 0.2:
        states[rng.randrange(len(states))] = math.nan
    finite = np.abs(states[np.isfinite(states)])
    value = float(finite.max(initial=1.0)) * 10.0 ** rng.uniform(-5, 0) or 1.0
    place = Coordinates(("t@850",), 0, 3600, (50.0, 0.25), (5.0, 0.25))
    bound = ErrorBound("abs", value)
    try:
        stream = pipeline.encode(states, bound, forecast=Forecasting(model, place))
    except UnstableForecastError:
        return
    known = {model.digest: model}
    decoded = pipeline.decode(stream, find_forecaster=known.__getitem__)
    kept = bound if pipeline.describe(stream).tolerance else ErrorBound("lossless")
    assert first_violation(states, decoded, kept) is None
    free = pipeline.materialise(stream, find_forecaster=known.__getitem__)
    assert pipeline.decode(free).tobytes() == decoded.tobytes()


CASES: dict[str, Callable[[random.Random], None]] = {
    "stream": stream_case,
    "core": core_case,
    "composed": composed_case,
    "encode": encode_case,
    "forecast": forecast_case,
}


def main() -> int:
    """Run cases until the time is up or one fails."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time")
    parser.add_argument("--only", choices=CASES, help="one kind of cases")
    parser.add_argument("--case", metavar="KIND:SEED:NUMBER", help="run this case and no other")
    parser.add_argument("--last", type=Path, help="file that names the case that runs, for crashes")
    options = parser.parse_args()
    if options.case:
        CASES[options.case.split(":")[0]](random.Random(options.case))
        return 0
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    kinds = [options.only] if options.only else list(CASES)
    counts = dict.fromkeys(kinds, 0)
    spent = dict.fromkeys(kinds, 0.0)
    end = time.monotonic() + options.seconds
    number = 0
    while (start := time.monotonic()) < end:
        kind = min(kinds, key=spent.__getitem__)  # the same time for all
        case = f"{kind}:{seed}:{number}"
        number += 1
        if options.last:
            options.last.write_text(case + "\n")
        try:
            CASES[kind](random.Random(case))
        except Exception:
            print(f"FAILED: --case {case}", flush=True)
            raise
        counts[kind] += 1
        spent[kind] += time.monotonic() - start
    print(f"seed {seed}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
