"""Names of what GET /metrics reports, for the server that writes them and the views that read them.

What vLLM measures too has vLLM's name, so that its dashboards show a ktops server; the rest is
ours. Counters are without the suffix `_total`, which the text format adds.
"""

from __future__ import annotations

REQUESTS_RUNNING = "vllm:num_requests_running"
REQUESTS_WAITING = "vllm:num_requests_waiting"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"
PREFIX_CACHE_QUERIES = "vllm:prefix_cache_queries"
PREFIX_CACHE_HITS = "vllm:prefix_cache_hits"
PROMPT_TOKENS = "vllm:prompt_tokens"
GENERATION_TOKENS = "vllm:generation_tokens"
REQUESTS_FINISHED = "vllm:request_success"
TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"
INTER_TOKEN_LATENCY = "vllm:inter_token_latency_seconds"
REQUEST_LATENCY = "vllm:e2e_request_latency_seconds"
QUEUE_TIME = "vllm:request_queue_time_seconds"

STATE = "ktops:state"
TOKENS_PER_SECOND = "ktops:generation_tokens_per_second"
STEP_SECONDS = "ktops:step_seconds"
EXPERT_BYTES = "ktops:expert_bytes_read"
EXPERT_SECONDS = "ktops:expert_seconds"
NODE_MEMORY = "ktops:memory_node_bytes"
VRAM = "ktops:vram_bytes"
RESIDENT_MEMORY = "process_resident_memory_bytes"  # the name every Prometheus client uses
