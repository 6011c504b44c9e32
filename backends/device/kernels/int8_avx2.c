// Integer dot products with AVX2: products of bytes are added up in pairs, as 16-bit numbers, which hold sixteen of them if q has
// four bits, eight if it has five, and four if it has six. A q of eight bits would overflow them at once: its sign is given to x.
//
//      the words are those of int8_vnni.c
#define LINES 8
#define TARGET , target("avx2,fma,f16c")
#define FAST __attribute__((noinline TARGET))
#define HELPER static inline __attribute__((always_inline TARGET))
typedef int rows_int __attribute__((vector_size(32)));
typedef float rows_float __attribute__((vector_size(32)));
typedef rows_int loose_rows_int __attribute__((aligned(1)));
typedef rows_float loose_rows_float __attribute__((aligned(4)));
typedef char chars __attribute__((vector_size(32)));
typedef short pairs __attribute__((vector_size(32)));
typedef short rows_short __attribute__((vector_size(16)));
typedef rows_short loose_rows_short __attribute__((aligned(1)));
#define ALL(a) {a, a, a, a, a, a, a, a}

typedef uchar8 loose_rows_bytes __attribute__((aligned(1)));
typedef char8 loose_rows_chars __attribute__((aligned(1)));

#define PARTIAL pairs
#define RUN (BITS == 4 ? 8 : BITS == 5 ? 4 : BITS == 6 ? 2 : 1)
#define SIGNED (BITS == 8)
HELPER pairs start(rows_int sum) { return (pairs)(rows_int)ALL(0); }
HELPER pairs accumulate(pairs part, rows_int q, int x) {
    return part + __builtin_ia32_pmaddubsw256((chars)q, (chars)(rows_int)ALL(x));
}
HELPER pairs accumulate_signed(pairs part, rows_int q, int x) {
    chars signed_x = __builtin_ia32_psignb256((chars)(rows_int)ALL(x), (chars)q);
    return part + __builtin_ia32_pmaddubsw256(__builtin_ia32_psignb256((chars)q, (chars)q), signed_x);
}
HELPER rows_int finish(rows_int sum, pairs part) {
    return sum + __builtin_ia32_pmaddwd256(part, (pairs)(rows_int)ALL(0x10001));
}

HELPER rows_float halves(GLOBAL const uchar* p) { return __builtin_ia32_vcvtph2ps256(*(GLOBAL const loose_rows_short*)p); }
HELPER rows_float small_bytes(GLOBAL const uchar* p) {
    return __builtin_convertvector(*(GLOBAL const loose_rows_bytes*)p, rows_float);
}
HELPER rows_float small_chars(GLOBAL const uchar* p) {
    return __builtin_convertvector(*(GLOBAL const loose_rows_chars*)p, rows_float);
}
HELPER rows_float rows_to_float(rows_int sum) { return __builtin_convertvector(sum, rows_float); }
