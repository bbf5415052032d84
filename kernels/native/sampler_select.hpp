// Where filters cut a distribution, without sorting it.
#pragma once

#include <cstdint>
#include <vector>

#include "sampler_kernels.hpp"

namespace quire {

// The most likely tokens: at least `count` of them, with at least `mass` together.
struct Target {
    int64_t count;
    double mass;

    bool reached_by(const Measure& measure) const { return measure.count >= count && measure.mass >= mass; }
};

// The largest weight such that the weights at or above it reach the target; 0 if all together do not.
// `scratch` is working memory.
float boundary(const SamplerKernels& kernels, const Weights& weights, const Target& target,
               std::vector<float>& scratch);

}  // namespace quire
