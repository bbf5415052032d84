// Copy on write.
#include <algorithm>
#include <cstring>

#include "quire_kernels.h"
#include "thread_pool.hpp"

namespace {

// A piece is long enough to amortise a task and short enough to share one block among threads.
constexpr int64_t kPieceBytes = 256 << 10;
constexpr int64_t kParallelBytes = 1 << 20;

}  // namespace

void quire_copy_blocks(void* pool, int64_t block_stride_bytes, int64_t block_bytes, const int64_t* sources,
                       const int64_t* destinations, int64_t count) {
    char* const base = static_cast<char*>(pool);
    const int64_t pieces = std::max<int64_t>(1, (block_bytes + kPieceBytes - 1) / kPieceBytes);
    const auto copy_piece = [&](int64_t task, int) {
        const int64_t i = task / pieces, start = task % pieces * kPieceBytes;
        std::memcpy(base + destinations[i] * block_stride_bytes + start, base + sources[i] * block_stride_bytes + start,
                    std::min(kPieceBytes, block_bytes - start));
    };
    if (count * block_bytes < kParallelBytes) {
        for (int64_t task = 0; task < count * pieces; ++task) copy_piece(task, 0);
    } else {
        quire::parallel_for(count * pieces, copy_piece);
    }
}
