// New keys and values into the cache, for one instruction set; alone, or after rotary embedding. Included by isa_*.cpp.
#include "elements.hpp"

namespace quire::QUIRE_ISA {
namespace {

template <class T>
inline vec load_up_to(const T* p, int64_t count) {
    return count >= kVecLanes ? load(p) : load_some(p, count);
}

template <class T, class V>
inline void store_up_to(T* p, V v, int64_t count) {
    if (count >= kVecLanes) {
        store(p, v);
    } else {
        store_some(p, v, count);
    }
}

template <class Q, class T>
void convert(const Q* from, T* to, float*, int64_t head_dim) {
    for (int64_t i = 0; i < head_dim; i += kVecLanes) {
        store_up_to(to + i, load_up_to(from + i, head_dim - i), head_dim - i);
    }
}

// Symmetric int8: scale = highest magnitude / 127, integers to nearest, ties to even. What is not finite cannot be told
// in 8 bits: such a vector gets a scale of nan, so that whoever reads it sees it.
template <class Q>
void convert(const Q* from, int8_t* to, float* scale, int64_t head_dim) {
    ivec highest_bits = {};  // magnitudes compare as their bits do, and nan is the highest
    for (int64_t i = 0; i < head_dim; i += kVecLanes) {
        const ivec magnitude = (ivec)load_up_to(from + i, head_dim - i) & 0x7fffffff;
        highest_bits = magnitude > highest_bits ? magnitude : highest_bits;
    }
    int32_t bits = 0;
    for (int lane = 0; lane < kVecLanes; ++lane) bits = highest_bits[lane] > bits ? highest_bits[lane] : bits;
    constexpr int32_t kInfinity = 0x7f800000;
    float highest;
    memcpy(&highest, &bits, sizeof highest);
    *scale = bits >= kInfinity ? __builtin_nanf("") : highest / 127.0f;
    if (!(*scale > 0.0f)) {  // all zeros, or so small that the scale is, or not finite
        memset(to, 0, head_dim);
        return;
    }
    for (int64_t i = 0; i < head_dim; i += kVecLanes) {
        vec x = load_up_to(from + i, head_dim - i) / *scale;
        x = x > 127.0f ? broadcast(127.0f) : x;  // where the scale itself is subnormal and was rounded
        x = x < -127.0f ? broadcast(-127.0f) : x;
        const ivec integers = (ivec)(x + kRoundToInteger) - (ivec)broadcast(kRoundToInteger);
        store_up_to(to + i, integers, head_dim - i);
    }
}

template <class Q, class T>
void store_head(const quire_kv_cache& cache, const Q* key, const Q* value, int64_t head, int64_t slot) {
    const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
    float* key_scale = nullptr;
    float* value_scale = nullptr;
    if constexpr (sizeof(T) == 1) {
        key_scale =
            cache.key_scales + block * cache.key_scale_block_stride + head * cache.key_scale_head_stride + offset;
        value_scale =
            cache.value_scales + block * cache.value_scale_block_stride + head * cache.value_scale_head_stride + offset;
    }
    convert(key,
            static_cast<T*>(cache.key) + block * cache.key_block_stride + head * cache.key_head_stride +
                offset * cache.head_dim,
            key_scale, cache.head_dim);
    convert(value,
            static_cast<T*>(cache.value) + block * cache.value_block_stride + head * cache.value_head_stride +
                offset * cache.head_dim,
            value_scale, cache.head_dim);
}

template <class Q, class T>
void store_tokens(const quire_store_args& args, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        const Q* const key = static_cast<const Q*>(args.key) + token * args.key_token_stride;
        const Q* const value = static_cast<const Q*>(args.value) + token * args.value_token_stride;
        for (int64_t head = 0; head < args.cache.num_kv_heads; ++head) {
            store_head<Q, T>(args.cache, key + head * args.key_head_stride, value + head * args.value_head_stride, head,
                             args.slot_mapping[token]);
        }
    }
}

// weight * (x / sqrt(mean(x ** 2) + eps)), in the order of ../norm.py.
void norm(float* x, const float* weight, float eps, int64_t head_dim) {
    vec squares = {};
    for (int64_t i = 0; i < head_dim; i += kVecLanes) {
        const vec v = load_up_to(x + i, head_dim - i);
        squares = fma(v, v, squares);
    }
    const float mean = sum_lanes(squares)[0] / static_cast<float>(head_dim);
    const float factor = 1.0f / __builtin_sqrtf(mean + eps);
    for (int64_t i = 0; i < head_dim; i += kVecLanes) {
        const vec v = load_up_to(x + i, head_dim - i) * factor;
        store_up_to(x + i, load_up_to(weight + i, head_dim - i) * v, head_dim - i);
    }
}

// Pairs (x[i], x[i + half]), each product rounded before the sum, as ../rotary.py does it.
void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += kVecLanes) {
        const int64_t left = half - i;
        const vec c = load_up_to(cos + i, left), s = load_up_to(sin + i, left);
        const vec first = load_up_to(x + i, left), second = load_up_to(x + half + i, left);
        store_up_to(x + i, first * c - second * s, left);
        store_up_to(x + half + i, second * c + first * s, left);
    }
}

template <class T>
void rotate_and_store_tokens(const quire_rotate_args& args, int64_t first, int64_t last) {
    const int64_t head_dim = args.cache.head_dim, num_kv_heads = args.cache.num_kv_heads, half = args.rotary_dim / 2;
    for (int64_t token = first; token < last; ++token) {
        float* const queries = args.qkv + token * args.token_stride;
        float* const keys = queries + args.num_heads * head_dim;
        const float* const values = keys + num_kv_heads * head_dim;
        for (int64_t head = 0; head < args.num_heads + num_kv_heads; ++head) {
            float* const x = queries + head * head_dim;
            const float* const weight = head < args.num_heads ? args.q_norm : args.k_norm;
            if (weight != nullptr) norm(x, weight, args.eps, head_dim);
            rotate(x, args.cos + token * half, args.sin + token * half, half);
        }
        for (int64_t head = 0; head < num_kv_heads; ++head) {
            store_head<float, T>(args.cache, keys + head * head_dim, values + head * head_dim, head,
                                 args.slot_mapping[token]);
        }
    }
}

}  // namespace
}  // namespace quire::QUIRE_ISA
