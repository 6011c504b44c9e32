// Attention of many tokens on a CPU, whose time goes into multiplying.
//
// A query has a lane of a vector to itself: sixteen go side by side, and each number of a key or a value is multiplied with
// all of them. Scores, exponentials and sums are sixteen at once too, and nothing is ever added up across a vector.
//
//                sixteen queries          AT_ONCE keys, d numbers each
//           +-----------------------+     +-----------+
//      i -> | ===================== |  x  |     .     |  a number of a key     score[key] = sum over i of query[i] * key[i],
//           |   query, turned       |     |     .     |  times a vector        AT_ONCE of them at a time, in registers
//           +-----------------------+     +-----------+
//                                               ^ i
//
// The values' sum by weight is a product of the same form, with the weights of a tile of keys in place of the queries.
//
// A work-group takes a key head and VECTORS * 16 rows: the query heads that read it, for some tokens. A tile of keys and one of
// values are brought from float16 once for all of them. Online softmax as in attention.c.
#include "attention_cpu.c"

#define TILE 48
#ifdef __AVX512F__
#define AT_ONCE 8  // of 32 registers for 16 numbers, one each
#else
#define AT_ONCE 6  // of 16 registers for 8 numbers, two each
#endif

// score[s] = the queries times key s, for n keys.
FUNCTION void score_keys(const floats* query, const float* keys, int n, floats* score) {
    for (int s = 0; s < n; s += AT_ONCE) {
        const float* key[AT_ONCE];
        floats sum[AT_ONCE];
        UNROLL for (int j = 0; j < AT_ONCE; j++) {
            key[j] = keys + SMALLER(s + j, n - 1) * PADDED(HEAD_K);  // past the last key the last one again
            sum[j] = spread(0);
        }
        for (int i = 0; i < HEAD_K; i++)
            UNROLL for (int j = 0; j < AT_ONCE; j++) sum[j] = key[j][i] * query[i] + sum[j];
        UNROLL for (int j = 0; j < AT_ONCE; j++) score[s + j] = sum[j];
    }
}

// mixed[e] = shrink * mixed[e] + the sum of weight[s] * value[s][e] over n keys
FUNCTION void mix_values(const floats* weight, const float* values, int n, floats shrink, floats* mixed) {
    for (int e = 0; e < HEAD_V; e += AT_ONCE) {
        int at[AT_ONCE];
        floats sum[AT_ONCE];
        UNROLL for (int j = 0; j < AT_ONCE; j++) {
            at[j] = SMALLER(e + j, HEAD_V - 1);  // past the last component the last one again
            sum[j] = shrink * mixed[at[j]];
        }
        for (int s = 0; s < n; s++)
            UNROLL for (int j = 0; j < AT_ONCE; j++) sum[j] = values[s * PADDED(HEAD_V) + at[j]] * weight[s] + sum[j];
        UNROLL for (int j = 0; j < AT_ONCE; j++) mixed[at[j]] = sum[j];
    }
}

KERNEL void attention_many(GLOBAL const float* q, GLOBAL const KEY* keys, GLOBAL const VALUE* values,
                           GLOBAL const int* positions, GLOBAL float* y, int T, int h, int k, float scale) {
    floats query[VECTORS][HEAD_K], mixed[VECTORS][HEAD_V], largest[VECTORS], total[VECTORS];
    ints position[VECTORS];
    float key[TILE * PADDED(HEAD_K)], value[TILE * PADDED(HEAD_V)];
    int first[VECTORS], last[VECTORS];  // of the sixteen positions
    int head = GROUP(0), sharing = h / k, from = GROUP(1) * VECTORS * 16;
    int n_rows = SMALLER(VECTORS * 16, T * sharing - from), n_vectors = (n_rows + 15) / 16;
    keys += head * HEAD_K;
    values += head * HEAD_V;

    int seen = 0;
    for (int v = 0; v < n_vectors; v++) {
        for (int lane = 0; lane < 16; lane++) {
            int row = from + SMALLER(v * 16 + lane, n_rows - 1);  // past the last row the last one again
            int t = row / sharing, at = positions[t];
            GLOBAL const float* x = q + ((size_t)t * h + head * sharing + row % sharing) * HEAD_K;
            for (int i = 0; i < HEAD_K; i++) ((float*)query[v])[i * 16 + lane] = scale * x[i];
            ((int*)position)[v * 16 + lane] = at;
            first[v] = lane == 0 || at < first[v] ? at : first[v];
            last[v] = lane == 0 || at > last[v] ? at : last[v];
        }
        largest[v] = spread(LOWEST);
        total[v] = spread(0);
        for (int e = 0; e < HEAD_V; e++) mixed[v][e] = spread(0);
        seen = LARGER(seen, last[v] + 1);
    }

    for (int start = 0; start < seen; start += TILE) {
        int n_brought = SMALLER(TILE, seen - start);
        for (int s = 0; s < n_brought; s++) {
            bring_key(keys + (size_t)(start + s) * k * HEAD_K, key + s * PADDED(HEAD_K));
            bring_value(values + (size_t)(start + s) * k * HEAD_V, value + s * PADDED(HEAD_V));
        }
        for (int v = 0; v < n_vectors; v++) {
            int n = SMALLER(n_brought, last[v] + 1 - start);
            if (n <= 0) continue;  // all of these come later
            floats score[TILE + AT_ONCE];
            score_keys(query[v], key, n, score);
            if (start + n > first[v] + 1)  // some of these come after some queries
                for (int s = 0; s < n; s++) score[s] = start + s > position[v] ? spread(-INFINITY) : score[s];
            floats most = largest[v], sum = spread(0);
            for (int s = 0; s < n; s++) most = LARGER(score[s], most);
            for (int s = 0; s < n; s++) {
                score[s] = exponentials(score[s] - most);
                sum += score[s];
            }
            floats shrink = exponentials(largest[v] - most);
            largest[v] = most;
            total[v] = total[v] * shrink + sum;
            mix_values(score, value, n, shrink, mixed[v]);
        }
    }

    for (int r = 0; r < n_rows; r++) {
        int row = from + r, v = r / 16, lane = r % 16;
        GLOBAL float* out = y + ((size_t)(row / sharing) * h + head * sharing + row % sharing) * HEAD_V;
        for (int e = 0; e < HEAD_V; e++) out[e] = ((const float*)mixed[v])[e * 16 + lane] / ((const float*)total)[v * 16 + lane];
    }
}
