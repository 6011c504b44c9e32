// A layer for one token in one kernel, on a CPU: what else is seven, from the products of q, k and v to the last of the feed-forward.
//
// One token is little work: a kernel takes some 20 microseconds, and between two of them the other cores go to sleep and have to be
// woken. Here each core has one work-group, which stays awake. A stage is cut into shares; they take one after the
// other, and wait for each other before the next stage:
//
//      core 0   | q k v: share 0 | share 2 | . | rope | attention: 0 | 2 | ...
//      core 1   | share 1        | share 3   | .......| 1             | 3 | ...
//
// A work-group only ever waits for shares that another one has taken, which is running then. So one core alone gets through as
// well, and none has to be there. It asks more of memory than OpenCL 1.2 promises between work-groups: that what was written before
// an atomic operation is seen after one. Compilers for CPUs keep to that.
#include "product_int8.c"
#include "rope_kv.c"
#include "attention_one.c"

#define TAKEN(stage) sync[APART * 2 * (stage)]
#define DONE(stage) sync[APART * (2 * (stage) + 1)]
#define GONE sync[APART * 2 * STAGES]  // work-groups that have come to the end

#if defined(__x86_64__)
#define IS_DONE(stage, n) (DONE(stage) >= (n) || (__builtin_ia32_pause(), 0))  // loads stay in order there
#else
#define IS_DONE(stage, n) (atomic_add(&DONE(stage), 0) >= (n))
#endif

// The numbers 0 ... n-1, taken one after the other.
#define STAGE(stage, n, work)                                                                        \
    for (int share = atomic_inc(&TAKEN(stage)); share < (n); share = atomic_inc(&TAKEN(stage))) { \
        work;                                                                                     \
        mem_fence(CLK_GLOBAL_MEM_FENCE);                                                          \
        atomic_inc(&DONE(stage));                                                                 \
    }                                                                                             \
    while (!IS_DONE(stage, n)) {}                                                                 \
    mem_fence(CLK_GLOBAL_MEM_FENCE);

// A product, in shares of `step` panels: so few that no core is much later than the others. x is rounded for the first share
// that a work-group gets; one that comes late and gets none must not write where others are at work.
#define PRODUCT_STAGE(stage, p)                                                                             \
    {                                                                                                       \
        int n_panels = panels(PRODUCT_OF(p)), step = max(1, n_panels / (SHARES * N_GROUPS(0))), is_round = 0; \
        STAGE(stage, (n_panels + step - 1) / step,                                                          \
              if (!is_round) round_one(PRODUCT_OF(p));                                                      \
              is_round = 1;                                                                                 \
              product(share * step, min(share * step + step, n_panels), PRODUCT_OF(p)))                     \
    }
#define SHARES 3  // for each core

// sync: all zeros, and again zeros in the end. n_b ... n_d: work-groups that these stages have as kernels, n_c `wide` in a row.
KERNEL void layer_int8(PRODUCT(a_), ROPE(b_), ATTENTION(c_), MERGE(d_), PRODUCT(e_), PRODUCT(f_), PRODUCT(g_),
                       volatile GLOBAL int* sync, int n_b, int n_c, int wide, int n_d) {
    LOCAL float cosine[R], sine[R];
    PRODUCT_STAGE(0, a_)
    STAGE(1, n_b, rope_token(share, cosine, sine, ROPE_OF(b_)))
    STAGE(2, n_c, attention_part(share % wide, share / wide, ATTENTION_OF(c_)))
    STAGE(3, n_d, attention_merged(share, MERGE_OF(d_)))
    PRODUCT_STAGE(4, e_)
    PRODUCT_STAGE(5, f_)
    PRODUCT_STAGE(6, g_)
    if (atomic_inc(&GONE) == N_GROUPS(0) - 1)  // the last one, so that nobody looks at the counters any more
        for (int i = 0; i <= 2 * STAGES; i++) sync[APART * i] = 0;
}
