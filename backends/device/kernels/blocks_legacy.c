// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 weights, two runs of 16. Included by blocks.c.
// Q4_0_F32, Q4_1_F32, Q8_0_F32: the same with d and m in float32, four bytes each.
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
#define TAIL 0

#if defined(FORMAT_Q4_0_F32) || defined(FORMAT_Q4_1_F32) || defined(FORMAT_Q8_0_F32)
#define SCALE_BYTES 4
#define SCALE_AT(p) spread(*(GLOBAL const float*)(p))
#else
#define SCALE_BYTES 2
#define SCALE_AT(p) spread_half_at(p)
#endif

FUNCTION floats unpack(GLOBAL const uchar* block, int run) {
    floats d = SCALE_AT(block);
    block += SCALE_BYTES;

#if defined(FORMAT_Q4_0) || defined(FORMAT_Q4_0_F32)
    return d * to_floats((load_bytes(block) >> 4 * run & 15) - 8);

#elif defined(FORMAT_Q4_1) || defined(FORMAT_Q4_1_F32)
    return d * to_floats(load_bytes(block + SCALE_BYTES) >> 4 * run & 15) + SCALE_AT(block);

#elif defined(FORMAT_Q5_0)
    uint fifth = ((GLOBAL const ushort*)block)[run];
    return d * to_floats((load_bytes(block + 4) >> 4 * run & 15 | bits_of(fifth) << 4) - 16);

#elif defined(FORMAT_Q5_1)
    uint fifth = ((GLOBAL const ushort*)(block + 2))[run];
    return d * to_floats(load_bytes(block + 6) >> 4 * run & 15 | bits_of(fifth) << 4) + SCALE_AT(block);

#else  // Q8_0, Q8_0_F32
    return d * to_floats(load_chars(block + 16 * run));
#endif
}
