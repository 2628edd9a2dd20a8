// Integer weights of a model pack, row by row, by significance, sign and greater-than decisions.  docs/packs.md, section 5.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "closed_loop.hpp"
#include "models.hpp"
#include "range_coder.hpp"

namespace aesz {

// Codes one tensor; create one for each.
template <class Coder>
class WeightCodes {
  public:
    explicit WeightCodes(Coder& coder) : coder_(coder), tables_(std::make_unique<Tables>()) {}

    // `width` weights of one row; `above` is the row before, or null.  The decoder checks that all lie in lowest..highest.
    void row(int32_t* values, const int32_t* above, int64_t width, int64_t lowest, int64_t highest) {
        for (int64_t i = 0; i < width; ++i) {
            const int64_t weight =
                code({i > 0 ? &values[i - 1] : nullptr, i > 1 ? &values[i - 2] : nullptr, above ? &above[i] : nullptr,
                      above && i > 0 ? &above[i - 1] : nullptr, above && i + 1 < width ? &above[i + 1] : nullptr},
                     values[i]);
            if (Coder::decoding) {
                if (weight < lowest || weight > highest) throw CorruptStream("a weight is out of its range");
                values[i] = static_cast<int32_t>(weight);
            }
            learn(clipped(weight));
        }
    }

  private:
    static constexpr int kFlags = 2, kMostBits = 30, kScales = 46, kContexts = 5;
    static constexpr int kLength = kFlags + 2, kTop = kLength + kMostBits, kNodes = kTop + 3 * kMostBits;
    static constexpr uint32_t kClipped = 1 << 20, kHalveAt = 256;
    using Models = Bit[kNodes];

    // Weights that are coded already; null where there is none.
    struct Neighbours {
        const int32_t *west, *west2, *north, *north_west, *north_east;
    };
    struct Tables {
        Models scale[kScales], all[1], signs[9 * 4], sizes[6 * 6], recent[kScales];
        Mixer<kContexts> mixer[kNodes];
    };

    static uint32_t clipped(int64_t weight) {
        const int64_t size = weight < 0 ? -weight : weight;
        return size < kClipped ? static_cast<uint32_t>(size) : kClipped;
    }
    // Two classes an octave of a magnitude in 1/16.
    static int scale_of(uint32_t size16) {
        const uint32_t v = size16 + 4;
        const int e = highest_bit(v);
        return std::min(2 * (e - 2) + static_cast<int>(v >> (e - 1) & 1), kScales - 1);
    }
    static int sign_of(const int32_t* weight) { return !weight || *weight == 0 ? 1 : *weight < 0 ? 0 : 2; }

    void learn(uint32_t size) {
        sum_ += size;
        if (++count_ == kHalveAt) {
            sum_ /= 2;
            count_ /= 2;
        }
        recent_ += 2 * size - recent_ / 8;
    }

    int64_t code(const Neighbours& near, int64_t weight) {
        const uint32_t mean = static_cast<uint32_t>(16 * sum_ / std::max<uint64_t>(count_, 1));
        const auto size = [mean](const int32_t* w) { return w ? 16 * clipped(*w) : mean; };
        const uint32_t west = size(near.west), north = size(near.north);
        const uint32_t expected =
            (2 * west + size(near.west2) + 2 * north + size(near.north_west) + size(near.north_east) + mean) / 8;
        const int base = scale_of(mean), scale = scale_of(expected);
        const auto relative = [base](uint32_t s) { return std::clamp(scale_of(s) - base + 7, 0, 11) / 2; };
        Tables& t = *tables_;
        rows_[0] = t.scale[scale];
        rows_[1] = t.all[0];
        rows_[2] = t.signs[4 * (3 * sign_of(near.west) + sign_of(near.north)) + std::clamp(scale - base + 4, 0, 7) / 2];
        rows_[3] = t.sizes[6 * relative(west) + relative(north)];
        rows_[4] = t.recent[scale_of(recent_)];

        if (!decide(0, weight != 0)) return 0;
        const bool positive = decide(1, weight > 0);
        const int64_t magnitude = weight < 0 ? -weight : weight;
        for (int64_t k = 1; k <= kFlags; ++k)
            if (!decide(static_cast<int>(k) + 1, magnitude > k)) return positive ? k : -k;
        const int64_t beyond = kFlags + exp_golomb(static_cast<uint32_t>(magnitude - kFlags));
        return positive ? beyond : -beyond;
    }

    // v > 0: its length in unary, then its bits below the highest, the first two of them by models.
    int64_t exp_golomb(uint32_t v) {
        const int most = Coder::decoding ? 0 : highest_bit(v);
        int bits = 0;
        while (bits < kMostBits && decide(kLength + bits, bits < most)) ++bits;
        uint32_t value = 1;
        int left = bits, node = kTop + 3 * (bits - 1);
        for (int i = 0; i < 2 && left > 0; ++i) {
            --left;
            const auto bit = static_cast<uint32_t>(decide(node, v >> left & 1));
            value = 2 * value + bit;
            node += 1 + static_cast<int>(bit);
        }
        while (left > 0) {
            const int n = std::min(left, 16);
            left -= n;
            value = value << n | coder_.raw(v >> left & ((1u << n) - 1), n);
        }
        return value;
    }

    int decide(int node, int value) {
        Bit* const models[kContexts] = {rows_[0] + node, rows_[1] + node, rows_[2] + node, rows_[3] + node, rows_[4] + node};
        return code_mixed<kContexts>(coder_, models, tables_->mixer[node], value);
    }

    Coder& coder_;
    std::unique_ptr<Tables> tables_;
    Bit* rows_[kContexts] = {};
    uint64_t sum_ = 0, count_ = 0;  // of magnitudes, slowly forgotten
    uint32_t recent_ = 0;           // mean of the last few magnitudes in 1/16
};

}  // namespace aesz
