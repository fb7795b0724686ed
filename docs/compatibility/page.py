"""Which components work together, as a page of tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidssl.build.registry import BACKBONE

COMMAND = "python -m docs.compatibility.table docs/compatibility.md"
WORKS = "yes"
BY_HAND = "\n## Versions\n"  # where what follows on the page is written by hand

_OPENING = f"""# What works with what

Made by `{COMMAND}`, which builds every objective with every backbone,
tokenizer and masker, at toy size.

- **{WORKS}**: `vidssl check` accepts the recipe, and a training step on random clips leaves finite numbers.
- **no (1)**: `vidssl check` refuses it, for the reason of that number below, in its own words.

A tokenizer's column stands for all maskers unless a cell says otherwise; "+ masker" is with a masker where an
objective can do without. Sizes matter too: `vidssl check` knows whether those of a recipe fit.
"""

_BY_NAME = """## Networks by name

The adapters' networks, with the objectives that need no mask, on clips of {clip} (local views:
{local}). A network that takes clips of another size only is refused here. timm has many more networks.
"""


@dataclass(frozen=True)
class Combination:
    """Names of components; None where the objective takes no such part, or is to go without it."""

    objective: str
    backbone: str | None
    tokenizer: str | None
    masker: str | None


Outcomes = Mapping[Combination, str | None]  # why it is refused; None for what works


def page(outcomes: Outcomes, named: Outcomes, *, clip: str, local: str) -> str:
    """The page.

    Args:
        outcomes: of all combinations.
        named: of networks by name, each in the place of a backbone.
        clip, local: the sizes of their clips, in words.
    """
    reasons = Reasons()
    sections: dict[str, list[str]] = {}
    for objective in dict.fromkeys(one.objective for one in outcomes):
        own = {one: why for one, why in outcomes.items() if one.objective == objective}
        sections.setdefault(_table(own, reasons), []).append(objective)
    text = [_OPENING]
    text += [f"## {', '.join(names)}\n\n{table}" for table, names in sections.items()]
    text += [_BY_NAME.format(clip=clip, local=local), _named_table(named, reasons)]
    text += ["## Why not\n", *(f"{number}. {why}" for why, number in reasons.numbers.items())]
    return "\n".join(text) + "\n"


def by_hand(old: str) -> str:
    """What is to be kept of an older page: from its heading on, all that no command writes."""
    _, heading, text = old.partition(BY_HAND)
    return heading + text


class Reasons:
    """Numbers of refusals, in the order in which they come up."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, combination: Combination, refusal: str | None) -> str:
        """What a cell says of one combination."""
        if refusal is None:
            return WORKS
        why = reason(combination, refusal)
        return f"no ({self.numbers.setdefault(why, len(self.numbers) + 1)})"


def reason(combination: Combination, refusal: str) -> str:
    """The first sentence of a refusal, the same for all components that are refused alike."""
    _, _, sentence = refusal.split(". ")[0].split(": ", maxsplit=2)
    sentence = re.sub(r",? got .*", "", sentence)  # the sizes of these toys
    for word in _names(combination.backbone):
        sentence = sentence.replace(word, "the backbone")
    sentence = sentence.replace(f"'{combination.masker}'", "the masker")
    for word in (f"objective '{combination.objective}'", f"'{combination.objective}'"):
        sentence = sentence.replace(word, "the objective")
    return sentence


def _names(backbone: str | None) -> list[str]:
    """What messages call a backbone: its type, its class, the name of an adapter's network."""
    if backbone is None:
        return []
    kind, _, network = backbone.partition(" ")
    names = [f"'{kind}'", getattr(BACKBONE.table[kind], "__name__", kind)]
    return [*names, f"{kind}'s {network}", network] if network else names


def _table(own: Outcomes, reasons: Reasons) -> str:
    """Backbones by tokenizers, of one objective."""
    masked = {one.masker is not None for one in own}
    rows: dict[str, dict[str, list[tuple[Combination, str]]]] = {}
    for one, refusal in own.items():
        column = "no tokenizer" if one.tokenizer is None else one.tokenizer
        column += " + masker" if one.masker is not None and len(masked) > 1 else ""
        cell = rows.setdefault(one.backbone or "(none)", {}).setdefault(column, [])
        cell.append((one, reasons.mark(one, refusal)))
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    marks = {name: {column: _cell(row[column]) for column in columns} for name, row in rows.items()}
    return _markdown("backbone", marks)


def _cell(tried: Sequence[tuple[Combination, str]]) -> str:
    """One mark where all maskers agree; otherwise each mark with its maskers."""
    maskers: dict[str, list[str]] = {}
    for one, mark in tried:
        maskers.setdefault(mark, []).append(one.masker or "")
    if len(maskers) == 1:
        return tried[0][1]
    return "; ".join(f"{mark}: {', '.join(names)}" for mark, names in maskers.items())


def _named_table(named: Outcomes, reasons: Reasons) -> str:
    rows: dict[str, dict[str, str]] = {}
    for one, why in named.items():
        rows.setdefault(str(one.backbone), {})[one.objective] = reasons.mark(one, why)
    return _markdown("network", rows)


def _markdown(head: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """A table in which rows that read alike are one row, and so are columns, with the names of all."""
    names = [*dict.fromkeys(name for row in rows.values() for name in row)]
    columns = _alike({name: tuple(row[name] for row in rows.values()) for name in names})
    lines = [[head, *columns], ["---"] * (1 + len(columns))]
    marks = {label: [row[group[0]] for group in columns.values()] for label, row in rows.items()}
    lines += [[label, *marks[group[0]]] for label, group in _alike(marks).items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _alike(cells: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names whose cells are equal, under all of these names joined."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in cells.items():
        groups.setdefault(tuple(row), []).append(name)
    return {", ".join(group): group for group in groups.values()}
