"""Text architectures of the zoo: encoders, decoders, state-space models, mixtures of experts,
encoder-decoders.
"""

from __future__ import annotations

from typing import Any

from infopt.models.zoo_entry import VOCABULARY, Entry, source_and_target, tokens, unmasked

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0}
_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
_GROUPED = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}


def _encoder(name: str, inputs=tokens, **config: Any) -> Entry:
    return Entry(name, "encoder", name.replace("_", "-"), "", inputs, _COMMON | _SIZES | config)


def _bare_encoder(name: str, **config: Any) -> Entry:
    return Entry(name, "encoder", name.replace("_", "-"), "", tokens, _COMMON | config)


def _decoder(name: str, family: str = "decoder", **config: Any) -> Entry:
    config = _COMMON | _SIZES | _GROUPED | {"use_cache": False} | config
    return Entry(name, family, name, "ForCausalLM", tokens, config)


def _bare_decoder(name: str, family: str = "decoder", inputs=tokens, **config: Any) -> Entry:
    config = _COMMON | {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2} | config
    return Entry(name, family, name, "ForCausalLM", inputs, config)


def _seq2seq(name: str, shape: dict[str, Any], **config: Any) -> Entry:
    config = _COMMON | shape | {"use_cache": False} | config
    return Entry(name, "encoder-decoder", name, "ForSeq2SeqLM", source_and_target, config)


ENCODERS = (
    _encoder("bert"),
    _encoder("roberta"),
    _encoder("xlm_roberta"),
    _encoder("camembert"),
    _encoder("ernie"),
    _encoder("electra", embedding_size=32),
    _encoder("albert", embedding_size=32),
    _encoder(
        "deberta_v2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8
    ),
    _encoder("mpnet"),
    _encoder("convbert", embedding_size=64, head_ratio=2),
    _encoder("squeezebert", embedding_size=64),
    _encoder("roformer", embedding_size=64),
    _encoder("nystromformer", segment_means_seq_len=64, num_landmarks=64),
    _encoder("esm", position_embedding_type="rotary", mask_token_id=4),
    _encoder("layoutlm"),
    _encoder("modernbert", global_attn_every_n_layers=2, local_attention=8),
    _encoder("fnet", inputs=unmasked, tpu_short_seq_length=64),
    _bare_encoder(
        "distilbert", dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=64
    ),
    _bare_encoder(
        "mobilebert",
        hidden_size=64,
        embedding_size=32,
        true_hidden_size=32,
        intra_bottleneck_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    _bare_encoder(
        "funnel",
        d_model=64,
        n_head=4,
        d_head=16,
        d_inner=96,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        architectures=["FunnelModel"],
    ),
)

DECODERS = (
    _bare_decoder("gpt2", **_GPT2),
    _bare_decoder("gptj", **_GPT2, rotary_dim=8),
    _bare_decoder("codegen", **_GPT2, rotary_dim=8),
    _bare_decoder("bloom", hidden_size=64, n_layer=2, n_head=4),
    _bare_decoder("mpt", d_model=64, n_layers=2, n_heads=4, max_seq_len=64),
    _bare_decoder(
        "gpt_neo",
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=64,
    ),
    _bare_decoder(
        "opt",
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    _decoder("gpt_neox"),
    _decoder("biogpt"),
    _decoder("llama"),
    _decoder("mistral", sliding_window=8),
    _decoder("qwen2"),
    _decoder("qwen3", head_dim=16),
    _decoder("gemma", head_dim=16),
    _decoder("gemma2", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    _decoder("gemma3_text", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    _decoder("phi"),
    _decoder("phi3"),
    _decoder("falcon", new_decoder_architecture=False, multi_query=True, alibi=False),
    _decoder("stablelm"),
    _decoder("starcoder2"),
    _decoder("olmo"),
    _decoder("olmo2"),
    _decoder("cohere"),
    _decoder("granite"),
    _decoder("smollm3"),
    _decoder("glm", head_dim=16),
    _decoder("exaone4", sliding_window=8, sliding_window_pattern=2),
    _decoder("apertus"),
    _decoder("arcee"),
    _decoder("bitnet"),
    _decoder("cohere2", sliding_window=8),
    _decoder("cwm", head_dim=16, sliding_window=8),
    _decoder("diffllama"),
    _decoder("doge"),
    _decoder("ernie4_5", head_dim=16),
    _decoder("glm4", head_dim=16),
    _decoder("gpt_bigcode"),
    _decoder("gpt_neox_japanese"),
    _decoder("jais2"),
    _decoder("ministral3", head_dim=16),
    _decoder("big_bird"),
    Entry(
        "data2vec_text",
        "decoder",
        "data2vec-text",
        "ForCausalLM",
        tokens,
        _COMMON | _SIZES | {"is_decoder": True, "use_cache": False},
    ),
    Entry(
        "modernbert_decoder",
        "decoder",
        "modernbert-decoder",
        "ForCausalLM",
        tokens,
        _COMMON | _SIZES | _GROUPED | {"use_cache": False, "local_attention": 8},
    ),
)

STATE_SPACES = (
    _bare_decoder(
        "mamba", "state space", unmasked, hidden_size=32, num_hidden_layers=2, state_size=8
    ),
    _bare_decoder(
        "mamba2",
        "state space",
        unmasked,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=2,
        chunk_size=8,
    ),
    _decoder("falcon_mamba", "state space"),
    _decoder("bamba", "state space"),
    _decoder("jamba", "state space"),
    _decoder("lfm2", "state space"),
    _decoder("recurrent_gemma", "state space", head_dim=16, lru_width=64, attention_window_size=8),
)

MIXTURES = (
    _decoder("mixtral", "mixture of experts", num_local_experts=4, num_experts_per_tok=2),
    _decoder(
        "qwen2_moe",
        "mixture of experts",
        **_EXPERTS,
        num_experts=4,
        shared_expert_intermediate_size=48,
    ),
    _decoder("qwen3_moe", "mixture of experts", **_EXPERTS, num_experts=4, head_dim=16),
    _decoder("olmoe", "mixture of experts", num_experts=4, num_experts_per_tok=2),
    _decoder("granitemoe", "mixture of experts", num_local_experts=4, num_experts_per_tok=2),
    _decoder("granitemoeshared", "mixture of experts", num_local_experts=4, num_experts_per_tok=2),
    _decoder("flex_olmo", "mixture of experts", num_experts=4, num_experts_per_tok=2),
    _decoder("jetmoe", "mixture of experts", num_local_experts=4),
    _decoder("llama4_text", "mixture of experts", num_local_experts=4, num_experts_per_tok=1),
    _decoder("aria_text", "mixture of experts", moe_num_experts=4),
    _decoder("minimax", "mixture of experts", num_local_experts=4, num_experts_per_tok=2),
    _decoder("phimoe", "mixture of experts", num_local_experts=4, num_experts_per_tok=2),
    _decoder(
        "gpt_oss",
        "mixture of experts",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
        sliding_window=8,
    ),
    _decoder(
        "deepseek_v3",
        "mixture of experts",
        **_EXPERTS,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
)

ENCODER_DECODERS = (
    _seq2seq("t5", _T5),
    _seq2seq("mt5", _T5, feed_forward_proj="gated-gelu"),
    _seq2seq("switch_transformers", _T5, num_experts=4, num_sparse_encoder_layers=1),
    _seq2seq("longt5", _T5, local_radius=4),
    _seq2seq("bart", _BART),
    _seq2seq("mbart", _BART),
    _seq2seq("pegasus", _BART),
    _seq2seq("blenderbot", _BART),
    _seq2seq("marian", _BART, decoder_vocab_size=VOCABULARY),
    _seq2seq("m2m_100", _BART),
)

TEXT = ENCODERS + DECODERS + STATE_SPACES + MIXTURES + ENCODER_DECODERS
