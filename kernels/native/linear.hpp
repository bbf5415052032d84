// Products with packed weights, for the step and for the C ABI.
#pragma once

#include "linear_kernels.hpp"

namespace quire {

// Rows in the form that a format's product reads.
struct PreparedRows {
    const char* data;
    int64_t stride;  // bytes
    int64_t count;
};

// Room that `prepare_rows` needs. 0 where rows are read as they lie.
int64_t prepared_bytes(int32_t format, int64_t inputs, int64_t rows);

// Turns float32 rows [rows, inputs] into what products with `format` read; `room` holds prepared_bytes(). Where that is 0,
// the result refers to `x` itself.
PreparedRows prepare_rows(int32_t format, const float* x, int64_t x_stride, int64_t rows, int64_t inputs, char* room);

// output = product (or as the epilogue says); the stride counts elements. Spreads over the threads.
void linear(const quire_packed_matrix& weight, const PreparedRows& x, float* output, int64_t output_stride,
            int32_t epilogue);

}  // namespace quire
