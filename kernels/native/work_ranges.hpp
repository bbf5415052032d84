// A range of consecutive items shared out among threads: each takes its own part from the front, so that it reads memory in
// order and may ask for the next item ahead of time; a thread that has ended takes from the back of the others' parts, so
// that one that was interrupted holds nobody up.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "thread_pool.hpp"

namespace quire {

class WorkRanges {
public:
    static constexpr int kMaxParts = 256;

    WorkRanges(uint32_t count, int parts) : parts_(parts < kMaxParts ? parts : kMaxParts) {
        for (int i = 0; i < parts_; ++i) {
            const uint64_t first = static_cast<uint64_t>(count) * i / parts_;
            const uint64_t last = static_cast<uint64_t>(count) * (i + 1) / parts_;
            ranges_[i].bounds.store(first << 32 | last, std::memory_order_relaxed);
        }
    }

    int parts() const { return parts_; }

    // Calls body(item) for the part's items, then for what others have left.
    template <class Body>
    void work(int part, const Body& body) {
        uint32_t item;
        while (ranges_[part].take_first(&item)) body(item);
        for (int i = 1; i < parts_; ++i) {
            while (ranges_[(part + i) % parts_].take_last(&item)) body(item);
        }
    }

private:
    struct alignas(64) Range {
        std::atomic<uint64_t> bounds;  // first item << 32 | end

        bool take_first(uint32_t* item) {
            uint64_t now = bounds.load(std::memory_order_relaxed);
            while (now >> 32 < (now & 0xffffffff)) {
                if (bounds.compare_exchange_weak(now, now + (uint64_t{1} << 32), std::memory_order_relaxed)) {
                    *item = static_cast<uint32_t>(now >> 32);
                    return true;
                }
            }
            return false;
        }

        bool take_last(uint32_t* item) {
            uint64_t now = bounds.load(std::memory_order_relaxed);
            while (now >> 32 < (now & 0xffffffff)) {
                if (bounds.compare_exchange_weak(now, now - 1, std::memory_order_relaxed)) {
                    *item = static_cast<uint32_t>(now - 1);
                    return true;
                }
            }
            return false;
        }
    };

    int parts_;
    Range ranges_[kMaxParts];
};

// Calls body(item) once for every item in [0, count), on all threads if `parallel`.
template <class Body>
void for_each_item(int64_t count, bool parallel, const Body& body) {
    const int parts = parallel ? num_threads() : 1;
    if (parts == 1) {
        for (int64_t item = 0; item < count; ++item) body(item);
        return;
    }
    WorkRanges ranges(static_cast<uint32_t>(count), parts);
    parallel_for(ranges.parts(), [&](int64_t part, int) { ranges.work(static_cast<int>(part), body); });
}

}  // namespace quire
