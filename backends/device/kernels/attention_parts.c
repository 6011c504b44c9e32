// Attention step by step, each with its result in memory: for a trace that wants to see the scores.
#include "sums.c"
#include "half.c"
#include "exponential.c"

#if HALF
#define PLACE ushort
#define AT(p) half_to_float(p)
#else
#define PLACE float
#define AT(p) (p)
#endif

// kq[i, t, s] = q[t, i] . keys[s, i / (h/k)]; a work-group for each head and token.
KERNEL void attention_scores(GLOBAL const float* q, GLOBAL const PLACE* keys, GLOBAL float* kq, int h, int k, int d, int S) {
    int head = GROUP(0), t = GROUP(1), T = N_GROUPS(1);
    q += ((size_t)t * h + head) * d;
    kq += ((size_t)head * T + t) * S;
    for (int s = LANE; s < S; s += LANES) {
        GLOBAL const PLACE* key = keys + ((size_t)s * k + head / (h / k)) * d;
        float part[16] = {0};
        for (int i = 0; i + 16 <= d; i += 16)
            for (int j = 0; j < 16; j++) part[j] += q[i + j] * AT(key[i + j]);
        for (int i = d / 16 * 16; i < d; i++) part[0] += q[i] * AT(key[i]);
        kq[s] = sum16(part);
    }
}

// Scaled, and minus infinity where a key comes after the query.
KERNEL void causal_mask(GLOBAL const float* kq, GLOBAL const int* positions, GLOBAL float* y, int S, float scale) {
    size_t row = ((size_t)GROUP(0) * N_GROUPS(1) + GROUP(1)) * S;
    int position = positions[GROUP(1)];
    for (int s = LANE; s < S; s += LANES) y[row + s] = s > position ? -INFINITY : kq[row + s] * scale;
}

// A work-group for each row: its largest, then the exponentials, then their sum.
KERNEL void softmax(GLOBAL const float* x, GLOBAL float* y, int S) {
    LOCAL float shared[LANES];
    x += (size_t)GROUP(0) * S;
    y += (size_t)GROUP(0) * S;

    float largest = -INFINITY;
    for (int s = 0; s < S; s++) largest = x[s] > largest ? x[s] : largest;
    float part[16] = {0};
    for (int s = LANE; s < S; s += LANES) {
        y[s] = exponential(x[s] - largest);
        part[s / LANES % 16] += y[s];
    }
    float total = sum_over_lanes(sum16(part), shared);
    for (int s = LANE; s < S; s += LANES) y[s] /= total;
}

// y[t, i] = sum over s of p[i, t, s] * values[s, i / (h/k)]; a work-group for each head and token, a lane for each component.
KERNEL void attention_mix(GLOBAL const float* p, GLOBAL const PLACE* values, GLOBAL float* y, int h, int k, int d, int S) {
    int head = GROUP(0), t = GROUP(1), T = N_GROUPS(1);
    p += ((size_t)head * T + t) * S;
    y += ((size_t)t * h + head) * d;
    for (int e = LANE; e < d; e += LANES) {
        float part[16] = {0};
        for (int s = 0; s + 16 <= S; s += 16)
            for (int j = 0; j < 16; j++) part[j] += p[s + j] * AT(values[((size_t)(s + j) * k + head / (h / k)) * d + e]);
        for (int s = S / 16 * 16; s < S; s++) part[0] += p[s] * AT(values[((size_t)s * k + head / (h / k)) * d + e]);
        y[e] = sum16(part);
    }
}
