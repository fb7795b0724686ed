"""What works with what: every combination of components, as a toy recipe that is checked and takes a step.

    python -m vidssl.compatibility docs/compatibility.md

A combination that the checks of recipes refuse is answered with their own words. One that they let through
must take a training step on random clips; if it cannot, that is a defect, and its error ends the program.
"""

import hashlib
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save

from vidssl.build import build
from vidssl.build.registry import BACKBONE, MASKER, OBJECTIVE, TOKENIZER
from vidssl.compatibility_page import COMMAND, Combination, Outcomes, by_hand, page
from vidssl.config.recipe import Recipe, read_recipe
from vidssl.config.schema import keys_of, parts_of
from vidssl.config.strict_yaml import parse
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Batch, Objective, Progress

VIDEOS = 2  # in a batch
NUM_CLASSES = 3
_SOURCE = "{type: moving_digits, split: train}"  # never opened

# a small one of each, as keys of a recipe

TOY_BACKBONES = {
    "factorized": "vocab_size: 16, num_frames: 4, height: 4, width: 4, embed_dim: 16, depth: 1, num_heads: 2",
    "pytorchvideo": "name: x3d_xs",
    "timesformer": "embed_dim: 16, depth: 1, num_heads: 2, patch_size: 8, num_frames: 4, size: 32",
    "timm": "name: test_vit",
    "torchvision": "name: mc3_18",
    "video_swin": "embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window: [2, 3, 3]",
    "vit": "embed_dim: 16, depth: 1, num_heads: 2, patch_size: [2, 8, 8]",
}

TOY_TOKENIZERS = {
    "dalle": "vocab_size: 16, width: 8, num_blocks: 1, decoder_width: 8",
    "fsq": "levels: [4, 4], width: 8, stride: 8, num_res_blocks: 1",
    "vqvae": "vocab_size: 16, code_dim: 4, width: 8, stride: 8, num_res_blocks: 1",
}

TOY_MASKERS = {
    "block_3d": "num_blocks: 2",
    "blockwise": "min_block: 4",
    "frame_diff": "min_block: 4",
    "random_3d": "ratio: 0.5",
    "random_frame": "min_block: 4",
    "tube": "min_block: 4",
}

_HEAD = "head_layers: 2, head_hidden_dim: 16, head_dim: 8"

TOY_OBJECTIVES = {
    "bevt": "video_weight: 1.0",
    "bevt_image": "",
    "bevt_video": "",
    "classification": f"num_classes: {NUM_CLASSES}",
    "svt": "out_dim: 16, head_hidden: 16, bottleneck: 8, freeze_last_layer_epochs: 0",
    "tokenizer": "",
    "vimpac": _HEAD,
    "vimpac_contrast": _HEAD,
    "vimpac_predict": "",
}


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


class Bench:
    """Tries combinations; their tokenizers have random weights, which lie in a folder.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokenizers: dict[str, str] = {}

    def refusal(self, combination: Combination) -> str | None:
        """Why the checks of recipes refuse a combination; None for one that took a training step."""
        recipe = self._recipe(combination)
        try:
            build.check(recipe)
        except UsageError as error:
            return str(error)
        take_step(recipe)
        return None

    def outcomes(self, every: Iterable[Combination]) -> Outcomes:
        """Refusals of combinations; None for each that took a step."""
        return {combination: self.refusal(combination) for combination in every}

    def _recipe(self, combination: Combination) -> Recipe:
        network = combination.backbone
        if network is not None and " " in network:  # one of ``named_networks``
            kind, name = network.split(" ")
            size = f", size: {NAMED_SIZES.size}" if name.startswith("swin_") else ""
            section = f"{{type: {kind}, name: {name}{size}}}"
            return toy_recipe(combination.objective, backbone=section, sizes=NAMED_SIZES)
        return toy_recipe(
            combination.objective,
            backbone=_section(network, TOY_BACKBONES),
            tokenizer=self._tokenizer(combination),
            masker=_section(combination.masker, TOY_MASKERS),
        )

    def _tokenizer(self, combination: Combination) -> str | None:
        """A tokenizer section; with weights unless the objective takes nothing else, and so trains it."""
        name = combination.tokenizer
        if name is None or combination.backbone is None:
            return _section(name, TOY_TOKENIZERS)
        if name not in self._tokenizers:
            self._tokenizers[name] = self._with_weights(name)
        return self._tokenizers[name]

    def _with_weights(self, name: str) -> str:
        part = toy_recipe("tokenizer", tokenizer=_section(name, TOY_TOKENIZERS)).tokenizer
        assert part is not None, "it has just been given one"
        torch.manual_seed(0)
        content = save(build.tokenizer(part).state_dict())
        path = self.folder / f"{name}.safetensors"
        path.write_bytes(content)
        origin = f"sha256: {hashlib.sha256(content).hexdigest()}, source: random, licence: none"
        return f"{{type: {name}, {TOY_TOKENIZERS[name]}, weights: '{path}', {origin}}}"


def _section(name: str | None, toys: Mapping[str, str]) -> str | None:
    return None if name is None else f"{{type: {name}, {toys[name]}}}"


def toy_recipe(
    objective: str,
    *,
    backbone: str | None = None,
    tokenizer: str | None = None,
    masker: str | None = None,
    sizes: Sizes = TOY_SIZES,
) -> Recipe:
    """A recipe of an objective and of sections for its parts, with the views that it needs."""
    parts = {"backbone": backbone, "tokenizer": tokenizer, "masker": masker}
    lines = [
        "name: toy",
        f"objective: {{type: {objective}, {TOY_OBJECTIVES[objective]}}}",
        *(f"{name}: {section}" for name, section in parts.items() if section is not None),
        "data:",
        *(
            f"  {stream}: {{source: {_SOURCE}, views: {views}, batch_size: {VIDEOS}}}"
            for stream, views in _streams(objective, sizes).items()
        ),
        "optim: {type: adamw, lr: 1e-3, clip_norm: 1.0}",
        "schedule: {type: cosine, steps: 2}",
    ]
    return read_recipe(parse("\n".join(lines), lambda line: "toy"), Path.cwd())


def _streams(objective: str, sizes: Sizes) -> dict[str, str]:
    """Stream -> its view sampler."""
    shape = f"num_frames: {sizes.num_frames}, size: {sizes.size}"
    clip = f"{{type: single_clip, frame_stride: 1, {shape}}}"
    pair = f"{{type: clip_pair, {shape}}}"
    image = f"{{type: single_image, size: {sizes.size}}}"
    many = (
        f"{{type: global_local, num_frames: [{sizes.num_frames}, {sizes.num_frames}], size: {sizes.size}, "
        f"local_frames: [{sizes.local_frames}, {sizes.num_frames}], local_size: {sizes.local_size}}}"
    )
    return {
        "bevt": {"video": clip, "image": image},
        "bevt_image": {"image": image},
        "svt": {"video": many},
        "tokenizer": {"image": image},
        "vimpac": {"video": pair},
        "vimpac_contrast": {"video": pair},
    }.get(objective, {"video": clip})


def take_step(recipe: Recipe) -> None:
    """One training step on random clips, without the files and folders of a run.

    Raises:
        FloatingPointError: if the loss, a gradient or what became of the weights is no finite number, or
            nothing got a gradient.
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
    """Tries everything and writes the page; the part by hand is kept."""
    kept = by_hand(path.read_text()) if path.exists() else ""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        every = [one for objective in OBJECTIVE.table for one in combinations(objective)]
        path.write_text(whole_page(bench.outcomes(every), bench.outcomes(named_combinations())) + kept)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"which page is to be written? {COMMAND}")
    main(Path(sys.argv[1]))
