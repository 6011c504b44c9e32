#ifndef EXPONENTIAL_C
#define EXPONENTIAL_C
// exp without a call: a compiler can do sixteen at once, which it cannot with a device's own.
//
// exp(x) = 2^n * exp(r), where n is x / ln 2 rounded, and r = x - n ln 2 lies within 0.35 of 0: there a polynomial is enough.
// It is off by at most 2 units in the last place (OpenCL's own may be off by 3).

// Coefficients: Cephes' expf (Moshier 1989). Of one number, or of several at once.
#define EXPONENTIAL_NEAR_0(r) \
    ((((((1.9875691500e-4f * (r) + 1.3981999507e-3f) * (r) + 8.3334519073e-3f) * (r) + 4.1665795894e-2f) * (r) + 1.6666665459e-1f) \
      * (r) + 5.0000001201e-1f) * ((r) * (r)) + (r) + 1.0f)

FUNCTION float exponential(float x) {
    x = x > 89.0f ? 89.0f : x;      // infinity
    x = x < -104.0f ? -104.0f : x;  // 0
    float shifted = x * 1.44269504f + 12582912.0f;  // + 1.5 * 2^23: rounded to a whole number, which is in the lowest bits
    float n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts; the first has few bits, its product is exact
    float y = EXPONENTIAL_NEAR_0(r);
    int power = (int)(as_uint(shifted) << 23) >> 23;  // n again, as the lowest nine bits tell it
    int first = power >> 1, second = power - first;   // in two steps, since 2^n itself may be too small or too large for a float
    return y * as_float((uint)(first + 127) << 23) * as_float((uint)(second + 127) << 23);
}

#endif
