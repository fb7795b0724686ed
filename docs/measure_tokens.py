"""How much faster a recipe trains from a token store than from pixels and a tokenizer, step for step.

    python docs/measure_tokens.py recipes/vimpac.yaml data.video.source.limit=500

Tokenizes the recipe's videos into a folder that is removed again, then takes turns: some steps from pixels,
as many from the store, and so on, all in this process and on one thread of the CPU. What counts is processor
time, which other work on the machine changes little. Printed are ratios, the middle of all rounds and the
extremes.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.data.loader import Loader
from vidssl.data.sources.token_store import TokenStore
from vidssl.interfaces import Progress
from vidssl.tools.tokenize.tokenize import tokenize

ALONE = ("run.workers=0", "run.device=cpu", "run.precision=fp32")
Seconds = tuple[float, float]  # of a round: to have the batches, and for all that is done with them


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="with views clip_pair")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of each kind in a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pixels = load_recipe(given.recipe, (*given.overrides, *ALONE))
    with tempfile.TemporaryDirectory() as folder:
        stored = load_recipe(given.recipe, (*given.overrides, *ALONE, *stored_in(folder, pixels)))
        print_ratios(take_turns(pixels, stored, given.rounds, given.steps))


def stored_in(folder: str, recipe: Recipe) -> tuple[str, ...]:
    """Fills a store; the overrides that read it."""
    views = recipe.data.streams["video"].views
    fps = views.node.mapping()["fps"].value if "fps" in views.node.mapping() else 2.0
    started = time.process_time()
    with Console(quiet=True) as console:
        tokenize(recipe, Path(folder), fps=fps or "own", console=console)
    videos = len(TokenStore(root=folder))
    print(f"{videos} videos tokenized in {time.process_time() - started:.0f} s of processor time")
    store = f"{{type: token_store, root: {folder}}}"
    return (
        f"data.video.source={store}",
        f"data.video.test_source={store}",  # none of it is read
        "data.video.views.type=stored_clip_pair",
    )


def take_turns(pixels: Recipe, stored: Recipe, rounds: int, steps: int) -> list[tuple[Seconds, Seconds]]:
    """Seconds of each round, from pixels and from the store; the first round is for warming up."""
    from_pixels, from_store = training(pixels, steps), training(stored, steps)
    return [(next(from_pixels), next(from_store)) for _ in range(rounds + 1)][1:]


def training(recipe: Recipe, steps: int) -> Iterator[Seconds]:
    """Trains for ever, some steps at a time."""
    build.check(recipe)
    torch.manual_seed(recipe.seed)
    objective = build.objective(recipe, say=lambda text: None).train()
    optim = build.optim(recipe)
    optimizer = optim.build(objective)
    generator = torch.Generator().manual_seed(recipe.seed)
    with Loader(build.streams(recipe)) as loader:
        while True:
            loading = learning = 0.0
            for _ in range(steps):
                started = time.process_time()
                batch = next(loader).to(torch.device("cpu"))
                loaded = time.process_time()
                objective(batch, Progress(0, 1), generator).loss.backward()
                optim.update.clip_gradients(objective.parameters())
                optimizer.step()
                optimizer.zero_grad()
                loading += loaded - started
                learning += time.process_time() - loaded
            yield loading, learning


def print_ratios(rounds: Sequence[tuple[Seconds, Seconds]]) -> None:
    show(
        "steps from the store, over steps from pixels in the same time", [sum(p) / sum(s) for p, s in rounds]
    )
    show("of a step from pixels, share of loading", [p[0] / sum(p) for p, _ in rounds])
    show("of a step from pixels, share that tokenizing takes", [(p[1] - s[1]) / sum(p) for p, s in rounds])
    show("of a step from the store, share of loading", [s[0] / sum(s) for _, s in rounds])
    show("loading from the store, times as fast", [p[0] / s[0] for p, s in rounds])


def show(name: str, values: Sequence[float]) -> None:
    ordered = sorted(values)
    print(f"{name}: {ordered[len(ordered) // 2]:.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})")


if __name__ == "__main__":
    main()
