"""Compress a NumPy array through numcodecs, once with each kind of bound.

python examples/numpy_bounds.py
"""

import numcodecs
import numpy as np


def make_field() -> np.ndarray:
    """Rain-like values over four orders of magnitude, with dry points (exact zeros) and one missing value."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:200, 0:300] / 30
    field = np.exp(2 * np.sin(x) * np.cos(y) + np.sin(2.3 * x + y) + rng.normal(0, 0.02, x.shape))
    field[field < 0.3] = 0
    field[17, 42] = np.nan
    return field.astype("float32")


def main() -> None:
    field = make_field()
    x = field.astype("float64")
    extent = np.nanmax(x) - np.nanmin(x)
    limits = {
        "abs": (0.01, np.full(x.shape, 0.01)),  # 0.01 everywhere
        "range_rel": (1e-3, np.full(x.shape, 1e-3 * extent)),  # a thousandth of max - min
        "pw_rel": (1e-2, 1e-2 * np.abs(x)),  # 1 % of each value: zero stays zero
        "lossless": (None, np.zeros(x.shape)),
    }
    for mode, (value, limit) in limits.items():
        config = {"id": "aesz", "mode": mode}
        if value is not None:
            config["error_bound"] = value
        codec = numcodecs.get_codec(config)

        stream = codec.encode(field)
        decoded = codec.decode(stream)  # needs no configuration: the stream says what it holds

        error = np.abs(decoded.astype("float64") - x)
        valid = ~np.isnan(x)
        assert (error[valid] <= limit[valid]).all()
        assert (np.isnan(decoded) == np.isnan(field)).all()
        print(f"{codec}: ratio {field.nbytes / len(stream):.1f}, largest error {np.nanmax(error):.4g}")


if __name__ == "__main__":
    main()
