"""Video models of the ``transformers`` library, as the hub has them: comparators for ``vidssl eval``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from einops import rearrange
from torch import Tensor

from vidssl.backbones.blocks import Normalise
from vidssl.backbones.torchvision_nets import prefixed
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Features, Translated
from vidssl.interfaces.grids import GridSize

_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


class _Family(NamedTuple):
    """How the models of one type read clips.

    Attributes:
        has_cls: whether the first token is a class token.
        tokens: order of the others, as einops writes it.
        any_size: whether clips of other sizes than the configuration's are taken.
        options: keywords of its forward pass.
    """

    has_cls: bool
    tokens: str
    any_size: bool
    options: Mapping[str, bool] = {}


_FAMILIES = {
    "videomae": _Family(False, "(t h w)", any_size=False),
    "vjepa2": _Family(False, "(t h w)", any_size=True, options={"skip_predictor": True}),
    "timesformer": _Family(True, "(h w t)", any_size=False),
    "vivit": _Family(True, "(t h w)", any_size=False),
}


class TransformersNet(Backbone):
    """The encoder of a VideoMAE, V-JEPA 2, TimeSformer or ViViT of ``transformers``; it takes no mask.

    Its features are the ``last_hidden_state`` of the library's ``AutoModel``; a classifier, and a norm that
    belongs to it, are left out. Pixels are normalised as the model's own preprocessor does it. No code of the
    hub is executed.

    Args:
        name: of a model on the hub, or a folder that ``save_pretrained`` wrote.

    Raises:
        UsageError: if the library is not installed, or the model cannot be had, is of another kind, or does
            not say how its pixels are normalised.
    """

    takes_mask: ClassVar[bool] = False

    def __init__(self, *, name: str) -> None:
        super().__init__()
        library = _library()
        config = _asked(name, lambda: library.AutoConfig.from_pretrained(name))
        if config.model_type not in _FAMILIES:
            raise UsageError(
                f"transformers:{name}: is a '{config.model_type}'; video models that are read here: "
                f"{', '.join(sorted(_FAMILIES))}"
            )
        self.net = library.AutoModel.from_config(config)
        self._family, self._name = _FAMILIES[config.model_type], name
        tubelet = getattr(config, "tubelet_size", 1)
        if isinstance(tubelet, int):
            tubelet = (tubelet, config.patch_size, config.patch_size)
        self.strides = (int(tubelet[0]), int(tubelet[1]), int(tubelet[2]))
        self.embed_dim = config.hidden_size
        self.gives_cls = self._family.has_cls
        self.normalise = Normalise(*pixel_statistics(name))
        size = getattr(config, "image_size", None) or config.crop_size
        height, width = (size, size) if isinstance(size, int) else size
        frames = getattr(config, "num_frames", None) or config.frames_per_clip
        self._only_size = None if self._family.any_size else (frames, height, width)

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Cells of the last block.

        Raises:
            ValueError: if the model does not take this size.
        """
        if self._only_size not in (None, (num_frames, height, width)):
            frames, *sides = self._only_size
            raise ValueError(
                f"transformers:{self._name} takes {frames} frames of {'x'.join(map(str, sides))} only, "
                f"got {num_frames} of {height}x{width}: set views.num_frames and views.size"
            )
        return super().grid(num_frames, height, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            raise ValueError(f"transformers:{self._name} takes no mask")
        t, h, w = self.grid(*x.shape[2:])
        frames = rearrange(self.normalise(x), "b c t h w -> b t c h w")
        given = {self.net.main_input_name: frames, **self._family.options}
        tokens: Tensor = self.net(**given).last_hidden_state
        cls = tokens[:, 0] if self._family.has_cls else None
        rest = tokens[:, 1:] if self._family.has_cls else tokens
        return Features(
            patches=rearrange(rest, f"b {self._family.tokens} d -> b t h w d", t=t, h=h, w=w), cls=cls
        )

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """The library's own names; heads and decoders are dropped."""
        return prefixed(state, self.net, "transformers")


def pixel_statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of pixels in [0, 1] that amount to what a model's preprocessor does to pixels of 0 to 255.

    Raises:
        UsageError: if there is no preprocessor, or it does not say so.
    """
    path = next((found for file in _PREPROCESSORS if (found := _cached(name, file)) is not None), None)
    if path is None:
        raise UsageError(
            f"transformers:{name}: has no {' and no '.join(_PREPROCESSORS)}, which say how its pixels are "
            "normalised"
        )
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        scale = (
            255.0 * float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 255.0
        )
        # ViViT's takes 1 off before it normalises
        shift = 1.0 if given.get("offset", False) else 0.0
        normalises = given.get("do_normalize", True)
        mean, std = (given["image_mean"], given["image_std"]) if normalises else ((0.0,) * 3, (1.0,) * 3)
        r, g, b = ((float(value) + shift) / scale for value in mean)
        u, v, w = (float(value) / scale for value in std)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: does not say how pixels are normalised ({error!r})") from error
    return (r, g, b), (u, v, w)


def published_state(name: str) -> Mapping[str, Tensor]:
    """The weights of a model's encoder; all of them are there and none is left over, or it is refused.

    Releases of the library before 5.24 dropped VideoMAE's biases of q and v without a word.

    Raises:
        UsageError: if the model cannot be had, or the library leaves out or makes up tensors of its encoder.
    """
    library = _library()
    level = library.logging.get_verbosity()
    library.logging.set_verbosity_error()  # its report has a line for each tensor of a decoder nobody needs
    try:
        model, info = _asked(name, lambda: library.AutoModel.from_pretrained(name, output_loading_info=True))
    finally:
        library.logging.set_verbosity(level)
    missing = sorted(info["missing_keys"])
    dropped = sorted(key for key in info["unexpected_keys"] if key.endswith(("q_bias", "v_bias")))
    if missing or dropped:
        fate = "would stay random" if missing else "would be left out"
        keys = missing or dropped
        raise UsageError(
            f"transformers:{name}: {len(keys)} of its tensors {fate} ({', '.join(keys[:4])}); these are not "
            "the weights of this model, or transformers is too old: version 5.24 reads them"
        )
    return model.state_dict()


def _cached(name: str, file: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(found)


def _library() -> Any:  # its models share names, not a class
    try:
        import transformers  # here: an extra, and importing takes seconds
    except ImportError as error:
        raise UsageError(
            "transformers is not installed, which gives such models: pip install 'vidssl[transformers]'"
        ) from error
    return transformers


def _asked(name: str, ask: Any) -> Any:
    try:
        return ask()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"transformers:{name}: cannot be had ({' '.join(str(error).split())[:200]}). Without a network, "
            "give a folder of the model, as save_pretrained writes it"
        ) from error
