// Integer dot products with AVX2: products of bytes are added up in pairs, as 16-bit numbers, which hold sixteen of them if q has
// four bits, eight if it has five, and four if it has six. A q of eight bits would overflow them at once: there q and x are
// multiplied as 16-bit numbers, two columns at a time.
//
//      the words are those of int8_vnni.c. Sixteen rows take two registers, so that x is loaded once for two products
#define TARGET , target("avx2,fma,f16c")
#define FAST __attribute__((noinline TARGET))
#define HELPER static inline __attribute__((always_inline TARGET))
typedef int rows_int __attribute__((vector_size(64)));
typedef float rows_float __attribute__((vector_size(64)));
typedef rows_int loose_rows_int __attribute__((aligned(1)));
typedef rows_float loose_rows_float __attribute__((aligned(4)));
typedef int eight __attribute__((vector_size(32)));
typedef char chars __attribute__((vector_size(32)));
typedef short shorts __attribute__((vector_size(32)));
typedef short pairs __attribute__((vector_size(64)));
typedef short eight_shorts __attribute__((vector_size(16)));
typedef eight_shorts loose_eight_shorts __attribute__((aligned(1)));
#define ALL(a) {a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a}

typedef uchar16 loose_rows_bytes __attribute__((aligned(1)));
typedef char16 loose_rows_chars __attribute__((aligned(1)));

#define FIRST_HALF(q) __builtin_shufflevector(q, q, 0, 1, 2, 3, 4, 5, 6, 7)
#define SECOND_HALF(q) __builtin_shufflevector(q, q, 8, 9, 10, 11, 12, 13, 14, 15)
#define BOTH(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

#define TOKENS_AT_ONCE 4
#if TOKENS > TOKENS_AT_ONCE
#define IN_TURNS _Pragma("nounroll")
#else
#define IN_TURNS UNROLL
#endif

typedef rows_int PARTIAL_wide;
HELPER rows_int start_wide(rows_int sum) { return sum; }
HELPER rows_int accumulate_wide(rows_int part, rows_int q, int x) {
    shorts all = (shorts)(eight){x, x, x, x, x, x, x, x};
    eight first = __builtin_ia32_pmaddwd256((shorts)FIRST_HALF(q), all);
    eight second = __builtin_ia32_pmaddwd256((shorts)SECOND_HALF(q), all);
    return part + BOTH(first, second);
}
HELPER rows_int finish_wide(rows_int sum, rows_int part) { return part; }

typedef pairs PARTIAL;
#define RUN (BITS == 5 ? 4 : BITS == 6 ? 2 : 8)
HELPER pairs start(rows_int sum) { return (pairs)(rows_int)ALL(0); }
HELPER pairs accumulate(pairs part, rows_int q, int x) {
    chars all = (chars)(eight){x, x, x, x, x, x, x, x};
    eight first = (eight)__builtin_ia32_pmaddubsw256((chars)FIRST_HALF(q), all);
    eight second = (eight)__builtin_ia32_pmaddubsw256((chars)SECOND_HALF(q), all);
    return part + (pairs)BOTH(first, second);
}
HELPER rows_int finish(rows_int sum, pairs part) { return accumulate_wide(sum, (rows_int)part, 0x10001); }

HELPER rows_float halves(GLOBAL const uchar* p) {
    GLOBAL const loose_eight_shorts* h = (GLOBAL const loose_eight_shorts*)p;
    return BOTH(__builtin_ia32_vcvtph2ps256(h[0]), __builtin_ia32_vcvtph2ps256(h[1]));
}
HELPER rows_float small_bytes(GLOBAL const uchar* p) {
    return __builtin_convertvector(*(GLOBAL const loose_rows_bytes*)p, rows_float);
}
HELPER rows_float small_chars(GLOBAL const uchar* p) {
    return __builtin_convertvector(*(GLOBAL const loose_rows_chars*)p, rows_float);
}
HELPER rows_float rows_to_float(rows_int sum) { return __builtin_convertvector(sum, rows_float); }
