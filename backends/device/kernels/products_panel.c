// y = x W^T for many tokens on a CPU.
//
// Now each weight serves many tokens, and time goes into multiplying: weights are unpacked once, into a panel that stays in the
// innermost cache, and all tokens pass by it. The panel lies turned, the ROWS weights that meet the same x side by side: one
// number of x times ROWS weights is a few vector instructions, and nothing has to be added up across a register.
//
//           ROWS                          x, TOKENS rows of it       y
//        +--------+
//        | panel  |  DEPTH of n           | . . x . . |  DEPTH       +--------+
//     k: | ====== |  <--------- times x = | . . x . . |  ----->      | += sum |  TOKENS, in registers
//        |        |                       | . . x . . |              +--------+
//        +--------+
#include "blocks.c"

KERNEL void matmul_panel(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, int n, int row_bytes, int rows,
                         int first_row, int m, int T, int share) {
    float panel[DEPTH * ROWS];
    int first = GROUP(0) * ROWS, n_rows = min(ROWS, rows - first);
    int start = GROUP(1) * share, end = min(T, start + share);
    weight += (size_t)first * row_bytes;
    y += first_row + first;

    for (int from = 0; from < n; from += DEPTH) {
        int depth = min(DEPTH, n - from);
        for (int g = 0; g < (depth + 15) / 16; g++)
            for (int r = 0; r < ROWS; r++) {
                float w[16];
                unpack_within(weight + (size_t)min(r, n_rows - 1) * row_bytes, from / 16 + g, n, w);
                for (int j = 0; j < 16; j++) panel[(16 * g + j) * ROWS + r] = w[j];
            }
        for (int t = start; t < end; t += TOKENS) {
            float sum[TOKENS][ROWS] = {{0}};
            GLOBAL const float* row[TOKENS];
            for (int i = 0; i < TOKENS; i++) row[i] = x + (size_t)min(t + i, end - 1) * n + from;
            for (int k = 0; k < depth; k++)
                for (int i = 0; i < TOKENS; i++)
                    for (int r = 0; r < ROWS; r++) sum[i][r] += row[i][k] * panel[k * ROWS + r];
            for (int i = 0; i < TOKENS && t + i < end; i++)
                for (int r = 0; r < n_rows; r++) {
                    GLOBAL float* out = y + (size_t)(t + i) * m + r;
                    *out = from ? *out + sum[i][r] : sum[i][r];
                }
        }
    }
}
