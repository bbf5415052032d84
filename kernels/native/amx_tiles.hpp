// The eight tile registers of AMX (Intel SDM vol. 1, ch. 18), as the products use them.
//
// A tile is up to 16 rows of 64 bytes. Tiles 0 and 1 hold the sums of the first rows of the input with the panel's left and
// right 16 outputs, 2 and 3 those of further rows; 4 and 5 hold inputs, 6 and 7 weights (16 lines of the panel's halves).
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cpuid.h>

namespace quire::amx {

constexpr int kTileRowsMax = 16;
constexpr int kTileRowBytes = 64;

// What the first 64 bytes of LDTILECFG's operand mean.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles for products of `rows` rows, at most 32. Undone by `release`.
inline void configure(int rows) {
    const uint8_t first = rows < kTileRowsMax ? rows : kTileRowsMax, second = rows - first;
    const uint8_t sizes[8] = {first, first, second, second, first, second, kTileRowsMax, kTileRowsMax};
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = sizes[i];
        config.row_bytes[i] = sizes[i] ? kTileRowBytes : 0;
    }
    _tile_loadconfig(&config);
}

// Tiles that are in use make every switch of threads save 8 KiB.
inline void release() { _tile_release(); }

// The instructions name their tiles by number, hence a function for each use.

inline void zero_sums(bool two) {
    _tile_zero(0);
    _tile_zero(1);
    if (two) {
        _tile_zero(2);
        _tile_zero(3);
    }
}

// 16 lines of a panel.
inline void load_weights(const char* line) {
    _tile_loadd(6, line, 2 * kTileRowBytes);
    _tile_loadd(7, line + kTileRowBytes, 2 * kTileRowBytes);
}

// 64 bytes of up to 16 rows, `stride` bytes apart.
inline void load_first_inputs(const char* rows, int64_t stride) { _tile_loadd(4, rows, stride); }
inline void load_second_inputs(const char* rows, int64_t stride) { _tile_loadd(5, rows, stride); }

// sums += bfloat16 inputs times bfloat16 weights.
struct BFloat16Dots {
    static void first() {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    static void second() {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
};

// sums += unsigned inputs times signed weights, in bytes.
struct Int8Dots {
    static void first() {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
    }
    static void second() {
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
};

// To float32 or int32 [rows, 32].
inline void store_sums(float* sums, bool two) {
    constexpr int kOutputs = 2 * kTileRowBytes / 4;
    _tile_stored(0, sums, 4 * kOutputs);
    _tile_stored(1, sums + kOutputs / 2, 4 * kOutputs);
    if (two) {
        float* const second = sums + kTileRowsMax * kOutputs;
        _tile_stored(2, second, 4 * kOutputs);
        _tile_stored(3, second + kOutputs / 2, 4 * kOutputs);
    }
}

// Whether the processor has AMX for bfloat16 and int8, and Linux lets this process use it (which must be asked for once:
// Documentation/arch/x86/xstate.rst).
inline bool is_available() {
    constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBFloat16 | kTile | kInt8;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace quire::amx
