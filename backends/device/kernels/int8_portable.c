// Integer dot products in OpenCL C alone: four products of bytes at a time for sixteen rows.
//
//      the words are those of int8_vnni.c
#define TARGET
#define FAST __attribute__((noinline TARGET))
#define HELPER static inline __attribute__((always_inline TARGET))
typedef ints rows_int;
typedef floats rows_float;
#define ALL(a) (a)
typedef ints loose_rows_int __attribute__((aligned(1)));
typedef floats loose_rows_float __attribute__((aligned(4)));

typedef ints PARTIAL;
#define RUN 4
#define IN_TURNS UNROLL
#define TOKENS_AT_ONCE TOKENS
HELPER ints start(ints sum) { return sum; }
HELPER ints accumulate(ints part, ints q, int x) {
    UNROLL for (int j = 0; j < 4; j++) part += (q >> 8 * j & 255) * (int)(char)(x >> 8 * j);
    return part;
}
HELPER ints finish(ints sum, ints part) { return part; }

HELPER floats halves(GLOBAL const uchar* p) { return halves_at((GLOBAL const ushort*)p); }
HELPER floats small_bytes(GLOBAL const uchar* p) { return to_floats(load_bytes(p)); }
HELPER floats small_chars(GLOBAL const uchar* p) { return to_floats(load_chars(p)); }
HELPER floats rows_to_float(ints sum) { return to_floats(sum); }
