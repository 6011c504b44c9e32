// One panel of weights, sixteen rows, by one tile of tokens: out[t][r] = W[r] . x[t]. Included once for each layout, which is
// told by these macros; what a panel looks like in memory is told in backends/device/panels.py.
//
//      NAME      of the function              MINIMUM   value = scale * q - minimum, else scale * (q - OFFSET)
//      BITS      of q: 4, 5, 6 or 8           SUPER     scales and minima are bytes, to be multiplied by floats of 256 columns
//      OFFSET    0 where there is a minimum   HALVES    a scale for each half of a block, as signed bytes
//
//                  16 rows             x, rounded to bytes: TOKENS tokens, a block of 32 columns in STRIDE ints for each
//              +-------------+         +----------------------------+---+---------+-----+--------------------+
//      block   | scales      |         | 8 x 4 columns              | d | d * sum | sum | sum of first half  |
//      of 32   | (minima)    |         +----------------------------+---+---------+-----+--------------------+
//      columns | 4 columns   |             |
//              |    of each  |  <--- times 4 columns of x, the same for all rows: no sum across a register is ever needed
//              |    ...      |
//              +-------------+
//
// All in a block is whole numbers; it is scaled once, at its end: y += scale * d * (sum q*x) - minimum * d * (sum x).

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

// 4 columns of LINES rows, 4*g + 16*side from the block's first one on; q points to the block's numbers, from our row on.
HELPER rows_int JOINED(NAME, _four)(GLOBAL const uchar* q, int side, int g) {
#if BITS == 8
    rows_int four = *(GLOBAL const loose_rows_int*)(q + 64 * (4 * side + g));
    return SIGNED ? four ^ (int)0x80808080 : four;
#else
    rows_int four = *(GLOBAL const loose_rows_int*)(q + 64 * g) >> (4 * side) & 0x0f0f0f0f;
#if BITS == 5
    rows_int fifth = *(GLOBAL const loose_rows_int*)(q + 256) >> (g + 4 * side);
    four |= (fifth & 0x01010101) << 4;
#elif BITS == 6
    rows_int upper = *(GLOBAL const loose_rows_int*)(q + 256 + 64 * side) >> (2 * g);
    four |= (upper & 0x03030303) << 4;
#endif
    return four;
#endif
}

#if SIGNED
#define ACCUMULATE accumulate_signed
#define RUNS _Pragma("nounroll")  // one after the other: all at once they have no room in registers
#else
#define ACCUMULATE accumulate
#define RUNS UNROLL
#endif

// For one token all sixteen rows at once, so that memory is read in its order; for more a call has LINES of them, from `from` on.
#define PARTS (TOKENS == 1 ? 16 / LINES : 1)
FAST static void NAME(GLOBAL const uchar* w, GLOBAL const int* x, int n_blocks, int from, float* out) {
    rows_float y[PARTS][TOKENS];
    UNROLL for (int p = 0; p < PARTS; p++)
        UNROLL for (int t = 0; t < TOKENS; t++) y[p][t] = (rows_float)ALL(0);
#if SUPER
    rows_float large_scale[PARTS], large_minimum[PARTS], y_by_d[PARTS][TOKENS];
#endif

    for (int b = 0; b < n_blocks; b++, x += STRIDE * TOKENS) {
        GLOBAL const float* d = (GLOBAL const float*)x + 8 * TOKENS;
        GLOBAL const float* scaled_sum = (GLOBAL const float*)x + 9 * TOKENS;
        GLOBAL const int* sums = x + 10 * TOKENS;
        GLOBAL const int* sums_of_half = x + 11 * TOKENS;
#if SUPER
        if (b % 8 == 0) {
            UNROLL for (int p = 0; p < PARTS; p++) {
                UNROLL for (int t = 0; t < TOKENS; t++) y_by_d[p][t] = (rows_float)ALL(0);
                large_scale[p] = halves(w + 2 * (from + LINES * p));
                if (MINIMUM) large_minimum[p] = halves(w + 32 + 2 * (from + LINES * p));
            }
            w += MINIMUM ? 64 : 32;
        }
#endif
        GLOBAL const uchar* numbers = w + (MINIMUM && !SUPER ? 64 : 32);
        UNROLL for (int p = 0; p < PARTS; p++) {
            int row = from + LINES * p;
#if HALVES
            rows_float scale = large_scale[p] * small_chars(w + row), scale_of_second = large_scale[p] * small_chars(w + 16 + row);
#elif SUPER
            rows_float scale = large_scale[p] * small_bytes(w + row), minimum = large_minimum[p] * small_bytes(w + 16 + row);
#else
            rows_float scale = halves(w + 2 * row);
#if MINIMUM
            rows_float minimum = -halves(w + 32 + 2 * row);
#endif
#endif
            rows_int sum[TOKENS];
            UNROLL for (int t = 0; t < TOKENS; t++) sum[t] = (rows_int)ALL(0);
            RUNS for (int run = 0; run < 8; run += RUN) {
                PARTIAL part[TOKENS];
                UNROLL for (int t = 0; t < TOKENS; t++) part[t] = start(sum[t]);
                UNROLL for (int i = run; i < run + RUN; i++) {
                    rows_int q = JOINED(NAME, _four)(numbers + 4 * row, i / 4, i % 4);
                    UNROLL for (int t = 0; t < TOKENS; t++) part[t] = ACCUMULATE(part[t], q, x[i * TOKENS + t]);
                }
                UNROLL for (int t = 0; t < TOKENS; t++) sum[t] = finish(sum[t], part[t]);
#if HALVES
                if (run + RUN == 4) {
                    UNROLL for (int t = 0; t < TOKENS; t++) {
                        y_by_d[p][t] += rows_to_float(sum[t] - OFFSET * sums_of_half[t]) * scale;
                        sum[t] = (rows_int)ALL(0);
                    }
                }
#endif
            }
            UNROLL for (int t = 0; t < TOKENS; t++) {
#if HALVES
                y_by_d[p][t] += rows_to_float(sum[t] - OFFSET * (sums[t] - sums_of_half[t])) * scale_of_second;
#elif SUPER
                y_by_d[p][t] += rows_to_float(sum[t]) * scale;
                y_by_d[p][t] -= rows_to_float((rows_int)ALL(sums[t])) * minimum;
#elif MINIMUM
                y[p][t] += rows_to_float(sum[t]) * (scale * d[t]);
                y[p][t] -= minimum * scaled_sum[t];
#else
                y[p][t] += rows_to_float(sum[t] - (SIGNED ? 0 : OFFSET) * sums[t]) * (scale * d[t]);
#endif
            }
#if SUPER
            if (b % 8 == 7) {
                UNROLL for (int t = 0; t < TOKENS; t++) y[p][t] += y_by_d[p][t] * d[t];
            }
#endif
        }
        w = numbers + 64 * (BITS == 8 ? 8 : BITS);
    }
    UNROLL for (int p = 0; p < PARTS; p++)
        UNROLL for (int t = 0; t < TOKENS; t++) *(loose_rows_float*)(out + 16 * t + from + LINES * p) = y[p][t];
}
#undef PARTS
#undef ACCUMULATE
#undef RUNS
#undef NAME
#undef BITS
#undef OFFSET
#undef MINIMUM
#undef SUPER
#undef HALVES
