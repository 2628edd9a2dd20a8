// The loops over lines: prediction, quantization, sums of neighbouring codes.  Plain arrays in, plain arrays out.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
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

template <class T>
struct ErrorMoments {
    double largest, sum;  // of the errors, of their squares: not finite if a value is not
    T lowest, highest;    // of the originals
};

// Codes around a line that are known before the line is.
struct NeighbourLines {
    int near_count = 0;  // nearest points of earlier passes, as offsets; those of the last point apart
    int64_t near[2 * kMaxDims], near_last[2 * kMaxDims];
    uint32_t near_weight = 0;
    const int16_t* north = nullptr;  // the line before, the plane before, the reference frame; or none
    const int16_t* plane = nullptr;
    const int16_t* reference = nullptr;
};

// ---- instruction sets ------------------------------------------------------------------------------------------

#define AESZ_FILE "kernel_loops.hpp"
#include "each_set.hpp"
#if !AESZ_HAS_AVX2
namespace avx2 = portable;
#endif

// Chosen when the core is loaded; the environment variable AESZ_SIMD=0 keeps to the portable loops.
inline const bool kAvx2 = [] {
#if AESZ_HAS_AVX2
    const char* wish = std::getenv("AESZ_SIMD");
    return !(wish && wish[0] == '0') && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
#else
    return false;
#endif
}();

// Predictions of `count` points from element `at` on.
template <class T>
void apply_stencil(const Stencil& stencil, const T* const* source, int64_t at, int64_t count, double* out) {
    kAvx2 ? avx2::apply(stencil, source, at, count, out) : portable::apply(stencil, source, at, count, out);
}

// Codes of a line whose values lie `distance` apart: `quantize` for every point.
template <class T>
void quantize_line(const T* data, int64_t distance, int64_t count, const double* prediction, double step, double inverse,
                   double tolerance, int32_t* code) {
    if (kAvx2) {
        distance == 2 ? avx2::quantize_all<2>(data, distance, count, prediction, step, inverse, tolerance, code)
                      : avx2::quantize_all<0>(data, distance, count, prediction, step, inverse, tolerance, code);
    } else {
        distance == 2 ? portable::quantize_all<2>(data, distance, count, prediction, step, inverse, tolerance, code)
                      : portable::quantize_all<0>(data, distance, count, prediction, step, inverse, tolerance, code);
    }
}

// Reconstructs a line and remembers its codes; whether there are no outliers, whose values are left to the caller.
template <int Clip, class T>
bool settle_line(const double* prediction, const int32_t* code, double step, int64_t count, T* out, int16_t* memory) {
    return kAvx2 ? avx2::settle_all<Clip>(prediction, code, step, count, out, memory)
                 : portable::settle_all<Clip>(prediction, code, step, count, out, memory);
}

// Sums of the codes around a line.
inline void gather_line(const int16_t* codes, const NeighbourLines& lines, int64_t count, LineSums& sums) {
    (kAvx2 ? avx2::gather : portable::gather)(codes, lines, count, sums.expected.data(), sums.near.data(), sums.other.data(),
                                              sums.north.data());
}

// The same for the static coder: less of it.
inline void gather_narrow_line(const int16_t* codes, const NeighbourLines& lines, int64_t count, LineSums& sums) {
    (kAvx2 ? avx2::gather_narrow : portable::gather_narrow)(codes, lines, count, sums.narrow.data());
}

template <class U>
void interleave(const U* even, const U* odd, int64_t count, U* out) {
    kAvx2 ? avx2::zip(even, odd, count, out) : portable::zip(even, odd, count, out);
}

// Sums of weight times value over lines, in their order.
template <class T>
void weigh_lines(const T* const* line, const double* weight, int taps, int64_t count, double* out) {
    kAvx2 ? avx2::weigh(line, weight, taps, count, out) : portable::weigh(line, weight, taps, count, out);
}

// The causal predictor's sums over the lines before: coefficient times value, in the order of the taps.
template <class T>
void add_taps(const T* line, const int64_t* offset, const double* coefficient, int taps, int64_t count, double* out) {
    kAvx2 ? avx2::add_taps(line, offset, coefficient, taps, count, out)
          : portable::add_taps(line, offset, coefficient, taps, count, out);
}

// The same for one tap that has a weight for every point.
template <class T>
void add_products(const T* x, const float* weight, int64_t count, double* out) {
    kAvx2 ? avx2::add_products(x, weight, count, out) : portable::add_products(x, weight, count, out);
}

// The causal predictor's contexts; a line that is not there is null.
inline void gather_causal(const int16_t* north, const int16_t* north2, const int16_t* plane, int64_t count, LineSums& sums) {
    const auto run = kAvx2 ? avx2::gather_causal : portable::gather_causal;
    run(north, north2, plane, count, sums.expected.data(), sums.near.data(), sums.other.data(), sums.north.data());
}

// The same for the static coder.
inline void gather_causal_narrow(const int16_t* north, const int16_t* north2, const int16_t* plane, int64_t count,
                                 LineSums& sums) {
    (kAvx2 ? avx2::gather_causal_narrow : portable::gather_causal_narrow)(north, north2, plane, count, sums.narrow.data());
}

inline void classify(const uint16_t* expected, int64_t count, uint8_t* scale) {
    (kAvx2 ? avx2::classify : portable::classify)(expected, count, scale);
}

inline void classify_even(const uint8_t* network, const uint32_t* expected, int64_t count, uint8_t* scale) {
    (kAvx2 ? avx2::classify_even : portable::classify_even)(network, expected, count, scale);
}

// `beside`: codes of the even points, one more than there are odd ones.
inline void classify_odd(const uint8_t* network, const uint32_t* expected, const int32_t* beside, int64_t count, uint8_t* scale) {
    (kAvx2 ? avx2::classify_odd : portable::classify_odd)(network, expected, beside, count, scale);
}

template <class T>
ErrorMoments<T> error_moments(const T* x, const T* y, int64_t count) {
    return kAvx2 ? avx2::error_moments(x, y, count) : portable::error_moments(x, y, count);
}

template <class T>
bool all_within(const T* x, const T* y, int64_t count, double tolerance) {
    return kAvx2 ? avx2::all_within(x, y, count, tolerance) : portable::all_within(x, y, count, tolerance);
}

}  // namespace aesz
