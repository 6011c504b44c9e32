// The angle of a rotary position embedding, and its cosine and sine.
//
// The angle is position * freq radians. At position 100,000 that product, rounded to float, is off by 0.004. But whole turns do
// not matter: the angle is kept as a fraction of a turn in 64 bits of fixed point, where whole turns are what overflows.

#define ONE_BY_2PI 0x28be60db9391054aUL  // 1 / (2 pi) * 2^64

// freq / (2 pi) * 2^64 modulo 2^64: turns a position.
FUNCTION ulong turns(float freq) {
    uint bits = as_uint(freq);
    int exponent = (int)(bits >> 23 & 255) - 127;
    ulong mantissa = (ulong)((bits & 0x7fffff) | 0x800000) << 40;  // freq = mantissa * 2^(exponent - 63)
    ulong high = mul_hi(mantissa, ONE_BY_2PI), low = mantissa * ONE_BY_2PI;
    ulong turned = 0;  // for what is far too slow or too fast to mean anything
    if (exponent < 0 && exponent >= -64) turned = high >> (-exponent - 1);
    if (exponent >= 0 && exponent < 63) turned = high << (exponent + 1) | low >> (63 - exponent);
    return bits >> 31 ? -turned : turned;
}

// Cosine and sine of position * freq. Polynomials within an eighth of a turn of the nearest quarter (Cephes' sinf and cosf,
// Moshier 1989), off by one unit in the last place: a CPU's own functions are called, and take three times as long.
FUNCTION void cos_sin(int position, float freq, float* c, float* s) {
    uint turn = (uint)((ulong)(long)position * turns(freq) >> 32);    // a fraction of a turn
    uint quarter = turn + (1u << 29) >> 30;                           // the nearest: 0 to 3
    float x = (int)(turn - (quarter << 30)) * 1.4629180792671596e-9f;  // 2 pi / 2^32: from -pi/4 to pi/4
    float z = x * x;
    float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
    float cosine = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1;
    float first = quarter & 1 ? sine : cosine, second = quarter & 1 ? cosine : sine;
    *c = quarter == 1 || quarter == 2 ? -first : first;
    *s = quarter & 2 ? -second : second;
}
