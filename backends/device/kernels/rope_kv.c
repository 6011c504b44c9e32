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

KERNEL void rope_kv_write(GLOBAL const float* q, GLOBAL const float* key, GLOBAL const float* value, GLOBAL const int* positions,
                          GLOBAL const float* freqs, GLOBAL KEY* keys, GLOBAL VALUE* values, GLOBAL float* turned,
                          int h, int k, int d, int e) {
    LOCAL float cosine[R], sine[R];  // the same for all heads
    int t = GROUP(0), position = positions[t];
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
