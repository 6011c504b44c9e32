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

#define ROWS 16
#ifdef __AVX512F__
#define TOKENS 12  // a register for each, and some left for the panel's rows: there are 32 of 16 numbers
#else
#define TOKENS 6  // two registers for each: there are 16 of 8 numbers
#endif

KERNEL void matmul_panel(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, int n, int row_bytes, int rows,
                         int first_row, int m, int T, int share) {
    floats panel[DEPTH];
    int first = GROUP(0) * ROWS, n_rows = min(ROWS, rows - first);
    int start = GROUP(1) * share, end = min(T, start + share);
    weight += (size_t)first * row_bytes;
    y += first_row + first;

    for (int from = 0; from < n; from += DEPTH) {
        int depth = min(DEPTH, n - from);
        for (int i = 0; i < (depth + 15) / 16; i++)
            for (int r = 0; r < ROWS; r++) {
                float w[16];
                unpack_to(weight + (size_t)min(r, n_rows - 1) * row_bytes, from / 16 + i, n, w);
                UNROLL for (int j = 0; j < 16; j++) ((float*)panel)[(16 * i + j) * ROWS + r] = w[j];
            }
        for (int t = start; t < end; t += TOKENS) {
            floats sum[TOKENS];
            GLOBAL const float* row[TOKENS];
            UNROLL for (int i = 0; i < TOKENS; i++) {
                sum[i] = zeros();
                row[i] = x + (size_t)min(t + i, end - 1) * n + from;
            }
            for (int k = 0; k < depth; k++)
                UNROLL for (int i = 0; i < TOKENS; i++) sum[i] = row[i][k] * panel[k] + sum[i];

            UNROLL for (int i = 0; i < TOKENS; i++)
                if (t + i < end) {
                    GLOBAL float* out = y + (size_t)(t + i) * m;
                    if (n_rows == ROWS) store_floats(out, from ? load_floats(out) + sum[i] : sum[i]);
                    else {
                        float few[ROWS];
                        to_array(few, sum[i]);
                        for (int r = 0; r < n_rows; r++) out[r] = from ? out[r] + few[r] : few[r];
                    }
                }
        }
    }
}
