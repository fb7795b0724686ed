"""``vidssl export``: a network in formats that others read (layouts of timm and transformers), compared
afterwards.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vidssl.backbones.vit import ViT
from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.engine.process import check_writable, make_folder, write_atomically, write_text
from vidssl.errors import UsageError
from vidssl.evaluate import evaluate, subject
from vidssl.interfaces import Backbone, DataSource, as_clip
from vidssl.interfaces.grids import GridSize
from vidssl.interfaces.pretrained import load_pretrained
from vidssl.pictures.clips import draw_clips
from vidssl.use.hub import check_target

EPS = 1e-6  # of every LayerNorm of ``ViT``


def _check(vit: ViT, layout: str, needs: Mapping[str, object]) -> None:
    """Refuse a network that this layout cannot say.

    Raises:
        UsageError: with the key and the values that it can.
    """
    keys = vit.made_with()
    for key, value in needs.items():
        allowed = value if isinstance(value, tuple) and value else (value,)
        if keys[key] not in allowed:
            shown = " or ".join(map(str, allowed))
            raise UsageError(f"{layout}: has no ViT of {key}: {keys[key]}, only {shown}")


def timm_arguments(vit: ViT, size: tuple[int, int]) -> dict[str, object]:
    """Keywords of timm's ``VisionTransformer`` that make the same network of images.

    Args:
        size: height and width of the images.

    Raises:
        UsageError: if timm has no such network.
    """
    _check(vit, "timm", {"positions": ("axes", "line"), "attention": "full"})
    keys = vit.made_with()
    if vit.strides[1] != vit.strides[2]:
        raise UsageError(f"timm: has no ViT of patches that are not square, {vit.strides[1:]}")
    pools_first = keys["norm"] == "mean"
    return {
        "img_size": list(size),
        "patch_size": vit.strides[1],
        "embed_dim": vit.embed_dim,
        "depth": keys["depth"],
        "num_heads": keys["num_heads"],
        "mlp_ratio": keys["mlp_ratio"],
        "class_token": vit.gives_cls,
        "global_pool": "token" if vit.gives_cls else "avg",
        "fc_norm": pools_first,
    }


def timm_state(vit: ViT, size: tuple[int, int], *, of_images: bool) -> dict[str, Tensor]:
    """Weights of timm's ``VisionTransformer`` that does to an image what ``vit`` does to it.

    Args:
        of_images: of an image (one frame), for a network that learned from such; else of a clip whose frames
            are all this image, as long as one patch: the patch embedding is then summed over its frames.
    """
    own = vit.state_dict()
    embed = "embed_image" if of_images else "embed_clip"
    grid = (1, size[0] // vit.strides[1], size[1] // vit.strides[2])
    zeros = torch.zeros(1, *grid, vit.embed_dim)
    marked = vit._marked(zeros, vit._codes(grid, zeros.device), 1 if of_images else vit.strides[0])
    positions = marked.flatten(1, 3).detach()
    found = {
        "patch_embed.proj.weight": own[f"{embed}.proj.weight"].sum(2),
        "patch_embed.proj.bias": own[f"{embed}.proj.bias"],
    }
    if vit.class_token is not None:
        positions = torch.cat((torch.zeros(1, 1, vit.embed_dim), positions), dim=1)
        found["cls_token"] = own["class_token"].view(1, 1, -1)
    found["pos_embed"] = positions
    for key, value in own.items():
        if key.startswith(("norm.", "fc_norm.")) or (key.startswith("blocks.") and "_bias" not in key):
            found[key] = value
        elif key.endswith("attn.q_bias"):
            parts = (value, torch.zeros_like(value), own[key.replace("q_bias", "v_bias")])
            found[key.replace("q_bias", "qkv.bias")] = torch.cat(parts)
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def videomae_config(vit: ViT, size: GridSize) -> dict[str, object]:
    """Keywords of transformers' ``VideoMAEConfig``.

    Args:
        size: (frames, height, width) of a clip.

    Raises:
        UsageError: if that library has no such network.
    """
    needs = {"positions": "line", "attention": "full", "class_token": False, "modality": False}
    _check(vit, "huggingface (VideoMAE)", {**needs, "norm": "patches"})
    if size[1] != size[2] or vit.strides[1] != vit.strides[2]:
        raise UsageError(f"huggingface (VideoMAE): takes squares, in square patches, got clips of {size}")
    keys = vit.made_with()
    width = vit.blocks[0].mlp.fc1.out_features  # type: ignore[union-attr]
    return {
        "image_size": size[1],
        "num_frames": size[0],
        "patch_size": vit.strides[1],
        "tubelet_size": vit.strides[0],
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": keys["depth"],
        "num_attention_heads": keys["num_heads"],
        "intermediate_size": width,
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "use_mean_pooling": False,
    }


def videomae_state(vit: ViT) -> dict[str, Tensor]:
    """Weights under the names of transformers' ``VideoMAEModel``; those of images are left out.

    A bias of keys, which softmax takes away again, has no place there.
    """
    own, dim = vit.state_dict(), vit.embed_dim
    found = {
        "embeddings.patch_embeddings.projection.weight": own["embed_clip.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["embed_clip.proj.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    names = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    for number in range(len(vit.blocks)):
        ours, theirs = f"blocks.{number}.", f"encoder.layer.{number}."
        for name, other in names.items():
            for kind in ("weight", "bias"):
                found[f"{theirs}{other}.{kind}"] = own[f"{ours}{name}.{kind}"]
        weights = own[f"{ours}attn.qkv.weight"].split(dim)
        biases = own[f"{ours}attn.qkv.bias"].split(dim) if f"{ours}attn.qkv.bias" in own else None
        for place, part in enumerate(("query", "key", "value")):
            found[f"{theirs}attention.attention.{part}.weight"] = weights[place]
        for place, part in ((0, "q"), (2, "v")):
            bias = own[f"{ours}attn.{part}_bias"] if biases is None else biases[place]
            name = {"q": "query", "v": "value"}[part]
            found[f"{theirs}attention.attention.{name}.bias"] = bias
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


Format = Literal["safetensors", "timm", "torchscript", "onnx", "huggingface"]
Again = Callable[[Tensor], Tensor]  # what was exported, from clips to features
_NEAR = {"onnx": 1e-4, "torchscript": 1e-5, "timm": 1e-5, "huggingface": 1e-5, "safetensors": 0.0}


@dataclass(frozen=True)
class Exported:
    """A network in another format.

    Attributes:
        path: file or folder.
        again: runs it, for the comparison: from clips to what ``same`` gives.
        same: what the network itself gives for them.
        frames: of a clip that the format takes, fewer where it is of images.
        how: how it is loaded.
    """

    path: Path
    again: Again
    same: Again
    frames: int
    how: str


def export(
    network: str,
    to: Format,
    *,
    out: Path | None = None,
    clip: GridSize | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Write the network of a run in another format and compare the two; exit code 0.

    Args:
        network: a run, a checkpoint, or ``hf:OWNER/NAME``.
        to: the format.
        out: file or folder; by default ``export/`` of the run.
        clip: (frames, height, width) that formats of a fixed size are made for; by default that of the
            recipe's ``data.probe``.
        trust: as for ``vidssl eval``.

    Raises:
        UsageError: if the network cannot be had in this format, or what was written gives something else.
    """
    console = console or terminal()
    with shown_messages(console):
        say = partial(print_line, console)
        checkpoint = read_checkpoint(evaluate.find_checkpoint(network))
        recipe = subject.recipe_of(checkpoint, "write it with Backbone.save_pretrained", trust=trust)
        if recipe.backbone is None:
            raise UsageError(f"{network}: trained a tokenizer, which has none of these formats")
        made = subject.trained_backbone(recipe, checkpoint).eval()
        size = clip or _usual_size(recipe, made)
        folder = subject.home(checkpoint) / "export"
        target = out or folder / f"{to}{_ENDINGS.get(to, '')}"
        if to not in _ENDINGS:
            check_target(target)
        elif target.exists() and target.suffix != _ENDINGS[to]:
            raise UsageError(f"{target}: is there already, and no {_ENDINGS[to]}: name another with -o")
        check_writable(target, "name another with -o", say)
        try:
            made.grid(*size)
        except ValueError as error:
            raise UsageError(f"{error}: --clip T,H,W") from error
        make_folder(target.parent, "name another with -o")
        try:
            exported = _MAKERS[to](made, target, size, recipe)
        except SafetensorError as error:  # the library wraps a full disk in its own type
            raise UsageError(f"cannot write {target}: {error}; name another place with -o") from error
        say(f"Written: {exported.path}")
        _compare(exported, made, to, (exported.frames, *size[1:]), recipe, say)
        say(f"To load it: {exported.how}")
    return 0


def _usual_size(recipe: Recipe, network: Backbone) -> GridSize:
    if recipe.data.probe is not None:
        return next(iter(build.views(recipe.data.probe.views).shapes.values()))[0]
    stream = next(iter(recipe.data.streams.values()))
    return next(iter(build.views(stream.views).shapes.values()))[0]


@torch.no_grad()
def _compare(
    exported: Exported, network: Backbone, to: Format, size: GridSize, recipe: Recipe, say: Say
) -> None:
    """Says how far the features of random and of real clips are from the network's own.

    Raises:
        UsageError: if they are further than rounding explains.
    """
    clips = {"random": torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))}
    if network.input_kind == "tokens":
        assert network.vocab_size is not None, "it reads ids"
        clips = {"random": torch.randint(network.vocab_size, (3, *size))}
    elif recipe.data.probe is not None:
        try:
            clips["real"] = _real_clips(build.source(recipe.data.probe.test), recipe, size)
        except UsageError as error:
            say(f"Real clips are not compared: {error}")
    for kind, x in clips.items():
        own, other = exported.same(x), exported.again(x)
        off = float((own - other).abs().max() / own.abs().max().clamp(min=1e-30))
        say(f"Features of {kind} clips: largest difference {off:.1e} of the largest value")
        if not off <= _NEAR[to]:  # nor what is not a number
            raise UsageError(
                f"{exported.path}: gives other features than {type(network).__name__}: not equal"
            )


def _real_clips(source: DataSource, recipe: Recipe, size: GridSize) -> Tensor:
    assert recipe.data.probe is not None, "it was looked at"
    views = build.views(recipe.data.probe.views)
    clips = draw_clips(source, views, 2, lambda line: None).pixels[:, :, : size[0]]
    return torch.nn.functional.interpolate(as_clip(clips), size=size) if clips.shape[2:] != size else clips


class Pooled(nn.Module):
    """A network as one function of tensors, from clips to [B, D]."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).pooled()


def _safetensors(network: Backbone, path: Path, size: GridSize, recipe: Recipe) -> Exported:
    network.save_pretrained(str(path))
    made = load_pretrained(path, lambda name: type(network) if name == type(network).__name__ else None)
    how = f"vidssl.api.load({str(path)!r})"
    return Exported(path, Pooled(made).eval(), Pooled(network), size[0], how)


def _example(network: Backbone, size: GridSize) -> Tensor:
    """Of another batch size than what is compared, so that one that became a constant shows."""
    if network.input_kind == "tokens":
        return torch.zeros(2, *size, dtype=torch.long)
    return torch.zeros(2, 3, *size)


def _torchscript(network: Backbone, path: Path, size: GridSize, recipe: Recipe) -> Exported:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that TorchScript is old, and that sizes become constants
        traced = torch.jit.trace(Pooled(network), _example(network, size), check_trace=False)
        content = io.BytesIO()  # of a full disk torch says nothing but RuntimeError
        torch.jit.save(traced, content)
        write_atomically(path, lambda temporary: _write(temporary, content.getvalue()))
        made = torch.jit.load(str(path))
    how = f"torch.jit.load({str(path)!r})(clips), float32 [B, 3, {', '.join(map(str, size))}] in [0, 1]"
    return Exported(path, made, Pooled(network), size[0], how)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _onnx(network: Backbone, path: Path, size: GridSize, recipe: Recipe) -> Exported:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UsageError("onnx: install what writes and runs it: pip install 'vidssl[onnx]'") from None
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Pooled(network),
            (_example(network, size),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["clips"],
            output_names=["features"],
            verbose=False,
        )
    assert program is not None, "dynamo=True returns it"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def again(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"clips": x.numpy()})[0])

    how = f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{'clips': clips}})"
    return Exported(path, again, Pooled(network), size[0], how)


def _plain_vit(network: Backbone, to: Format) -> ViT:
    if not isinstance(network, ViT):
        raise UsageError(
            f"{to}: its layout is that of plain vision transformers, and this is a {type(network).__name__}: "
            "take safetensors, torchscript or onnx"
        )
    return network


def _timm(network: Backbone, path: Path, size: GridSize, recipe: Recipe) -> Exported:
    import timm  # here: importing takes a second
    from timm.models import vision_transformer

    vit = _plain_vit(network, "timm")
    of_images = "image" in recipe.data.streams or vit.strides[0] == 1
    arguments, state = timm_arguments(vit, size[1:]), timm_state(vit, size[1:], of_images=of_images)
    mean, std = vit.made_with()["mean"], vit.made_with()["std"]
    config = {
        "architecture": "vit_base_patch16_224",  # any of the class; all of its sizes are given below
        "num_classes": 0,
        "num_features": vit.embed_dim,
        "model_args": arguments,
        "pretrained_cfg": {"mean": mean, "std": std, "input_size": [3, *size[1:]], "num_classes": 0},
    }
    make_folder(path)
    write_text(path / "config.json", json.dumps(config, indent=2) + "\n")
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    library: Any = vision_transformer
    made = library.VisionTransformer(**arguments, num_classes=0).eval()
    made.load_state_dict(state)
    frames = 1 if of_images else vit.strides[0]

    def again(x: Tensor) -> Tensor:
        return made(vit.normalise(x)[:, :, 0])

    def same(x: Tensor) -> Tensor:  # of a still clip, all of whose frames are the image
        return vit(x[:, :, :1].expand(-1, -1, frames, -1, -1)).pooled()

    how = f"timm.create_model('local-dir:{path}', pretrained=True)  # timm {timm.__version__}; for images"
    return Exported(path, again, same, 1, how)


def _huggingface(network: Backbone, path: Path, size: GridSize, recipe: Recipe) -> Exported:
    vit = _plain_vit(network, "huggingface")
    config = videomae_config(vit, size)
    try:
        import transformers
    except ImportError:
        raise UsageError("huggingface: install it: pip install 'vidssl[transformers]'") from None
    library: Any = transformers
    made = library.VideoMAEModel(library.VideoMAEConfig(**config)).eval()
    made.load_state_dict(videomae_state(vit))
    made.save_pretrained(path)
    keys = vit.made_with()
    processor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": keys["mean"],
        "image_std": keys["std"],
        "do_resize": True,
        "size": {"shortest_edge": size[1]},
        "do_center_crop": True,
        "crop_size": {"height": size[1], "width": size[2]},
    }
    write_text(path / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")
    read = library.VideoMAEModel.from_pretrained(path).eval()

    def again(x: Tensor) -> Tensor:
        return read(vit.normalise(x).transpose(1, 2)).last_hidden_state

    how = f"transformers.VideoMAEModel.from_pretrained({str(path)!r})"
    return Exported(path, again, vit.forward_features, size[0], how)


_ENDINGS = {"torchscript": ".pt", "onnx": ".onnx"}
_MAKERS: Mapping[Format, Callable[[Backbone, Path, GridSize, Recipe], Exported]] = {
    "safetensors": _safetensors,
    "timm": _timm,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "huggingface": _huggingface,
}
