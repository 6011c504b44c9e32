// One number in, one number out. A work-group takes CHUNK neighbours, its lanes every LANES-th of them.
#include "exponential.c"
#include "normal_tail.c"

#define FOR_EACH_OF(group, i, n) \
    for (int i = (group) * CHUNK + LANE, end = min(n, ((group) + 1) * CHUNK); i < end; i += LANES)
#define FOR_EACH(i, n) FOR_EACH_OF(GROUP(0), i, n)

struct sum {
    GLOBAL const float *a, *b;
    GLOBAL float* y;
    int size;
};
#define SUM GLOBAL const float *a, GLOBAL const float *b, GLOBAL float *y, int size
#define SUM_TOLD {a, b, y, size}

FUNCTION void add_chunk(const struct sum* of, int group) {
    FOR_EACH_OF(group, i, of->size) of->y[i] = of->a[i] + of->b[i];
}

KERNEL void add(SUM) {
    struct sum told = SUM_TOLD;
    add_chunk(&told, GROUP(0));
}

KERNEL void mul(GLOBAL const float* a, GLOBAL const float* b, GLOBAL float* y, int size) {
    FOR_EACH(i, size) y[i] = a[i] * b[i];
}

KERNEL void add_bias(GLOBAL const float* x, GLOBAL const float* bias, GLOBAL float* y, int size, int n) {
    FOR_EACH(i, size) y[i] = x[i] + bias[i % n];
}

KERNEL void silu(GLOBAL const float* x, GLOBAL float* y, int size) {
    FOR_EACH(i, size) y[i] = x[i] / (1 + exponential(-x[i]));
}

KERNEL void gelu(GLOBAL const float* x, GLOBAL float* y, int size) {
    FOR_EACH(i, size) {
        float a = x[i] < 0 ? -x[i] : x[i];
        a = a > 15 ? 15 : a;                                 // the tail beyond is 0
        y[i] = (x[i] < 0 ? 0 : x[i]) - a * normal_tail(a);  // x * P(N <= x)
    }
}

KERNEL void swiglu(GLOBAL const float* gate, GLOBAL const float* up, GLOBAL float* y, int size) {
    FOR_EACH(i, size) y[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
}
