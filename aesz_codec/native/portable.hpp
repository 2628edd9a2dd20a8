// The few things C++17 leaves to compilers.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#if defined(_MSC_VER)
#define AESZ_RESTRICT __restrict
#define AESZ_RARE __declspec(noinline)
#define AESZ_INLINE __forceinline
#define AESZ_UNLIKELY(condition) (condition)
#define AESZ_RANDOM(condition) (condition)
#define AESZ_UNROLL
#else
#define AESZ_RESTRICT __restrict__
#define AESZ_RARE __attribute__((noinline, cold))
#define AESZ_INLINE inline __attribute__((always_inline))
#define AESZ_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#if defined(__clang__)
#define AESZ_RANDOM(condition) __builtin_unpredictable(condition)
#define AESZ_UNROLL _Pragma("unroll")
#else
#define AESZ_RANDOM(condition) __builtin_expect_with_probability(condition, 1, 0.5)
#define AESZ_UNROLL _Pragma("GCC unroll 8")
#endif
#endif

// Whether there are loops for AVX2 besides the portable ones.
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define AESZ_HAS_AVX2 1
#include <immintrin.h>
#else
#define AESZ_HAS_AVX2 0
#endif

namespace aesz {

// Position of the highest set bit; x > 0.
inline int highest_bit(uint32_t x) {
#if defined(_MSC_VER)
    unsigned long index;
    _BitScanReverse(&index, x);
    return static_cast<int>(index);
#else
    return 31 - __builtin_clz(x);
#endif
}

inline int count_bits(unsigned x) {
    int n = 0;
    for (; x; x &= x - 1) ++n;
    return n;
}

inline uint32_t magnitude(int32_t x) { return static_cast<uint32_t>(x < 0 ? -x : x); }

// Position of the lowest set bit; x > 0.
inline int lowest_bit(uint64_t x) {
#if defined(_MSC_VER)
    unsigned long index;
    _BitScanForward64(&index, x);
    return static_cast<int>(index);
#else
    return __builtin_ctzll(x);
#endif
}

// Two integers of 16 bits as they lie one after the other in memory.
AESZ_INLINE int32_t side_by_side(int32_t first, int32_t second) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return static_cast<int32_t>(static_cast<uint32_t>(first) << 16 | (static_cast<uint32_t>(second) & 0xFFFF));
#else
    return static_cast<int32_t>(static_cast<uint32_t>(second) << 16 | (static_cast<uint32_t>(first) & 0xFFFF));
#endif
}

// Streams are little-endian on every machine.
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
inline uint16_t little_endian(uint16_t x) { return __builtin_bswap16(x); }
inline uint64_t little_endian(uint64_t x) { return __builtin_bswap64(x); }
#else
inline uint16_t little_endian(uint16_t x) { return x; }
inline uint64_t little_endian(uint64_t x) { return x; }
#endif

AESZ_INLINE uint64_t load_little_endian(const uint8_t* bytes) {
    uint64_t x;
    std::memcpy(&x, bytes, 8);
    return little_endian(x);
}
AESZ_INLINE void store_little_endian(uint8_t* bytes, uint64_t x) {
    x = little_endian(x);
    std::memcpy(bytes, &x, 8);
}

}  // namespace aesz
