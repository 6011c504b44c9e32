// Attention in one pass over the keys (online softmax: Milakov & Gimelshein 2018, Dao et al. 2022).
//
// A work-group for QUERIES tokens' queries of one head. It takes TILE keys at a time: their scores, then their share of the result.
// If a larger score turns up than any before, what was summed so far is scaled down, as if it had been there from the start.
#include "sums.c"
#include "half.c"

#define TILE 64
#define OWN ((HEAD_V + LANES - 1) / LANES)  // components of the result that a lane keeps

#if HALF_K
#define KEY ushort
#define KEY_AT(p) half_to_float(p)
#else
#define KEY float
#define KEY_AT(p) (p)
#endif
#if HALF_V
#define VALUE ushort
#define VALUE_AT(p) half_to_float(p)
#else
#define VALUE float
#define VALUE_AT(p) (p)
#endif

// query . key for each of the group's queries: a key is brought and converted once for all of them.
FUNCTION void dot_products(TO_LOCAL const float* query, GLOBAL const KEY* key, float* result) {
    float part[QUERIES][16] = {{0}};
    for (int i = 0; i + 16 <= HEAD_K; i += 16) {
        float run[16];
        for (int j = 0; j < 16; j++) run[j] = KEY_AT(key[i + j]);
        for (int a = 0; a < QUERIES; a++)
            for (int j = 0; j < 16; j++) part[a][j] += query[a * HEAD_K + i + j] * run[j];
    }
    for (int i = HEAD_K / 16 * 16; i < HEAD_K; i++)
        for (int a = 0; a < QUERIES; a++) part[a][0] += query[a * HEAD_K + i] * KEY_AT(key[i]);
    for (int a = 0; a < QUERIES; a++) result[a] = sum16(part[a]);
}

KERNEL void attention(GLOBAL const float* q, GLOBAL const KEY* keys, GLOBAL const VALUE* values, GLOBAL const int* positions,
                      GLOBAL float* y, int T, int h, int k, float scale) {
    LOCAL float query[QUERIES * HEAD_K], score[QUERIES][TILE];
    int head = GROUP(0) / (h / k);           // query heads that share a key head lie side by side
    int first = GROUP(1) * QUERIES;
    int n_queries = min(QUERIES, T - first);  // the last group may have fewer: it repeats its last one, and drops the result
    q += ((size_t)first * h + GROUP(0)) * HEAD_K;
    y += ((size_t)first * h + GROUP(0)) * HEAD_V;

    int seen = 0, position[QUERIES];
    float largest[QUERIES], total[QUERIES], mixed[QUERIES][OWN];
    for (int a = 0; a < QUERIES; a++) {
        int row = min(a, n_queries - 1);
        for (int i = LANE; i < HEAD_K; i += LANES) query[a * HEAD_K + i] = scale * q[(size_t)row * h * HEAD_K + i];
        position[a] = positions[first + row];
        seen = max(seen, position[a] + 1);
        largest[a] = -INFINITY;
        total[a] = 0;
        for (int e = 0; e < OWN; e++) mixed[a][e] = 0;
    }
    BARRIER();

    for (int start = 0; start < seen; start += TILE) {
        int n = min(TILE, seen - start);
        for (int s = LANE; s < n; s += LANES) {
            float dots[QUERIES];
            dot_products(query, keys + ((size_t)(start + s) * k + head) * HEAD_K, dots);
            for (int a = 0; a < QUERIES; a++) score[a][s] = start + s > position[a] ? -INFINITY : dots[a];
        }
        BARRIER();

        float shrink[QUERIES];
        for (int a = 0; a < QUERIES; a++) {
            float before = largest[a];
            for (int s = 0; s < n; s++) largest[a] = score[a][s] > largest[a] ? score[a][s] : largest[a];
            shrink[a] = exp(before - largest[a]);  // 0 in the first tile
        }
        BARRIER();
        for (int a = 0; a < QUERIES; a++)
            for (int s = LANE; s < n; s += LANES) score[a][s] = exp(score[a][s] - largest[a]);
        BARRIER();

        for (int a = 0; a < QUERIES; a++) {
            total[a] *= shrink[a];
            for (int s = 0; s < n; s++) total[a] += score[a][s];
            for (int e = 0; e < OWN; e++) mixed[a][e] *= shrink[a];
        }
        for (int s = 0; s < n; s++) {
            GLOBAL const VALUE* value = values + ((size_t)(start + s) * k + head) * HEAD_V;
            float run[OWN];
            for (int e = 0; e < OWN; e++) run[e] = e * LANES + LANE < HEAD_V ? VALUE_AT(value[e * LANES + LANE]) : 0;
            for (int a = 0; a < QUERIES; a++)
                for (int e = 0; e < OWN; e++) mixed[a][e] += score[a][s] * run[e];
        }
        BARRIER();  // before the next tile's scores take their place
    }
    for (int a = 0; a < QUERIES; a++)
        for (int e = 0; e < OWN; e++)
            if (a < n_queries && e * LANES + LANE < HEAD_V) y[(size_t)a * h * HEAD_V + e * LANES + LANE] = mixed[a][e] / total[a];
}
