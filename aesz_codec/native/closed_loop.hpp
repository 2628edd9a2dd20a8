// What the predictors of the closed loop share: geometry, the quantizer, outliers, least squares.  docs/format.md, section 9.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "codes.hpp"

namespace aesz {

struct CorruptStream : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr int kMaxDims = 4;

using Coordinates = std::array<int64_t, kMaxDims>;

struct Shape {
    int n = 0;
    Coordinates dim{};   // sizes, slowest first
    Coordinates step{};  // elements from one index to the next
    int64_t size = 1;

    Shape() = default;
    Shape(int axes, const int64_t* dims) : n(axes) {
        for (int a = n - 1; a >= 0; --a) {
            dim[a] = dims[a];
            step[a] = size;
            size *= dims[a];
        }
    }
};

// Moves on to the next of the coordinates start, start + step, ... below `end`, in C order over the first `axes`; false after
// the last.
inline bool advance(Coordinates& c, int axes, const Coordinates& end, const Coordinates& start = {}, int64_t step = 1) {
    for (std::size_t a = static_cast<std::size_t>(axes); a-- > 0;) {
        if ((c[a] += step) < end[a]) return true;
        c[a] = start[a];
    }
    return false;
}

// One array on its way through the closed loop.  `mask` marks values that are not coded; they take their prediction.
template <class T>
struct Chunk {
    const T* data = nullptr;        // the original; encoder only
    T* out = nullptr;               // the reconstruction
    const uint8_t* mask = nullptr;  // or none
    double tolerance = 0;           // encoder only
    std::vector<T> outliers;        // in coding order
};

// prediction + code * step, in the type of the data: what the decoder does.
template <class T>
inline T reconstruct(double prediction, int32_t code, double step) {
    return static_cast<T>(prediction + static_cast<double>(code) * step);
}

// The code whose reconstruction is within the tolerance, else kOutlier.
template <class T>
inline int32_t quantize(T x, double prediction, double step, double inverse, double tolerance) {
    const double q = (static_cast<double>(x) - prediction) * inverse;
    const double code = (q + 6755399441055744.0) - 6755399441055744.0;  // to the nearest integer
    const double error = static_cast<double>(x) - static_cast<double>(static_cast<T>(prediction + code * step));
    // no branches: loops become SIMD
    const int kept = static_cast<int>(std::abs(q) < kLargestCode) & static_cast<int>(std::abs(error) <= tolerance);
    return static_cast<int32_t>(kept ? code : static_cast<double>(kOutlier));
}

// Reconstructs values from their codes and remembers these for the contexts.  `Codes` writes or reads lines of them.
template <class T, class Codes>
class ClosedLoop {
  public:
    ClosedLoop(Chunk<T>& chunk, Codes& coder) : chunk_(chunk), coder_(coder) {}

    bool unused_outliers() const { return used_ != chunk_.outliers.size(); }

  protected:
    // Reconstructs element `at` from its code, and remembers this.
    void settle(int64_t at, double prediction, double step, int32_t code, T& out, int16_t& memory) {
        if (code != kOutlier) {
            out = reconstruct<T>(prediction, code, step);
        } else if (Codes::decoding) {
            if (used_ == chunk_.outliers.size()) throw CorruptStream("more outliers are used than stored");
            out = chunk_.outliers[used_++];
        } else {
            chunk_.outliers.push_back(out = chunk_.data[at]);
            ++used_;
        }
        memory = remembered(code, Codes::clip);
    }

    bool masked(int64_t at) const { return chunk_.mask && chunk_.mask[at]; }
    const uint8_t* mask_at(int64_t at) const { return chunk_.mask ? chunk_.mask + at : nullptr; }

    Chunk<T>& chunk_;
    Codes& coder_;

  private:
    std::size_t used_ = 0;
};

constexpr int kMaxWeights = 20;

// Least squares for the encoder; what it finds is quantized and stored, so it need not be exact.
struct NormalEquations {
    int n = 0;
    int64_t count = 0;
    double a[kMaxWeights][kMaxWeights] = {};
    double b[kMaxWeights] = {};

    void add(const double* feature, double target, double weight = 1) {
        for (int i = 0; i < n; ++i) {
            const double weighted = weight * feature[i];
            for (int j = 0; j <= i; ++j) a[i][j] += weighted * feature[j];
            b[i] += weighted * target;
        }
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
    int rounds;     // from the second on large errors weigh less: bytes grow with the logarithm of an error
    double ridge;   // towards the prior
    int64_t least;  // samples
    bool exact;     // whether the features are of the original: those of the decoder carry the quantizer's noise besides
};

// Fits by least squares.  `samples`: features and target, one after the other.  Where there is no sound solution `w` stays as it
// is, or as the round before left it.
inline void fit_weights(const Regression& how, const std::vector<double>& samples, const double* prior, const int32_t* fallback,
                        int32_t* w) {
    const int n = how.features;
    double x[kMaxWeights];
    for (int round = 0; round < how.rounds; ++round) {
        NormalEquations equations;
        equations.n = n;
        double total = 0;
        for (std::size_t i = 0; i < samples.size(); i += static_cast<std::size_t>(n) + 1) {
            const double* feature = &samples[i];
            double weight = 1;
            if (round) {
                double error = feature[n];
                for (int k = 0; k < n; ++k) error -= x[k] * feature[k];
                weight = 1 / (1 + error * error / (4 * how.tolerance * how.tolerance));
            }
            equations.add(feature, feature[n], weight);
            total += weight;
        }
        if (how.exact) {  // uniform noise has the variance tolerance^2 / 3; that of the base is in every feature
            const double noise = total * how.tolerance * how.tolerance / 3;
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j <= i; ++j) equations.a[i][j] += i == j ? 2 * noise : noise;
                equations.b[i] += noise;
            }
        }
        if (equations.count < how.least || !equations.solve(prior, how.ridge, x)) return;
        quantize_weights(x, n, fallback, w);
    }
}

}  // namespace aesz
