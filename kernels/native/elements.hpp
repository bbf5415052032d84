// The types that a cache's elements may have: widened to float32, and narrowed from it.
#pragma once

#include "simd.hpp"

namespace quire::QUIRE_ISA {

typedef int8_t cvec __attribute__((vector_size(kVecLanes)));
typedef int8_t unaligned_cvec __attribute__((vector_size(kVecLanes), aligned(1), may_alias));

// Adding it to a float32 of at most 22 bits rounds to an integer (to nearest, ties to even) in the low bits.
constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2**23

static inline vec load(const int8_t* p) {
#if defined(__AVX512F__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vec)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, narrow));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    const cvec narrow = *reinterpret_cast<const unaligned_cvec*>(p);
    return __builtin_convertvector(__builtin_convertvector(narrow, ivec), vec);
#endif
}

// To nearest, ties to even; nan stays nan.
static inline void store(bfloat16* p, vec v) {
    const uvec bits = (uvec)v;
    const uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uvec chosen = v == v ? rounded : uvec{} + 0x7fc0;
    *reinterpret_cast<unaligned_hvec*>(p) = __builtin_convertvector(chosen, hvec);
}

// Of integers that fit.
static inline void store(int8_t* p, ivec v) {
    *reinterpret_cast<unaligned_cvec*>(p) = __builtin_convertvector(v, cvec);
}

static inline float to_float(float x) { return x; }

static inline float to_float(int8_t x) { return x; }

static inline float to_float(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// The first `count` elements at p (fewer than a vector has), then zeros.
template <class T>
static inline vec load_some(const T* p, int64_t count) {
    T some[kVecLanes] = {};
    memcpy(some, p, count * sizeof(T));
    return load(some);
}

template <class T, class V>
static inline void store_some(T* p, V v, int64_t count) {
    T some[kVecLanes];
    store(some, v);
    memcpy(p, some, count * sizeof(T));
}

}  // namespace quire::QUIRE_ISA
