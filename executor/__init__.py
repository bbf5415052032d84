"""The executor: weights, the forward pass and sampling, behind ExecutorService.

    server.py          the process: loads the model, serves, ends
    start.py           what comes before steps: kernels are set up, the model is loaded, memory is measured
    cuda_setup.py      how a GPU's process rounds, and where its compiled kernels are kept
    dry_run.py         the largest steps, run once on a GPU, to see what they leave for the KV pool
    step_limits.py     what a step may hold
    service.py         gRPC: describe, attach the KV pool, a stream of steps
    step_stream.py     that stream: over gRPC, or through shared memory
    step_serving.py    its worker thread: steps in flight, results in order
    model_runner.py    plans → steps, on the attached pool
    pending_step.py    a step between its plan and its result
    direct_steps.py    steps on a CPU: over when they have been launched
    device_steps.py    steps on a device that computes behind the host's back: launched, finished in order
    step_work.py       what that device does for one step
    step_buffers.py    the columns of its steps: pinned, copied at once, at addresses that CUDA graphs read
    last_tokens.py     the tokens that it sampled last, for its next step
    device.py          its stream, its memory, and how it tells that it is done
    step_report.py     what was sampled → StepResult
    readouts.py        prompt logprobs and embeddings → StepResult
    graphs.py          CUDA graphs of decode steps: which sizes, and when one is captured
    sequence.py        what is kept of the sequences between steps, in arrays by slot
    sampling_table.py  their sampling parameters
    token_masks.py     bit masks of the tokens that a row may get
    structured.py      their grammars: what the next token may be
    input_batch.py     a step plan and the sequences it names → arrays and tensors
    kv_cache.py        the KV pool as one key view and one value view per layer
    device_memory.py   the memory of that pool on a GPU, which another process holds
    native_decoder.py  the forward pass on a CPU: one native call for a whole step
    decoder.py         the same with torch's operators: on GPUs, and the reference
    rotary.py          rotary position embedding and its scalings
    model_config.py    config.json → ModelConfig
    checkpoint.py      safetensors files: where they are, reading one tensor
    weight_layout.py   where each packed weight lies, and in which format
    packed_weights.py  a checkpoint, packed for native_decoder.py
    weights.py         the tensors of a checkpoint, laid out for decoder.py
    model.py           all of the above for one model: configuration, weights, fingerprint
    memory.py          how much the KV pool may take
    processors.py      how many threads compute

It keeps nothing that a scheduler cannot send again: losing an executor loses no token.
"""
