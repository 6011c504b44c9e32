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

#define ROPE(p) GLOBAL const float* p##q, GLOBAL const float* p##key, GLOBAL const float* p##value, \
                GLOBAL const int* p##positions, GLOBAL const float* p##freqs, GLOBAL KEY* p##keys, GLOBAL VALUE* p##values, \
                GLOBAL float* p##turned, int p##h, int p##k, int p##d, int p##e
#define ROPE_OF(p) p##q, p##key, p##value, p##positions, p##freqs, p##keys, p##values, p##turned, p##h, p##k, p##d, p##e

// One token. cosine, sine: room for R numbers each, the same for all heads.
FUNCTION void rope_token(int t, TO_LOCAL float* cosine, TO_LOCAL float* sine, ROPE()) {
    int position = positions[t];
    for (int i = LANE; i < R; i += LANES) {
        float c, s;
        cos_sin(position, freqs[i], &c, &s);
        cosine[i] = c;
        sine[i] = s;
    }
    BARRIER();

    q += (size_t)t * h * d;
    turned += (size_t)t * h * d;
    for (int head = 0; head < h; head++, q += d, turned += d) {
        for (int i = LANE; i < R; i += LANES) {
            float a = q[FIRST(i)], b = q[SECOND(i)];
            turned[FIRST(i)] = a * cosine[i] - b * sine[i];
            turned[SECOND(i)] = a * sine[i] + b * cosine[i];
        }
        for (int i = 2 * R + LANE; i < d; i += LANES) turned[i] = q[i];  // what is not turned
    }
    key += (size_t)t * k * d;
    keys += (size_t)position * k * d;
    for (int head = 0; head < k; head++, key += d, keys += d) {
        for (int i = LANE; i < R; i += LANES) {
            float a = key[FIRST(i)], b = key[SECOND(i)];
            STORE_KEY(keys[FIRST(i)], a * cosine[i] - b * sine[i]);
            STORE_KEY(keys[SECOND(i)], a * sine[i] + b * cosine[i]);
        }
        for (int i = 2 * R + LANE; i < d; i += LANES) STORE_KEY(keys[i], key[i]);
    }
    value += (size_t)t * k * e;
    values += (size_t)position * k * e;
    for (int i = LANE; i < k * e; i += LANES) STORE_VALUE(values[i], value[i]);
}

KERNEL void rope_kv_write(ROPE()) {
    LOCAL float cosine[R], sine[R];
    rope_token(GROUP(0), cosine, sine, ROPE_OF());
}
