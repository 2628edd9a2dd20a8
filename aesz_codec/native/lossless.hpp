// Lossless coding of bit patterns: ordered integers, a Lorenzo prediction, the length of the residual by context.
// docs/format.md, section 13.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "closed_loop.hpp"
#include "models.hpp"

namespace aesz {

// Maps the bits of a float to an unsigned integer of the same order, and back; integers of two's complement likewise.
enum class Order { plain = 0, twos_complement = 1, floating = 2 };

template <class U>
U to_ordered(U bits, Order order) {
    constexpr U top = static_cast<U>(U{1} << (8 * sizeof(U) - 1));
    if (order == Order::plain) return bits;
    if (order == Order::twos_complement) return static_cast<U>(bits ^ top);
    return bits & top ? static_cast<U>(~bits) : static_cast<U>(bits | top);
}

template <class U>
U from_ordered(U value, Order order) {
    constexpr U top = static_cast<U>(U{1} << (8 * sizeof(U) - 1));
    if (order == Order::plain) return value;
    if (order == Order::twos_complement) return static_cast<U>(value ^ top);
    return value & top ? static_cast<U>(value ^ top) : static_cast<U>(~value);
}

// Codes `shape.size` values in C order; `dims` axes (0..3, the last ones) take part in the prediction.
template <class U, class Coder>
void code_lossless(Coder& coder, U* values, const Shape& shape, int dims, Order order) {
    constexpr int kBits = 8 * sizeof(U);
    struct Models {
        Bit length[kBits + 2][128];  // a binary tree of 7 levels, by the lengths of the neighbours
        Bit second[kBits + 1], third[kBits + 1][2];
    };
    const auto models = std::make_unique<Models>();
    const int64_t width = shape.n ? shape.dim[static_cast<std::size_t>(shape.n - 1)] : 1;
    std::vector<uint8_t> lengths(static_cast<std::size_t>(width), 0);  // of the line before, overwritten from the west
    int64_t step[3] = {0, 0, 0}, dim[3] = {1, 1, 1};
    for (int k = 0; k < dims; ++k) {
        step[k] = shape.step[static_cast<std::size_t>(shape.n - 1 - k)];
        dim[k] = shape.dim[static_cast<std::size_t>(shape.n - 1 - k)];
    }
    const auto ordered = [&](int64_t at) { return to_ordered(values[at], order); };
    for (int64_t at = 0; at < shape.size; ++at) {
        const int64_t x = at % width;
        bool inside[3];
        for (int k = 0; k < 3; ++k) inside[k] = k < dims && at / step[k] % dim[k] > 0;
        U prediction = 0;
        for (int set = 1; set < 8; ++set) {  // inclusion and exclusion over the axes that have a predecessor
            int64_t back = 0;
            bool there = true;
            for (int k = 0; k < 3; ++k)
                if (set >> k & 1) {
                    there = there && inside[k];
                    back += step[k];
                }
            if (there)
                prediction = static_cast<U>(count_bits(static_cast<unsigned>(set)) % 2 ? prediction + ordered(at - back)
                                                                                       : prediction - ordered(at - back));
        }
        const U residual = Coder::decoding ? 0 : static_cast<U>(ordered(at) - prediction);
        const U top = static_cast<U>(U{1} << (kBits - 1));
        U folded = residual & top ? static_cast<U>(~static_cast<U>(residual << 1)) : static_cast<U>(residual << 1);
        unsigned length = 0;
        while (!Coder::decoding && length < kBits && folded >> length) ++length;
        const unsigned west = x ? lengths[static_cast<std::size_t>(x - 1)] : lengths[0],
                       north = lengths[static_cast<std::size_t>(x)];
        const unsigned context = (west + north + 1) / 2;
        unsigned node = 1;
        for (int bit = 6; bit >= 0; --bit)
            node = 2 * node + static_cast<unsigned>(code_bit(coder, models->length[context][node], length >> bit & 1));
        length = node & 127;
        if (length > kBits) throw CorruptStream("a lossless residual is too long");
        if (length >= 2) {
            U value = 1;
            const unsigned second = static_cast<unsigned>(code_bit(coder, models->second[length], folded >> (length - 2) & 1));
            value = static_cast<U>(value << 1 | second);
            unsigned left = length - 2;
            if (left) {
                --left;
                value = static_cast<U>(value << 1 |
                                       static_cast<U>(code_bit(coder, models->third[length][second], folded >> left & 1)));
            }
            while (left) {
                const unsigned n = left < 16 ? left : 16;
                left -= n;
                const uint32_t part = coder.raw(static_cast<uint32_t>(folded >> left) & ((1u << n) - 1), static_cast<int>(n));
                value = static_cast<U>(static_cast<uint64_t>(value) << n | part);
            }
            folded = value;
        } else {
            folded = static_cast<U>(length);
        }
        lengths[static_cast<std::size_t>(x)] = static_cast<uint8_t>(length);
        if (Coder::decoding) {
            const U unfolded = folded & 1 ? static_cast<U>(~(folded >> 1)) : static_cast<U>(folded >> 1);
            values[at] = from_ordered(static_cast<U>(prediction + unfolded), order);
        }
    }
}

}  // namespace aesz
