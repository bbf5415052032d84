// One instruction set's kernels over the paged cache. Plain data: see simd.hpp.
#pragma once

#include "attention_tile.hpp"

namespace quire {

constexpr int kQueryDtypes = 2;  // float32, bfloat16
constexpr int kCacheDtypes = 3;  // and int8

struct PagedKernels {
    // Scaled queries of the tile in float32. Indexed by the queries' quire_dtype.
    void (*load_queries[kQueryDtypes])(const quire_attention_args& args, const QueryTile& tile, float* queries);
    // The tile's rows over one partition, into `result`, from nothing. The caller goes on up to key `end`: what lies
    // before it may be fetched ahead. Indexed by the cache's quire_dtype.
    void (*attend[kCacheDtypes])(const quire_attention_args& args, const QueryTile& tile, int64_t partition,
                                 int64_t end, const Scratch& scratch, const RowState& result);
    // Takes the next partition's state into `state`.
    void (*fold)(int64_t rows, int64_t head_dim, const RowState& next, const RowState& state);
    // sum / total of the tile's rows, into the output.
    void (*write[kQueryDtypes])(const quire_attention_args& args, const QueryTile& tile, const RowState& state);

    // Tokens [first, last) into their slots.
    void (*store[kQueryDtypes][kCacheDtypes])(const quire_store_args& args, int64_t first, int64_t last);
    void (*rotate_and_store[kCacheDtypes])(const quire_rotate_args& args, int64_t first, int64_t last);

    void (*exp)(const float* in, float* out, int64_t count);
};

}  // namespace quire
