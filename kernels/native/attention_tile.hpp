// What the driver (attention_plan.cpp) and the kernels of each instruction set agree on. Plain data and static
// functions only: see simd.hpp.
#pragma once

#include "quire_kernels.h"

namespace quire {

// The order of every sum over the context is fixed by these two and by absolute positions alone, which is what
// makes a row's bits independent of batch, threads and chunking. Keys are met in tiles with an online softmax; a
// partition of tiles starts afresh, and partitions are folded in order. So threads may share one long context.
// To change either is to change NUMERICS_VERSION in ../backend.py.
constexpr int kTileKeys = 64;
constexpr int kPartitionKeys = 256;

// Rows of float scratch are padded to the widest vector, so that kernels need no tails there.
constexpr int kLanes = 16;

static constexpr int64_t padded(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

// Consecutive queries of one sequence, for all query heads of one KV head: its rows. Row i is query
// first_query + i / group, head kv_head * group + i % group. They share every key and value that is read.
struct QueryTile {
    int32_t sequence;
    int32_t kv_head;
    int32_t first_query;  // within the sequence's new tokens
    int32_t num_queries;
};

// The online softmax of some rows: attention so far is sum / total, scores were taken relative to highest.
// total == 0: no key yet.
struct RowState {
    float* sum;      // [rows, padded head_dim]
    float* highest;  // [rows]
    float* total;    // [rows]
};

// Whole cache lines, so that threads do not share one.
static constexpr int64_t row_state_floats(int64_t rows, int64_t head_dim) {
    return rows * padded(head_dim) + 2 * ((rows + kLanes - 1) / kLanes * kLanes);
}

static inline RowState row_state(float* memory, int64_t rows, int64_t head_dim) {
    float* const highest = memory + rows * padded(head_dim);
    return {memory, highest, highest + (rows + kLanes - 1) / kLanes * kLanes};
}

// One thread's working memory for tiles of up to `rows` rows.
struct Scratch {
    float* queries;  // [rows, padded head_dim], scaled
    float* scores;   // [rows, kTileKeys]
    float* keys;     // [padded head_dim, kTileKeys]: transposed, a vector holds one element of several keys
    float* values;   // [kTileKeys, padded head_dim]
    RowState partition;
    RowState state;
};

static constexpr int64_t scratch_floats(int64_t rows, int64_t head_dim) {
    return rows * (padded(head_dim) + kTileKeys) + 2 * kTileKeys * padded(head_dim) +
           2 * row_state_floats(rows, head_dim);
}

static inline Scratch scratch_in(float* memory, int64_t rows, int64_t head_dim) {
    Scratch scratch;
    scratch.queries = memory;
    scratch.scores = scratch.queries + rows * padded(head_dim);
    scratch.keys = scratch.scores + rows * kTileKeys;
    scratch.values = scratch.keys + kTileKeys * padded(head_dim);
    float* const states = scratch.values + kTileKeys * padded(head_dim);
    scratch.partition = row_state(states, rows, head_dim);
    scratch.state = row_state(states + row_state_floats(rows, head_dim), rows, head_dim);
    return scratch;
}

}  // namespace quire
