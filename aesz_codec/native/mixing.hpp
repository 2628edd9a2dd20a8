// Binary decisions that mix what several contexts expect.  docs/format.md, section 7.  Integers only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "codes.hpp"
#include "models.hpp"

namespace aesz {

constexpr int kContexts = 7;  // and a constant
constexpr int kMixInputs = kContexts + 1;

// Weights in 1/65536.  They wrap around rather than overflow; in use they saturate at 8.
struct alignas(16) MixWeights {
    static constexpr int32_t kStart = 65536 / kContexts + 65536 / (3 * kContexts);
    int32_t weight[kMixInputs];
    MixWeights() {
        for (int32_t& w : weight) w = kStart;
        weight[kContexts] = 0;
    }
};

#if defined(__SSE2__)
struct MixInputs {
    __m128i logit;
    explicit MixInputs(const int16_t (&l)[kContexts]) : logit(_mm_set_epi16(256, l[6], l[5], l[4], l[3], l[2], l[1], l[0])) {}
    int32_t sum(const MixWeights& mix) const {
        const auto* w = reinterpret_cast<const __m128i*>(mix.weight);
        const __m128i rounded = _mm_packs_epi32(_mm_srai_epi32(_mm_load_si128(w), 4), _mm_srai_epi32(_mm_load_si128(w + 1), 4));
        __m128i s = _mm_madd_epi16(rounded, logit);
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        return _mm_cvtsi128_si32(s);
    }
    // weight += (3 * logit * error + 2^15) >> 16
    void learn(MixWeights& mix, int16_t error) const {
        auto* w = reinterpret_cast<__m128i*>(mix.weight);
        const __m128i e = _mm_set1_epi16(error), low = _mm_mullo_epi16(logit, e), high = _mm_mulhi_epi16(logit, e);
        const auto step = [](__m128i product) {
            const __m128i three = _mm_add_epi32(product, _mm_add_epi32(product, product));
            return _mm_srai_epi32(_mm_add_epi32(three, _mm_set1_epi32(1 << 15)), 16);
        };
        _mm_store_si128(w, _mm_add_epi32(_mm_load_si128(w), step(_mm_unpacklo_epi16(low, high))));
        _mm_store_si128(w + 1, _mm_add_epi32(_mm_load_si128(w + 1), step(_mm_unpackhi_epi16(low, high))));
    }
};
#else
struct MixInputs {
    int32_t logit[kMixInputs];
    explicit MixInputs(const int16_t (&l)[kContexts]) {
        for (int i = 0; i < kContexts; ++i) logit[i] = l[i];
        logit[kContexts] = 256;
    }
    int32_t sum(const MixWeights& mix) const {
        int32_t s = 0;
        for (int i = 0; i < kMixInputs; ++i) {
            const int32_t w = mix.weight[i] >> 4;
            s += (w < -32768 ? -32768 : w > 32767 ? 32767 : w) * logit[i];
        }
        return s;
    }
    void learn(MixWeights& mix, int16_t error) const {
        for (int i = 0; i < kMixInputs; ++i)
            mix.weight[i] = static_cast<int32_t>(static_cast<uint32_t>(mix.weight[i]) +
                                                 static_cast<uint32_t>((3 * (logit[i] * error) + (1 << 15)) >> 16));
    }
};
#endif

// Codes a decision; its models are `table[i][node]`.
template <class Coder>
inline int code_decision(Coder& coder, Bit* const (&table)[kContexts], int node, MixWeights& mix, int value) {
    int16_t logit[kContexts];
    for (int i = 0; i < kContexts; ++i) logit[i] = kLogistic.stretch[table[i][node].state >> 20];
    const MixInputs inputs(logit);
    int32_t sum = inputs.sum(mix) >> 12;
    sum = sum < -2047 ? -2047 : sum > 2047 ? 2047 : sum;
    int32_t p = kLogistic.squash[static_cast<std::size_t>(sum + 2048)];
    p = p < 16 ? 16 : p > 65520 ? 65520 : p;
    value = coder.bit(value, static_cast<uint32_t>(p));
    inputs.learn(mix, static_cast<int16_t>(((value ? 65536 : 0) - p) >> 1));
    for (int i = 0; i < kContexts; ++i) table[i][node].update(value);
    return value;
}

// Models of signed integers: tokens of their high bits, the low ones as they are.
class MixedTokens {
  public:
    // How many values each context takes, and how many groups there are with weights of their own.
    MixedTokens(const int (&sizes)[kContexts], int groups) : mix_(static_cast<std::size_t>(groups) * kSets * kNodes) {
        std::size_t total = 0;
        for (int i = 0; i < kContexts; ++i) {
            start_[i] = total;
            total += static_cast<std::size_t>(sizes[i]) * kNodes;
        }
        bits_.resize(total);
    }

    // How many low bits there are where the class of what is expected is `scale`.
    static int shift_of(int scale) { return std::max(0, (scale - 10) / 4); }

    // With a model of outliers `value` may be kOutlier.
    template <class Coder>
    int32_t code(Coder& coder, const int (&context)[kContexts], int scale, int group, int32_t value, Bit* outliers = nullptr) {
        const int shift = shift_of(scale);
        const int32_t half = shift ? 1 << (shift - 1) : 0;
        const bool outlier = outliers && value == kOutlier;
        int32_t token = 0;
        uint32_t low = 0;
        if constexpr (!Coder::decoding) {
            const int32_t above = outlier ? 0 : value + half;
            token = outlier ? kUnary + 1 : above >> shift;
            low = static_cast<uint32_t>(above) & ((1u << shift) - 1);
        }
        token = code_token(coder, context, group * kSets + std::min(scale / 4, kSets - 1), token);
        if (outliers && magnitude(token) > kUnary && code_bit(coder, *outliers, outlier)) return kOutlier;
        if (shift) low = coder.raw(low, shift);
        const int64_t result = static_cast<int64_t>(token) * (int64_t{1} << shift) + low - half;
        return static_cast<int32_t>(std::clamp<int64_t>(result, -kLargestCode, kLargestCode));
    }

  private:
    static constexpr int kNodes = 24, kUnary = 10;
    static constexpr int kSets = 16;  // of weights, by scale

    // 0 or not, the sign, the magnitude in unary, Exp-Golomb beyond.
    template <class Coder>
    int32_t code_token(Coder& coder, const int (&context)[kContexts], int set, int32_t value) {
        Bit* table[kContexts];
        for (int i = 0; i < kContexts; ++i) table[i] = &bits_[start_[i] + static_cast<std::size_t>(context[i]) * kNodes];
        MixWeights* mix = &mix_[static_cast<std::size_t>(set) * kNodes];
        if (!code_decision(coder, table, 0, mix[0], value != 0)) return 0;
        const bool positive = code_decision(coder, table, 1, mix[1], value > 0);
        const int first = positive ? 2 : 2 + kUnary;
        const uint32_t m = magnitude(value);
        uint32_t k = 1;
        while (k <= kUnary) {
            const int node = first + static_cast<int>(k) - 1;
            if (!code_decision(coder, table, node, mix[node], m > k)) break;
            ++k;
        }
        if (k > kUnary) k = std::min(k + code_golomb(coder, beyond_, m - k), uint32_t{1} << 30);
        return positive ? static_cast<int32_t>(k) : -static_cast<int32_t>(k);
    }

    std::vector<Bit> bits_;
    std::size_t start_[kContexts];
    std::vector<MixWeights> mix_;
    Bit beyond_[32];
};

}  // namespace aesz
