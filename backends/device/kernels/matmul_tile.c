// y = x W^T for many tokens on a GPU.
//
// A work-group computes a square of y, TILE tokens by TILE rows of W. What it needs of x and W is brought into memory that its
// lanes share, DEPTH of n at a time. There each number is used TILE times, though it was fetched, and unpacked, only once. A
// lane keeps 4 x 4 results in its registers: eight numbers are read for sixteen multiplications.
//
//                        DEPTH       rows of W: TILE
//                      +-------+       +----------+
//       tokens: TILE   |  xs   |       |    ws    |  DEPTH      both lie in shared memory with k going down, so that
//                      +-------+       +----------+             neighbouring lanes read neighbouring numbers
#include "blocks.c"

#define DEPTH 32
#define SIDE (TILE / 4)  // lanes along a side: LANES == SIDE * SIDE

// A work-group for TILE rows and TILE of the T tokens. W has `rows` of y's m columns, from first_row on.
KERNEL void matmul_tile(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, int n, int row_bytes, int rows,
                        int first_row, int m, int T) {
    LOCAL float xs[DEPTH][TILE + 1], ws[DEPTH][TILE + 1];  // one more: numbers below each other are not in the same memory bank
    int first = GROUP(0) * TILE, start = GROUP(1) * TILE;
    int across = (uint)LANE % SIDE, down = (uint)LANE / SIDE;  // of a power of two, if unsigned: no division is needed

    float total[4][4] = {{0}};
    for (int from = 0; from < n; from += DEPTH) {
        for (uint i = LANE; i < TILE * DEPTH / 16; i += LANES) {  // a run of 16 weights for each lane
            int r = i % TILE, k = i / TILE * 16;
            float w[16];
            unpack_to(weight + (size_t)min(first + r, rows - 1) * row_bytes, (from + k) / 16, n, w);
            UNROLL for (int j = 0; j < 16; j++) ws[k + j][r] = w[j];
        }
        for (uint i = LANE; i < TILE * DEPTH; i += LANES) {
            int t = i / DEPTH, k = i % DEPTH;
            xs[k][t] = start + t < T && from + k < n ? x[(size_t)(start + t) * n + from + k] : 0;
        }
        BARRIER();
        float part[4][4] = {{0}};  // sums of sums round less than one long sum
        for (int k = 0; k < DEPTH; k++)
            UNROLL for (int i = 0; i < 4; i++)
                UNROLL for (int j = 0; j < 4; j++) part[i][j] += xs[k][down + i * SIDE] * ws[k][across + j * SIDE];
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int j = 0; j < 4; j++) total[i][j] += part[i][j];
        BARRIER();  // before the next numbers take their place
    }
    UNROLL for (int i = 0; i < 4; i++)
        UNROLL for (int j = 0; j < 4; j++) {
            int t = start + down + i * SIDE, r = first + across + j * SIDE;
            if (t < T && r < rows) y[(size_t)t * m + first_row + r] = total[i][j];
        }
}
