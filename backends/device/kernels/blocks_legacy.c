// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 weights, two groups of 16. Included by blocks.c.
//
//      Q4_0   0        2                      18
//             | d f16  | qs: 16 bytes         |    byte j: q of weight j in the low nibble, of weight j+16 in the high one
//      Q4_1   0        2        4                      20
//             | d f16  | m f16  | qs: as in Q4_0       |
//      Q5_0   0        2               6                      22
//             | d f16  | qh: 32 bits   | qs: as in Q4_0       |    bit j of qh, lowest first: the fifth bit of weight j's q
//      Q5_1   0        2        4               8                      24
//             | d f16  | m f16  | qh: 32 bits   | qs: as in Q4_0       |
//      Q8_0   0        2                      34
//             | d f16  | q: 32 int8           |

FUNCTION void unpack(GLOBAL const uchar* row, int g, float* w) {
    GLOBAL const uchar* block = row + (size_t)(g / 2) * BLOCK_BYTES;
    int second = g % 2;  // the second group of its block?
    float d = half_at(block);

#if defined(FORMAT_Q4_0)
    for (int j = 0; j < 16; j++) w[j] = d * ((block[2 + j] >> 4 * second & 15) - 8);
#elif defined(FORMAT_Q4_1)
    float m = half_at(block + 2);
    for (int j = 0; j < 16; j++) w[j] = d * (block[4 + j] >> 4 * second & 15) + m;
#elif defined(FORMAT_Q5_0)
    uint fifth = ((GLOBAL const ushort*)(block + 2))[second];  // of each weight of the group a bit
    for (int j = 0; j < 16; j++) w[j] = d * ((int)((block[6 + j] >> 4 * second & 15) | (fifth >> j & 1) << 4) - 16);
#elif defined(FORMAT_Q5_1)
    float m = half_at(block + 2);
    uint fifth = ((GLOBAL const ushort*)(block + 4))[second];
    for (int j = 0; j < 16; j++) w[j] = d * (int)((block[8 + j] >> 4 * second & 15) | (fifth >> j & 1) << 4) + m;
#elif defined(FORMAT_Q8_0)
    for (int j = 0; j < 16; j++) w[j] = d * (signed char)block[2 + 16 * second + j];
#endif
}
