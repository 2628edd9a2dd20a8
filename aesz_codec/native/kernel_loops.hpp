// The loops themselves; kernels.hpp includes this once for every instruction set, in a namespace of its own, with
// AESZ_TARGET before every function.  All sets give the same bits: the order of operations is fixed, and none has fused
// multiply-adds.
// No include guard.

template <int N, class T>
AESZ_TARGET void accumulate(const Stencil::Pair* pair, const T* const* source, int64_t at, int64_t count, bool first,
                            double* AESZ_RESTRICT out) {
    const T* a[N];
    const T* b[N];
    double c[N];
    for (int k = 0; k < N; ++k) {
        a[k] = source[pair[k].source] + at + pair[k].a;
        b[k] = source[pair[k].source] + at + pair[k].b;
        c[k] = pair[k].c;
    }
    if (first) {
        for (int64_t i = 0; i < count; ++i) {
            double sum = 0.0;
            for (int k = 0; k < N; ++k) sum += c[k] * (static_cast<double>(a[k][i]) + static_cast<double>(b[k][i]));
            out[i] = sum;
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            double sum = out[i];
            for (int k = 0; k < N; ++k) sum += c[k] * (static_cast<double>(a[k][i]) + static_cast<double>(b[k][i]));
            out[i] = sum;
        }
    }
}

template <class T>
AESZ_TARGET void apply(const Stencil& stencil, const T* const* source, int64_t at, int64_t count, double* out) {
    for (int64_t i = 0; stencil.count == 0 && i < count; ++i) out[i] = 0.0;
    for (int k = 0; k < stencil.count;) {
        const int n = stencil.count - k < 4 ? stencil.count - k : 4;
        const Stencil::Pair* pair = stencil.pair.data() + k;
        const bool first = k == 0;
        if (n == 4) accumulate<4>(pair, source, at, count, first, out);
        if (n == 3) accumulate<3>(pair, source, at, count, first, out);
        if (n == 2) accumulate<2>(pair, source, at, count, first, out);
        if (n == 1) accumulate<1>(pair, source, at, count, first, out);
        k += n;
    }
}

AESZ_TARGET inline void gather(const int16_t* codes, const NeighbourLines& lines, int64_t count, uint32_t* AESZ_RESTRICT expected,
                               uint32_t* AESZ_RESTRICT near, uint32_t* AESZ_RESTRICT other, int32_t* AESZ_RESTRICT north) {
    for (int64_t i = 0; i < count; ++i) near[i] = 0;
    for (int k = 0; k < lines.near_count; ++k) {
        const int16_t* n = codes + lines.near[k];
        for (int64_t i = 0; i + 1 < count; ++i) near[i] += magnitude(n[i]);
        near[count - 1] += magnitude(codes[(count - 1) + lines.near_last[k]]);
    }
    const uint32_t scale = 16 / static_cast<uint32_t>(lines.near_count);
    for (int64_t i = 0; i < count; ++i) {
        expected[i] = lines.near_weight * near[i];
        near[i] *= scale;
        other[i] = 0;
        north[i] = 0;
    }
    if (const int16_t* n = lines.north) {
        for (int64_t i = 0; i < count; ++i) {
            north[i] = n[i];
            expected[i] += 3 * magnitude(n[i]);
        }
        for (int64_t i = 1; i < count; ++i) expected[i] += magnitude(north[i - 1]);
        for (int64_t i = 0; i + 1 < count; ++i) expected[i] += 2 * magnitude(north[i + 1]);
    }
    if (const int16_t* p = lines.plane) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(p[i]);
            expected[i] += other[i] / 8;
        }
    }
    if (const int16_t* p = lines.reference) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(p[i]);
            expected[i] += other[i] / 4;
        }
    }
}

template <int Distance, class T>
AESZ_TARGET void quantize_all(const T* data, int64_t distance, int64_t count, const double* prediction, double step,
                              double inverse, double tolerance, int32_t* AESZ_RESTRICT code) {
    const int64_t d = Distance ? Distance : distance;
    for (int64_t i = 0; i < count; ++i) code[i] = quantize<T>(data[i * d], prediction[i], step, inverse, tolerance);
}

template <int Clip, class T>
AESZ_TARGET bool settle_all(const double* AESZ_RESTRICT prediction, const int32_t* AESZ_RESTRICT code, double step, int64_t count,
                            T* AESZ_RESTRICT out, int16_t* AESZ_RESTRICT memory) {
    int32_t least = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t c = code[i];
        least = c < least ? c : least;
        out[i] = reconstruct<T>(prediction[i], c, step);
        memory[i] = static_cast<int16_t>(c < -Clip ? -Clip : c > Clip ? Clip : c);
    }
    return least != kOutlier;
}

// Weighted sums over lines, each product added in turn to what there is.
template <int N, class T>
AESZ_TARGET void add_lines(const T* const* line, const double* weight, int64_t count, bool first, double* AESZ_RESTRICT out) {
    const T* x[N];
    double w[N];
    for (int k = 0; k < N; ++k) {
        x[k] = line[k];
        w[k] = weight[k];
    }
    for (int64_t i = 0; i < count; ++i) {
        double sum = first ? 0.0 : out[i];
        for (int k = 0; k < N; ++k) sum += w[k] * static_cast<double>(x[k][i]);
        out[i] = sum;
    }
}

template <class T>
AESZ_TARGET void weigh(const T* const* line, const double* weight, int taps, int64_t count, double* out) {
    for (int64_t i = 0; taps == 0 && i < count; ++i) out[i] = 0.0;
    int k = 0;
    for (; k + 5 <= taps; k += 5) add_lines<5>(line + k, weight + k, count, k == 0, out);
    for (; k < taps; ++k) add_lines<1>(line + k, weight + k, count, k == 0, out);
}

// The causal predictor: taps on the lines before, in order.
template <class T>
AESZ_TARGET void add_taps(const T* line, const int64_t* offset, const double* coefficient, int taps, int64_t count,
                          double* AESZ_RESTRICT out) {
    for (int64_t i = 0; i < count; ++i) out[i] = 0.0;
    for (int k = 0; k < taps; ++k) {
        const double c = coefficient[k];
        const T* x = line + offset[k];
        if (c == 0.0) continue;
        for (int64_t i = 0; i < count; ++i) out[i] += c * static_cast<double>(x[i]);
    }
}

// A tap with a weight of its own for every point.
template <class T>
AESZ_TARGET void add_products(const T* x, const float* weight, int64_t count, double* AESZ_RESTRICT out) {
    for (int64_t i = 0; i < count; ++i) out[i] += static_cast<double>(weight[i]) * static_cast<double>(x[i]);
}

AESZ_TARGET inline void gather_causal(const int16_t* north, const int16_t* north2, const int16_t* plane, int64_t count,
                                      uint32_t* AESZ_RESTRICT expected, uint32_t* AESZ_RESTRICT near,
                                      uint32_t* AESZ_RESTRICT other, int32_t* AESZ_RESTRICT norths) {
    for (int64_t i = 0; i < count; ++i) {
        expected[i] = near[i] = other[i] = 0;
        norths[i] = 0;
    }
    if (north) {
        for (int64_t i = 0; i < count; ++i) {
            norths[i] = north[i];
            near[i] = 8 * magnitude(north[i]);
            expected[i] = 4 * magnitude(north[i]);
        }
        for (int64_t i = 1; i < count; ++i) expected[i] += magnitude(north[i - 1]);
        for (int64_t i = 0; i + 1 < count; ++i) {
            expected[i] += 2 * magnitude(north[i + 1]);
            near[i] += 8 * magnitude(north[i + 1]);
        }
    }
    if (north2)
        for (int64_t i = 0; i < count; ++i) expected[i] += magnitude(north2[i]);
    if (plane) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(plane[i]);
            expected[i] += 3 * magnitude(plane[i]);
        }
        for (int64_t i = 0; i + 1 < count; ++i) expected[i] += magnitude(plane[i + 1]);
    }
}

// Scale classes of expected magnitudes below 2^16, two an octave: exponent and first bit of x + 4 as a float, which is exact.
AESZ_TARGET inline void classify(const uint16_t* AESZ_RESTRICT expected, int64_t count, uint8_t* AESZ_RESTRICT scale) {
    for (int64_t i = 0; i < count; ++i) {
        const float v = static_cast<float>(static_cast<int32_t>(expected[i]) + 4);
        int32_t bits;
        std::memcpy(&bits, &v, 4);
        scale[i] = static_cast<uint8_t>((bits >> 22) - 2 * (127 + 2));
    }
}

// What the codes around points say of them, `expected`, as a learned class; what the network says, t, if they say nothing.
AESZ_TARGET AESZ_INLINE int32_t class_around(uint32_t expected, int32_t t) {
    const float v = static_cast<float>(static_cast<int32_t>(expected) + 4);
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    const int32_t seen = (bits >> 21) - 4 * (127 + 2), few = t < 12 ? t : 12;
    return expected ? (seen < kClasses - 1 ? seen : kClasses - 1) + kLearnedFiner : few;
}

// Learned scales of the even points of a line: two an octave, three quarters from the network.
AESZ_TARGET inline void classify_even(const uint8_t* AESZ_RESTRICT network, const uint32_t* AESZ_RESTRICT expected, int64_t count,
                                      uint8_t* AESZ_RESTRICT scale) {
    for (int64_t i = 0; i < count; ++i) {
        const int32_t t = network[2 * i];
        scale[i] = static_cast<uint8_t>((3 * t + class_around(expected[2 * i], t)) >> 3);
    }
}

// The same of the odd points, which know the codes beside them: half and half.
AESZ_TARGET inline void classify_odd(const uint8_t* AESZ_RESTRICT network, const uint32_t* AESZ_RESTRICT expected,
                                     const int32_t* AESZ_RESTRICT beside, int64_t count, uint8_t* AESZ_RESTRICT scale) {
    const auto clipped = [](int32_t code) {
        const int32_t x = code < -kNarrowClip ? kNarrowClip : code < 0 ? -code : code;
        return static_cast<uint32_t>(x < kNarrowClip ? x : kNarrowClip);
    };
    for (int64_t i = 0; i < count; ++i) {
        const int32_t t = network[2 * i + 1];
        const uint32_t sum = expected[2 * i + 1] + 8 * (clipped(beside[i]) + clipped(beside[i + 1]));
        scale[i] = static_cast<uint8_t>((t + class_around(sum, t)) >> 2);
    }
}

inline uint16_t small(int16_t code) { return static_cast<uint16_t>(code < 0 ? -code : code); }

// The static coder's sums, of codes clipped to kNarrowClip: below 2^16.
AESZ_TARGET inline void gather_narrow(const int16_t* codes, const NeighbourLines& lines, int64_t count,
                                      uint16_t* AESZ_RESTRICT sum) {
    const int16_t *a = codes + lines.near[0], *b = codes + lines.near[1];
    for (int64_t i = 0; i + 1 < count; ++i) sum[i] = static_cast<uint16_t>(small(a[i]) + small(b[i]));
    const int64_t end = (count - 1);
    sum[count - 1] = static_cast<uint16_t>(small(codes[end + lines.near_last[0]]) + small(codes[end + lines.near_last[1]]));
    for (int k = 2; k < lines.near_count; k += 2) {
        a = codes + lines.near[k], b = codes + lines.near[k + 1];
        for (int64_t i = 0; i + 1 < count; ++i) sum[i] = static_cast<uint16_t>(sum[i] + small(a[i]) + small(b[i]));
        sum[count - 1] = static_cast<uint16_t>(sum[count - 1] + small(codes[end + lines.near_last[k]]) +
                                               small(codes[end + lines.near_last[k + 1]]));
    }
    if (lines.near_weight == 2)
        for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<uint16_t>(2 * sum[i]);
    if (const int16_t* n = lines.north) {
        for (int64_t i = 1; i + 1 < count; ++i)
            sum[i] = static_cast<uint16_t>(sum[i] + 3 * small(n[i]) + small(n[i - 1]) + 2 * small(n[i + 1]));
        sum[0] = static_cast<uint16_t>(sum[0] + 3 * small(n[0]) + (count > 1 ? 2 * small(n[1]) : 0));
        if (count > 1) sum[count - 1] = static_cast<uint16_t>(sum[count - 1] + 3 * small(n[end]) + small(n[end - 1]));
    }
    if (const int16_t* p = lines.plane)
        for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<uint16_t>(sum[i] + 2 * small(p[i]));
    if (const int16_t* p = lines.reference)
        for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<uint16_t>(sum[i] + 4 * small(p[i]));
}

AESZ_TARGET inline void gather_causal_narrow(const int16_t* north, const int16_t* north2, const int16_t* plane, int64_t count,
                                             uint16_t* AESZ_RESTRICT sum) {
    for (int64_t i = 0; i < count; ++i) sum[i] = 0;
    if (north) {
        for (int64_t i = 1; i + 1 < count; ++i)
            sum[i] = static_cast<uint16_t>(4 * small(north[i]) + small(north[i - 1]) + 2 * small(north[i + 1]));
        sum[0] = static_cast<uint16_t>(4 * small(north[0]) + (count > 1 ? 2 * small(north[1]) : 0));
        if (count > 1) sum[count - 1] = static_cast<uint16_t>(4 * small(north[count - 1]) + small(north[count - 2]));
    }
    if (north2)
        for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<uint16_t>(sum[i] + small(north2[i]));
    if (plane) {
        for (int64_t i = 0; i + 1 < count; ++i)
            sum[i] = static_cast<uint16_t>(sum[i] + 3 * small(plane[i]) + small(plane[i + 1]));
        sum[count - 1] = static_cast<uint16_t>(sum[count - 1] + 3 * small(plane[count - 1]));
    }
}

// out = even[0], odd[0], even[1], ...
template <class U>
AESZ_TARGET void zip(const U* AESZ_RESTRICT even, const U* AESZ_RESTRICT odd, int64_t count, U* AESZ_RESTRICT out) {
    for (int64_t i = 0; i < count / 2; ++i) {
        out[2 * i] = even[i];
        out[2 * i + 1] = odd[i];
    }
    if (count % 2) out[count - 1] = even[count / 2];
}

// Whether no value is further from the original than the tolerance, nor not finite.
template <class T>
AESZ_TARGET bool all_within(const T* x, const T* y, int64_t count, double tolerance) {
    constexpr int64_t kBlock = 4096;
    for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t end = count - i < kBlock ? count : i + kBlock;
        int64_t outside = 0;
        for (int64_t k = i; k < end; ++k)
            outside |= !(std::abs(static_cast<double>(x[k]) - static_cast<double>(y[k])) <= tolerance);
        if (outside) return false;
    }
    return true;
}

// Of the errors abs(x - y), in float64, and of x.  The sum is added up in one order on every machine.
template <class T>
AESZ_TARGET ErrorMoments<T> error_moments(const T* x, const T* y, int64_t count) {
    constexpr int kLanes = 16;
    double largest[kLanes] = {}, sum[kLanes] = {};
    T lowest[kLanes], highest[kLanes];
    for (int k = 0; k < kLanes; ++k) lowest[k] = highest[k] = x[0];
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int k = 0; k < kLanes; ++k) {
            const T value = x[i + k];
            const double error = std::abs(static_cast<double>(value) - static_cast<double>(y[i + k]));
            largest[k] = error > largest[k] ? error : largest[k];
            sum[k] += error * error;
            lowest[k] = value < lowest[k] ? value : lowest[k];
            highest[k] = value > highest[k] ? value : highest[k];
        }
    ErrorMoments<T> all{0.0, 0.0, x[0], x[0]};
    for (int k = 0; k < kLanes; ++k) {
        all.largest = largest[k] > all.largest ? largest[k] : all.largest;
        all.sum += sum[k];
        all.lowest = lowest[k] < all.lowest ? lowest[k] : all.lowest;
        all.highest = highest[k] > all.highest ? highest[k] : all.highest;
    }
    for (; i < count; ++i) {
        const double error = std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i]));
        all.largest = error > all.largest ? error : all.largest;
        all.sum += error * error;
        all.lowest = x[i] < all.lowest ? x[i] : all.lowest;
        all.highest = x[i] > all.highest ? x[i] : all.highest;
    }
    return all;
}

// Adds weighted products of `n` features with themselves, up to the diagonal at least, and with the target.
template <int Stride>
AESZ_TARGET void add_products(const double* AESZ_RESTRICT feature, double target, double weight, int n,
                              double (*AESZ_RESTRICT products)[Stride], double* AESZ_RESTRICT with_target) {
    static_assert(Stride % 4 == 0, "whole vectors");
    for (int i = 0; i < n; ++i) {
        const double weighted = weight * feature[i];
        for (int j = 0; j <= i; j += 4)
            for (int k = j; k < j + 4; ++k) products[i][k] += weighted * feature[k];
        with_target[i] += weighted * target;
    }
}
