// What linear.cpp and the products of each instruction set agree on. Plain data only: see simd.hpp.
#pragma once

#include "packed_weight.hpp"

namespace quire {

// The widest tile of any instruction set.
constexpr int kMaxTileRows = 32;

// Some rows of the input times one panel.
struct PanelTile {
    const char* input;  // rows in the form that `prepare` gave them
    int64_t input_stride;  // bytes
    const char* panel;
    int64_t inputs;  // padded
    // Memory that is wanted next, and how many of its bytes to ask for with each line of the panel: 0, 64 or 128.
    const char* prefetch;
    int64_t prefetch_step;
};

// A finished tile's way into the output.
struct TileOutput {
    float* output;  // of the tile's first row and the panel's first output (with SILU_MUL: the half of it)
    int64_t stride;
    int columns;        // of the panel that exist; all with SILU_MUL
    const float* bias;  // of the panel, or null
    int32_t epilogue;
};

// Products for one format on one instruction set.
struct LinearKernels {
    int max_rows;
    // Whether a prepared row is the float32 row itself, with zeros up to the padded inputs.
    bool takes_floats;
    int64_t (*prepared_bytes)(int64_t padded_inputs);
    // Turns a float32 row into what the product reads; zeros up to the padded inputs. Null where it takes floats.
    void (*prepare)(const float* row, int64_t inputs, int64_t padded_inputs, char* prepared);
    // 1 <= rows <= max_rows. `sums` is room for [rows, 32] floats.
    void (*product)(const PanelTile& tile, int rows, float* sums);
    void (*finish)(const float* sums, int rows, const TileOutput& to);
};

}  // namespace quire
