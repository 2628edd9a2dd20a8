// Integer networks (docs/networks.md): the same integers on every machine, on every instruction set.
//
//   Dense     weights, packed once: blocks of 16 outputs, in a block one WeightPair for two inputs
//   Mlp       linear layers on many points, without allocation, for use inside of other loops
//   Network   any layers on tensors
//
// Whoever builds these says which values come in; constructors check the L1 rule, so that nothing can overflow as long as they
// do.  Neither Mlp::run nor Network::run looks at the values: see in_range.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "portable.hpp"

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define AESZ_NETWORK_LEVELS 4
#elif defined(_M_X64)
#define AESZ_NETWORK_LEVELS 2
#include <immintrin.h>
#else
#define AESZ_NETWORK_LEVELS 1
#endif

namespace aesz {

constexpr int64_t kOutputs = 16;         // of a block
constexpr int kTilePoints = 16;          // points that lie side by side in a tile
constexpr int64_t kSumLimit = 1 << 24;   // of the L1 rule
constexpr int64_t kMaxChannels = 65536;  // of a tensor
constexpr int kMaxSpatial = 3;

struct alignas(64) WeightPair {
    int16_t w[2 * kOutputs];  // of the first output for the two inputs, of the second, ...
};

// What becomes of a sum: shifted, a negative one by `slope` once more, clamped.
struct Activation {
    int16_t lo, hi;
    int slope = 0;
};

inline void check(bool sound, const char* what) {
    if (!sound) throw std::invalid_argument(what);
}

// Sums of weights times inputs; the inputs of a sum lie in `runs`, each without gaps.
struct Dense {
    int64_t outputs = 0, inputs = 0;  // inputs: of a run
    int64_t runs = 1, pairs = 0, blocks = 0;
    bool raw = true;  // sums are the result
    int16_t lo = 0, hi = 0;
    int slope = 0;
    std::vector<WeightPair> weights;    // [block][run][pair]
    std::vector<int32_t> start, shift;  // for whole blocks; start: bias, and what makes the shift round

    // weight: [outputs][runs][inputs], -2047 to 2047; shift: null if raw; amax: largest magnitude of an input.
    Dense(const int16_t* weight, const int32_t* bias, const uint8_t* shifts, int64_t outputs_, int64_t runs_, int64_t inputs_,
          int32_t amax, Activation activation)
        : outputs(outputs_), inputs(inputs_), runs(runs_), raw(shifts == nullptr) {
        check(outputs > 0 && outputs <= kMaxChannels && inputs > 0 && runs > 0 && amax >= 0 && amax <= 4095, "size of a layer");
        check(activation.slope >= 0 && activation.slope <= 8 && activation.lo <= 0 && activation.hi >= 0 &&
                  activation.lo >= -2047 && activation.hi <= 4095,
              "range of a layer");
        lo = activation.lo, hi = activation.hi, slope = activation.slope;
        pairs = (inputs + 1) / 2;
        blocks = (outputs + kOutputs - 1) / kOutputs;
        weights.resize(static_cast<std::size_t>(blocks * runs * pairs), WeightPair{});
        start.resize(static_cast<std::size_t>(blocks * kOutputs));
        shift.resize(start.size());
        for (int64_t o = 0; o < outputs; ++o) {
            const auto at = static_cast<std::size_t>(o);
            int64_t bound = std::abs(static_cast<int64_t>(bias[o]));
            int64_t first = bias[o];
            if (!raw) {
                check(shifts[o] >= 1 && shifts[o] <= 20, "shift of a layer");
                bound += int64_t{1} << (shifts[o] - 1);
                first += int64_t{1} << (shifts[o] - 1);
                shift[at] = shifts[o];
            }
            WeightPair* packed = weights.data() + o / kOutputs * runs * pairs;
            for (int64_t r = 0; r < runs; ++r)
                for (int64_t i = 0; i < inputs; ++i) {
                    const int16_t w = weight[(o * runs + r) * inputs + i];
                    check(w >= -2047 && w <= 2047, "weight of a layer");
                    packed[r * pairs + i / 2].w[2 * (o % kOutputs) + i % 2] = w;
                    bound += std::abs(w) * amax;
                    check(bound < kSumLimit, "sums of a layer may overflow");
                }
            check(bound < kSumLimit, "sums of a layer may overflow");
            start[at] = static_cast<int32_t>(first);
        }
    }
};

// Sum of two tensors.
struct Sum {
    int32_t scale[2], shift, slope;
    int32_t lo, hi;
};

// ---- instruction sets ------------------------------------------------------------------------------------------

#define AESZ_TARGET
namespace network_portable {
#define AESZ_NETWORK_LEVEL 0
#include "network_loops.hpp"
#undef AESZ_NETWORK_LEVEL
}  // namespace network_portable
#undef AESZ_TARGET

#if AESZ_NETWORK_LEVELS >= 2
#if defined(_MSC_VER) && !defined(__clang__)
#define AESZ_TARGET
#else
#define AESZ_TARGET __attribute__((target("sse2")))
#endif
namespace network_sse2 {
#define AESZ_NETWORK_LEVEL 1
#include "network_loops.hpp"
#undef AESZ_NETWORK_LEVEL
}  // namespace network_sse2
#undef AESZ_TARGET
#endif

#if AESZ_NETWORK_LEVELS >= 4
#define AESZ_TARGET __attribute__((target("avx2")))
namespace network_avx2 {
#define AESZ_NETWORK_LEVEL 2
#include "network_loops.hpp"
#undef AESZ_NETWORK_LEVEL
}  // namespace network_avx2
#undef AESZ_TARGET
#define AESZ_TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))
namespace network_avx512 {
#define AESZ_NETWORK_LEVEL 3
#include "network_loops.hpp"
#undef AESZ_NETWORK_LEVEL
}  // namespace network_avx512
#undef AESZ_TARGET
#endif

// The loops of one instruction set.
struct NetworkLoops {
    const char* name;
    decltype(&network_portable::dense<int16_t>) activations;
    decltype(&network_portable::dense<int32_t>) sums;
    decltype(&network_portable::mlp) mlp;
    decltype(&network_portable::magnitudes) magnitudes;
    decltype(&network_portable::normalize) normalize;
    decltype(&network_portable::add) add;
    decltype(&network_portable::within_range) within_range;
};

#define AESZ_LOOPS(name)             \
    {#name,                          \
     network_##name::dense<int16_t>, \
     network_##name::dense<int32_t>, \
     network_##name::mlp,            \
     network_##name::magnitudes,     \
     network_##name::normalize,      \
     network_##name::add,            \
     network_##name::within_range}
inline const NetworkLoops kNetworkLoops[] = {
    AESZ_LOOPS(portable),
#if AESZ_NETWORK_LEVELS >= 2
    AESZ_LOOPS(sse2),
#endif
#if AESZ_NETWORK_LEVELS >= 4
    AESZ_LOOPS(avx2),
    AESZ_LOOPS(avx512),
#endif
};
#undef AESZ_LOOPS

// Whether a layer of odd sizes gives with these loops what it gives with the portable ones.
inline bool loops_are_sound(const NetworkLoops& loops) {
    constexpr int64_t outputs = 37, inputs = 11, runs = 3, points = 29;
    uint32_t state = 1;
    const auto draw = [&state](int32_t below) {
        state = state * 1664525u + 1013904223u;
        return static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(below));
    };
    std::vector<int16_t> weight(outputs * runs * inputs), input(points * inputs + 64);
    std::vector<int32_t> bias(outputs);
    std::vector<uint8_t> shift(outputs);
    for (auto& w : weight) w = static_cast<int16_t>(draw(301) - 150);
    for (auto& x : input) x = static_cast<int16_t>(draw(2047) - 1023);
    for (auto& b : bias) b = draw(2000001) - 1000000;
    for (auto& s : shift) s = static_cast<uint8_t>(1 + draw(20));
    const int64_t offset[runs] = {0, 7, 30};
    for (int slope : {0, 3}) {
        const Dense layer(weight.data(), bias.data(), shift.data(), outputs, runs, inputs, 1023, {-511, 511, slope});
        std::vector<int16_t> some(outputs * points), other(outputs * points);
        std::vector<int32_t> sums(outputs * points), others(outputs * points);
        for (int64_t block = 0; block < layer.blocks; ++block) {
            loops.activations(layer, block, input.data(), inputs, offset, points, some.data(), outputs, false);
            loops.sums(layer, block, input.data(), inputs, offset, points, sums.data(), outputs, false);
            kNetworkLoops[0].activations(layer, block, input.data(), inputs, offset, points, other.data(), outputs, false);
            kNetworkLoops[0].sums(layer, block, input.data(), inputs, offset, points, others.data(), outputs, false);
        }
        if (some != other || sums != others) return false;
        const Dense last(weight.data(), bias.data(), nullptr, inputs, 1, outputs, 511, {0, 0, 0});
        const Dense both[] = {{weight.data(), bias.data(), shift.data(), outputs, 1, inputs, 1023, {-511, 511, slope}}, last};
        for (int count : {1, kTilePoints / 2, kTilePoints}) {
            std::vector<int32_t> tile((inputs + 1) / 2 * kTilePoints), one(3 * kOutputs / 2 * kTilePoints), two(one);
            std::vector<int32_t> out(inputs * kTilePoints), right(out);
            std::memcpy(tile.data(), input.data(), sizeof(int32_t) * tile.size());
            loops.mlp(both, 2, tile.data(), count, out.data(), one.data(), two.data());
            kNetworkLoops[0].mlp(both, 2, tile.data(), count, right.data(), one.data(), two.data());
            for (int64_t o = 0; o < inputs; ++o)
                if (!std::equal(out.data() + o * kTilePoints, out.data() + o * kTilePoints + count,
                                right.data() + o * kTilePoints))
                    return false;
        }
    }
    return true;
}

// How many of the levels this machine has, each of which has shown that it computes what the portable one does.
inline int network_levels() {
    static const int count = [] {
        int n = 1;
#if AESZ_NETWORK_LEVELS == 2
        n = 2;
#elif AESZ_NETWORK_LEVELS == 4
        if (__builtin_cpu_supports("sse2")) n = 2;
        if (n == 2 && __builtin_cpu_supports("avx2")) n = 3;
        if (n == 3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
            n = 4;
#endif
        int sound = 1;
        while (sound < n && loops_are_sound(kNetworkLoops[sound])) ++sound;
        return sound;
    }();
    return count;
}

// The loops of a level; of the best one for -1, unless the environment variable AESZ_SIMD is 0.
inline const NetworkLoops& network_loops(int level) {
    check(level >= -1 && level < network_levels(), "no such level of SIMD here");
    const char* wish = std::getenv("AESZ_SIMD");
    return kNetworkLoops[level >= 0 ? level : wish && wish[0] == '0' ? 0 : network_levels() - 1];
}

// ---- linear layers on many points ------------------------------------------------------------------------------

// Linear layers with activations; the last may be raw.  `run` may be called by many threads at once.
class Mlp {
  public:
    static constexpr int64_t kMaxWidth = 256;  // of a tensor between layers

    Mlp(std::vector<Dense> layers, Activation input, int level = -1)
        : layers_(std::move(layers)), input_(input), loops_(&network_loops(level)) {
        check(!layers_.empty(), "no layers");
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const Dense& layer = layers_[i];
            check(layer.runs == 1 && (i == 0 || layer.inputs == layers_[i - 1].outputs), "layers that do not fit");
            check(!layer.raw || i + 1 == layers_.size(), "a raw layer that is not the last");
            check(layer.raw || layer.outputs <= kMaxWidth, "a layer that is too wide");
        }
    }

    int64_t inputs() const { return layers_.front().inputs; }
    int64_t padded_inputs() const { return 2 * layers_.front().pairs; }
    int64_t outputs() const { return layers_.back().outputs; }
    int16_t lowest() const { return input_.lo; }   // inputs are from here
    int16_t highest() const { return input_.hi; }  // to here

    // Multiplications for one point.
    int64_t products() const {
        int64_t sum = 0;
        for (const Dense& layer : layers_) sum += layer.outputs * layer.inputs;
        return sum;
    }

    // The first `points` of a tile.  input: [padded_inputs / 2][kTilePoints], in every place two inputs (side_by_side), whatever
    // the last one is if inputs is odd; output: [outputs][kTilePoints], whatever the points beyond are.
    void run_tile(const int32_t* input, int points, int32_t* output) const {
        alignas(64) int32_t one[kMaxWidth / 2 * kTilePoints], other[kMaxWidth / 2 * kTilePoints];
        loops_->mlp(layers_.data(), layers_.size(), input, points, output, one, other);
    }

    // input: [count][padded_inputs], whatever the last one is if inputs is odd; output: [count][outputs].
    void run(const int16_t* input, int64_t count, int32_t* output) const {
        const int64_t width = padded_inputs(), pairs = width / 2, results = outputs();
        std::vector<int32_t> tile(static_cast<std::size_t>(pairs * kTilePoints)),
            out(static_cast<std::size_t>(results * kTilePoints));
        for (int64_t p = 0; p < count; p += kTilePoints) {
            const int points = static_cast<int>(std::min<int64_t>(kTilePoints, count - p));
            for (int64_t i = 0; i < points; ++i)
                for (int64_t k = 0; k < pairs; ++k)
                    std::memcpy(&tile[static_cast<std::size_t>(k * kTilePoints + i)], input + (p + i) * width + 2 * k,
                                sizeof(int32_t));
            run_tile(tile.data(), points, out.data());
            for (int64_t i = 0; i < points; ++i)
                for (int64_t o = 0; o < results; ++o)
                    output[(p + i) * results + o] = out[static_cast<std::size_t>(o * kTilePoints + i)];
        }
    }

    // Whether all of [count][padded_inputs] but the padding may be an input.
    bool in_range(const int16_t* input, int64_t count) const {
        if (inputs() == padded_inputs()) return loops_->within_range(input, count * inputs(), input_.lo, input_.hi);
        bool within = true;
        for (int64_t p = 0; p < count; ++p)
            within &= loops_->within_range(input + p * padded_inputs(), inputs(), input_.lo, input_.hi);
        return within;
    }

  private:
    std::vector<Dense> layers_;
    Activation input_;
    const NetworkLoops* loops_;
};

// ---- any layers on tensors -------------------------------------------------------------------------------------

// Channels last.  Layers are added first; then `run` may be called by many threads at once.
class Network {
  public:
    using Extents = std::array<int64_t, kMaxSpatial>;  // of the spatial axes, the last ones; 1 before

    enum class Padding { zero, replicate, circular, count };

    Network(int64_t channels, int dims, Activation input, int level = -1) : input_(input), loops_(&network_loops(level)) {
        check(channels > 0 && channels <= kMaxChannels && dims >= 0 && dims <= kMaxSpatial && input.lo >= -2047 &&
                  input.hi <= 4095 && input.lo <= 0 && input.hi >= 0,
              "input of a network");
        forms_.push_back({channels, dims, input.lo, input.hi, false});
    }

    void linear(Dense dense) {
        check(dense.runs == 1 && dense.inputs == last().channels, "a linear layer that does not fit");
        add_dense(Kind::linear, std::move(dense));
    }

    // kernel, stride: an entry for every axis; pad: two; modes: of Padding.
    void conv(Dense dense, const int64_t* kernel, const int64_t* stride, const int64_t* pad, const int64_t* modes) {
        Layer& layer = add_dense(Kind::conv, std::move(dense));
        const int dims = last().dims, first = kMaxSpatial - dims;
        check(dims > 0, "a conv layer without spatial axes");
        for (int i = 0; i < dims; ++i) {
            const auto a = static_cast<std::size_t>(first + i);
            check(kernel[i] >= 1 && kernel[i] <= 15 && stride[i] >= 1 && stride[i] <= 8 && pad[2 * i] >= 0 && pad[2 * i] <= 15 &&
                      pad[2 * i + 1] >= 0 && pad[2 * i + 1] <= 15 && modes[i] >= 0 &&
                      modes[i] < static_cast<int64_t>(Padding::count),
                  "window of a conv layer");
            layer.kernel[a] = kernel[i], layer.factor[a] = stride[i];
            layer.before[a] = pad[2 * i], layer.after[a] = pad[2 * i + 1];
            layer.padding[a] = static_cast<Padding>(modes[i]);
        }
        check(layer.dense.front().runs == layer.kernel[0] * layer.kernel[1] &&
                  layer.dense.front().inputs == layer.kernel[2] * layer.channels,
              "a conv layer that does not fit");
    }

    void reshape(const int64_t* shape, int dims) {
        check(last().dims == 0 && dims >= 1 && dims <= kMaxSpatial && !last().raw, "a reshape that does not fit");
        Layer& layer = add_layer(Kind::reshape);
        Form form = last();
        int64_t product = 1;
        for (int i = 0; i <= dims; ++i) {
            check(shape[i] > 0 && shape[i] <= kMaxChannels, "shape of a reshape");
            product *= shape[i];
            check(product <= kMaxChannels, "shape of a reshape");
        }
        check(product == form.channels, "a reshape that does not fit");
        for (int i = 0; i < dims; ++i) layer.factor[static_cast<std::size_t>(kMaxSpatial - dims + i)] = shape[i];
        form.dims = dims, form.channels = shape[dims];
        forms_.push_back(form);
        pointwise_ = false;
    }

    void pixel_shuffle(const int64_t* factor, int dims) {
        check(last().dims == dims && dims > 0, "a pixel shuffle that does not fit");
        Layer& layer = add_layer(Kind::pixel_shuffle);
        Form form = last();
        int64_t product = 1;
        for (int i = 0; i < dims; ++i) {
            check(factor[i] >= 1 && factor[i] <= 8, "factor of a pixel shuffle");
            layer.factor[static_cast<std::size_t>(kMaxSpatial - dims + i)] = factor[i];
            product *= factor[i];
        }
        check(form.channels % product == 0, "a pixel shuffle that does not fit");
        form.channels /= product;
        forms_.push_back(form);
    }

    // `sums` are the raw ones of magnitudes; tables of one entry for every channel.
    void gdn(Dense sums, const uint8_t* norm_shift, const uint8_t* shift, Activation range) {
        Form form = last();
        check(!form.raw && sums.raw && sums.runs == 1 && sums.inputs == form.channels && sums.outputs == form.channels,
              "a gdn that does not fit");
        check(range.lo <= 0 && range.hi >= 0 && range.lo >= -2047 && range.hi <= 4095, "range of a gdn");
        const int64_t amax = form.amax();
        Layer& layer = add_layer(Kind::gdn);
        for (int64_t c = 0; c < form.channels; ++c) {
            int64_t norm = sums.start[static_cast<std::size_t>(c)];
            check(norm >= 0 && norm_shift[c] <= 20 && shift[c] >= 1 && shift[c] <= 20, "tables of a gdn");
            for (int64_t i = 0; i < form.channels; ++i) {
                const int64_t w =
                    sums.weights[static_cast<std::size_t>(c / kOutputs * sums.pairs + i / 2)].w[2 * (c % kOutputs) + i % 2];
                check(w >= 0, "a negative weight of a gdn");
                norm += w * amax;
            }
            check(norm < kSumLimit && amax * (norm >> norm_shift[c]) + (int64_t{1} << (shift[c] - 1)) < kSumLimit,
                  "sums of a gdn may overflow");
            layer.norm_shift.push_back(norm_shift[c]);
            layer.half.push_back(1 << (shift[c] - 1));
            layer.shift.push_back(shift[c]);
        }
        layer.dense.push_back(std::move(sums));
        layer.sum.lo = form.lo = range.lo, layer.sum.hi = form.hi = range.hi;
        forms_.push_back(form);
    }

    // tensor: 0 the network's input, i + 1 the result of layer i.
    void add(int64_t tensor, Sum sum) {
        check(tensor >= 0 && tensor < static_cast<int64_t>(forms_.size()), "no such tensor");
        const Form other = forms_[static_cast<std::size_t>(tensor)];
        Form form = last();
        check(!form.raw && !other.raw && form.channels == other.channels && form.dims == other.dims, "a sum that does not fit");
        check(sum.scale[0] >= 0 && sum.scale[0] <= 8 && sum.scale[1] >= 0 && sum.scale[1] <= 8 && sum.shift >= 0 &&
                  sum.shift <= 12 && sum.slope >= 0 && sum.slope <= 8 && sum.lo <= 0 && sum.hi >= 0 && sum.lo >= -2047 &&
                  sum.hi <= 4095,
              "parameters of a sum");
        Layer& layer = add_layer(Kind::add);
        layer.tensor = static_cast<std::size_t>(tensor);
        layer.sum = sum;
        form.lo = static_cast<int16_t>(sum.lo), form.hi = static_cast<int16_t>(sum.hi);
        forms_.push_back(form);
    }

    void table(const int16_t* table, int64_t size, Activation range) {
        Form form = last();
        check(!form.raw && size == form.hi - form.lo + 1, "a table that does not fit");
        check(range.lo <= 0 && range.hi >= 0 && range.lo >= -2047 && range.hi <= 4095, "range of a table");
        for (int64_t i = 0; i < size; ++i) check(table[i] >= range.lo && table[i] <= range.hi, "an entry of a table");
        Layer& layer = add_layer(Kind::table);
        layer.table.assign(table, table + size);
        layer.sum.lo = form.lo;
        form.lo = range.lo, form.hi = range.hi;
        forms_.push_back(form);
    }

    int dims() const { return forms_.front().dims; }  // of the input
    int dims_now() const { return last().dims; }      // after the layers so far
    int64_t channels() const { return forms_.front().channels; }

    // Entries of an item's result for these extents of its input.
    int64_t outputs(Extents extents) const {
        for (const Layer& layer : layers_) extents = after(layer, extents);
        return volume(extents) * last().channels;
    }

    // input: [items][extents][channels], within the range of the input; output: [items] times `outputs`.
    void run(const int16_t* input, int64_t items, const Extents& extents, int32_t* output) const {
        check(!layers_.empty(), "no layers");
        Work work(*this);
        if (pointwise_ && dims() == 0) {  // items are points
            for (int64_t first = 0; first < items; first += kChunk) {
                const int64_t points = std::min(kChunk, items - first);
                run_item(work, input + first * channels(), {1, 1, points}, output + first * last().channels);
            }
            return;
        }
        const int64_t in = volume(extents) * channels(), out = outputs(extents);
        for (int64_t item = 0; item < items; ++item) run_item(work, input + item * in, extents, output + item * out);
    }

    bool in_range(const int16_t* input, int64_t count) const { return loops_->within_range(input, count, input_.lo, input_.hi); }

  private:
    static constexpr int64_t kChunk = 256;  // points at a time
    static constexpr int64_t kBand = 64;    // points that go through all blocks of outputs together

    enum class Kind { linear, conv, reshape, pixel_shuffle, gdn, add, table };

    struct Form {
        int64_t channels;
        int dims;
        int16_t lo, hi;
        bool raw;
        int32_t amax() const { return std::max(-static_cast<int32_t>(lo), static_cast<int32_t>(hi)); }
    };

    struct Layer {
        Kind kind;
        int64_t channels;          // of the input
        std::vector<Dense> dense;  // one or none
        Extents kernel{1, 1, 1}, before{}, after{};
        Extents factor{1, 1, 1};  // or stride, or extents
        std::array<Padding, kMaxSpatial> padding{};
        std::vector<int32_t> norm_shift, half, shift;
        std::vector<int16_t> table;
        std::size_t tensor = 0;
        Sum sum{};
    };

    // Memory of a run.  Tensors have room beyond their ends, where loops read what they do not use.
    struct Work {
        explicit Work(const Network& network) : tensor(network.forms_.size()) {}
        std::vector<std::vector<int16_t>> tensor;
        std::vector<int16_t> padded, magnitude;
        std::vector<int32_t> sums, raw;
    };

    static constexpr int64_t kRoom = 64;

    static int16_t* room(std::vector<int16_t>& tensor, int64_t size) {
        if (tensor.size() < static_cast<std::size_t>(size + kRoom)) tensor.resize(static_cast<std::size_t>(size + kRoom));
        return tensor.data();
    }

    static int64_t volume(const Extents& e) {
        constexpr int64_t most = int64_t{1} << 40;
        check(e[0] > 0 && e[1] > 0 && e[2] > 0 && e[0] <= most / e[1] && e[0] * e[1] <= most / e[2], "extents of a tensor");
        return e[0] * e[1] * e[2];
    }

    const Form& last() const { return forms_.back(); }

    Layer& add_layer(Kind kind) {
        check(!last().raw || kind == Kind::pixel_shuffle, "a layer after a raw one");
        layers_.push_back({});
        layers_.back().kind = kind;
        layers_.back().channels = last().channels;
        return layers_.back();
    }

    Layer& add_dense(Kind kind, Dense dense) {
        Form form = last();
        Layer& layer = add_layer(kind);
        form.channels = dense.outputs, form.lo = dense.lo, form.hi = dense.hi, form.raw = dense.raw;
        layer.dense.push_back(std::move(dense));
        forms_.push_back(form);
        return layer;
    }

    static Extents after(const Layer& layer, Extents e) {
        if (layer.kind == Kind::reshape) return layer.factor;
        for (std::size_t i = 0; i < kMaxSpatial; ++i) {
            if (layer.kind == Kind::pixel_shuffle) e[i] *= layer.factor[i];
            if (layer.kind == Kind::conv) {
                const int64_t left = e[i] + layer.before[i] + layer.after[i] - layer.kernel[i];
                check(e[i] > 0 && left >= 0, "an input that is too small");
                e[i] = left / layer.factor[i] + 1;
            }
        }
        volume(e);
        return e;
    }

    void run_item(Work& work, const int16_t* input, Extents extents, int32_t* output) const {
        const int64_t size = volume(extents) * channels();
        std::memcpy(room(work.tensor[0], size), input, static_cast<std::size_t>(size) * sizeof(int16_t));
        const int16_t* x = work.tensor[0].data();
        const int32_t* sums = nullptr;  // instead, once they are raw
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const Layer& layer = layers_[i];
            const Extents to = after(layer, extents);
            const int64_t points = volume(to), n = points * forms_[i + 1].channels;
            const bool end = i + 1 == layers_.size();
            if (forms_[i + 1].raw) {
                int32_t* out = output;
                std::vector<int32_t> next;
                if (!end) {
                    next.resize(static_cast<std::size_t>(n));
                    out = next.data();
                }
                if (layer.kind == Kind::pixel_shuffle) {
                    shuffle(layer, sums, extents, out);
                } else {
                    dense(work, layer, x, extents, to, out);
                }
                work.raw.swap(next);
                sums = out;
                extents = to;
                continue;
            }
            int16_t* out = room(work.tensor[i + 1], n);
            switch (layer.kind) {
                case Kind::linear:
                case Kind::conv:
                    dense(work, layer, x, extents, to, out);
                    break;
                case Kind::reshape:
                    std::memcpy(out, x, static_cast<std::size_t>(n) * sizeof(int16_t));
                    break;
                case Kind::pixel_shuffle:
                    shuffle(layer, x, extents, out);
                    break;
                case Kind::gdn:
                    gdn(work, layer, x, points, out);
                    break;
                case Kind::add:
                    check(work.tensor[layer.tensor].size() >= static_cast<std::size_t>(n + kRoom),
                          "tensors that differ in shape");
                    loops_->add(x, work.tensor[layer.tensor].data(), n, layer.sum, out);
                    break;
                case Kind::table:
                    for (int64_t k = 0; k < n; ++k) out[k] = layer.table[static_cast<std::size_t>(x[k] - layer.sum.lo)];
                    break;
            }
            x = out;
            extents = to;
            if (end)
                for (int64_t k = 0; k < n; ++k) output[k] = out[k];
        }
    }

    void rows(const Dense& dense, int64_t block, const int16_t* x, int64_t distance, const int64_t* offset, int64_t points,
              int16_t* out) const {
        loops_->activations(dense, block, x, distance, offset, points, out, dense.outputs, false);
    }
    void rows(const Dense& dense, int64_t block, const int16_t* x, int64_t distance, const int64_t* offset, int64_t points,
              int32_t* out) const {
        loops_->sums(dense, block, x, distance, offset, points, out, dense.outputs, false);
    }

    // Layers with weights: padded where need be, then in bands of rows.
    template <class Out>
    void dense(Work& work, const Layer& layer, const int16_t* x, const Extents& from, const Extents& to, Out* out) const {
        const Dense& d = layer.dense.front();
        if (layer.kind == Kind::linear) return linear(d, x, volume(from), out);
        const int64_t channels = layer.channels;
        Extents wide;
        for (std::size_t i = 0; i < kMaxSpatial; ++i) wide[i] = from[i] + layer.before[i] + layer.after[i];
        if (wide != from) {
            int16_t* padded = room(work.padded, volume(wide) * channels);
            pad(layer, x, from, wide, padded);
            x = padded;
        }
        std::array<int64_t, 15 * 15> offset;
        for (int64_t a = 0; a < layer.kernel[0]; ++a)
            for (int64_t b = 0; b < layer.kernel[1]; ++b)
                offset[static_cast<std::size_t>(a * layer.kernel[1] + b)] = (a * wide[1] + b) * wide[2] * channels;
        const Extents& stride = layer.factor;
        const int64_t lines = to[0] * to[1], band = std::max<int64_t>(1, kBand / to[2]);
        for (int64_t first = 0; first < lines; first += band)
            for (int64_t column = 0; column < to[2]; column += kBand)
                for (int64_t block = 0; block < d.blocks; ++block)
                    for (int64_t line = first; line < std::min(lines, first + band); ++line) {
                        const int64_t a = line / to[1] * stride[0], b = line % to[1] * stride[1];
                        rows(d, block, x + ((a * wide[1] + b) * wide[2] + column * stride[2]) * channels, stride[2] * channels,
                             offset.data(), std::min(kBand, to[2] - column), out + (line * to[2] + column) * d.outputs);
                    }
    }

    template <class Out>
    void linear(const Dense& d, const int16_t* x, int64_t points, Out* out) const {
        const int64_t start = 0;
        for (int64_t p = 0; p < points; p += kBand)
            for (int64_t block = 0; block < d.blocks; ++block)
                rows(d, block, x + p * d.inputs, d.inputs, &start, std::min(kBand, points - p), out + p * d.outputs);
    }

    // Where a coordinate beyond the ends of its axis is taken from; -1: nowhere.
    static int64_t source(int64_t at, int64_t n, Padding how) {
        if (at >= 0 && at < n) return at;
        if (how == Padding::zero) return -1;
        return how == Padding::replicate ? (at < 0 ? 0 : n - 1) : ((at % n) + n) % n;
    }

    static void pad(const Layer& layer, const int16_t* x, const Extents& from, const Extents& wide, int16_t* out) {
        const int64_t channels = layer.channels;
        const auto bytes = static_cast<std::size_t>(channels) * sizeof(int16_t);
        for (int64_t a = 0; a < wide[0]; ++a)
            for (int64_t b = 0; b < wide[1]; ++b, out += wide[2] * channels) {
                const int64_t plane = source(a - layer.before[0], from[0], layer.padding[0]);
                const int64_t line = source(b - layer.before[1], from[1], layer.padding[1]);
                if (plane < 0 || line < 0) {
                    std::memset(out, 0, bytes * static_cast<std::size_t>(wide[2]));
                    continue;
                }
                const int16_t* row = x + (plane * from[1] + line) * from[2] * channels;
                const auto fill = [&](int64_t first, int64_t end) {
                    for (int64_t c = first; c < end; ++c) {
                        const int64_t at = source(c - layer.before[2], from[2], layer.padding[2]);
                        if (at < 0) {
                            std::memset(out + c * channels, 0, bytes);
                        } else {
                            std::memcpy(out + c * channels, row + at * channels, bytes);
                        }
                    }
                };
                fill(0, layer.before[2]);
                std::memcpy(out + layer.before[2] * channels, row, bytes * static_cast<std::size_t>(from[2]));
                fill(layer.before[2] + from[2], wide[2]);
            }
    }

    template <class T>
    static void shuffle(const Layer& layer, const T* x, const Extents& from, T* out) {
        const Extents& f = layer.factor;
        const int64_t channels = layer.channels / volume(f);
        const int64_t width = from[2] * f[2] * channels, plane = from[1] * f[1] * width;
        for (int64_t a = 0; a < from[0]; ++a)
            for (int64_t b = 0; b < from[1]; ++b)
                for (int64_t c = 0; c < from[2]; ++c)
                    for (int64_t i = 0; i < f[0]; ++i)
                        for (int64_t j = 0; j < f[1]; ++j, x += f[2] * channels)
                            std::memcpy(out + (a * f[0] + i) * plane + (b * f[1] + j) * width + c * f[2] * channels, x,
                                        static_cast<std::size_t>(f[2] * channels) * sizeof(T));
    }

    void gdn(Work& work, const Layer& layer, const int16_t* x, int64_t points, int16_t* out) const {
        const int64_t channels = layer.channels;
        int16_t* magnitude = room(work.magnitude, kChunk * channels);
        work.sums.resize(static_cast<std::size_t>(kChunk * channels));
        for (int64_t p = 0; p < points; p += kChunk) {
            const int64_t some = std::min(kChunk, points - p);
            loops_->magnitudes(x + p * channels, some * channels, magnitude);
            linear(layer.dense.front(), magnitude, some, work.sums.data());
            loops_->normalize(x + p * channels, work.sums.data(), some, channels, layer.norm_shift.data(), layer.half.data(),
                              layer.shift.data(), layer.sum.lo, layer.sum.hi, out + p * channels);
        }
    }

    Activation input_;
    const NetworkLoops* loops_;
    std::vector<Form> forms_;
    std::vector<Layer> layers_;
    bool pointwise_ = true;
};

}  // namespace aesz
