"""Convert a dataset into a compressed Zarr store whose values are all within their bound.

    source -> plan -> tasks of whole target chunks -> workers (Dask) -> finish
               |       read | encode | measure | put       |            one atomic step
               `------------- journal in the store --------'

- `plan`: what happens to each variable, and which tasks that takes; reads as data.
- `write`: what a worker does with one task, and the objects around the chunks.
- `engine`: threads, processes or a cluster, all Dask's.
- `journal`: what is finished, so that a conversion goes on where it was stopped; and the lock of its one converter.
- `run`: `convert`, from the source to the finished store.
- `appending`: `append`, of a later part to a finished store.
- `report`: the outcome as one HTML file and as JSON.

Which variables are compressed, in which dtype and chunks, is `encoding_for`'s decision; floating-point
variables without a bound are compressed losslessly.  Everything else (coordinates, cell bounds, integers,
strings) is copied exactly, with Zarr's default codec.  Packed sources (``scale_factor``, ``add_offset``) are
decoded first: the bound is on the physical values.  Without a bound the packed integers are copied.
"""

from ..progress import Progress
from .appending import append
from .plan import ConversionPlan, VariablePlan, plan_conversion, plan_tasks
from .run import convert
from .summary import ConversionSummary, VariableSummary

__all__ = [
    "ConversionPlan",
    "ConversionSummary",
    "Progress",
    "VariablePlan",
    "VariableSummary",
    "append",
    "convert",
    "plan_conversion",
    "plan_tasks",
]
