// The loops of learned interpolation; learned.hpp includes this once for every instruction set, in a namespace of its own, with
// AESZ_TARGET before every function.
// No include guard.

// Differences between decoded values and the prediction, in eighths of a step.
template <class T>
AESZ_TARGET void differences(const T* value, const double* AESZ_RESTRICT prediction, double scale, int64_t first, int64_t last,
                             float* AESZ_RESTRICT out) {
    for (int64_t i = first; i < last; ++i) {
        double d = (static_cast<double>(value[i]) - prediction[i]) * scale;
        d = d > 32767.0 ? 32767.0 : d < -32767.0 ? -32767.0 : d;  // not a number: -32767
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
AESZ_TARGET inline void normalise(float* AESZ_RESTRICT x, const float* AESZ_RESTRICT reciprocal, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        float v = (x[i] * reciprocal[i] + 2048.0f) * (1.0f / 4096.0f);
        v = v > kLargestInput ? kLargestInput : v < -kLargestInput ? -kLargestInput : v;
        x[i] = static_cast<float>(static_cast<int32_t>(v + 1024.0f)) - 1024.0f;  // floor
    }
}

// One layer for kPointBlock points: `in` and `out` have rows of `stride` points.  Hidden layers clamp to 0 .. largest.
template <int Rows>
AESZ_TARGET inline void dense_rows(const DenseLayer& layer, int row, const float* AESZ_RESTRICT in, int64_t stride, bool hidden,
                                   float largest, float* AESZ_RESTRICT out, int64_t out_stride) {
    float sum[Rows][kPointBlock];
    for (int r = 0; r < Rows; ++r)
        for (int p = 0; p < kPointBlock; ++p) sum[r][p] = layer.bias[static_cast<std::size_t>(row + r)];
    const float* w = layer.weight.data() + static_cast<std::ptrdiff_t>(row) * layer.inputs;
    for (int k = 0; k < layer.inputs; ++k) {
        const float* x = in + k * stride;
        for (int r = 0; r < Rows; ++r) {
            const float f = w[r * layer.inputs + k];
            for (int p = 0; p < kPointBlock; ++p) sum[r][p] += f * x[p];
        }
    }
    for (int r = 0; r < Rows; ++r) {
        float* y = out + (row + r) * out_stride;
        const float unit = layer.unit[static_cast<std::size_t>(row + r)];
        for (int p = 0; p < kPointBlock; ++p) {
            float v = sum[r][p];
            if (hidden) {
                v *= unit;
                v = v < 0.0f ? 0.0f : v > largest ? largest : v;
                v = static_cast<float>(static_cast<int32_t>(v));
            }
            y[p] = v;
        }
    }
}

AESZ_TARGET inline void dense(const DenseLayer& layer, const float* in, int64_t stride, bool hidden, float largest, float* out,
                              int64_t out_stride) {
    int row = 0;
    for (; row + 4 <= layer.outputs; row += 4) dense_rows<4>(layer, row, in, stride, hidden, largest, out, out_stride);
    for (; row < layer.outputs; ++row) dense_rows<1>(layer, row, in, stride, hidden, largest, out, out_stride);
}
