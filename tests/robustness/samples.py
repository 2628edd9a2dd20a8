"""Small streams of every kind, and how to damage them so that the checksums do not notice."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np

from aesz_codec import _core, pipeline, zoo
from aesz_codec.adapters.stepping import Stepping
from aesz_codec.bounds import ErrorBound
from aesz_codec.coordinates import Coordinates
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Frames, Interpolation, Local, Predictor, Quantizer
from aesz_codec.predictors.forecasts import LeastSquares, Motion
from aesz_codec.predictors.modelled import Modelled
from aesz_codec.predictors.side import Basis, Cycle
from aesz_codec.predictors.verified import Encoded
from aesz_codec.stream import Coder, Method, Section, Stream, Writer
from aesz_codec.train.packing import write_pack

__all__ = ["GOLDEN_MODELS", "claimed_bytes", "golden", "header_length", "repaired", "samples"]

GOLDEN_MODELS = Path(__file__).parent.parent / "golden" / "models"

ITEM_SIZES = (2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8)  # by the number of the dtype


def waves(*shape: int, noise: float = 0.0, dtype: str = "f4") -> np.ndarray:
    """Return a smooth field of order 10, with noise."""
    axes = np.meshgrid(*(np.linspace(0, 2, n) for n in shape), indexing="ij", sparse=True)
    field = sum((np.sin((k + 2) * x + k) for k, x in enumerate(axes)), start=np.zeros(shape))
    return (10 * field + noise * np.random.default_rng(5).standard_normal(shape)).astype(dtype)


def forced(array: np.ndarray, tolerance: float, predictor: Predictor) -> bytes:
    """Code a float array of at most four axes by a predictor that the encoder might not choose."""
    quantizer = Quantizer(tolerance, 2 * tolerance * (1 - 2.0**-12), float(array.flat[0]))
    codes, outliers = predictor.encode(array, None, quantizer)
    stream = Stream(array.dtype, array.shape, "abs", tolerance, tolerance, predictor.method)
    stream.sections = {Section.PLAN: predictor.pack(quantizer.step, quantizer.offset), Section.CODES: codes}
    if outliers:
        stream.sections[Section.OUTLIERS] = outliers
    if predictor.model is not None:
        stream.sections[Section.MODEL] = bytes.fromhex(zoo.embed(predictor.model.data).digest)
    return stream.to_bytes()


def masked(array: np.ndarray, tolerance: float, predictor: Predictor) -> bytes:
    """Code as `forced` does, with a rectangle and some of the rest as NaN."""
    labels = (np.random.default_rng(6).random(array.shape) < 0.1).astype(np.uint8)
    labels[2:6, 3:12] = 1
    labels[0, 0] = 0
    quantizer = Quantizer(tolerance, 2 * tolerance * (1 - 2.0**-12), float(array.flat[0]))
    codes, _ = predictor.encode(array, labels, quantizer)
    stream = Stream(array.dtype, array.shape, "abs", tolerance, tolerance, predictor.method)
    stream.sections = {Section.PLAN: predictor.pack(quantizer.step, quantizer.offset), Section.CODES: codes}
    nan = np.full(1, np.nan, array.dtype).tobytes()
    stream.sections[Section.LABELS] = b"\1" + nan + _core.encode_labels(labels)
    return stream.to_bytes()


def modelled(frames: np.ndarray, tolerance: float) -> bytes:
    """Code frames with the forecasts of a foundation model, which are then put into the stream."""
    model = Stepping(lambda state: np.float32(0.9) * state, name="less", version="1")
    place = Coordinates(("t@850",), 0, 3600, (50.0, 0.25), (5.0, 0.25))
    end = Encoded(
        model, place, frames, None, tolerance, lambda a: pipeline.encode(a, ErrorBound("abs", 0.25))
    )
    predictor = Modelled(1, 1, 1, end)
    quantizer = Quantizer(tolerance, 2 * tolerance * (1 - 2.0**-12), float(frames.flat[0]))
    codes, _ = predictor.encode(frames, None, quantizer)
    stream = Stream(frames.dtype, frames.shape, "abs", tolerance, tolerance, Method.FRAMES)
    plan = predictor.pack(quantizer.step, quantizer.offset)
    stream.sections = {Section.PLAN: plan, Section.CODES: codes, Section.FORECAST: end.section().pack()}
    return pipeline.materialise(stream.to_bytes(), find_forecaster=lambda digest: model)


def corrected(stream: bytes, positions: list[int]) -> bytes:
    """Add the section of corrections."""
    parsed = Stream.from_bytes(stream)
    writer, before = Writer().varint(len(positions)), -1
    for position in positions:
        writer.varint(position - before - 1)
        before = position
    values = np.arange(len(positions)).astype(parsed.dtype)
    parsed.sections[Section.CORRECTIONS] = writer.raw(values.tobytes()).done()
    return parsed.to_bytes()


def sided(array: np.ndarray, tolerance: float) -> bytes:
    """Code by a basis that fits, as the encoder does."""
    rng = np.random.default_rng(8)
    basis = {
        "mean": np.full(array.shape[1:], 3, np.int16),
        "modes": rng.integers(-99, 100, (3, *array.shape[1:])).astype(np.int8),
        "shift": np.array([2, 1, 0], np.uint8),
    }
    network = {"grid": list(array.shape[1:]), "mean_shift": 2, "shift": 6}
    manifest = {"id": "basis", "kind": "basis", "licence": "CC0-1.0", "network": network}
    pack = zoo.embed(write_pack(manifest, basis))
    latents = rng.integers(-20, 21, (len(array), 3)).astype(np.int32)
    there = (array + Basis.load(pack).predict(latents, 0.5, array.shape)).astype(array.dtype)
    there[0, 2, 3:5] = np.nan
    return pipeline.encode(there, ErrorBound("abs", tolerance), models=[pack])


def cycled(array: np.ndarray, tolerance: float) -> bytes:
    """Code by a cycle that fits, as the encoder does."""
    rng = np.random.default_rng(8)
    tensors = {
        "hours": np.array([[9, 9], [9, -9], [9, 0]], np.int8),
        "days": np.array([[9, 5], [9, -5]], np.int16),
        "modes": rng.integers(-99, 100, (4, *array.shape[1:])).astype(np.int16),
    }
    manifest = {"id": "cycle", "kind": "cycle", "licence": "CC0-1.0"}
    pack = zoo.embed(
        write_pack({**manifest, "network": {"grid": list(array.shape[1:]), "shift": 10}}, tensors)
    )
    there = array + Cycle.load(pack).predict(np.array([[4, 1]], np.int32), 0.0, array.shape)
    return pipeline.encode(there.astype(array.dtype), ErrorBound("abs", tolerance), models=[pack])


def samples() -> dict[str, bytes]:
    """Return streams that together use every method, section, transform and width."""
    rng = np.random.default_rng(3)
    pack = Pack.from_file(GOLDEN_MODELS / "interpolation.aeszpack")
    land = waves(11, 13, noise=0.05)
    land[3:8, 4:9] = np.nan
    land[0, 1], land[9, 9] = np.inf, 1e30
    land[:, 11:] = -9999
    spiky = waves(12, 9, dtype="f8")
    spiky[rng.random(spiky.shape) < 0.05] *= 1e12
    signed = waves(8, 9, noise=0.1)
    signed[2, 2:5] = 0
    counts = np.round(waves(9, 8, dtype="f8") * 40).astype("i4")
    packed = np.array([0.25, 0.3125, 0.375], "f4")[:, None, None]  # an origin for every frame
    frames = waves(1, 7, 8) + rng.standard_normal((5, 7, 8)).astype("f4") * 0.01

    def encode(array: np.ndarray, mode: str, value: float | None = None, effort: str = "default") -> bytes:
        return pipeline.encode(array, ErrorBound(mode, value), effort=effort)

    out = {
        "constant": encode(np.full((3, 4), 7, "f4"), "abs", 0.1),
        "all-nan": encode(np.full((2, 3), np.nan, "f8"), "abs", 0.1),
        "empty": encode(np.empty((0, 3), "f4"), "abs", 0.1),
        "scalar": encode(np.array(2.5, "f8"), "lossless"),
        "smooth": encode(waves(15, 16), "abs", 0.05),
        "land": encode(land, "abs", 0.05),
        "spiky": encode(spiky, "abs", 0.01),
        "logarithm": encode(signed, "pw_rel", 1e-2),
        "integers": encode(counts, "abs", 3.0),
        "tight": encode(waves(60, noise=0.5), "abs", 1e-3),
        "lossless-u1": encode(rng.poisson(20, (7, 9)).astype("u1"), "lossless"),
        "lossless-i2": encode(np.round(waves(5, 6, 4) * 100).astype("i2"), "lossless"),
        "lossless-f4": encode(waves(9, 8), "lossless"),
        "lossless-f8": encode(waves(7, 6, dtype="f8"), "lossless"),
        "lattice": encode(np.round(waves(9, 8) * 50) / 4, "abs", 0.3),
        "lattice-frames": encode(np.round(waves(3, 8, 9) * 50) / 8 + packed, "lossless"),
        "float16": encode(waves(6, 8, dtype="f2"), "abs", 0.5),
        "bytes": encode(np.tile(rng.standard_normal(4), 30).astype("f4"), "lossless"),
        "line": forced(waves(40, noise=0.1), 0.05, Interpolation()),
        "plane": forced(waves(9, 10, noise=0.1), 0.05, Interpolation(reversed=True, alpha16=20, beta16=24)),
        "frames": forced(frames, 0.02, Interpolation(batch=1, reference=True)),
        "learned-frames": forced(frames, 0.02, Interpolation(batch=1, reference=True, model=pack)),
        "learned-box": forced(frames, 0.02, Interpolation(model=pack)),
        "learned-static": forced(
            frames, 0.02, Interpolation(1, reference=True, coder=Coder.STATIC, model=pack)
        ),
        "four-axes": forced(waves(3, 4, 5, 4, noise=0.1), 0.1, Interpolation()),
        "four-axes-frames": forced(waves(3, 2, 5, 4, noise=0.1), 0.1, Interpolation(batch=2)),
        "causal-plane": forced(waves(9, 11, noise=0.1), 0.02, Causal()),
        "causal-box": forced(waves(4, 5, 6, noise=0.1), 0.05, Causal()),
        "causal-four-axes": forced(waves(3, 3, 4, 5, noise=0.1), 0.05, Causal()),
        "local-plane": forced(waves(9, 11, noise=0.1), 0.02, Local()),
        "local-jumps": forced(waves(9, 10, noise=5, dtype="f8"), 1e-6, Local()),
        "local-box": forced(waves(3, 8, 9, noise=0.1), 0.05, Local()),
        "local-four-axes": forced(waves(2, 2, 5, 9, noise=0.1), 0.05, Local()),
        "local-land": masked(waves(10, 17, noise=0.1), 0.05, Local()),
    }
    for name, predictor in {
        "static-frames": Interpolation(batch=1, reference=True, coder=Coder.STATIC),
        "static-causal": Causal(Coder.STATIC),
        "mixed-frames": Interpolation(batch=1, reference=True, coder=Coder.MIXED),
        "mixed-causal": Causal(Coder.MIXED),
    }.items():
        out[name] = forced(frames, 0.02, predictor)
    out["static-quiet"] = encode(waves(40, 60), "abs", 0.5, "fast")
    out["static-spiky"] = encode(spiky, "abs", 0.01, "fast")
    out["side"] = sided(frames, 0.05)
    out["cycle"] = cycled(frames, 0.05)
    forecaster = Pack.from_file(GOLDEN_MODELS / "forecaster.aeszpack")
    for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED):
        out[f"forecast-{coder.name.lower()}"] = forced(
            waves(3, 9, 11, noise=0.05), 0.02, Causal(coder, forecaster)
        )
    moving = np.stack([waves(20, 40, noise=0.5)[2 * t : 2 * t + 12, 3 * t : 3 * t + 18] for t in range(4)])
    out["frames-least-squares"] = forced(moving, 0.1, Frames(1, 2, LeastSquares()))
    out["frames-motion"] = forced(moving, 0.1, Frames(1, 1, Motion(), Coder.STATIC))
    out["frames-modelled"] = modelled(moving, 0.5)
    out["frames-planes"] = forced(moving.reshape(2, 2, 12, 18), 0.1, Frames(2, 1, Motion()))
    out["corrected"] = corrected(out["plane"], [0, 17, 18, 89])
    return out


def golden() -> dict[str, bytes]:
    """Return the golden streams, without those that must be rejected as they are; the zoo will know the packs they name."""
    for path in GOLDEN_MODELS.glob("*.aeszpack"):
        zoo.embed(path.read_bytes())
    files = [path for path in sorted(GOLDEN_MODELS.parent.glob("*/*.aesz")) if path.parent.name != "reject"]
    return {f"{path.parent.name}/{path.stem}": path.read_bytes() for path in files}


# ---- damage that the checksums do not see: docs/format.md, section 2 ---------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(9):
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise IndexError("no end of a varint")


def _header(data: bytes) -> tuple[int, list[int]]:
    """Return the length of the header without its checksum, and the shape; IndexError if it is cut off."""
    at, shape = 12, []
    for _ in range(data[11]):
        n, at = _varint(data, at)
        shape.append(n)
    at += 16
    sections, at = data[at], at + 1
    for _ in range(sections):
        coding, at = data[at + 1], at + 2
        for _ in range(2 if coding == 1 else 1):
            _, at = _varint(data, at)
    return at, shape


def header_length(data: bytes) -> int | None:
    """Return the bytes of the header before its checksum; None if it does not end."""
    try:
        return _header(data)[0]
    except IndexError:
        return None


def claimed_bytes(data: bytes) -> int:
    """Return how large an array the header speaks of; 0 if it cannot be read."""
    try:
        return math.prod(_header(data)[1]) * ITEM_SIZES[data[7]]
    except IndexError:
        return 0


def repaired(data: bytes) -> bytes:
    """Return the stream with both checksums right, wherever they are now; as it is if there is no room."""
    end = header_length(data)
    if end is None or len(data) < end + 8:
        return data
    head, body = data[:end], data[end + 4 : -4]
    return b"".join((head, struct.pack("<I", zlib.crc32(head)), body, struct.pack("<I", zlib.crc32(body))))
