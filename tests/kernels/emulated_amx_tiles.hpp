// AMX without AMX: the same functions as kernels/native/amx_tiles.hpp, after the pseudocode of TDPBF16PS and TDPBUSD in
// Intel's manual (but for subnormal numbers, which the instruction takes as zero). For tests on machines that lack it.
#pragma once

#include <stdint.h>
#include <string.h>

namespace quire::amx {

constexpr int kTileRowsMax = 16;
constexpr int kTileRowBytes = 64;

struct Tile {
    int rows;
    char data[kTileRowsMax][kTileRowBytes];
};

inline thread_local Tile tiles[8];

inline void configure(int rows) {
    const int first = rows < kTileRowsMax ? rows : kTileRowsMax, second = rows - first;
    const int sizes[8] = {first, first, second, second, first, second, kTileRowsMax, kTileRowsMax};
    for (int i = 0; i < 8; ++i) {
        tiles[i].rows = sizes[i];
        memset(tiles[i].data, 0x7f, sizeof tiles[i].data);  // large, so that what is not set shows
    }
}

inline void release() { configure(0); }

inline void zero(int tile) { memset(tiles[tile].data, 0, sizeof tiles[tile].data); }

inline void load(int tile, const char* from, int64_t stride) {
    for (int r = 0; r < tiles[tile].rows; ++r) memcpy(tiles[tile].data[r], from + r * stride, kTileRowBytes);
}

// Rows lie `stride` floats apart.
inline void store(int tile, float* to, int64_t stride) {
    for (int r = 0; r < tiles[tile].rows; ++r) memcpy(to + r * stride, tiles[tile].data[r], kTileRowBytes);
}

inline float widened(const char* row, int i) {
    uint16_t bits;
    memcpy(&bits, row + 2 * i, sizeof bits);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

inline void dot_bfloat16(int sums, int inputs, int weights) {
    for (int m = 0; m < tiles[sums].rows; ++m) {
        float even[16] = {}, odd[16] = {}, sum[16];
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < 16; ++n) {
                const char* const x = tiles[inputs].data[m];
                const char* const w = tiles[weights].data[k];
                even[n] = __builtin_fmaf(widened(x, 2 * k), widened(w, 2 * n), even[n]);
                odd[n] = __builtin_fmaf(widened(x, 2 * k + 1), widened(w, 2 * n + 1), odd[n]);
            }
        }
        memcpy(sum, tiles[sums].data[m], sizeof sum);
        for (int n = 0; n < 16; ++n) sum[n] += even[n] + odd[n];
        memcpy(tiles[sums].data[m], sum, sizeof sum);
    }
}

inline void dot_int8(int sums, int inputs, int weights) {
    for (int m = 0; m < tiles[sums].rows; ++m) {
        int32_t sum[16];
        memcpy(sum, tiles[sums].data[m], sizeof sum);
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < 16; ++n) {
                for (int j = 0; j < 4; ++j) {
                    const uint8_t x = static_cast<uint8_t>(tiles[inputs].data[m][4 * k + j]);
                    const int8_t w = static_cast<int8_t>(tiles[weights].data[k][4 * n + j]);
                    sum[n] += x * w;
                }
            }
        }
        memcpy(tiles[sums].data[m], sum, sizeof sum);
    }
}

inline void zero_sums(bool two) {
    for (int tile = 0; tile < (two ? 4 : 2); ++tile) zero(tile);
}

inline void load_weights(const char* line) {
    load(6, line, 2 * kTileRowBytes);
    load(7, line + kTileRowBytes, 2 * kTileRowBytes);
}

inline void load_first_inputs(const char* rows, int64_t stride) { load(4, rows, stride); }
inline void load_second_inputs(const char* rows, int64_t stride) { load(5, rows, stride); }

struct BFloat16Dots {
    static void first() {
        dot_bfloat16(0, 4, 6);
        dot_bfloat16(1, 4, 7);
    }
    static void second() {
        dot_bfloat16(2, 5, 6);
        dot_bfloat16(3, 5, 7);
    }
};

struct Int8Dots {
    static void first() {
        dot_int8(0, 4, 6);
        dot_int8(1, 4, 7);
    }
    static void second() {
        dot_int8(2, 5, 6);
        dot_int8(3, 5, 7);
    }
};

inline void store_sums(float* sums, bool two) {
    constexpr int kOutputs = 2 * kTileRowBytes / 4;
    for (int tile = 0; tile < (two ? 4 : 2); ++tile) {
        store(tile, sums + tile / 2 * kTileRowsMax * kOutputs + tile % 2 * kOutputs / 2, kOutputs);
    }
}

inline bool is_available() { return true; }

}  // namespace quire::amx
