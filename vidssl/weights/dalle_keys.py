"""Names of the DALL-E dVAE's parameters: ours, and those of the published encoder and decoder."""

import re
from collections.abc import Mapping

from torch import Tensor

_PUBLISHED = re.compile(
    r"blocks\.(?:"
    r"(?P<end>input|output\.conv)"
    r"|group_(?P<group>\d+)\.block_(?P<block>\d+)\.(?:(?P<shortcut>id_path)|res_path\.conv_(?P<conv>\d+))"
    r")\.(?P<kind>[wb])"
)


def own_key(published: str) -> str:
    """Our name, below ``encoder`` or ``decoder``, of a published parameter like ``blocks.input.w``.

    Raises:
        ValueError: if it is no parameter of the dVAE.
    """
    found = _PUBLISHED.fullmatch(published)
    if found is None:
        raise ValueError(f"'{published}' is no parameter of the DALL-E dVAE")
    kind = {"w": "weight", "b": "bias"}[found["kind"]]
    if found["end"]:
        return f"{'input' if found['end'] == 'input' else 'output'}.{kind}"
    block = f"groups.{int(found['group']) - 1}.{int(found['block']) - 1}"
    return (
        f"{block}.shortcut.{kind}" if found["shortcut"] else f"{block}.path.{int(found['conv']) - 1}.{kind}"
    )


def networks_in(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks of the dVAE that a state holds, whatever stands before their names.

    So the release's own files, a checkpoint of BEVT with the frozen encoder inside, and files of this package
    all read alike. Encoder and decoder differ in their first layer: 7x7 on pixels, or 1x1 on codes.

    Returns:
        ``encoder`` and ``decoder``, those there are: our names -> tensors.

    Raises:
        ValueError: if one of them is there twice.
    """
    by_prefix: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        prefix, ours = _own_name(key)
        if ours is not None:
            by_prefix.setdefault(prefix, {})[ours] = tensor
    networks: dict[str, dict[str, Tensor]] = {}
    for prefix, tensors in by_prefix.items():
        first = tensors.get("input.weight")
        if first is None or first.ndim != 4:
            continue  # some other network that also has 'groups' or 'blocks'
        name = "decoder" if first.shape[-1] == 1 else "encoder"
        if name in networks:
            raise ValueError(f"there is a second {name}, under '{prefix}'")
        networks[name] = tensors
    return networks


_OURS = re.compile(r"(?:input|output|groups\.\d+\.\d+\.(?:shortcut|path\.\d))\.(?:weight|bias)")


def _own_name(key: str) -> tuple[str, str | None]:
    """The prefix of a parameter's name, and our name; None if it is not of the dVAE."""
    for pattern, renamed in ((_PUBLISHED, own_key), (_OURS, str)):
        found = re.search(rf"(?:^|\.)({pattern.pattern})$", key)
        if found:
            return key[: found.start()], renamed(found[1])
    return "", None
