// Rows of a float matrix, picked by number; a work-group for each.

KERNEL void get_rows(GLOBAL const float* x, GLOBAL const int* ids, GLOBAL float* y, int n) {
    x += (size_t)ids[GROUP(0)] * n;
    y += (size_t)GROUP(0) * n;
    for (int i = LANE; i < n; i += LANES) y[i] = x[i];
}
