// Checks, then splits the step into tasks: (sequence, KV head, tile of queries), and over the context where the
// others are too few for the threads. Kernels fix every row's roundings (attention_tile.hpp), so no split shows.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "error.hpp"
#include "isa.hpp"
#include "quire_kernels.h"
#include "thread_pool.hpp"

namespace quire {
namespace {

// Rows that share one pass over the keys and values: enough to be bound by arithmetic, few enough for the L1 and L2.
constexpr int kTileRows = 64;

// Multiply-adds below which waking a thread (some 50 us) costs more than it saves.
constexpr int64_t kParallelWork = 500'000;

constexpr int64_t kTasksPerThread = 8;

struct FreeFloats {
    void operator()(float* memory) const { std::free(memory); }
};
using Floats = std::unique_ptr<float, FreeFloats>;

Floats allocate_floats(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
    void* const memory = std::aligned_alloc(64, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return Floats(static_cast<float*>(memory));
}

// Grows and stays: a step must not go to the allocator for every task.
float* thread_scratch(int64_t count) {
    static thread_local Floats memory;
    static thread_local int64_t capacity = 0;
    if (count > capacity) {
        memory = allocate_floats(count);
        capacity = count;
    }
    return memory.get();
}

struct Span {
    int64_t first, last;
    int64_t size() const { return last - first; }
};

// The keys that queries [first_query, first_query + num_queries) of the sequence see.
Span visible_keys(const quire_attention_args& args, int sequence, int64_t first_query, int64_t num_queries) {
    const int64_t query_len = args.query_start[sequence + 1] - args.query_start[sequence];
    const int64_t position = args.context_lens[sequence] - query_len + first_query;
    const int64_t first = args.sliding_window ? std::max<int64_t>(0, position + 1 - args.sliding_window) : 0;
    return {first, position + num_queries};
}

int32_t check(const quire_attention_args& args, const ErrorBuffer& error) {
    if (args.query_start[0] != 0) return error.fail("query_start must start at 0, not %d", args.query_start[0]);
    for (int s = 0; s < args.num_seqs; ++s) {
        const int64_t query_len = static_cast<int64_t>(args.query_start[s + 1]) - args.query_start[s];
        if (query_len < 0) return error.fail("query_start falls at sequence %d", s);
        if (query_len == 0) continue;
        if (args.context_lens[s] < query_len) {
            return error.fail("context_lens[%d] is %d, less than its %d new tokens", s, args.context_lens[s],
                              static_cast<int>(query_len));
        }
        if (args.context_lens[s] > static_cast<int64_t>(args.max_blocks) * args.block_size) {
            return error.fail("context_lens[%d] is %d, beyond its row of block_tables (%d blocks of %d)", s,
                              args.context_lens[s], args.max_blocks, args.block_size);
        }
        const Span keys = visible_keys(args, s, 0, query_len);
        const int32_t* const table = args.block_tables + s * args.block_table_stride;
        for (int64_t i = keys.first / args.block_size; i * args.block_size < keys.last; ++i) {
            if (table[i] < 0 || table[i] >= args.num_blocks) {
                return error.fail("block_tables[%d, %d] is %d, outside [0, %lld)", s, static_cast<int>(i), table[i],
                                  static_cast<long long>(args.num_blocks));
            }
        }
    }
    if (args.query_start[args.num_seqs] != args.num_tokens) {
        return error.fail("query_start must end at %d, not %d", args.num_tokens, args.query_start[args.num_seqs]);
    }
    return 0;
}

struct Work {
    QueryTile tile;
    Span partitions;
    int64_t multiply_adds;
};

struct Task {
    int32_t work;
    Span partitions;
};

// Partitions of one tile that several threads compute; who ends last folds them, in order.
struct SharedTile {
    Floats states;
    std::atomic<int64_t> left{0};
};

class Step {
public:
    Step(const quire_attention_args& args)
        : args_(args), kernels_(attention_kernels(args.dtype)), group_(args.num_heads / args.num_kv_heads) {
        plan();
        split();
    }

    void run() {
        const auto body = [this](int64_t i, int) { run_task(tasks_[i]); };
        if (multiply_adds_ < kParallelWork) {
            for (size_t i = 0; i < tasks_.size(); ++i) body(i, 0);
        } else {
            parallel_for(tasks_.size(), body);
        }
    }

private:
    int64_t rows(const QueryTile& tile) const { return static_cast<int64_t>(tile.num_queries) * group_; }

    void plan() {
        const int tile_queries = std::max(1, kTileRows / group_);
        for (int s = 0; s < args_.num_seqs; ++s) {
            const int query_len = args_.query_start[s + 1] - args_.query_start[s];
            for (int first = 0; first < query_len; first += tile_queries) {
                const int count = std::min(tile_queries, query_len - first);
                const Span keys = visible_keys(args_, s, first, count);
                const Span partitions = {keys.first / kPartitionKeys,
                                         (keys.last + kPartitionKeys - 1) / kPartitionKeys};
                const int64_t cost = 2 * count * group_ * keys.size() * args_.head_dim;
                for (int head = 0; head < args_.num_kv_heads; ++head) {
                    works_.push_back({{s, head, first, count}, partitions, cost});
                    multiply_adds_ += cost;
                    max_rows_ = std::max(max_rows_, static_cast<int64_t>(count) * group_);
                }
            }
        }
        // The longest first, so that no thread starts one when the others have ended.
        std::stable_sort(works_.begin(), works_.end(),
                         [](const Work& a, const Work& b) { return a.multiply_adds > b.multiply_adds; });
    }

    void split() {
        const int threads = num_threads();
        const bool share = threads > 1 && multiply_adds_ >= kParallelWork &&
                           static_cast<int64_t>(works_.size()) < kTasksPerThread * threads;
        if (share) shared_ = std::vector<SharedTile>(works_.size());
        for (size_t w = 0; w < works_.size(); ++w) {
            const Work& work = works_[w];
            const int32_t index = static_cast<int32_t>(w);
            if (!share || work.partitions.size() == 1) {
                tasks_.push_back({index, work.partitions});
                continue;
            }
            shared_[w].left = work.partitions.size();
            shared_[w].states = allocate_floats(work.partitions.size() * state_floats(work.tile));
            for (int64_t p = work.partitions.first; p < work.partitions.last; ++p) {
                tasks_.push_back({index, {p, p + 1}});
            }
        }
    }

    // Whole cache lines, so that threads do not share one.
    int64_t state_floats(const QueryTile& tile) const { return row_state_floats(rows(tile), args_.head_dim); }

    void run_task(const Task& task) {
        const Work& work = works_[task.work];
        const Scratch scratch = scratch_in(thread_scratch(scratch_floats(max_rows_, args_.head_dim)), max_rows_,
                                           args_.head_dim);
        kernels_.load_queries(args_, work.tile, scratch.queries);
        if (!shared_.empty() && shared_[task.work].states) {
            run_shared(task, work, scratch, shared_[task.work]);
            return;
        }
        kernels_.attend(args_, work.tile, task.partitions.first, scratch, scratch.state);
        for (int64_t p = task.partitions.first + 1; p < task.partitions.last; ++p) {
            kernels_.attend(args_, work.tile, p, scratch, scratch.partition);
            kernels_.fold(rows(work.tile), args_.head_dim, scratch.partition, scratch.state);
        }
        kernels_.write(args_, work.tile, scratch.state);
    }

    void run_shared(const Task& task, const Work& work, const Scratch& scratch, SharedTile& shared) {
        const auto state_of = [&](int64_t partition) {
            float* const memory = shared.states.get() + (partition - work.partitions.first) * state_floats(work.tile);
            return row_state(memory, rows(work.tile), args_.head_dim);
        };
        kernels_.attend(args_, work.tile, task.partitions.first, scratch, state_of(task.partitions.first));
        if (shared.left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
        const RowState state = state_of(work.partitions.first);
        for (int64_t p = work.partitions.first + 1; p < work.partitions.last; ++p) {
            kernels_.fold(rows(work.tile), args_.head_dim, state_of(p), state);
        }
        kernels_.write(args_, work.tile, state);
    }

    const quire_attention_args& args_;
    const AttentionKernels& kernels_;
    const int group_;
    std::vector<Work> works_;
    std::vector<Task> tasks_;
    std::vector<SharedTile> shared_;
    int64_t multiply_adds_ = 0;
    int64_t max_rows_ = 1;
};

}  // namespace
}  // namespace quire

int32_t quire_paged_attention(const quire_attention_args* args, char* error, size_t error_size) {
    if (quire::check(*args, {error, error_size})) return 1;
    quire::Step(*args).run();
    return 0;
}
