/* Trainings with what changes from step to step: resumed, on two devices, and max-norm regularisation. */
#include "formats/safetensors.h"
#include "lora/kind.h"
#include "lora/stepwise.h"
#include "tests/support/validation.h"
#include "tests/train/training.h"

#include <math.h>

static place room;

static void use_dylora(training *t) {
    t->options.adapter.kind = "dylora", t->options.adapter.rank = 4;
    t->options.adapter.stepwise = (adapter_stepwise){.block_size = 1, .module_dropout = 0.2};
}

static void use_dropouts(training *t) {
    t->options.adapter.kind = "locon", t->options.adapter.targets = "full";
    t->options.learner.accumulation = 2, t->options.text_rate = 1e-3, t->options.batch_size = 2;
    t->options.adapter.stepwise = (adapter_stepwise){.network_dropout = 0.1, .rank_dropout = 0.2, .module_dropout = 0.3, .max_norm = 0.01};
}

static void use_loha(training *t) {
    t->options.adapter.kind = "loha", t->options.checkpoint = 1;
    t->options.adapter.stepwise = (adapter_stepwise){.rank_dropout = 0.2, .module_dropout = 0.3, .max_norm = 0.02};
}

static void stopped_and_resumed_is_as_if_never_stopped(void **state) {
    (void)state;
    static void (*const CHANGES[])(training * t) = {use_dylora, use_dropouts, use_loha};
    for (size_t i = 0; i < sizeof CHANGES / sizeof *CHANGES; i++) {
        char *a = place_output(&room, "whole"), *b = place_output(&room, "parts");
        training whole = training_make(&room, a), part = training_make(&room, b);
        CHANGES[i](&whole);
        CHANGES[i](&part);
        part.stop_at = 3;
        training_expect(&whole, TRAIN_DONE);
        training_expect(&part, TRAIN_STOPPED);
        part.options.resume = true, part.stop_at = -1;
        training_expect(&part, TRAIN_DONE);
        expect_equal_results(a, b);
        free(a);
        free(b);
    }
}

static void a_rate_of_nothing_changes_nothing(void **state) {
    (void)state;
    char *a = place_output(&room, "plain"), *b = place_output(&room, "tiny");
    training plain = training_make(&room, a), tiny = training_make(&room, b);
    plain.options.metadata = tiny.options.metadata = false; /* it says the rate */
    tiny.options.adapter.stepwise = (adapter_stepwise){.network_dropout = 1e-12, .max_norm = 1e6};
    training_expect(&plain, TRAIN_DONE);
    training_expect(&tiny, TRAIN_DONE);
    expect_equal_files(a, b);
    free(a);
    free(b);
}

static float *read_tensor(const safetensors *file, const char *module, const char *part, size_t *count) {
    char name[256];
    snprintf(name, sizeof name, "%s.%s", module, part);
    const safetensors_tensor *t = safetensors_find(file, name);
    if (!t) fail_msg("%s: no %s", file->path, name);
    *count = t->elements;
    return safetensors_read_f32(file, t, NULL);
}

/* After one step only one block of `up` is not zero, and it is the same one everywhere; another step leaves it alone unless it is its
   turn again. */
static void a_dylora_trains_one_block_a_step(void **state) {
    (void)state;
    char *a = place_output(&room, "block");
    training t = training_make(&room, a);
    t.options.adapter.kind = "dylora", t.options.adapter.rank = 8, t.options.adapter.stepwise.block_size = 2;
    t.options.steps = 1;
    training_expect(&t, TRAIN_DONE);
    safetensors file;
    assert_true(safetensors_open(&file, a, NULL));
    adapter_module any = {.kind = &adapter_kind_lora, .rank = 8};
    adapter choice = {.stepwise = {.block_size = 2}, .seed = 42, .modules = &any, .module_count = 1};
    int begin, end, seen = 0;
    adapter_window(&choice, &any, 0, &begin, &end);
    for (size_t i = 0; i < file.count; i++) {
        const safetensors_tensor *x = &file.tensors[i];
        if (!strstr(x->name, "lora_up")) continue;
        float *up = safetensors_read_f32(&file, x, NULL);
        for (size_t k = 0; k < x->elements; k++) assert_true((up[k] != 0) == ((int)(k % 8) >= begin && (int)(k % 8) < end));
        free(up);
        seen++;
    }
    assert_true(seen > 4);
    assert_string_equal(safetensors_metadata(&file, "ss_network_module"), "networks.dylora");
    assert_string_equal(safetensors_metadata(&file, "ss_network_args"), "{\"unit\": \"2\"}");
    safetensors_close(&file);
    free(a);
}

/* ||scale up down|| of a LoRA file's module, by the product itself. */
static double module_norm(const safetensors *file, const char *module, int64_t rank, double scale) {
    size_t ups, downs;
    float *up = read_tensor(file, module, "lora_up.weight", &ups), *down = read_tensor(file, module, "lora_down.weight", &downs);
    size_t r = (size_t)rank, outputs = ups / r, inputs = downs / r;
    double sum = 0;
    for (size_t o = 0; o < outputs; o++)
        for (size_t i = 0; i < inputs; i++) {
            double d = 0;
            for (size_t k = 0; k < r; k++) d += (double)up[o * r + k] * (double)down[k * inputs + i];
            sum += d * d;
        }
    free(up);
    free(down);
    return scale * sqrt(sum);
}

static void norms_stay_below_the_limit(void **state) {
    (void)state;
    const double limit = 0.02;
    char *a = place_output(&room, "limit");
    training t = training_make(&room, a);
    t.options.adapter.kind = "locon", t.options.adapter.targets = "full", t.options.adapter.alpha = 1;
    t.options.adapter.stepwise.max_norm = limit;
    training_expect(&t, TRAIN_DONE);
    safetensors file;
    assert_true(safetensors_open(&file, a, NULL));
    int at_limit = 0, below = 0;
    for (size_t i = 0; i < file.count; i++) {
        char module[200];
        const char *end = strstr(file.tensors[i].name, ".lora_up.weight");
        if (!end) continue;
        snprintf(module, sizeof module, "%.*s", (int)(end - file.tensors[i].name), file.tensors[i].name);
        double norm = module_norm(&file, module, 2, 0.5);
        if (norm > limit * 1.00001) fail_msg("%s: norm %g", module, norm);
        at_limit += norm > limit * 0.99999, below += norm < limit * 0.999;
    }
    print_message("%d modules at the limit, %d below\n", at_limit, below);
    assert_true(at_limit > 0 && below > 0);
    assert_string_equal(safetensors_metadata(&file, "ss_scale_weight_norms"), "0.02");
    safetensors_close(&file);
    free(a);
}

static void check_close(const safetensors *x, const safetensors_tensor *of_x, const safetensors *y, const safetensors_tensor *of_y) {
    float *p = safetensors_read_f32(x, of_x, NULL), *q = safetensors_read_f32(y, of_y, NULL);
    double sum = 0, size = 1e-30;
    for (size_t i = 0; i < of_x->elements; i++) {
        double a = (double)p[i], b = (double)q[i];
        sum += (a - b) * (a - b), size += a * a;
    }
    if (!(sqrt(sum / size) <= 1e-4)) fail_msg("%s: relative difference %g", of_x->name, sqrt(sum / size));
    free(p);
    free(q);
}

/* The same choices on both devices: the adapters differ by rounding only. */
static void devices_agree(void **state) {
    (void)state;
    error err = {""};
    place other = {.folder = room.folder, .device = device_open("llvmpipe", "fp32", 0, &err)};
    if (!other.device) skip();
    static void (*const CHANGES[])(training * t) = {use_dylora, use_loha};
    for (size_t i = 0; i < sizeof CHANGES / sizeof *CHANGES; i++) {
        char *a = place_output(&room, "cpu"), *b = place_output(&room, "vulkan");
        training one = training_make(&room, a), two = training_make(&other, b);
        CHANGES[i](&one);
        CHANGES[i](&two);
        one.options.steps = two.options.steps = 3;
        one.options.learner.eps = two.options.learner.eps = 1e-3f; /* else rounding decides the direction of tiny gradients */
        training_expect(&one, TRAIN_DONE);
        training_expect(&two, TRAIN_DONE);
        safetensors x, y;
        assert_true(safetensors_open(&x, a, &err) && safetensors_open(&y, b, &err));
        for (size_t k = 0; k < x.count; k++) check_close(&x, &x.tensors[k], &y, &y.tensors[k]);
        safetensors_close(&x);
        safetensors_close(&y);
        free(a);
        free(b);
    }
    device_close(other.device);
}

static int setup_place(void **state) {
    (void)state;
    place_open(&room, "test_stepwise");
    return 0;
}

static int teardown_place(void **state) {
    (void)state;
    place_close(&room);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_and_resumed_is_as_if_never_stopped), cmocka_unit_test(a_rate_of_nothing_changes_nothing),
        cmocka_unit_test(a_dylora_trains_one_block_a_step), cmocka_unit_test(norms_stay_below_the_limit), cmocka_unit_test(devices_agree)};
    validation_begin();
    return validation_end(cmocka_run_group_tests_name("stepwise", tests, setup_place, teardown_place));
}
