// What a forecaster makes of decoded frames.  docs/format.md, section 21.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "portable.hpp"

namespace aesz {

constexpr int64_t kFarthest = 1 << 20;  // points that a tap lies ahead

// A frame as lines along its last axis; axes before the last two are planes of their own.
struct FrameShape {
    int64_t planes, lines, width;
};

// One product of a weighted sum: the frame, and how far its points lie ahead.
struct FrameTap {
    int64_t frame, lines, columns;
    double weight;
};

// Adds weight x (value `columns` ahead, the nearest one beyond the ends) to a line.
template <class T>
inline void add_shifted(const T* line, int64_t width, int64_t columns, double weight, double* AESZ_RESTRICT sum) {
    const int64_t from = std::clamp<int64_t>(-columns, 0, width), to = std::clamp<int64_t>(width - columns, from, width);
    const double first = static_cast<double>(line[0]), last = static_cast<double>(line[width - 1]);
    for (int64_t i = 0; i < from; ++i) sum[i] += weight * first;
    for (int64_t i = from; i < to; ++i) sum[i] += weight * static_cast<double>(line[i + columns]);
    for (int64_t i = to; i < width; ++i) sum[i] += weight * last;
}

// The sum of the products, in their order; lines beyond the ends are the nearest ones.
template <class T>
inline void weighted_frames(const FrameShape& shape, const std::vector<const T*>& frames, const std::vector<FrameTap>& taps,
                            T* out) {
    std::vector<double> sum(static_cast<std::size_t>(shape.width));
    for (int64_t plane = 0; plane < shape.planes; ++plane)
        for (int64_t y = 0; y < shape.lines; ++y, out += shape.width) {
            std::fill(sum.begin(), sum.end(), 0.0);
            for (const FrameTap& tap : taps) {
                const int64_t line = std::clamp<int64_t>(y + tap.lines, 0, shape.lines - 1);
                add_shifted(frames[static_cast<std::size_t>(tap.frame)] + (plane * shape.lines + line) * shape.width, shape.width,
                            tap.columns, tap.weight, sum.data());
            }
            for (int64_t x = 0; x < shape.width; ++x) out[x] = static_cast<T>(sum[static_cast<std::size_t>(x)]);
        }
}

// A frame whose blocks come from elsewhere: `vectors` are (lines, columns) ahead in halves, for blocks x blocks points each, in C
// order; between points the mean of two or four.
template <class T>
inline void moved_frame(const FrameShape& shape, const T* frame, const int16_t* vectors, int64_t block, T* out) {
    const int64_t across = (shape.width + block - 1) / block, down = (shape.lines + block - 1) / block;
    const auto at = [&](int64_t plane, int64_t y, int64_t x) {
        y = std::clamp<int64_t>(y, 0, shape.lines - 1);
        x = std::clamp<int64_t>(x, 0, shape.width - 1);
        return static_cast<double>(frame[(plane * shape.lines + y) * shape.width + x]);
    };
    for (int64_t plane = 0; plane < shape.planes; ++plane)
        for (int64_t y = 0; y < shape.lines; ++y)
            for (int64_t b = 0; b < across; ++b) {
                const int16_t* v = vectors + 2 * ((plane * down + y / block) * across + b);
                const int64_t y0 = y + (v[0] >> 1), y1 = y0 + (v[0] & 1), dx = v[1] >> 1, half = v[1] & 1;
                T* const line = out + (plane * shape.lines + y) * shape.width;
                for (int64_t x = b * block; x < std::min((b + 1) * block, shape.width); ++x) {
                    const int64_t x0 = x + dx, x1 = x0 + half;
                    line[x] = static_cast<T>(0.25 *
                                             ((at(plane, y0, x0) + at(plane, y0, x1)) + (at(plane, y1, x0) + at(plane, y1, x1))));
                }
            }
}

}  // namespace aesz
