// y = x / sqrt(mean(x^2) + eps) * weight; a work-group for each row.
#include "sums.c"

KERNEL void rmsnorm(GLOBAL const float* x, GLOBAL const float* weight, GLOBAL float* y, int n, float eps) {
    LOCAL float shared[LANES];
    x += (size_t)GROUP(0) * n;
    y += (size_t)GROUP(0) * n;

    float part[16] = {0};
    for (int i = LANE * 16; i + 16 <= n; i += LANES * 16)
        for (int j = 0; j < 16; j++) part[j] += x[i + j] * x[i + j];
    for (int i = n / 16 * 16 + LANE; i < n; i += LANES) part[0] += x[i] * x[i];
    float sum = sum_over_lanes(sum16(part), shared);

    float scale = 1 / sqrt(sum / n + eps);
    for (int i = LANE; i < n; i += LANES) y[i] = x[i] * scale * weight[i];
}
