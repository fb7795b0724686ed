"""``vidssl selftest``: promises of the package, tried on the user's own recipe and machine."""

import tempfile
from collections.abc import Sequence

import torch
from rich.console import Console

from vidssl.config.recipe import load_recipe
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.logging import print_line, terminal
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError, counted
from vidssl.train.run import train_recipe


def selftest_resume(
    name: str, overrides: Sequence[str] = (), *, steps: int = 5, console: Console | None = None
) -> int:
    """Takes 2 * ``steps`` steps of a recipe at once, and again with a stop in the middle; compares the two.

    Args:
        name: file or name of the recipe; runs lie in a folder that is removed.

    Returns:
        Exit code: 0 if weights, optimizer and random states are the same bit for bit, otherwise 1.
    """
    console = console or terminal()
    quiet = terminal(quiet=True)
    with tempfile.TemporaryDirectory(prefix="vidssl-selftest-") as folder:
        recipe = load_recipe(name, [*overrides, f"run.out={folder}", "run.resume=never"])
        _, whole = train_recipe(recipe, quiet, stop_after=2 * steps)
        if whole.steps < 2 * steps:
            raise UsageError(
                f"the run ended after {counted(whole.steps, 'step')}, the test takes {2 * steps}: fewer "
                "with --steps"
            )
        console.print(f"{counted(2 * steps, 'step')} at once: done.")
        _, half = train_recipe(recipe, quiet, stop_after=steps)
        _, halves = train_recipe(recipe, quiet, resume=half.folder, stop_after=2 * steps)
        console.print(f"{counted(steps, 'step')}, a stop, and {steps} more: done.")
        different, count = _differences(RunFolder(whole.folder), RunFolder(halves.folder), 2 * steps)
    for key, difference in list(different.items())[:10]:
        console.print(f"  {key}: differs by up to {difference:.3g}", highlight=False)
    if different:
        reason = "" if recipe.run.device == "cpu" else " (on a GPU some sums depend on the order of threads)"
        print_line(console, f"Not the same: {len(different)} of {count} tensors differ{reason}.")
        return 1
    console.print(
        f"The same, bit for bit: all {counted(count, 'tensor')} of weights, optimizer and random states."
    )
    return 0


def _differences(one: RunFolder, other: RunFolder, step: int) -> tuple[dict[str, float], int]:
    """Tensors that differ, the most different first, with the largest difference; and how many there are."""
    found, count = {}, 0
    for path, counterpart in (
        (one.checkpoint_path(step), other.checkpoint_path(step)),
        (one.state_path(step), other.state_path(step)),
    ):
        tensors, others = read_tensors(path)[1], read_tensors(counterpart)[1]
        count += len(tensors)
        for key in tensors.keys() | others.keys():
            if key not in tensors or key not in others:
                found[key] = float("inf")
            elif not torch.equal(tensors[key], others[key]):
                found[key] = float((tensors[key].double() - others[key].double()).abs().max())
    return dict(sorted(found.items(), key=lambda item: -item[1])), count
