"""Commands on scores: eval and compare."""

import os
from typing import Any

from vidssl.cli.operands import Commands, Parser, add, add_trust, split
from vidssl.errors import UsageError


def add_commands(commands: "Commands[Parser]") -> None:
    evaluate = add(
        commands,
        "eval",
        _evaluate,
        "score a trained network under evaluation protocols",
        (
            "[RUN_OR_CHECKPOINT_OR_NETWORK] [KEY=VALUE ...]",
            "run folder or checkpoint, the newest run if none is named; or torchvision:NAME, timm:NAME, "
            "pytorchvideo:NAME, transformers:NAME, untrained:RECIPE, recipe:RECIPE and pixels, with "
            "weights=FILE and data=RECIPE; overrides of the protocols. With --protocol tokenizer: "
            "tokenizers, as many as you like, all that have weights if none is named",
        ),
    )
    evaluate.add_argument(
        "--protocol",
        dest="protocols",
        action="append",
        required=True,
        metavar="NAME",
        help="file or name in evaluation/; may be repeated",
    )
    evaluate.add_argument(
        "--save-probe", action="store_true", help="keep the fitted probe beside the scores, for predict"
    )
    add_trust(evaluate)

    compare = add(
        commands,
        "compare",
        _compare,
        "show scores of several runs side by side",
        ("RUN_OR_SCORES", "run folders, files of scores"),
    )
    output = compare.add_mutually_exclusive_group()
    for name, describe in (
        ("markdown", "tables for a page"),
        ("latex", "tables for a paper (booktabs)"),
        ("csv", "a line for every number"),
    ):
        output.add_argument(f"--{name}", dest="output", action="store_const", const=name, help=describe)
    compare.add_argument(
        "--each", action="store_true", help="show runs by themselves that differ only in their seed"
    )
    compare.add_argument("--published", action="store_true", help="add what papers report, in tables apart")
    for option, keyword in (("paper", "papers"), ("data-set", "data_sets")):
        compare.add_argument(
            f"--{option}",
            dest=keyword,
            action="append",
            metavar="NAME",
            help=f"of that, one {option.replace('-', ' ')}'s; may be repeated",
        )


def _evaluate(words: list[str], *, protocols: list[str], **options: Any) -> int:
    names, overrides = split(words)
    # Read when torch is imported. Probes are fitted in many small steps, whose threads wait for each other:
    # on a busy machine, where they do that actively, a fit takes 25 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vidssl.config.protocol import measures_masks, measures_tokenizers
    from vidssl.engine.distributed import launched, told_once_a_machine

    with told_once_a_machine():
        several = [word for word in protocols if "," in word]
        if several:
            repeated = " ".join(f"--protocol {name.strip()}" for name in several[0].split(","))
            raise UsageError(f"--protocol {several[0]}: repeat the option for each protocol: {repeated}")
        of_tokenizers = any(map(measures_tokenizers, protocols))
        if of_tokenizers and launched() > 1:
            raise UsageError("tokenizers are measured by one process: leave torchrun out")
        of_masks = [name for name in protocols if not of_tokenizers and measures_masks(name)]
        if of_masks and launched() > 1:
            raise UsageError(f"{of_masks[0]}: masks are measured by one process: leave torchrun out")
        if not of_tokenizers and len(names) > 1:
            raise UsageError(f"eval takes one run, checkpoint or network, got {' '.join(names)}")
    if of_tokenizers:
        if "save_probe" in options:
            raise UsageError("--save-probe: measuring a tokenizer fits no probe")
        from vidssl.tools.tokenizer_scores import score_tokenizers

        return score_tokenizers(names, protocols, overrides, **options)
    target = names[0] if names else None
    if of_masks:
        if "save_probe" in options:
            raise UsageError("--save-probe: what is learned on masks is not kept")
        from vidssl.use.masks import evaluate_masks

        for name in of_masks:
            evaluate_masks(target, name, overrides, **options)
    from vidssl.evaluate.evaluate import evaluate_run

    rest = [name for name in protocols if name not in of_masks]
    return evaluate_run(target, rest, overrides, **options) if rest else 0


def _compare(words: list[str], **options: Any) -> int:
    from vidssl.compare.runs import compare

    return compare(words, **options)
