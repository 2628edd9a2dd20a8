// Adaptive probability models: binary decisions that mix several contexts, and distributions over 32 symbols.
// docs/format.md, section 7.  Integers only: no float may reach the entropy coder.
#pragma once

#include <array>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "portable.hpp"

namespace aesz {

// ---- logistic tables -------------------------------------------------------------------------------------------

// Logits have 8 fractional bits and lie in -2047..2047.  The tables are built from integers, alike everywhere.
struct Logistic {
    std::array<uint16_t, 4096> squash;  // logit + 2048 -> probability in 1/65536
    std::array<int16_t, 4096> stretch;  // probability in 1/4096 -> logit

    Logistic() {
        constexpr uint64_t one = uint64_t{1} << 31;
        uint64_t power[12];  // exp(-2^k / 256) in 2^-31
        uint64_t term = one, even = 0, odd = 0;
        for (uint64_t n = 0; n < 8; ++n) {  // Taylor series of exp(-1/256)
            (n % 2 ? odd : even) += term;
            term /= 256 * (n + 1);
        }
        power[0] = even - odd;
        for (int k = 1; k < 12; ++k) power[k] = (power[k - 1] * power[k - 1] + one / 2) >> 31;
        for (int logit = -2048; logit < 2048; ++logit) {
            uint64_t e = one;  // exp(-|logit| / 256)
            for (int k = 0; k < 12; ++k)
                if (magnitude(logit) >> k & 1) e = (e * power[k] + one / 2) >> 31;
            uint64_t small = (e << 16) / (one + e);
            if (small < 1) small = 1;
            squash[static_cast<std::size_t>(logit + 2048)] = static_cast<uint16_t>(logit <= 0 ? small : 65536 - small);
        }
        int logit = -2047;
        for (int bucket = 0; bucket < 4096; ++bucket) {
            while (logit < 2047 && squash[static_cast<std::size_t>(logit + 2048)] < bucket * 16 + 8) ++logit;
            stretch[static_cast<std::size_t>(bucket)] = static_cast<int16_t>(logit);
        }
    }
};

inline const Logistic kLogistic;

constexpr std::array<uint16_t, 256> reciprocals() {
    std::array<uint16_t, 256> table{};
    for (uint32_t n = 0; n < 256; ++n) table[n] = static_cast<uint16_t>(131072 / (2 * n + 3));
    return table;
}
inline constexpr std::array<uint16_t, 256> kReciprocal = reciprocals();

// ---- binary decisions ------------------------------------------------------------------------------------------

// One adaptive probability: P(bit = 1) in 2^-22 above a count of 10 bits.  It moves by 1 / (count + 1.5).
struct Bit {
    static constexpr uint32_t kLimit = 250;
    uint32_t state = uint32_t{1} << 31;

    uint32_t p16() const { return state >> 16; }
    void update(int bit) {
        const uint32_t count = state & 1023;
        const int32_t p = static_cast<int32_t>(state >> 10);
        const int32_t target = bit ? (1 << 22) - 1 : 0;
        const int32_t change = static_cast<int32_t>((static_cast<int64_t>(target - p) * kReciprocal[count]) >> 16);
        state = static_cast<uint32_t>(p + change) << 10 | (count < kLimit ? count + 1 : count);
    }
};

// `Likely`: it is nearly always 1, which saves time and changes nothing else.
template <bool Likely = false, class Coder>
int code_bit(Coder& coder, Bit& model, int value) {
    uint32_t p = model.p16();
    p = p < 4 ? 4 : p > 65532 ? 65532 : p;
    if constexpr (Likely) {
        value = coder.likely_bit(value, p);
    } else {
        value = coder.bit(value, p);
    }
    model.update(value);
    return value;
}

// Mixes N adaptive probabilities in the logistic domain; the weights learn from every decision.
template <int N>
struct Mixer {
    std::array<int32_t, N> weight;  // in 1/65536
    Mixer() { weight.fill(65536 / N + 65536 / (3 * N)); }
};

template <int N, class Coder>
int code_mixed(Coder& coder, Bit* const (&models)[N], Mixer<N>& mixer, int value) {
    int32_t logit[N];
    int64_t sum = 0;
    for (int i = 0; i < N; ++i) {
        logit[i] = kLogistic.stretch[models[i]->state >> 20];
        sum += static_cast<int64_t>(mixer.weight[i]) * logit[i];
    }
    int64_t mixed = sum >> 16;
    mixed = mixed < -2047 ? -2047 : mixed > 2047 ? 2047 : mixed;
    uint32_t p = kLogistic.squash[static_cast<std::size_t>(mixed + 2048)];
    p = p < 16 ? 16 : p > 65520 ? 65520 : p;
    value = coder.bit(value, p);
    const int32_t error = (value ? 65536 : 0) - static_cast<int32_t>(p);
    for (int i = 0; i < N; ++i) {
        const int64_t weight = mixer.weight[i] + ((static_cast<int64_t>(logit[i]) * error * 6 + (1 << 17)) >> 18);
        mixer.weight[i] = static_cast<int32_t>(weight<-(1 << 20) ? -(1 << 20) : weight>(1 << 20) ? 1 << 20 : weight);
        models[i]->update(value);
    }
    return value;
}

// Exp-Golomb: the number of bits in unary with adaptive decisions, the rest as they are.  value < 2^31 - 1.
template <class Coder>
uint32_t code_golomb(Coder& coder, Bit (&prefix)[32], uint32_t value) {
    const uint32_t v = value + 1;
    const int bits = Coder::decoding ? 0 : highest_bit(v);
    int k = 0;
    while (k < 30 && code_bit(coder, prefix[k], k < bits)) ++k;
    uint32_t low = 0;
    for (int left = k; left > 0;) {
        const int n = left < 16 ? left : 16;
        left -= n;
        low = low << n | coder.raw(v >> left & ((1u << n) - 1), n);
    }
    return (1u << k) + low - 1;
}

// Signed integers as unsigned ones, by magnitude: 0, -1, 1, -2, 2, ...
AESZ_INLINE uint32_t fold(int32_t x) { return static_cast<uint32_t>(x) << 1 ^ static_cast<uint32_t>(x >> 31); }
AESZ_INLINE int32_t unfold(uint32_t u) { return static_cast<int32_t>(u >> 1) ^ -static_cast<int32_t>(u & 1); }

template <class Coder>
int32_t code_signed(Coder& coder, Bit (&prefix)[32], int32_t value) {
    return unfold(code_golomb(coder, prefix, fold(value)));
}

// ---- distributions over 32 symbols -----------------------------------------------------------------------------

constexpr int kSymbols = 32;

// Counts, and cumulative frequencies made from them after 6, 12, 24, ... symbols, at last every `Longest`.  A prior
// distribution weighs as much as 24 symbols.
template <uint32_t Longest>
struct alignas(64) Distribution {
    static constexpr uint32_t kPriorCount = 24, kFirst = 6, kHalveAt = 512;
    std::array<uint16_t, kSymbols + 1> edge;  // edge[i] = P(symbol < i) in 1/32768
    std::array<uint16_t, kSymbols> count{};
    uint16_t wait = 0, interval = 0, total = 0;

    int operator()(int i) const { return edge[static_cast<std::size_t>(i)]; }

    // The last i with edge[i] <= target.
    int find(int target) const {
#if defined(__SSE2__)
        const __m128i t = _mm_set1_epi16(static_cast<int16_t>(target));
        const auto* e = reinterpret_cast<const __m128i*>(edge.data());
        const __m128i low = _mm_packs_epi16(_mm_cmpgt_epi16(_mm_load_si128(e), t), _mm_cmpgt_epi16(_mm_load_si128(e + 1), t));
        const __m128i high =
            _mm_packs_epi16(_mm_cmpgt_epi16(_mm_load_si128(e + 2), t), _mm_cmpgt_epi16(_mm_load_si128(e + 3), t));
        const uint64_t above = static_cast<uint32_t>(_mm_movemask_epi8(low)) | static_cast<uint64_t>(_mm_movemask_epi8(high))
                                                                                   << 16;
        return lowest_bit(above | uint64_t{1} << 32) - 1;
#else
        const int16_t t = static_cast<int16_t>(target);
        int16_t n = 0;
        for (std::size_t i = 0; i < kSymbols; ++i) n = static_cast<int16_t>(n + (static_cast<int16_t>(edge[i]) <= t));
        return n - 1;
#endif
    }

    void start(const std::array<uint16_t, kSymbols + 1>& edges) {
        edge = edges;
        wait = interval = kFirst;
    }
    template <class Prior>
    void add(int symbol, const Prior& prior) {
        ++count[static_cast<std::size_t>(symbol)];
        if (--wait == 0) rebuild(prior);
    }

  private:
    template <class Prior>
    AESZ_RARE void rebuild(const Prior& prior) {
        total = static_cast<uint16_t>(total + interval);
        interval = static_cast<uint16_t>(interval * 2u < Longest ? interval * 2u : Longest);
        wait = interval;
        const uint64_t scale = (uint64_t{32768 - kSymbols} << 46) / ((total + uint64_t{kPriorCount}) << 15);
        uint64_t below = 0;
        for (std::size_t i = 0; i < kSymbols; ++i) {
            const uint64_t frequency = static_cast<uint64_t>(prior.edge[i + 1] - prior.edge[i]);
            edge[i] = static_cast<uint16_t>(((below * scale) >> 46) + i);
            below += (static_cast<uint64_t>(count[i]) << 15) + kPriorCount * frequency;
        }
        if (total >= kHalveAt) {
            total = 0;
            for (uint16_t& c : count) total = static_cast<uint16_t>(total + (c >>= 1));
        }
    }
};

// Cumulative frequencies in proportion to weights.
inline std::array<uint16_t, kSymbols + 1> edges_of(const std::array<uint32_t, kSymbols>& weight) {
    uint64_t sum = 0, below = 0;
    for (uint32_t w : weight) sum += w;
    std::array<uint16_t, kSymbols + 1> edge;
    for (std::size_t i = 0; i < kSymbols; ++i) {
        edge[i] = static_cast<uint16_t>(below * (32768 - kSymbols) / sum + i);
        below += weight[i];
    }
    edge[kSymbols] = 32768;
    return edge;
}

}  // namespace aesz
