"""What works with what: every combination of components, as a toy recipe that is checked and takes a step.

    python -m docs.compatibility.table docs/compatibility.md

The cell of a combination that ``vidssl check`` refuses gives its reason. One that it accepts must take a
training step on random clips; if it cannot, that is a defect, and its error ends the program. Components
are built with the arguments of their ``toy``.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save

from docs.compatibility.page import COMMAND, Combination, Outcomes, by_hand, page
from vidssl.build import build
from vidssl.build.registry import BACKBONE, MASKER, OBJECTIVE, TOKENIZER, Kind
from vidssl.config.recipe import Recipe, read_recipe
from vidssl.config.schema import keys_of, parts_of
from vidssl.config.strict_yaml import parse
from vidssl.engine.speed import on_meta
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Batch, Objective, Progress

VIDEOS = 2  # in a batch
NUM_CLASSES = 2  # at most those of the toys
_SOURCE = {"type": "moving_digits", "split": "train"}  # never opened
Section = dict[str, object]  # of a recipe


@dataclass(frozen=True)
class Sizes:
    """Frames and side of the clips, and of SVT's local views."""

    num_frames: int
    size: int
    local_frames: int
    local_size: int


TOY_SIZES = Sizes(4, 32, 2, 16)
NAMED_SIZES = Sizes(8, 64, 8, 32)  # S3D takes nothing smaller
TIMM_NAMES = ("convnext_atto", "resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")


def combinations(objective: str) -> tuple[Combination, ...]:
    """All combinations of the tables' components for an objective."""
    tables = {"backbone": BACKBONE.table, "tokenizer": TOKENIZER.table, "masker": MASKER.table}
    takes = parts_of(OBJECTIVE.table[objective])
    axes = [
        ([] if takes.get(part) else [None]) + (sorted(table) if part in takes else [])
        for part, table in tables.items()
    ]
    return tuple(Combination(objective, *names) for names in product(*axes))


def named_networks() -> tuple[str, ...]:
    """The adapters' networks, "adapter name": all that their keys offer, and some of timm's many."""
    offered = {
        kind: get_args(keys_of(made)["name"].wanted)
        for kind, made in BACKBONE.table.items()
        if "name" in keys_of(made)
    }
    return tuple(f"{kind} {name}" for kind, names in offered.items() for name in names or TIMM_NAMES)


def named_combinations() -> tuple[Combination, ...]:
    """The adapters' networks with the objectives that take a backbone alone."""
    objectives = [
        name
        for name, made in OBJECTIVE.table.items()
        if [part for part, needed in parts_of(made).items() if needed] == ["backbone"]
    ]
    return tuple(Combination(one, net, None, None) for net, one in product(named_networks(), objectives))


def covering(objective: str) -> tuple[Combination, ...]:
    """A few of the combinations, in which every component comes up that any of them has.

    Objectives pair components differently, so that together they meet many pairs.
    """
    every = combinations(objective)
    shift = sorted(OBJECTIVE.table).index(objective)
    axes = [sorted({getattr(one, part.name) for one in every}, key=str) for part in fields(Combination)[1:]]
    return tuple(
        Combination(objective, *(axis[(n + shift * place) % len(axis)] for place, axis in enumerate(axes)))
        for n in range(max(map(len, axes)))
    )


class Trials:
    """Tries combinations; their tokenizers have random weights, saved in a folder.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokenizers: dict[str, Section] = {}

    def refusal(self, combination: Combination) -> str | None:
        """Why ``vidssl check`` refuses a combination; None for one that took a training step."""
        recipe = self.recipe(combination)
        try:
            build.check(recipe)
        except UsageError as error:
            return str(error)
        take_step(recipe)
        return None

    def outcomes(self, every: Iterable[Combination]) -> Outcomes:
        """Refusals of combinations; None for each that took a step."""
        return {combination: self.refusal(combination) for combination in every}

    def recipe(self, combination: Combination) -> Recipe:
        """The toy recipe of a combination."""
        network = combination.backbone
        if network is not None and " " in network:  # one of ``named_networks``
            kind, name = network.split(" ")
            section: Section = {"type": kind, "name": name}
            if name.startswith("swin_"):
                section["size"] = NAMED_SIZES.size
            return toy_recipe(combination.objective, {"backbone": section}, NAMED_SIZES)
        parts = {
            "backbone": network and toy(BACKBONE, network),
            "tokenizer": self._tokenizer(combination),
            "masker": combination.masker and toy(MASKER, combination.masker),
        }
        return toy_recipe(combination.objective, {key: part for key, part in parts.items() if part})

    def _tokenizer(self, combination: Combination) -> Section | None:
        """A tokenizer section; with weights unless the objective takes nothing else, and so trains it."""
        name = combination.tokenizer
        if name is None:
            return None
        if combination.backbone is None:
            return toy(TOKENIZER, name)
        if name not in self._tokenizers:
            torch.manual_seed(0)
            content = save(TOKENIZER.table[name](**TOKENIZER.table[name].toy).state_dict())
            path = self.folder / f"{name}.safetensors"
            path.write_bytes(content)
            origin = {"sha256": hashlib.sha256(content).hexdigest(), "source": "random", "licence": "none"}
            self._tokenizers[name] = {**toy(TOKENIZER, name), "weights": str(path), **origin}
        return self._tokenizers[name]


def toy(kind: Kind, name: str) -> Section:
    """The section of a recipe for a small one of a kind."""
    return {"type": name, **kind.table[name].toy}


def toy_recipe(objective: str, parts: Mapping[str, Section], sizes: Sizes = TOY_SIZES) -> Recipe:
    """A recipe of an objective and of sections for its parts, with the views that it needs."""
    recipe = {
        "name": "toy",
        "objective": toy(OBJECTIVE, objective) | _target(objective, parts),
        **parts,
        "data": {
            stream: {"source": _SOURCE, "views": views, "batch_size": VIDEOS}
            for stream, views in _streams(needed_views(objective), sizes).items()
        },
        "optim": {"type": "adamw", "lr": 0.001, "clip_norm": 1.0},
        "schedule": {"type": "cosine", "steps": 2},
    }
    return read_recipe(parse(json.dumps(recipe), lambda line: "toy"), Path.cwd())


def _target(objective: str, parts: Mapping[str, Section]) -> Section:
    """Where a tokenizer decides it, the key that says what is predicted."""
    return {"target": "tokens"} if objective == "videomae" and "tokenizer" in parts else {}


@cache
def needed_views(objective: str) -> Mapping[str, int]:
    """``needs_views`` of an objective; where its keys decide them, of its toy."""
    made = OBJECTIVE.table[objective]
    some = {
        "backbone": BACKBONE.table["vit"],
        "tokenizer": TOKENIZER.table["fsq"],
        "masker": MASKER.table["random_3d" if getattr(made, "visible_only", False) else "tube"],
    }
    with on_meta():
        parts = [some[part](**some[part].toy) for part, needed in parts_of(made).items() if needed]
        return made(*parts, **made.toy).needs_views


def _streams(needed: Mapping[str, int], sizes: Sizes) -> dict[str, Section]:
    """Stream -> view sampler: single clips or pairs, images, global and local views.

    Raises:
        ValueError: for a view that none of them gives.
    """
    shape = {"num_frames": sizes.num_frames, "size": sizes.size}
    clips = {1: {"type": "single_clip", "frame_stride": 1, **shape}, 2: {"type": "clip_pair", **shape}}
    many = {
        "type": "global_local", "num_frames": [sizes.num_frames] * 2, "size": sizes.size,
        "local_frames": [sizes.local_frames, sizes.num_frames], "local_size": sizes.local_size,
    }  # fmt: skip
    streams: dict[str, Section] = {}
    for view, count in needed.items():
        if view == "clip" and count in clips:
            streams["video"] = clips[count]
        elif view == "image" and count == 1:
            streams["image"] = {"type": "single_image", "size": sizes.size}
        elif view in ("global", "local"):
            streams["video"] = many
        else:
            raise ValueError(
                f"no view sampler of docs/compatibility/table.py gives {count} of the view '{view}'"
            )
    return streams


def take_step(recipe: Recipe) -> None:
    """One training step on random clips, without a run folder.

    Raises:
        FloatingPointError: if the loss, a gradient or a weight after the step is not finite, or there is
            no gradient.
    """
    torch.manual_seed(0)
    objective = build.objective(recipe, say=lambda line: None)
    objective.train()
    settings = build.optim(recipe)
    optimizer = settings.build(objective)
    generator = torch.Generator().manual_seed(0)
    progress = Progress(0, 2)
    output = objective(random_batch(recipe), progress, generator)
    output.loss.backward()
    norm = settings.update.clip_gradients(objective.parameters())
    if not torch.isfinite(output.loss) or not 0 < norm < float("inf"):
        raise FloatingPointError(f"the loss is {output.loss.item()}, the gradient's norm {norm.item()}")
    optimizer.step()
    objective.after_step(progress, generator)
    _check_weights(objective)


def _check_weights(objective: Objective) -> None:
    for key, tensor in objective.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{key} is not finite after a step")


def random_batch(recipe: Recipe) -> Batch:
    """A batch of the views of a recipe, of noise, with random labels."""
    generator = torch.Generator().manual_seed(0)
    views = {
        view: tuple(torch.rand(VIDEOS, 3, *size, generator=generator) for size in slots)
        for stream in recipe.data.streams.values()
        for view, slots in build.views(stream.views).shapes.items()
    }
    labels = {
        stream: {"class": torch.randint(NUM_CLASSES, (VIDEOS,), generator=generator)}
        for stream in recipe.data.streams
    }
    return Batch(views, labels=labels)


def whole_page(outcomes: Outcomes, named: Outcomes) -> str:
    """The page of outcomes of all ``combinations`` and ``named_combinations``."""
    own = NAMED_SIZES
    return page(
        outcomes,
        named,
        clip=f"{counted(own.num_frames, 'frame')} of {own.size}x{own.size}",
        local=f"{own.local_frames} of {own.local_size}x{own.local_size}",
    )


def main(path: Path) -> None:
    """Tries all combinations and writes the page; the part written by hand is kept."""
    kept = by_hand(path.read_text()) if path.exists() else ""
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        every = [one for objective in OBJECTIVE.table for one in combinations(objective)]
        path.write_text(whole_page(trials.outcomes(every), trials.outcomes(named_combinations())) + kept)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"which page is to be written? {COMMAND}")
    main(Path(sys.argv[1]))
