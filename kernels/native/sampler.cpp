// A token for each row of logits. ../sampling.py says what is computed; here is how.
//
// A greedy row is one pass for the blocks' maxima. A drawn row is two: the second weighs every token and sums the
// blocks, so that a draw looks into one block only. Filters cut the distribution at a weight, which
// sampler_select.cpp finds without sorting; the draw then is over the weights at or above it.
#include "sampler.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "isa.hpp"
#include "philox.hpp"
#include "sampler_edits.hpp"
#include "sampler_select.hpp"
#include "thread_pool.hpp"

namespace quire {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Logits below which waking a thread (some 50 us) costs more than it saves; a drawn row counts several times.
constexpr int64_t kParallelWork = 400'000;
constexpr int64_t kDrawnPasses = 4;

struct Candidate {
    float logit;
    int32_t id;

    // Likelier, or as likely and of a lower id.
    bool operator<(const Candidate& other) const {
        return logit > other.logit || (logit == other.logit && id < other.id);
    }
};

// One thread's working memory. It stays: a step must not go to the allocator for every row.
struct RowScratch {
    std::vector<float> edited, values, maxima, weight_maxima, sums, selection;
    std::vector<Candidate> candidates;
    TokenCounts counts;

    void reserve(int64_t vocab_size) {
        const size_t num_blocks = sampler_blocks(vocab_size);
        for (std::vector<float>* blocks : {&maxima, &weight_maxima, &sums}) {
            if (blocks->size() < num_blocks) blocks->resize(num_blocks);
        }
    }
};

class Row {
public:
    Row(const quire_sampling_args& args, int32_t row, const SamplerKernels& kernels, RowScratch& scratch)
        : args_(args), row_(row), plan_(args.rows[row]), kernels_(kernels), scratch_(scratch),
          num_blocks_(sampler_blocks(args.vocab_size)), logits_(args.logits + row * args.logits_stride) {
        scratch_.reserve(args.vocab_size);
    }

    void sample() {
        const float* const untouched = logits_;
        const bool reports = plan_.num_logprobs >= 0;
        double log_total = 0.0;
        if (reports) {
            find_maxima();
            log_total = highest_ + std::log(weigh(1.0f, nullptr));
            report_most_likely(log_total);
        }
        if (wants_edits(args_, row_)) {
            if (reports) copy_logits();  // the sampled token's logprob is that of its untouched logit
            apply_edits(args_, row_, logits_, scratch_.counts);
            find_maxima();
        } else if (!reports) {
            find_maxima();
        }
        const int32_t token = choose();
        args_.sampled[row_] = token;
        args_.impossible[row_] = highest_ == kMinusInfinity;
        if (reports) args_.logprobs[row_] = logprob(untouched[token], log_total);
    }

private:
    void find_maxima() {
        kernels_.find_maxima(logits_, args_.vocab_size, scratch_.maxima.data());
        highest_ = *std::max_element(scratch_.maxima.begin(), scratch_.maxima.begin() + num_blocks_);
    }

    int32_t choose() {
        // Without a finite maximum there is no distribution; +inf is certain.
        if (plan_.temperature <= 0.0f || !std::isfinite(highest_)) return most_likely();
        return draw();
    }

    // The lowest id of equals; 0 where no logit is a number.
    int32_t most_likely() const {
        const float* const maxima = scratch_.maxima.data();
        const int64_t first = (std::find(maxima, maxima + num_blocks_, highest_) - maxima) * kSamplerBlock;
        const float* const logits = logits_;
        const float* const end = logits + std::min<int64_t>(first + kSamplerBlock, args_.vocab_size);
        const float* const found = std::find(logits + first, end, highest_);
        return found == end || highest_ == kMinusInfinity ? 0 : static_cast<int32_t>(found - logits);
    }

    int32_t draw() {
        // 0 * inf would be nan: where the quotient overflows, all but the maximum weigh 0 in any case.
        const float inverse_temperature = std::min(1.0f / plan_.temperature, FLT_MAX);
        const bool filtered = (plan_.top_k > 0 && plan_.top_k < args_.vocab_size) || plan_.top_p < 1.0f ||
                              plan_.min_p > 0.0f;
        float* values = nullptr;
        if (filtered) {
            scratch_.values.resize(std::max<size_t>(scratch_.values.size(), num_blocks_ * kSamplerBlock));
            values = scratch_.values.data();
        }
        double total = weigh(inverse_temperature, values);
        float bound = 0.0f;
        if (filtered) {
            bound = filter(values, total);
            total = sum_above(values, bound);
        }
        const double number = philox_uniform(
            plan_.seed, static_cast<uint32_t>(plan_.num_tokens - plan_.num_prompt_tokens), plan_.sequence_index);
        // Rounding must not reach the total itself: beyond it there is no token.
        const double point = std::min(number * total, std::nextafter(total, 0.0));
        return find(point, bound, inverse_temperature);
    }

    // The weight that a token must reach to be kept.
    float filter(float* values, double total) {
        const Weights weights = weights_in(values);
        float bound = plan_.min_p;
        if (plan_.top_k > 0 && plan_.top_k < args_.vocab_size) {
            bound = std::max(bound, boundary(kernels_, weights, {plan_.top_k, 0.0}, scratch_.selection));
        }
        if (plan_.top_p < 1.0f) {
            const double mass = bound > 0.0f ? sum_above(values, bound) : total;
            bound = std::max(bound, boundary(kernels_, weights, {1, plan_.top_p * mass}, scratch_.selection));
        }
        return bound;
    }

    // The first token at which the cumulative sum of the kept weights exceeds the point.
    int32_t find(double point, float bound, float inverse_temperature) {
        int64_t block = -1;
        double below = 0.0, next = 0.0;
        for (int64_t b = 0; b < num_blocks_ && next <= point; ++b) {
            if (scratch_.sums[b] == 0.0f) continue;
            block = b;
            below = next;
            next += scratch_.sums[b];
        }
        const int64_t first = block * kSamplerBlock;
        const int64_t count = std::min<int64_t>(kSamplerBlock, args_.vocab_size - first);
        float values[kSamplerBlock], maximum, sum;
        kernels_.weigh(logits_ + first, count, highest_, inverse_temperature, {values, &maximum, &sum, 1});
        int32_t token = 0;
        for (int64_t i = 0; i < count && below <= point; ++i) {
            // Sums round in another order here: the last one that is kept stands where they fall short.
            if (values[i] < bound || values[i] == 0.0f) continue;
            token = static_cast<int32_t>(first + i);
            below += values[i];
        }
        return token;
    }

    Weights weights_in(float* values) const {
        return {values, scratch_.weight_maxima.data(), scratch_.sums.data(), num_blocks_};
    }

    // The sum of all weights.
    double weigh(float inverse_temperature, float* values) {
        kernels_.weigh(logits_, args_.vocab_size, highest_, inverse_temperature, weights_in(values));
        return sum_of_blocks();
    }

    double sum_above(float* values, float bound) {
        kernels_.sum_above(weights_in(values), bound);
        return sum_of_blocks();
    }

    double sum_of_blocks() const {
        double total = 0.0;
        for (int64_t block = 0; block < num_blocks_; ++block) total += scratch_.sums[block];
        return total;
    }

    void report_most_likely(double log_total) {
        const int32_t count = std::min(plan_.num_logprobs, args_.vocab_size);
        if (count == 0) return;
        std::vector<Candidate>& candidates = scratch_.candidates;
        collect_candidates(lower_bound_of_rank(count), candidates);
        std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end());
        for (int32_t i = 0; i < count; ++i) {
            args_.top_ids[row_ * args_.top_stride + i] = candidates[i].id;
            args_.top_logprobs[row_ * args_.top_stride + i] = logprob(candidates[i].logit, log_total);
        }
    }

    // At least `rank` logits are at or above it, and few more: each block has one that is its maximum.
    float lower_bound_of_rank(int32_t rank) {
        if (rank > num_blocks_) return kMinusInfinity;
        std::vector<float>& maxima = scratch_.selection;
        maxima.assign(scratch_.maxima.begin(), scratch_.maxima.begin() + num_blocks_);
        std::nth_element(maxima.begin(), maxima.begin() + (rank - 1), maxima.end(), std::greater<float>());
        return maxima[rank - 1];
    }

    void collect_candidates(float bound, std::vector<Candidate>& candidates) const {
        candidates.clear();
        for (int64_t block = 0; block < num_blocks_; ++block) {
            if (scratch_.maxima[block] < bound) continue;
            const int32_t first = static_cast<int32_t>(block * kSamplerBlock);
            const int32_t last = std::min(first + kSamplerBlock, args_.vocab_size);
            for (int32_t id = first; id < last; ++id) {
                const float logit = std::isnan(logits_[id]) ? kMinusInfinity : logits_[id];
                if (logit >= bound) candidates.push_back({logit, id});
            }
        }
    }

    // -inf for what cannot be, and where nothing can be.
    float logprob(float logit, double log_total) const {
        const float value = static_cast<float>(logit - log_total);
        return std::isnan(value) ? kMinusInfinity : value;
    }

    void copy_logits() {
        scratch_.edited.assign(logits_, logits_ + args_.vocab_size);
        logits_ = scratch_.edited.data();
    }

    const quire_sampling_args& args_;
    const int32_t row_;
    const quire_sampling_row& plan_;
    const SamplerKernels& kernels_;
    RowScratch& scratch_;
    const int64_t num_blocks_;
    float* logits_;
    float highest_ = kMinusInfinity;
};

bool entries_are_valid(const int32_t* starts, const int32_t* ids, const quire_sampling_args& args) {
    if (starts == nullptr) return true;
    if (starts[0] != 0) return false;
    for (int32_t row = 0; row < args.num_rows; ++row) {
        if (starts[row + 1] < starts[row]) return false;
    }
    return std::all_of(ids, ids + starts[args.num_rows], [&](int32_t id) { return id >= 0 && id < args.vocab_size; });
}

}  // namespace

int32_t check_sampling(const quire_sampling_args& args, const ErrorBuffer& error) {
    if (args.vocab_size < 1) return error.fail("logits must have a vocabulary");
    for (int32_t i = 0; i < args.num_rows; ++i) {
        const quire_sampling_row& row = args.rows[i];
        if (row.token_row < 0 || row.token_row >= args.num_token_rows || row.num_prompt_tokens < 0 ||
            row.num_tokens < row.num_prompt_tokens || row.num_tokens > args.token_stride) {
            return error.fail("rows[%d] names tokens %d and %d of row %d, outside token_ids", i, row.num_prompt_tokens,
                              row.num_tokens, row.token_row);
        }
        if (row.mask_row >= args.num_mask_rows) {
            return error.fail("rows[%d] names row %d, outside allowed_masks", i, row.mask_row);
        }
        if (row.num_logprobs > args.top_stride) {
            return error.fail("rows[%d] wants %d logprobs, more than the output has room for", i, row.num_logprobs);
        }
    }
    if (!entries_are_valid(args.bias_starts, args.bias_ids, args)) {
        return error.fail("bias_starts falls, or bias_ids has an id outside the vocabulary");
    }
    if (!entries_are_valid(args.banned_starts, args.banned_ids, args)) {
        return error.fail("banned_starts falls, or banned_ids has an id outside the vocabulary");
    }
    return 0;
}

void sample(const quire_sampling_args& args) {
    const SamplerKernels& kernels = sampler_kernels();
    const auto body = [&](int64_t row, int) {
        static thread_local RowScratch scratch;
        Row(args, static_cast<int32_t>(row), kernels, scratch).sample();
    };
    const int64_t drawn = std::count_if(args.rows, args.rows + args.num_rows,
                                        [](const quire_sampling_row& row) { return row.temperature > 0.0f; });
    const int64_t work = (args.num_rows + drawn * (kDrawnPasses - 1)) * args.vocab_size;
    if (work < kParallelWork) {
        for (int64_t row = 0; row < args.num_rows; ++row) body(row, 0);
    } else {
        parallel_for(args.num_rows, body);
    }
}

}  // namespace quire

int32_t quire_sample(const quire_sampling_args* args, char* error, size_t error_size) {
    if (quire::check_sampling(*args, {error, error_size})) return 1;
    quire::sample(*args);
    return 0;
}
