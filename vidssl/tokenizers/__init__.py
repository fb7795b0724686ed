"""Tokenizers: from pixels to the discrete ids that masked prediction predicts."""

from vidssl.interfaces import Tokenizer
from vidssl.interfaces.table import Table

TOKENIZERS: Table[Tokenizer] = Table(
    {
        "dalle": "vidssl.tokenizers.dalle:DALLE",
        "fsq": "vidssl.tokenizers.fsq:FSQ",
        "structure_tensor": "vidssl.tokenizers.structure_tensor:StructureTensor",
        "vqvae": "vidssl.tokenizers.vqvae:VQVAE",
    }
)


def __getattr__(name: str) -> object:
    return TOKENIZERS.constructor(name, __name__)
