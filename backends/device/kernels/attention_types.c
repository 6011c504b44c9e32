// What attention.c reads its cache as, and in what portions. Caches are float32 or float16; a head has HEAD_K numbers in a key
// and HEAD_V in a value.
//
//                          float32 cache       float16 cache
//      KEY, VALUE          float               ushort
//      KEYS_AT(p)          sixteen of them as floats, KEY_AT(p) one as a float
//      VALUE_AT(p)         WIDTH of them as MIXED: on a CPU sixteen, as floats; on a GPU one, beside its neighbour's

#if HALF_K
#define KEY ushort
#define KEYS_AT(p) halves_at(p)
#define KEY_AT(p) half_to_float(*(p))
#else
#define KEY float
#define KEYS_AT(p) load_floats(p)
#define KEY_AT(p) (*(p))
#endif

// A lane keeps WIDTH components of the result at a time.
#if LANES == 1 && HEAD_V % 16 == 0
#define WIDTH 16
#define MIXED floats
#define ZERO spread(0)
#define STORE(p, x) store_floats(p, x)
#else
#define WIDTH 1
#define MIXED float
#define ZERO 0
#define STORE(p, x) *(p) = (x)
#endif
#if HALF_V
#define VALUE ushort
#else
#define VALUE float
#endif
#if WIDTH == 16 && HALF_V
#define VALUE_AT(p) halves_at(p)
#elif WIDTH == 16
#define VALUE_AT(p) load_floats(p)
#elif HALF_V
#define VALUE_AT(p) half_to_float(*(p))
#else
#define VALUE_AT(p) (*(p))
#endif
#define OWN ((HEAD_V / WIDTH + LANES - 1) / LANES)  // of them a lane has so many
