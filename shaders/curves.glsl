// Activation functions and their slopes, four values at a time.
const float TO_EXP2 = -1.44269504; // e^-x = 2^(TO_EXP2 x)
vec4 sigmoid(vec4 x) { return 1.0 / (1.0 + exp(-x)); }

// The normal distribution's Phi(x) as a logistic function of an odd polynomial: minimax fit of log(Phi / (1 - Phi)) / x in x^2 up to
// |x| = 5.2, where half floats end. Absolute errors of Phi(x) and x Phi(x) below 1.2e-7; two thirds of the instructions of an erf.
vec4 normal(vec4 x)
{
    vec4 u = min(x * x, 27.04);
    vec4 p = ((((3.61175757e-9 * TO_EXP2 * u - 2.66914082e-7 * TO_EXP2) * u + 7.93853188e-6 * TO_EXP2) * u - 1.10482409e-4 * TO_EXP2) * u -
              6.62535130e-5 * TO_EXP2) * u + 7.26685587e-2 * TO_EXP2;
    return 1.0 / (1.0 + exp2(x * (p * u + 1.59576844 * TO_EXP2)));
}

vec4 gelu(vec4 x) { return x * normal(x); }
// Phi(x) + x phi(x)
vec4 gelu_slope(vec4 x, vec4 normal_x) { return normal_x + x * (0.39894228 * exp2(-0.72134752 * x * x)); }

vec4 silu_slope(vec4 x)
{
    vec4 s = sigmoid(x), y = x * s;
    return s + y - y * s;
}

// x * sigmoid(x) of t = TO_EXP2 * x: a multiplication less where x was multiplied by something just before.
vec4 silu_of(vec4 t) { return t / (TO_EXP2 + TO_EXP2 * exp2(t)); }

// In the order of ops.h: silu, gelu, quick gelu.
vec4 curve(uint kind, vec4 x) { return kind == 0 ? x * sigmoid(x) : kind == 1 ? gelu(x) : x * sigmoid(1.702 * x); }
vec4 curve_slope(uint kind, vec4 x)
{
    if (kind == 0) return silu_slope(x);
    if (kind == 1) return gelu_slope(x, normal(x));
    vec4 s = sigmoid(1.702 * x), y = 1.702 * x * s;
    return s + y - y * s;
}
