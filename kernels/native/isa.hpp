// Which instruction set's kernels run.
#pragma once

#include "linear_kernels.hpp"
#include "paged_kernels.hpp"
#include "row_kernels.hpp"
#include "sampler_kernels.hpp"

namespace quire {

// The kernels in use: the best this machine has, unless quire_set_isa chose others.
const PagedKernels& paged_kernels();

// The same for a packed format.
const LinearKernels& linear_kernels(int32_t format);

const SamplerKernels& sampler_kernels();
const RowKernels& row_kernels();

}  // namespace quire
