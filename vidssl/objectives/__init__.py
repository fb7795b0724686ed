"""What is minimised."""

from vidssl.objectives.bevt import BEVT, BEVTImage, BEVTVideo
from vidssl.objectives.tokenizer_training import TokenizerTraining

OBJECTIVES = {
    "bevt": BEVT,
    "bevt_image": BEVTImage,
    "bevt_video": BEVTVideo,
    "tokenizer": TokenizerTraining,
}
