"""Features of a run's networks, each computed once: kept in memory and, beside the run, on disk.

A file holds the features of one network on one list of videos under one setting. Its name is a hash of all
that they depend on, which its metadata write out: weights, architecture, videos, views, layers, orders of
frames, precision, device and the code of this package; of each video its size and time, or its checksum.
Whatever of it changes, a new file is made. A file that is damaged is made anew. Patch tokens lie in files of
their own beside it, written for probes that read them, and are never in memory as a whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from torch import Tensor

import vidssl
from vidssl.build import build
from vidssl.build.checks import check_reads_ids, check_stored
from vidssl.build.registry import SOURCE, VIEW_SAMPLER, patch_type, resolved_part
from vidssl.config import schema, strict_yaml
from vidssl.config.protocol import FrameOrder, FutureSpec, Layers, PatchType, Protocol
from vidssl.data.classes import numbered_together
from vidssl.data.sources import origins, token_store
from vidssl.engine import checkpoint, distributed, facts, process, speed
from vidssl.engine.logging import print_line
from vidssl.errors import UsageError, counted
from vidssl.evaluate.subject import NetworkSpec, state_hash
from vidssl.evaluators import features
from vidssl.evaluators.extract import ALONE, Encoded, encode, table_of
from vidssl.interfaces import Backbone, DataSource, Tokenizer


@dataclass(frozen=True)
class FeatureJob:
    """The features that are needed of some videos.

    Attributes:
        part: "train" or "test", for messages.
        patches: how patch tokens are kept; None where none are needed.
        blocks, future: whose they are, as in ``Protocol``.
    """

    part: str
    source: schema.PartSpec
    views: schema.PartSpec
    layers: Layers
    frames: tuple[FrameOrder, ...] = ("normal",)
    patches: PatchType | None = None
    blocks: tuple[int, ...] = ()
    future: FutureSpec | None = None


class FeatureStore:
    """The features that protocols ask for.

    Args:
        spec: how the networks are made and run.
        networks: name -> network made so.
        folder: for the files; made when there is something to keep.
        world: processes that share the work. All of them get the vectors; rank 0 keeps them on disk,
            and it alone gets patch tokens.
        foreseeing: makes the same networks with predicted cells, for protocols that have a ``future``.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        networks: Mapping[str, Backbone],
        *,
        folder: Path,
        console: Console,
        world: distributed.World = ALONE,
        foreseeing: Callable[[FutureSpec], Mapping[str, Backbone]] | None = None,
    ) -> None:
        self.spec = spec
        self.networks = networks
        self.folder = folder
        self.console = console
        self.world = world
        self._known: dict[tuple[str, PatchType | None], features.FeatureTable] = {}
        self._sources: dict[str, DataSource] = {}
        self._device = distributed.take_device(spec.run.device, world.local_rank)
        self._autocast = speed.use_bfloat16(spec.run.precision, self._device)
        self._foreseeing = foreseeing
        self._foreseen: dict[FutureSpec, Mapping[str, Backbone]] = {}
        self._hashes: dict[tuple[str, FutureSpec | None], str] = {}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        assert self.spec.tokenizer is not None, "what reads ids was refused without one"
        return build.tokenizer(self.spec.tokenizer)

    def _tokenizer_of(self, source: DataSource) -> Tokenizer | None:
        """The tokenizer for a source's pixels; none for stored ids and for networks that read pixels."""
        of_pixels = all(network.input_kind == "pixels" for network in self.networks.values())
        return None if of_pixels or isinstance(source, token_store.TokenStore) else self._tokenizer

    def encode_patches(self, protocols: Iterable[Protocol]) -> None:
        """Computes what protocols that read patch tokens need, so that the others find its vectors.

        Raises:
            UsageError: as ``tables``.
        """
        for protocol in protocols:
            if patch_type(protocol) is not None:
                self.tables(protocol)

    def tables(self, protocol: Protocol) -> dict[str, tuple[features.FeatureTable, features.FeatureTable]]:
        """Network -> the features of the videos to learn from and of those to test on, numbered together.

        Raises:
            UsageError: if no video can be read, or features cannot be kept.
        """
        data = protocol.data
        assert data is not None, "protocols without labelled videos are refused before"
        train_views = protocol.train_views or data.views
        patches = patch_type(protocol)
        test = FeatureJob(
            "test", data.test, data.views, protocol.layers, protocol.frames, patches, protocol.blocks,
            protocol.future,
        )  # fmt: skip
        train = replace(test, part="train", source=data.train, views=train_views, frames=("normal",))
        size = protocol.batch_size
        found = {}
        for name in self.networks:
            learn, tested = self._table(name, train, size), self._table(name, test, size)
            together = numbered_together(learn.classes, tested.classes)
            found[name] = (learn.renumbered(together), tested.renumbered(together))
        return found

    def source(self, part: schema.PartSpec) -> DataSource:
        """The source of a section, opened once; rank 0 makes what it keeps on disk."""
        text = strict_yaml.dump(resolved_part(part, SOURCE))
        if text not in self._sources:
            self._sources[text] = self.world.one_first(lambda: build.source(part))
        return self._sources[text]

    def _network(self, name: str, job: FeatureJob) -> Backbone:
        """The network of a name, as a job reads it; and its hash is known then."""
        networks = self.networks
        if job.future is not None:
            assert self._foreseeing is not None, "given wherever protocols are read"
            if job.future not in self._foreseen:
                self._foreseen[job.future] = self._foreseeing(job.future)
            networks = self._foreseen[job.future]
        if (name, job.future) not in self._hashes:
            self._hashes[name, job.future] = state_hash(networks[name])
        return features.SeveralBlocks(networks[name], job.blocks) if job.blocks else networks[name]

    def _table(self, name: str, job: FeatureJob, batch_size: int) -> features.FeatureTable:
        source = self.source(job.source)
        sampler = build.views(job.views)
        network = self._network(name, job)
        check_reads_ids(network, str(self.spec.keys["type"]), "it", sampler, job.views.node)
        check_stored(self.spec.tokenizer, job.source, job.views, source, sampler)
        key = self._key(name, job, source)
        if (key, job.patches) not in self._known:
            path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
            kept = self.world.from_first(lambda: "kept" if self._is_kept(path, job, key, source) else "")
            if kept:
                found = self._with_patches(read_encoded(path, key, source), path, job)
                missing = f"; remove it to try {len(found.unreadable)} unreadable videos again"
                self._say(
                    f"{name} network, {job.part} videos: features read from {path}"
                    f"{missing if found.unreadable else ''}"
                )
            else:
                if job.patches is not None:
                    process.make_folder(self.folder)
                found = self._encode(name, network, job, source, batch_size, path)
            try:
                table = table_of(source, found, self._device)
            except UsageError as error:
                raise UsageError(f"{name} network, {job.part} videos: {error}") from error
            if self.world.first and not kept:
                try:
                    process.make_folder(self.folder)
                    write_encoded(path, found, key, source)
                except UsageError as error:
                    self._say(f"{error}. These features are not kept, and the next probe computes them again")
            self._known[key, job.patches] = table
        return self._known[key, job.patches]

    def _is_kept(self, path: Path, job: FeatureJob, key: str, source: DataSource) -> bool:
        """Whether all files of a job are there and sound; prints which is not."""
        if not all(file.is_file() for file in (path, *patch_paths(path, job))):
            return False
        try:
            self._with_patches(read_encoded(path, key, source), path, job)
        except UsageError as error:
            self._say(f"{error}. The features are computed again.")
            return False
        return True

    def _encode(
        self, name: str, network: Backbone, job: FeatureJob, source: DataSource, batch_size: int, path: Path
    ) -> Encoded:
        """Features of a source; patch tokens, where needed, are written beside ``path``."""
        with ExitStack() as stack:
            keep: features.KeepPatches | None = None if job.patches is None else _kept_elsewhere
            if job.patches is not None and self.world.first:
                writer = features.PatchWriter(
                    path, job.frames, job.patches, num_videos=len(source), say=self._say
                )
                keep = stack.enter_context(writer)
            found = encode(
                network,
                source,
                build.views(job.views),
                tokenizer=self._tokenizer_of(source),
                layers=job.layers,
                frames=job.frames,
                batch_size=batch_size,
                workers=self.spec.run.workers,
                device=self._device,
                autocast=self._autocast,
                console=self.console,
                title=f"{name} network, {job.part} videos",
                keep_patches=keep,
                world=self.world,
            )
        return self._with_patches(found, path, job)

    def _with_patches(self, found: Encoded, path: Path, job: FeatureJob) -> Encoded:
        return with_patches(found, path, job) if self.world.first else found

    def _key(self, name: str, job: FeatureJob, source: DataSource) -> str:
        """All that the features depend on, as text."""
        tokenizer = self._tokenizer_of(source)
        spec = None if tokenizer is None else self.spec.tokenizer
        made = (self.spec.backbone, None if spec is None else spec.part, job.source, job.views)
        parts = [part for part in made if part is not None]
        return strict_yaml.dump(
            {
                "weights": self._hashes[name, job.future],
                "backbone": self.spec.keys,
                "tokenizer": None if spec is None else strict_yaml.plain(spec.part.node),
                "tokenizer_weights": None if tokenizer is None else state_hash(tokenizer),
                "stored_ids": source.stored.tokenizer if isinstance(source, token_store.TokenStore) else None,
                "source": resolved_part(job.source, SOURCE),
                "videos": origins.versions_hash(source),
                "views": resolved_part(job.views, VIEW_SAMPLER),
                "layers": job.layers,
                "blocks": list(job.blocks),
                "future": None if job.future is None else asdict(job.future),
                "frames": job.frames,
                "precision": "bf16" if self._autocast else "fp32",
                "device": self._device.type,
                "code": code_hash(),
                "own_code": {part.type: file_hash(part.type) for part in parts if ".py:" in part.type},
            }
        )

    def _say(self, text: str) -> None:
        print_line(self.console, text)


def _kept_elsewhere(order: FrameOrder, patches: Tensor) -> None:
    """Patch tokens go to rank 0; others keep none."""


def patch_paths(path: Path, job: FeatureJob) -> list[Path]:
    """The files of patch tokens that a job needs beside its vectors."""
    kind = job.patches
    return [] if kind is None else [features.patch_path(path, order, kind) for order in job.frames]


def with_patches(found: Encoded, path: Path, job: FeatureJob) -> Encoded:
    """The same with its patch tokens, mapped from their files, where a job needs them."""
    if job.patches is None:
        return found
    return replace(found, patches=features.read_patches(path, job.frames, job.patches, len(found.numbers)))


def write_encoded(path: Path, found: Encoded, key: str, source: DataSource) -> None:
    """Keep features in a file, in one piece.

    Raises:
        UsageError: if it cannot be written.
    """
    tensors = {f"vectors.{order}": part.contiguous().cpu() for order, part in found.vectors.items()}
    tensors["numbers"] = found.numbers
    keys = [source.key(number) for number in found.numbers.tolist()]
    metadata = {"key": key, "videos": json.dumps(keys), "unreadable": json.dumps(found.unreadable)}
    metadata["digest"] = checkpoint.tensors_digest(tensors, metadata)
    checkpoint.save_tensors(path, tensors, metadata)


def read_encoded(path: Path, key: str, source: DataSource) -> Encoded:
    """Features out of a file, mapped into memory.

    Args:
        key: what they have to depend on, as ``write_encoded`` got it.
        source: of the videos.

    Raises:
        UsageError: if it is damaged, or holds features of anything else.
    """
    metadata, tensors = checkpoint.read_tensors(path)
    if metadata.pop("digest", "") != checkpoint.tensors_digest(tensors, metadata):
        raise UsageError(f"{path}: damaged, its checksum is not that of what was written")
    if metadata.get("key") != key:
        raise UsageError(f"{path}: it holds features of something else than its name says")
    orders: tuple[FrameOrder, ...] = get_args(FrameOrder)
    vectors = {order: tensors[f"vectors.{order}"] for order in orders if f"vectors.{order}" in tensors}
    numbers, count = tensors.get("numbers", torch.empty(0)), len(source)
    sound = numbers.dtype == torch.int64 and numbers.dim() == 1 and "normal" in vectors
    sound = sound and all(0 <= number < count for number in numbers.tolist())
    for part in vectors.values():
        sound = sound and part.dim() == 3 and len(part) == len(numbers) and bool(part.isfinite().all())
    if not sound:
        raise UsageError(f"{path}: damaged, it holds no finite vectors of {counted(count, 'video')}")
    try:
        row = facts.Row({"unreadable": facts.parsed(metadata.get("unreadable", ""))})
        unreadable = row.many_texts("unreadable")
    except ValueError as error:
        raise UsageError(f"{path}: its metadata: {error}") from error
    return Encoded(vectors, numbers, unreadable)


@cache
def code_hash() -> str:
    """Of every Python file of the package: a change to a network or to a loader is a change of features.

    Of the libraries whose networks there are, the versions.
    """
    root = Path(vidssl.__file__).parent
    digest = hashlib.sha256(" ".join(map(version, ("torch", "torchvision", "timm"))).encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def file_hash(address: str) -> str:
    """Of the file of a component from outside the package, ``my_file.py:MyClass``."""
    return process.file_sha256(Path(address.rpartition(":")[0]))
