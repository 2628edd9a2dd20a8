// The loops of integer networks; networks.hpp includes this once for every instruction set, in a namespace of its own, with
// AESZ_TARGET before every function and AESZ_NETWORK_LEVEL saying which.  Sums fit 24 bits: no loop has to mind overflow.
// No include guard.

// ---- vectors of sums -------------------------------------------------------------------------------------------

#if AESZ_NETWORK_LEVEL == 3  // AVX-512 with VNNI

// (the variants with a mask, of all ones, because g++ 12 warns of its own definitions of the others)
constexpr int kLanes = 16, kTile = 8;  // sums of a vector; vectors kept in registers
constexpr __mmask16 kAll = 0xFFFF;
using Lanes = __m512i;

AESZ_TARGET AESZ_INLINE Lanes load(const void* from) { return _mm512_loadu_si512(from); }
AESZ_TARGET AESZ_INLINE void store(int32_t* to, Lanes a) { _mm512_storeu_si512(to, a); }
AESZ_TARGET AESZ_INLINE Lanes twice(const int16_t* pair) {
    int32_t both;
    std::memcpy(&both, pair, 4);
    return _mm512_set1_epi32(both);
}
AESZ_TARGET AESZ_INLINE Lanes add_products(Lanes sum, Lanes weight, Lanes pair) { return _mm512_dpwssd_epi32(sum, weight, pair); }
AESZ_TARGET AESZ_INLINE Lanes shift_right(Lanes a, const int32_t* by) { return _mm512_maskz_srav_epi32(kAll, a, load(by)); }
AESZ_TARGET AESZ_INLINE Lanes leak(Lanes a, int slope) {
    return _mm512_maskz_max_epi32(kAll, a, _mm512_maskz_sra_epi32(kAll, a, _mm_cvtsi32_si128(slope)));
}
template <int Vectors>
AESZ_TARGET AESZ_INLINE void store_clamped(int16_t* to, const Lanes* a, int16_t lo, int16_t hi) {
    const __m256i v = _mm512_maskz_cvtsepi32_epi16(kAll, a[0]);
    const __m256i w = _mm256_min_epi16(_mm256_max_epi16(v, _mm256_set1_epi16(lo)), _mm256_set1_epi16(hi));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), w);
}
AESZ_TARGET AESZ_INLINE Lanes all(int32_t x) { return _mm512_set1_epi32(x); }
AESZ_TARGET AESZ_INLINE Lanes load_pairs(const int32_t* from) { return load(from); }
AESZ_TARGET AESZ_INLINE Lanes shift_all(Lanes a, int by) { return _mm512_maskz_sra_epi32(kAll, a, _mm_cvtsi32_si128(by)); }
AESZ_TARGET AESZ_INLINE void store_pairs(int32_t* to, Lanes a, Lanes b, int16_t lo, int16_t hi) {
    const Lanes least = all(lo), most = all(hi);
    a = _mm512_maskz_min_epi32(kAll, _mm512_maskz_max_epi32(kAll, a, least), most);
    b = _mm512_maskz_min_epi32(kAll, _mm512_maskz_max_epi32(kAll, b, least), most);
    store(to, _mm512_mask_blend_epi16(0xAAAAAAAA, a, _mm512_maskz_slli_epi32(kAll, b, 16)));
}

#elif AESZ_NETWORK_LEVEL == 2  // AVX2

constexpr int kLanes = 8, kTile = 8;
using Lanes = __m256i;

AESZ_TARGET AESZ_INLINE Lanes load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
AESZ_TARGET AESZ_INLINE void store(int32_t* to, Lanes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a); }
AESZ_TARGET AESZ_INLINE Lanes twice(const int16_t* pair) {
    int32_t both;
    std::memcpy(&both, pair, 4);
    return _mm256_set1_epi32(both);
}
AESZ_TARGET AESZ_INLINE Lanes add_products(Lanes sum, Lanes weight, Lanes pair) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weight, pair));
}
AESZ_TARGET AESZ_INLINE Lanes shift_right(Lanes a, const int32_t* by) { return _mm256_srav_epi32(a, load(by)); }
AESZ_TARGET AESZ_INLINE Lanes leak(Lanes a, int slope) {
    return _mm256_max_epi32(a, _mm256_sra_epi32(a, _mm_cvtsi32_si128(slope)));
}
template <int Vectors>
AESZ_TARGET AESZ_INLINE void store_clamped(int16_t* to, const Lanes* a, int16_t lo, int16_t hi) {
    // packing saturates, which clamping to less does not notice; it works within halves of a register
    const __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a[0], a[Vectors - 1]), 0xD8);
    const __m256i w = _mm256_min_epi16(_mm256_max_epi16(v, _mm256_set1_epi16(lo)), _mm256_set1_epi16(hi));
    if constexpr (Vectors == 2) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), w);
    } else {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(w));
    }
}
AESZ_TARGET AESZ_INLINE Lanes all(int32_t x) { return _mm256_set1_epi32(x); }
AESZ_TARGET AESZ_INLINE Lanes load_pairs(const int32_t* from) { return load(from); }
AESZ_TARGET AESZ_INLINE Lanes shift_all(Lanes a, int by) { return _mm256_sra_epi32(a, _mm_cvtsi32_si128(by)); }
AESZ_TARGET AESZ_INLINE void store_pairs(int32_t* to, Lanes a, Lanes b, int16_t lo, int16_t hi) {
    const __m256i packed = _mm256_packs_epi32(a, b);
    const __m256i v = _mm256_unpacklo_epi16(packed, _mm256_srli_si256(packed, 8));
    store(to, _mm256_min_epi16(_mm256_max_epi16(v, _mm256_set1_epi16(lo)), _mm256_set1_epi16(hi)));
}

#elif AESZ_NETWORK_LEVEL == 1  // SSE2

constexpr int kLanes = 4, kTile = 8;
using Lanes = __m128i;

AESZ_TARGET AESZ_INLINE Lanes load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
AESZ_TARGET AESZ_INLINE void store(int32_t* to, Lanes a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), a); }
AESZ_TARGET AESZ_INLINE Lanes twice(const int16_t* pair) {
    int32_t both;
    std::memcpy(&both, pair, 4);
    return _mm_set1_epi32(both);
}
AESZ_TARGET AESZ_INLINE Lanes add_products(Lanes sum, Lanes weight, Lanes pair) {
    return _mm_add_epi32(sum, _mm_madd_epi16(weight, pair));
}
AESZ_TARGET AESZ_INLINE Lanes shift_right(Lanes a, const int32_t* by) {
    if (by[0] == by[1] && by[0] == by[2] && by[0] == by[3]) return _mm_sra_epi32(a, _mm_cvtsi32_si128(by[0]));
    int32_t v[4];
    store(v, a);
    return _mm_setr_epi32(v[0] >> by[0], v[1] >> by[1], v[2] >> by[2], v[3] >> by[3]);
}
AESZ_TARGET AESZ_INLINE Lanes leak(Lanes a, int slope) {
    const Lanes negative = _mm_srai_epi32(a, 31), leaked = _mm_sra_epi32(a, _mm_cvtsi32_si128(slope));
    return _mm_or_si128(_mm_andnot_si128(negative, a), _mm_and_si128(negative, leaked));
}
template <int Vectors>
AESZ_TARGET AESZ_INLINE void store_clamped(int16_t* to, const Lanes* a, int16_t lo, int16_t hi) {
    AESZ_UNROLL for (int i = 0; i < Vectors; i += 2) {
        const __m128i v = _mm_packs_epi32(a[i], a[i + 1 < Vectors ? i + 1 : i]);
        const __m128i w = _mm_min_epi16(_mm_max_epi16(v, _mm_set1_epi16(lo)), _mm_set1_epi16(hi));
        if (i + 1 < Vectors) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * i), w);
        } else {
            _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 4 * i), w);
        }
    }
}
AESZ_TARGET AESZ_INLINE Lanes all(int32_t x) { return _mm_set1_epi32(x); }
AESZ_TARGET AESZ_INLINE Lanes load_pairs(const int32_t* from) { return load(from); }
AESZ_TARGET AESZ_INLINE Lanes shift_all(Lanes a, int by) { return _mm_sra_epi32(a, _mm_cvtsi32_si128(by)); }
AESZ_TARGET AESZ_INLINE void store_pairs(int32_t* to, Lanes a, Lanes b, int16_t lo, int16_t hi) {
    const __m128i packed = _mm_packs_epi32(a, b), v = _mm_unpacklo_epi16(packed, _mm_srli_si128(packed, 8));
    store(to, _mm_min_epi16(_mm_max_epi16(v, _mm_set1_epi16(lo)), _mm_set1_epi16(hi)));
}

#else  // plain C++, with vectors of four where compilers know them: good on ARM, slow on x86

constexpr int kLanes = 4, kTile = 8;
#if defined(__GNUC__) || defined(__clang__)
using Lanes = int32_t __attribute__((vector_size(16)));
#else
struct Lanes {
    int32_t v[kLanes];
    int32_t& operator[](int i) { return v[i]; }
    int32_t operator[](int i) const { return v[i]; }
};
inline Lanes operator+(Lanes a, const Lanes& b) {
    for (int i = 0; i < kLanes; ++i) a[i] += b[i];
    return a;
}
inline Lanes operator*(Lanes a, int32_t b) {
    for (int i = 0; i < kLanes; ++i) a[i] *= b;
    return a;
}
#endif
struct Weights {
    Lanes a, b;  // for the first input of a pair, for the second
};
struct Pair {
    int32_t a, b;
};

AESZ_INLINE Lanes load(const int32_t* from) {
    Lanes out;
    std::memcpy(&out, from, sizeof(out));
    return out;
}
AESZ_INLINE Weights load(const int16_t* from) {
    Weights out;
    for (int i = 0; i < kLanes; ++i) out.a[i] = from[2 * i], out.b[i] = from[2 * i + 1];
    return out;
}
AESZ_INLINE void store(int32_t* to, const Lanes& a) { std::memcpy(to, &a, sizeof(a)); }
AESZ_INLINE Pair twice(const int16_t* pair) { return {pair[0], pair[1]}; }
AESZ_INLINE Lanes add_products(Lanes sum, const Weights& weight, Pair pair) {
    return sum + weight.a * pair.a + weight.b * pair.b;
}
AESZ_INLINE Lanes shift_right(Lanes a, const int32_t* by) {
    for (int i = 0; i < kLanes; ++i) a[i] >>= by[i];
    return a;
}
AESZ_INLINE Lanes leak(Lanes a, int slope) {
    for (int i = 0; i < kLanes; ++i) a[i] = a[i] < 0 ? a[i] >> slope : a[i];
    return a;
}
template <int Vectors>
void store_clamped(int16_t* to, const Lanes* a, int16_t lo, int16_t hi) {
    for (int i = 0; i < Vectors * kLanes; ++i) {
        const int32_t v = a[i / kLanes][i % kLanes];
        to[i] = static_cast<int16_t>(v < lo ? lo : v > hi ? hi : v);
    }
}
AESZ_INLINE Lanes all(int32_t x) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out[i] = x;
    return out;
}
AESZ_INLINE Weights load_pairs(const int32_t* from) {
    int16_t pairs[2 * kLanes];
    std::memcpy(pairs, from, sizeof(pairs));
    return load(pairs);
}
AESZ_INLINE Lanes shift_all(Lanes a, int by) {
    for (int i = 0; i < kLanes; ++i) a[i] >>= by;
    return a;
}
AESZ_INLINE void store_pairs(int32_t* to, const Lanes& a, const Lanes& b, int16_t lo, int16_t hi) {
    const auto clamped = [lo, hi](int32_t v) { return v < lo ? lo : v > hi ? hi : v; };
    for (int i = 0; i < kLanes; ++i) to[i] = side_by_side(clamped(a[i]), clamped(b[i]));
}

#endif

// ---- sums of products ------------------------------------------------------------------------------------------

// One block of outputs, Vectors of them, of some points, whose inputs are `distance` apart; writes `count` outputs of each.
template <int Points, int Vectors, class Out>
AESZ_TARGET inline void tile(const Dense& layer, int64_t block, const int16_t* input, int64_t distance, const int64_t* offset,
                             Out* out, int64_t out_distance, int64_t count) {
    const int32_t* start = layer.start.data() + block * kOutputs;
    const WeightPair* weights = layer.weights.data() + block * layer.runs * layer.pairs;
    Lanes sum[Points][Vectors];
    AESZ_UNROLL for (int p = 0; p < Points; ++p) AESZ_UNROLL for (int v = 0; v < Vectors; ++v) sum[p][v] =
        load(start + v * kLanes);
    for (int64_t run = 0; run < layer.runs; ++run) {
        const int16_t* x = input + offset[run];
        for (int64_t pair = 0; pair < layer.pairs; ++pair, x += 2, ++weights) {
            decltype(load(weights->w)) weight[Vectors];
            AESZ_UNROLL for (int v = 0; v < Vectors; ++v) weight[v] = load(weights->w + 2 * v * kLanes);
            AESZ_UNROLL for (int p = 0; p < Points; ++p) {
                const auto both = twice(x + p * distance);
                AESZ_UNROLL for (int v = 0; v < Vectors; ++v) sum[p][v] = add_products(sum[p][v], weight[v], both);
            }
        }
    }
    const int32_t* shift = layer.shift.data() + block * kOutputs;
    AESZ_UNROLL for (int p = 0; p < Points; ++p, out += out_distance) {
        if constexpr (sizeof(Out) == 2) {
            AESZ_UNROLL for (int v = 0; v < Vectors; ++v) sum[p][v] = shift_right(sum[p][v], shift + v * kLanes);
            if (layer.slope) {
                AESZ_UNROLL for (int v = 0; v < Vectors; ++v) sum[p][v] = leak(sum[p][v], layer.slope);
            }
            if (count >= Vectors * kLanes) {
                store_clamped<Vectors>(out, sum[p], layer.lo, layer.hi);
            } else {
                int16_t some[kOutputs];
                store_clamped<Vectors>(some, sum[p], layer.lo, layer.hi);
                for (int64_t i = 0; i < count; ++i) out[i] = some[i];
            }
        } else {
            int32_t some[kOutputs];
            int32_t* to = count >= Vectors * kLanes ? out : some;
            AESZ_UNROLL for (int v = 0; v < Vectors; ++v) store(to + v * kLanes, sum[p][v]);
            if (to == some)
                for (int64_t i = 0; i < count; ++i) out[i] = some[i];
        }
    }
}

template <int Points, int Vectors, class Out>
AESZ_TARGET void tiles(const Dense& layer, int64_t block, const int16_t* input, int64_t distance, const int64_t* offset,
                       int64_t points, Out* out, int64_t out_distance, int64_t count) {
    int64_t p = 0;
    for (; p + Points <= points; p += Points)
        tile<Points, Vectors>(layer, block, input + p * distance, distance, offset, out + p * out_distance, out_distance, count);
    if constexpr (Points > 1)
        if (p < points)
            tiles<Points / 2, Vectors>(layer, block, input + p * distance, distance, offset, points - p, out + p * out_distance,
                                       out_distance, count);
}

// A block of outputs of a row of points: activations if Out is int16_t, else sums.  `room`: outputs that may be written
// beyond the last; what is written there does not matter.
template <class Out>
AESZ_TARGET void dense(const Dense& layer, int64_t block, const int16_t* input, int64_t distance, const int64_t* offset,
                       int64_t points, Out* out, int64_t out_distance, bool room) {
    const int64_t left = layer.outputs - block * kOutputs, count = left < kOutputs ? left : kOutputs;
    out += block * kOutputs;
    switch ((count + kLanes - 1) / kLanes) {
#define AESZ_CASE(Vectors)                                                                                       \
    case Vectors:                                                                                                \
        return tiles<kTile / Vectors, Vectors>(layer, block, input, distance, offset, points, out, out_distance, \
                                               room ? kOutputs : count);
        AESZ_CASE(1)
#if AESZ_NETWORK_LEVEL != 3
        AESZ_CASE(2)
#endif
#if AESZ_NETWORK_LEVEL < 2
        AESZ_CASE(3)
        AESZ_CASE(4)
#endif
#undef AESZ_CASE
    }
}

// ---- linear layers on points side by side ----------------------------------------------------------------------

// Some outputs from `first` on, not all of which need to exist, of the first Vectors vectors of points.  Inputs are pairs, and so
// are the outputs if `pairs`; else they are int32, and only those that exist are written.
template <int Outputs, int Vectors>
AESZ_TARGET AESZ_INLINE void side(const Dense& layer, int64_t first, bool pairs, const int32_t* input, int32_t* out) {
    const WeightPair* weights = layer.weights.data() + first / kOutputs * layer.pairs;
    const int64_t within = 2 * (first % kOutputs);
    Lanes sum[Outputs][Vectors];
    AESZ_UNROLL for (int o = 0; o < Outputs; ++o) AESZ_UNROLL for (int v = 0; v < Vectors; ++v) sum[o][v] =
        all(layer.start[static_cast<std::size_t>(first + o)]);
    for (int64_t pair = 0; pair < layer.pairs; ++pair, input += kTilePoints, ++weights) {
        decltype(load_pairs(input)) x[Vectors];
        AESZ_UNROLL for (int v = 0; v < Vectors; ++v) x[v] = load_pairs(input + v * kLanes);
        AESZ_UNROLL for (int o = 0; o < Outputs; ++o) {
            const auto both = twice(weights->w + within + 2 * o);
            AESZ_UNROLL for (int v = 0; v < Vectors; ++v) sum[o][v] = add_products(sum[o][v], x[v], both);
        }
    }
    if (!layer.raw) {
        AESZ_UNROLL for (int o = 0; o < Outputs; ++o) AESZ_UNROLL for (int v = 0; v < Vectors; ++v) {
            sum[o][v] = shift_all(sum[o][v], layer.shift[static_cast<std::size_t>(first + o)]);
            if (layer.slope) sum[o][v] = leak(sum[o][v], layer.slope);
        }
    }
    if (pairs) {
        AESZ_UNROLL for (int o = 0; o < Outputs; o += 2) AESZ_UNROLL for (int v = 0; v < Vectors; ++v)
            store_pairs(out + (first + o) / 2 * kTilePoints + v * kLanes, sum[o][v], sum[o + 1][v], layer.lo, layer.hi);
    } else {
        AESZ_UNROLL for (int o = 0; o < Outputs; ++o) {
            if (first + o >= layer.outputs) break;
            int32_t* to = out + (first + o) * kTilePoints;
            AESZ_UNROLL for (int v = 0; v < Vectors; ++v) store(to + v * kLanes, sum[o][v]);
            for (int i = 0; !layer.raw && i < Vectors * kLanes; ++i)
                to[i] = to[i] < layer.lo ? layer.lo : to[i] > layer.hi ? layer.hi : to[i];
        }
    }
}

// All outputs, as many at a time as registers hold.
template <int Vectors>
AESZ_TARGET void sides(const Dense& layer, bool pairs, const int32_t* input, int32_t* out) {
    constexpr int kAtOnce = kTile / Vectors, kHalf = kAtOnce > 2 ? kAtOnce / 2 : kAtOnce;
    int64_t first = 0;
    for (; first + kHalf < layer.outputs; first += kAtOnce) side<kAtOnce, Vectors>(layer, first, pairs, input, out);
    if (first < layer.outputs) side<kHalf, Vectors>(layer, first, pairs, input, out);
}

// Linear layers, one after the other, on the first `points` points of a tile; what is between them lies in two places that the
// caller has.
AESZ_TARGET inline void mlp(const Dense* layer, std::size_t layers, const int32_t* input, int points, int32_t* out, int32_t* one,
                            int32_t* other) {
    for (std::size_t i = 0; i < layers; ++i) {
        const bool last = i + 1 == layers;
        int32_t* const to = last ? out : one;
        switch ((points + kLanes - 1) / kLanes) {
#define AESZ_CASE(Vectors)                          \
    case Vectors:                                   \
        sides<Vectors>(layer[i], !last, input, to); \
        break;
            AESZ_CASE(1)
#if AESZ_NETWORK_LEVEL != 3
            AESZ_CASE(2)
#endif
#if AESZ_NETWORK_LEVEL < 2
            case 3:
                AESZ_CASE(4)
#endif
#undef AESZ_CASE
        }
        input = one;
        std::swap(one, other);
    }
}

// ---- layers without weights, and the rest of gdn ---------------------------------------------------------------

AESZ_TARGET inline void magnitudes(const int16_t* x, int64_t n, int16_t* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int16_t>(x[i] < 0 ? -x[i] : x[i]);
}

// The tables have one entry for every channel.
AESZ_TARGET inline void normalize(const int16_t* AESZ_RESTRICT x, const int32_t* AESZ_RESTRICT norm, int64_t points,
                                  int64_t channels, const int32_t* AESZ_RESTRICT norm_shift, const int32_t* AESZ_RESTRICT half,
                                  const int32_t* AESZ_RESTRICT shift, int32_t lo, int32_t hi, int16_t* AESZ_RESTRICT out) {
    for (int64_t p = 0; p < points; ++p, x += channels, norm += channels, out += channels)
        for (int64_t c = 0; c < channels; ++c) {
            const int32_t v = (x[c] * (norm[c] >> norm_shift[c]) + half[c]) >> shift[c];
            out[c] = static_cast<int16_t>(v < lo ? lo : v > hi ? hi : v);
        }
}

AESZ_TARGET inline void add(const int16_t* AESZ_RESTRICT x, const int16_t* AESZ_RESTRICT z, int64_t n, const Sum& sum,
                            int16_t* AESZ_RESTRICT out) {
    const int32_t a = 1 << sum.scale[0], b = 1 << sum.scale[1], half = sum.shift ? 1 << (sum.shift - 1) : 0;
    const int32_t shift = sum.shift, slope = sum.slope, lo = sum.lo, hi = sum.hi;
    for (int64_t i = 0; i < n; ++i) {
        int32_t v = (x[i] * a + z[i] * b + half) >> shift;
        v = v < 0 ? v >> slope : v;
        out[i] = static_cast<int16_t>(v < lo ? lo : v > hi ? hi : v);
    }
}

AESZ_TARGET inline bool within_range(const int16_t* x, int64_t n, int16_t lo, int16_t hi) {
    int outside = 0;
    for (int64_t i = 0; i < n; ++i) outside |= static_cast<int>(x[i] < lo) | static_cast<int>(x[i] > hi);
    return outside == 0;
}
