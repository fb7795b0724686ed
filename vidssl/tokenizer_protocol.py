"""Evaluation protocols that measure tokenizers: they hold a section ``measure`` and no evaluator."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vidssl.recipe import overridden
from vidssl.schema import check_fields, construct
from vidssl.sections import PartSpec, read_count, read_part, read_text
from vidssl.spec import Node
from vidssl.spec_files import read


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """What is measured.

    Attributes:
        videos: how many, evenly spread over the source; one clip of each.
        noise: standard deviation of the noise behind the flicker.
        shown: videos on the sheet of reconstructions.
    """

    videos: int = 200
    noise: float = 0.01
    shown: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.videos, self.shown) < 1:
            raise ValueError(f"videos and shown must be at least 1, got {self.videos} and {self.shown}")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")


@dataclass(frozen=True)
class TokenizerProtocol:
    """How tokenizers are measured.

    Attributes:
        batch_size: clips that are encoded together.
        views: the clip of a video; the first slot of the first view is taken.
        test: where the videos come from.
    """

    name: str
    measure: MeasureSpec
    batch_size: int
    views: PartSpec
    test: PartSpec
    node: Node = field(repr=False)


def measures_tokenizers(name: str) -> bool:
    """Whether the protocol of a file or name measures tokenizers.

    Raises:
        UsageError: if there is no such protocol.
    """
    return "measure" in read("evaluation", name)[0].mapping()


def load_tokenizer_protocol(name: str, overrides: Sequence[str] = ()) -> TokenizerProtocol:
    """The protocol of a file or name, with dotted overrides applied.

    Raises:
        UsageError: for anything wrong with the file that shows without knowing the components.
    """
    node = overridden(read("evaluation", name)[0], overrides)
    sections = node.entries(("name", "measure", "views", "data"), ("batch_size",))
    data = sections["data"].entries(("test",))
    return TokenizerProtocol(
        name=read_text(sections["name"]),
        measure=construct(sections["measure"], MeasureSpec),
        batch_size=read_count(sections, "batch_size", default=32, lowest=1),
        views=read_part(sections["views"]),
        test=read_part(data["test"]),
        node=node,
    )
