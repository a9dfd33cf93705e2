/* Draws as functions of seed, stream and counter: known answers, distribution, and that they never change. */
#include "base/random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

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
    random_integers_fill(5, RANDOM_STREAM_TIMESTEP, 0, 100, values, MANY);
    check_even(values, MANY, 100);
    for (int i = 0; i < MANY; i++) {
        double uniform = random_uniform(5, 6, (uint64_t)i);
        assert_true(uniform >= 0 && uniform < 1);
        values[i] = (uint32_t)(uniform * 100);
    }
    check_even(values, MANY, 100);
    for (int i = 0; i < MANY; i++) values[i] = (uint32_t)random_below(5, 7, (uint64_t)i, 100);
    check_even(values, MANY, 100);
    random_integers_fill(5, RANDOM_STREAM_TIMESTEP, 0, 1, values, 10);
    for (int i = 0; i < 10; i++) assert_int_equal(values[i], 0);
    free(values);
}

static void test_order(void **state) {
    (void)state;
    uint32_t order[50], firsts[50] = {0};
    for (uint32_t epoch = 0; epoch < 1000; epoch++) {
        bool seen[50] = {false};
        random_order(11, epoch, order, 50);
        for (int i = 0; i < 50; i++) {
            assert_true(order[i] < 50 && !seen[order[i]]);
            seen[order[i]] = true;
        }
        firsts[order[0]]++;
    }
    for (int i = 0; i < 50; i++) assert_true(firsts[i] >= 4 && firsts[i] <= 45); /* 20 expected */
    random_order(11, 0, order, 1);
    assert_int_equal(order[0], 0);
}

/* What saved states and files rest on: these numbers must never change. */
static void test_numbers_stay(void **state) {
    (void)state;
    static const uint32_t expected[8] = {0, 1, 3, 7, 6, 5, 2, 4};
    uint32_t order[8], timestep;
    float normals[3];
    assert_true(random_bits(1, 2, 3) == UINT64_C(15020427595393229491));
    random_order(42, 1, order, 8);
    assert_memory_equal(order, expected, sizeof order);
    random_normal_fill(42, RANDOM_STREAM_NOISE, random_counter(3, 1), normals, 3);
    assert_true(normals[0] == -0x1.bbf8dp+0f && normals[1] == -0x1.cfc204p-3f && normals[2] == -0x1.928b08p-3f);
    random_integers_fill(42, RANDOM_STREAM_TIMESTEP, random_counter(3, 1), 1000, &timestep, 1);
    assert_int_equal(timestep, 944);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox), cmocka_unit_test(test_normals_are_normal),    cmocka_unit_test(test_pure_function),
        cmocka_unit_test(test_order),  cmocka_unit_test(test_integers_and_uniforms), cmocka_unit_test(test_numbers_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
