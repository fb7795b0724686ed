"""``vidssl convert``: the published DALL-E dVAE as safetensors, with nothing in its files executed."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.process import file_sha256, write_atomically
from vidssl.engine.speed import on_meta
from vidssl.errors import UsageError, counted
from vidssl.tokenizers.dalle import DALLE
from vidssl.weights.load import load_whole
from vidssl.weights.published_keys import networks_in
from vidssl.weights.torch_files import read_torch_file

_PUBLISHED: dict[str, int | bool] = {"vocab_size": 8192, "width": 256, "num_blocks": 2}
_Networks = dict[str, dict[str, Tensor]]  # "encoder" and maybe "decoder": our names -> tensors


def convert_files(words: Sequence[str]) -> int:
    """Converts files that hold the dVAE's encoder, and maybe its decoder, into one safetensors file.

    The same numbers give the same bytes, and so the same sha256, whatever kind of file they came in.

    Args:
        words: paths; the last is the file to write.

    Raises:
        UsageError: if a file cannot be read, is hostile or of another network, if the result fails its check,
            or if the file to write exists.
    """
    if len(words) < 2:
        raise UsageError(
            "convert takes files and what to write: vidssl convert encoder.pkl decoder.pkl OUT.safetensors"
        )
    *sources, out = (Path(word) for word in words)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the last file is the one to write, and its name must end in .safetensors")
    if out.exists():
        raise UsageError(f"{out}: exists already; remove it or name another file. Nothing was done")
    networks = _read(sources)
    where = Path(", ".join(str(path) for path in sources))
    keys = _keys(networks, where)
    model = _model(keys, networks, where)
    checked = _checked(model)
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    write_atomically(out, lambda temporary: _save(tensors, temporary))
    for line in [*_described(sources, networks, keys), *checked, *_to_paste(keys, out)]:
        print(line)
    return 0


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # the library wraps a full disk or a missing folder in its own type
        raise OSError(str(error)) from error


def _read(sources: Sequence[Path]) -> _Networks:
    networks: _Networks = {}
    for path in sources:
        state = read_tensors(path)[1] if path.suffix == ".safetensors" else read_torch_file(path)
        try:
            found = networks_in(state)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error
        if not found:
            some = ", ".join(list(state)[:3])
            raise UsageError(f"{path}: neither encoder nor decoder of the DALL-E dVAE (it has e.g. {some})")
        twice = sorted(found.keys() & networks.keys())
        if twice:
            raise UsageError(f"{path}: holds the {twice[0]}, and so does a file before it")
        networks |= found
    if "encoder" not in networks:
        raise UsageError(f"no encoder in {', '.join(map(str, sources))}; ids cannot be made without one")
    return networks


def _keys(networks: _Networks, where: Path) -> dict[str, int | bool]:
    """The keys of ``DALLE`` that these tensors ask for."""
    encoder, decoder = networks["encoder"], networks.get("decoder")
    blocks = {key.split(".")[2] for key in encoder if key.startswith("groups.0.")}
    first, last = encoder.get("input.weight"), encoder.get("output.weight")
    if first is None or last is None or (decoder is not None and "input.weight" not in decoder):
        raise UsageError(f"{where}: no whole DALL-E dVAE, its first or last layer is missing")
    keys: dict[str, int | bool] = {"vocab_size": len(last), "width": len(first), "num_blocks": len(blocks)}
    return keys | (
        {"with_decoder": False} if decoder is None else {"decoder_width": len(decoder["input.weight"])}
    )


def _model(keys: dict[str, int | bool], networks: _Networks, where: Path) -> DALLE:
    """The tokenizer of these keys with the tensors in it, each of which must find its place."""
    try:
        with on_meta():
            model = DALLE(**keys)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"{where}: no whole DALL-E dVAE ({error})") from error
    model.to_empty(device="cpu")
    state = {f"{name}.{key}": x.float() for name, network in networks.items() for key, x in network.items()}
    load_whole(model, state, where)
    return model.eval().requires_grad_(False)


def _checked(model: DALLE) -> list[str]:
    """Encodes a picture that is the same everywhere, for a report.

    Raises:
        UsageError: if the logits or pixels are not finite.
    """
    ramp = torch.linspace(0, 1, 64)
    red, green = ramp.expand(64, 64), ramp[:, None].expand(64, 64)
    clip = torch.stack([red, green, (red + green) / 2])[None, :, None]
    with torch.no_grad():
        logits = model.logits(clip[:, :, 0])
    ids = logits.argmax(dim=1)[:, None]
    made = None if model.decoder is None else model.decode(ids)
    if not (logits.isfinite().all() and (made is None or made.isfinite().all())):
        raise UsageError("what the network gives is not finite: its weights are damaged. Nothing was written")
    lines = [
        f"test picture   a ramp of colours, 64x64: finite logits, {len(ids.unique())} different ids of "
        f"{ids.numel()}, between {int(ids.min())} and {int(ids.max())}"
    ]
    if made is not None:
        ours, flat = (_psnr(pixels, clip) for pixels in (made, clip.mean(dim=(2, 3, 4), keepdim=True)))
        verdict = "a trained dVAE is well above" if ours > flat else "NOT WHAT A TRAINED dVAE DOES"
        lines.append(f"reconstruction {ours:.1f} dB, where one flat colour has {flat:.1f} dB: {verdict}")
    return lines


def _psnr(made: Tensor, clip: Tensor) -> float:
    return -10 * math.log10(float((made - clip).square().mean()))


def _described(sources: Sequence[Path], networks: _Networks, keys: dict[str, int | bool]) -> list[str]:
    lines = [
        f"read           {path}, sha256 {file_sha256(path)}; nothing in it was executed" for path in sources
    ]
    for name, network in networks.items():
        count = sum(tensor.numel() for tensor in network.values())
        first, last = (tuple(network[f"{end}.weight"].shape) for end in ("input", "output"))
        lines.append(
            f"{name:<15}{counted(len(network), 'tensor')}, {count:,} numbers, from {first} to {last}"
        )
    other = {key: keys[key] for key, value in _PUBLISHED.items() if keys[key] != value}
    sizes = f"NOT THE PUBLISHED ONES: {other}" if other else "as published"
    return [
        *lines,
        f"vocabulary     {counted(keys['vocab_size'], 'code')}",
        f"sizes          {sizes}; every tensor has its place and shape",
        "not verified   that the numbers are OpenAI's: this program knows no digest of theirs",
    ]


def _to_paste(keys: dict[str, int | bool], out: Path) -> list[str]:
    """The lines of a tokenizer file that belong to these weights."""
    relative = f"weights/{out.name}" if out.absolute().parent.name == "weights" else str(out.absolute())
    default = {**_PUBLISHED, "decoder_width": 128}
    own = [f"{key}: {str(value).lower()}" for key, value in keys.items() if default.get(key) != value]
    lines = ["type: dalle", *own, f"weights: {relative}", f"sha256: {file_sha256(out)}"]
    return [f"wrote          {out}; in the tokenizer file (tokenizers/dalle_stride16.yaml) write", *lines]
