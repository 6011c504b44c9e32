#ifndef SIXTEEN_C
#define SIXTEEN_C
// Sixteen numbers at once: the unit in which weights are unpacked and multiplied.
//
// `floats` and `ints` are written like single numbers, `a * x + b`, and stand for sixteen. On a CPU that is one vector
// instruction for 16 (AVX-512) or two for 8 (AVX2); on a GPU a lane does them one after the other, in registers.
//
//      load_bytes(p)    16 bytes as ints 0 ... 255             to_floats(q)     each int as a float
//      load_chars(p)    16 bytes as ints -128 ... 127          as_floats(q)     each int's bits taken for a float's
//      load_shorts(p)   16 ushorts as ints                     bits_of(u)       the low 16 bits of u, lowest first, 0 or 1 each
//      load_floats(p)   16 floats                              spread(a)        a, sixteen times
//      local_floats(p)  16 floats of LOCAL memory              to_array(w, x)   to an array of one's own
//      store_floats(p, x)   to memory

#ifdef __CUDACC__

#define EACH(type, value) { type y; UNROLL for (int j = 0; j < 16; j++) y.at[j] = value; return y; }

struct ints { int at[16]; };
struct floats { float at[16]; };

FUNCTION ints operator>>(ints a, int n) EACH(ints, a.at[j] >> n)
FUNCTION ints operator<<(ints a, int n) EACH(ints, a.at[j] << n)
FUNCTION ints operator&(ints a, int b) EACH(ints, a.at[j] & b)
FUNCTION ints operator&(ints a, ints b) EACH(ints, a.at[j] & b.at[j])
FUNCTION ints operator|(ints a, ints b) EACH(ints, a.at[j] | b.at[j])
FUNCTION ints operator~(ints a) EACH(ints, ~a.at[j])
FUNCTION ints operator^(ints a, ints b) EACH(ints, a.at[j] ^ b.at[j])
FUNCTION ints operator+(ints a, int b) EACH(ints, a.at[j] + b)
FUNCTION ints operator-(ints a, int b) EACH(ints, a.at[j] - b)
FUNCTION floats operator+(floats a, floats b) EACH(floats, a.at[j] + b.at[j])
FUNCTION floats operator+(floats a, float b) EACH(floats, a.at[j] + b)
FUNCTION floats operator-(floats a, float b) EACH(floats, a.at[j] - b)
FUNCTION floats operator*(floats a, floats b) EACH(floats, a.at[j] * b.at[j])
FUNCTION floats operator*(float a, floats b) EACH(floats, a * b.at[j])

FUNCTION ints load_bytes(const uchar* p) EACH(ints, p[j])
FUNCTION ints load_chars(const uchar* p) EACH(ints, (signed char)p[j])
FUNCTION ints load_shorts(const ushort* p) EACH(ints, p[j])
FUNCTION floats load_floats(const float* p) EACH(floats, p[j])
FUNCTION floats local_floats(const float* p) EACH(floats, p[j])
FUNCTION floats to_floats(ints q) EACH(floats, (float)q.at[j])
FUNCTION floats as_floats(ints q) EACH(floats, __int_as_float(q.at[j]))
FUNCTION ints as_ints(floats x) EACH(ints, __float_as_int(x.at[j]))
FUNCTION ints bits_of(uint u) EACH(ints, u >> j & 1)
FUNCTION floats spread(float x) EACH(floats, x)
FUNCTION void to_array(float* w, floats x) { UNROLL for (int j = 0; j < 16; j++) w[j] = x.at[j]; }
FUNCTION void store_floats(float* p, floats x) { to_array(p, x); }

#else

typedef int16 ints;  // OpenCL C has such types; its int16 is not a short number
typedef float16 floats;

#if LANES == 1 || (defined(__x86_64__) && !defined(__AVX512F__))
// Compilers for CPUs are made of clang, and in these words it reads and converts sixteen numbers in one instruction. The
// standard's functions for it, below, are really called by some (PoCL 3.0), which takes several times as long. And where the
// compiler knows no AVX-512 and the library of these functions uses it (PoCL 3.0 on Zen 4), it fails at such a call.
// A vector's address need not be a multiple of its size.
typedef uchar16 loose_bytes __attribute__((aligned(1)));
typedef char16 loose_chars __attribute__((aligned(1)));
typedef ushort16 loose_shorts __attribute__((aligned(2)));
typedef float16 loose_floats __attribute__((aligned(4)));
FUNCTION ints load_bytes(GLOBAL const uchar* p) { return __builtin_convertvector(*(GLOBAL const loose_bytes*)p, ints); }
FUNCTION ints load_chars(GLOBAL const uchar* p) { return __builtin_convertvector(*(GLOBAL const loose_chars*)p, ints); }
FUNCTION ints load_shorts(GLOBAL const ushort* p) { return __builtin_convertvector(*(GLOBAL const loose_shorts*)p, ints); }
FUNCTION floats load_floats(GLOBAL const float* p) { return *(GLOBAL const loose_floats*)p; }
FUNCTION floats local_floats(LOCAL const float* p) { return *(LOCAL const loose_floats*)p; }
FUNCTION floats to_floats(ints q) { return __builtin_convertvector(q, floats); }
FUNCTION void to_array(float* w, floats x) { *(loose_floats*)w = x; }
FUNCTION void store_floats(GLOBAL float* p, floats x) { *(GLOBAL loose_floats*)p = x; }
#else
FUNCTION ints load_bytes(GLOBAL const uchar* p) { return convert_int16(vload16(0, p)); }
FUNCTION ints load_chars(GLOBAL const uchar* p) { return convert_int16(vload16(0, (GLOBAL const char*)p)); }
FUNCTION ints load_shorts(GLOBAL const ushort* p) { return convert_int16(vload16(0, p)); }
FUNCTION floats load_floats(GLOBAL const float* p) { return vload16(0, p); }
FUNCTION floats local_floats(LOCAL const float* p) { return vload16(0, p); }
FUNCTION floats to_floats(ints q) { return convert_float16(q); }
FUNCTION void to_array(float* w, floats x) { vstore16(x, 0, w); }
FUNCTION void store_floats(GLOBAL float* p, floats x) { vstore16(x, 0, p); }
#endif

FUNCTION floats as_floats(ints q) { return as_float16(q); }
FUNCTION ints as_ints(floats x) { return as_int16(x); }
FUNCTION ints bits_of(uint u) { return (ints)(int)u >> (ints)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) & 1; }
FUNCTION floats spread(float x) { return x; }

#endif

// float16 to float: `halves_at` sixteen of them; `half_at` one; `spread_half_at` one, sixteen times, to be multiplied by.
#if defined(__F16C__) && LANES == 1  // x86 CPUs have an instruction for it
typedef short8 loose_halves __attribute__((aligned(2)));
FUNCTION floats halves_at(GLOBAL const ushort* p) {
    GLOBAL const loose_halves* halves = (GLOBAL const loose_halves*)p;
    return (floats)(__builtin_ia32_vcvtph2ps256(halves[0]), __builtin_ia32_vcvtph2ps256(halves[1]));
}
FUNCTION float half_at(GLOBAL const uchar* p) { return __builtin_ia32_vcvtph2ps256((short8)*(GLOBAL const short*)p)[0]; }
FUNCTION floats spread_half_at(GLOBAL const uchar* p) {
#ifdef __AVX512F__
    return __builtin_ia32_vcvtph2ps512_mask((short16)*(GLOBAL const short*)p, spread(0), -1, 4);
#else
    float8 x = __builtin_ia32_vcvtph2ps256((short8)*(GLOBAL const short*)p);
    return (floats)(x, x);
#endif
}
#else
// As half_to_float in half.c; a mask of ones or zeros chooses between the cases.
FUNCTION floats halves_at(GLOBAL const ushort* p) {
    ints h = load_shorts(p), magnitude = (h & 0x7fff) << 13;
    ints normal = magnitude + (112 << 23), tiny = as_ints(as_floats(magnitude + (113 << 23)) - as_float(113u << 23));
    ints is_tiny = (magnitude - (1 << 23)) >> 31, is_huge = ~((magnitude - (31 << 23)) >> 31);
    return as_floats((normal ^ ((normal ^ tiny) & is_tiny)) | (is_huge & 0x7f800000) | (h & 0x8000) << 16);
}
FUNCTION float half_at(GLOBAL const uchar* p) { return half_to_float(*(GLOBAL const ushort*)p); }
FUNCTION floats spread_half_at(GLOBAL const uchar* p) { return spread(half_at(p)); }
#endif

#endif
