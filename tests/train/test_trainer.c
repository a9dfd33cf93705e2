/* Trainings: the same bytes twice, and after a stop and a resume; what is refused; what a failure leaves behind; the cache; file names. */
#include "formats/safetensors.h"
#include "tests/train/training.h"

#include <math.h>

static place here;

static int setup(void **state) {
    (void)state;
    place_open(&here, "test_trainer");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    place_close(&here);
    return 0;
}

/* ---- the same bytes ---- */

static void one_seed_gives_one_file(void **state) {
    (void)state;
    char *a = place_output(&here, "seed-a"), *b = place_output(&here, "seed-b"), *c = place_output(&here, "seed-c");
    training first = training_make(&here, a), second = training_make(&here, b), other = training_make(&here, c);
    other.options.seed = 43;
    training_expect(&first, TRAIN_DONE);
    training_expect(&second, TRAIN_DONE);
    training_expect(&other, TRAIN_DONE);
    expect_equal_results(a, b);
    assert_false(files_equal(a, c));
    assert_int_equal(first.updates, 5);
    assert_int_equal(first.saved, 1);
    free(a);
    free(b);
    free(c);
}

static void two_threads_give_one_file(void **state) {
    (void)state;
    error err = {""};
    place two = {.folder = here.folder, .device = device_open("cpu", "fp32", 2, &err)};
    if (!two.device) fail_msg("%s", err.text);
    char *a = place_output(&two, "threads-a"), *b = place_output(&two, "threads-b");
    training first = training_make(&two, a), second = training_make(&two, b);
    first.options.steps = second.options.steps = 2;
    training_expect(&first, TRAIN_DONE);
    training_expect(&second, TRAIN_DONE);
    expect_equal_results(a, b);
    device_close(two.device);
    free(a);
    free(b);
}

typedef void (*change)(training *t);

static void plain(training *t) { t->options.save_type = DTYPE_F16; }

static void everything(training *t) {
    t->flip = true;
    t->options.learner.accumulation = 2;
    t->options.text_rate = 5e-4;
    t->options.schedule = RATE_COSINE;
    t->options.warmup = 2;
    t->options.batch_size = 2;
    t->options.adapter.kind = "locon";
    t->options.adapter.targets = "full";
    t->options.adapter.rank = 1;
    t->options.adapter.conv_rank = 2;
}

static void by_epochs(training *t) {
    t->options.steps = 0;
    t->options.epochs = 1;
    t->options.schedule = RATE_LINEAR;
    t->options.warmup = 0.25;
}

static void skipping_a_layer(training *t) {
    t->options.learner.clip_skip = 2;
    t->options.checkpoint = 1;
}

static void norms(training *t) {
    t->options.adapter.kind = "norm";
    t->options.adapter.targets = "full";
    t->options.text_rate = 5e-4;
}

static void norms_beside(training *t) {
    t->options.adapter.kind = "loha";
    t->options.adapter.train_norm = true;
    t->options.checkpoint = 1;
}

static const struct {
    const char *name;
    change change;
    int64_t stop_at;
} RESUMED[] = {{"plain", plain, 2}, {"everything", everything, 3}, {"epochs", by_epochs, 4}, {"layer", skipping_a_layer, 1},
               {"norms", norms, 2}, {"beside", norms_beside, 1}};

static void stopped_and_resumed_is_as_if_never_stopped(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof RESUMED / sizeof *RESUMED; i++) {
        char *folder = memory_format("whole-%s", RESUMED[i].name), *a = place_output(&here, folder);
        free(folder);
        folder = memory_format("parts-%s", RESUMED[i].name);
        char *b = place_output(&here, folder);
        training whole = training_make(&here, a), part = training_make(&here, b);
        RESUMED[i].change(&whole);
        RESUMED[i].change(&part);
        part.stop_at = RESUMED[i].stop_at;
        training_expect(&whole, TRAIN_DONE);
        training_expect(&part, TRAIN_STOPPED);
        assert_int_equal(part.steps, RESUMED[i].stop_at);
        assert_false(files_equal(a, b));
        part.options.resume = true;
        part.stop_at = -1;
        training_expect(&part, TRAIN_DONE);
        assert_int_equal(part.outlook.resumed, RESUMED[i].stop_at);
        assert_int_equal(part.updates, whole.updates);
        expect_equal_results(a, b);
        free(folder);
        free(a);
        free(b);
    }
}

/* Norms are computed again in the backward part in any case, their scales and shifts only with checkpointing. */
static void checkpointed_norms_are_the_same(void **state) {
    (void)state;
    char *a = place_output(&here, "norms-kept"), *b = place_output(&here, "norms-again");
    training kept = training_make(&here, a), again = training_make(&here, b);
    norms(&kept);
    norms(&again);
    again.options.checkpoint = 1;
    training_expect(&kept, TRAIN_DONE);
    training_expect(&again, TRAIN_DONE);
    expect_equal_results(a, b);
    free(a);
    free(b);
}

static void more_steps_go_on(void **state) {
    (void)state;
    char *a = place_output(&here, "more-a"), *b = place_output(&here, "more-b");
    training whole = training_make(&here, a), part = training_make(&here, b);
    training_expect(&whole, TRAIN_DONE);
    part.options.steps = 3;
    training_expect(&part, TRAIN_DONE);
    part.options.steps = 5;
    part.options.resume = true;
    training_expect(&part, TRAIN_DONE);
    expect_equal_results(a, b);
    /* Once more: it is finished, and says so. */
    part.notes[0] = 0;
    training_expect(&part, TRAIN_DONE);
    expect_text(part.notes, "5 of 5 steps");
    expect_equal_results(a, b);
    free(a);
    free(b);
}

static void a_stop_before_the_first_step_writes_nothing(void **state) {
    (void)state;
    char *a = place_output(&here, "early");
    training t = training_make(&here, a);
    t.stop_at = 0;
    training_expect(&t, TRAIN_STOPPED_EARLY);
    char *folder = place_path(&here, "early");
    assert_int_equal(folder_count(folder), 0);
    folder_text(here.folder, "early/me.safetensors", "an old result");
    training_expect(&t, TRAIN_STOPPED_EARLY);
    size_t size;
    char *text = file_read_text(a, 100, &size, NULL);
    assert_string_equal(text, "an old result");
    free(text);
    free(folder);
    free(a);
}

/* ---- refusals ---- */

static void other_rank(training *t) { t->options.adapter.rank = 3; }
static void other_alpha(training *t) { t->options.adapter.alpha = 1; }
static void other_kind(training *t) { t->options.adapter.kind = "locon"; }
static void other_targets(training *t) { t->options.adapter.targets = "attn-mlp"; }
static void other_seed(training *t) { t->options.seed = (UINT64_C(1) << 60) + 1; }
static void other_batch(training *t) { t->options.batch_size = 2; }
static void other_accumulation(training *t) { t->options.learner.accumulation = 2; }
static void other_rate(training *t) { t->options.unet_rate = 5e-5; }
static void other_text_rate(training *t) { t->options.text_rate = 1e-5; }
static void other_schedule(training *t) { t->options.schedule = RATE_COSINE; }
static void other_warmup(training *t) { t->options.warmup = 0.1; }
static void other_clip_skip(training *t) { t->options.learner.clip_skip = 2; }
static void other_norm(training *t) { t->options.learner.max_grad_norm = 0; }
static void other_decay(training *t) { t->options.learner.weight_decay = 0; }
static void other_resolution(training *t) { t->options.width = 72; }
static void other_flip(training *t) { t->flip = true; }
static void other_background(training *t) { t->background = 0; }
static void other_pictures(training *t) { t->pictures = "pictures2"; }
static void other_model(training *t) { t->model = "model2.safetensors"; }

static const struct {
    change change;
    const char *named;
} MISMATCHES[] = {{other_rank, "--rank 2, this command says 3"},
                  {other_alpha, "--alpha 2, this command says 1"},
                  {other_kind, "--kind lora, this command says locon"},
                  {other_targets, "--targets attn, this command says attn-mlp"},
                  {other_seed, "--seed 1152921504606846976, this command says 1152921504606846977"},
                  {other_batch, "--batch-size"},
                  {other_accumulation, "--gradient-accumulation-steps"},
                  {other_rate, "--unet-lr 0.001, this command says 5e-05"},
                  {other_text_rate, "--text-encoder-lr"},
                  {other_schedule, "--lr-scheduler constant, this command says cosine"},
                  {other_warmup, "--lr-warmup-steps"},
                  {other_clip_skip, "--clip-skip"},
                  {other_norm, "--max-grad-norm"},
                  {other_decay, "--weight-decay"},
                  {other_resolution, "--resolution 64x64, this command says 72x64"},
                  {other_flip, "--flip"},
                  {other_background, "--data"},
                  {other_pictures, "--data"},
                  {other_model, "--model"}};

static void resuming_with_other_settings_names_the_option(void **state) {
    (void)state;
    char *a = place_output(&here, "mismatch"), *copy = place_output(&here, "mismatch-copy");
    place_picture(&here, "pictures2/1", 64, 64, 1, "another folder");
    place_model(&here, "model2.safetensors", 2);
    training t = training_make(&here, a), same = training_make(&here, copy);
    t.options.seed = same.options.seed = UINT64_C(1) << 60;
    t.options.steps = same.options.steps = 2;
    training_expect(&t, TRAIN_DONE);
    training_expect(&same, TRAIN_DONE);
    for (size_t i = 0; i < sizeof MISMATCHES / sizeof *MISMATCHES; i++) {
        training other = t;
        other.options.resume = true;
        other.options.steps = 3;
        MISMATCHES[i].change(&other);
        training_expect(&other, TRAIN_FAILED);
        expect_text(other.err.text, "--resume");
        expect_text(other.err.text, MISMATCHES[i].named);
        expect_text(other.err.text, "me.state.safetensors");
        expect_equal_results(a, copy);
    }
    free(a);
    free(copy);
}

static void resuming_without_a_state_is_refused(void **state) {
    (void)state;
    char *a = place_output(&here, "stateless");
    training t = training_make(&here, a);
    t.options.resume = true;
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, "--resume: there is no state");
    expect_text(t.err.text, "stateless/me.state.safetensors");
    assert_false(file_exists(a));
    free(a);
}

/* ---- damaged states ---- */

typedef struct bytes {
    uint8_t *data;
    size_t size;
} bytes;

static bytes read_bytes(const char *path) {
    bytes b = {0};
    b.data = (uint8_t *)file_read_text(path, (size_t)1 << 30, &b.size, NULL);
    assert_non_null(b.data);
    return b;
}

static void expect_bad_state(const char *output, const char *what, const bytes *content) {
    char *state = trainer_state_path(output);
    assert_true(file_write_all(state, content->data, content->size, NULL));
    training t = training_make(&here, output);
    t.options.resume = true;
    t.options.steps = 3;
    training_run(&t);
    if (t.result != TRAIN_FAILED) fail_msg("a state that is %s was taken", what);
    expect_text(t.err.text, "--resume");
    expect_text(t.err.text, state);
    expect_text(t.err.text, "begin anew");
    bytes after = read_bytes(state);
    assert_int_equal(after.size, content->size);
    assert_memory_equal(after.data, content->data, content->size);
    free(after.data);
    free(state);
}

/* Replaces the first `from` by `to`, of the same length. */
static void expect_bad_edit(const char *output, const bytes *good, const char *from, const char *to) {
    bytes bad = {memory_new(good->size, 1), good->size};
    memcpy(bad.data, good->data, good->size);
    size_t length = strlen(from), at = 0;
    assert_int_equal(length, strlen(to));
    while (at + length <= bad.size && memcmp(bad.data + at, from, length) != 0) at++;
    if (at + length > bad.size) fail_msg("there is no %s in the state", from);
    memcpy(bad.data + at, to, length);
    expect_bad_state(output, to, &bad);
    free(bad.data);
}

static void damaged_states_are_refused_and_left_alone(void **state) {
    (void)state;
    char *a = place_output(&here, "damage"), *path = trainer_state_path(a);
    training t = training_make(&here, a);
    t.options.steps = 2;
    training_expect(&t, TRAIN_DONE);
    bytes good = read_bytes(path), adapter_bytes = read_bytes(a), bad = good;
    const size_t cuts[] = {0, 1, 7, 8, 9, 500, good.size / 2, good.size - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        bad.size = cuts[i];
        expect_bad_state(a, "cut short", &bad);
    }
    expect_bad_state(a, "an adapter", &adapter_bytes);
    bad = (bytes){(uint8_t *)(uintptr_t) "this is a shopping list, not a state", 36};
    expect_bad_state(a, "text", &bad);
    for (size_t back = 1; back < good.size / 2; back += good.size / 7) {
        good.data[good.size - back] ^= 1;
        expect_bad_state(a, "flipped", &good);
        good.data[good.size - back] ^= 1;
    }
    expect_bad_edit(a, &good, "training state 1", "training state 2");
    expect_bad_edit(a, &good, "\"step\":\"2\"", "\"step\":\"3\"");
    expect_bad_edit(a, &good, "\"step\":\"2\"", "\"step\":\"x\"");
    expect_bad_edit(a, &good, "\"updates\":\"2\"", "\"updates\":\"-\"");
    expect_bad_edit(a, &good, "\"loss_scale\":\"1\"", "\"loss_scale\":\"0\"");
    expect_bad_edit(a, &good, "\"value/lora", "\"value/lorA");
    bytes after = read_bytes(a);
    assert_int_equal(after.size, adapter_bytes.size);
    assert_memory_equal(after.data, adapter_bytes.data, after.size);
    /* The whole one still works. */
    assert_true(file_write_all(path, good.data, good.size, NULL));
    t.options.resume = true;
    training_expect(&t, TRAIN_DONE);
    free(after.data);
    free(adapter_bytes.data);
    free(good.data);
    free(path);
    free(a);
}

/* ---- losses that are not finite ---- */

static void a_loss_out_of_bounds_stops_and_writes_nothing(void **state) {
    (void)state;
    char *a = place_output(&here, "loss"), *folder = place_path(&here, "loss");
    training t = training_make(&here, a);
    t.options.unet_rate = 1e30;
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, "step 2: the loss is not finite");
    expect_text(t.err.text, "/pictures/");
    expect_text(t.err.text, ".png");
    expect_text(t.err.text, "--lr");
    assert_int_equal(folder_count(folder), 0);
    folder_text(here.folder, "loss/me.safetensors", "an old result");
    t.options.batch_size = 4;
    t.options.learner.accumulation = 2;
    training_expect(&t, TRAIN_FAILED);
    assert_int_equal(folder_count(folder), 1);
    size_t size;
    char *text = file_read_text(a, 100, &size, NULL);
    assert_string_equal(text, "an old result");
    /* The last step's values are infinite, no later loss tells: then the file is refused. */
    t = training_make(&here, a);
    t.options.unet_rate = 1e38;
    t.options.learner.weight_decay = 0.5f;
    t.options.steps = 1;
    t.options.save_type = DTYPE_F16;
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, "lora_unet_");
    assert_int_equal(folder_count(folder), 1);
    free(text);
    free(folder);
    free(a);
}

/* Long trainings keep their state now and then, whatever becomes of them. */
static void the_state_is_kept_by_the_clock(void **state) {
    (void)state;
    char *a = place_output(&here, "clock"), *folder = place_path(&here, "clock"), *kept = trainer_state_path(a);
    training t = training_make(&here, a);
    t.options.unet_rate = 1e30; /* fails in step 2 */
    t.options.state_every_seconds = 1e-9;
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, "The state of step 1 is kept; the same command with --resume goes on from there");
    assert_true(file_exists(kept));
    assert_int_equal(folder_count(folder), 1);
    free(kept);
    free(folder);
    free(a);
}

/* Makes a weight of the model infinite. */
static void poison(const char *path, const char *weight) {
    safetensors st;
    error err = {""};
    if (!safetensors_open(&st, path, &err)) fail_msg("%s", err.text);
    const safetensors_tensor *w = safetensors_need(&st, weight, &err);
    assert_non_null(w);
    long offset = (long)((const uint8_t *)w->data - st.map.data);
    safetensors_close(&st);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    const uint16_t infinity = 0x7c00;
    fseek(file, offset, SEEK_SET);
    assert_int_equal(fwrite(&infinity, 2, 1, file), 1);
    fclose(file);
}

static void a_broken_model_is_named_at_the_first_step(void **state) {
    (void)state;
    char *a = place_output(&here, "broken"), *folder = place_path(&here, "broken"), *model = place_path(&here, "model3.safetensors");
    place_model(&here, "model3.safetensors", 1);
    poison(model, "model.diffusion_model.out.2.bias");
    training t = training_make(&here, a);
    t.model = "model3.safetensors";
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, "step 1");
    assert_int_equal(folder_count(folder), 0);
    /* Weights that pictures are encoded with. */
    place_model(&here, "model3.safetensors", 1);
    poison(model, "first_stage_model.quant_conv.bias");
    t.options.cache_folder = NULL;
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, ".png");
    expect_text(t.err.text, "VAE");
    assert_int_equal(folder_count(folder), 0);
    free(model);
    free(folder);
    free(a);
}

/* ---- memory ---- */

/* The pictures lie in three buckets and are drawn in pairs, with single ones left over: six shapes. */
static void the_memory_planned_is_the_memory_used(void **state) {
    (void)state;
    char *a = place_output(&here, "memory"), *cache = place_path(&here, "cache3");
    for (int text = 0; text < 2; text++) {
        training t = training_make(&here, a);
        t.options.batch_size = 2;
        t.flip = text; /* there is something to encode in both trainings */
        t.options.steps = 0;
        t.options.epochs = 1;
        t.options.text_rate = text ? 1e-4 : 0;
        t.options.cache_folder = cache;
        assert_int_equal(here.device->live_bytes, 0);
        here.device->peak_bytes = 0;
        training_expect(&t, TRAIN_DONE);
        double planned = (double)(t.outlook.constant_bytes + t.outlook.adapter_bytes + t.outlook.arena_bytes);
        planned = fmax(planned, (double)t.outlook.encode_bytes);
        double used = (double)here.device->peak_bytes;
        if (fabs(used / planned - 1) > 0.05) fail_msg("%.0f bytes planned, %.0f used", planned, used);
    }
    free(cache);
    free(a);
}

/* ---- the cache ---- */

typedef struct entry {
    char *path;
    ino_t inode;
    bytes content;
} entry;

static size_t list_entries(const char *folder, entry *out, size_t most) {
    DIR *dir = opendir(folder);
    size_t n = 0;
    for (const struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        assert_true(n < most);
        struct stat info;
        out[n].path = memory_format("%s/%s", folder, e->d_name);
        assert_int_equal(stat(out[n].path, &info), 0);
        out[n].inode = info.st_ino;
        out[n].content = read_bytes(out[n].path);
        n++;
    }
    if (dir) closedir(dir);
    return n;
}

static bool entry_is_as_before(const entry *e, bool remade) {
    struct stat info;
    if (stat(e->path, &info) != 0 || (info.st_ino != e->inode) != remade) return false;
    bytes now = read_bytes(e->path);
    bool same = now.size == e->content.size && memcmp(now.data, e->content.data, now.size) == 0;
    free(now.data);
    return same;
}

static void damage_entry(const entry *e, size_t kind) {
    size_t size = kind == 0 ? 0 : kind == 1 ? e->content.size / 2 : kind == 2 ? e->content.size : e->content.size - 1;
    bytes b = {memory_new(e->content.size, 1), size};
    memcpy(b.data, e->content.data, e->content.size);
    if (kind == 2) b.data[b.size / 2] ^= 4;
    /* Kept open so that the new file cannot get the old one's inode. */
    FILE *file = fopen(e->path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(b.data, 1, b.size, file), b.size);
    fclose(file);
    free(b.data);
}

static void encoded_pictures_are_kept_and_bad_entries_remade(void **state) {
    (void)state;
    char *a = place_output(&here, "cached-a"), *b = place_output(&here, "cached-b"), *cache = place_path(&here, "cache2");
    training t = training_make(&here, a);
    t.flip = true;
    t.options.steps = 2;
    t.options.cache_folder = cache;
    training_expect(&t, TRAIN_DONE);
    assert_int_equal(t.encoded, 14);
    entry entries[14];
    assert_int_equal(list_entries(cache, entries, 14), 14);
    t.options.output = b;
    training_expect(&t, TRAIN_DONE);
    expect_equal_results(a, b);
    for (size_t i = 0; i < 14; i++) assert_true(entry_is_as_before(&entries[i], false));
    for (size_t i = 0; i < 14; i++)
        if (i % 5 < 4) damage_entry(&entries[i], i % 5);
    training_expect(&t, TRAIN_DONE);
    expect_equal_results(a, b);
    for (size_t i = 0; i < 14; i++) assert_true(entry_is_as_before(&entries[i], i % 5 < 4));
    /* Flips of the same pictures are entries of their own; without them seven suffice, and none is made anew. */
    t.flip = false;
    training_expect(&t, TRAIN_DONE);
    assert_int_equal(folder_count(cache), 14);
    for (size_t i = 0; i < 14; i++) {
        free(entries[i].path);
        free(entries[i].content.data);
    }
    free(cache);
    free(a);
    free(b);
}

static void a_cache_in_the_way_is_named(void **state) {
    (void)state;
    char *a = place_output(&here, "cacheless"), *cache = place_path(&here, "pictures/1_thing/0.txt");
    training t = training_make(&here, a);
    t.options.cache_folder = cache;
    training_expect(&t, TRAIN_FAILED);
    expect_text(t.err.text, cache);
    free(cache);
    free(a);
}

/* ---- captions, names of files ---- */

static void long_captions_are_mentioned(void **state) {
    (void)state;
    char caption[600] = "";
    for (int i = 0; i < 80; i++) strcat(caption, "word ");
    place_picture(&here, "wordy/1", 64, 64, 1, caption);
    place_picture(&here, "wordy/2", 64, 64, 2, "short");
    char *a = place_output(&here, "wordy-out");
    training t = training_make(&here, a);
    t.pictures = "wordy";
    t.options.steps = 1;
    training_expect(&t, TRAIN_DONE);
    expect_text(t.notes, "1 of 2 captions");
    expect_text(t.notes, "75 tokens");
    free(a);
}

static void expect_metadata(const char *path, const char *key, const char *value) {
    safetensors st;
    error err = {""};
    if (!safetensors_open(&st, path, &err)) fail_msg("%s", err.text);
    const char *is = safetensors_metadata(&st, key);
    if (!is || strcmp(is, value) != 0) fail_msg("%s: %s is %s instead of %s", path, key, is ? is : "missing", value);
    safetensors_close(&st);
}

/* Nine items an epoch in three buckets, batches of 2: 5 or so batches; files by steps and by epochs. */
static void saved_files_are_numbered(void **state) {
    (void)state;
    char *a = place_output(&here, "numbers"), *folder = place_path(&here, "numbers");
    training t = training_make(&here, a);
    t.options.batch_size = 2;
    t.options.steps = 0;
    t.options.epochs = 2;
    t.options.save_every_steps = 2;
    t.options.save_every_epochs = 1;
    training_expect(&t, TRAIN_DONE);
    int64_t batches = t.outlook.batches, steps = 2 * batches, files = 3; /* adapter, state, one epoch */
    assert_true(batches >= 5 && batches <= 6);
    assert_int_equal(t.outlook.steps, steps);
    assert_int_equal(t.updates, steps);
    char epochs[24], count[24];
    for (int64_t s = 2; s < steps; s += 2, files++) {
        char *path = memory_format("%s/me-step%08d.safetensors", folder, (int)s);
        snprintf(count, sizeof count, "%d", (int)s);
        snprintf(epochs, sizeof epochs, "%d", s > batches ? 2 : 1);
        expect_metadata(path, "ss_steps", count);
        expect_metadata(path, "ss_epoch", epochs);
        free(path);
    }
    char *epoch = memory_format("%s/me-000001.safetensors", folder);
    snprintf(count, sizeof count, "%d", (int)batches);
    expect_metadata(epoch, "ss_steps", count);
    expect_metadata(epoch, "ss_epoch", "1");
    expect_metadata(epoch, "ss_output_name", "me-000001");
    snprintf(count, sizeof count, "%d", (int)steps);
    expect_metadata(a, "ss_steps", count);
    expect_metadata(a, "ss_epoch", "2");
    expect_metadata(a, "ss_num_epochs", "2");
    assert_int_equal(folder_count(folder), files);
    assert_int_equal(t.saved, files - 1);
    free(epoch);
    free(folder);
    free(a);
}

static void saving_in_between_changes_nothing(void **state) {
    (void)state;
    char *a = place_output(&here, "between-a"), *b = place_output(&here, "between-b");
    training t = training_make(&here, a);
    t.options.steps = 3;
    training_expect(&t, TRAIN_DONE);
    t.options.output = b;
    t.options.save_every_steps = 1;
    training_expect(&t, TRAIN_DONE);
    expect_equal_results(a, b);
    free(a);
    free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_seed_gives_one_file),
                                       cmocka_unit_test(two_threads_give_one_file),
                                       cmocka_unit_test(stopped_and_resumed_is_as_if_never_stopped),
                                       cmocka_unit_test(checkpointed_norms_are_the_same),
                                       cmocka_unit_test(more_steps_go_on),
                                       cmocka_unit_test(a_stop_before_the_first_step_writes_nothing),
                                       cmocka_unit_test(resuming_with_other_settings_names_the_option),
                                       cmocka_unit_test(resuming_without_a_state_is_refused),
                                       cmocka_unit_test(damaged_states_are_refused_and_left_alone),
                                       cmocka_unit_test(a_loss_out_of_bounds_stops_and_writes_nothing),
                                       cmocka_unit_test(the_state_is_kept_by_the_clock),
                                       cmocka_unit_test(a_broken_model_is_named_at_the_first_step),
                                       cmocka_unit_test(the_memory_planned_is_the_memory_used),
                                       cmocka_unit_test(encoded_pictures_are_kept_and_bad_entries_remade),
                                       cmocka_unit_test(a_cache_in_the_way_is_named),
                                       cmocka_unit_test(long_captions_are_mentioned),
                                       cmocka_unit_test(saved_files_are_numbered),
                                       cmocka_unit_test(saving_in_between_changes_nothing)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
