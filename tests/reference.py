"""A slow second decoder of the stream format, written from docs/format.md alone.

It is the independent check of that page: one class or function a section, Python integers for the range coder, Python
floats (binary64, one rounding an operation) for the arithmetic.  It shares no code with the package, but for networks, whose
own slow evaluation in NumPy (docs/networks.md) it calls, and the coordinates that foundation models are told.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from aesz_codec.coordinates import Coordinates
from aesz_codec.nets import Network
from aesz_codec.packs import plain

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
CONSTANT, INTERPOLATION, CAUSAL, LOSSLESS, BYTES, LOCAL, FRAMES = range(7)
NO_TRANSFORM, LOGARITHM, INTEGER, LATTICE, SIDE = range(5)
CROP, LABELS, SIGNS, PLAN, CODES, OUTLIERS, CORRECTIONS, LATTICE_SECTION, MODEL, SIDE_SECTION = range(1, 11)
FORECAST = 11
MASK = 2**64 - 1
OUTLIER = 2**31  # stands for the code of an outlier


class RejectedStreamError(ValueError):
    """The stream must be rejected (section 15)."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RejectedStreamError(message)


def clamp(x: Any, lo: Any, hi: Any) -> Any:
    return max(lo, min(x, hi))


# 1, 2. Conventions and layout ------------------------------------------------------------------------------


class Bytes:
    """A cursor over bytes; reading beyond the end rejects the stream."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        require(self.at + n <= len(self.data), "truncated")
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def f64(self) -> float:
        return float(struct.unpack("<d", self.take(8))[0])

    def varint(self) -> int:
        value = 0
        for i in range(9):
            byte = self.u8()
            value |= (byte & 127) << 7 * i
            if byte < 128:
                require(byte > 0 or i == 0, "varint: the last byte is 0")
                return value
        raise RejectedStreamError("varint: more than nine bytes")

    def end(self) -> None:
        require(self.at == len(self.data), "bytes left over")


def decode(
    stream: bytes,
    find_model: Callable[[str], Any] | None = None,
    find_forecaster: Callable[[str], Any] | None = None,
) -> np.ndarray:
    """Decode one stream: C order, native byte order.  `find_model` returns the pack of a digest, or raises; `find_forecaster` a
    foundation model.
    """
    head = Bytes(bytes(stream))
    require(head.take(4) == b"AESZ", "magic")
    major, minor, flags, dtype_code, mode, method, transform, ndim = head.take(8)
    require(major == 1, "major version")
    known = flags < 4 and dtype_code < 11 and mode < 4 and ndim <= 32
    require(known and method < (7 if minor > 4 else 6 if minor else 5), "header")
    require(transform < (5 if minor > 2 else 4 if minor else 3), "transform")
    last_tag = (CORRECTIONS, LATTICE_SECTION, MODEL, SIDE_SECTION, SIDE_SECTION, FORECAST)[min(minor, 5)]
    dtype = np.dtype(DTYPES[dtype_code]).newbyteorder("<")
    shape = tuple(head.varint() for _ in range(ndim))
    require(math.prod(n for n in shape if n) * dtype.itemsize < 2**63, "shape")
    head.f64(), head.f64()  # bound and tolerance inform
    table = []
    for _ in range(head.u8()):
        tag, coding, stored = head.u8(), head.u8(), head.varint()
        require(not table or tag > table[-1][0], "tags rise")
        require(CROP <= tag <= last_tag and coding < 2, "section")
        table.append((tag, coding, stored, head.varint() if coding else stored))
    checksum = zlib.crc32(head.data[: head.at])
    require(head.u32() == checksum, "header checksum")
    payload_at = head.at
    limit = math.prod(shape) * dtype.itemsize + 2**16
    sections = {}
    for tag, coding, stored, expanded in table:
        payload = head.take(stored)
        if coding:
            require(math.prod(shape) > 0 and expanded <= min(limit, stored << 16), "zstd section too large")
            try:
                payload = bytes(Zstd().decode(payload))
            except (RuntimeError, ValueError) as error:
                raise RejectedStreamError("zstd") from error
            require(len(payload) == expanded, "zstd size")
        sections[tag] = payload
    checksum = zlib.crc32(head.data[payload_at : head.at])
    require(head.u32() == checksum, "payload checksum")
    head.end()
    coder = {INTERPOLATION: (17, 2), CAUSAL: (16, 0), FRAMES: (17, 2)}.get(method)
    if coder and len(sections.get(PLAN, b"")) > coder[0]:
        require(minor > 0 or sections[PLAN][coder[0]] >> coder[1] < 2, "coder")
    if method in (INTERPOLATION, FRAMES) and len(sections.get(PLAN, b"")) > 17 and sections[PLAN][17] & 16:
        least = 5 if sections[PLAN][17] >> 2 & 3 == 2 else 2
        require(minor >= least and len(sections.get(MODEL, b"")) == 32, "model")
        sections[MODEL] = _model(sections[MODEL].hex(), find_model, "interpolation")
    if method == CAUSAL and len(sections.get(PLAN, b"")) > 16 and sections[PLAN][16] & 16:
        require(minor > 3 and transform == NO_TRANSFORM and len(sections.get(MODEL, b"")) == 32, "model")
        sections[MODEL] = _model(sections[MODEL].hex(), find_model, "forecaster")
    if transform == SIDE:
        sections[SIDE_SECTION] = functools.partial(
            _side_prediction, sections.get(SIDE_SECTION, b""), minor, find_model
        )
    if method == FRAMES and sections.get(PLAN, b"")[19:20] == b"\xff":
        require(transform == NO_TRANSFORM, "transform")
        sections[FORECAST] = functools.partial(Forecasts, sections.get(FORECAST, b""), find_forecaster)
    else:
        sections.pop(FORECAST, None)
    with np.errstate(all="ignore"):
        array = _assemble(dtype, shape, method, transform, sections)
    return array.astype(dtype.newbyteorder("="))


def _model(digest: str, find_model: Callable[[str], Any] | None, kind: str) -> Any:
    require(find_model is not None, "a model, and nothing to find it with")
    try:
        pack = find_model(digest)
    except Exception as error:
        raise RejectedStreamError(f"no model {digest}") from error
    require(pack.digest == digest and pack.kind == kind, "another model, or of another kind")
    return pack


# 3, 4, 5. Sections, crop, labels ---------------------------------------------------------------------------


def _assemble(
    dtype: np.dtype, shape: tuple[int, ...], method: int, transform: int, sections: dict[int, bytes]
) -> np.ndarray:
    raw = f"V{dtype.itemsize}"  # bits are moved as opaque bytes: no NaN may be touched
    region, fill = shape, bytes(dtype.itemsize)
    if CROP in sections:
        crop = Bytes(sections[CROP])
        region = tuple(crop.varint() for _ in shape)
        require(all(r <= n for r, n in zip(region, shape, strict=True)), "region")
        fill = crop.take(dtype.itemsize)
        crop.end()
    require((method == CONSTANT) == (math.prod(region) == 0), "method 0 if and only if the region is empty")
    values = None if method == CONSTANT else _region(dtype, region, method, transform, sections)
    array = np.frombuffer(fill * math.prod(shape), raw).reshape(shape).copy()
    if values is not None:
        array[tuple(slice(0, n) for n in region)] = values.view(raw).reshape(region)
        if CORRECTIONS in sections:
            cursor, flat, position, positions = Bytes(sections[CORRECTIONS]), array.reshape(-1), -1, []
            for _ in range(cursor.varint()):
                position += 1 + cursor.varint()
                require(position < flat.size, "correction beyond the array")
                positions.append(position)
            for position in positions:
                flat[position] = np.void(cursor.take(dtype.itemsize))
            cursor.end()
    return array.view(dtype)


def fold_shape(region: tuple[int, ...]) -> tuple[int, ...]:
    axes = [n for n in region if n != 1]
    while len(axes) > 4:
        axes[:2] = [axes[0] * axes[1]]
    return tuple(axes) or (1,)


def _region(
    dtype: np.dtype, region: tuple[int, ...], method: int, transform: int, sections: dict[int, bytes]
) -> np.ndarray:
    """The values of the region, flat."""
    shape, count = fold_shape(region), math.prod(region)
    codes, plan = sections.get(CODES, b""), sections.get(PLAN, b"")
    if method == BYTES:
        require(len(codes) == count * dtype.itemsize, "bytes")
        return np.frombuffer(np.frombuffer(codes, np.uint8).reshape(dtype.itemsize, count).T.tobytes(), dtype)
    weight = len(codes) + len(sections.get(LABELS, b"")) + 1
    require(count <= weight << (17 if method == LOCAL else 20), "region too large for its codes")
    if method == LOSSLESS:
        return decode_lossless(dtype, shape, plan, codes)

    require(dtype.kind in ("iu" if transform == INTEGER else "f"), "transform")
    require(transform not in (NO_TRANSFORM, SIDE) or dtype.itemsize > 2, "transform")
    prediction = sections[SIDE_SECTION](region) if transform == SIDE else []
    labels, special = [0] * count, []
    if LABELS in sections:
        cursor = Bytes(sections[LABELS])
        k = cursor.u8()
        require(1 <= k <= 15, "special values")
        special = [cursor.take(dtype.itemsize) for _ in range(k)]
        labels = decode_labels(cursor.data[cursor.at :], shape)
        require(max(labels) <= k, "label")
    require(transform != LATTICE or dtype.itemsize > 2, "transform")
    single = transform == LATTICE or (dtype == np.dtype("<f4") and transform in (NO_TRANSFORM, SIDE))
    kind = np.dtype("<f4") if single else np.dtype("<f8")
    points = Lattice(sections.get(LATTICE_SECTION, b""), shape) if transform == LATTICE else None
    outliers = sections.get(OUTLIERS, b"") if method != LOCAL else b""
    require(len(outliers) % kind.itemsize == 0, "outliers")
    forecaster = b""
    if method == FRAMES and FORECAST not in sections:
        cursor = Bytes(codes)
        forecaster = cursor.take(cursor.varint())
        codes = codes[cursor.at :]
    loop = ClosedLoop(kind, shape, labels, codes, np.frombuffer(outliers, kind))
    if method in (INTERPOLATION, FRAMES):
        model = sections.get(MODEL) if len(plan) > 17 and plan[17] & 16 else None
        if FORECAST in sections:
            decode_modelled(loop, plan, sections[FORECAST])
        elif method == FRAMES:
            decode_frames(loop, plan, forecaster, model)
        else:
            decode_interpolation(loop, plan, model)
    elif method == CAUSAL:
        decode_causal(loop, plan, sections.get(MODEL) if len(plan) > 16 and plan[16] & 16 else None)
    else:
        decode_local(loop, plan)
    loop.finish()
    require(loop.outliers_used == loop.outliers.size, "outliers left over")
    result = loop.values
    if transform == LOGARITHM:
        signs = decode_labels(sections[SIGNS], shape) if SIGNS in sections else [0] * count
        powers = [-exp2(v) if sign == 1 else exp2(v) for v, sign in zip(result.tolist(), signs, strict=True)]
        result = np.array(powers, np.float64).astype(dtype)
    elif points is not None:
        result = np.array([points.value(v, at) for at, v in enumerate(result.tolist())], np.float64).astype(
            dtype
        )
    elif transform == INTEGER:
        result = np.array([to_integer(v, dtype) for v in result.tolist()], dtype)
    elif transform == SIDE:
        sums = [f + v for f, v in zip(prediction, result.tolist(), strict=True)]
        result = np.array(sums, np.float64).astype(dtype)
    bits = result.view(f"V{dtype.itemsize}")
    for i, label in enumerate(labels):
        if label:
            bits[i] = np.void(special[label - 1])
    return result


# 6. Range coder --------------------------------------------------------------------------------------------


class RangeDecoder:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.range, self.code = MASK, self._next(8)

    def _next(self, n: int) -> int:
        part = self.data[self.at : self.at + n]
        self.at += n
        return int.from_bytes(part + bytes(n - len(part)), "big")

    def _normalize(self) -> None:
        if self.range < 1 << 32:
            self.range = self.range << 32 & MASK
            self.code = (self.code << 32 | self._next(4)) & MASK
            require(self.at <= len(self.data) + 8, "codes are read beyond their end")

    def bit(self, p1: int) -> int:
        bound = (self.range >> 16) * p1
        if self.code < bound:
            bit, self.range = 1, bound
        else:
            bit = 0
            self.code -= bound
            self.range -= bound
        self._normalize()
        return bit

    def symbol(self, edge: list[int]) -> int:
        unit = self.range >> 15
        target = min(self.code // unit, 32767)
        s = next(s for s in range(32) if target < edge[s + 1])
        self.code -= unit * edge[s]
        self.range = unit * (edge[s + 1] - edge[s])
        self._normalize()
        return s

    def raw(self, n: int) -> int:
        self.range >>= n
        v = min(self.code // self.range, (1 << n) - 1)
        self.code -= v * self.range
        self._normalize()
        return v

    def raw_groups(self, n: int) -> int:
        """`n` raw bits in groups of at most 16, the highest first."""
        value = 0
        while n:
            group = min(n, 16)
            value = value << group | self.raw(group)
            n -= group
        return value


# 7. Adaptive models ----------------------------------------------------------------------------------------


class Bit:
    def __init__(self) -> None:
        self.p, self.count = 1 << 21, 0

    def update(self, bit: int) -> None:
        target = (1 << 22) - 1 if bit else 0
        self.p += ((target - self.p) * (131072 // (2 * self.count + 3))) >> 16
        self.count = min(self.count + 1, 250)

    def read(self, coder: RangeDecoder) -> int:
        bit = coder.bit(clamp(self.p >> 6, 4, 65532))
        self.update(bit)
        return bit


def _tables() -> tuple[list[int], list[int]]:
    t, e0 = 1 << 31, 0
    for n in range(8):
        e0 += -t if n % 2 else t
        t //= 256 * (n + 1)
    e = [e0]
    for _ in range(11):
        e.append((e[-1] ** 2 + (1 << 30)) >> 31)
    squash = []
    for g in range(-2048, 2048):
        power = 1 << 31
        for k in range(12):
            if abs(g) >> k & 1:
                power = (power * e[k] + (1 << 30)) >> 31
        q = max(1, (power << 16) // ((1 << 31) + power))
        squash.append(q if g <= 0 else 65536 - q)
    logits = range(-2047, 2048)
    stretch = [next((g for g in logits if squash[g + 2048] >= 16 * b + 8), 2047) for b in range(4096)]
    return squash, stretch


SQUASH, STRETCH = _tables()


class Mixer:
    def __init__(self, n: int) -> None:
        self.weights = [65536 // n + 65536 // (3 * n)] * n

    def read(self, coder: RangeDecoder, bits: list[Bit]) -> int:
        logits = [STRETCH[b.p >> 10] for b in bits]
        m = clamp(sum(w * x for w, x in zip(self.weights, logits, strict=True)) >> 16, -2047, 2047)
        p = clamp(SQUASH[m + 2048], 16, 65520)
        bit = coder.bit(p)
        error = 65536 - p if bit else -p
        self.weights = [
            clamp(w + ((x * error * 6 + (1 << 17)) >> 18), -(1 << 20), 1 << 20)
            for w, x in zip(self.weights, logits, strict=True)
        ]
        for b in bits:
            b.update(bit)
        return bit


def read_golomb(coder: RangeDecoder, models: list[Bit]) -> int:
    k = 0
    while k < 30 and models[k].read(coder):
        k += 1
    return (1 << k) + coder.raw_groups(k) - 1


class MixedDecisions:
    """Tokens, by mixed decisions of seven contexts."""

    def __init__(self, coder: RangeDecoder) -> None:
        self.coder = coder
        self.table: defaultdict[tuple, Bit] = defaultdict(Bit)
        start = 65536 // 7 + 65536 // 21
        self.weights: defaultdict[tuple, list[int]] = defaultdict(lambda: [start] * 7 + [0])
        self.beyond = [Bit() for _ in range(32)]

    def decision(self, contexts: list[int], mix: int, node: int) -> int:
        bits = [self.table[i, c, node] for i, c in enumerate(contexts)]
        weights = self.weights[mix, node]
        logits = [STRETCH[b.p >> 10] for b in bits] + [256]
        total = sum(clamp(w >> 4, -32768, 32767) * x for w, x in zip(weights, logits, strict=True))
        p = clamp(SQUASH[clamp(total >> 12, -2047, 2047) + 2048], 16, 65520)
        bit = self.coder.bit(p)
        error = (65536 - p) >> 1 if bit else -p >> 1
        for i, x in enumerate(logits):
            w = weights[i] + ((3 * x * error + (1 << 15)) >> 16)
            weights[i] = (w + 2**31) % 2**32 - 2**31
        for b in bits:
            b.update(bit)
        return bit

    def read_token(self, contexts: list[int], mix: int) -> int:
        if not self.decision(contexts, mix, 0):
            return 0
        positive = self.decision(contexts, mix, 1)
        k = 1
        while k <= 10 and self.decision(contexts, mix, k + (1 if positive else 11)):
            k += 1
        if k == 11:
            k = min(k + read_golomb(self.coder, self.beyond), 2**30)
        return k if positive else -k


class Distribution:
    def __init__(self, edge: list[int], prior: Distribution | None, longest: int) -> None:
        self.edge, self.prior, self.longest = list(edge), prior, longest
        self.counts, self.total, self.interval, self.wait = [0] * 32, 0, 6, 6

    def update(self, symbol: int) -> None:
        self.counts[symbol] += 1
        self.total += 1
        self.wait -= 1
        if self.wait:
            return
        self.interval = self.wait = min(2 * self.interval, self.longest)
        scale = (32736 << 46) // ((self.total + 24) << 15)
        below, prior = 0, self.prior.edge
        for i in range(32):
            self.edge[i] = ((below * scale) >> 46) + i
            below += (self.counts[i] << 15) + 24 * (prior[i + 1] - prior[i])
        if self.total >= 512:
            self.counts = [c >> 1 for c in self.counts]
            self.total = sum(self.counts)


# 8. Residual codes -----------------------------------------------------------------------------------------


def class_of(x: int) -> int:
    v = x + 4
    e = v.bit_length() - 1
    return min(4 * (e - 2) + ((v >> (e - 2)) & 3), 63)


def law(s: int, nonzero: bool, shift: int, one: int = 16) -> list[int]:
    """The edges of a class; magnitudes are in 1/`one`."""
    o = s // 4
    unit = one << shift
    mean = max(1, ((4 + s % 4) << o) - 4 + ((1 << o) >> 1))
    wide = 3 * mean + unit
    x, y, weight = 1 << 20, 1 << 16, [0] * 32
    for t in range(16):
        weight[16 + t] = x + y + 16
        x = x * mean // (mean + unit)
        y = y * wide // (wide + unit)
        weight[15 - t] = weight[16 + t] if shift > 0 else x + y + 16
    if nonzero:
        weight[16] = 1
    total = sum(weight)
    return [sum(weight[:i]) * 32736 // total + i for i in range(32)] + [32768]


def variant_of(s: int, n: int, expected: int, west: int, north: int) -> int:
    relative = 3 if n > s + 2 else 2 if n >= s else 0 if n + 2 < s else 1
    g = 16 * (2 * west + north)
    bias = (4 if g > expected else 3) if g > 0 else 2 if g == 0 else 0 if g < -expected else 1
    return 5 * relative + bias


class ResidualDecoder:
    """Codes and weights from one range-coded section; every model starts afresh."""

    def __init__(self, coder: RangeDecoder) -> None:
        self.coder, self.zeros = coder, True  # `zeros` is the plan's
        self.zero: defaultdict[tuple, Bit] = defaultdict(Bit)
        self.mixers = defaultdict(lambda: Mixer(4))
        self.parents: dict[tuple, Distribution] = {}
        self.children: dict[tuple, Distribution] = {}
        self.quiet: defaultdict[tuple, Bit] = defaultdict(Bit)
        self.first: defaultdict[tuple, Bit] = defaultdict(Bit)
        self.outlier = Bit()
        self.beyond = [Bit() for _ in range(32)]
        self.integer = [Bit() for _ in range(32)]

    def read_quiet_block(self, group: int, scales: list[int] | None = None) -> list[int]:
        """The codes of a quiet block up to the first that is not 0 (section 10); `scales` of the eight, if learned."""
        if self.quiet[group, min(max(scales) // 2, 15) if scales else 0].read(self.coder):
            return [0] * 8
        node = 1
        for _ in range(3):
            node = 2 * node + self.first[group, node].read(self.coder)
        zeros = node - 8
        lonely = ("lonely", group, scales[zeros]) if scales else ("nonzero", group, 0, 12)
        return [0] * zeros + [self.read_symbol("nonzero", 0, lonely)]

    def read_integer(self) -> int:
        folded = read_golomb(self.coder, self.integer)
        return -((folded + 1) // 2) if folded & 1 else folded // 2

    def read_code(self, expected: int, near: int, other: int, west: int, north: int, group: int) -> int:
        s, n = class_of(expected), class_of(near)
        variant = variant_of(s, n, expected, west, north)
        nonzero = self.zeros and s < 8
        if nonzero:
            w4 = 4 * min(abs(west), 3) + min(abs(north), 3)
            n2, o2 = min(n // 2, 15), min(class_of(other) // 2, 15)
            keys = ("scale", group, s), ("near", group, n2, w4), ("other", o2, n2, s), ("same", group, w4, s)
            if not self.mixers[group].read(self.coder, [self.zero[key] for key in keys]):
                return 0
        kind = "nonzero" if nonzero else "any"
        return self.read_symbol(kind, s, (kind, group, s, variant))

    def read_learned(self, t: int, expected: int, west: int, ww: int, north: int, group: int) -> int:
        """Section 18: the code of a point of class `t`."""
        v = class_of(expected) + 16 if expected > 0 else min(t, 12)
        s = (t + v) // 2
        n = class_of(12 * abs(west) + 4 * abs(ww)) + 16
        variant = variant_of(s, n, expected, west, north)
        return self.read_symbol("learned", s, ("learned", group, s, variant))

    def read_symbol(self, kind: str, s: int, child_of: tuple) -> int:
        """The code behind a symbol of class `s`, by one of the children of a parent."""
        shift = max(0, s // 4 - (7 if kind == "learned" else 3))
        if (kind, s) not in self.parents:
            edge = law(s, kind == "nonzero", shift, 256 if kind == "learned" else 16)
            self.parents[kind, s] = Distribution(edge, Distribution(edge, None, 0), 256)
        parent = self.parents[kind, s]
        if child_of not in self.children:
            self.children[child_of] = Distribution(parent.edge, parent, 32)
        child = self.children[child_of]
        symbol = self.coder.symbol(child.edge)
        parent.update(symbol)
        child.update(symbol)
        if symbol == 0:
            if self.outlier.read(self.coder):
                return OUTLIER
            high = -16 - read_golomb(self.coder, self.beyond)
        elif symbol == 31:
            high = 15 + read_golomb(self.coder, self.beyond)
        else:
            high = symbol - 16
        low = self.coder.raw(shift) if shift else 0
        return clamp(high * 2**shift + low, -(2**30), 2**30)


# 8b. Mixed coder ------------------------------------------------------------------------------------------


class MixedDecoder:
    """Lines of codes in mixed decisions, and weights; every line starts with `west` and `ww` 0."""

    def __init__(self, coder: RangeDecoder) -> None:
        self.coder, self.tokens = coder, MixedDecisions(coder)
        self.outlier = Bit()
        self.integer = [Bit() for _ in range(32)]

    read_integer = ResidualDecoder.read_integer

    def read_line(
        self,
        contexts: list[tuple[int, ...]],
        masked: list[bool],
        west_weight: int,
        scales: list[int] | None = None,
    ) -> list[int]:
        """`contexts`: (expected without `west` and `ww`, near, other, north, group) of every place; `scales` if learned."""
        codes, west, ww = [], 0, 0
        norths = [0, *(context[3] for context in contexts), 0]
        for i, (expected, near, other, north, group) in enumerate(contexts):
            if masked[i]:
                codes.append(0)
                continue
            expected += west_weight * abs(west) + abs(ww)
            around = west, north, norths[i + 2], norths[i], ww
            t = scales[i] if scales else None
            codes.append(self.read_code(expected, near, other, around, group, t))
            west, ww = clamp(codes[-1], -4095, 4095) if codes[-1] != OUTLIER else 4095, west
        return codes

    def read_code(
        self, expected: int, near: int, other: int, around: tuple[int, ...], group: int, t: int | None
    ) -> int:
        west, north, northeast, northwest, ww = around
        s = class_of(expected)
        s2, s4 = min(s // 2, 23), min(s // 4, 11)
        n2, o2 = min(class_of(near) // 2, 23), min(class_of(other) // 2, 23)
        lean = 2 * west + north
        flip = -1 if lean < 0 else 1
        bias = 0 if lean == 0 else 2 if 16 * abs(lean) > expected else 1
        signs = 0
        for x in around:
            signs = 3 * signs + (x * flip > 0) - (x * flip < 0) + 1
        m_ne, m_nw = (min(class_of(16 * abs(x)) // 4, 11) for x in (northeast, northwest))
        small = 4 * min(abs(west), 3) + min(abs(north), 3), 2 * min(abs(ww), 1) + min(abs(northeast), 1)
        contexts = [
            (64 * group + s) * 3 + bias,
            small[0] * 64 + small[1] * 16 + min(s2, 15),
            (24 * n2 + s2) * 3 + bias,
            (24 * o2 + s2) * 3 + bias,
            (12 * m_ne + m_nw) * 12 + s4,
            signs * 12 + s4,
            (24 * group + n2) * 24 + o2,
        ]
        if t is not None:  # section 18
            contexts[0], contexts[6] = (80 * group + t) * 3 + bias, (24 * t + s2) * 3 + bias
        token = self.tokens.read_token(contexts, 16 * group + min(s // 4, 15))
        if abs(token) > 10 and self.outlier.read(self.coder):
            return OUTLIER
        shift = max(0, (s - 10) // 4)
        half = 1 << (shift - 1) if shift else 0
        low = self.coder.raw(shift) if shift else 0
        return clamp(flip * (token * 2**shift + low - half), -(2**30), 2**30)


# 8a. Static coder -----------------------------------------------------------------------------------------


class StaticDecoder:
    """Lines of codes, and weights, from segments of rANS symbols and raw bits."""

    def __init__(self, data: bytes) -> None:
        self.data = Bytes(data)
        self.open = False
        self.coded = self.counted = self.lines = 0
        self.interval = 64
        self.laws = [static_edges(static_law(scale)) for scale in range(32)]
        quiet, flat = static_edges([50] + [1] * 15), static_edges([1] * 16)
        self.prior = {("code", g, s): self.laws[s] for g in range(7) for s in range(32)}
        self.prior |= {("quiet", g, around): quiet for g in range(7) for around in range(4)}
        self.prior |= {("escape",): flat, ("integer",): flat}
        self.learned_laws = [static_edges(static_law(scale, 5)) for scale in range(40)]
        self.prior |= {("learned", h, s): self.learned_laws[s] for h in range(14) for s in range(40)}
        self.table = dict(self.prior)
        self.counts = {context: [0] * 16 for context in self.prior}

    def _open(self) -> None:
        n_words, n_bytes = self.data.varint(), self.data.varint()
        raw = self.data.take(2 * n_words)
        self.words = [raw[i] | raw[i + 1] << 8 for i in range(0, len(raw), 2)]
        bits = int.from_bytes(self.data.take(n_bytes), "little")
        self.bits, self.bits_left = bits, 8 * n_bytes
        self.next_word = self.symbols = 0
        self.states = [self._word() << 16 | self._word() for _ in range(8)]
        require(min(self.states) >= 1 << 16, "state")
        self.open = True

    def _close(self) -> None:
        require(self.states == [1 << 16] * 8 and self.next_word == len(self.words), "end of a segment")
        require(0 <= self.bits_left < 8, "raw bits")
        self.open = False

    def finish(self) -> None:
        if self.open:
            self._close()
        self.data.end()

    def _word(self) -> int:
        require(self.next_word < len(self.words), "words")
        self.next_word += 1
        return self.words[self.next_word - 1]

    def symbol(self, *context: Any) -> int:
        if not self.open:
            self._open()
        edge, lane = self.table[context], self.symbols % 8
        self.symbols += 1
        self.coded += 1
        x = self.states[lane]
        target = x % 2**15
        s = max(i for i in range(16) if edge[i] <= target)
        x = (edge[s + 1] - edge[s]) * (x >> 15) + target - edge[s]
        self.states[lane] = x << 16 | self._word() if x < 1 << 16 else x
        return s

    def counting(self, *context: Any) -> int:
        s = self.symbol(*context)
        self.counts[context][s] += 1
        self.counted += 1
        return s

    def raw(self, n: int) -> int:
        value = self.bits & ((1 << n) - 1)
        self.bits >>= n
        self.bits_left -= n  # below 0: refused at the end of the segment
        return value

    def _rebuild(self) -> None:
        if self.counted < self.interval:
            return
        self.counted, self.interval = 0, min(2 * self.interval, 8192)
        for kind, groups, laws in ("code", 7, self.laws), ("learned", 14, self.learned_laws):
            for s, law_of_scale in enumerate(laws):
                counts = [sum(self.counts[kind, g, s][i] for g in range(groups)) for i in range(16)]
                parent = static_edges(blended(counts, law_of_scale)) if any(counts) else None
                for g in range(groups):
                    self.prior[kind, g, s] = parent
        for context, counts in self.counts.items():
            prior = self.prior[context]
            if prior is None:
                continue
            self.table[context] = static_edges(blended(counts, prior))
            if sum(counts) >= 8192:
                self.counts[context] = [n // 2 for n in counts]

    def read_integer(self) -> int:
        n = self.counting("integer")
        folded = self.raw(32) if n == 15 else (1 << n) - 1 + self.raw(n)
        self._rebuild()
        return -((folded + 1) // 2) if folded & 1 else folded // 2

    def read_line(self, expected: list[int], masked: list[bool], group: int) -> list[int]:
        """The codes of a line; 0 where it is masked."""
        n = len(expected)
        scales, codes = [static_scale(x) for x in expected], [0] * n
        left = []
        counts_tokens = self.coded < 1 << 15 or self.lines % 4 == 0
        for b in range(0, n, 8):
            block = range(b, min(b + 8, n))
            if len(block) < 8 or any(scales[i] or masked[i] for i in block):
                left += [i for i in block if not masked[i]]
                continue
            around = 2 * any(scales[max(0, b - 8) : b]) + any(scales[b + 8 : b + 16])
            s = self.counting("quiet", group, around)
            if s > 8:
                left += block
            elif s:
                codes[b + s - 1] = 1 if self.raw(1) else -1
        self._read_points(left, scales, ("code", group), 2, counts_tokens, codes)
        self._end_line()
        return codes

    def read_learned_line(
        self, expected: list[int], masked: list[bool], group: int, classes: list[int]
    ) -> list[int]:
        """Section 18: the same of a line of learned classes."""
        n = len(expected)
        codes, scales = [0] * n, [0] * n
        counts_tokens = self.coded < 1 << 15 or self.lines % 4 == 0
        for half in range(2):
            for i in range(half, n, 2):
                t, e = classes[i], expected[i]
                if half:
                    beside = codes[i - 1], codes[i + 1 if i + 1 < n else i - 1]
                    e += 8 * sum(min(abs(code), 2047) for code in beside)
                v = class_of(e) + 16 if e > 0 else min(t, 12)
                scales[i] = (t + v) // 4 if half else (3 * t + v) // 8
            points = [i for i in range(half, n, 2) if not masked[i]]
            self._read_points(points, scales, ("learned", 2 * group + half), 7, counts_tokens, codes)
        self._end_line()
        return codes

    def _end_line(self) -> None:
        self.lines += 1
        self._rebuild()
        if self.open and self.symbols >= 1 << 16:
            self._close()

    def _read_points(
        self,
        points: list[int],
        scales: list[int],
        context: tuple,
        octaves: int,
        counts_tokens: bool,
        codes: list[int],
    ) -> None:
        """Tokens, lengths and raw bits of some points; scales of more than so many octaves have a shift."""
        tokens = [self.symbol(*context, scales[i]) for i in points]
        lengths = [self.counting("escape") for token in tokens if token == 15]
        for i, token in zip(points, tokens, strict=True):
            codes[i] = self._code(token, max(0, scales[i] // 2 - octaves), lengths)
            if counts_tokens:
                self.counts[(*context, scales[i])][token] += 1
                self.counted += 1

    def _code(self, token: int, shift: int, lengths: list[int]) -> int:
        if token == 15:
            length = lengths.pop(0)
            if length == 15:
                return OUTLIER
            token += self.raw(32) if length == 14 else (1 << length) - 1 + self.raw(length)
        if shift == 0:
            code = token if token and self.raw(1) else -token
        else:
            u = (token << (shift + 1)) + self.raw(shift + 1)
            code = -((u + 1) // 2) if u & 1 else u // 2
        return clamp(code, -(2**30), 2**30)


def static_scale(expected: int) -> int:
    v = expected + 4
    e = v.bit_length() - 1
    return 2 * (e - 2) + ((v >> (e - 1)) & 1)


def static_law(scale: int, finer: int = 0) -> list[int]:
    """The weights of a scale; with `finer` = 5 of a learned one."""
    o = scale // 2
    shift = max(0, o - 2 - finer)
    unit = (256 if finer else 16) << shift
    mean = max(1, ((2 + scale % 2) << (o + 1)) - 4 + (1 << o))
    if finer:
        mean = ((5 + 2 * (scale % 2)) << o) - 4 + ((1 << o) >> 1)
    wide = 3 * mean + unit
    x, y, weights = 1 << 20, 1 << 16, []
    for t in range(16):
        weights.append((x + y + 16) * (2 if shift == 0 and t > 0 else 1))
        x = x * mean // (mean + unit)
        y = y * wide // (wide + unit)
    return weights


def static_edges(weights: list[int]) -> list[int]:
    k = (32752 << 46) // sum(weights)
    return [((sum(weights[:i]) * k) >> 46) + i for i in range(16)] + [32768]


def blended(counts: list[int], prior: list[int]) -> list[int]:
    return [2**15 * n + 24 * (prior[i + 1] - prior[i]) for i, n in enumerate(counts)]


# 9. Closed loop --------------------------------------------------------------------------------------------


class ClosedLoop:
    """Values, remembered codes and outliers of methods 1 and 2, flat in C order over the folded shape."""

    def __init__(
        self,
        kind: np.dtype,
        shape: tuple[int, ...],
        labels: list[int],
        codes: bytes,
        outliers: np.ndarray,
    ) -> None:
        self.shape, self.labels, self.outliers = shape, labels, outliers
        self.strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
        self.values = np.zeros(len(labels), kind)  # to the bit
        self.v = [0.0] * len(labels)  # the same in binary64, for the arithmetic
        self.remembered = [0] * len(labels)
        self.coder = RangeDecoder(codes)
        self.residuals = ResidualDecoder(self.coder)
        self.codes = codes
        self.static: StaticDecoder | None = None
        self.mixed: MixedDecoder | None = None
        self.outliers_used = 0

    def choose(self, coder: int) -> None:
        self.residuals.zeros = coder == 1
        if coder == 2:
            self.static = StaticDecoder(self.codes)
        if coder == 3:
            self.mixed = MixedDecoder(self.coder)

    def finish(self) -> None:
        if self.static:
            self.static.finish()

    def visit(
        self,
        at: int,
        prediction: float,
        step: float,
        context: tuple[int, ...],
        learned: tuple[int, int] | None = None,
    ) -> bool:
        """Set the value at `at`; whether it took a code.  `learned`: its class and `ww` (section 18)."""
        if self.labels[at]:
            self.remembered[at] = 0
            self.values[at] = prediction
            self.v[at] = float(self.values[at])
            return False
        if self.static:  # only the root is visited by itself
            q = self.static.read_line([context[0]], [False], context[-1])[0]
        elif self.mixed:
            expected, near, other, _, north, group = context
            q = self.mixed.read_line([(expected, near, other, north, group)], [False], 0)[0]
        elif learned:
            expected, _, _, west, north, group = context
            q = self.residuals.read_learned(learned[0], expected, west, learned[1], north, group)
        else:
            q = self.residuals.read_code(*context)
        self.settle(at, prediction, step, q)
        return True

    def visit_line(
        self,
        line: list[tuple],
        contexts: list[tuple],
        step: float,
        west_weight: int,
        scales: list[int] | None = None,
    ) -> None:
        """With the static and the mixed coder: `line` has places and what predicts each; `scales` if learned."""
        masked = [bool(self.labels[at]) for at, _ in line]
        if self.static:
            around = [context[0] for context in contexts], masked, contexts[0][-1]
            codes = (
                self.static.read_learned_line(*around, scales) if scales else self.static.read_line(*around)
            )
        else:
            codes = self.mixed.read_line(contexts, masked, west_weight, scales)
        for (at, predict), q in zip(line, codes, strict=True):
            if self.labels[at]:
                self.values[at] = predict()
                self.v[at] = float(self.values[at])
            else:
                self.settle(at, predict(), step, q)

    def settle(self, at: int, prediction: float, step: float, q: int) -> None:
        if q == OUTLIER:
            require(self.outliers_used < self.outliers.size, "too few outliers")
            self.values[at : at + 1] = self.outliers[self.outliers_used : self.outliers_used + 1]
            self.outliers_used += 1
        else:
            self.values[at] = prediction + q * step
        self.v[at] = float(self.values[at])
        clip = 2047 if self.static else 4095
        self.remembered[at] = clamp(q, -clip, clip)

    def weight(self, default: int) -> int:
        weight = default + (self.static or self.mixed or self.residuals).read_integer()
        require(abs(weight) <= 4096, "weight")
        return weight


# 10. Interpolation -----------------------------------------------------------------------------------------


def decode_interpolation(loop: ClosedLoop, plan: bytes, model: Any = None) -> None:
    require(len(plan) == 20, "plan")
    step, offset, batch, flags, alpha16, beta16 = struct.unpack("<ddBBBB", plan)
    require(math.isfinite(step) and step > 0 and math.isfinite(offset), "step and offset")
    require(batch < len(loop.shape) and flags < 32 and alpha16 >= 16 and beta16 >= 16, "plan")
    require(flags & 18 != 18, "a model, and the other order")
    coder = flags >> 2 & 3
    require(not flags & 16 or coder != 1, "a model, and a coder that knows none")
    networks = ({}, []) if model is None else networks_of(model)
    loop.choose(coder)
    axes = loop.shape[batch:]
    size = math.prod(axes)
    alpha, beta = alpha16 / 16, beta16 / 16

    def step_of(level: int) -> float:
        d = 1.0
        for _ in range(level):
            if d < beta:
                d *= alpha
        return step / min(d, beta)

    work = FrameDecoder(loop, axes, step_of, bool(flags & 2), networks)
    for frame in range(math.prod(loop.shape[:batch])):
        start = frame * size
        before = slice(start - size, start)
        reference = (loop.v[before], loop.remembered[before]) if flags & 1 and frame > 0 else None
        root = offset if frame == 0 else loop.v[start - size]
        work.decode(start, root, int(reference is not None), reference)


Reference = tuple[list[float], list[int]]


@dataclass
class FrameDecoder:
    """Frames, level by level; weights by set, level and class."""

    loop: ClosedLoop
    axes: tuple[int, ...]
    step_of: Callable[[int], float]
    reverse: bool
    networks: tuple[dict[int, Network], list[tuple[int, int]]]  # by slot; how many points they see
    chained: bool = False  # section 21: weights less those of the set before

    def __post_init__(self) -> None:
        self.coded: dict[tuple, dict] = {}
        self.last: dict[tuple, list[int]] = {}
        self.gains: dict[tuple, int] = {}

    def weights(self, key: tuple, n_axes: int, m: int, refers: bool) -> dict[str, list[int]]:
        weights = default_weights(n_axes, m, refers)
        if key[1] >= 5:
            return weights
        if key not in self.coded:
            flat = [w for ws in weights.values() for w in ws]
            last = self.last.get(key[1:], []) if self.chained else []
            less = [*last[: len(flat)], *flat[len(last) :]]
            found = [self.loop.weight(w) for w in less]
            self.last[key[1:]] = found
            numbers = iter(found)
            self.coded[key] = {name: [next(numbers) for _ in ws] for name, ws in weights.items()}
        return self.coded[key]

    def decode(self, start: int, root: float, group: int, reference: Reference | None) -> None:
        loop, axes, n_axes = self.loop, self.axes, len(self.axes)
        top = (max(axes) - 1).bit_length()
        classes = sorted(range(1, 1 << n_axes), key=lambda c: (c.bit_count(), -c if self.reverse else c))
        refers = reference is not None
        loop.visit(start, root, self.step_of(top), (1024, 0, 0, 0, 0, 0))
        for level in range(top - 1, -1, -1):
            for members in classes:
                odd = [a for a in range(n_axes) if members >> a & 1]
                if any(axes[a] <= 1 << level for a in odd):
                    continue
                key = (group, level, members)
                weights = self.weights(key, n_axes, len(odd), refers)
                work = Pass(loop, axes, start, level, odd, weights, reference, self.reverse)
                networks, sees = self.networks
                slot = slot_of(n_axes, members, refers)
                network = networks.get(slot) if level < 4 else None
                if network is not None:
                    if key not in self.gains:
                        self.gains[key] = 8 + (loop.static or loop.mixed or loop.residuals).read_integer()
                        require(0 <= self.gains[key] <= 16, "gain")
                    work.learned = Learned(work, network, sees[slot], self.gains[key], self.step_of(level))
                work.run(self.step_of(level))


def default_weights(n_axes: int, m: int, refers: bool) -> dict[str, list[int]]:
    diagonals = n_axes - 1 if m == 1 else 1 if m == 2 else 0
    weights = {"far": [-(32 // m)] * m, "near": [0] * (m - 1), "diagonal": [0] * diagonals}
    return {**weights, "innovation": [128] if refers else []}


@dataclass
class Pass:
    """One class of one level of one frame."""

    loop: ClosedLoop
    axes: tuple[int, ...]
    start: int  # the frame's first value
    level: int
    odd: list[int]
    weights: dict[str, list[int]]
    reference: Reference | None  # values and codes of the frame that this one refers to
    reverse: bool
    learned: Learned | None = None

    def __post_init__(self) -> None:
        self.s = 1 << self.level
        self.even = [a for a in range(len(self.axes)) if a not in self.odd]
        self.strides = self.loop.strides[-len(self.axes) :]
        self.refers = self.reference is not None
        self.before_values, self.before_codes = self.reference or ([], [])

    def run(self, step: float) -> None:
        s, loop = self.s, self.loop
        ranges = [range(s if a in self.odd else 0, n, 2 * s) for a, n in enumerate(self.axes)]
        for before in itertools.product(*ranges[:-1]):
            places = [(*before, last) for last in ranges[-1]]
            line = [(c, self.start + self.distance(c)) for c in places]
            contexts = [self.context(c, at) for c, at in line]
            predictions = [
                self.predict(c, at) for c, at in line
            ]  # nothing in a line depends on its own values
            scales = self.learned.correct(line, predictions, contexts) if self.learned else None
            if loop.static or loop.mixed:
                predicted = [
                    (at, functools.partial(float, p)) for (_, at), p in zip(line, predictions, strict=True)
                ]
                loop.visit_line(predicted, contexts, step, 4, scales)
                continue
            west = ww = i = 0
            while i < len(line):
                ahead = range(i, i + 8)
                if (
                    west == ww == 0
                    and i + 8 <= len(line)
                    and not any(loop.labels[line[k][1]] or contexts[k][0] for k in ahead)
                ):
                    group = contexts[i][-1]
                    codes = loop.residuals.read_quiet_block(group, scales[i : i + 8] if scales else None)
                    for k, q in enumerate(codes, i):
                        loop.settle(line[k][1], predictions[k], step, q)
                    west = loop.remembered[line[i + len(codes) - 1][1]]
                    i += len(codes)
                    continue
                at, (expected, near, other, north, group) = line[i][1], contexts[i]
                expected += 4 * abs(west) + abs(ww)
                context = (expected, near, other, west, north, group)
                if loop.visit(at, predictions[i], step, context, (scales[i], ww) if scales else None):
                    west, ww = loop.remembered[at], west
                i += 1

    def distance(self, c: tuple[int, ...]) -> int:
        return sum(i * stride for i, stride in zip(c, self.strides, strict=True))

    def mirrored(self, c: tuple[int, ...], a: int) -> bool:
        return c[a] + self.s >= self.axes[a]

    def terms(
        self, c: tuple[int, ...], v: list[float], at: int, weights: dict[str, list[int]], k: float
    ) -> list[float]:
        s, m = self.s, len(self.odd)
        near, far, base = [0.0] * m, [0.0] * m, 1.0
        for i, a in enumerate(self.odd):
            if c[a] - 3 * s >= 0 and c[a] + 3 * s < self.axes[a]:
                w = weights["far"][i] / 256
                far[i] = w
                near[i] -= w
        for i in range(m - 1):
            w = weights["near"][i] / 256
            near[i] += w
            base -= w
        whole = not any(self.mirrored(c, a) for a in self.odd)
        pairs = []  # (coefficient, stride, stride) of every diagonal that is there
        for j, w in enumerate(w / 256 for w in weights["diagonal"]):
            first = self.strides[self.odd[0]] * s
            if m == 1:
                e = self.even[j]
                t = s if (e > self.odd[0] if self.reverse else e < self.odd[0]) else 2 * s
                there = whole and c[e] - t >= 0 and c[e] + t < self.axes[e]
                second = self.strides[e] * t
            else:
                there, second = whole, self.strides[self.odd[1]] * s
            if there:
                pairs.append((w, first, second))
                base -= w
        products = []
        for i, a in enumerate(self.odd):
            coefficient = k * (0.5 * (near[i] + base / m))
            back = self.strides[a] * s
            ahead = -back if self.mirrored(c, a) else back
            if coefficient != 0:
                products.append(coefficient * (v[at - back] + v[at + ahead]))
        for i, a in enumerate(self.odd):
            coefficient = k * (0.5 * far[i])
            if coefficient != 0:
                back = 3 * s * self.strides[a]
                products.append(coefficient * (v[at - back] + v[at + back]))
        for w, first, second in pairs:
            coefficient = k * (0.25 * w)
            if coefficient != 0:
                products.append(coefficient * (v[at - first - second] + v[at + first + second]))
                products.append(coefficient * (v[at - first + second] + v[at + first - second]))
        return products

    def predict(self, c: tuple[int, ...], at: int) -> float:
        products = self.terms(c, self.loop.v, at, self.weights, 1.0)
        b = self.weights["innovation"][0] / 256 if self.refers else 0.0
        if b != 0:
            r = self.before_values[at - self.start]
            products.append(0.5 * b * (r + r))
            defaults = default_weights(len(self.axes), len(self.odd), False)
            products += self.terms(c, self.before_values, at - self.start, {**defaults, "diagonal": []}, -b)
        prediction = 0.0
        for product in products:
            prediction += product
        return prediction

    def context(self, c: tuple[int, ...], at: int) -> tuple[int, ...]:
        """What is known before the line is; `expected` is without `west` and `ww`."""
        s, m, codes = self.s, len(self.odd), self.loop.remembered
        n = 0
        for a in self.odd:
            back = self.strides[a] * s
            n += abs(codes[at - back]) + abs(codes[at - back if self.mirrored(c, a) else at + back])

        def neighbor(lines: int, planes: int, places: int) -> int:
            where = at
            for from_last, steps in ((1, places), (2, -lines), (3, -planes)):
                if steps == 0:
                    continue
                if from_last > len(self.axes):
                    return 0
                index = c[-from_last] + 2 * s * steps
                if not 0 <= index < self.axes[-from_last]:
                    return 0
                where += 2 * s * steps * self.strides[-from_last]
            return codes[where]

        north, plane = neighbor(1, 0, 0), neighbor(0, 1, 0)
        reference = self.before_codes[at - self.start] if self.refers else 0
        expected = (2 if m <= 2 else 1) * n + 3 * abs(north)
        expected += abs(neighbor(1, 0, -1)) + 2 * abs(neighbor(1, 0, 1)) + 2 * abs(plane) + 4 * abs(reference)
        near = n * (16 // (2 * m))
        other = 16 * abs(reference if self.refers else plane)
        return expected, near, other, north, 3 * min(self.level, 1) + min(m, 3) - 1


# 18. Learned interpolation --------------------------------------------------------------------------------


def networks_of(model: Any) -> tuple[dict[int, Network], list[tuple[int, int]]]:
    """The networks of a pack by slot, and how many points they see (docs/packs.md)."""
    slots = model.manifest["network"]["slots"]
    networks = {int(slot): Network.load(plain(entry), model.tensors) for slot, entry in slots.items()}
    require(set(networks) <= set(range(13)), "slots")
    counts = [(24, 13 if 3 <= slot < 6 else 0) for slot in range(13)]
    counts = [tuple(pair) for pair in model.manifest["network"].get("sees", counts)]
    for slot, (around, before) in enumerate(counts):
        require(4 <= around <= 24 and 0 <= before <= (13 if 3 <= slot < 6 else 0), "sees")
    require(len(counts) == 13, "sees")
    return networks, counts


def slot_of(n_axes: int, members: int, refers: bool) -> int | None:
    if n_axes == 2:
        return members - 1 + (3 if refers else 0)
    return members + 5 if n_axes == 3 and not refers else None


def nearest(n_axes: int, reach: int, count: int, known: Callable[[tuple[int, ...]], bool]) -> list[tuple]:
    offsets = itertools.product(range(-reach, reach + 1), repeat=n_axes)
    return sorted(filter(known, offsets), key=lambda o: (sum(d * d for d in o), o))[:count]


class Learned:
    """Corrections and classes of the codes of one pass."""

    def __init__(self, work: Pass, network: Network, sees: tuple[int, int], gain: int, step: float) -> None:
        self.work, self.network, self.gain, self.step = work, network, gain, step
        n_axes = len(work.axes)
        self.unit = 2.0**-27 if sees[0] > 12 else 2.0**-25

        def known(offset: tuple[int, ...]) -> bool:
            odd = [a for a, d in enumerate(offset) if (d + (a in work.odd)) % 2]
            if odd == work.odd:
                return next((d < 0 for d in offset[:-1] if d), False)

            def rank(axes: list[int]) -> tuple[int, int]:
                return len(axes), sum(1 << a for a in axes)

            return not odd or rank(odd) < rank(work.odd)

        def along(axis: int, steps: int, last: int = 0) -> tuple[int, ...] | None:
            offset = [0] * n_axes
            if axis < 0:
                return None
            offset[axis] = steps
            offset[-1] += last
            return tuple(offset)

        self.around = nearest(n_axes, 4, sees[0], known)
        self.before = nearest(n_axes, 2, sees[1], lambda offset: True) if work.refers else []
        beside = [along(a, d) for a in work.odd for d in (-1, 1)][:4]
        north = n_axes - 2
        self.codes = [*beside, *[None] * (4 - len(beside)), along(north, -2), along(north, -2, -2)]
        self.codes += [along(north, -2, 2), None if work.refers else along(north - 1, -2)]

    def place(self, c: tuple[int, ...], at: int, offset: tuple[int, ...]) -> int | None:
        """Where there is the value at this offset, if it is in the frame."""
        work = self.work
        c = tuple(i + d * work.s for i, d in zip(c, offset, strict=True))
        inside = all(0 <= i < n for i, n in zip(c, work.axes, strict=True))
        return at + work.s * work.distance(offset) if inside else None

    def inputs(self, c: tuple[int, ...], at: int, p: float, context: tuple[int, ...]) -> list[int]:
        work = self.work
        v, remembered = work.loop.v, work.loop.remembered
        u = 8 / self.step if self.step else math.inf

        def difference(where: int | None, values: list[float] = v) -> int:
            if where is None:
                return 0
            d = (values[where] - p) * u
            return 32767 if math.isnan(d) else round(min(max(d, -32767.0), 32767.0))

        x = [difference(self.place(c, at, offset)) for offset in self.around]
        spread = len(x) + sum(map(abs, x))
        reciprocal = 262144 * len(x) // spread
        for offset in self.before:
            where = self.place(c, at, offset)
            x.append(difference(None if where is None else where - work.start, work.before_values))
        for offset in self.codes:
            where = None if offset is None else self.place(c, at, offset)
            x.append(0 if where is None else 8 * remembered[where])
        if work.refers:
            x[-1] = 8 * work.before_codes[at - work.start]
        x = [clamp((d * reciprocal + 2048) >> 12, -511, 511) for d in x]
        expected, near, other = context[:3]
        summaries = [8 * (class_of(sum16) - 16) for sum16 in (near, expected, other)]
        return [*x, 8 * (spread_class(spread) - 32), *summaries, spread]

    def correct(
        self, line: list[tuple], predictions: list[float], contexts: list[tuple[int, ...]]
    ) -> list[int]:
        """The classes of the codes of a line; its predictions are corrected in place."""
        rows = [
            self.inputs(c, at, p, context)
            for (c, at), p, context in zip(line, predictions, contexts, strict=True)
        ]
        outputs = self.network(np.array([row[:-1] for row in rows], np.int16), backend="numpy").tolist()
        scales = []
        loop = self.work.loop
        for i, ((o, q), row) in enumerate(zip(outputs, rows, strict=True)):
            sixteen = line[i - i % 16 : i - i % 16 + 16]
            if loop.static and all(loop.labels[at] for _, at in sixteen):
                scales.append(0)
                continue
            predictions[i] += (o * row[-1]) * ((self.gain * self.step) * self.unit)
            scales.append(clamp(spread_class(row[-1]) + ((q + 512) >> 10), 0, 79))
        return scales


def spread_class(x: int) -> int:
    e = x.bit_length() - 1
    return 4 * (e - 2) + ((x >> (e - 2)) & 3)


# 21. Frames ------------------------------------------------------------------------------------------------


def decode_frames(loop: ClosedLoop, plan: bytes, forecaster: bytes, model: Any = None) -> None:
    require(len(plan) == 20, "plan")
    step, offset, batch, flags, exponent, tag = struct.unpack("<ddBBBB", plan)
    require(math.isfinite(step) and step > 0 and math.isfinite(offset), "step and offset")
    require(batch > 0 and flags & ~28 == 0 and exponent < 7 and tag < 3, "plan")
    require(len(loop.shape) == batch + 2 and min(loop.shape[batch:]) >= 8, "frames")
    coder = flags >> 2 & 3
    require(not flags & 16 or coder != 1, "a model, and a coder that knows none")
    loop.choose(coder)
    axes, times, planes = loop.shape[batch:], loop.shape[0], math.prod(loop.shape[1:batch])
    size = math.prod(axes)
    references = (Nearest, LeastSquares, Motion)[tag](Bytes(forecaster))
    networks = ({}, []) if model is None else networks_of(model)
    work = FrameDecoder(loop, axes, lambda level: step, False, networks, chained=True)
    for time, distance, earlier, later in order_of(times, 1 << exponent):
        for plane in range(planes):
            start = (time * planes + plane) * size

            def frame(t: int, plane: int = plane) -> slice:
                return slice((t * planes + plane) * size, (t * planes + plane + 1) * size)

            if earlier is None:
                work.decode(start, offset, 0, None)
                continue
            sources = [earlier] if later is None else [earlier, later]
            if later is None and earlier >= distance:
                sources.append(earlier - distance)
            fields = [np.array(loop.v[frame(t)]).reshape(axes) for t in sources]
            r = references.of(time, plane, distance, fields, later is not None).astype(loop.values.dtype)
            r = np.where(np.isfinite(r), r, 0).astype(float).ravel().tolist()
            codes = loop.remembered[frame(earlier)]
            if later is not None:
                pairs = zip(codes, loop.remembered[frame(later)], strict=True)
                codes = [(abs(a) + abs(b) + 1) // 2 for a, b in pairs]
            work.decode(start, r[0], 1 if distance == 1 else 2 if distance == 2 else 3, (r, codes))


def order_of(times: int, distance: int) -> list[tuple[int, int, int | None, int | None]]:
    """(time, distance, earlier, later)"""
    order: list[tuple[int, int, int | None, int | None]] = [(0, distance, None, None)]
    order += [(t, distance, t - distance, None) for t in range(distance, times, distance)]
    d = distance // 2
    while d:
        order += [(t, d, t - d, t + d if t + d < times else None) for t in range(d, times, 2 * d)]
        d //= 2
    return order


class Nearest:
    def __init__(self, data: Bytes) -> None:
        data.end()

    def of(
        self, time: int, plane: int, distance: int, sources: list[np.ndarray], two_sided: bool
    ) -> np.ndarray:
        return 0.5 * sources[0] + 0.5 * sources[1] if two_sided else sources[0]


class LeastSquares(Nearest):
    def __init__(self, data: Bytes) -> None:
        self.weights = {}
        for _ in range(data.u8()):
            e, m = data.u8(), data.u8()
            require(e < 7 and 1 <= m <= 2 and (e, m) not in self.weights, "weights")
            numbers = [data.varint() for _ in range(5 * m)]
            self.weights[e, m] = [n // 2 if n % 2 == 0 else -(n + 1) // 2 for n in numbers]
            require(max(map(abs, self.weights[e, m])) <= 4096 and sum(self.weights[e, m]) >= 16, "weights")
        data.end()

    def of(
        self, time: int, plane: int, distance: int, sources: list[np.ndarray], two_sided: bool
    ) -> np.ndarray:
        weights = self.weights.get((distance.bit_length() - 1, len(sources)))
        if weights is None:
            return super().of(time, plane, distance, sources, two_sided)
        lines, columns = (np.arange(n) for n in sources[0].shape)
        result = np.zeros(sources[0].shape)
        numbers = iter(weights)
        for source in sources:
            for y, x in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)):
                rows, places = np.clip(lines + y, 0, lines[-1]), np.clip(columns + x, 0, columns[-1])
                result = result + (next(numbers) / sum(weights)) * source[np.ix_(rows, places)]
        return result


class Motion(Nearest):
    def __init__(self, data: Bytes) -> None:
        table = [(data.varint(), data.varint(), data.varint()) for _ in range(data.varint())]
        total = sum(length for _, _, length in table)
        packed = data.data[data.at :]
        require(total <= len(packed) << 16 and len({entry[:2] for entry in table}) == len(table), "vectors")
        try:
            body = bytes(Zstd().decode(packed))
        except (RuntimeError, ValueError) as error:
            raise RejectedStreamError("zstd") from error
        require(len(body) == total, "vectors")
        self.vectors, at = {}, 0
        for time, plane, length in table:
            self.vectors[time, plane] = np.frombuffer(body[at : at + length], np.int8)
            at += length

    def of(
        self, time: int, plane: int, distance: int, sources: list[np.ndarray], two_sided: bool
    ) -> np.ndarray:
        vectors = self.vectors.get((time, plane))
        if vectors is None or two_sided:
            return super().of(time, plane, distance, sources, two_sided)
        v = sources[0]
        down, across = -(-v.shape[0] // 16), -(-v.shape[1] // 16)
        require(vectors.size == 2 * down * across, "vectors")
        vectors = vectors.astype(int).reshape(down, across, 2)
        result = np.empty(v.shape)
        for y, x in itertools.product(*map(range, v.shape)):
            a, b = vectors[y // 16, x // 16].tolist()
            y0, x0 = y + (a >> 1), x + (b >> 1)
            (y0, y1), (x0, x1) = (
                (clamp(i, 0, n - 1), clamp(j, 0, n - 1))
                for i, j, n in ((y0, y0 + (a & 1), v.shape[0]), (x0, x0 + (b & 1), v.shape[1]))
            )
            result[y, x] = 0.25 * ((v[y0, x0] + v[y0, x1]) + (v[y1, x0] + v[y1, x1]))
        return result


# 22. Verified float forecasts ------------------------------------------------------------------------------


def decode_modelled(loop: ClosedLoop, plan: bytes, forecasts: Callable[..., Forecasts]) -> None:
    cursor = Bytes(plan)
    step, offset, batch, flags, exponent, _ = struct.unpack("<ddBBBB", cursor.take(20))
    history = cursor.varint()
    cursor.end()
    require(math.isfinite(step) and step > 0 and math.isfinite(offset), "step and offset")
    require(batch > 0 and flags & ~12 == 0 and exponent == 0 and history <= 64, "plan")
    require(len(loop.shape) == batch + 2 and min(loop.shape[batch:]) >= 8, "frames")
    loop.choose(flags >> 2)
    axes, frames = loop.shape[batch:], math.prod(loop.shape[:batch])
    size = math.prod(axes)
    told = forecasts(frames, axes, history)
    work = FrameDecoder(loop, axes, lambda level: step, False, ({}, []), chained=True)
    for f in range(frames):
        state = f // told.channels
        if state == 0 and history:
            work.decode(f * size, offset, 0, None)
            continue
        before, kind = max(0, f - told.channels), loop.values.dtype
        r = told.of(f, np.array(loop.v[: f * size]).reshape(-1, *axes))
        if r is None:
            r = np.array(loop.v[before * size : (before + 1) * size]) if state else np.zeros(size)
        r = r.astype(kind)
        r = np.where(np.isfinite(r), r, 0).astype(float).ravel().tolist()
        codes = loop.remembered[before * size : (before + 1) * size] if state else [0] * size
        work.decode(f * size, r[0], 1 if state >= history else 2, (r, codes))
    told.end()


class Forecasts:
    def __init__(
        self,
        section: bytes,
        find: Callable[[str], Any] | None,
        frames: int,
        axes: tuple[int, ...],
        history: int,
    ) -> None:
        cursor = Bytes(section)
        kind, self.channels = cursor.u8(), cursor.varint()
        require(kind < 2 and 1 <= self.channels <= frames and frames % self.channels == 0, "channels")
        self.axes, self.history = axes, history
        exponents = struct.unpack(f"<{self.channels}h", cursor.take(2 * self.channels))
        require(max(map(abs, exponents)) <= 100, "exponents")
        self.grids = [2.0**e for e in exponents]
        bits = int.from_bytes(cursor.take((frames + 7) // 8), "little")
        require(0 < bits < 1 << frames and bits % (1 << history * self.channels) == 0, "frames")
        present = [f for f in range(frames) if bits >> f & 1]
        self.whole, self.integers = hashlib.blake2b(digest_size=16), {}
        if kind == 1:
            self.model = None
            numbers = self._inner(cursor.data[cursor.at :], (len(present), *axes))
            for f, values in zip(sorted(present, key=lambda f: (f % self.channels, f)), numbers, strict=True):
                self.integers[f] = values
            return
        digest = cursor.take(32).hex()
        require(find is not None, "a foundation model, and nothing to find it with")
        try:
            self.model = find(digest)
        except Exception as error:
            raise RejectedStreamError(f"no foundation model {digest}") from error
        start, step, *degrees = struct.unpack("<qI4d", cursor.take(44))
        names = [cursor.take(cursor.varint()) for _ in range(self.channels)]
        try:
            texts = tuple(name.decode() for name in names)
            self.place = Coordinates(texts, start, step, tuple(degrees[:2]), tuple(degrees[2:]))
        except ValueError as error:
            raise RejectedStreamError("coordinates") from error
        latents = cursor.take(cursor.varint())
        require(bool(latents) == bool(self.model.latents) and history == self.model.history, "latents")
        self.latents = None
        if latents:
            self.latents = self._inner(latents, (frames // self.channels, self.model.latents))
        self.flags, self.hashes = {}, {}
        for f in present:
            place, self.flags[f] = -1, {}
            for _ in range(cursor.varint()):
                number = cursor.varint()
                place += 1 + (number >> 1)
                require(place < math.prod(axes), "flag")
                self.flags[f][place] = number & 1
        for f in present:
            self.hashes[f] = [cursor.take(8) for _ in self._blocks()]
        self.right = cursor.take(16)
        cursor.end()

    @staticmethod
    def _inner(stream: bytes, shape: tuple[int, ...]) -> np.ndarray:
        values = decode(stream)
        require(values.dtype == np.int32 and values.shape == shape, "integers")
        return values

    def _blocks(self) -> list[tuple[slice, slice]]:
        starts = itertools.product(range(0, self.axes[0], 64), range(0, self.axes[1], 64))
        return [(slice(y, y + 64), slice(x, x + 64)) for y, x in starts]

    def of(self, f: int, decoded: np.ndarray) -> np.ndarray | None:
        """The forecast of a frame, or none; `decoded`: all frames before it."""
        state, channel = divmod(f, self.channels)
        if self.model is not None and not channel:
            wanted = [g for g in range(f, f + self.channels) if g in self.flags]
            if wanted:
                if self.latents is None:
                    given = decoded[f - self.history * self.channels :].astype(np.float32)
                    given = given.reshape(self.history, self.channels, *self.axes)
                    require(np.isfinite(given).all(), "states")
                else:
                    given = self.latents[state]
                x = self.model.step(given, self.place.at(state)).astype(float)
                for g in wanted:
                    self.integers[g] = self._verified(g, x[g - f] / self.grids[g - f])
        return self.integers[f] * self.grids[channel] if f in self.integers else None

    def _verified(self, f: int, u: np.ndarray) -> np.ndarray:
        require((np.abs(u) < 2**24 - 2).all(), "forecast")
        nearest = np.floor(u + 0.5)
        other = np.where(u >= nearest, nearest + 1, nearest - 1)
        far = np.abs(u - nearest)
        p = nearest.copy()
        for place, parity in self.flags[f].items():
            at = np.unravel_index(place, self.axes)
            p[at], far[at] = (nearest[at] if nearest[at] % 2 == parity else other[at]), -1
        for block, right in zip(self._blocks(), self.hashes[f], strict=True):
            places = np.argwhere(far[block] >= 0)
            order = np.argsort(-far[block][tuple(places.T)], kind="stable")[:24]
            for chosen in itertools.chain.from_iterable(
                itertools.combinations(order.tolist(), n) for n in range(4)
            ):
                tried = p[block].copy()
                for i in chosen:
                    tried[tuple(places[i])] = other[block][tuple(places[i])]
                if hashlib.blake2b(tried.astype("<i4").tobytes(), digest_size=8).digest() == right:
                    p[block] = tried
                    break
            else:
                raise RejectedStreamError("a forecast that cannot be made again")
        self.whole.update(p.astype("<i4").tobytes())
        return p

    def end(self) -> None:
        require(self.model is None or self.whole.digest() == self.right, "hash")


# 11. Causal ------------------------------------------------------------------------------------------------

TAPS = (
    ((1,), (2,), (0, 1), (1, 1), (-1, 1), (0, 2), (2, 1), (-2, 1))
    + ((0, 0, 1), (1, 0, 1), (-1, 0, 1), (0, 1, 1), (0, -1, 1), (0, 0, 2), (1, 1, 1))
    + ((0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1))
)
BASES = (0, 2, 8, 15)


def decode_causal(loop: ClosedLoop, plan: bytes, model: Any = None) -> None:
    require(len(plan) == 17 and plan[16] in (0, 1, 2, 3, 16, 18, 19), "plan")
    step, offset, coder = struct.unpack("<ddB", plan)
    loop.choose(coder & 3)
    require(math.isfinite(step) and step > 0 and math.isfinite(offset), "step and offset")
    shape, strides, codes = loop.shape, loop.strides, loop.remembered
    taps = [tuple(tap) for tap in TAPS if len(tap) <= len(shape)]
    forecaster = None if model is None else Forecaster(model, tuple(shape), step)
    weights = [0] + [loop.weight(0) for _ in taps[1:] if forecaster is None]

    def place(c: tuple[int, ...], back: tuple[int, ...]) -> int | None:
        """Distance to the place `back` (last axis first), None if it is outside."""
        distance = 0
        for axis, steps in zip(range(len(shape) - 1, -1, -1), back, strict=False):
            if not 0 <= c[axis] - steps < shape[axis]:
                return None
            distance += steps * strides[axis]
        return distance if len(back) <= len(shape) else None

    def predict(at: int, c: tuple[int, ...]) -> float:
        if forecaster is not None:
            return forecaster.predict(loop.v, at, c)
        places = [place(c, tap) for tap in taps]
        base = next((b for b in BASES if b < len(taps) and places[b] is not None), None)
        prediction = offset
        if base is not None:
            there = {i: weights[i] for i, p in enumerate(places) if p is not None and i != base}
            there[base] = 256 - sum(there.values())
            prediction = 0.0
            for i in (*range(2, len(taps)), 1, 0):
                if i in there and (i < 2 or there[i] != 0):
                    prediction += there[i] / 256 * loop.v[at - places[i]]
        return prediction

    def context(at: int, c: tuple[int, ...]) -> tuple[int, ...]:
        """As `Pass.context` has it."""

        def code(*back: int) -> int:
            distance = place(c, back)
            return 0 if distance is None else codes[at - distance]

        north, northeast, plane = code(0, 1), code(-1, 1), code(0, 0, 1)
        expected = 4 * abs(north) + abs(code(1, 1)) + 2 * abs(northeast)
        expected += abs(code(0, 2)) + 3 * abs(plane) + abs(code(-1, 0, 1))
        if forecaster is not None:
            expected += forecaster.spread[c[-2:]]
        return expected, 8 * abs(north) + 8 * abs(northeast), 16 * abs(plane), north, 6

    places = list(enumerate(itertools.product(*map(range, shape))))
    if loop.static or loop.mixed:
        for start in range(0, len(places), shape[-1]):
            line = places[start : start + shape[-1]]
            contexts = [context(at, c) for at, c in line]
            loop.visit_line([(at, functools.partial(predict, at, c)) for at, c in line], contexts, step, 5)
        return
    west = ww = 0
    for at, c in places:
        if c[-1] == 0:
            west = ww = 0
        expected, near, other, north, group = context(at, c)
        expected += 5 * abs(west) + abs(ww)
        if loop.visit(at, predict(at, c), step, (expected, near, other, west, north, group)):
            west, ww = codes[at], west


# 20. Forecasters -------------------------------------------------------------------------------------------


class Forecaster:
    """The weights of a pack for one shape (docs/packs.md, section 3)."""

    def __init__(self, pack: Any, shape: tuple[int, ...], step: float) -> None:
        network, tensors = plain(pack.manifest["network"]), pack.tensors
        self.grid = self.lines, self.columns = tuple(network["grid"])
        require(len(shape) in (2, 3) and shape[-2:] == self.grid, "grid")
        self.ages = network["ages"]
        self.sets = [
            [tensors[f"{name}{s}"] for name in ("taps", "weights", "offset")] for s in range(len(self.ages))
        ]
        self.unit, self.offset_unit = 2.0 ** -network["shift"], 2.0 ** -network["offset_shift"]
        spread_unit = 2.0 ** -network["spread_shift"]
        self.spread = {
            place: math.floor(min(int(tensors["spread"][place]) * spread_unit / step, 4095.0))
            for place in itertools.product(range(self.lines), range(self.columns))
        }

    def predict(self, values: Any, at: int, c: tuple[int, ...]) -> float:
        t, y, x = (0, *c)[-3:]
        taps, weights, offset = self.sets[max(s for s, age in enumerate(self.ages) if age <= t)]
        prediction = int(offset[y, x]) * self.offset_unit
        for k, (a, b, d) in enumerate(taps.tolist()):
            if 0 <= y - b < self.lines and 0 <= x - d < self.columns:
                value = float(values[at - (a * self.lines + b) * self.columns - d])
                prediction = prediction + (int(weights[k, y, x]) * self.unit) * value
        return prediction


# 12. Label codes -------------------------------------------------------------------------------------------


def decode_labels(data: bytes, shape: tuple[int, ...]) -> list[int]:
    coder = RangeDecoder(data)
    width = shape[-1]
    lines = shape[-2] if len(shape) > 1 else 1
    planes = math.prod(shape[:-2])
    regular = [Bit() for _ in range(256)]
    value = defaultdict(Bit)
    nothing = [0] * width
    before: list[list[int]] | None = None  # the plane before
    result: list[int] = []
    for _ in range(planes):
        plane: list[list[int]] = []
        for y in range(lines):
            up = plane[y - 1] if y > 0 else nothing
            up2 = plane[y - 2] if y > 1 else nothing
            line: list[int] = []
            for x in range(width):
                west = line[x - 1] if x > 0 else up[0]
                northeast = x + 1 == width or up[x + 1] == west
                if before is None:
                    behind, behind_east = up[x] == west, northeast
                else:
                    behind = before[y][x] == west
                    behind_east = x + 1 == width or before[y][x + 1] == west
                context = (
                    up[x] == west,
                    x < 2 or line[x - 2] == west,
                    x < 1 or up[x - 1] == west,
                    northeast,
                    up2[x] == west,
                    behind,
                    behind_east,
                    west != 0,
                )
                if regular[sum(bit << i for i, bit in enumerate(context))].read(coder):
                    line.append(west)
                    continue
                node = 1
                for _ in range(4):
                    node = 2 * node + value[west, node].read(coder)
                line.append(node - 16)
            plane.append(line)
            result += line
        before = plane
    return result


# 13. Lossless ----------------------------------------------------------------------------------------------


def decode_lossless(dtype: np.dtype, shape: tuple[int, ...], plan: bytes, codes: bytes) -> np.ndarray:
    require(len(plan) == 1 and plan[0] <= min(3, len(shape)), "dims")
    dims, width = plan[0], 8 * dtype.itemsize
    mask, top = (1 << width) - 1, 1 << (width - 1)
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    axes = range(len(shape) - dims, len(shape))
    sets = [c for m in range(1, dims + 1) for c in itertools.combinations(axes, m)]
    coder = RangeDecoder(codes)
    length_models: defaultdict[tuple, Bit] = defaultdict(Bit)
    second: defaultdict[int, Bit] = defaultdict(Bit)
    third: defaultdict[tuple, Bit] = defaultdict(Bit)
    values: list[int] = []
    lengths: list[int] = []
    for at, c in enumerate(itertools.product(*map(range, shape))):
        prediction = 0
        for chosen in sets:
            if all(c[a] > 0 for a in chosen):
                neighbor = values[at - sum(strides[a] for a in chosen)]
                prediction += neighbor if len(chosen) % 2 else -neighbor
        north = lengths[at - shape[-1]] if at >= shape[-1] else 0
        west = lengths[at - 1] if c[-1] > 0 else north
        node = 1
        for _ in range(7):
            node = 2 * node + length_models[(west + north + 1) // 2, node].read(coder)
        length = node - 128
        require(length <= width, "length")
        lengths.append(length)
        folded = min(length, 1)
        if length >= 2:
            bit = second[length].read(coder)
            folded = 2 + bit
            if length >= 3:
                folded = 2 * folded + third[length, bit].read(coder)
                folded = folded << (length - 3) | coder.raw_groups(length - 3)
        residual = folded >> 1 ^ (mask if folded & 1 else 0)
        values.append((prediction + residual) & mask)
    if dtype.kind == "f":
        values = [v ^ top if v & top else v ^ mask for v in values]
    elif dtype.kind == "i":
        values = [v ^ top for v in values]
    return np.array(values, f"<u{dtype.itemsize}").view(dtype)


# 14. Transforms --------------------------------------------------------------------------------------------

POWERS = (
    (1.0, 0.6931471805599453, 0.24022650695910072, 0.05550410866482158, 0.009618129107628477)
    + (0.0013333558146428443, 0.0001540353039338161, 1.525273380405984e-05, 1.3215486790144307e-06)
    + (1.01780860092397e-07, 7.054911620801123e-09, 4.445538271870812e-10, 2.5678435993488206e-11)
    + (1.3691488853904128e-12,)
)


def exp2(v: float) -> float:
    v = clamp(0.0 if math.isnan(v) else v, -1100.0, 1100.0)
    n = math.floor(v + 0.5)
    f = v - n
    total = POWERS[13]
    for k in range(12, -1, -1):
        total = total * f + POWERS[k]
    half = int(n / 2)
    return (total * 2.0**half) * 2.0 ** (n - half)


def to_integer(v: float, dtype: np.dtype) -> int:
    info = np.iinfo(dtype)
    if math.isnan(v):
        return 0
    largest = float(info.max)
    if largest > info.max:  # 64 bits: the next binary64 inside
        largest = math.nextafter(largest, 0.0)
    return round(clamp(v, float(info.min), largest))


class Lattice:
    """The section `lattice` of a region of this folded shape."""

    def __init__(self, section: bytes, shape: tuple[int, ...]) -> None:
        cursor = Bytes(section)
        self.origin, self.unit, self.bits = cursor.f64(), cursor.f64(), cursor.u8()
        require(math.isfinite(self.origin) and math.isfinite(self.unit) and self.unit > 0, "origin and unit")
        require(self.bits <= 16, "bits")
        self.frame = math.prod(shape[-2:])
        self.shifts = [cursor.varint() for _ in range(math.prod(shape[:-2]))] if self.bits else []
        require(all(shift < 2**self.bits for shift in self.shifts), "shift")
        cursor.end()

    def value(self, v: float, at: int) -> float:
        """The value, not yet rounded to the dtype, that `v` at this place stands for."""
        v = 12582912.0 if math.isnan(v) else v
        k = float(round(clamp(v - 12582912.0, -(2.0**22), 2.0**22)))
        if self.shifts:
            k += self.shifts[at // self.frame] / 2**self.bits
        return self.origin + self.unit * k


# 17. Local -------------------------------------------------------------------------------------------------

F = np.float32
PLANE = (
    (0, 1),
    (1, 1),
    (-1, 1),
    (2,),
    (0, 2),
    (2, 1),
    (-2, 1),
    (1, 2),
    (-1, 2),
    (3,),
    (0, 3),
    (-3, 1),
    (-2, 2),
)
FRAME = (
    ((0, 0, 1), (-1, 0, 1), (0, -1, 1), (1, 0, 1), (0, 1, 1))
    + ((0, 0, 2), (-1, -1, 1), (1, 1, 1), (-1, 1, 1), (1, -1, 1))
)  # fmt: skip
FOURTH = ((0, 0, 0, 1), (0, 0, 1, 1))
LARGEST = 2**28


def solve(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weights that a table asks for, or those there were; tables are of binary32, (N, N + 1)."""
    n, s = len(table), table.copy()
    trace = F(0)
    for i in range(n):
        trace = trace + s[i, i]
    floor = trace * F(5e-7) + F(0.5)
    for i in range(n):
        s[i, i] = s[i, i] + (F(1e-4) * s[i, i] + floor)
    r, c = np.zeros(n, F), np.zeros((n, n), F)
    for j in range(n):
        if not s[j, j] > 0:
            return weights
        r[j] = F(1) / s[j, j]
        c[j, j + 1 :] = s[j, j + 1 : n] * r[j]
        s[j + 1 :] = s[j + 1 :] - c[j, j + 1 :, None] * s[j]  # what is below the diagonal is not used
    t = s[:, n] * r
    for j in range(n - 1, 0, -1):
        t[:j] = t[:j] - c[:j, j] * t[j]
    return t if ((t > -64) & (t < 64)).all() else weights


def scalar_product(a: np.ndarray, b: np.ndarray) -> np.float32:
    rows = (a * b).reshape(-1, 8)
    lane = rows[0]
    for row in rows[1:]:
        lane = lane + row
    even, odd = (lane[0] + lane[4]) + (lane[2] + lane[6]), (lane[1] + lane[5]) + (lane[3] + lane[7])
    return even + odd


class Local:
    def __init__(self, loop: ClosedLoop, step: float, offset: float) -> None:
        self.loop, self.shape, self.step, self.offset = loop, loop.shape, step, offset
        axes = len(self.shape)
        self.taps = PLANE if axes == 2 else PLANE[:9] + (FRAME if axes == 3 else FRAME[:8] + FOURTH)
        self.n = n = 16 if axes == 2 else 24
        self.blocks = -(-self.shape[-1] // 8)
        self.sums = np.zeros((self.blocks + 2, n, n + 1), F)  # an empty one at either end
        self.everywhere = np.zeros((n, n + 1), F)
        self.local, self.everywhere_weights = np.zeros((self.blocks, n), F), np.zeros(n, F)
        self.v: dict[tuple, int] = {}  # by place, of four indices, the last axis first
        self.e: defaultdict[tuple, int] = defaultdict(int)
        self.q: defaultdict[tuple, list[np.float32]] = defaultdict(lambda: [F(0)] * 4)
        self.models = MixedDecisions(loop.coder)
        lowest = loop.coder.raw_groups(32)
        self.lowest = clamp(lowest - 2**32 if lowest >= 2**31 else lowest, -LARGEST, LARGEST)

    def run(self) -> None:
        planes = itertools.product(*map(range, self.shape[:-1]))
        for line, c in enumerate(planes):
            rest = (*reversed(c), 0, 0)[:3]
            self.everywhere_weights = solve(self.everywhere, self.everywhere_weights)
            for b in range(self.blocks):
                middle, west, east = self.sums[b + 1], self.sums[b], self.sums[b + 2]
                pooled = ((F(2) * middle + west) + east) + self.everywhere
                self.local[b] = solve(pooled, self.local[b])
                width = self.shape[-1]
                points = [
                    self.point(b, (x, *rest), line * width + x) for x in range(8 * b, min(8 * b + 8, width))
                ]
                lessons = [point for point in points if point is not None]
                for features, target, weight in lessons:
                    known = np.append(features, target)
                    middle += (weight * features)[:, None] * known
                if lessons:
                    middle *= F(0.65)
            self.everywhere *= F(0.97)
            for b in range(self.blocks):
                self.everywhere += self.sums[b + 1] * (F(0.005) / F(self.blocks))

    def point(self, block: int, c: tuple[int, ...], at: int) -> tuple | None:
        """Decode a value; what the sums learn from it."""

        def place(*back: int) -> tuple[int, ...]:
            return tuple(i - steps for i, steps in itertools.zip_longest(c, back, fillvalue=0))

        def known(*back: int) -> int | None:
            """The value, None if it is not there."""
            return self.v.get(place(*back))

        def error(*back: int) -> int:
            return self.e.get(place(*back), 0)

        before = next((b for b in ((0, 0, 1), (0, 0, 0, 1)) if known(*b) is not None), None)

        def beyond(x: int, y: int) -> tuple[int, ...]:
            """The place `before` and (x, y); far outside if there is no `before`."""
            return (x, y, *before[2:]) if before else (0, 0, 0, 1 << 40)

        values = (known(1), known(0, 1), known(*beyond(0, 0)), 0)
        base = next(v for v in values if v is not None)
        features = np.zeros(self.n, F)
        for i, tap in enumerate(self.taps):
            v = known(*tap)
            features[i] = 0 if v is None else v - base
        e_w, e_n, e_ne = error(1), error(0, 1), error(-1, 1)
        e_b, e_be, e_bs = error(*beyond(0, 0)), error(*beyond(-1, 0)), error(*beyond(0, -1))
        errors = (e_w, e_n, e_ne) if self.n == 16 else (e_w, e_n, e_ne, e_b, e_be + e_bs)
        for i, e in enumerate(errors, len(self.taps)):
            features[i] = F(e) * F(0.0625)

        def value(otherwise: int, *back: int) -> int:
            v = known(*back)
            return otherwise if v is None else v

        w = value(base, 1)
        n = value(w, 0, 1)
        nw, ne = value(n, 1, 1), value(n, -1, 1)
        median = max(min(w, n), min(max(w, n), w + n - nw))
        g = [
            scalar_product(features, self.local[block]),
            scalar_product(features, self.everywhere_weights),
            F(median - base),
            F(0),
        ]
        if before:
            b = value(0, *beyond(0, 0))
            bw, bn = value(b, *beyond(1, 0)), value(b, *beyond(0, 1))
            g[3] = F(b - base) + F(0.5) * F((w - bw) + (n - bn))
        d = []
        for j, prior in enumerate((4, 1, 1, 1 if before else 0)):
            q_w, q_n, q_nw, q_ne, q_ww = (
                self.q[place(*back)][j] if known(*back) is not None else F(0)
                for back in ((1,), (0, 1), (1, 1), (-1, 1), (2,))
            )
            s = F(0.3) + (((q_w + q_n) + (q_nw + q_ne)) + q_ww)
            d.append(F(prior) / (s * np.sqrt(s)))
        p = [x * y for x, y in zip(d, g, strict=True)]
        blend = ((p[0] + p[1]) + (p[2] + p[3])) / ((d[0] + d[1]) + (d[2] + d[3]))
        mean = int(np.rint(clamp(blend, F(-(2**26)), F(2**26)) * F(16)))
        centre = (mean + 8) >> 4
        fraction = mean - 16 * centre
        middle = clamp(base + centre, -LARGEST, LARGEST)
        if self.loop.labels[at]:
            self.settle(c, at, median)
            return None

        flip = -1 if fraction < 0 else 1
        beside = 2 * abs(e_b) + abs(e_be) + abs(e_bs)
        total = (
            3 * abs(e_w) + 3 * abs(e_n) + abs(error(2)) + abs(error(0, 2)) + abs(error(1, 1)) + 2 * abs(e_ne)
        )
        expected = (total + beside) // 15 if before else total // 11
        scale = class_of(expected)
        s2 = min(scale // 2, 23)
        shift = max(0, scale - 10) // 4
        fine = 0 if shift else abs(fraction) // 2
        texture = class_of(4 * min(max(abs(n - nw), abs(w - nw), abs(n - ne)), 2**20))
        away = (16 * (median - base) - mean) * flip
        far = abs(away)
        distance = (4 * far > expected) + (2 * far > expected) + (far > expected) + (far > 2 * expected)
        level = class_of(4 * clamp(middle - self.lowest, 0, 2**26))

        def half(x: int) -> int:
            return min(class_of(abs(x)) // 2, 23)

        def sign(x: int) -> int:
            return 1 + (x * flip > 0) - (x * flip < 0)

        contexts = [
            5 * min(scale, 47) + fine,
            24 * half(e_w) + half(e_n),
            3 * (24 * min(texture // 2, 23) + s2) + min(fine // 2, 2),
            24 * half(beside // 4) + s2,
            9 * s2 + 4 + (-distance if away < 0 else distance),
            60 * (27 * sign(e_w) + 9 * sign(e_n) + 3 * sign(e_ne) + sign(e_b))
            + 5 * min(scale // 4, 11)
            + fine,
            16 * level + min(scale // 3, 15),
        ]
        token = self.models.read_token(contexts, scale // 4)
        turned = token * 2**shift
        if shift:
            turned += self.loop.coder.raw(shift) - 2 ** (shift - 1)
        v = clamp(middle + flip * turned, -LARGEST, LARGEST)
        self.settle(c, at, v)
        self.e[c] = clamp(16 * (v - base) - mean, -32767, 32767)
        target = F(v - base)
        self.q[c] = [(target - x) * (target - x) for x in g]
        x = F(expected) * F(0.0625)
        return features, target, F(1) / (F(1) + x * x)

    def settle(self, c: tuple[int, ...], at: int, v: int) -> None:
        self.v[c] = v
        self.loop.values[at] = self.offset + v * self.step


def decode_local(loop: ClosedLoop, plan: bytes) -> None:
    require(len(plan) == 16, "plan")
    step, offset = struct.unpack("<dd", plan)
    require(math.isfinite(step) and step > 0 and math.isfinite(offset), "step and offset")
    require(len(loop.shape) > 1, "one axis")
    Local(loop, step, offset).run()


# 19. Side prediction ---------------------------------------------------------------------------------------


def _side_prediction(
    section: bytes, minor: int, find_model: Callable[[str], Any] | None, region: tuple[int, ...]
) -> list[float]:
    cursor = Bytes(section)
    digest, unit = cursor.take(32).hex(), cursor.f64()
    if section[32:40] == bytes(8) and minor > 4:
        return _cycle_prediction(cursor, _model(digest, find_model, "cycle"), region)
    require(0 < unit < math.inf, "unit")
    pack = _model(digest, find_model, "basis")
    network, tensors = plain(pack.manifest["network"]), pack.tensors
    require(network is not None, "a basis")
    grid = tuple(network["grid"])
    require(region[len(region) - len(grid) :] == grid and len(region) >= len(grid), "grid")
    inner = section[40:]
    require(len(inner) > 12 and inner[7] == DTYPES.index("i4") and inner[11] == 2, "latents")
    latents = decode(inner)
    modes, points = tensors["modes"].reshape(-1, math.prod(grid)), math.prod(grid)
    require(
        latents.shape[0] == math.prod(region) // points and latents.shape[1] in range(1, len(modes) + 1),
        "latents",
    )
    integers = [
        [int(v) << int(shift) for v in mode] for mode, shift in zip(modes, tensors["shift"], strict=True)
    ]
    integers = integers[: latents.shape[1]]
    largest = max(abs(int(latent)) for latent in latents.flat)
    require(largest * max(sum(map(abs, column)) for column in zip(*integers, strict=True)) < 2**53, "latents")
    scale = unit * 2.0 ** -network["shift"]
    means = [int(m) * 2.0 ** -network["mean_shift"] for m in tensors["mean"].flat]
    return [
        means[j]
        + scale * float(sum(int(latent) * mode[j] for latent, mode in zip(frame, integers, strict=True)))
        for frame in latents
        for j in range(points)
    ]


def _cycle_prediction(cursor: Bytes, pack: Any, region: tuple[int, ...]) -> list[float]:
    first, step = cursor.varint(), cursor.varint()
    cursor.end()
    network, tensors = plain(pack.manifest["network"]), pack.tensors
    grid, hours, days = tuple(network["grid"]), tensors["hours"].tolist(), tensors["days"].tolist()
    require(region[len(region) - len(grid) :] == grid and len(region) >= len(grid), "grid")
    ticks = len(hours) * len(days)
    require(first < ticks and step < ticks, "ticks")
    modes = tensors["modes"].reshape(-1, math.prod(grid)).tolist()
    before = region[: len(region) - len(grid)] or (1,)
    field: list[float] = []
    for t in range(before[0]):
        n = (first + t * step) % ticks
        weights = [hour * day for hour in hours[n % len(hours)] for day in days[n // len(hours)]]
        frame = [
            float(sum(w * mode[j] for w, mode in zip(weights, modes, strict=True))) * 2.0 ** -network["shift"]
            for j in range(math.prod(grid))
        ]
        field += frame * math.prod(before[1:])
    return field
