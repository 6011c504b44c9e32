// One panel of weights, sixteen rows, by one tile of tokens: out[t][r] = W[r] . x[t]. Included once for each layout, which is
// told by these macros; what a panel looks like in memory is told in backends/device/panels.py.
//
//      NAME      of the function              MINIMUM   value = scale * q - minimum, else scale * (q - OFFSET)
//      BITS      of q: 4, 5, 6 or 8           SUPER     scales and minima are bytes, to be multiplied by floats of 256 columns
//      OFFSET    0 where there is a minimum   HALVES    a scale for each half of a block, as signed bytes
//
//                  16 rows             x, rounded to bytes: TOKENS tokens, a block of 32 columns in `stride` ints for each
//              +-------------+         +----------------------------+---+---------+---------+--------------+
//      block   | scales      |         | 8 x 4 columns              | d | d * sum | 2 begun | (16 x 2 of   |
//      of 32   | (minima)    |         |                            |   |         | sums    |  16 bits)    |
//      columns | 4 columns   |         +----------------------------+---+---------+---------+--------------+
//              |    of each  |             |
//              |    ...      |  <--- times 4 columns of x, the same for all rows: no sum across a register is ever needed
//              +-------------+
//
// All in a block is whole numbers; it is scaled once, at its end: y += scale * d * (sum q*x) - minimum * d * (sum x). What OFFSET
// takes off is the same for all rows: the sum begins with -OFFSET * sum x, which int8_round.c has made.
//
// A tile whose sums do not fit in registers goes through in parts, of FEW tokens. Then q is unpacked to memory, once for all parts.

#ifndef HALVES
#define HALVES 0
#endif
#ifndef SUPER
#define SUPER 0
#endif
#ifndef MINIMUM
#define MINIMUM 0
#endif
#ifndef OFFSET
#define OFFSET 0
#endif

#define SECTIONS (HALVES ? 2 : 1)  // of a block, each with its own sum
#if BITS == 8 && WIDE_INTS
#define AS_WIDE(word) JOINED(word, _wide)
#define PASSES 2  // columns 0 and 2 of each four, then 1 and 3
#else
#define AS_WIDE(word) word
#define PASSES 1
#endif
#define STEP (RUN < 4 ? RUN : 4)
// Of the two begun sums of a block, -8 times and -128 times the sum of x, or with two sections one for each.
#if HALVES || OFFSET == 128
#define BEGIN(begun, section, t) begun[(HALVES ? section : 1) * TOKENS + t]
#else
#define BEGIN(begun, section, t) (OFFSET / 8 * begun[t])
#endif

// Group j of a block's eight, four columns of sixteen rows. It has columns 4*j to 4*j + 3; `w` points to the block's numbers.
HELPER rows_int JOINED(NAME, _group)(GLOBAL const uchar* w, int pass, int j) {
#if BITS == 8
    rows_int four = *(GLOBAL const loose_rows_int*)(w + 64 * j);
    return PASSES == 1 ? four : four >> (8 * pass) & 0x00ff00ff;
#else
    int side = j / 4, g = j % 4;
    rows_int four = *(GLOBAL const loose_rows_int*)(w + 64 * g) >> (4 * side) & 0x0f0f0f0f;
#if BITS == 5
    rows_int fifth = *(GLOBAL const loose_rows_int*)(w + 256) >> (g + 4 * side);
    four |= (fifth & 0x01010101) << 4;
#elif BITS == 6
    rows_int upper = *(GLOBAL const loose_rows_int*)(w + 256 + 64 * side) >> (2 * g);
    four |= (upper & 0x03030303) << 4;
#endif
    return four;
#endif
}

// sum[t] += q * x over a section of a block, for FEW tokens. Groups are taken two at a time, for one token after the other, so that
// four registers of q are enough. After RUN groups the partial sums are full; if after two, they are emptied at once.
HELPER void JOINED(NAME, _sums)(rows_int* sum, GLOBAL const uchar* w, const rows_int* unpacked, GLOBAL const int* x, int section) {
    int from = 8 / SECTIONS * section, to = from + 8 / SECTIONS;
    UNROLL for (int pass = 0; pass < PASSES; pass++)
        IN_TURNS for (int run = from; run < to; run += RUN) {
            AS_WIDE(PARTIAL) part[FEW];
            UNROLL for (int t = 0; t < FEW; t++) part[t] = AS_WIDE(start)(sum[t]);
            IN_TURNS for (int step = run; step < run + RUN; step += STEP)
                UNROLL for (int two = step; two < step + STEP; two += 2)
                    UNROLL for (int t = 0; t < FEW; t++) {
                        UNROLL for (int j = two; j < two + 2; j++) {
                            rows_int q = FEW < TOKENS ? unpacked[8 * pass + j] : JOINED(NAME, _group)(w, pass, j);
                            part[t] = AS_WIDE(accumulate)(part[t], q, x[(PASSES * j + pass) * TOKENS + t]);
                        }
                        if (RUN == 2) sum[t] = AS_WIDE(finish)(sum[t], part[t]);
                    }
            if (RUN > 2) UNROLL for (int t = 0; t < FEW; t++) sum[t] = AS_WIDE(finish)(sum[t], part[t]);
        }
}

FAST static void NAME(GLOBAL const uchar* w, GLOBAL const int* x, int stride, int n_blocks, int tokens, float* out) {
    rows_float y[TOKENS], y_by_d[TOKENS];
    UNROLL for (int t = 0; t < TOKENS; t++) y[t] = (rows_float)ALL(0);
#if SUPER
    rows_float large_scale, large_minimum;
#endif

    for (int b = 0; b < n_blocks; b++, x += stride * TOKENS) {
        if (TOKENS == 1 && FETCHED_AHEAD(BITS)) fetch(w + FETCHED_AHEAD(BITS), 64 * (BITS + 1));
#if SUPER
        if (b % 8 == 0) {
            UNROLL for (int t = 0; t < TOKENS; t++) y_by_d[t] = (rows_float)ALL(0);
            large_scale = halves(w);
            if (MINIMUM) large_minimum = halves(w + 32);
            w += MINIMUM ? 64 : 32;
        }
#endif
#if HALVES
        rows_float scale = large_scale * small_chars(w), scale_of_second = large_scale * small_chars(w + 16);
#elif SUPER
        rows_float scale = large_scale * small_bytes(w), minimum = large_minimum * small_bytes(w + 16);
#else
        rows_float scale = halves(w);
#if MINIMUM
        rows_float minimum = -halves(w + 32);
#endif
#endif
        w += MINIMUM && !SUPER ? 64 : 32;
        rows_int unpacked[8 * PASSES];
        if (FEW < TOKENS) UNROLL for (int i = 0; i < 8 * PASSES; i++) unpacked[i] = JOINED(NAME, _group)(w, i / 8, i % 8);

        IN_TURNS for (int first = 0; first < COMPUTED(tokens); first += FEW) {
            GLOBAL const int* columns = x + (PASSES == 2 ? STRIDE : 0) * TOKENS + first;
            GLOBAL const float* d = (GLOBAL const float*)x + 8 * TOKENS + first;
            GLOBAL const float* scaled_sum = d + TOKENS;
            GLOBAL const int* begun = (GLOBAL const int*)d + 2 * TOKENS;
            rows_float* total = (SUPER ? y_by_d : y) + first;
            UNROLL for (int section = 0; section < SECTIONS; section++) {
                rows_int sum[FEW];
                UNROLL for (int t = 0; t < FEW; t++) {
                    int begin = OFFSET ? BEGIN(begun, section, t) : 0;
                    sum[t] = (rows_int)ALL(begin);
                }
                JOINED(NAME, _sums)(sum, w, unpacked, columns, section);
                UNROLL for (int t = 0; t < FEW; t++) {
#if HALVES
                    total[t] += rows_to_float(sum[t]) * (section ? scale_of_second : scale);
#elif SUPER
                    total[t] += rows_to_float(sum[t]) * scale;
                    total[t] -= scaled_sum[t] * minimum;
#elif MINIMUM
                    total[t] += rows_to_float(sum[t]) * (scale * d[t]);
                    total[t] -= minimum * scaled_sum[t];
#else
                    total[t] += rows_to_float(sum[t]) * (scale * d[t]);
#endif
                }
            }
        }
#if SUPER
        if (b % 8 == 7) {
            GLOBAL const float* d = (GLOBAL const float*)x + 8 * TOKENS;
            UNROLL for (int t = 0; t < TOKENS; t++) y[t] += y_by_d[t] * d[t];
        }
#endif
        w += 64 * (BITS == 8 ? 8 : BITS);
    }
    UNROLL for (int t = 0; t < TOKENS; t++) *(loose_rows_float*)(out + 16 * t) = y[t];
}
#undef SECTIONS
#undef AS_WIDE
#undef PASSES
#undef STEP
#undef BEGIN
#undef NAME
#undef BITS
#undef OFFSET
#undef MINIMUM
#undef SUPER
#undef HALVES
