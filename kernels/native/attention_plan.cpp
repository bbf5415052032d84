#include <algorithm>
#include <new>

#include "isa.hpp"
#include "paged_ops.hpp"
#include "thread_pool.hpp"

namespace quire {
namespace {

// Rows that share one pass over the keys and values: enough to be bound by arithmetic, few enough for the L1 and L2.
constexpr int kTileRows = 64;

// Multiply-adds below which waking the threads costs more than it saves.
constexpr int64_t kParallelWork = 200'000;

constexpr int64_t kTasksPerThread = 8;

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

struct KeySpan {
    int64_t first, last;
};

// The keys that queries [first_query, first_query + num_queries) of the sequence see.
KeySpan visible_keys(const quire_attention_args& args, int sequence, int64_t first_query, int64_t num_queries) {
    const int64_t query_len = args.query_start[sequence + 1] - args.query_start[sequence];
    const int64_t position = args.context_lens[sequence] - query_len + first_query;
    const int64_t first = args.sliding_window ? std::max<int64_t>(0, position + 1 - args.sliding_window) : 0;
    return {first, position + num_queries};
}

quire_attention_args with_layer(quire_attention_args step, const AttentionLayer& layer) {
    step.cache = layer.cache;
    step.query = layer.query;
    step.output = layer.output;
    step.sliding_window = layer.sliding_window;
    return step;
}

AttentionLayer layer_of(const quire_attention_args& args) {
    return {args.cache, args.query, args.output, args.sliding_window};
}

}  // namespace

void AttentionPlan::plan(const quire_attention_args& step) {
    step_ = step;
    step_.sliding_window = 0;  // layers have their own, so the plan covers all that the widest may see
    group_ = step.num_heads / step.cache.num_kv_heads;
    find_works();
    split();
}

void AttentionPlan::find_works() {
    works_.clear();
    multiply_adds_ = 0;
    max_rows_ = 1;
    const int tile_queries = std::max(1, kTileRows / group_);
    for (int s = 0; s < step_.num_seqs; ++s) {
        const int query_len = step_.query_start[s + 1] - step_.query_start[s];
        for (int first = 0; first < query_len; first += tile_queries) {
            const int count = std::min(tile_queries, query_len - first);
            const KeySpan keys = visible_keys(step_, s, first, count);
            const Span partitions = {0, (keys.last + kPartitionKeys - 1) / kPartitionKeys};
            const int64_t cost = int64_t{2} * count * group_ * keys.last * step_.cache.head_dim;
            for (int head = 0; head < step_.cache.num_kv_heads; ++head) {
                works_.push_back({{s, head, first, count}, partitions, cost, -1});
                multiply_adds_ += cost;
                max_rows_ = std::max(max_rows_, static_cast<int64_t>(count) * group_);
            }
        }
    }
    // The longest first, so that no thread starts one when the others have ended.
    std::stable_sort(works_.begin(), works_.end(),
                     [](const Work& a, const Work& b) { return a.multiply_adds > b.multiply_adds; });
}

void AttentionPlan::split() {
    tasks_.clear();
    const int64_t num_works = static_cast<int64_t>(works_.size());
    const int threads = num_threads();
    const bool share = threads > 1 && multiply_adds_ >= kParallelWork && num_works < kTasksPerThread * threads;
    if (share && num_works > tasks_left_capacity_) {
        tasks_left_ = std::make_unique<std::atomic<int64_t>[]>(num_works);
        tasks_left_capacity_ = num_works;
    }
    int64_t floats = 0;
    for (int64_t w = 0; w < num_works; ++w) {
        Work& work = works_[w];
        const int32_t index = static_cast<int32_t>(w);
        if (!share || work.partitions.size() == 1) {
            tasks_.push_back({index, work.partitions});
            continue;
        }
        work.states = floats;
        floats += work.partitions.size() * state_floats(work);
        tasks_left_[w] = work.partitions.size();
        for (int64_t p = work.partitions.first; p < work.partitions.last; ++p) tasks_.push_back({index, {p, p + 1}});
    }
    if (floats > states_capacity_) {
        states_ = allocate_floats(floats);
        states_capacity_ = floats;
    }
}

void AttentionPlan::run(const AttentionLayer& layer) {
    if (multiply_adds_ < kParallelWork) {
        for (int64_t i = 0; i < num_tasks(); ++i) run_task(layer, i);
    } else {
        parallel_for(num_tasks(), [&](int64_t i, int) { run_task(layer, i); });
    }
}

void AttentionPlan::run_task(const AttentionLayer& layer, int64_t i) {
    const quire_attention_args args = with_layer(step_, layer);
    const PagedKernels& kernels = paged_kernels();
    const Task& task = tasks_[i];
    const Work& work = works_[task.work];
    const int64_t head_dim = args.cache.head_dim;
    const Scratch scratch = scratch_in(thread_scratch(scratch_floats(max_rows_, head_dim)), max_rows_, head_dim);
    kernels.load_queries[args.query_dtype](args, work.tile, scratch.queries);
    if (work.states >= 0) {
        run_shared(args, task, scratch);
        return;
    }
    const auto attend = kernels.attend[args.cache.dtype];
    const KeySpan keys = visible_keys(args, work.tile.sequence, work.tile.first_query, work.tile.num_queries);
    const int64_t first = keys.first / kPartitionKeys;
    attend(args, work.tile, first, keys.last, scratch, scratch.state);
    for (int64_t p = first + 1; p < task.partitions.last; ++p) {
        attend(args, work.tile, p, keys.last, scratch, scratch.partition);
        kernels.fold(rows(work.tile), head_dim, scratch.partition, scratch.state);
    }
    kernels.write[args.query_dtype](args, work.tile, scratch.state);
}

void AttentionPlan::run_shared(const quire_attention_args& args, const Task& task, const Scratch& scratch) {
    const PagedKernels& kernels = paged_kernels();
    const Work& work = works_[task.work];
    const auto state_of = [&](int64_t partition) {
        float* const memory = states_.get() + work.states + partition * state_floats(work);
        return row_state(memory, rows(work.tile), args.cache.head_dim);
    };
    const int64_t partition = task.partitions.first;
    // A partition before the window leaves an empty state, which folding passes over.
    kernels.attend[args.cache.dtype](args, work.tile, partition, task.partitions.last * kPartitionKeys, scratch,
                                     state_of(partition));
    if (tasks_left_[task.work].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    tasks_left_[task.work].store(work.partitions.size(), std::memory_order_relaxed);  // for the next layer
    const RowState state = state_of(0);
    for (int64_t p = 1; p < work.partitions.last; ++p) {
        kernels.fold(rows(work.tile), args.cache.head_dim, state_of(p), state);
    }
    kernels.write[args.query_dtype](args, work.tile, state);
}

int32_t check_attention(const quire_attention_args& args, const ErrorBuffer& error) {
    if (args.query_start[0] != 0) return error.fail("query_start must start at 0, not %d", args.query_start[0]);
    for (int s = 0; s < args.num_seqs; ++s) {
        const int64_t query_len = static_cast<int64_t>(args.query_start[s + 1]) - args.query_start[s];
        if (query_len < 0) return error.fail("query_start falls at sequence %d", s);
        if (query_len == 0) continue;
        if (args.context_lens[s] < query_len) {
            return error.fail("context_lens[%d] is %d, less than its %d new tokens", s, args.context_lens[s],
                              static_cast<int>(query_len));
        }
        if (args.context_lens[s] > static_cast<int64_t>(args.max_blocks) * args.cache.block_size) {
            return error.fail("context_lens[%d] is %d, beyond its row of block_tables (%d blocks of %d)", s,
                              args.context_lens[s], args.max_blocks, args.cache.block_size);
        }
        const KeySpan keys = visible_keys(args, s, 0, query_len);
        const int32_t* const table = args.block_tables + s * args.block_table_stride;
        for (int64_t i = keys.first / args.cache.block_size; i * args.cache.block_size < keys.last; ++i) {
            if (table[i] < 0 || table[i] >= args.cache.num_blocks) {
                return error.fail("block_tables[%d, %d] is %d, outside [0, %lld)", s, static_cast<int>(i), table[i],
                                  static_cast<long long>(args.cache.num_blocks));
            }
        }
    }
    if (args.query_start[args.num_seqs] != args.num_tokens) {
        return error.fail("query_start must end at %d, not %d", args.num_tokens, args.query_start[args.num_seqs]);
    }
    return 0;
}

void paged_attention(const quire_attention_args& args) {
    static thread_local AttentionPlan plan;
    plan.plan(args);
    plan.run(layer_of(args));
}

}  // namespace quire

int32_t quire_paged_attention(const quire_attention_args* args, char* error, size_t error_size) {
    if (quire::check_attention(*args, {error, error_size})) return 1;
    quire::paged_attention(*args);
    return 0;
}

int32_t quire_paged_attention_layers(const quire_attention_args* layers, int32_t num_layers, char* error,
                                     size_t error_size) {
    for (int32_t i = 0; i < num_layers; ++i) {
        if (quire::check_attention(layers[i], {error, error_size})) return 1;
    }
    quire::AttentionPlan plan;
    plan.plan(layers[0]);
    for (int32_t i = 0; i < num_layers; ++i) plan.run(quire::layer_of(layers[i]));
    return 0;
}
