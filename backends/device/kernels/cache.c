// The KV cache: a row a position. A work-group for each token.

#if HALF
#define PLACE ushort
#define STORE(target, value) store_half(&(target), value)
#else
#define PLACE float
#define STORE(target, value) (target) = (value)
#endif

KERNEL void kv_write(GLOBAL PLACE* cache, GLOBAL const float* x, GLOBAL const int* positions, int n) {
    x += (size_t)GROUP(0) * n;
    cache += (size_t)positions[GROUP(0)] * n;
    for (int i = LANE; i < n; i += LANES) STORE(cache[i], x[i]);
}
