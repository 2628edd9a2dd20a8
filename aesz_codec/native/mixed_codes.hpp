// Codes lines of the quantizer's integers by binary decisions that mix seven contexts.  docs/format.md, section 8b.
#pragma once

#include <algorithm>
#include <cstdint>

#include "codes.hpp"
#include "mixing.hpp"

namespace aesz {

// What the contexts are is told in `one`.
constexpr int kMixedContexts[kContexts] = {kGroups * 80 * 3,
                                           16 * 64,
                                           24 * 24 * 3,
                                           24 * 24 * 3,
                                           12 * 12 * 12,
                                           243 * 12,
                                           80 * 24 * 3 > kGroups * 24 * 24 ? 80 * 24 * 3 : kGroups * 24 * 24};

template <class Coder>
class MixedCodes {
  public:
    static constexpr bool decoding = Coder::decoding;
    static constexpr int32_t clip = kClip;
    static constexpr bool narrow = false;

    explicit MixedCodes(Coder& coder) : coder_(coder), models_(kMixedContexts, kGroups) {}

    // Writes the codes of a line, or fills them in; masked places have 0.
    void line(const CodeLine& l, int32_t* code) {
        const uint32_t *expected = l.sums.expected.data(), *near = l.sums.near.data(), *other = l.sums.other.data();
        const int32_t* north = l.sums.north.data();
        int32_t west = 0, west2 = 0;
        for (int64_t i = 0; i < l.count; ++i) {
            if (l.masked(i)) {
                code[i] = 0;
                continue;
            }
            Context c;
            c.group = l.group;
            c.learned = l.scale ? l.scale[i] : -1;
            c.expected = expected[i] + l.west_weight * magnitude(west) + magnitude(west2);
            c.near = near[i];
            c.other = other[i];
            c.west = west;
            c.west2 = west2;
            c.north = north[i];
            c.northwest = i > 0 ? north[i - 1] : 0;
            c.northeast = i + 1 < l.count ? north[i + 1] : 0;
            code[i] = one(c, code[i]);
            west2 = west;
            west = remembered(code[i]);
        }
    }

    // Signed integers of side information.
    int32_t code_integer(int32_t value) { return code_signed(coder_, integer_, value); }

  private:
    // What is known of a value before it is coded.
    struct Context {
        uint32_t expected, near, other;  // as in LineSums
        int32_t west, west2, north, northwest, northeast;
        int group;
        int learned;
    };

    int32_t one(const Context& c, int32_t value) {
        const int scale = scale_class(c.expected), s2 = std::min(scale / 2, 23), s4 = std::min(scale / 4, 11);
        const int near = std::min(scale_class(c.near) / 2, 23), other = std::min(scale_class(c.other) / 2, 23);
        const int32_t lean = 2 * c.west + c.north;
        const int flip = lean < 0 ? -1 : 1;
        const auto sign = [flip](int32_t x) { return (x * flip > 0) - (x * flip < 0) + 1; };
        const auto small = [](int32_t x, int most) { return std::min(static_cast<int>(magnitude(x)), most); };
        const auto coarse = [](int32_t x) { return std::min(scale_class(16 * magnitude(x)) / 4, 11); };
        const int bias = (16 * magnitude(lean) > 0) + (16 * magnitude(lean) > c.expected);
        const int context[kContexts] = {
            c.learned >= 0 ? (c.group * 80 + c.learned) * 3 + bias : (c.group * 64 + scale) * 3 + bias,
            (small(c.west, 3) * 4 + small(c.north, 3)) * 64 + (small(c.west2, 1) * 2 + small(c.northeast, 1)) * 16 +
                std::min(s2, 15),
            (near * 24 + s2) * 3 + bias,
            (other * 24 + s2) * 3 + bias,
            (coarse(c.northeast) * 12 + coarse(c.northwest)) * 12 + s4,
            ((((sign(c.west) * 3 + sign(c.north)) * 3 + sign(c.northeast)) * 3 + sign(c.northwest)) * 3 + sign(c.west2)) * 12 +
                s4,
            c.learned >= 0 ? (c.learned * 24 + s2) * 3 + bias : (c.group * 24 + near) * 24 + other,
        };
        const auto turned = [flip](int32_t x) { return x == kOutlier ? kOutlier : flip * x; };
        return turned(models_.code(coder_, context, scale, c.group, turned(value), &outlier_));
    }

    Coder& coder_;
    MixedTokens models_;
    Bit outlier_, integer_[32];
};

}  // namespace aesz
