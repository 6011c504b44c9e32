#ifndef HALF_C
#define HALF_C
// float16 to float, in integer arithmetic: no device extension needed, and a compiler can do sixteen at once.
//
//      float16   sign 1 | exponent 5, bias 15  | mantissa 10
//      float     sign 1 | exponent 8, bias 127 | mantissa 23

FUNCTION float half_to_float(ushort h) {
    uint magnitude = (uint)(h & 0x7fff) << 13;                              // exponent and mantissa at their places
    float normal = as_float(magnitude + (112u << 23));                      // 127 - 15 = 112
    float tiny = as_float(magnitude + (113u << 23)) - as_float(113u << 23); // exponent 0: mantissa * 2^-24, with no leading 1
    float x = magnitude < (1u << 23) ? tiny : normal;
    x = magnitude >= (31u << 23) ? as_float(magnitude | 0x7f800000u) : x;   // infinity and NaN
    return as_float(as_uint(x) | (uint)(h & 0x8000) << 16);
}

#endif
