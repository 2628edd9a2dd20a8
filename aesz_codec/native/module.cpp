// The native core as plain functions over arrays.  Every function releases the GIL and checks what it reads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <vector>

#include "adaptive_codes.hpp"
#include "causal.hpp"
#include "exponential.hpp"
#include "frames.hpp"
#include "interpolation.hpp"
#include "labels.hpp"
#include "local.hpp"
#include "lossless.hpp"
#include "memory.hpp"
#include "mixed_codes.hpp"
#include "networks.hpp"
#include "range_coder.hpp"
#include "static_codes.hpp"
#include "weight_codes.hpp"

namespace nb = nanobind;
using namespace aesz;

namespace {

template <class T>
using Input = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Output = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Mask = std::optional<Input<uint8_t>>;

nb::bytes to_bytes(const void* data, std::size_t size) { return nb::bytes(static_cast<const char*>(data), size); }

template <class Array>
Shape shape_of(const Array& array, std::size_t skip = 0) {
    if (array.ndim() < skip + 1 || array.ndim() - skip > kMaxDims) throw std::invalid_argument("between 1 and 4 axes");
    int64_t dims[kMaxDims];
    for (std::size_t i = skip; i < array.ndim(); ++i) {
        dims[i - skip] = static_cast<int64_t>(array.shape(i));
        if (dims[i - skip] < 1) throw std::invalid_argument("empty axis");
    }
    return Shape(static_cast<int>(array.ndim() - skip), dims);
}

const uint8_t* pointer(const Mask& mask, std::size_t size) {
    if (!mask) return nullptr;
    if (mask->size() != size) throw std::invalid_argument("mask and data differ in size");
    return mask->data();
}

// At most eight bytes are read beyond a sound stream.
void check_end(const RangeDecoder& decoder) {
    if (decoder.overrun() > 8) throw CorruptStream("the codes end too early");
}

struct Parameters {
    double step, offset;
    int batch;  // leading axes that are frames
    bool reference, reversed;
    int alpha16, beta16;
};

template <class Array>
InterpolationPlan interpolation_plan(const Array& array, const Parameters& p) {
    if (p.batch < 0) throw std::invalid_argument("negative number of frame axes");
    InterpolationPlan plan;
    plan.frame = shape_of(array, static_cast<std::size_t>(p.batch));
    for (int i = 0; i < p.batch; ++i) plan.frames *= static_cast<int64_t>(array.shape(static_cast<std::size_t>(i)));
    plan.step = p.step;
    plan.offset = p.offset;
    plan.reference = p.reference;
    plan.reversed = p.reversed;
    plan.alpha16 = p.alpha16;
    plan.beta16 = p.beta16;
    if (!(plan.step > 0) || plan.alpha16 < 16 || plan.beta16 < 16)
        throw std::invalid_argument("step, alpha or beta out of range");
    return plan;
}

// How codes are written; the numbers are those of the plan.
enum class CoderKind { adaptive, adaptive_zeros, fixed, mixed, count };

CoderKind coder_kind(int coder) {
    if (coder < 0 || coder >= static_cast<int>(CoderKind::count)) throw CorruptStream("no such coder of codes");
    return static_cast<CoderKind>(coder);
}

// Calls `run(codes)` with the coder of codes that is wished for, on top of a range coder.
template <class Coder, class Run>
void with_range_coder(CoderKind kind, Coder& coder, const Run& run) {
    if (kind == CoderKind::mixed) {
        MixedCodes<Coder> codes(coder);
        run(codes);
    } else {
        AdaptiveCodes<Coder> codes(coder, kind == CoderKind::adaptive_zeros);
        run(codes);
    }
}

template <class Run>
std::vector<uint8_t> write_codes(CoderKind kind, const Run& run) {
    if (kind == CoderKind::fixed) {
        TokenEncoder encoder;
        StaticCodes<TokenEncoder> codes(encoder);
        run(codes);
        return encoder.finish();
    }
    RangeEncoder encoder;
    with_range_coder(kind, encoder, run);
    return encoder.finish();
}

template <class Run>
void read_codes(CoderKind kind, const uint8_t* data, std::size_t size, const Run& run) {
    if (kind == CoderKind::fixed) {
        TokenDecoder decoder(data, size);
        StaticCodes<TokenDecoder> codes(decoder);
        run(codes);
        return decoder.finish();
    }
    RangeDecoder decoder(data, size);
    with_range_coder(kind, decoder, run);
    check_end(decoder);
}

// `Predictor<T, Codes>` is InterpolationCoder or CausalCoder.
template <class T, template <class, class> class Predictor, class Plan>
nb::tuple encode_with(const Plan& plan, int coder, const Input<T>& data, const Mask& mask, double tolerance, T* out) {
    const CoderKind kind = coder_kind(coder);
    Chunk<T> chunk{data.data(), out, pointer(mask, data.size()), tolerance, {}};
    std::vector<uint8_t> bytes;
    {
        nb::gil_scoped_release release;
        bytes = write_codes(kind, [&](auto& codes) { Predictor<T, std::decay_t<decltype(codes)>>(plan, chunk, codes).run(); });
    }
    return nb::make_tuple(to_bytes(bytes.data(), bytes.size()),
                          to_bytes(chunk.outliers.data(), chunk.outliers.size() * sizeof(T)));
}

template <class T, template <class, class> class Predictor, class Plan>
void decode_with(const Plan& plan, int coder, const nb::bytes& bytes, const nb::bytes& outliers, Output<T>& out,
                 const Mask& mask) {
    const CoderKind kind = coder_kind(coder);
    Chunk<T> chunk{nullptr, out.data(), pointer(mask, out.size()), 0.0, {}};
    if (outliers.size() % sizeof(T) != 0) throw CorruptStream("outliers are not a whole number of values");
    chunk.outliers.resize(outliers.size() / sizeof(T));
    if (!chunk.outliers.empty()) std::memcpy(chunk.outliers.data(), outliers.c_str(), outliers.size());
    nb::gil_scoped_release release;
    read_codes(kind, reinterpret_cast<const uint8_t*>(bytes.c_str()), bytes.size(), [&](auto& codes) {
        Predictor<T, std::decay_t<decltype(codes)>> predictor(plan, chunk, codes);
        predictor.run();
        if (predictor.unused_outliers()) throw CorruptStream("more outliers are stored than used");
    });
}

void take_networks(InterpolationPlan& plan, const LearnedNets* nets, int coder) {
    const CoderKind kind = coder_kind(coder);
    if (nets && (plan.reversed || kind == CoderKind::adaptive_zeros))
        throw CorruptStream("networks do not go together with this coder or order of classes");
    plan.nets = nets;
}

// Rows of (frame, lines, columns), of so many frames.
std::vector<FrameTap> taps_of(const Input<int64_t>& taps, int64_t frames, int64_t farthest) {
    if (taps.ndim() != 2 || taps.shape(1) != 3) throw std::invalid_argument("taps are rows of three");
    std::vector<FrameTap> found;
    for (std::size_t k = 0; k < taps.shape(0); ++k) {
        const int64_t* row = taps.data() + 3 * k;
        const auto is_near = [&](int64_t distance) { return distance >= -farthest && distance <= farthest; };
        if (row[0] < 0 || row[0] >= frames || !is_near(row[1]) || !is_near(row[2]))
            throw std::invalid_argument("a tap outside the frames");
        found.push_back({row[0], row[1], row[2], 0.0});
    }
    return found;
}

// Weights of taps, as Python has them.
std::vector<FrameTap> weighted_taps(const Input<int64_t>& taps, const Input<double>& weights, int64_t frames) {
    std::vector<FrameTap> found = taps_of(taps, frames, kFarthest);
    if (weights.size() != found.size()) throw std::invalid_argument("not one weight for every tap");
    for (std::size_t k = 0; k < found.size(); ++k) found[k].weight = weights.data()[k];
    return found;
}

// `rows`: by frame the number of its sum, or -1, and two frames, or -1; `sums`: taps and weights.
FrameSums frame_sums(Input<int64_t> rows, const std::vector<std::pair<Input<int64_t>, Input<double>>>& sums) {
    if (rows.ndim() != 2 || rows.shape(1) != 3) throw std::invalid_argument("rows of three");
    FrameSums found;
    std::vector<int64_t> sources(sums.size(), 2);  // that all rows of a sum have
    const int64_t frames = static_cast<int64_t>(rows.shape(0));
    for (int64_t f = 0; f < frames; ++f) {
        const int64_t* row = rows.data() + 3 * f;
        const bool sound = row[0] >= -1 && row[0] < static_cast<int64_t>(sums.size()) && row[1] >= -1 && row[1] < frames &&
                           row[2] >= -1 && row[2] < frames && (row[1] >= 0 || row[2] < 0);
        if (!sound) throw std::invalid_argument("a sum or a frame that there is not");
        if (row[0] >= 0) {
            int64_t& least = sources[static_cast<std::size_t>(row[0])];
            least = std::min<int64_t>(least, (row[1] >= 0) + (row[2] >= 0));
        }
        found.rows.push_back({row[0], {row[1], row[2]}});
    }
    for (std::size_t k = 0; k < sums.size(); ++k) found.sums.push_back(weighted_taps(sums[k].first, sums[k].second, sources[k]));
    return found;
}

// A schedule as Python has it: rows of (frame, set, codes, codes) and what makes references of the decoded `chunk`, FrameSums or
// a callable; checked for a plan.
template <class T>
FrameSchedule frame_schedule(const InterpolationPlan& plan, const Input<int64_t>& rows, const nb::object& predict,
                             const T* chunk) {
    const std::size_t frames = static_cast<std::size_t>(plan.frames);
    if (rows.ndim() != 2 || rows.shape(0) != frames || rows.shape(1) != 4 || plan.reference)
        throw std::invalid_argument("a schedule is one row of four for every frame");
    FrameSchedule schedule;
    std::vector<char> seen(frames);
    const auto is_seen = [&](int64_t f) { return f >= 0 && f < plan.frames && seen[static_cast<std::size_t>(f)]; };
    for (std::size_t i = 0; i < frames; ++i) {
        const int64_t* row = rows.data() + 4 * i;
        const bool sound = row[0] >= 0 && row[0] < plan.frames && !is_seen(row[0]) && row[1] >= 0 &&
                           row[1] < FrameSchedule::kSets && (row[2] == -1 || is_seen(row[2])) &&
                           (row[3] == -1 || (row[2] != -1 && is_seen(row[3])));
        if (!sound) throw std::invalid_argument("a schedule that does not visit every frame once, after those that it refers to");
        seen[static_cast<std::size_t>(row[0])] = 1;
        schedule.entries.push_back({row[0], static_cast<int>(row[1]), {row[2], row[3]}});
    }
    if (nb::isinstance<FrameSums>(predict)) {
        const FrameSums& sums = nb::cast<const FrameSums&>(predict);
        if (sums.rows.size() != frames || plan.frame.n != 2) throw std::invalid_argument("sums of other frames");
        const FrameShape shape{1, plan.frame.dim[0], plan.frame.dim[1]};
        schedule.predict = [&sums, shape, chunk](int64_t frame, void* out) {
            return sums.predict(shape, chunk, frame, static_cast<T*>(out));
        };
        return schedule;
    }
    schedule.predict = [&predict, size = static_cast<std::size_t>(plan.frame.size)](int64_t frame, void* out) {
        nb::gil_scoped_acquire acquire;
        const nb::object made = predict(frame);
        if (made.is_none()) return false;
        const auto reference = nb::cast<nb::ndarray<const T, nb::c_contig, nb::device::cpu>>(made);
        if (reference.size() != size) throw std::invalid_argument("a reference of another size than a frame");
        std::memcpy(out, reference.data(), size * sizeof(T));
        return true;
    };
    return schedule;
}

template <class T>
nb::tuple encode_interpolation(Input<T> data, Mask mask, double tolerance, double step, double offset, int batch, bool reference,
                               bool reversed, int coder, int alpha16, int beta16, const LearnedNets* nets) {
    InterpolationPlan plan = interpolation_plan(data, {step, offset, batch, reference, reversed, alpha16, beta16});
    take_networks(plan, nets, coder);
    const Memory<T> out(data.size());
    return encode_with<T, InterpolationCoder>(plan, coder, data, mask, tolerance, out.data());
}

// `out` takes what is decoded, for `predict` to see; `examples`: (frame, set, reference or None).
template <class T>
nb::tuple encode_frames(Input<T> data, Mask mask, double tolerance, double step, double offset, int batch, int coder, int alpha16,
                        int beta16, const LearnedNets* nets, Input<int64_t> rows, const nb::object& predict, Output<T> out,
                        const std::vector<std::tuple<int64_t, int, std::optional<Input<T>>>>& examples) {
    InterpolationPlan plan = interpolation_plan(data, {step, offset, batch, false, false, alpha16, beta16});
    take_networks(plan, nets, coder);
    if (out.size() != data.size()) throw std::invalid_argument("an output of another size than the data");
    FrameSchedule schedule = frame_schedule<T>(plan, rows, predict, out.data());
    for (const auto& [frame, set, values] : examples) {
        const bool sound = frame >= 0 && frame < plan.frames && set >= 0 && set < FrameSchedule::kSets &&
                           values.has_value() == (set > 0) &&
                           (!values || values->size() == static_cast<std::size_t>(plan.frame.size));
        if (!sound) throw std::invalid_argument("an example that is none of the schedule's");
        schedule.examples.push_back({frame, set, values ? values->data() : nullptr});
    }
    plan.schedule = &schedule;
    return encode_with<T, InterpolationCoder>(plan, coder, data, mask, tolerance, out.data());
}

// How many points the network of every slot sees: in the frame, in the one before.
LearnedNets::Sights sights_of(const std::vector<std::pair<int, int>>& sees) {
    LearnedNets::Sights sights{};
    check(sees.size() == sights.size(), "how much networks see");
    for (std::size_t slot = 0; slot < sights.size(); ++slot) sights[slot] = {sees[slot].first, sees[slot].second};
    check(LearnedNets::sound(sights), "how much networks see");
    return sights;
}

// Inputs and targets of learned interpolation, for every network; for training.
template <class T>
nb::list collect_interpolation(Input<T> data, Mask mask, double tolerance, double step, double offset, int batch, bool reference,
                               uint64_t every, const std::vector<std::pair<int, int>>& sees) {
    InterpolationPlan plan = interpolation_plan(data, {step, offset, batch, reference, false, 16, 16});
    LearnedSamples samples;
    samples.sights = sights_of(sees);
    samples.every = std::max<uint64_t>(1, every);
    plan.samples = &samples;
    const Memory<T> out(data.size());
    encode_with<T, InterpolationCoder>(plan, 0, data, mask, tolerance, out.data());
    nb::list found;
    for (std::size_t k = 0; k < samples.inputs.size(); ++k)
        found.append(nb::make_tuple(to_bytes(samples.inputs[k].data(), 2 * samples.inputs[k].size()),
                                    to_bytes(samples.targets[k].data(), 4 * samples.targets[k].size())));
    return found;
}

template <class T>
void decode_interpolation(nb::bytes codes, nb::bytes outliers, Output<T> out, Mask mask, double step, double offset, int batch,
                          bool reference, bool reversed, int coder, int alpha16, int beta16, const LearnedNets* nets) {
    InterpolationPlan plan = interpolation_plan(out, {step, offset, batch, reference, reversed, alpha16, beta16});
    take_networks(plan, nets, coder);
    decode_with<T, InterpolationCoder>(plan, coder, codes, outliers, out, mask);
}

template <class T>
void decode_frames(nb::bytes codes, nb::bytes outliers, Output<T> out, Mask mask, double step, double offset, int batch,
                   int coder, int alpha16, int beta16, const LearnedNets* nets, Input<int64_t> rows, const nb::object& predict) {
    InterpolationPlan plan = interpolation_plan(out, {step, offset, batch, false, false, alpha16, beta16});
    take_networks(plan, nets, coder);
    const FrameSchedule schedule = frame_schedule<T>(plan, rows, predict, out.data());
    plan.schedule = &schedule;
    decode_with<T, InterpolationCoder>(plan, coder, codes, outliers, out, mask);
}

template <class Array>
FrameShape frame_shape(const Array& frame) {
    const Shape shape = shape_of(frame);
    if (shape.n < 2) throw std::invalid_argument("at least two axes");
    const int64_t lines = shape.dim[static_cast<std::size_t>(shape.n - 2)],
                  width = shape.dim[static_cast<std::size_t>(shape.n - 1)];
    return {shape.size / (lines * width), lines, width};
}

template <class T>
void weigh_frames(const std::vector<Input<T>>& frames, Input<int64_t> taps, Input<double> weights, Output<T> out) {
    const FrameShape shape = frame_shape(out);
    std::vector<const T*> sources;
    for (const Input<T>& frame : frames) {
        if (frame.size() != out.size()) throw std::invalid_argument("frames of another size");
        sources.push_back(frame.data());
    }
    const std::vector<FrameTap> found = weighted_taps(taps, weights, static_cast<int64_t>(sources.size()));
    nb::gil_scoped_release release;
    weighted_frames(shape, sources, found, out.data());
}

// `frames`: (examples, lines, width); `sources`: (examples, sources of each, lines, width).
template <class T>
std::vector<double> fit_frames(Input<T> frames, Input<T> sources, Input<int64_t> taps, int64_t points, double tolerance) {
    const Shape shape = shape_of(frames), from = shape_of(sources);
    if (shape.n != 3 || from.n != 4 || from.dim[0] != shape.dim[0] || from.dim[2] != shape.dim[1] || from.dim[3] != shape.dim[2])
        throw std::invalid_argument("not as many sources for every frame");
    const std::vector<FrameTap> found = taps_of(taps, from.dim[1], 1);
    nb::gil_scoped_release release;
    return fit_taps(FrameShape{1, shape.dim[1], shape.dim[2]}, shape.dim[0], frames.data(), sources.data(), from.dim[1], found,
                    points, tolerance);
}

template <class T>
void round_frame(Input<T> frame, Mask mask, double step, double offset, Output<T> out) {
    if (frame.size() != out.size()) throw std::invalid_argument("a frame of another size");
    const uint8_t* const masked = pointer(mask, frame.size());
    nb::gil_scoped_release release;
    rounded_frame(frame.data(), masked, static_cast<int64_t>(frame.size()), step, offset, out.data());
}

// `vectors`: (planes, blocks down, blocks across, 2) in halves of a point.
template <class T>
void move_frame(Input<T> frame, Input<int16_t> vectors, int64_t block, Output<T> out) {
    const FrameShape shape = frame_shape(out);
    if (block < 1 || frame.size() != out.size()) throw std::invalid_argument("a frame or a block of another size");
    const int64_t blocks = shape.planes * ((shape.lines + block - 1) / block) * ((shape.width + block - 1) / block);
    if (static_cast<int64_t>(vectors.size()) != 2 * blocks) throw std::invalid_argument("not one vector for every block");
    nb::gil_scoped_release release;
    moved_frame(shape, frame.data(), vectors.data(), block, out.data());
}

template <class Array>
CausalPlan causal_plan(const Array& array, double step, double offset) {
    if (!(step > 0)) throw std::invalid_argument("step out of range");
    return {shape_of(array), step, offset, nullptr};
}

void take_forecaster(CausalPlan& plan, const Forecaster* forecaster, int coder) {
    if (coder_kind(coder) == CoderKind::adaptive_zeros) throw CorruptStream("a forecaster does not go together with this coder");
    const Shape& shape = plan.shape;
    if (forecaster->empty() || shape.n < 2 || shape.n > 3 ||
        shape.dim[static_cast<std::size_t>(shape.n - 2)] != forecaster->lines() ||
        shape.dim[static_cast<std::size_t>(shape.n - 1)] != forecaster->columns())
        throw CorruptStream("the forecaster is for another grid");
    plan.forecaster = forecaster;
}

template <class T>
nb::tuple encode_causal(Input<T> data, Mask mask, double tolerance, double step, double offset, int coder,
                        const Forecaster* forecaster) {
    CausalPlan plan = causal_plan(data, step, offset);
    const Memory<T> out(data.size());
    if (!forecaster) return encode_with<T, CausalCoder>(plan, coder, data, mask, tolerance, out.data());
    take_forecaster(plan, forecaster, coder);
    return encode_with<T, ForecastCoder>(plan, coder, data, mask, tolerance, out.data());
}

template <class T>
void decode_causal(nb::bytes codes, nb::bytes outliers, Output<T> out, Mask mask, double step, double offset, int coder,
                   const Forecaster* forecaster) {
    CausalPlan plan = causal_plan(out, step, offset);
    if (!forecaster) return decode_with<T, CausalCoder>(plan, coder, codes, outliers, out, mask);
    take_forecaster(plan, forecaster, coder);
    decode_with<T, ForecastCoder>(plan, coder, codes, outliers, out, mask);
}

template <class Array>
LocalPlan local_plan(const Array& array, double step, double offset) {
    if (!(step > 0)) throw std::invalid_argument("step out of range");
    const LocalPlan plan{shape_of(array), step, offset};
    if (plan.shape.n < 2) throw std::invalid_argument("at least two axes");
    return plan;
}

template <class T, class Coder>
void run_local(const LocalPlan& plan, Chunk<T>& chunk, Coder& coder) {
    if (plan.shape.n == 2) {
        LocalCoder<T, Coder, 16>(plan, chunk, coder).run();
    } else {
        LocalCoder<T, Coder, 24>(plan, chunk, coder).run();
    }
}

// Raises OverflowError if the values are no good for it: too many steps between them, or too many rounded out of bound.
template <class T>
nb::bytes encode_local(Input<T> data, Mask mask, double tolerance, double step, double offset) {
    const LocalPlan plan = local_plan(data, step, offset);
    const Memory<T> out(data.size());
    Chunk<T> chunk{data.data(), out.data(), pointer(mask, data.size()), 0.0, {}};
    std::vector<uint8_t> codes;
    {
        nb::gil_scoped_release release;
        RangeEncoder encoder;
        run_local(plan, chunk, encoder);
        codes = encoder.finish();
        std::size_t outside = 0;
        for (std::size_t i = 0; i < data.size(); ++i)
            if (!(chunk.mask && chunk.mask[i]))
                outside += !(std::abs(static_cast<double>(chunk.data[i]) - static_cast<double>(out.data()[i])) <= tolerance);
        if (outside > data.size() / 1024) throw std::overflow_error("too many values out of bound");
    }
    return to_bytes(codes.data(), codes.size());
}

template <class T>
void decode_local(nb::bytes codes, Output<T> out, Mask mask, double step, double offset) {
    const LocalPlan plan = local_plan(out, step, offset);
    Chunk<T> chunk{nullptr, out.data(), pointer(mask, out.size()), 0.0, {}};
    nb::gil_scoped_release release;
    RangeDecoder decoder(reinterpret_cast<const uint8_t*>(codes.c_str()), codes.size());
    run_local(plan, chunk, decoder);
    check_end(decoder);
}

struct Box {
    int64_t planes, lines, width;
};

template <class Array>
Box box_of(const Array& array) {
    const Shape shape = shape_of(array);
    const int64_t width = shape.dim[static_cast<std::size_t>(shape.n - 1)];
    const int64_t lines = shape.n > 1 ? shape.dim[static_cast<std::size_t>(shape.n - 2)] : 1;
    return {shape.size / (width * lines), lines, width};
}

nb::bytes encode_labels(Input<uint8_t> labels) {
    const Box box = box_of(labels);
    std::vector<uint8_t> codes;
    {
        nb::gil_scoped_release release;
        std::vector<uint8_t> copy(labels.data(), labels.data() + labels.size());
        for (uint8_t label : copy)
            if (label >> kLabelBits) throw std::invalid_argument("a label is above 15");
        RangeEncoder encoder;
        code_labels(encoder, copy.data(), box.planes, box.lines, box.width);
        codes = encoder.finish();
    }
    return to_bytes(codes.data(), codes.size());
}

void decode_labels(nb::bytes codes, Output<uint8_t> labels) {
    const Box box = box_of(labels);
    nb::gil_scoped_release release;
    RangeDecoder decoder(reinterpret_cast<const uint8_t*>(codes.c_str()), codes.size());
    code_labels(decoder, labels.data(), box.planes, box.lines, box.width);
    check_end(decoder);
}

template <class U>
nb::bytes encode_lossless(Input<U> values, int dims, int order) {
    const Shape shape = shape_of(values);
    if (dims < 0 || dims > 3 || dims > shape.n || order < 0 || order > 2)
        throw std::invalid_argument("dims or order out of range");
    std::vector<uint8_t> codes;
    {
        nb::gil_scoped_release release;
        RangeEncoder encoder;
        // the encoder reads only
        code_lossless(encoder, const_cast<U*>(values.data()), shape, dims, static_cast<Order>(order));
        codes = encoder.finish();
    }
    return to_bytes(codes.data(), codes.size());
}

template <class U>
void decode_lossless(nb::bytes codes, Output<U> values, int dims, int order) {
    const Shape shape = shape_of(values);
    if (dims < 0 || dims > 3 || dims > shape.n || order < 0 || order > 2)
        throw std::invalid_argument("dims or order out of range");
    nb::gil_scoped_release release;
    RangeDecoder decoder(reinterpret_cast<const uint8_t*>(codes.c_str()), codes.size());
    code_lossless(decoder, values.data(), shape, dims, static_cast<Order>(order));
    check_end(decoder);
}

template <class Values>
std::pair<int64_t, int64_t> rows_of(const Values& values) {
    if (values.ndim() != 2) throw std::invalid_argument("two axes");
    return {static_cast<int64_t>(values.shape(0)), static_cast<int64_t>(values.shape(1))};
}

std::vector<uint8_t> weight_codes(const int32_t* values, int64_t rows, int64_t width) {
    RangeEncoder encoder;
    WeightCodes<RangeEncoder> codes(encoder);
    // the encoder reads only
    for (int64_t r = 0; r < rows; ++r)
        codes.row(const_cast<int32_t*>(values) + r * width, r ? values + (r - 1) * width : nullptr, width, INT32_MIN, INT32_MAX);
    return encoder.finish();
}

nb::bytes encode_weights(Input<int32_t> values) {
    const auto [rows, width] = rows_of(values);
    std::vector<uint8_t> bytes;
    {
        nb::gil_scoped_release release;
        bytes = weight_codes(values.data(), rows, width);
    }
    return to_bytes(bytes.data(), bytes.size());
}

// Also checks that the bytes are those that encode_weights writes for these values.
void decode_weights(nb::bytes codes, Output<int32_t> out, int32_t lowest, int32_t highest) {
    const auto [rows, width] = rows_of(out);
    const uint8_t* data = reinterpret_cast<const uint8_t*>(codes.c_str());
    nb::gil_scoped_release release;
    RangeDecoder decoder(data, codes.size());
    WeightCodes<RangeDecoder> weights(decoder);
    for (int64_t r = 0; r < rows; ++r) {
        int32_t* row = out.data() + r * width;
        weights.row(row, r ? row - width : nullptr, width, lowest, highest);
        check_end(decoder);
    }
    const std::vector<uint8_t> canonical = weight_codes(out.data(), rows, width);
    if (canonical.size() != codes.size() || !std::equal(canonical.begin(), canonical.end(), data))
        throw CorruptStream("the codes are not those of their weights");
}

void exp2_into(Input<double> x, Output<double> out) {
    if (x.size() != out.size()) throw std::invalid_argument("sizes differ");
    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double v = x.data()[i];
        out.data()[i] = exp2_exact(v != v ? 0.0 : v < -1100.0 ? -1100.0 : v > 1100.0 ? 1100.0 : v);
    }
}

// Whether no value is further from the original than the tolerance; false also if a value is not finite.
template <class T>
bool within(Input<T> original, Input<T> reconstruction, double tolerance) {
    if (original.size() != reconstruction.size()) throw std::invalid_argument("sizes differ");
    nb::gil_scoped_release release;
    return all_within(original.data(), reconstruction.data(), static_cast<int64_t>(original.size()), tolerance);
}

// Largest error, sum of squared errors (not finite if a value is not), least and greatest of the originals.
template <class T>
std::tuple<double, double, double, double> moments_of_errors(Input<T> original, Input<T> reconstruction) {
    if (original.size() != reconstruction.size() || !original.size()) throw std::invalid_argument("sizes differ, or are zero");
    nb::gil_scoped_release release;
    const auto found = error_moments(original.data(), reconstruction.data(), static_cast<int64_t>(original.size()));
    return {found.largest, found.sum, found.lowest, found.highest};
}

Activation activation(int lo, int hi, int slope = 0) {
    check(lo <= 0 && lo >= -2047 && hi >= 0 && hi <= 4095 && slope >= 0 && slope <= 8, "range of an activation");
    return {static_cast<int16_t>(lo), static_cast<int16_t>(hi), slope};
}

using Table8 = Input<uint8_t>;

Dense make_dense(Input<int16_t> weight, Input<int32_t> bias, std::optional<Table8> shift, int amax, int lo, int hi, int slope) {
    check(weight.ndim() == 3 && bias.size() == weight.shape(0) && (!shift || shift->size() == bias.size()), "shapes of a layer");
    return Dense(weight.data(), bias.data(), shift ? shift->data() : nullptr, static_cast<int64_t>(weight.shape(0)),
                 static_cast<int64_t>(weight.shape(1)), static_cast<int64_t>(weight.shape(2)), amax, activation(lo, hi, slope));
}

void run_mlp(const Mlp& mlp, Input<int16_t> input, Output<int32_t> output) {
    const auto width = static_cast<std::size_t>(mlp.padded_inputs()), outputs = static_cast<std::size_t>(mlp.outputs());
    check(input.ndim() == 2 && input.shape(1) == width && output.size() == input.shape(0) * outputs, "shapes of a run");
    nb::gil_scoped_release release;
    const auto count = static_cast<int64_t>(input.shape(0));
    check(mlp.in_range(input.data(), count), "an input is out of range");
    mlp.run(input.data(), count, output.data());
}

using Axes = std::vector<int64_t>;

void add_conv(Network& network, const Dense& dense, Axes kernel, Axes stride, Axes pad, Axes modes) {
    const std::size_t dims = kernel.size();
    check(static_cast<int>(dims) == network.dims_now() && stride.size() == dims && pad.size() == 2 * dims && modes.size() == dims,
          "axes of a conv layer");
    network.conv(dense, kernel.data(), stride.data(), pad.data(), modes.data());
}

void add_reshape(Network& network, Axes shape) {
    check(shape.size() >= 2, "axes of a reshape");
    network.reshape(shape.data(), static_cast<int>(shape.size()) - 1);
}

void run_network(const Network& network, Input<int16_t> input, int64_t items, Axes spatial, Output<int32_t> output) {
    check(static_cast<int>(spatial.size()) == network.dims(), "axes of a run");
    Network::Extents extents{1, 1, 1};
    auto expected = static_cast<uint64_t>(network.channels());
    for (std::size_t i = 0; i < spatial.size(); ++i) {
        check(spatial[i] > 0 && static_cast<uint64_t>(spatial[i]) <= input.size(), "extents of a run");
        extents[kMaxSpatial - spatial.size() + i] = spatial[i];
        expected *= static_cast<uint64_t>(spatial[i]);
        check(expected <= input.size(), "extents of a run");
    }
    check(items > 0 && input.size() % expected == 0 && input.size() / expected == static_cast<uint64_t>(items), "items of a run");
    check(output.size() % static_cast<uint64_t>(items) == 0 &&
              output.size() / static_cast<uint64_t>(items) == static_cast<uint64_t>(network.outputs(extents)),
          "size of a result");
    nb::gil_scoped_release release;
    check(network.in_range(input.data(), static_cast<int64_t>(input.size())), "an input is out of range");
    network.run(input.data(), items, extents, output.data());
}

void bind_learned(nb::module_& m) {
    const auto build = [](const std::vector<nb::object>& nets, const std::vector<std::pair<int, int>>& sees) {
        check(nets.size() == LearnedNets::kSlots, "number of networks");
        LearnedNets built{sights_of(sees), {}};
        for (std::size_t k = 0; k < nets.size(); ++k) {
            if (nets[k].is_none()) continue;
            const Mlp& net = nb::cast<const Mlp&>(nets[k]);
            check(net.inputs() == built.sights[k].inputs() && net.outputs() == 2 && net.lowest() <= -kLargestInput &&
                      net.highest() >= kLargestInput,
                  "inputs or outputs of a network");
            built.net[k] = net;
        }
        return built;
    };
    nb::class_<LearnedNets>(m, "LearnedNets").def(nb::new_(build), nb::arg("nets"), nb::arg("sees"));
}

void add_to_forecaster(Forecaster& forecaster, int64_t age, Input<int8_t> taps, Input<int16_t> weights, int shift,
                       Input<int32_t> offset, int offset_shift) {
    const auto lines = static_cast<std::size_t>(forecaster.lines()), columns = static_cast<std::size_t>(forecaster.columns());
    check(taps.ndim() == 2 && taps.shape(1) == 3, "taps that are not rows of three");
    check(weights.ndim() == 3 && weights.shape(0) == taps.shape(0) && weights.shape(1) == lines && weights.shape(2) == columns,
          "weights of another shape than taps x grid");
    check(offset.ndim() == 2 && offset.shape(0) == lines && offset.shape(1) == columns,
          "an offset of another shape than the grid");
    forecaster.add(age, taps.data(), static_cast<int64_t>(taps.shape(0)), weights.data(), shift, offset.data(), offset_shift);
}

void set_spread(Forecaster& forecaster, Input<int16_t> spread, int shift) {
    check(spread.ndim() == 2 && spread.shape(0) == static_cast<std::size_t>(forecaster.lines()) &&
              spread.shape(1) == static_cast<std::size_t>(forecaster.columns()),
          "a spread of another shape than the grid");
    forecaster.set_spread(spread.data(), shift);
}

void bind_forecaster(nb::module_& m) {
    nb::class_<Forecaster>(m, "Forecaster")
        .def(nb::init<int64_t, int64_t>(), nb::arg("lines"), nb::arg("columns"))
        .def("add", &add_to_forecaster, nb::arg("age"), nb::arg("taps").noconvert(), nb::arg("weights").noconvert(),
             nb::arg("shift"), nb::arg("offset").noconvert(), nb::arg("offset_shift"))
        .def("set_spread", &set_spread, nb::arg("spread").noconvert(), nb::arg("shift"))
        .def_prop_ro("grid", [](const Forecaster& self) { return nb::make_tuple(self.lines(), self.columns()); });
}

void bind_networks(nb::module_& m) {
    nb::class_<Dense>(m, "Dense")
        .def(nb::new_(&make_dense), nb::arg("weight").noconvert(), nb::arg("bias").noconvert(),
             nb::arg("shift").noconvert().none(), nb::arg("amax"), nb::arg("lo"), nb::arg("hi"), nb::arg("slope"));
    nb::class_<Mlp>(m, "Mlp")
        .def(nb::new_([](std::vector<Dense> layers, int lo, int hi, int level) {
                 return Mlp(std::move(layers), activation(lo, hi), level);
             }),
             nb::arg("layers"), nb::arg("lo"), nb::arg("hi"), nb::arg("level") = -1)
        .def("run", &run_mlp, nb::arg("input").noconvert(), nb::arg("output").noconvert())
        .def_prop_ro_static("max_width", [](nb::handle) { return Mlp::kMaxWidth; })
        .def_prop_ro("inputs", &Mlp::inputs)
        .def_prop_ro("padded_inputs", &Mlp::padded_inputs)
        .def_prop_ro("outputs", &Mlp::outputs)
        .def_prop_ro("products", &Mlp::products);
    nb::class_<Network>(m, "Network")
        .def(nb::new_([](int64_t channels, int dims, int lo, int hi, int level) {
                 return Network(channels, dims, activation(lo, hi), level);
             }),
             nb::arg("channels"), nb::arg("dims"), nb::arg("lo"), nb::arg("hi"), nb::arg("level") = -1)
        .def("linear", [](Network& network, const Dense& dense) { network.linear(dense); })
        .def("conv", &add_conv, nb::arg("dense"), nb::arg("kernel"), nb::arg("stride"), nb::arg("pad"), nb::arg("padding"))
        .def("reshape", &add_reshape, nb::arg("shape"))
        .def(
            "pixel_shuffle",
            [](Network& network, Axes factor) { network.pixel_shuffle(factor.data(), static_cast<int>(factor.size())); },
            nb::arg("factor"))
        .def(
            "gdn",
            [](Network& network, const Dense& sums, Table8 norm_shift, Table8 shift, int lo, int hi) {
                check(norm_shift.size() == shift.size() && static_cast<int64_t>(shift.size()) == sums.outputs, "tables of a gdn");
                network.gdn(sums, norm_shift.data(), shift.data(), activation(lo, hi));
            },
            nb::arg("sums"), nb::arg("norm_shift").noconvert(), nb::arg("shift").noconvert(), nb::arg("lo"), nb::arg("hi"))
        .def(
            "add",
            [](Network& network, int64_t tensor, int a, int b, int shift, int lo, int hi, int slope) {
                network.add(tensor, {{a, b}, shift, slope, lo, hi});
            },
            nb::arg("tensor"), nb::arg("a"), nb::arg("b"), nb::arg("shift"), nb::arg("lo"), nb::arg("hi"), nb::arg("slope"))
        .def(
            "table",
            [](Network& network, Input<int16_t> table, int lo, int hi) {
                network.table(table.data(), static_cast<int64_t>(table.size()), activation(lo, hi));
            },
            nb::arg("table").noconvert(), nb::arg("lo"), nb::arg("hi"))
        .def("run", &run_network, nb::arg("input").noconvert(), nb::arg("items"), nb::arg("spatial"),
             nb::arg("output").noconvert());
    m.def("network_levels", [] {
        nb::list names;
        for (int i = 0; i < network_levels(); ++i) names.append(kNetworkLoops[i].name);
        return names;
    });
}

template <class T>
void bind_floating(nb::module_& m) {
    m.def("encode_interpolation", &encode_interpolation<T>, nb::arg("data").noconvert(), nb::arg("mask").none(),
          nb::arg("tolerance"), nb::arg("step"), nb::arg("offset"), nb::arg("batch"), nb::arg("reference"), nb::arg("reversed"),
          nb::arg("coder"), nb::arg("alpha16"), nb::arg("beta16"), nb::arg("nets").none() = nb::none());
    m.def("collect_interpolation", &collect_interpolation<T>, nb::arg("data").noconvert(), nb::arg("mask").none(),
          nb::arg("tolerance"), nb::arg("step"), nb::arg("offset"), nb::arg("batch"), nb::arg("reference"), nb::arg("every"),
          nb::arg("sees"));
    m.def("decode_interpolation", &decode_interpolation<T>, nb::arg("codes"), nb::arg("outliers"), nb::arg("out").noconvert(),
          nb::arg("mask").none(), nb::arg("step"), nb::arg("offset"), nb::arg("batch"), nb::arg("reference"), nb::arg("reversed"),
          nb::arg("coder"), nb::arg("alpha16"), nb::arg("beta16"), nb::arg("nets").none() = nb::none());
    m.def("encode_frames", &encode_frames<T>, nb::arg("data").noconvert(), nb::arg("mask").none(), nb::arg("tolerance"),
          nb::arg("step"), nb::arg("offset"), nb::arg("batch"), nb::arg("coder"), nb::arg("alpha16"), nb::arg("beta16"),
          nb::arg("nets").none(), nb::arg("schedule"), nb::arg("predict"), nb::arg("out").noconvert(), nb::arg("examples"));
    m.def("decode_frames", &decode_frames<T>, nb::arg("codes"), nb::arg("outliers"), nb::arg("out").noconvert(),
          nb::arg("mask").none(), nb::arg("step"), nb::arg("offset"), nb::arg("batch"), nb::arg("coder"), nb::arg("alpha16"),
          nb::arg("beta16"), nb::arg("nets").none(), nb::arg("schedule"), nb::arg("predict"));
    m.def("weigh_frames", &weigh_frames<T>, nb::arg("frames"), nb::arg("taps"), nb::arg("weights"), nb::arg("out").noconvert());
    m.def("fit_frames", &fit_frames<T>, nb::arg("frames").noconvert(), nb::arg("sources").noconvert(), nb::arg("taps"),
          nb::arg("points"), nb::arg("tolerance"));
    m.def("round_frame", &round_frame<T>, nb::arg("frame").noconvert(), nb::arg("mask").none(), nb::arg("step"),
          nb::arg("offset"), nb::arg("out").noconvert());
    m.def("move_frame", &move_frame<T>, nb::arg("frame").noconvert(), nb::arg("vectors"), nb::arg("block"),
          nb::arg("out").noconvert());
    m.def("encode_causal", &encode_causal<T>, nb::arg("data").noconvert(), nb::arg("mask").none(), nb::arg("tolerance"),
          nb::arg("step"), nb::arg("offset"), nb::arg("coder"), nb::arg("forecaster").none() = nb::none());
    m.def("encode_local", &encode_local<T>, nb::arg("data").noconvert(), nb::arg("mask").none(), nb::arg("tolerance"),
          nb::arg("step"), nb::arg("offset"));
    m.def("decode_local", &decode_local<T>, nb::arg("codes"), nb::arg("out").noconvert(), nb::arg("mask").none(), nb::arg("step"),
          nb::arg("offset"));
    m.def("within", &within<T>, nb::arg("original").noconvert(), nb::arg("reconstruction").noconvert(), nb::arg("tolerance"));
    m.def("error_moments", &moments_of_errors<T>, nb::arg("original").noconvert(), nb::arg("reconstruction").noconvert());
    m.def("decode_causal", &decode_causal<T>, nb::arg("codes"), nb::arg("outliers"), nb::arg("out").noconvert(),
          nb::arg("mask").none(), nb::arg("step"), nb::arg("offset"), nb::arg("coder"),
          nb::arg("forecaster").none() = nb::none());
}

template <class U>
void bind_lossless(nb::module_& m) {
    m.def("encode_lossless", &encode_lossless<U>, nb::arg("values").noconvert(), nb::arg("dims"), nb::arg("order"));
    m.def("decode_lossless", &decode_lossless<U>, nb::arg("codes"), nb::arg("values").noconvert(), nb::arg("dims"),
          nb::arg("order"));
}

}  // namespace

NB_MODULE(_core, m) {
    m.doc() = "Native core of aesz_codec: prediction, quantization and entropy coding of whole chunks.";
    nb::exception<CorruptStream>(m, "CorruptDataError", PyExc_ValueError);
    nb::class_<FrameSums>(m, "FrameSums", "References that are weighted sums of decoded frames.")
        .def(
            "__init__",
            [](FrameSums* self, Input<int64_t> rows, const std::vector<std::pair<Input<int64_t>, Input<double>>>& sums) {
                new (self) FrameSums(frame_sums(rows, sums));
            },
            nb::arg("rows"), nb::arg("sums"));
    bind_floating<float>(m);
    bind_floating<double>(m);
    bind_lossless<uint8_t>(m);
    bind_lossless<uint16_t>(m);
    bind_lossless<uint32_t>(m);
    bind_lossless<uint64_t>(m);
    m.def("encode_labels", &encode_labels, nb::arg("labels").noconvert());
    m.def("decode_labels", &decode_labels, nb::arg("codes"), nb::arg("labels").noconvert());
    bind_networks(m);
    bind_learned(m);
    bind_forecaster(m);
    m.def("encode_weights", &encode_weights, nb::arg("values").noconvert());
    m.def("decode_weights", &decode_weights, nb::arg("codes"), nb::arg("out").noconvert(), nb::arg("lowest"), nb::arg("highest"));
    m.def("exp2_into", &exp2_into, nb::arg("x").noconvert(), nb::arg("out").noconvert());
}
