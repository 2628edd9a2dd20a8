"""Train a sliced-Wasserstein autoencoder of blocks and write it as a pack: ``aesz-codec train autoencoder``.

::

    files -> blocks, mean and scale taken out -> float encoder and decoder -> integers (post-training)
          -> the integer decoder fine-tuned on latents of the integer encoder -> pack, judged on unseen data

Idea: AE-SZ (Liu et al. 2021) predicts blocks by an autoencoder whose latents are kept near a prior by the sliced Wasserstein
distance (Kolouri et al. 2018).  Here the loss counts bits: ``log2(1 + |error| / step)`` for every value, an L1 distance that
knows how little small errors cost, plus the entropy of the quantized latents under a Laplace distribution a latent; step
and step of the latents vary from block to block, so that one model serves many bounds.

The encoder is a convolution of patches and one over all of them; the decoder combines a basis, which starts from principal
components, and refines the sum by two convolutions.  (A decoder of convolutions and pixel shuffles alone explained less than
principal components after minutes of training: 0.81 against 0.87 of the power of unseen blocks of surface temperature.)
What is decoded is `aesz_codec.autoencoder`, in integers (``docs/networks.md``).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import pipeline
from .._store import open_source
from ..autoencoder import FRACTION, INPUT, KIND, Autoencoder
from ..bounds import ErrorBound
from ..errors import InvalidConfigError, InvalidModelError
from ..packs import Pack
from .integers import Exported, IntegerStack
from .packing import write_pack
from .training import Judgement

__all__ = ["BOUNDS", "AutoencoderReport", "Fitted", "fit", "sample", "train"]

Array = npt.NDArray[Any]
Blocks = npt.NDArray[np.float32]
Source = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]

BOUNDS = tuple(ErrorBound("range_rel", value) for value in (1e-1, 1e-2, 1e-3))
"""What a model is judged at if nothing else is said."""

_LATENT = 64.0  # codes of a latent for 1 of the float decoder
_CODES = float(1 << INPUT)  # of the encoder's input for one scale
_PATCH_CHANNELS, _CHANNELS = 48, 16  # of the encoder, of the decoder
_SLOPE = 0.25  # of rectifiers below 0
_DECODER_BITS = 12  # of its activations, which are the field itself
_TYPICAL = 0.75  # standard deviation of a block, in its scale
_BATCH = 64
_PRIOR = 0.02  # bits a value that the distance from the prior, 1 at a standard deviation, weighs
_FEWEST = 200  # blocks to learn from
_BUDGET = 1 << 26  # values of a variable that are read
_JUDGED = 400_000  # values of a variable that are judged
_LEAST_SPREAD = 1e-4  # of a variable's: blocks that vary less are no use to learn from
_OCTAVES = 6  # the finest step is 2^-6 of a block's scale


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fit` returns.

    Attributes
    ----------
    network : dict
        For a manifest.
    tensors : dict of str to array
    explained : float
        Share of the power of the unseen blocks that the integers explain, latents at a step of 8 codes.
    linear : float
        The same of as many principal components, not quantized.
    """

    network: dict[str, Any]
    tensors: dict[str, Array]
    explained: float
    linear: float


@dataclass(frozen=True, slots=True)
class AutoencoderReport:
    """What a training run came to.

    Attributes
    ----------
    pack : Pack
    path : Path
    blocks : int
        Learned from.
    explained, linear : float
        As of `Fitted`.
    judged : tuple of Judgement
        ``with_model``: the residual of the prediction, coded by the codec, and the side information.
    """

    pack: Pack
    path: Path
    blocks: int
    explained: float
    linear: float
    judged: tuple[Judgement, ...]


def train(
    sources: Sequence[Source],
    out: Source,
    *,
    id: str,
    licence: str,
    description: str = "",
    variables: Sequence[str] = (),
    applies_to: Sequence[dict[str, Any]] = (),
    bounds: Sequence[ErrorBound] = BOUNDS,
    validate: Sequence[Source] = (),
    block: Sequence[int] = (32, 32),
    latents: int = 16,
    steps: int = 2000,
    count: int = 16000,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> AutoencoderReport:
    """Train a pack of the kind ``autoencoder`` and write it; nothing is written before it is whole.

    Parameters
    ----------
    sources : sequence of paths
        NetCDF files or Zarr stores.  Of the floating-point variables, those named by `variables`, or all that have the axes of a
        block.
    out : path
        The pack, ``*.aeszpack``.
    id, licence, description : str
    applies_to : sequence of dict
        Key ``variables`` of the manifest; empty: any variable.
    bounds : sequence of ErrorBound
        ``abs`` or ``range_rel``: what the model is judged at.
    validate : sequence of paths
        Judged, not learned from.  Without any, the last tenth of every variable along its first axis.
    block, latents, steps, seed
        See `fit`.
    count : int
        Blocks to learn from, over all variables.
    progress : callable
        ``(what, done, total)``.

    Raises
    ------
    InvalidConfigError
        If an argument is of no use, or a variable is in none of the sources.
    InvalidModelError
        If there is nothing to learn from: only NaN, or constant, or too few blocks.
    """
    shape = _checked_block(block)
    for bound in bounds:
        if bound.mode not in ("abs", "range_rel"):
            raise InvalidConfigError.at("bound", found=str(bound), expected="abs or range_rel")
    most_latents = min(64, math.prod(shape) // 4)
    for name, number, most in (
        ("latents", latents, most_latents),
        ("steps", steps, 10**6),
        ("count", count, 10**6),
    ):
        if not 1 <= number <= most:
            raise InvalidConfigError.at(name, found=str(number), expected=f"1 to {most}")
    learned: list[Array] = []
    unseen: list[tuple[str, str, Array]] = []
    found: set[str] = set()
    for number, source in enumerate(sources):
        for name, values in _variables(source, variables, len(shape)):
            found.add(name)
            last = max(1, len(values) // 10) if values.ndim > len(shape) or len(values) >= 4 * shape[0] else 0
            if not validate and last:
                unseen.append((str(source), name, values[len(values) - last :]))
                values = values[: len(values) - last]
            learned.append(values)
        progress("reading", number + 1, len(sources))
    for source in validate:
        unseen += [(str(source), name, values) for name, values in _variables(source, variables, len(shape))]
    if missing := set(variables) - found:
        raise InvalidConfigError.at(
            "variable",
            found=", ".join(sorted(missing)),
            expected=f"variables of the data, floating-point, {len(shape)} axes or more",
        )
    rng = np.random.default_rng(seed)
    useful = [
        values for values in learned if np.isfinite(values).any() and np.nanmin(values) < np.nanmax(values)
    ]
    if not useful:
        raise InvalidModelError.at(
            "training data", found="only NaN, or constant", expected="values that differ"
        )
    blocks = np.concatenate([sample(values, shape, -(-count // len(useful)), rng) for values in useful])
    if len(blocks) < _FEWEST:
        raise InvalidModelError.at(
            "training data",
            found=f"{len(blocks)} blocks of {'x'.join(map(str, shape))} that vary and are whole",
            expected=f"{_FEWEST} or more",
            remedy="give more or larger arrays, or smaller blocks",
        )
    blocks = blocks[rng.permutation(len(blocks))]
    fitted = fit(blocks, latents=latents, steps=steps, seed=seed, progress=progress)
    manifest = {
        "id": id,
        "kind": KIND,
        "licence": licence,
        "description": description,
        "variables": list(applies_to),
        "network": fitted.network,
        "training": {
            "data": sorted({Path(source).name for source in sources}),
            "seed": seed,
            "steps": steps,
            "blocks": len(blocks),
        },
    }
    judged = tuple(_judged(Pack.from_bytes(write_pack(manifest, fitted.tensors)), unseen, bounds, progress))
    manifest["rates"] = [
        {
            "data": f"{Path(j.source).name}:{j.variable}",
            "bound": j.bound,
            "without": j.without,
            "with": j.with_model,
        }
        for j in judged
    ]
    data = write_pack(manifest, fitted.tensors)
    path = Path(out)
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(data)
    temporary.replace(path)
    pack = Pack.from_bytes(data)
    return AutoencoderReport(pack, path, len(blocks), fitted.explained, fitted.linear, judged)


def sample(values: Array, block: Sequence[int], count: int, rng: np.random.Generator) -> Blocks:
    """Take blocks at random places of an array.

    Parameters
    ----------
    values : float array, shape (..., *axes of a block)
        Padded with its last values where it is shorter than blocks.
    block : sequence of int
    count : int
        How many to draw; those with NaN or infinities, and those that hardly vary, are left out.

    Returns
    -------
    float32, shape (found, *block)
        Less their means, divided by their standard deviations.
    """
    dims = len(block)
    last = values.shape[values.ndim - dims :]
    flat = values.reshape(-1, *last)
    widths = [(0, 0)] + [(0, -n % b) for n, b in zip(last, block, strict=True)]
    flat = np.pad(flat, widths, mode="edge")
    least = float(np.nanstd(np.where(np.isfinite(flat), flat, np.nan), dtype=np.float64)) * _LEAST_SPREAD
    out = []
    for _ in range(count):
        corner = [int(rng.integers(n - b + 1)) for n, b in zip(flat.shape[1:], block, strict=True)]
        window = tuple(slice(c, c + b) for c, b in zip(corner, block, strict=True))
        part = flat[int(rng.integers(len(flat)))][window].astype(np.float64)
        part -= part.mean()
        spread = math.sqrt(float((part**2).mean())) if np.isfinite(part).all() else 0.0
        if spread > least:
            out.append((part / spread).astype(np.float32))
    return np.stack(out) if out else np.empty((0, *block), np.float32)


def fit(
    blocks: Blocks,
    *,
    latents: int = 16,
    steps: int = 2000,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Fitted:
    """Train an autoencoder and convert it to integers.

    Parameters
    ----------
    blocks : float32, shape (n, *block)
        As `sample` gives them, in random order; the last twentieth is not learned from.
    latents : int
        Of a block; fewer than it has values, and than there are blocks.
    steps : int
        Of the float networks, 64 blocks each; the integer decoder gets a third as many besides.
    seed : int
        The same arguments on the same machine give the same integers.

    Raises
    ------
    InvalidModelError
        If a layer cannot be had in integers.
    """
    shape = _checked_block(blocks.shape[1:])
    held = max(1, len(blocks) // 20)
    data, unseen = torch.from_numpy(blocks[:-held])[:, None], torch.from_numpy(blocks[-held:])[:, None]
    rng = np.random.default_rng(seed)
    total = steps + steps // 3
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        components, deviations = _components(data, latents)
        encoder = _encoder(shape, latents)
        decoder = _decoder(shape, (components * deviations * _TYPICAL).float())
        spreads = nn.Parameter(torch.zeros(latents))  # of the latents: log2, in real units
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), spreads], lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for step in range(steps):
            batch, finest, coarse = _drawn(data, rng)
            z = encoder(batch).flatten(1)
            noisy = z + (torch.rand_like(z) - 0.5) * coarse / _LATENT
            bits = _bits(noisy, spreads, coarse / _LATENT)
            loss = (
                _cost(decoder(noisy), batch, finest)
                + bits.sum(1).mean() / math.prod(shape)
                + _PRIOR * _sliced_distance(z / 2 ** spreads.detach())
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([*encoder.parameters(), *decoder.parameters()], 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 49:
                progress("training", step + 1, total)
        codes = _codes(data[:512])
        integer_encoder = IntegerStack.from_float(encoder, codes, input_step=1 / _CODES)
        with torch.no_grad():
            z = _latents(integer_encoder, data[:512], torch.ones(1))
        integer_decoder = IntegerStack.from_float(
            decoder, z, bits=_DECODER_BITS, input_bits=10, input_step=1 / _LATENT
        )
        optimizer = torch.optim.Adam(integer_decoder.parameters(), lr=2e-4)
        for step in range(steps // 3):
            batch, finest, coarse = _drawn(data, rng)
            with torch.no_grad():
                z = _latents(integer_encoder, batch, coarse)
            loss = _cost(integer_decoder(z), batch, finest)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 50 == 49:
                progress("training", steps + step + 1, total)
        network, tensors = _exported(shape, integer_encoder.export(), integer_decoder.export())
    explained = _explained(Autoencoder.load(network, tensors), unseen[:, 0].numpy())
    flat = unseen.flatten(1).double()
    linear = (flat @ components).square().sum() / flat.square().sum()
    return Fitted(network, tensors, explained, float(linear))


def _checked_block(block: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in block)
    if (
        not 1 <= len(shape) <= 3
        or any(n < 4 or n % 4 or n // _patch(n) > 15 for n in shape)
        or math.prod(shape) > 4096
    ):
        raise InvalidConfigError.at(
            "block",
            found=repr(shape)[:80],
            expected="1 to 3 multiples of 4, at most 4096 values, such as 32, 32 or 8, 8, 8",
        )
    return shape


# ---- networks and losses -----------------------------------------------------------------------------------------


def _patch(length: int) -> int:
    return 8 if length > 8 and length % 8 == 0 else 4 if length > 4 else 2


def _convolution(dims: int, *arguments: Any, **options: Any) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](*arguments, **options)


def _encoder(block: Sequence[int], latents: int) -> nn.Sequential:
    """Take patches, then all of them at once: (n, 1, *block) to (n, latents, 1, ...)."""
    patch = tuple(map(_patch, block))
    rest = tuple(n // p for n, p in zip(block, patch, strict=True))
    first = _convolution(len(block), 1, _PATCH_CHANNELS, patch, stride=patch)
    return nn.Sequential(first, _leaky(), _convolution(len(block), _PATCH_CHANNELS, latents, rest))


def _decoder(block: Sequence[int], basis: Tensor) -> nn.Sequential:
    """Combine the columns of a basis, then refine by convolutions, which pass it on at first: (n, latents) to (n, 1, *block)."""
    dims = len(block)
    linear = nn.Linear(basis.shape[1], basis.shape[0])
    first = _convolution(dims, 1, _CHANNELS, 3, padding=1, padding_mode="replicate")
    last = _convolution(dims, _CHANNELS, 1, 3, padding=1, padding_mode="replicate")
    with torch.no_grad():
        linear.weight.copy_(basis)
        linear.bias.zero_()
        for layer in (first, last):
            layer.weight.mul_(0.3)
            layer.bias.zero_()
        for channel, sign in ((0, 1.0), (1, -1.0)):  # x = leaky(x) - leaky(-x), but for a factor
            center = (1,) * dims
            first.weight[(channel, 0, *center)] = sign
            last.weight[(0, channel, *center)] = sign / (1 + _SLOPE)
    return nn.Sequential(linear, nn.Unflatten(1, (1, *block)), first, _leaky(), last)


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(_SLOPE)


def _components(data: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return principal components of blocks, shape (values, count), the first ones first, and their standard deviations."""
    flat = data.flatten(1).double()
    powers, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    return vectors[:, -count:].flip(1), powers[-count:].flip(0).clamp(min=1e-12).sqrt()


def _drawn(data: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw blocks as `Autoencoder.describe` scales them, the step of their values and that of their latents, in codes."""
    at = torch.from_numpy(rng.integers(len(data), size=_BATCH))
    one = (-1,) + (1,) * (data.ndim - 1)
    scale = torch.from_numpy(2.0 ** -rng.random(_BATCH)).float()
    octave = torch.from_numpy(rng.integers(1, _OCTAVES + 1, _BATCH)).float()
    return data[at] * scale.reshape(one), (2.0**-octave).reshape(one), (2.0 ** (_OCTAVES - octave))[:, None]


def _cost(prediction: Tensor, target: Tensor, step: Tensor) -> Tensor:
    """Return about the bits a value that residuals take."""
    return torch.log2(1 + (prediction - target).abs() / step).mean()


def _bits(z: Tensor, spreads: Tensor, step: Tensor) -> Tensor:
    """Return the bits of latents, quantized with a step, under Laplace distributions."""
    scale = torch.exp2(spreads)
    distance = z.abs()
    above, below = (distance + step / 2) / scale, (distance - step / 2) / scale

    def cumulative(x: Tensor) -> Tensor:
        tail = 0.5 * torch.exp(-x.abs())
        return torch.where(x < 0, tail, 1 - tail)

    far = torch.exp(-below.clamp(min=0)) * (1 - torch.exp(-step / scale)) / 2  # no cancellation
    share = torch.where(below > 0, far, cumulative(above) - cumulative(below))
    return -torch.log2(share.clamp(min=1e-9))


def _sliced_distance(z: Tensor, slices: int = 32) -> Tensor:
    """Return the sliced Wasserstein distance, squared, from Laplace distributions of scale 1."""
    prior = torch.distributions.Laplace(0.0, 1.0).sample(z.shape)
    directions = functional.normalize(torch.randn(z.shape[1], slices), dim=0)
    return ((z @ directions).sort(0).values - (prior @ directions).sort(0).values).square().mean()


def _codes(batch: Tensor) -> Tensor:
    return torch.floor(batch * _CODES + 0.5).clamp(-511, 511)


def _latents(encoder: IntegerStack, batch: Tensor, step: Tensor) -> Tensor:
    """Return the decoder's input as `Autoencoder` has it, for latents of some steps."""
    z = encoder(_codes(batch)).flatten(1) * _LATENT
    most = torch.floor(511 / step)
    return torch.floor(z / step + 0.5).clamp(-most, most) * step


def _exported(
    block: Sequence[int], encoder: Exported, decoder: Exported
) -> tuple[dict[str, Any], dict[str, Array]]:
    tensors: dict[str, Array] = {}
    network: dict[str, Any] = {"block": list(block)}
    for name, exported, worth in (("encoder", encoder, _LATENT), ("decoder", decoder, 1.0)):
        layers = [
            {
                key: f"{name}.{value}" if str(value) in exported.tensors else value
                for key, value in layer.items()
            }
            for layer in exported.description["layers"]
        ]
        tensors |= {f"{name}.{key}": tensor for key, tensor in exported.tensors.items()}
        network[name] = {**exported.description, "layers": layers}
        network[f"{name}_shift"] = -round(math.log2(exported.output_step * worth))
    return network, tensors


# ---- judgement ---------------------------------------------------------------------------------------------------


def _explained(model: Autoencoder, blocks: Blocks, coarseness: int = 3) -> float:
    """Return the share of the power that the integers explain: blocks of standard deviation 1, 256 steps."""
    wide = blocks.astype(np.float64) * 256
    description = model.describe(wide, 1.0, coarseness)
    error = wide - model.predict(description, wide.shape) / 2**FRACTION
    return float(1 - (error**2).sum() / (wide**2).sum())


def _judged(
    pack: Pack,
    unseen: Sequence[tuple[str, str, Array]],
    bounds: Sequence[ErrorBound],
    progress: Progress,
) -> Iterator[Judgement]:
    """Code unseen arrays without the model, and their residuals with the best step of its latents."""
    model = Autoencoder.from_pack(pack)
    for number, (source, name, values) in enumerate(unseen):
        frames = max(1, _JUDGED // max(1, math.prod(values.shape[1:])))
        part = np.ascontiguousarray(values[:frames])
        if np.isfinite(part).all() and part.min() < part.max():
            for bound in bounds:
                spread = float(part.max()) - float(part.min()) if bound.mode == "range_rel" else 1.0
                tolerance = (bound.value or 0.0) * spread
                without = len(pipeline.encode(part, ErrorBound("abs", tolerance)))
                with_model = min(_residual_bytes(model, part, tolerance, c) for c in (2, 4, 6))
                label = f"{bound.mode} {bound.value!r}"
                yield Judgement(source, name, label, part.size, without, with_model)
        progress("judging", number + 1, len(unseen))


def _residual_bytes(model: Autoencoder, values: Array, tolerance: float, coarseness: int) -> int:
    step = 2 * tolerance
    description = model.describe(values, step, coarseness)
    prediction = model.predict(description, values.shape) * (step / 2**FRACTION)
    residual = values.astype(np.float64) - prediction
    return len(description.to_bytes()) + len(pipeline.encode(residual, ErrorBound("abs", tolerance)))


def _variables(source: Source, wanted: Sequence[str], dims: int) -> Iterator[tuple[str, Array]]:
    """Read variables that have the axes of a block, the beginning of long ones."""
    with open_source(source) as dataset:
        for name, variable in dataset.data_vars.items():
            if (wanted and name not in wanted) or variable.ndim < dims or variable.dtype.kind != "f":
                continue
            if variable.size and min(variable.shape[variable.ndim - dims :]) > 1:
                length = max(1, _BUDGET // math.prod(variable.shape[1:]))
                yield str(name), variable[:length].to_numpy().astype(np.float32, copy=False)
