"""External networks: those of other projects, untrained ones, and the pixels themselves.

A user names them where a run would stand: ``torchvision:swin3d_t``, ``timm:resnet50``,
``pytorchvideo:slow_r50``, ``transformers:MCG-NJU/videomae-base``, ``untrained:`` before one of these, a
recipe or a run, ``recipe:`` before a recipe whose network gets the weights of a file, or ``pixels``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from vidssl.backbones.pixels import Pixels
from vidssl.backbones.transformers_nets import TransformersNet, published_state
from vidssl.build import build
from vidssl.build.registry import BACKBONE, resolved_part, resolved_text
from vidssl.config.recipe import Recipe, RunSpec, load_recipe
from vidssl.config.schema import Index, PartSpec, bind, construct, convert
from vidssl.config.strict_yaml import Node, dump, dump_flow, override, plain, read_file
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.logging import Say
from vidssl.engine.runfolder import RunFolder, named_path, no_run
from vidssl.errors import UsageError, counted
from vidssl.evaluate.subject import (
    NetworkSpec,
    Pretraining,
    Subject,
    recipe_of,
    spec_of,
    state_hash,
    stored_recipe,
    untrained_objective,
)
from vidssl.interfaces import Backbone, Objective
from vidssl.weights.load import LoadReport, load_init

LIBRARIES = ("torchvision", "timm", "pytorchvideo")
PIXELS, UNTRAINED = "pixels", "untrained"
RECIPE = "recipe"  # its network, with weights of a file in a published layout
TRANSFORMERS = "transformers"  # its models come with their weights, and no recipe can name them


@dataclass(frozen=True)
class ExternalNetwork:
    """A network of no run of ours, as a user names it.

    Attributes:
        name: ``torchvision:swin3d_t``, ``untrained:bevt`` and so on.
        weights: a file, or "pretrained" for those that the library fetches; None where there are none.
        keys: ``key=value`` for the network's constructor, and ``seed=NUMBER`` for random weights.
        trust: whether code and addresses that a run's recipe names are used, whoever trained it.
    """

    name: str
    weights: str | None = None
    keys: tuple[str, ...] = ()
    trust: bool = False

    @property
    def shown(self) -> str:
        """In one word or a few, for tables: the name, the file of weights without its folder, the keys."""
        file = "" if self.weights in (None, "pretrained") else Path(str(self.weights)).name
        return " ".join(word for word in (self.name, file, *self.keys) if word)

    @property
    def folder(self) -> RunFolder:
        """Where its features, scores and finetuned runs go: beside the runs of 'vidssl train'."""
        return RunFolder(Path("runs") / re.sub(r"[^\w.]+", "-", self.shown).strip("-"))


def is_external(word: str) -> bool:
    """Whether a word names an external network; a file or folder of that name goes first."""
    kind, colon, _ = word.partition(":")
    named = kind in (*LIBRARIES, TRANSFORMERS, UNTRAINED, RECIPE) if colon else word == PIXELS
    return named and not Path(word).exists()


def external_recipe(asked: ExternalNetwork) -> Recipe | None:
    """The recipe of a network that is asked for as ``untrained:`` or ``recipe:``; None for others.

    Raises:
        UsageError: if there is no such recipe, its network has no features, or no weights are named for it.
    """
    kind, _, name = asked.name.partition(":")
    if kind not in (UNTRAINED, RECIPE) or name.partition(":")[0] in (*LIBRARIES, TRANSFORMERS):
        return None
    seed, others = _seed(asked)
    words = [f"backbone.{key}" for key in others] + ([] if seed is None else [f"seed={seed}"])
    if kind == RECIPE and asked.weights is None:
        raise UsageError(f"{asked.name}: which weights? weights=FILE; {UNTRAINED}:{name} for random ones")
    if kind == RECIPE:  # all of them but a mask token, which files of encoders lack
        words += [f"backbone.init={asked.weights}", "backbone.init_min_matched=0.99"]
    recipe = recipe_named(name, words, trust=asked.trust)
    if recipe.backbone is None:
        raise UsageError(f"{asked.name}: trained a tokenizer, which has no features to probe")
    return recipe


def external_subject(asked: ExternalNetwork, recipe: Recipe | None, run: RunSpec, say: Say) -> Subject:
    """An external network with its weights.

    Args:
        recipe: of ``external_recipe``.
        run: on what it is run.
        say: gets the report of what was loaded.

    Raises:
        UsageError: if there is no such network, or no weights are named.
    """
    library = asked.name.partition(":")[0]
    if asked.weights is not None and library not in (*LIBRARIES, RECIPE):
        raise UsageError(f"{asked.name}: has no use for weights={asked.weights}")
    if recipe is not None:
        # as it is before training, and before any ``backbone.init``
        torch.manual_seed(recipe.seed)
        networks = {"untrained": build.backbone(recipe, with_init=False)}
        if library == RECIPE:
            networks = {"trained": build.backbone(recipe, say=say), **networks}
        init = recipe.start.init if library == RECIPE else None
        subject = _subject(asked, resolved_text(recipe), replace(spec_of(recipe), run=run), networks, init)
        return replace(subject, objectives=partial(_objectives, recipe, trained=library == RECIPE, say=say))
    made: tuple[NetworkSpec, dict[str, Backbone], str | None]
    if library == PIXELS:
        made = _pixels(asked, run)
    elif TRANSFORMERS in (library, asked.name.removeprefix(f"{UNTRAINED}:").partition(":")[0]):
        made = _of_transformers(asked, run)
    else:
        made = _of_library(asked, run, say)
    spec, networks, init = made
    start = {} if init is None else {"init": init}
    text = dump({"name": asked.shown, "seed": spec.seed, "backbone": {**spec.keys, **start}})
    return _subject(asked, text, spec, networks, init)


def _objectives(recipe: Recipe, *, trained: bool, say: Say) -> dict[str, Objective]:
    """The objectives of a recipe's columns; none where the weights of one would stay random."""
    if trained and recipe.rest_init is None:
        return {}
    found = {"untrained": untrained_objective(recipe)}
    return {"trained": build.objective(recipe, say), **found} if trained else found


def _subject(
    asked: ExternalNetwork, recipe: str, spec: NetworkSpec, networks: Mapping[str, Backbone], init: str | None
) -> Subject:
    trained = {} if init is None else {"finetuned": init}
    return Subject(
        title=asked.shown,
        source=asked.shown,
        step=0,
        recipe=recipe,
        weights=state_hash(next(iter(networks.values()))),
        spec=spec,
        networks=networks,
        starts={**trained, "from scratch": None},
        folder=asked.folder.path,
        scores=asked.folder.scores,
        stem=asked.folder.checkpoint_path(0).stem,
        pretraining=Pretraining(unknown="" if init is None else f"what {init} was trained on is not known"),
    )


def _pixels(asked: ExternalNetwork, run: RunSpec) -> tuple[NetworkSpec, dict[str, Backbone], None]:
    node = _node(asked, {"type": PIXELS})
    keys = {"type": PIXELS, **bind(node, Pixels, ("type",))}
    return NetworkSpec(keys, None, run=run), {"no weights": construct(node, Pixels, apart=("type",))}, None


def _of_transformers(
    asked: ExternalNetwork, run: RunSpec
) -> tuple[NetworkSpec, dict[str, Backbone], str | None]:
    """A model of the hub: with its published weights beside random ones, or only with random ones."""
    name = asked.name.removeprefix(f"{UNTRAINED}:").partition(":")[2]
    given, others = _seed(asked)
    node = _node(ExternalNetwork(asked.name, keys=others), {"type": TRANSFORMERS, "name": name})
    keys = {"type": TRANSFORMERS, **bind(node, TransformersNet, ("type",))}
    spec = NetworkSpec(keys, None, seed=given or 0, run=run)
    torch.manual_seed(spec.seed)
    fresh = construct(node, TransformersNet, apart=("type",))
    if asked.name.startswith(f"{UNTRAINED}:"):
        return spec, {"untrained": fresh}, None
    trained = construct(node, TransformersNet, apart=("type",))
    trained.net.load_state_dict(published_state(name))
    return spec, {"trained": trained, "untrained": fresh}, asked.name


def _of_library(
    asked: ExternalNetwork, run: RunSpec, say: Say
) -> tuple[NetworkSpec, dict[str, Backbone], str | None]:
    """A network of torchvision, timm or PyTorchVideo: with weights beside without, or only without."""
    library, _, name = asked.name.removeprefix(f"{UNTRAINED}:").partition(":")
    untrained = asked.name.startswith(f"{UNTRAINED}:")
    if not untrained and asked.weights is None:
        raise UsageError(
            f"{asked.name}: which weights? weights=FILE for a file of them, weights=pretrained for those "
            f"that {library} fetches from its site, or {UNTRAINED}:{asked.name} for random ones"
        )
    if asked.weights == "random":
        raise UsageError(f"{asked.name}: random weights are asked for as {UNTRAINED}:{asked.name}")
    given, others = _seed(asked)
    seed = given or 0
    node = _node(ExternalNetwork(asked.name, keys=others), {"type": library, "name": name})
    part = PartSpec(library, node)
    spec = NetworkSpec(resolved_part(part, BACKBONE), part, seed=seed, run=run)
    torch.manual_seed(seed)
    fresh = build.network(part)
    if untrained:
        return spec, {"untrained": fresh}, None
    init = f"{library}:{name}" if asked.weights == "pretrained" else str(asked.weights)
    trained = build.network(part)
    report = load_init(trained, init, min_matched=0.0)  # ``_check_whole`` asks for more
    say(str(report))
    _check_whole(report, asked)
    return spec, {"trained": trained, "untrained": fresh}, init


def _check_whole(report: LoadReport, asked: ExternalNetwork) -> None:
    """Refuses weights that leave a part of the network random."""
    # counts of batches, which older files lack, do nothing when a network is measured
    random = [key for key in report.new if not key.endswith("num_batches_tracked")]
    if random:
        raise UsageError(
            f"{report.source}: lacks {counted(len(random), 'tensor')} of {asked.name} "
            f"({', '.join(random[:4])}"
            f"{', ...' if len(random) > 4 else ''}), which would stay random: these are not its weights"
        )


def recipe_named(word: str, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """The recipe of a name or file, or that of a run or checkpoint.

    Args:
        trust: as for ``stored_recipe``, of a run or checkpoint.

    Raises:
        UsageError: if there is none, or as ``stored_recipe``.
    """
    path = named_path(word)
    if not word or (path.suffix != ".safetensors" and not path.is_dir()):
        return load_recipe(word, overrides)
    file = path / "recipe.yaml"
    if path.is_dir() and file.is_file():
        text = read_file(file)
        return stored_recipe(text, file, path, trust=trust, overrides=overrides, folder=path)
    if path.is_dir():
        raise no_run(word)
    return recipe_of(read_checkpoint(path), "name a recipe", trust=trust, overrides=overrides)


def _seed(asked: ExternalNetwork) -> tuple[int | None, tuple[str, ...]]:
    """The seed of random weights, None if none is given, and the keys that are left."""
    given = [key for key in asked.keys if key.partition("=")[0] == "seed"]
    root = Node({"network": Node({}, asked.name, "network")}, asked.name, "")
    for word in given:
        root = override(root, f"network.{word}")
    seed = root.mapping()["network"].mapping().get("seed")
    number = None if seed is None else cast(int, convert(seed, Index))
    return number, tuple(key for key in asked.keys if key not in given)


def _node(asked: ExternalNetwork, first: Mapping[str, str]) -> Node:
    """The section that makes the network."""
    entries = {key: Node(value, asked.name, f"network.{key}") for key, value in first.items()}
    root = Node({"network": Node(entries, asked.name, "network")}, asked.name, "")
    for word in asked.keys:
        root = override(root, f"network.{word}")
    node = root.mapping()["network"]
    stray = [key for key in first if plain(node.mapping()[key]) != first[key]]
    if stray:
        raise UsageError(f"network.{stray[0]}: {asked.name} names it already ({dump_flow(first[stray[0]])})")
    return node
