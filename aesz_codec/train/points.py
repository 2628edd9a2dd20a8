"""Networks that see the surroundings of one point: samples, training, export.

::

    arrays, bounds --collect--> samples --fit--> float layers --export--> description, tensors (INT-1) for a pack

The loss is the code length of a discretised logistic distribution: its mean is the prediction plus the correction, its width
that of the class of magnitude.  Samples come from the native core, from the very loops that code, so training and coding
cannot differ.  A kind of pack (`KINDS`) has a network for every slot: ``docs/format.md``, section 18 for ``interpolation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import _core
from ..errors import InvalidModelError
from ..nets import ARITHMETIC, Network

__all__ = ["KINDS", "Kind", "Samples", "collect", "export", "fit"]

Array = npt.NDArray[Any]

_INPUT = 64.0  # what the networks take for 1
_CLASSES = 80
# Decoded points that networks of learned interpolation see, in a frame and in the one before, and their hidden layers: what more
# would save is not worth its time.  Classes that are odd along one axis need more than those that are odd along both.
_SEES = ((16, 0), (16, 0), (8, 0), (8, 5), (8, 5), (8, 5), *(((24, 0),) * 7))
_HIDDEN = tuple((24, 12) if slot in (0, 1, 4, 6, 9, 10) else (16, 8) for slot in range(len(_SEES)))


@dataclass(frozen=True, slots=True)
class Kind:
    """What the networks of a kind of pack are fed with.

    Attributes
    ----------
    inputs : tuple of int
        Of the network of every slot.
    terms : tuple of int
        How many magnitudes the spread of a point sums up, by slot.
    collect : callable
        ``(values, mask, tolerance, step, offset, every)`` to a list of pairs of bytes for all slots: inputs (int16) and
        targets (float32) of `Samples`, one row a point.
    hidden : tuple of tuple of int
        Widths of the hidden layers, by slot.
    network : dict
        What ``network`` of the manifest says beside the slots.
    """

    inputs: tuple[int, ...]
    terms: tuple[int, ...]
    collect: Callable[..., list[list[tuple[bytes, bytes]]]]
    hidden: tuple[tuple[int, ...], ...]
    network: dict[str, Any]


def _interpolation(
    values: Array, mask: Array | None, tolerance: float, step: float, offset: float, every: int
) -> list[list[tuple[bytes, bytes]]]:
    """Collect from all axes at once, from frames that refer to the one before, and from frames alone."""
    frames = (0, False), (values.ndim - 2, True), (values.ndim - 2, False)
    return [
        _core.collect_interpolation(values, mask, tolerance, step, offset, batch, reference, every, _SEES)
        for batch, reference in (frames if values.ndim > 2 else frames[:1])
    ]


KINDS: dict[str, Kind] = {
    "interpolation": Kind(
        tuple(around + before + 12 for around, before in _SEES),
        tuple(around for around, _ in _SEES),
        _interpolation,
        _HIDDEN,
        {"sees": [list(seen) for seen in _SEES]},
    ),
}


@dataclass(frozen=True, slots=True)
class Samples:
    """Points for one network.

    Attributes
    ----------
    inputs : int16, shape (n, inputs)
    targets : float32, shape (n, 2)
        What the prediction lacked, in steps; the spread.
    """

    inputs: npt.NDArray[np.int16]
    targets: npt.NDArray[np.float32]


def collect(
    kind: Kind, arrays: Iterable[Array], bounds: Sequence[tuple[float, bool]], count: int = 6000
) -> list[Samples]:
    """Collect about `count` samples for every slot from every array and bound.

    Parameters
    ----------
    kind : Kind
    arrays : iterable of float arrays with 2 or 3 axes, the last two being a frame
        As they will be coded: chunks.  Values that are not finite are masked; arrays without others are left out.
    bounds : sequence of (float, bool)
        Tolerances; with True as shares of the range of each array.

    Returns
    -------
    list of Samples
        By slot; without rows where nothing was found.
    """
    found: list[list[Samples]] = [[] for _ in kind.inputs]
    for array in arrays:
        finite = np.isfinite(array)
        if not finite.any():
            continue
        known = array[finite]
        extent = float(known.max()) - float(known.min())
        values = np.ascontiguousarray(np.where(finite, array, 0), np.float32)
        mask = None if finite.all() else np.ascontiguousarray(~finite, np.uint8)
        slack = float(np.spacing(np.float32(np.abs(known).max() / 2)))
        for bound, relative in bounds:
            tolerance = bound * extent if relative else bound
            if not tolerance > slack or not extent > 0:
                continue
            every = max(1, values.size // (3 * count))
            try:
                parts = kind.collect(
                    values, mask, tolerance, 2 * (tolerance - slack), float(known.flat[0]), every
                )
            except OverflowError:
                continue
            for part in parts:
                for slot, (inputs, targets) in enumerate(part):
                    rows = np.frombuffer(targets, np.float32).reshape(-1, 2)
                    found[slot].append(
                        Samples(np.frombuffer(inputs, np.int16).reshape(len(rows), kind.inputs[slot]), rows)
                    )
    return [_joined(part, width) for part, width in zip(found, kind.inputs, strict=True)]


def _joined(parts: Sequence[Samples], width: int) -> Samples:
    parts = [part for part in parts if len(part.targets)]
    if not parts:
        return Samples(np.empty((0, width), np.int16), np.empty((0, 2), np.float32))
    return Samples(np.concatenate([p.inputs for p in parts]), np.concatenate([p.targets for p in parts]))


def _widths() -> Tensor:
    """Width of the logistic distribution of every class, whose rounded magnitudes have the mean of the class; log."""
    b = np.exp(np.linspace(math.log(0.03), math.log(3e6), 4000))
    k = np.arange(1, 4000)[None]
    tails = 2 / (1 + np.exp(np.minimum((k - 0.5) / b[:, None], 700)))
    mean = np.where(b > 60, 2 * math.log(2) * b, tails.sum(1))
    t = np.arange(-8, _CLASSES + 8)
    wanted = np.where(t > 0, np.maximum(2.0 ** (t / 4) - 1, 1e-9) / 64, 2.0 ** (t / 4) / 400)
    return torch.tensor(np.interp(np.log(wanted), np.log(mean), np.log(b)), dtype=torch.float32)


_WIDTHS = _widths()


def _width(classes: Tensor) -> Tensor:
    x = classes.clamp(-7.9, _CLASSES + 6.9) + 8
    i = x.floor().long()
    part = x - i
    return torch.exp(_WIDTHS[i] * (1 - part) + _WIDTHS[i + 1] * part)


def _bits(error: Tensor, width: Tensor) -> Tensor:
    """Code length of an integer at this distance from the mean."""
    far, near = (error.abs() + 0.5) / width, (error.abs() - 0.5) / width
    p = torch.sigmoid(-near) - torch.sigmoid(-far)
    return -torch.log2(p.clamp_min(1e-9)) + torch.relu(near - 18) * 1.4427


def fit(
    samples: Samples,
    terms: int,
    *,
    hidden: Sequence[int] = (16, 8),
    steps: int = 4000,
    batch: int = 2048,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[nn.Sequential, float]:
    """Train one network; 4,000 steps take about 15 s on one core, and 20,000 save 2 to 4 % more bits.

    Parameters
    ----------
    samples : Samples
    terms : int
        Of the slot, see `Kind`.
    hidden : sequence of int
        Widths of the hidden layers, at most 256.
    steps, batch, seed : int
        Adam, learning rate 0.004 falling along a cosine.
    progress : callable
        Told how many steps are done.

    Returns
    -------
    net : nn.Sequential
        Takes inputs / 64; gives the correction in mean magnitudes of what it saw, and octaves of magnitude above those.
    bits : float
        Code length of a value at the end of training.
    """
    torch.manual_seed(seed)
    x = torch.tensor(samples.inputs, dtype=torch.float32) / _INPUT
    lacking = torch.tensor(samples.targets[:, 0].copy()).clamp(-3e4, 3e4)
    spread = samples.targets[:, 1].astype(np.int64)
    octave = np.floor(np.log2(spread)).astype(np.int64)
    base = torch.tensor(4 * (octave - 2) + (spread >> (octave - 2) & 3), dtype=torch.float32)
    unit = torch.tensor(spread / (8 * terms), dtype=torch.float32)
    layers: list[nn.Module] = []
    last = samples.inputs.shape[1]
    for units in hidden:
        layers += [nn.Linear(last, units), nn.ReLU()]
        last = units
    end = nn.Linear(last, 2)
    with torch.no_grad():
        end.weight.mul_(0.1)
        end.bias.copy_(torch.tensor([0.0, -4.0]))
    net = nn.Sequential(*layers, end)
    batch = min(batch, len(x))
    rate = 4e-3
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, rate / 50)
    bits, done = 0.0, 0
    while done < steps:
        order = torch.randperm(len(x))
        for i in range(min(len(x) // batch, steps - done)):
            j = order[i * batch : (i + 1) * batch]
            out = net(x[j])
            error = lacking[j] - out[:, 0] * unit[j]
            width = _width(base[j] + 4 * out[:, 1])
            # the class is judged by whole steps, the mean also by what it leaves below one
            length = _bits(torch.round(error.detach()), width).mean()
            loss = length + _bits(error, width.detach().clamp_min(0.12)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            bits += (float(length.detach()) - bits) / min(done + 1, 100)
            done += 1
        progress(done)
    return net, bits


def export(
    net: nn.Sequential, samples: Samples, terms: int, prefix: str
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Convert to integers: the description and the tensors of a network, which has been loaded once.

    Hidden layers have weights of 8 bits and activations of 10 bits whose steps are powers of two; the last has weights of
    12 bits in the units that ``docs/format.md`` gives its outputs.

    Raises
    ------
    InvalidModelError
        If a weight of the last layer is out of any reason.
    """
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    h = torch.tensor(samples.inputs[:20000], dtype=torch.float32) / _INPUT
    worth = np.full(linear[0].in_features, _INPUT)  # codes for 1
    tensors: dict[str, Array] = {}
    layers: list[dict[str, Any]] = []
    for i, layer in enumerate(linear):
        weight = layer.weight.detach().numpy().astype(np.float64) / worth
        bias = layer.bias.detach().numpy().astype(np.float64)
        names = {name: f"{prefix}.{i}.{name}" for name in ("weight", "bias", "shift")}
        entry: dict[str, Any] = {"type": "linear"}
        if layer is linear[-1]:
            unit = 1 << (24 if terms > 12 else 22)  # of corrections, over the spread
            scale = np.array([unit / (8 * terms), 4096.0])
            whole = np.round(weight * scale[:, None])
            if np.abs(whole).max() > 2047:
                raise InvalidModelError.at(
                    "net", found="a large weight at the end", expected="at most 2047 of its units"
                )
            tensors[names["weight"]] = whole.astype(np.int16)
            tensors[names["bias"]] = np.round(bias * scale).astype(np.int32)
        else:
            with torch.no_grad():
                h = torch.relu(layer(h))
            most = np.maximum(np.quantile(h.numpy(), 0.9999, axis=0), 1e-3)
            worth = 2.0 ** np.minimum(np.floor(np.log2(1023 / most)), 12)
            shift = np.full(len(bias), 20)
            while True:
                gain = worth * 2.0**shift
                large = (np.abs(weight).max(1) * gain > 127.4) | (np.abs(bias) * gain > 1 << 22)
                if not (large & (shift > 1)).any():
                    break
                shift -= large & (shift > 1)
            tensors[names["weight"]] = np.clip(np.round(weight * gain[:, None]), -127, 127).astype(np.int8)
            tensors[names["bias"]] = np.round(bias * gain).astype(np.int32)
            tensors[names["shift"]] = shift.astype(np.uint8)
            entry |= {"bits": 10, "activation": "relu", "shift": names["shift"]}
        layers.append(entry | {"weight": names["weight"], "bias": names["bias"]})
    description: dict[str, Any] = {
        "arithmetic": ARITHMETIC,
        "input": {"channels": linear[0].in_features, "dims": 0, "bits": 10},
        "layers": layers,
    }
    description["known_answer"] = Network.load(description, tensors).known_answer()
    return description, tensors
