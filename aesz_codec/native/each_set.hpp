// Includes AESZ_FILE, the name of a file of loops, once for every instruction set, in a namespace of its own.
// Every function in it has AESZ_TARGET in front; AESZ_WIDE says whether there are the intrinsics of AVX2.  All sets give the same
// bits.  Which one is used: kAvx2 in kernels.hpp.
// No include guard.

#define AESZ_TARGET
#define AESZ_WIDE 0
namespace portable {
#include AESZ_FILE
}
#undef AESZ_TARGET
#undef AESZ_WIDE

#if AESZ_HAS_AVX2
#define AESZ_TARGET __attribute__((target("avx2,bmi,bmi2")))
#define AESZ_WIDE 1
namespace avx2 {
#include AESZ_FILE
}
#undef AESZ_TARGET
#undef AESZ_WIDE
#endif

#undef AESZ_FILE
