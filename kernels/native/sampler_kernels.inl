// Sampling's passes for one instruction set: each isa_*.cpp includes this file.
#include "sampler_kernels.hpp"
#include "simd.hpp"
#include "vector_exp.hpp"

namespace quire::QUIRE_ISA {
namespace {

typedef double dvec __attribute__((vector_size(kVecLanes * 8)));

constexpr int kSamplerVectors = kSamplerBlock / kVecLanes;
constexpr float kMinusInfinity = -__builtin_inff();

// Calls body(block, logits of the block): where they lie, or padded with -inf.
template <class F>
void for_each_block(const float* logits, int64_t vocab_size, const F& body) {
    const int64_t whole = vocab_size / kSamplerBlock;
    for (int64_t block = 0; block < whole; ++block) body(block, logits + block * kSamplerBlock);
    if (const int64_t rest = vocab_size - whole * kSamplerBlock) {
        float padded_block[kSamplerBlock];
        for (int64_t i = 0; i < kSamplerBlock; ++i) {
            padded_block[i] = i < rest ? logits[whole * kSamplerBlock + i] : kMinusInfinity;
        }
        body(whole, padded_block);
    }
}

void find_maxima(const float* logits, int64_t vocab_size, float* maxima) {
    for_each_block(logits, vocab_size, [&](int64_t block, const float* x) {
        vec highest[2] = {broadcast(kMinusInfinity), broadcast(kMinusInfinity)};
#pragma GCC unroll 32
        for (int v = 0; v < kSamplerVectors; ++v) highest[v % 2] = max(load(x + v * kVecLanes), highest[v % 2]);
        maxima[block] = max_lanes(max(highest[0], highest[1]))[0];
    });
}

template <bool kStore>
void weigh_blocks(const float* logits, int64_t vocab_size, float highest, float inverse_temperature,
                  const Weights& weights) {
    // Far below where the exponential is 0. max() makes a number of nan, too.
    constexpr float kLowest = -1000.0f;
    for_each_block(logits, vocab_size, [&](int64_t block, const float* x) {
        vec sum = {}, largest = {};
#pragma GCC unroll 4
        for (int v = 0; v < kSamplerVectors; ++v) {
            const vec exponent = (load(x + v * kVecLanes) - highest) * inverse_temperature;
            const vec weight = exp(max(exponent, broadcast(kLowest)));
            if constexpr (kStore) store(weights.values + block * kSamplerBlock + v * kVecLanes, weight);
            sum = sum + weight;
            largest = max(weight, largest);
        }
        weights.sums[block] = sum_lanes(sum)[0];
        weights.maxima[block] = max_lanes(largest)[0];
    });
}

void weigh(const float* logits, int64_t vocab_size, float highest, float inverse_temperature, const Weights& weights) {
    const auto pass = weights.values ? weigh_blocks<true> : weigh_blocks<false>;
    pass(logits, vocab_size, highest, inverse_temperature, weights);
}

void sum_above(const Weights& weights, float bound) {
    for (int64_t block = 0; block < weights.num_blocks; ++block) {
        vec sum = {};
        if (weights.maxima[block] >= bound) {
            const float* const values = weights.values + block * kSamplerBlock;
            for (int v = 0; v < kSamplerVectors; ++v) {
                const vec weight = load(values + v * kVecLanes);
                sum = sum + (weight >= bound ? weight : vec{});
            }
        }
        weights.sums[block] = sum_lanes(sum)[0];
    }
}

void measure(const Weights& weights, const float* thresholds, Measure* measures) {
    ivec counts[kThresholds] = {};
    dvec masses[kThresholds] = {};
    for (int64_t block = 0; block < weights.num_blocks; ++block) {
        if (weights.maxima[block] < thresholds[0]) continue;
        const float* const values = weights.values + block * kSamplerBlock;
        // float32 within a block only: sums of many weights must not lose what decides where a boundary lies.
        vec sums[kThresholds] = {};
        for (int v = 0; v < kSamplerVectors; ++v) {
            const vec weight = load(values + v * kVecLanes);
#pragma GCC unroll 4
            for (int t = 0; t < kThresholds; ++t) {
                const ivec reaches = weight >= thresholds[t];  // -1 where true
                counts[t] -= reaches;
                sums[t] = sums[t] + (vec)((ivec)weight & reaches);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < kThresholds; ++t) masses[t] += __builtin_convertvector(sums[t], dvec);
    }
    for (int t = 0; t < kThresholds; ++t) {
        measures[t] = {0, 0.0};
        for (int lane = 0; lane < kVecLanes; ++lane) {
            measures[t].count += counts[t][lane];
            measures[t].mass += masses[t][lane];
        }
    }
}

// Appends the lanes of `weight` that lie in [low, high); returns how many.
static inline int append(vec weight, float low, float high, float* out) {
#if defined(__AVX512F__)
    const __m512 x = (__m512)weight;
    const __mmask16 inside = _mm512_cmp_ps_mask(x, _mm512_set1_ps(low), _CMP_GE_OQ) &
                             _mm512_cmp_ps_mask(x, _mm512_set1_ps(high), _CMP_LT_OQ);
    store(out, (vec)_mm512_maskz_compress_ps(inside, x));
    return __builtin_popcount(inside);
#else
    int count = 0;
    for (int lane = 0; lane < kVecLanes; ++lane) {
        out[count] = weight[lane];
        count += weight[lane] >= low && weight[lane] < high;
    }
    return count;
#endif
}

int64_t gather(const Weights& weights, float low, float high, float* out, int64_t capacity) {
    int64_t count = 0;
    for (int64_t block = 0; block < weights.num_blocks && count <= capacity; ++block) {
        if (weights.maxima[block] < low) continue;
        const float* const values = weights.values + block * kSamplerBlock;
        for (int v = 0; v < kSamplerVectors; ++v) count += append(load(values + v * kVecLanes), low, high, out + count);
    }
    return count;
}

}  // namespace

extern const SamplerKernels kSamplerKernels;
const SamplerKernels kSamplerKernels = {find_maxima, weigh, sum_above, measure, gather};

}  // namespace quire::QUIRE_ISA
