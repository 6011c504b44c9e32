#ifndef FETCH_C
#define FETCH_C
// fetch(p, n): n bytes from p on will be wanted soon. They need not be there: past the end of a buffer nothing is fetched.
#if defined(__x86_64__) || defined(__aarch64__)
FUNCTION void fetch(GLOBAL const void* p, int n) {
    for (int i = 0; i < n; i += 64) __builtin_prefetch((const void*)(size_t)((GLOBAL const char*)p + i));
}
#else
FUNCTION void fetch(GLOBAL const void* p, int n) { prefetch((GLOBAL const char*)p, n); }
#endif
#endif
