"""Configs of small models in the shapes of several architectures."""

from __future__ import annotations

from typing import Any

# Rows of 256 and of 288, 320 (no multiple of 256); tied and untied; shared and own heads; ten layers, so that the
# mixtures' "first and last eighth" differ.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("Llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024}, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"head_dim": 32}),
    "qwen2": ("Qwen2", {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "gemma3_text": ("Gemma3", {"head_dim": 64, "hidden_size": 320, "sliding_window": 512}),
    "phi3": ("Phi3", {"num_key_value_heads": 8, "tie_word_embeddings": False}),
    "smollm3": ("SmolLM3", {}),
    "lfm2": ("Lfm2", {"layer_types": [*["conv", "conv", "full_attention"] * 3, "conv"]}),
    "stablelm": ("StableLm", {"num_key_value_heads": 8, "use_qkv_bias": True}),
    "granite": ("Granite", {"tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "head_dim": 32}),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
}  # fmt: skip
