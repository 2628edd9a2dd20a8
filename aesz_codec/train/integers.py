"""From float layers to integer networks (INT-1, ``docs/networks.md``), and the same integers in torch.

::

    float layers --IntegerStack.from_float--> IntegerStack --fine-tune--> IntegerStack --export--> description, tensors
                   (steps of activations          |  straight-through                                     |
                    from calibration inputs)      +-- forward: the very integers ------------ Network.load + to_torch

Idea: between layers travel integer codes; what a code is worth, its *step*, is folded into the weights, so only weights and
biases are rounded, with a power of two for every output channel (Nagel et al. 2021).  `IntegerStack` computes in its forward
pass what the exported network will, in float32, where all sums are exact, and passes gradients straight through (Bengio et al.
2013).  Post-training quantization is often enough: differences of 0.001 to 0.02 bits a value with ten-bit activations.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InvalidModelError
from ..nets import (
    ARITHMETIC,
    GDN,
    LIMIT,
    Activation,
    Add,
    Dense,
    Layer,
    Network,
    PixelShuffle,
    Reshape,
    Table,
)

__all__ = [
    "AIM",
    "IGDN1",
    "Exported",
    "IntegerConv",
    "IntegerGDN",
    "IntegerLinear",
    "IntegerStack",
    "Shuffle",
    "TorchNetwork",
    "exact",
    "quantize",
    "to_torch",
]

AIM = 1 << 22
"""What exported sums stay below: some accelerators lose bits before 2^24."""

Array = npt.NDArray[Any]


# ---- evaluation ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Let float32 sums of integers below 2^24 be exact: no autocast, TF32, NNPACK or cuDNN (Winograd, FFT) meanwhile.

    The flags are those of the process: other threads see them too.  They are restored.
    """
    matmul: Any = torch.backends.cuda.matmul
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        tf32, precision = matmul.allow_tf32, torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, precision)
        stack.callback(setattr, matmul, "allow_tf32", tf32)
        matmul.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield


class TorchNetwork(nn.Module):
    """The integers of a `Network`, evaluated by torch in floating point; made by `to_torch`.

    Attributes
    ----------
    network : Network
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        for i, layer in enumerate(network.layers):
            for name, table in _tables(layer).items():
                self.register_buffer(f"_{i}_{name}", torch.from_numpy(table).to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network.

        Parameters
        ----------
        x : integer or integral floating tensor, shape (*items, *spatial, channels)
            Within the range of the network's input; not checked.

        Returns
        -------
        int32, shape (*items, *extents, channels)
        """
        dims = self.network.input.dims
        items = x.shape[: x.ndim - dims - 1]
        x = x.reshape(-1, *x.shape[x.ndim - dims - 1 :]).to(self.dtype)
        tensors = [x]
        with torch.no_grad(), exact():
            for i, layer in enumerate(self.network.layers):
                tensors.append(self._evaluate(i, layer, tensors))
        out = tensors[-1]
        return out.reshape(*items, *out.shape[1:]).to(torch.int32)

    def _evaluate(self, i: int, layer: Layer, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[-1]

        def table(name: str) -> Tensor:
            return self.get_buffer(f"_{i}_{name}")

        if isinstance(layer, Dense):
            if not layer.conv:
                total = functional.linear(x, table("weight"), table("bias"))
            else:
                total = _convolved(x.movedim(-1, 1), layer, table("weight"), table("bias")).movedim(1, -1)
            if layer.shift is None:
                return total
            return _activated(torch.floor((total + table("half")) * table("scale")), layer.activation)
        if isinstance(layer, Reshape):
            return x.reshape(-1, *layer.shape)
        if isinstance(layer, PixelShuffle):
            return _shuffled(x.movedim(-1, 1), layer.factor).movedim(1, -1)
        if isinstance(layer, GDN):
            norm = torch.floor(
                functional.linear(x.abs(), table("weight"), table("bias")) * table("norm_scale")
            )
            return _activated(torch.floor((x * norm + table("half")) * table("scale")), layer.activation)
        if isinstance(layer, Add):
            total = (
                x * 2 ** layer.scale[0]
                + tensors[layer.tensor] * 2 ** layer.scale[1]
                + (1 << layer.shift >> 1)
            )
            return _activated(torch.floor(total * 2.0**-layer.shift), layer.activation)
        assert isinstance(layer, Table)
        return table("table")[x.long() - layer.lowest]


def to_torch(network: Network, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TorchNetwork:
    """Return a module that evaluates the same integers, after it has given the known answer on this device.

    Parameters
    ----------
    network : Network
    device : str
    dtype : torch.float32 or torch.float64
        float64 where float32 is found to be inexact.

    Raises
    ------
    InvalidModelError
        If torch gives other integers here: use the native core.
    """
    module = TorchNetwork(network, dtype).to(device)
    x = network.known_input()
    answer = hashlib.sha256(
        module(torch.from_numpy(x).to(device)).cpu().numpy().astype("<i4").tobytes()
    ).hexdigest()
    expected = network.known_answer()
    if answer != expected:
        raise InvalidModelError.at(
            f"torch {torch.__version__} on {device}",
            found=f"the answer {answer}",
            expected=expected,
            remedy="evaluate with the native core, or with dtype=torch.float64",
        )
    return module


def _tables(layer: Layer) -> dict[str, Array]:
    """Return the tables of a layer in float64, with halves and scales in place of shifts."""
    out: dict[str, Array] = {}
    if isinstance(layer, Dense | GDN):
        out = {"weight": layer.weight, "bias": layer.bias}
        if layer.shift is not None:
            shift = layer.shift.astype(np.float64)
            out |= {"half": 2.0 ** (shift - 1), "scale": 2.0**-shift}
    if isinstance(layer, GDN):
        out["norm_scale"] = 2.0 ** -layer.norm_shift.astype(np.float64)
    if isinstance(layer, Table):
        out["table"] = layer.table
    return {name: table.astype(np.float64) for name, table in out.items()}


def _activated(v: Tensor, activation: Activation) -> Tensor:
    if activation.slope:
        v = torch.where(v < 0, torch.floor(v * 2.0**-activation.slope), v)
    return v.clamp(activation.lo, activation.hi)


def _padded(x: Tensor, pad: Sequence[tuple[int, int]], padding: Sequence[str]) -> Tensor:
    """Pad the last axes, of any mode and by any number."""
    first = x.ndim - len(pad)
    for axis, ((before, after), how) in enumerate(zip(pad, padding, strict=True), first):
        if not before and not after:
            continue
        if how == "zero":
            widths = [0, 0] * (x.ndim - 1 - axis) + [before, after]
            x = functional.pad(x, widths)
        else:
            n = x.shape[axis]
            at = torch.arange(-before, n + after, device=x.device)
            x = x.index_select(axis, at.clamp(0, n - 1) if how == "replicate" else at % n)
    return x


def _convolved(x: Tensor, layer: Any, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (n, channels, *spatial) as the attributes stride, pad and padding of a layer say."""
    run: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
    out: Tensor = run(_padded(x, layer.pad, layer.padding), weight, bias, stride=layer.stride)
    return out


def _shuffled(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Turn channels of (n, channels, *spatial) into finer spatial axes, in the order of INT-1."""
    dims = len(factor)
    n, spatial = x.shape[0], x.shape[2:]
    x = x.reshape(n, *factor, -1, *spatial)
    order = [axis for i in range(dims) for axis in (2 + dims + i, 1 + i)]
    x = x.permute(0, 1 + dims, *order)
    return x.reshape(n, x.shape[1], *(s * f for s, f in zip(spatial, factor, strict=True)))


# ---- float layers that torch has not ---------------------------------------------------------------------------


class IGDN1(nn.Module):
    """``y = x * (beta + sum gamma |x|)`` over channels, axis 1 (Johnston et al. 2019).

    Attributes
    ----------
    beta : parameter, shape (channels,); gamma : parameter, shape (channels, channels)
        Taken as 0 where they are negative.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate on (n, channels, *spatial)."""
        norm = functional.linear(x.abs().movedim(1, -1), self.gamma.clamp(min=0), self.beta.clamp(min=0))
        return x * norm.movedim(-1, 1)


class Shuffle(nn.Module):
    """Pixel shuffle of 1 to 3 axes in the order of INT-1, channels fastest (`torch.nn.PixelShuffle` has them slowest)."""

    def __init__(self, *factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate on (n, channels, *spatial)."""
        return _shuffled(x, self.factor)


# ---- layers to fine-tune ---------------------------------------------------------------------------------------


class _Floor(torch.autograd.Function):
    """Floor whose gradient is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.floor(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _floor(x: Tensor) -> Tensor:
    out: Tensor = _Floor.apply(x)  # type: ignore[no-untyped-call]
    return out


def _round(x: Tensor) -> Tensor:
    return _floor(x + 0.5)


def _range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _IntegerDense(nn.Module):
    """Weights in the units of training, rounded anew in every forward pass: what `IntegerLinear` and `IntegerConv` share.

    Parameters
    ----------
    weight, bias : float tensors
        In real units: ``real output = weight * real input + bias``.
    step_in, step_out : float
        What a code of the input and of the output is worth.  Without an activation: a sum is worth `step_out`.
    amax : int
        Largest magnitude of an input code.
    activation : Activation or None
        None: sums are the result.
    largest : int
        Of the magnitudes of integer weights.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        step_in: float,
        step_out: float,
        amax: int,
        activation: Activation | None,
        largest: int = 127,
        limit: int = AIM,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(bias.detach().clone().float())
        self.step_in, self.step_out = step_in, step_out
        self.amax, self.activation = amax, activation
        self.largest, self.limit = largest, limit

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return integral weights and biases, with gradients, and shifts: as fine as the L1 rule, aimed lower, allows."""
        weight, bias = self.weight * (self.step_in / self.step_out), self.bias / self.step_out
        rows = weight.detach().flatten(1).double()
        if self.activation is None:
            shift = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        else:
            peak = rows.abs().amax(1).clamp(min=1e-30)
            shift = torch.floor(torch.log2((self.largest + 0.49) / peak)).long().clamp(1, 20)
            for _ in range(20):
                scale = 2.0 ** shift.double()
                total = (
                    torch.floor(rows * scale[:, None] + 0.5).abs().clamp(max=self.largest).sum(1) * self.amax
                )
                total += (bias.detach().double() * scale).abs() + 1 + scale / 2
                high = (total >= self.limit) & (shift > 1)
                if not bool(high.any()):
                    break
                shift = shift - high.long()
        scale = (2.0 ** shift.double()).to(weight.dtype)
        one = [-1] + [1] * (weight.ndim - 1)
        most = float(LIMIT - 1)
        return (
            _round(weight * scale.reshape(one)).clamp(-self.largest, self.largest),
            _round(bias * scale).clamp(-most, most),
            shift,
        )

    def _finished(self, total: Tensor, shift: Tensor) -> Tensor:
        """Shift sums, whose channels are axis 1, and apply the activation."""
        if self.activation is None:
            return total
        scale = (2.0 ** -shift.double()).to(total.dtype).reshape([1, -1] + [1] * (total.ndim - 2))
        v = _round(total * scale)
        if self.activation.slope:
            v = torch.where(v < 0, _floor(v * 2.0**-self.activation.slope), v)
        return v.clamp(self.activation.lo, self.activation.hi)

    def entry(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the layer's part of a description, without names, and its tensors."""
        with torch.no_grad():
            weight, bias, shift = (t.cpu().numpy() for t in self.integers())
        tensors: dict[str, Array] = {"weight": weight.astype(np.int16), "bias": bias.astype(np.int32)}
        entry: dict[str, Any] = {}
        if self.activation is not None:
            tensors["shift"] = shift.astype(np.uint8)
            signed = self.activation.lo < 0
            entry["bits"] = self.activation.hi.bit_length() + signed
            if self.activation.slope:
                entry |= {"activation": "leaky", "slope": self.activation.slope}
            elif not signed:
                entry["activation"] = "relu"
        if self.largest <= 127:
            tensors["weight"] = tensors["weight"].astype(np.int8)
        return entry, tensors


class IntegerLinear(_IntegerDense):
    """Layer ``linear``; see `_IntegerDense` for the parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate on codes of shape (n, channels, *spatial)."""
        weight, bias, shift = self.integers()
        total = functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
        return self._finished(total, shift)

    def entry(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the layer's part of a description and its tensors."""
        entry, tensors = super().entry()
        return {"type": "linear", **entry}, tensors


class IntegerConv(_IntegerDense):
    """Layer ``conv``: `IntegerLinear` in a window.

    Parameters
    ----------
    stride : sequence of int; pad : sequence of (int, int); padding : sequence of {"zero", "replicate", "circular"}
        One entry for each spatial axis.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: Sequence[int],
        pad: Sequence[tuple[int, int]],
        padding: Sequence[str],
        **rest: Any,
    ) -> None:
        super().__init__(weight, bias, **rest)
        self.stride, self.pad, self.padding = tuple(stride), tuple(pad), tuple(padding)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate on codes of shape (n, channels, *spatial)."""
        weight, bias, shift = self.integers()
        return self._finished(_convolved(x, self, weight, bias), shift)

    def entry(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the layer's part of a description and its tensors."""
        entry, tensors = super().entry()
        entry |= {
            "stride": list(self.stride),
            "pad": [list(p) for p in self.pad],
            "padding": list(self.padding),
        }
        return {"type": "conv", **entry}, tensors


class IntegerGDN(nn.Module):
    """Layer ``gdn``.

    Parameters
    ----------
    beta, gamma : float tensors
        Those of `IGDN1`, in real units.
    step_in, step_out, amax, activation, limit
        As of `IntegerLinear`.
    """

    def __init__(
        self,
        beta: Tensor,
        gamma: Tensor,
        *,
        step_in: float,
        step_out: float,
        amax: int,
        activation: Activation,
        limit: int = AIM,
    ) -> None:
        super().__init__()
        self.beta = nn.Parameter(beta.detach().clone().float())
        self.gamma = nn.Parameter(gamma.detach().clone().float())
        self.step_in, self.step_out = step_in, step_out
        self.amax, self.activation, self.limit = amax, activation, limit

    def integers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return integral gamma and beta, with gradients, shifts of the norm and of the product."""
        ratio = self.step_in / self.step_out
        gamma, beta = self.gamma.clamp(min=0) * (self.step_in * ratio), self.beta.clamp(min=0) * ratio
        g, b = gamma.detach().double(), beta.detach().double()
        keep = self.limit // self.amax  # what is left of the norm
        # as many bits as the norm may have: it is at most sum g * amax + b
        bound = (g.sum(1) * self.amax + b).clamp(min=1e-30)
        shift = torch.floor(torch.log2((self.limit - 1 - self.amax * (g.shape[1] + 1)) / bound)).long()
        shift = torch.minimum(shift, torch.floor(torch.log2(2047.49 / g.amax(1).clamp(min=1e-30))).long())
        most = bound * 2.0 ** shift.double() + self.amax * (g.shape[1] + 1)
        low = torch.ceil(torch.log2((most + 1) / keep)).long().clamp(0, 20)
        shift = torch.minimum(torch.maximum(shift, low + 1), low + 20)
        scale = (2.0 ** shift.double()).to(gamma.dtype)
        return _round(gamma * scale[:, None]), _round(beta * scale), low, shift - low

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate on codes of shape (n, channels, *spatial)."""
        gamma, beta, low, shift = self.integers()
        norm = functional.linear(x.abs().movedim(1, -1), gamma, beta)
        norm = _floor(norm * (2.0 ** -low.double()).to(norm.dtype))
        v = _round(x.movedim(1, -1) * norm * (2.0 ** -shift.double()).to(norm.dtype))
        return v.clamp(self.activation.lo, self.activation.hi).movedim(-1, 1)

    def entry(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the layer's part of a description and its tensors."""
        with torch.no_grad():
            gamma, beta, low, shift = (t.cpu().numpy() for t in self.integers())
        tensors: dict[str, Array] = {"weight": gamma.astype(np.int16), "bias": beta.astype(np.int32)}
        tensors |= {"norm_shift": low.astype(np.uint8), "shift": shift.astype(np.uint8)}
        return {"type": "gdn", "bits": self.activation.hi.bit_length() + 1}, tensors


class _IntegerShuffle(Shuffle):
    def entry(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"type": "pixel_shuffle", "factor": list(self.factor)}, {}


class _IntegerReshape(nn.Module):
    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)  # channels last

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape).movedim(-1, 1)

    def entry(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"type": "reshape", "shape": list(self.shape)}, {}


# ---- whole networks --------------------------------------------------------------------------------------------


class Exported(NamedTuple):
    """An exported network.

    Attributes
    ----------
    description, tensors
        For `Network.load` and for a pack; the description has a known answer.
    output_step : float
        What 1 of the network's result is worth; a power of two if the last layer is raw.
    """

    description: dict[str, Any]
    tensors: dict[str, Array]
    output_step: float


class IntegerStack(nn.Module):
    """Layers one after the other, which compute the integers of the network that `export` returns.

    Attributes
    ----------
    layers : nn.ModuleList
    input_step, output_step : float
        What a code of the input, and 1 of the result, is worth.
    """

    def __init__(
        self, layers: Iterable[nn.Module], head: dict[str, Any], input_step: float, output_step: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head
        self.input_step, self.output_step = input_step, output_step

    @classmethod
    def from_float(
        cls,
        layers: Iterable[nn.Module],
        calibration: Tensor,
        *,
        bits: int = 10,
        input_bits: int | None = None,
        input_step: float = 1.0,
        largest: int = 127,
        last_largest: int = 2047,
        coverage: float = 1.0,
        limit: int = AIM,
    ) -> IntegerStack:
        """Convert float layers.

        Parameters
        ----------
        layers : iterable of modules
            `nn.Linear`, `nn.Conv1d` to `nn.Conv3d` (no groups or dilation), each followed by `nn.ReLU`, `nn.LeakyReLU` with a
            slope of 2^-k or nothing (also after what only moves values); `IGDN1`; `Shuffle`, or `nn.PixelShuffle` after a
            convolution; `nn.Unflatten` of axis 1 after a linear layer; `nn.Identity`.  The last with weights gives sums.
        calibration : tensor, shape (n, channels, *spatial)
            Input codes, integral, signed; `layers` take them times `input_step`.
        bits, input_bits : int
            8 to 12, of activations and of the input (as `bits`).
        largest, last_largest : int
            Magnitude of integer weights, of the last layer's; more bits there cost little.
        coverage : float
            Share of the calibration values of a layer that its codes reach.
        limit : int
            What sums stay below.

        Raises
        ------
        InvalidModelError
            If a layer cannot be converted.
        """
        input_bits = bits if input_bits is None else input_bits
        hi = _range(input_bits, True)[1]
        plan = _plan(list(layers))
        real = calibration.float() * input_step
        step, amax = input_step, hi
        made: list[nn.Module] = []
        head = {"channels": calibration.shape[1], "dims": calibration.ndim - 2, "bits": input_bits}
        weighted = [i for i, (layer, _) in enumerate(plan) if isinstance(layer, _DENSE)]
        if not weighted or any(isinstance(layer, IGDN1) for layer, _ in plan[weighted[-1] :]):
            raise InvalidModelError.at(
                "layers", found="no linear or conv layer at the end", expected="one, for the result"
            )
        for i, (layer, activation) in enumerate(plan):
            if isinstance(layer, nn.Linear) and real.ndim > 2:
                raise InvalidModelError.at(
                    "layers", found=f"{layer} with spatial axes", expected="a convolution of size 1"
                )
            with torch.no_grad():
                real = layer(real)
                if activation is not None:
                    real = activation(real)
            if isinstance(layer, nn.Unflatten):
                made.append(_IntegerReshape([*real.shape[2:], real.shape[1]]))
            elif isinstance(layer, Shuffle | nn.PixelShuffle):
                factor = layer.factor if isinstance(layer, Shuffle) else (layer.upscale_factor,) * 2
                made.append(_IntegerShuffle(*factor))
            else:
                last = i == weighted[-1]
                clamp = Activation(*_range(bits, not isinstance(activation, nn.ReLU)), _slope(activation))
                step_out = _reach(real, coverage) / clamp.hi
                if isinstance(layer, IGDN1):
                    gdn = IntegerGDN(
                        layer.beta,
                        layer.gamma,
                        step_in=step,
                        step_out=step_out,
                        amax=amax,
                        activation=clamp,
                        limit=limit,
                    )
                    made.append(gdn)
                else:
                    weight, bias = _ordered(layer, plan[i + 1][0] if i + 1 < len(plan) else None)
                    if last:
                        if activation is not None:
                            raise InvalidModelError.at(
                                "layers", found="an activation at the end", expected="none"
                            )
                        step_out = _raw_step(weight, bias, step, amax, last_largest, limit)
                    rest: dict[str, Any] = {
                        "step_in": step,
                        "step_out": step_out,
                        "amax": amax,
                        "activation": None if last else clamp,
                        "largest": last_largest if last else largest,
                        "limit": limit,
                    }
                    if isinstance(layer, nn.Linear):
                        made.append(IntegerLinear(weight, bias, **rest))
                    else:
                        made.append(IntegerConv(weight, bias, **_window(layer), **rest))
                step, amax = step_out, max(-clamp.lo, clamp.hi)
        return cls(made, head, input_step, step)

    def codes(self, x: Tensor) -> Tensor:
        """Return the network's integers for input codes of shape (n, channels, *spatial), as floats with gradients."""
        with exact():
            for layer in self.layers:
                x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the result in real units, for input codes of shape (n, channels, *spatial)."""
        return self.codes(x) * self.output_step

    def export(self) -> Exported:
        """Return the network, loaded once: its integers are those of `codes`."""
        tensors: dict[str, Array] = {}
        entries = []
        for i, layer in enumerate(self.layers):
            entry, own = layer.entry()  # type: ignore[operator]
            for key, tensor in own.items():
                entry[key] = f"{i}.{key}"
                tensors[f"{i}.{key}"] = tensor
            entries.append(entry)
        description = {"arithmetic": ARITHMETIC, "input": dict(self.head), "layers": entries}
        description["known_answer"] = Network.load(description, tensors).known_answer()
        return Exported(description, tensors, self.output_step)


def quantize(layers: Iterable[nn.Module], calibration: Tensor, **options: Any) -> Exported:
    """Convert float layers, multilayer perceptrons and stacks of convolutions alike, without fine-tuning.

    Parameters and errors are those of `IntegerStack.from_float`.

    Examples
    --------
    >>> layers = [nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)]
    >>> codes = torch.randint(-511, 512, (100, 3))
    >>> exported = quantize(layers, codes, input_step=1 / 256)
    >>> network = Network.load(exported.description, exported.tensors)
    >>> difference = network(codes.numpy()) * exported.output_step - nn.Sequential(*layers)(codes / 256).detach().numpy()
    >>> bool(abs(difference).max() < 0.1)
    True
    """
    return IntegerStack.from_float(layers, calibration, **options).export()


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DENSE = (nn.Linear, *_CONVS)
_PADDING = {"zeros": "zero", "replicate": "replicate", "circular": "circular"}


def _plan(layers: list[nn.Module]) -> list[tuple[Any, nn.Module | None]]:
    """Pair layers with the activations after them."""
    flat = [part for layer in layers for part in (layer if isinstance(layer, nn.Sequential) else [layer])]
    flat = [layer for layer in flat if not isinstance(layer, nn.Identity)]
    out: list[tuple[Any, nn.Module | None]] = []
    for layer in flat:
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            at = len(out) - 1  # moving values about may as well come after
            while at >= 0 and isinstance(out[at][0], Shuffle | nn.PixelShuffle | nn.Unflatten):
                at -= 1
            if at < 0 or not isinstance(out[at][0], _DENSE) or out[at][1] is not None:
                raise InvalidModelError.at(
                    "layers", found=f"{layer} there", expected="a linear or conv layer before it"
                )
            out[at] = (out[at][0], layer)
        elif isinstance(layer, (*_DENSE, IGDN1, Shuffle, nn.PixelShuffle, nn.Unflatten)):
            if isinstance(layer, nn.PixelShuffle | nn.Unflatten) and not (
                out and isinstance(out[-1][0], _DENSE)
            ):
                raise InvalidModelError.at(
                    "layers", found=f"{layer} there", expected="a linear or conv layer before it"
                )
            if isinstance(layer, nn.Unflatten) and (layer.dim != 1 or not isinstance(out[-1][0], nn.Linear)):
                raise InvalidModelError.at(
                    "layers", found=str(layer), expected="Unflatten(1, ...) after a linear layer"
                )
            out.append((layer, None))
        else:
            raise InvalidModelError.at("layers", found=str(layer), expected="a layer that INT-1 has")
    return out


def _slope(activation: nn.Module | None) -> int:
    if not isinstance(activation, nn.LeakyReLU):
        return 0
    k = -math.log2(activation.negative_slope)
    if k != round(k) or not 1 <= k <= 8:
        raise InvalidModelError.at(
            "negative_slope", found=str(activation.negative_slope), expected="2^-k, k from 1 to 8"
        )
    return round(k)


def _reach(x: Tensor, coverage: float) -> float:
    """Return the magnitude that this share of the values does not exceed, not 0."""
    values = x.abs().flatten().double()
    reach = (
        values.max() if coverage >= 1 else values.kthvalue(max(1, math.ceil(coverage * len(values)))).values
    )
    return float(reach) or 1.0


def _ordered(layer: Any, after: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return weights and biases with outputs in the order of INT-1 for what comes after."""
    weight: Tensor = layer.weight.detach()
    bias: Tensor = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if isinstance(after, nn.PixelShuffle | nn.Unflatten):
        parts = (
            after.upscale_factor**2
            if isinstance(after, nn.PixelShuffle)
            else math.prod(after.unflattened_size[1:])
        )
        order = torch.arange(len(weight), device=weight.device).reshape(-1, parts).T.flatten()
        weight, bias = weight[order], bias[order]
    return weight, bias


def _raw_step(weight: Tensor, bias: Tensor, step: float, amax: int, largest: int, limit: int) -> float:
    """Return the smallest power of two that sums may be worth."""
    rows = weight.double().flatten(1) * step
    k = math.floor(math.log2(largest / max(float(rows.abs().max()), 1e-30)))
    while True:
        scale = 2.0**k
        total = (
            torch.floor(rows * scale + 0.5).abs().sum(1) * amax + (bias.double() * scale).abs() + 1
        ).max()
        if float(total) < limit:
            return 1 / scale
        k -= 1


def _window(layer: Any) -> dict[str, Any]:
    """Return stride and padding of a convolution of torch."""
    if layer.groups != 1 or set(layer.dilation) != {1} or layer.padding_mode not in _PADDING:
        raise InvalidModelError.at(
            "layers", found=str(layer), expected="no groups, no dilation, padding without reflection"
        )
    kernel = layer.kernel_size
    if layer.padding == "same":
        pad = [((k - 1) // 2, k // 2) for k in kernel]
    elif layer.padding == "valid":
        pad = [(0, 0)] * len(kernel)
    else:
        pad = [(p, p) for p in layer.padding]
    return {"stride": layer.stride, "pad": pad, "padding": [_PADDING[layer.padding_mode]] * len(kernel)}
