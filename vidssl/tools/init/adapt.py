"""A recipe that goes on from weights: released ones by ``recipes/adapt``, a run's by its own recipe."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from vidssl.config import files, recipe
from vidssl.config.strict_yaml import dump, dump_flow, parse, plain
from vidssl.engine.checkpoint import Checkpoint
from vidssl.errors import UsageError
from vidssl.evaluate.subject import recipe_of
from vidssl.tools.collection.survey import Seen
from vidssl.tools.init.choices import Choice
from vidssl.tools.init.text import Sources
from vidssl.weights import external, load, vit_keys

_KNOWN = {vit_keys.V_JEPA_2: "vjepa", vit_keys.VIDEO_MAE: "videomae"}  # layout -> recipe in recipes/adapt
_SEEN_RATES = {"vjepa": 4.0, "videomae": 7.5}  # frames a second of the releases' clips
_LOWER = 0.25  # of the rate that a run was trained with, for going on with its weights


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        word: as they were named.
        checkpoint: of a run; None for a release.
        adapts: name in ``recipes/adapt``; empty for a run.
    """

    word: str
    checkpoint: Checkpoint | None
    adapts: str

    @property
    def words(self) -> str:
        """What a recipe from here on does."""
        how = f"recipes/adapt/{self.adapts}.yaml" if self.adapts else "the run's own recipe"
        return f"Going on from {self.word} by {how}"

    @property
    def timed(self) -> bool:
        """Whether its steps fill the time there is; a release's recipe states them."""
        return self.checkpoint is not None


def start_from(word: str, *, trust: bool = False) -> Start:
    """The weights that a word names: a run, its checkpoint, or a file of V-JEPA 2 or VideoMAE.

    Args:
        trust: as for ``vidssl eval``: the recipe is built and timed, with the code that it names.

    Raises:
        UsageError: if they cannot be read or trusted, or there are no settings for going on with them.
    """
    checkpoint = load.own_checkpoint(word)
    if checkpoint is not None:
        recipe_of(checkpoint, "there is none to go on by", trust=trust)
        return Start(word, checkpoint, "")
    layout = vit_keys.layout_of(external.read_external(word).state)
    known = [name for start, name in _KNOWN.items() if layout.startswith(start)]
    if not known or layout.startswith(vit_keys.V_JEPA_2_1):
        raise UsageError(
            f"--from {word}: {layout or 'no network of a known layout'}. There are settings for runs, and "
            "for releases of V-JEPA 2 and VideoMAE (recipes/adapt); others start by 'backbone.init'"
        )
    return Start(word, None, known[0])


def adapted_text(
    start: Start,
    name: str,
    sources: Sources,
    seen: Sequence[Seen],
    flip: Choice[float],
    heading: Sequence[str],
) -> Callable[[Choice[int]], str]:
    """The recipe as a function of its steps, of which that of a release takes no notice."""
    if start.checkpoint is not None:
        return lambda steps: _of_run(start, start.checkpoint, name, sources, steps, heading)  # type: ignore[arg-type]
    text = _of_release(start, name, sources, seen, flip, heading)
    return lambda steps: text


def _of_release(
    start: Start,
    name: str,
    sources: Sources,
    seen: Sequence[Seen],
    flip: Choice[float],
    heading: Sequence[str],
) -> str:
    """``recipes/adapt`` with what depends on weights and videos changed, its comments kept."""
    whole = start.word.endswith(".safetensors")  # of the transformers library: both keys take the file
    shipped = files.find("recipes", f"adapt/{start.adapts}").read_text(encoding="utf-8")
    stride = _stride(start.adapts, seen, int(re.findall(r"num_frames: (\d+)", shipped)[0]))
    lines: list[str] = [*(f"# {line}".rstrip() for line in heading), "#"]
    skipped = ""
    for line in shipped.splitlines():
        key = line.strip().partition(":")[0]
        indent = line[: len(line) - len(line.lstrip())]
        if skipped and line.startswith(f"{skipped} "):
            continue
        skipped = ""
        if line.startswith("#   vidssl") or key == "# yours":
            continue
        if key == "name":
            line = f"name: {name}"
        elif key == "init":
            line = re.sub(
                r"init: [^\s#]+(#\w+)?",
                lambda found: f"init: {dump_flow(start.word + ('' if whole else found[1] or ''))}",
                line,
            )
        elif key == "source":
            line = f"{indent}source: {dump_flow(dict(sources.shared))}"
        elif key == "probe" and not sources.probed:
            skipped = indent
            continue
        elif key == "augment":
            line = re.sub(r"flip: \S+\}.*", f"flip: {flip.value}}}   # {flip.why}", line)
        line = line.replace("# of videos of 30 frames a second", "# by the videos' rate and length")
        lines.append(re.sub(r"frame_stride: \d+", f"frame_stride: {stride}", line))
        if key == "video" and sources.watched is not None:
            lines.append(
                f"    test_source: {dump_flow(dict(sources.watched))}   # watched; test is for the probe"
            )
    return "\n".join(lines) + "\n"


def _stride(adapts: str, seen: Sequence[Seen], num_frames: int) -> int:
    """Frames between those of a clip: the release's rate, or less where nine in ten videos are too short."""
    rate = median([one.fps for one in seen if one.fps > 0] or [30.0])
    shortest = sorted(one.frames for one in seen)[len(seen) // 10]
    return max(1, min(round(rate / _SEEN_RATES[adapts]), (shortest - 1) // (num_frames - 1)))


def _of_run(
    start: Start,
    checkpoint: Checkpoint,
    name: str,
    sources: Sources,
    steps: Choice[int],
    heading: Sequence[str],
) -> str:
    """The recipe of a run for other videos, from its weights on, at a lower rate."""
    tree = plain(parse(checkpoint.recipe, lambda line: f"{checkpoint.path}: its recipe, line {line}"))
    assert isinstance(tree, dict), "a recipe has sections"
    data = {
        key: value for key, value in tree["data"].items() if key not in ("source", "train", "test", "probe")
    }
    for stream in set(recipe.STREAMS) & set(data):
        data[stream] = {
            key: value
            for key, value in data[stream].items()
            if key not in ("source", "test_source", "subset")
        }
        if sources.watched is not None:
            data[stream] = {"test_source": dict(sources.watched), **data[stream]}
    probe = tree["data"].get("probe")
    if sources.probed and isinstance(probe, Mapping):
        data["probe"] = {key: value for key, value in probe.items() if key not in ("train", "test")}
    rate = float(f"{tree['optim']['lr'] * _LOWER:.3g}")
    warmup = max(1, steps.value // 10)
    schedule = {key: value for key, value in tree["schedule"].items() if "epochs" not in key}
    changed = {
        "name": name,
        "objective": {**tree["objective"], "init": start.word},
        "backbone": {**tree["backbone"], "init": start.word},
        "data": {
            "source": dict(sources.shared),
            "train": dict(sources.train),
            "test": dict(sources.test),
            **data,
        },
        "optim": {**tree["optim"], "lr": rate},
        "schedule": {**schedule, "steps": steps.value, "warmup_steps": warmup},
        "run": {key: value for key, value in tree["run"].items() if key not in ("out", "resume", "device")},
    }
    why = [
        f"Changed from the recipe of {start.word}: it starts from all weights of that run; other videos;",
        f"optim.lr {rate:g}, a quarter of the run's: trained weights need no large steps (ours);",
        f"schedule.steps {steps.value}: {steps.why}; a tenth of them warm up.",
    ]
    lines = [f"# {line}".rstrip() for line in (*heading, *why)]
    return "\n".join(lines) + "\n" + dump({**tree, **changed})
