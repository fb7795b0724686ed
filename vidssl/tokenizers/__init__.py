"""Tokenizers: from pixels to the discrete ids that masked prediction predicts."""

from vidssl.interfaces import Tokenizer
from vidssl.tokenizers.dalle import DALLE
from vidssl.tokenizers.fsq import FSQ
from vidssl.tokenizers.vqvae import VQVAE

TOKENIZERS: dict[str, type[Tokenizer]] = {"dalle": DALLE, "fsq": FSQ, "vqvae": VQVAE}
