"""Decoders of text: positions, norms, heads and experts of many kinds."""

from __future__ import annotations

from .hf_common import VOCAB, WIDTH, hf, no_cache, padded_no_cache, sizes

GQA = {"num_key_value_heads": 2, "head_dim": 16}
#: Experts as one batched product, so that Dynamo makes one graph.
BATCHED = {"experts_implementation": "batched_mm"}

FAMILIES = [
    hf("gpt_neox", "GPTNeoXForCausalLM", sizes(rotary_pct=0.5), no_cache),
    hf("gpt_neo", "GPTNeoForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": 4, "num_heads": 4, "window_size": 4,
        "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2,
    }, padded_no_cache),
    hf("codegen", "CodeGenForCausalLM", {
        "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 64,
        "n_ctx": 64, "bos_token_id": 1, "eos_token_id": 2,
    }, no_cache),
    hf("bloom", "BloomForCausalLM", {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": 3, "n_head": 4},
       padded_no_cache),
    hf("falcon", "FalconForCausalLM", sizes(alibi=True, new_decoder_architecture=False, multi_query=True),
       padded_no_cache),
    hf("opt", "OPTForCausalLM", sizes(ffn_dim=128, word_embed_proj_dim=32), padded_no_cache),
    hf("gemma2", "Gemma2ForCausalLM", sizes(**GQA, sliding_window=4, query_pre_attn_scalar=16), padded_no_cache,
       by_inductor=True),
    hf("qwen3_moe", "Qwen3MoeForCausalLM", sizes(**GQA, **BATCHED, num_experts=4, num_experts_per_tok=2,
                                                moe_intermediate_size=32), no_cache),
    hf("qwen3_next", "Qwen3NextForCausalLM", sizes(
        **GQA, **BATCHED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16, layer_types=["linear_attention", "linear_attention", "full_attention"],
    ), no_cache, keep=("A_log", "dt_bias"), bitwise=False,
       why="torch.export chooses other operators than eager"),
    hf("deepseek_v3", "DeepseekV3ForCausalLM", sizes(
        **BATCHED, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=32,
        first_k_dense_replace=1,
    ), no_cache),
    hf("gpt_oss", "GptOssForCausalLM", sizes(**GQA, **BATCHED, num_local_experts=4, num_experts_per_tok=2,
                                            sliding_window=4, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"]), no_cache),
    hf("diffllama", "DiffLlamaForCausalLM", sizes(num_key_value_heads=2), no_cache),
    hf("lfm2", "Lfm2ForCausalLM", sizes(num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]),
       no_cache),
    hf("recurrent_gemma", "RecurrentGemmaForCausalLM", sizes(
        lru_width=WIDTH, attention_window_size=8, block_types=["recurrent", "recurrent", "attention"],
        num_key_value_heads=2), no_cache, keep=("recurrent_param",)),
    hf("rwkv", "RwkvForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 3, "context_length": 64, "bos_token_id": 1,
        "eos_token_id": 2,
    }, no_cache, keep=("time_decay", "time_first")),
    hf("mamba2", "Mamba2ForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2,
        "num_hidden_layers": 3, "chunk_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }, no_cache, keep=("A_log", "dt_bias"), by_inductor=True, by_pipeline=True),
    hf("falcon_mamba", "FalconMambaForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 3, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }, no_cache, keep=("A_log", "dt_proj.bias"), by_inductor=True),
    hf("jamba", "JambaForCausalLM", sizes(
        **BATCHED, num_hidden_layers=4, num_key_value_heads=2, attn_layer_period=4, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=8,
        use_mamba_kernels=False,
    ), no_cache, keep=("A_log",), by_inductor=True),
    hf("minimax", "MiniMaxForCausalLM", sizes(
        **GQA, **BATCHED, num_local_experts=4, num_experts_per_tok=2, block_size=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ), no_cache),
]
