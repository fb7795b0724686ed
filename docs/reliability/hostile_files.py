"""Files of our own formats, damaged or tampered with, at everything that reads them."""

import contextlib
import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.reliability import mutations
from docs.reliability.mutations import Mutation
from docs.reliability.world import run_all

SECONDS = 20  # of a core that a reader may take
PATIENCE = 600  # seconds until a reader that waits is taken for hung
MEMORY = 3 << 30  # that it may take on top of what the process has
MORE = (  # besides those that made the world: what readers import, to be imported before they are forked
    ("compare", "runs/small"),
    ("show", "runs/small", "--what", "confusion"),
    ("watch", "runs/small", "--once"),
    ("replay", "capture.safetensors"),
)


@dataclass(frozen=True)
class Target:
    """A file, what is done to it, and what then reads it.

    Attributes:
        file: below the world's folder.
        mutate: gives contents that are wrong, from the right one and about how many.
        read: reads it in every way that it is read; runs in the world's folder.
    """

    name: str
    file: str
    mutate: Callable[[bytes, int], Iterator[Mutation]]
    read: Callable[[], object]


def everything_of(source: object) -> None:
    """All that may be asked of a data source."""
    from vidssl.data.sources.origins import versions_hash, videos_of
    from vidssl.interfaces import UnreadableSample

    versions_hash(source)
    videos_of(source)
    for index in range(min(len(source), 10)):
        with contextlib.suppress(UnreadableSample):
            source.key(index), source.labels(index), source.origin(index)
            number = source.info(index).num_frames
            source.read(index, [0, number - 1])


def _command(*words: str) -> Callable[[], object]:
    def run() -> object:
        from vidssl.cli.main import main

        return main(words)

    return run


def _source(name: str, **keys: object) -> Callable[[], object]:
    def read() -> None:
        from vidssl.build.registry import SOURCES

        everything_of(SOURCES[name](**keys))

    return read


def _signed(content: bytes) -> bytes:
    """A resume state or file of features whose checksum is right for what was changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    from vidssl.engine.checkpoint import tensors_digest

    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        metadata.pop("digest", None)
        tensors = load(content)
        return save(tensors, metadata | {"digest": tensors_digest(tensors, metadata)})
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError):
        return content


def signed(content: bytes, number: int) -> Iterator[Mutation]:
    """Tampered with by somebody who knows of the checksum."""
    return mutations.of_safetensors(content, number, _signed)


def attempt(target: Target, folder: Path, content: bytes) -> str:
    """How reading it ended: "" if it was read or refused in words, otherwise how the reader fell."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(target, folder, content, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return (
            f"more than {SECONDS} s"
            if number in (signal.SIGALRM, signal.SIGXCPU)
            else f"killed by {signal.Signals(number).name}"
        )
    return said


def _in_child(target: Target, folder: Path, content: bytes, writer: int) -> None:
    from vidssl.errors import UsageError
    from vidssl.interfaces import UnreadableSample

    fallen = ""
    try:
        os.chdir(folder)
        (folder / target.file).write_bytes(content)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        target.read()
    except (UsageError, UnreadableSample) as error:
        if len(str(error)) > 10_000:
            fallen = f"a message of {len(str(error))} letters"
    except SystemExit:
        fallen = "SystemExit"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        own = [each for each in traceback.extract_tb(error.__traceback__) if "/vidssl/" in each.filename]
        place = own[-1] if own else where
        fallen = f"{type(error).__name__}: {str(error)[:80]} ({Path(place.filename).name}:{place.lineno})"
    os.write(writer, fallen.encode(errors="replace"))
    os._exit(0)


def targets() -> list[Target]:
    """All files of ours that something reads again."""
    run, step = "runs/small", "step-000006"
    return [
        Target(
            "manifest of data check",
            "videos.manifest.jsonl",
            mutations.of_lines,
            _source("video_folder", root="videos", manifest="videos.manifest.jsonl"),
        ),
        Target(
            "manifest of data check, scanned again",
            "videos.manifest.jsonl",
            mutations.of_lines,
            _command("data", "check", "videos", "--processes", "1"),
        ),
        Target(
            "manifest of data prepare, packed",
            "small.manifest.jsonl",
            mutations.of_lines,
            _command(
                "data",
                "shard",
                "small.manifest.jsonl",
                "--out",
                "packed",
                "--processes",
                "1",
            ),
        ),
        Target(
            "index of JPEG shards",
            "jpegs/index.jsonl",
            mutations.of_lines,
            _source("jpeg_shards", root="jpegs"),
        ),
        Target(
            "JPEG shard",
            "jpegs/00000.jpegs",
            mutations.of_bytes,
            _source("jpeg_shards", root="jpegs"),
        ),
        Target(
            "index of tar shards",
            "shards/index.jsonl",
            mutations.of_lines,
            _source("tar_shards", root="shards"),
        ),
        Target(
            "tar shard",
            "shards/00000.tar",
            mutations.of_bytes,
            _source("tar_shards", root="shards"),
        ),
        Target(
            "tar shard, indexed",
            "shards/00000.tar",
            mutations.of_bytes,
            _command("data", "index", "shards", "--out", "other.jsonl", "--processes", "1"),
        ),
        Target(
            "plan of data shard",
            "shards/.sharding/plan.json",
            mutations.of_json,
            _command("data", "shard", "videos", "--out", "shards", "--processes", "1"),
        ),
        Target(
            "journal of data prepare",
            "jpegs/prepared.jsonl",
            mutations.of_lines,
            _command(
                "data",
                "prepare",
                "videos",
                "--out",
                "jpegs",
                "--jpeg-shards",
                "--short-side",
                "32",
                "--processes",
                "1",
            ),
        ),
        Target(
            "journal of data prepare, files",
            "small/prepared.jsonl",
            mutations.of_lines,
            _command(
                "data",
                "prepare",
                "videos",
                "--out",
                "small",
                "--short-side",
                "32",
                "--processes",
                "1",
            ),
        ),
        Target("token store", "tokens/store.json", mutations.of_json, _token_store),
        Target(
            "index of a token shard",
            "tokens/shards/00000.json",
            mutations.of_json,
            _token_store,
        ),
        Target(
            "ids of a token shard",
            "tokens/shards/00000.ids",
            mutations.of_bytes,
            _token_store,
        ),
        Target(
            "checkpoint",
            f"{run}/checkpoints/{step}.safetensors",
            mutations.of_safetensors,
            _checkpoint,
        ),
        Target(
            "bytes of a checkpoint",
            f"{run}/checkpoints/{step}.safetensors",
            mutations.of_bytes,
            _checkpoint,
        ),
        Target("resume state", f"{run}/resume/{step}.safetensors", signed, _resumed),
        Target(
            "bytes of a resume state",
            f"{run}/resume/{step}.safetensors",
            mutations.of_bytes,
            _resumed,
        ),
        Target("recipe of a run", f"{run}/recipe.yaml", mutations.of_bytes, _resumed),
        Target(
            "metrics of a run",
            f"{run}/metrics.jsonl",
            mutations.of_lines,
            _command("watch", run, "--once"),
        ),
        Target(
            "metrics of a run, resumed",
            f"{run}/metrics.jsonl",
            mutations.of_lines,
            _resumed,
        ),
        Target(
            "events of a run",
            f"{run}/events.jsonl",
            mutations.of_lines,
            _command("watch", run, "--once"),
        ),
        Target(
            "environment of a run",
            f"{run}/environment.json",
            mutations.of_json,
            _command("watch", "--once"),
        ),
        Target(
            "list of a run's videos",
            f"{run}/videos.json.gz",
            mutations.of_gzipped,
            _resumed,
        ),
        Target(
            "scores, compared",
            f"{run}/scores/knn-{step}.json",
            mutations.of_json,
            _compared,
        ),
        Target(
            "scores, drawn",
            f"{run}/scores/knn-{step}.json",
            mutations.of_json,
            _command(
                "show",
                f"{run}/scores/knn-{step}.json",
                "--what",
                "confusion",
                "--out",
                "pictures",
            ),
        ),
        Target("features", "features.safetensors", signed, _features),
        Target(
            "capture",
            "capture.safetensors",
            mutations.of_safetensors,
            _command("replay", "capture.safetensors"),
        ),
    ]


def _token_store() -> None:
    from vidssl.data.sources.token_store import TokenStore
    from vidssl.interfaces import UnreadableSample

    store = TokenStore(root="tokens")
    for index in range(len(store)):
        with contextlib.suppress(UnreadableSample):
            (
                store.key(index),
                store.labels(index),
                store.origin(index),
                store.group(index),
            )
            store.read_ids(index, [0, store.info(index).num_frames - 1], store.stored.transforms[0])


def _checkpoint() -> None:
    from vidssl.evaluate.seen import pretraining_of

    from vidssl.engine.checkpoint import read_checkpoint
    from vidssl.evaluate.subject import recipe_of, trained_backbone, trained_objective

    checkpoint = read_checkpoint(Path("runs/small/checkpoints/step-000006.safetensors"))
    pretraining_of(checkpoint)
    recipe = recipe_of(checkpoint, "")
    trained_backbone(recipe, checkpoint)
    trained_objective(recipe, checkpoint, print)


def _resumed() -> None:
    """What a run looks at before it resumes, without its steps."""
    import torch

    from vidssl.build import build
    from vidssl.config.recipe import read_recipe
    from vidssl.config.strict_yaml import load
    from vidssl.data.sources.origins import changes, read_videos
    from vidssl.engine.logging import Meter
    from vidssl.engine.resume import Moving, restore
    from vidssl.engine.runfolder import named_run

    run = named_run("runs/small")
    recipe = read_recipe(load(run.path / "recipe.yaml"), run.path)
    listed = read_videos(run.videos)
    changes(listed, listed)
    objective = build.objective(recipe, with_init=False)
    optimizer = build.optim(recipe).build(objective)
    restore(run, Moving(objective, optimizer, torch.Generator(), Meter()), say=print)


def _compared() -> None:
    from vidssl.compare.runs import compare

    for output in ("table", "csv", "markdown"):
        compare(["runs/small/scores/knn-step-000006.json"], output=output)


def _features() -> None:
    import torch

    from vidssl.build.registry import SOURCES
    from vidssl.engine.checkpoint import read_tensors
    from vidssl.evaluate.feature_cache import read_encoded
    from vidssl.evaluators.extract import table_of

    source = SOURCES["video_folder"](root="videos", part="train", test_share=0.5)
    key = read_tensors(Path("features.safetensors"))[0].get("key", "")
    table_of(
        source,
        read_encoded(Path("features.safetensors"), key, source),
        torch.device("cpu"),
    )


def measure(world: Path, number: int, only: Sequence[str] = ()) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Name of each target, how often it was tried, and how it fell how often."""
    import torch

    torch.set_num_threads(1)
    run_all(world, MORE)
    for target in targets():
        if only and not any(word in target.name for word in only):
            continue
        fallen: dict[str, int] = {}
        tried = 0
        original = (world / target.file).read_bytes()
        place = world.with_name(f"{world.name}-attacked-{os.getpid()}")
        for what, content in [("as it is", original), *target.mutate(original, number)]:
            shutil.copytree(world, place, symlinks=True)
            how = attempt(target, place, content)
            shutil.rmtree(place)
            tried += 1
            if how:
                fallen[how] = fallen.get(how, 0) + 1
                if os.environ.get("VERBOSE"):
                    print(f"    {target.name}: {what}: {how}", flush=True)
        yield target.name, tried, fallen
