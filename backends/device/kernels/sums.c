#ifndef SUMS_C
#define SUMS_C
// Sums over a row by all work-items of a group.
//
// The row is cut into runs of 16, and a lane takes every LANES-th run. Sixteen sums side by side are what a CPU's vector
// registers hold; they also keep the rounding error small, since each adds up fewer numbers.

#if LANES == 1

FUNCTION float sum_over_lanes(float x, TO_LOCAL float* shared) { return x; }

#else

// Every lane's x added up, in halves: log2(LANES) steps. Every lane gets the sum.
FUNCTION float sum_over_lanes(float x, TO_LOCAL float* shared) {
    BARRIER();  // nobody reads an earlier sum any more
    shared[LANE] = x;
    BARRIER();
    for (int half_of = LANES / 2; half_of > 0; half_of /= 2) {
        if (LANE < half_of) shared[LANE] += shared[LANE + half_of];
        BARRIER();
    }
    return shared[0];
}

#endif

FUNCTION float sum16(const float* part) {
    float sum[8];
    for (int j = 0; j < 8; j++) sum[j] = part[j] + part[j + 8];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

#endif
