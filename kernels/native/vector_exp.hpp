// The exponential of the softmax.
#pragma once

#include "elements.hpp"

namespace quire::QUIRE_ISA {

// e**x for x <= 88, every lane by itself. Cephes' expf: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, 2**n
// put into the exponent. ln 2 comes in two parts, the first of 9 bits so that n times it is exact without a fused
// multiply-add too. Error: 1.01 ulp at most over a dense sample of the range (tests/kernels/test_native_exp.py holds it
// below 1.5); results below 2**-126 are 0; exp(0) is exactly 1, exp(-inf) exactly 0, nan stays nan.
static inline vec exp(vec x) {
    constexpr float kLowest = -87.33654f;  // ln(2**-126)
    const vec clamped = x < kLowest ? broadcast(kLowest) : x;
    const vec shifted = fma(clamped, broadcast(1.44269504088896341f), broadcast(kRoundToInteger));
    const vec n = shifted - kRoundToInteger;
    vec r = fma(n, broadcast(-0.693359375f), clamped);
    r = fma(n, broadcast(2.12194440e-4f), r);
    vec p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    const ivec power = ((ivec)shifted - (ivec)broadcast(kRoundToInteger) + 127) << 23;
    return x < kLowest ? vec{} : p * (vec)power;
}

}  // namespace quire::QUIRE_ISA
