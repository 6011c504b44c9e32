// The k largest numbers of each row, largest first, with their places; of equal ones the first. NaN is larger than any number.
//
// A row is cut into spans. best_of_span makes a sorted list of the best of each; merge makes one list of up to FAN, until there
// is only one. Of `span` numbers a list keeps min(k, span), or all there are, if the row ends before.
//
//      x        |  span 0  |  span 1  |  span 2  |   in one launch
//      lists    |  0 |  1 |  2 |                      in the next: each entry finds its place in the merged list by counting
//      merged   |  0  |                               those of the other lists that come before it

FUNCTION int larger(float a, float b) { return !(a <= b) && b == b; }

#if LANES == 1

#include "half.c"
#include "sixteen.c"

#define COLUMNS 16  // of sixteen numbers each
#define RUN 4       // times sixteen numbers, of which nearly always none is looked at

// Of the best so far the first `held`: the number is put among them, after those that equal it. Returns how many there are then.
FUNCTION int offer(GLOBAL float* values, GLOBAL int* ids, int held, int kept, float value, int id) {
    int place = held < kept ? held : kept - 1;
    if (held == kept && !larger(value, values[place])) return held;
    for (; place > 0 && larger(value, values[place - 1]); place--) {
        values[place] = values[place - 1];
        ids[place] = ids[place - 1];
    }
    values[place] = value;
    ids[place] = id;
    return min(held + 1, kept);
}

// A work-group for a span of a row. With the span seen as a table, the k-th largest column maximum is at most the k-th largest
// number, and nearly as much: few numbers reach it, and only these are looked at one by one.
KERNEL void best_of_span(GLOBAL const float* x, GLOBAL float* values, GLOBAL int* ids, int n, int span, int k) {
    int begin = GROUP(0) * span, end = min(begin + span, n), kept = min(k, span), held = 0;
    size_t list = ((size_t)GROUP(1) * N_GROUPS(0) + GROUP(0)) * kept;
    x += (size_t)GROUP(1) * n;
    values += list;
    ids += list;
    float bound = -INFINITY;
    if (kept <= 16 * COLUMNS) {
        floats most[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) most[j] = spread(-INFINITY);
        for (int i = begin; i + 16 * COLUMNS <= end; i += 16 * COLUMNS)
            UNROLL for (int j = 0; j < COLUMNS; j++) {
                floats numbers = load_floats(x + i + 16 * j);
                most[j] = numbers > most[j] ? numbers : most[j];
            }
        for (int j = 0; j < 16 * COLUMNS; j++) held = offer(values, ids, held, kept, ((float*)most)[j], j);
        bound = values[kept - 1];
        held = 0;
    }
    for (int i = begin; i < end; i += 16 * RUN) {
        int count = min(16 * RUN, end - i);
        if (count == 16 * RUN) {
            ints below = load_floats(x + i) < bound;
            UNROLL for (int j = 1; j < RUN; j++) below &= load_floats(x + i + 16 * j) < bound;
            const int4* part = (const int4*)&below;
            int4 all = part[0] & part[1] & part[2] & part[3];
            if (all.x & all.y & all.z & all.w) continue;
        }
        for (int j = i; j < i + count; j++)
            if (!(x[j] < bound)) held = offer(values, ids, held, kept, x[j], j);  // NaN is below nothing
    }
}

#else

// A work-group for a span of a row; each number counts those that come before it.
KERNEL void best_of_span(GLOBAL const float* x, GLOBAL float* values, GLOBAL int* ids, int n, int span, int k) {
    LOCAL float all[SPAN];
    int begin = GROUP(0) * span, count = min(span, n - begin);
    size_t list = ((size_t)GROUP(1) * N_GROUPS(0) + GROUP(0)) * min(k, span);
    x += (size_t)GROUP(1) * n + begin;
    for (int i = LANE; i < count; i += LANES) all[i] = x[i];
    BARRIER();
    for (int i = LANE; i < count; i += LANES) {
        int place = 0;
        for (int j = 0; j < i; j++) place += !larger(all[i], all[j]);
        for (int j = i + 1; j < count; j++) place += larger(all[j], all[i]);
        if (place >= k) continue;
        values[list + place] = all[i];
        ids[list + place] = begin + i;
    }
}

#endif

// How many of a list's numbers come before `value`, those that equal it too if the list lies before it in the row.
FUNCTION int before(GLOBAL const float* list, int length, float value, int is_before) {
    int least = 0, most = length;
    while (least < most) {
        int middle = (least + most) / 2;
        if (is_before ? !larger(value, list[middle]) : larger(list[middle], value)) least = middle + 1;
        else most = middle;
    }
    return least;
}

// A work-group for a list; its lanes share the entries. The lists are those of `span` numbers, the merged ones of `wider`.
KERNEL void merge(GLOBAL const float* values, GLOBAL const int* ids, GLOBAL float* merged, GLOBAL int* merged_ids, int n,
                  int span, int wider, int k) {
    int lists = N_GROUPS(0), own = GROUP(0), kept = min(k, span), longest = min(k, wider);
    int first = own / FAN * FAN, end = min(first + FAN, lists);
    size_t to = ((size_t)GROUP(1) * ((lists + FAN - 1) / FAN) + own / FAN) * longest;
    values += (size_t)GROUP(1) * lists * kept;
    ids += ((size_t)GROUP(1) * lists + own) * kept;
    for (int i = LANE; i < min(kept, n - own * span); i += LANES) {
        float value = values[(size_t)own * kept + i];
        int place = i;
        for (int other = first; other < end && place < longest; other++)
            if (other != own) place += before(values + (size_t)other * kept, min(kept, n - other * span), value, other < own);
        if (place >= longest) break;  // and so do all that follow
        merged[to + place] = value;
        merged_ids[to + place] = ids[i];
    }
}
