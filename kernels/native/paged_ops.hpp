// Paged attention and its cache's writes, for callers within the library: a program that runs all layers of a step.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "attention_tile.hpp"
#include "error.hpp"
#include "quire_kernels.h"

namespace quire {

struct FreeFloats {
    void operator()(float* memory) const { std::free(memory); }
};
using Floats = std::unique_ptr<float, FreeFloats>;  // aligned to a cache line

// What differs between the layers of a step. The caches agree in all but their pointers.
struct AttentionLayer {
    quire_kv_cache cache;
    const void* query;  // [num_tokens, num_heads, head_dim], strides and dtype as planned
    void* output;       // the same shape and type, contiguous
    int64_t sliding_window;
};

// How a step's attention is shared among threads: tasks of (sequence, tile of queries, KV head), and over the context
// where the others are too few. Computed once per step, run once per layer. Kernels fix every row's roundings
// (attention_tile.hpp), so no split shows.
class AttentionPlan {
public:
    // Plans another step; keeps its memory. `step` is copied, what it points to must live as long as the plan is run.
    // Its query, output, sliding window and cache pointers are the layers' and not looked at; its lengths and block
    // tables must have passed check_attention.
    void plan(const quire_attention_args& step);

    // One layer, on the threads of the pool if that is worth waking them. Does not go to the allocator, except for a
    // thread's first, larger tile. One run at a time.
    void run(const AttentionLayer& layer);

    // As `run`, task by task, for a caller with threads of its own: each i in [0, num_tasks()) once, in any order and
    // side by side. The output is complete when all have returned.
    int64_t num_tasks() const { return static_cast<int64_t>(tasks_.size()); }
    void run_task(const AttentionLayer& layer, int64_t i);

    // Multiply-adds of a layer without a window.
    int64_t multiply_adds() const { return multiply_adds_; }

private:
    struct Span {
        int64_t first, last;
        int64_t size() const { return last - first; }
    };
    struct Work {
        QueryTile tile;
        Span partitions;
        int64_t multiply_adds;
        int64_t states;  // where its partitions' states start, if several tasks share it; or -1
    };
    struct Task {
        int32_t work;
        Span partitions;
    };

    void find_works();
    void split();
    void run_shared(const quire_attention_args& args, const Task& task, const Scratch& scratch);
    int64_t rows(const QueryTile& tile) const { return static_cast<int64_t>(tile.num_queries) * group_; }
    int64_t state_floats(const Work& work) const { return row_state_floats(rows(work.tile), step_.cache.head_dim); }

    quire_attention_args step_{};
    int group_ = 1;
    int64_t multiply_adds_ = 0;
    int64_t max_rows_ = 1;
    std::vector<Work> works_;
    std::vector<Task> tasks_;
    // Of works that several tasks share: who ends last folds the partitions, in order.
    Floats states_;
    int64_t states_capacity_ = 0;
    std::unique_ptr<std::atomic<int64_t>[]> tasks_left_;  // [works]
    int64_t tasks_left_capacity_ = 0;
};

// Checks of what comes from outside: 0, or 1 with a message. The functions above and below trust their arguments.
int32_t check_attention(const quire_attention_args& args, const ErrorBuffer& error);
int32_t check_slots(const int64_t* slot_mapping, int64_t num_tokens, const quire_kv_cache& cache,
                    const ErrorBuffer& error);

// Plan and run at once.
void paged_attention(const quire_attention_args& args);

void store_kv(const quire_store_args& args);

// See quire_rotate_args. Queries and keys are left normed and rotated in qkv.
void rotate_and_store(const quire_rotate_args& args);

}  // namespace quire
