// Rotary position embedding; a work-group for each token, a lane for each pair of components, in all heads.
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

KERNEL void rope(GLOBAL const float* x, GLOBAL const int* positions, GLOBAL const float* freqs, GLOBAL float* y,
                 int h, int d, int r, int neox) {
    x += (size_t)GROUP(0) * h * d;
    y += (size_t)GROUP(0) * h * d;
    ulong position = (ulong)(long)positions[GROUP(0)];

    for (int i = LANE; i < r; i += LANES) {
        int turn = (int)(uint)(position * turns(freqs[i]) >> 32);  // from -half a turn to half a turn
        float angle = turn * 1.4629180792671596e-9f;         // 2 pi / 2^32
        float c = cos(angle), s = sin(angle);
        int first = neox ? i : 2 * i, second = neox ? i + r : 2 * i + 1;
        for (int head = 0; head < h; head++) {
            float a = x[head * d + first], b = x[head * d + second];
            y[head * d + first] = a * c - b * s;
            y[head * d + second] = a * s + b * c;
        }
    }
    for (int i = 2 * r + LANE; i < d; i += LANES)  // what is not turned
        for (int head = 0; head < h; head++) y[head * d + i] = x[head * d + i];
}
