// Weights out of their blocks. A define such as FORMAT_Q4_1 chooses the format when a kernel is compiled.
//
//      row   | block             | block             | ...     RUNS runs of 16 weights in BLOCK_BYTES bytes
//            | run 0   | run 1   | run 0   | run 1   | ...     (a float is a block of its own: there 16 of them count as one)
//
// `unpack(block, run)` makes floats of one run. All formats have it, so kernels need not know which one they work on. In an
// unrolled loop `run` is known when the kernel is compiled: then shifts and places are constants, and what the runs of a block
// share, such as its scale, is computed once.
//
// A block's size is even but often no multiple of 4, and is then read by bytes and ushorts: many devices cannot read an int at
// such an address. Layouts and the order of the float operations are those of ops/blocks/.
#include "half.c"
#include "sixteen.c"

#if RUNS == 1
#include "blocks_float.c"
#elif RUNS == 2
#include "blocks_legacy.c"
#else
#include "blocks_k.c"
#endif

FUNCTION floats unpack_run(GLOBAL const uchar* row, uint i) {  // run i of a row
    return unpack(row + (size_t)(i / RUNS) * BLOCK_BYTES, i % RUNS);
}

// Run i into an array; after the last of a row's n weights there are zeros.
FUNCTION void unpack_to(GLOBAL const uchar* row, uint i, uint n, float* w) {
#if TAIL
    if (16 * i + 16 > n) {
        for (int j = 0; j < 16; j++) w[j] = 16 * i + j < n ? weight_at(row, 16 * i + j) : 0;
        return;
    }
#endif
    to_array(w, unpack_run(row, i));
}
