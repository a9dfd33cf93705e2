// Activation functions and their slopes, four values at a time.
vec4 sigmoid(vec4 x) { return 1.0 / (1.0 + exp(-x)); }

// Abramowitz & Stegun 7.1.26: absolute error below 1.5e-7.
vec4 erf(vec4 x)
{
    vec4 a = abs(x), t = 1.0 / (1.0 + 0.3275911 * a);
    vec4 p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - p * exp(-a * a));
}

vec4 gelu(vec4 x) { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
vec4 gelu_slope(vec4 x) { return 0.5 * (1.0 + erf(x * 0.70710678)) + x * 0.39894228 * exp(-0.5 * x * x); }

// In the order of ops.h: silu, gelu, quick gelu.
vec4 curve(uint kind, vec4 x) { return kind == 0 ? x * sigmoid(x) : kind == 1 ? gelu(x) : x * sigmoid(1.702 * x); }
vec4 curve_slope(uint kind, vec4 x)
{
    if (kind == 1) return gelu_slope(x);
    float k = kind == 0 ? 1.0 : 1.702;
    vec4 s = sigmoid(k * x);
    return s * (1.0 + k * x * (1.0 - s));
}
