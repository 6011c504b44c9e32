// y = x W^T for many tokens on a GPU.
//
// A work-group computes a square of y, TILE tokens by TILE rows of W. What it needs of x and W is brought into memory that its
// lanes share, DEPTH of n at a time; there each number is used TILE times, while it was fetched, and unpacked, only once. A lane keeps
// 4 x 4 results in its registers: eight numbers are read for sixteen multiplications.
//
//                       DEPTH       rows of W: TILE
//                      +-----+        +----------+
//       tokens: TILE   |  x  |        | weights  |  DEPTH      both lie in shared memory with k going down,
//                      +-----+        +----------+             so that neighbouring lanes read neighbouring numbers
#include "blocks.c"

#define DEPTH 16
#define SIDE (TILE / 4)  // lanes along a side: LANES == SIDE * SIDE

KERNEL void matmul_tile(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, int n, int row_bytes, int rows,
                        int first_row, int m, int T) {
    LOCAL float xs[DEPTH][TILE + 1], ws[DEPTH][TILE + 1];  // one more: else all of a column would lie in one memory bank
    int first = GROUP(0) * TILE, start = GROUP(1) * TILE;
    int across = LANE % SIDE, down = LANE / SIDE;

    float total[4][4] = {{0}};
    for (int from = 0; from < n; from += DEPTH) {
        for (int r = LANE; r < TILE; r += LANES) {
            float w[16];
            unpack_to(weight + (size_t)min(first + r, rows - 1) * row_bytes, from / 16, n, w);
            for (int j = 0; j < 16; j++) ws[j][r] = w[j];
        }
        for (int i = LANE; i < TILE * DEPTH; i += LANES) {
            int t = i / DEPTH, k = i % DEPTH;
            xs[k][t] = start + t < T && from + k < n ? x[(size_t)(start + t) * n + from + k] : 0;
        }
        BARRIER();
        float part[4][4] = {{0}};  // sums of sums round less than one long sum
        for (int k = 0; k < DEPTH; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) part[i][j] += xs[k][down + i * SIDE] * ws[k][across + j * SIDE];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) total[i][j] += part[i][j];
        BARRIER();  // before the next numbers take their place
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int t = start + down + i * SIDE, r = first + across + j * SIDE;
            if (t < T && r < rows) y[(size_t)t * m + first_row + r] = total[i][j];
        }
}
