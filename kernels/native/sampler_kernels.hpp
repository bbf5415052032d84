// The passes over a vocabulary that sampler.cpp and sampler_select.cpp are made of, for one instruction set each.
// Plain data and static functions only: see simd.hpp.
#pragma once

#include <stdint.h>

namespace quire {

// A row is met in blocks of this many tokens. Their maxima let later passes skip most of the row.
constexpr int kSamplerBlock = 128;

static constexpr int64_t sampler_blocks(int64_t vocab_size) { return (vocab_size + kSamplerBlock - 1) / kSamplerBlock; }

// Weights exp((logit - highest logit) / temperature) of a row: in (0, 1], the largest exactly 1, or 0.
struct Weights {
    float* values;  // [num_blocks * kSamplerBlock], 0 beyond the vocabulary
    float* maxima;  // [num_blocks]
    float* sums;    // [num_blocks]
    int64_t num_blocks;
};

// The weights at or above a threshold.
struct Measure {
    int64_t count;
    double mass;
};

constexpr int kThresholds = 4;

struct SamplerKernels {
    // The largest logit of each block; nan counts as -inf.
    void (*find_maxima)(const float* logits, int64_t vocab_size, float* maxima);
    // All of `weights`; but no values where that is null. nan and -inf weigh 0.
    void (*weigh)(const float* logits, int64_t vocab_size, float highest, float inverse_temperature,
                  const Weights& weights);
    // weights.sums, over the weights at or above `bound` alone.
    void (*sum_above)(const Weights& weights, float bound);
    // For each threshold; thresholds[0] > 0 is the lowest.
    void (*measure)(const Weights& weights, const float* thresholds, Measure* measures);
    // Writes the weights in [low, high) to `out` unless they are more than `capacity`; returns how many they are,
    // or, where they are too many, any number above capacity. `out` has room for kSamplerBlock more.
    int64_t (*gather)(const Weights& weights, float low, float high, float* out, int64_t capacity);
};

}  // namespace quire
