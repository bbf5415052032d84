// What a request does to its logits before a token is chosen.
#pragma once

#include <cstdint>
#include <vector>

#include "quire_sampling.h"

namespace quire {

// How often each token occurred; all zero between rows.
struct TokenCounts {
    std::vector<int32_t> seen;  // [vocab_size]: 0, or 1 + occurrences in the output
    std::vector<int32_t> ids;   // the tokens that are not 0
};

// Whether the row wants any of these at all.
bool wants_edits(const quire_sampling_args& args, int32_t row);

// Logit bias, banned and masked tokens, penalties, in this order, in place.
void apply_edits(const quire_sampling_args& args, int32_t row, float* logits, TokenCounts& counts);

}  // namespace quire
