// Writes new keys and values into their slots, alone or after rotary embedding.
#include <algorithm>

#include "isa.hpp"
#include "paged_ops.hpp"
#include "thread_pool.hpp"

namespace quire {
namespace {

// Elements below which waking a thread costs more than it saves.
constexpr int64_t kParallelStores = 1 << 15;
constexpr int64_t kElementsPerTask = 1 << 12;

// Calls body(first, last) for ranges that make up [0, num_tokens), each token of `elements` elements.
template <class F>
void for_tokens(int64_t num_tokens, int64_t elements, const F& body) {
    if (num_tokens * elements < kParallelStores) {
        body(0, num_tokens);
        return;
    }
    const int64_t tokens = std::max<int64_t>(1, kElementsPerTask / elements);
    parallel_for((num_tokens + tokens - 1) / tokens, [&](int64_t task, int) {
        body(task * tokens, std::min(num_tokens, (task + 1) * tokens));
    });
}

}  // namespace

int32_t check_slots(const int64_t* slot_mapping, int64_t num_tokens, const quire_kv_cache& cache,
                    const ErrorBuffer& error) {
    const int64_t num_slots = cache.num_blocks * cache.block_size;
    for (int64_t i = 0; i < num_tokens; ++i) {
        if (slot_mapping[i] < 0 || slot_mapping[i] >= num_slots) {
            return error.fail("slot_mapping[%lld] is %lld, outside [0, %lld)", static_cast<long long>(i),
                              static_cast<long long>(slot_mapping[i]), static_cast<long long>(num_slots));
        }
    }
    return 0;
}

void store_kv(const quire_store_args& args) {
    const auto store = paged_kernels().store[args.dtype][args.cache.dtype];
    const int64_t elements = int64_t{2} * args.cache.num_kv_heads * args.cache.head_dim;
    for_tokens(args.num_tokens, elements, [&](int64_t first, int64_t last) { store(args, first, last); });
}

void rotate_and_store(const quire_rotate_args& args) {
    const auto kernel = paged_kernels().rotate_and_store[args.cache.dtype];
    const int64_t elements = int64_t{args.num_heads + 2 * args.cache.num_kv_heads} * args.cache.head_dim;
    for_tokens(args.num_tokens, elements, [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

}  // namespace quire

int32_t quire_store_kv(const quire_store_args* args, char* error, size_t error_size) {
    if (quire::check_slots(args->slot_mapping, args->num_tokens, args->cache, {error, error_size})) return 1;
    quire::store_kv(*args);
    return 0;
}

int32_t quire_rotate_and_store(const quire_rotate_args* args, char* error, size_t error_size) {
    if (quire::check_slots(args->slot_mapping, args->num_tokens, args->cache, {error, error_size})) return 1;
    quire::rotate_and_store(*args);
    return 0;
}
