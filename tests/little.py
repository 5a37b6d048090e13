"""A small sound network for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

# the architecture of a Wav2Vec2, HuBERT or WavLM that runs in no time
LITTLE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def save_wav2vec2(folder: Path, seed: int = 3) -> Wav2Vec2Model:
    """Write a little checkpoint with random weights in the hub's format, and return its network."""
    torch.manual_seed(seed)
    model = Wav2Vec2Model(Wav2Vec2Config(**LITTLE)).eval()
    model.save_pretrained(folder)
    return model
