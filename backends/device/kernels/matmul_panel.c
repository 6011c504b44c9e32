// y = x W^T for many tokens on a CPU.
//
// Now each weight serves many tokens, and time goes into multiplying. A panel of weights is unpacked once, small enough to stay
// in the innermost cache (16 KiB), and the tokens pass by it. It lies turned, with the ROWS weights side by side that meet the
// same number of x: that number times ROWS weights is one vector instruction, and nothing is added up across a register.
//
//              ROWS                       TOKENS rows of x          y
//           +--------+
//           | panel  |  DEPTH of n        | . . x . . |             +--------+
//      k -> | ====== |  <----- times x    | . . x . . |  ------->   | += sum |  TOKENS, in registers
//           |        |                    | . . x . . |             +--------+
//           +--------+                          ^ k
//
// y gets the sum over DEPTH products at a time: sums of sums round less than one long sum.
#include "blocks.c"

#define ROWS 16
#define DEPTH 256
#ifdef __AVX512F__
#define TOKENS 12  // of 32 registers for 16 numbers, one for each token
#else
#define TOKENS 6  // of 16 registers for 8 numbers, two for each token
#endif

// A work-group for ROWS rows and `share` of the T tokens. W has `rows` of y's m columns, from first_row on.
KERNEL void matmul_panel(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, int n, int row_bytes, int rows,
                         int first_row, int m, int T, int share) {
    floats panel[DEPTH];
    int first = GROUP(0) * ROWS, n_rows = min(ROWS, rows - first);
    int start = GROUP(1) * share, end = min(T, start + share);
    weight += (size_t)first * row_bytes;
    y += first_row + first;

    for (int from = 0; from < n; from += DEPTH) {
        int depth = min(DEPTH, n - from);
        for (int r = 0; r < ROWS; r++) {
            GLOBAL const uchar* row = weight + (size_t)min(r, n_rows - 1) * row_bytes;  // past the last row the last one again
            float* column = (float*)panel + r;
            for (int k = 0; k < depth; k += 16) {
                float w[16];
                unpack_to(row, (from + k) / 16, n, w);
                UNROLL for (int j = 0; j < 16; j++) column[(k + j) * ROWS] = w[j];
            }
        }
        for (int t = start; t < end; t += TOKENS) {
            GLOBAL const float* row[TOKENS];
            floats sum[TOKENS];
            UNROLL for (int i = 0; i < TOKENS; i++) {
                row[i] = x + (size_t)min(t + i, end - 1) * n + from;
                sum[i] = spread(0);
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
