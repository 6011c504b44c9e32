// Attention of one token on a CPU, whose time is that of reading the cache.
//
// The keys are cut into parts (Dao et al. 2023, flash-decoding), so that there is work for all cores. A work-group takes a part
// of the keys, and up to ROWS query heads with the key heads that they read: memory is read in its order.
//
//      keys     |  part 0  |  part 1  |  part 2  | not yet written         part of      largest score, total weight, and
//      heads 0  |    g0    |    g1    |    g2    |                         one row:     the values' sum by weight
//      heads 1  |    g3    |    g4    |    g5    |                                      -> room -> attention_merge -> y
//
// It goes in tiles of TILE keys: brought from float16 once for all query heads, then one step after the other for all rows. The
// steps of a single row would wait for each other. While rows are computed, the next tile is fetched: row r has its key r.
#include "attention_cpu.c"

#define TILE 16
#define ROWS 16
#define PART (PADDED(HEAD_V) + 16)  // floats of a row in the room: the sum, largest, total

// The sum or the largest of sixteen numbers, for each of sixteen x at once. `fold` leaves eight numbers of an x; `join` makes of
// two such x one that has half as many numbers of each; and so on.
enum { SUM, LARGEST };
FUNCTION float8 fold(floats x, int what) {
    const float8* half_of = (const float8*)&x;
    if (what == SUM) return half_of[0] + half_of[1];
    return LARGER(half_of[0], half_of[1]);
}
FUNCTION float8 join(float8 a, float8 b, int what) {
    float8 x = (float8)(a.s0, b.s0, a.s1, b.s1, a.s4, b.s4, a.s5, b.s5);
    float8 y = (float8)(a.s2, b.s2, a.s3, b.s3, a.s6, b.s6, a.s7, b.s7);
    if (what == SUM) return x + y;
    return LARGER(x, y);
}
FUNCTION floats of_each(const float8* x, int what) {
    floats y;
    UNROLL for (int j = 0; j < 16; j += 4) {
        float8 four = join(join(x[j], x[j + 2], what), join(x[j + 1], x[j + 3], what), what);
        ((float4*)&y)[j / 4] = what == SUM ? four.lo + four.hi : LARGER(four.lo, four.hi);
    }
    return y;
}

struct attention {
    GLOBAL const float* q;
    GLOBAL const KEY* keys;
    GLOBAL const VALUE* values;
    GLOBAL const int* positions;
    GLOBAL float* room;
    int h, k;
    float scale;
    int heads, parts;
};

// As parameters of a kernel, and the structure that they become.
#define ATTENTION GLOBAL const float *q, GLOBAL const KEY *keys, GLOBAL const VALUE *values, GLOBAL const int *positions, \
                  GLOBAL float *room, int h, int k, float scale, int heads, int parts
#define ATTENTION_TOLD {q, keys, values, positions, room, h, k, scale, heads, parts}

// One part of the keys, and `heads` query heads.
FUNCTION void attention_part(const struct attention* a, int group, int part) {
    floats query[ROWS][CHUNKS(HEAD_K)], mixed[ROWS][CHUNKS(HEAD_V)], score[ROWS];
    floats tile[HEADS][TILE][CHUNKS(LARGER(HEAD_K, HEAD_V))];  // of keys, then of values: half as much has to stay in the cache
    float8 folded[ROWS];
    int head_of[ROWS];
    int h = a->h, k = a->k, first = group * a->heads, n_rows = SMALLER(a->heads, h - first);
    int sharing = h / k, first_head = first / sharing, n_heads = (first + n_rows - 1) / sharing + 1 - first_head;
    GLOBAL const float* q = a->q + (size_t)first * HEAD_K;
    GLOBAL const KEY* keys = a->keys + first_head * HEAD_K;
    GLOBAL const VALUE* values = a->values + first_head * HEAD_V;
    GLOBAL float* room = a->room + ((size_t)part * h + first) * PART;
    for (int r = 0; r < ROWS; r++) {
        folded[r] = 0;  // also of rows that are not there
        if (r >= n_rows) continue;
        head_of[r] = (first + r) / sharing - first_head;
        for (int i = 0; i < PADDED(HEAD_K); i++) ((float*)query[r])[i] = i < HEAD_K ? a->scale * q[r * HEAD_K + i] : 0;
        for (int e = 0; e < CHUNKS(HEAD_V); e++) mixed[r][e] = spread(0);
    }
    floats largest = spread(LOWEST), total = spread(0);  // a number for each row

    int seen = a->positions[0] + 1, share = (seen + a->parts * TILE - 1) / (a->parts * TILE) * TILE;
    int start = part * share, end = SMALLER(seen, start + share);
    for (; start < end; start += TILE) {
        int n = SMALLER(TILE, end - start);
        for (int s = 0; s < n; s++)
            for (int c = 0; c < n_heads; c++) bring_key(keys + ((size_t)(start + s) * k + c) * HEAD_K, (float*)tile[c][s]);
        for (int s = n; s < TILE; s++)  // full in any case
            for (int c = 0; c < n_heads; c++)
                for (int i = 0; i < CHUNKS(HEAD_K); i++) tile[c][s][i] = spread(0);
        for (int r = 0; r < ROWS; r++) {
            fetch(keys + (size_t)(start + TILE + r) * k * HEAD_K, n_heads * HEAD_K * sizeof(KEY));
            if (r >= n_rows) continue;
            float8 dots[TILE];
            UNROLL for (int s = 0; s < TILE; s++) {
                const floats* at = tile[head_of[r]][s];
                floats sum = query[r][0] * at[0];
                UNROLL for (int i = 1; i < CHUNKS(HEAD_K); i++) sum = query[r][i] * at[i] + sum;
                dots[s] = fold(sum, SUM);
            }
            score[r] = of_each(dots, SUM);
            if (n < TILE) score[r] = (ints)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) < n ? score[r] : spread(-INFINITY);
            folded[r] = fold(score[r], LARGEST);
        }

        float of_row[ROWS], shrink[ROWS];
        floats most = of_each(folded, LARGEST);
        most = LARGER(largest, most);
        floats smaller = exponentials(largest - most);
        to_array(of_row, most);
        to_array(shrink, smaller);
        for (int r = 0; r < n_rows; r++) {
            score[r] = exponentials(score[r] - of_row[r]);
            folded[r] = fold(score[r], SUM);
        }
        total = total * smaller + of_each(folded, SUM);
        largest = most;

        for (int s = 0; s < n; s++)
            for (int c = 0; c < n_heads; c++) bring_value(values + ((size_t)(start + s) * k + c) * HEAD_V, (float*)tile[c][s]);
        for (int r = 0; r < ROWS; r++) {
            fetch(values + (size_t)(start + TILE + r) * k * HEAD_V, n_heads * HEAD_V * sizeof(VALUE));
            if (r >= n_rows) continue;
            float weight[TILE];
            to_array(weight, score[r]);
            for (int e = 0; e < CHUNKS(HEAD_V); e += 4) {
                floats sum[4];
                UNROLL for (int j = 0; j < 4; j++) sum[j] = shrink[r] * mixed[r][SMALLER(e + j, CHUNKS(HEAD_V) - 1)];
                for (int s = 0; s < n; s++)
                    UNROLL for (int j = 0; j < 4; j++)
                        sum[j] = weight[s] * tile[head_of[r]][s][SMALLER(e + j, CHUNKS(HEAD_V) - 1)] + sum[j];
                UNROLL for (int j = 0; j < 4; j++)
                    if (e + j < CHUNKS(HEAD_V)) mixed[r][e + j] = sum[j];
            }
        }
    }

    float largest_of[ROWS], total_of[ROWS];
    to_array(largest_of, largest);
    to_array(total_of, total);
    for (int r = 0; r < n_rows; r++) {
        for (int e = 0; e < CHUNKS(HEAD_V); e++) store_floats(room + r * PART + 16 * e, mixed[r][e]);
        room[r * PART + PADDED(HEAD_V)] = largest_of[r];
        room[r * PART + PADDED(HEAD_V) + 1] = total_of[r];
    }
}

KERNEL void attention_one(ATTENTION) {
    struct attention told = ATTENTION_TOLD;
    attention_part(&told, GROUP(0), GROUP(1));
}

struct merge {
    GLOBAL const float* room;
    GLOBAL float* y;
    int h, heads, parts;
};
#define MERGE GLOBAL const float *room, GLOBAL float *y, int h, int heads, int parts
#define MERGE_TOLD {room, y, h, heads, parts}

// `heads` rows: the parts' sums put together, each as if the largest score of all had been known.
FUNCTION void attention_merged(const struct merge* a, int group) {
    int h = a->h, parts = a->parts, first = group * a->heads, end = SMALLER(first + a->heads, h);
    GLOBAL const float* room = a->room;
    for (int row = first; row < end; row++) {
        floats mixed[CHUNKS(HEAD_V)];
        float largest = LOWEST, total = 0;
        for (int e = 0; e < CHUNKS(HEAD_V); e++) mixed[e] = spread(0);
        for (int p = 0; p < parts; p++) {
            float of_part = room[((size_t)p * h + row) * PART + PADDED(HEAD_V)];
            largest = LARGER(largest, of_part);
        }
        for (int p = 0; p < parts; p++) {
            GLOBAL const float* part = room + ((size_t)p * h + row) * PART;
            float factor = exponential(part[PADDED(HEAD_V)] - largest);
            total += factor * part[PADDED(HEAD_V) + 1];
            for (int e = 0; e < CHUNKS(HEAD_V); e++) mixed[e] = factor * load_floats(part + 16 * e) + mixed[e];
        }
        for (int e = 0; e < HEAD_V; e++) a->y[row * HEAD_V + e] = ((const float*)mixed)[e] / total;
    }
}

KERNEL void attention_merge(MERGE) {
    struct merge told = MERGE_TOLD;
    attention_merged(&told, GROUP(0));
}
