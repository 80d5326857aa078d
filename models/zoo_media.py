"""Vision, audio and multimodal architectures of the zoo."""

from __future__ import annotations

from typing import Any

from infopt.models.zoo_entry import (
    VOCABULARY,
    Entry,
    images,
    images_and_tokens,
    spectrogram,
    waveform,
)

_TRANSFORMER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_PATCHES = _TRANSFORMER | {"image_size": 32, "patch_size": 8}
_TEXT = _TRANSFORMER | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
_WAVES = _TRANSFORMER | {
    "conv_dim": [32, 32, 32],
    "conv_stride": [5, 4, 4],
    "conv_kernel": [10, 8, 8],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": VOCABULARY,
}
_HIERARCHY = {"depths": [1, 1], "embed_dim": 16, "num_heads": [2, 4], "image_size": 32}


def _vision(name: str, config: dict[str, Any], inputs=None, **more: Any) -> Entry:
    return Entry(name, "vision", name, "", inputs or images(32), config | more)


def _audio(name: str, config: dict[str, Any], inputs, **more: Any) -> Entry:
    return Entry(name, "audio", name, "", inputs, config | more)


def _pair(name: str, **more: Any) -> Entry:
    config = {"text_config": _TEXT, "vision_config": _PATCHES, "projection_dim": 32} | more
    return Entry(name, "multimodal", name, "", images_and_tokens(32), config)


VISION = (
    _vision("vit", _PATCHES),
    _vision("deit", _PATCHES),
    _vision("beit", _PATCHES),
    _vision("dinov2", _PATCHES),
    _vision("dinov3_vit", _PATCHES, images(32, growing=True)),
    _vision("siglip_vision_model", _PATCHES),
    _vision("vit_msn", _PATCHES),
    _vision("swin", _HIERARCHY, patch_size=4, window_size=4),
    _vision("swinv2", _HIERARCHY, patch_size=4, window_size=4),
    _vision(
        "segformer",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
        },
        images(32, growing=True),
    ),
    _vision(
        "poolformer",
        {
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
            "num_encoder_blocks": 2,
        },
        images(32, growing=True),
    ),
    _vision(
        "convnext", {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2}, images(32, True)
    ),
    _vision(
        "convnextv2",
        {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2},
        images(32, True),
    ),
    _vision(
        "resnet",
        {"depths": [1, 1], "hidden_sizes": [16, 32], "embedding_size": 8},
        images(32, True),
    ),
    _vision(
        "regnet",
        {"depths": [1, 1], "hidden_sizes": [16, 32], "embedding_size": 8, "groups_width": 8},
        images(32, True),
    ),
    _vision("mobilenet_v2", {"depth_multiplier": 0.35, "image_size": 32}, images(32, True)),
)

AUDIO = (
    _audio("wav2vec2", _WAVES, waveform(2400)),
    _audio("hubert", _WAVES, waveform(2400)),
    _audio("wavlm", _WAVES, waveform(2400)),
    _audio("unispeech", _WAVES, waveform(2400)),
    _audio(
        "audio-spectrogram-transformer",
        _TRANSFORMER | {"patch_size": 8, "max_length": 64, "num_mel_bins": 16},
        spectrogram("input_values", 64, 16),
        frequency_stride=8,
        time_stride=8,
    ),
)

MULTIMODAL = (
    _pair("clip"),
    _pair("siglip"),
    _pair("altclip"),
    _pair("chinese_clip"),
    _pair("blip"),
    Entry("vilt", "multimodal", "vilt", "", images_and_tokens(32), _TEXT | _PATCHES),
)

MEDIA = VISION + AUDIO + MULTIMODAL
