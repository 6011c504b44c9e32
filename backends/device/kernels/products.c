// y = x W^T for a few tokens, and rows of W by number (embedding).
//
// While a model writes, each weight is used once a token, so the time is that of reading the weights: the fewer bytes, the better.
// They are unpacked where they are used, in registers. x is small and stays in the cache.
//
//              n, in runs of 16                ROWS rows of W at a time, so that x is loaded once for all of them.
//      W  | l0   | l1   | l2   | l0   | ...    On a GPU the lanes l take every LANES-th run, and add up in the end.
//         | l0   | l1   | l2   | l0   | ...    On a CPU there is one lane. It takes a block at a time (STEP = RUNS),
//      x  | l0   | l1   | l2   | l0   | ...    since what the runs of a block share is then computed once.
#include "sums.c"
#include "blocks.c"

// A work-group for `share` rows (a multiple of ROWS) and one token.
KERNEL void matvec(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, uint n, int row_bytes, int rows, int share,
                   int first_row, int m) {
    LOCAL float shared[LANES];
    x += (size_t)GROUP(1) * n;
    y += (size_t)GROUP(1) * m + first_row;

    for (int first = GROUP(0) * share, end = min(rows, first + share); first < end; first += ROWS) {
        GLOBAL const uchar* row[ROWS];
        floats part[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            row[r] = weight + (size_t)min(first + r, rows - 1) * row_bytes;
            part[r] = zeros();
        }
        for (uint i = LANE * STEP; i < n / 16; i += LANES * STEP)
            UNROLL for (int s = 0; s < STEP; s++) {
                floats xs = load_floats(x + 16 * (i + s));
                UNROLL for (int r = 0; r < ROWS; r++) part[r] = unpack_run(row[r], i + s) * xs + part[r];
            }
        UNROLL for (int r = 0; r < ROWS; r++) {
            float sum = sum_of(part[r]);
#if TAIL
            for (uint i = n / 16 * 16 + LANE; i < n; i += LANES) sum += weight_at(row[r], i) * x[i];
#endif
            sum = sum_over_lanes(sum, shared);
            if (LANE == 0 && first + r < end) y[first + r] = sum;
        }
    }
}

// A work-group for each token; it has nothing to do if another part of the table has the token's row.
KERNEL void embedding(GLOBAL const int* tokens, GLOBAL const uchar* table, GLOBAL float* y, int n, int row_bytes, int rows,
                      int first_row) {
    int id = tokens[GROUP(0)] - first_row;
    if (id < 0 || id >= rows) return;
    y += (size_t)GROUP(0) * n;
    for (int i = LANE; i < (n + 15) / 16; i += LANES) {
        float w[16];
        unpack_to(table + (size_t)id * row_bytes, i, n, w);
        for (int j = 0; j < 16 && 16 * i + j < n; j++) y[16 * i + j] = w[j];
    }
}
