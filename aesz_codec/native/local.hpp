// Local least squares on quantized values, blended with simpler guesses, coded by mixed contexts.  docs/format.md, section 17.
//
// The values are integers from the start: value = offset + integer * step.  Every point is predicted from integers around it
// and before it, and from the latest errors, by weights that follow the field: sums of products are kept for every block of
// eight columns, forget what lies lines back, and are solved again for every block of every line.  The sums never leave the
// decoder's knowledge, so no weight is stored.
//
// Papers: Wu and Memon 1997 (context-based, error feedback), Meyer and Tischer 2001 (blended predictors), Li and Orchard 2001
// (least squares that follows edges).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "causal.hpp"
#include "kernels.hpp"
#include "mixing.hpp"

namespace aesz {

// Eight floats, on which operators work lane by lane.
#if defined(__GNUC__) || defined(__clang__)
using Eight = float __attribute__((vector_size(32), aligned(4), may_alias));
#else
struct Eight {
    float lane[8];
    template <class Operator>
    static Eight each(Operator f) {
        Eight out;
        for (int i = 0; i < 8; ++i) out.lane[i] = f(i);
        return out;
    }
    friend Eight operator+(const Eight& a, const Eight& b) {
        return each([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    friend Eight operator-(const Eight& a, const Eight& b) {
        return each([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    friend Eight operator*(const Eight& a, const Eight& b) {
        return each([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    friend Eight operator*(float a, const Eight& b) {
        return each([&](int i) { return a * b.lane[i]; });
    }
    Eight& operator+=(const Eight& b) { return *this = *this + b; }
};
#endif
#define load8(p) (*reinterpret_cast<const Eight*>(p))
#define store8(p, v) (*reinterpret_cast<Eight*>(p) = (v))

#define AESZ_FILE "local_loops.hpp"
#include "each_set.hpp"

#undef load8
#undef store8

struct LocalPlan {
    Shape shape;  // two axes or more
    double step = 0;
    double offset = 0;
};

constexpr int kLocalBlock = 8;               // columns
constexpr int32_t kLocalLargest = 1 << 28;   // magnitude of the integers
constexpr int32_t kLocalErrorLimit = 32767;  // of remembered errors, in 1/16
constexpr int kGuesses = 4;
constexpr int kErrorFeatures = 5, kPlaneErrorFeatures = 3;  // with a frame before, and without: the first three

// Steps back along the last axis, the one before it, ...; negative: ahead.
constexpr CausalTap kPlaneTaps[] = {
    {{0, 1, 0, 0}}, {{1, 1, 0, 0}},  {{-1, 1, 0, 0}}, {{2, 0, 0, 0}}, {{0, 2, 0, 0}},  {{2, 1, 0, 0}},  {{-2, 1, 0, 0}},
    {{1, 2, 0, 0}}, {{-1, 2, 0, 0}}, {{3, 0, 0, 0}},  {{0, 3, 0, 0}}, {{-3, 1, 0, 0}}, {{-2, 2, 0, 0}},
};
constexpr CausalTap kFrameTaps[] = {
    {{0, 0, 1, 0}}, {{-1, 0, 1, 0}},  {{0, -1, 1, 0}}, {{1, 0, 1, 0}},  {{0, 1, 1, 0}},
    {{0, 0, 2, 0}}, {{-1, -1, 1, 0}}, {{1, 1, 1, 0}},  {{-1, 1, 1, 0}}, {{1, -1, 1, 0}},
};
constexpr CausalTap kFourthTaps[] = {{{0, 0, 0, 1}}, {{0, 0, 1, 1}}};

// Quantised contexts of a residual; what they are is told in `point`.
constexpr int kLocalContexts[kContexts] = {48 * 5, 24 * 24, 24 * 24 * 3, 24 * 24, 24 * 9, 81 * 12 * 5, 64 * 16};

// `Size`: features, with room: 16 for planes, 24 for frames of planes.
template <class T, class Coder, int Size>
class LocalCoder {
  public:
    LocalCoder(const LocalPlan& plan, Chunk<T>& chunk, Coder& coder)
        : plan_(plan), chunk_(chunk), coder_(coder), values_(size()), errors_(size()), models_(kLocalContexts, 1) {
        const int n = plan.shape.n;
        for (int k = 0; k < (n == 2 ? 13 : 9); ++k) taps_.push_back(tap(kPlaneTaps[k]));
        for (int k = 0; n > 2 && k < (n == 3 ? 10 : 8); ++k) taps_.push_back(tap(kFrameTaps[k]));
        for (int k = 0; n > 3 && k < 2; ++k) taps_.push_back(tap(kFourthTaps[k]));
        for (std::size_t k = 0; k < taps_.size(); ++k)
            if (taps_[k].in_line) in_line_.push_back({static_cast<int>(k), taps_[k].back[0]});
        for (int a = 0; a < n; ++a) dim_[a] = plan.shape.dim[static_cast<std::size_t>(n - 1 - a)];
        for (int a = 0; a < n; ++a) step_[a] = plan.shape.step[static_cast<std::size_t>(n - 1 - a)];
        blocks_ = (dim_[0] + kLocalBlock - 1) / kLocalBlock;
        sums_.resize(static_cast<std::size_t>(blocks_ + 2) * kTable);
        everywhere_.resize(kTable);
        weights_.resize(static_cast<std::size_t>(blocks_) * Size);
        for (auto& row : squares_) row.resize(static_cast<std::size_t>(dim_[0] + 2) * kGuesses);
    }

    void run() {
        if constexpr (!Coder::decoding) quantize_all();
        find_lowest();
        int64_t at = 0;
        for (c_[3] = 0; c_[3] < dim_[3]; ++c_[3])
            for (c_[2] = 0; c_[2] < dim_[2]; ++c_[2])
                for (c_[1] = 0; c_[1] < dim_[1]; ++c_[1], at += dim_[0]) line(at);
    }

  private:
    static constexpr int kRowSize = Size + 8, kTable = Size * kRowSize;
    static constexpr int kValues = Size - (Size > 16 ? kErrorFeatures : kPlaneErrorFeatures);  // features that are values

    struct Tap {
        int back[kMaxDims];
        int64_t offset;
        bool in_line;
    };

    std::size_t size() const { return static_cast<std::size_t>(plan_.shape.size); }

    Tap tap(const CausalTap& t) const {
        Tap out{};
        out.in_line = t.back[1] == 0 && t.back[2] == 0 && t.back[3] == 0;
        for (int a = 0; a < plan_.shape.n; ++a) {
            out.back[a] = t.back[a];
            out.offset -= t.back[a] * plan_.shape.step[static_cast<std::size_t>(plan_.shape.n - 1 - a)];
        }
        return out;
    }

    void quantize_all() {
        const double inverse = 1.0 / plan_.step;
        for (std::size_t i = 0; i < size(); ++i) {
            if (chunk_.mask && chunk_.mask[i]) continue;
            const double q = (static_cast<double>(chunk_.data[i]) - plan_.offset) * inverse;
            if (!(std::abs(q) < kLocalLargest)) throw std::overflow_error("too many steps between the values");
            values_[i] = static_cast<int32_t>(std::nearbyint(q));
        }
    }

    // The least integer.
    void find_lowest() {
        int32_t low = INT32_MAX;
        if constexpr (!Coder::decoding)
            for (std::size_t i = 0; i < size(); ++i)
                if (!(chunk_.mask && chunk_.mask[i])) low = std::min(low, values_[i]);
        lowest_ = std::clamp(raw32(low), -kLocalLargest, kLocalLargest);
    }

    int32_t raw32(int32_t value) {
        const uint32_t high = coder_.raw(static_cast<uint32_t>(value) >> 16, 16);
        return static_cast<int32_t>(high << 16 | coder_.raw(static_cast<uint32_t>(value) & 65535, 16));
    }

    // What a line sees; null where there is none.
    struct Neighbours {
        const int32_t *north, *before;  // values at x = 0
        const int16_t *north_e, *north2_e, *before_e, *before_south_e;
    };

    void line(int64_t at) {
        const int64_t width = dim_[0];
        for (std::size_t k = 0; k < taps_.size(); ++k) {
            bool inside = true;
            for (int a = 1; a < kMaxDims; ++a) {
                const int64_t c = c_[a] - taps_[k].back[a];
                inside &= c >= 0 && c < dim_[a];
            }
            there_[k] = -static_cast<int32_t>(inside);
        }
        Neighbours nb{};
        const int32_t* v = values_.data() + at;
        const int16_t* e = errors_.data() + at;
        if (c_[1] >= 1) nb.north = v - step_[1], nb.north_e = e - step_[1];
        if (c_[1] >= 2) nb.north2_e = e - 2 * step_[1];
        if (c_[2] >= 1) {
            nb.before = v - step_[2], nb.before_e = e - step_[2];
            if (c_[1] + 1 < dim_[1]) nb.before_south_e = e - step_[2] + step_[1];
        } else if (c_[3] >= 1 && plan_.shape.n > 3) {
            nb.before = v - step_[3], nb.before_e = e - step_[3];
            if (c_[1] + 1 < dim_[1]) nb.before_south_e = e - step_[3] + step_[1];
        }
        std::swap(squares_[0], squares_[1]);
        if (c_[1] == 0) std::fill(squares_[1].begin(), squares_[1].end(), 0.0f);
        alignas(32) float pooled[kTable];
        std::copy(everywhere_.begin(), everywhere_.end(), pooled);
        solve(pooled, global_);
        const auto pool = kAvx2 ? avx2::pool<Size> : portable::pool<Size>;
        const auto accumulate = kAvx2 ? avx2::accumulate<Size> : portable::accumulate<Size>;
        for (int64_t b = 0; b < blocks_; ++b) {
            if constexpr (Coder::decoding)
                if (coder_.overrun() > 8) throw CorruptStream("the codes end too early");  // before more time is spent
            const int64_t from = b * kLocalBlock, to = std::min(width, from + kLocalBlock);
            float* sums = sums_.data() + (b + 1) * kTable;
            local_ = weights_.data() + b * Size;
            pool(sums, sums - kTable, sums + kTable, everywhere_.data(), pooled);
            solve(pooled, local_);
            surroundings(at, from, to);
            for (int64_t x = from; x < to; ++x) point(at, x, nb, static_cast<int>(x - from));
            // what is masked teaches nothing
            if (std::all_of(weight_, weight_ + (to - from), [](float w) { return w == 0.0f; })) continue;
            accumulate(features_, weight_, static_cast<int>(to - from), kKeep, sums);
        }
        const float share = kEverywhere / static_cast<float>(blocks_);
        for (float& g : everywhere_) g *= kKeepEverywhere;
        for (int64_t b = 0; b < blocks_; ++b) {
            const float* sums = sums_.data() + (b + 1) * kTable;
            for (std::size_t i = 0; i < kTable; ++i) everywhere_[i] += sums[i] * share;
        }
    }

    static void solve(float* sums, float* x) { kAvx2 ? avx2::solve<Size>(sums, x) : portable::solve<Size>(sums, x); }

    // The values that the taps of a block see in lines before; those of the line itself are still to come.
    void surroundings(int64_t at, int64_t from, int64_t to) {
        const int32_t* v = values_.data() + at;
        for (std::size_t k = 0; k < taps_.size(); ++k) {
            if (!there_[k] || taps_[k].in_line) continue;
            const int64_t back = taps_[k].back[0], first = std::max(from, back), last = std::min(to, dim_[0] + back);
            for (int64_t x = first; x < last; ++x) around_[(x - from) * Size + static_cast<int64_t>(k)] = v[x + taps_[k].offset];
        }
    }

    void point(int64_t at, int64_t x, const Neighbours& nb, int column) {
        const int64_t width = dim_[0], here = at + x;
        const int32_t* v = values_.data() + here;
        const int16_t* e = errors_.data() + here;
        float* feature = features_ + column * kRowSize;
        const bool west = x > 0, east = x + 1 < width;
        const int32_t base = west ? v[-1] : nb.north ? nb.north[0] : nb.before ? nb.before[0] : 0;

        int32_t* around = around_ + column * Size;
        const int32_t* there = there_;
        for (const auto& [k, back] : in_line_)
            if (x >= back) around[k] = v[-back];
        int32_t edge[Size];
        if (x < 3 || x + 3 >= width) {
            for (std::size_t k = 0; k < taps_.size(); ++k) {
                const int64_t c = x - taps_[k].back[0];
                edge[k] = c >= 0 && c < width ? there_[k] : 0;
            }
            std::fill(edge + taps_.size(), edge + Size, 0);
            there = edge;
        }
        const int32_t ew = west ? e[-1] : 0, en = nb.north_e ? nb.north_e[x] : 0,
                      ene = nb.north_e && east ? nb.north_e[x + 1] : 0;
        const int32_t enw = nb.north_e && west ? nb.north_e[x - 1] : 0, eww = x > 1 ? e[-2] : 0,
                      enn = nb.north2_e ? nb.north2_e[x] : 0;
        const int32_t eb = nb.before_e ? nb.before_e[x] : 0, ebe = nb.before_e && east ? nb.before_e[x + 1] : 0;
        const int32_t ebs = nb.before_south_e ? nb.before_south_e[x] : 0;

        // guesses, relative to the base, weighed by what each was wrong nearby
        const int32_t vw = west ? v[-1] : base, vn = nb.north ? nb.north[x] : vw;
        const int32_t vnw = nb.north && west ? nb.north[x - 1] : vn, vne = nb.north && east ? nb.north[x + 1] : vn;
        const int32_t least = std::min(vw, vn), most = std::max(vw, vn);
        const int32_t median = std::max(least, std::min(most, vw + vn - vnw));
        float guess[kGuesses], num[kGuesses], den[kGuesses];
        const int32_t error_features[kErrorFeatures] = {ew, en, ene, eb, ebe + ebs};
        const auto predict = kAvx2 ? avx2::predict<Size> : portable::predict<Size>;
        predict(around, there, base, kValues, error_features, local_, global_, feature, guess);
        guess[2] = static_cast<float>(median - base);
        guess[3] = 0.0f;
        if (nb.before) {
            const int32_t vb = nb.before[x], vbw = west ? nb.before[x - 1] : vb;
            const int32_t vbn = nb.north ? (nb.before - step_[1])[x] : vb;
            guess[3] = static_cast<float>(vb - base) + 0.5f * static_cast<float>((vw - vbw) + (vn - vbn));
        }
        const float* north_squares = squares_[1].data() + (x + 1) * kGuesses;
        float* squares = squares_[0].data() + (x + 1) * kGuesses;
        const float prior[kGuesses] = {4.0f, 1.0f, 1.0f, nb.before ? 1.0f : 0.0f};
        const float* sw = west ? squares - kGuesses : kNoSquares;
        const float* sww = x > 1 ? squares - 2 * kGuesses : kNoSquares;
        const float* snw = west ? north_squares - kGuesses : kNoSquares;
        const float* sne = east ? north_squares + kGuesses : kNoSquares;
        for (int j = 0; j < kGuesses; ++j) {
            const float s = 0.3f + (((sw[j] + north_squares[j]) + (snw[j] + sne[j])) + sww[j]);
            den[j] = prior[j] / (s * std::sqrt(s));
            num[j] = den[j] * guess[j];
        }
        const float relative = ((num[0] + num[1]) + (num[2] + num[3])) / ((den[0] + den[1]) + (den[2] + den[3]));
        const float bounded = relative > -67108864.0f ? relative < 67108864.0f ? relative : 67108864.0f : -67108864.0f;
        const int32_t mean16 = static_cast<int32_t>(std::nearbyint(bounded * 16.0f));  // above the base
        const int32_t centre = (mean16 + 8) >> 4, fraction = mean16 - centre * 16;     // fraction: -8..7
        int32_t value = std::clamp(base + centre, -kLocalLargest, kLocalLargest);
        const int32_t middle = value;

        if (chunk_.mask && chunk_.mask[here]) {
            value = values_[static_cast<std::size_t>(here)] = median;
            errors_[static_cast<std::size_t>(here)] = 0;
            for (int j = 0; j < kGuesses; ++j) squares[j] = 0.0f;
            weight_[column] = 0.0f;
            feature[Size] = 0.0f;
            chunk_.out[here] = reconstruct<T>(plan_.offset, value, plan_.step);
            return;
        }

        // contexts
        const int flip = fraction < 0 ? -1 : 1;
        const uint32_t before = 2 * magnitude(eb) + magnitude(ebe) + magnitude(ebs);
        uint32_t expected =
            3 * magnitude(ew) + 3 * magnitude(en) + magnitude(eww) + magnitude(enn) + magnitude(enw) + 2 * magnitude(ene);
        expected = nb.before ? (expected + before) / 15 : expected / 11;
        const int scale = scale_class(expected);
        const uint32_t steep = std::max(magnitude(vn - vnw), std::max(magnitude(vw - vnw), magnitude(vn - vne)));
        const int texture = scale_class(4 * std::min(steep, 1u << 20));
        const int64_t away = (int64_t{median - base} * 16 - mean16) * flip;
        const uint32_t far = static_cast<uint32_t>(std::min<int64_t>(away < 0 ? -away : away, 1 << 29));
        const int distance = (far * 4 > expected) + (far * 2 > expected) + (far > expected) + (far > 2 * expected);
        const int fine = MixedTokens::shift_of(scale) ? 0 : static_cast<int>(magnitude(fraction)) >> 1;
        const auto sign = [flip](int32_t x) { return (x * flip > 0) - (x * flip < 0) + 1; };
        const auto coarse = [](int c, int divisor, int most) { return std::min(c / divisor, most); };
        const int level = scale_class(4 * static_cast<uint32_t>(std::clamp(middle - lowest_, 0, 1 << 26)));
        const int s2 = coarse(scale, 2, 23);
        const int context[kContexts] = {
            std::min(scale, 47) * 5 + fine,
            coarse(scale_class(magnitude(ew)), 2, 23) * 24 + coarse(scale_class(magnitude(en)), 2, 23),
            (coarse(texture, 2, 23) * 24 + s2) * 3 + std::min(fine / 2, 2),
            coarse(scale_class(before / 4), 2, 23) * 24 + s2,
            s2 * 9 + (away >= 0 ? 4 + distance : 4 - distance),
            (((sign(ew) * 3 + sign(en)) * 3 + sign(ene)) * 3 + sign(eb)) * 60 + coarse(scale, 4, 11) * 5 + fine,
            level * 16 + coarse(scale, 3, 15),
        };

        // the residual, turned so that the fraction is positive
        const int32_t wanted = Coder::decoding ? 0 : (values_[static_cast<std::size_t>(here)] - middle) * flip;
        const int64_t turned = models_.code(coder_, context, scale, 0, wanted);
        value = static_cast<int32_t>(std::clamp<int64_t>(middle + flip * turned, -kLocalLargest, kLocalLargest));
        values_[static_cast<std::size_t>(here)] = value;
        chunk_.out[here] = reconstruct<T>(plan_.offset, value, plan_.step);
        const int64_t error = (int64_t{value} - base) * 16 - mean16;
        errors_[static_cast<std::size_t>(here)] =
            static_cast<int16_t>(std::clamp<int64_t>(error, -kLocalErrorLimit, kLocalErrorLimit));
        const float target = static_cast<float>(value - base);
        for (int j = 0; j < kGuesses; ++j) squares[j] = (target - guess[j]) * (target - guess[j]);
        feature[Size] = target;
        const float spread = static_cast<float>(expected) * 0.0625f;
        weight_[column] = 1.0f / (1.0f + spread * spread);
    }

    static constexpr float kKeep = 0.65f, kEverywhere = 0.005f, kKeepEverywhere = 0.97f;
    static constexpr float kNoSquares[kGuesses] = {};

    const LocalPlan& plan_;
    Chunk<T>& chunk_;
    Coder& coder_;
    std::vector<int32_t> values_;
    std::vector<int16_t> errors_;
    MixedTokens models_;
    std::vector<Tap> taps_;
    std::vector<std::pair<int, int>> in_line_;  // taps in the line itself: number, steps back
    int32_t there_[Size] = {};                  // all ones for a tap whose line is there
    alignas(32) int32_t around_[kLocalBlock * Size] = {};
    int64_t dim_[kMaxDims] = {1, 1, 1, 1}, step_[kMaxDims] = {}, c_[kMaxDims] = {};
    int64_t blocks_ = 0;
    std::vector<float> sums_, everywhere_;  // a table of sums for every block, with an empty one at either end
    std::vector<float> squares_[2];         // squared errors of the guesses: this line, the line before
    std::vector<float> weights_;            // of every block
    float* local_ = nullptr;                // those of the block at hand
    alignas(32) float global_[Size] = {};
    alignas(32) float features_[kLocalBlock * kRowSize] = {}, weight_[kLocalBlock] = {};
    int32_t lowest_ = 0;
};

}  // namespace aesz
