"""Tokenizers: from pixels to the discrete ids that masked prediction predicts."""

from vidssl.interfaces import Tokenizer
from vidssl.tokenizers.vqvae import VQVAE

TOKENIZERS: dict[str, type[Tokenizer]] = {"vqvae": VQVAE}
