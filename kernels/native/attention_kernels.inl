// Paged attention for one instruction set: each isa_*.cpp defines QUIRE_ISA and includes this file.
//
// A row's result is the same sequence of roundings however rows are grouped: a score is a dot product summed element
// after element (the tile's keys are transposed first, so that lanes hold different keys and no sum crosses lanes);
// values are added key after key; a masked key is never added (not even as 0 times its value, which may be nan); the
// shapes of the register blocks below change only what is computed side by side.
//
// An int8 cache is widened like any other. Its scales meet the scores (query . integers) * scale, and the weights:
// (weight * scale) * integers.
#include "attention_tile.hpp"
#include "elements.hpp"
#include "transpose.hpp"
#include "vector_exp.hpp"

#define QUIRE_INLINE static inline __attribute__((always_inline))
#define QUIRE_NOINLINE __attribute__((noinline))  // inner loops alone: more around them would take their registers

namespace quire::QUIRE_ISA {
namespace {

constexpr float kNothing = -__builtin_inff();

// The shape of the register blocks: 6 rows of 4 vectors in 32 registers, of 2 in 16. A single block of rows meets 2
// vectors of keys at a time, so that the keys transposed for it stay in the L1.
constexpr int kBlockRows = 6;
constexpr int kBlockVectors = kVecLanes >= 16 ? 4 : 2;
constexpr int kFewVectors = 2;

// Keys [first, last) of a tile, counted from the tile's start.
struct KeyRange {
    int first, last;
};

// The shape of one tile's work, common to its steps.
struct TileWork {
    int rows;
    int group;       // query heads of a KV head: rows that share a position
    int head_dim;
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

    // What any row sees: positions rise with the row, so the first row's range starts first, the last row's ends last.
    KeyRange range() const { return {range(0).first, range(rows - 1).last}; }
};

// Memory in one piece.
struct Run {
    const char* first;
    const char* last;
};

// Where each key of a tile lies, and how an int8 one is scaled.
struct TileKeys {
    const void* keys[kTileKeys];
    const void* values[kTileKeys];
    float key_scales[kTileKeys];
    float value_scales[kTileKeys];
    Run key_runs[kTileKeys];  // a run for each block
    Run value_runs[kTileKeys];
    int num_runs;
};

// Memory that will be read later, fetched in small portions between pieces of work: one core has few reads under way at
// a time, so to read as fast as memory allows they must never run out.
class Ahead {
public:
    void add(const Run* runs, int count) {
        for (int i = 0; i < count; ++i) {
            runs_[num_runs_++] = runs[i];
            lines_ += (runs[i].last - runs[i].first + 63) / 64;
        }
    }

    void set_portions(int count) { portion_ = (lines_ + count - 1) / count; }

    void fetch_portion() { fetch(portion_); }

    void fetch_all() { fetch(lines_); }

private:
    void fetch(int64_t lines) {
        while (lines > 0 && next_ < num_runs_) {
            Run& run = runs_[next_];
            for (; lines > 0 && run.first < run.last; --lines, --lines_, run.first += 64) {
                __builtin_prefetch(run.first, 0, 2);
            }
            if (run.first >= run.last) ++next_;
        }
    }

    Run runs_[3 * kTileKeys];
    int num_runs_ = 0, next_ = 0;
    int64_t lines_ = 0, portion_ = 0;
};

template <class T>
constexpr bool kScaled = sizeof(T) == 1;

// A whole number as a type, for the register blocks' shapes.
template <int N>
struct Constant {
    static constexpr int value = N;
};

// Calls body(Constant<R>) for blocks of R rows that make up [first, last).
template <class F>
QUIRE_INLINE void for_row_blocks(int first, int last, const F& body) {
    for (; first + 6 <= last; first += 6) body(Constant<6>(), first);
    switch (last - first) {
        case 5: body(Constant<5>(), first); break;
        case 4: body(Constant<4>(), first); break;
        case 3: body(Constant<3>(), first); break;
        case 2: body(Constant<2>(), first); break;
        case 1: body(Constant<1>(), first); break;
    }
}
static_assert(kBlockRows == 6);

// Calls body(Constant<C>, first) for blocks of C vectors that make up [first, last): of `Most`, and then of 2 and 1.
template <int Most, class F>
QUIRE_INLINE void for_vector_blocks(int first, int last, const F& body) {
    for (; first + Most <= last; first += Most) body(Constant<Most>(), first);
    if constexpr (Most > 2) {
        if (first + 2 <= last) {
            body(Constant<2>(), first);
            first += 2;
        }
    }
    if constexpr (Most > 1) {
        if (first < last) body(Constant<1>(), first);
    }
}

// `bytes` (a vector's or less) at p, then zeros.
QUIRE_INLINE vec load_bytes(const void* p, int64_t bytes) {
    if (bytes >= static_cast<int64_t>(sizeof(vec))) return load(static_cast<const float*>(p));
#if defined(__AVX512BW__)
    return (vec)_mm512_maskz_loadu_epi8((1ull << bytes) - 1, p);
#else
    vec some = {};
    memcpy(&some, p, bytes);
    return some;
#endif
}

// The elements of each lane's four bytes, in order, to rows of the transposed keys.
template <int Keys>
QUIRE_INLINE void store_elements(vec dwords, float* to, const float*) {
    store(to, dwords);
}

template <int Keys>
QUIRE_INLINE void store_elements(vec dwords, float* to, const bfloat16*) {
    store(to, (vec)((uvec)dwords << 16));
    store(to + Keys, (vec)((uvec)dwords & 0xffff0000u));
}

template <int Keys>
QUIRE_INLINE void store_elements(vec dwords, float* to, const int8_t*) {
    const uvec bits = (uvec)dwords;
    store(to, __builtin_convertvector((ivec)(bits << 24) >> 24, vec));
    store(to + Keys, __builtin_convertvector((ivec)(bits << 16) >> 24, vec));
    store(to + 2 * Keys, __builtin_convertvector((ivec)(bits << 8) >> 24, vec));
    store(to + 3 * Keys, __builtin_convertvector((ivec)bits >> 24, vec));
}

// A vector's worth of bytes (or `bytes`, if those are fewer) of a vector's worth of rows, transposed and in float32.
template <class T, int Keys, bool Whole>
QUIRE_INLINE void pack_square(const void* const* rows, int64_t offset, int64_t bytes, float* to) {
    constexpr int kElements = 4 / sizeof(T);  // that move as one
    vec square[kVecLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kVecLanes; ++i) {
        const char* const row = static_cast<const char*>(rows[i]) + offset;
        square[i] = Whole ? load(reinterpret_cast<const float*>(row)) : load_bytes(row, bytes);
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kVecLanes; ++i) {
        if (Whole || 4 * i < bytes) {
            store_elements<Keys>(square[i], to + i * kElements * Keys, static_cast<const T*>(nullptr));
        }
    }
}

// V vectors of keys transposed, [head_dim, V * kVecLanes] in float32.
template <class T, int V>
QUIRE_NOINLINE void pack_keys(int64_t row_bytes, const void* const* keys, Ahead& ahead, float* to) {
    constexpr int kKeys = V * kVecLanes;
    constexpr int64_t kBytes = sizeof(vec);
    for (int v = 0; v < V; ++v) {
        const void* const* const rows = keys + v * kVecLanes;
        float* const columns = to + v * kVecLanes;
        ahead.fetch_portion();
        int64_t offset = 0;
        for (; offset + kBytes <= row_bytes; offset += kBytes) {
            pack_square<T, kKeys, true>(rows, offset, kBytes, columns + offset / sizeof(T) * kKeys);
        }
        if (offset < row_bytes) {
            pack_square<T, kKeys, false>(rows, offset, row_bytes - offset, columns + offset / sizeof(T) * kKeys);
        }
    }
}

// Scores of R rows with V vectors of keys.
template <int R, int V>
QUIRE_NOINLINE void score_block(const float* queries, int64_t stride, int head_dim, const float* keys,
                                float* scores) {
    vec sums[R][V] = {};
    for (int d = 0; d < head_dim; ++d) {
        vec k[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) k[v] = load(keys + (d * V + v) * kVecLanes);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const vec q = broadcast(queries[r * stride + d]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r][v] = fma(q, k[v], sums[r][v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(scores + r * kTileKeys + v * kVecLanes, sums[r][v]);
    }
}

// Every row's scores with every key that its block of rows sees; whole blocks, so some are computed for nothing.
template <class T, int V>
void score_tile(const TileWork& work, const void* const* keys, Ahead& ahead, const Scratch& scratch) {
    constexpr int kKeys = V * kVecLanes;
    const KeyRange all = work.range();
    for (int key = all.first / kKeys * kKeys; key < all.last; key += kKeys) {
        pack_keys<T, V>(work.head_dim * sizeof(T), keys + key, ahead, scratch.keys);
        for_row_blocks(0, work.rows, [&](auto rows, int row) {
            constexpr int R = decltype(rows)::value;
            if (work.range(row).first >= key + kKeys || work.range(row + R - 1).last <= key) return;
            ahead.fetch_portion();
            score_block<R, V>(scratch.queries + row * work.stride, work.stride, work.head_dim, scratch.keys,
                           scratch.scores + row * kTileKeys + key);
        });
    }
}

// Turns a row's scores into weights relative to the highest score so far, and its state to that scale.
template <bool Scaled>
void weigh_row(KeyRange range, const float* key_scales, const float* value_scales, float* scores, int64_t vectors,
               float* sum, float* highest, float* total) {
    constexpr int kVectors = kTileKeys / kVecLanes;
    const bool whole = range.first == 0 && range.last == kTileKeys;
    vec s[kVectors];
    vec peak = broadcast(*highest);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
        s[v] = load(scores + v * kVecLanes);
        if constexpr (Scaled) s[v] = s[v] * load(key_scales + v * kVecLanes);
        if (!whole) {
            const ivec key = lane_numbers() + v * kVecLanes;
            s[v] = (key >= range.first) & (key < range.last) ? s[v] : broadcast(kNothing);
        }
        peak = max(s[v], peak);
    }
    peak = max_lanes(peak);
    vec weights = {};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
        const vec w = exp(s[v] - peak);
        store(scores + v * kVecLanes, Scaled ? w * load(value_scales + v * kVecLanes) : w);
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
QUIRE_NOINLINE void add_block(const float* weights, const void* const* values, int64_t column,
                              KeyRange range, float* sum, int64_t stride) {
    vec sums[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sums[r][c] = load(sum + r * stride + column + c * kVecLanes);
    }
    for (int key = range.first; key < range.last; ++key) {
        const T* const row = static_cast<const T*>(values[key]) + column;
        vec value[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) value[c] = load(row + c * kVecLanes);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const vec weight = broadcast(weights[r * kTileKeys + key]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sums[r][c] = fma(weight, value[c], sums[r][c]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) store(sum + r * stride + column + c * kVecLanes, sums[r][c]);
    }
}

// Adds the weighted values of rows [first, last), which all see the same keys.
template <class T>
void add_values(const TileWork& work, int first, int last, const float* weights, const void* const* values,
                KeyRange range, float* sum) {
    for_row_blocks(first, last, [&](auto rows, int row) {
        constexpr int R = decltype(rows)::value;
        for_vector_blocks<kBlockVectors>(0, work.vectors, [&](auto vectors, int v) {
            add_block<T, R, decltype(vectors)::value>(weights + row * kTileKeys, values, v * kVecLanes, range,
                                                      sum + row * work.stride, work.stride);
        });
    });
}

// As add_values, in pieces of the range, which change nothing, so that there is something to fetch between.
template <class T>
void add_values_in_pieces(const TileWork& work, int first, int last, const float* weights, const void* const* values,
                          Ahead& ahead, KeyRange range, float* sum) {
    constexpr int kPiece = 16;
    for (KeyRange piece = range; piece.first < range.last; piece.first = piece.last) {
        piece.last = piece.first + kPiece < range.last ? piece.first + kPiece : range.last;
        ahead.fetch_portion();
        add_values<T>(work, first, last, weights, values, piece, sum);
    }
}

// Weights of all rows, and the weighted values of each run of rows that see the same keys.
template <bool Scaled, class T>
void add_tile(const TileWork& work, const TileKeys& tile, const void* const* values, Ahead& ahead, float* scores,
              const RowState& state) {
    for (int row = 0; row < work.rows;) {
        const KeyRange range = work.range(row);
        int end = row;
        for (; end < work.rows; ++end) {
            const KeyRange next = work.range(end);
            if (next.first != range.first || next.last != range.last) break;
            if (range.first == range.last) continue;
            ahead.fetch_portion();
            weigh_row<Scaled>(range, tile.key_scales, tile.value_scales, scores + end * kTileKeys, work.vectors,
                              state.sum + end * work.stride, state.highest + end, state.total + end);
        }
        if (range.first < range.last) {
            if (work.rows <= kBlockRows) {
                add_values_in_pieces<T>(work, row, end, scores, values, ahead, range, state.sum);
            } else {
                add_values<T>(work, row, end, scores, values, range, state.sum);
            }
        }
        row = end;
    }
}

// Finds the keys of `range`. Those outside it point at its ends: register blocks may read them.
template <class T>
void find_keys(const quire_attention_args& args, const QueryTile& query_tile, int64_t tile_start, KeyRange range,
               TileKeys& tile) {
    const quire_kv_cache& cache = args.cache;
    const int64_t head = query_tile.kv_head;
    const int32_t* const table = args.block_tables + query_tile.sequence * args.block_table_stride;
    tile.num_runs = 0;
    int64_t column = (tile_start + range.first) / cache.block_size;
    int64_t offset = (tile_start + range.first) % cache.block_size;
    for (int key = range.first; key < range.last; ++column, offset = 0) {
        const int64_t block = table[column];
        int64_t count = cache.block_size - offset;
        if (count > range.last - key) count = range.last - key;
        const T* k = static_cast<const T*>(cache.key) + block * cache.key_block_stride + head * cache.key_head_stride +
                     offset * cache.head_dim;
        const T* v = static_cast<const T*>(cache.value) + block * cache.value_block_stride +
                     head * cache.value_head_stride + offset * cache.head_dim;
        tile.key_runs[tile.num_runs] = {reinterpret_cast<const char*>(k),
                                        reinterpret_cast<const char*>(k + count * cache.head_dim)};
        tile.value_runs[tile.num_runs++] = {reinterpret_cast<const char*>(v),
                                            reinterpret_cast<const char*>(v + count * cache.head_dim)};
        for (int64_t i = 0; i < count; ++i) {
            tile.keys[key + i] = k + i * cache.head_dim;
            tile.values[key + i] = v + i * cache.head_dim;
        }
        if constexpr (kScaled<T>) {
            const float* const key_scales =
                cache.key_scales + block * cache.key_scale_block_stride + head * cache.key_scale_head_stride;
            const float* const value_scales =
                cache.value_scales + block * cache.value_scale_block_stride + head * cache.value_scale_head_stride;
            memcpy(tile.key_scales + key, key_scales + offset, count * sizeof(float));
            memcpy(tile.value_scales + key, value_scales + offset, count * sizeof(float));
        }
        key += static_cast<int>(count);
    }
    for (int key = 0; key < kTileKeys; ++key) {
        if (key == range.first) key = range.last;
        if (key == kTileKeys) break;
        const int inside = key < range.first ? range.first : range.last - 1;
        tile.keys[key] = tile.keys[inside];
        tile.values[key] = tile.values[inside];
        tile.key_scales[key] = tile.value_scales[key] = 0.0f;
    }
}

// The values of `range` in float32, zeros up to whole vectors; the pointers lead there.
template <class T>
void widen_values(const TileWork& work, const TileKeys& tile, KeyRange range, float* rows, const void** to) {
    for (int key = range.first; key < range.last; ++key) {
        const T* const from = static_cast<const T*>(tile.values[key]);
        float* const row = rows + key * work.stride;
        int i = 0;
        for (; i + kVecLanes <= work.head_dim; i += kVecLanes) store(row + i, load(from + i));
        if (i < work.head_dim) store(row + i, load_some(from + i, work.head_dim - i));
        to[key] = row;
    }
}

// All rows over one tile.
template <class T>
void attend_tile(const TileWork& work, const TileKeys& tile, Ahead& ahead, const Scratch& scratch,
                 const RowState& state) {
    if (work.rows <= kBlockRows) {
        score_tile<T, kFewVectors>(work, tile.keys, ahead, scratch);
    } else {
        score_tile<T, kBlockVectors>(work, tile.keys, ahead, scratch);
    }
    // Values of whole vectors are read where they lie. Otherwise, and where several blocks of rows would each widen the
    // same elements again, a copy in float32 serves: the numbers are the same.
    constexpr int kDirectRows = sizeof(T) == sizeof(float) ? INT32_MAX : kBlockRows;
    if (work.head_dim % kVecLanes == 0 && work.rows <= kDirectRows) {
        add_tile<kScaled<T>, T>(work, tile, tile.values, ahead, scratch.scores, state);
    } else {
        const void* values[kTileKeys];
        widen_values<T>(work, tile, work.range(), scratch.values, values);
        add_tile<kScaled<T>, float>(work, tile, values, ahead, scratch.scores, state);
    }
    ahead.fetch_all();
}

template <class T>
void attend(const quire_attention_args& args, const QueryTile& tile, int64_t partition, int64_t end,
            const Scratch& scratch, const RowState& result) {
    const int query_len = args.query_start[tile.sequence + 1] - args.query_start[tile.sequence];
    TileWork work;
    work.group = args.num_heads / args.cache.num_kv_heads;
    work.rows = tile.num_queries * work.group;
    work.head_dim = args.cache.head_dim;
    work.vectors = (work.head_dim + kVecLanes - 1) / kVecLanes;
    work.stride = padded(work.head_dim);
    work.first_position = static_cast<int64_t>(args.context_lens[tile.sequence]) - query_len + tile.first_query;
    work.sliding_window = args.sliding_window;

    for (int row = 0; row < work.rows; ++row) {
        result.highest[row] = kNothing;
        result.total[row] = 0.0f;
    }
    memset(result.sum, 0, sizeof(float) * work.rows * work.stride);

    TileKeys found[2];
    int current = 0;
    bool known = false, first = true;
    for (int64_t start = partition * kPartitionKeys; start < (partition + 1) * kPartitionKeys; start += kTileKeys) {
        work.tile_start = start;
        const KeyRange range = work.range();
        if (range.first >= range.last) continue;
        if (!known) find_keys<T>(args, tile, start, range, found[current]);
        TileWork next = work;
        next.tile_start = start + kTileKeys;
        const KeyRange next_range = next.range();
        known = next.tile_start < end && next_range.first < next_range.last;
        if (known) find_keys<T>(args, tile, next.tile_start, next_range, found[1 - current]);
        Ahead ahead;
        if (first) ahead.add(found[current].value_runs, found[current].num_runs);
        if (known) {
            ahead.add(found[1 - current].key_runs, found[1 - current].num_runs);
            ahead.add(found[1 - current].value_runs, found[1 - current].num_runs);
        }
        // About as often as a tile of few rows asks for one.
        ahead.set_portions(10 + kBlockRows);
        first = false;
        attend_tile<T>(work, found[current], ahead, scratch, result);
        current = 1 - current;
    }
}

template <class T>
void load_queries(const quire_attention_args& args, const QueryTile& tile, float* queries) {
    const int group = args.num_heads / args.cache.num_kv_heads, head_dim = args.cache.head_dim;
    const int64_t first_token = args.query_start[tile.sequence] + tile.first_query;
    const int64_t stride = padded(head_dim);
    for (int query = 0; query < tile.num_queries; ++query) {
        const T* const token = static_cast<const T*>(args.query) + (first_token + query) * args.query_token_stride;
        for (int head = 0; head < group; ++head) {
            const T* const from = token + (tile.kv_head * group + head) * args.query_head_stride;
            float* const to = queries + (query * group + head) * stride;
            int i = 0;
            for (; i + kVecLanes <= head_dim; i += kVecLanes) store(to + i, load(from + i) * args.scale);
            if (i < head_dim) store(to + i, load_some(from + i, head_dim - i) * args.scale);
        }
    }
}

template <class T>
void write(const quire_attention_args& args, const QueryTile& tile, const RowState& state) {
    const int group = args.num_heads / args.cache.num_kv_heads, head_dim = args.cache.head_dim;
    const int64_t first_token = args.query_start[tile.sequence] + tile.first_query;
    for (int64_t row = 0; row < static_cast<int64_t>(tile.num_queries) * group; ++row) {
        const int64_t head = tile.kv_head * group + row % group;
        T* const to = static_cast<T*>(args.output) + ((first_token + row / group) * args.num_heads + head) * head_dim;
        const float* const from = state.sum + row * padded(head_dim);
        const vec factor = broadcast(1.0f / state.total[row]);
        int i = 0;
        for (; i + kVecLanes <= head_dim; i += kVecLanes) store(to + i, load(from + i) * factor);
        if (i < head_dim) store_some(to + i, load(from + i) * factor, head_dim - i);
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
        store_some(out + i, exp(load_some(in + i, lanes)), lanes);
    }
}

}  // namespace
}  // namespace quire::QUIRE_ISA
