// y = x W^T for a few tokens, one after the other.
//
// While a model writes, each weight is used once a token, so the time is that of reading the weights: the fewer bytes, the
// better. They are unpacked where they are used, in registers. x is small and stays in the cache.
//
//              n, in runs of 16                ROWS rows of W at a time, so that x is loaded once for all of them.
//      W  | l0   | l1   | l2   | l0   | ...    On a GPU the lanes l take every LANES-th run, and add up in the end.
//         | l0   | l1   | l2   | l0   | ...    On a CPU there is one lane. It takes a block at a time (STEP == RUNS),
//      x  | l0   | l1   | l2   | l0   | ...    since what the runs of a block share is then computed once.
//
// A sum is kept as sixteen partial ones until the row's end. Sums of different rows do not wait for each other either: a
// processor that needs four cycles for an addition can begin two a cycle.
#include "sums.c"
#include "blocks.c"

// A work-group for `share` rows (a multiple of ROWS) and one token. W has `rows` of y's m columns, from first_row on.
KERNEL void matvec(GLOBAL const float* x, GLOBAL const uchar* weight, GLOBAL float* y, uint n, int row_bytes, int rows,
                   int first_row, int m, int share) {
    LOCAL float shared[LANES];
    x += (size_t)GROUP(1) * n;
    y += (size_t)GROUP(1) * m + first_row;

    for (int first = GROUP(0) * share, end = min(rows, first + share); first < end; first += ROWS) {
        GLOBAL const uchar* row[ROWS];
        floats part[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            row[r] = weight + (size_t)min(first + r, rows - 1) * row_bytes;  // past the last row the last one again
            part[r] = spread(0);
        }
        for (uint i = LANE * STEP; i < n / 16; i += LANES * STEP)
            UNROLL for (int s = 0; s < STEP; s++) {
                floats xs = load_floats(x + 16 * (i + s));
                UNROLL for (int r = 0; r < ROWS; r++) part[r] = unpack_run(row[r], i + s) * xs + part[r];
            }
        UNROLL for (int r = 0; r < ROWS; r++) {
            float sixteen[16];
            to_array(sixteen, part[r]);
            float sum = sum16(sixteen);
#if TAIL
            for (uint i = n / 16 * 16 + LANE; i < n; i += LANES) sum += weight_at(row[r], i) * x[i];
#endif
            sum = sum_over_lanes(sum, shared);
            if (LANE == 0 && first + r < end) y[first + r] = sum;
        }
    }
}
