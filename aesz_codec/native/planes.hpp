// Where multi-level interpolation keeps its points: the classes of a level, and a dense plane for each.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "closed_loop.hpp"
#include "kernels.hpp"

namespace aesz {

// The classes of a level as sets of odd axes (bit a = axis a): fewer odd axes first, then by set, or against it.
inline std::vector<int> class_order(int n, bool reversed) {
    std::vector<int> order;
    for (int set = 1; set < 1 << n; ++set) order.push_back(set);
    std::sort(order.begin(), order.end(), [reversed](int x, int y) {
        const int cx = count_bits(static_cast<unsigned>(x)), cy = count_bits(static_cast<unsigned>(y));
        return cx != cy ? cx < cy : reversed ? x > y : x < y;
    });
    return order;
}

// Where a level keeps its points: one dense plane a class, all of the same size, the coarser levels in plane 0.
class LevelPlanes {
  public:
    LevelPlanes(const Shape& shape, int64_t stride) {
        int64_t dims[kMaxDims];
        for (int a = 0; a < shape.n; ++a) {
            dims[a] = (shape.dim[static_cast<std::size_t>(a)] + 2 * stride - 1) / (2 * stride);
            grid_[static_cast<std::size_t>(a)] = (shape.dim[static_cast<std::size_t>(a)] + stride - 1) / stride;
        }
        plane_ = Shape(shape.n, dims);
    }

    int64_t size() const { return plane_.size << plane_.n; }
    int64_t start(int set) const { return set * plane_.size; }
    int64_t step(int axis) const { return plane_.step[static_cast<std::size_t>(axis)]; }

    // From a point of the class `set` to the one `distance` strides further along `axis`, and then along `axis2`.
    int64_t offset(int set, int axis, int distance, int axis2 = 0, int distance2 = 0) const {
        const auto along = [&](int a, int d) { return (((set >> a & 1) + d) >> 1) * step(a); };
        int target = set ^ ((distance & 1) << axis);
        int64_t elements = along(axis, distance);
        if (distance2) {
            target ^= (distance2 & 1) << axis2;
            elements += along(axis2, distance2);
        }
        return start(target) - start(set) + elements;
    }

    // The same along all axes at once.
    int64_t offset_of(int set, const std::array<int, kMaxDims>& distance) const {
        int64_t elements = 0;
        int target = 0;
        for (int a = 0; a < plane_.n; ++a) {
            const int x = (set >> a & 1) + distance[static_cast<std::size_t>(a)];
            target |= (x & 1) << a;
            elements += (x >> 1) * step(a);
        }
        return start(target) - start(set) + elements;
    }

    // Writes all points of the level in C order: as the plane 0 of the next finer level has them, or the frame.
    template <class U>
    void merge(const U* planes, U* out) const {
        const int inner = plane_.n - 1;
        const int64_t width = grid_[static_cast<std::size_t>(inner)];
        Coordinates c{};
        do {
            const int64_t at = line_start(c);
            interleave(planes + at, planes + at + start(1 << inner), width, out);
            out += width;
        } while (advance(c, inner, grid_));
    }

    // The reverse.
    template <class U>
    void split(const U* frame, const Shape& shape, int64_t stride, U* planes) const {
        const int inner = plane_.n - 1;
        Coordinates c{};
        do {
            const int64_t at = line_start(c);
            int64_t from = 0;
            for (std::size_t a = 0; a < static_cast<std::size_t>(inner); ++a) from += c[a] * stride * shape.step[a];
            for (int64_t x = 0; x < grid_[static_cast<std::size_t>(inner)]; ++x)
                planes[at + (x >> 1) + (x & 1) * start(1 << inner)] = frame[from + x * stride];
        } while (advance(c, inner, grid_));
    }

  private:
    // The place of the first point of a line of the level.
    int64_t line_start(const Coordinates& c) const {
        int64_t at = 0;
        for (int a = 0; a + 1 < plane_.n; ++a) {
            const int64_t x = c[static_cast<std::size_t>(a)];
            at += (x >> 1) * step(a) + ((x & 1) << a) * plane_.size;
        }
        return at;
    }

    Shape plane_;
    Coordinates grid_{};  // points of the level along each axis
};

// The planes of all levels, one after the other.
class Pyramid {
  public:
    Pyramid(const Shape& shape, int levels) {
        for (int l = 0; l < levels; ++l) {
            levels_.emplace_back(shape, int64_t{1} << l);
            start_.push_back(size_);
            size_ += levels_.back().size();
        }
    }
    const LevelPlanes& operator[](int level) const { return levels_[static_cast<std::size_t>(level)]; }
    int64_t start(int level) const { return start_[static_cast<std::size_t>(level)]; }
    int64_t size() const { return size_; }

  private:
    std::vector<LevelPlanes> levels_;
    std::vector<int64_t> start_;
    int64_t size_ = 0;
};

}  // namespace aesz
