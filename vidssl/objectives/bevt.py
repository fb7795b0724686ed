"""BEVT: masked image and masked video modelling through one encoder."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidssl.engine.collapse import EARLY, feature_bands, prediction_bands
from vidssl.errors import counted
from vidssl.interfaces import (
    Backbone,
    Band,
    Batch,
    FilledIn,
    LossOutput,
    MaskedPrediction,
    Masker,
    Objective,
    Progress,
    Tokenizer,
    Watched,
    Yardstick,
)
from vidssl.objectives.parts.masked_prediction import StreamName, TokenPrediction, prediction_yardstick

_OF_IMAGES, _OF_CLIPS = " of images", " of clips"


class BEVT(Objective, MaskedPrediction, Watched):
    """Predicts tokens of hidden patches in images and clips through one shared encoder (BEVT, Eq. 4).

    Metrics, for each stream: ``loss_*`` (Eq. 2 and 3, unweighted) and ``accuracy_*`` at masked positions;
    in training also ``predicted_perplexity_*``, how many equally frequent ids would be as varied as those
    predicted; in evaluation mode also ``most_frequent_*``, the accuracy of the best constant answer, and
    ``copy_nearest_*``, that of copying the nearest visible id.

    Args:
        image_weight: of L_MIM. Ours, for symmetry; 1 in the paper.
        video_weight: lambda, of L_MVM; 1 in the paper.
    """

    needs_views: Mapping[str, int] = {"clip": 1, "image": 1}
    splits_batch = True

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        masker: Masker,
        *,
        image_weight: float = 1.0,
        video_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if image_weight <= 0 or video_weight <= 0:
            raise ValueError(
                f"image_weight and video_weight must be positive, got {image_weight} and {video_weight}; "
                "for one stream alone there are the objectives bevt_image and bevt_video"
            )
        self.image_weight = image_weight
        self.video_weight = video_weight
        self.prediction = TokenPrediction(backbone, tokenizer, masker, ("image", "video"))

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        image = stream_loss(self.prediction, "image", batch.views["image"][0], generator)
        video = stream_loss(self.prediction, "video", batch.views["clip"][0], generator)
        return LossOutput(
            loss=self.image_weight * image.loss + self.video_weight * video.loss,
            metrics={**image.metrics, **video.metrics},
            features=video.features,
        )

    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        return self.prediction.fill_in(clips, generator, "image" if clips.shape[2] == 1 else "video")

    def encoder(self) -> Backbone:
        return self.prediction.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return prediction_yardstick("video", _OF_CLIPS), prediction_yardstick("image", _OF_IMAGES)

    def bands(self) -> tuple[Band, ...]:
        return (*prediction_bands("image"), *prediction_bands("video"), *feature_bands(after=EARLY))


class BEVTImage(Objective, MaskedPrediction, Watched):
    """BEVT-I, the image stream alone: stage one of the training, and a rival of Table 1 (BEVT, Eq. 2)."""

    needs_views: Mapping[str, int] = {"image": 1}
    splits_batch = True

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker) -> None:
        super().__init__()
        self.prediction = TokenPrediction(backbone, tokenizer, masker, ("image",))

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        return stream_loss(self.prediction, "image", batch.views["image"][0], generator)

    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        if clips.shape[2] > 1:
            raise ValueError(
                f"bevt_image learns from single images, got clips of {counted(clips.shape[2], 'frame')}"
            )
        return self.prediction.fill_in(clips, generator, "image")

    def encoder(self) -> Backbone:
        return self.prediction.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (prediction_yardstick("image", _OF_IMAGES),)

    def bands(self) -> tuple[Band, ...]:
        return (*prediction_bands("image"), *feature_bands(after=EARLY))


class BEVTVideo(Objective, MaskedPrediction, Watched):
    """BEVT-V, the video stream alone, from scratch or from image weights (BEVT, Eq. 3; Tables 1 and 6)."""

    needs_views: Mapping[str, int] = {"clip": 1}
    splits_batch = True

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker) -> None:
        super().__init__()
        self.prediction = TokenPrediction(backbone, tokenizer, masker, ("video",))

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        return stream_loss(self.prediction, "video", batch.views["clip"][0], generator)

    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        if clips.shape[2] == 1:
            raise ValueError("bevt_video learns from clips, got single images")
        return self.prediction.fill_in(clips, generator)

    def encoder(self) -> Backbone:
        return self.prediction.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (prediction_yardstick("video", _OF_CLIPS),)

    def bands(self) -> tuple[Band, ...]:
        return (*prediction_bands("video"), *feature_bands(after=EARLY))


def stream_loss(
    prediction: TokenPrediction, stream: StreamName, clip: Tensor, generator: torch.Generator
) -> LossOutput:
    """Eq. 2 for images [B, 3, 1, H, W], Eq. 3 for clips, with metrics named after the stream."""
    return prediction(prediction.encode_masked(clip, generator), stream, stream)
