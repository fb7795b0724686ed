"""Fingerprints of training and evaluation, to show that a refactor changed no bit.

    python docs/measure_equality.py > before.json
    git switch refactored && python docs/measure_equality.py > after.json && diff before.json after.json

Twenty steps of the three laptop recipes and the three of ``recipes/comparison``, each with a kNN and a
linear probe, a fine-tuning of the first, and a run that is resumed from its checkpoint after 12 steps: every
logged loss, the SHA-256 of every run's final weights and every score. One thread, a few minutes. Only equal
machines and equal versions of torch give equal bits.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("bevt", "svt", "vimpac", "comparison/bevt", "comparison/svt", "comparison/vimpac")
SHORT = (
    "run.device=cpu", "schedule.steps=20", "schedule.warmup_steps=2", "run.checkpoint_every_steps=12",
    "run.keep_checkpoints=3", "run.log_every_steps=1", "run.test_batches=2", "data.probe.train.limit=200",
    "data.probe.test.limit=100",
)  # fmt: skip
OF_THE_MACHINE = ("second", "wait", "memory", "off_cpu")


def vidssl(*words: str) -> None:
    """Runs one command on one thread; its output only if it fails."""
    ran = subprocess.run(
        [sys.executable, "-m", "vidssl", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        sys.exit(f"vidssl {' '.join(words)}\n{ran.stdout}{ran.stderr}")


def losses(run: Path) -> list[dict[str, float]]:
    """Logged metrics of every step, without what depends on the machine."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if not any(word in name for word in OF_THE_MACHINE)}
        for record in records
    ]


def weights(run: Path) -> str:
    """SHA-256 of all tensors of a run's newest checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    newest = max((run / "checkpoints").glob("*.safetensors"))
    for name, tensor in sorted(load_file(newest).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()


def scores(run: Path) -> dict[str, str]:
    """SHA-256 of the scores and predictions of every file of scores, by its path."""
    found = {}
    for path in sorted(run.rglob("scores/*.json")):
        record = json.loads(path.read_text())
        text = json.dumps([record["scores"], record["predicted"]])
        found[path.relative_to(run).as_posix()] = hashlib.sha256(text.encode()).hexdigest()
    return found


def main() -> None:
    """Trains, scores and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=NAMES, help="recipes to run")
    names = parser.parse_args().only
    prints: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            label = name.replace("/", "_")
            run = Path(folder) / label
            vidssl("train", f"{RECIPES / name}.yaml", f"name={label}", f"run.out={folder}", *SHORT)
            vidssl("eval", str(run), "--protocol", "knn", "--protocol", "linear")
            prints[name] = {"losses": losses(run), "weights": weights(run), "scores": scores(run)}
        first = names[0].replace("/", "_")
        run = Path(folder) / first
        vidssl("eval", str(run), "--protocol", "finetune", "labels=[digit]", "schedule.epochs=1",
               "schedule.warmup_epochs=0")  # fmt: skip
        prints["finetune"] = scores(run)
        (run / "checkpoints" / max(p.name for p in (run / "checkpoints").glob("*.safetensors"))).unlink()
        vidssl("train", "--resume", str(run))
        prints["resume"] = weights(run)
    print(json.dumps(prints, indent=1))


if __name__ == "__main__":
    main()
