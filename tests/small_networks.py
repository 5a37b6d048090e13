"""Small networks for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    VideoMAEConfig,
    VideoMAEImageProcessor,
    VideoMAEModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
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


def save_ast(folder: Path, length: int = 128, seed: int = 3) -> ASTModel:
    """Write a little AST with random weights and its feature extractor, and return its network.

    Args:
        folder: in the hub's format.
        length: spectra of 10 ms that it reads at once.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    half = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = ASTConfig(hidden_size=32, max_length=length, num_mel_bins=32, **half)
    model = ASTModel(config).eval()
    for weights in (model.embeddings.cls_token, model.embeddings.position_embeddings):
        torch.nn.init.normal_(weights)  # zeros else
    model.save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=length, mean=-5.0, std=3.0).save_pretrained(
        folder
    )
    return model


def save_whisper(folder: Path, seconds: int = 2, seed: int = 3) -> WhisperModel:
    """Write a little Whisper with random weights and its feature extractor; return its network.

    Args:
        folder: in the hub's format.
        seconds: that it reads at once.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    parts = ("encoder", "decoder")
    config = WhisperConfig(
        d_model=32,
        num_mel_bins=16,
        max_source_positions=50 * seconds,
        vocab_size=10,
        encoder_layers=3,
        decoder_layers=1,
        **{f"{part}_attention_heads": 2 for part in parts},
        **{f"{part}_ffn_dim": 64 for part in parts},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        decoder_start_token_id=0,
    )
    model = WhisperModel(config).eval()
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=seconds).save_pretrained(folder)
    return model


def save_clap(folder: Path, fused: bool = True, seed: int = 3) -> ClapModel:
    """Write a little CLAP that hears 2 s, with random weights, and return its network.

    Args:
        folder: in the hub's format.
        fused: whether it is one that takes longer sound by four pictures of it.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    audio = {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "hidden_size": 32}
    audio |= {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16}
    audio |= {"num_hidden_layers": 2, "enable_fusion": fused, "aff_block_r": 2}
    text = {"vocab_size": 10, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 64, "max_position_embeddings": 16}
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).eval()
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        hop_length=480,
        max_length_s=2,
        frequency_min=50,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)
    return model


def save_videomae(folder: Path, seed: int = 3) -> VideoMAEModel:
    """Write a little VideoMAE of 4 frames with random weights, and return its network.

    Args:
        folder: in the hub's format.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    config = VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
    model = VideoMAEModel(config).eval()
    model.save_pretrained(folder)
    VideoMAEImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return model
