// Packed products of one instruction set: each isa_*.cpp defines QUIRE_ISA and includes this file.
//
// An output is one sum, over the inputs in order, whatever the number of rows: a tile of R rows only computes R such
// sums side by side. So a row's bits do not depend on its batch.
#include "linear_kernels.hpp"
#include "simd.hpp"
#include "vector_exp.hpp"

#define QUIRE_INLINE static inline __attribute__((always_inline))

namespace quire::QUIRE_ISA {
namespace {

// Vectors of a panel's outputs.
constexpr int kColumns = kPanelOutputs / kVecLanes;

// Rows whose sums fit the registers beside the weights: 32 registers of 16 lanes, or 16 of 8 or 4.
constexpr int kTileRows = kVecLanes == 16 ? 12 : kVecLanes == 8 ? 3 : 1;

typedef uint32_t unaligned_uvec __attribute__((vector_size(kVecLanes * 4), aligned(4), may_alias));

QUIRE_INLINE uvec load_bits(const char* p) { return *reinterpret_cast<const unaligned_uvec*>(p); }

QUIRE_INLINE vec to_floats(ivec v) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_cvtepi32_ps(0xffff, (__m512i)v);
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps((__m256i)v);
#else
    return __builtin_convertvector(v, vec);
#endif
}

QUIRE_INLINE void prefetch(const char* p, int64_t step) {
    if (step >= 64) __builtin_prefetch(p, 0, 2);
    if (step >= 128) __builtin_prefetch(p + 64, 0, 2);
}

// Formats whose weights are widened to float32 and multiplied as such. `walk` calls step(input, weights) for every input
// of the panel in order; weights(column) is the vector of that column.

struct Float32 {
    template <class Step>
    QUIRE_INLINE void walk(const PanelTile& tile, const Step& step) {
        const char* line = tile.panel;
        const char* ahead = tile.prefetch;
        for (int64_t i = 0; i < tile.inputs; ++i, line += kLineBytes, ahead += tile.prefetch_step) {
            prefetch(ahead, tile.prefetch_step);
            step(i, [&](int c) { return (vec)load_bits(line + c * kVecLanes * 4); });
        }
    }
};

struct BFloat16 {
    template <class Step>
    QUIRE_INLINE void walk(const PanelTile& tile, const Step& step) {
        const char* line = tile.panel;
        const char* ahead = tile.prefetch;
        for (int64_t i = 0; i < tile.inputs; i += 2, line += kLineBytes, ahead += tile.prefetch_step) {
            prefetch(ahead, tile.prefetch_step);
            step(i, [&](int c) { return (vec)(load_bits(line + c * kVecLanes * 4) << 16); });
            step(i + 1, [&](int c) { return (vec)(load_bits(line + c * kVecLanes * 4) & 0xffff0000u); });
        }
    }
};

// The scale comes at the end, once for each sum.
struct Int8WeightOnly {
    template <class Step>
    QUIRE_INLINE void walk(const PanelTile& tile, const Step& step) {
        const char* line = tile.panel;
        const char* ahead = tile.prefetch;
        for (int64_t i = 0; i < tile.inputs; i += 4, line += kLineBytes, ahead += tile.prefetch_step) {
            prefetch(ahead, tile.prefetch_step);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                step(i + j, [&](int c) {
                    return to_floats(((ivec)load_bits(line + c * kVecLanes * 4) << (24 - 8 * j)) >> 24);
                });
            }
        }
    }
};

QUIRE_INLINE vec nibble_values(uvec nibbles) {
#if defined(__AVX512F__)
    // A permutation reads the low 4 bits of each index: it is a table of 16 floats.
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return (vec)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)nibbles, table);
#else
    return to_floats((ivec)(nibbles & 15u) - 8);
#endif
}

template <class Format, int R>
void multiply(const PanelTile& tile, float* sums) {
    vec sum[R][kColumns] = {};
    const char* const input = tile.input;
    const int64_t stride = tile.input_stride;
    Format::walk(tile, [&](int64_t i, const auto& weights) __attribute__((always_inline)) {
        vec weight[kColumns];
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) weight[c] = weights(c);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const vec x = broadcast(reinterpret_cast<const float*>(input + r * stride)[i]);
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c) sum[r][c] = fma(x, weight[c], sum[r][c]);
        }
    });
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) store(sums + r * kPanelOutputs + c * kVecLanes, sum[r][c]);
    }
}

// Eight inputs of a line at a time, times their group's scale into the sums: so the scale costs an eighth of an operation
// for each input, and lines do not wait for one another. The sums lie in the first-level cache, which leaves the registers
// to the line's.
template <int R>
void multiply_int4(const PanelTile& tile, float* sums) {
    memset(sums, 0, R * kPanelOutputs * sizeof(float));
    const char* record = tile.panel;
    const char* ahead = tile.prefetch;
    for (int64_t first = 0; first < tile.inputs; first += kRecordInputs, record += kRecordLines * kLineBytes) {
        prefetch(ahead, tile.prefetch_step);
        ahead += tile.prefetch_step;
        for (int l = 0; l < kRecordInputs / 8; ++l, ahead += tile.prefetch_step) {
            prefetch(ahead, tile.prefetch_step);
            const char* const line = record + (1 + l) * kLineBytes;
            const char* const input = tile.input + (first + 8 * l) * 4;
            uvec nibbles[kColumns];
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c) nibbles[c] = load_bits(line + c * kVecLanes * 4);
            vec sum[R][kColumns];
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                vec weight[kColumns];
#pragma GCC unroll 8
                for (int c = 0; c < kColumns; ++c) weight[c] = nibble_values(nibbles[c] >> (4 * j));
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const vec x = broadcast(reinterpret_cast<const float*>(input + r * tile.input_stride)[j]);
#pragma GCC unroll 8
                    for (int c = 0; c < kColumns; ++c) sum[r][c] = j ? fma(x, weight[c], sum[r][c]) : x * weight[c];
                }
            }
            const bfloat16* const scales = reinterpret_cast<const bfloat16*>(record) + l / 4 * kPanelOutputs;
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c) {
                const vec scale = load(scales + c * kVecLanes);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    float* const to = sums + r * kPanelOutputs + c * kVecLanes;
                    store(to, fma(sum[r][c], scale, load(to)));
                }
            }
        }
    }
}

// int8 x int8: rows are stored as x + 128, since the dot products take one unsigned side; the panel's sums of weights take
// the 128 out again. All integers, so exact on every instruction set.
//
// A prepared row: the scale (float32) in the first 64 bytes, then the bytes.
constexpr int kRowHeader = 64;

// sum[i] += dot of the 4 bytes of x (unsigned, the same for all) with the 4 bytes w[i] (signed).
QUIRE_INLINE ivec dot4(ivec sum, uint32_t x, uvec w) {
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
#elif defined(__AVX512BW__)
    const __m512i even = _mm512_set1_epi32(x & 0x00ff00ff), odd = _mm512_set1_epi32((x >> 8) & 0x00ff00ff);
    const __m512i w_even = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)w, 8), 8);
    const __m512i w_odd = _mm512_srai_epi16((__m512i)w, 8);
    return sum + (ivec)_mm512_madd_epi16(even, w_even) + (ivec)_mm512_madd_epi16(odd, w_odd);
#elif defined(__AVX2__)
    const __m256i even = _mm256_set1_epi32(x & 0x00ff00ff), odd = _mm256_set1_epi32((x >> 8) & 0x00ff00ff);
    const __m256i w_even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8);
    const __m256i w_odd = _mm256_srai_epi16((__m256i)w, 8);
    return sum + (ivec)_mm256_madd_epi16(even, w_even) + (ivec)_mm256_madd_epi16(odd, w_odd);
#else
    for (int j = 0; j < 4; ++j) {
        const int32_t byte = (x >> (8 * j)) & 0xff;
        sum += (((ivec)w << (24 - 8 * j)) >> 24) * byte;
    }
    return sum;
#endif
}

// The integer sums [rows, 32] in `sums` -> products.
QUIRE_INLINE void scale_int8(const PanelTile& tile, int rows, float* sums) {
    const char* const scales = tile.panel + tile.inputs / 4 * kLineBytes;
    for (int r = 0; r < rows; ++r) {
        const vec row_scale = broadcast(*reinterpret_cast<const float*>(tile.input + r * tile.input_stride));
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
            float* const to = sums + r * kPanelOutputs + c * kVecLanes;
            const vec scale = (vec)load_bits(scales + c * kVecLanes * 4);
            const ivec offset = (ivec)load_bits(scales + kLineBytes + c * kVecLanes * 4) << 7;
            store(to, to_floats((ivec)load(to) - offset) * (scale * row_scale));
        }
    }
}

template <int R>
void multiply_int8(const PanelTile& tile, float* sums) {
    ivec sum[R][kColumns] = {};
    const char* line = tile.panel;
    const char* ahead = tile.prefetch;
    for (int64_t i = 0; i < tile.inputs; i += 4, line += kLineBytes, ahead += tile.prefetch_step) {
        prefetch(ahead, tile.prefetch_step);
        uvec weight[kColumns];
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) weight[c] = load_bits(line + c * kVecLanes * 4);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            uint32_t x;
            memcpy(&x, tile.input + r * tile.input_stride + kRowHeader + i, sizeof x);
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c) sum[r][c] = dot4(sum[r][c], x, weight[c]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) store(sums + r * kPanelOutputs + c * kVecLanes, (vec)sum[r][c]);
    }
    scale_int8(tile, R, sums);
}

#if defined(__AVX512BF16__)

// bfloat16 x bfloat16: inputs are rounded as well, since the dot products take both sides so. An output is one chain of
// dot products of two, over the inputs in order.

// sum[i] += the two bfloat16 of x (the same for all) times the two of w[i].
QUIRE_INLINE vec dot2(vec sum, uint32_t x, uvec w) {
#if defined(QUIRE_EMULATE_AVX512_BF16)  // in tests, on machines without the instruction
    const uvec both = x - uvec{};
    return fma((vec)(both & 0xffff0000u), (vec)(w & 0xffff0000u), fma((vec)(both << 16), (vec)(w << 16), sum));
#else
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)w);
#endif
}

template <int R>
void multiply_bfloat16(const PanelTile& tile, float* sums) {
    vec sum[R][kColumns] = {};
    const char* line = tile.panel;
    const char* ahead = tile.prefetch;
    for (int64_t i = 0; i < tile.inputs; i += 2, line += kLineBytes, ahead += tile.prefetch_step) {
        prefetch(ahead, tile.prefetch_step);
        uvec weight[kColumns];
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) weight[c] = load_bits(line + c * kVecLanes * 4);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            uint32_t x;
            memcpy(&x, tile.input + r * tile.input_stride + 2 * i, sizeof x);
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c) sum[r][c] = dot2(sum[r][c], x, weight[c]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) store(sums + r * kPanelOutputs + c * kVecLanes, sum[r][c]);
    }
}

int64_t bfloat16_bytes(int64_t padded_inputs) { return padded_inputs * 2; }

// Rounds to nearest, ties to even.
void narrow_row(const float* row, int64_t inputs, int64_t padded_inputs, char* prepared) {
    int64_t i = 0;
    for (; i + kVecLanes <= inputs; i += kVecLanes) {
        const uvec bits = (uvec)load(row + i);
        const uvec rounded = bits + 0x7fffu + (bits >> 16 & 1u);
        // A nan stays one, whatever its lower half.
        const uvec narrowed = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(prepared + 2 * i),
                            _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)(narrowed >> 16)));
    }
    for (; i < inputs; ++i) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        const uint16_t narrowed = (is_nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        memcpy(prepared + 2 * i, &narrowed, sizeof narrowed);
    }
    memset(prepared + 2 * inputs, 0, 2 * (padded_inputs - inputs));
}

#endif

template <int R>
void multiply_int8_weight_only(const PanelTile& tile, float* sums) {
    multiply<Int8WeightOnly, R>(tile, sums);
    const float* const scales = reinterpret_cast<const float*>(tile.panel + tile.inputs / 4 * kLineBytes);
    for (int r = 0; r < R; ++r) {
        float* const row = sums + r * kPanelOutputs;
        for (int i = 0; i < kPanelOutputs; i += kVecLanes) store(row + i, load(row + i) * load(scales + i));
    }
}

// The function for exactly R rows, from a table.
template <template <int> class Multiply>
void product(const PanelTile& tile, int rows, float* sums) {
    using Function = void (*)(const PanelTile&, float*);
    static constexpr Function functions[] = {
        Multiply<1>::run,
#if defined(__AVX2__)
        Multiply<2>::run,  Multiply<3>::run,
#endif
#if defined(__AVX512F__)
        Multiply<4>::run,  Multiply<5>::run,  Multiply<6>::run,
        Multiply<7>::run,  Multiply<8>::run,  Multiply<9>::run,
        Multiply<10>::run, Multiply<11>::run, Multiply<12>::run,
#endif
    };
    static_assert(sizeof functions / sizeof functions[0] == kTileRows);
    functions[rows - 1](tile, sums);
}

template <int R>
struct Float32Rows {
    static void run(const PanelTile& tile, float* sums) { multiply<Float32, R>(tile, sums); }
};
template <int R>
struct BFloat16Rows {
    static void run(const PanelTile& tile, float* sums) {
#if defined(__AVX512BF16__)
        multiply_bfloat16<R>(tile, sums);
#else
        multiply<BFloat16, R>(tile, sums);
#endif
    }
};
template <int R>
struct Int8Rows {
    static void run(const PanelTile& tile, float* sums) { multiply_int8<R>(tile, sums); }
};
template <int R>
struct Int8WeightOnlyRows {
    static void run(const PanelTile& tile, float* sums) { multiply_int8_weight_only<R>(tile, sums); }
};
template <int R>
struct Int4Rows {
    static void run(const PanelTile& tile, float* sums) { multiply_int4<R>(tile, sums); }
};

int64_t float_bytes(int64_t padded_inputs) { return padded_inputs * 4; }

int64_t int8_bytes(int64_t padded_inputs) { return kRowHeader + padded_inputs; }

// Round to nearest, ties to even: adding 1.5 * 2**23 leaves the integer in the low bits.
QUIRE_INLINE ivec round_to_int(vec v) {
    const vec magic = broadcast(12582912.0f);
    return (ivec)(v + magic) - (ivec)magic;
}

// The scale is the largest magnitude / 127. A row with nan or infinity becomes nan as a whole, by its scale.
void quantise_row(const float* row, int64_t inputs, int64_t padded_inputs, char* prepared) {
    vec peaks = {};
    vec poison = {};
    int64_t i = 0;
    for (; i + kVecLanes <= inputs; i += kVecLanes) {
        const vec x = load(row + i);
        peaks = max((vec)((uvec)x & 0x7fffffffu), peaks);
        poison = poison + x * 0.0f;
    }
    float peak = max_lanes(peaks)[0], bad = sum_lanes(poison)[0];
    for (int64_t j = i; j < inputs; ++j) {
        const float magnitude = __builtin_fabsf(row[j]);
        if (magnitude > peak) peak = magnitude;
        bad += row[j] * 0.0f;
    }
    const float scale = peak / 127.0f + bad;
    const float inverse = peak > 0.0f && bad == 0.0f ? 127.0f / peak : 0.0f;
    memcpy(prepared, &scale, sizeof scale);
    uint8_t* const to = reinterpret_cast<uint8_t*>(prepared) + kRowHeader;
    const vec factor = broadcast(inverse);
    for (i = 0; i + kVecLanes <= inputs; i += kVecLanes) {
        const ivec q = round_to_int(bad == 0.0f ? load(row + i) * factor : vec{}) + 128;
#if defined(__AVX512F__)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)q));
#else
        for (int lane = 0; lane < kVecLanes; ++lane) to[i + lane] = static_cast<uint8_t>(q[lane]);
#endif
    }
    for (; i < inputs; ++i) {
        const vec one = broadcast(bad == 0.0f ? row[i] * inverse : 0.0f);
        to[i] = static_cast<uint8_t>(round_to_int(one)[0] + 128);
    }
    memset(to + inputs, 128, padded_inputs - inputs);
}

QUIRE_INLINE vec silu(vec x) {
    // Beyond 88 the exponential would overflow; x / e**88 is next to nothing already.
    const vec exponent = x < -88.0f ? broadcast(88.0f) : -x;
    return x / (exp(exponent) + 1.0f);
}

void finish(const float* sums, int rows, const TileOutput& to) {
    constexpr int kHalf = kPanelOutputs / 2;
    float biased[kPanelOutputs];
    for (int r = 0; r < rows; ++r) {
        const float* from = sums + r * kPanelOutputs;
        float* const output = to.output + r * to.stride;
        if (to.bias) {
            for (int i = 0; i < kPanelOutputs; ++i) biased[i] = from[i] + (i < to.columns ? to.bias[i] : 0.0f);
            from = biased;
        }
        if (to.epilogue == QUIRE_EPILOGUE_SILU_MUL) {
            float gated[kHalf];
            for (int i = 0; i < kHalf; i += kVecLanes) store(gated + i, silu(load(from + i)) * load(from + kHalf + i));
            memcpy(output, gated, sizeof gated);
        } else if (to.epilogue == QUIRE_EPILOGUE_ADD) {
            int i = 0;
            for (; i + kVecLanes <= to.columns; i += kVecLanes) store(output + i, load(output + i) + load(from + i));
            for (; i < to.columns; ++i) output[i] += from[i];
        } else {
            memcpy(output, from, to.columns * sizeof(float));
        }
    }
}

#if defined(__AMX_TILE__)
#include "linear_amx.inl"
#endif

}  // namespace

extern const LinearKernels kLinearKernels[5];
const LinearKernels kLinearKernels[5] = {
    {kTileRows, true, float_bytes, nullptr, product<Float32Rows>, finish},
#if defined(__AMX_TILE__)
    {2 * amx::kTileRowsMax, false, bfloat16_bytes, narrow_row, product_bfloat16_tiles, finish},
    {2 * amx::kTileRowsMax, false, int8_bytes, quantise_row, product_int8_tiles, finish},
#elif defined(__AVX512BF16__)
    {kTileRows, false, bfloat16_bytes, narrow_row, product<BFloat16Rows>, finish},
#else
    {kTileRows, true, float_bytes, nullptr, product<BFloat16Rows>, finish},
#endif
#if !defined(__AMX_TILE__)
    {kTileRows, false, int8_bytes, quantise_row, product<Int8Rows>, finish},
#endif
    {kTileRows, true, float_bytes, nullptr, product<Int8WeightOnlyRows>, finish},
    {kTileRows, true, float_bytes, nullptr, product<Int4Rows>, finish},
};

}  // namespace quire::QUIRE_ISA
