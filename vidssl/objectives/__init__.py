"""What is minimised."""

from vidssl.objectives.bevt import BEVT, BEVTImage, BEVTVideo
from vidssl.objectives.tokenizer_training import TokenizerTraining
from vidssl.objectives.vimpac import VIMPAC, VIMPACContrast, VIMPACPredict

OBJECTIVES = {
    "bevt": BEVT,
    "bevt_image": BEVTImage,
    "bevt_video": BEVTVideo,
    "tokenizer": TokenizerTraining,
    "vimpac": VIMPAC,
    "vimpac_contrast": VIMPACContrast,
    "vimpac_predict": VIMPACPredict,
}
