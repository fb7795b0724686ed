"""Features of a run's networks, each computed once: kept in memory and, beside the run, on disk.

A file holds the features of one network on one list of videos under one setting. Its name is a hash of all
that they depend on, which its metadata write out: weights, architecture, videos, views, layers, orders of
frames, precision, device and the code of this package. Whatever of it changes, a new file is made. What is
not seen is a video that was replaced by another of the same name: remove the folder then.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import vidssl
from vidssl import build
from vidssl.components import SOURCE, VIEW_SAMPLER
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.devices import pick_device, use_bfloat16
from vidssl.engine.files import write_atomically
from vidssl.evaluators.features import FeatureTable, Layers
from vidssl.interfaces import Backbone, DataSource, Tokenizer
from vidssl.protocol import FrameOrder, Protocol
from vidssl.resolved import resolved_part
from vidssl.scoring.extraction import Encoded, encode, table_of
from vidssl.scoring.subject import NetworkSpec
from vidssl.sections import PartSpec
from vidssl.spec import dump, plain


@dataclass(frozen=True)
class FeatureJob:
    """Which features are needed of which videos.

    Attributes:
        part: "train" or "test", for messages.
    """

    part: str
    source: PartSpec
    views: PartSpec
    layers: Layers
    frames: tuple[FrameOrder, ...] = ("normal",)


class FeatureStore:
    """The features that protocols ask for.

    Args:
        spec: how the networks are made and run.
        networks: name -> network made so.
        folder: for the files; made when there is something to keep.
    """

    def __init__(
        self, spec: NetworkSpec, networks: Mapping[str, Backbone], *, folder: Path, console: Console
    ) -> None:
        self.spec = spec
        self.networks = networks
        self.folder = folder
        self.console = console
        self._known: dict[str, FeatureTable] = {}
        self._device = pick_device(spec.run.device)
        self._autocast = use_bfloat16(spec.run.precision, self._device)
        self._hashes = {name: state_hash(network) for name, network in networks.items()}
        self._tokenizer = _tokenizer(spec, networks)

    def tables(self, protocol: Protocol) -> dict[str, tuple[FeatureTable, FeatureTable]]:
        """Network -> the features of the videos to learn from and of those to test on.

        Raises:
            UsageError: if no video can be read, or features cannot be kept.
        """
        data = protocol.data
        assert data is not None, "protocols without labelled videos are refused before"
        train_views = protocol.train_views or data.views
        train = FeatureJob("train", data.train, train_views, protocol.layers)
        test = FeatureJob("test", data.test, data.views, protocol.layers, protocol.frames)
        size = protocol.batch_size
        return {
            name: (self._table(name, train, size), self._table(name, test, size)) for name in self.networks
        }

    def _table(self, name: str, job: FeatureJob, batch_size: int) -> FeatureTable:
        source = build.source(job.source)
        key = self._key(name, job, source)
        if key not in self._known:
            path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
            if path.is_file():
                found = read_encoded(path)
                missing = f"; remove it to try {len(found.unreadable)} unreadable videos again"
                self._say(
                    f"{name} network, {job.part} videos: features read from {path}"
                    f"{missing if found.unreadable else ''}"
                )
            else:
                found = self._encode(name, job, source, batch_size)
                self.folder.mkdir(parents=True, exist_ok=True)
                write_encoded(path, found, key, source)
            self._known[key] = table_of(source, found, self._device)
        return self._known[key]

    def _encode(self, name: str, job: FeatureJob, source: DataSource, batch_size: int) -> Encoded:
        return encode(
            self.networks[name],
            source,
            build.views(job.views),
            tokenizer=self._tokenizer,
            layers=job.layers,
            frames=job.frames,
            batch_size=batch_size,
            workers=self.spec.run.workers,
            device=self._device,
            autocast=self._autocast,
            console=self.console,
            title=f"{name} network, {job.part} videos",
        )

    def _key(self, name: str, job: FeatureJob, source: DataSource) -> str:
        """All that the features depend on, as text."""
        spec = None if self._tokenizer is None else self.spec.tokenizer
        made = (self.spec.backbone, None if spec is None else spec.part, job.source, job.views)
        parts = [part for part in made if part is not None]
        return dump(
            {
                "weights": self._hashes[name],
                "backbone": self.spec.keys,
                "tokenizer": None if spec is None else plain(spec.part.node),
                "tokenizer_weights": None if self._tokenizer is None else state_hash(self._tokenizer),
                "source": resolved_part(job.source, SOURCE),
                "videos": keys_hash(source),
                "views": resolved_part(job.views, VIEW_SAMPLER),
                "layers": job.layers,
                "frames": job.frames,
                "precision": "bf16" if self._autocast else "fp32",
                "device": self._device.type,
                "code": code_hash(),
                "own_code": {part.type: file_hash(part.type) for part in parts if ".py:" in part.type},
            }
        )

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _tokenizer(spec: NetworkSpec, networks: Mapping[str, Backbone]) -> Tokenizer | None:
    if all(network.input_kind == "pixels" for network in networks.values()):
        return None
    assert spec.tokenizer is not None, "a recipe whose backbone reads ids was refused without one"
    return build.tokenizer(spec.tokenizer)


def write_encoded(path: Path, found: Encoded, key: str, source: DataSource) -> None:
    """Keep features in a file, in one piece.

    Raises:
        UsageError: if it cannot be written.
    """
    tensors = {f"vectors.{order}": part.contiguous().cpu() for order, part in found.vectors.items()}
    tensors["numbers"] = found.numbers
    keys = [source.key(number) for number in found.numbers.tolist()]
    metadata = {"key": key, "videos": json.dumps(keys), "unreadable": json.dumps(found.unreadable)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_encoded(path: Path) -> Encoded:
    """Features out of a file, mapped into memory.

    Raises:
        UsageError: if it is damaged.
    """
    metadata, tensors = read_tensors(path)
    orders: tuple[FrameOrder, ...] = get_args(FrameOrder)
    vectors = {order: tensors[f"vectors.{order}"] for order in orders if f"vectors.{order}" in tensors}
    return Encoded(vectors, tensors["numbers"], tuple(json.loads(metadata["unreadable"])))


def state_hash(network: nn.Module) -> str:
    """Of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def keys_hash(source: DataSource) -> str:
    """Of the keys of all listed videos, in their order."""
    return hashlib.sha256("\n".join(source.key(index) for index in range(len(source))).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Of every Python file of the package: a change to a network or to a loader is a change of features."""
    root = Path(vidssl.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def file_hash(address: str) -> str:
    """Of the file of a component from outside the package, ``my_file.py:MyClass``."""
    return hashlib.sha256(Path(address.rpartition(":")[0]).read_bytes()).hexdigest()
