// Weights out of their blocks. A define such as FORMAT_Q4_1 chooses the format when the kernel is compiled.
//
//      row   | block | block | block | ...       BLOCK weights in BLOCK_BYTES bytes
//             g0 g1   g2 g3                      a group g: the 16 weights 16g ... 16g+15
//
// `unpack` turns one group into floats. All formats have it, so kernels need not know which one they work on. Its loops do the
// same to sixteen neighbours, with nothing else in them: a compiler for a CPU makes vector instructions of that, and on a GPU
// each lane takes a group of its own. A block's size is even but rarely a multiple of 4, so it is read by bytes and ushorts:
// many devices cannot read an int at such an address.
//
// Layouts and the order of the float operations are those of ops/blocks/, so the weights are equal to its to the last bit, but
// for a product and a difference that a compiler makes one operation, without the rounding between.

#if BLOCK == 1
#include "blocks_float.c"

// The last group of a row may have fewer than 16 weights: the others are 0.
FUNCTION void unpack_within(GLOBAL const uchar* row, int g, int n, float* w) {
    if (16 * g + 16 <= n) unpack(row, g, w);
    else
        for (int j = 0; j < 16; j++) w[j] = 16 * g + j < n ? weight_at(row, 16 * g + j) : 0;
}

#else
#include "half.c"

FUNCTION float half_at(GLOBAL const uchar* p) { return half_to_float(*(GLOBAL const ushort*)p); }

#if BLOCK == 32
#include "blocks_legacy.c"
#else
#include "blocks_k.c"
#endif

FUNCTION void unpack_within(GLOBAL const uchar* row, int g, int n, float* w) { unpack(row, g, w); }
#endif
