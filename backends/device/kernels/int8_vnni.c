// Integer dot products with AVX-512 VNNI: `accumulate` is one instruction for 64 products.
//
//      rows_int, rows_float   a number for each of sixteen rows
//      TOKENS_AT_ONCE         so many tokens have their sums in registers
//      IN_TURNS               before a loop; where registers are few, its turns are not unrolled, since they would share them
//      PARTIAL                where products of four columns a time are added up: start(), accumulate(part, q, x), finish(sum, part).
//                             The same with _wide, where WIDE_INTS says so, for a q of eight bits and two columns a time
//      RUN                    so many times before it could overflow
//
// The compiler may take the CPU for one without these instructions (LLVM 14 does with AMD's Zen 4), and then refuses them in a
// kernel, but not in a function that says what it needs. Whether the CPU has them, the host has found out.
#define TARGET , target("avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")
#define FAST __attribute__((noinline TARGET))
#define HELPER static inline __attribute__((always_inline TARGET))
typedef int rows_int __attribute__((vector_size(64)));
typedef float rows_float __attribute__((vector_size(64)));
typedef rows_int loose_rows_int __attribute__((aligned(1)));
typedef rows_float loose_rows_float __attribute__((aligned(4)));
typedef short rows_short __attribute__((vector_size(32)));
typedef rows_short loose_rows_short __attribute__((aligned(1)));
#define ALL(a) {a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a}

typedef uchar16 loose_rows_bytes __attribute__((aligned(1)));
typedef char16 loose_rows_chars __attribute__((aligned(1)));

typedef rows_int PARTIAL;
#define RUN 4
#define IN_TURNS UNROLL
#define TOKENS_AT_ONCE 8
HELPER rows_int start(rows_int sum) { return sum; }
HELPER rows_int accumulate(rows_int part, rows_int q, int x) { return __builtin_ia32_vpdpbusd512(part, q, (rows_int)ALL(x)); }
HELPER rows_int finish(rows_int sum, rows_int part) { return part; }

HELPER rows_float halves(GLOBAL const uchar* p) {
    return __builtin_ia32_vcvtph2ps512_mask(*(GLOBAL const loose_rows_short*)p, (rows_float)ALL(0), -1, 4);
}
HELPER rows_float small_bytes(GLOBAL const uchar* p) {
    return __builtin_convertvector(*(GLOBAL const loose_rows_bytes*)p, rows_float);
}
HELPER rows_float small_chars(GLOBAL const uchar* p) {
    return __builtin_convertvector(*(GLOBAL const loose_rows_chars*)p, rows_float);
}
HELPER rows_float rows_to_float(rows_int sum) { return __builtin_convertvector(sum, rows_float); }
