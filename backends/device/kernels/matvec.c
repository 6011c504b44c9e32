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
//
// Up to three W that read the same x are multiplied in one launch, and what follows is done where a sum is at hand.
#include "sums.c"
#include "blocks.c"
#include "exponential.c"

// EPILOGUE, known when it is compiled: 0 is y = x W^T, and
#define ADD 1     // y = residual + x W^T
#define SWIGLU 2  // y = silu(x W0^T) * x W1^T

// This lane's part of the products of x with ROWS rows from `first` on. Past the last of `rows` rows it is the last one again.
FUNCTION void dot_rows(GLOBAL const float* x, GLOBAL const uchar* weight, uint n, int row_bytes, int rows, int first, float* sum) {
    GLOBAL const uchar* row[ROWS];
    floats part[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) {
        row[r] = weight + (size_t)min(first + r, rows - 1) * row_bytes;
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
        sum[r] = sum16(sixteen);
#if TAIL
        for (uint i = n / 16 * 16 + LANE; i < n; i += LANES) sum[r] += weight_at(row[r], i) * x[i];
#endif
    }
}

// Of a W: `rows` of y's m columns, from first_row on. A weight that is not there has no rows.
#define WEIGHT(i) GLOBAL const uchar *weight##i, GLOBAL float *y##i, int rows##i, int first_row##i, int m##i
#define TAKE_WEIGHT(i) weight0 = weight##i, y0 = y##i, rows0 = rows##i, first_row0 = first_row##i, m0 = m##i

// A work-group for `share` rows (a multiple of ROWS) of a W and one token; of a gated unit for the same rows of both.
KERNEL void matvec(GLOBAL const float* x, GLOBAL const float* residual, WEIGHT(0), WEIGHT(1), WEIGHT(2), uint n, int row_bytes,
                   int share) {
    LOCAL float shared[LANES];
    int group = GROUP(0);  // weight0 and what belongs to it become those of the W that this group is for
#if EPILOGUE != SWIGLU
    int groups0 = (rows0 + share - 1) / share, groups1 = (rows1 + share - 1) / share;
    if (group >= groups0 + groups1) {
        group -= groups0 + groups1;
        TAKE_WEIGHT(2);
    } else if (group >= groups0) {
        group -= groups0;
        TAKE_WEIGHT(1);
    }
#endif
    x += (size_t)GROUP(1) * n;
    size_t at = (size_t)GROUP(1) * m0 + first_row0;

    for (int first = group * share, end = min(rows0, first + share); first < end; first += ROWS) {
        float sum[ROWS];
        dot_rows(x, weight0, n, row_bytes, rows0, first, sum);
#if EPILOGUE == SWIGLU
        float up[ROWS];
        dot_rows(x, weight1, n, row_bytes, rows0, first, up);
#endif
        UNROLL for (int r = 0; r < ROWS; r++) {
            float y = sum_over_lanes(sum[r], shared);
#if EPILOGUE == SWIGLU
            y = y / (1 + exponential(-y)) * sum_over_lanes(up[r], shared);
#endif
            size_t i = at + first + r;
            if (LANE == 0 && first + r < end) y0[i] = EPILOGUE == ADD ? residual[i] + y : y;
        }
    }
}
