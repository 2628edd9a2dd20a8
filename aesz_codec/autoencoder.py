"""Block autoencoders as side predictions: what a pack of the kind ``autoencoder`` computes, in integers alone.

::

    values --describe--> mean, scale class and latents of every block --to_bytes--> side information
                              |
                              +--predict--> the field, in 1/256 of a quantization step

Idea (AE-SZ, Liu et al. 2021): a block of 32 x 32 or 8 x 8 x 8 values becomes a handful of latents, from which a network makes a
prediction of the whole block that needs no neighbours.  Here the block's mean and scale (a power of two) are taken out
first, latents are integers whose step the encoder chooses, and encoder and decoder are networks of integers
(``docs/networks.md``), so that a prediction is the same on every machine.  Blocks at the ends of an array are padded with its
last values.  Training: `aesz_codec.train.autoencoder`.  torch is not imported here.

When to use it: hardly ever: at 1e-1 of the range a few blocks are cheaper than by interpolation, at tighter bounds none
(``benchmarks/results/autoencoders``).
Cost: some 300 multiply-adds a value in two dimensions, 900 in three; on one core 26 to 37 MB/s of float32 to predict, 200 to
describe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import CorruptStreamError, InvalidModelError, ModelInputError, ModelKindError
from .nets import Network
from .packs import Pack, may_hold, plain, take_differences, undo_differences
from .stream import Reader, Writer

__all__ = ["FRACTION", "INPUT", "KIND", "MAX_COARSENESS", "Autoencoder", "Description", "joined", "tiled"]

KIND = "autoencoder"
FRACTION = 8
"""Predictions count 2^-FRACTION of a step."""
INPUT = 7
"""The network of the encoder takes 2^INPUT for a value that is one scale above the mean of its block."""
MAX_COARSENESS = 8
"""Latents have a step of up to 2^MAX_COARSENESS."""

_KEYS = {"block", "decoder", "decoder_shift", "encoder", "encoder_shift"}
_MAX_BLOCK, _MAX_LATENTS, _MAX_SHIFT = 4096, 64, 24
_MAX_CLASS = 30
_MAX_MEAN = (1 << 31) - 1
_LARGEST = 1 << 52  # predictions are exact as float64
_FLAT = 0.25  # of a step: blocks whose standard deviation is below are their mean
_AT_ONCE = 4096  # blocks

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """What `Autoencoder.predict` needs of some blocks, in C order.

    Attributes
    ----------
    means : int32, shape (blocks,)
        In steps.
    scales : uint8, shape (blocks,)
        Class of the scale: ``2 ** (class - 1)`` steps; 0 for a block that is its mean, whose latents are 0.
    latents : int32, shape (blocks, latents)
    coarseness : int
        Latents count ``2 ** coarseness`` codes of the network's input.
    """

    means: npt.NDArray[np.int32]
    scales: npt.NDArray[np.uint8]
    latents: npt.NDArray[np.int32]
    coarseness: int = 0

    def subset(self, blocks: Array) -> Description:
        """Return the description of some of the blocks, by mask or index."""
        return Description(self.means[blocks], self.scales[blocks], self.latents[blocks], self.coarseness)

    def to_bytes(self) -> bytes:
        """Return the side information, by the weight coder of packs, in whichever order takes fewer bytes.

        u8 coarseness; u8 ways (bit 0: means as differences, bit 1: latents as differences); then scale classes, means, and
        latents of the blocks that are not flat, one latent a row: each a varint, the number of bytes, and the codes of
        ``docs/packs.md``, section 5, differences being those of its coding 3.
        """
        latents = np.ascontiguousarray(self.latents[self.scales > 0].T, np.int32)
        parts = [_encoded(np.asarray(self.scales, np.int32)[None], 0)]
        ways = 0
        for bit, matrix in ((1, np.asarray(self.means, np.int32)[None]), (2, latents)):
            direct, differences = _encoded(matrix, 0), _encoded(matrix, 1)
            ways |= bit if len(differences) < len(direct) else 0
            parts.append(min(direct, differences, key=len))
        writer = Writer().pack("BB", self.coarseness, ways)
        for part in parts:
            writer.varint(len(part)).raw(part)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, blocks: int, latents: int) -> Self:
        """Read what `to_bytes` wrote.

        Parameters
        ----------
        blocks, latents : int
            How many there are; nothing is allocated for more blocks than the bytes can hold.

        Raises
        ------
        CorruptStreamError
            If the bytes are none that `to_bytes` writes for so many blocks.
        """
        reader = Reader(data, "side information")
        coarseness, ways = reader.byte(), reader.byte()
        if coarseness > MAX_COARSENESS or ways > 3:
            raise _corrupt(
                "coarseness and ways", f"{coarseness}, {ways}", f"at most {MAX_COARSENESS} and at most 3"
            )
        scales = _decoded(reader, "scales", (1, blocks), 0, (0, _MAX_CLASS))[0].astype(np.uint8)
        means = _decoded(reader, "means", (1, blocks), ways & 1, (-_MAX_MEAN, _MAX_MEAN))[0]
        some = scales > 0
        full = np.zeros((blocks, latents), np.int32)
        full[some] = _decoded(
            reader, "latents", (latents, int(some.sum())), ways >> 1, (-(1 << 11), 1 << 11)
        ).T
        reader.end()
        return cls(means, scales, full, coarseness)


class Autoencoder:
    """Encoder and decoder of blocks, made by `from_pack`; immutable, may be used by many threads at once.

    Attributes
    ----------
    block : tuple of int
        Shape of a block, over the last axes of an array.
    latents : int
        Of a block.
    encoder, decoder : Network
    """

    def __init__(
        self, block: Shape, encoder: Network, encoder_shift: int, decoder: Network, decoder_shift: int
    ) -> None:
        self.block = block
        self.latents = decoder.input.channels
        self.encoder, self.decoder = encoder, decoder
        self._encoder_shift, self._decoder_shift = encoder_shift, decoder_shift

    @classmethod
    def from_pack(cls, pack: Pack) -> Self:
        """Load the networks of a pack.

        Raises
        ------
        ModelKindError
            If the pack is of another kind.
        InvalidModelError, UnsupportedModelError
            If ``network`` is not what ``docs/packs.md`` says, or a network is not sound.
        """
        if pack.kind != KIND:
            raise ModelKindError.at(
                f"model {pack.id!r}", found=f"a pack of the kind {pack.kind!r}", expected=f"{KIND!r}"
            )
        return cls.load(pack.manifest["network"], pack.tensors, f"pack {pack.id!r}: network")

    @classmethod
    def load(cls, network: Any, tensors: Mapping[str, Array], field: str = "network") -> Self:
        """Load the value of a manifest's ``network`` and the tensors that it names; errors as of `from_pack`."""
        found = plain(network)
        if not isinstance(found, dict) or found.keys() != _KEYS:
            raise InvalidModelError.at(field, found=repr(found)[:80], expected=f"keys {', '.join(_KEYS)}")
        block = found["block"]
        if (
            not isinstance(block, list)
            or not 1 <= len(block) <= 3
            or not all(type(n) is int and n >= 2 for n in block)
            or math.prod(block) > _MAX_BLOCK
        ):
            raise InvalidModelError.at(
                f"{field}.block", found=repr(block)[:80], expected=f"1 to 3 lengths, {_MAX_BLOCK} values"
            )
        shifts = []
        for key in ("encoder_shift", "decoder_shift"):
            if type(found[key]) is not int or not 0 <= found[key] <= _MAX_SHIFT:
                raise InvalidModelError.at(
                    f"{field}.{key}", found=repr(found[key])[:80], expected=f"0 to {_MAX_SHIFT}"
                )
            shifts.append(found[key])
        networks = []
        for key in ("encoder", "decoder"):
            try:
                networks.append(Network.load(found[key], tensors))
            except InvalidModelError as error:
                raise InvalidModelError(f"{field}.{key}: {error}") from None
        encoder, decoder = networks
        latents = decoder.input.channels
        taken = (encoder.input.dims, encoder.input.channels, decoder.input.dims)
        if taken != (len(block), 1, 0) or latents > _MAX_LATENTS:
            raise InvalidModelError.at(
                f"{field}.encoder, decoder",
                found=f"inputs of {taken[0]} axes, {taken[1]} channels, and {taken[2]} axes, {latents} channels",
                expected=f"{len(block)} axes and 1 channel, no axes and up to {_MAX_LATENTS} channels",
            )
        if encoder.input.lo >= 0 or decoder.input.lo >= 0:
            raise InvalidModelError.at(f"{field}", found="inputs without signs", expected="signed inputs")
        try:
            made = encoder.shapes(tuple(block))[-1], decoder.shapes(())[-1]
        except ModelInputError as error:
            raise InvalidModelError(f"{field}: {error}") from None
        expected = (*(1,) * len(block), latents), (*block, 1)
        if made != expected:
            raise InvalidModelError.at(
                f"{field}.encoder, decoder", found=f"results of shapes {made}", expected=f"{expected}"
            )
        return cls(tuple(block), encoder, shifts[0], decoder, shifts[1])

    def blocks(self, shape: Shape) -> Shape:
        """Return how many blocks an array has: along the axes before the last ones, then along these.

        Raises
        ------
        ModelInputError
            If the array has fewer axes than a block.
        """
        dims = len(self.block)
        if len(shape) < dims:
            raise ModelInputError.at("shape", found=str(shape), expected=f"{dims} axes or more")
        lead, last = shape[: len(shape) - dims], shape[len(shape) - dims :]
        return (*lead, *(-(-n // b) for n, b in zip(last, self.block, strict=True)))

    def describe(self, values: Array, step: float, coarseness: int = 0) -> Description:
        """Describe an array for `predict`.

        Parameters
        ----------
        values : float array, shape (..., *axes of the blocks)
            Finite: what is not is to be filled first, with something like its surroundings.
        step : float
            Quantization step, finite and > 0; means and scales are counted in it.
        coarseness : int
            0 to `MAX_COARSENESS`: the step of latents is ``2 ** coarseness``.

        Raises
        ------
        ModelInputError
            If a value is not finite, or 2^31 steps or more from 0; if an argument is out of its range.
        """
        if not (math.isfinite(step) and step > 0):
            raise ModelInputError.at("step", found=repr(step), expected="a finite number > 0")
        if not 0 <= coarseness <= MAX_COARSENESS:
            raise ModelInputError.at("coarseness", found=repr(coarseness), expected=f"0 to {MAX_COARSENESS}")
        grid = self.blocks(values.shape)
        with np.errstate(over="ignore"):
            scaled = np.asarray(values, np.float64) / step
        if not scaled.size:
            return Description(*_empty(math.prod(grid), self.latents), coarseness)
        if not float(np.abs(scaled).max()) < _MAX_MEAN:  # so for NaN
            raise ModelInputError.at(
                "values", found="one not finite or too far from 0", expected=f"less than {_MAX_MEAN} steps"
            )
        blocks = tiled(scaled, self.block).reshape(math.prod(grid), -1)
        means = np.rint(blocks.mean(1))
        blocks = blocks - means[:, None]
        spread = np.sqrt((blocks**2).mean(1))
        exponent = np.ceil(np.log2(np.maximum(spread, 1.0)))
        scales = np.where(spread < _FLAT, 0, np.minimum(exponent + 1, _MAX_CLASS)).astype(np.uint8)
        some = scales > 0
        latents = np.zeros((len(blocks), self.latents), np.int32)
        codes = np.rint(blocks[some] * 2.0 ** (INPUT - (scales[some].astype(np.float64)[:, None] - 1)))
        codes = np.clip(codes, self.encoder.input.lo, self.encoder.input.hi).astype(np.int16)
        latents[some] = self.encode(codes.reshape(-1, *self.block), coarseness)
        return Description(means.astype(np.int32), scales, latents, coarseness)

    def encode(self, codes: Array, coarseness: int = 0) -> npt.NDArray[np.int32]:
        """Return the latents of blocks in codes of the encoder's input, shape (blocks, *block), as (blocks, latents)."""
        latents = np.empty((len(codes), self.latents), np.int32)
        shift = self._encoder_shift + coarseness
        most = self.decoder.input.hi >> coarseness
        for at in range(0, len(codes), _AT_ONCE):
            sums = self.encoder(codes[at : at + _AT_ONCE, ..., None]).reshape(-1, self.latents)
            latents[at : at + _AT_ONCE] = np.clip(_shifted(sums.astype(np.int64), shift), -most, most)
        return latents

    def predict(self, description: Description, shape: Shape) -> npt.NDArray[np.int64]:
        """Predict an array.

        Parameters
        ----------
        description : Description
            Of all its blocks.
        shape : tuple of int

        Returns
        -------
        int64, shape `shape`
            In 2^-FRACTION steps, below 2^52 in magnitude: exact as float64.

        Raises
        ------
        ModelInputError
            If the description is of another number of blocks, or a value is out of its range.  Nothing larger than the described
            blocks is allocated.
        """
        grid = self.blocks(shape)
        predicted = self.decode(description)
        if len(predicted) != math.prod(grid):
            raise ModelInputError.at(
                "description", found=f"{len(predicted)} blocks", expected=f"{math.prod(grid)} for {shape}"
            )
        return joined(predicted.reshape(*grid, *self.block), shape)

    def decode(self, description: Description) -> npt.NDArray[np.int64]:
        """Predict blocks, shape (blocks, *block), as `predict` does."""
        means, scales, latents = (
            np.asarray(a).astype(np.int64)
            for a in (description.means, description.scales, description.latents)
        )
        coarse, hi = description.coarseness, self.decoder.input.hi
        if not 0 <= coarse <= MAX_COARSENESS:
            raise ModelInputError.at("coarseness", found=repr(coarse), expected=f"0 to {MAX_COARSENESS}")
        if means.ndim != 1 or scales.shape != means.shape or latents.shape != (*means.shape, self.latents):
            raise ModelInputError.at(
                "description",
                found=f"shapes {means.shape}, {scales.shape}, {latents.shape}",
                expected=f"(blocks,), (blocks,), (blocks, {self.latents})",
            )
        limits = (("means", means, -_MAX_MEAN, _MAX_MEAN), ("scales", scales, 0, _MAX_CLASS))
        for name, array, least, most in (*limits, ("latents", latents, -(1 << 11), 1 << 11)):
            if array.size and not least <= int(array.min()) <= int(array.max()) <= most:
                raise ModelInputError.at(
                    name, found=f"{array.min()} to {array.max()}", expected=f"{least} to {most}"
                )
        out = np.zeros((len(means), *self.block), np.int64)
        out += (means << FRACTION).reshape(-1, *(1,) * len(self.block))
        some = np.flatnonzero(scales)
        for at in range(0, len(some), _AT_ONCE):
            here = some[at : at + _AT_ONCE]
            codes = np.clip(latents[here] << coarse, -hi, hi).astype(np.int16)
            sums = self.decoder(codes)[..., 0].astype(np.int64)
            shift = self._decoder_shift + 1 - FRACTION - scales[here]
            out[here] += _shifted(sums, shift.reshape(-1, *(1,) * len(self.block)))
        return np.clip(out, 1 - _LARGEST, _LARGEST - 1)


def tiled(array: Array, block: Shape) -> Array:
    """Cut the last axes into blocks, padded with the last values: shape (..., *grid, *block)."""
    dims = len(block)
    lead, last = array.shape[: array.ndim - dims], array.shape[array.ndim - dims :]
    grid = tuple(-(-n // b) for n, b in zip(last, block, strict=True))
    widths = [(0, 0)] * len(lead) + [(0, g * b - n) for g, b, n in zip(grid, block, last, strict=True)]
    padded = np.pad(array, widths, mode="edge")
    split = padded.reshape(*lead, *(n for pair in zip(grid, block, strict=True) for n in pair))
    first = len(lead)
    order = [first + 2 * i for i in range(dims)] + [first + 2 * i + 1 for i in range(dims)]
    return split.transpose(*range(first), *order)


def joined(blocks: Array, shape: Shape) -> Array:
    """Undo `tiled`: blocks of shape (..., *grid, *block) become an array of `shape`, the padding cut off."""
    lead = 2 * len(shape) - blocks.ndim
    dims = len(shape) - lead
    order = [lead + axis for i in range(dims) for axis in (i, dims + i)]
    grid, block = blocks.shape[lead : lead + dims], blocks.shape[lead + dims :]
    full = blocks.transpose(*range(lead), *order)
    full = full.reshape(*shape[:lead], *(g * b for g, b in zip(grid, block, strict=True)))
    return np.ascontiguousarray(full[tuple(slice(n) for n in shape)])


def _shifted(sums: Array, shift: Array | int) -> Array:
    """Divide by 2^shift, halves up; a negative shift multiplies."""
    down, up = np.maximum(shift, 0), np.maximum(np.negative(shift), 0)
    half = (np.int64(1) << down) >> 1
    out: Array = ((sums + half) >> down) << up
    return out


def _empty(blocks: int, latents: int) -> tuple[Array, Array, Array]:
    return np.zeros(blocks, np.int32), np.zeros(blocks, np.uint8), np.zeros((blocks, latents), np.int32)


def _encoded(matrix: Array, axes: int) -> bytes:
    if not matrix.size:
        return b""
    return _core.encode_weights(take_differences(np.ascontiguousarray(matrix, np.int32), axes))


def _decoded(
    reader: Reader, name: str, shape: tuple[int, int], axes: int, limits: tuple[int, int]
) -> npt.NDArray[np.int32]:
    codes = bytes(reader.take(reader.varint()))
    if not math.prod(shape):
        if codes:
            raise _corrupt(name, f"{len(codes)} bytes", "none")
        return np.zeros(shape, np.int32)
    if not may_hold(len(codes), math.prod(shape)):
        raise _corrupt(name, f"{math.prod(shape)} values in {len(codes)} bytes", "more bytes")
    matrix = np.empty(shape, np.int32)
    try:
        _core.decode_weights(codes, matrix, *((-(1 << 31), (1 << 31) - 1) if axes else limits))
    except _core.CorruptDataError as error:
        raise _corrupt(name, str(error), f"integers in {limits}") from None
    matrix = undo_differences(matrix, axes)
    if not limits[0] <= int(matrix.min()) <= int(matrix.max()) <= limits[1]:
        raise _corrupt(name, f"{matrix.min()} to {matrix.max()}", f"{limits[0]} to {limits[1]}")
    return matrix


def _corrupt(name: str, found: str, expected: str) -> CorruptStreamError:
    return CorruptStreamError.at(
        f"side information: {name}", found=found, expected=expected, remedy="the stream is damaged"
    )
