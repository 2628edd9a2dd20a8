// What a forecaster makes of decoded frames.  docs/format.md, section 21.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "kernels.hpp"
#include "least_squares.hpp"
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

// The sum of the products, in their order; points beyond the ends are the nearest ones.  One frame alone is taken as it is.
template <class T>
inline void weighted_frames(const FrameShape& shape, const std::vector<const T*>& frames, const std::vector<FrameTap>& taps,
                            T* out) {
    if (taps.size() == 1 && taps[0].lines == 0 && taps[0].columns == 0 && taps[0].weight == 1.0) {
        std::copy_n(frames[static_cast<std::size_t>(taps[0].frame)], shape.planes * shape.lines * shape.width, out);
        return;
    }
    std::vector<double> sum(static_cast<std::size_t>(shape.width)), weight;
    std::vector<const T*> line(taps.size()), moved(taps.size());
    int64_t from = 0, to = shape.width;  // where no column lies beyond an end
    for (const FrameTap& tap : taps) {
        weight.push_back(tap.weight);
        from = std::max(from, -tap.columns);
        to = std::min(to, shape.width - tap.columns);
    }
    from = std::min(from, shape.width);
    to = std::max(to, from);
    const auto at_end = [&](int64_t x) {
        double& s = sum[static_cast<std::size_t>(x)] = 0.0;
        for (std::size_t k = 0; k < taps.size(); ++k)
            s += weight[k] * static_cast<double>(line[k][std::clamp<int64_t>(x + taps[k].columns, 0, shape.width - 1)]);
    };
    for (int64_t plane = 0; plane < shape.planes; ++plane)
        for (int64_t y = 0; y < shape.lines; ++y, out += shape.width) {
            for (std::size_t k = 0; k < taps.size(); ++k) {
                const int64_t there = plane * shape.lines + std::clamp<int64_t>(y + taps[k].lines, 0, shape.lines - 1);
                line[k] = frames[static_cast<std::size_t>(taps[k].frame)] + there * shape.width;
                if (to > from) moved[k] = line[k] + from + taps[k].columns;
            }
            for (int64_t x = 0; x < from; ++x) at_end(x);
            if (to > from) weigh_lines(moved.data(), weight.data(), static_cast<int>(taps.size()), to - from, sum.data() + from);
            for (int64_t x = to; x < shape.width; ++x) at_end(x);
            for (int64_t x = 0; x < shape.width; ++x) out[x] = static_cast<T>(sum[static_cast<std::size_t>(x)]);
        }
}

// What references are made of where each is a weighted sum of decoded frames: by frame the number of the sum, or -1 if it has
// none, and the two frames that its taps count, or -1.
struct FrameSums {
    struct Row {
        int64_t sum;
        std::array<int64_t, 2> frame;
    };
    std::vector<std::vector<FrameTap>> sums;
    std::vector<Row> rows;

    // The reference of a frame of a chunk; false if it has none.
    template <class T>
    bool predict(const FrameShape& shape, const T* chunk, int64_t frame, T* out) const {
        const Row& row = rows[static_cast<std::size_t>(frame)];
        if (row.sum < 0) return false;
        const int64_t size = shape.planes * shape.lines * shape.width;
        std::vector<const T*> source;
        for (const int64_t from : row.frame)
            if (from >= 0) source.push_back(chunk + from * size);
        weighted_frames(shape, source, sums[static_cast<std::size_t>(row.sum)], out);
        return true;
    }
};

// Weights of taps that predict what interpolation inside a frame leaves: a point less what its neighbours at 1 and 3 say, along
// the lines and across them.  Encoder only.
//
// Example i is frame i of `frames`, of `shape`, and as many frames of `sources` from i x (their number) on; a tap's frame counts
// from there.  About `points` points are looked at.  Empty if there is too little to fit to, or nothing sound.
template <class T>
inline std::vector<double> fit_taps(const FrameShape& shape, int64_t examples, const T* frames, const T* sources, int64_t count,
                                    const std::vector<FrameTap>& taps, int64_t points, double tolerance) {
    constexpr int64_t kMargin = 4, kLeast = 8;  // nothing reaches beyond the margin; points that every weight needs
    constexpr int kRounds = 2;
    constexpr double kRidge = 1e-4;
    const int64_t lines = shape.lines - 2 * kMargin, width = shape.width - 2 * kMargin, size = shape.lines * shape.width;
    const std::size_t n = taps.size();
    if (examples <= 0 || lines <= 0 || width <= 0 || n == 0 || n > kMaxWeights) return {};
    const auto lacks = [](const T* x, int64_t stride) {
        const auto pair = [&](int64_t d) { return static_cast<double>(x[-d * stride]) + static_cast<double>(x[d * stride]); };
        return static_cast<double>(x[0]) - 0.5625 * pair(1) + 0.0625 * pair(3);
    };
    std::vector<double> sampled;  // features and target, one after the other
    const int64_t skip = std::max<int64_t>(1, lines * width / std::max<int64_t>(points / examples + 1, 1)) | 1;
    for (int64_t e = 0; e < examples; ++e)
        for (int64_t i = skip / 2; i < lines * width; i += skip) {
            const int64_t at = (i / width + kMargin) * shape.width + i % width + kMargin;
            for (const int64_t stride : {int64_t{1}, shape.width}) {
                const std::size_t first = sampled.size();
                bool sound = true;
                for (const FrameTap& tap : taps) {
                    const T* x = sources + (e * count + tap.frame) * size + at + tap.lines * shape.width + tap.columns;
                    sampled.push_back(lacks(x, stride));
                    sound &= std::isfinite(sampled.back());
                }
                sampled.push_back(lacks(frames + e * size + at, stride));
                if (!sound || !std::isfinite(sampled.back())) sampled.resize(first);
            }
        }
    const double prior[kMaxWeights] = {};
    std::vector<double> weights(kMaxWeights);
    const int features = static_cast<int>(n);
    if (fit_rounds({features, tolerance, kRounds, kRidge, kLeast * features, false}, sampled, prior, weights.data()) < kRounds)
        return {};
    weights.resize(n);
    return weights;
}

// A frame as the quantizer might have left it, `offset` where it is masked or not finite.  Encoder only.
template <class T>
inline void rounded_frame(const T* frame, const uint8_t* mask, int64_t size, double step, double offset, T* out) {
    const double inverse = 1 / step;
    for (int64_t i = 0; i < size; ++i) {
        const T value = static_cast<T>(std::nearbyint(static_cast<double>(frame[i]) * inverse) * step);
        out[i] = (mask && mask[i]) || !std::isfinite(value) ? static_cast<T>(offset) : value;
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
