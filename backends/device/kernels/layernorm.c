// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; a work-group for each row.
//
// The row is read for its mean, and then again for its variance. mean(x^2) - mean(x)^2 would save one reading. But where the mean
// is large beside the spread these two are nearly equal, and their difference is little more than their rounding.
#include "sums.c"

KERNEL void layernorm(GLOBAL const float* x, GLOBAL const float* weight, GLOBAL const float* bias, GLOBAL float* y, int n,
                      float eps) {
    LOCAL float shared[LANES];
    x += (size_t)GROUP(0) * n;
    y += (size_t)GROUP(0) * n;

    float part[16] = {0};
    for (int i = LANE * 16; i + 16 <= n; i += LANES * 16)
        for (int j = 0; j < 16; j++) part[j] += x[i + j];
    for (int i = n / 16 * 16 + LANE; i < n; i += LANES) part[0] += x[i];
    float mean = sum_over_lanes(sum16(part), shared) / n;

    for (int j = 0; j < 16; j++) part[j] = 0;
    for (int i = LANE * 16; i + 16 <= n; i += LANES * 16)
        for (int j = 0; j < 16; j++) part[j] += (x[i + j] - mean) * (x[i + j] - mean);
    for (int i = n / 16 * 16 + LANE; i < n; i += LANES) part[0] += (x[i] - mean) * (x[i] - mean);
    float variance = sum_over_lanes(sum16(part), shared) / n;

    float scale = 1 / sqrt(variance + eps);
    for (int i = LANE; i < n; i += LANES) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}
