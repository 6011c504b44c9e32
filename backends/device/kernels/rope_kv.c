// Queries turned, keys turned and written to their cache, values written to theirs: what stands between a layer's first products
// and its attention. A work-group for each token, a lane for each pair of components.
#include "rope_angle.c"

#if HALF_K
#define KEY ushort
#define STORE_KEY(target, x) store_half(&(target), x)
#else
#define KEY float
#define STORE_KEY(target, x) (target) = (x)
#endif
#if HALF_V
#define VALUE ushort
#define STORE_VALUE(target, x) store_half(&(target), x)
#else
#define VALUE float
#define STORE_VALUE(target, x) (target) = (x)
#endif

// Pair i of a head's first 2 * R components.
#if NEOX
#define FIRST(i) (i)
#define SECOND(i) ((i) + R)
#else
#define FIRST(i) (2 * (i))
#define SECOND(i) (2 * (i) + 1)
#endif

struct rope {
    GLOBAL const float *q, *key, *value;
    GLOBAL const int* positions;
    GLOBAL const float* freqs;
    GLOBAL KEY* keys;
    GLOBAL VALUE* values;
    GLOBAL float* turned;
    int h, k, d, e;
};

// As parameters of a kernel, and the structure that they become.
#define ROPE GLOBAL const float *q, GLOBAL const float *key, GLOBAL const float *value, GLOBAL const int *positions, \
             GLOBAL const float *freqs, GLOBAL KEY *keys, GLOBAL VALUE *values, GLOBAL float *turned, int h, int k, int d, int e
#define ROPE_TOLD {q, key, value, positions, freqs, keys, values, turned, h, k, d, e}

// One token. cosine, sine: room for R numbers each, the same for all heads.
FUNCTION void rope_token(const struct rope* a, int t, TO_LOCAL float* cosine, TO_LOCAL float* sine) {
    int position = a->positions[t], h = a->h, k = a->k, d = a->d, n = a->k * a->e;
    for (int i = LANE; i < R; i += LANES) {
        float c, s;
        cos_sin(position, a->freqs[i], &c, &s);
        cosine[i] = c;
        sine[i] = s;
    }
    BARRIER();

    GLOBAL const float* q = a->q + (size_t)t * h * d;
    GLOBAL float* turned = a->turned + (size_t)t * h * d;
    for (int head = 0; head < h; head++, q += d, turned += d) {
        for (int i = LANE; i < R; i += LANES) {
            float first = q[FIRST(i)], second = q[SECOND(i)];
            turned[FIRST(i)] = first * cosine[i] - second * sine[i];
            turned[SECOND(i)] = first * sine[i] + second * cosine[i];
        }
        for (int i = 2 * R + LANE; i < d; i += LANES) turned[i] = q[i];  // what is not turned
    }
    GLOBAL const float* key = a->key + (size_t)t * k * d;
    GLOBAL KEY* keys = a->keys + (size_t)position * k * d;
    for (int head = 0; head < k; head++, key += d, keys += d) {
        for (int i = LANE; i < R; i += LANES) {
            float first = key[FIRST(i)], second = key[SECOND(i)];
            STORE_KEY(keys[FIRST(i)], first * cosine[i] - second * sine[i]);
            STORE_KEY(keys[SECOND(i)], first * sine[i] + second * cosine[i]);
        }
        for (int i = 2 * R + LANE; i < d; i += LANES) STORE_KEY(keys[i], key[i]);
    }
    GLOBAL const float* value = a->value + (size_t)t * n;
    GLOBAL VALUE* values = a->values + (size_t)position * n;
    for (int i = LANE; i < n; i += LANES) STORE_VALUE(values[i], value[i]);
}

KERNEL void rope_kv_write(ROPE) {
    LOCAL float cosine[R], sine[R];
    struct rope told = ROPE_TOLD;
    rope_token(&told, GROUP(0), cosine, sine);
}
