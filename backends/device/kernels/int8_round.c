// x rounded to bytes: x = d * q, where d is the largest number / 127 of `width` columns. These are 32, or 256 where the weights
// have super-blocks of as many: there d is multiplied once for eight blocks.
//
// It lies in tiles of TOKENS tokens, as int8_panel.c reads it, `stride` ints a block and token: STRIDE, and WIDE_INTS more where
// some weights want x in 16 bits as well.
//
//      tile | block | 8 x { 4 columns of token 0, of token 1, ... } | { d } | { d * sum } | { begun } | { begun } | 16 x { 2 columns ... }
//
// sum: of the block's q. With super-blocks it lies there as it is, since d is multiplied later. begun: what sums of products start
// with for an offset, -8 * sum and -128 * sum (twice the first for 16); with super-blocks -32 * sum, for the block's first half and for its second.
//
// What is rounded together with NaN or infinity has such a d, so that every result that it has a part in shows it.

// The largest of sixteen numbers, and their sum.
FUNCTION int largest16(ints x) {
    const int4* part = (const int4*)&x;
    int4 a = part[0] > part[1] ? part[0] : part[1], b = part[2] > part[3] ? part[2] : part[3];
    a = a > b ? a : b;
    int first = a.x > a.y ? a.x : a.y, second = a.z > a.w ? a.z : a.w;
    return first > second ? first : second;
}
FUNCTION int total16(ints x) {
    const int4* part = (const int4*)&x;
    int4 a = (part[0] + part[1]) + (part[2] + part[3]);
    return (a.x + a.y) + (a.z + a.w);
}

// The whole numbers that x is nearest to: after 1.5 * 2^23 has been added, they are what its lowest bits tell.
FUNCTION ints nearest(floats x) { return as_ints(x + 12582912.0f) - 0x4b400000; }
FUNCTION int4 as_bytes(ints q) { return as_int4(__builtin_convertvector(q, char16)); }

// Sixteen numbers of x, times `scale` and the norm's weights if it is to be normed.
FUNCTION floats sixteen_of(GLOBAL const float* x, GLOBAL const float* norm, float scale, int is_normed) {
    return is_normed ? load_floats(x) * scale * load_floats(norm) : load_floats(x);
}

// One token's row to its place in a tile.
FUNCTION void round_row(GLOBAL const float* x, GLOBAL const float* norm, float scale, int is_normed, int n, int width,
                        int stride, GLOBAL int* tile) {
    for (int start = 0; start < n; start += width) {
        ints sizes = 0;
        for (int i = start; i < start + width; i += 16) {  // without a sign, floats have their bits' order
            ints size = as_ints(sixteen_of(x + i, norm + i, scale, is_normed)) & 0x7fffffff;
            sizes = size > sizes ? size : sizes;
        }
        float largest = as_float(largest16(sizes)), d = largest / 127, inverse = as_int(largest) ? 127 / largest : 0;
        for (int i = start; i < start + width; i += 32, tile += stride * TOKENS) {
            ints low = nearest(sixteen_of(x + i, norm + i, scale, is_normed) * inverse);
            ints high = nearest(sixteen_of(x + i + 16, norm + i + 16, scale, is_normed) * inverse);
            int4 q[2] = {as_bytes(low), as_bytes(high)};
            int sum_of_half = total16(low), sum = sum_of_half + total16(high);
            UNROLL for (int j = 0; j < 8; j++) tile[j * TOKENS] = ((int*)q)[j];
            ((GLOBAL float*)tile)[8 * TOKENS] = d;
            ((GLOBAL float*)tile)[9 * TOKENS] = (width == 32 ? d : 1) * sum;
            tile[10 * TOKENS] = width == 32 ? -8 * sum : -32 * sum_of_half;
            tile[11 * TOKENS] = width == 32 ? -128 * sum : -32 * (sum - sum_of_half);
        }
    }
}

// A tile's columns once more, of its first tokens, as numbers of 16 bits: behind each block columns 0 and 2 of each four, and 1 and 3.
FUNCTION void widen_tile(int n, int stride, int tokens, GLOBAL int* tile) {
    for (int start = 0; start < n; start += 32, tile += stride * TOKENS) {
        GLOBAL int* wide = tile + STRIDE * TOKENS;
        for (int j = 0; j < 8; j++)
            for (int t = 0; t < tokens; t++) {
                int four = tile[j * TOKENS + t];
                wide[2 * j * TOKENS + t] = (four << 24 >> 24 & 0xffff) | four << 8 >> 24 << 16;
                wide[(2 * j + 1) * TOKENS + t] = (four << 16 >> 24 & 0xffff) | four >> 24 << 16;
            }
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
