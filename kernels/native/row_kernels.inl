// Operators on one row of activations, for one instruction set: each isa_*.cpp defines QUIRE_ISA and includes this file.
#include "row_kernels.hpp"
#include "simd.hpp"

namespace quire::QUIRE_ISA {
namespace {

void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* out) {
    // Several sums, so that one addition need not wait for the one before it; their order is fixed.
    vec squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * kVecLanes <= size; i += 4 * kVecLanes) {
        for (int j = 0; j < 4; ++j) {
            const vec v = load(x + i + j * kVecLanes);
            squares[j] = fma(v, v, squares[j]);
        }
    }
    for (; i + kVecLanes <= size; i += kVecLanes) {
        const vec v = load(x + i);
        squares[0] = fma(v, v, squares[0]);
    }
    float sum = sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]))[0];
    for (; i < size; ++i) sum += x[i] * x[i];
    const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + eps);
    const vec factors = broadcast(factor);
    for (i = 0; i + kVecLanes <= size; i += kVecLanes) store(out + i, load(weight + i) * (load(x + i) * factors));
    for (; i < size; ++i) out[i] = weight[i] * (x[i] * factor);
}

}  // namespace

extern const RowKernels kRowKernels;
const RowKernels kRowKernels = {rms_norm};

}  // namespace quire::QUIRE_ISA
