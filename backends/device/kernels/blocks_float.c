// F32, F16, BF16: a row may have any number of weights, since each stands for itself. Included by blocks.c.

#define TAIL 1
#define WEIGHT_BYTES (BLOCK_BYTES / 16)

FUNCTION floats unpack(GLOBAL const uchar* block, int run) {
#if defined(FORMAT_F32)
    return load_floats((GLOBAL const float*)block);
#elif defined(FORMAT_F16)
    return halves_at((GLOBAL const ushort*)block);
#else  // BF16: the upper half of a float
    return as_floats(load_shorts((GLOBAL const ushort*)block) << 16);
#endif
}

// A weight by itself: of those after the last run.
FUNCTION float weight_at(GLOBAL const uchar* row, int i) {
#if defined(FORMAT_F32)
    return ((GLOBAL const float*)row)[i];
#elif defined(FORMAT_F16)
    return half_to_float(((GLOBAL const ushort*)row)[i]);
#else
    return as_float((uint)((GLOBAL const ushort*)row)[i] << 16);
#endif
}
