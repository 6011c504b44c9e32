// P(N > a) for a standard normal number N, 0 <= a <= 15: half of erfc(a / sqrt(2)), for which a device has a long call, if any.
//
// P(N > a) = exp(-a^2 / 2) * polynomial(1 / (1 + 0.35 a)), in the form of Hastings 1955; backends/gelu.py tells where the
// coefficients are from. It is off by at most 10 roundings of its own size, however small that is. Needs exponential.c.

FUNCTION float normal_tail(float a) {
    float t = 1 / (1 + 0.35f * a);
    float y = -0.029145872f;
    y = y * t + 0.14397143f;
    y = y * t - 0.25571376f;
    y = y * t + 0.15917364f;
    y = y * t - 0.023109511f;
    y = y * t + 0.10550788f;
    y = y * t + 0.1198329f;
    y = y * t + 0.13986187f;
    y = y * t + 0.13962141f;
    float near = (int)(a * 128) / 128.0f;  // 11 bits: its square is exact, while a^2, rounded, would spoil exp's last digits
    return y * t * exponential(near * near * -0.5f) * exponential((near - a) * (near + a) * 0.5f);
}
