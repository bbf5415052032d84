// Paged attention for one instruction set: each isa_*.cpp defines QUIRE_ISA and includes this file.
//
// A row's result is the same sequence of roundings however rows are grouped: scores are dot products whose lanes
// and their sum have one order; a masked key is never added (not even as 0 times its value, which may be nan);
// the shapes of the register blocks below change only what is computed side by side.
#include "attention_tile.hpp"
#include "simd.hpp"
#include "vector_exp.hpp"

#define QUIRE_INLINE static inline __attribute__((always_inline))

namespace quire::QUIRE_ISA {
namespace {

constexpr float kNothing = -__builtin_inff();

// Keys [first, last) of a tile, counted from the tile's start.
struct KeyRange {
    int first, last;
};

// The shape of one tile's work, common to its steps.
struct TileWork {
    int rows;
    int group;       // query heads of a KV head: rows that share a position
    int vectors;     // of a padded row
    int64_t stride;  // floats between rows of scratch
    int64_t tile_start;
    int64_t first_position;
    int64_t sliding_window;

    // What the row sees of the tile, by position alone.
    KeyRange range(int row) const {
        const int64_t position = first_position + row / group;
        int64_t last = position + 1 - tile_start;
        int64_t first = sliding_window ? position + 1 - sliding_window - tile_start : 0;
        if (last > kTileKeys) last = kTileKeys;
        if (first < 0) first = 0;
        if (first > kTileKeys) first = kTileKeys;  // the tile ends before the window starts
        return {static_cast<int>(first), static_cast<int>(last < first ? first : last)};
    }
};

// Scores of R rows with kVecLanes / R keys: as many accumulators as a vector has lanes, so that one transposing sum
// ends them all.
template <class T, int R>
QUIRE_INLINE void score_block(const float* queries, int64_t stride, int vectors, const T* const* keys, float* scores) {
    constexpr int N = kVecLanes / R;
    vec sums[kVecLanes] = {};
    for (int v = 0; v < vectors; ++v) {
        vec q[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) q[r] = load(queries + r * stride + v * kVecLanes);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const vec k = load(keys[n] + v * kVecLanes);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sums[r * N + n] = fma(q[r], k, sums[r * N + n]);
        }
    }
    float dots[kVecLanes];
    store(dots, sum_each(sums));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) memcpy(scores + r * kTileKeys, dots + r * N, N * sizeof(float));
}

// Scores of R rows with every key that any of them sees; whole register blocks, so some are computed for nothing.
template <class T, int R>
QUIRE_INLINE void score_rows(const TileWork& work, const float* queries, int row, const T* const* keys, float* scores) {
    constexpr int N = kVecLanes / R;
    // Positions rise with the row: the first row's range starts first, the last row's ends last.
    const int first = work.range(row).first / N * N, last = work.range(row + R - 1).last;
    for (int key = first; key < last; key += N) {
        score_block<T, R>(queries + row * work.stride, work.stride, work.vectors, keys + key,
                          scores + row * kTileKeys + key);
    }
}

template <class T>
void score_tile(const TileWork& work, const float* queries, const T* const* keys, float* scores) {
    int row = 0;
    if constexpr (kVecLanes >= 16) {
        for (; row + 4 <= work.rows; row += 4) score_rows<T, 4>(work, queries, row, keys, scores);
    }
    if constexpr (kVecLanes >= 8) {
        for (; row + 2 <= work.rows; row += 2) score_rows<T, 2>(work, queries, row, keys, scores);
    }
    for (; row < work.rows; ++row) score_rows<T, 1>(work, queries, row, keys, scores);
}

// Turns a row's scores into weights relative to the highest score so far, and its state to that scale.
void weigh_row(KeyRange range, float* scores, int64_t vectors, float* sum, float* highest, float* total) {
    for (int key = 0; key < range.first; ++key) scores[key] = kNothing;
    for (int key = range.last; key < kTileKeys; ++key) scores[key] = kNothing;
    constexpr int kVectors = kTileKeys / kVecLanes;
    vec s[kVectors];
    vec peak = broadcast(*highest);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
        s[v] = load(scores + v * kVecLanes);
        peak = max(s[v], peak);
    }
    peak = max_lanes(peak);
    vec weights = {};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
        const vec w = exp(s[v] - peak);
        store(scores + v * kVecLanes, w);
        weights = weights + w;
    }
    const float new_highest = peak[0];
    const float tile_total = sum_lanes(weights)[0];
    if (*total == 0.0f) {
        *total = tile_total;
    } else if (new_highest == *highest) {
        *total += tile_total;
    } else {
        const vec decay = exp(broadcast(*highest) - peak);
        for (int64_t v = 0; v < vectors; ++v) store(sum + v * kVecLanes, load(sum + v * kVecLanes) * decay);
        *total = *total * decay[0] + tile_total;
    }
    *highest = new_highest;
}

// sum += weight * value over keys in order, for R rows and C vectors of their columns.
template <class T, int R, int C>
QUIRE_INLINE void add_block(const float* weights, const T* const* values, int64_t column, KeyRange range, float* sum,
                            int64_t stride) {
    vec sums[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sums[r][c] = load(sum + r * stride + column + c * kVecLanes);
    }
    for (int key = range.first; key < range.last; ++key) {
        vec value[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) value[c] = load(values[key] + column + c * kVecLanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const vec weight = broadcast(weights[r * kTileKeys + key]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sums[r][c] = fma(weight, value[c], sums[r][c]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) store(sum + r * stride + column + c * kVecLanes, sums[r][c]);
    }
}

template <class T, int R>
QUIRE_INLINE void add_rows(const TileWork& work, const float* weights, const T* const* values, KeyRange range,
                           float* sum) {
    int v = 0;
    // 16 registers hold 4 x 2 sums; 32 hold 4 x 4.
    if constexpr (kVecLanes >= 16 || R <= 2) {
        for (; v + 4 <= work.vectors; v += 4) {
            add_block<T, R, 4>(weights, values, v * kVecLanes, range, sum, work.stride);
        }
    }
    for (; v + 2 <= work.vectors; v += 2) {
        add_block<T, R, 2>(weights, values, v * kVecLanes, range, sum, work.stride);
    }
    if (v < work.vectors) add_block<T, R, 1>(weights, values, v * kVecLanes, range, sum, work.stride);
}

// Adds the weighted values of rows that all see the same keys.
template <class T>
void add_values(const TileWork& work, int row, int count, const float* weights, const T* const* values,
                KeyRange range, float* sum) {
    const int end = row + count;
    for (; row + 4 <= end; row += 4) {
        add_rows<T, 4>(work, weights + row * kTileKeys, values, range, sum + row * work.stride);
    }
    for (; row + 2 <= end; row += 2) {
        add_rows<T, 2>(work, weights + row * kTileKeys, values, range, sum + row * work.stride);
    }
    if (row < end) add_rows<T, 1>(work, weights + row * kTileKeys, values, range, sum + row * work.stride);
}

template <class T>
void attend_tile(const TileWork& work, const float* queries, const T* const* keys, const T* const* values,
                 float* scores, const RowState& state) {
    score_tile<T>(work, queries, keys, scores);
    for (int row = 0; row < work.rows;) {
        const KeyRange range = work.range(row);
        int count = 0;
        for (; row + count < work.rows; ++count) {
            const KeyRange next = work.range(row + count);
            if (next.first != range.first || next.last != range.last) break;
            if (range.first == range.last) continue;
            const int r = row + count;
            weigh_row(range, scores + r * kTileKeys, work.vectors, state.sum + r * work.stride, state.highest + r,
                      state.total + r);
        }
        if (range.first < range.last) add_values<T>(work, row, count, scores, values, range, state.sum);
        row += count;
    }
}

// Where each key of a tile lies. Keys outside `range` point at its ends: register blocks may read them.
template <class T>
void find_keys(const quire_attention_args& args, const QueryTile& tile, int64_t tile_start, KeyRange range,
               const T** keys, const T** values) {
    const T* const key_cache = static_cast<const T*>(args.key_cache) + tile.kv_head * args.key_head_stride;
    const T* const value_cache = static_cast<const T*>(args.value_cache) + tile.kv_head * args.value_head_stride;
    const int32_t* const table = args.block_tables + tile.sequence * args.block_table_stride;
    int64_t column = (tile_start + range.first) / args.block_size;
    int64_t offset = (tile_start + range.first) % args.block_size;
    for (int key = range.first; key < range.last; ++column, offset = 0) {
        const int64_t block = table[column];
        const T* k = key_cache + block * args.key_block_stride + offset * args.head_dim;
        const T* v = value_cache + block * args.value_block_stride + offset * args.head_dim;
        for (; offset < args.block_size && key < range.last; ++offset, ++key) {
            keys[key] = k;
            values[key] = v;
            k += args.head_dim;
            v += args.head_dim;
        }
    }
    for (int key = 0; key < range.first; ++key) {
        keys[key] = keys[range.first];
        values[key] = values[range.first];
    }
    for (int key = range.last; key < kTileKeys; ++key) {
        keys[key] = keys[range.last - 1];
        values[key] = values[range.last - 1];
    }
}

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void from_float(float x, float* to) { *to = x; }

// To nearest, ties to even; nan stays nan.
inline void from_float(float x, bfloat16* to) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

// Copies of the tile's rows in float32, zeros up to whole vectors; the pointers then lead there.
template <class T>
void widen(int64_t head_dim, int64_t stride, KeyRange range, const T* const* from, float* rows, const float** to) {
    for (int key = range.first; key < range.last; ++key) {
        float* const row = rows + key * stride;
        int64_t i = 0;
        for (; i + kVecLanes <= head_dim; i += kVecLanes) store(row + i, load(from[key] + i));
        for (; i < head_dim; ++i) row[i] = to_float(from[key][i]);
        for (; i < stride; ++i) row[i] = 0.0f;
    }
    for (int key = 0; key < kTileKeys; ++key) {
        const int inside = key < range.first ? range.first : key < range.last ? key : range.last - 1;
        to[key] = rows + inside * stride;
    }
}

template <class T>
void attend(const quire_attention_args& args, const QueryTile& tile, int64_t partition, const Scratch& scratch,
            const RowState& result) {
    const int query_len = args.query_start[tile.sequence + 1] - args.query_start[tile.sequence];
    TileWork work;
    work.group = args.num_heads / args.num_kv_heads;
    work.rows = tile.num_queries * work.group;
    work.vectors = static_cast<int>((args.head_dim + kVecLanes - 1) / kVecLanes);
    work.stride = padded(args.head_dim);
    work.first_position = static_cast<int64_t>(args.context_lens[tile.sequence]) - query_len + tile.first_query;
    work.sliding_window = args.sliding_window;

    for (int row = 0; row < work.rows; ++row) {
        result.highest[row] = kNothing;
        result.total[row] = 0.0f;
    }
    memset(result.sum, 0, sizeof(float) * work.rows * work.stride);

    // Rows of whole vectors are read where they lie. Otherwise, and where several register blocks of rows would
    // each widen the same bfloat16 again, a copy of the tile in float32 serves: the numbers are the same.
    constexpr int kDirectRows = sizeof(T) == sizeof(float) ? INT32_MAX : 8;
    const bool direct = args.head_dim % kVecLanes == 0 && work.rows <= kDirectRows;

    for (int64_t start = partition * kPartitionKeys; start < (partition + 1) * kPartitionKeys; start += kTileKeys) {
        work.tile_start = start;
        const KeyRange range = {work.range(0).first, work.range(work.rows - 1).last};
        if (range.first >= range.last) continue;
        const T* keys[kTileKeys];
        const T* values[kTileKeys];
        find_keys<T>(args, tile, start, range, keys, values);
        if (direct) {
            attend_tile<T>(work, scratch.queries, keys, values, scratch.scores, result);
        } else {
            const float* wide_keys[kTileKeys];
            const float* wide_values[kTileKeys];
            widen<T>(args.head_dim, work.stride, range, keys, scratch.keys, wide_keys);
            widen<T>(args.head_dim, work.stride, range, values, scratch.values, wide_values);
            attend_tile<float>(work, scratch.queries, wide_keys, wide_values, scratch.scores, result);
        }
    }
}

template <class T>
void load_queries(const quire_attention_args& args, const QueryTile& tile, float* queries) {
    const int group = args.num_heads / args.num_kv_heads;
    const int64_t stride = padded(args.head_dim);
    const int64_t first_token = args.query_start[tile.sequence] + tile.first_query;
    for (int64_t row = 0; row < static_cast<int64_t>(tile.num_queries) * group; ++row) {
        const T* const from = static_cast<const T*>(args.query) +
                              (first_token + row / group) * args.query_token_stride +
                              (tile.kv_head * group + row % group) * args.query_head_stride;
        float* const to = queries + row * stride;
        for (int64_t i = 0; i < args.head_dim; ++i) to[i] = to_float(from[i]) * args.scale;
        for (int64_t i = args.head_dim; i < stride; ++i) to[i] = 0.0f;
    }
}

template <class T>
void write(const quire_attention_args& args, const QueryTile& tile, const RowState& state) {
    const int group = args.num_heads / args.num_kv_heads;
    const int64_t stride = padded(args.head_dim);
    const int64_t first_token = args.query_start[tile.sequence] + tile.first_query;
    for (int64_t row = 0; row < static_cast<int64_t>(tile.num_queries) * group; ++row) {
        const int64_t head = tile.kv_head * group + row % group;
        T* const to = static_cast<T*>(args.output) +
                      ((first_token + row / group) * args.num_heads + head) * args.head_dim;
        const float* const from = state.sum + row * stride;
        const float total = state.total[row];
        for (int64_t i = 0; i < args.head_dim; ++i) from_float(from[i] / total, to + i);
    }
}

void fold(int64_t rows, int64_t head_dim, const RowState& next, const RowState& state) {
    const int64_t stride = padded(head_dim);
    for (int64_t row = 0; row < rows; ++row) {
        if (next.total[row] == 0.0f) continue;
        float* const sum = state.sum + row * stride;
        const float* const next_sum = next.sum + row * stride;
        if (state.total[row] == 0.0f) {
            memcpy(sum, next_sum, sizeof(float) * stride);
            state.total[row] = next.total[row];
            state.highest[row] = next.highest[row];
            continue;
        }
        const vec old_highest = broadcast(state.highest[row]), next_highest = broadcast(next.highest[row]);
        const vec highest = max(next_highest, old_highest);
        const vec old_scale = exp(old_highest - highest), next_scale = exp(next_highest - highest);
        for (int64_t i = 0; i < stride; i += kVecLanes) {
            store(sum + i, fma(load(next_sum + i), next_scale, load(sum + i) * old_scale));
        }
        state.total[row] = state.total[row] * old_scale[0] + next.total[row] * next_scale[0];
        state.highest[row] = highest[0];
    }
}

void exp_array(const float* in, float* out, int64_t count) {
    for (int64_t i = 0; i < count; i += kVecLanes) {
        const int64_t lanes = count - i < kVecLanes ? count - i : kVecLanes;
        float buffer[kVecLanes] = {};
        memcpy(buffer, in + i, lanes * sizeof(float));
        store(buffer, exp(load(buffer)));
        memcpy(out + i, buffer, lanes * sizeof(float));
    }
}

template <class T>
constexpr AttentionKernels kKernels = {load_queries<T>, attend<T>, fold, write<T>, exp_array};

}  // namespace

// Indexed by quire_dtype.
extern const AttentionKernels kAttentionKernels[2];
const AttentionKernels kAttentionKernels[2] = {kKernels<float>, kKernels<bfloat16>};

}  // namespace quire::QUIRE_ISA
