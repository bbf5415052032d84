// Which instruction set's kernels run.
#pragma once

#include "paged_kernels.hpp"

namespace quire {

// The kernels in use: the best this machine has, unless quire_set_isa chose others.
const PagedKernels& paged_kernels();

}  // namespace quire
