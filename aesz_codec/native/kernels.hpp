// The loops over lines: prediction, quantization, sums of neighbouring codes.  Plain arrays in, plain arrays out.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "closed_loop.hpp"

namespace aesz {

// prediction = sum over pairs of c * (A + B), in this order; A, B at element offsets from the point, in a source.
struct Stencil {
    static constexpr int kMax = 20;
    struct Pair {
        int64_t a, b;
        double c;
        int source;
    };
    int count = 0;
    std::array<Pair, kMax> pair;
    void add(int64_t a, int64_t b, double c, int source) {
        if (c != 0.0) pair[static_cast<std::size_t>(count++)] = {a, b, c, source};
    }
};

namespace detail {

template <int N, int Distance, class T>
void accumulate(const Stencil::Pair* pair, const T* const* source, int64_t at, int64_t distance, int64_t count, bool first,
                double* out) {
    const T* a[N];
    const T* b[N];
    double c[N];
    for (int k = 0; k < N; ++k) {
        a[k] = source[pair[k].source] + at + pair[k].a;
        b[k] = source[pair[k].source] + at + pair[k].b;
        c[k] = pair[k].c;
    }
    const int64_t d = Distance ? Distance : distance;
    for (int64_t i = 0; i < count; ++i) {
        double sum = first ? 0.0 : out[i];
        for (int k = 0; k < N; ++k) sum += c[k] * (static_cast<double>(a[k][i * d]) + static_cast<double>(b[k][i * d]));
        out[i] = sum;
    }
}

template <int N, class T>
void accumulate(const Stencil::Pair* pair, const T* const* source, int64_t at, int64_t distance, int64_t count, bool first,
                double* out) {
    if (distance == 2)
        accumulate<N, 2>(pair, source, at, distance, count, first, out);
    else
        accumulate<N, 0>(pair, source, at, distance, count, first, out);
}

}  // namespace detail

// Predictions of `count` points that lie `distance` elements apart, from element `at` on.
template <class T>
void apply_stencil(const Stencil& stencil, const T* const* source, int64_t at, int64_t distance, int64_t count, double* out) {
    for (int64_t i = 0; stencil.count == 0 && i < count; ++i) out[i] = 0.0;
    for (int k = 0; k < stencil.count;) {
        const int n = stencil.count - k < 4 ? stencil.count - k : 4;
        const Stencil::Pair* pair = stencil.pair.data() + k;
        const bool first = k == 0;
        if (n == 4) detail::accumulate<4>(pair, source, at, distance, count, first, out);
        if (n == 3) detail::accumulate<3>(pair, source, at, distance, count, first, out);
        if (n == 2) detail::accumulate<2>(pair, source, at, distance, count, first, out);
        if (n == 1) detail::accumulate<1>(pair, source, at, distance, count, first, out);
        k += n;
    }
}

template <class T>
void quantize_line(const T* data, int64_t distance, int64_t count, const double* prediction, double step, double inverse,
                   double tolerance, int32_t* code) {
    for (int64_t i = 0; i < count; ++i) code[i] = quantize<T>(data[i * distance], prediction[i], step, inverse, tolerance);
}

// Codes around a line that are known before the line is.
struct NeighbourLines {
    int near_count = 0;                  // nearest points of earlier passes, as offsets; those of the last point apart
    int64_t near[2 * kMaxDims], near_last[2 * kMaxDims];
    uint32_t near_weight = 0;
    const int16_t* north = nullptr;      // the line before, the plane before, the reference frame; or none
    const int16_t* plane = nullptr;
    const int16_t* reference = nullptr;
};

// What is known around the points of a line, magnitudes in 1/16; `expected` lacks what the line itself adds.
struct LineSums {
    std::vector<uint32_t> expected, near, other;
    std::vector<int32_t> north;
    explicit LineSums(std::size_t width = 0) : expected(width), near(width), other(width), north(width) {}
};

namespace detail {

template <int Distance>
void gather(const int16_t* codes, const NeighbourLines& lines, int64_t distance, int64_t count, uint32_t* AESZ_RESTRICT expected,
            uint32_t* AESZ_RESTRICT near, uint32_t* AESZ_RESTRICT other, int32_t* AESZ_RESTRICT north) {
    const int64_t d = Distance ? Distance : distance;
    for (int64_t i = 0; i < count; ++i) near[i] = 0;
    for (int k = 0; k < lines.near_count; ++k) {
        const int16_t* n = codes + lines.near[k];
        for (int64_t i = 0; i + 1 < count; ++i) near[i] += magnitude(n[i * d]);
        near[count - 1] += magnitude(codes[(count - 1) * d + lines.near_last[k]]);
    }
    const uint32_t scale = 16 / static_cast<uint32_t>(lines.near_count);
    for (int64_t i = 0; i < count; ++i) {
        expected[i] = lines.near_weight * near[i];
        near[i] *= scale;
        other[i] = 0;
        north[i] = 0;
    }
    if (const int16_t* n = lines.north) {
        for (int64_t i = 0; i < count; ++i) {
            north[i] = n[i * d];
            expected[i] += 3 * magnitude(n[i * d]);
        }
        for (int64_t i = 1; i < count; ++i) expected[i] += magnitude(north[i - 1]);
        for (int64_t i = 0; i + 1 < count; ++i) expected[i] += 2 * magnitude(north[i + 1]);
    }
    if (const int16_t* p = lines.plane) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(p[i * d]);
            expected[i] += other[i] / 8;
        }
    }
    if (const int16_t* p = lines.reference) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(p[i * d]);
            expected[i] += other[i] / 4;
        }
    }
}

}  // namespace detail

inline void gather_line(const int16_t* codes, const NeighbourLines& lines, int64_t distance, int64_t count, LineSums& sums) {
    const auto run = distance == 2 ? detail::gather<2> : detail::gather<0>;
    run(codes, lines, distance, count, sums.expected.data(), sums.near.data(), sums.other.data(), sums.north.data());
}

}  // namespace aesz
