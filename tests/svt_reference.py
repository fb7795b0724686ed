"""The reference values of tests/golden/svt that belong to SVT's objective, and parts to compare with them."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from vidssl.backbones.timesformer import TimeSformer
from vidssl.interfaces import Batch
from vidssl.objectives.parts.distillation import DinoHead

FOLDER = Path(__file__).parent / "golden" / "svt"


def tensors(name: str, below: str = "") -> dict[str, Tensor]:
    """Those of a file whose names begin with ``below``, without it."""
    loaded = load_file(FOLDER / f"{name}.safetensors")
    return {key.removeprefix(below): value for key, value in loaded.items() if key.startswith(below)}


def numbers(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| of tensors of one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max())


def toy_head(state: Mapping[str, Tensor], batch_norm: bool = False) -> DinoHead:
    """A head of the widths that its published state has, with that state."""
    linear = [
        w for key, w in state.items() if key.startswith("mlp") and key.endswith("weight") and w.ndim == 2
    ]
    last = state["last_layer.weight_v"]
    widths = (linear[0].shape[1], *(len(weight) for weight in linear))
    head = DinoHead(widths, len(last), batch_norm=batch_norm, norm_last_layer=True)
    head.load_state_dict(state)
    return head


def toy_timesformer(**keys: object) -> TimeSformer:
    """Reads values as they are: the reference inputs are normalised already."""
    return TimeSformer(**{"drop_path": 0.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **keys})


def views_of(stored: Mapping[str, Tensor]) -> Batch:
    """The two globals and eight locals."""
    views = [stored[f"view_{number}"].float() for number in range(10)]
    return Batch({"global": tuple(views[:2]), "local": tuple(views[2:])})
