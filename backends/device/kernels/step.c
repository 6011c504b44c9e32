// A step of one token in one kernel, on a CPU: all of a step's launches that follow each other, as stages of a table.
//
// One token is little work: a kernel takes some 20 microseconds, and between two of them the other cores go to sleep and have to be
// woken. Here each core has one work-group, which stays awake from the first layer to the logits. A stage is cut into shares;
// they take one after the other, and wait for each other before the next stage:
//
//      core 0   | q k v: share 0 | share 2 | . | rope | attention: 0 | 2 | ...
//      core 1   | share 1        | share 3   | .......| 1             | 3 | ...
//
// A work-group takes its first share of the next stage before it waits (the dots), and while it waits it fetches the weights of
// that share: memory, which is what one token takes its time for, is hardly ever idle.
//
// It only ever waits for shares that another one has taken, which is running then. So one core alone gets through as well, and
// none has to be there. It asks more than OpenCL 1.2 promises: that what was written before an atomic operation is seen after
// one, and that a buffer stays where it is. Compilers and drivers for CPUs keep to that.
#include "product_int8.c"
#include "rope_kv.c"
#include "attention_one.c"
#include "elementwise.c"
#include "rows.c"

enum { A_PRODUCT, A_ROPE, AN_ATTENTION, A_MERGE, A_SUM, SOME_ROWS };

struct stage {
    int kind, shares;
    union {
        struct product product;
        struct rope rope;
        struct attention attention;
        struct merge merge;
        struct sum sum;
        struct rows rows;
        char room[STAGE_BYTES - 8];
    } told;
};
typedef char has_room_for_all[sizeof(struct stage) == STAGE_BYTES ? 1 : -1];

// What a launch would be told, to its place in the table, once: `n_shares`, of a product at most.
#define NOTED_AS(its_kind, its_shares, structure) \
    stages[at].kind = its_kind;                   \
    stages[at].shares = its_shares;               \
    stages[at].told.structure = told;
#define NOTE GLOBAL struct stage *stages, int at, int n_shares
#define NOTES(kernel, structure, parameters, initial, its_kind) \
    KERNEL void note_##kernel(parameters, NOTE) {               \
        struct structure told = initial;                        \
        NOTED_AS(its_kind, n_shares, structure)                 \
    }
NOTES(rope_kv_write, rope, ROPE, ROPE_TOLD, A_ROPE)
NOTES(attention_one, attention, ATTENTION, ATTENTION_TOLD, AN_ATTENTION)
NOTES(attention_merge, merge, MERGE, MERGE_TOLD, A_MERGE)
NOTES(add, sum, SUM, SUM_TOLD, A_SUM)
NOTES(get_rows, rows, ROWS_OF, ROWS_TOLD, SOME_ROWS)
KERNEL void note_product_int8(PRODUCT, NOTE) {
    struct product told = PRODUCT_TOLD;
    told.share = max(1, panels(&told) / n_shares);
    NOTED_AS(A_PRODUCT, (panels(&told) + told.share - 1) / told.share, product)
}

#define APART (COUNTER_BYTES / 4)  // ints from one counter to the next: each has a line of the cache
// The counters lie behind the stages.
#define TAKEN(stage) counters[APART * 2 * (stage)]
#define DONE(stage) counters[APART * (2 * (stage) + 1)]
#define GONE counters[APART * 2 * n_stages]  // work-groups that have come to the end

#if defined(__x86_64__)
#define IS_DONE(stage, n) (DONE(stage) >= (n))  // loads stay in order there
#else
#define IS_DONE(stage, n) (atomic_add(&DONE(stage), 0) >= (n))
#endif

// Until all shares of a stage are done. Meanwhile the first weights of `share` of the next one are fetched.
#define AHEAD (1 << 16)  // bytes at most: they should still be there when they are wanted
FUNCTION void wait_for(volatile GLOBAL int* counters, GLOBAL const struct stage* stages, int stage, int share) {
    GLOBAL const struct stage* next = stages + stage + 1;
    GLOBAL const uchar* ahead = 0;
    int bytes = 0;
    if (next->kind == A_PRODUCT && share < next->shares) {
        struct product told = next->told.product;
        int panel;
        const struct weight* w = weight_of(&told, share * told.share, &panel);
        ahead = w->panels + (size_t)panel * w->panel_bytes;
        bytes = min(AHEAD, min(told.share, w->n_panels - panel) * w->panel_bytes);
    }
    for (int at = 0; !IS_DONE(stage, stages[stage].shares); at += 64) {
        if (at < bytes) fetch(ahead + at, 1);
    }
    mem_fence(CLK_GLOBAL_MEM_FENCE);
}

// The counters are all zeros, and again zeros in the end.
KERNEL void whole_step(GLOBAL const struct stage* stages, int n_stages) {
    LOCAL float cosine[R], sine[R];
    volatile GLOBAL int* counters = (volatile GLOBAL int*)(stages + n_stages);
    int share = atomic_inc(&TAKEN(0));
    for (int s = 0; s < n_stages; s++) {
        int is_first = 1;
        for (; share < stages[s].shares; share = atomic_inc(&TAKEN(s))) {
            switch (stages[s].kind) {
                case A_PRODUCT: {
                    struct product told = stages[s].told.product;
                    // x is rounded for the first share that a work-group gets; one that comes late and gets none must not write
                    // where others are at work
                    if (is_first) round_one(&told);
                    product(&told, share * told.share, min(share * told.share + told.share, panels(&told)));
                    break;
                }
                case A_ROPE: {
                    struct rope told = stages[s].told.rope;
                    rope_token(&told, share, cosine, sine);
                    break;
                }
                case AN_ATTENTION: {
                    struct attention told = stages[s].told.attention;
                    int wide = (told.h + told.heads - 1) / told.heads;
                    attention_part(&told, share % wide, share / wide);
                    break;
                }
                case A_MERGE: {
                    struct merge told = stages[s].told.merge;
                    attention_merged(&told, share);
                    break;
                }
                case A_SUM: {
                    struct sum told = stages[s].told.sum;
                    add_chunk(&told, share);
                    break;
                }
                case SOME_ROWS: {
                    struct rows told = stages[s].told.rows;
                    get_row(&told, share);
                    break;
                }
            }
            is_first = 0;
            mem_fence(CLK_GLOBAL_MEM_FENCE);
            atomic_inc(&DONE(s));
        }
        if (s + 1 < n_stages) {
            share = atomic_inc(&TAKEN(s + 1));
            wait_for(counters, stages, s, share);
        }
    }
    if (atomic_inc(&GONE) == N_GROUPS(0) - 1)  // the last one, so that nobody looks at the counters any more
        for (int i = 0; i <= 2 * n_stages; i++) counters[APART * i] = 0;
}
