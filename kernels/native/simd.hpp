// One vector type per instruction set, on GCC's vector extensions: + - * and comparisons are the language's own.
//
// Included by the isa_*.cpp files only, each with its own namespace and -m flags. Nothing here (or in anything
// they include) may be an inline function of the standard library: the linker keeps one copy of those, perhaps the
// AVX-512 one, for machines that cannot run it.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace quire::QUIRE_ISA {

#if defined(__AVX512F__)
constexpr int kVecLanes = 16;
#elif defined(__AVX2__)
constexpr int kVecLanes = 8;
#else
constexpr int kVecLanes = 4;  // SSE2, NEON
#endif

typedef float vec __attribute__((vector_size(kVecLanes * 4)));
typedef int32_t ivec __attribute__((vector_size(kVecLanes * 4)));
typedef uint32_t uvec __attribute__((vector_size(kVecLanes * 4)));
typedef uint16_t hvec __attribute__((vector_size(kVecLanes * 2)));
typedef float unaligned_vec __attribute__((vector_size(kVecLanes * 4), aligned(4), may_alias));
typedef uint16_t unaligned_hvec __attribute__((vector_size(kVecLanes * 2), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

static inline vec load(const float* p) { return *reinterpret_cast<const unaligned_vec*>(p); }

// A bfloat16 is the upper half of a float32. (GCC 12 widens the generic way in two halves, at twice the cost.)
static inline vec load(const bfloat16* p) {
#if defined(__AVX512F__)
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    // maskz, all lanes: the plain one warns of uninitialised memory in GCC's own header (GCC bug 105593).
    return (vec)((uvec)_mm512_maskz_cvtepu16_epi32(0xffff, half) << 16);
#elif defined(__AVX2__)
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vec)((uvec)_mm256_cvtepu16_epi32(half) << 16);
#else
    const hvec half = *reinterpret_cast<const unaligned_hvec*>(p);
    return (vec)(__builtin_convertvector(half, uvec) << 16);
#endif
}

static inline void store(float* p, vec v) { *reinterpret_cast<unaligned_vec*>(p) = v; }

static inline vec broadcast(float x) { return x - vec{}; }  // x - 0 is x, so that only the broadcast is left

// a * b + c. Written out, because -ffp-contract=off keeps the compiler from fusing in one place and not in another:
// every path to a sum must round alike.
static inline vec fma(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// Where x is nan, m: a maximum passes over nan, the exponential then brings it back.
static inline vec max(vec x, vec m) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_max_ps(0xffff, (__m512)x, (__m512)m);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)x, (__m256)m);
#else
    return x > m ? x : m;
#endif
}

// 0, 1, 2, ...
static inline ivec lane_numbers() {
    ivec number;
    for (int i = 0; i < kVecLanes; ++i) number[i] = i;
    return number;
}

template <int H>
static inline ivec exchange_index() {
    ivec index;
    for (int i = 0; i < kVecLanes; ++i) index[i] = i ^ H;
    return index;
}

// All lanes' sum, in a fixed order, in every lane.
static inline vec sum_lanes(vec v) {
    if constexpr (kVecLanes > 8) v = v + __builtin_shuffle(v, exchange_index<8>());
    if constexpr (kVecLanes > 4) v = v + __builtin_shuffle(v, exchange_index<4>());
    v = v + __builtin_shuffle(v, exchange_index<2>());
    return v + __builtin_shuffle(v, exchange_index<1>());
}

static inline vec max_lanes(vec v) {
    if constexpr (kVecLanes > 8) v = max(v, __builtin_shuffle(v, exchange_index<8>()));
    if constexpr (kVecLanes > 4) v = max(v, __builtin_shuffle(v, exchange_index<4>()));
    v = max(v, __builtin_shuffle(v, exchange_index<2>()));
    return max(v, __builtin_shuffle(v, exchange_index<1>()));
}

}  // namespace quire::QUIRE_ISA
