// The loops of learned interpolation; learned.hpp includes this once for every instruction set, in a namespace of its own, with
// AESZ_TARGET before every function.
// No include guard.

// Differences between decoded values and the prediction, in eighths of a step.
template <class T>
AESZ_TARGET void differences(const T* value, const double* AESZ_RESTRICT prediction, double scale, int64_t first, int64_t last,
                             float* AESZ_RESTRICT out) {
    for (int64_t i = first; i < last; ++i) {
        double d = (static_cast<double>(value[i]) - prediction[i]) * scale;
        d = d < 32767.0 ? d : 32767.0;  // as what is not a number
        d = d > -32767.0 ? d : -32767.0;
        out[i] = static_cast<float>((d + 6755399441055744.0) - 6755399441055744.0);
    }
}

AESZ_TARGET inline void add_magnitudes(const float* AESZ_RESTRICT x, int64_t count, float* AESZ_RESTRICT sum) {
    for (int64_t i = 0; i < count; ++i) sum[i] += x[i] < 0 ? -x[i] : x[i];
}

AESZ_TARGET inline void reciprocals_of(const float* AESZ_RESTRICT spread, int64_t count, float* AESZ_RESTRICT out) {
    for (int64_t i = 0; i < count; ++i)
        out[i] = static_cast<float>(static_cast<int32_t>(static_cast<float>(kAroundPoints * 64 * 4096) / spread[i]));
}

// Divides by the spread: 64 is its mean.
AESZ_TARGET inline void normalise(const float* AESZ_RESTRICT x, const float* AESZ_RESTRICT reciprocal, int64_t count,
                                  int16_t* AESZ_RESTRICT out) {
    for (int64_t i = 0; i < count; ++i) {
        float v = (x[i] * reciprocal[i] + 2048.0f) * (1.0f / 4096.0f);
        v = v > kLargestInput ? kLargestInput : v;
        v = v < -kLargestInput ? -kLargestInput : v;
        out[i] = static_cast<int16_t>(static_cast<int32_t>(v + 1024.0f) - 1024);  // floor
    }
}

// Rows of inputs, `stride` apart, point by point; `distance` is even, and an odd last row is taken for two.
AESZ_TARGET inline void by_point(const int16_t* rows, int64_t stride, int64_t inputs, int64_t distance, int64_t count,
                                 int16_t* AESZ_RESTRICT out) {
    for (int64_t k = 0; k < inputs; k += 2) {
        const int16_t *a = rows + k * stride, *b = k + 1 < inputs ? a + stride : a;
        for (int64_t i = 0; i < count; ++i) {
            const int16_t pair[2] = {a[i], b[i]};
            std::memcpy(out + i * distance + k, pair, sizeof(pair));
        }
    }
}
