// A square of vectors, turned.
#pragma once

#include "simd.hpp"

namespace quire::QUIRE_ISA {

// Lanes whose bit H is clear keep a's, the others take b's from H lanes below; and the other way round.
template <int H>
static inline __attribute__((always_inline)) void exchange(vec& a, vec& b) {
    ivec low, high;
    for (int i = 0; i < kVecLanes; ++i) {
        low[i] = (i & H) ? kVecLanes + i - H : i;
        high[i] = (i & H) ? kVecLanes + i : i + H;
    }
    const vec first = __builtin_shuffle(a, b, low);
    b = __builtin_shuffle(a, b, high);
    a = first;
}

// Element j of v[i] and element i of v[j] change places. By halves: bit H of the row against bit H of the column.
template <int H = 1>
static inline __attribute__((always_inline)) void transpose(vec (&v)[kVecLanes]) {
    if constexpr (H < kVecLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kVecLanes; ++i) {
            if (!(i & H)) exchange<H>(v[i], v[i + H]);
        }
        transpose<2 * H>(v);
    }
}

}  // namespace quire::QUIRE_ISA
