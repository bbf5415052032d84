// Packing: weights as a checkpoint has them, row by row, into panels; quantising on the way.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "error.hpp"
#include "linear.hpp"
#include "work_ranges.hpp"

namespace quire {
namespace {

constexpr int kCandidates = 8;

// To nearest, ties to even; nan stays nan.
uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void read_row(int32_t dtype, const void* row, int64_t inputs, float* values) {
    if (dtype == QUIRE_FLOAT32) {
        std::memcpy(values, row, inputs * 4);
        return;
    }
    const uint16_t* const bits = static_cast<const uint16_t*>(row);
    for (int64_t i = 0; i < inputs; ++i) values[i] = widen(bits[i]);
}

// To nearest, ties to even, for magnitudes below 2**22: adding 1.5 * 2**23 leaves no room for a fraction. Unlike
// std::nearbyint, the compiler makes vectors of it.
float round_to_integer(float value) { return (value + 12582912.0f) - 12582912.0f; }

// One output's way into its panel. `line` leads to the output's 4 bytes in the panel's first line.

void pack_float32(const float* values, int64_t padded, char* line) {
    for (int64_t i = 0; i < padded; ++i, line += kLineBytes) std::memcpy(line, values + i, 4);
}

void pack_bfloat16(const float* values, int64_t padded, char* line) {
    for (int64_t i = 0; i < padded; i += 2, line += kLineBytes) {
        const uint16_t pair[2] = {narrow(values[i]), narrow(values[i + 1])};
        std::memcpy(line, pair, 4);
    }
}

// Symmetric: scale = largest magnitude / 127.
void pack_int8(const float* values, int64_t padded, char* line) {
    float peak = 0.0f;
    for (int64_t i = 0; i < padded; ++i) peak = std::max(peak, std::fabs(values[i]));
    const float scale = peak / 127.0f, inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    int32_t sum = 0;
    for (int64_t i = 0; i < padded; i += 4, line += kLineBytes) {
        int8_t bytes[4];
        for (int j = 0; j < 4; ++j) {
            bytes[j] = static_cast<int8_t>(round_to_integer(values[i + j] * inverse));
            sum += bytes[j];
        }
        std::memcpy(line, bytes, 4);
    }
    std::memcpy(line, &scale, 4);
    std::memcpy(line + kLineBytes, &sum, 4);
}

float quantise4(float value, float inverse) {
    const float rounded = round_to_integer(value * inverse);
    const float above = rounded < -8.0f ? -8.0f : rounded;
    return above > 7.0f ? 7.0f : above;
}

// The scale, already rounded to bfloat16, that leaves the least squared error. The value of the largest magnitude goes to -8
// (one more step than 7) or near it: candidates stretch that by up to 20 %.
float best_scale(const float* values) {
    float peak = 0.0f;
    for (int i = 0; i < kGroupInputs; ++i) {
        if (std::fabs(values[i]) > std::fabs(peak)) peak = values[i];
    }
    if (peak == 0.0f) return 0.0f;
    float best = 0.0f, least = INFINITY;
    for (int candidate = 0; candidate < kCandidates; ++candidate) {
        const float scale = widen(narrow(peak / (-8.0f + 0.2f * candidate)));
        const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
        float errors[8] = {};  // sums side by side
        for (int i = 0; i < kGroupInputs; i += 8) {
            for (int j = 0; j < 8; ++j) {
                const float off = values[i + j] - scale * quantise4(values[i + j], inverse);
                errors[j] += off * off;
            }
        }
        const float error = std::accumulate(errors, errors + 8, 0.0f);
        if (error < least) {
            least = error;
            best = scale;
        }
    }
    return best;
}

void pack_int4(const float* values, int64_t padded, int output, char* panel) {
    for (int64_t first = 0; first < padded; first += kRecordInputs, panel += kRecordLines * kLineBytes) {
        for (int group = 0; group < 2; ++group) {
            const float* const from = values + first + group * kGroupInputs;
            const float scale = best_scale(from);
            const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
            const uint16_t bits = narrow(scale);
            std::memcpy(panel + (group * kPanelOutputs + output) * 2, &bits, 2);
            for (int l = 0; l < 4; ++l) {
                uint32_t nibbles = 0;
                for (int j = 0; j < 8; ++j) {
                    nibbles |= static_cast<uint32_t>(quantise4(from[8 * l + j], inverse) + 8.0f) << (4 * j);
                }
                std::memcpy(panel + (1 + 4 * group + l) * kLineBytes + output * 4, &nibbles, 4);
            }
        }
    }
}

void pack_output(int32_t format, const float* values, int64_t padded, int output, char* panel) {
    char* const line = panel + output * 4;
    switch (format) {
        case QUIRE_PACKED_FLOAT32: return pack_float32(values, padded, line);
        case QUIRE_PACKED_BFLOAT16: return pack_bfloat16(values, padded, line);
        case QUIRE_PACKED_INT4: return pack_int4(values, padded, output, panel);
        default: return pack_int8(values, padded, line);
    }
}

void unpack_output(int32_t format, const char* panel, int64_t inputs, int output, float* values) {
    const char* line = panel + output * 4;
    for (int64_t i = 0; i < inputs; ++i) {
        const int64_t l = i / inputs_per_line(format);
        const int64_t j = i % inputs_per_line(format);
        if (format == QUIRE_PACKED_FLOAT32) {
            std::memcpy(values + i, line + l * kLineBytes, 4);
        } else if (format == QUIRE_PACKED_BFLOAT16) {
            uint16_t bits;
            std::memcpy(&bits, line + l * kLineBytes + 2 * j, 2);
            values[i] = widen(bits);
        } else if (format == QUIRE_PACKED_INT4) {
            const char* const record = panel + i / kRecordInputs * kRecordLines * kLineBytes;
            uint16_t bits;
            std::memcpy(&bits, record + (i % kRecordInputs / kGroupInputs * kPanelOutputs + output) * 2, 2);
            uint32_t nibbles;
            std::memcpy(&nibbles, record + (1 + i % kRecordInputs / 8) * kLineBytes + output * 4, 4);
            values[i] = widen(bits) * (static_cast<int>(nibbles >> (4 * j) & 15) - 8);
        } else {
            float scale;
            std::memcpy(&scale, line + padded_inputs(format, inputs) / 4 * kLineBytes, 4);
            values[i] = scale * static_cast<int8_t>(line[l * kLineBytes + j]);
        }
    }
}

bool all_finite(const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

bool exists(int32_t format) { return format >= QUIRE_PACKED_FLOAT32 && format <= QUIRE_PACKED_INT4; }

}  // namespace

void read_packed_row(const quire_packed_matrix& weight, int64_t output, float* values) {
    const int64_t bytes = panel_bytes(weight.format, weight.inputs);
    unpack_output(weight.format, static_cast<const char*>(weight.data) + output / kPanelOutputs * bytes, weight.inputs,
                  static_cast<int>(output % kPanelOutputs), values);
}

}  // namespace quire

using namespace quire;

int64_t quire_packed_bytes(int32_t format, int64_t outputs, int64_t inputs) {
    return exists(format) ? ceil_div(outputs, kPanelOutputs) * panel_bytes(format, inputs) : 0;
}

int32_t quire_pack(int32_t format, int32_t dtype, const uint64_t* rows, int64_t outputs, int64_t inputs, void* packed,
                   char* error, size_t error_size) {
    const ErrorBuffer message{error, error_size};
    if (!exists(format)) return message.fail("format %d does not exist", format);
    if (dtype != QUIRE_FLOAT32 && dtype != QUIRE_BFLOAT16) return message.fail("dtype %d cannot be packed", dtype);
    const int64_t padded = padded_inputs(format, inputs), bytes = panel_bytes(format, inputs);
    const bool quantises = format != QUIRE_PACKED_FLOAT32 && format != QUIRE_PACKED_BFLOAT16;
    std::atomic<int64_t> unfit{-1};  // a row that has no scale
    for_each_item(ceil_div(outputs, kPanelOutputs), true, [&](int64_t panel) {
        char* const to = static_cast<char*>(packed) + panel * bytes;
        std::vector<float> values(padded);
        for (int output = 0; output < kPanelOutputs; ++output) {
            const int64_t row = panel * kPanelOutputs + output;
            const void* const from = row < outputs ? reinterpret_cast<const void*>(rows[row]) : nullptr;
            if (from) read_row(dtype, from, inputs, values.data());
            else std::fill(values.begin(), values.end(), 0.0f);
            if (quantises && !all_finite(values)) unfit = row;
            pack_output(format, values.data(), padded, output, to);
        }
    });
    if (unfit >= 0) return message.fail("weight row %lld holds a value that is not finite", static_cast<long long>(unfit));
    return 0;
}

int32_t quire_unpack(const quire_packed_matrix* weight, float* values, char* error, size_t error_size) {
    if (!exists(weight->format)) return ErrorBuffer{error, error_size}.fail("format %d does not exist", weight->format);
    for_each_item(weight->outputs, true,
                  [&](int64_t row) { read_packed_row(*weight, row, values + row * weight->inputs); });
    return 0;
}
