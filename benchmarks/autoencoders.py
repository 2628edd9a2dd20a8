"""AE-SZ's comparison (Liu et al. 2021), judged by bytes: blocks predicted by an autoencoder, Lorenzo or interpolation.

Run as ``python -m benchmarks.autoencoders`` (suite of AESZ_DATA); writes tables (``table.md``, ``*.csv``) and ``shares.png``.
Models are trained here, on TRAIN fields alone, each in minutes on one core, and kept in ``--models``.

::

    x = values / step -> blocks of the autoencoder   P + rint(x - P)       P from the side information alone
                      -> blocks of Lorenzo           q = rint(x)           from neighbours rounded to the lattice
                      -> blocks of interpolation     I + rint(x - I)       level by level, from all decoded points

A mixture is decoded in this order, so every prediction is made of decoded values: all three in one array, block by block.
Lorenzo's decoded values lie on the lattice of steps, where it makes no difference whether its sums are taken before or
after quantization; next to a block of the autoencoder it takes that block's decoded values, rounded; where a neighbour is
not decoded yet (beyond the array, NaN, a block of interpolation) it falls back to fewer axes.  The residual integers of every
rule are coded by the same coder, the weight coder of packs (``docs/packs.md``, section 5: adaptive contexts of neighbouring
magnitudes and signs, no prediction), in the order of the field or of the levels, whichever is smaller.  The side information of
blocks (`aesz_codec.autoencoder.Description`), which predictor each block has, and places of NaN count; models do not.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aesz_codec import _core, pipeline
from aesz_codec.autoencoder import FRACTION, Autoencoder, joined, tiled
from aesz_codec.bounds import ErrorBound
from aesz_codec.packs import Pack
from benchmarks import fields, report
from benchmarks.peers import lattice

BOUNDS = (1e-1, 1e-2, 1e-3, 1e-4)
COARSENESS = (1, 3, 5, 7)  # of latents: tried on the first pieces
AE, LORENZO, INTERPOLATION = 0, 1, 2
_NAMES = ("AE", "Lorenzo", "interpolation")
_HEADER = 8  # bytes of a mixture besides all that is coded: number, order and length of its parts


@dataclass(frozen=True)
class Subject:
    """A DEV field, the TRAIN fields that its model is trained on, and how both are cut."""

    name: str
    train: tuple[str, ...]
    block: tuple[int, ...]
    latents: int
    frames: int  # of a piece; pieces of one frame have two axes
    pieces: int  # evenly spread over the field

    @property
    def model(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.block))}"


SUBJECTS = (
    Subject("cesm_TS_dev", ("cesm_TS_train",), (32, 32), 16, 1, 10),
    Subject("cesm_PRECT_dev", ("cesm_PRECT_train",), (32, 32), 16, 1, 6),
    Subject("pop_SST_dev", ("pop_SSH_train", "cesm_TS_train"), (32, 32), 16, 1, 5),
    Subject(
        "era5_weurope_t2m_1988_1989",
        ("era5_weurope_t2m_1980_1982", "era5_weurope_t2m_1983_1985"),
        (8, 8, 8),
        8,
        128,
        8,
    ),
    Subject(
        "era5_weurope_msl_1988_1989",
        ("era5_weurope_msl_1980_1982", "era5_weurope_msl_1983_1985"),
        (8, 8, 8),
        8,
        128,
        8,
    ),
)


@dataclass(frozen=True)
class Row:
    """One field at one bound: shares of blocks won, and bytes."""

    field: str
    bound: str
    tolerance: float
    values: int
    blocks: int
    coarseness: int
    l1_ae: float
    l1_lorenzo: float
    l1_interpolation: float
    aesz_ae: float  # won from Lorenzo by L1: the paper's number
    bytes_ae: float
    bytes_lorenzo: float
    bytes_interpolation: float
    ae: int
    ae_side: int  # of them
    lorenzo: int
    interpolation: int
    aesz_rule: int
    our_rule: int
    our_rule_chose: str
    residual_by_codec: int  # of the autoencoder's prediction, with the side information
    codec: int
    sz3: int
    best_sz3: int
    zfp: int
    violations: int


# ---- one piece ---------------------------------------------------------------------------------------------------


class Piece:
    """One array at one step: predictions, and mixtures of them.

    Attributes
    ----------
    x : float64
        Values in steps; what is missing is 0.
    valid : bool
        Where there are values.
    description : Description
        Of all blocks, for the autoencoder.
    """

    def __init__(self, values: np.ndarray, tolerance: float, model: Autoencoder, coarseness: int) -> None:
        self.values, self.tolerance, self.model = values, tolerance, model
        self.valid = np.isfinite(values)
        largest = float(np.abs(values[self.valid]).max(initial=0))
        self.step = 2 * tolerance - float(np.spacing(np.float32(largest)))  # room for rounding to float32
        if not self.step > 0:
            raise fields.BadArgument(f"bound {tolerance:g}: below the spacing of the values")
        self.x = np.where(self.valid, np.nan_to_num(values).astype(np.float64) / self.step, 0.0)
        self.grid = model.blocks(values.shape)
        self.description = model.describe(_filled(self.x, self.valid, model.block), 1.0, coarseness)
        self.predicted = model.predict(self.description, values.shape) / 2.0**FRACTION
        self.base = float(np.rint(self.x[self.valid].mean())) if self.valid.any() else 0.0

    def mixture(self, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code with one predictor a block, shape `grid`: residual integers, predictions, decoded values, in steps."""
        block = self.model.block
        wide = np.broadcast_to(choice.reshape(*self.grid, *(1,) * len(block)), (*self.grid, *block))
        method = joined(wide, self.x.shape)
        prediction = self.predicted.copy()
        decoded = prediction + np.where(self.valid, np.rint(self.x - prediction), 0)
        on_lattice = np.where(method == AE, np.rint(decoded), np.rint(self.x))
        if (method == LORENZO).any():
            there = self.valid & (method != INTERPOLATION)
            mine = method == LORENZO
            guess = lorenzo(on_lattice, there, self.base)
            prediction[mine], decoded[mine] = guess[mine], np.rint(self.x)[mine]
            decoded[mine & ~self.valid] = guess[mine & ~self.valid]
        if (method == INTERPOLATION).any():
            interpolate(self.x, self.valid, method == INTERPOLATION, prediction, decoded, self.base)
        residual = np.where(method == LORENZO, np.rint(self.x) - prediction, np.rint(self.x - prediction))
        codes = np.where(self.valid, residual, 0).astype(np.int32)
        return codes, prediction, decoded

    def uniform(self, method: int) -> np.ndarray:
        return np.full(self.grid, method)

    def coded(self, choice: np.ndarray, codes: np.ndarray) -> int:
        """Return the bytes of a mixture, all but the places of NaN."""
        size = _HEADER + min(len(_coded(codes)), len(_coded(by_level(codes))))
        mine = (choice == AE).ravel()
        if mine.any():
            size += len(self.description.subset(mine).to_bytes())
        if (choice != choice.flat[0]).any():
            size += len(_coded(choice))
        return size

    def violations(self, decoded: np.ndarray) -> int:
        """Count values out of the bound, in float32."""
        out = (decoded * self.step).astype(np.float32).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return int((~(np.abs(out - self.values) <= self.tolerance) & self.valid).sum())


def _filled(x: np.ndarray, valid: np.ndarray, block: tuple[int, ...]) -> np.ndarray:
    """Give missing values the mean of those of their block, or of the last block that has any."""
    if valid.all():
        return x
    blocks, there = tiled(x, block), tiled(valid, block)
    axes = tuple(range(blocks.ndim - len(block), blocks.ndim))
    count = there.sum(axes)
    means = ((blocks * there).sum(axes) / np.maximum(count, 1)).ravel()
    last = np.maximum.accumulate(np.where(count.ravel() > 0, np.arange(count.size), -1))
    last[last < 0] = np.argmax(count.ravel() > 0)
    means = means[last].reshape(*count.shape, *(1,) * len(block))
    return np.where(valid, x, joined(np.broadcast_to(means, blocks.shape), x.shape))


def lorenzo(lattice_values: np.ndarray, there: np.ndarray, base: float) -> np.ndarray:
    """Predict every point from its neighbours before it, along as many axes as are there."""
    axes = range(lattice_values.ndim)
    behind: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    for count in axes:
        for offsets in itertools.combinations(axes, count + 1):
            value, known = lattice_values, there
            for axis in offsets:
                value, known = _behind(value, axis), _behind(known, axis)
            behind[offsets] = value, known
    guess = np.full(lattice_values.shape, base)
    open_ = np.ones(lattice_values.shape, bool)
    for count in range(lattice_values.ndim, 0, -1):
        for chosen in itertools.combinations(axes, count):
            terms = [t for n in range(1, count + 1) for t in itertools.combinations(chosen, n)]
            known = open_ & np.logical_and.reduce([behind[t][1] for t in terms])
            total = sum((1 if len(t) % 2 else -1) * behind[t][0] for t in terms)
            guess[known] = np.asarray(total)[known]
            open_ &= ~known
    return guess


def _behind(array: np.ndarray, axis: int) -> np.ndarray:
    out = np.zeros_like(array)
    first: list[slice] = [slice(None)] * array.ndim
    last = list(first)
    first[axis], last[axis] = slice(1, None), slice(None, -1)
    out[tuple(first)] = array[tuple(last)]
    return out


def interpolate(
    x: np.ndarray | None,
    valid: np.ndarray,
    mine: np.ndarray,
    prediction: np.ndarray,
    decoded: np.ndarray,
    base: float,
    codes: np.ndarray | None = None,
) -> None:
    """Predict and decode, in place, the points `mine`, from coarse to fine; `x` to encode, `codes` to decode.

    Along each axis in turn, new points in the middle of old ones: cubic, linear where there are not enough, the nearest
    point at the end.
    """

    def fill(where: tuple[slice, ...], guess: np.ndarray | float) -> None:
        here = mine[where]
        prediction[where] = np.where(here, guess, prediction[where])
        residual = np.rint(x[where] - prediction[where]) if x is not None else codes[where]  # type: ignore[index]
        known = prediction[where] + np.where(valid[where], residual, 0)
        decoded[where] = np.where(here, known, decoded[where])

    stride = 1 << (max(x.shape if x is not None else valid.shape) - 1).bit_length()
    fill(tuple(slice(0, 1) for _ in valid.shape), base)
    while stride > 1:
        half = stride // 2
        for axis, length in enumerate(valid.shape):
            if length <= half:
                continue
            grid = [slice(0, None, half if a < axis else stride) for a in range(valid.ndim)]
            old, new = list(grid), list(grid)
            new[axis] = slice(half, None, stride)
            known = np.moveaxis(decoded[tuple(old)], axis, 0)
            count = len(range(half, length, stride))
            fill(tuple(new), np.moveaxis(_middle(known, count), 0, axis))
        stride = half


def _middle(known: np.ndarray, count: int) -> np.ndarray:
    """Interpolate between successive entries of the first axis; `count` is their number less one, or theirs."""
    out = known[:count].copy()
    pairs = len(known) - 1
    out[:pairs] = (known[:-1] + known[1:]) / 2
    if pairs > 2:
        out[1 : pairs - 1] = (9 * (known[1:-2] + known[2:-1]) - known[:-3] - known[3:]) / 16
    return out


def by_level(codes: np.ndarray) -> np.ndarray:
    """Sort every axis by level, coarse first: neighbours are then of one level."""
    for axis, length in enumerate(codes.shape):
        at = np.arange(length)
        level = np.where(at, at & -at, 1 << 30)
        codes = np.take(codes, np.argsort(-level, kind="stable"), axis)
    return codes


def _coded(matrix: np.ndarray) -> bytes:
    return _core.encode_weights(np.ascontiguousarray(matrix, np.int32).reshape(-1, matrix.shape[-1]))


# ---- which predictor ---------------------------------------------------------------------------------------------


def costs(piece: Piece, codes: Sequence[np.ndarray]) -> np.ndarray:
    """Estimate the bits of every block with each predictor, shape (3, *grid).

    Residuals are charged by their frequency among those of the same predictor with such neighbours (and for interpolation of
    such a level); the side information by the bytes of all of it, spread over the blocks by the sizes of their latents.
    """
    out = []
    for method, of in enumerate(codes):
        bits = _bits(of, levels=method == INTERPOLATION)
        bits[~piece.valid] = 0
        tiles = tiled(bits, piece.model.block)
        whole = np.ones(of.shape, bool)
        axes = tuple(range(tiles.ndim - len(piece.model.block), tiles.ndim))
        inside = joined_mask(whole, piece.model.block, piece.grid)
        total = (tiles * inside).sum(axes)
        if method == AE:
            weight = np.log2(1 + 2.0 * np.abs(piece.description.latents)).sum(1) + 6
            side = 8.0 * len(piece.description.to_bytes())
            total = total + (weight * side / weight.sum()).reshape(piece.grid)
        out.append(total)
    return np.stack(out)


def joined_mask(whole: np.ndarray, block: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray:
    """Return where the blocks of an array are not padding, shape (*grid, *block)."""
    dims = len(block)
    lead, last = whole.shape[: whole.ndim - dims], whole.shape[whole.ndim - dims :]
    padded = np.zeros((*lead, *(g * b for g, b in zip(grid[len(lead) :], block, strict=True))), bool)
    padded[(..., *(slice(n) for n in last))] = True
    return tiled(padded, block)


def _bits(codes: np.ndarray, levels: bool) -> np.ndarray:
    size = np.minimum(np.abs(codes), 1 << 20)
    near = 2 * _behind(size, codes.ndim - 1)
    for axis in range(codes.ndim - 1):
        near = near + 2 * _behind(size, axis) + _behind(_behind(size, axis), codes.ndim - 1)
    context = np.minimum(np.ceil(2 * np.log2(1 + near)), 23).astype(np.int64)
    if levels:
        finest = np.zeros(codes.shape, np.int64)
        for axis, length in enumerate(codes.shape):
            odd = (np.arange(length) & 1).reshape([-1 if a == axis else 1 for a in range(codes.ndim)])
            finest = finest | odd
        context = 2 * context + finest
    symbol = np.minimum(size, 15)
    counts = np.bincount((16 * context + symbol).ravel(), minlength=16 * 48).reshape(48, 16) + 0.2
    price = -np.log2(counts / counts.sum(1, keepdims=True))
    escape = np.where(size >= 15, 2 * np.log2(np.maximum(size - 13, 1)), 0)
    bits: np.ndarray = price[context, symbol] + (symbol > 0) + escape
    return bits


# ---- one field at one bound --------------------------------------------------------------------------------------


def measure(
    subject: Subject, pieces: Sequence[np.ndarray], model: Autoencoder, bound: float, spread: float
) -> Row:
    """Code all pieces of a field at one bound in every way."""
    tolerance = bound * spread
    trial = pieces[:2]
    tried = {}
    for coarseness in COARSENESS:
        made = [Piece(values, tolerance, model, coarseness) for values in trial]
        tried[coarseness] = sum(p.coded(p.uniform(AE), p.mixture(p.uniform(AE))[0]) for p in made)
    coarseness = min(tried, key=lambda c: tried[c])
    total = dict.fromkeys(
        (
            "ae",
            "ae_side",
            "lorenzo",
            "interpolation",
            "aesz_rule",
            "our_rule",
            "residual_by_codec",
            "codec",
            "zfp",
        ),
        0,
    )
    sz3: dict[str, int] = {}
    l1_won, byte_won, pair_won, blocks, violations = np.zeros(3), np.zeros(3), 0, 0, 0
    chosen: dict[str, int] = {}
    for values in pieces:
        piece = Piece(values, tolerance, model, coarseness)
        missing = len(lattice.fill(values)[1])
        uniform = [piece.mixture(piece.uniform(method)) for method in range(3)]
        violations += sum(piece.violations(decoded) for _, _, decoded in uniform)
        inside = joined_mask(piece.valid, model.block, piece.grid) & tiled(piece.valid, model.block)
        axes = tuple(range(inside.ndim - len(model.block), inside.ndim))
        l1 = np.stack(
            [(np.abs(tiled(piece.x - guess, model.block)) * inside).sum(axes) for _, guess, _ in uniform]
        )
        bits = costs(piece, [codes for codes, _, _ in uniform])
        some = inside.any(axes)
        blocks += int(some.sum())
        l1_won += np.bincount(l1.argmin(0)[some], minlength=3)
        byte_won += np.bincount(bits.argmin(0)[some], minlength=3)
        pair = np.where(l1[AE] < l1[LORENZO], AE, LORENZO)
        pair_won += int((pair[some] == AE).sum())

        sizes: dict[str, int] = {}
        for method, name in enumerate(_NAMES):
            sizes[name] = piece.coded(piece.uniform(method), uniform[method][0]) + missing
        rules = {"AE-SZ": pair}
        for which in (
            (AE, LORENZO),
            (AE, INTERPOLATION),
            (LORENZO, INTERPOLATION),
            (AE, LORENZO, INTERPOLATION),
        ):
            name = "+".join(_NAMES[m] for m in which)
            rules[name] = np.asarray(which)[bits[list(which)].argmin(0)]
        for name, choice in rules.items():
            codes, _, decoded = piece.mixture(choice)
            violations += piece.violations(decoded)
            sizes[name] = piece.coded(choice, codes) + missing
        total["ae"] += sizes["AE"]
        total["ae_side"] += len(piece.description.to_bytes())
        total["lorenzo"] += sizes["Lorenzo"]
        total["interpolation"] += sizes["interpolation"]
        total["aesz_rule"] += sizes.pop("AE-SZ")
        best = min(sizes, key=lambda name: sizes[name])
        chosen[best] = chosen.get(best, 0) + 1
        total["our_rule"] += sizes[best]

        prediction = np.where(piece.valid, piece.predicted * piece.step, 0)
        residual = values.astype(np.float64) - prediction
        stream = pipeline.encode(residual, ErrorBound("abs", piece.step / 2))
        restored = (pipeline.decode(stream) + prediction).astype(np.float32)
        violations += _violations(values, restored, tolerance)
        total["residual_by_codec"] += len(stream) + len(piece.description.to_bytes())
        stream = pipeline.encode(values, ErrorBound("abs", tolerance))
        violations += _violations(values, pipeline.decode(stream), tolerance)
        total["codec"] += len(stream)
        for name, size in _peers(values, tolerance):
            if name == "zfp":
                total["zfp"] += size
            else:
                sz3[name] = sz3.get(name, 0) + size
    return Row(
        subject.name,
        fields.Bound("range_rel", bound).label,
        tolerance,
        sum(values.size for values in pieces),
        blocks,
        coarseness,
        *(l1_won / blocks).tolist(),
        pair_won / blocks,
        *(byte_won / blocks).tolist(),
        our_rule_chose=max(chosen, key=lambda name: chosen[name]),
        sz3=sz3["sz3-interp-lorenzo"],
        best_sz3=min(sz3.values()),
        violations=violations,
        **total,
    )


def _violations(values: np.ndarray, decoded: np.ndarray, tolerance: float) -> int:
    finite = np.isfinite(values)
    wrong = ~(np.abs(decoded[finite].astype(np.float64) - values[finite]) <= tolerance)
    return int(wrong.sum()) + int((np.isfinite(decoded) & ~finite).sum())


def _peers(values: np.ndarray, tolerance: float) -> Iterator[tuple[str, int]]:
    """Yield bytes of SZ3 and zfp, decoded and checked.

    SZ3, which keeps NaN at a high price, also gets the field filled as zfp does, the places of NaN beside it, and counts what
    is smaller.
    """
    from benchmarks.peers import sz3, zfp

    filled, mask = lattice.fill(values)
    for peer in (*sz3.settings([]), *zfp.settings([])):
        if peer.max_ndim is not None:
            continue
        sizes = []
        for array, more in (
            ((values, 0), (filled, len(mask))) if mask and peer.family == "sz3" else ((values, 0),)
        ):
            stream = peer.compress(array, tolerance)
            wrong = _violations(array, peer.decompress(stream, array.shape, array.dtype), tolerance)
            if wrong:
                print(f"{peer.name}: {wrong} values out of the bound", file=sys.stderr)
            sizes.append(len(stream) + more)
        yield peer.name, min(sizes)


# ---- fields and models -------------------------------------------------------------------------------------------


def read(suite: Path, name: str) -> np.ndarray:
    return fields.Field(name, str(suite), None, None, ()).read("float32")


def cut(subject: Subject, values: np.ndarray) -> list[np.ndarray]:
    """Pieces of some frames, evenly spread; of one frame without its axis."""
    starts = np.linspace(0, len(values) - subject.frames, min(subject.pieces, len(values) // subject.frames))
    made = [values[int(at) : int(at) + subject.frames] for at in starts]
    return [np.ascontiguousarray(piece[0] if subject.frames == 1 else piece) for piece in made]


def trained(
    subject: Subject, suite: Path, folder: Path, steps: int, count: int, average: np.ndarray | None = None
) -> tuple[Pack, str]:
    """Train a model (less `average`), or take the one that is there; and say how well it does beside principal components."""
    path = folder / f"{subject.model}.aeszpack"
    if not path.exists():
        from aesz_codec.train.autoencoder import fit, sample
        from aesz_codec.train.packing import write_pack

        start = time.perf_counter()
        rng = np.random.default_rng(0)
        parts = [read(suite, name) - (0 if average is None else average) for name in subject.train]
        blocks = np.concatenate([sample(part, subject.block, count // len(parts), rng) for part in parts])
        blocks = blocks[rng.permutation(len(blocks))]
        fitted = fit(blocks, latents=subject.latents, steps=steps)
        seconds = time.perf_counter() - start
        manifest = {
            "id": subject.model.lower(),
            "kind": "autoencoder",
            "licence": "see the data",
            "network": fitted.network,
            "training": {
                "data": list(subject.train),
                "split": "TRAIN",
                "steps": steps,
                "blocks": len(blocks),
                "seconds": round(seconds),
                "explained": round(fitted.explained, 4),
                "explained_by_components": round(fitted.linear, 4),
            },
        }
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write_pack(manifest, fitted.tensors))
    pack = Pack.from_file(path)
    t = pack.manifest["training"]
    text = (
        f"| {subject.name} | {', '.join(t['data'])} | {'x'.join(map(str, subject.block))} | {subject.latents} | "
        f"{t['steps']} | {t['seconds']} | {pack.nbytes} | {t['explained']:.3f} | {t['explained_by_components']:.3f} |"
    )
    return pack, text


# ---- whole fields ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A DEV series of small frames, one block each: bytes of all frames, side information and residual."""

    field: str
    tolerance: float
    values: int
    codec: int
    basis: int
    basis_side: int  # of them
    basis_step: int  # of its latents, in tolerances
    autoencoder: int
    autoencoder_side: int
    coarseness: int
    best_sz3: int
    violations: int


WHOLE = (
    (
        Subject(
            "era5_weurope_t2m_1988_1989",
            ("era5_weurope_t2m_1980_1982", "era5_weurope_t2m_1983_1985"),
            (24, 32),
            64,
            128,
            23,
        ),
        0.25,
    ),
    (
        Subject(
            "era5_weurope_msl_1988_1989",
            ("era5_weurope_msl_1980_1982", "era5_weurope_msl_1983_1985"),
            (24, 32),
            64,
            128,
            23,
        ),
        25.0,
    ),
)


def whole(subject: Subject, suite: Path, tolerance: float, model: Autoencoder, average: np.ndarray) -> Whole:
    """Compare an autoencoder of whole frames with principal components (EOFs), both after the TRAIN mean of every point.

    What is left is coded by the codec; integers of the side information by the codec or by the coder of packs, whichever is
    smaller.
    """
    training = np.concatenate([read(suite, name) for name in subject.train]).astype(np.float64) - average
    flat = training.reshape(len(training), -1)
    basis = np.linalg.eigh(flat.T @ flat)[1][:, : -subject.latents - 1 : -1]
    values = read(suite, subject.name)
    pieces = [values[at : at + subject.frames] for at in range(0, len(values), subject.frames)]
    bound = ErrorBound("abs", tolerance)
    violations = 0
    sz3: dict[str, int] = {}
    plain_bytes = 0
    for piece in pieces:
        stream = pipeline.encode(piece, bound)
        violations += _violations(piece, pipeline.decode(stream), tolerance)
        plain_bytes += len(stream)
        for name, size in _peers(piece, tolerance):
            sz3[name] = sz3.get(name, 0) + size
    sz3.pop("zfp")

    def left_over(piece: np.ndarray, prediction: np.ndarray) -> int:
        kept = tolerance - float(np.spacing(np.abs(piece).max()))
        stream = pipeline.encode(piece - prediction, ErrorBound("abs", kept))
        nonlocal violations
        violations += _violations(piece, (pipeline.decode(stream) + prediction).astype(np.float32), tolerance)
        return len(stream)

    def integers(matrix: np.ndarray) -> int:
        exact = pipeline.encode(matrix.astype(np.int32), ErrorBound("lossless"))
        return min(len(exact), len(_coded(matrix.T)))

    def by_basis(piece: np.ndarray, step: int) -> tuple[int, int]:
        latents = np.rint((piece - average).reshape(len(piece), -1) @ basis / (step * tolerance))
        prediction = (latents @ basis.T).reshape(piece.shape) * (step * tolerance) + average
        side = integers(latents)
        return side + left_over(piece, prediction), side

    def by_model(piece: np.ndarray, coarseness: int) -> tuple[int, int]:
        described = model.describe(piece - average, 2 * tolerance, coarseness)
        prediction = model.predict(described, piece.shape) * (2 * tolerance / 2**FRACTION) + average
        separate = sum(
            map(integers, (described.latents, described.means[:, None], described.scales[:, None]))
        )
        side = min(len(described.to_bytes()), separate)
        return side + left_over(piece, prediction), side

    few = pieces[::6]
    step = min((2, 4, 8, 16, 32), key=lambda s: sum(by_basis(p, s)[0] for p in few))
    coarseness = min((0, 2, 3, 4, 5, 6), key=lambda c: sum(by_model(p, c)[0] for p in few))
    from_basis = [by_basis(piece, step) for piece in pieces]
    from_model = [by_model(piece, coarseness) for piece in pieces]
    return Whole(
        subject.name,
        tolerance,
        values.size,
        plain_bytes,
        sum(size for size, _ in from_basis),
        sum(side for _, side in from_basis),
        step,
        sum(size for size, _ in from_model),
        sum(side for _, side in from_model),
        coarseness,
        min(sz3.values()),
        violations,
    )


_ABOUT = """\
Blocks of 32 x 32 values (8 x 8 x 8 with time) are predicted by an autoencoder in integers, by Lorenzo, or by cubic interpolation
from coarse to fine, each from decoded values; every decoded value was compared with its bound. Bounds are fractions of the
field's range. Fields are DEV, models were trained on TRAIN alone, one a field; their bytes are shown and counted nowhere.

- *AE-SZ's rule*: the autoencoder where its L1 error in the block is below Lorenzo's (Liu et al. 2021). *Our rule*: of all
  mixtures of the three, chosen block by block by estimated bits, and of each alone, whichever codes smallest, for every piece.
- Residual integers of all these are coded by one coder, the weight coder of `docs/packs.md`, section 5 (adaptive contexts, no
  prediction), which is better than the Huffman and zstd of SZ3 and AE-SZ: compare the rules with each other, and with `codec` and
  SZ3 only with that in mind. Latents, means, scales, choices and places of NaN count.
- *AE, residual by the codec*: what the autoencoder leaves over, coded by the codec as a field of its own.
- *codec*: effort `default`, no model. *SZ3*: its default; *best SZ3*: of three settings, the smallest over the whole field. A
  field with NaN (SST) goes to SZ3 filled, with the places of NaN compressed beside it, as that is smaller.
- 2-D fields are coded frame by frame by everyone, series in pieces of 128 frames.
- Shares judged by bytes are estimates: bits of a block's residuals by their frequencies in context, and its side information."""


# ---- report ------------------------------------------------------------------------------------------------------


def tables(rows: Sequence[Row], models: Sequence[str], wholes: Sequence[Whole]) -> list[str]:
    percent = "{:.0%}".format
    won = [
        [r.field, r.bound, *map(percent, (r.aesz_ae, r.l1_ae, r.l1_lorenzo, r.l1_interpolation))]
        + [*map(percent, (r.bytes_ae, r.bytes_lorenzo, r.bytes_interpolation))]
        for r in rows
    ]
    coded = [
        [
            r.field,
            r.bound,
            r.ae,
            f"{r.ae_side / r.ae:.0%}",
            r.lorenzo,
            r.interpolation,
            r.aesz_rule,
            r.our_rule,
        ]
        + [r.our_rule_chose, r.residual_by_codec, f"**{r.codec}**", r.sz3, r.best_sz3, r.zfp]
        for r in rows
    ]
    ratios = []
    for bound in dict.fromkeys(r.bound for r in rows):
        these = [r for r in rows if r.bound == bound]
        names = (
            "ae",
            "lorenzo",
            "interpolation",
            "aesz_rule",
            "our_rule",
            "residual_by_codec",
            "best_sz3",
            "zfp",
        )
        means = [report.geometric_mean(getattr(r, name) / r.codec for r in these) for name in names]
        ratios.append([bound, *(f"{mean:.2f}" for mean in means)])
    return [
        _ABOUT,
        "## Share of blocks won",
        report.markdown_table(
            ["field", "bound", "AE from Lorenzo, L1 (the paper's rule)", "L1: AE", "Lorenzo", "interpolation"]
            + ["bytes: AE", "Lorenzo", "interpolation"],
            won,
            2,
        ),
        "![shares of blocks won](shares.png)",
        "## Bytes",
        report.markdown_table(
            ["field", "bound", "AE only", "of it side information", "Lorenzo only", "interpolation only"]
            + ["AE-SZ's rule", "our rule", "most often", "AE, residual by the codec", "codec, no model"]
            + ["SZ3", "best SZ3", "zfp"],
            coded,
            2,
        ),
        "## Bytes / bytes of the codec without a model, geometric mean over the fields",
        report.markdown_table(
            ["bound", "AE only", "Lorenzo only", "interpolation only", "AE-SZ's rule", "our rule"]
            + ["AE, residual by the codec", "best SZ3", "zfp"],
            ratios,
        ),
        "## Whole fields",
        "A frame of 21 x 31 points is one block without seams, 64 latents; absolute bounds. What is left over is coded by the "
        "codec. In brackets: bytes of the side information, in the total. The basis is not quantized (as int16 it has 83 kB) "
        "and not counted, nor is the model of the autoencoder; both have the mean of every point over TRAIN taken out first.",
        report.markdown_table(
            [
                "field",
                "bound",
                "codec, no model",
                "best SZ3",
                "64 components (EOF)",
                "/ codec",
                "autoencoder",
                "/ codec",
            ],
            [
                [w.field, f"abs {w.tolerance:g}", w.codec, w.best_sz3]
                + [f"{w.basis} ({w.basis_side})", f"{w.basis / w.codec:.3f}"]
                + [f"{w.autoencoder} ({w.autoencoder_side})", f"{w.autoencoder / w.codec:.3f}"]
                for w in wholes
            ],
            2,
        ),
        "## Models",
        "`explained`: share of the power of unseen blocks (less their means, divided by their scales) that the integers explain, "
        "latents at a step of 8 codes; `components`: what as many principal components of the same blocks do, in floating point, "
        "not quantized. Seconds are by the clock, on one core that others used as well (some 150 of the processor).",
        "\n".join(
            [
                "| field | trained on | block | latents | steps | seconds | bytes of the pack | explained | components |",
                "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
                *models,
            ]
        ),
    ]


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw the shares of blocks won against the bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r.field for r in rows))
    figure, panels = pyplot.subplots(
        2, len(names), figsize=(3 * len(names), 5.5), sharey=True, sharex=True, squeeze=False
    )
    colors = ("#D55E00", "#0072B2", "#009E73")
    for column, name in enumerate(names):
        these = [r for r in rows if r.field == name]
        at = [float(r.bound) for r in these]
        for row, judge in enumerate(("l1", "bytes")):
            axes = panels[row][column]
            for method, color in zip(("ae", "lorenzo", "interpolation"), colors, strict=True):
                label = "autoencoder" if method == "ae" else method
                axes.plot(
                    at, [100 * getattr(r, f"{judge}_{method}") for r in these], "o-", color=color, label=label
                )
            axes.set_xscale("log")
            axes.grid(alpha=0.3)
            axes.set_title(name if row == 0 else "", fontsize=9)
        panels[0][column].invert_xaxis() if column == 0 else None
        panels[1][column].set_xlabel("error bound / range")
    panels[0][0].set_ylabel("blocks won by L1, %")
    panels[1][0].set_ylabel("by estimated bytes, %")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoencoders", description=__doc__)
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--fields", default="", help="only these; results of others stay")
    parser.add_argument("--steps", type=int, default=2000, help="of training (default: 2000)")
    parser.add_argument("--blocks", type=int, default=16000, help="to learn from (default: 16000)")
    parser.add_argument("--models", type=Path, help="folder of trained packs (default: models in the output)")
    parser.add_argument("--output", type=Path, default=Path("benchmark-report"))
    options = parser.parse_args(argv)
    suite = fields.find_suite(options.suite)
    if suite is None:
        parser.error("no suite: set AESZ_DATA or give --suite")
    wanted = [name for name in options.fields.split(",") if name]
    if missing := set(wanted) - {subject.name for subject in SUBJECTS}:
        parser.error(f"no such fields: {', '.join(sorted(missing))}")
    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.models or options.output / "models"
    kept = report.read_rows(options.output / "table.csv", Row)
    rows = {(row.field, row.bound): row for row in kept}
    wholes = {row.field: row for row in report.read_rows(options.output / "whole.csv", Whole)}
    models = []
    for subject in SUBJECTS:
        measured = not wanted or subject.name in wanted
        if not measured and not (folder / f"{subject.model}.aeszpack").exists():
            continue
        pack, text = trained(subject, suite, folder, options.steps, options.blocks)
        models.append(text)
        values = read(suite, subject.name)
        spread = float(np.nanmax(values)) - float(np.nanmin(values))
        for bound in BOUNDS if measured else ():
            row = measure(subject, cut(subject, values), Autoencoder.from_pack(pack), bound, spread)
            rows[row.field, row.bound] = row
            print(row, flush=True)
    for subject, tolerance in WHOLE:
        measured = not wanted or subject.name in wanted
        if not measured and not (folder / f"{subject.model}.aeszpack").exists():
            continue
        average = np.mean([read(suite, name).mean(0, dtype=np.float64) for name in subject.train], axis=0)
        pack, text = trained(subject, suite, folder, options.steps, options.blocks, average)
        models.append(text)
        if measured:
            row = whole(subject, suite, tolerance, Autoencoder.from_pack(pack), average)
            wholes[row.field] = row
            print(row, flush=True)
    order = [subject.name for subject in SUBJECTS]
    listed = sorted(rows.values(), key=lambda row: (order.index(row.field), -float(row.bound)))
    series = sorted(wholes.values(), key=lambda row: order.index(row.field))
    report.write_rows(options.output / "table.csv", Row, listed)
    report.write_rows(options.output / "whole.csv", Whole, series)
    report.write_markdown(
        options.output / "table.md",
        ["# Block autoencoders beside Lorenzo and interpolation", *tables(listed, models, series)],
    )
    plot(options.output / "shares.png", listed)
    return int(any(row.violations for row in (*listed, *series)))


if __name__ == "__main__":
    sys.exit(main())
