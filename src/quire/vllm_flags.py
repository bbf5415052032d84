"""What Quire makes of each flag of `vllm serve`, which are also the arguments of vLLM's `LLM`: one table.

The names are those of vLLM 0.32; flags that vLLM had before, and scripts still carry, are marked with their successor.
tests/vllm_flags.json records the names, and a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

VLLM_VERSION: Final = "0.32.0"


class Kind(StrEnum):
    """What Quire makes of a flag."""

    TAKEN = "taken"
    MAPPED = "mapped"
    NEUTRAL = "neutral"
    REFUSED = "refused"


@dataclass(frozen=True)
class VllmFlag:
    """A flag of vLLM's. `note` is shown to whoever gives it, after the flag's name."""

    name: str
    kind: Kind
    note: str = ""
    # Mapped: the setting of Quire that it becomes.
    setting: str = ""
    # Refused: values that ask for nothing that Quire would do otherwise, such as vLLM's default.
    harmless: frozenset[str] = frozenset()
    # What follows the flag on a command line: nothing, or several words; else one.
    is_switch: bool = False
    has_many: bool = False


# Below, "name" takes one value, "name!" is on or off, "name*" takes several values, and "name=a,b" names the values
# that ask for nothing else than Quire does. So does a switch that is off.

_TAKEN: Final = """
    allow_credentials! allowed_headers allowed_methods allowed_origins api_key* block_size config
    cudagraph_capture_sizes* device dtype disable_log_stats! enable_auto_tool_choice! enable_log_requests!
    enable_prefix_caching! enforce_eager! gpu_memory_utilization grpc_port host
    kv_cache_dtype log_level max_cudagraph_capture_size max_log_len max_logprobs max_model_len
    max_num_batched_tokens max_num_seqs model num_gpu_blocks_override otlp_traces_endpoint port quantization
    reasoning_parser revision root_path scheduling_policy served_model_name* shutdown_timeout ssl_ca_certs
    ssl_cert_reqs ssl_certfile ssl_keyfile swap_space tool_call_parser trust_request_chat_template!
"""

# What is different about a flag that is taken.
_DIFFERENT: Final[Mapping[str, str]] = {
    "cudagraph_capture_sizes": "captured in the background, when a step of that size has come",
    "enable_auto_tool_choice": "on unless turned off",
    "enable_log_requests": "on unless turned off; a line when a request ends, without its text",
    "gpu_memory_utilization": "not given: 90 % of a GPU's free memory, 40 % of a host's; on a CPU of the host's memory",
    "host": "127.0.0.1 unless given; vLLM listens on all addresses",
    "kv_cache_dtype": "auto, float32, float16, bfloat16, int8, fp8, fp8_e4m3; scales are calculated",
    "max_num_batched_tokens": "512 unless given",
    "quantization": "int8, int8_weight_only, int4 on a CPU, fp8 on GPUs, while loading",
    "reasoning_parser": "found from the chat template unless given",
    "scheduling_policy": "fair as well",
    "swap_space": "for all executors together, and for any cached block; 0 unless given",
    "tool_call_parser": "found from the chat template unless given",
}

# Each with Quire's setting, and what is different.
_MAPPED: Final[Mapping[str, tuple[str, str]]] = {
    "api_server_count": ("gateways", ""),
    "cuda_graph_sizes*": ("cudagraph_capture_sizes", ""),
    "data_parallel_size": ("num_executors", "executors share one KV pool, and the weights on a CPU"),
    "device_memory_utilization": ("gpu_memory_utilization", ""),
    "disable_log_requests!": ("enable_log_requests", ""),
    "kv_cache_memory_bytes": ("kv_cache_memory", ""),
    "kv_offloading_size": ("swap_space", ""),
    "max_num_queued_reqs": ("max_queued_requests", ""),
    "max_num_queued_tokens": ("max_queued_tokens", ""),
    "uvicorn_log_level": ("log_level", "of all processes"),
}

# By the reason.
_NEUTRAL: Final[Mapping[str, str]] = {
    "Quire compiles nothing but its kernels, and captures graphs of decode steps alone": """
        compilation_config ir_op_priority jit_monitor_mode jit_monitor_verbose! kernel_config max_seq_len_to_capture
        optimization_level
    """,
    "Quire chooses its own kernels; --isa sets their instructions": """
        attention_backend attention_config disable_cascade_attn! enable_flashinfer_autotune! gdn_prefill_backend
        kda_decode_backend kda_prefill_backend linear_backend mamba_backend mamba_ssu_algorithm moe_backend
        sparse_indexer_topk_backend use_fp64_gumbel!
    """,
    "Quire never runs code that comes with a checkpoint": "code_revision trust_remote_code!",
    "Quire has nothing of the kind to tune: it serves dense models with full attention, each on one device": """
        all2all_backend cp_kv_cache_interleave_size cpu_distributed_timeout_seconds data_parallel_address
        data_parallel_backend data_parallel_rpc_port data_parallel_supervisor_port dbo_decode_token_threshold
        dbo_prefill_token_threshold dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate!
        disable_custom_all_reduce! disable_hybrid_kv_cache_manager! disable_nccl_for_dp_synchronization!
        distributed_executor_backend distributed_timeout_seconds dp_supervisor_probe_failure_threshold
        dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s dp_sync_interval elastic_ep_max_dp_size
        enable_batch_sharded_sampling! enable_ep_weight_filter! enable_hc_sp! enable_mamba_cache_stochastic_rounding!
        enable_mamba_shared_prefix_checkpoint! enable_nccl_comm_suspend! enable_shm_tensor_arena! engram_config
        eplb_config expert_placement_strategy fault_tolerance_config kv_sharing_fast_prefill! mamba_block_size
        mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_ssm_cache_dtype master_addr master_port
        max_parallel_loading_workers ray_workers_use_nsight! replayssm_buffer_len swa_bounded_replay! ubatch_size
        use_replayssm!
    """,
    "Quire has no LoRA adapters to tune": """
        enable_mixed_moe_lora_format! enable_moe_shared_loras! enable_tower_connector_lora! fully_sharded_loras!
        lora_dtype lora_target_modules* max_cpu_loras max_lora_cls_labels max_lora_rank max_loras
        specialize_active_lora!
    """,
    "Quire serves text; requests with images or sound are refused": """
        allowed_local_media_path allowed_media_domains* disable_chunked_mm_input! enable_flash_late_interaction!
        interleave_mm_strings! language_model_only! limit_mm_per_prompt media_io_kwargs mm_device_do_normalize!
        mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin
        mm_encoder_fp8_scale_save_path mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb
        mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs
        mm_shm_cache_max_object_size_mb mm_tensor_ipc skip_mm_profiling! trust_request_mm_kwargs!
        video_pruning_method video_pruning_rate
    """,
    "Quire maps weights from the checkpoint's files": """
        ignore_patterns* model_loader_extra_config pt_load_map_location safetensors_load_strategy
        safetensors_prefetch_block_size safetensors_prefetch_num_threads use_tqdm_on_load!
    """,
    "Quire's steps are set by --max-num-seqs and --max-num-batched-tokens": """
        async_scheduling! disable_async_output_proc! long_prefill_token_threshold
        long_prefill_token_threshold_adaptive! max_long_partial_prefills max_num_partial_prefills
        max_num_scheduled_tokens num_scheduler_steps performance_mode prefill_schedule_interval
        scheduler_delay_factor scheduler_reserve_full_isl! use_v2_block_manager! watermark
    """,
    "Quire computes preempted requests again, out of the prefix cache and --swap-space": "preemption_mode",
    "Quire's prefix cache is found by hashes that depend on the tenant": """
        prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit
    """,
    "Quire's gateways are always processes of their own": """
        disable_frontend_multiprocessing! renderer_num_workers tokenizer_pool_size
    """,
    "Quire does so in any case": """
        enable_offline_docs! enable_prompt_tokens_details! enable_reasoning! enable_request_id_headers!
        enable_ssl_refresh! enable_fault_tolerance! grpc!
    """,
    "Quire has its own metrics, and one line in the log for each request": """
        aggregate_engine_logging! collect_detailed_traces* cudagraph_metrics! disable_access_log_for_endpoints
        disable_uvicorn_access_log! enable_layerwise_nvtx_tracing! enable_log_deltas!
        enable_logging_iteration_details! enable_mfu_metrics! enable_server_load_tracking! kv_cache_metrics!
        kv_cache_metrics_sample log_error_stack! per_request_spec_decode_metrics show_hidden_metrics_for_version
    """,
    "Quire has no such API": "anthropic_disabled_thinking_effort cohere_format cohere_is_reasoning_model!",
    "Quire ignores vLLM's variables, but for VLLM_API_KEY and VLLM_CPU_KVCACHE_SPACE": "fail_on_environ_validation!",
}

_REFUSED: Final[Mapping[str, str]] = {
    "Quire runs a model on one device; --num-executors adds processes on its KV pool": """
        data_parallel_external_lb! data_parallel_hybrid_lb! data_parallel_multi_port_external_lb! data_parallel_rank
        data_parallel_size_local=1 data_parallel_start_rank=0 decode_context_parallel_size=1 enable_dbo!
        enable_elastic_ep! enable_eplb! enable_expert_parallel! nnodes=1 node_rank=0 pipeline_parallel_size=1
        prefill_context_parallel_size=1 tensor_parallel_size=1 worker_use_ray!
    """,
    "run the processes by themselves: `quire gateway`, `quire scheduler`, `quire executor`": "headless!",
    "Quire has no LoRA adapters": "default_mm_loras enable_lora! lora_modules*",
    "Quire has no speculative decoding": """
        num_speculative_tokens spec_method spec_model spec_tokens speculative_config speculative_model
    """,
    "choose the cores and devices outside: taskset or numactl, CUDA_VISIBLE_DEVICES; and --threads": """
        device_ids numa_bind! numa_bind_cpus* numa_bind_nodes*
    """,
    "Quire keeps weights and KV pool on the model's own device; --quantization makes them smaller": """
        cpu_offload_gb=0,0.0 cpu_offload_params* kv_offloading_backend=native
        offload_backend=auto offload_group_size=0 offload_num_in_group=1 offload_params* offload_prefetch_step=1
    """,
    "Quire moves no KV between servers; --kv-pool keeps it over a restart": """
        ec_manager_config ec_transfer_config kv_transfer_config weight_transfer_config
    """,
    "subscribe to quire.v1.MonitorService/StreamKvEvents on the gRPC port": "kv_events_config",
    "Quire has one pool for all layers, of the type of --kv-cache-dtype": "kv_cache_dtype_skip_layers*",
    "use --quantization int8, int8_weight_only, int4 or fp8": "allow_deprecated_quantization! quantization_config",
    "a model is what its folder says; edit its config.json or generation_config.json": """
        config_format=auto,hf convert=auto,none disable_sliding_window! generation_config=auto hf_config_path
        hf_overrides model_class_overrides model_impl=auto override_generation_config pooler_config
        rope_scaling rope_theta runner=auto,generate task=auto,generate
    """,
    "Quire uses the tokenizer of the model's folder": "skip_tokenizer_init! tokenizer tokenizer_revision",
    "Quire reads Hugging Face's tokenizer.json only": "tokenizer_mode=auto,hf,fast",
    "Quire reads safetensors only": "load_format=auto,safetensors",
    "set HF_HUB_CACHE": "download_dir",
    "set HF_TOKEN in the environment: a command line is for everyone to see": "hf_token",
    "Quire draws each request's tokens from its own seed: put `seed` into requests": "seed=0",
    "Quire computes prompts that are longer than --max-num-batched-tokens in chunks": "enable_chunked_prefill!=true",
    "put chat_template.jinja into the model's folder, or send chat_template with --trust-request-chat-template": """
        chat_template default_chat_template_kwargs
    """,
    "Quire gives a template the content's form that it asks for": "chat_template_content_format=auto",
    "Quire answers as the assistant": "response_role=assistant",
    "Quire's parsers are chosen by --tool-call-parser and --reasoning-parser": """
        exclude_tools_when_tool_choice_none! reasoning_config reasoning_parser_plugin tool_parser_plugin
        tool_strict_level=auto
    """,
    "Quire calls no tools itself": "tool_server",
    "Quire loads no plugins": """
        additional_config io_processor_plugin logits_processors* middleware scheduler_cls worker_cls=auto
        worker_extension_cls
    """,
    "Quire enforces structured output by one engine of its own": """
        guided_decoding_backend=auto,xgrammar,outlines,guidance,lm-format-enforcer structured_outputs_config
    """,
    "Quire gives log probabilities of the distribution that the model computed": "logprobs_mode=raw_logprobs",
    "Quire gives tokens as text": "return_tokens_as_token_ids!",
    "Quire does not give this": """
        aux_output_config enable_per_request_metrics! enable_return_routed_experts! enable_trace_replay!
        fingerprint_mode=full,none fingerprint_value profiler_config return_sampling_mask! watermark_config
    """,
    "Quire takes no such input": "enable_mm_embeds! enable_prompt_embeds! mm_encoder_only!",
    "Quire serves no such model": "diffusion_config",
    "clients ask for it by stream_options.include_usage": "enable_force_include_usage!",
    "Quire sends tokens as they come": "stream_interval=1 sse_keep_alive_interval=0",
    "use /tokenize and /detokenize": "enable_tokenizer_info_endpoint!",
    "Quire serves all of its API": "disable_fastapi_docs! enable_scale_out! tokens_only!",
    "Quire cannot sleep: end the server; --kv-pool keeps its prefix cache": """
        enable_cumem_allocator! enable_sleep_mode! sleep_mode_offload_cudagraph! sleep_preserve_parameter_names*
    """,
    "Quire listens on --host and --port": "uds",
    "Quire takes TLS 1.2 and newer with the ciphers of this system": "ssl_ciphers",
    "Quire's limits are fixed": "h11_max_header_count=256 h11_max_incomplete_event_size=4194304",
    "Quire counts running requests by --max-num-seqs": "max_num_active_seqs",
    "Quire's buckets are those that boards for vLLM expect": "custom_histogram_buckets",
    "use --log-level and --log-format": "log_config_file logging_config",
    "use --log-prompts, which logs prompts and outputs": "enable_log_outputs!",
}

# Short forms, and options that are spelled in their own way.
ALIASES: Final[Mapping[str, str]] = {
    "-ac": "attention_config",
    "-asc": "api_server_count",
    "-cc": "compilation_config",
    "-dc": "diffusion_config",
    "-dcp": "decode_context_parallel_size",
    "-dp": "data_parallel_size",
    "-dpa": "data_parallel_address",
    "-dpb": "data_parallel_backend",
    "-dpe": "data_parallel_external_lb",
    "-dph": "data_parallel_hybrid_lb",
    "-dpl": "data_parallel_size_local",
    "-dpm": "data_parallel_multi_port_external_lb",
    "-dpn": "data_parallel_rank",
    "-dpp": "data_parallel_rpc_port",
    "-dpr": "data_parallel_start_rank",
    "-ep": "enable_expert_parallel",
    "-n": "nnodes",
    "-O": "optimization_level",
    "-pcp": "prefill_context_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-q": "quantization",
    "-r": "node_rank",
    "-sc": "speculative_config",
    "-tp": "tensor_parallel_size",
}


def _parse(entry: str, kind: Kind, note: str = "", setting: str = "") -> VllmFlag:
    name, _, values = entry.partition("=")
    is_switch = name.endswith("!")
    harmless = frozenset(values.split(",") if values else ["false"] if is_switch else [])
    return VllmFlag(name.rstrip("!*"), kind, note, setting, harmless, is_switch, name.endswith("*"))


def _flags() -> list[VllmFlag]:
    flags = [_parse(entry, Kind.TAKEN, _DIFFERENT.get(entry.rstrip("!*"), "")) for entry in _TAKEN.split()]
    flags += [_parse(entry, Kind.MAPPED, note, setting) for entry, (setting, note) in _MAPPED.items()]
    for kind, groups in ((Kind.NEUTRAL, _NEUTRAL), (Kind.REFUSED, _REFUSED)):
        flags += [_parse(entry, kind, note) for note, entries in groups.items() for entry in entries.split()]
    return sorted(flags, key=lambda flag: flag.name)


VLLM_FLAGS: Final[Mapping[str, VllmFlag]] = {flag.name: flag for flag in _flags()}
