#include "diffusion/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "fixture.h"

#include <math.h>

/* Known answers of the authors' Random123 distribution. */
static void test_philox(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        random_philox(cases[i].counter, cases[i].key, out);
        assert_memory_equal(out, cases[i].out, sizeof out);
    }
}

static void compare_noise(const fixture *f, random_source source, uint64_t seed, size_t n) {
    size_t count;
    const float *expected = fixture_tensor(f, &count, "%s.%llu.%zu", random_source_name(source), (unsigned long long)seed, n);
    float out[512];
    random_noise noise;
    random_noise_init(&noise, source, seed);
    random_noise_fill(&noise, out, n);
    random_noise_fill(&noise, out + n, n);
    assert_int_equal(count, 2 * n);
    for (size_t i = 0; i < count; i++) assert_true(fabsf(out[i] - expected[i]) < 1e-6f);
}

static void test_noise_like_pytorch(void **state) {
    (void)state;
    static const uint64_t seeds[] = {0, 42, 4294967295, 123456789012345};
    static const size_t sizes[] = {1, 5, 15, 16, 17, 31, 32, 100, 256};
    fixture f;
    assert_true(fixture_open(&f, "diffusion_random.safetensors"));
    for (size_t s = 0; s < sizeof seeds / sizeof *seeds; s++) {
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) compare_noise(&f, RANDOM_SOURCE_CPU, seeds[s], sizes[n]);
        compare_noise(&f, RANDOM_SOURCE_GPU, seeds[s], 64);
    }
    fixture_close(&f);
}

/* torch.manual_seed(0); torch.randn(3, 4, device="cuda") on a real GPU, as webui's source documents it. */
static void test_noise_like_cuda(void **state) {
    (void)state;
    static const float expected[12] = {-0.92466259f, -0.42534415f, -2.6438457f,  0.14518388f,  -0.12086647f, -0.57972564f,
                                       -0.62285122f, -0.32838709f, -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f};
    float out[12];
    random_noise noise;
    random_noise_init(&noise, RANDOM_SOURCE_GPU, 0);
    random_noise_fill(&noise, out, 12);
    for (int i = 0; i < 12; i++) assert_true(fabsf(out[i] - expected[i]) < 1e-6f);
}

static void test_source_names(void **state) {
    (void)state;
    random_source source = RANDOM_SOURCE_GPU;
    error err;
    assert_true(random_source_find(&source, "cpu", &err));
    assert_int_equal(source, RANDOM_SOURCE_CPU);
    assert_false(random_source_find(&source, "dice", &err));
    assert_non_null(strstr(err.text, "dice"));
}

enum { MANY = 100000 };

static void test_normals_are_normal(void **state) {
    (void)state;
    float *x = malloc(MANY * sizeof *x);
    random_normal_fill(7, RANDOM_STREAM_NOISE, random_counter(3, 1), x, MANY);
    double mean = 0, square = 0, neighbours = 0;
    int beyond = 0;
    for (int i = 0; i < MANY; i++) {
        mean += (double)x[i] / MANY;
        square += (double)(x[i] * x[i]) / MANY;
        if (i) neighbours += (double)(x[i] * x[i - 1]) / MANY;
        beyond += fabsf(x[i]) > 1.959964f;
    }
    assert_true(fabs(mean) < 0.012 && fabs(square - 1) < 0.018 && fabs(neighbours) < 0.012);
    assert_true(abs(beyond - MANY / 20) < 300);
    free(x);
}

/* The same place gives the same numbers in any length and order; any other seed, stream, step or sample gives others. */
static void test_pure_function(void **state) {
    (void)state;
    float a[33], b[33];
    for (size_t n = 1; n <= 33; n++) {
        random_normal_fill(1ull << 40, 2, random_counter(9, 4), a, 33);
        random_normal_fill(1ull << 40, 2, random_counter(9, 4), b, n);
        assert_memory_equal(a, b, n * sizeof *a);
    }
    random_normal_fill(1, 2, random_counter(9, 4), b, 33);
    assert_true(a[0] != b[0]);
    random_normal_fill(1ull << 40, 3, random_counter(9, 4), b, 33);
    assert_true(a[0] != b[0]);
    random_normal_fill(1ull << 40, 2, random_counter(10, 4), b, 33);
    assert_true(a[0] != b[0]);
    random_normal_fill(1ull << 40, 2, random_counter(9, 5), b, 33);
    assert_true(a[0] != b[0]);
}

/* Chi-squared over the bins: for 99 degrees of freedom, values outside 50..160 happen once in tens of thousands. */
static void check_even(const uint32_t *values, size_t n, uint32_t bins) {
    uint32_t counts[100] = {0};
    double chi = 0, expected = (double)n / bins;
    for (size_t i = 0; i < n; i++) {
        assert_true(values[i] < bins);
        counts[values[i]]++;
    }
    for (uint32_t i = 0; i < bins; i++) chi += (counts[i] - expected) * (counts[i] - expected) / expected;
    assert_true(chi > 50 && chi < 160);
}

static void test_integers_and_uniforms(void **state) {
    (void)state;
    uint32_t *values = malloc(MANY * sizeof *values);
    float *uniforms = malloc(MANY * sizeof *uniforms);
    random_integers_fill(5, RANDOM_STREAM_TIMESTEP, 0, 100, values, MANY);
    check_even(values, MANY, 100);
    random_uniform_fill(5, RANDOM_STREAM_CROP, 0, uniforms, MANY);
    for (int i = 0; i < MANY; i++) {
        assert_true(uniforms[i] >= 0 && uniforms[i] < 1);
        values[i] = (uint32_t)(uniforms[i] * 100);
    }
    check_even(values, MANY, 100);
    random_integers_fill(5, RANDOM_STREAM_TIMESTEP, 0, 1, values, 10);
    for (int i = 0; i < 10; i++) assert_int_equal(values[i], 0);
    free(values);
    free(uniforms);
}

static void test_permutation(void **state) {
    (void)state;
    uint32_t order[50], firsts[100] = {0};
    for (uint32_t epoch = 0; epoch < 1000; epoch++) {
        bool seen[50] = {false};
        random_permutation(11, RANDOM_STREAM_SHUFFLE, epoch, order, 50);
        for (int i = 0; i < 50; i++) {
            assert_true(order[i] < 50 && !seen[order[i]]);
            seen[order[i]] = true;
        }
        firsts[order[0]]++;
    }
    for (int i = 0; i < 50; i++) assert_true(firsts[i] >= 4 && firsts[i] <= 45); /* 20 expected */
    random_permutation(11, RANDOM_STREAM_SHUFFLE, 0, order, 1);
    assert_int_equal(order[0], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),       cmocka_unit_test(test_noise_like_pytorch),    cmocka_unit_test(test_noise_like_cuda),
        cmocka_unit_test(test_source_names), cmocka_unit_test(test_normals_are_normal),    cmocka_unit_test(test_pure_function),
        cmocka_unit_test(test_permutation),  cmocka_unit_test(test_integers_and_uniforms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
