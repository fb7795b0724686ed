"""Files like those that OpenAI published: pickled modules whose classes live in a package ``dall_e``."""

import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

_CLASSES = {
    "encoder": ("Encoder", "EncoderBlock"),
    "decoder": ("Decoder", "DecoderBlock"),
    "utils": ("Conv2d",),
}


@contextmanager
def dall_e_package() -> Iterator[Mapping[str, type[nn.Module]]]:
    """Empty module classes under the published names, importable inside the block only."""
    modules = {f"dall_e.{name}": ModuleType(f"dall_e.{name}") for name in _CLASSES}
    modules["dall_e"] = ModuleType("dall_e")
    made = {}
    for module, names in _CLASSES.items():
        for name in names:
            made[name] = type(name, (nn.Module,), {"__module__": f"dall_e.{module}"})
            setattr(modules[f"dall_e.{module}"], name, made[name])
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name in modules:
            del sys.modules[name]


def save_release(path: Path, part: str, state: Mapping[str, Tensor], *, legacy: bool = False) -> None:
    """Writes the whole module that has this state (names like ``blocks.input.w``) to ``path``.

    Args:
        part: "encoder" or "decoder".
        legacy: in the format before PyTorch 1.6.
    """
    with dall_e_package() as classes, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the source text of the classes
        root = classes[part.capitalize()]()
        root.n_hid, root.device, root.make = 8, torch.device("cpu"), partial(classes["Conv2d"], kw=3)
        for key, tensor in state.items():
            *below, name = key.split(".")
            module = root
            for depth, child in enumerate(below):
                if child not in module._modules:
                    module.add_module(child, _module(classes, part, below[: depth + 1], state))
                module = module._modules[child]
            module.register_parameter(name, nn.Parameter(tensor.clone(), requires_grad=False))
        torch.save(root, path, _use_new_zipfile_serialization=not legacy)


def _module(
    classes: Mapping[str, type[nn.Module]], part: str, below: list[str], state: Mapping[str, Tensor]
) -> nn.Module:
    if f"{'.'.join(below)}.w" in state:
        return classes["Conv2d"]()
    if below[-1].startswith("block_"):
        block = classes[f"{part.capitalize()}Block"]()
        block.id_path, block.post_gain = nn.Identity(), 1 / 64
        return block
    extra = [("relu", nn.ReLU()), ("pool", nn.MaxPool2d(2)), ("up", nn.Upsample(scale_factor=2.0))]
    return nn.Sequential(OrderedDict(extra))
