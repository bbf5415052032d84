// Writes new keys and values into their slots.
#include <algorithm>
#include <cstring>

#include "error.hpp"
#include "quire_kernels.h"
#include "thread_pool.hpp"

namespace quire {
namespace {

constexpr int64_t kTokensPerTask = 64;
constexpr int64_t kParallelBytes = 1 << 20;

struct Stream {
    const char* from;
    char* to;
    int64_t token_stride, head_stride, block_stride, head_cache_stride;
};

void store_token(const quire_store_args& args, const Stream& stream, int64_t element, int64_t token) {
    const int64_t slot = args.slot_mapping[token];
    const int64_t block = slot / args.block_size, offset = slot % args.block_size;
    const char* from = stream.from + token * stream.token_stride * element;
    char* to = stream.to + (block * stream.block_stride + offset * args.head_dim) * element;
    for (int head = 0; head < args.num_kv_heads; ++head) {
        std::memcpy(to, from, args.head_dim * element);
        from += stream.head_stride * element;
        to += stream.head_cache_stride * element;
    }
}

}  // namespace
}  // namespace quire

int32_t quire_store_kv(const quire_store_args* args, char* error, size_t error_size) {
    using namespace quire;
    const quire_store_args& a = *args;
    const int64_t num_slots = a.num_blocks * a.block_size;
    for (int64_t i = 0; i < a.num_tokens; ++i) {
        if (a.slot_mapping[i] < 0 || a.slot_mapping[i] >= num_slots) {
            return ErrorBuffer{error, error_size}.fail("slot_mapping[%lld] is %lld, outside [0, %lld)",
                                                       static_cast<long long>(i),
                                                       static_cast<long long>(a.slot_mapping[i]),
                                                       static_cast<long long>(num_slots));
        }
    }
    const int64_t element = a.dtype == QUIRE_FLOAT32 ? 4 : 2;
    const Stream keys = {static_cast<const char*>(a.key), static_cast<char*>(a.key_cache), a.key_token_stride,
                         a.key_head_stride, a.key_block_stride, a.key_head_cache_stride};
    const Stream values = {static_cast<const char*>(a.value), static_cast<char*>(a.value_cache), a.value_token_stride,
                           a.value_head_stride, a.value_block_stride, a.value_head_cache_stride};
    const auto store_range = [&](int64_t task, int) {
        const int64_t end = std::min<int64_t>(a.num_tokens, (task + 1) * kTokensPerTask);
        for (int64_t token = task * kTokensPerTask; token < end; ++token) {
            store_token(a, keys, element, token);
            store_token(a, values, element, token);
        }
    };
    const int64_t tasks = (a.num_tokens + kTokensPerTask - 1) / kTokensPerTask;
    if (a.num_tokens * a.num_kv_heads * a.head_dim * element * 2 < kParallelBytes) {
        for (int64_t task = 0; task < tasks; ++task) store_range(task, 0);
    } else {
        parallel_for(tasks, store_range);
    }
    return 0;
}
