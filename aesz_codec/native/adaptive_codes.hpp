// Codes lines of the quantizer's integers by adaptive distributions.  docs/format.md, section 8.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "codes.hpp"
#include "models.hpp"

namespace aesz {

template <class Coder>
class AdaptiveCodes {
  public:
    static constexpr bool decoding = Coder::decoding;
    static constexpr int32_t clip = kClip;
    static constexpr bool narrow = false;  // which of LineSums it reads

    // `zeros`: whether a mixed binary decision singles out zeros where they prevail.
    AdaptiveCodes(Coder& coder, bool zeros) : coder_(coder), zeros_(zeros), models_(std::make_unique<Models>()) {}

    // Writes the codes of a line, or fills them in; masked places have 0.
    void line(const CodeLine& l, int32_t* code) {
        if (l.scale) return run<Kind::learned>(l, code);
        near_.resize(l.sums.near.size());
        for (int64_t i = 0; i < l.count; ++i) {
            const std::size_t k = static_cast<std::size_t>(i);
            near_[k] = static_cast<uint8_t>(scale_class(l.sums.near[k]));
        }
        return zeros_ ? run<Kind::zeros>(l, code) : run<Kind::plain>(l, code);
    }

    // Signed integers of side information.
    int32_t code_integer(int32_t value) { return code_signed(coder_, models_->integer, value); }

  private:
    static constexpr int kQuietBits = 3, kQuietBlock = 1 << kQuietBits,
                         kQuietClasses = 16;  // codes among zeros are coded so many at a time

    enum class Kind { plain, zeros, learned };

    // What is known of a value before it is coded.
    struct Context {
        uint32_t expected = 0, other = 0;  // as in LineSums
        int32_t west = 0, north = 0;       // neighbouring codes of the same pass
        uint32_t west2 = 0;                // magnitude of the one before `west`
        int group = 0;
        int near = 0;   // scale class of LineSums::near
        int scale = 0;  // learned
    };

    // A line by one kind of contexts; the range coder is local meanwhile, so that its state stays in registers.
    template <Kind kind>
    void run(const CodeLine& l, int32_t* code) {
        const uint32_t *expected = l.sums.expected.data(), *other = l.sums.other.data();
        const int32_t* north = l.sums.north.data();
        const uint8_t* near = near_.data();
        Coder coder = std::move(coder_);
        Context c;
        c.group = l.group;
        uint32_t west2 = 0;
        for (int64_t i = 0; i < l.count; ++i) {
            if (l.quiet && expected[i] == 0 && (magnitude(c.west) | west2) == 0 && among_zeros(l, i)) {
                const int quiet = l.scale ? *std::max_element(l.scale + i, l.scale + i + kQuietBlock) / 2 : 0;
                const int zeros =
                    quiet_block(coder, l.group, std::min(quiet, kQuietClasses - 1), decoding ? 0 : leading_zeros(code + i));
                std::fill_n(code + i, zeros, 0);
                i += zeros;
                if (zeros == kQuietBlock) {
                    --i;
                } else {
                    c.scale = l.scale ? l.scale[i] : 0;
                    c.west = remembered(code[i] = lonely<kind>(coder, c, code[i]));
                }
                continue;
            }
            if (l.masked(i)) {
                code[i] = 0;
                continue;
            }
            c.expected = expected[i] + l.west_weight * magnitude(c.west) + west2;
            c.north = north[i];
            if (kind != Kind::learned) c.near = near[i];
            if (kind == Kind::zeros) c.other = other[i];
            if (kind == Kind::learned) c.scale = l.scale[i];
            c.west2 = west2;
            west2 = magnitude(c.west);
            c.west = remembered(code[i] = one<kind>(coder, c, code[i]));
        }
        coder_ = std::move(coder);
    }

    // Whether a block of points is coded and has no neighbour but zeros.
    static bool among_zeros(const CodeLine& l, int64_t i) {
        if (i + kQuietBlock > l.count) return false;
        uint32_t any = 0;
        for (int64_t k = 0; k < kQuietBlock; ++k) any |= l.sums.expected[static_cast<std::size_t>(i + k)];
        for (int64_t k = 0; l.mask && k < kQuietBlock; ++k) any |= l.mask[(i + k) * l.distance];
        return any == 0;
    }
    static int leading_zeros(const int32_t* code) {
        int n = 0;
        while (n < kQuietBlock && code[n] == 0) ++n;
        return n;
    }

    template <Kind kind>
    AESZ_INLINE int32_t one(Coder& coder, const Context& c, int32_t value) {
        constexpr bool learned = kind == Kind::learned;
        Models& m = *models_;
        const int seen = scale_class(c.expected);
        const int both = c.scale + (c.expected ? seen + kLearnedFiner : std::min(c.scale, 12));
        const int scale = learned ? both / 2 : seen;
        const int near = learned ? scale_class(12 * magnitude(c.west) + 4 * c.west2) + kLearnedFiner : c.near;
        // sums of comparisons: the outcomes are too random to branch on
        const int relative = (near >= scale) + (near > scale + 2) + (near + 2 >= scale);
        const int32_t sign = 16 * (2 * c.west + c.north), expected = static_cast<int32_t>(c.expected);
        const int bias = 2 + (sign > 0) + (sign > expected) - (sign < 0) - (sign < -expected);
        const int variant = relative * 5 + bias;
        if (learned)
            return symbol(coder, m.learned[scale], m.learned_child[c.group][scale][variant], scale - kLearnedFiner, value);
        if (kind == Kind::plain || scale >= kBinaryBelow)
            return symbol(coder, m.any[scale], m.any_child[c.group][scale][variant], scale, value);

        const int n = std::min(near / 2, 15), o = std::min(scale_class(c.other) / 2, 15);
        const int w = static_cast<int>(std::min(magnitude(c.west), 3u) * 4 + std::min(magnitude(c.north), 3u));
        Bit* const zero[4] = {&m.zero_scale[c.group][scale], &m.zero_near[c.group][n * 16 + w], &m.zero_other[o * 16 + n][scale],
                              &m.zero_same[c.group][w * kBinaryBelow + scale]};
        if (!code_mixed<4>(coder, zero, m.zero_mixer[c.group], value != 0)) return 0;
        return symbol(coder, m.nonzero[scale], m.nonzero_child[c.group][scale][variant], scale, value);
    }

    // How many codes of a block among zeros are 0 before the first that is not: 0 to kQuietBlock.
    int quiet_block(Coder& coder, int group, int quiet, int zeros) {
        Models& m = *models_;
        if (code_bit(coder, m.quiet[group][quiet], zeros == kQuietBlock)) return kQuietBlock;
        int node = 1;
        for (int bit = kQuietBits - 1; bit >= 0; --bit) node = 2 * node + code_bit(coder, m.first[group][node], zeros >> bit & 1);
        return node - kQuietBlock;
    }

    // A code that is known not to be 0 although all around it are.
    template <Kind kind>
    int32_t lonely(Coder& coder, const Context& c, int32_t value) {
        const bool learned = kind == Kind::learned;
        uint16_t& slot = learned ? models_->lonely_child[c.group][c.scale] : models_->nonzero_child[c.group][0][kLonely];
        return symbol(coder, models_->nonzero[0], slot, 0, value);
    }

    static constexpr int kBinaryBelow = 8;
    static constexpr int kLonely = 12;  // the variant whose neighbours are all 0

    static int shift_of(int scale) { return scale < 16 ? 0 : scale / 4 - 3; }

    // An adaptive distribution with the law that it starts from.
    using Child = Distribution<32>;
    struct Parent {
        Distribution<256> law, now;
        void start(const std::array<uint16_t, kSymbols + 1>& edges) {
            law.start(edges);
            now = law;
        }
    };

    AESZ_INLINE int32_t symbol(Coder& coder, Parent& parent, uint16_t& slot, int scale, int32_t value) {
        Models& m = *models_;
        const int shift = shift_of(scale);
        if (slot == 0) {
            m.children.emplace_back().start(parent.now.edge);
            slot = static_cast<uint16_t>(m.children.size());
        }
        Child& child = m.children[slot - 1u];
        const bool outlier = value == kOutlier;
        int64_t high = value >> shift;  // a damaged stream may say more than 32 bits hold
        int token = outlier ? 0 : static_cast<int>(std::clamp<int64_t>(high, -16, 15)) + 16;
        token = coder.symbol(token, child);
        parent.now.add(token, parent.law);
        child.add(token, parent.now);
        if (token == 0) {
            if (code_bit(coder, m.outlier, outlier)) return kOutlier;
            high = -16 - static_cast<int64_t>(code_golomb(coder, m.beyond, static_cast<uint32_t>(-16 - high)));
        } else if (token == 31) {
            high = 15 + static_cast<int64_t>(code_golomb(coder, m.beyond, static_cast<uint32_t>(high - 15)));
        } else {
            high = token - 16;
        }
        const uint32_t low = shift ? coder.raw(static_cast<uint32_t>(value) & ((1u << shift) - 1), shift) : 0;
        const int64_t result = high * (1 << shift) + low;
        return static_cast<int32_t>(std::clamp<int64_t>(result, -kLargestCode, kLargestCode));
    }

    struct Models {
        Bit zero_scale[kGroups][kBinaryBelow], zero_near[kGroups][256], zero_other[256][kBinaryBelow],
            zero_same[kGroups][16 * kBinaryBelow];
        Mixer<4> zero_mixer[kGroups];
        Bit quiet[kGroups][kQuietClasses], first[kGroups][kQuietBlock];
        Bit outlier, beyond[32], integer[32];
        Parent any[kClasses], nonzero[kBinaryBelow], learned[kLearnedClasses];
        std::vector<Child> children;  // as they are needed; a slot holds the number of its child, from 1
        uint16_t any_child[kGroups][kClasses][20] = {};
        uint16_t nonzero_child[kGroups][kBinaryBelow][20] = {};
        uint16_t learned_child[kGroups][kLearnedClasses][20] = {}, lonely_child[kGroups][kLearnedClasses] = {};

        Models() {
            // never moved; untouched memory costs nothing
            children.reserve(kGroups * ((kClasses + kBinaryBelow + kLearnedClasses) * 20 + kLearnedClasses));
            static const Laws laws;
            std::copy(laws.any.begin(), laws.any.end(), any);
            std::copy(laws.nonzero.begin(), laws.nonzero.end(), nonzero);
            std::copy(laws.learned.begin(), laws.learned.end(), learned);
        }
    };

    // A two-sided geometric distribution with the mean magnitude of each class, and a wider one for the tails.
    struct Laws {
        std::array<Parent, kClasses> any;
        std::array<Parent, kBinaryBelow> nonzero;
        std::array<Parent, kLearnedClasses> learned;

        Laws() {
            for (int scale = 0; scale < kClasses; ++scale) {
                const std::size_t i = static_cast<std::size_t>(scale);
                auto weight = law(scale, shift_of(scale), 16);
                any[i].start(edges_of(weight));
                if (scale >= kBinaryBelow) continue;
                weight[16] = 1;
                nonzero[i].start(edges_of(weight));
            }
            for (int scale = 0; scale < kLearnedClasses; ++scale)
                learned[static_cast<std::size_t>(scale)].start(edges_of(law(scale, shift_of(scale - kLearnedFiner), 256)));
        }

        // Weights of the symbols of a class whose magnitudes are in units of 1 / one.
        static std::array<uint32_t, kSymbols> law(int scale, int shift, uint64_t one) {
            const int octave = scale / 4;
            const uint64_t middle = (static_cast<uint64_t>(4 + scale % 4) << octave) - 4 + ((uint64_t{1} << octave) >> 1);
            const uint64_t mean = std::max<uint64_t>(1, middle), unit = one << shift, wide = 3 * mean + unit;
            std::array<uint32_t, kSymbols> weight;
            uint64_t x = uint64_t{1} << 20, y = uint64_t{1} << 16;
            for (std::size_t t = 0; t < 16; ++t) {
                weight[16 + t] = static_cast<uint32_t>(x + y) + 16;
                x = x * mean / (mean + unit);
                y = y * wide / (wide + unit);
                weight[15 - t] = shift ? weight[16 + t] : static_cast<uint32_t>(x + y) + 16;
            }
            return weight;
        }
    };

    Coder& coder_;
    bool zeros_;
    std::unique_ptr<Models> models_;
    std::vector<uint8_t> near_;
};

}  // namespace aesz
