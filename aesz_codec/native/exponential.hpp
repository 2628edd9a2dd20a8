// 2^x by IEEE additions and multiplications alone, so that every machine gets the same bits.  docs/format.md, section 14.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace aesz {

// 2^x for |x| <= 1100; relative error below 1e-15.  Underflows through the denormals, overflows to infinity.
inline double exp2_exact(double x) {
    const double n = std::floor(x + 0.5);
    const double f = x - n;  // exact, in [-0.5, 0.5]
    // Taylor series of 2^f: (ln 2)^k / k!
    constexpr double c[] = {1.0,
                            0.6931471805599453,
                            0.24022650695910072,
                            0.05550410866482158,
                            0.009618129107628477,
                            0.0013333558146428443,
                            0.0001540353039338161,
                            1.525273380405984e-05,
                            1.3215486790144307e-06,
                            1.01780860092397e-07,
                            7.054911620801123e-09,
                            4.445538271870812e-10,
                            2.5678435993488206e-11,
                            1.3691488853904128e-12};
    double sum = c[13];
    for (int k = 12; k >= 0; --k) sum = sum * f + c[k];
    // times 2^n in two exact steps (the last may round into the denormals)
    const int whole = static_cast<int>(n), half = whole / 2, rest = whole - half;
    const auto power = [](int k) {
        const uint64_t bits = static_cast<uint64_t>(k + 1023) << 52;
        double p;
        std::memcpy(&p, &bits, sizeof p);
        return p;
    };
    return sum * power(half) * power(rest);
}

}  // namespace aesz
