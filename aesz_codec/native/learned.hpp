// Learned interpolation: a small integer network looks at the decoded points around a point, corrects the interpolated value
// and says how large its code will be.  docs/format.md, section 18; arithmetic: docs/networks.md.
//
// Every number below is an integer that a float holds exactly, so the order of sums does not matter and loops become SIMD.
#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "codes.hpp"
#include "kernels.hpp"
#include "networks.hpp"
#include "planes.hpp"

namespace aesz {

constexpr int kAroundPoints = 24;     // decoded points that a network sees in the frame
constexpr int kReferencePoints = 13;  // and in the frame before
constexpr int kCodePoints = 8;        // codes of earlier points
constexpr int kSummaries = 4;         // and scales
constexpr int kMostInputs = kAroundPoints + kReferencePoints + kCodePoints + kSummaries;
constexpr int kLearnedLevels = 4;  // the finest levels have networks
constexpr float kLargestInput = 511.0f;
#define AESZ_TARGET
namespace portable {
#include "learned_loops.hpp"
}
#undef AESZ_TARGET
#if AESZ_HAS_AVX2
#define AESZ_TARGET __attribute__((target("avx2")))
namespace avx2 {
#include "learned_loops.hpp"
}
#undef AESZ_TARGET
#endif

// The networks of a pack: two axes; two axes with a frame before; three axes; one for every class of points.
struct LearnedNets {
    static constexpr int kSlots = 3 + 3 + 7;
    std::array<std::optional<Mlp>, kSlots> net;

    const Mlp* find(int slot) const {
        const auto& found = net[static_cast<std::size_t>(slot)];
        return found ? &*found : nullptr;
    }

    static int inputs(int slot) {
        return kAroundPoints + kCodePoints + kSummaries + (slot >= 3 && slot < 6 ? kReferencePoints : 0);
    }

    static int slot(int axes, int set, bool refers) {
        if (axes == 2) return set - 1 + (refers ? 3 : 0);
        return axes == 3 && !refers ? set + 5 : -1;
    }
};

using Offset = std::array<int, kMaxDims>;  // in units of the stride

// The decoded points nearest to one of the class `set`, by distance, then by offset.
inline std::vector<Offset> known_around(int axes, int set, const std::vector<int>& order, int count) {
    constexpr int kReach = 4;
    const auto rank = [&](int s) { return std::find(order.begin(), order.end(), s) - order.begin(); };
    std::vector<std::pair<int, Offset>> found;
    Offset o{};
    for (int a = 0; a < axes; ++a) o[static_cast<std::size_t>(a)] = -kReach;
    while (true) {
        int target = 0, distance = 0, lead = 0;
        for (int a = 0; a < axes; ++a) {
            const int d = o[static_cast<std::size_t>(a)];
            target |= (((set >> a & 1) + d) & 1) << a;
            distance += d * d;
            if (a + 1 < axes && lead == 0) lead = d;
        }
        const bool known = target == set ? lead < 0 : target == 0 || rank(target) < rank(set);
        if (known) found.emplace_back(distance, o);
        int a = axes - 1;
        for (; a >= 0; --a) {
            int& d = o[static_cast<std::size_t>(a)];
            if (++d <= kReach) break;
            d = -kReach;
        }
        if (a < 0) break;
    }
    std::sort(found.begin(), found.end());
    std::vector<Offset> out;
    for (int k = 0; k < count; ++k) out.push_back(found[static_cast<std::size_t>(k)].second);
    return out;
}

// Four classes an octave, as scale_class.
inline int spread_class(float spread) {
    const uint32_t v = static_cast<uint32_t>(spread);
    const int e = highest_bit(v);
    return 4 * (e - 2) + static_cast<int>(v >> (e - 2) & 3);
}

// A line on its way through a network: rows of differences, one a neighbour.
struct LearnedLine {
    int64_t stride = 0;
    std::vector<float> rows, spread, reciprocal;
    std::vector<int16_t> inputs, points;  // rows of inputs; the same by point
    std::vector<int32_t> outputs;
    std::vector<uint8_t> scale;
    LearnedLine() = default;
    explicit LearnedLine(std::size_t width)
        : stride(static_cast<int64_t>(width)),
          rows(kMostInputs * width),
          spread(width),
          reciprocal(width),
          inputs(kMostInputs * width),
          points((kMostInputs + 1) * width),
          outputs(2 * width),
          scale(width) {}

    const int16_t* by_point(const Mlp& net, int64_t count) {
        (kAvx2 ? avx2::by_point : portable::by_point)(inputs.data(), stride, net.inputs(), net.padded_inputs(), count,
                                                      points.data());
        return points.data();
    }

    // In 2^-24 steps.
    double correction(int64_t i) const {
        return static_cast<double>(outputs[static_cast<std::size_t>(2 * i)]) *
               static_cast<double>(spread[static_cast<std::size_t>(i)]);
    }

    // The class of a code's magnitude.
    int scale_of(int64_t i) const {
        const int finer = (outputs[static_cast<std::size_t>(2 * i + 1)] + 512) >> 10;
        return std::clamp(spread_class(spread[static_cast<std::size_t>(i)]) + finer, 0, kLearnedClasses - 1);
    }

    // Corrects predictions, and fills in the classes of their codes; `unit`: what a correction of 2^27 is worth.
    void apply(int64_t count, double unit, double* prediction) {
        unit *= 1.0 / (1 << 27);
        for (int64_t i = 0; i < count; ++i) {
            prediction[i] += correction(i) * unit;
            scale[static_cast<std::size_t>(i)] = static_cast<uint8_t>(scale_of(i));
        }
    }
};

// What a training run is given: the inputs of points, what the prediction lacked in steps, the spread, the level.
struct LearnedSamples {
    uint64_t every = 1;  // points
    uint64_t state = 1;
    std::array<std::vector<int16_t>, LearnedNets::kSlots> inputs;
    std::array<std::vector<float>, LearnedNets::kSlots> targets;

    template <class T>
    void add(int slot, int count_inputs, const LearnedLine& line, const T* data, int64_t distance, const uint8_t* mask,
             int64_t count, const double* prediction, double inverse, int level) {
        for (int64_t i = 0; i < count; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            if ((mask && mask[i * distance]) || (state >> 33) % every) continue;
            auto& in = inputs[static_cast<std::size_t>(slot)];
            auto& out = targets[static_cast<std::size_t>(slot)];
            for (int k = 0; k < count_inputs; ++k) in.push_back(line.inputs[static_cast<std::size_t>(k * line.stride + i)]);
            out.push_back(static_cast<float>((static_cast<double>(data[i * distance]) - prediction[i]) * inverse));
            out.push_back(line.spread[static_cast<std::size_t>(i)]);
            out.push_back(static_cast<float>(level));
        }
    }
};

// Learned interpolation of one class of one level.
class LearnedPass {
  public:
    static constexpr int kInputs = kMostInputs;

    LearnedPass(const Shape& shape, const LevelPlanes& planes, int set, int64_t stride, const std::vector<int>& order,
                bool refers)
        : shape_(shape), stride_(stride), odd_(set >> (shape.n - 1) & 1) {
        for (const Offset& o : known_around(shape.n, set, order, kAroundPoints)) add(planes, set, o, 0);
        if (refers)
            for (const Offset& o : nearest(shape.n, kReferencePoints)) add(planes, set, o, 1);
        // codes: beside the point along its odd axes, in the line before, in the plane or the frame before
        const int inner = shape.n - 1;
        std::vector<Offset> codes;
        for (int a = 0; a <= inner && codes.size() < 4; ++a)
            if (set >> a & 1)
                for (int d : {-1, 1}) codes.push_back(along(a, d));
        codes.resize(4, Offset{INT_MAX});
        Offset north = along(inner - 1, -2);
        codes.push_back(north);
        north[static_cast<std::size_t>(inner)] = -2;
        codes.push_back(north);
        north[static_cast<std::size_t>(inner)] = 2;
        codes.push_back(north);
        for (const Offset& o : codes) add(planes, set, o, 2);
        refers        ? add(planes, set, Offset{}, 3)
        : shape.n > 2 ? add(planes, set, along(inner - 2, -2), 2)
                      : add(planes, set, Offset{INT_MAX}, 2);
        inputs = static_cast<int>(points_.size()) + kSummaries;
    }

    int inputs;

    // Rows of inputs, `stride` points apart, and the spread of every point.  `c`: coordinates of the line's first point.
    template <class T>
    void look(const T* const* source, const int16_t* const* codes, int64_t first, const std::array<int64_t, kMaxDims>& c,
              int64_t count, const double* prediction, double step, const LineSums& sums, LearnedLine& line) const {
        float *rows = line.rows.data(), *spread = line.spread.data(), *reciprocal = line.reciprocal.data();
        const int64_t stride = line.stride;
        const double scale = 8.0 / step;
        const int inner = shape_.n - 1;
        for (int64_t i = 0; i < count; ++i) spread[i] = kAroundPoints;
        float* row = rows;
        for (std::size_t k = 0; k < points_.size(); ++k, row += stride) {
            const Point& p = points_[k];
            bool there = p.offset[0] != INT_MAX;
            for (int a = 0; there && a < inner; ++a) {
                const int64_t x = c[static_cast<std::size_t>(a)] + p.offset[static_cast<std::size_t>(a)] * stride_;
                there = there && x >= 0 && x < shape_.dim[static_cast<std::size_t>(a)];
            }
            // coordinates along the last axis are (2 i + odd + offset) strides
            const int64_t shift = !there ? 0 : p.offset[static_cast<std::size_t>(inner)] + odd_;
            const int64_t most = (shape_.dim[static_cast<std::size_t>(inner)] - 1) / stride_;  // in strides
            const int64_t low = there ? std::clamp<int64_t>((1 - shift) >> 1, 0, count) : count;
            const int64_t high = there ? std::clamp<int64_t>(((most - shift) >> 1) + 1, low, count) : count;
            std::fill(row, row + low, 0.0f);
            std::fill(row + high, row + count, 0.0f);
            if (p.source >= 2) {
                const int16_t* code = codes[p.source - 2] + first + p.element;
                for (int64_t i = low; i < high; ++i) row[i] = static_cast<float>(8 * code[i]);
                continue;
            }
            (kAvx2 ? avx2::differences<T> : portable::differences<T>)(source[p.source] + first + p.element, prediction, scale,
                                                                      low, high, row);
            if (p.source == 0) (kAvx2 ? avx2::add_magnitudes : portable::add_magnitudes)(row, count, spread);
        }
        (kAvx2 ? avx2::reciprocals_of : portable::reciprocals_of)(spread, count, reciprocal);
        int16_t* input = line.inputs.data();
        for (std::size_t k = 0; k < points_.size(); ++k, input += stride)
            (kAvx2 ? avx2::normalise : portable::normalise)(rows + static_cast<int64_t>(k) * stride, reciprocal, count, input);
        for (int64_t i = 0; i < count; ++i) input[i] = static_cast<int16_t>(8 * (spread_class(spread[i]) - 32));
        for (const auto* sum : {&sums.near, &sums.expected, &sums.other}) {
            input += stride;
            for (int64_t i = 0; i < count; ++i)
                input[i] = static_cast<int16_t>(8 * (scale_class((*sum)[static_cast<std::size_t>(i)]) - 16));
        }
    }

  private:
    struct Point {
        Offset offset;
        int64_t element;
        int source;
    };

    static Offset along(int axis, int distance) {
        Offset o{};
        o[static_cast<std::size_t>(axis)] = distance;
        return o;
    }

    void add(const LevelPlanes& planes, int set, const Offset& o, int source) {
        if (o[0] == INT_MAX) return points_.push_back({o, 0, source});
        points_.push_back({o, planes.offset_of(set, o), source});
    }

    static std::vector<Offset> nearest(int axes, int count) {
        std::vector<std::pair<int, Offset>> found;
        for (int y = -2; y <= 2; ++y)
            for (int x = -2; x <= 2; ++x) found.push_back({y * y + x * x, Offset{y, x}});
        (void)axes;
        std::sort(found.begin(), found.end());
        std::vector<Offset> out;
        for (int k = 0; k < count; ++k) out.push_back(found[static_cast<std::size_t>(k)].second);
        return out;
    }

    const Shape& shape_;
    int64_t stride_;
    int64_t odd_;
    std::vector<Point> points_;
};

}  // namespace aesz
