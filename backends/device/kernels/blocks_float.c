// F32, F16, BF16: a block is one weight, so a row may have any number of them. Included by blocks.c.
#include "half.c"

#if defined(FORMAT_F32)
#define STORED float
#define AS_FLOAT(bits) (bits)
#elif defined(FORMAT_F16)
#define STORED ushort
#define AS_FLOAT(bits) half_to_float(bits)
#else  // BF16: the upper half of a float
#define STORED ushort
#define AS_FLOAT(bits) as_float((uint)(bits) << 16)
#endif

FUNCTION void unpack(GLOBAL const uchar* row, int g, float* w) {
    GLOBAL const STORED* stored = (GLOBAL const STORED*)row + 16 * g;
    for (int j = 0; j < 16; j++) w[j] = AS_FLOAT(stored[j]);
}

FUNCTION float weight_at(GLOBAL const uchar* row, int i) { return AS_FLOAT(((GLOBAL const STORED*)row)[i]); }
