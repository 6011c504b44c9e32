// Q2_K ... Q6_K: blocks of 256 weights, 16 runs of 16. Included by blocks.c.
//
// A scale and a minimum serve one run (Q2_K, Q3_K, Q6_K) or two (Q4_K, Q5_K). They are small integers, times one float16 a
// block. The bits of q lie in several places: two runs, `left` and `right`, lie side by side in 32 bytes, and other runs lie in
// the same bytes' other bits. ops/blocks/k_quants.py draws it.
//
//      Q2_K   0                    16                 80        82          84
//             | 16 scales, mins    | qs: 64 bytes     | d f16   | dmin f16  |
//      Q3_K   0                    32                 96                   108      110
//             | hmask: 32 bytes    | qs: 64 bytes     | scales: 12 bytes   | d f16  |
//      Q4_K   0        2           4                    16                  144
//             | d f16  | dmin f16  | scales: 12 bytes   | qs: 128 bytes     |
//      Q5_K   0        2           4                    16                 48                176
//             | d f16  | dmin f16  | scales: 12 bytes   | qh: 32 bytes     | qs: 128 bytes   |
//      Q6_K   0                  128               192                  208      210
//             | ql: 128 bytes    | qh: 64 bytes    | scales: 16 int8    | d f16  |
#define TAIL 0

// Eight scales and eight mins of six bits, of Q4_K and Q5_K. Those of numbers 4-7 have their two high bits above those of 0-3.
FUNCTION int scale_of(GLOBAL const uchar* packed, int i) {
    return i < 4 ? packed[i] & 63 : packed[i + 4] & 15 | packed[i - 4] >> 6 << 4;
}
FUNCTION int min_of(GLOBAL const uchar* packed, int i) {
    return i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | packed[i] >> 6 << 4;
}

FUNCTION floats unpack(GLOBAL const uchar* block, int run) {
    int side = 16 * (run % 2);  // left or right

#if defined(FORMAT_Q2_K)
    float scale = half_at(block + 80) * (block[run] & 15), least = half_at(block + 82) * (block[run] >> 4);
    ints q = load_bytes(block + 16 + run / 8 * 32 + side) >> run % 8 / 2 * 2 & 3;
    return scale * to_floats(q) - least;

#elif defined(FORMAT_Q3_K)
    GLOBAL const uchar* scales = block + 96;
    int low = scales[run % 8] >> run / 8 * 4 & 15, high = scales[8 + run % 4] >> run / 4 * 2 & 3;
    float scale = half_at(block + 108) * ((low | high << 4) - 32);
    ints q = load_bytes(block + 32 + run / 8 * 32 + side) >> run % 8 / 2 * 2 & 3;
    ints third = load_bytes(block + side) >> run / 2 & 1;
    return scale * to_floats((q | third << 2) - 4);

#elif defined(FORMAT_Q4_K)
    float scale = half_at(block) * scale_of(block + 4, run / 2), least = half_at(block + 2) * min_of(block + 4, run / 2);
    ints q = load_bytes(block + 16 + run / 4 * 32 + side) >> run / 2 % 2 * 4 & 15;
    return scale * to_floats(q) - least;

#elif defined(FORMAT_Q5_K)
    float scale = half_at(block) * scale_of(block + 4, run / 2), least = half_at(block + 2) * min_of(block + 4, run / 2);
    ints q = load_bytes(block + 48 + run / 4 * 32 + side) >> run / 2 % 2 * 4 & 15;
    ints fifth = load_bytes(block + 16 + side) >> run / 2 & 1;
    return scale * to_floats(q | fifth << 4) - least;

#else  // Q6_K
    float scale = half_at(block + 208) * (signed char)block[192 + run];
    ints low = load_bytes(block + run / 8 * 64 + run % 4 * 16) >> run / 4 % 2 * 4 & 15;
    ints high = load_bytes(block + 128 + run / 8 * 32 + side) >> run % 8 / 2 * 2 & 3;
    return scale * to_floats((low | high << 4) - 32);
#endif
}
