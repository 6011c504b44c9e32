// y = x W^T on a CPU, with x rounded to bytes and weights in panels of sixteen rows: for up to three W that read the same x.
//
// For one token a work-group rounds x itself, into its part of the room: that takes less time than another kernel would need
// to start. Tiles of many tokens are rounded beforehand, by round_int8.
#include "half.c"
#include "sixteen.c"
#include "sums.c"
#include "exponential.c"
#include "fetch.c"
#if INT8_AVX512VNNI
#include "int8_vnni.c"
#elif INT8_AVX2
#include "int8_avx2.c"
#else
#include "int8_portable.c"
#endif
#include "int8_round.c"

// A tile goes through a panel in parts, of as many tokens as have their sums in registers. Parts without tokens are left out.
#define FEW (TOKENS < TOKENS_AT_ONCE ? TOKENS : TOKENS_AT_ONCE)
#define COMPUTED(tokens) (FEW == TOKENS ? TOKENS : ((tokens) + FEW - 1) / FEW * FEW)

// With one token, so many bytes before they are wanted. A q of 5 or 6 bits takes so many instructions to unpack that the processor
// does not see the next blocks in time (decode took 10% less time); with other formats fetching took 5 to 10% more.
#define FETCHED_AHEAD(bits) ((bits) == 5 || (bits) == 6 ? 3072 : 0)

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
#define BITS 6
#define OFFSET 32
#define SUPER 1
#define HALVES 1
#include "int8_panel.c"

// out[t][r] for one panel of a layout, by its number in panels.LAYOUTS, for the first so many `tokens` of a tile
FUNCTION void multiply(int layout, GLOBAL const uchar* w, GLOBAL const int* x, int stride, int n_blocks, int tokens, float* out) {
    switch (layout) {
        case 0: panel_q4_0(w, x, stride, n_blocks, tokens, out); break;
        case 1: panel_q4_1(w, x, stride, n_blocks, tokens, out); break;
        case 2: panel_q5_0(w, x, stride, n_blocks, tokens, out); break;
        case 3: panel_q5_1(w, x, stride, n_blocks, tokens, out); break;
        case 4: panel_q8_0(w, x, stride, n_blocks, tokens, out); break;
        case 5: panel_q4_k(w, x, stride, n_blocks, tokens, out); break;
        case 6: panel_q5_k(w, x, stride, n_blocks, tokens, out); break;
        case 7: panel_q6_k(w, x, stride, n_blocks, tokens, out); break;
    }
}

// A work-group for a tile of x.
KERNEL void round_int8(GLOBAL const float* x, GLOBAL const float* norm, GLOBAL int* room, int n, int T, int width,
                       int stride, int is_normed, float eps) {
    GLOBAL int* tile = room + (size_t)GROUP(0) * stride * TOKENS * (n / 32);
    int computed = COMPUTED(min(TOKENS, T - GROUP(0) * TOKENS));
    for (int t = 0; t < computed; t++) {
        GLOBAL const float* row = x + (size_t)min(GROUP(0) * TOKENS + t, T - 1) * n;  // past the last token the last one again
        round_row(row, norm, is_normed ? scale_of_norm(row, n, eps) : 1, is_normed, n, width, stride, tile + t);
    }
    if (stride > STRIDE) widen_tile(n, stride, computed, tile);
}

// Of a W: n_panels of it lie in one buffer, panel_bytes each; they are `rows` of y's m columns, from first_row on.
struct weight {
    GLOBAL const uchar* panels;
    GLOBAL float* y;
    int layout, n_panels, panel_bytes, rows, first_row, m;
};

struct product {
    GLOBAL const float *x, *norm, *residual;
    GLOBAL int* room;
    struct weight weights[3];
    int n, T, width, stride, share, is_normed;
    float eps;
    int epilogue;  // 0: y = x W^T      1: y = residual + x W^T      2: y = silu(x W0^T) * x W1^T
};

// As parameters of a kernel, and the structure that they become.
#define WEIGHT(i) GLOBAL const uchar *panels##i, GLOBAL float *y##i, int layout##i, int n_panels##i, int panel_bytes##i, \
                  int rows##i, int first_row##i, int m##i
#define WEIGHT_TOLD(i) {panels##i, y##i, layout##i, n_panels##i, panel_bytes##i, rows##i, first_row##i, m##i}
#define PRODUCT GLOBAL const float *x, GLOBAL const float *norm, GLOBAL const float *residual, GLOBAL int *room, \
                WEIGHT(0), WEIGHT(1), WEIGHT(2), int n, int T, int width, int stride, int share, \
                int is_normed, float eps, int epilogue
#define PRODUCT_TOLD {x, norm, residual, room, {WEIGHT_TOLD(0), WEIGHT_TOLD(1), WEIGHT_TOLD(2)}, \
                      n, T, width, stride, share, is_normed, eps, epilogue}

// Panels there are, counted through all W; of a gated unit the two that belong together count as one.
FUNCTION int panels(const struct product* a) {
    return a->weights[0].n_panels + (a->epilogue == 2 ? 0 : a->weights[1].n_panels + a->weights[2].n_panels);
}

// The weight to which panel `p` of all belongs, and which of its own it is.
FUNCTION const struct weight* weight_of(const struct product* a, int p, int* panel) {
    const struct weight* w = a->weights;
    for (; p >= w->n_panels; w++) p -= w->n_panels;
    *panel = p;
    return w;
}

// Of a single token: x rounded to this work-group's part of the room.
FUNCTION void round_one(const struct product* a) {
    GLOBAL int* own = a->room + (size_t)GROUP(0) * a->stride * (a->n / 32);
    round_row(a->x, a->norm, a->is_normed ? scale_of_norm(a->x, a->n, a->eps) : 1, a->is_normed, a->n, a->width, a->stride, own);
    if (a->stride > STRIDE) widen_tile(a->n, a->stride, 1, own);
}

// The panels `from` to `to`, and all of the T tokens.
FUNCTION void product(const struct product* a, int from, int to) {
    int n_blocks = a->n / 32;
    size_t tile_size = (size_t)a->stride * TOKENS * n_blocks;
    GLOBAL const int* tile = a->room + (TOKENS == 1 ? GROUP(0) * tile_size : 0);
    for (int first = 0; first < a->T; first += TOKENS, tile += tile_size) {
        int tokens = min(TOKENS, a->T - first);
        for (int p = from; p < to; p++) {
            int panel;
            const struct weight* w = weight_of(a, p, &panel);
            float out[TOKENS * 16], other[TOKENS * 16];
            multiply(w->layout, w->panels + (size_t)panel * w->panel_bytes, tile, a->stride, n_blocks, tokens, out);
            if (a->epilogue == 2) {
                const struct weight* up = a->weights + 1;
                multiply(up->layout, up->panels + (size_t)panel * up->panel_bytes, tile, a->stride, n_blocks, tokens, other);
                for (int j = 0; j < TOKENS * 16; j++) out[j] = out[j] / (1 + exponential(-out[j])) * other[j];
            }
            for (int t = 0; t < tokens; t++) {
                size_t at = (size_t)(first + t) * w->m + w->first_row + 16 * panel;
                GLOBAL float* y = w->y + at;
                GLOBAL const float* residual = a->residual + at;
                int n_rows = min(16, w->rows - 16 * panel);
                if (n_rows == 16) {  // a loop of known length is one instruction or two
                    for (int r = 0; r < 16; r++) y[r] = a->epilogue == 1 ? residual[r] + out[16 * t + r] : out[16 * t + r];
                } else {
                    for (int r = 0; r < n_rows; r++) y[r] = a->epilogue == 1 ? residual[r] + out[16 * t + r] : out[16 * t + r];
                }
            }
        }
    }
}

KERNEL void product_int8(PRODUCT) {
    struct product told = PRODUCT_TOLD;
    int from = GROUP(0) * share;
    if (TOKENS == 1) round_one(&told);
    product(&told, from, min(from + share, panels(&told)));
}
