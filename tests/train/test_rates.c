/* Learning rates against diffusers' get_scheduler (tests/reference/make_train_fixtures.py). */
#include "formats/safetensors.h"
#include "train/rates.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void rates_are_those_of_diffusers(void **state) {
    (void)state;
    safetensors fixture;
    error err = {""};
    if (!safetensors_open(&fixture, TEST_DATA "/train_rates.safetensors", &err)) fail_msg("%s", err.text);
    assert_int_equal(fixture.count, 18);
    for (size_t i = 0; i < fixture.count; i++) {
        const safetensors_tensor *expected = &fixture.tensors[i];
        char name[32];
        int steps, warmup;
        rate_schedule schedule;
        assert_int_equal(sscanf(expected->name, "%31[^/]/%d/%d", name, &steps, &warmup), 3);
        assert_true(rate_schedule_find(&schedule, name));
        assert_string_equal(rate_schedule_name(schedule), name);
        assert_int_equal(expected->elements, steps);
        for (int step = 0; step < steps; step++) {
            double value;
            memcpy(&value, (const char *)expected->data + (size_t)step * sizeof value, sizeof value);
            double factor = rate_factor(schedule, step, steps, warmup);
            if (fabs(factor - value) > 1e-12) fail_msg("%s step %d: %.17g instead of %.17g", expected->name, step, factor, value);
        }
    }
    safetensors_close(&fixture);
}

static void rates_stay_in_range_outside_the_plan(void **state) {
    (void)state;
    for (int k = 0; k < RATE_SCHEDULE_COUNT; k++)
        for (int steps = 1; steps < 6; steps++)
            for (int warmup = 0; warmup < 9; warmup++)
                for (int step = 0; step < 12; step++) {
                    double factor = rate_factor((rate_schedule)k, step, steps, warmup);
                    assert_true(factor >= 0 && factor <= 1);
                }
    rate_schedule schedule = RATE_LINEAR;
    assert_false(rate_schedule_find(&schedule, "polynomial"));
    assert_int_equal(schedule, RATE_LINEAR);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rates_are_those_of_diffusers),
                                       cmocka_unit_test(rates_stay_in_range_outside_the_plan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
