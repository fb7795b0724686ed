"""Files of features: NumPy, Parquet and safetensors, each with the names and times of its rows."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidssl.engine.atomic import write_atomically, write_text
from vidssl.engine.checkpoint import save_tensors
from vidssl.errors import UsageError

FORMATS = (".npy", ".npz", ".parquet", ".safetensors")


@dataclass(frozen=True)
class Row:
    """What a row of features is of.

    Attributes:
        video: its key in the source.
        start, end: seconds from its start; nan for the whole video, or where it states no rate.
        labels: label name -> class name.
    """

    video: str
    start: float
    end: float
    labels: Mapping[str, str]


def check_format(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        UsageError: with the formats there are, or the package that is missing.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: features are written as {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UsageError(f"{path}: install what writes Parquet: pip install 'vidssl[parquet]'") from None
    if path.parent != Path() and not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")


def written(path: Path, features: Tensor, rows: Sequence[Row]) -> list[Path]:
    """Writes features [N, ...] and what their rows are of; the files that hold them.

    - ``.npy``: the array; video, start, end and labels in a ``.csv`` of the same name.
    - ``.npz``: arrays ``features``, ``video``, ``start``, ``end`` and ``label_NAME``.
    - ``.parquet``: columns of these names; features as lists, flattened, their shape in the metadata.
    - ``.safetensors``: tensors ``features``, ``start`` and ``end``; the rest as JSON in the metadata.
    """
    columns = _columns(rows)
    if path.suffix == ".npy":
        beside = path.with_suffix(".csv")
        write_text(beside, _csv(columns))
        write_atomically(path, lambda file: _npy(file, features.numpy()))
        return [path, beside]
    if path.suffix == ".npz":
        write_atomically(path, lambda file: _npz(file, features, columns))
    elif path.suffix == ".parquet":
        write_atomically(path, lambda file: _parquet(file, features, columns))
    else:
        times = {name: torch.tensor(columns.pop(name), dtype=torch.float64) for name in ("start", "end")}
        metadata = {name: json.dumps(column) for name, column in columns.items()}
        save_tensors(path, {"features": features, **times}, metadata)
    return [path]


def _columns(rows: Sequence[Row]) -> dict[str, list[object]]:
    names = sorted({name for row in rows for name in row.labels})
    found: dict[str, list[object]] = {
        key: [getattr(row, key) for row in rows] for key in ("video", "start", "end")
    }
    return found | {f"label_{name}": [row.labels.get(name, "") for row in rows] for name in names}


def _csv(columns: Mapping[str, Sequence[object]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _npy(path: Path, array: "np.typing.NDArray[np.generic]") -> None:
    with path.open("wb") as file:  # by name, NumPy would add an ending
        np.save(file, array)


def _npz(path: Path, features: Tensor, columns: Mapping[str, Sequence[object]]) -> None:
    with path.open("wb") as file:
        arrays = {name: np.array(column) for name, column in columns.items()}
        save: Any = np.savez  # its newer keywords hide that it takes any name
        save(file, features=features.numpy(), **arrays)


def _parquet(path: Path, features: Tensor, columns: Mapping[str, Sequence[object]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    flat = features.flatten(1).numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    arrays = {name: pa.array(column) for name, column in columns.items()} | {"features": vectors}
    table = pa.table(arrays).replace_schema_metadata({"shape": json.dumps(list(features.shape[1:]))})
    parquet.write_table(table, path)
