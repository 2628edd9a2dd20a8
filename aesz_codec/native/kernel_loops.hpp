// The loops themselves; kernels.hpp includes this once for every instruction set, in a namespace of its own, with
// AESZ_TARGET before every function.  All sets give the same bits: the order of operations is fixed, and none has fused
// multiply-adds.
// No include guard.

template <int N, int Distance, class T>
AESZ_TARGET void accumulate(const Stencil::Pair* pair, const T* const* source, int64_t at, int64_t distance, int64_t count,
                            bool first, double* AESZ_RESTRICT out) {
    const T* a[N];
    const T* b[N];
    double c[N];
    for (int k = 0; k < N; ++k) {
        a[k] = source[pair[k].source] + at + pair[k].a;
        b[k] = source[pair[k].source] + at + pair[k].b;
        c[k] = pair[k].c;
    }
    const int64_t d = Distance ? Distance : distance;
    if (first) {
        for (int64_t i = 0; i < count; ++i) {
            double sum = 0.0;
            for (int k = 0; k < N; ++k) sum += c[k] * (static_cast<double>(a[k][i * d]) + static_cast<double>(b[k][i * d]));
            out[i] = sum;
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            double sum = out[i];
            for (int k = 0; k < N; ++k) sum += c[k] * (static_cast<double>(a[k][i * d]) + static_cast<double>(b[k][i * d]));
            out[i] = sum;
        }
    }
}

template <int Distance, class T>
AESZ_TARGET void apply(const Stencil& stencil, const T* const* source, int64_t at, int64_t distance, int64_t count, double* out) {
    for (int64_t i = 0; stencil.count == 0 && i < count; ++i) out[i] = 0.0;
    for (int k = 0; k < stencil.count;) {
        const int n = stencil.count - k < 4 ? stencil.count - k : 4;
        const Stencil::Pair* pair = stencil.pair.data() + k;
        const bool first = k == 0;
        if (n == 4) accumulate<4, Distance>(pair, source, at, distance, count, first, out);
        if (n == 3) accumulate<3, Distance>(pair, source, at, distance, count, first, out);
        if (n == 2) accumulate<2, Distance>(pair, source, at, distance, count, first, out);
        if (n == 1) accumulate<1, Distance>(pair, source, at, distance, count, first, out);
        k += n;
    }
}

template <int Distance>
AESZ_TARGET void gather(const int16_t* codes, const NeighbourLines& lines, int64_t distance, int64_t count,
                        uint32_t* AESZ_RESTRICT expected, uint32_t* AESZ_RESTRICT near, uint32_t* AESZ_RESTRICT other,
                        int32_t* AESZ_RESTRICT north) {
    const int64_t d = Distance ? Distance : distance;
    for (int64_t i = 0; i < count; ++i) near[i] = 0;
    for (int k = 0; k < lines.near_count; ++k) {
        const int16_t* n = codes + lines.near[k];
        for (int64_t i = 0; i + 1 < count; ++i) near[i] += magnitude(n[i * d]);
        near[count - 1] += magnitude(codes[(count - 1) * d + lines.near_last[k]]);
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
            north[i] = n[i * d];
            expected[i] += 3 * magnitude(n[i * d]);
        }
        for (int64_t i = 1; i < count; ++i) expected[i] += magnitude(north[i - 1]);
        for (int64_t i = 0; i + 1 < count; ++i) expected[i] += 2 * magnitude(north[i + 1]);
    }
    if (const int16_t* p = lines.plane) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(p[i * d]);
            expected[i] += other[i] / 8;
        }
    }
    if (const int16_t* p = lines.reference) {
        for (int64_t i = 0; i < count; ++i) {
            other[i] = 16 * magnitude(p[i * d]);
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

template <int Distance, class T>
AESZ_TARGET bool settle_all(const double* AESZ_RESTRICT prediction, const int32_t* AESZ_RESTRICT code, double step,
                            int64_t distance, int64_t count, T* AESZ_RESTRICT out, int16_t* AESZ_RESTRICT memory) {
    const int64_t d = Distance ? Distance : distance;
    int32_t least = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t c = code[i];
        least = c < least ? c : least;
        out[i * d] = reconstruct<T>(prediction[i], c, step);
        memory[i * d] = static_cast<int16_t>(c < -kClip ? -kClip : c > kClip ? kClip : c);
    }
    return least != kOutlier;
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
