// Range coder with 64-bit low and range, renormalised 32 bits at a time.  docs/format.md, section 6.
//
// Encoder and decoder share one interface, so that a model is written once and cannot differ between the directions:
//   bit(value, p1)               one binary decision; p1 = P(bit = 1) in 1/65536, 1..65535
//   likely_bit(value, p1)        the same in less time, where it is nearly always 1
//   symbol(value, distribution)  one of several; distribution(i) = P(symbol < i) in 1/32768, strictly increasing
//   raw(value, bits)             equiprobable bits, at most 16
// The encoder writes `value` and returns it; the decoder ignores it and returns what it reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "portable.hpp"

namespace aesz {

class RangeEncoder {
  public:
    static constexpr bool decoding = false;

    int bit(int value, uint32_t p1) {
        const uint64_t bound = (range_ >> 16) * p1;
        if (value) {
            range_ = bound;
        } else {
            add(bound);
            range_ -= bound;
        }
        normalize();
        return value;
    }

    int likely_bit(int value, uint32_t p1) { return bit(value, p1); }

    template <class Distribution>
    int symbol(int value, const Distribution& below) {
        const uint64_t unit = range_ >> 15;
        add(unit * static_cast<uint64_t>(below(value)));
        range_ = unit * static_cast<uint64_t>(below(value + 1) - below(value));
        normalize();
        return value;
    }

    uint32_t raw(uint32_t value, int bits) {
        range_ >>= bits;
        add(range_ * value);
        normalize();
        return value;
    }

    // Ends the stream with few bytes: the roundest number in [low, low + range), less its own trailing zeros.
    std::vector<uint8_t> finish() {
        for (int shift = 56; shift > 0; shift -= 8) {
            const uint64_t mask = ~uint64_t{0} << shift;
            const uint64_t candidate = (low_ + ~mask) & mask;
            if (candidate - low_ < range_) {
                if (candidate < low_) carry();
                low_ = candidate;
                break;
            }
        }
        out_.resize(size_);
        for (; low_; low_ <<= 8) out_.push_back(static_cast<uint8_t>(low_ >> 56));
        return std::move(out_);
    }

  private:
    void add(uint64_t amount) {
        low_ += amount;
        if (low_ < amount) carry();
    }

    void carry() {
        for (std::size_t i = size_; i-- > 0 && ++out_[i] == 0;) {
        }
    }

    void normalize() {
        if (range_ < (uint64_t{1} << 32)) {
            if (AESZ_UNLIKELY(out_.size() - size_ < 4)) grow();
            uint8_t* const next = out_.data() + size_;
            for (int i = 0; i < 4; ++i) next[i] = static_cast<uint8_t>(low_ >> (56 - 8 * i));
            size_ += 4;
            low_ <<= 32;
            range_ <<= 32;
        }
    }

    AESZ_RARE void grow() { out_.resize(2 * out_.size() + 4096); }

    uint64_t low_ = 0;
    uint64_t range_ = ~uint64_t{0};
    std::vector<uint8_t> out_;  // with room; `size_` bytes are in use
    std::size_t size_ = 0;
};

// Zeros follow the last byte.  No input makes it read outside the data or divide by zero.
class RangeDecoder {
  public:
    static constexpr bool decoding = true;

    RangeDecoder(const uint8_t* data, std::size_t size) : next_(data), end_(data + size) {
        code_ = static_cast<uint64_t>(word()) << 32;
        code_ |= word();
    }

    int bit(int, uint32_t p1) {
        const uint64_t bound = (range_ >> 16) * p1;
        const uint64_t zero = uint64_t{0} - static_cast<uint64_t>(code_ >= bound);  // all ones for a 0: too random to branch on
        code_ -= bound & zero;
        range_ = bound ^ ((bound ^ (range_ - bound)) & zero);
        normalize();
        return static_cast<int>(zero + 1);
    }

    // The same, for the processor to guess: what follows need not wait for the comparison.
    int likely_bit(int, uint32_t p1) {
        const uint64_t bound = (range_ >> 16) * p1;
        const bool one = code_ < bound;
        if (AESZ_UNLIKELY(!one)) {
            code_ -= bound;
            range_ -= bound;
        } else {
            range_ = bound;
        }
        normalize();
        return one;
    }

    template <class Distribution>
    int symbol(int, const Distribution& below) {
        const uint64_t unit = range_ >> 15;
        const uint64_t target = code_ / unit;
        const int value = below.find(target < 32767 ? static_cast<int>(target) : 32767);
        code_ -= unit * static_cast<uint64_t>(below(value));
        range_ = unit * static_cast<uint64_t>(below(value + 1) - below(value));
        normalize();
        return value;
    }

    uint32_t raw(uint32_t, int bits) {
        range_ >>= bits;
        const uint64_t top = (uint64_t{1} << bits) - 1;
        uint64_t value = code_ / range_;
        if (value > top) value = top;
        code_ -= value * range_;
        normalize();
        return static_cast<uint32_t>(value);
    }

    // Zero bytes that were read after the end.  A sound stream needs at most eight.
    std::size_t overrun() const { return overrun_; }

  private:
    uint32_t word() {
        uint32_t value = 0;
        if (end_ - next_ >= 4) {
            value = static_cast<uint32_t>(next_[0]) << 24 | static_cast<uint32_t>(next_[1]) << 16 |
                    static_cast<uint32_t>(next_[2]) << 8 | next_[3];
            next_ += 4;
            return value;
        }
        for (int i = 0; i < 4; ++i) {
            value <<= 8;
            if (next_ < end_) {
                value |= *next_++;
            } else {
                ++overrun_;
            }
        }
        return value;
    }

    void normalize() {
        if (range_ < (uint64_t{1} << 32)) {
            code_ = code_ << 32 | word();
            range_ <<= 32;
        }
    }

    const uint8_t* next_;
    const uint8_t* end_;
    uint64_t code_ = 0;
    uint64_t range_ = ~uint64_t{0};
    std::size_t overrun_ = 0;
};

}  // namespace aesz
