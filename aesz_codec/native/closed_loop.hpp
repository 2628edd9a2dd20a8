// What the predictors of the closed loop share: geometry, the quantizer, outliers.  docs/format.md, section 9.
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

}  // namespace aesz
