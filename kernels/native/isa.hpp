// Which instruction set's kernels run.
#pragma once

#include "attention_tile.hpp"
#include "linear_kernels.hpp"
#include "sampler_kernels.hpp"

namespace quire {

// The kernels in use for this dtype: the best this machine has, unless quire_set_isa chose another.
const AttentionKernels& attention_kernels(int32_t dtype);

// The same for a packed format.
const LinearKernels& linear_kernels(int32_t format);

const SamplerKernels& sampler_kernels();

}  // namespace quire
