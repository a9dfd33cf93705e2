/* Memory is planned before anything is loaded; what does not fit is recomputed, or refused with what would fit. */
#include "tests/train/training.h"

#include <math.h>

static place here;

static int setup(void **state) {
    (void)state;
    place_open(&here, "test_budget");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    place_close(&here);
    return 0;
}

/* A training that was made and measured, not run. */
typedef struct measured {
    pipeline *pipeline;
    dataset data;
    trainer *trainer;
    train_outlook outlook;
} measured;

static train_options options_of(const char *output, int batch, int recompute) {
    train_options o = training_make(&here, output).options;
    o.batch_size = batch;
    o.checkpoint = recompute;
    o.unet_rate = 1e-3;
    return o;
}

static void measure(measured *m, train_options options, uint64_t limit) {
    *m = (measured){0};
    error err = {""};
    char *model = place_path(&here, "model.safetensors"), *pictures = place_path(&here, "pictures");
    const dataset_options wanted = {.folder = pictures, .buckets = {.width = options.width, .height = options.height}};
    here.device->memory_limit = limit;
    m->pipeline = pipeline_open(model, NULL, NULL, here.device, &err);
    if (!m->pipeline || !dataset_open(&wanted, &m->data, &err) || !(m->trainer = trainer_create(m->pipeline, &m->data, &options, &err)) ||
        !trainer_measure(m->trainer, &m->outlook, &err))
        fail_msg("%s", err.text);
    free(model);
    free(pictures);
}

static void release(measured *m) {
    trainer_free(m->trainer);
    dataset_close(&m->data);
    pipeline_close(m->pipeline);
    here.device->memory_limit = 0;
}

static uint64_t bytes_of(train_options options) {
    measured m;
    measure(&m, options, 0);
    size_t all = train_outlook_bytes(&m.outlook);
    assert_true(m.outlook.fits && m.outlook.possible);
    assert_true(m.outlook.encode_bytes < all); /* else the limits below would be about something else */
    release(&m);
    return all;
}

static uint64_t between(uint64_t a, uint64_t b) { return a / 2 + b / 2; }

static void nothing_is_loaded_to_measure(void **state) {
    (void)state;
    measured m;
    measure(&m, options_of("me.safetensors", 1, -1), 0);
    size_t loaded = here.device->live_bytes - m.outlook.adapter_bytes;
    assert_true(loaded < 4096); /* the update's own arena */
    assert_true(m.outlook.constant_bytes > (size_t)1 << 20);
    assert_true(m.outlook.live_bytes <= m.outlook.arena_bytes && m.outlook.live_bytes > m.outlook.arena_bytes / 10 * 9);
    assert_false(m.outlook.checkpoint);
    release(&m);
    assert_int_equal(here.device->live_bytes, 0);
}

/* Left open, checkpointing is chosen when the plan does not fit without; the adapter comes out the same to the bit. */
static void short_memory_turns_checkpointing_on(void **state) {
    (void)state;
    char *a = place_output(&here, "kept"), *b = place_output(&here, "recomputed");
    uint64_t kept = bytes_of(options_of(a, 4, 0)), recomputed = bytes_of(options_of(a, 4, 1));
    assert_true(recomputed < kept / 10 * 8);
    training plain = training_make(&here, a), tight = training_make(&here, b);
    plain.options.batch_size = tight.options.batch_size = 4;
    plain.options.steps = tight.options.steps = 3;
    training_expect(&plain, TRAIN_DONE);
    assert_false(plain.outlook.checkpoint);
    here.device->memory_limit = between(kept, recomputed);
    here.device->peak_bytes = 0;
    training_expect(&tight, TRAIN_DONE);
    assert_true(tight.outlook.checkpoint && tight.outlook.possible);
    assert_int_equal(tight.outlook.kept_bytes, kept);
    assert_int_equal(train_outlook_bytes(&tight.outlook), recomputed);
    assert_true(here.device->peak_bytes <= here.device->memory_limit);
    here.device->memory_limit = 0;
    expect_equal_results(a, b);
    free(a);
    free(b);
}

/* Reads "--batch-size 2" and the like out of what would fit, up to its size in parentheses. */
static void apply(train_options *o, const char *offer) {
    const char *end = strchr(offer, '('), *at;
    assert_non_null(end);
    if ((at = strstr(offer, "--gradient-checkpointing")) && at < end) o->checkpoint = 1;
    if ((at = strstr(offer, "--batch-size ")) && at < end) o->batch_size = atoi(at + 13);
    if ((at = strstr(offer, "--resolution ")) && at < end) o->width = o->height = atoi(at + 13);
}

/* Every option that the refusal offers is taken, and fits. Returns how many there were. */
static int check_refusal(train_options options, uint64_t limit, const char *expected) {
    error err = {""}, again = {""};
    measured m, smaller;
    measure(&m, options, limit);
    assert_false(m.outlook.possible);
    assert_false(trainer_check_memory(m.trainer, &m.outlook, &err));
    release(&m);
    expect_text(err.text, "CPU has");
    expect_text(err.text, expected);
    int offers = 0;
    const char *list = strstr(err.text, "would fit: ");
    for (const char *at = list ? list + 11 : NULL; at; at = strstr(at, "), ") ? strstr(at, "), ") + 3 : NULL, offers++) {
        train_options other = options;
        apply(&other, at);
        measure(&smaller, other, limit);
        if (!trainer_check_memory(smaller.trainer, &smaller.outlook, &again)) fail_msg("%s, but: %s", err.text, again.text);
        release(&smaller);
    }
    return offers;
}

static void what_does_not_fit_is_refused_with_what_would(void **state) {
    (void)state;
    train_options keeping = options_of("me.safetensors", 4, 0), open = options_of("me.safetensors", 4, -1);
    keeping.width = keeping.height = open.width = open.height = 128;
    uint64_t kept = bytes_of(keeping), single;
    keeping.checkpoint = 1;
    uint64_t recomputed = bytes_of(keeping);
    keeping.checkpoint = 0;
    assert_true(check_refusal(keeping, between(kept, recomputed), "--gradient-checkpointing (") >= 2);
    open.batch_size = 1;
    open.checkpoint = 1;
    single = bytes_of(open);
    open.batch_size = 4;
    open.checkpoint = -1;
    assert_true(check_refusal(open, between(single, recomputed), "--batch-size ") >= 2);
    assert_int_equal(check_refusal(open, 1 << 20, "nothing smaller fits"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_is_loaded_to_measure),
                                       cmocka_unit_test(short_memory_turns_checkpointing_on),
                                       cmocka_unit_test(what_does_not_fit_is_refused_with_what_would)};
    return cmocka_run_group_tests_name("budget", tests, setup, teardown);
}
