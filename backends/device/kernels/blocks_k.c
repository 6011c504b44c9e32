// Q2_K ... Q6_K: blocks of 256 weights, 16 groups of 16. Included by blocks.c.
//
// A scale and a minimum serve 16 weights (Q2_K, Q3_K, Q6_K) or 32 (Q4_K, Q5_K). They are small integers, times one float16 a
// block. Each q is cut into bits that lie in several places; ops/blocks/k_quants.py draws them all.
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

#if defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K)
// Eight scales and eight mins of six bits. Those of sub-blocks 4-7 have their two high bits above those of 0-3.
FUNCTION int scale_of(GLOBAL const uchar* packed, int i) {
    return i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
}
FUNCTION int min_of(GLOBAL const uchar* packed, int i) {
    return i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | packed[i] >> 6 << 4;
}
#endif

FUNCTION void unpack(GLOBAL const uchar* row, int g, float* w) {
    GLOBAL const uchar* block = row + (size_t)(g / 16) * BLOCK_BYTES;
    int s = g % 16;          // the group's place in its block
    int right = 16 * (s % 2);  // its bytes are the left or the right 16 of a run of 32

#if defined(FORMAT_Q2_K)
    float scale = half_at(block + 80) * (block[s] & 15), least = half_at(block + 82) * (block[s] >> 4);
    GLOBAL const uchar* qs = block + 16 + s / 8 * 32 + right;  // each byte has two bits of four groups
    int shift = s % 8 / 2 * 2;
    for (int j = 0; j < 16; j++) w[j] = scale * (qs[j] >> shift & 3) - least;

#elif defined(FORMAT_Q3_K)
    GLOBAL const uchar *hmask = block + right, *scales = block + 96;
    int low = scales[s % 8] >> s / 8 * 4 & 15, high = scales[8 + s % 4] >> s / 4 * 2 & 3;
    float scale = half_at(block + 108) * ((low | high << 4) - 32);
    GLOBAL const uchar* qs = block + 32 + s / 8 * 32 + right;
    int shift = s % 8 / 2 * 2, bit = s / 2;
    for (int j = 0; j < 16; j++) w[j] = scale * (((qs[j] >> shift & 3) | (hmask[j] >> bit & 1) << 2) - 4);

#elif defined(FORMAT_Q4_K)
    float scale = half_at(block) * scale_of(block + 4, s / 2), least = half_at(block + 2) * min_of(block + 4, s / 2);
    GLOBAL const uchar* qs = block + 16 + s / 4 * 32 + right;
    int shift = s / 2 % 2 * 4;
    for (int j = 0; j < 16; j++) w[j] = scale * (qs[j] >> shift & 15) - least;

#elif defined(FORMAT_Q5_K)
    float scale = half_at(block) * scale_of(block + 4, s / 2), least = half_at(block + 2) * min_of(block + 4, s / 2);
    GLOBAL const uchar *qh = block + 16 + right, *qs = block + 48 + s / 4 * 32 + right;
    int shift = s / 2 % 2 * 4, bit = s / 2;
    for (int j = 0; j < 16; j++) w[j] = scale * ((qs[j] >> shift & 15) | (qh[j] >> bit & 1) << 4) - least;

#elif defined(FORMAT_Q6_K)
    float scale = half_at(block + 208) * (signed char)block[192 + s];
    GLOBAL const uchar *ql = block + s / 8 * 64 + s % 4 * 16, *qh = block + 128 + s / 8 * 32 + right;
    int low = s / 4 % 2 * 4, high = s % 8 / 2 * 2;
    for (int j = 0; j < 16; j++) w[j] = scale * (((ql[j] >> low & 15) | (qh[j] >> high & 3) << 4) - 32);
#endif
}
