"""Write a sharded Zarr format 3 array, and read it chunk by chunk, and with Dask if that is installed.

A shard is one file that holds many chunks: few files, and still each chunk is read on its own.

    python examples/sharded_array.py
"""

import tempfile
from pathlib import Path

import numpy as np
import zarr

from aesz_codec import AESZCodec

BOUND = 0.02


def frames(start: int, stop: int) -> np.ndarray:
    """Frames of a wave that travels over a 90 x 180 grid; shape (stop - start, 90, 180)."""
    time = np.arange(start, stop)[:, None, None]
    y, x = np.mgrid[0:90, 0:180]
    return (10 * np.sin(x / 15 - time / 8) * np.cos(y / 20) + 0.1 * np.sin(x * y / 50)).astype("float32")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            Path(folder) / "wave.zarr",
            shape=(96, 90, 180),
            dtype="float32",
            chunks=(8, 90, 180),
            shards=(48, 90, 180),
            serializer=AESZCodec(error_bound=BOUND),
            compressors=None,
            dimension_names=("time", "y", "x"),
        )
        for start in range(0, 96, 48):  # a whole shard at a time: no chunk is encoded twice
            array[start : start + 48] = frames(start, start + 48)
        files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "zarr.json"]
        ratio = array.nbytes / sum(path.stat().st_size for path in files)
        print(f"{array.nbytes / 1e6:.1f} MB in {len(files)} files, ratio {ratio:.1f}, {array.serializer}")

        # Chunk by chunk: each read decodes one chunk of a shard, so memory stays small.
        largest = 0.0
        for start in range(0, 96, 8):
            chunk = array[start : start + 8].astype("float64")
            largest = max(largest, float(np.abs(chunk - frames(start, start + 8)).max()))
        print(f"largest error {largest:.4f}")
        assert largest <= BOUND

        try:
            import dask.array
        except ImportError:
            print("Dask is not installed: its part is left out")
            return
        lazy = dask.array.from_zarr(array, chunks=(8, 90, 180))
        means = lazy.mean(axis=(1, 2)).compute()
        print(f"with Dask: mean of the first frame {means[0]:.4f}, of the last {means[-1]:.4f}")
        assert np.allclose(means, frames(0, 96).mean(axis=(1, 2)), atol=BOUND)


if __name__ == "__main__":
    main()
