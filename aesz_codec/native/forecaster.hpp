// Causal weights of a model, one of each tap for every point of a grid.  docs/format.md, section 20.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace aesz {

class Forecaster {
  public:
    static constexpr int kMaxTaps = 128, kMaxSets = 8, kMaxShift = 15, kMaxOffsetShift = 40;

    struct Tap {
        int64_t frames, lines, columns;  // back; the last two may be negative
    };

    struct Set {
        int64_t age;
        std::vector<Tap> taps;
        std::size_t before;          // taps that are not in the line itself: the first ones
        std::vector<float> weight;   // taps x lines x columns; exact
        std::vector<double> offset;  // lines x columns
    };

    Forecaster(int64_t lines, int64_t columns) : lines_(lines), columns_(columns) {
        if (lines < 2 || columns < 2 || lines > 1 << 24 || columns > 1 << 24)
            throw std::invalid_argument("a grid of lengths below 2");
    }

    int64_t lines() const { return lines_; }
    int64_t columns() const { return columns_; }

    // For frames from number `age` on.  `taps`: count x 3; `weight`: count x points, in 2^-shift; `offset`: points.
    void add(int64_t age, const int8_t* taps, int64_t count, const int16_t* weight, int shift, const int32_t* offset,
             int offset_shift) {
        if (sets_.size() == kMaxSets) throw std::invalid_argument("more than 8 sets of taps");
        if (sets_.empty() ? age != 0 : age <= sets_.back().age) throw std::invalid_argument("ages that do not rise from 0");
        if (count > kMaxTaps) throw std::invalid_argument("more than 128 taps");
        if (shift < 0 || shift > kMaxShift) throw std::invalid_argument("a shift that is not from 0 to 15");
        if (offset_shift < -kMaxOffsetShift || offset_shift > kMaxOffsetShift)
            throw std::invalid_argument("an offset_shift beyond 40");
        const auto points = static_cast<std::size_t>(lines_ * columns_);
        Set set{age, {}, 0, {}, {}};
        for (int64_t k = 0; k < count; ++k) {
            const Tap tap{taps[3 * k], taps[3 * k + 1], taps[3 * k + 2]};
            const bool inside = tap.frames == 0 && tap.lines == 0;
            if (tap.frames < 0 || (tap.frames == 0 && tap.lines < 0) || (inside && tap.columns <= 0))
                throw std::invalid_argument("a tap that does not precede its point");
            if (tap.frames > age) throw std::invalid_argument("a tap on a frame that there is not");
            if (!inside && set.before != set.taps.size()) throw std::invalid_argument("a tap after those in the line");
            set.before += !inside;
            set.taps.push_back(tap);
        }
        const float unit = std::ldexp(1.0f, -shift);
        const double offset_unit = std::ldexp(1.0, -offset_shift);
        set.weight.resize(set.taps.size() * points);
        for (std::size_t i = 0; i < set.weight.size(); ++i) set.weight[i] = static_cast<float>(weight[i]) * unit;
        set.offset.resize(points);
        for (std::size_t i = 0; i < points; ++i) set.offset[i] = static_cast<double>(offset[i]) * offset_unit;
        sets_.push_back(std::move(set));
    }

    // How large errors are, in 2^-shift; points.
    void set_spread(const int16_t* spread, int shift) {
        if (shift < -kMaxOffsetShift || shift > kMaxOffsetShift) throw std::invalid_argument("a spread_shift beyond 40");
        const auto points = static_cast<std::size_t>(lines_ * columns_);
        const double unit = std::ldexp(1.0, -shift);
        spread_.resize(points);
        for (std::size_t i = 0; i < points; ++i) {
            if (spread[i] < 0) throw std::invalid_argument("a spread below 0");
            spread_[i] = static_cast<double>(spread[i]) * unit;
        }
    }

    // The same in steps, for contexts.
    std::vector<uint16_t> spread(double step) const {
        std::vector<uint16_t> steps(spread_.size());
        for (std::size_t i = 0; i < steps.size(); ++i)
            steps[i] = static_cast<uint16_t>(std::min(spread_[i] / step, static_cast<double>(kLargestSpread)));
        return steps;
    }

    bool empty() const { return sets_.empty() || spread_.empty(); }

    // The last set that is old enough for a frame.
    const Set& at(int64_t frame) const {
        std::size_t s = sets_.size() - 1;
        while (s > 0 && sets_[s].age > frame) --s;
        return sets_[s];
    }

  private:
    static constexpr int kLargestSpread = 4095;

    int64_t lines_, columns_;
    std::vector<double> spread_;
    std::vector<Set> sets_;
};

}  // namespace aesz
