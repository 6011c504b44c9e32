// y = x W^T on a CPU, with x rounded to bytes and weights in panels of sixteen rows: for up to three W that read the same x.
//
// For one token a work-group rounds x itself, into its part of the room: that takes less time than another kernel would need
// to start. Tiles of many tokens are rounded beforehand, by round_int8.
#include "half.c"
#include "sixteen.c"
#include "sums.c"
#include "exponential.c"
#if INT8_AVX512VNNI
#include "int8_vnni.c"
#elif INT8_AVX2
#include "int8_avx2.c"
#else
#include "int8_portable.c"
#endif
#include "int8_round.c"

#define JOINED(a, b) JOINED_(a, b)
#define JOINED_(a, b) a##b

#define NAME panel_q4_0
#define BITS 4
#define OFFSET 8
#include "int8_panel.c"
#define NAME panel_q4_1
#define BITS 4
#define MINIMUM 1
#include "int8_panel.c"
#define NAME panel_q5_0
#define BITS 5
#define OFFSET 16
#include "int8_panel.c"
#define NAME panel_q5_1
#define BITS 5
#define MINIMUM 1
#include "int8_panel.c"
#define NAME panel_q8_0
#define BITS 8
#define OFFSET 128
#include "int8_panel.c"
#define NAME panel_q4_k
#define BITS 4
#define MINIMUM 1
#define SUPER 1
#include "int8_panel.c"
#define NAME panel_q5_k
#define BITS 5
#define MINIMUM 1
#define SUPER 1
#include "int8_panel.c"
#define NAME panel_q6_k
#define BITS 8
#define OFFSET 32
#define SUPER 1
#define HALVES 1
#include "int8_panel.c"

// out[t][r] for one panel of a layout, by its number in panels.LAYOUTS
FUNCTION void multiply(int layout, GLOBAL const uchar* w, GLOBAL const int* x, int n_blocks, float* out) {
    for (int from = 0; from < 16; from += LINES) switch (layout) {
        case 0: panel_q4_0(w, x, n_blocks, from, out); break;
        case 1: panel_q4_1(w, x, n_blocks, from, out); break;
        case 2: panel_q5_0(w, x, n_blocks, from, out); break;
        case 3: panel_q5_1(w, x, n_blocks, from, out); break;
        case 4: panel_q8_0(w, x, n_blocks, from, out); break;
        case 5: panel_q4_k(w, x, n_blocks, from, out); break;
        case 6: panel_q5_k(w, x, n_blocks, from, out); break;
        case 7: panel_q6_k(w, x, n_blocks, from, out); break;
    }
}

// A work-group for a tile of x.
KERNEL void round_int8(GLOBAL const float* x, GLOBAL const float* norm, GLOBAL int* room, int n, int T, int is_normed, float eps) {
    GLOBAL int* tile = room + (size_t)GROUP(0) * STRIDE * TOKENS * (n / 32);
    for (int t = 0; t < TOKENS; t++) {
        GLOBAL const float* row = x + (size_t)min(GROUP(0) * TOKENS + t, T - 1) * n;  // past the last token the last one again
        round_row(row, norm, is_normed ? scale_of_norm(row, n, eps) : 1, is_normed, n, tile + t);
    }
}

// What is said of each W: n_panels of them lie in one buffer, panel_bytes each; they are `rows` of y's m columns, from
// first_row on. The names begin with p, so that a kernel can be told of several products.
#define WEIGHT(p, i) GLOBAL const uchar* p##weight##i, GLOBAL float* p##y##i, int p##layout##i, int p##n_panels##i, \
                     int p##panel_bytes##i, int p##rows##i, int p##first_row##i, int p##m##i
#define WEIGHT_OF(p, i) p##weight##i, p##y##i, p##layout##i, p##n_panels##i, p##panel_bytes##i, p##rows##i, p##first_row##i, p##m##i
#define PRODUCT(p) GLOBAL const float* p##x, GLOBAL const float* p##norm, GLOBAL const float* p##residual, GLOBAL int* p##room, \
                   WEIGHT(p, 0), WEIGHT(p, 1), WEIGHT(p, 2), int p##n, int p##T, int p##share, int p##is_normed, float p##eps, \
                   int p##epilogue
#define PRODUCT_OF(p) p##x, p##norm, p##residual, p##room, WEIGHT_OF(p, 0), WEIGHT_OF(p, 1), WEIGHT_OF(p, 2), \
                      p##n, p##T, p##share, p##is_normed, p##eps, p##epilogue

// Panels there are, counted through all W; of a gated unit the two that belong together count as one.
FUNCTION int panels(PRODUCT()) { return n_panels0 + (epilogue == 2 ? 0 : n_panels1 + n_panels2); }

// Of a single token: x rounded to this work-group's part of the room.
FUNCTION void round_one(PRODUCT()) {
    GLOBAL int* own = room + (size_t)GROUP(0) * STRIDE * (n / 32);
    round_row(x, norm, is_normed ? scale_of_norm(x, n, eps) : 1, is_normed, n, own);
}

// The panels `from` to `to`, and all of the T tokens.
//      epilogue 0: y = x W^T      1: y = residual + x W^T      2: y = silu(x W0^T) * x W1^T
FUNCTION void product(int from, int to, PRODUCT()) {
    int n_blocks = n / 32;
    size_t tile_size = (size_t)STRIDE * TOKENS * n_blocks;
    if (TOKENS == 1) room += GROUP(0) * tile_size;
    for (int first = 0; first < T; first += TOKENS) {
        for (int p = from; p < to; p++) {
            int i = p < n_panels0 ? 0 : p < n_panels0 + n_panels1 ? 1 : 2;
            int panel = i == 0 ? p : i == 1 ? p - n_panels0 : p - n_panels0 - n_panels1;
            GLOBAL const uchar* weight = i == 0 ? weight0 : i == 1 ? weight1 : weight2;
            GLOBAL float* y = i == 0 ? y0 : i == 1 ? y1 : y2;
            int layout = i == 0 ? layout0 : i == 1 ? layout1 : layout2;
            int panel_bytes = i == 0 ? panel_bytes0 : i == 1 ? panel_bytes1 : panel_bytes2;
            int rows = i == 0 ? rows0 : i == 1 ? rows1 : rows2, m = i == 0 ? m0 : i == 1 ? m1 : m2;
            int column = (i == 0 ? first_row0 : i == 1 ? first_row1 : first_row2) + 16 * panel;

            float out[TOKENS * 16], other[TOKENS * 16];
            multiply(layout, weight + (size_t)panel * panel_bytes, room, n_blocks, out);
            if (epilogue == 2) {
                multiply(layout1, weight1 + (size_t)panel * panel_bytes1, room, n_blocks, other);
                for (int j = 0; j < TOKENS * 16; j++) out[j] = out[j] / (1 + exponential(-out[j])) * other[j];
            }
            for (int t = 0; t < min(TOKENS, T - first); t++) {
                size_t at = (size_t)(first + t) * m + column;
                int n_rows = min(16, rows - 16 * panel);
                if (n_rows == 16) {  // a loop of known length is one instruction or two
                    for (int r = 0; r < 16; r++) y[at + r] = epilogue == 1 ? residual[at + r] + out[16 * t + r] : out[16 * t + r];
                } else {
                    for (int r = 0; r < n_rows; r++)
                        y[at + r] = epilogue == 1 ? residual[at + r] + out[16 * t + r] : out[16 * t + r];
                }
            }
        }
        room += tile_size;
    }
}

KERNEL void product_int8(PRODUCT()) {
    int from = GROUP(0) * share;
    if (TOKENS == 1) round_one(PRODUCT_OF());
    product(from, min(from + share, panels(PRODUCT_OF())), PRODUCT_OF());
}
