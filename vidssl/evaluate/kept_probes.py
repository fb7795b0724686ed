"""Probes that are kept beside a network's scores (``vidssl eval --save-probe``), and found again there."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.protocol import FinetuneProtocol, Protocol
from vidssl.engine.atomic import make_folder
from vidssl.engine.logging import print_line
from vidssl.errors import UsageError
from vidssl.evaluate.subject import Subject
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.fitted import ENDING, FittedProbe, check_fits, fit_probes, save_probe


def check_kept(protocol: Protocol | FinetuneProtocol) -> None:
    """Refuse, before features are computed, a protocol whose probe cannot be kept.

    Raises:
        UsageError: with what can.
    """
    if isinstance(protocol, FinetuneProtocol):
        raise UsageError(
            f"--save-probe: '{protocol.name}' finetunes and keeps whole networks, for vidssl predict "
            "RUN/finetune/NAME"
        )
    if protocol.few_labels is not None:
        raise UsageError(f"--save-probe: '{protocol.name}' fits many probes, on few labels each")
    check_fits(build.evaluator(protocol.evaluator))


def keep_probes(
    subject: Subject,
    protocol: Protocol,
    features: Mapping[str, tuple[FeatureTable, FeatureTable]],
    console: Console,
) -> str:
    """Fits the probe of a subject's network again, as it was scored, and writes it; an empty text."""
    evaluator = build.evaluator(protocol.evaluator)
    train, test = next(iter(features.values()))
    make_folder(subject.scores)
    found = fit_probes(evaluator, train, test, protocol.average, subject.spec.seed)
    for label, (module, classes) in found.items():
        path = subject.scores / f"{protocol.name}-{label}-{subject.stem}{ENDING}"
        kept = FittedProbe(
            module=module,
            kind=evaluator.score_kind,
            label=label,
            classes=classes,
            average=protocol.average,
            protocol=resolved_text(protocol),
            weights=subject.weights,
        )
        save_probe(path, kept)
        print_line(console, f"Probe: {path}")
    return ""


def kept_probes(scores: Path, stem: str) -> list[Path]:
    """Probes of a checkpoint among the scores of its run, the newest of each label."""
    newest: dict[str, Path] = {}
    found = [path for path in scores.glob(f"*{ENDING}") if path.name.endswith(f"-{stem}{ENDING}")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime):
        label = path.name.removesuffix(f"-{stem}{ENDING}").rpartition("-")[2]
        newest[label] = path
    return sorted(newest.values())
