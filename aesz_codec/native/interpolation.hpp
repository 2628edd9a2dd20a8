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
#include <memory>
#include <utility>

#include "closed_loop.hpp"
#include "kernels.hpp"

namespace aesz {

constexpr int kFitLevels = 5;  // the finest levels have weights of their own

// The classes of a level as sets of odd axes (bit a = axis a): fewer odd axes first, then by set, or against it.
inline std::vector<int> class_order(int n, bool reversed) {
    std::vector<int> order;
    for (int set = 1; set < 1 << n; ++set) order.push_back(set);
    std::sort(order.begin(), order.end(), [reversed](int x, int y) {
        const int cx = count_bits(static_cast<unsigned>(x)), cy = count_bits(static_cast<unsigned>(y));
        return cx != cy ? cx < cy : reversed ? x > y : x < y;
    });
    return order;
}

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
    ClassGeometry(const Shape& shape, int set, int64_t stride, const std::vector<int>& order, bool reference)
        : shape_(shape), stride_(stride) {
        for (int a = 0; a < shape.n; ++a) (set >> a & 1 ? odd_ : even_).push_back(a);
        layout = {static_cast<int>(odd_.size()), static_cast<int>(even_.size()), reference};
        const auto self = std::find(order.begin(), order.end(), set);
        for (int e : even_) reach_.push_back(std::find(order.begin(), self, 1 << e) != self ? stride : 2 * stride);
    }

    WeightLayout layout;

    // Adds what is to be seen along one axis from coordinate `c`.
    void look(Around& around, int axis, int64_t c) const {
        const int64_t s = stride_, size = shape_.dim[static_cast<std::size_t>(axis)];
        for (std::size_t i = 0; i < odd_.size(); ++i)
            if (odd_[i] == axis) {
                if (c - 3 * s >= 0 && c + 3 * s < size) around.far |= 1u << i;
                if (c + s >= size) around.mirrored |= 1u << i;
            }
        for (std::size_t i = 0; i < even_.size(); ++i)
            if (even_[i] == axis && c - reach_[i] >= 0 && c + reach_[i] < size) around.diagonal |= 1u << i;
    }

    // Coordinates [first, last) of the last axis from which everything is seen.
    std::pair<int64_t, int64_t> interior() const {
        const int axis = shape_.n - 1;
        const int64_t size = shape_.dim[static_cast<std::size_t>(axis)];
        if (odd_.back() == axis) return {3 * stride_, size - 3 * stride_};
        const int64_t reach = reach_.back();
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
                const int64_t d = stride_ * step(odd_, i);
                const double before = x[-d];
                near[i] = 0.5 * (before + (around.mirrored >> i & 1 ? before : static_cast<double>(x[d])));
                far[i] = around.far >> i & 1 ? 0.5 * (static_cast<double>(x[-3 * d]) + static_cast<double>(x[3 * d])) : near[i];
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
            const auto [d, e] = diagonal_steps(i);
            const double sum = static_cast<double>(x[-d - e]) + static_cast<double>(x[-d + e]) + static_cast<double>(x[d - e]) +
                               static_cast<double>(x[d + e]);
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
            const int64_t d = stride_ * step(odd_, i);
            offsets[n++] = -d;
            offsets[n++] = around.mirrored >> i & 1 ? -d : d;
        }
        return n;
    }

  private:
    int64_t step(const std::vector<int>& axes, int i) const {
        return shape_.step[static_cast<std::size_t>(axes[static_cast<std::size_t>(i)])];
    }
    bool has_diagonal(const Around& around, int i) const {
        return around.mirrored == 0 && (layout.odd == 2 || (around.diagonal >> i & 1));
    }
    std::pair<int64_t, int64_t> diagonal_steps(int i) const {
        const int64_t d = stride_ * step(odd_, 0);
        return {d, layout.odd == 2 ? stride_ * step(odd_, 1) : reach_[static_cast<std::size_t>(i)] * step(even_, i)};
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
            const int64_t d = stride_ * step(odd_, i);
            out.add(-d, around.mirrored >> i & 1 ? -d : d, scale * (0.5 * (near[i] + base / m)), source);
        }
        for (int i = 0; i < m; ++i) {
            const int64_t d = 3 * stride_ * step(odd_, i);
            out.add(-d, d, scale * (0.5 * far[i]), source);
        }
        for (int i = 0; i < layout.diagonals(); ++i) {
            const auto [d, e] = diagonal_steps(i);
            out.add(-d - e, d + e, scale * (0.25 * diagonal[i]), source);
            out.add(-d + e, d - e, scale * (0.25 * diagonal[i]), source);
        }
    }

    Shape shape_;
    int64_t stride_;
    std::vector<int> odd_, even_;
    std::vector<int64_t> reach_;
};

// What the decoder is told before it starts.
struct InterpolationPlan {
    Shape frame;
    int64_t frames = 1;
    bool reversed = false;   // order of the classes
    bool reference = false;  // every frame but the first refers to the one before
    double step = 0;         // quantizer step of the finest level
    int alpha16 = 16;        // step of level l = step / min(alpha^l, beta), both in 1/16
    int beta16 = 16;
    double offset = 0;  // prediction of the first point

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
    using Base::chunk_, Base::codes_, Base::coder_;

  public:
    using Base::unused_outliers;

    InterpolationCoder(const InterpolationPlan& plan, Chunk<T>& chunk, Codes& coder)
        : Base(chunk, plan.frame.size * plan.frames, coder),
          plan_(plan),
          order_(class_order(plan.frame.n, plan.reversed)),
          known_(2 * kFitLevels * order_.size()),
          weights_(known_.size()) {
        const std::size_t width = static_cast<std::size_t>(plan.frame.dim[static_cast<std::size_t>(plan.frame.n - 1)]);
        prediction_.resize(width);
        code_.resize(width);
        sums_ = LineSums(width);
    }

    void run() {
        const int64_t size = plan_.frame.size;
        if constexpr (!Codes::decoding)
            if (plan_.frames > 1) train();
        for (int64_t f = 0; f < plan_.frames; ++f) {
            frame_ = f * size;
            source_ = {chunk_.out + frame_, f ? chunk_.out + frame_ - size : nullptr};
            referring_ = plan_.reference && f > 0;
            code_root(f ? static_cast<double>(chunk_.out[frame_ - size]) : plan_.offset);
            for (int level = plan_.levels() - 1; level >= 0; --level)
                for (std::size_t k = 0; k < order_.size(); ++k) {
                    if (!exists(order_[k], level)) continue;
                    const ClassGeometry geometry(plan_.frame, order_[k], int64_t{1} << level, order_, referring_);
                    const Weights w = pass_weights(geometry, level, k);
                    code_pass(geometry, w, order_[k], level);
                }
        }
    }

  private:
    bool exists(int set, int level) const {
        for (int a = 0; a < plan_.frame.n; ++a)
            if ((set >> a & 1) && plan_.frame.dim[static_cast<std::size_t>(a)] <= int64_t{1} << level) return false;
        return true;
    }

    std::size_t slot(int level, std::size_t k) const {
        return (static_cast<std::size_t>(referring_) * kFitLevels + static_cast<std::size_t>(level)) * order_.size() + k;
    }

    // The weights of a pass; coded when they are first needed.
    Weights pass_weights(const ClassGeometry& geometry, int level, std::size_t k) {
        const Weights defaults = geometry.layout.defaults();
        if (level >= kFitLevels) return defaults;
        const std::size_t i = slot(level, k);
        if (!known_[i]) {
            if constexpr (!Codes::decoding)
                if (plan_.frames == 1) weights_[i] = fit(geometry, order_[k], level, {{source_, chunk_.data, chunk_.mask}});
            for (std::size_t j = 0; j < static_cast<std::size_t>(geometry.layout.count()); ++j)
                weights_[i][j] = defaults[j] + coder_.code_integer(Codes::decoding ? 0 : weights_[i][j] - defaults[j]);
            for (std::size_t j = 0; j < static_cast<std::size_t>(geometry.layout.count()); ++j)
                if (weights_[i][j] < -4096 || weights_[i][j] > 4096)
                    throw CorruptStream("an interpolation weight is out of range");
            known_[i] = true;
        }
        return weights_[i];
    }

    void code_root(double prediction) {
        const double step = plan_.step_at(plan_.levels());
        if (this->masked(frame_)) {
            chunk_.out[frame_] = static_cast<T>(prediction);
            return;
        }
        sums_.expected[0] = 1024;
        sums_.near[0] = sums_.other[0] = 0;
        sums_.north[0] = 0;
        int32_t code = 0;
        if constexpr (!Codes::decoding)
            code = quantize<T>(chunk_.data[frame_], prediction, step, 1.0 / step, chunk_.tolerance);
        coder_.line({sums_, 0, 0, false, nullptr, 0, 1}, &code);
        this->settle(frame_, prediction, step, code);
    }

    // Visits the lines of a class: element of x = 0, coordinates of the axes.
    template <class Visit>
    void for_each_line(int set, int64_t s, Visit visit) const {
        const Shape& shape = plan_.frame;
        std::array<int64_t, kMaxDims> c{}, start{};
        for (std::size_t a = 0; a < static_cast<std::size_t>(shape.n); ++a) c[a] = start[a] = set >> a & 1 ? s : 0;
        while (true) {
            int64_t at = 0;
            for (std::size_t a = 0; a + 1 < static_cast<std::size_t>(shape.n); ++a) at += c[a] * shape.step[a];
            visit(at, c);
            int a = shape.n - 2;
            for (; a >= 0; --a) {
                const std::size_t i = static_cast<std::size_t>(a);
                if ((c[i] += 2 * s) < shape.dim[i]) break;
                c[i] = start[i];
            }
            if (a < 0) return;
        }
    }

    // The points of a line: the first coordinate, the distance, how many.
    struct Line {
        int64_t x0, dx, count;
    };
    Line line_of(int set, int64_t s) const {
        const int inner = plan_.frame.n - 1;
        const int64_t x0 = set >> inner & 1 ? s : 0, dx = 2 * s;
        return {x0, dx, (plan_.frame.dim[static_cast<std::size_t>(inner)] - x0 + dx - 1) / dx};
    }

    // Predicts every line of a class and hands it over: element of the first point, what is around the line, coordinates.
    template <class Visit>
    void predict_pass(const ClassGeometry& geometry, const Weights& w, int set, int level, const std::array<const T*, 2>& source,
                      Visit visit) {
        const int64_t s = int64_t{1} << level;
        const int inner = plan_.frame.n - 1;
        const Line line = line_of(set, s);
        const auto [low, high] = geometry.interior();
        const auto index_of = [&](int64_t x) {
            return std::clamp<int64_t>((x - line.x0 + line.dx - 1) / line.dx, 0, line.count);
        };
        const int64_t i0 = low <= line.x0 ? 0 : index_of(low);
        const int64_t i1 = std::max(i0, high <= line.x0 ? 0 : index_of(high));
        std::vector<std::unique_ptr<Stencil>> cache(std::size_t{1} << (2 * geometry.layout.odd + geometry.layout.even));
        auto stencil = [&](Around around, int64_t i) -> const Stencil& {
            geometry.look(around, inner, line.x0 + i * line.dx);
            auto& entry = cache[around.key(geometry.layout.odd)];
            if (!entry) entry = std::make_unique<Stencil>(geometry.stencil(w, around));
            return *entry;
        };
        for_each_line(set, s, [&](int64_t at, const std::array<int64_t, kMaxDims>& c) {
            Around around;
            for (int a = 0; a < inner; ++a) geometry.look(around, a, c[static_cast<std::size_t>(a)]);
            const int64_t first = at + line.x0;
            auto predict = [&](int64_t from, int64_t to) {
                if (to > from)
                    apply_stencil(stencil(around, from), source.data(), first + from * line.dx, line.dx, to - from,
                                  prediction_.data() + from);
            };
            for (int64_t i = 0; i < i0; ++i) predict(i, i + 1);
            predict(i0, i1);
            for (int64_t i = i1; i < line.count; ++i) predict(i, i + 1);
            visit(first, around, c);
        });
    }

    void code_pass(const ClassGeometry& geometry, const Weights& w, int set, int level) {
        const double step = plan_.step_at(level), inverse = 1.0 / step;
        const int64_t s = int64_t{1} << level;
        const Line line = line_of(set, s);
        const int group = std::min(level, 1) * 3 + std::min(geometry.layout.odd, 3) - 1;
        predict_pass(geometry, w, set, level, source_, [&](int64_t first, const Around& around, const auto& c) {
            gather(geometry, around, c, s, line, first);
            const int64_t at = frame_ + first;
            if constexpr (!Codes::decoding)
                quantize_line(chunk_.data + at, line.dx, line.count, prediction_.data(), step, inverse, chunk_.tolerance,
                              code_.data());
            coder_.line({sums_, group, 4, true, this->mask_at(at), line.dx, line.count}, code_.data());
            if (!settle_line(prediction_.data(), code_.data(), step, line.dx, line.count, chunk_.out + at, codes_.data() + at))
                for (int64_t i = 0; i < line.count; ++i)
                    if (code_[static_cast<std::size_t>(i)] == kOutlier)
                        this->settle(at + i * line.dx, prediction_[static_cast<std::size_t>(i)], step, kOutlier);
        });
    }

    // Sums of the codes around every point of a line, but those of the line itself.
    void gather(const ClassGeometry& geometry, const Around& outer, const std::array<int64_t, kMaxDims>& c, int64_t s,
                const Line& line, int64_t first) {
        const Shape& shape = plan_.frame;
        const std::size_t inner = static_cast<std::size_t>(shape.n - 1);
        const int16_t* codes = codes_.data() + frame_ + first;
        NeighbourLines lines;
        lines.near_weight = geometry.layout.odd <= 2 ? 2 : 1;
        Around at_start = outer, at_end = outer;
        geometry.look(at_start, shape.n - 1, line.x0);
        geometry.look(at_end, shape.n - 1, line.x0 + (line.count - 1) * line.dx);
        lines.near_count = geometry.near_offsets(at_start, lines.near);
        geometry.near_offsets(at_end, lines.near_last);
        if (inner >= 1 && c[inner - 1] >= 2 * s) lines.north = codes - 2 * s * shape.step[inner - 1];
        if (inner >= 2 && c[inner - 2] >= 2 * s) lines.plane = codes - 2 * s * shape.step[inner - 2];
        if (referring_) lines.reference = codes - shape.size;
        gather_line(codes, lines, line.dx, line.count, sums_);
    }

    // ---- encoder only ------------------------------------------------------------------------------------------

    // A frame to fit to: what predicts, what is to be predicted.
    struct Sample {
        std::array<const T*, 2> source;
        const T* data;
        const uint8_t* mask;
    };

    Weights fit(const ClassGeometry& geometry, int set, int level, const std::vector<Sample>& samples) const {
        constexpr int64_t kTooFew = 64;
        const int64_t enough = std::clamp<int64_t>(plan_.frame.size * plan_.frames / 64, 1500, 6000);  // less for a trial
        const int64_t s = int64_t{1} << level;
        const int inner = plan_.frame.n - 1;
        const Line line = line_of(set, s);
        const Weights defaults = geometry.layout.defaults();
        int64_t lines = 0;
        for_each_line(set, s, [&](int64_t, const auto&) { ++lines; });
        const int64_t points = lines * line.count * static_cast<int64_t>(samples.size());
        const int64_t skip = std::max<int64_t>(1, points / enough);
        const int n = geometry.layout.count();
        std::vector<double> sampled;  // features and target, one after the other
        int64_t seen = 0;
        double feature[kMaxWeights];
        for (const Sample& sample : samples)
            for_each_line(set, s, [&](int64_t at, const std::array<int64_t, kMaxDims>& c) {
                Around outer;
                for (int a = 0; a < inner; ++a) geometry.look(outer, a, c[static_cast<std::size_t>(a)]);
                int64_t i = (skip - seen % skip) % skip;
                seen += line.count;
                for (; i < line.count; i += skip) {
                    const int64_t here = at + line.x0 + i * line.dx;
                    if (sample.mask && sample.mask[here]) continue;
                    Around around = outer;
                    geometry.look(around, inner, line.x0 + i * line.dx);
                    const double base = geometry.features(sample.source.data(), here, around, feature);
                    sampled.insert(sampled.end(), feature, feature + n);
                    sampled.push_back(static_cast<double>(sample.data[here]) - base);
                }
            });
        double prior[kMaxWeights], x[kMaxWeights];
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) prior[i] = defaults[i] * kWeightUnit;
        Weights w = defaults;
        // Bytes grow with the logarithm of an error: in the second round large ones weigh less.
        for (int round = 0; round < 2; ++round) {
            NormalEquations equations;
            equations.n = n;
            for (std::size_t i = 0; i < sampled.size(); i += static_cast<std::size_t>(n) + 1) {
                const double* f = &sampled[i];
                double weight = 1;
                if (round) {
                    double error = f[n];
                    for (int k = 0; k < n; ++k) error -= x[k] * f[k];
                    weight = 1 / (1 + error * error / (4 * chunk_.tolerance * chunk_.tolerance));
                }
                equations.add(f, f[n], weight);
            }
            if (equations.count < kTooFew || !equations.solve(prior, 1e-3, x)) return w;
            quantize_weights(x, n, defaults.data(), w.data());
        }
        return w;
    }

    // Fits the weights that many frames share, on a few of them.
    void train() {
        constexpr int64_t kSamples = 6, kEnough = 120000;
        const int64_t size = plan_.frame.size, first = plan_.reference ? 1 : 0;
        const int64_t wanted = std::clamp<int64_t>(kEnough / size, 1, kSamples);
        const int64_t n = std::min(wanted, plan_.frames - first);
        std::vector<T> out(static_cast<std::size_t>(size * n)), before(plan_.reference ? out.size() : 0);
        std::vector<Sample> samples;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t frame = first + (2 * i + 1) * (plan_.frames - first) / (2 * n);
            Sample sample{
                {out.data() + i * size, nullptr}, chunk_.data + frame * size, chunk_.mask ? chunk_.mask + frame * size : nullptr};
            if (plan_.reference) {  // the frame before as the quantizer might have left it
                T* y = before.data() + i * size;
                const T* x = sample.data - size;
                for (int64_t j = 0; j < size; ++j) {
                    y[j] = static_cast<T>(std::nearbyint(static_cast<double>(x[j]) / plan_.step) * plan_.step);
                    if (!std::isfinite(y[j])) y[j] = static_cast<T>(plan_.offset);
                }
                sample.source[1] = y;
            }
            out[static_cast<std::size_t>(i * size)] =
                sample.mask && sample.mask[0] ? static_cast<T>(plan_.offset) : sample.data[0];
            samples.push_back(sample);
        }
        referring_ = plan_.reference;
        for (int level = plan_.levels() - 1; level >= 0; --level)
            for (std::size_t k = 0; k < order_.size(); ++k) {
                if (!exists(order_[k], level)) continue;
                const int set = order_[k];
                const ClassGeometry geometry(plan_.frame, set, int64_t{1} << level, order_, referring_);
                Weights w = geometry.layout.defaults();
                if (level < kFitLevels) weights_[slot(level, k)] = w = fit(geometry, set, level, samples);
                const double step = plan_.step_at(level), inverse = 1.0 / step;
                const Line line = line_of(set, int64_t{1} << level);
                for (const Sample& sample : samples) {
                    T* target = const_cast<T*>(sample.source[0]);
                    predict_pass(geometry, w, set, level, sample.source, [&](int64_t at, const Around&, const auto&) {
                        for (int64_t i = 0; i < line.count; ++i) {
                            const int64_t here = at + i * line.dx;
                            const double p = prediction_[static_cast<std::size_t>(i)];
                            if (sample.mask && sample.mask[here]) {
                                target[here] = static_cast<T>(p);
                                continue;
                            }
                            const int32_t code = quantize<T>(sample.data[here], p, step, inverse, chunk_.tolerance);
                            target[here] = code == kOutlier ? sample.data[here] : reconstruct<T>(p, code, step);
                        }
                    });
                }
            }
        if (plan_.reference) {  // the first frame has no reference
            referring_ = false;
            for (int level = 0; level < std::min(kFitLevels, plan_.levels()); ++level)
                for (std::size_t k = 0; k < order_.size(); ++k) {
                    const int odd = count_bits(static_cast<unsigned>(order_[k]));
                    weights_[slot(level, k)] = WeightLayout{odd, plan_.frame.n - odd, false}.defaults();
                }
        }
    }

    const InterpolationPlan& plan_;
    std::vector<int> order_;
    std::vector<bool> known_;
    std::vector<Weights> weights_;
    std::vector<double> prediction_;
    std::vector<int32_t> code_;
    LineSums sums_;
    std::array<const T*, 2> source_{};
    int64_t frame_ = 0;  // element of the frame's first value
    bool referring_ = false;
};

}  // namespace aesz
