"""Write the golden streams: ``python tests/golden/make_golden.py [--force [FOLDER ...]]``.

``1.0/`` to ``1.5/`` hold streams of those format versions and ``index.json`` what they decode to; ``reject/`` holds
streams that must fail and the name of the error; ``models/`` holds the packs that streams of both name.  Files that are there
stay as they are: a released stream is decoded forever.  ``--force`` writes a folder (without one: all) anew, which is right
only for a format that was never released.  The same sources write the same bytes, with SIMD and without, but not those that
are there: what the encoder fits and chooses (weights of frames, the grid of a forecast) changes with it, decoders do not.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import runpy
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import zstandard

from aesz_codec import _core, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.coordinates import Coordinates
from aesz_codec.errors import CorruptStreamError, ModelNotFoundError
from aesz_codec.lattice import Lattice
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Frames, Interpolation, Local, Predictor, Quantizer, verified
from aesz_codec.predictors.forecasts import LeastSquares, Motion, Nearest
from aesz_codec.predictors.modelled import Modelled
from aesz_codec.predictors.side import Basis, Cycle
from aesz_codec.predictors.verified import Encoded
from aesz_codec.stream import Coder, Method, Section, Stream, Transform, Writer
from aesz_codec.train.packing import write_pack

HERE = Path(__file__).parent
foundation_models = SimpleNamespace(**runpy.run_path(str(HERE / "foundation_models.py")))
MODELS = HERE / "models"
LARGEST = 2000  # bytes of a golden stream
LOSSLESS = ErrorBound("lossless", None)


def field(*shape: int, noise: float = 0.125) -> np.ndarray:
    """Parabolas along the axes and noise, by exact operations alone: alike on every machine."""
    values = np.zeros(shape)
    for axis, n in enumerate(shape):
        x = np.arange(n, dtype=np.float64).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        values += x * (n - 1 - x) * 0.0625
    return values + noise * (uniform(*shape) - 0.5)


def uniform(*shape: int, multiplier: int = 2654435761) -> np.ndarray:
    """Numbers from 0 to 1 that look random."""
    i = np.arange(math.prod(shape), dtype=np.uint64)
    x = (i * np.uint64(multiplier) ^ (i >> np.uint64(3)) * np.uint64(40503)) & np.uint64(0xFFFFFF)
    return x.astype(np.float64).reshape(shape) / 2**24


def forced(
    predictor: Predictor,
    data: np.ndarray,
    step: float = 0.25,
    *,
    dtype: str | None = None,
    transform: Transform = Transform.NONE,
    labels: np.ndarray | None = None,
    specials: tuple[float, ...] = (np.nan,),
) -> Stream:
    """Return a stream of this predictor, whatever it costs; values with a label are `specials`."""
    codes, outliers = predictor.encode(data, labels, Quantizer(step / 2, step, 0.5))
    kind = np.dtype(dtype or data.dtype)
    stream = Stream(kind, data.shape, "abs", step / 2, step / 2, predictor.method, transform)
    stream.sections[Section.PLAN] = predictor.pack(step, 0.5)
    stream.sections[Section.CODES] = codes
    if predictor.model is not None:
        stream.sections[Section.MODEL] = bytes.fromhex(predictor.model.digest)
    if outliers:
        stream.sections[Section.OUTLIERS] = outliers
    if labels is not None:
        values = np.array(specials, kind).tobytes()
        stream.sections[Section.LABELS] = bytes([len(specials)]) + values + _core.encode_labels(labels)
    return stream


def exact(data: np.ndarray, dims: int) -> Stream:
    """Return a stream of method 3."""
    codes = _core.encode_lossless(
        data.view(f"u{data.itemsize}"), dims, {"f": 2, "i": 1, "u": 0}[data.dtype.kind]
    )
    sections = {Section.PLAN: bytes([dims]), Section.CODES: codes}
    return Stream(data.dtype, data.shape, "lossless", 0.0, 0.0, Method.LOSSLESS, sections=sections)


def corrections(places: list[int], values: np.ndarray) -> bytes:
    """Return the section of that name."""
    writer = Writer().varint(len(places))
    for gap in np.diff(places, prepend=-1):
        writer.varint(int(gap) - 1)
    return writer.raw(values.tobytes()).done()


def resealed(stream: bytes, at: int, change: bytes) -> bytes:
    """Put other bytes into a header and mend its checksum."""
    header = stream[: Stream.from_bytes(stream, payloads=False).overhead - 8]
    rest = stream[len(header) + 4 :]
    header = header[:at] + change + header[at + len(change) :]
    return header + struct.pack("<I", zlib.crc32(header)) + rest


def on_lattice(
    predictor: Predictor,
    k: np.ndarray,
    lattice: Lattice,
    units: int = 0,
    dtype: str = "float32",
    **choices: Any,
) -> Stream:
    """Return a stream of transform 3 for these integers; the loop may leave `units` of error."""
    step = (2 * units + 1) * (1 - 2.0**-20)
    loop = (k + 3 * 2.0**22).astype("f4")
    stream = forced(predictor, loop, step, dtype=dtype, transform=Transform.LATTICE, **choices)
    stream.sections[Section.LATTICE] = lattice.pack()
    return stream


# ---- streams that decode


def accepted() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.0, one feature each."""
    yield from _written_by_the_encoder()
    yield from _interpolations()
    yield from _causals()
    yield from _codes()
    yield from _specials()
    yield from _transforms()
    yield from _exact()
    yield "corrections", _corrected().to_bytes()
    layout = np.asfortranarray(field(5, 6).astype(">f4"))
    yield "flags", pipeline.encode(layout, ErrorBound("abs", 0.25), keep_layout=True)
    yield "later_minor", resealed(forced(Causal(), field(5, 6)).to_bytes(), 5, b"\x07")


def _written_by_the_encoder() -> Iterator[tuple[str, bytes]]:
    for mode, value in (("abs", 0.25), ("range_rel", 0.01), ("pw_rel", 0.01)):
        yield f"mode_{mode}", pipeline.encode(field(12, 13) + 1, ErrorBound(mode, value))
    yield "mode_lossless", pipeline.encode(field(6, 7).astype("f4"), LOSSLESS)
    yield "scalar", pipeline.encode(np.float32(2.5), ErrorBound("abs", 0.25))
    yield "one_value", pipeline.encode(np.array([[[3.25]]]), LOSSLESS)
    yield "no_values", pipeline.encode(np.empty((3, 0, 2), "f4"), LOSSLESS)
    yield "constant", pipeline.encode(np.full((30, 40), -0.0, "f4"), ErrorBound("abs", 0.25))
    yield "constant_nan", pipeline.encode(np.full((7, 3), np.nan), ErrorBound("abs", 0.25))
    padded = np.full((9, 4, 30), -9999.0, "f4")
    padded[:6, :4, :17] = field(6, 4, 17)
    yield "crop", pipeline.encode(padded, ErrorBound("abs", 0.25))
    yield "six_axes", pipeline.encode(field(2, 3, 2, 3, 2, 5), ErrorBound("abs", 0.5))
    yield "axes_of_size_1", pipeline.encode(field(1, 9, 1, 8, 1), ErrorBound("abs", 0.25))


def _interpolations() -> Iterator[tuple[str, bytes]]:
    for shape in ((75,), (15, 22), (5, 7, 11), (3, 4, 5, 6)):
        for name in ("float32", "float64"):
            yield (
                f"interpolation_{len(shape)}d_{name}",
                forced(Interpolation(), field(*shape).astype(name)).to_bytes(),
            )
    frames = field(4, 3, 6, 7, noise=1).astype("f4")
    for batch in (1, 2, 3):
        yield f"frames_{batch}", forced(Interpolation(batch), frames).to_bytes()
        yield f"frames_{batch}_reference", forced(Interpolation(batch, reference=True), frames).to_bytes()
    yield "reversed", forced(Interpolation(reversed=True), field(7, 8, 9)).to_bytes()
    everything = Interpolation(1, reference=True, reversed=True, alpha16=20, beta16=33)
    yield "frames_reversed_steps", forced(everything, field(3, 11, 13)).to_bytes()
    yield "steps", forced(Interpolation(alpha16=24, beta16=40), field(20, 33).astype("f4")).to_bytes()
    yield "fitted_weights", forced(Interpolation(), field(40, 50, noise=1), 2.0).to_bytes()
    yield "default_weights_of_coarse_levels", forced(Interpolation(), field(3, 300, noise=1), 64.0).to_bytes()


def _causals() -> Iterator[tuple[str, bytes]]:
    for shape in ((60,), (15, 22), (5, 7, 11), (3, 4, 5, 6)):
        for name in ("float32", "float64"):
            yield f"causal_{len(shape)}d_{name}", forced(Causal(), field(*shape).astype(name)).to_bytes()
    yield "causal_narrow", forced(Causal(), field(4, 9, 3)).to_bytes()


def _codes() -> Iterator[tuple[str, bytes]]:
    quiet = np.zeros((3, 20, 70), "f4")
    quiet[1, 5:8, 20:26] = field(3, 6, noise=8)
    quiet[2, ::9, ::13] = 1
    for predictor, name in (
        (Interpolation(), "interpolation"),
        (Interpolation(coder=Coder.ADAPTIVE_ZEROS), "interpolation_zeros"),
        (Interpolation(1, reference=True, coder=Coder.ADAPTIVE_ZEROS), "frames_zeros"),
        (Causal(), "causal"),
        (Causal(coder=Coder.ADAPTIVE_ZEROS), "causal_zeros"),
    ):
        yield f"quiet_{name}", forced(predictor, quiet).to_bytes()
        for step in (1.0, 0.25):
            small = forced(predictor, field(17, 25, noise=1), step).to_bytes()
            yield f"small_codes_{name}_{4 * step:.0f}", small
        medium = forced(predictor, field(14, 19, noise=64), 2.0**-4).to_bytes()
        yield f"medium_codes_{name}", medium
        yield f"large_codes_{name}", forced(predictor, field(9, 13, noise=64), 2.0**-20).to_bytes()
        wild = field(7, 12).astype("f4")
        wild[2, 3], wild[2, 4], wild[6, 11], wild[0, 0] = 1e30, -3e38, 1e12, -1e20
        yield f"outliers_{name}", forced(predictor, wild).to_bytes()


def _specials() -> Iterator[tuple[str, bytes]]:
    data = field(4, 9, 13).astype("f4")
    masked = (uniform(4, 9, 13, multiplier=69069) < 0.25).astype(np.uint8)
    masked[1, 2:5] = 1
    masked[0, 0, :2] = 1
    for predictor, name in (
        (Interpolation(), "interpolation"),
        (Interpolation(1, reference=True), "frames"),
        (Causal(), "causal"),
    ):
        yield f"labels_{name}", forced(predictor, data, labels=masked).to_bytes()
    rare = np.ones((3, 1500), np.uint8)
    rare[0, :3] = rare[2, 1400:] = 0
    yield "labels_everywhere", forced(Causal(), field(3, 1500).astype("f4"), labels=rare).to_bytes()
    payloads = np.frombuffer(bytes.fromhex("0100807f 0200c07f 0300c0ff 000080ff 0000807f 00000080"), "<f4")
    specials = (*payloads, *np.arange(9, dtype="f4"))
    labels = (uniform(6, 20, multiplier=69069) * 40).astype(np.uint8)
    labels[labels > 15] = 0
    yield (
        "labels_15",
        forced(Causal(), field(6, 20).astype("f4"), labels=labels, specials=specials).to_bytes(),
    )
    ocean = field(14, 15) + 1
    ocean[3:9, 2:7] = np.nan
    ocean[4, 9:] = -1e20
    ocean[10, 2] = np.inf
    yield "labels_of_the_encoder", pipeline.encode(ocean, ErrorBound("abs", 0.25))
    signed = field(2, 9, 10).astype("f4") - 1
    signed[:, 3, :4] = 0
    yield "signs", pipeline.encode(signed, ErrorBound("pw_rel", 0.05))


def _transforms() -> Iterator[tuple[str, bytes]]:
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        yield f"integer_{name}", pipeline.encode((field(9, 10) * 8).astype(name), ErrorBound("abs", 2))
        limits = np.concatenate([np.linspace(-(2.0**65), 2.0**65, 9), np.arange(-4.25, 4.5, 0.75)])
        stream = forced(Causal(), limits, 0.5, dtype=name, transform=Transform.INTEGER)
        yield f"integer_limits_{name}", stream.to_bytes()
    for name in ("float16", "float32", "float64"):
        limits = np.concatenate([np.linspace(-1200, 1200, 25), np.linspace(-1, 1, 9)])
        stream = forced(Causal(), limits, 2.0**-8, dtype=name, transform=Transform.LOGARITHM)
        signs = np.arange(limits.size, dtype=np.uint8) // 3 % 2
        stream.sections[Section.SIGNS] = _core.encode_labels(signs)
        yield f"logarithm_{name}", stream.to_bytes()


def accepted_1_1() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.1."""
    yield from _lattices()
    yield from _static()
    yield from _mixed()
    yield from _locals()


def accepted_1_2() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.2: learned interpolation."""
    yield from _learned(Coder.ADAPTIVE, Coder.MIXED)
    learned = Interpolation(coder=Coder.MIXED, model=golden_model())
    integers = forced(learned, field(9, 10) * 8, 3.0, dtype="int16", transform=Transform.INTEGER)
    yield "learned_integer", integers.to_bytes()
    logarithms = forced(learned, field(9, 10), 2.0**-7, dtype="float32", transform=Transform.LOGARITHM)
    yield "learned_logarithm", logarithms.to_bytes()


def accepted_1_5() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.5: networks with the static coder, frames in an order of their own."""
    yield from _learned(Coder.STATIC)
    yield from _frames()
    model = golden_model()
    learned = Interpolation(coder=Coder.STATIC, model=model)
    refers = Interpolation(1, reference=True, coder=Coder.STATIC, model=model)
    halves = field(3, 14, 21, noise=8).astype("f4")
    labels = np.zeros(halves.shape, np.uint8)
    labels[0, :, ::2] = labels[1, :, 1::2] = labels[2, 3:5] = 1
    for name, predictor in (("frames", refers), ("3d", learned)):
        yield f"learned_static_halves_{name}", forced(predictor, halves, labels=labels).to_bytes()
    for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED):  # networks that see little
        few = functools.partial(Interpolation, coder=coder, model=golden_model("interpolation_few"))
        name = f"learned_few_{coder.name.lower()}"
        for choice, shape in ((few(), (19, 26)), (few(1, reference=True), (3, 15, 18)), (few(), (7, 9, 10))):
            for dtype in ("float32", "float64"):
                data = field(*shape, noise=2).astype(dtype)
                yield f"{name}_{'x'.join(map(str, shape))}_{dtype}", forced(choice, data).to_bytes()


def _learned(*coders: Coder) -> Iterator[tuple[str, bytes]]:
    model = golden_model()
    for coder in coders:
        learned = functools.partial(Interpolation, coder=coder, model=model)
        refers = learned(1, reference=True)
        prefix = f"learned_{coder.name.lower()}"
        for shape in ((19, 26), (7, 9, 10)):
            for name in ("float32", "float64"):
                data = field(*shape, noise=2).astype(name)
                yield f"{prefix}_{len(shape)}d_{name}", forced(learned(), data).to_bytes()
        frames = field(3, 15, 18, noise=2).astype("f4")
        yield f"{prefix}_frames", forced(learned(1), frames).to_bytes()
        yield f"{prefix}_frames_reference", forced(refers, frames).to_bytes()
        yield f"{prefix}_4d_frames", forced(learned(2, reference=True), field(2, 2, 9, 7)).to_bytes()
        yield f"{prefix}_4d_frames_of_three_axes", forced(learned(1), field(2, 5, 6, 7)).to_bytes()
        yield f"{prefix}_4d", forced(learned(), field(3, 4, 5, 6)).to_bytes()  # no slots
        yield f"{prefix}_1d", forced(learned(), field(75)).to_bytes()
        yield f"{prefix}_three_axes_that_refer", forced(refers, field(2, 5, 6, 7)).to_bytes()
        for small in ((2, 3), (3, 2), (2, 40), (40, 2), (2, 2, 2), (3, 3, 3), (2, 9, 2)):
            name = "x".join(map(str, small))
            yield f"{prefix}_{name}", forced(learned(), field(*small, noise=8)).to_bytes()
        yield f"{prefix}_frames_of_2x3", forced(refers, field(9, 2, 3, noise=8)).to_bytes()
        # levels with networks and levels without
        yield f"{prefix}_levels", forced(learned(), field(2, 600, noise=4), 4.0).to_bytes()
        yield f"{prefix}_levels_of_three_axes", forced(learned(), field(3, 2, 90, noise=4), 4.0).to_bytes()
        yield f"{prefix}_steps", forced(learned(alpha16=24, beta16=40), frames[0]).to_bytes()
        steps = learned(1, reference=True, alpha16=20, beta16=33)
        yield f"{prefix}_frames_steps", forced(steps, frames).to_bytes()
        masked = (uniform(3, 15, 18, multiplier=69069) < 0.1).astype(np.uint8)
        masked[0, 0, 0] = masked[1, 4:9, 5:] = masked[2, 8] = 1
        yield f"{prefix}_labels", forced(refers, frames, labels=masked).to_bytes()
        yield f"{prefix}_labels_3d", forced(learned(), frames, labels=masked).to_bytes()
        wild = frames.copy()
        wild[0, 2, 3], wild[0, 2, 4], wild[0, 6, 11], wild[1, 0, 0] = 1e30, -3e38, 1e12, -1e20
        yield f"{prefix}_outliers", forced(learned(), wild[0]).to_bytes()
        yield f"{prefix}_outliers_reference", forced(refers, wild).to_bytes()
        for step in (64.0, 2.0**-4, 2.0**-12, 2.0**-20):  # classes up to the last
            large = field(9, 13, noise=64)
            yield f"{prefix}_codes_{round(-math.log2(step))}", forced(learned(), large, step).to_bytes()
        # quiet blocks: networks correct by next to nothing where all is flat
        quiet = np.zeros((2, 24, 70), "f4")
        quiet[0, 5:8, 20:26] = field(3, 6, noise=8)
        quiet[1, ::9, ::13] = 5
        for step in (4.0, 16.0):
            yield f"{prefix}_quiet_{step:.0f}", forced(refers, quiet, step).to_bytes()
        yield f"{prefix}_quiet_3d", forced(learned(), quiet, 8.0).to_bytes()
        # large enough for gains that the encoder chooses
        yield f"{prefix}_gains", forced(learned(), field(46, 48, noise=1), 1.0).to_bytes()
        decisions = (
            ("2d", learned(), (12, 70)),
            ("frames_reference", refers, (3, 11, 18)),
            ("3d", learned(alpha16=17, beta16=24), (9, 10, 12)),
        )
        for name, predictor, shape in decisions if coder is not Coder.STATIC else ():
            yield f"{prefix}_made_up_{name}", made_up(predictor, shape).to_bytes()
        k = np.rint(field(3, 9, 13, noise=32) * 8)
        yield f"{prefix}_lattice", on_lattice(learned(), k, Lattice(273.15, 0.1), 2).to_bytes()


def accepted_1_3() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.3: side predictions."""
    for name, kind in (("float32", "f4"), ("float64", "f8")):
        frames = field(6, 9, 11, noise=2).astype(kind)
        latents = latent_numbers(6, 4)
        for predictor in (Interpolation(), Interpolation(1, reference=True), Causal(), Local()):
            label = type(predictor).__name__.lower() + (
                "_frames" if predictor == Interpolation(1, True) else ""
            )
            yield f"side_{label}_{name}", sided(predictor, frames, latents).to_bytes()
    for name, shape in (("one_frame", (9, 11)), ("four_axes", (2, 3, 9, 11)), ("ones", (1, 2, 1, 9, 11))):
        data = field(*shape, noise=2).astype("f4")
        yield f"side_{name}", sided(Interpolation(), data, latent_numbers(data.size // 99, 3)).to_bytes()
    frames = field(4, 9, 11, noise=2).astype("f4")
    yield "side_one_mode", sided(Causal(), frames, latent_numbers(4, 1), unit=3.5).to_bytes()
    yield "side_large_latents", sided(Causal(), frames, latent_numbers(4, 5) * 2**19, 2.0**-20).to_bytes()
    masked = (uniform(4, 9, 11, multiplier=69069) < 0.1).astype(np.uint8)
    masked[1, 4:9, 5:] = 1
    yield "side_labels", sided(Interpolation(), frames, latent_numbers(4, 4), labels=masked).to_bytes()
    wild = frames.copy()
    wild[0, 2, 3], wild[0, 2, 4], wild[1, 6, 10] = 1e30, -3e38, 1e12
    yield "side_outliers", sided(Interpolation(), wild, latent_numbers(4, 4)).to_bytes()
    learned = Interpolation(model=golden_model())
    yield "side_and_networks", sided(learned, frames, latent_numbers(4, 4)).to_bytes()
    for axes, shape in ((1, (13, 30)), (3, (2, 3, 4, 5))):
        data, pack = field(*shape).astype("f4"), f"basis_{axes}d"
        frames_there = data.size // (30 if axes == 1 else 60)
        stream = sided(Interpolation(), data, latent_numbers(frames_there, 2), pack=pack)
        yield f"side_grid_of_{axes}", stream.to_bytes()
    cropped = sided(Causal(), frames, latent_numbers(4, 4))
    cropped.shape = (6, 9, 11)
    cropped.sections[Section.CROP] = bytes((4, 9, 11)) + np.float32(7).tobytes()
    yield "side_cropped", cropped.to_bytes()


def accepted_1_4() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.4: forecasters."""
    model = Pack.from_file(MODELS / "forecaster.aeszpack")
    for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED):
        label, predictor = coder.name.lower(), Causal(coder, model)
        for name in ("float32", "float64"):
            frames = field(6, 9, 11, noise=2).astype(name)
            yield f"forecast_{label}_{name}", forced(predictor, frames).to_bytes()
        frames = field(4, 9, 11, noise=2).astype("f4")
        masked = (uniform(4, 9, 11, multiplier=69069) < 0.1).astype(np.uint8)
        masked[1, 4:9, 5:] = 1
        yield f"forecast_{label}_labels", forced(predictor, frames, labels=masked).to_bytes()
    yield "forecast_one_frame", forced(Causal(model=model), frames[0]).to_bytes()
    yield "forecast_small_steps", forced(Causal(model=model), frames, 2.0**-12).to_bytes()
    wild = frames.copy()
    wild[0, 2, 3], wild[0, 2, 4], wild[1, 6, 10] = 1e30, -3e38, 1e12
    yield "forecast_outliers", forced(Causal(model=model), wild).to_bytes()
    cropped = forced(Causal(model=model), frames)
    cropped.shape = (6, 1, 9, 11)
    cropped.sections[Section.CROP] = bytes((4, 1, 9, 11)) + np.float32(7).tobytes()
    yield "forecast_cropped", cropped.to_bytes()
    narrow = Causal(model=Pack.from_file(MODELS / "forecaster_narrow.aeszpack"))
    yield "forecast_narrow", forced(narrow, field(5, 3, 2, noise=2)).to_bytes()


def _frames() -> Iterator[tuple[str, bytes]]:
    for name, kind in (("float32", "f4"), ("float64", "f8")):
        frames = drifting(7, 10, 11).astype(kind)
        for distance in (1, 2, 8):
            for forecaster in (Nearest(), LeastSquares()):
                label = f"frames_{forecaster.name.replace(' ', '_')}_{distance}_{name}"
                yield label, forced(Frames(1, distance, forecaster), frames).to_bytes()
        yield (
            f"frames_motion_{name}",
            forced(Frames(1, 1, Motion()), drifting(3, 19, 34).astype(kind)).to_bytes(),
        )
    frames = drifting(7, 10, 11).astype("f4")
    yield "frames_motion_two_sided", forced(Frames(1, 4, Motion()), frames).to_bytes()
    for coder in (Coder.STATIC, Coder.MIXED):
        yield f"frames_{coder.name.lower()}", forced(Frames(1, 4, LeastSquares(), coder), frames).to_bytes()
    many = drifting(10, 9, 8).reshape(5, 2, 9, 8)
    yield "frames_planes", forced(Frames(2, 2, LeastSquares()), many).to_bytes()
    yield "frames_planes_motion", forced(Frames(2, 1, Motion()), many).to_bytes()
    masked = (uniform(7, 10, 11, multiplier=69069) < 0.1).astype(np.uint8)
    masked[0, 0, 0] = masked[1, 4:9, 5:] = masked[3] = 1
    yield "frames_labels_lsq", forced(Frames(1, 4, LeastSquares()), frames, labels=masked).to_bytes()
    yield "frames_labels_motion", forced(Frames(1, 1, Motion()), frames, labels=masked).to_bytes()
    wild = frames.copy()
    wild[0, 2, 3], wild[0, 2, 4], wild[1, 6, 10], wild[6, 0, 0] = 1e30, -3e38, 1e12, -1e20
    yield "frames_outliers", forced(Frames(1, 2, LeastSquares()), wild).to_bytes()
    model = golden_model()
    for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED):
        for distance in (1, 4):
            learned = Frames(1, distance, LeastSquares(), coder, model)
            yield f"frames_learned_{distance}_{coder.name.lower()}", forced(learned, frames).to_bytes()
    yield (
        "frames_fitted_weights",
        forced(Frames(1, 2, Nearest()), drifting(5, 30, 31, noise=1), 2.0).to_bytes(),
    )
    k = np.rint(frames * 8)
    yield "frames_lattice", on_lattice(Frames(1, 2, LeastSquares()), k, Lattice(273.15, 0.1), 2).to_bytes()
    integers = forced(
        Frames(1, 2, LeastSquares()), drifting(4, 9, 10) * 8, 3.0, dtype="int16", transform=Transform.INTEGER
    )
    yield "frames_integer", integers.to_bytes()
    data = field(5, 9, 11, noise=2).astype("f4")
    for name, first, step, values in (
        ("cycle", 9, 1, data),
        ("cycle_float64", 2, 3, data.astype("f8")),
        ("cycle_round_the_year", 11, 11, data),
        ("cycle_one_frame", 7, 0, data[0]),
        ("cycle_planes", 4, 1, data[:4].reshape(2, 2, 9, 11)),
    ):
        yield name, cycled(Interpolation(), values, first, step).to_bytes()
    yield "cycle_and_frames", cycled(Frames(1, 2, LeastSquares()), data, 10, 1).to_bytes()


def accepted_modelled() -> Iterator[tuple[str, bytes]]:
    """Yield names and streams of format 1.5: verified float forecasts, with a model and without."""
    stepping = foundation_models.stepping
    for name, kind in (("float32", "f4"), ("float64", "f8")):
        states = drifting(6, 9, 10).reshape(3, 2, 9, 10).astype(kind)
        yield f"modelled_{name}", modelled(stepping(1), states).to_bytes()
    frames = drifting(6, 9, 10).astype("f4")
    states = frames.reshape(3, 2, 9, 10)
    for coder in (Coder.STATIC, Coder.MIXED):
        yield f"modelled_{coder.name.lower()}", modelled(stepping(1), states, coder=coder).to_bytes()
    yield "modelled_two_states", modelled(stepping(2), frames).to_bytes()
    yield "modelled_latents", modelled(foundation_models.codec(), states).to_bytes()
    masked = (uniform(3, 2, 9, 10, multiplier=69069) < 0.1).astype(np.uint8)
    masked[1, 1] = 1
    yield "modelled_labels", modelled(stepping(1), states, labels=masked).to_bytes()
    right = stepping(1)
    off = np.float32(2.0**-9) * (uniform(2, 9, 10) - 0.5).astype("f4")
    nearly = stepping(
        1, step=lambda state: right._step(state) + off, other=lambda state: right._step(state) - off
    )
    yield "modelled_flags", modelled(nearly, states).to_bytes()
    # a step that is no power of two, so that forecasts do not lie on ties: what differs must be among the nearest to one
    mended = modelled(stepping(1, step=lambda state: right._step(state) + 4 * off), states, 0.3).to_bytes()
    with mock.patch.object(verified, "_mended", wraps=verified._mended) as mending:
        pipeline.decode(mended, find_forecaster=foundation_models.MODELS.__getitem__)
    if not mending.called:
        raise SystemExit("a stream whose forecasts need not be mended")
    yield "modelled_mended", mended
    wide = modelled(stepping(1), drifting(2, 66, 70, noise=0.125).astype("f4"), 8.0)
    yield "modelled_blocks", wide.to_bytes()
    for name, stream in (
        ("float32", modelled(right, states)),
        ("labels", modelled(right, states, labels=masked)),
    ):
        free = pipeline.materialise(stream.to_bytes(), find_forecaster=foundation_models.MODELS.__getitem__)
        if pipeline.describe(free).predictor != "frames":
            raise SystemExit("a stream that is smaller without its forecasts")
        yield f"modelled_free_{name}", free


def modelled(
    model: Any,
    data: np.ndarray,
    step: float = 0.25,
    *,
    labels: np.ndarray | None = None,
    coder: Coder = Coder.ADAPTIVE,
) -> Stream:
    """Return a stream of forecasts by a model of ``foundation_models.py``, or one that is nearly the same."""
    channels = data.shape[1] if data.ndim == 4 else 1
    names = ("t@850", "u")[:channels]
    place = Coordinates(names, "2020-02-29T12:00", 21600, (45.0, -0.25), (359.5, 0.25))
    frames = data.reshape(-1, *data.shape[-2:])
    mask = None if labels is None else labels.reshape(frames.shape)
    end = Encoded(model, place, frames, mask, step / 2, lambda a: pipeline.encode(a, ErrorBound("abs", 0.25)))
    predictor = Modelled(data.ndim - 2, channels, model.history, end, coder)
    codes, outliers = predictor.encode(data, labels, Quantizer(step / 2, step, 0.5))
    stream = Stream(data.dtype, data.shape, "abs", step / 2, step / 2, Method.FRAMES)
    stream.sections = {Section.PLAN: predictor.pack(step, 0.5), Section.CODES: codes}
    stream.sections[Section.FORECAST] = end.section().pack()
    if outliers:
        stream.sections[Section.OUTLIERS] = outliers
    if labels is not None:
        values = np.array([np.nan], data.dtype).tobytes()
        stream.sections[Section.LABELS] = bytes([1]) + values + _core.encode_labels(labels)
    return stream


def rejected_modelled() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, errors and streams of format 1.5 whose forecasts are not what section 22 says."""
    states = drifting(6, 9, 10).reshape(3, 2, 9, 10).astype("f4")
    sound = modelled(foundation_models.stepping(1), states)
    section, plan = sound.sections[Section.FORECAST], sound.sections[Section.PLAN]
    free = Stream.from_bytes(
        pipeline.materialise(sound.to_bytes(), find_forecaster=foundation_models.MODELS.__getitem__)
    )

    def changed(at: int, content: bytes, of: Stream = sound) -> bytes:
        given = of.sections[Section.FORECAST]
        return _with(of, Section.FORECAST, given[:at] + content + given[at + len(content) :]).to_bytes()

    unknown = "ModelNotFoundError"
    corrupt = "CorruptStreamError"
    yield "modelled_unknown_model", unknown, changed(7, bytes(32))
    other = modelled(foundation_models.stepping(1, step=lambda s: s + np.float32(1)), states)
    yield "modelled_other_forecasts", "PredictionMismatchError", other.to_bytes()
    cases = {
        "kind": (0, b"\2"),
        "no_channels": (1, b"\0"),
        "channels": (1, b"\4"),
        "exponent": (2, b"\x65\0"),
        "no_frames": (6, b"\0"),
        "frames_beyond": (6, b"\x7c"),
        "frame_too_early": (6, b"\x3e"),
        "start": (39, b"\xff" * 7 + b"\x7f"),
        "step": (47, bytes(4)),
        "latitude": (51, b"\xff" * 8),
        "no_step_of_longitude": (75, bytes(8)),
        "no_name": (83, b"\0"),
        "name_no_text": (84, b"\xff"),
        "level": (86, b"x"),
        "latents": (91, b"\1"),
        "flags": (92, b"\xff"),
        "whole": (len(section) - 16, bytes(16)),
    }
    for name, (at, content) in cases.items():
        yield f"modelled_{name}", corrupt, changed(at, content)
    yield "modelled_left_over", corrupt, _with(sound, Section.FORECAST, section + b"\0").to_bytes()
    yield "modelled_cut", corrupt, _with(sound, Section.FORECAST, section[:-1]).to_bytes()
    yield "modelled_none", corrupt, _with(sound, Section.FORECAST, None).to_bytes()
    for name, content in {
        "exponent": plan[:18] + b"\1" + plan[19:],
        "flags": plan[:17] + b"\1" + plan[18:],
        "history": plan[:20] + b"\2",
        "long_history": plan[:20] + b"\x41",
        "no_frame_axis": plan[:16] + b"\0" + plan[17:],
        "one_frame_axis": plan[:16] + b"\1" + plan[17:],
        "left_over": plan + b"\0",
        "short": plan[:20],
    }.items():
        yield f"modelled_plan_{name}", corrupt, _with(sound, Section.PLAN, content).to_bytes()
    inner = pipeline.encode(np.zeros((3, 9, 10), "i4"), ErrorBound("abs", 0.25))
    yield (
        "modelled_free_integers",
        corrupt,
        _with(free, Section.FORECAST, free.sections[Section.FORECAST][:7] + inner).to_bytes(),
    )
    inner = pipeline.encode(np.zeros((4, 9, 10), "f4"), ErrorBound("abs", 0.25))
    yield (
        "modelled_free_floats",
        corrupt,
        _with(free, Section.FORECAST, free.sections[Section.FORECAST][:7] + inner).to_bytes(),
    )
    yield "modelled_in_1_4", corrupt, resealed(sound.to_bytes(), 5, b"\4")


def drifting(frames: int, lines: int, width: int, noise: float = 0.25) -> np.ndarray:
    """Return noise that moves by two points a frame, and more noise."""
    ground = uniform(lines, width + 2 * frames) * 4
    moved = [ground[:, 2 * t : 2 * t + width] for t in range(frames)]
    return np.stack(moved) + field(frames, lines, width, noise=noise)


def latent_numbers(frames: int, modes: int) -> np.ndarray:
    """Return latents, smaller from mode to mode."""
    return np.rint((uniform(frames, modes) - 0.5) * 40 / (1 + np.arange(modes))).astype(np.int32)


def sided(
    predictor: Predictor,
    data: np.ndarray,
    latents: np.ndarray,
    unit: float = 0.375,
    *,
    pack: str = "basis_2d",
    labels: np.ndarray | None = None,
) -> Stream:
    """Return a stream of what a side prediction leaves of the values."""
    model = Pack.from_file(MODELS / f"{pack}.aeszpack")
    left = (data - Basis.load(model).predict(latents, unit, data.shape)).astype(data.dtype)
    folded = left.reshape([n for n in data.shape if n > 1])
    stream = forced(predictor, folded, transform=Transform.SIDE, labels=labels)
    stream.shape = data.shape
    coded = pipeline.encode(latents, ErrorBound("abs", 0.25))
    stream.sections[Section.SIDE] = bytes.fromhex(model.digest) + struct.pack("<d", unit) + coded
    return stream


def cycled(predictor: Predictor, data: np.ndarray, first: int, step: int) -> Stream:
    """Return a stream of what a cycle leaves of the values."""
    model = Pack.from_file(MODELS / "cycle.aeszpack")
    left = data - Cycle.load(model).predict(np.array([[first, step]], np.int32), 0.0, data.shape)
    stream = forced(predictor, left.astype(data.dtype), transform=Transform.SIDE)
    section = Writer().raw(bytes.fromhex(model.digest)).pack("d", 0.0).varint(first).varint(step)
    stream.sections[Section.SIDE] = section.done()
    return stream


class MadeUp:
    """A range coder that a decoder takes for its own: decisions are as likely as models say, integers as asked for."""

    def __init__(self) -> None:
        self.low, self.range, self.words, self.state = 0, 2**64 - 1, 2, 1
        self.asked: list[int] = []  # bits, and raw bits, that come next

    def _draw(self, below: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 32) * below >> 32

    def _take(self, below: int, width: int) -> None:
        self.low, self.range = self.low + below, width
        if self.range < 1 << 32:
            self.low, self.range, self.words = self.low << 32, self.range << 32, self.words + 1

    def ask(self, value: int) -> None:
        """Make the next signed integer `value`."""
        folded = 2 * value if value >= 0 else -2 * value - 1
        k = (folded + 1).bit_length() - 1
        self.asked = [1] * k + [0] + ([folded + 1 - 2**k] if k else [])

    def bit(self, p1: int) -> int:
        bit = self.asked.pop(0) if self.asked else int(self._draw(65536) < p1)
        bound = (self.range >> 16) * p1
        self._take(0 if bit else bound, bound if bit else self.range - bound)
        return bit

    def symbol(self, edge: list[int]) -> int:
        target = self._draw(32768)
        s = max(i for i in range(32) if edge[i] <= target)
        unit = self.range >> 15
        self._take(unit * edge[s], unit * (edge[s + 1] - edge[s]))
        return s

    def raw(self, n: int) -> int:
        value = self.asked.pop(0) if self.asked else self._draw(2**n)
        self._take((self.range >> n) * value, self.range >> n)
        return value

    def raw_groups(self, n: int) -> int:
        return self.raw(n) if 0 < n <= 16 else self.raw(16) << (n - 16) | self.raw_groups(n - 16) if n else 0

    def encoded(self) -> bytes:
        return self.low.to_bytes(4 * self.words, "big").rstrip(b"\0")


def made_up(predictor: Interpolation, shape: tuple[int, ...]) -> Stream:
    """Return a stream of made-up codes, of all gains in turn."""
    reference, coder, gains = reference_decoder(), MadeUp(), itertools.cycle(range(16, -1, -1))

    class Loop(reference.ClosedLoop):  # type: ignore[misc, name-defined]
        def choose(self, number: int) -> None:
            super().choose(number)
            integers = self.mixed or self.residuals
            self.read, integers.read_integer = integers.read_integer, self.gain

        def asked(self, value: int) -> int:
            coder.ask(value)
            return int(self.read())

        def gain(self) -> int:
            return self.asked(next(gains) - 8)

        def weight(self, default: int) -> int:
            return default + self.asked(coder._draw(33) - 16)

    loop = Loop(np.dtype("f4"), shape, [0] * math.prod(shape), b"", field(400).astype("f4"))
    loop.coder = loop.residuals.coder = coder
    plan = predictor.pack(0.25, 0.5)
    reference.decode_interpolation(loop, plan, predictor.model)
    stream = Stream(np.dtype("f4"), shape, "abs", 0.125, 0.125, predictor.method)
    stream.sections = {Section.PLAN: plan, Section.CODES: coder.encoded()}
    stream.sections[Section.MODEL] = bytes.fromhex(predictor.model.digest)
    if loop.outliers_used:
        stream.sections[Section.OUTLIERS] = loop.outliers[: loop.outliers_used].tobytes()
    decoded = pipeline.decode(stream.to_bytes(), find_model=find_model)
    if decoded.tobytes() != loop.values.tobytes():
        raise SystemExit("what was made up is decoded to something else")
    return stream


def golden_model(name: str = "interpolation") -> Pack:
    """Read the pack that learned streams name."""
    return Pack.from_file(MODELS / f"{name}.aeszpack")


def models() -> Iterator[tuple[str, bytes]]:
    """Yield names and packs: networks for every slot of learned interpolation, bases of grids, and one that is not sound."""
    yield "interpolation", networks("golden")
    yield (
        "interpolation_few",
        networks(
            "golden-few",
            [*[[8, 0]] * 2, [4, 0], [8, 5], [24, 0], [12, 13], *[[20, 0]] * 4, [13, 0], [12, 0], [24, 0]],
        ),
    )
    for axes, grid in ((1, (30,)), (2, (9, 11)), (3, (3, 4, 5))):
        modes = np.rint(60 * (uniform(5, *grid, multiplier=69069) - 0.5)).astype(np.int8)
        tensors = {
            "mean": np.rint(200 * uniform(*grid)).astype(np.int16),
            "modes": modes,
            "shift": np.array([3, 2, 2, 1, 0], np.uint8),
        }
        manifest = {"id": f"golden-basis-{axes}d", "kind": "basis", "licence": "BSD-3-Clause"}
        network = {"grid": list(grid), "mean_shift": 4, "shift": 7}
        yield f"basis_{axes}d", write_pack({**manifest, "network": network}, tensors)
    modes = np.rint(60000 * (uniform(6, 9, 11, multiplier=69069) - 0.5)).astype(np.int32)
    tensors = {
        "hours": np.array([[64, 64, 0], [64, 0, 64], [64, -64, 0], [64, 0, -64]], np.int8),
        "days": np.array([[1000, 1000], [1000, -500], [1000, -501]], np.int16),
        "modes": modes,
    }
    manifest = {"id": "golden-cycle", "kind": "cycle", "licence": "BSD-3-Clause"}
    yield "cycle", write_pack({**manifest, "network": {"grid": [9, 11], "shift": 28}}, tensors)
    near = ((0, 1, 0), (0, 1, -1), (0, 2, 3), (0, 0, 1), (0, 0, 2))
    before = ((1, 0, 0), (1, -1, 2), (1, 1, -2), (1, 127, 0), (1, 0, -128))
    old = ((3, 0, 0), (2, 0, 1), (3, -2, -1), *before)
    sets = {0: near, 1: (*before, *near), 3: (*old, *near[:3], (0, 0, 3))}
    yield "forecaster", forecaster("golden-forecaster", (9, 11), sets)
    yield (
        "forecaster_narrow",
        forecaster("golden-forecaster-narrow", (3, 2), {0: near[3:4], 3: (*old, *near)}),
    )
    basis = {"id": "golden-basis", "kind": "basis", "licence": "BSD-3-Clause"}
    yield "basis", write_pack(basis, {"w": np.arange(12, dtype=np.int8).reshape(3, 4)})


def networks(name: str, sees: list[list[int]] | None = None) -> bytes:
    """Return a pack with small networks for every slot of learned interpolation, which see so many points."""
    tensors: dict[str, np.ndarray] = {}
    slots = {}
    for slot in range(13):
        inputs = 12 + (sum(sees[slot]) if sees else 37 if 3 <= slot < 6 else 24)
        widths = (inputs, *((6, 2), (2,), (5, 4, 2))[slot % 3 if slot < 12 else 1])

        def centred(*shape: int, times: float, slot: int = slot) -> np.ndarray:
            seed = 2654435761 + 2 * slot + 104729 * 2 * len(tensors)
            return np.rint(times * (uniform(*shape, multiplier=seed) - 0.5)).astype(np.int32)

        layers: list[dict[str, Any]] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            names = {"weight": f"{slot}.w{i}", "bias": f"{slot}.b{i}"}
            layers.append({"type": "linear", **names})
            if i + 2 < len(widths):
                tensors[names["weight"]] = centred(after, before, times=40).astype(np.int8)
                tensors[names["bias"]] = centred(after, times=2048)
                tensors[f"{slot}.s{i}"] = np.full(after, 4, np.uint8)
                layers[-1] |= {
                    "shift": f"{slot}.s{i}",
                    "activation": ("relu", "leaky", "clamp")[i + slot % 2],
                }
                if layers[-1]["activation"] == "leaky":
                    layers[-1]["slope"] = 2
                continue
            # corrections of about a step, most often up or down as the slot is even or odd; classes of all kinds
            last = centred(2, before, times=240) if i else centred(2, before, times=120)
            tensors[names["weight"]] = last.astype(np.int16)
            tensors[names["bias"]] = np.array([(-1) ** slot * 40000, 3000 * (slot % 5 - 2)], np.int32)
        slots[str(slot)] = {"arithmetic": "INT-1", "input": {"channels": inputs}, "layers": layers}
    manifest: dict[str, Any] = {
        "id": name,
        "kind": "interpolation",
        "licence": "BSD-3-Clause",
        "network": {"slots": slots},
    }
    if sees is not None:
        manifest["network"]["sees"] = sees
    return write_pack(manifest, tensors)


def forecaster(name: str, grid: tuple[int, int], sets: dict[int, tuple[tuple[int, int, int], ...]]) -> bytes:
    """Return a pack that predicts means of neighbors, with other weights everywhere; sets of taps by age."""
    tensors: dict[str, np.ndarray] = {}
    for s, taps in enumerate(sets.values()):
        noise = uniform(len(taps), *grid, multiplier=40503) - 0.5
        weights = np.rint(1024 * (1 + noise) / len(taps))
        tensors |= {
            f"taps{s}": np.array(taps, np.int8).reshape(-1, 3),
            f"weights{s}": weights.astype(np.int16),
            f"offset{s}": np.rint(field(*grid) * 4).astype(np.int32),
        }
    tensors["spread"] = np.rint(uniform(*grid) * 64).astype(np.int16)
    network = {"grid": list(grid), "ages": list(sets), "shift": 10, "offset_shift": 4, "spread_shift": 3}
    return write_pack(
        {"id": name, "kind": "forecaster", "licence": "BSD-3-Clause", "network": network}, tensors
    )


def _static() -> Iterator[tuple[str, bytes]]:
    """The static coder: every scale, quiet blocks, escapes, outliers, masked places, tables made anew."""
    yield from _of_coder(Coder.STATIC)
    yield (
        "static_of_the_encoder",
        pipeline.encode(field(24, 70, noise=1), ErrorBound("abs", 0.25), effort="fast"),
    )


def _mixed() -> Iterator[tuple[str, bytes]]:
    """The mixed coder, likewise, and in three dimensions."""
    yield from _of_coder(Coder.MIXED)
    for predictor, name in (
        (Interpolation(coder=Coder.MIXED), "interpolation"),
        (Causal(Coder.MIXED), "causal"),
    ):
        yield f"mixed_3d_{name}", forced(predictor, field(3, 7, 9, noise=0.5)).to_bytes()
    yield (
        "mixed_of_the_encoder",
        pipeline.encode(field(5, 60), ErrorBound("abs", 4.0), effort="max"),
    )


def _of_coder(coder: Coder) -> Iterator[tuple[str, bytes]]:
    prefix = coder.name.lower()
    quiet = np.zeros((3, 20, 70), "f4")
    quiet[1, 5:8, 20:26] = field(3, 6, noise=8)
    quiet[2, ::9, ::13] = 1
    masked = (uniform(3, 20, 70, multiplier=69069) < 0.02).astype(np.uint8)
    for predictor, name in (
        (Interpolation(coder=coder), "interpolation"),
        (Interpolation(1, reference=True, coder=coder), "frames"),
        (Causal(coder), "causal"),
    ):
        yield f"{prefix}_quiet_{name}", forced(predictor, quiet).to_bytes()
        yield f"{prefix}_labels_{name}", forced(predictor, quiet, labels=masked).to_bytes()
        for step in (1.0, 2.0**-4, 2.0**-20):
            data = field(9, 37, noise=4)
            yield f"{prefix}_codes_{name}_{round(-math.log2(step))}", forced(predictor, data, step).to_bytes()
        wild = field(7, 12).astype("f4")
        wild[2, 3], wild[2, 4], wild[6, 11], wild[0, 0] = 1e30, -3e38, 1e12, -1e20
        yield f"{prefix}_outliers_{name}", forced(predictor, wild).to_bytes()


def _locals() -> Iterator[tuple[str, bytes]]:
    """Method 5: all numbers of axes, masked places, narrow and wide lines, residuals of every size."""
    for shape in ((15, 22), (4, 9, 19), (2, 3, 9, 11)):
        axes = f"{len(shape)}d"
        for name in ("float32", "float64"):
            yield f"local_{axes}_{name}", forced(Local(), field(*shape).astype(name)).to_bytes()
        masked = (uniform(*shape, multiplier=69069) < 0.2).astype(np.uint8)
        masked[..., 2:7, 8:] = 1  # a whole block
        masked[(0,) * (len(shape) - 2)] |= np.uint8(shape[0] == 2)
        yield f"local_labels_{axes}", forced(Local(), field(*shape).astype("f4"), labels=masked).to_bytes()
        steep = field(*shape, noise=4096) * np.where(uniform(*shape, multiplier=40503) < 0.02, 64, 1)
        yield (
            f"local_jumps_{axes}",
            forced(Local(), np.ascontiguousarray(steep[..., :8, :]), 2.0**-4).to_bytes(),
        )
        ends = np.where(uniform(*shape, multiplier=69069) < 0.1, -1.0, 1.0) * (2.0**28 - 1)
        yield f"local_ends_{axes}", forced(Local(), ends + 0.5, 1.0).to_bytes()
    for shape in ((2, 2), (40, 2), (2, 40), (2, 2, 2), (2, 2, 2, 2)):
        yield f"local_{'x'.join(map(str, shape))}", forced(Local(), field(*shape)).to_bytes()
    yield "local_long", forced(Local(), field(80, 17, noise=0.5), 1.0).to_bytes()
    integers = forced(Local(), field(9, 10) * 8, 3.0, dtype="int16", transform=Transform.INTEGER)
    yield "local_integer", integers.to_bytes()
    logarithms = forced(Local(), field(9, 10), 2.0**-7, dtype="float32", transform=Transform.LOGARITHM)
    yield "local_logarithm", logarithms.to_bytes()
    k = np.rint(field(4, 9, 13, noise=32) * 8)
    frames = Lattice(1e5, 0.25, 3, (0, 7, 4, 1))
    yield "local_lattice", on_lattice(Local(), k, frames).to_bytes()
    yield "local_lattice_float64", on_lattice(Local(), k, Lattice(273.15, 0.1), 2, "float64").to_bytes()
    ocean = field(24, 30, noise=4)
    ocean[3:9, 2:17] = np.nan
    ocean[20, 9:] = -1e20
    yield "local_of_the_encoder", pipeline.encode(ocean, ErrorBound("abs", 0.25), effort="max")


def _lattices() -> Iterator[tuple[str, bytes]]:
    k = np.rint(field(4, 9, 13, noise=32) * 8)
    for name in ("float32", "float64"):
        tenths = Lattice(273.15, 0.1)
        yield f"lattice_causal_{name}", on_lattice(Causal(), k, tenths, dtype=name).to_bytes()
        yield (
            f"lattice_interpolation_{name}",
            on_lattice(Interpolation(coder=Coder.ADAPTIVE_ZEROS), k, tenths, 2, name).to_bytes(),
        )
    frames = Lattice(1e5, 0.25, 3, (0, 7, 4, 1))
    yield "lattice_frames", on_lattice(Causal(), k, frames).to_bytes()
    yield "lattice_frames_reference", on_lattice(Interpolation(1, reference=True), k, frames, 1).to_bytes()
    yield "lattice_one_frame", on_lattice(Causal(), k[0], Lattice(-1.0, 1 / 3, 16, (54321,)), 3).to_bytes()
    yield "lattice_line", on_lattice(Causal(), k[0, 0], Lattice(0.5, 0.125, 1, (1,))).to_bytes()
    folded = on_lattice(
        Causal(), k[..., None, :].reshape(2, 2, 9, 13), Lattice(0.0, 0.5, 9, (1, 200, 300, 511))
    )
    folded.shape = (1, 2, 1, 2, 9, 13)
    yield "lattice_frames_of_two_axes", folded.to_bytes()
    labels = (uniform(4, 9, 13, multiplier=69069) < 0.25).astype(np.uint8)
    yield "lattice_labels", on_lattice(Causal(), k, frames, labels=labels).to_bytes()
    far = k.copy()
    far[0, 0, 0], far[1, 2, 3], far[2, 3, 4], far[3, 8, 12] = 1e30, -1e30, 2.0**22 + 5, -(2.0**22) - 5
    yield "lattice_beyond", on_lattice(Causal(), far, frames).to_bytes()
    yield "lattice_wide", on_lattice(Causal(), k, Lattice(1e308, 1e308), dtype="float64").to_bytes()
    yield "lattice_between", on_lattice(Causal(), k + 0.3, Lattice(0.0, 1.0), 2).to_bytes()
    grib = (250.6875 + np.rint(field(5, 20, 21) * 512) / 512).astype("f4")
    yield "lattice_of_the_encoder", pipeline.encode(grib, ErrorBound("abs", 0.002))
    grib[1] += 1 / 2048
    grib[3] -= 1 / 1024
    yield "lattice_lossless", pipeline.encode(grib[2:], LOSSLESS)
    whole = np.rint(field(30, 40, noise=1))
    whole[2, 30:], whole[5, 5] = np.nan, -0.0
    yield "lattice_corrected", pipeline.encode(whole, LOSSLESS)


def _exact() -> Iterator[tuple[str, bytes]]:
    for name in (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ):
        yield f"lossless_{name}", exact((field(6, 7) * 4).astype(name), 2).to_bytes()
    for dims in range(4):
        yield f"lossless_over_{dims}_axes", exact((field(2, 3, 4, 5) * 64).astype("i2"), dims).to_bytes()
    bits = np.array([0x7F800001, 0xFFC00002, 0x80000000, 0, 1, 0x7F800000, 0xFF800000], "u4")
    yield "lossless_nan", exact(bits.view("f4"), 1).to_bytes()
    noise = (uniform(148) * 256).astype(np.uint8)
    noise[::2] = 7
    yield "bytes", pipeline.encode(noise.view("f4"), LOSSLESS)
    yield "bytes_zstd", pipeline.encode(np.tile(noise.view("f4"), 9), LOSSLESS)


def _corrected() -> Stream:
    stream = forced(Causal(), field(6, 40).astype("f4"))
    stream.shape = (7, 40)
    stream.sections[Section.CROP] = Writer().varint(6).varint(40).raw(np.float32(2).tobytes()).done()
    stream.sections[Section.CORRECTIONS] = corrections([0, 1, 77, 239, 240, 279], np.arange(6, dtype="f4"))
    return stream


# ---- streams that must fail


def rejected() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, the class of the error, and streams."""
    sound = forced(Causal(), field(5, 6).astype("f4"))
    whole = sound.to_bytes()
    header = sound.from_bytes(whole).overhead - 8
    truncated, corrupt, unsupported = "TruncatedStreamError", "CorruptStreamError", "UnsupportedFormatError"
    for name, n in (("nothing", 0), ("magic_cut", 3), ("header_cut", 20), ("header_alone", header + 4)):
        yield name, truncated, whole[:n]
    yield "payload_cut", truncated, whole[:-5]
    yield "checksum_cut", truncated, whole[:-1]
    yield "magic", corrupt, b"AESX" + whole[4:]
    yield "more_bytes", corrupt, whole + b"\x00"
    yield "header_checksum", corrupt, whole[:header] + bytes([whole[header] ^ 1]) + whole[header + 1 :]
    yield "header_bit", corrupt, whole[:20] + bytes([whole[20] ^ 16]) + whole[21:]
    yield "payload_bit", corrupt, whole[:-10] + bytes([whole[-10] ^ 16]) + whole[-9:]
    yield "major_2", unsupported, resealed(whole, 4, b"\x02")
    yield "major_0", unsupported, resealed(whole, 4, b"\x00")
    fields = {"flags": (6, 4), "dtype": (7, 11), "mode": (8, 4), "method": (9, 5), "transform": (10, 3)}
    table = header - 2 * 3  # two stored sections of less than 128 bytes
    fields |= {"tag": (table + 3, 8), "coding": (table + 1, 2)}
    later = resealed(whole, 5, b"\xff")
    for name, (at, value) in fields.items():
        length = whole[at + 1 : at + 2] if name == "coding" else b""
        yield f"unknown_{name}", corrupt, resealed(whole, at, bytes([value]) + length)
        content = bytes([200]) + length  # no version to come is likely to know it
        yield f"unknown_{name}_of_a_later_minor", unsupported, resealed(later, at, content)
    yield "tag_0", corrupt, resealed(whole, table, b"\x00")
    yield "tags_fall", corrupt, resealed(whole, table, b"\x06")
    yield "ndim_33", corrupt, resealed(whole, 11, b"\x21")
    for name, size in (("varint_of_ten_bytes", b"\x80" * 9 + b"\x01"), ("varint_ends_in_0", b"\x85\x00")):
        start = whole[:12] + size + whole[13:header]
        yield name, corrupt, start + struct.pack("<I", zlib.crc32(start)) + whole[header + 4 :]
    for name, sections in _rejected_sections().items():
        for other, content in sections.items():
            yield f"{name}_{other}", corrupt, _with(sound, Section[name.upper()], content).to_bytes()
    yield from ((name, corrupt, stream) for name, stream in _rejected_streams(sound))


def _with(stream: Stream, section: Section, content: bytes | None) -> Stream:
    """Return a copy with another section, or without it."""
    sections = {**stream.sections, section: content}
    return Stream(
        stream.dtype,
        stream.shape,
        stream.mode,
        stream.bound,
        stream.tolerance,
        stream.method,
        stream.transform,
        sections={tag: data for tag, data in sections.items() if data is not None},
    )


def _rejected_sections() -> dict[str, dict[str, bytes | None]]:
    """Return sections that make a causal stream of float32, shape (5, 6), fail."""
    zero, nan = bytes(4), float("nan")
    return {
        "crop": {
            "cut": b"\x05\x06\x00",
            "left_over": b"\x05\x06" + zero + b"\x00",
            "beyond_the_array": b"\x05\x07" + zero,
            "empty_region": b"\x05\x00" + zero,
        },
        "labels": {
            "none": b"\x00",
            "sixteen": b"\x10" + 16 * zero,
            "cut": b"\x02" + zero,
            "above_the_last": b"\x01" + zero + _core.encode_labels(np.full((5, 6), 2, np.uint8)),
            "end_too_early": b"\x0f" + 15 * zero + b"\xff",
        },
        "plan": {
            "missing": None,
            "cut": struct.pack("<dd", 0.25, 0.5),
            "left_over": struct.pack("<ddBB", 0.25, 0.5, 1, 0),
            "coder_4": struct.pack("<ddB", 0.25, 0.5, 4),
            "step_0": struct.pack("<ddB", 0.0, 0.5, 1),
            "step_negative": struct.pack("<ddB", -0.25, 0.5, 1),
            "step_nan": struct.pack("<ddB", nan, 0.5, 1),
            "step_infinite": struct.pack("<ddB", float("inf"), 0.5, 1),
            "offset_nan": struct.pack("<ddB", 0.25, nan, 1),
        },
        "codes": {"weight_too_large": bytes(80)},
        "outliers": {"too_many": zero, "not_whole": b"\x00"},
        "corrections": {
            "nothing": b"",
            "beyond_the_array": corrections([30], np.zeros(1, "f4")),
            "cut": corrections([1, 2], np.zeros(1, "f4")),
            "left_over": corrections([1], np.zeros(2, "f4")),
            "count": Writer().varint(2**62).done(),
        },
    }


def _rejected_streams(sound: Stream) -> Iterator[tuple[str, bytes]]:
    frames = forced(Interpolation(), field(5, 6).astype("f4"))
    for name, plan in {
        "frame_axes": (2, 0, 16, 16),
        "coder_4": (0, 16, 16, 16),
        "alpha": (0, 0, 15, 16),
        "beta": (0, 0, 16, 15),
    }.items():
        content = struct.pack("<ddBBBB", 0.25, 0.5, *plan)
        yield f"interpolation_{name}", _with(frames, Section.PLAN, content).to_bytes()
    frames.sections[Section.CODES], frames.sections[Section.OUTLIERS] = bytes(80), bytes(4)
    yield "interpolation_weight_too_large", frames.to_bytes()

    wild = field(5, 6).astype("f4")
    wild[2, 2] = wild[3, 3] = 1e30
    outlying = forced(Causal(), wild)
    yield (
        "outliers_too_few",
        _with(outlying, Section.OUTLIERS, outlying.sections[Section.OUTLIERS][4:]).to_bytes(),
    )

    yield "codes_end_too_early", _read_beyond_the_end()

    words = exact(field(5, 6).astype("f4"), 2)
    yield "lossless_axes", _with(words, Section.PLAN, b"\x03").to_bytes()
    yield "lossless_four_axes", _with(exact(field(2, 2, 2, 2), 3), Section.PLAN, b"\x04").to_bytes()
    yield "lossless_length", _with(words, Section.CODES, bytes(80)).to_bytes()
    raw = Stream(np.dtype("f4"), (4,), "lossless", 0, 0, Method.BYTES, sections={Section.CODES: bytes(15)})
    yield "bytes_too_few", raw.to_bytes()

    for dtype, transform in (
        ("int16", Transform.NONE),
        ("float16", Transform.NONE),
        ("float32", Transform.INTEGER),
        ("int16", Transform.LOGARITHM),
        ("float16", Transform.LATTICE),
        ("int16", Transform.LATTICE),
    ):
        other = _with(sound, Section.PLAN, sound.sections[Section.PLAN])
        other.dtype, other.transform = np.dtype(dtype), transform
        yield f"transform_{transform.name.lower()}_of_{dtype}", other.to_bytes()

    k = np.rint(field(3, 5, 6) * 8)
    points = on_lattice(Causal(), k, Lattice(0.0, 0.5))
    for name, section in {
        "missing": None,
        "cut": struct.pack("<dd", 0.0, 0.5),
        "left_over": struct.pack("<ddBB", 0.0, 0.5, 0, 0),
        "origin_nan": struct.pack("<ddB", float("nan"), 0.5, 0),
        "origin_infinite": struct.pack("<ddB", float("inf"), 0.5, 0),
        "unit_0": struct.pack("<ddB", 0.0, 0.0, 0),
        "unit_negative": struct.pack("<ddB", 0.0, -0.5, 0),
        "unit_nan": struct.pack("<ddB", 0.0, float("nan"), 0),
        "unit_infinite": struct.pack("<ddB", 0.0, float("inf"), 0),
        "bits_17": struct.pack("<ddB3B", 0.0, 0.5, 17, 0, 0, 0),
        "shifts_missing": struct.pack("<ddB", 0.0, 0.5, 2),
        "shifts_too_few": struct.pack("<ddB2B", 0.0, 0.5, 2, 1, 1),
        "shifts_too_many": struct.pack("<ddB4B", 0.0, 0.5, 2, 1, 1, 1, 1),
        "shift_too_large": struct.pack("<ddB3B", 0.0, 0.5, 2, 1, 4, 1),
    }.items():
        yield f"lattice_{name}", _with(points, Section.LATTICE, section).to_bytes()
    static = forced(Causal(Coder.STATIC), field(5, 6))
    coded = static.sections[Section.CODES]
    for name, content in {
        "missing": b"",
        "cut": coded[:-1],
        "left_over": coded + b"\x00",
        "too_many_words": b"\x7f" + coded[1:],
        "small_state": coded[:2] + bytes(2) + coded[4:],
        "other_state": coded[:4] + bytes([coded[4] ^ 1]) + coded[5:],
    }.items():
        damaged = _with(static, Section.CODES, content)
        yield f"static_{name}", damaged.to_bytes()
    yield "static_in_1_0", resealed(static.to_bytes(), 5, b"\x00")
    marked = points.to_bytes()
    yield "lattice_in_1_0", resealed(marked, 5, b"\x00")
    yield "unknown_transform_of_1_1", resealed(marked, 10, b"\x04")
    yield "unknown_method_of_1_1", resealed(marked, 9, b"\x06")
    yield from _rejected_locals()
    other_minor = resealed(marked, 5, b"\x01")
    at = (
        Stream.from_bytes(other_minor, payloads=False).overhead - 8 - 3 * 3
    )  # the first of three short entries
    yield "unknown_section_tag_of_1_1", resealed(other_minor, at + 6, bytes([Section.MODEL]))

    constant = Stream(np.dtype("f4"), (5,), "abs", 0.25, 0, Method.CONSTANT)
    yield "constant_with_values", constant.to_bytes()
    for name, shape in (("shape_too_large", (2**61, 2)), ("codes_too_few", (2**40,))):
        other = _with(sound, Section.PLAN, sound.sections[Section.PLAN])
        other.shape = shape
        yield name, other.to_bytes()

    frame = zstandard.compress(bytes(100))
    for name, shape, content, size in (
        ("zstd_garbage", (25,), b"\x00" * 9, 100),
        ("zstd_cut", (25,), frame[:-3], 100),
        ("zstd_too_short", (25,), frame, 101),
        ("zstd_too_long", (25,), frame, 99),
        ("zstd_too_large", (25,), frame, 2**17),
        ("zstd_without_values", (0,), frame, 100),
    ):
        method = Method.BYTES if shape[0] else Method.CONSTANT
        bare = Stream(np.dtype("f4"), shape, "lossless", 0, 0, method).to_bytes()[:-8]
        table = Writer().pack("BBB", 1, Section.CODES, 1).varint(len(content)).varint(size).done()
        header = bare[:-1] + table
        body = struct.pack("<I", zlib.crc32(header)) + content + struct.pack("<I", zlib.crc32(content))
        yield name, header + body


def rejected_models() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, the class of the error, and streams that cannot have the model that they name."""
    corrupt, model = "CorruptStreamError", golden_model()
    learned = forced(Interpolation(model=model), field(15, 18, noise=2).astype("f4"))
    digest = learned.sections[Section.MODEL]
    for name, section in {
        "missing": None,
        "empty": b"",
        "cut": digest[:-1],
        "left_over": digest + b"\x00",
    }.items():
        yield f"model_{name}", corrupt, _with(learned, Section.MODEL, section).to_bytes()
    for minor in (0, 1):
        yield f"model_in_1_{minor}", corrupt, resealed(learned.to_bytes(), 5, bytes([minor]))
    step, offset, batch, flags, alpha, beta = struct.unpack("<ddBBBB", learned.sections[Section.PLAN])
    for name, other in (
        ("reversed", flags | 2),
        ("with_coder_1", flags | Coder.ADAPTIVE_ZEROS << 2),
        ("of_flag_5", flags | 32),
    ):
        plan = struct.pack("<ddBBBB", step, offset, batch, other, alpha, beta)
        yield f"model_{name}", corrupt, _with(learned, Section.PLAN, plan).to_bytes()
    plan = struct.pack("<ddBBBB", step, offset, batch, flags | Coder.STATIC << 2, alpha, beta)
    in_1_5 = _with(learned, Section.PLAN, plan).to_bytes()
    yield "model_with_coder_2", corrupt, resealed(in_1_5, 5, bytes([2]))
    unknown = _with(learned, Section.MODEL, bytes(range(32)))
    yield "model_nowhere", "ModelNotFoundError", unknown.to_bytes()
    basis = Pack.from_file(MODELS / "basis.aeszpack")
    of_another_kind = _with(learned, Section.MODEL, bytes.fromhex(basis.digest))
    yield "model_of_another_kind", "ModelKindError", of_another_kind.to_bytes()


def rejected_sides() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, the class of the error, and streams whose side prediction is none."""
    corrupt = "CorruptStreamError"
    stream = sided(Causal(), field(4, 9, 11).astype("f4"), latent_numbers(4, 3))
    section = stream.sections[Section.SIDE]
    digest, unit, latents = section[:32], section[32:40], section[40:]

    def inner(array: np.ndarray, mode: str = "abs", value: float | None = 0.25) -> bytes:
        return digest + unit + pipeline.encode(array, ErrorBound(mode, value))

    for name, other in {
        "missing": None,
        "cut": section[:39],
        "unit_0": digest + struct.pack("<d", 0.0) + latents,
        "unit_negative": digest + struct.pack("<d", -1.0) + latents,
        "unit_nan": digest + struct.pack("<d", float("nan")) + latents,
        "latents_too_many": inner(latent_numbers(4, 6)),
        "latents_of_another_region": inner(latent_numbers(5, 3)),
        "latents_none": inner(np.empty((4, 0), np.int32)),
        "latents_of_one_axis": inner(latent_numbers(4, 3).reshape(-1)),
        "latents_float": inner(latent_numbers(4, 3).astype("f4")),
        "latents_int64": inner(latent_numbers(4, 3).astype("i8")),
        "latents_left_over": section + b"\0",
    }.items():
        yield f"side_{name}", corrupt, _with(stream, Section.SIDE, other).to_bytes()
    yield "side_latents_cut", "TruncatedStreamError", _with(stream, Section.SIDE, section[:-1]).to_bytes()
    for minor in (0, 1, 2):
        yield f"side_in_1_{minor}", corrupt, resealed(stream.to_bytes(), 5, bytes([minor]))
    other = _with(stream, Section.SIDE, bytes(range(32)) + unit + latents)
    yield "side_nowhere", "ModelNotFoundError", other.to_bytes()
    other = _with(stream, Section.SIDE, bytes.fromhex(golden_model().digest) + unit + latents)
    yield "side_of_another_kind", "ModelKindError", other.to_bytes()
    unsound = Pack.from_file(MODELS / "basis.aeszpack")
    other = _with(stream, Section.SIDE, bytes.fromhex(unsound.digest) + unit + latents)
    yield "side_unsound", "InvalidModelError", other.to_bytes()
    other = _with(stream, Section.SIDE, section)
    other.shape = (4, 99)
    yield "side_of_another_grid", corrupt, other.to_bytes()
    integers = forced(Causal(), field(4, 9, 11), dtype="int16", transform=Transform.SIDE)
    integers.sections[Section.SIDE] = section
    yield "side_of_integers", corrupt, integers.to_bytes()


def rejected_cycles() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, the class of the error, and streams whose cycle is none."""
    corrupt = "CorruptStreamError"
    stream = cycled(Interpolation(), field(4, 9, 11).astype("f4"), 9, 1)
    section = stream.sections[Section.SIDE]
    digest, unit = section[:32], section[32:40]
    basis = bytes.fromhex(Pack.from_file(MODELS / "basis_2d.aeszpack").digest)
    for name, other in {
        "cut": section[:-1],
        "left_over": section + b"\0",
        "beyond_the_year": digest + unit + bytes((12, 1)),
        "step_of_a_year": digest + unit + bytes((0, 12)),
        "huge": digest + unit + Writer().varint(1 << 40).varint(1).done(),
        "of_a_basis": basis + section[32:],
        "unit_minus_0": digest + struct.pack("<d", -0.0) + section[40:],
        "with_unit": digest + struct.pack("<d", 1.0) + section[40:],
        "with_latents": digest
        + struct.pack("<d", 1.0)
        + pipeline.encode(np.array([[9, 1]], np.int32), ErrorBound("abs", 0.25)),
    }.items():
        yield f"cycle_{name}", corrupt, _with(stream, Section.SIDE, other).to_bytes()
    yield "cycle_in_1_3", corrupt, resealed(stream.to_bytes(), 5, bytes([3]))
    other = _with(stream, Section.SIDE, section)
    other.shape = (4, 99)
    yield "cycle_of_another_grid", corrupt, other.to_bytes()


def rejected_forecasters() -> Iterator[tuple[str, str, bytes]]:
    """Yield the same for method 2."""
    corrupt = "CorruptStreamError"
    model = Pack.from_file(MODELS / "forecaster.aeszpack")
    sound = forced(Causal(model=model), field(4, 9, 11, noise=2).astype("f4"))
    yield "forecast_missing", corrupt, _with(sound, Section.MODEL, None).to_bytes()
    for minor in range(4):
        yield f"forecast_in_1_{minor}", corrupt, resealed(sound.to_bytes(), 5, bytes([minor]))
    step, offset, coder = struct.unpack("<ddB", sound.sections[Section.PLAN])
    for other in (coder | Coder.ADAPTIVE_ZEROS, coder | 4, coder | 32):
        plan = struct.pack("<ddB", step, offset, other)
        yield f"forecast_coder_{other}", corrupt, _with(sound, Section.PLAN, plan).to_bytes()
    for name, shape in (("lines", (4, 11, 9)), ("axes", (2, 2, 9, 11)), ("one_axis", (4 * 9 * 11,))):
        other_shape = _with(sound, Section.PLAN, sound.sections[Section.PLAN])
        other_shape.shape = shape
        yield f"forecast_other_{name}", corrupt, other_shape.to_bytes()
    transformed = _with(sound, Section.PLAN, sound.sections[Section.PLAN])
    transformed.transform = Transform.LOGARITHM
    yield "forecast_of_logarithms", corrupt, transformed.to_bytes()
    interpolation = bytes.fromhex(golden_model().digest)
    yield "forecast_by_interpolation", "ModelKindError", _with(sound, Section.MODEL, interpolation).to_bytes()
    cut = _with(sound, Section.CODES, sound.sections[Section.CODES][:-20])
    yield "forecast_codes_end_too_early", corrupt, cut.to_bytes()


def rejected_frames() -> Iterator[tuple[str, str, bytes]]:
    """Yield the same for method 6."""
    corrupt = "CorruptStreamError"
    frames = drifting(7, 10, 11).astype("f4")
    sound = forced(Frames(1, 2, LeastSquares()), frames)
    for minor in range(5):
        yield f"frames_in_1_{minor}", corrupt, resealed(sound.to_bytes(), 5, bytes([minor]))
    step, offset, batch, flags, exponent, tag = struct.unpack("<ddBBBB", sound.sections[Section.PLAN])
    for name, plan in {
        "no_frame_axis": (step, offset, 0, flags, exponent, tag),
        "one_axis_a_frame": (step, offset, 2, flags, exponent, tag),
        "flags": (step, offset, batch, flags | 1, exponent, tag),
        "flags_32": (step, offset, batch, flags | 32, exponent, tag),
        "model_and_coder_1": (step, offset, batch, flags | 20, exponent, tag),
        "distance": (step, offset, batch, flags, 7, tag),
        "forecaster": (step, offset, batch, flags, exponent, 255),
        "step": (0.0, offset, batch, flags, exponent, tag),
    }.items():
        yield (
            f"frames_plan_{name}",
            corrupt,
            _with(sound, Section.PLAN, struct.pack("<ddBBBB", *plan)).to_bytes(),
        )
    external = struct.pack("<ddBBBB", step, offset, batch, flags, exponent, 254)
    name = b"nowhere-to-be-found:forecaster"
    named = external + bytes([len(name)]) + name
    yield "frames_external_missing", "ModelNotFoundError", _with(sound, Section.PLAN, named).to_bytes()
    for kind, plan in {
        "unnamed": external,
        "cut": named[:-1],
        "left_over": named + b"\0",
        "empty": external + b"\0",
        "one_part": external + b"\x07forecas",
        "no_text": external + b"\3\xff:a",
        "capitals": external + b"\3A:b",
        "too_long": external + bytes([101]) + b"a:" + b"b" * 99,
    }.items():
        yield f"frames_external_{kind}", corrupt, _with(sound, Section.PLAN, plan).to_bytes()
    short = _with(sound, Section.PLAN, sound.sections[Section.PLAN])
    short.shape = (11, 10, 7)
    yield "frames_too_short_lines", corrupt, short.to_bytes()
    codes = sound.sections[Section.CODES]
    size, fitted, rest = codes[0], codes[1 : 1 + codes[0]], codes[1 + codes[0] :]

    def with_fitted(data: bytes, stream: Stream = sound, after: bytes = rest) -> bytes:
        return _with(stream, Section.CODES, Writer().varint(len(data)).raw(data).raw(after).done()).to_bytes()

    yield "frames_no_codes", corrupt, _with(sound, Section.CODES, b"").to_bytes()
    yield "frames_forecaster_cut", corrupt, with_fitted(fitted[:-1])
    yield "frames_forecaster_left_over", corrupt, with_fitted(fitted + b"\0")
    yield (
        "frames_forecaster_too_long",
        corrupt,
        _with(sound, Section.CODES, bytes([127]) + codes[1:size]).to_bytes(),
    )
    five = b"\x80\x01" + bytes(4)  # 64 and four zeros
    yield "frames_weights_twice", corrupt, with_fitted(b"\2\0\1" + five + b"\0\1" + five)
    yield "frames_weights_sum", corrupt, with_fitted(b"\1\0\1" + bytes([2, 0, 0, 0, 0]))
    yield (
        "frames_weights_too_large",
        corrupt,
        with_fitted(b"\1\0\1" + Writer().varint(8194).done() + bytes(4)),
    )
    yield "frames_weights_distance", corrupt, with_fitted(b"\1\7\1" + five)
    yield "frames_weights_sources", corrupt, with_fitted(b"\1\0\3" + five * 3)
    yield "frames_codes_end_too_early", corrupt, with_fitted(fitted, after=rest[:-20])
    moved = forced(Frames(1, 1, Motion()), drifting(3, 19, 34).astype("f4"))
    codes = moved.sections[Section.CODES]
    after = codes[1 + codes[0] :]
    zstd = zstandard.ZstdCompressor(write_content_size=False)
    table = Writer().varint(1).varint(1).varint(0).varint(12).done()
    for name, data in {
        "none": b"\1",
        "too_few": table + zstd.compress(bytes(11)),
        "too_many": table + zstd.compress(bytes(13)),
        "other_blocks": Writer().varint(1).varint(1).varint(0).varint(10).done() + zstd.compress(bytes(10)),
        "no_zstd": table + bytes(12),
        "twice": Writer().varint(2).done() + 2 * table[1:] + zstd.compress(bytes(24)),
        "huge": Writer().varint(1).varint(1).varint(0).varint(1 << 40).done() + zstd.compress(bytes(12)),
    }.items():
        yield f"frames_vectors_{name}", corrupt, with_fitted(data, moved, after)
    forecaster = bytes.fromhex(Pack.from_file(MODELS / "forecaster.aeszpack").digest)
    learned = forced(Frames(1, 1, LeastSquares(), model=golden_model()), frames)
    yield "frames_by_forecaster", "ModelKindError", _with(learned, Section.MODEL, forecaster).to_bytes()


def rejected_learned_static() -> Iterator[tuple[str, str, bytes]]:
    """Yield the same for networks with the static coder."""
    corrupt = "CorruptStreamError"
    learned = Interpolation(1, reference=True, coder=Coder.STATIC, model=golden_model())
    sound = forced(learned, field(3, 15, 18, noise=8).astype("f4"))
    for minor in range(5):
        yield f"learned_static_in_1_{minor}", corrupt, resealed(sound.to_bytes(), 5, bytes([minor]))
    codes = sound.sections[Section.CODES]
    for name, other in (("cut", codes[:-1]), ("left_over", codes + b"\0"), ("empty", b"")):
        yield f"learned_static_codes_{name}", corrupt, _with(sound, Section.CODES, other).to_bytes()
    damaged = bytearray(codes)
    damaged[len(codes) // 3] ^= 64
    yield "learned_static_codes_damaged", corrupt, _with(sound, Section.CODES, bytes(damaged)).to_bytes()


def _rejected_locals() -> Iterator[tuple[str, bytes]]:
    local = forced(Local(), field(9, 10).astype("f4"))
    for name, plan in {
        "plan_missing": None,
        "plan_cut": struct.pack("<dd", 0.25, 0.5)[:-1],
        "plan_left_over": struct.pack("<ddB", 0.25, 0.5, 0),
        "step_0": struct.pack("<dd", 0.0, 0.5),
        "step_negative": struct.pack("<dd", -0.25, 0.5),
        "step_nan": struct.pack("<dd", float("nan"), 0.5),
        "step_infinite": struct.pack("<dd", float("inf"), 0.5),
        "offset_nan": struct.pack("<dd", 0.25, float("nan")),
    }.items():
        yield f"local_{name}", _with(local, Section.PLAN, plan).to_bytes()
    yield "local_in_1_0", resealed(local.to_bytes(), 5, b"\x00")
    for name, shape in (
        ("one_axis", (90,)),
        ("one_long_axis", (1, 90, 1)),
        ("too_few_codes", (2**31, 2**10)),
        ("too_many_columns", (2, 2**16 * (len(local.sections[Section.CODES]) + 1) + 1)),
    ):
        other = _with(local, Section.PLAN, local.sections[Section.PLAN])
        other.shape = shape
        yield f"local_{name}", other.to_bytes()
    noisy = forced(Local(), field(9, 10, noise=64).astype("f4"), 2.0**-6)
    cut = noisy.sections[Section.CODES][:50]
    yield "local_codes_end_too_early", _with(noisy, Section.CODES, cut).to_bytes()


def _read_beyond_the_end() -> bytes:
    """Return a stream whose codes are cut; the zeros behind them mean outliers, of which there are as many."""
    noisy = forced(Causal(), field(20, 20, noise=64), 2.0**-10)
    noisy.sections[Section.CODES] = noisy.sections[Section.CODES][:100]
    for n in range(400):
        noisy.sections[Section.OUTLIERS] = bytes(8 * n)
        try:
            pipeline.decode(noisy.to_bytes())
        except CorruptStreamError as error:
            if "end too early" in str(error):
                return noisy.to_bytes()
    raise SystemExit("no number of outliers fits")


# ---- files


def reference_decoder() -> ModuleType:
    """Load tests/reference.py."""
    spec = importlib.util.spec_from_file_location("reference", HERE.parent / "reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's little-endian bytes in C order."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def find_model(digest: str) -> Pack:
    """Look among the golden packs."""
    for path in MODELS.glob("*.aeszpack"):
        if (pack := Pack.from_file(path)).digest == digest:
            return pack
    raise ModelNotFoundError(digest)


def expectation(stream: bytes, reference: ModuleType) -> dict[str, Any]:
    """Return what a stream decodes to, by both decoders."""
    find_forecaster = foundation_models.MODELS.__getitem__
    decoded = pipeline.decode(stream, find_model=find_model, find_forecaster=find_forecaster)
    expected = reference.decode(stream, find_model, find_forecaster)
    if (decoded.dtype, decoded.shape, digest(decoded)) != (expected.dtype, expected.shape, digest(expected)):
        raise SystemExit("the two decoders differ")
    return {"dtype": decoded.dtype.name, "shape": list(decoded.shape), "sha256": digest(decoded)}


def write(folder: Path, streams: dict[str, bytes], force: bool, expected: Callable[[bytes], Any]) -> None:
    """Write streams, and the index of what is `expected` of them; without `force` what is there stays."""
    folder.mkdir(exist_ok=True)
    path = folder / "index.json"
    index = json.loads(path.read_text()) if path.exists() and not force else {}
    if force:
        for stale in folder.glob("*.aesz"):
            stale.unlink()
    new = [name for name in streams if name not in index]
    for name in new:
        stream = streams[name]
        index[name] = expected(stream)
        if len(stream) > LARGEST:
            raise SystemExit(f"{name}: {len(stream)} bytes, more than {LARGEST}")
        (folder / f"{name}.aesz").write_bytes(stream)
    path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    print(f"{folder.name}: {len(new)} written, {len(streams) - len(new)} left as they were")


def write_models(force: bool) -> None:
    """Write the packs; without `force` what is there stays."""
    MODELS.mkdir(exist_ok=True)
    for name, data in models():
        path = MODELS / f"{name}.aeszpack"
        if force or not path.exists():
            path.write_bytes(data)


def main() -> None:
    """Write what is missing, or everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--force", nargs="*", metavar="FOLDER", help="write folders (all) anew: only before a release"
    )
    given = parser.parse_args().force
    versions = {
        "1.0": accepted,
        "1.1": accepted_1_1,
        "1.2": accepted_1_2,
        "1.3": accepted_1_3,
        "1.4": accepted_1_4,
        "1.5": lambda: itertools.chain(accepted_1_5(), accepted_modelled()),
    }
    folders = ("models", *versions, "reject")
    forced_folders = () if given is None else given or folders
    if set(forced_folders) - set(folders):
        parser.error(f"folders are {', '.join(folders)}")
    reference = reference_decoder()
    write_models("models" in forced_folders)
    for version, streams in versions.items():
        expected = functools.partial(expectation, reference=reference)
        write(HERE / version, dict(streams()), version in forced_folders, expected)
    bad = {
        name: (error, stream)
        for name, error, stream in (
            *rejected(),
            *rejected_models(),
            *rejected_sides(),
            *rejected_cycles(),
            *rejected_forecasters(),
            *rejected_learned_static(),
            *rejected_frames(),
            *rejected_modelled(),
        )
    }
    error_of = {stream: error for error, stream in bad.values()}
    write(
        HERE / "reject",
        {name: stream for name, (_, stream) in bad.items()},
        "reject" in forced_folders,
        error_of.__getitem__,
    )


if __name__ == "__main__":
    main()
