// x rounded to bytes, block by block of 32 columns: x = d * q, where d is the block's largest number / 127.
//
// It lies in tiles of TOKENS tokens, as int8_panel.c reads it, STRIDE ints a block and token:
//
//      tile | block | 8 x { 4 columns of token 0, of token 1, ... } | { d } | { d * sum of q } | { sum of q } | { sum of its first half }
//
// A block with NaN or infinity in it has such a d, so that every result that it has a part in shows it.

// The largest of sixteen numbers, and their sum.
FUNCTION int largest16(ints x) {
    int8 a = x.lo > x.hi ? x.lo : x.hi;
    int4 b = a.lo > a.hi ? a.lo : a.hi, c = b.zwxy;
    b = b > c ? b : c;
    return b.x > b.y ? b.x : b.y;
}
FUNCTION int total16(ints x) {
    int8 a = x.lo + x.hi;
    int4 b = a.lo + a.hi;
    return b.x + b.y + b.z + b.w;
}

// The whole numbers that x is nearest to: after 1.5 * 2^23 has been added, they are what its lowest bits tell.
FUNCTION ints nearest(floats x) { return as_ints(x + 12582912.0f) - 0x4b400000; }
FUNCTION int4 as_bytes(ints q) { return as_int4(__builtin_convertvector(q, char16)); }

// One token's row to its place in a tile. If `norm` is to be applied, x is multiplied by `scale` and by norm[i] first.
FUNCTION void round_row(GLOBAL const float* x, GLOBAL const float* norm, float scale, int is_normed, int n, GLOBAL int* tile) {
    for (int b = 0; b < n / 32; b++, x += 32, norm += 32, tile += STRIDE * TOKENS) {
        floats first = load_floats(x), second = load_floats(x + 16);
        if (is_normed) {
            first = first * scale * load_floats(norm);
            second = second * scale * load_floats(norm + 16);
        }
        ints size = as_ints(first) & 0x7fffffff, other = as_ints(second) & 0x7fffffff;  // without a sign, floats have their bits' order
        int largest = largest16(size > other ? size : other);
        float d = as_float(largest) / 127, inverse = largest ? 127 / as_float(largest) : 0;
        ints low = nearest(first * inverse), high = nearest(second * inverse);
        int4 q[2] = {as_bytes(low), as_bytes(high)};
        int sum_of_half = total16(low), sum = sum_of_half + total16(high);
        UNROLL for (int i = 0; i < 8; i++) tile[i * TOKENS] = ((int*)q)[i];
        ((GLOBAL float*)tile)[8 * TOKENS] = d;
        ((GLOBAL float*)tile)[9 * TOKENS] = d * sum;
        tile[10 * TOKENS] = sum;
        tile[11 * TOKENS] = sum_of_half;
    }
}

// 1 / sqrt(mean(x^2) + eps)
FUNCTION float scale_of_norm(GLOBAL const float* x, int n, float eps) {
    floats even = spread(0), odd = spread(0);
    for (int i = 0; i < n; i += 32) {
        floats a = load_floats(x + i), b = load_floats(x + i + 16);
        even = a * a + even;
        odd = b * b + odd;
    }
    float part[16];
    to_array(part, even + odd);
    return 1 / sqrt(sum16(part) / n + eps);
}
