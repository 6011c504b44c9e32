// How attention reads its cache, float32 or float16: KEYS_AT(p) is sixteen numbers as floats, KEY_AT(p) one as a float.

#if HALF_K
#define KEY ushort
#define KEYS_AT(p) halves_at(p)
#define KEY_AT(p) half_to_float(*(p))
#else
#define KEY float
#define KEYS_AT(p) load_floats(p)
#define KEY_AT(p) (*(p))
#endif

#if HALF_V
#define VALUE ushort
#define VALUES_AT(p) halves_at(p)
#define VALUE_AT(p) half_to_float(*(p))
#else
#define VALUE float
#define VALUES_AT(p) load_floats(p)
#define VALUE_AT(p) (*(p))
#endif
