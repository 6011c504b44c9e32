// What attention on a CPU is made of, for one token (attention_one.c) and for many (attention_many.c).
//
//      bring_key(p, w)      a key or a value of the cache as floats, to an array of one's own: PADDED(HEAD_K) or PADDED(HEAD_V)
//      bring_value(p, w)    of them, zeros after the last
//      exponentials(x)      exp of sixteen numbers that are not positive
#include "exponential.c"
#include "fetch.c"
#include "half.c"
#include "sixteen.c"
#include "attention_types.c"

#define CHUNKS(n) (((n) + 15) / 16)
#define PADDED(n) (CHUNKS(n) * 16)
#define LOWEST -3e38f  // below every score, and yet a number: what is subtracted from itself is 0
#define LARGER(a, b) ((a) > (b) ? (a) : (b))  // OpenCL's max and min are called by some compilers (PoCL 3.0)
#define SMALLER(a, b) ((a) < (b) ? (a) : (b))

FUNCTION void bring_key(GLOBAL const KEY* key, float* w) {
    UNROLL for (int i = 0; i + 16 <= HEAD_K; i += 16) to_array(w + i, KEYS_AT(key + i));
    for (int i = HEAD_K / 16 * 16; i < PADDED(HEAD_K); i++) w[i] = i < HEAD_K ? KEY_AT(key + i) : 0;
}

FUNCTION void bring_value(GLOBAL const VALUE* value, float* w) {
    UNROLL for (int i = 0; i + 16 <= HEAD_V; i += 16) to_array(w + i, VALUES_AT(value + i));
    for (int i = HEAD_V / 16 * 16; i < PADDED(HEAD_V); i++) w[i] = i < HEAD_V ? VALUE_AT(value + i) : 0;
}

// As exponential.c, which tells how. Nothing can be too large, and what is too small for a float with all digits is 0.
FUNCTION floats exponentials(floats x) {
    floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    floats y = EXPONENTIAL_NEAR_0(r);
    return x < -87.0f ? spread(0) : as_floats(as_ints(y) + (as_ints(shifted) << 23));
}
