// Rotary position embedding; a work-group for each token, a lane for each pair of components, in all heads.
#include "rope_angle.c"

KERNEL void rope(GLOBAL const float* x, GLOBAL const int* positions, GLOBAL const float* freqs, GLOBAL float* y,
                 int h, int d, int r, int neox) {
    x += (size_t)GROUP(0) * h * d;
    y += (size_t)GROUP(0) * h * d;

    for (int i = LANE; i < r; i += LANES) {
        float c, s;
        cos_sin(positions[GROUP(0)], freqs[i], &c, &s);
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
