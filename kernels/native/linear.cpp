// Products with packed weights: which thread computes which panels, and in which order memory is met.
#include "linear.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "error.hpp"

namespace quire {
namespace {

// Multiply-adds below which waking the threads costs more than they save.
constexpr int64_t kParallelWork = 200'000;

// Rows that stay in the L2 cache while panels pass by.
constexpr int64_t kRowsBytes = 384 << 10;

// With one tile of rows the product waits for memory and needs all it can get ahead; with two, each asks for half.
int64_t prefetch_step(int64_t tile, int64_t tiles) {
    if (tiles == 1) return kLineBytes;
    return tile < 2 ? kLineBytes / 2 : 0;
}

class Product {
public:
    Product(const quire_packed_matrix& weight, const PreparedRows& x, float* output, int64_t output_stride,
            int32_t epilogue)
        : kernels_(linear_kernels(weight.format)), weight_(weight), x_(x), output_(output),
          output_stride_(output_stride), epilogue_(epilogue), inputs_(padded_inputs(weight.format, weight.inputs)),
          panel_bytes_(panel_bytes(weight.format, weight.inputs)) {}

    void run() const {
        // Even blocks of rows, of whole tiles.
        const int64_t fit = std::max<int64_t>(1, kRowsBytes / std::max<int64_t>(x_.stride, 64) / kernels_.max_rows);
        const int64_t blocks = ceil_div(x_.count, fit * kernels_.max_rows);
        const int64_t panels = ceil_div(weight_.outputs, kPanelOutputs);
        const bool parallel = x_.count * weight_.outputs * inputs_ >= kParallelWork;
        for_each_item(panels * blocks, parallel, [&](int64_t item) {
            const int64_t block = item / panels;
            run_panel(item % panels, x_.count * block / blocks, x_.count * (block + 1) / blocks);
        });
    }

private:
    void run_panel(int64_t panel, int64_t first_row, int64_t end_row) const {
        alignas(64) float sums[kMaxTileRows * kPanelOutputs];
        const char* const data = static_cast<const char*>(weight_.data) + panel * panel_bytes_;
        const int64_t tiles = ceil_div(end_row - first_row, kernels_.max_rows);
        const int64_t rows = end_row - first_row;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t row = first_row + rows * tile / tiles;
            const int count = static_cast<int>(first_row + rows * (tile + 1) / tiles - row);
            // The next panel lies behind this one. Two tiles share the asking for it.
            const char* const ahead = data + panel_bytes_ + (tile == 1 ? panel_bytes_ / 2 : 0);
            kernels_.product({x_.data + row * x_.stride, x_.stride, data, inputs_, ahead, prefetch_step(tile, tiles)},
                             count, sums);
            kernels_.finish(sums, count, output_of(panel, row));
        }
    }

    TileOutput output_of(int64_t panel, int64_t row) const {
        const int64_t first = panel * kPanelOutputs;
        const int64_t column = epilogue_ == QUIRE_EPILOGUE_SILU_MUL ? first / 2 : first;
        return {output_ + row * output_stride_ + column, output_stride_,
                static_cast<int>(std::min<int64_t>(kPanelOutputs, weight_.outputs - first)),
                weight_.bias ? weight_.bias + first : nullptr, epilogue_};
    }

    const LinearKernels& kernels_;
    const quire_packed_matrix& weight_;
    const PreparedRows& x_;
    float* const output_;
    const int64_t output_stride_;
    const int32_t epilogue_;
    const int64_t inputs_, panel_bytes_;
};

}  // namespace

float* row_scratch(int64_t size) {
    static thread_local std::vector<float> row;
    if (static_cast<int64_t>(row.size()) < size) row.resize(size);
    return row.data();
}

int64_t prepared_stride(int32_t format, int64_t inputs) {
    return (ceil_div(linear_kernels(format).prepared_bytes(padded_inputs(format, inputs)), 64) | 1) * 64;
}

bool reads_plain_rows(int32_t format, int64_t inputs) {
    return linear_kernels(format).takes_floats && padded_inputs(format, inputs) == inputs;
}

void linear(const quire_packed_matrix& weight, const PreparedRows& x, float* output, int64_t output_stride,
            int32_t epilogue) {
    if (x.count > 0) Product(weight, x, output, output_stride, epilogue).run();
}

}  // namespace quire

int32_t quire_linear(const quire_packed_matrix* weight, const float* x, int64_t x_stride, int64_t rows, float* output,
                     int64_t output_stride, int32_t epilogue, char* error, size_t error_size) {
    const quire::ErrorBuffer message{error, error_size};
    if (weight->format < 0 || weight->format > QUIRE_PACKED_INT4) return message.fail("format %d does not exist", weight->format);
    if (epilogue == QUIRE_EPILOGUE_SILU_MUL && weight->outputs % quire::kPanelOutputs) {
        return message.fail("outputs must be a multiple of %d with SILU_MUL, not %lld", quire::kPanelOutputs,
                            static_cast<long long>(weight->outputs));
    }
    quire::PreparedRows prepared = {reinterpret_cast<const char*>(x), x_stride * 4, rows};
    std::unique_ptr<char, decltype(&std::free)> room(nullptr, std::free);
    if (!quire::reads_plain_rows(weight->format, weight->inputs)) {
        const int64_t bytes = rows * quire::prepared_stride(weight->format, weight->inputs);
        room.reset(static_cast<char*>(std::aligned_alloc(64, std::max<int64_t>(64, bytes))));
        if (!room) return message.fail("x has %lld rows, for which there is no memory", static_cast<long long>(rows));
        prepared = quire::prepare_rows(weight->format, weight->inputs, rows, room.get(), [&](int64_t row, float* to) {
            std::memcpy(to, x + row * x_stride, weight->inputs * sizeof(float));
        });
    }
    quire::linear(*weight, prepared, output, output_stride, epilogue);
    return 0;
}
