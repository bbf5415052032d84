#include "sampler_edits.hpp"

#include <algorithm>
#include <limits>

namespace quire {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool penalised(const quire_sampling_row& row) {
    return row.repetition_penalty != 1.0f || row.frequency_penalty != 0.0f || row.presence_penalty != 0.0f;
}

bool bans(const quire_sampling_args& args, int32_t row) {
    const quire_sampling_row& plan = args.rows[row];
    return args.banned_starts != nullptr && plan.num_tokens - plan.num_prompt_tokens < plan.min_tokens &&
           args.banned_starts[row] < args.banned_starts[row + 1];
}

bool biased(const quire_sampling_args& args, int32_t row) {
    return args.bias_starts != nullptr && args.bias_starts[row] < args.bias_starts[row + 1];
}

void apply_mask(const uint32_t* mask, int32_t vocab_size, float* logits) {
    for (int32_t first = 0; first < vocab_size; first += 32) {
        const uint32_t word = mask[first / 32];
        if (word == ~uint32_t{0}) continue;
        const int32_t count = std::min(32, vocab_size - first);
        for (int32_t i = 0; i < count; ++i) {
            if (!(word >> i & 1)) logits[first + i] = kMinusInfinity;
        }
    }
}

void count_tokens(const int32_t* first, const int32_t* last, int32_t occurrences, int32_t vocab_size,
                  TokenCounts& counts) {
    for (; first != last; ++first) {
        // Ids beyond the vocabulary have no logit.
        if (static_cast<uint32_t>(*first) >= static_cast<uint32_t>(vocab_size)) continue;
        int32_t& seen = counts.seen[*first];
        if (seen == 0) {
            seen = 1;
            counts.ids.push_back(*first);
        }
        seen += occurrences;
    }
}

void apply_penalties(const quire_sampling_row& row, const int32_t* history, int32_t vocab_size, float* logits,
                     TokenCounts& counts) {
    counts.seen.resize(vocab_size);
    counts.ids.clear();
    const int32_t* const output = history + row.num_prompt_tokens;
    // The prompt matters to the repetition penalty alone.
    if (row.repetition_penalty != 1.0f) count_tokens(history, output, 0, vocab_size, counts);
    count_tokens(output, history + row.num_tokens, 1, vocab_size, counts);
    for (const int32_t id : counts.ids) {
        const float count = static_cast<float>(counts.seen[id] - 1);
        const float presence = count > 0.0f ? row.presence_penalty : 0.0f;
        float& logit = logits[id];
        logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
        logit -= row.frequency_penalty * count + presence;
        counts.seen[id] = 0;
    }
}

}  // namespace

bool wants_edits(const quire_sampling_args& args, int32_t row) {
    return biased(args, row) || bans(args, row) || args.rows[row].mask_row >= 0 || penalised(args.rows[row]);
}

void apply_edits(const quire_sampling_args& args, int32_t row, float* logits, TokenCounts& counts) {
    const quire_sampling_row& plan = args.rows[row];
    if (biased(args, row)) {
        for (int32_t i = args.bias_starts[row]; i < args.bias_starts[row + 1]; ++i) {
            logits[args.bias_ids[i]] += args.bias_values[i];
        }
    }
    if (bans(args, row)) {
        for (int32_t i = args.banned_starts[row]; i < args.banned_starts[row + 1]; ++i) {
            logits[args.banned_ids[i]] = kMinusInfinity;
        }
    }
    if (plan.mask_row >= 0) apply_mask(args.allowed_masks + plan.mask_row * args.mask_stride, args.vocab_size, logits);
    if (penalised(plan)) {
        apply_penalties(plan, args.token_ids + plan.token_row * args.token_stride, args.vocab_size, logits, counts);
    }
}

}  // namespace quire
