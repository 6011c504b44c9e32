// Rows of a float matrix, picked by number; a work-group for each.

struct rows {
    GLOBAL const float* x;
    GLOBAL const int* ids;
    GLOBAL float* y;
    int n;
};
#define ROWS_OF GLOBAL const float *x, GLOBAL const int *ids, GLOBAL float *y, int n
#define ROWS_TOLD {x, ids, y, n}

FUNCTION void get_row(const struct rows* of, int at) {
    GLOBAL const float* x = of->x + (size_t)of->ids[at] * of->n;
    GLOBAL float* y = of->y + (size_t)at * of->n;
    for (int i = LANE; i < of->n; i += LANES) y[i] = x[i];
}

KERNEL void get_rows(ROWS_OF) {
    struct rows told = ROWS_TOLD;
    get_row(&told, GROUP(0));
}
