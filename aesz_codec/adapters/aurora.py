"""Aurora (Bodnar et al. 2025) as a foundation model, through the package ``microsoft-aurora`` and a checkpoint on this machine.

::

    states (2, channel, lat, lon) --names, levels, order--> aurora.Batch --model--> Batch --> next state (channel, lat, lon)

Channels are called as Aurora calls its variables: ``2t``, ``10u``, ``10v``, ``msl`` and, with a level in hPa, ``z@500``,
``u@500``, ``v@500``, ``t@500``, ``q@500``; all of the model's variables must be there, the atmospheric ones at the same
levels.  Static variables (``lsm``, ``z``, ``slt``) are given when the model is loaded, and are part of its digest, as are the
checkpoint, the class, its configuration and the version of the package.  Latitudes and longitudes may run in either direction.

Weights come from a local path only.  Everything is computed in float32; autocast (bfloat16, float16) and TF32 are off, as
forecasts in them differ from machine to machine by more than any grid bears.  Cost: a step of the model for every state of a
chunk, in the decoder too, and one more in float64 in the encoder.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coordinates import Coordinates, split_channel
from ..errors import InvalidConfigError, InvalidModelError, ModelInputError, ModelNotFoundError
from ..foundation import check_channels, digest_of, file_digest

__all__ = ["Aurora", "load"]

_ADAPTER_VERSION = 1  # part of the digest: rises when the same checkpoint gives other numbers here
_declared: list[Any] = []  # torch forgets the operators of a library that is collected


class Aurora:
    """One of the models of the package ``aurora``, with the weights of a checkpoint.

    Parameters
    ----------
    checkpoint : path
        As Microsoft publishes them, or ``torch.save(model.state_dict(), path)``.
    static : mapping of str to array, or path of a NetCDF or ``.npz`` file
        The model's static variables on the grid of the data, in the order of its axes.
    model : str
        Class in the package: ``AuroraPretrained`` (0.25 degrees), ``AuroraSmallPretrained``, ``Aurora12hPretrained``, ...
    configuration : mapping, optional
        Arguments of the class.
    sha256 : str, optional
        What the checkpoint must be.
    name : str
    device : str
        ``"cpu"``, ``"cuda"``; not part of the digest.

    Raises
    ------
    ModelNotFoundError
        If the package, the checkpoint or the file of static variables is not there.
    ModelDigestError
        If the checkpoint is another one.
    InvalidModelError
        If the checkpoint does not fit the class and its configuration.
    InvalidConfigError
        If there is no such class, or it cannot be used: half precision or random noise.
    """

    latents = 0

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        static: Mapping[str, npt.ArrayLike] | str | os.PathLike[str],
        *,
        model: str = "AuroraPretrained",
        configuration: Mapping[str, Any] | None = None,
        sha256: str | None = None,
        name: str = "aurora",
        device: str = "cpu",
    ) -> None:
        path = Path(checkpoint).expanduser().absolute()
        file_digest(path, f"checkpoint of {name}", sha256)
        self._torch, self._aurora, version = _package()
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in (configuration or {}).items()}
        self.name = name
        self._static = {key: _field(name, key, value) for key, value in _fields(static).items()}
        self.digest = digest_of(
            "aurora",
            files=[path],
            adapter=_ADAPTER_VERSION,
            package=version,
            model=model,
            configuration={key: given[key] for key in sorted(given)},
            static=self._static,
        )
        self._model = self._built(model, given).to(device).eval().requires_grad_(False)
        try:
            self._model.load_checkpoint_local(str(path))
        except Exception as error:  # unpickling, names and shapes of weights
            raise InvalidModelError.at(
                f"checkpoint {path}",
                found=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
                expected=f"weights of {model} with this configuration",
                remedy="give the class and the configuration that the checkpoint is of",
            ) from error
        self._surface, self._upper = tuple(self._model.surf_vars), tuple(self._model.atmos_vars)
        self._fixed = tuple(self._model.static_vars)
        if missing := [key for key in self._fixed if key not in self._static]:
            raise InvalidConfigError.at(
                f"static variables of {name}",
                found=f"no {', '.join(missing)}",
                expected=", ".join(self._fixed),
            )
        self.channels = (*self._surface, *(key for key in self._upper if key not in self._surface))
        self.levels = self._known_levels()
        self.history = int(self._model.max_history_size)
        self._device = device
        self._lock = threading.Lock()

    def check(self, coordinates: Coordinates, grid: tuple[int, int]) -> None:
        """See `FoundationModel`."""
        check_channels(self, coordinates)
        field = f"channels of {self.name}"
        self._channels(coordinates, field)
        step = self._model.timestep.total_seconds()
        if coordinates.step != step:
            raise ModelInputError.at(
                f"time step for {self.name}", found=f"{coordinates.step} s", expected=f"{step:g} s"
            )
        patch = self._model.patch_size
        if grid[1] % patch or grid[0] % patch > 1:
            raise ModelInputError.at(
                f"grid for {self.name}",
                found=f"{grid[0]} latitudes, {grid[1]} longitudes",
                expected=f"multiples of {patch}, or one latitude more",
            )
        for key in self._fixed:
            if self._static[key].shape != grid:
                raise ModelInputError.at(
                    f"static variable {key!r} of {self.name}",
                    found=f"shape {self._static[key].shape}",
                    expected=str(grid),
                )
        latitudes, longitudes = coordinates.latitudes(grid[0]), np.sort(coordinates.longitudes(grid[1]))
        if np.abs(latitudes).max() > 90 + 1e-6 or (np.diff(longitudes) < 1e-6).any():
            raise ModelInputError.at(
                f"grid for {self.name}",
                found=f"latitudes {latitudes[0]:g} to {latitudes[-1]:g}, longitudes of step {coordinates.longitude[1]:g}",
                expected="latitudes within -90 to 90, and each longitude once",
            )

    def step(
        self, states: npt.NDArray[Any], coordinates: Coordinates, *, other: bool = False
    ) -> npt.NDArray[np.float32]:
        """See `FoundationModel`; the other numerics are float64."""
        torch = self._torch
        surface, upper, levels = self._channels(coordinates, "channels")
        rows, columns = states.shape[-2:]
        latitudes, longitudes = coordinates.latitudes(rows), coordinates.longitudes(columns)
        downwards, eastwards = np.argsort(-latitudes, kind="stable"), np.argsort(longitudes, kind="stable")

        def tensor(values: npt.NDArray[Any]) -> Any:
            ordered = values[..., downwards, :][..., eastwards]
            return torch.from_numpy(np.ascontiguousarray(ordered, np.float32)).to(self._device)

        batch = self._aurora.Batch(
            surf_vars={key: tensor(states[None, :, channel]) for key, channel in surface.items()},
            static_vars={key: tensor(self._static[key]) for key in self._fixed},
            atmos_vars={key: tensor(states[None][:, :, places]) for key, places in upper.items()},
            metadata=self._aurora.Metadata(
                lat=torch.from_numpy(np.clip(latitudes[downwards], -90, 90).astype(np.float32)),
                lon=torch.from_numpy(longitudes[eastwards].astype(np.float32)),
                time=(coordinates.at(-1).time,),
                atmos_levels=tuple(int(level) if level == int(level) else level for level in levels),
            ),
        )
        with self._lock, _exact(torch, self._device), torch.inference_mode():
            if other:
                self._model.double()
            try:
                forecast = self._model(batch)
            finally:
                self._model.float()  # exact: the weights were float32
        # a last row that does not fill a patch stays as it was
        following: npt.NDArray[np.float32] = states[-1].astype(np.float32)
        covered = forecast.spatial_shape[0]
        inside = np.ix_(downwards[:covered], eastwards)
        for key, channel in surface.items():
            following[channel][inside] = forecast.surf_vars[key][0, 0].cpu().numpy()
        for key, places in upper.items():
            for number, channel in enumerate(places):
                following[channel][inside] = forecast.atmos_vars[key][0, 0, number].cpu().numpy()
        return following

    def describe(self, state: npt.NDArray[np.float32], coordinates: Coordinates) -> npt.NDArray[np.int32]:
        """See `FoundationModel`: there are no latents."""
        return np.empty(0, np.int32)

    def _built(self, model: str, configuration: Mapping[str, Any]) -> Any:
        kind = getattr(self._aurora, model, None)
        field = f"model of {self.name}"
        if not (isinstance(kind, type) and issubclass(kind, self._aurora.Aurora)):
            names = [n for n in self._aurora.__all__ if n.startswith("Aurora")]
            raise InvalidConfigError.at(field, found=repr(model), expected=f"one of {', '.join(names)}")
        arguments = dict(configuration)
        if "timestep" in arguments:
            arguments["timestep"] = timedelta(seconds=arguments["timestep"])
        try:
            built = kind(**{"autocast": False, **arguments})
        except (TypeError, ValueError, AssertionError) as error:
            raise InvalidConfigError.at(
                f"configuration of {self.name}",
                found=str(error)[:200],
                expected=f"arguments of aurora.{model}",
            ) from error
        if built.autocast or "Ensemble" in model or arguments.get("stochastic") or built.variable_lead_time:
            raise InvalidConfigError.at(
                field,
                found=f"{model} with half precision, random noise or a variable lead time",
                expected="a model that computes the same forecast again, in float32 and with one time step",
                remedy="set autocast to false, or take another model",
            )
        return built

    def _known_levels(self) -> tuple[float, ...]:
        from aurora.normalisation import locations

        levels: set[float] | None = None
        for name in self._upper:
            prefix = f"{name}_"
            found = {
                float(key[len(prefix) :].replace("_", "."))
                for key in locations
                if key.startswith(prefix) and key[len(prefix) :].replace("_", "").isdigit()
            }
            levels = found if levels is None else levels & found
        return tuple(sorted(levels or ()))

    def _channels(
        self, coordinates: Coordinates, field: str
    ) -> tuple[dict[str, int], dict[str, list[int]], tuple[float, ...]]:
        """Return the channel of each surface variable, those of each atmospheric one by level, and the levels."""
        place = {split_channel(channel): number for number, channel in enumerate(coordinates.channels)}
        levels = tuple(sorted({level for _, level in place if level is not None}))
        wanted: list[tuple[str, float | None]] = [(name, None) for name in self._surface]
        wanted += [(name, level) for name in self._upper for level in levels]
        missing = [key for key in wanted if key not in place]
        extra = [key for key in place if key not in wanted]
        if missing or extra or not levels:
            said = [f"no {_text(key)}" for key in missing[:5]] + [
                f"{_text(key)} besides" for key in extra[:5]
            ]
            raise ModelInputError.at(
                field,
                found=", ".join(said) or "no levels",
                expected=f"{', '.join(self._surface)}, and {', '.join(self._upper)} all at the same levels, as in 't@850'",
            )
        upper = {name: [place[name, level] for level in levels] for name in self._upper}
        return {name: place[name, None] for name in self._surface}, upper, levels


def load(**arguments: Any) -> Aurora:
    """Build an `Aurora` from a table of the user's TOML file: the arguments of the class."""
    return Aurora(**arguments)


def _text(key: tuple[str, float | None]) -> str:
    return key[0] if key[1] is None else f"{key[0]}@{key[1]:g}"


def _package() -> tuple[Any, Any, str]:
    """Import torch and the package; with a torch that torchvision has no operators for, declare the two that it asks for."""
    from importlib.metadata import version

    try:
        found = version("microsoft-aurora")  # the package "aurora" is something else
        import torch

        try:
            import aurora
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            from torch import library as operators

            declared: Any = operators.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            _declared.append(declared)
            for name in ("nms", "qnms"):
                with contextlib.suppress(RuntimeError):  # declared by somebody else
                    declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import aurora
    except ImportError as error:
        raise ModelNotFoundError.at(
            "aurora",
            found=f"{type(error).__name__}: {error}",
            expected="the packages microsoft-aurora and torch",
            remedy="pip install 'aesz-codec[aurora]'",
        ) from error
    return torch, aurora, found


@contextlib.contextmanager
def _exact(torch: Any, device: str) -> Iterator[None]:
    """Switch off what computes in fewer bits; the settings are of the whole process and are put back."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(device.partition(":")[0], enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


def _fields(static: Any) -> dict[str, Any]:
    if isinstance(static, Mapping):
        return dict(static)
    path = Path(static).expanduser().absolute()
    file_digest(path, "static variables")
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {key: file[key] for key in file.files}
        import xarray as xr

        with xr.open_dataset(path) as dataset:
            return {str(key): np.squeeze(variable.values) for key, variable in dataset.data_vars.items()}
    except (OSError, ValueError) as error:
        raise InvalidConfigError.at(
            f"static variables {path}", found=str(error), expected="a NetCDF or .npz file"
        ) from error


def _field(name: str, key: str, value: Any) -> npt.NDArray[np.float32]:
    field = np.asarray(value)
    if field.ndim != 2 or field.dtype.kind not in "iuf" or not np.isfinite(field).all():
        raise InvalidConfigError.at(
            f"static variable {key!r} of {name}",
            found=f"{field.dtype}, shape {field.shape}",
            expected="finite numbers, shape (latitude, longitude)",
        )
    return np.ascontiguousarray(field, np.float32)
