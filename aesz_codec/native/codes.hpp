// Codes: the quantizer's integers, and what their coders are told of a line of them.  docs/format.md, section 8.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "portable.hpp"

namespace aesz {

constexpr int32_t kOutlier = INT32_MIN;  // "this value is stored exactly"
constexpr int32_t kLargestCode = 1 << 30;
constexpr int32_t kClip = 4095;        // codes are remembered up to this magnitude
constexpr int32_t kNarrowClip = 2047;  // by the static coder

inline int16_t remembered(int32_t code, int32_t clip = kClip) {
    return static_cast<int16_t>(code == kOutlier ? clip : std::clamp(code, -clip, clip));
}

// Logarithmic class of an expected magnitude in 1/16: four classes an octave.
constexpr int kClasses = 64;
struct ScaleClasses {
    static int of(uint32_t expected16) {
        const uint32_t v = expected16 + 4;
        const int e = highest_bit(v);
        return std::min(4 * (e - 2) + static_cast<int>(v >> (e - 2) & 3), kClasses - 1);
    }
    std::array<uint8_t, 4096> small;
    ScaleClasses() {
        for (uint32_t x = 0; x < small.size(); ++x) small[x] = static_cast<uint8_t>(of(x));
    }
};
inline const ScaleClasses kScaleClasses;
AESZ_INLINE int scale_class(uint32_t expected16) {
    if (AESZ_UNLIKELY(expected16 >= kScaleClasses.small.size())) return ScaleClasses::of(expected16);
    return kScaleClasses.small[expected16];
}

// Classes that a network gives: four an octave as well, but from magnitudes in 1/256 on.
constexpr int kLearnedFiner = 16, kLearnedClasses = kClasses + kLearnedFiner;

// What is known around the points of a line before its first is coded: magnitudes in 1/16, and the codes of the line before.
struct LineSums {
    std::vector<uint32_t> expected;  // weighted sum over all neighbours, without those in the line
    std::vector<uint32_t> near;      // of the nearest points of earlier passes
    std::vector<uint32_t> other;     // of the plane or the frame before
    std::vector<int32_t> north;
    std::vector<uint16_t> narrow;  // for the static coder: `expected`, of codes clipped to kNarrowClip
    explicit LineSums(std::size_t width = 0) : expected(width), near(width), other(width), north(width), narrow(width) {}
};

constexpr int kGroups = 7;

// A line of codes to be written or read.
struct CodeLine {
    const LineSums& sums;
    int group;             // kind of pass
    uint32_t west_weight;  // of the code before, in `expected`; the one before that counts 1
    bool quiet;            // whether blocks among zeros are coded at once
    const uint8_t* mask;   // of the first point, or none
    int64_t distance;      // elements between points, for the mask
    int64_t count;
    const uint8_t* scale = nullptr;  // learned classes of magnitudes, or none

    bool masked(int64_t i) const { return mask && mask[i * distance]; }
};

}  // namespace aesz
