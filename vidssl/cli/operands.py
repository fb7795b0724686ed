"""What each command does. torch is imported by the command that needs it, so that help is quick."""

import argparse
import re
import sys
from collections.abc import Sequence

from vidssl.errors import UsageError, printable

BAD_INPUT = 2
_OVERRIDE = re.compile(r"[^/=]*=")  # what has a slash before its equals sign is a path
LISTED = (
    "objectives",
    "backbones",
    "tokenizers",
    "maskers",
    "evaluators",
    "sources",
    "views",
    "augments",
    "optimizers",
    "schedules",
)


def _split(operands: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and overrides (``key=value``)."""
    overrides = [word for word in operands if _OVERRIDE.match(word)]
    return [word for word in operands if word not in overrides], overrides


def train(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if arguments.deterministic:
        overrides.append("run.deterministic=true")
    if arguments.resume is not None:
        if arguments.dry_run:
            raise UsageError("--dry-run tries a recipe, and --resume goes on with a run: give one of them")
        if names:
            raise UsageError(f"a run goes on with its own recipe: leave out {names[0]}")
        from vidssl.train.run import resume_run

        return resume_run(arguments.resume, overrides)
    if len(names) != 1:
        given = f"got {' '.join(names)}" if names else "got none"
        hint = "put overrides that hold spaces in quotes" if overrides else "vidssl train recipes/bevt.yaml"
        raise UsageError(f"train takes one recipe, {given} ({hint})")
    from vidssl.config.recipe import load_recipe
    from vidssl.engine.distributed import told_once_a_machine

    with told_once_a_machine():
        recipe = load_recipe(names[0], overrides)
    if arguments.dry_run:
        from vidssl.tools.dry_run import dry_run

        dry_run(recipe)
        return 0
    from vidssl.train.run import run_recipe

    return run_recipe(recipe)


def bench(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) != 1:
        raise UsageError(f"bench takes one recipe, got {' '.join(names) or 'none'} (vidssl bench bevt)")
    from vidssl.config.recipe import load_recipe
    from vidssl.tools.bench import bench

    bench(load_recipe(names[0], overrides), seconds=arguments.seconds)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    from vidssl.config.protocol import measures_tokenizers
    from vidssl.engine.distributed import launched, told_once_a_machine

    with told_once_a_machine():
        several = [word for word in arguments.protocol if "," in word]
        if several:
            repeated = " ".join(f"--protocol {name.strip()}" for name in several[0].split(","))
            raise UsageError(f"--protocol {several[0]}: repeat the option for each protocol: {repeated}")
        of_tokenizers = any(map(measures_tokenizers, arguments.protocol))
        if of_tokenizers and launched() > 1:
            raise UsageError("tokenizers are measured by one process: leave torchrun out")
        if not of_tokenizers and len(names) > 1:
            raise UsageError(f"eval takes one run, checkpoint or network, got {' '.join(names)}")
    if of_tokenizers:
        from vidssl.tools.tokenizer_scores import score_tokenizers

        return score_tokenizers(names, arguments.protocol, overrides, trust=arguments.trust)
    from vidssl.evaluate.evaluate import evaluate_run

    target = names[0] if names else None
    return evaluate_run(target, arguments.protocol, overrides, trust=arguments.trust)


def compare(arguments: argparse.Namespace) -> int:
    from vidssl.compare.runs import CompareRequest, compare

    request = CompareRequest(
        tuple(arguments.operands),
        arguments.output,
        each=arguments.each,
        published=arguments.published,
        papers=tuple(arguments.paper),
        data_sets=tuple(arguments.data_set),
    )
    return compare(request)


def show(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) > 1:
        raise UsageError(f"show takes one run, checkpoint or tokenizer, got {' '.join(names)}")
    if arguments.videos is not None and arguments.videos < 1:
        raise UsageError(f"--videos must be at least 1, got {arguments.videos}")
    if arguments.what == "confusion":
        return _show_confusion(names, overrides, arguments)
    for option in ("protocol", "label", "setting", "network"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} is for --what confusion")
    from vidssl.pictures.clips import PictureRequest
    from vidssl.pictures.show import show

    request = PictureRequest(
        arguments.what,
        videos=arguments.videos,
        files=tuple(arguments.video),
        out=arguments.out,
        overrides=tuple(overrides),
        trust=arguments.trust,
    )
    return show(names[0] if names else None, request)


def _show_confusion(names: Sequence[str], overrides: Sequence[str], arguments: argparse.Namespace) -> int:
    if not names:
        raise UsageError("--what confusion takes a run or a file of scores, got none")
    if overrides or arguments.video or arguments.videos is not None:
        raise UsageError("--what confusion is drawn of scores: leave out videos, data and views")
    from vidssl.pictures.confusion import ConfusionRequest, show_confusion

    request = ConfusionRequest(
        protocol=arguments.protocol,
        label=arguments.label,
        setting=arguments.setting,
        network=arguments.network,
        out=arguments.out,
    )
    return show_confusion(names[0], request)


def watch(arguments: argparse.Namespace) -> int:
    if len(arguments.operands) > 1:
        raise UsageError(f"watch takes one run, got {' '.join(arguments.operands)}")
    from vidssl.tools.watch import watch_run

    return watch_run(
        arguments.operands[0] if arguments.operands else None, arguments.metric, once=arguments.once
    )


def tokenize(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) != 1:
        given = " ".join(names) or "none"
        raise UsageError(
            f"tokenize takes one recipe, got {given} (vidssl tokenize my.yaml --out tokens/mine)"
        )
    from vidssl.config.recipe import load_recipe
    from vidssl.tools.tokenize.request import read_request
    from vidssl.tools.tokenize.tokenize import tokenize

    recipe = load_recipe(names[0], overrides)
    request = read_request(
        recipe,
        out=arguments.out,
        videos=arguments.videos,
        purpose=arguments.purpose,
        fps=arguments.fps,
        resize=arguments.resize,
        crops=arguments.crops,
        flip=arguments.flip,
        spot_checks=arguments.spot_checks,
        videos_per_shard=arguments.videos_per_shard,
        retry_unreadable=arguments.retry_unreadable,
    )
    return tokenize(recipe, request)


def check(arguments: argparse.Namespace) -> int:
    from vidssl.build.build import check_file
    from vidssl.config.files import NAMES, locate, spec_files
    from vidssl.config.published import published_path
    from vidssl.config.strict_yaml import displayed

    overrides = _split(arguments.operands)[1]
    if overrides:
        raise UsageError(f"check takes files as they are, without overrides; got {overrides[0]}")
    bad = 0
    every = [(kind, path) for kind in NAMES for path in spec_files(kind).values()]
    every.append(("evaluation", published_path()))
    for target in arguments.operands or every:
        try:
            kind, path = locate(target) if isinstance(target, str) else target
            check_file(kind, path)
            print(f"{printable(displayed(path))}: ok", flush=True)
        except UsageError as error:
            bad += 1
            print(f"vidssl: {printable(str(error))}", file=sys.stderr, flush=True)
    return BAD_INPUT if bad else 0


def convert(arguments: argparse.Namespace) -> int:
    from vidssl.tools.convert import convert_files

    return convert_files(arguments.operands)


def replay(arguments: argparse.Namespace) -> int:
    if len(arguments.operands) != 1:
        given = " ".join(arguments.operands) or "none"
        raise UsageError(f"replay takes one capture, got {given} (vidssl replay RUN/captures/STEP)")
    from vidssl.tools.replay import replay as repeat_step

    return repeat_step(arguments.operands[0], precision=arguments.precision, trust=arguments.trust)


def selftest(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) != 2 or names[0] != "resume":
        given = " ".join(names) or "nothing"
        raise UsageError(f"selftest takes 'resume' and a recipe, got {given} (vidssl selftest resume bevt)")
    if arguments.steps < 1:
        raise UsageError(f"--steps must be at least 1, got {arguments.steps}")
    from vidssl.tools.selftest import selftest_resume

    return selftest_resume(names[1], overrides, steps=arguments.steps)


def list_components(arguments: argparse.Namespace) -> int:
    unknown = [word for word in arguments.operands if word not in LISTED]
    if unknown:
        from vidssl.config.strict_yaml import nearest

        raise UsageError(f"no kind of component '{unknown[0]}'. {nearest(unknown[0], LISTED, 'There are')}")
    from vidssl.build.listing import component_table
    from vidssl.engine.logging import terminal

    console = terminal()
    for kind in arguments.operands or LISTED:
        console.print(component_table(kind))
    if "backbones" in arguments.operands:  # not for a list of everything: it builds them all
        from vidssl.build.listing import network_table

        console.print(network_table())
    return 0
