// Attention in one pass over the keys (online softmax: Milakov & Gimelshein 2018, Dao et al. 2022).
//
// A work-group for each query head of each token. It takes TILE keys at a time: their scores, then their share of the result.
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

FUNCTION float dot_product(GLOBAL const float* q, GLOBAL const KEY* key) {
    float part[16] = {0};
    for (int i = 0; i + 16 <= HEAD_K; i += 16)
        for (int j = 0; j < 16; j++) part[j] += q[i + j] * KEY_AT(key[i + j]);
    for (int i = HEAD_K / 16 * 16; i < HEAD_K; i++) part[0] += q[i] * KEY_AT(key[i]);
    return sum16(part);
}

KERNEL void attention(GLOBAL const float* q, GLOBAL const KEY* keys, GLOBAL const VALUE* values, GLOBAL const int* positions,
                      GLOBAL float* y, int h, int k, float scale) {
    LOCAL float score[TILE];
    size_t row = (size_t)GROUP(1) * h + GROUP(0);
    int head = GROUP(0) / (h / k);  // query heads that share a key head lie side by side
    int seen = positions[GROUP(1)] + 1;
    q += row * HEAD_K;
    y += row * HEAD_V;

    float largest = -INFINITY, total = 0, mixed[OWN] = {0};
    for (int start = 0; start < seen; start += TILE) {
        int n = min(TILE, seen - start);
        for (int s = LANE; s < n; s += LANES)
            score[s] = scale * dot_product(q, keys + ((size_t)(start + s) * k + head) * HEAD_K);
        BARRIER();

        float before = largest;
        for (int s = 0; s < n; s++) largest = fmax(largest, score[s]);
        float shrink = exp(before - largest);  // 0 in the first tile
        BARRIER();
        for (int s = LANE; s < n; s += LANES) score[s] = exp(score[s] - largest);
        BARRIER();

        total *= shrink;
        for (int s = 0; s < n; s++) total += score[s];
        for (int e = 0; e < OWN; e++) mixed[e] *= shrink;
        for (int s = 0; s < n; s++) {
            GLOBAL const VALUE* value = values + ((size_t)(start + s) * k + head) * HEAD_V;
            for (int e = 0; e < OWN; e++)
                if (e * LANES + LANE < HEAD_V) mixed[e] += score[s] * VALUE_AT(value[e * LANES + LANE]);
        }
        BARRIER();  // before the next tile's scores take their place
    }
    for (int e = 0; e < OWN; e++)
        if (e * LANES + LANE < HEAD_V) y[e * LANES + LANE] = mixed[e] / total;
}
