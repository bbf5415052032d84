// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
// ../philox.py is the same in numpy, and says why.
#pragma once

#include <cstdint>

namespace quire {

// Uniform in [0, 1), a multiple of 2**-53: the number of one token of one continuation of one request.
inline double philox_uniform(uint64_t seed, uint32_t position, uint32_t sequence_index) {
    uint32_t c0 = position, c1 = sequence_index, c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return static_cast<double>((uint64_t{c0} << 32 | c1) >> 11) * 0x1p-53;
}

}  // namespace quire
