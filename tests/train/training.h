/* Small trainings for tests: one model in miniature and one folder of pictures, made once, and a function that runs a training with
   given options to its end or to a step. */
#ifndef VULORA_TESTS_TRAIN_TRAINING_H
#define VULORA_TESTS_TRAIN_TRAINING_H

#include "base/file.h"
#include "base/memory.h"
#include "tests/support/folder.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"
#include "train/trainer.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* Everything lies in one folder: model.safetensors, pictures/, cache/, and what the tests write. */
typedef struct place {
    char *folder;
    device *device;
} place;

static inline char *place_path(const place *p, const char *name) { return memory_format("%s/%s", p->folder, name); }

static inline void place_model(const place *p, const char *name, uint64_t seed) {
    char *path = place_path(p, name);
    tiny_model_shape shape = {.unet_channels = 32, .vae_channels = 32, .text_width = 64, .text_layers = 2, .type = DTYPE_F16};
    assert_true(tiny_model_write_shape(path, seed, shape));
    free(path);
}

static inline void place_picture(const place *p, const char *name, int width, int height, unsigned seed, const char *caption) {
    char *png = memory_format("%s/%s.png", p->folder, name), *text = memory_format("%s.txt", name);
    folder_text(p->folder, text, caption); /* makes the folders too */
    assert_true(tiny_png_write(png, width, height, seed));
    free(png);
    free(text);
}

/* Seven pictures in three buckets of a resolution of 64x64; two of them count twice. */
static inline void place_pictures(const place *p) {
    static const int sizes[][2] = {{64, 64}, {96, 64}, {64, 96}, {70, 71}, {97, 60}};
    for (unsigned i = 0; i < 5; i++) {
        char name[40], caption[40];
        snprintf(name, sizeof name, "pictures/1_thing/%u", i);
        snprintf(caption, sizeof caption, "a thing, number %u", i);
        place_picture(p, name, sizes[i][0], sizes[i][1], i, caption);
    }
    place_picture(p, "pictures/2_other/a", 64, 64, 7, "another thing");
    place_picture(p, "pictures/2_other/b", 64, 100, 8, "another thing that is tall");
}

static inline void place_open(place *p, const char *name) {
    error err = {""};
    p->folder = folder_make(name);
    p->device = device_open("cpu", "fp32", 1, &err);
    if (!p->device) fail_msg("%s", err.text);
    place_model(p, "model.safetensors", 1);
    place_pictures(p);
}

static inline void place_close(place *p) {
    device_close(p->device);
    folder_remove(p->folder);
}

/* Where an adapter file goes: a folder of its own, since the file's name is in its metadata. Freed by the caller. */
static inline char *place_output(const place *p, const char *folder) {
    char *path = place_path(p, folder);
    mkdir(path, 0777);
    free(path);
    return memory_format("%s/%s/me.safetensors", p->folder, folder);
}

/* ---- a training ---- */

typedef struct training {
    const place *place;
    const char *model, *pictures; /* names in the place's folder; NULL: model.safetensors, pictures */
    bool flip;
    uint8_t background;
    train_options options;
    int64_t stop_at; /* -1: never; else events->stop says so from that step on */
    /* what came of it */
    train_result result;
    error err;
    char notes[2000];
    int64_t steps; /* the last one reported */
    int encoded, updates, saved;
    train_outlook outlook;
} training;

static inline training training_make(const place *p, const char *output) {
    train_options o = {.output = output,
                       .adapter = {.kind = "lora", .targets = "attn", .rank = 2, .alpha = 2},
                       .learner = learner_default_options(),
                       .unet_rate = 1e-3,
                       .steps = 5,
                       .batch_size = 1,
                       .width = 64,
                       .height = 64,
                       .seed = 42,
                       .checkpoint = -1,
                       .save_type = DTYPE_F32,
                       .metadata = true};
    o.learner.accumulation = 1;
    return (training){.place = p, .options = o, .stop_at = -1, .background = 255};
}

static inline void training_note(void *user, const char *text) {
    training *t = user;
    size_t used = strlen(t->notes);
    snprintf(t->notes + used, sizeof t->notes - used, "%s\n", text);
}

static inline void training_encoded(void *user, size_t done, size_t all) {
    training *t = user;
    assert_true(done <= all);
    t->encoded++;
}

static inline void training_stepped(void *user, const train_progress *p) {
    training *t = user;
    t->steps = p->step;
    t->updates++;
}

static inline void training_saved(void *user, const char *path) {
    training *t = user;
    assert_true(file_exists(path));
    t->saved++;
}

static inline bool training_stop(void *user) {
    const training *t = user;
    return t->stop_at >= 0 && t->steps >= t->stop_at;
}

/* Runs it; the result, or the error, is in *t. */
static inline void training_run(training *t) {
    const place *p = t->place;
    char *model = place_path(p, t->model ? t->model : "model.safetensors"),
         *pictures = place_path(p, t->pictures ? t->pictures : "pictures");
    char *cache = place_path(p, "cache");
    if (!t->options.cache_folder) t->options.cache_folder = cache;
    dataset data = {0};
    const dataset_options wanted = {.folder = pictures,
                                    .buckets = {.width = t->options.width, .height = t->options.height},
                                    .flip = t->flip,
                                    .background = {t->background, t->background, t->background}};
    const train_events events = {.user = t,
                                 .note = training_note,
                                 .encoded = training_encoded,
                                 .stepped = training_stepped,
                                 .saved = training_saved,
                                 .stop = training_stop};
    t->result = TRAIN_FAILED;
    t->err = (error){""};
    pipeline *pipe = pipeline_open(model, NULL, NULL, p->device, &t->err);
    trainer *made = pipe && dataset_open(&wanted, &data, &t->err) ? trainer_create(pipe, &data, &t->options, &t->err) : NULL;
    if (made && trainer_measure(made, &t->outlook, &t->err)) {
        t->steps = t->outlook.resumed;
        t->result = trainer_run(made, &events, &t->err);
    }
    trainer_free(made);
    dataset_close(&data);
    pipeline_close(pipe);
    if (t->options.cache_folder == cache) t->options.cache_folder = NULL;
    free(model);
    free(pictures);
    free(cache);
}

static inline void training_expect(training *t, train_result result) {
    training_run(t);
    if (t->result != result) fail_msg("result %d instead of %d: %s", t->result, result, t->err.text);
}

/* ---- files ---- */

static inline bool files_equal(const char *a, const char *b) {
    file_map x, y;
    if (!file_map_open(&x, a, NULL)) return false;
    bool ok = file_map_open(&y, b, NULL);
    if (ok) {
        ok = x.size == y.size && memcmp(x.data, y.data, x.size) == 0;
        file_map_close(&y);
    }
    file_map_close(&x);
    return ok;
}

static inline void expect_equal_files(const char *a, const char *b) {
    if (!files_equal(a, b)) fail_msg("%s and %s differ", a, b);
}

/* Adapter and state. */
static inline void expect_equal_results(const char *a, const char *b) {
    char *x = trainer_state_path(a), *y = trainer_state_path(b);
    expect_equal_files(a, b);
    expect_equal_files(x, y);
    free(x);
    free(y);
}

static inline void expect_text(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" is not in: %s", part, text);
}

#endif
