#include "sampler_select.hpp"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <functional>

namespace quire {
namespace {

// As many weights as are sorted at once: sorting these costs about as much as another pass over the vocabulary.
constexpr int64_t kCandidates = 512;
// The rank among the blocks' maxima at which a nucleus is first looked for, and the highest that is tried.
constexpr int64_t kFirstRank = 64;
constexpr int64_t kLastRank = 256;
// The exponential gives nothing smaller, except 0.
constexpr float kSmallest = FLT_MIN;

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Narrows down where the boundary lies: below `high_`, and, once that is known, not below `low_`.
class Search {
public:
    Search(const SamplerKernels& kernels, const Weights& weights, const Target& target, std::vector<float>& scratch)
        : kernels_(kernels), weights_(weights), target_(target), scratch_(scratch) {
        scratch_.resize(std::max<int64_t>(kCandidates + kSamplerBlock, weights.num_blocks));
    }

    float run() {
        float found;
        if (look_at_the_most_likely(&found)) return found;
        // The likely weights were too few: the distribution is flat, and what is missing lies mostly close below.
        const float first[kThresholds] = {kSmallest, high_ * 0x1p-8f, high_ * 0x1p-3f, high_ * 0.5f};
        if (!narrow(first)) return 0.0f;
        while (bits_of(high_) - bits_of(low_) > 1) {
            if (at_low_.count - above_.count <= kCandidates) return pick(low_);
            float thresholds[kThresholds];
            // Positive floats are ordered as their bits are.
            const uint64_t low = bits_of(low_), distance = bits_of(high_) - low;
            for (int t = 0; t < kThresholds; ++t) {
                thresholds[t] = from_bits(static_cast<uint32_t>(low + distance * (t + 1) / (kThresholds + 1)));
            }
            narrow(thresholds);
        }
        return low_;  // equal weights, more than are sorted
    }

private:
    // As many blocks' maxima as the rank are at or above the one of that rank, and few weights beside them.
    bool look_at_the_most_likely(float* found) {
        const int64_t rank = target_.count > 1 ? target_.count : kFirstRank;
        if (rank > std::min(kLastRank, weights_.num_blocks)) return false;
        std::copy_n(weights_.maxima, weights_.num_blocks, scratch_.begin());
        const auto last = scratch_.begin() + weights_.num_blocks;
        std::nth_element(scratch_.begin(), scratch_.begin() + (rank - 1), last, std::greater<float>());
        const float low = std::max(scratch_[rank - 1], kSmallest);
        const int64_t count = gather(low);
        if (count > kCandidates) return false;
        if (walk(count, found)) return true;
        high_ = low;
        return false;
    }

    // Of the thresholds, takes those next to the boundary. False if it lies below all of them.
    bool narrow(const float* thresholds) {
        Measure measures[kThresholds];
        kernels_.measure(weights_, thresholds, measures);
        for (int t = kThresholds - 1; t >= 0; --t) {
            if (thresholds[t] >= high_) continue;
            if (target_.reached_by(measures[t])) {
                low_ = thresholds[t];
                at_low_ = measures[t];
                return true;
            }
            high_ = thresholds[t];
            above_ = measures[t];
        }
        return false;
    }

    // The boundary among the weights in [low, high_), which are few.
    float pick(float low) {
        float found = low;
        const int64_t count = gather(low);
        // Sums in another order may fall short by their last bits: then it is the lowest of them.
        if (!walk(count, &found) && count > 0) found = scratch_[count - 1];
        return found;
    }

    int64_t gather(float low) { return kernels_.gather(weights_, low, high_, scratch_.data(), kCandidates); }

    // From the largest of the first `count` of scratch downwards, on top of what lies above.
    bool walk(int64_t count, float* found) {
        std::sort(scratch_.begin(), scratch_.begin() + count, std::greater<float>());
        Measure measure = above_;
        for (int64_t i = 0; i < count; ++i) {
            ++measure.count;
            measure.mass += scratch_[i];
            if (target_.reached_by(measure)) {
                *found = scratch_[i];
                return true;
            }
        }
        above_ = measure;
        return false;
    }

    const SamplerKernels& kernels_;
    const Weights& weights_;
    const Target& target_;
    std::vector<float>& scratch_;
    float high_ = 2.0f;  // above every weight
    float low_ = 0.0f;
    Measure above_ = {0, 0.0};  // at or above high_
    Measure at_low_ = {0, 0.0};
};

}  // namespace

float boundary(const SamplerKernels& kernels, const Weights& weights, const Target& target,
               std::vector<float>& scratch) {
    return Search(kernels, weights, target, scratch).run();
}

}  // namespace quire
