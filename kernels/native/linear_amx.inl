// Products on AMX's tiles: included by linear_kernels.inl, in its namespace, for the instruction set that has them.
//
// One instruction multiplies 16 rows of 64 bytes of input with 16 lines of half a panel; the bfloat16 one sums even and
// odd inputs of those lines apart, then adds both to the sums. That order is unlike that of AVX-512's dot products, so
// bfloat16 goes through tiles whatever the number of rows: a row's bits must not depend on it. Integers are exact
// everywhere, and few rows are left to the vectors.

// Lines that one instruction takes, and the bytes of a row of input that go with them.
constexpr int kStepLines = 16;
constexpr int kStepBytes = amx::kTileRowBytes;
static_assert(kLineBytes == 2 * amx::kTileRowBytes, "a line is one row of two tiles");

// sums[rows, 32] = the products, float32 or int32. `input` points behind what stands before a row's values.
template <class Dots>
QUIRE_INLINE void multiply_tiles(const PanelTile& tile, const char* input, int64_t steps, int rows, float* sums) {
    const bool two = rows > amx::kTileRowsMax;
    const char* const second_input = input + amx::kTileRowsMax * tile.input_stride;
    const char* line = tile.panel;
    const char* ahead = tile.prefetch;
    amx::configure(rows);
    amx::zero_sums(two);
    for (int64_t step = 0; step < steps; ++step, line += kStepLines * kLineBytes) {
        for (int i = 0; i < kStepLines; ++i, ahead += tile.prefetch_step) prefetch(ahead, tile.prefetch_step);
        amx::load_weights(line);
        amx::load_first_inputs(input + step * kStepBytes, tile.input_stride);
        Dots::first();
        if (two) {
            amx::load_second_inputs(second_input + step * kStepBytes, tile.input_stride);
            Dots::second();
        }
    }
    amx::store_sums(sums, two);
    amx::release();
}

void product_bfloat16_tiles(const PanelTile& tile, int rows, float* sums) {
    multiply_tiles<amx::BFloat16Dots>(tile, tile.input, tile.inputs / (2 * kStepLines), rows, sums);
}

void product_int8_tiles(const PanelTile& tile, int rows, float* sums) {
    if (rows <= kTileRows) {
        product<Int8Rows>(tile, rows, sums);
        return;
    }
    multiply_tiles<amx::Int8Dots>(tile, tile.input + kRowHeader, tile.inputs / (4 * kStepLines), rows, sums);
    scale_int8(tile, rows, sums);
}
