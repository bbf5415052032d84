"""What is compared. `make bench-peers CASES=…` picks by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OfflineCase:
    """Batches through the engine's own offline interface.

    Decode and prefill are separated in the same way for every engine, from wall-clock times alone. A batch of B
    prompts of length P runs twice, with fresh random prompts: for 1 token, which takes T1, and for N tokens, TN.

        prefill tokens/s = B * P / T1            decode tokens/s = B * (N - 1) / (TN - T1)

    So decode is the time between the batch's first tokens and its last. No engine needs hooks, and one that mixes
    prefill with decode in its steps pays for all of it.
    """

    name: str
    shape: str
    number_format: str
    batches: tuple[int, ...]
    engines: tuple[str, ...]
    input_len: int = 128
    output_len: int = 64


@dataclass(frozen=True)
class ServedCase:
    """Streams over HTTP under `quire bench serve`, a closed loop; the same client for every server.

    `engines` are keys of SERVERS. Output tokens/s are over the whole run.
    """

    name: str
    shape: str
    concurrencies: tuple[int, ...]
    engines: tuple[str, ...]
    prefix_len: int = 0
    input_len: int = 128
    output_len: int = 64
    num_prompts: int | None = None

    def prompts(self, concurrency: int) -> int:
        """Requests of a run: enough that the ends, where the concurrency is not reached, weigh little."""
        return self.num_prompts or max(6, 3 * concurrency)


Case = OfflineCase | ServedCase

CASES: tuple[Case, ...] = (
    OfflineCase(
        "bf16", "smollm-135m", "bf16", (1, 4, 16, 64), ("quire", "vllm", "llama_cpp", "openvino", "transformers")
    ),
    OfflineCase("int8", "smollm-135m", "int8", (1, 4, 16), ("quire", "llama_cpp", "openvino")),
    OfflineCase("int4", "smollm-135m", "int4", (1, 4, 16), ("quire", "llama_cpp", "openvino")),
    OfflineCase("large", "qwen3-0.6b", "bf16", (1, 16), ("quire", "vllm", "llama_cpp", "openvino")),
    OfflineCase("tiny", "tiny", "bf16", (1, 16, 64), ("quire", "vllm", "transformers"), output_len=256),
    ServedCase("served", "smollm-135m", (1, 16, 64), ("quire", "vllm")),
    ServedCase("served-tiny", "tiny", (1, 16, 64), ("quire", "vllm")),
    # 512 of 576 prompt tokens are shared; the answers are short, so that prompts are most of the work.
    ServedCase(
        "prefix", "smollm-135m", (16,), ("quire", "vllm"), prefix_len=512, input_len=64, output_len=16, num_prompts=48
    ),
    # Three quarters of each prompt: what the cache is worth to us.
    ServedCase(
        "prefix-75",
        "smollm-135m",
        (16,),
        ("quire", "quire-no-cache"),
        prefix_len=432,
        input_len=144,
        output_len=16,
        num_prompts=48,
    ),
)

# transformers pads and copies; beyond this batch a run takes minutes and tells nothing new.
MAX_BATCH = {"transformers": 16}
