// Causal least squares in closed loop: weights over neighbours that precede a value, of which Lorenzo is a special case.
// docs/format.md, section 11.
#pragma once

#include <algorithm>

#include "closed_loop.hpp"
#include "forecaster.hpp"
#include "kernels.hpp"
#include "least_squares.hpp"

namespace aesz {

// Steps back along the last axis, the one before it, ...; negative: ahead.  The first tap is the base.
struct CausalTap {
    int back[kMaxDims];
};
constexpr CausalTap kCausalTaps[] = {
    {{1, 0, 0, 0}}, {{2, 0, 0, 0}},                                                                     // in the line
    {{0, 1, 0, 0}}, {{1, 1, 0, 0}}, {{-1, 1, 0, 0}}, {{0, 2, 0, 0}}, {{2, 1, 0, 0}},  {{-2, 1, 0, 0}},  // in the plane
    {{0, 0, 1, 0}}, {{1, 0, 1, 0}}, {{-1, 0, 1, 0}}, {{0, 1, 1, 0}}, {{0, -1, 1, 0}}, {{0, 0, 2, 0}},
    {{1, 1, 1, 0}},                                                   // planes before
    {{0, 0, 0, 1}}, {{1, 0, 0, 1}}, {{0, 1, 0, 1}},  {{0, 0, 1, 1}},  // along the fourth axis
};
constexpr int kTapsOf[kMaxDims + 1] = {0, 2, 8, 15, 19};
constexpr int kMaxTaps = 19;
constexpr int kBases[kMaxDims] = {0, 2, 8, 15};  // the nearest tap along each axis

struct CausalPlan {
    Shape shape;
    double step = 0;
    double offset = 0;  // prediction of the first value
    const Forecaster* forecaster = nullptr;
};

// What causal predictors share: lines in C order and the contexts of their codes.
template <class T, class Codes>
class CausalLoop : protected ClosedLoop<T, Codes> {
    using Base = ClosedLoop<T, Codes>;

  public:
    using Base::unused_outliers;

  protected:
    using Base::chunk_, Base::coder_;

    CausalLoop(const CausalPlan& plan, Chunk<T>& chunk, Codes& coder)
        : Base(chunk, coder),
          plan_(plan),
          codes_(static_cast<std::size_t>(plan.shape.size)),
          sums_(width()),
          partial_(width()),
          code_(width()) {}

    std::size_t width() const { return static_cast<std::size_t>(plan_.shape.dim[static_cast<std::size_t>(plan_.shape.n - 1)]); }

    Coordinates coordinates(int64_t at) const {
        Coordinates c{};
        for (std::size_t a = 0; a < static_cast<std::size_t>(plan_.shape.n); ++a)
            c[a] = at / plan_.shape.step[a] % plan_.shape.dim[a];
        return c;
    }

    // Calls `predict(at, c)` for every line; it calls `settle(at, i, prediction)` for every value of the line, in order.
    template <class Predict>
    void lines(const Predict& predict, const std::vector<uint16_t>& spread = {}) {
        const int64_t n = static_cast<int64_t>(width());
        for (int64_t at = 0; at < plan_.shape.size; at += n) {
            const Coordinates c = coordinates(at);
            gather(at, c);
            if (!spread.empty()) add_spread(spread.data() + at % static_cast<int64_t>(spread.size()));
            const CodeLine codes{sums_, kGroups - 1, 5, false, this->mask_at(at), 1, n};
            if constexpr (Codes::decoding) coder_.line(codes, code_.data());
            predict(at, c);
            if constexpr (!Codes::decoding) coder_.line(codes, code_.data());
        }
    }

    void settle(int64_t at, int64_t i, double prediction) {
        const int64_t here = at + i;
        if (this->masked(here)) {
            chunk_.out[here] = static_cast<T>(prediction);
            return;
        }
        int32_t& code = code_[static_cast<std::size_t>(i)];
        if constexpr (!Codes::decoding) code = quantize<T>(chunk_.data[here], prediction, plan_.step, inverse_, chunk_.tolerance);
        Base::settle(here, prediction, plan_.step, code, chunk_.out[here], codes_[static_cast<std::size_t>(here)]);
    }

    const CausalPlan& plan_;

  private:
    // What is known of the magnitudes of a line's codes before any code is: counts like that of neighbours.
    void add_spread(const uint16_t* spread) {
        for (std::size_t i = 0; i < width(); ++i) {
            if constexpr (Codes::narrow)
                sums_.narrow[i] = static_cast<uint16_t>(sums_.narrow[i] + spread[i]);
            else
                sums_.expected[i] += spread[i];
        }
    }

    void gather(int64_t at, const Coordinates& c) {
        const Shape& shape = plan_.shape;
        const int inner = shape.n - 1;
        const int16_t* codes = codes_.data() + at;
        const auto before = [&](int axis, int64_t lines) -> const int16_t* {
            if (axis < 0 || c[static_cast<std::size_t>(axis)] < lines) return nullptr;
            return codes - lines * shape.step[static_cast<std::size_t>(axis)];
        };
        const auto gather_all = Codes::narrow ? gather_causal_narrow : gather_causal;
        gather_all(before(inner - 1, 1), before(inner - 1, 2), before(inner - 2, 1), static_cast<int64_t>(width()), sums_);
    }

    const double inverse_ = 1.0 / plan_.step;
    std::vector<int16_t> codes_;  // signed, clipped; 0 where masked or not yet coded
    LineSums sums_;

  protected:
    std::vector<double> partial_;

  private:
    std::vector<int32_t> code_;
};

template <class T, class Codes>
class CausalCoder : public CausalLoop<T, Codes> {
    using Base = CausalLoop<T, Codes>;
    using Base::chunk_, Base::coder_, Base::plan_, Base::partial_;

  public:
    CausalCoder(const CausalPlan& plan, Chunk<T>& chunk, Codes& coder) : Base(plan, chunk, coder), taps_(kTapsOf[plan.shape.n]) {
        for (int k = 0; k < taps_; ++k)
            for (int a = 0; a < plan.shape.n; ++a)
                offset_[k] -= kCausalTaps[k].back[a] * plan.shape.step[static_cast<std::size_t>(plan.shape.n - 1 - a)];
    }

    void run() {
        if constexpr (!Codes::decoding) fit();
        for (int k = 1; k < taps_; ++k) {
            weights_[k] = coder_.code_integer(Codes::decoding ? 0 : weights_[k]);
            if (weights_[k] < -4096 || weights_[k] > 4096) throw CorruptStream("a causal weight is out of range");
        }
        this->lines([this](int64_t at, const Coordinates& c) { line(at, c); });
    }

  private:
    uint32_t neighbours(const Coordinates& c) const {
        uint32_t flags = 0;
        for (int k = 0; k < taps_; ++k) {
            bool there = true;
            for (int a = 0; a < plan_.shape.n && there; ++a) {
                const std::size_t axis = static_cast<std::size_t>(plan_.shape.n - 1 - a);
                const int64_t x = c[axis] - kCausalTaps[k].back[a];
                there = x >= 0 && x < plan_.shape.dim[axis];
            }
            if (there) flags |= 1u << k;
        }
        return flags;
    }

    // Coefficients where the neighbours in `flags` are there: the base takes what the others leave of 1.
    bool set_coefficients(uint32_t flags) {
        int base = -1;
        for (int a = plan_.shape.n - 1; a >= 0; --a)
            if (flags >> kBases[a] & 1) base = kBases[a];
        if (base < 0) return false;
        int32_t rest = 256;
        for (int k = 0; k < taps_; ++k) {
            const int32_t w = k > 0 && k != base && (flags >> k & 1) ? weights_[k] : 0;
            coefficient_[k] = w * kWeightUnit;
            rest -= w;
        }
        coefficient_[base] = rest * kWeightUnit;
        return true;
    }

    // The part of the predictions that does not depend on the line itself: taps from 2 on, in order.
    void predict_from_lines_before(int64_t at, int64_t from, int64_t to) {
        add_taps(chunk_.out + at + from, offset_ + 2, coefficient_ + 2, taps_ - 2, to - from, partial_.data() + from);
    }

    void line(int64_t at, Coordinates c) {
        const int64_t n = static_cast<int64_t>(this->width()), low = std::min<int64_t>(2, n), high = std::max(low, n - 2);
        const std::size_t inner = static_cast<std::size_t>(plan_.shape.n - 1);
        const T* out = chunk_.out + at;
        auto edge = [&](int64_t i) {
            c[inner] = i;
            if (!set_coefficients(neighbours(c))) return this->settle(at, i, plan_.offset);
            predict_from_lines_before(at, i, i + 1);
            double prediction = partial_[static_cast<std::size_t>(i)];
            if (i >= 2) prediction += coefficient_[1] * static_cast<double>(out[i - 2]);
            if (i >= 1) prediction += coefficient_[0] * static_cast<double>(out[i - 1]);
            this->settle(at, i, prediction);
        };
        for (int64_t i = 0; i < low; ++i) edge(i);
        if (high > low) {
            c[inner] = low;
            set_coefficients(neighbours(c));
            predict_from_lines_before(at, low, high);
            const double west = coefficient_[0], west_west = coefficient_[1];
            for (int64_t i = low; i < high; ++i)
                this->settle(at, i,
                             partial_[static_cast<std::size_t>(i)] + west_west * static_cast<double>(out[i - 2]) +
                                 west * static_cast<double>(out[i - 1]));
        }
        for (int64_t i = high; i < n; ++i) edge(i);
    }

    // Encoder: weights from the original, as if its values carried the quantizer's noise.
    void fit() {
        const Shape& shape = plan_.shape;
        const int m = taps_ - 1;
        std::vector<double> samples;  // features and target, one after the other
        const int64_t skip = std::max<int64_t>(1, shape.size / std::clamp<int64_t>(shape.size / 32, 3000, 12000)) | 1;
        samples.reserve(static_cast<std::size_t>((shape.size / skip + 1) * taps_));
        Coordinates low{}, high = shape.dim;  // where all neighbours are there
        for (int k = 0; k < taps_; ++k)
            for (int a = 0; a < shape.n; ++a) {
                const std::size_t axis = static_cast<std::size_t>(shape.n - 1 - a);
                low[axis] = std::max<int64_t>(low[axis], kCausalTaps[k].back[a]);
                high[axis] = std::min(high[axis], shape.dim[axis] + kCausalTaps[k].back[a]);
            }
        const std::size_t inner = static_cast<std::size_t>(shape.n - 1);
        Coordinates c{};
        int64_t line = 0;
        do {
            bool inside = true;
            for (std::size_t a = 0; a < inner; ++a) inside &= c[a] >= low[a] && c[a] < high[a];
            const int64_t first = line + low[inner], end = line + high[inner];
            for (int64_t at = (first + skip - 1) / skip * skip; inside && at < end; at += skip) {
                bool sound = !this->masked(at);
                for (int k = 0; chunk_.mask && k < taps_ && sound; ++k) sound = !this->masked(at + offset_[k]);
                if (!sound) continue;
                const double base = chunk_.data[at + offset_[0]];
                for (int k = 1; k < taps_; ++k) samples.push_back(static_cast<double>(chunk_.data[at + offset_[k]]) - base);
                samples.push_back(static_cast<double>(chunk_.data[at]) - base);
            }
            line += shape.dim[inner];
        } while (advance(c, shape.n - 1, shape.dim));
        int32_t lorenzo[kMaxTaps] = {};
        if (m >= 3) {
            lorenzo[1] = 256;
            lorenzo[2] = -256;
        }
        for (int i = 0; i < m; ++i) weights_[i + 1] = lorenzo[i];
        const double prior[kMaxTaps] = {};
        fit_weights({m, chunk_.tolerance, 3, 1e-6, 8 * m + 1, true}, samples, prior, lorenzo, weights_ + 1);
    }

    int taps_;
    int64_t offset_[kMaxTaps] = {};
    int32_t weights_[kMaxTaps] = {};  // in 1/256; that of the base is not used
    double coefficient_[kMaxTaps] = {};
};

// The same loop with the weights of a model: its own for every point of the grid.  docs/format.md, section 20.
template <class T, class Codes>
class ForecastCoder : public CausalLoop<T, Codes> {
    using Base = CausalLoop<T, Codes>;
    using Base::chunk_, Base::plan_, Base::partial_;

  public:
    ForecastCoder(const CausalPlan& plan, Chunk<T>& chunk, Codes& coder)
        : Base(plan, chunk, coder), spread_(plan.forecaster->spread(plan.step)) {}

    // The last axes of the shape are the grid of the forecaster, whose first set has the age 0.
    void run() {
        this->lines([this](int64_t at, const Coordinates& c) { line(at, c); }, spread_);
    }

  private:
    void line(int64_t at, const Coordinates& c) {
        const Shape& shape = plan_.shape;
        const int64_t n = static_cast<int64_t>(this->width()), frame = shape.n > 2 ? c[0] : 0;
        const int64_t y = c[static_cast<std::size_t>(shape.n - 2)];
        const int64_t lines = shape.dim[static_cast<std::size_t>(shape.n - 2)];
        const Forecaster::Set& set = plan_.forecaster->at(frame);
        const T* out = chunk_.out + at;
        std::copy_n(set.offset.data() + y * n, n, partial_.data());
        const float* weight = set.weight.data() + y * n;
        for (std::size_t k = 0; k < set.before; ++k, weight += lines * n) {
            const Forecaster::Tap& tap = set.taps[k];
            if (y - tap.lines < 0 || y - tap.lines >= lines) continue;
            const int64_t from = std::max<int64_t>(0, tap.columns), to = std::min<int64_t>(n, n + tap.columns);
            if (from < to)
                add_products(out - (tap.frames * lines + tap.lines) * n - tap.columns + from, weight + from, to - from,
                             partial_.data() + from);
        }
        for (int64_t i = 0; i < n; ++i) {
            double prediction = partial_[static_cast<std::size_t>(i)];
            for (std::size_t k = set.before; k < set.taps.size(); ++k) {
                const int64_t back = set.taps[k].columns;
                if (i < back) continue;
                const float w = weight[static_cast<int64_t>(k - set.before) * lines * n + i];
                prediction += static_cast<double>(w) * static_cast<double>(out[i - back]);
            }
            this->settle(at, i, prediction);
        }
    }

    std::vector<uint16_t> spread_;
};

}  // namespace aesz
