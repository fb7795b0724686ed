"""Commands that draw: show and watch."""

from typing import Any

from vidssl.cli.operands import Commands, Parser, add, add_trust, at_least, split
from vidssl.errors import UsageError

PARTS = ("views", "masks", "tokens")
CHARTS = ("curves", "scores", "embedding", "neighbours")


def add_commands(commands: "Commands[Parser]") -> None:
    show = add(
        commands,
        "show",
        _show,
        "draw what a run learned and what it is given, scores and curves, or what a tokenizer keeps",
        (
            "[RUN_OR_CHECKPOINT_OR_TOKENIZER_OR_SCORES_OR_RECIPE] [data={...}] [views={...}]",
            "what to draw, the newest run if nothing is named; videos and views other than its recipe's",
        ),
    )
    show.add_argument(
        "--what",
        choices=("attention", "reconstruction", *PARTS, "clips", "confusion", *CHARTS),
        required=True,
        help="where the class token looks; hidden parts as they were predicted; views, masks or ids of a "
        "step, also of a recipe; labelled clips of a recipe's streams and probe; which classes are taken for "
        "which; curves and scores of one or more runs; a map of features, and nearest neighbours",
    )
    for name, describe in (
        ("protocol", "confusion, scores: whose; maps, neighbours: whose views"),
        ("label", "confusion: default a picture for each; maps, neighbours: default what neighbours share"),
        ("setting", "confusion: such as k=5; default: the first"),
        ("network", "confusion: column of the scores; default: the first"),
    ):
        show.add_argument(f"--{name}", metavar="NAME", help=describe)
    show.add_argument(
        "--videos", type=at_least(1), metavar="N", help="how many videos; default 4, or 8 images"
    )
    show.add_argument(
        "--video", dest="files", action="append", metavar="FILE", help="show this video; may be repeated"
    )
    show.add_argument("--out", metavar="FOLDER", help="where pictures go; default: pictures/ in the run")
    add_trust(show)

    watch = add(
        commands,
        "watch",
        _watch,
        "draw curves of runs in the terminal, over one another",
        ("[RUN ...]", "their folders; default: the newest run"),
    )
    watch.add_argument(
        "--metric",
        dest="patterns",
        action="append",
        metavar="NAME",
        help="or a pattern (loss*); may be repeated",
    )
    watch.add_argument("--once", action="store_true", help="draw once, though the run trains on")


def _show(words: list[str], *, what: Any, **options: Any) -> int:
    names, overrides = split(words)
    if what in CHARTS:
        refused = [f"--{name}" for name in ("setting", "network") if name in options]
        refused += ["--video"] if "files" in options else overrides[:1]
        if refused:
            raise UsageError(f"{refused[0]}: means nothing to --what {what}")
        from vidssl.tools.show_charts import show_chart

        return show_chart(names, what, **options)
    if len(names) > 1:
        raise UsageError(f"show takes one run, checkpoint or tokenizer, got {' '.join(names)}")
    if what == "confusion":
        if not names:
            raise UsageError("--what confusion takes a run or a file of scores, got none")
        if overrides or options.keys() & {"files", "videos"}:
            raise UsageError("--what confusion is drawn of scores: leave out videos, data and views")
        options.pop("trust", None)
        from vidssl.pictures.charts import show_confusion

        return show_confusion(names[0], **options)
    for option in ("protocol", "label", "setting", "network"):
        if option in options:
            raise UsageError(f"--{option} is for --what confusion")
    if what in PARTS:
        from vidssl.pictures.show import show_part

        return show_part(names[0] if names else None, what, overrides=overrides, **options)
    if what == "clips":
        if len(names) != 1 or "files" in options:
            raise UsageError("--what clips takes a recipe or a run, and shows its own videos")
        from vidssl.pictures.clips import show_clips

        return show_clips(names[0], overrides=overrides, **options)
    from vidssl.pictures.show import show

    return show(names[0] if names else None, what, overrides=overrides, **options)


def _watch(words: list[str], *, patterns: list[str] | None = None, once: bool = False) -> int:
    from vidssl.tools.watch import watch_run

    return watch_run(words, patterns or [], once=once)
