// Multi-level interpolation in closed loop.  docs/format.md, section 10.
//
// A frame is refined level by level: from the points at multiples of 2 s to those at multiples of s.  The new points of a
// level form classes by the axes along which their index is odd (in units of s); every class is predicted from all that
// lies around it, by weights that the encoder fits to decoded values, class by class:
//
//     prediction = mean of the nearest points + sum of weight x (mean of a group of points - mean of the nearest)
//                  + weight x innovation of the frame before
//
// Method: level-wise interpolation of SZ3 (Zhao et al. 2021), all directions at once as in HPEZ (Liu et al. 2024).
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "closed_loop.hpp"
#include "kernels.hpp"
#include "learned.hpp"
#include "least_squares.hpp"
#include "memory.hpp"
#include "planes.hpp"

namespace aesz {

constexpr int kFitLevels = 5;  // the finest levels have weights of their own

using Weights = std::array<int32_t, kMaxWeights>;

// Weights of a class, in units of 1/256:
//   far, one an odd axis | near, one an odd axis but the last | diagonal, one an even axis if one axis is odd |
//   corner, one if two axes are odd | innovation, if there is a reference frame
struct WeightLayout {
    int odd, even;
    bool reference;
    int far() const { return 0; }
    int near() const { return odd; }
    int diagonal() const { return 2 * odd - 1; }
    int diagonals() const { return odd == 1 ? even : odd == 2 ? 1 : 0; }
    int innovation() const { return diagonal() + diagonals(); }
    int count() const { return innovation() + (reference ? 1 : 0); }
    Weights defaults() const {
        Weights w{};
        for (int i = 0; i < odd; ++i) w[static_cast<std::size_t>(far() + i)] = -32 / odd;
        if (reference) w[static_cast<std::size_t>(innovation())] = 128;
        return w;
    }
};

// What there is around a point: bit i stands for the i-th odd axis (`far`, `mirrored`) or the i-th even axis (`diagonal`).
struct Around {
    unsigned far = 0, mirrored = 0, diagonal = 0;
    // A small number for a class with so many odd axes.
    std::size_t key(int odd) const { return far | mirrored << odd | diagonal << 2 * odd; }
};

class ClassGeometry {
  public:
    ClassGeometry(const Shape& shape, const LevelPlanes& planes, int set, int64_t stride, const std::vector<int>& order,
                  bool reference)
        : shape_(shape), planes_(planes), set_(set), stride_(stride) {
        layout = {0, 0, reference};
        for (int a = 0; a < shape.n; ++a) (set >> a & 1 ? odd_[at(layout.odd++)] : even_[at(layout.even++)]) = a;
        const auto self = std::find(order.begin(), order.end(), set);
        for (int i = 0; i < layout.even; ++i)
            reach_[at(i)] = std::find(order.begin(), self, 1 << even_[at(i)]) != self ? stride : 2 * stride;
        for (int i = 0; i < layout.odd; ++i)
            for (int d = -3; d <= 3; d += 2) along_[at(i)][at((d + 3) / 2)] = planes_.offset(set, odd_[at(i)], d);
        for (int i = 0; i < layout.diagonals(); ++i)
            for (int d = -1; d <= 1; d += 2)
                for (int e = -1; e <= 1; e += 2) corner_[at(i)][at(d + 1 + (e + 1) / 2)] = corner_offset(i, d, e);
    }

    WeightLayout layout;

    // Adds what is to be seen along one axis from coordinate `c`.
    void look(Around& around, int axis, int64_t c) const {
        const int64_t s = stride_, size = shape_.dim[static_cast<std::size_t>(axis)];
        for (int i = 0; i < layout.odd; ++i)
            if (odd_[at(i)] == axis) {
                if (c - 3 * s >= 0 && c + 3 * s < size) around.far |= 1u << i;
                if (c + s >= size) around.mirrored |= 1u << i;
            }
        for (int i = 0; i < layout.even; ++i)
            if (even_[at(i)] == axis && c - reach_[at(i)] >= 0 && c + reach_[at(i)] < size) around.diagonal |= 1u << i;
    }

    // Coordinates [first, last) of the last axis from which everything is seen.
    std::pair<int64_t, int64_t> interior() const {
        const int axis = shape_.n - 1;
        const int64_t size = shape_.dim[static_cast<std::size_t>(axis)];
        if (set_ >> axis & 1) return {3 * stride_, size - 3 * stride_};
        const int64_t reach = reach_[at(layout.even - 1)];
        return {reach, size - reach};
    }

    // The prediction as a sum of coefficient x (A + B).  The reference frame enters with the default weights.
    Stencil stencil(const Weights& w, const Around& around) const {
        Stencil out;
        emit(out, w, around, 1.0, 0);
        if (layout.reference) {
            const double beta = w[static_cast<std::size_t>(layout.innovation())] * kWeightUnit;
            if (beta != 0.0) {
                out.add(0, 0, 0.5 * beta, 1);
                emit(out, WeightLayout{layout.odd, layout.even, false}.defaults(), around, -beta, 1);
            }
        }
        return out;
    }

    // What the weights multiply, and the mean of the nearest points.
    template <class T>
    double features(const T* const* source, int64_t at, const Around& around, double* feature) const {
        const int m = layout.odd;
        double near[kMaxDims], far[kMaxDims];
        auto means = [&](const T* x) {
            double sum = 0;
            for (int i = 0; i < m; ++i) {
                const double before = x[along(i, -1)];
                near[i] = 0.5 * (before + (around.mirrored >> i & 1 ? before : static_cast<double>(x[along(i, 1)])));
                far[i] = around.far >> i & 1 ? 0.5 * (static_cast<double>(x[along(i, -3)]) + static_cast<double>(x[along(i, 3)]))
                                             : near[i];
                sum += near[i];
            }
            return sum / m;
        };
        const T* x = source[0] + at;
        const double base = means(x);
        for (int i = 0; i < m; ++i) feature[layout.far() + i] = far[i] - near[i];
        for (int i = 0; i + 1 < m; ++i) feature[layout.near() + i] = near[i] - base;
        for (int i = 0; i < layout.diagonals(); ++i) {
            feature[layout.diagonal() + i] = 0;
            if (!has_diagonal(around, i)) continue;
            const double sum = static_cast<double>(x[corner(i, -1, -1)]) + static_cast<double>(x[corner(i, -1, 1)]) +
                               static_cast<double>(x[corner(i, 1, -1)]) + static_cast<double>(x[corner(i, 1, 1)]);
            feature[layout.diagonal() + i] = 0.25 * sum - base;
        }
        if (layout.reference) {
            const T* y = source[1] + at;
            double guess = means(y);
            for (int i = 0; i < m; ++i) guess -= (-(-32 / m)) * kWeightUnit * (far[i] - near[i]);
            feature[layout.innovation()] = static_cast<double>(y[0]) - guess;
        }
        return base;
    }

    // Offsets of the nearest points, two an odd axis.
    int near_offsets(const Around& around, int64_t* offsets) const {
        int n = 0;
        for (int i = 0; i < layout.odd; ++i) {
            offsets[n++] = along(i, -1);
            offsets[n++] = along(i, around.mirrored >> i & 1 ? -1 : 1);
        }
        return n;
    }

  private:
    static std::size_t at(int i) { return static_cast<std::size_t>(i); }

    // Offset along the i-th odd axis, in strides: -3, -1, 1 or 3.
    int64_t along(int i, int distance) const { return along_[at(i)][at((distance + 3) / 2)]; }
    bool has_diagonal(const Around& around, int i) const {
        return around.mirrored == 0 && (layout.odd == 2 || (around.diagonal >> i & 1));
    }
    // Offset to a corner of the i-th diagonal; `d` and `e` are -1 or 1.
    int64_t corner(int i, int d, int e) const { return corner_[at(i)][at(d + 1 + (e + 1) / 2)]; }
    int64_t corner_offset(int i, int d, int e) const {
        if (layout.odd == 2) return planes_.offset(set_, odd_[0], d, odd_[1], e);
        return planes_.offset(set_, odd_[0], d, even_[at(i)], e * static_cast<int>(reach_[at(i)] / stride_));
    }

    // Coefficients in the order and with the arithmetic of the format.
    void emit(Stencil& out, const Weights& w, const Around& around, double scale, int source) const {
        const int m = layout.odd;
        double near[kMaxDims] = {}, far[kMaxDims] = {}, diagonal[kMaxDims] = {};
        double base = 1.0;
        auto weight = [&](int i) { return w[static_cast<std::size_t>(i)] * kWeightUnit; };
        for (int i = 0; i < m; ++i)
            if (around.far >> i & 1) {
                far[i] = weight(layout.far() + i);
                near[i] -= far[i];
            }
        for (int i = 0; i + 1 < m; ++i) {
            near[i] += weight(layout.near() + i);
            base -= weight(layout.near() + i);
        }
        for (int i = 0; i < layout.diagonals(); ++i)
            if (has_diagonal(around, i)) {
                diagonal[i] = weight(layout.diagonal() + i);
                base -= diagonal[i];
            }
        for (int i = 0; i < m; ++i) {
            out.add(along(i, -1), along(i, around.mirrored >> i & 1 ? -1 : 1), scale * (0.5 * (near[i] + base / m)), source);
        }
        for (int i = 0; i < m; ++i) out.add(along(i, -3), along(i, 3), scale * (0.5 * far[i]), source);
        for (int i = 0; i < layout.diagonals(); ++i) {
            out.add(corner(i, -1, -1), corner(i, 1, 1), scale * (0.25 * diagonal[i]), source);
            out.add(corner(i, -1, 1), corner(i, 1, -1), scale * (0.25 * diagonal[i]), source);
        }
    }

    Shape shape_;
    const LevelPlanes& planes_;
    int set_;
    int64_t stride_;
    std::array<int, kMaxDims> odd_{}, even_{};
    std::array<int64_t, kMaxDims> reach_{};  // of the diagonals, along the even axes
    std::array<std::array<int64_t, 4>, kMaxDims> along_, corner_;
};

// Frames in an order of their own, which refer to what a forecaster makes of those that are decoded.  docs/format.md, section 21.
struct FrameSchedule {
    static constexpr int kSets = 4;  // of weights; frames of set 0 do not refer

    struct Entry {
        int64_t frame;
        int set;
        std::array<int64_t, 2> codes;  // frames whose codes are contexts, or -1; earlier in the order
    };
    std::vector<Entry> entries;
    // Writes the reference of a frame, in the type of the data; false if there is none.
    std::function<bool(int64_t frame, void* reference)> predict;

    // Frames that weights are fitted to, with their references; encoder only.
    struct Example {
        int64_t frame;
        int set;
        const void* reference;
    };
    std::vector<Example> examples;
};

// What the decoder is told before it starts.
struct InterpolationPlan {
    Shape frame;
    int64_t frames = 1;
    bool reversed = false;                    // order of the classes
    bool reference = false;                   // every frame but the first refers to the one before
    const FrameSchedule* schedule = nullptr;  // or none; not together with `reference`
    double step = 0;                          // quantizer step of the finest level
    int alpha16 = 16;                         // step of level l = step / min(alpha^l, beta), both in 1/16
    int beta16 = 16;
    double offset = 0;                  // prediction of the first point
    const LearnedNets* nets = nullptr;  // or none
    LearnedSamples* samples = nullptr;  // to be filled, or none; encoder only, without networks

    int levels() const {
        int64_t longest = 1;
        for (int a = 0; a < frame.n; ++a) longest = std::max(longest, frame.dim[static_cast<std::size_t>(a)]);
        int l = 0;
        while ((int64_t{1} << l) < longest) ++l;
        return l;
    }
    double step_at(int level) const {
        const double alpha = alpha16 / 16.0, beta = beta16 / 16.0;
        double divisor = 1.0;
        for (int l = 0; l < level && divisor < beta; ++l) divisor *= alpha;
        return step / std::min(divisor, beta);
    }
};

template <class T, class Codes>
class InterpolationCoder : ClosedLoop<T, Codes> {
    using Base = ClosedLoop<T, Codes>;
    using Base::chunk_, Base::coder_;

  public:
    using Base::unused_outliers;

    InterpolationCoder(const InterpolationPlan& plan, Chunk<T>& chunk, Codes& coder)
        : Base(chunk, coder),
          plan_(plan),
          pyramid_(plan.frame, plan.levels()),
          order_(class_order(plan.frame.n, plan.reversed)),
          passes_(FrameSchedule::kSets * static_cast<std::size_t>(plan.levels()) * order_.size()),
          weights_(FrameSchedule::kSets * kFitLevels * order_.size()),
          last_set_(kFitLevels * order_.size()) {
        // tiles reach beyond the end of a line
        const int64_t longest = plan.frame.dim[static_cast<std::size_t>(plan.frame.n - 1)];
        const std::size_t width = static_cast<std::size_t>(longest + kTilePoints);
        prediction_.resize(width);
        code_.resize(width);
        scale_.resize(width);
        sums_ = LineSums(width);
    }

    void run() {
        const std::size_t planes = static_cast<std::size_t>(pyramid_.size());
        const std::size_t frames = static_cast<std::size_t>(plan_.frames), room = LearnedPass::kRoom;
        if constexpr (!Codes::decoding) {
            if (plan_.schedule) {
                train_sets();
            } else if (plan_.frames > 1) {
                train();
            }
        }
        // every place is written before it is read, but for what gains are fitted on and what tiles read in vain
        const bool clean = plan_.nets || plan_.samples;
        const std::size_t buffers = plan_.reference || plan_.schedule ? 2 : 1;
        const Workspace<T> all_values(buffers * planes, room, clean);
        const Workspace<int16_t> all_codes((plan_.schedule ? frames + 1 : buffers) * planes, room, clean);
        T* const values = all_values.data();
        int16_t* const codes = all_codes.data();
        if (!plan_.schedule) {
            for (std::size_t f = 0; f < frames; ++f) {
                frame_ = static_cast<int64_t>(f) * plan_.frame.size;
                set_ = plan_.reference && f > 0;
                const std::size_t now = plan_.reference ? (f & 1) * planes : 0, before = planes - now;
                const double root = f ? static_cast<double>(chunk_.out[frame_ - plan_.frame.size]) : plan_.offset;
                code_frame(root, values + now, codes + now, values + before, codes + before);
            }
            return;
        }
        std::vector<T> reference(static_cast<std::size_t>(plan_.frame.size));
        for (const FrameSchedule::Entry& entry : plan_.schedule->entries) {
            frame_ = entry.frame * plan_.frame.size;
            set_ = entry.set;
            double root = plan_.offset;
            const int16_t* before = codes + frames * planes;
            if (set_ > 0) {
                if (!plan_.schedule->predict(entry.frame, reference.data()))
                    throw std::invalid_argument("a frame that refers has no reference");
                for (T& r : reference)
                    if (!std::isfinite(r)) r = 0;
                root = static_cast<double>(reference[0]);
                split_all(reference.data(), values + planes);
                before = codes_of(entry, codes, planes);
            }
            code_frame(root, values, codes + static_cast<std::size_t>(entry.frame) * planes, values + planes, before);
        }
    }

  private:
    // Memory for planes, with room around it for what tiles read.
    template <class U>
    class Workspace {
      public:
        Workspace(std::size_t size, std::size_t room, bool clean) : all_(size + 2 * room), room_(room) {
            if (clean) std::fill_n(all_.data(), size + 2 * room, U{0});
        }
        U* data() const { return all_.data() + room_; }

      private:
        Memory<U> all_;
        std::size_t room_;
    };

    // Codes the frame at `frame_` of the set `set_`: planes of its own and of what it refers to.
    void code_frame(double root_prediction, T* values, int16_t* codes, const T* values_before, const int16_t* codes_before) {
        const int levels = plan_.levels();
        T root;
        int16_t root_code;
        code_root(root_prediction, root, root_code);
        if (levels == 0) {
            chunk_.out[frame_] = root;
            codes[0] = root_code;
        }
        for (int level = levels - 1; level >= 0; --level) {
            const LevelPlanes& here = pyramid_[level];
            const std::size_t start = static_cast<std::size_t>(pyramid_.start(level));
            values_ = values + start;
            codes_ = codes + start;
            source_ = {values_, referring() ? values_before + start : nullptr};
            codes_before_ = referring() ? codes_before + start : nullptr;
            if (level == levels - 1) {
                values_[0] = root;
                codes_[0] = root_code;
            }
            for (std::size_t k = 0; k < order_.size(); ++k)
                if (exists(order_[k], level)) code_pass(pass_of(level, k));
            if (level == 0) {
                here.merge(values_, chunk_.out + frame_);
            } else {
                const std::size_t finer = static_cast<std::size_t>(pyramid_.start(level - 1));
                here.merge(values_, values + finer);
                here.merge(codes_, codes + finer);
            }
        }
    }

    void split_all(const T* frame, T* planes) const {
        for (int level = 0; level < plan_.levels(); ++level)
            pyramid_[level].split(frame, plan_.frame, int64_t{1} << level, planes + pyramid_.start(level));
    }

    // Codes that a frame has as contexts; the last planes are for what two frames make together.
    const int16_t* codes_of(const FrameSchedule::Entry& entry, int16_t* codes, std::size_t planes) const {
        const auto of = [&](int64_t frame) { return codes + static_cast<std::size_t>(frame) * planes; };
        int16_t* const both = of(plan_.frames);
        if (entry.codes[0] >= 0 && entry.codes[1] < 0) return of(entry.codes[0]);
        if (entry.codes[0] < 0) {
            std::fill_n(both, planes, int16_t{0});
        } else {
            const int16_t *a = of(entry.codes[0]), *b = of(entry.codes[1]);
            for (std::size_t i = 0; i < planes; ++i)
                both[i] = static_cast<int16_t>((std::abs(int{a[i]}) + std::abs(int{b[i]}) + 1) / 2);
        }
        return both;
    }

    bool referring() const { return set_ > 0; }
    bool exists(int set, int level) const {
        for (int a = 0; a < plan_.frame.n; ++a)
            if ((set >> a & 1) && plan_.frame.dim[static_cast<std::size_t>(a)] <= int64_t{1} << level) return false;
        return true;
    }

    std::size_t slot(int level, std::size_t k) const {
        return (static_cast<std::size_t>(set_) * kFitLevels + static_cast<std::size_t>(level)) * order_.size() + k;
    }

    // The points of a line: the first coordinate, the distance, how many.
    struct Line {
        int64_t x0, dx, count;
    };
    Line line_of(int set, int level) const {
        const int inner = plan_.frame.n - 1;
        const int64_t s = int64_t{1} << level, x0 = set >> inner & 1 ? s : 0, dx = 2 * s;
        return {x0, dx, (plan_.frame.dim[static_cast<std::size_t>(inner)] - x0 + dx - 1) / dx};
    }

    // A class of a level, for all frames that refer to the one before, or for all others.
    struct Pass {
        int set, level;
        ClassGeometry geometry;
        Line line;
        double step, inverse;
        int64_t first_inside = 0, last_inside = 0;  // points of a line from which everything is seen
        Weights weights{};
        std::vector<std::unique_ptr<Stencil>> stencils;  // made of the weights, when they are needed
        int slot = -1;                                   // of its network
        const Mlp* net = nullptr;                        // or none
        std::optional<LearnedPass> learned;
        int gain = 0;

        Pass(const InterpolationCoder& coder, int set_, int level_)
            : set(set_),
              level(level_),
              geometry(coder.plan_.frame, coder.pyramid_[level], set, int64_t{1} << level, coder.order_, coder.referring()),
              line(coder.line_of(set, level)),
              step(coder.plan_.step_at(level)),
              inverse(1.0 / step),
              weights(geometry.layout.defaults()),
              stencils(std::size_t{1} << (2 * geometry.layout.odd + geometry.layout.even)) {
            const auto [low, high] = geometry.interior();
            const auto index_of = [&](int64_t x) {
                return std::clamp<int64_t>((x - line.x0 + line.dx - 1) / line.dx, 0, line.count);
            };
            first_inside = low <= line.x0 ? 0 : index_of(low);
            last_inside = std::max(first_inside, high <= line.x0 ? 0 : index_of(high));
        }

        const Stencil& stencil(const Around& around) {
            auto& entry = stencils[around.key(geometry.layout.odd)];
            if (!entry) entry = std::make_unique<Stencil>(geometry.stencil(weights, around));
            return *entry;
        }
    };

    // A pass of this frame.  What the stream says of it is coded when it is first needed.
    Pass& pass_of(int level, std::size_t k) {
        const std::size_t first = static_cast<std::size_t>(set_) * static_cast<std::size_t>(plan_.levels());
        auto& entry = passes_[(first + static_cast<std::size_t>(level)) * order_.size() + k];
        if (entry) return *entry;
        entry = std::make_unique<Pass>(*this, order_[k], level);
        Pass& pass = *entry;
        if (level < kFitLevels) code_weights(pass, k);
        pass.slot = level < kLearnedLevels ? LearnedNets::slot(plan_.frame.n, pass.set, referring()) : -1;
        if (pass.slot < 0) return pass;
        if (plan_.nets) pass.net = plan_.nets->find(pass.slot);
        if (pass.net || plan_.samples) {
            const auto& sights = plan_.nets ? plan_.nets->sights : plan_.samples->sights;
            const Sight sight = sights[static_cast<std::size_t>(pass.slot)];
            pass.learned.emplace(plan_.frame, pyramid_[level], pass.set, level, referring(), sight);
        }
        if (pass.net) code_gain(pass);
        return pass;
    }

    // The weights of a pass, less the defaults; with a schedule, less those of the set that was coded last.
    void code_weights(Pass& pass, std::size_t k) {
        const WeightLayout& layout = pass.geometry.layout;
        const std::size_t slot = this->slot(pass.level, k);
        const Weights defaults = plan_.schedule ? known(pass, k) : pass.weights;
        Weights weights = weights_[slot];
        if constexpr (!Codes::decoding) {
            const bool trained = plan_.schedule ? trained_[static_cast<std::size_t>(set_)] : plan_.frames > 1;
            if (!trained) weights = fit(pass, {{source_, chunk_.data + frame_, this->mask_at(frame_)}});
        }
        for (std::size_t j = 0; j < static_cast<std::size_t>(layout.count()); ++j) {
            const int32_t excess = coder_.code_integer(Codes::decoding ? 0 : weights[j] - defaults[j]);
            const int64_t weight = int64_t{defaults[j]} + excess;
            if (weight < -4096 || weight > 4096) throw CorruptStream("an interpolation weight is out of range");
            pass.weights[j] = static_cast<int32_t>(weight);
        }
        last_set_[static_cast<std::size_t>(pass.level) * order_.size() + k] = set_ + 1;
    }

    // What the set that was coded last for this class says; defaults where it says nothing.
    Weights known(const Pass& pass, std::size_t k) {
        Weights weights = pass.weights;
        const int last = last_set_[static_cast<std::size_t>(pass.level) * order_.size() + k] - 1;
        if (last < 0) return weights;
        const std::size_t first = static_cast<std::size_t>(last) * static_cast<std::size_t>(plan_.levels());
        const Pass& other = *passes_[(first + static_cast<std::size_t>(pass.level)) * order_.size() + k];
        std::copy_n(other.weights.begin(), std::min(pass.geometry.layout.count(), other.geometry.layout.count()),
                    weights.begin());
        return weights;
    }

    // How much of the corrections of a pass is taken, in eighths.
    void code_gain(Pass& pass) {
        int gain = 8;
        if constexpr (!Codes::decoding) gain = fit_gain(pass);
        const int64_t coded = int64_t{8} + coder_.code_integer(Codes::decoding ? 0 : gain - 8);
        if (coded < 0 || coded > 16) throw CorruptStream("the gain of a network is out of range");
        pass.gain = static_cast<int>(coded);
    }

    void code_root(double prediction, T& value, int16_t& memory) {
        const double step = plan_.step_at(plan_.levels());
        if (this->masked(frame_)) {
            value = static_cast<T>(prediction);
            memory = 0;
            return;
        }
        sums_.expected[0] = sums_.narrow[0] = 1024;
        sums_.near[0] = sums_.other[0] = 0;
        sums_.north[0] = 0;
        int32_t code = 0;
        if constexpr (!Codes::decoding) code = quantize<T>(chunk_.data[frame_], prediction, step, 1.0 / step, chunk_.tolerance);
        coder_.line({sums_, 0, 0, false, nullptr, 0, 1}, &code);
        this->settle(frame_, prediction, step, code, value, memory);
    }

    // Visits the lines of a class: first element in the planes, element of x = 0 in the frame, coordinates of the axes.
    template <class Visit>
    void for_each_line(int set, int level, Visit visit) const {
        const LevelPlanes& planes = pyramid_[level];
        const Shape& shape = plan_.frame;
        const int64_t s = int64_t{1} << level;
        Coordinates start{};
        for (std::size_t a = 0; a < static_cast<std::size_t>(shape.n); ++a) start[a] = set >> a & 1 ? s : 0;
        Coordinates c = start;
        do {
            int64_t at = 0, first = planes.start(set);
            for (std::size_t a = 0; a + 1 < static_cast<std::size_t>(shape.n); ++a) {
                at += c[a] * shape.step[a];
                first += (c[a] >> (level + 1)) * planes.step(static_cast<int>(a));
            }
            visit(first, at, c);
        } while (advance(c, shape.n - 1, shape.dim, start, 2 * s));
    }

    // Predicts every line of a class and hands it over: its first point in the planes and in the frame, what is around the
    // line, coordinates.
    template <class Visit>
    void predict_pass(Pass& pass, const std::array<const T*, 2>& source, Visit visit) {
        const int inner = plan_.frame.n - 1;
        for_each_line(pass.set, pass.level, [&](int64_t first, int64_t at, const Coordinates& c) {
            Around outer;
            for (int a = 0; a < inner; ++a) pass.geometry.look(outer, a, c[static_cast<std::size_t>(a)]);
            const auto predict = [&](int64_t from, int64_t to) {
                if (to <= from) return;
                Around around = outer;
                pass.geometry.look(around, inner, pass.line.x0 + from * pass.line.dx);
                apply_stencil(pass.stencil(around), source.data(), first + from, to - from, prediction_.data() + from);
            };
            for (int64_t i = 0; i < pass.first_inside; ++i) predict(i, i + 1);
            predict(pass.first_inside, pass.last_inside);
            for (int64_t i = pass.last_inside; i < pass.line.count; ++i) predict(i, i + 1);
            visit(first, at + pass.line.x0, outer, c);
        });
    }

    void code_pass(Pass& pass) {
        const Line& line = pass.line;
        const int group = std::min(pass.level, 1) * 3 + std::min(pass.geometry.layout.odd, 3) - 1;
        const uint8_t* const scale = pass.net ? scale_.data() : nullptr;
        const double unit = pass.net ? pass.gain * pass.step * (0.125 * pass.learned->unit()) : 0.0;
        predict_pass(pass, source_, [&](int64_t first, int64_t in_frame, const Around& around, const Coordinates& c) {
            gather(pass, around, c, first);
            const int64_t at = frame_ + in_frame;
            if (pass.learned)
                look(pass, first, at, c, [&](int64_t i, int points) {
                    if constexpr (!Codes::decoding)
                        if (plan_.samples)
                            plan_.samples->add(pass.slot, tile_, chunk_.data + at + i * line.dx, line.dx,
                                               this->mask_at(at + i * line.dx), points, prediction_.data() + i, pass.inverse);
                    if (pass.net) correct(tile_, unit, prediction_.data() + i, scale_.data() + i);
                });
            if constexpr (!Codes::decoding)
                quantize_line(chunk_.data + at, line.dx, line.count, prediction_.data(), pass.step, pass.inverse,
                              chunk_.tolerance, code_.data());
            coder_.line({sums_, group, 4, true, this->mask_at(at), line.dx, line.count, scale}, code_.data());
            if (!settle_line<Codes::clip>(prediction_.data(), code_.data(), pass.step, line.count, values_ + first,
                                          codes_ + first))
                for (int64_t i = 0; i < line.count; ++i)
                    if (code_[static_cast<std::size_t>(i)] == kOutlier)
                        this->settle(at + i * line.dx, prediction_[static_cast<std::size_t>(i)], pass.step, kOutlier,
                                     values_[first + i], codes_[first + i]);
        });
    }

    // Tile after tile of a line: what the network sees and, if there is one, says is in `tile_`.  The static coder has no tiles
    // without a code.
    template <class Visit>
    void look(Pass& pass, int64_t first, int64_t element, const Coordinates& c, Visit visit) {
        pass.learned->start_line(c);
        const uint8_t* const mask = Codes::narrow ? this->mask_at(element) : nullptr;
        for (int64_t i = 0; i < pass.line.count; i += kTilePoints) {
            const int points = static_cast<int>(std::min<int64_t>(kTilePoints, pass.line.count - i));
            if (mask && all_masked(mask + i * pass.line.dx, pass.line.dx, points)) {
                std::fill_n(scale_.begin() + i, points, uint8_t{0});
                continue;
            }
            const int64_t at = first + i;
            const TileView<T> view{source_[0] + at,
                                   referring() ? source_[1] + at : nullptr,
                                   codes_ + at,
                                   referring() ? codes_before_ + at : nullptr,
                                   prediction_.data() + i,
                                   sums_.near.data() + i,
                                   sums_.expected.data() + i,
                                   sums_.other.data() + i,
                                   8.0 / pass.step};
            pass.learned->look(view, i, points, tile_);
            if (pass.net) pass.net->run_tile(tile_.inputs, points, tile_.outputs);
            visit(i, points);
        }
    }

    static bool all_masked(const uint8_t* mask, int64_t distance, int64_t points) {
        int64_t masked = 0;
        for (int64_t i = 0; i < points; ++i) masked += mask[i * distance] != 0;
        return masked == points;
    }

    // Sums of the codes around every point of a line, but those of the line itself.
    void gather(const Pass& pass, const Around& outer, const Coordinates& c, int64_t first) {
        const LevelPlanes& planes = pyramid_[pass.level];
        const ClassGeometry& geometry = pass.geometry;
        const Line& line = pass.line;
        const int inner = plan_.frame.n - 1;
        const auto there = [&](int axis) { return axis >= 0 && c[static_cast<std::size_t>(axis)] >= line.dx; };
        const int16_t* codes = codes_ + first;
        NeighbourLines lines;
        lines.near_weight = geometry.layout.odd <= 2 ? 2 : 1;
        Around at_start = outer, at_end = outer;
        geometry.look(at_start, inner, line.x0);
        geometry.look(at_end, inner, line.x0 + (line.count - 1) * line.dx);
        lines.near_count = geometry.near_offsets(at_start, lines.near);
        geometry.near_offsets(at_end, lines.near_last);
        if (there(inner - 1)) lines.north = codes - planes.step(inner - 1);
        if (there(inner - 2)) lines.plane = codes - planes.step(inner - 2);
        if (referring()) lines.reference = codes_before_ + first;
        if (Codes::narrow && !pass.learned) {
            gather_narrow_line(codes, lines, line.count, sums_);
        } else {
            gather_line(codes, lines, line.count, sums_);
        }
    }

    // ---- encoder only ------------------------------------------------------------------------------------------

    // A frame to fit to: planes of what predicts, and what is to be predicted.
    struct Sample {
        std::array<const T*, 2> source;
        const T* data;
        const uint8_t* mask;
    };

    // What becomes of a line whose predictions are as they are; nothing is coded.
    void reconstruct_line(const Pass& pass, const T* data, const uint8_t* mask, T* out, int16_t* memory) {
        const Line& line = pass.line;
        quantize_line(data, line.dx, line.count, prediction_.data(), pass.step, pass.inverse, chunk_.tolerance, code_.data());
        for (int64_t i = 0; mask && i < line.count; ++i)
            if (mask[i * line.dx]) code_[static_cast<std::size_t>(i)] = 0;
        if (settle_line<Codes::clip>(prediction_.data(), code_.data(), pass.step, line.count, out, memory)) return;
        for (int64_t i = 0; i < line.count; ++i)
            if (code_[static_cast<std::size_t>(i)] == kOutlier) {
                out[i] = data[i * line.dx];
                memory[i] = remembered(kOutlier, Codes::clip);
            }
    }

    Weights fit(const Pass& pass, const std::vector<Sample>& samples) const {
        constexpr int64_t kTooFew = 64;
        const int64_t size = plan_.frame.size * plan_.frames;  // less for a trial, and where time counts
        const bool hasty = Codes::narrow && !plan_.nets;
        const int64_t enough =
            hasty ? std::clamp<int64_t>(size / 256, 400, 1500) : std::clamp<int64_t>(size / 64, Codes::narrow ? 600 : 1500, 6000);
        const int inner = plan_.frame.n - 1;
        const ClassGeometry& geometry = pass.geometry;
        const Line& line = pass.line;
        const Weights defaults = geometry.layout.defaults();
        int64_t lines = 0;
        for_each_line(pass.set, pass.level, [&](int64_t, int64_t, const auto&) { ++lines; });
        const int64_t points = lines * line.count * static_cast<int64_t>(samples.size());
        const int64_t skip = std::max<int64_t>(1, points / enough);
        const int n = geometry.layout.count();
        std::vector<double> sampled;  // features and target, one after the other
        int64_t seen = 0;
        sampled.reserve(static_cast<std::size_t>((points / skip + 1) * (n + 1)));
        for (const Sample& sample : samples)
            for_each_line(pass.set, pass.level, [&](int64_t first, int64_t at, const Coordinates& c) {
                Around outer;
                for (int a = 0; a < inner; ++a) geometry.look(outer, a, c[static_cast<std::size_t>(a)]);
                int64_t i = (skip - seen % skip) % skip;
                seen += line.count;
                for (; i < line.count; i += skip) {
                    const int64_t here = at + line.x0 + i * line.dx;
                    if (sample.mask && sample.mask[here]) continue;
                    Around around = outer;
                    geometry.look(around, inner, line.x0 + i * line.dx);
                    sampled.resize(sampled.size() + static_cast<std::size_t>(n) + 1);
                    double* const target = &sampled.back();
                    const double base = geometry.features(sample.source.data(), first + i, around, target - n);
                    *target = static_cast<double>(sample.data[here]) - base;
                }
            });
        double prior[kMaxWeights];
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) prior[i] = defaults[i] * kWeightUnit;
        Weights w = defaults;
        fit_weights({n, chunk_.tolerance, hasty ? 1 : 2, 1e-3, kTooFew, false}, sampled, prior, defaults.data(), w.data());
        return w;
    }

    // The gain with the cheapest codes on some lines: bytes grow with the logarithm of errors that exceed half a step.
    int fit_gain(Pass& pass) {
        constexpr int64_t kTooFew = 500;  // points
        constexpr int kGains[5] = {0, 3, 6, 8, 10};
        const Line& line = pass.line;
        int64_t lines = 0, number = 0;
        for_each_line(pass.set, pass.level, [&](int64_t, int64_t, const auto&) { ++lines; });
        if (lines * line.count < kTooFew) return 8;
        const int64_t enough = Codes::narrow ? std::clamp<int64_t>(lines * line.count / 8, 250, 2000) : 2000;
        const int64_t skip = std::max<int64_t>(1, lines * line.count / enough);
        std::array<double, 5> cost{}, product;  // what is left to be added, as a product of what the logarithm is of
        product.fill(1);
        predict_pass(pass, source_, [&](int64_t first, int64_t in_frame, const Around& around, const Coordinates& c) {
            const int64_t at = frame_ + in_frame;
            if (number++ % skip == 0) {
                gather(pass, around, c, first);
                look(pass, first, at, c, [&](int64_t from, int points) {
                    for (int i = 0; i < points; ++i) {
                        const int64_t here = at + (from + i) * line.dx;
                        if (this->masked(here)) continue;
                        const double p = prediction_[static_cast<std::size_t>(from + i)];
                        const double lacks = (static_cast<double>(chunk_.data[here]) - p) * pass.inverse;
                        const double correction = tile_.correction(i) * pass.learned->unit();
                        for (std::size_t g = 0; g < cost.size(); ++g) {
                            const double error = lacks - kGains[g] * 0.125 * correction;
                            const double factor = 1 + 4 * error * error, next = product[g] * factor;
                            if (!(next < 1e150)) cost[g] += std::log2(product[g]);
                            product[g] = next < 1e150 ? next : factor;
                        }
                    }
                });
            }
            // later lines of the class see this one as it would be without the network
            reconstruct_line(pass, chunk_.data + at, this->mask_at(at), values_ + first, codes_ + first);
        });
        for (std::size_t g = 0; g < cost.size(); ++g) cost[g] += std::log2(product[g]);
        return kGains[std::min_element(cost.begin(), cost.end()) - cost.begin()];
    }

    // A frame to fit to, and the one that it refers to or none.
    struct Example {
        int64_t frame;
        const T* reference;
    };

    // Fits the weights that many frames share, on a few of them.
    void train() {
        constexpr int64_t kSamples = 6, kEnough = 120000;
        const int64_t size = plan_.frame.size, first = plan_.reference ? 1 : 0;
        const int64_t wanted = std::clamp<int64_t>(kEnough / size, 1, kSamples);
        const int64_t n = std::min(wanted, plan_.frames - first);
        std::vector<T> before(plan_.reference ? static_cast<std::size_t>(size * n) : 0);
        std::vector<Example> examples;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t frame = first + (2 * i + 1) * (plan_.frames - first) / (2 * n);
            T* const y = plan_.reference ? before.data() + i * size : nullptr;
            if (y) {  // the frame before as the quantizer might have left it
                const T* x = chunk_.data + (frame - 1) * size;
                for (int64_t j = 0; j < size; ++j) {
                    y[j] = static_cast<T>(std::nearbyint(static_cast<double>(x[j]) / plan_.step) * plan_.step);
                    if (!std::isfinite(y[j])) y[j] = static_cast<T>(plan_.offset);
                }
            }
            examples.push_back({frame, y});
        }
        set_ = plan_.reference;
        train_set(examples);
        if (!plan_.reference) return;
        set_ = 0;  // the first frame has no reference
        for (int level = 0; level < std::min(kFitLevels, plan_.levels()); ++level)
            for (std::size_t k = 0; k < order_.size(); ++k) {
                const int odd = count_bits(static_cast<unsigned>(order_[k]));
                weights_[slot(level, k)] = WeightLayout{odd, plan_.frame.n - odd, false}.defaults();
            }
    }

    // The same for the sets of a schedule; those without examples are fitted to their first frame, when it is coded.
    void train_sets() {
        for (int set = 0; set < FrameSchedule::kSets; ++set) {
            std::vector<Example> examples;
            for (const FrameSchedule::Example& example : plan_.schedule->examples)
                if (example.set == set) examples.push_back({example.frame, static_cast<const T*>(example.reference)});
            if (examples.empty()) continue;
            set_ = set;
            train_set(examples);
            trained_[static_cast<std::size_t>(set)] = true;
        }
    }

    // Codes the examples as if they were the frames of the set at hand, and fits its weights to what becomes of them.
    void train_set(const std::vector<Example>& examples) {
        const std::size_t planes = static_cast<std::size_t>(pyramid_.size());
        std::vector<T> values(planes * examples.size());
        std::vector<T> reference(referring() ? values.size() : 0);
        std::vector<Sample> samples;
        std::vector<int16_t> forgotten(code_.size());
        for (std::size_t i = 0; i < examples.size(); ++i) {
            const int64_t at = examples[i].frame * plan_.frame.size;
            samples.push_back({{}, chunk_.data + at, this->mask_at(at)});
            if (referring()) split_all(examples[i].reference, reference.data() + i * planes);
        }
        const auto planes_of = [&](std::vector<T>& all, std::size_t i, int level) {
            return all.data() + i * planes + static_cast<std::size_t>(pyramid_.start(level));
        };
        for (int level = plan_.levels() - 1; level >= 0; --level) {
            for (std::size_t i = 0; i < samples.size(); ++i) {
                T* here = planes_of(values, i, level);
                samples[i].source = {here, referring() ? planes_of(reference, i, level) : nullptr};
                if (level + 1 < plan_.levels()) {
                    pyramid_[level + 1].merge(planes_of(values, i, level + 1), here);
                } else {
                    here[0] = samples[i].mask && samples[i].mask[0] ? static_cast<T>(plan_.offset) : samples[i].data[0];
                }
            }
            for (std::size_t k = 0; k < order_.size(); ++k) {
                if (!exists(order_[k], level)) continue;
                Pass pass(*this, order_[k], level);
                if (level < kFitLevels) weights_[slot(level, k)] = pass.weights = fit(pass, samples);
                for (const Sample& sample : samples) {
                    T* target = const_cast<T*>(sample.source[0]);
                    predict_pass(pass, sample.source, [&](int64_t at, int64_t in_frame, const Around&, const auto&) {
                        reconstruct_line(pass, sample.data + in_frame, sample.mask ? sample.mask + in_frame : nullptr,
                                         target + at, forgotten.data());
                    });
                }
            }
        }
    }

    const InterpolationPlan& plan_;
    Pyramid pyramid_;
    std::vector<int> order_;
    std::vector<std::unique_ptr<Pass>> passes_;  // by set (those that do not refer and those that do), level, class
    std::vector<Weights> weights_;               // fitted to many frames; likewise
    std::vector<int> last_set_;                  // that weights were coded for, plus 1: by level, class
    std::array<bool, FrameSchedule::kSets> trained_{};
    std::vector<double> prediction_;
    std::vector<int32_t> code_;
    std::vector<uint8_t> scale_;  // classes of codes that networks give
    LineSums sums_;
    LearnedTile tile_{};
    T* values_ = nullptr;  // planes of the level that is coded, of the frame and of the one that it refers to
    int16_t* codes_ = nullptr;
    std::array<const T*, 2> source_{};
    const int16_t* codes_before_ = nullptr;
    int64_t frame_ = 0;  // element of the frame's first value
    int set_ = 0;        // of the frame; 0 if it does not refer
};

}  // namespace aesz
