"""What is minimised."""

from vidssl.objectives.bevt import BEVT, BEVTImage, BEVTVideo
from vidssl.objectives.classification import Classification
from vidssl.objectives.svt import SVT
from vidssl.objectives.tokenizer_training import TokenizerTraining
from vidssl.objectives.vimpac import VIMPAC, VIMPACContrast, VIMPACPredict

OBJECTIVES = {
    "bevt": BEVT,
    "bevt_image": BEVTImage,
    "bevt_video": BEVTVideo,
    "classification": Classification,
    "svt": SVT,
    "tokenizer": TokenizerTraining,
    "vimpac": VIMPAC,
    "vimpac_contrast": VIMPACContrast,
    "vimpac_predict": VIMPACPredict,
}
