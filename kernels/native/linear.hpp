// Products with packed weights, for the step and for the C ABI.
#pragma once

#include <cstring>

#include "isa.hpp"
#include "linear_kernels.hpp"
#include "work_ranges.hpp"

namespace quire {

// Elements below which waking the threads costs more than they save, in operators that pass over rows.
constexpr int64_t kParallelElements = 32'768;

// A bfloat16's value.
inline float widen(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// A thread's room for one float32 row.
float* row_scratch(int64_t size);

// Rows in the form that a format's product reads.
struct PreparedRows {
    const char* data;
    int64_t stride;  // bytes
    int64_t count;
};

// Bytes between prepared rows: an odd number of cache lines, since rows a power of two apart would fight for the same ones.
int64_t prepared_stride(int32_t format, int64_t inputs);

// Whether products read float32 rows as they lie, however they got there: nothing has to be prepared then.
bool reads_plain_rows(int32_t format, int64_t inputs);

// Prepares rows of `inputs` float32 values for products with `format`: fill(row, to) writes one of them. `room` holds rows *
// prepared_stride() bytes.
template <class Fill>
PreparedRows prepare_rows(int32_t format, int64_t inputs, int64_t rows, char* room, const Fill& fill) {
    const LinearKernels& kernels = linear_kernels(format);
    const int64_t padded = padded_inputs(format, inputs), stride = prepared_stride(format, inputs);
    for_each_item(rows, rows * inputs >= kParallelElements, [&](int64_t row) {
        char* const prepared = room + row * stride;
        if (kernels.takes_floats) {
            float* const to = reinterpret_cast<float*>(prepared);
            fill(row, to);
            for (int64_t i = inputs; i < padded; ++i) to[i] = 0.0f;
        } else {
            float* const plain = row_scratch(inputs);
            fill(row, plain);
            kernels.prepare(plain, inputs, padded, prepared);
        }
    });
    return {room, stride, rows};
}

// output = product (or as the epilogue says); the stride counts elements. Spreads over the threads.
void linear(const quire_packed_matrix& weight, const PreparedRows& x, float* output, int64_t output_stride,
            int32_t epilogue);

// The values of one output: float32 [inputs].
void read_packed_row(const quire_packed_matrix& weight, int64_t output, float* values);

}  // namespace quire
