// The arithmetic of local least squares; local.hpp includes this once for every instruction set, in a namespace of its own,
// with AESZ_TARGET before every function.  binary32, every operation rounded once, in the order of the format.
// No include guard.

// Tables of sums have Size rows of Size + 8: the products of a feature with all features, then with the target, then zeros.
// Only what is not below the diagonal matters.

// Sum of products in eight lanes, added crosswise.
template <int Size>
AESZ_TARGET inline float dot(const float* a, const float* b) {
    Eight sum = load8(a) * load8(b);
    for (int k = 8; k < Size; k += 8) sum += load8(a + k) * load8(b + k);
    float lane[8];
    store8(lane, sum);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// Features from the values around a point, where `there` is all ones, less the base, and from errors in 1/16; two predictions.
template <int Size>
AESZ_TARGET void predict(const int32_t* AESZ_RESTRICT around, const int32_t* AESZ_RESTRICT there, int32_t base, int values,
                         const int32_t* AESZ_RESTRICT error, const float* AESZ_RESTRICT first, const float* AESZ_RESTRICT second,
                         float* AESZ_RESTRICT feature, float* AESZ_RESTRICT guess) {
    for (int k = 0; k < Size; ++k) feature[k] = static_cast<float>((around[k] - base) & there[k]);
    for (int k = 0; k < Size - values; ++k) feature[values + k] = static_cast<float>(error[k]) * 0.0625f;
    guess[0] = dot<Size>(feature, first);
    guess[1] = dot<Size>(feature, second);
}

template <int Size>
AESZ_TARGET void pool(const float* middle, const float* west, const float* east, const float* everywhere, float* out) {
    for (int i = 0; i < Size * (Size + 8); i += 8)
        store8(out + i, ((2.0f * load8(middle + i) + load8(west + i)) + load8(east + i)) + load8(everywhere + i));
}

// Eight rows of `accumulate`.
template <int Size, int From>
AESZ_TARGET inline void accumulate_rows(const float* features, const float* weight, int points, float keep, float* sums) {
    constexpr int vectors = (Size + 8 - From) / 8;
    for (int i = From; i < From + 8; i += 2) {
        float *s = sums + i * (Size + 8) + From, *t = s + Size + 8;
        Eight a[vectors], b[vectors];
        for (int k = 0; k < vectors; ++k) a[k] = load8(s + 8 * k), b[k] = load8(t + 8 * k);
        for (int p = 0; p < points; ++p) {
            const float* f = features + p * (Size + 8);
            const float c = weight[p] * f[i], d = weight[p] * f[i + 1];
            for (int k = 0; k < vectors; ++k) {
                const Eight v = load8(f + From + 8 * k);
                a[k] += c * v;
                b[k] += d * v;
            }
        }
        for (int k = 0; k < vectors; ++k) store8(s + 8 * k, keep * a[k]), store8(t + 8 * k, keep * b[k]);
    }
}

// sums = keep * (sums + weight * products of what is known of some points).
template <int Size>
AESZ_TARGET void accumulate(const float* features, const float* weight, int points, float keep, float* sums) {
    accumulate_rows<Size, 0>(features, weight, points, keep, sums);
    accumulate_rows<Size, 8>(features, weight, points, keep, sums);
    if constexpr (Size > 16) accumulate_rows<Size, 16>(features, weight, points, keep, sums);
}

// One step of the elimination on rows `first` to From + 7, from column From on.
template <int Size, int From>
AESZ_TARGET inline void eliminate(float* s, const float* pivot, float inverse, int first, float* factor) {
    constexpr int vectors = (Size + 8 - From) / 8;
    Eight p[vectors];
    for (int k = 0; k < vectors; ++k) p[k] = load8(pivot + From + 8 * k);
    for (int i = first; i < From + 8; ++i) {
        float* r = s + i * (Size + 8) + From;
        const float c = pivot[i] * inverse;
        for (int k = 0; k < vectors; ++k) store8(r + 8 * k, load8(r + 8 * k) - c * p[k]);
        factor[i] = c;
    }
}

// Solves the normal equations, which are used up, by elimination; false, with nothing in `x`, if they are not sound.
template <int Size>
AESZ_TARGET bool solve(float* s, float* x) {
    constexpr int row = Size + 8;
    float trace = 0.0f;
    for (int i = 0; i < Size; ++i) trace += s[i * row + i];
    const float floor = trace * 5e-7f + 0.5f;
    for (int i = 0; i < Size; ++i) s[i * row + i] += 1e-4f * s[i * row + i] + floor;
    float inverse[Size], t[Size], factor[Size][Size];  // factor[j][i]: of row j in row i
    for (int j = 0; j < Size; ++j) {
        float* pivot = s + j * row;
        if (!(pivot[j] > 0.0f)) return false;
        inverse[j] = 1.0f / pivot[j];
        const int first = j + 1;
        if (first < 8) eliminate<Size, 0>(s, pivot, inverse[j], first, factor[j]);
        if (first < 16) eliminate<Size, 8>(s, pivot, inverse[j], first < 8 ? 8 : first, factor[j]);
        if constexpr (Size > 16)
            if (first < 24) eliminate<Size, 16>(s, pivot, inverse[j], first < 16 ? 16 : first, factor[j]);
    }
    for (int i = 0; i < Size; ++i) t[i] = s[i * row + Size] * inverse[i];
    for (int j = Size - 1; j > 0; --j)
        for (int i = 0; i < j; ++i) t[i] -= factor[i][j] * t[j];
    for (int i = 0; i < Size; ++i)
        if (!(t[i] > -64.0f && t[i] < 64.0f)) return false;
    for (int i = 0; i < Size; ++i) x[i] = t[i];
    return true;
}
