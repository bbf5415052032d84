// Operators on one row of activations. Plain data only: see simd.hpp.
#pragma once

#include <stdint.h>

namespace quire {

struct RowKernels {
    // out = weight * x / sqrt(mean(x ** 2) + eps): Zhang and Sennrich (arXiv 1910.07467). All float32 [size].
    void (*rms_norm)(const float* x, const float* weight, int64_t size, float eps, float* out);
};

}  // namespace quire
