"""What a command of ``vidssl data`` is given: a folder of files, a list of videos, or a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vidssl.data.classes import ordered_classes
from vidssl.data.sources.listing import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Listing,
    list_folder,
    named_listing,
)
from vidssl.data.sources.lists import read_lists
from vidssl.data.sources.manifest import Manifest
from vidssl.errors import UsageError


@dataclass(frozen=True)
class Operand:
    """The files that a command works on.

    Attributes:
        root: folder that keys are relative to.
        manifest: what is known of them, where a manifest was given.
    """

    root: Path
    listing: Listing
    manifest: Manifest | None = None


def read_operand(path: Path, root: Path | None = None, *, images: bool = False) -> Operand:
    """The files that a folder, a list (text or CSV) or a manifest (.jsonl) names.

    Args:
        root: folder that paths are relative to; by default the list's own, or what the manifest says.
        images: of a folder, its images instead of its videos.

    Raises:
        UsageError: if there are none, or a list or manifest is not in order.
    """
    refuse_missing(path, "folder, list or manifest")
    if path.is_dir():
        if root is not None:
            raise UsageError(f"{path}: --root goes with a list or a manifest, not with a folder")
        kind, extensions = ("image", IMAGE_EXTENSIONS) if images else ("video", VIDEO_EXTENSIONS)
        return Operand(path, list_folder(path, extensions, kind))
    if images:
        raise UsageError(f"{path}: --images goes with a folder; lists and manifests are of videos")
    if path.suffix == ".jsonl":
        manifest = Manifest(path)
        return Operand(root or manifest.root, _listing_of(manifest), manifest)
    root = root or path.parent
    (listing,) = read_lists(path, exists=lambda key: (root / key).is_file())
    return Operand(root, listing)


def refuse_missing(path: Path, kinds: str) -> None:
    """Raises UsageError if there is nothing at a path that a command was given."""
    if not path.exists():
        raise UsageError(f"{path}: no such {kinds} (paths are relative to the working folder, {Path.cwd()})")


def _listing_of(manifest: Manifest) -> Listing:
    """The videos of a manifest."""
    files = [(entry.key, entry.labels, entry.segments) for entry in manifest]
    found: dict[str, set[str]] = {}
    for _, labels, segments in files:
        for given in (labels, *(own for _, _, own in segments)):
            for name, value in given.items():
                found.setdefault(name, set()).add(value)
    classes = {name: ordered_classes(values, name, manifest.path) for name, values in found.items()}
    return named_listing(files, classes)
