// x rounded to bytes, block by block of 32 columns: x = d * q, where d is the block's largest number / 127.
//
// It lies in tiles of TOKENS tokens, as int8_panel.c reads it, STRIDE ints a block and token:
//
//      tile | block | 8 x { 4 columns of token 0, of token 1, ... } | { d } | { d * sum of q } | { sum of q } | { sum of its first half }
//
// A block with NaN or infinity in it has such a d, so that every result that it has a part in shows it.

// One token's row to its place in a tile. If `norm` is to be applied, x is multiplied by `scale` and by norm[i] first.
FUNCTION void round_row(GLOBAL const float* x, GLOBAL const float* norm, float scale, int is_normed, int n, GLOBAL int* tile) {
    for (int b = 0; b < n / 32; b++, x += 32, tile += STRIDE * TOKENS) {
        float part[32];
        if (is_normed) {
            for (int i = 0; i < 32; i++) part[i] = x[i] * scale * norm[32 * b + i];
        } else {
            for (int i = 0; i < 32; i++) part[i] = x[i];
        }
        int largest = 0;  // floats without their sign have the order of their bits
        for (int i = 0; i < 32; i++) {
            int bits = as_int(part[i]) & 0x7fffffff;
            largest = bits > largest ? bits : largest;
        }
        float d = as_float(largest) / 127, inverse = largest ? 127 / as_float(largest) : 0;
        uchar q[32] __attribute__((aligned(4)));
        int low = 0, high = 0;
        for (int i = 0; i < 32; i++) q[i] = (uchar)as_int(part[i] * inverse + 12582912.0f);  // 1.5 * 2^23: the lowest bits are the number
        for (int i = 0; i < 16; i++) low += (char)q[i];
        for (int i = 16; i < 32; i++) high += (char)q[i];
        for (int i = 0; i < 8; i++) tile[i * TOKENS] = ((int*)q)[i];
        ((GLOBAL float*)tile)[8 * TOKENS] = d;
        ((GLOBAL float*)tile)[9 * TOKENS] = d * (low + high);
        tile[10 * TOKENS] = low + high;
        tile[11 * TOKENS] = low;
    }
}

// 1 / sqrt(mean(x^2) + eps)
FUNCTION float scale_of_norm(GLOBAL const float* x, int n, float eps) {
    float part[16] = {0};
    for (int i = 0; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += x[i + j] * x[i + j];
    return 1 / sqrt(sum16(part) / n + eps);
}
