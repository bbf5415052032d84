// How a weight matrix [outputs, inputs] lies in memory once it is packed. Plain data and constants only: see simd.hpp.
//
// Outputs stand in panels of 32. A panel is a stream of lines of 128 bytes: a line holds, for each of the 32 outputs,
// 4 bytes of consecutive inputs: 1 float32, 2 bfloat16, 4 int8 or 8 int4. So one pass over a panel reads memory in order,
// every instruction set finds its operands side by side (VNNI and bfloat16 dot products want exactly these 4 bytes, AMX
// exactly these rows), and a sum over the inputs has one order on all of them. Missing outputs and inputs are zeros.
//
//   float32, bfloat16   lines
//   int8                lines, then 32 scales (float32), then 32 sums of the output's integers (int32)
//   int4                for every 64 inputs: a line of 2 x 32 scales (bfloat16: inputs 0-31, inputs 32-63), then 8 lines
//
// int4 holds q + 8 in a nibble, input 8 i + j in bits 4 j of line i; its value is scale * q, q in [-8, 7].
#pragma once

#include <stdint.h>

#include "quire_linear.h"

namespace quire {

constexpr int kPanelOutputs = 32;
constexpr int kLineBytes = 4 * kPanelOutputs;
constexpr int kGroupInputs = 32;  // that share a scale, in int4
constexpr int kRecordInputs = 2 * kGroupInputs;
constexpr int kRecordLines = 1 + kRecordInputs / 8;

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Inputs that a line holds of each output.
static constexpr int inputs_per_line(int32_t format) {
    return format == QUIRE_PACKED_FLOAT32 ? 1 : format == QUIRE_PACKED_BFLOAT16 ? 2 : format == QUIRE_PACKED_INT4 ? 8 : 4;
}

// Inputs are filled up with zeros to a multiple of this: whole AMX tiles (16 lines), whole int4 records.
static constexpr int input_multiple(int32_t format) {
    return format == QUIRE_PACKED_FLOAT32 ? 1 : format == QUIRE_PACKED_BFLOAT16 ? 32 : 64;
}

static constexpr int64_t padded_inputs(int32_t format, int64_t inputs) {
    return ceil_div(inputs, input_multiple(format)) * input_multiple(format);
}

// Bytes of a panel up to what follows its lines.
static constexpr int64_t panel_line_bytes(int32_t format, int64_t inputs) {
    const int64_t padded = padded_inputs(format, inputs);
    if (format == QUIRE_PACKED_INT4) return padded / kRecordInputs * kRecordLines * kLineBytes;
    return padded / inputs_per_line(format) * kLineBytes;
}

static constexpr int64_t panel_bytes(int32_t format, int64_t inputs) {
    const bool scaled = format == QUIRE_PACKED_INT8 || format == QUIRE_PACKED_INT8_WEIGHT_ONLY;
    return panel_line_bytes(format, inputs) + (scaled ? 2 * kLineBytes : 0);
}

}  // namespace quire
