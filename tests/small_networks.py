"""Small networks for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

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
    """Write a small checkpoint with random weights in the hub's format, and return its network."""
    torch.manual_seed(seed)
    model = Wav2Vec2Model(Wav2Vec2Config(**LITTLE)).eval()
    model.save_pretrained(folder)
    return model


def save_clip(folder: Path, seed: int = 3) -> CLIPModel:
    """Write a small CLIP that knows letters, with random weights, and return its network."""
    torch.manual_seed(seed)
    half = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    text = {**half, "vocab_size": len(tokens), "max_position_embeddings": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**half, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return model
