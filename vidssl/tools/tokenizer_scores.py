"""Tokenizers side by side: what they keep, which codes they use, how steady and how fast ids are."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.files import find, spec_files
from vidssl.config.protocol import TokenizerProtocol, load_tokenizer_protocol, measures_tokenizers
from vidssl.config.recipe import load_tokenizer_spec
from vidssl.engine import process, runfolder
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.engine.speed import pick_device
from vidssl.errors import UsageError, counted
from vidssl.evaluate import evaluate, subject
from vidssl.interfaces import Tokenizer
from vidssl.pictures import drawings, pages
from vidssl.pictures.clips import Clips, draw_clips
from vidssl.tokenizers.frame_networks import of_length
from vidssl.tokenizers.measure import TokenizerMeasure, ids_per_second, measure, psnr

FORMAT = "vidssl tokenizer scores 1"
FOLDER = "tokenizer_scores"  # in the run's folder, or where the command is given


@dataclass(frozen=True)
class Candidate:
    """A tokenizer to measure.

    Attributes:
        name: of its file in ``tokenizers``, or the run as it was named.
        type: of the table of tokenizers.
        weights: the file that they come from.
        run: its folder and checkpoint's name, None for a file in ``tokenizers``.
    """

    name: str
    type: str
    tokenizer: Tokenizer
    weights: Path
    run: tuple[Path, str] | None = None


@dataclass(frozen=True)
class ScoredTokenizer:
    """Measurements of a tokenizer; ``speed``: its ids a second over those of the first in the table."""

    candidate: Candidate
    measured: TokenizerMeasure
    ids_per_second: float
    speed: float


def score_tokenizers(
    targets: Sequence[str],
    protocols: Sequence[str],
    overrides: Sequence[str],
    console: Console | None = None,
    *,
    trust: bool = False,
) -> int:
    """Measure tokenizers under a protocol, print one table, keep it with a sheet of reconstructions.

    Args:
        targets: tokenizer files or names, runs or checkpoints that trained a tokenizer; none for all of
            ``tokenizers`` whose weights are there.
        protocols: one that measures tokenizers.
        overrides: ``key=value`` for it.
        trust: use code that the recipe of a run or checkpoint names, whoever trained it.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or terminal()
    say = partial(print_line, console)
    protocol = _only_protocol(protocols, overrides)
    build.check_tokenizer_protocol(protocol)
    with shown_messages(console), torch.no_grad():
        candidates, missing = _candidates(targets, say, trust)
        clips = draw_clips(
            build.source(protocol.data.test), build.views(protocol.views), protocol.measure.videos, say
        )
        rows = _measured(candidates, clips, protocol)
        console.print(
            _table(rows, f"{protocol.name} of {counted(len(clips.keys), 'video')}, {_size(clips.pixels)}")
        )
        for line in missing:
            say(f"not measured: {line}")
        folder, stem = _place(candidates, protocol.name)
        _keep(folder, stem, rows, missing, protocol, clips)
    say(f"Scores: {folder / f'{stem}.json'}")
    say(f"Picture: {folder / f'{stem}.png'}")
    return 0


def _only_protocol(protocols: Sequence[str], overrides: Sequence[str]) -> TokenizerProtocol:
    others = [name for name in protocols if not measures_tokenizers(name)]
    if others or len(protocols) > 1:
        raise UsageError(
            f"tokenizers are measured under one protocol at a time, got {', '.join(protocols)}: "
            "networks are scored by a command of their own"
        )
    return load_tokenizer_protocol(protocols[0], overrides)


def _candidates(targets: Sequence[str], say: Say, trust: bool) -> tuple[list[Candidate], list[str]]:
    """The tokenizers to measure, and a line on each that has no weights, where none was named."""
    if targets:
        found = [_named(target, say, trust) for target in targets]
        names = [candidate.name for candidate in found]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(f"{twice[0]}: named twice")
        return found, []
    specs = {name: load_tokenizer_spec(str(path)) for name, path in sorted(spec_files("tokenizers").items())}
    ready, missing = [], []
    for name, spec in specs.items():
        assert spec.weights is not None, "a tokenizer file names weights"
        if spec.weights.path.is_file():
            ready.append(_named(name, say, trust))
        else:
            how = f"; made by: {spec.weights.command}" if spec.weights.command else ""
            missing.append(f"{name}: no weights at {spec.weights.path}{how}")
    if not ready:
        raise UsageError(f"no tokenizer has weights: {'; '.join(missing) or 'there is none in tokenizers/'}")
    return ready, missing


def _named(target: str, say: Say, trust: bool) -> Candidate:
    path = Path(target)
    if not path.is_dir() and path.suffix != ".safetensors":
        spec = load_tokenizer_spec(target)
        made = build.tokenizer(spec, say=say)
        assert spec.weights is not None, "a tokenizer file names weights"
        return Candidate(find("tokenizers", target).stem, spec.part.type, made, spec.weights.path)
    checkpoint = read_checkpoint(evaluate.find_checkpoint(target))
    recipe = subject.recipe_of(checkpoint, "without one the tokenizer is not known", trust=trust)
    if recipe.backbone is not None or recipe.tokenizer is None:
        raise UsageError(f"{target}: trained a network and no tokenizer: '--protocol knn' scores those")
    made = subject.trained_tokenizer(recipe, checkpoint)
    run = (subject.home(checkpoint), checkpoint.path.stem)
    return Candidate(target.rstrip("/"), recipe.tokenizer.part.type, made, checkpoint.path, run)


def _measured(
    candidates: Sequence[Candidate], clips: Clips, protocol: TokenizerProtocol
) -> list[ScoredTokenizer]:
    device = pick_device("auto")
    for candidate in candidates:
        candidate.tokenizer.to(device)
    found = [_measure(candidate, clips.pixels, protocol, device) for candidate in candidates]
    batch = clips.pixels[: protocol.batch_size].to(device)
    speeds = ids_per_second([candidate.tokenizer for candidate in candidates], batch)
    return [
        ScoredTokenizer(candidate, measured, speed, speed / speeds[0])
        for candidate, measured, speed in zip(candidates, found, speeds, strict=True)
    ]


def _measure(
    candidate: Candidate, pixels: Tensor, protocol: TokenizerProtocol, device: torch.device
) -> TokenizerMeasure:
    try:
        return measure(
            candidate.tokenizer,
            pixels,
            torch.Generator().manual_seed(0),
            noise=protocol.measure.noise,
            batch_size=protocol.batch_size,
            device=device,
        )
    except ValueError as error:  # a size that it refuses, or it cannot draw
        raise UsageError(f"{candidate.name}: {error}") from error


def _table(rows: Sequence[ScoredTokenizer], title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="flicker: ids that change on a still clip under noise. ids/s: against the first row",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("tokenizer", overflow="fold")
    heads = (
        "an id", "bits/\npixel", "PSNR\ndB", "SSIM", "codes\nused", "per-\nplexity", "flicker\n%", "ids/s",
    )  # fmt: skip
    for name in heads:
        table.add_column(name, justify="right")
    on_gpu = torch.cuda.is_available()
    for row in rows:
        found, strides = row.measured, row.candidate.tokenizer.strides
        table.add_row(
            row.candidate.name,
            "x".join(map(str, strides)),
            f"{bits_per_pixel(row.candidate.tokenizer):.3f}",
            f"{found.psnr:.1f}",
            f"{found.ssim:.3f}",
            f"{found.used_codes}/{found.vocab_size}",
            f"{found.perplexity:.1f}",
            f"{100 * found.flicker:.1f}",
            f"{row.speed:.2f}x" + (f" ({row.ids_per_second:.3g})" if on_gpu else ""),
        )
    return table


def bits_per_pixel(tokenizer: Tokenizer) -> float:
    """Bits of an id over the pixels of all frames that it stands for: the price of quality."""
    return math.log2(tokenizer.vocab_size) / math.prod(tokenizer.strides)


def _place(candidates: Sequence[Candidate], name: str) -> tuple[Path, str]:
    """Where scores and sheet go, and their name: beside the run where one run alone was measured."""
    run = candidates[0].run
    if len(candidates) == 1 and run is not None:
        return run[0] / FOLDER, f"{name}-{run[1]}"
    return Path(FOLDER), name


def _keep(
    folder: Path,
    stem: str,
    rows: Sequence[ScoredTokenizer],
    missing: Sequence[str],
    protocol: TokenizerProtocol,
    clips: Clips,
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder.resolve()}: {error.strerror}") from error
    record = {
        "format": FORMAT,
        "protocol": resolved_text(protocol),
        "videos": clips.keys,
        "tokenizers": [_record(row) for row in rows],
        "not_measured": missing,
        "environment": runfolder.describe_environment(),
    }
    process.write_text(folder / f"{stem}.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    shown = pages.evenly_spaced(len(clips.keys), protocol.measure.shown)
    few = Clips(clips.pixels[shown], tuple(clips.keys[number] for number in shown))
    _save_sheet(few, [row.candidate for row in rows], folder / f"{stem}.png")


def _record(row: ScoredTokenizer) -> dict[str, object]:
    measured = asdict(row.measured)
    if math.isinf(row.measured.psnr):
        measured["psnr"] = None  # nothing was lost; JSON has no infinity
    return {
        "name": row.candidate.name,
        "type": row.candidate.type,
        "weights": str(row.candidate.weights),
        "strides": row.candidate.tokenizer.strides,
        "bits_per_pixel": bits_per_pixel(row.candidate.tokenizer),
        **measured,
        "speed": row.speed,
        "ids_per_second": row.ids_per_second if torch.cuda.is_available() else None,
    }


def _save_sheet(clips: Clips, candidates: Sequence[Candidate], path: Path) -> None:
    """Frames above what each tokenizer makes of them."""
    labelled = {"frames": [pages.as_frames(clip) for clip in clips.pixels]}
    errors = []
    for candidate in candidates:
        device = next(candidate.tokenizer.parameters()).device
        ids = candidate.tokenizer.encode(clips.pixels.to(device))
        made = of_length(candidate.tokenizer.decode(ids), clips.pixels.shape[2]).cpu()
        labelled[candidate.name] = [pages.as_frames(clip) for clip in made]
        errors.append((made - clips.pixels).square().flatten(1).mean(dim=1))
    heights = psnr(torch.stack(errors)).T.tolist()
    names = [candidate.name for candidate in candidates]
    notes = [
        ", ".join(f"{n} {db:.1f} dB" for n, db in zip(names, of_clip, strict=True)) for of_clip in heights
    ]
    brief = [" / ".join(f"{db:.0f}" for db in of_clip) for of_clip in heights]
    pages.save_png(
        pages.sheet("what each tokenizer keeps", drawings.strips_of(clips.keys, labelled, notes, brief)), path
    )


def _size(pixels: Tensor) -> str:
    frames, height, width = pixels.shape[2:]
    return f"{counted(frames, 'frame')} of {height}x{width}"
