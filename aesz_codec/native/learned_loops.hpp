// The loops of learned interpolation; see each_set.hpp.  Points lie side by side in tiles: `[kTilePoints]` everywhere.
// No include guard.

#if AESZ_WIDE

AESZ_TARGET AESZ_INLINE __m256d load_doubles(const double* x) { return _mm256_loadu_pd(x); }
AESZ_TARGET AESZ_INLINE __m256d load_doubles(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }

AESZ_TARGET AESZ_INLINE __m256i load_ints(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }

// Eight points: (value - prediction) * scale to the nearest integer, what is not a number as the largest.
template <class T>
AESZ_TARGET AESZ_INLINE __m256i differences(const T* value, const __m256d* prediction, __m256d scale) {
    const __m256d most = _mm256_set1_pd(kLargestDifference);
    const __m256d a = _mm256_mul_pd(_mm256_sub_pd(load_doubles(value), prediction[0]), scale);
    const __m256d b = _mm256_mul_pd(_mm256_sub_pd(load_doubles(value + 4), prediction[1]), scale);
    const __m128i low = _mm256_cvtpd_epi32(_mm256_min_pd(a, most)), high = _mm256_cvtpd_epi32(_mm256_min_pd(b, most));
    return _mm256_max_epi32(_mm256_set_m128i(high, low), _mm256_set1_epi32(-kLargestDifference));
}

// The four classes an octave of integers below 2^24, but for a constant: exponent and first bits of a float.
AESZ_TARGET AESZ_INLINE __m256i quarters(__m256i x) { return _mm256_srai_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(x)), 21); }

// A summary of LineSums.
AESZ_TARGET AESZ_INLINE __m256i summary(const uint32_t* sum) {
    const __m256i c =
        _mm256_sub_epi32(quarters(_mm256_add_epi32(load_ints(sum), _mm256_set1_epi32(4))), _mm256_set1_epi32(kFirstQuarter));
    return _mm256_slli_epi32(_mm256_sub_epi32(_mm256_min_epi32(c, _mm256_set1_epi32(kClasses - 1)), _mm256_set1_epi32(16)), 3);
}

// Pairs of inputs, clamped.
AESZ_TARGET AESZ_INLINE void store_inputs(int32_t* to, __m256i first, __m256i second) {
    const __m256i packed = _mm256_packs_epi32(first, second);
    const __m256i pairs = _mm256_unpacklo_epi16(packed, _mm256_srli_si256(packed, 8));
    const __m256i most = _mm256_set1_epi16(kLargestInput), least = _mm256_set1_epi16(-kLargestInput);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_min_epi16(_mm256_max_epi16(pairs, least), most));
}

AESZ_TARGET AESZ_INLINE void store_floats(float* to, __m256i x) { _mm256_store_ps(to, _mm256_cvtepi32_ps(x)); }

AESZ_TARGET AESZ_INLINE __m256i seen(__m256i x, const TileLanes& lanes, const LearnedTap& tap, int first) {
    return _mm256_and_si256(x, load_ints(lanes.seen[tap.lanes] + first));
}

// To the nearest integer, halves up: what is rounded is a multiple of 2^-12 as long as it is small enough to matter.
AESZ_TARGET AESZ_INLINE __m256i normal(const float* x, __m256 unit) {
    return _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(x), unit), _mm256_set1_ps(1.0f / 8192)));
}

// Eight points of a tile, from `first` on.
template <class T>
AESZ_TARGET AESZ_INLINE void half_tile(const TileView<T>& at, const LearnedTap* tap, Sight sight, bool refers,
                                       const TileLanes& lanes, int first, LearnedTile& tile) {
    const __m256d prediction[2] = {_mm256_loadu_pd(at.prediction + first), _mm256_loadu_pd(at.prediction + first + 4)};
    const __m256d scale = _mm256_set1_pd(at.scale);
    alignas(32) float row[kMostTaps][8];
    __m256i spread = _mm256_set1_epi32(sight.around);
    int k = 0;
    for (; k < sight.around; ++k) {
        const __m256i x = seen(differences(at.now + tap[k].element + first, prediction, scale), lanes, tap[k], first);
        spread = _mm256_add_epi32(spread, _mm256_abs_epi32(x));
        store_floats(row[k], x);
    }
    for (; k < sight.around + sight.before; ++k)
        store_floats(row[k], seen(differences(at.before + tap[k].element + first, prediction, scale), lanes, tap[k], first));
    for (int left = kCodePoints; left-- > 0; ++k) {
        const int16_t* codes = (refers && left == 0 ? at.codes_before : at.codes) + tap[k].element + first;
        const __m256i x = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
        store_floats(row[k], seen(_mm256_slli_epi32(x, 3), lanes, tap[k], first));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(tile.spread + first), spread);

    const __m256 ratio = _mm256_div_ps(_mm256_set1_ps(sight.mean_input()), _mm256_cvtepi32_ps(spread));
    const __m256 unit = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvttps_epi32(ratio)), _mm256_set1_ps(1.0f / 4096));
    const __m256i summaries[kSummaries] = {
        _mm256_slli_epi32(_mm256_sub_epi32(quarters(spread), _mm256_set1_epi32(kFirstQuarter + 32)), 3), summary(at.near + first),
        summary(at.expected + first), summary(at.other + first)};
    int32_t* to = tile.inputs + first;
    for (int i = 0; i + 1 < k; i += 2, to += kTilePoints) store_inputs(to, normal(row[i], unit), normal(row[i + 1], unit));
    if (k % 2 == 0) {
        store_inputs(to, summaries[0], summaries[1]);
        store_inputs(to + kTilePoints, summaries[2], summaries[3]);
    } else {
        store_inputs(to, normal(row[k - 1], unit), summaries[0]);
        store_inputs(to + kTilePoints, summaries[1], summaries[2]);
        store_inputs(to + 2 * kTilePoints, summaries[3], _mm256_setzero_si256());
    }
}

// The inputs of the first `points` points of a tile, and their spread.
template <class T>
AESZ_TARGET void fill_tile(const TileView<T>& at, const LearnedTap* tap, Sight sight, bool refers, const TileLanes& lanes,
                           int points, LearnedTile& tile) {
    half_tile(at, tap, sight, refers, lanes, 0, tile);
    if (points > 8) half_tile(at, tap, sight, refers, lanes, 8, tile);
}

#else

// Rounded to the nearest integer, what is not a number as the largest.
template <class T>
inline void differences(const T* value, const double* AESZ_RESTRICT prediction, double scale, const int32_t* AESZ_RESTRICT seen,
                        float* AESZ_RESTRICT out) {
    for (int i = 0; i < kTilePoints; ++i) {
        double d = (static_cast<double>(value[i]) - prediction[i]) * scale;
        d = d < kLargestDifference ? d : kLargestDifference;
        d = d > -kLargestDifference ? d : -kLargestDifference;
        const float x = static_cast<float>((d + 6755399441055744.0) - 6755399441055744.0);
        out[i] = seen[i] ? x : 0.0f;
    }
}

inline int quarters(int32_t x) {
    const float v = static_cast<float>(x);
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits >> 21;
}

// Clamped between two inputs, to the nearest integer, halves up.
inline int32_t normal(float x, float unit) {
    float v = x * unit;
    v = v < kLargestInput ? v : kLargestInput;
    v = v > -kLargestInput ? v : -kLargestInput;
    return static_cast<int32_t>(v + (1024.0f + 0.5f)) - 1024;  // floor
}

template <class T>
inline void fill_tile(const TileView<T>& at, const LearnedTap* tap, Sight sight, bool refers, const TileLanes& lanes, int,
                      LearnedTile& tile) {
    alignas(32) float row[kMostTaps][kTilePoints], unit[kTilePoints];
    alignas(32) int32_t spread[kTilePoints], whole[kMostTaps + kSummaries + 1][kTilePoints];
    for (int i = 0; i < kTilePoints; ++i) spread[i] = sight.around;
    int k = 0;
    for (; k < sight.around; ++k) {
        differences(at.now + tap[k].element, at.prediction, at.scale, lanes.seen[tap[k].lanes], row[k]);
        for (int i = 0; i < kTilePoints; ++i) spread[i] += static_cast<int32_t>(row[k][i] < 0 ? -row[k][i] : row[k][i]);
    }
    for (; k < sight.around + sight.before; ++k)
        differences(at.before + tap[k].element, at.prediction, at.scale, lanes.seen[tap[k].lanes], row[k]);
    for (int left = kCodePoints; left-- > 0; ++k) {
        const int16_t* codes = (refers && left == 0 ? at.codes_before : at.codes) + tap[k].element;
        const int32_t* seen = lanes.seen[tap[k].lanes];
        for (int i = 0; i < kTilePoints; ++i) row[k][i] = static_cast<float>(8 * codes[i] & seen[i]);
    }
    for (int i = 0; i < kTilePoints; ++i) {
        tile.spread[i] = spread[i];
        unit[i] = static_cast<float>(static_cast<int32_t>(sight.mean_input() / static_cast<float>(spread[i]))) * (1.0f / 4096);
    }
    for (int j = 0; j < k; ++j)
        for (int i = 0; i < kTilePoints; ++i) whole[j][i] = normal(row[j][i], unit[i]);
    for (int i = 0; i < kTilePoints; ++i) whole[k][i] = 8 * (quarters(spread[i]) - kFirstQuarter - 32);
    for (const uint32_t* sum : {at.near, at.expected, at.other}) {
        ++k;
        for (int i = 0; i < kTilePoints; ++i) {
            const int32_t c = quarters(static_cast<int32_t>(sum[i]) + 4) - kFirstQuarter;
            whole[k][i] = 8 * ((c < kClasses - 1 ? c : kClasses - 1) - 16);
        }
    }
    std::fill_n(whole[k + 1], kTilePoints, 0);
    for (int j = 0; j <= k; j += 2)
        for (int i = 0; i < kTilePoints; ++i) tile.inputs[j / 2 * kTilePoints + i] = side_by_side(whole[j][i], whole[j + 1][i]);
}

#endif

// Corrects the predictions of a tile, and fills in the classes of its codes; `unit`: what a correction of 1 is worth.
AESZ_TARGET inline void apply_tile(const LearnedTile& tile, double unit, double* AESZ_RESTRICT prediction,
                                   uint8_t* AESZ_RESTRICT scale) {
    for (int i = 0; i < kTilePoints; ++i)
        prediction[i] += static_cast<double>(tile.outputs[i]) * static_cast<double>(tile.spread[i]) * unit;
    for (int i = 0; i < kTilePoints; ++i) {
        const float v = static_cast<float>(tile.spread[i]);
        int32_t bits;
        std::memcpy(&bits, &v, 4);
        const int32_t t = (bits >> 21) - kFirstQuarter + ((tile.outputs[kTilePoints + i] + 512) >> 10);
        scale[i] = static_cast<uint8_t>(t < 0 ? 0 : t > kLearnedClasses - 1 ? kLearnedClasses - 1 : t);
    }
}
