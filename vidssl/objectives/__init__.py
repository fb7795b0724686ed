"""Objectives: the losses that are minimised."""

from vidssl.interfaces import Objective
from vidssl.interfaces.table import Table

OBJECTIVES: Table[Objective] = Table(
    {
        "bevt": "vidssl.objectives.bevt:BEVT",
        "bevt_image": "vidssl.objectives.bevt:BEVTImage",
        "bevt_video": "vidssl.objectives.bevt:BEVTVideo",
        "classification": "vidssl.objectives.classification:Classification",
        "lejepa": "vidssl.objectives.lejepa:LeJEPA",
        "svt": "vidssl.objectives.svt:SVT",
        "tokenizer": "vidssl.objectives.tokenizer:TokenizerTraining",
        "videomae": "vidssl.objectives.videomae:VideoMAE",
        "vimpac": "vidssl.objectives.vimpac:VIMPAC",
        "vimpac_contrast": "vidssl.objectives.vimpac:VIMPACContrast",
        "vimpac_predict": "vidssl.objectives.vimpac:VIMPACPredict",
        "vjepa": "vidssl.objectives.vjepa:VJEPA",
    }
)


def __getattr__(name: str) -> object:
    return OBJECTIVES.constructor(name, __name__)
