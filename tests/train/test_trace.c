/* --trace: the fields of each line, the tensors of each step, the optimizer recomputed from them in double precision, and resuming. */
#include "formats/safetensors.h"
#include "tests/train/training.h"

#include <jansson.h>
#include <math.h>

static place here;

static int setup(void **state) {
    (void)state;
    place_open(&here, "test_trace");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    place_close(&here);
    return 0;
}

static training traced(const char *output, const char *folder) {
    training t = training_make(&here, output);
    t.flip = true;
    t.options.trace_folder = folder;
    t.options.trace_tensors = 2;
    t.options.batch_size = 2;
    t.options.steps = 6;
    t.options.text_rate = 5e-4;
    t.options.warmup = 2;
    t.options.schedule = RATE_COSINE;
    return t;
}

/* The lines of a trace as JSON values. */
static json_t *read_lines(const char *folder) {
    char *path = memory_format("%s/trace.jsonl", folder);
    size_t size;
    char *text = file_read_text(path, 1 << 20, &size, NULL);
    assert_non_null(text);
    json_t *lines = json_array();
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        if (!end) fail_msg("%s: the last line has no end", path);
        *end = 0;
        json_error_t why;
        json_t *value = json_loads(line, JSON_REJECT_DUPLICATES, &why);
        if (!value) fail_msg("%s: %s: %s", path, why.text, line);
        json_array_append_new(lines, value);
    }
    free(text);
    free(path);
    return lines;
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) fail_msg("%s is no number", key);
    return json_number_value(value);
}

static void check_image(const json_t *image) {
    assert_int_equal(json_object_size(image), 5);
    assert_true(file_exists(json_string_value(json_object_get(image, "path"))));
    assert_true(json_is_boolean(json_object_get(image, "flip")));
    assert_true(json_is_integer(json_object_get(image, "repeat")));
    const json_t *crop = json_object_get(image, "crop"), *bucket = json_object_get(image, "bucket");
    assert_int_equal(json_array_size(crop), 4);
    assert_int_equal(json_array_size(bucket), 2);
    double width = json_number_value(json_array_get(crop, 2)), height = json_number_value(json_array_get(crop, 3));
    double across = json_number_value(json_array_get(bucket, 0)), up = json_number_value(json_array_get(bucket, 1));
    assert_true(json_number_value(json_array_get(crop, 0)) >= 0 && json_number_value(json_array_get(crop, 1)) >= 0);
    assert_true(width <= 100 && height <= 100 && across >= 48 && up >= 48);
    /* The part has the bucket's shape, to a pixel. */
    assert_true(fabs(width / height - across / up) < 0.04);
}

static void check_line(const json_t *line, int step) {
    static const char *const keys[] = {"step", "epoch", "images", "captions", "timesteps", "loss", "grad_norm", "lr", "seconds"};
    assert_int_equal(json_object_size(line), sizeof keys / sizeof *keys);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) assert_non_null(json_object_get(line, keys[i]));
    assert_int_equal(json_integer_value(json_object_get(line, "step")), step);
    assert_true(json_is_integer(json_object_get(line, "epoch")));
    const json_t *images = json_object_get(line, "images"), *captions = json_object_get(line, "captions");
    const json_t *timesteps = json_object_get(line, "timesteps"), *rates = json_object_get(line, "lr");
    size_t n = json_array_size(images);
    assert_true(n >= 1 && n <= 2);
    assert_int_equal(json_array_size(captions), n);
    assert_int_equal(json_array_size(timesteps), n);
    for (size_t i = 0; i < n; i++) {
        check_image(json_array_get(images, i));
        expect_text(json_string_value(json_array_get(captions, i)), "thing");
        json_int_t timestep = json_integer_value(json_array_get(timesteps, i));
        assert_true(json_is_integer(json_array_get(timesteps, i)) && timestep >= 0 && timestep < 1000);
    }
    assert_true(number(line, "loss") > 0 && number(line, "grad_norm") > 0 && number(line, "seconds") > 0);
    double factor = step <= 2 ? (step - 1) / 2.0 : 0.5 * (1 + cos(3.14159265358979 * (step - 3) / 4));
    assert_int_equal(json_object_size(rates), 2);
    assert_true(fabs(number(rates, "unet") - 1e-3 * factor) < 1e-9);
    assert_true(fabs(number(rates, "text_encoder") - 5e-4 * factor) < 1e-9);
}

/* One epoch: every picture as often as its repeats say. */
static void check_epoch(const json_t *lines) {
    size_t index, i, drawn = 0;
    json_t *line, *image;
    json_array_foreach(lines, index, line) {
        if (number(line, "epoch") > 1) break;
        json_array_foreach(json_object_get(line, "images"), i, image) drawn++;
    }
    assert_int_equal(drawn, 9);
}

static void lines_have_the_documented_fields(void **state) {
    (void)state;
    char *a = place_output(&here, "lines"), *folder = place_path(&here, "lines/trace");
    training t = traced(a, folder);
    training_expect(&t, TRAIN_DONE);
    json_t *lines = read_lines(folder), *line;
    size_t i;
    assert_int_equal(json_array_size(lines), 6);
    json_array_foreach(lines, i, line) check_line(line, (int)i + 1);
    check_epoch(lines);
    assert_int_equal(folder_count(folder), 3);
    json_decref(lines);
    free(folder);
    free(a);
}

/* ---- tensors ---- */

static void open_step(safetensors *st, const char *folder, int step) {
    char *path = memory_format("%s/step-%06d.safetensors", folder, step);
    error err = {""};
    if (!safetensors_open(st, path, &err)) fail_msg("%s", err.text);
    free(path);
}

static const safetensors_tensor *need(const safetensors *st, const char *prefix, const char *name) {
    char *full = memory_format("%s%s", prefix, name);
    error err = {""};
    const safetensors_tensor *t = safetensors_need(st, full, &err);
    if (!t) fail_msg("%s", err.text);
    free(full);
    return t;
}

static void expect_tensor(const safetensors *st, const char *name, dtype type, const char *shape) {
    const safetensors_tensor *t = need(st, "", name);
    char is[100];
    safetensors_shape_text(is, sizeof is, t->rank, t->dims);
    if (strcmp(is, shape) != 0 || t->type != type) fail_msg("%s is %s %s", name, dtype_name(t->type), is);
}

static void step_files_are_complete(void **state) {
    (void)state;
    char *a = place_output(&here, "tensors"), *folder = place_path(&here, "tensors/trace");
    training t = traced(a, folder);
    t.options.steps = 2;
    training_expect(&t, TRAIN_DONE);
    safetensors saved;
    assert_true(safetensors_open(&saved, a, NULL));
    for (int step = 1; step <= 2; step++) {
        safetensors st;
        size_t expected = 6;
        open_step(&st, folder, step);
        const safetensors_tensor *latents = need(&st, "", "latents");
        int n = (int)latents->dims[0];
        char shape[40];
        assert_int_equal(latents->rank, 4);
        assert_int_equal(latents->dims[1], 4);
        assert_int_equal(need(&st, "", "noise")->elements, latents->elements);
        snprintf(shape, sizeof shape, "[%d]", n);
        expect_tensor(&st, "timestep", DTYPE_I32, shape);
        snprintf(shape, sizeof shape, "[%d, 77]", n);
        expect_tensor(&st, "input_ids", DTYPE_I32, shape);
        snprintf(shape, sizeof shape, "[%d, 77, 64]", n);
        expect_tensor(&st, "encoder_hidden_states", DTYPE_F32, shape);
        expect_tensor(&st, "loss", DTYPE_F32, "[]");
        /* Every tensor of the adapter file is here, in the same shape; alpha only before. */
        for (size_t i = 0; i < saved.count; i++) {
            const char *name = saved.tensors[i].name, *dot = strrchr(name, '.');
            bool alpha = strcmp(dot, ".alpha") == 0;
            if (step == 1) expected++, assert_int_equal(need(&st, "before/", name)->elements, saved.tensors[i].elements);
            if (alpha) continue;
            expected += 2;
            assert_int_equal(need(&st, "grad/", name)->rank, saved.tensors[i].rank);
            assert_int_equal(need(&st, "after/", name)->elements, saved.tensors[i].elements);
        }
        assert_int_equal(st.count, expected);
        safetensors_close(&st);
    }
    safetensors_close(&saved);
    free(folder);
    free(a);
}

static double worst; /* |difference| in units of a float's last place of the result, plus an absolute part */

/* torch.optim.AdamW and clip_grad_norm_, in double. m, v: [n], the moments, carried from step to step. */
static void check_update(const float *before, const float *grad, const float *after, double *m, double *v, size_t n, int step, double rate,
                         double clip) {
    for (size_t i = 0; i < n; i++) {
        double g = (double)grad[i] * clip;
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.999 * v[i] + 0.001 * g * g;
        double root = sqrt(v[i] / (1 - pow(0.999, step))) + 1e-8;
        double expected = (double)before[i] * (1 - rate * 0.01) - rate / (1 - pow(0.9, step)) * m[i] / root;
        double difference = fabs((double)after[i] - expected) / (rate * 1e-3 + fabs(expected) * 1e-6);
        if (difference > worst) worst = difference;
    }
}

/* Values of step 1 are in the file as before/; later ones are the after/ of the file before. */
static void check_steps(const char *folder, int steps, double max_norm) {
    json_t *lines = read_lines(folder);
    safetensors first;
    open_step(&first, folder, 1);
    for (size_t i = 0; i < first.count; i++) {
        const char *name = first.tensors[i].name;
        if (strncmp(name, "grad/", 5) != 0) continue;
        size_t n = first.tensors[i].elements;
        double *m = memory_new(n, sizeof *m), *v = memory_new(n, sizeof *v);
        float *before = safetensors_read_f32(&first, need(&first, "before/", name + 5), NULL);
        for (int step = 1; step <= steps; step++) {
            safetensors st;
            open_step(&st, folder, step);
            float *grad = safetensors_read_f32(&st, need(&st, "", name), NULL);
            float *after = safetensors_read_f32(&st, need(&st, "after/", name + 5), NULL);
            const json_t *line = json_array_get(lines, (size_t)step - 1), *rates = json_object_get(line, "lr");
            double norm = number(line, "grad_norm"), clip = max_norm > 0 ? max_norm / (norm + 1e-6) : 1;
            double rate = number(rates, strncmp(name + 5, "lora_te", 7) == 0 ? "text_encoder" : "unet");
            check_update(before, grad, after, m, v, n, step, rate, clip < 1 ? clip : 1);
            free(before);
            free(grad);
            before = after;
            safetensors_close(&st);
        }
        free(before);
        free(m);
        free(v);
    }
    safetensors_close(&first);
    json_decref(lines);
}

static double grad_norm(const char *folder, int step) {
    safetensors st;
    double sum = 0;
    open_step(&st, folder, step);
    for (size_t i = 0; i < st.count; i++) {
        if (strncmp(st.tensors[i].name, "grad/", 5) != 0) continue;
        float *values = safetensors_read_f32(&st, &st.tensors[i], NULL);
        for (size_t k = 0; k < st.tensors[i].elements; k++) sum += (double)values[k] * (double)values[k];
        free(values);
    }
    safetensors_close(&st);
    return sqrt(sum);
}

static void the_update_is_adamw(void **state) {
    (void)state;
    for (int k = 0; k < 3; k++) {
        /* Clipped, not clipped, and clipping that never bites. */
        const double max_norm = k == 0 ? 0.01 : k == 1 ? 0 : 1e6;
        char *name = memory_format("adamw-%d", k), *a = place_output(&here, name),
             *folder = memory_format("%s/%s/trace", here.folder, name);
        training t = traced(a, folder);
        t.options.schedule = RATE_CONSTANT;
        t.options.warmup = 0;
        t.options.steps = t.options.trace_tensors = 3;
        t.options.learner.max_grad_norm = (float)max_norm;
        t.options.learner.accumulation = k == 1 ? 2 : 1;
        training_expect(&t, TRAIN_DONE);
        worst = 0;
        check_steps(folder, 3, max_norm);
        if (worst > 1) fail_msg("case %d: the update is off by %g of what is allowed", k, worst);
        json_t *lines = read_lines(folder);
        for (int step = 1; step <= 3; step++) {
            double told = number(json_array_get(lines, (size_t)step - 1), "grad_norm");
            assert_true(fabs(told / grad_norm(folder, step) - 1) < 1e-5);
        }
        json_decref(lines);
        free(folder);
        free(name);
        free(a);
    }
}

/* ---- resuming ---- */

static void same_but_for_the_time(json_t *a, json_t *b) {
    size_t i;
    json_t *line;
    assert_int_equal(json_array_size(a), json_array_size(b));
    json_array_foreach(a, i, line) json_object_del(line, "seconds");
    json_array_foreach(b, i, line) json_object_del(line, "seconds");
    assert_true(json_equal(a, b));
}

static void a_resumed_trace_is_that_of_one_training(void **state) {
    (void)state;
    char *a = place_output(&here, "resume-a"), *b = place_output(&here, "resume-b");
    char *whole = place_path(&here, "resume-a/trace"), *parts = place_path(&here, "resume-b/trace");
    training t = traced(a, whole), part = traced(b, parts);
    training_expect(&t, TRAIN_DONE);
    part.stop_at = 3;
    training_expect(&part, TRAIN_STOPPED);
    /* As a kill leaves it: lines of steps after the saved state, the last one cut. */
    char *path = memory_format("%s/trace.jsonl", parts);
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    fputs("{\"step\":4,\"epoch\":9}\n{\"step\":5,\"ep", file);
    fclose(file);
    part.stop_at = -1;
    part.options.resume = true;
    training_expect(&part, TRAIN_DONE);
    json_t *x = read_lines(whole), *y = read_lines(parts);
    same_but_for_the_time(x, y);
    json_decref(x);
    json_decref(y);
    for (int step = 1; step <= 2; step++) {
        char *p = memory_format("%s/step-%06d.safetensors", whole, step), *q = memory_format("%s/step-%06d.safetensors", parts, step);
        expect_equal_files(p, q);
        free(p);
        free(q);
    }
    /* A new training in the same folder begins a new trace. */
    part.options.resume = false;
    part.options.steps = 1;
    part.options.trace_tensors = 0;
    part.steps = 0;
    training_expect(&part, TRAIN_DONE);
    y = read_lines(parts);
    assert_int_equal(json_array_size(y), 1);
    assert_int_equal(folder_count(parts), 1);
    json_decref(y);
    free(path);
    free(whole);
    free(parts);
    free(a);
    free(b);
}

static void tracing_changes_nothing(void **state) {
    (void)state;
    char *a = place_output(&here, "plain"), *b = place_output(&here, "observed"), *folder = place_path(&here, "observed/trace");
    training t = traced(a, folder);
    t.options.trace_folder = NULL;
    training_expect(&t, TRAIN_DONE);
    t = traced(b, folder);
    training_expect(&t, TRAIN_DONE);
    expect_equal_results(a, b);
    free(folder);
    free(a);
    free(b);
}

static void a_file_in_the_way_is_named(void **state) {
    (void)state;
    char *a = place_output(&here, "blocked"), *folder = place_path(&here, "model.safetensors/trace");
    training t = traced(a, folder);
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, "--trace");
    expect_text(t.err.text, folder);
    assert_false(file_exists(a));
    free(folder);
    free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(lines_have_the_documented_fields),
                                       cmocka_unit_test(step_files_are_complete),
                                       cmocka_unit_test(the_update_is_adamw),
                                       cmocka_unit_test(a_resumed_trace_is_that_of_one_training),
                                       cmocka_unit_test(tracing_changes_nothing),
                                       cmocka_unit_test(a_file_in_the_way_is_named)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
