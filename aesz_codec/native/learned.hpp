// Learned interpolation: a small integer network looks at the decoded points around a point, corrects the interpolated value
// and says how large its code will be.  docs/format.md, section 18; arithmetic: docs/networks.md.
//
// Every number below is an integer that a float holds exactly, so the order of sums does not matter and loops become SIMD.
#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "codes.hpp"
#include "kernels.hpp"
#include "networks.hpp"
#include "planes.hpp"

namespace aesz {

constexpr int kCodePoints = 8;     // codes of earlier points that a network sees
constexpr int kSummaries = 4;      // and scales
constexpr int kLearnedLevels = 4;  // the finest levels have networks
constexpr int kReach = 4;          // strides from a point to what its network sees, at most
constexpr int kLargestInput = 511, kLargestDifference = 32767;
constexpr int kFirstQuarter = 4 * (127 + 2);  // of floats from 4 on

// How many decoded points a network sees.
struct Sight {
    static constexpr int kMostAround = 24, kMostBefore = 13;
    int around;  // in the frame
    int before;  // and in the one before
    int inputs() const { return around + before + kCodePoints + kSummaries; }

    // Corrections are in 2^-fraction of the spread, in steps.
    int fraction() const { return around > 12 ? 24 : 22; }

    // Over the spread: what inputs are multiplied with, in 1/4096.
    float mean_input() const { return static_cast<float>(around * 64 * 4096); }
};

constexpr int kMostTaps = Sight::kMostAround + Sight::kMostBefore + kCodePoints;

// A point that is seen: elements from the one that is predicted, and a row of TileLanes.
struct LearnedTap {
    int64_t element;
    int lanes;
};

// Which points of a tile see a tap, by its offset along the last axis + kReach: all bits, or none; the last row sees nothing.
struct TileLanes {
    static constexpr int kNone = 2 * kReach + 1;
    alignas(64) int32_t seen[kNone + 1][kTilePoints];
};

// Where the first point of a tile is.
template <class T>
struct TileView {
    const T *now, *before;  // values of the frame and of the one before
    const int16_t *codes, *codes_before;
    const double* prediction;
    const uint32_t *near, *expected, *other;  // of LineSums
    double scale;                             // eighths of a step
};

// Points on their way through a network.
struct LearnedTile {
    alignas(64) int32_t inputs[(kMostTaps + kSummaries + 1) / 2 * kTilePoints];  // pairs, as Mlp takes them
    alignas(64) int32_t outputs[2 * kTilePoints];
    alignas(64) int32_t spread[kTilePoints];

    int16_t input(int k, int i) const {
        int16_t pair[2];
        std::memcpy(pair, inputs + k / 2 * kTilePoints + i, sizeof(pair));
        return pair[k % 2];
    }

    // What the network adds to a prediction, in 2^-Sight::fraction steps.
    double correction(int i) const { return static_cast<double>(outputs[i]) * static_cast<double>(spread[i]); }
};

#define AESZ_FILE "learned_loops.hpp"
#include "each_set.hpp"

// The networks of a pack: two axes; two axes with a frame before; three axes; one for every class of points.
struct LearnedNets {
    static constexpr int kSlots = 3 + 3 + 7;
    using Sights = std::array<Sight, kSlots>;
    Sights sights;
    std::array<std::optional<Mlp>, kSlots> net;

    static bool sound(const Sights& sights) {
        for (int slot = 0; slot < kSlots; ++slot) {
            const auto [around, before] = sights[static_cast<std::size_t>(slot)];
            const int most = slot >= 3 && slot < 6 ? Sight::kMostBefore : 0;
            if (around < 4 || around > Sight::kMostAround || before < 0 || before > most) return false;
        }
        return true;
    }

    const Mlp* find(int slot) const {
        const auto& found = net[static_cast<std::size_t>(slot)];
        return found ? &*found : nullptr;
    }

    static int slot(int axes, int set, bool refers) {
        if (axes == 2) return set - 1 + (refers ? 3 : 0);
        return axes == 3 && !refers ? set + 5 : -1;
    }
};

using Offset = std::array<int, kMaxDims>;  // in units of the stride

inline std::vector<Offset> first_of(std::vector<std::pair<int, Offset>>& found, int count) {
    std::partial_sort(found.begin(), found.begin() + count, found.end());
    std::vector<Offset> out;
    for (int k = 0; k < count; ++k) out.push_back(found[static_cast<std::size_t>(k)].second);
    return out;
}

// The decoded points nearest to one of the class `set`, by distance, then by offset.
inline std::vector<Offset> find_known_around(int axes, int set, const std::vector<int>& order) {
    const auto rank = [&](int s) { return std::find(order.begin(), order.end(), s) - order.begin(); };
    Coordinates start{}, end{};
    start.fill(-kReach);
    end.fill(kReach + 1);
    std::vector<std::pair<int, Offset>> found;
    Coordinates c = start;
    do {
        Offset o{};
        int target = 0, distance = 0, lead = 0;
        for (int a = 0; a < axes; ++a) {
            const int d = o[static_cast<std::size_t>(a)] = static_cast<int>(c[static_cast<std::size_t>(a)]);
            target |= (((set >> a & 1) + d) & 1) << a;
            distance += d * d;
            if (a + 1 < axes && lead == 0) lead = d;
        }
        const bool known = target == set ? lead < 0 : target == 0 || rank(target) < rank(set);
        if (known) found.emplace_back(distance, o);
    } while (advance(c, axes, end, start));
    return first_of(found, Sight::kMostAround);
}

// The same, found once: that takes as long as coding a thousand points.
inline const std::vector<Offset>& known_around(int axes, int set) {
    static const auto all = [] {
        std::array<std::vector<Offset>, LearnedNets::kSlots> found;
        for (int n : {2, 3})
            for (int s = 1; s < 1 << n; ++s)
                found[static_cast<std::size_t>(LearnedNets::slot(n, s, false))] = find_known_around(n, s, class_order(n, false));
        return found;
    }();
    return all[static_cast<std::size_t>(LearnedNets::slot(axes, set, false))];
}

// The places in another frame of two axes that are nearest to a point.
inline std::vector<Offset> nearest(int count) {
    std::vector<std::pair<int, Offset>> found;
    for (int y = -2; y <= 2; ++y)
        for (int x = -2; x <= 2; ++x) found.push_back({y * y + x * x, Offset{y, x}});
    return first_of(found, count);
}

// Corrects the predictions of a tile, and fills in the classes of their codes; `unit`: what a correction of 1 is worth.
inline void correct(const LearnedTile& tile, double unit, double* prediction, uint8_t* scale) {
    (kAvx2 ? avx2::apply_tile : portable::apply_tile)(tile, unit, prediction, scale);
}

// What a training run is given: the inputs of points, what the prediction lacked in steps, the spread.
struct LearnedSamples {
    LearnedNets::Sights sights;
    uint64_t every = 1;  // points
    uint64_t state = 1;
    std::array<std::vector<int16_t>, LearnedNets::kSlots> inputs;
    std::array<std::vector<float>, LearnedNets::kSlots> targets;

    template <class T>
    void add(int slot, const LearnedTile& tile, const T* data, int64_t distance, const uint8_t* mask, int points,
             const double* prediction, double inverse) {
        for (int i = 0; i < points; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            if ((mask && mask[i * distance]) || (state >> 33) % every) continue;
            auto& in = inputs[static_cast<std::size_t>(slot)];
            auto& out = targets[static_cast<std::size_t>(slot)];
            for (int k = 0; k < sights[static_cast<std::size_t>(slot)].inputs(); ++k) in.push_back(tile.input(k, i));
            out.push_back(static_cast<float>((static_cast<double>(data[i * distance]) - prediction[i]) * inverse));
            out.push_back(static_cast<float>(tile.spread[i]));
        }
    }
};

// What the network of one class of one level sees.
class LearnedPass {
  public:
    // Elements around lines that tiles read, though nothing comes of it.
    static constexpr int64_t kRoom = 2 * kTilePoints;

    LearnedPass(const Shape& shape, const LevelPlanes& planes, int set, int level, bool refers, Sight sight)
        : shape_(shape), level_(level), refers_(refers), sight_(sight) {
        const int inner = shape.n - 1;
        for (int k = 0; k < sight.around; ++k) add(planes, set, known_around(shape.n, set)[static_cast<std::size_t>(k)]);
        for (const Offset& o : nearest(sight.before)) add(planes, set, o);
        // codes: beside the point along its odd axes, in the line before, in the plane or the frame before
        std::size_t beside = 0;
        for (int a = 0; a <= inner && beside < 4; ++a)
            if (set >> a & 1)
                for (int d : {-1, 1}) add(planes, set, along(a, d)), ++beside;
        for (; beside < 4; ++beside) add_nothing();
        Offset north = along(inner - 1, -2);
        for (int d : {0, -2, 2}) {
            north[static_cast<std::size_t>(inner)] = d;
            add(planes, set, north);
        }
        if (refers) {
            add(planes, set, Offset{});
        } else if (inner > 1) {
            add(planes, set, along(inner - 2, -2));
        } else {
            add_nothing();
        }
        line_ = taps_;
        all_ = seen_ = (uint64_t{1} << taps_.size()) - 1;
        find_lanes(set >> inner & 1);
    }

    // To be called for every line, with the coordinates of its first point.
    void start_line(const Coordinates& c) {
        uint64_t seen = all_;
        for (std::size_t a = 0; a + 1 < static_cast<std::size_t>(shape_.n); ++a) {
            const int64_t before = c[a] >> level_, after = ((shape_.dim[a] - 1) >> level_) - before;
            if (before < kReach) seen &= beyond_[a][0][before];
            if (after < kReach) seen &= beyond_[a][1][after];
        }
        if (seen == seen_) return;
        seen_ = seen;
        for (std::size_t k = 0; k < taps_.size(); ++k) line_[k] = seen >> k & 1 ? taps_[k] : LearnedTap{0, TileLanes::kNone};
    }

    // Fills a tile with the inputs of the points of the line from `i` on, and their spread.
    template <class T>
    void look(const TileView<T>& at, int64_t i, int points, LearnedTile& tile) const {
        const auto fill = kAvx2 ? avx2::fill_tile<T> : portable::fill_tile<T>;
        fill(at, line_.data(), sight_, refers_, lanes_of(i / kTilePoints), points, tile);
    }

    // What a correction of 1 is worth, in steps.
    double unit() const { return 1.0 / (1 << sight_.fraction()); }

  private:
    static Offset along(int axis, int distance) {
        Offset o{};
        o[static_cast<std::size_t>(axis)] = distance;
        return o;
    }

    void add(const LevelPlanes& planes, int set, const Offset& o) {
        const uint64_t self = uint64_t{1} << taps_.size();
        for (std::size_t a = 0; a + 1 < static_cast<std::size_t>(shape_.n); ++a)
            for (int room = 0; room < kReach; ++room) {
                if (o[a] >= -room) beyond_[a][0][room] |= self;
                if (o[a] <= room) beyond_[a][1][room] |= self;
            }
        taps_.push_back({planes.offset_of(set, o), o[static_cast<std::size_t>(shape_.n - 1)] + kReach});
    }

    void add_nothing() { taps_.push_back({0, TileLanes::kNone}); }

    // Along the last axis points are at 2 i + odd strides.  Tiles amid a line have all lanes, its first and its last two not.
    void find_lanes(int64_t odd) {
        const int64_t most = (shape_.dim[static_cast<std::size_t>(shape_.n - 1)] - 1) >> level_;
        tiles_ = (most - odd) / 2 / kTilePoints + 1;
        const int64_t edge[4] = {1, 0, tiles_ - 2, tiles_ - 1};
        for (std::size_t k = 0; k < 4; ++k)
            for (int row = 0; row <= TileLanes::kNone; ++row)
                for (int j = 0; j < kTilePoints; ++j) {
                    const int64_t at = 2 * (edge[k] * kTilePoints + j) + odd + row - kReach;
                    const bool inside = row < TileLanes::kNone && (k == 0 || (at >= 0 && at <= most));
                    lanes_[k].seen[row][j] = -static_cast<int32_t>(inside);
                }
    }

    const TileLanes& lanes_of(int64_t tile) const {
        return lanes_[tile == tiles_ - 1 ? 3 : tile == tiles_ - 2 ? 2 : tile == 0 ? 1 : 0];
    }

    Shape shape_;
    int level_;
    bool refers_;
    Sight sight_;
    std::vector<LearnedTap> taps_, line_;        // everywhere; in the line at hand
    uint64_t all_ = 0, seen_ = 0;                // bits of taps
    uint64_t beyond_[kMaxDims][2][kReach] = {};  // taps seen with so many strides to the start or the end of an axis
    int64_t tiles_ = 0;                          // of a line
    TileLanes lanes_[4];                         // of tiles amid a line; of the first; of the last but one; of the last
};

}  // namespace aesz
