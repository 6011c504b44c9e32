// Attention on a GPU in one pass over the keys (online softmax: Milakov & Gimelshein 2018, Dao et al. 2022). A CPU has kernels of
// its own, attention_one.c and attention_many.c.
//
// A work-group for one head's queries of QUERIES tokens. It takes TILE keys at a time: their scores, then what they add.
// If a larger score turns up than any before, what was summed so far is scaled down, as if it had been there from the start.
#include "sums.c"
#include "half.c"
#include "sixteen.c"
#include "exponential.c"
#include "attention_types.c"

#define TILE 64
#define OWN ((HEAD_V + LANES - 1) / LANES)  // components of a result that a lane has

// query . key for each of the group's queries: a key is brought and converted once for all of them.
FUNCTION void dot_products(TO_LOCAL const float* query, GLOBAL const KEY* key, float* result) {
    floats part[QUERIES];
    UNROLL for (int a = 0; a < QUERIES; a++) part[a] = spread(0);
    for (int i = 0; i + 16 <= HEAD_K; i += 16) {
        floats run = KEYS_AT(key + i);
        UNROLL for (int a = 0; a < QUERIES; a++) part[a] = local_floats(query + a * HEAD_K + i) * run + part[a];
    }
    UNROLL for (int a = 0; a < QUERIES; a++) {
        float sixteen[16];
        to_array(sixteen, part[a]);
        result[a] = sum16(sixteen);
    }
    for (int i = HEAD_K / 16 * 16; i < HEAD_K; i++)
        for (int a = 0; a < QUERIES; a++) result[a] += query[a * HEAD_K + i] * KEY_AT(key + i);
}

KERNEL void attention(GLOBAL const float* q, GLOBAL const KEY* keys, GLOBAL const VALUE* values, GLOBAL const int* positions,
                      GLOBAL float* y, int T, int h, int k, float scale) {
    LOCAL float query[QUERIES * HEAD_K], score[QUERIES][TILE];
    int head = GROUP(0) / (h / k);  // query heads that share a key head lie side by side
    int first = GROUP(1) * QUERIES;
    int n_queries = min(QUERIES, T - first);  // the last group may have fewer: it repeats its last one, and drops the result
    q += ((size_t)first * h + GROUP(0)) * HEAD_K;
    y += ((size_t)first * h + GROUP(0)) * HEAD_V;

    int seen = 0, position[QUERIES];
    float largest[QUERIES], total[QUERIES];
    float mixed[OWN][QUERIES];
    for (int a = 0; a < QUERIES; a++) {
        int row = min(a, n_queries - 1);
        for (int i = LANE; i < HEAD_K; i += LANES) query[a * HEAD_K + i] = scale * q[(size_t)row * h * HEAD_K + i];
        position[a] = positions[first + row];
        seen = max(seen, position[a] + 1);
        largest[a] = -INFINITY;
        total[a] = 0;
        for (int e = 0; e < OWN; e++) mixed[e][a] = 0;
    }
    BARRIER();

    for (int start = 0; start < seen; start += TILE) {
        int n = min(TILE, seen - start);
        for (int s = LANE; s < n; s += LANES) {
            float dots[QUERIES];
            dot_products(query, keys + ((size_t)(start + s) * k + head) * HEAD_K, dots);
            UNROLL for (int a = 0; a < QUERIES; a++) score[a][s] = start + s > position[a] ? -INFINITY : dots[a];
        }
        BARRIER();

        float shrink[QUERIES];
        for (int a = 0; a < QUERIES; a++) {
            float before = largest[a];
            for (int s = 0; s < n; s++) largest[a] = score[a][s] > largest[a] ? score[a][s] : largest[a];
            shrink[a] = exponential(before - largest[a]);  // 0 in the first tile
        }
        BARRIER();
        for (int a = 0; a < QUERIES; a++)
            for (int s = LANE; s < n; s += LANES) score[a][s] = exponential(score[a][s] - largest[a]);
        BARRIER();

        for (int a = 0; a < QUERIES; a++) {
            float sum = 0;
            for (int s = 0; s < n; s++) sum += score[a][s];
            total[a] = total[a] * shrink[a] + sum;
        }
        for (int e = 0; e < OWN; e++) {
            int at = e * LANES + LANE;
            if (at >= HEAD_V) break;
            GLOBAL const VALUE* value = values + ((size_t)start * k + head) * HEAD_V + at;
            float mix[QUERIES];
            UNROLL for (int a = 0; a < QUERIES; a++) mix[a] = shrink[a] * mixed[e][a];
            for (int s = 0; s < n; s++) {
                float run = VALUE_AT(value + (size_t)s * k * HEAD_V);
                UNROLL for (int a = 0; a < QUERIES; a++) mix[a] = score[a][s] * run + mix[a];
            }
            UNROLL for (int a = 0; a < QUERIES; a++) mixed[e][a] = mix[a];
        }
        BARRIER();  // before the next tile's scores take their place
    }
    for (int e = 0; e < OWN; e++) {
        int at = e * LANES + LANE;
        for (int a = 0; a < n_queries && at < HEAD_V; a++) y[(size_t)a * h * HEAD_V + at] = (1 / total[a]) * mixed[e][a];
    }
}
