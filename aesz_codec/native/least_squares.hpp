// Weighted least squares for the encoder's fits; what they find is quantized and stored, so nothing here is part of the format.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.hpp"

namespace aesz {

constexpr int kMaxWeights = 20;  // whole vectors

// Least squares for the encoder; what it finds is quantized and stored, so it need not be exact.
struct NormalEquations {
    int n = 0;
    int64_t count = 0;
    double a[kMaxWeights][kMaxWeights] = {};  // what is above the diagonal means nothing
    double b[kMaxWeights] = {};

    // There is room for kMaxWeights features.
    void add(const double* feature, double target, double weight) {
        (kAvx2 ? avx2::add_products<kMaxWeights> : portable::add_products<kMaxWeights>)(feature, target, weight, n, a, b);
        ++count;
    }

    // Cholesky, with a ridge towards `prior`.  False if there is no sound solution.
    bool solve(const double* prior, double ridge, double* x) const {
        double l[kMaxWeights][kMaxWeights], y[kMaxWeights], trace = 0;
        for (int i = 0; i < n; ++i) trace += a[i][i];
        if (!(trace > 0) || !std::isfinite(trace)) return false;
        for (int i = 0; i < n; ++i) {
            y[i] = b[i];
            for (int j = 0; j < n; ++j) y[i] -= (j <= i ? a[i][j] : a[j][i]) * prior[j];
            for (int j = 0; j <= i; ++j) {
                double sum = a[i][j];
                if (i == j) sum += ridge * (a[i][i] + trace / n * 0.01);
                for (int k = 0; k < j; ++k) sum -= l[i][k] * l[j][k];
                if (i != j) {
                    l[i][j] = sum / l[j][j];
                } else {
                    if (!(sum > 0)) return false;
                    l[i][i] = std::sqrt(sum);
                }
            }
        }
        for (int i = 0; i < n; ++i) {
            for (int k = 0; k < i; ++k) y[i] -= l[i][k] * y[k];
            y[i] /= l[i][i];
        }
        for (int i = n - 1; i >= 0; --i) {
            for (int k = i + 1; k < n; ++k) y[i] -= l[k][i] * y[k];
            y[i] /= l[i][i];
            x[i] = prior[i] + y[i];
        }
        return true;
    }
};

constexpr double kWeightUnit = 1.0 / 256.0;

// To the integers of the stream; `fallback` where a weight is out of any reason.
inline void quantize_weights(const double* x, int n, const int32_t* fallback, int32_t* w) {
    for (int i = 0; i < n; ++i) {
        if (!(std::abs(x[i]) < 16.0)) {
            for (int j = 0; j < n; ++j) w[j] = fallback[j];
            return;
        }
    }
    for (int i = 0; i < n; ++i) w[i] = static_cast<int32_t>(std::nearbyint(x[i] / kWeightUnit));
}

// How weights are fitted to samples.
struct Regression {
    int features;
    double tolerance;
    int rounds;     // large errors weigh less, as bytes grow with the logarithm of an error
    double ridge;   // towards the prior
    int64_t least;  // samples
    bool exact;     // whether the features are of the original: those of the decoder carry the quantizer's noise besides
};

// What the target of a sample, which follows its features, is beyond the prediction by weights.
inline double error_of(const double* sample, const double* weights, int n) {
    double sum[4] = {};
    int k = 0;
    for (; k + 4 <= n; k += 4)
        for (int j = 0; j < 4; ++j) sum[j] += weights[k + j] * sample[k + j];
    for (; k < n; ++k) sum[0] += weights[k] * sample[k];
    return sample[n] - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Fits by least squares.  `samples`: features and target, one after the other.  Returns how many rounds had a sound solution; `x`
// is that of the last of them.
//
// A few samples at a coast, with nothing to see behind it, would outweigh all others: so the first round weighs errors, too,
// those of the prior, unless that predicts nothing.
inline int fit_rounds(const Regression& how, const std::vector<double>& samples, const double* prior, double* x) {
    const int n = how.features;
    const auto stride = static_cast<std::size_t>(n) + 1;
    const double quantum = std::max(4 * how.tolerance * how.tolerance, std::numeric_limits<double>::min());
    std::vector<double> errors(samples.size() / stride);
    double feature[kMaxWeights] = {};
    for (int round = 0; round < how.rounds; ++round) {
        NormalEquations equations;
        equations.n = n;
        double total = 0, unit = quantum;  // of squared errors
        if (round || !how.exact)
            for (std::size_t i = 0; i < errors.size(); ++i) errors[i] = error_of(&samples[i * stride], round ? x : prior, n);
        if (!round && !how.exact) {
            double sum = 0;
            for (const double error : errors) sum += std::abs(error);
            const double wide = 4 * sum / static_cast<double>(std::max<std::size_t>(errors.size(), 1));
            unit += wide * wide;
        }
        for (std::size_t i = 0; i < errors.size(); ++i) {
            std::copy_n(&samples[i * stride], n, feature);
            const double weight = 1 / (1 + errors[i] * errors[i] / unit);
            equations.add(feature, samples[i * stride + static_cast<std::size_t>(n)], weight);
            total += weight;
        }
        if (how.exact) {  // uniform noise has the variance tolerance^2 / 3; that of the base is in every feature
            const double noise = total * how.tolerance * how.tolerance / 3;
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j <= i; ++j) equations.a[i][j] += i == j ? 2 * noise : noise;
                equations.b[i] += noise;
            }
        }
        if (equations.count < how.least || !equations.solve(prior, how.ridge, x)) return round;
    }
    return how.rounds;
}

// The same, to the integers of the stream; where there is no sound solution `w` stays as it is.
inline void fit_weights(const Regression& how, const std::vector<double>& samples, const double* prior, const int32_t* fallback,
                        int32_t* w) {
    double x[kMaxWeights];
    if (fit_rounds(how, samples, prior, x)) quantize_weights(x, how.features, fallback, w);
}

}  // namespace aesz
