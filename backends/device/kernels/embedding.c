// Rows of a weight by number. A work-group for each token; it has nothing to do if the token's row is not among these `rows`,
// which begin with first_row: another launch has it then.
#include "blocks.c"

KERNEL void embedding(GLOBAL const int* tokens, GLOBAL const uchar* table, GLOBAL float* y, uint n, int row_bytes, int rows,
                      int first_row) {
    int id = tokens[GROUP(0)] - first_row;
    if (id < 0 || id >= rows) return;
    y += (size_t)GROUP(0) * n;
    for (uint i = LANE; i < (n + 15) / 16; i += LANES) {
        float w[16];
        unpack_to(table + (size_t)id * row_bytes, i, n, w);
        for (uint j = 0; j < 16 && 16 * i + j < n; j++) y[16 * i + j] = w[j];
    }
}
