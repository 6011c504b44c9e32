// y = x W^T for a few tokens, and rows of W by number (embedding).
//
// While a model writes, each weight is used once a token. So the time is that of reading the weights, and the fewer bytes, the
// better: they are unpacked where they are used, in registers. x is small and stays in the cache. 
//
//              n                             ROWS rows of W at a time, so that x is loaded once for all of them.
//      W  | g0 | g1 | g2 | g0 | ...          On a GPU the lanes take every LANES-th group of 16 weights, and add up in the end.
//         | g0 | g1 | g2 | g0 | ...          On a CPU there is one lane, and its sixteen sums fill vector registers.
//      x  | g0 | g1 | g2 | g0 | ...
#include "sums.c"
#include "blocks.c"

#define STEP (BLOCK < 16 ? 1 : BLOCK / 16)  // groups 

// A work-group for `share` rows (a multiple of ROWS) of each token.
KERNEL void matvec(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, int n, int row_bytes, int rows, int share,
                   int first_row, int m) {
    LOCAL float shared[LANES];
    x += (size_t)GROUP(1) * n;
    y += (size_t)GROUP(1) * m + first_row;

    for (int first = GROUP(0) * share, end = min(rows, first + share); first < end; first += ROWS) {
        float part[ROWS][16] = {{0}};
        GLOBAL const uchar* row[ROWS];
        for (int r = 0; r < ROWS; r++) row[r] = weight + (size_t)min(first + r, rows - 1) * row_bytes;

        for (int g = LANE; g < n / 16; g += LANES)
            for (int r = 0; r < ROWS; r++) {
                float w[16];
                unpack(row[r], g, w);
                for (int j = 0; j < 16; j++) part[r][j] += w[j] * x[16 * g + j];
            }
#if BLOCK == 1
        for (int i = n / 16 * 16 + LANE; i < n; i += LANES)
            for (int r = 0; r < ROWS; r++) part[r][0] += weight_at(row[r], i) * x[i];
#endif
        for (int r = 0; r < ROWS; r++) {
            float sum = sum_over_lanes(sum16(part[r]), shared);
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
    for (int g = LANE; g < (n + 15) / 16; g += LANES) {
        float w[16];
        unpack_within(table + (size_t)id * row_bytes, g, n, w);
        for (int j = 0; j < 16 && 16 * g + j < n; j++) y[16 * g + j] = w[j];
    }
}
