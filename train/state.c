/* The state beside the adapter file: values, AdamW's moments, the step, and the settings that the numbers depend on. */
#include "base/memory.h"
#include "base/sha256.h"
#include "lora/start.h"
#include "train/internal.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char FORMAT[] = "vulora training state 1";

char *trainer_state_path(const char *output) {
    size_t length = strlen(output);
    bool suffix = length > 12 && strcmp(output + length - 12, ".safetensors") == 0;
    return memory_format("%.*s.state.safetensors", (int)(suffix ? length - 12 : length), output);
}

/* ---- settings that must be the same for a training to go on ---- */

typedef void (*setting_visitor)(void *user, const char *option, const char *value);

static void hash_text(sha256 *hash, const char *text) { sha256_update(hash, text, strlen(text) + 1); }

static void hash_dataset(const dataset *data, char out[65]) {
    sha256 hash;
    sha256_init(&hash);
    for (size_t i = 0; i < data->count; i++) {
        const dataset_image *image = &data->images[i];
        const int numbers[] = {image->repeats,
                               data->buckets[image->bucket].width,
                               data->buckets[image->bucket].height,
                               image->crop.x,
                               image->crop.y,
                               image->crop.width,
                               image->crop.height,
                               data->background[0],
                               data->background[1],
                               data->background[2]};
        hash_text(&hash, image->hash);
        hash_text(&hash, image->caption);
        sha256_update(&hash, numbers, sizeof numbers);
    }
    sha256_hex(&hash, out);
}

/* A few weights stand for all: enough to tell two models apart. */
static void hash_model(const checkpoint *c, char out[65]) {
    static const struct {
        checkpoint_part part;
        const char *name;
    } TOLD_BY[] = {{CHECKPOINT_UNET, "conv_in.weight"},
                   {CHECKPOINT_UNET, "mid_block.resnets.0.conv1.weight"},
                   {CHECKPOINT_UNET, "conv_out.weight"},
                   {CHECKPOINT_VAE, "encoder.conv_out.weight"},
                   {CHECKPOINT_TEXT_ENCODER, "text_model.final_layer_norm.weight"}};
    sha256 hash;
    sha256_init(&hash);
    for (size_t i = 0; i < sizeof TOLD_BY / sizeof *TOLD_BY; i++) {
        const checkpoint_tensor *w = checkpoint_find(c, TOLD_BY[i].part, TOLD_BY[i].name);
        if (w) sha256_update(&hash, w->data, w->bytes);
    }
    sha256_hex(&hash, out);
}

static void visit_number(setting_visitor visit, void *user, const char *option, double value) {
    char text[32];
    metadata_number(value, text);
    size_t length = strlen(text);
    /* As a user writes it: 16, not 16.0. */
    if (length > 2 && strcmp(text + length - 2, ".0") == 0) text[length - 2] = 0;
    visit(user, option, text);
}

/* What the user can name stands before `data`, whose hash covers it too. */
static void visit_pictures(const trainer *t, setting_visitor visit, void *user) {
    char text[65];
    snprintf(text, sizeof text, "%dx%d", t->options.width, t->options.height);
    visit(user, "resolution", text);
    visit(user, "flip", t->data->flip ? "on" : "off");
    hash_dataset(t->data, text);
    visit(user, "data", text);
}

static void visit_texts(const adapter_options *a, setting_visitor visit, void *user) {
    const struct {
        const char *option, *text;
    } texts[] = {{"block-dims", a->block_dims},           {"block-alphas", a->block_alphas},
                 {"conv-block-dims", a->conv_block_dims}, {"conv-block-alphas", a->conv_block_alphas},
                 {"down-lr-weight", a->down_lr_weight},   {"mid-lr-weight", a->mid_lr_weight},
                 {"up-lr-weight", a->up_lr_weight},       {"init", a->init == ADAPTER_INIT_DEFAULT ? NULL : adapter_init_at((int)a->init)}};
    const struct {
        const char *option;
        const adapter_rules *rules;
    } lists[] = {{"module-rank", &a->module_rank}, {"module-alpha", &a->module_alpha}, {"module-lr", &a->module_lr}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) visit(user, texts[i].option, texts[i].text ? texts[i].text : "");
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        char *all = memory_string("");
        for (int j = 0; j < lists[i].rules->count; j++) {
            char *longer = memory_format("%s%s%s", all, j ? " " : "", lists[i].rules->item[j]);
            free(all);
            all = longer;
        }
        visit(user, lists[i].option, all);
        free(all);
    }
}

static void visit_settings(const trainer *t, setting_visitor visit, void *user) {
    const train_options *o = &t->options;
    char hash[65];
    hash_model(&t->pipeline->model, hash);
    visit(user, "model", hash);
    visit_pictures(t, visit, user);
    visit(user, "kind", o->adapter.kind ? o->adapter.kind : "lora");
    snprintf(hash, sizeof hash, "%" PRIu64, o->seed);
    visit(user, "seed", hash);
    visit(user, "targets", o->adapter.targets ? o->adapter.targets : "");
    visit_texts(&o->adapter, visit, user);
    visit(user, "lr-scheduler", rate_schedule_name(o->schedule));
    visit(user, "precision", t->pipeline->device->bf16 ? "BF16" : dtype_name(t->pipeline->device->activation));
    const struct {
        const char *option;
        double value;
    } numbers[] = {{"dora", o->adapter.dora},
                   {"tucker", o->adapter.tucker},
                   {"factor", o->adapter.factor},
                   {"decompose-both", o->adapter.decompose_both},
                   {"full-matrix", o->adapter.full_matrix},
                   {"constraint", o->adapter.constraint},
                   {"rescaled", o->adapter.rescaled},
                   {"train-norm", o->adapter.train_norm},
                   {"rs-lora", o->adapter.rank_stabilised},
                   {"use-scalar", o->adapter.trained_scalar},
                   {"loraplus-unet-lr-ratio", o->adapter.up_ratio[CHECKPOINT_UNET]},
                   {"loraplus-text-encoder-lr-ratio", o->adapter.up_ratio[CHECKPOINT_TEXT_ENCODER]},
                   {"block-lr-zero-threshold", o->adapter.block_lr_zero_threshold},
                   {"network-dropout", o->adapter.stepwise.network_dropout},
                   {"rank-dropout", o->adapter.stepwise.rank_dropout},
                   {"module-dropout", o->adapter.stepwise.module_dropout},
                   {"block-size", o->adapter.stepwise.block_size},
                   {"scale-weight-norms", o->adapter.stepwise.max_norm},
                   {"rank", o->adapter.rank},
                   {"alpha", o->adapter.alpha},
                   {"conv-rank", o->adapter.conv_rank},
                   {"conv-alpha", o->adapter.conv_alpha},
                   {"batch-size", o->batch_size},
                   {"gradient-accumulation-steps", o->learner.accumulation},
                   {"unet-lr", o->unet_rate},
                   {"text-encoder-lr", o->text_rate},
                   {"lr-warmup-steps", o->warmup},
                   {"clip-skip", o->learner.clip_skip},
                   {"max-grad-norm", (double)o->learner.max_grad_norm},
                   {"weight-decay", (double)o->learner.weight_decay}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) visit_number(visit, user, numbers[i].option, numbers[i].value);
}

/* ---- saving ---- */

enum { VALUE, FIRST_MOMENT, SECOND_MOMENT, KINDS };
static const char *const PREFIX[KINDS] = {"value", "m", "v"};

/* The numbers beside the tensors. */
typedef struct counters {
    double step, updates, loss_scale, good_steps;
} counters;

static const struct {
    const char *key;
    size_t offset;
    double least, most;
} COUNTERS[] = {{"step", offsetof(counters, step), 0, 1e15},
                {"updates", offsetof(counters, updates), 0, 1e15},
                {"loss_scale", offsetof(counters, loss_scale), 1, 1e9},
                {"good_steps", offsetof(counters, good_steps), 0, 1e9}};
enum { COUNTER_COUNT = sizeof COUNTERS / sizeof *COUNTERS };

static void note_setting(void *user, const char *option, const char *value) {
    char key[80];
    snprintf(key, sizeof key, "setting.%s", option);
    safetensors_writer_metadata(user, key, value);
}

static void note_counters(const trainer *t, safetensors_writer *writer, sha256 *hash) {
    counters c = {(double)t->step, (double)learner_steps(t->learner), (double)learner_loss_scale(t->learner),
                  learner_good_steps(t->learner)};
    for (int i = 0; i < COUNTER_COUNT; i++) {
        char text[40];
        snprintf(text, sizeof text, "%.17g", *(const double *)((const char *)&c + COUNTERS[i].offset));
        safetensors_writer_metadata(writer, COUNTERS[i].key, text);
        hash_text(hash, text);
    }
}

static bool add_tensor(trainer *t, safetensors_writer *writer, int index, float *copies[KINDS], sha256 *hash, error *err) {
    const adapter_tensor *a = adapter_tensor_at(t->adapter, index, NULL);
    size_t count = (size_t)adapter_tensor_elements(a);
    for (int k = 0; k < KINDS; k++) copies[k] = memory_new(count, sizeof(float));
    if (!learner_read_value(t->learner, index, copies[VALUE], err) ||
        !learner_read_moments(t->learner, index, copies[FIRST_MOMENT], copies[SECOND_MOMENT], err))
        return false;
    bool ok = true;
    for (int k = 0; ok && k < KINDS; k++) {
        char *name = memory_format("%s/%s", PREFIX[k], a->name);
        ok = safetensors_writer_add_f32(writer, name, DTYPE_F32, a->rank, a->dims, copies[k], err);
        sha256_update(hash, copies[k], count * sizeof(float));
        free(name);
    }
    return ok;
}

/* Which of an adapter's tensors has a beginning of its own to keep: its module and its number there; false: it has none. */
static bool start_of(const adapter *a, int index, const adapter_module **m, int *number) {
    const adapter_tensor *x = adapter_tensor_at(a, index, m);
    *number = (int)(x - (*m)->tensors);
    return *number < 2 && (*m)->start[*number];
}

static bool add_start(trainer *t, safetensors_writer *writer, int index, float **copy, sha256 *hash, error *err) {
    const adapter_module *m;
    int number;
    if (!start_of(t->adapter, index, &m, &number)) return true;
    const adapter_tensor *a = &m->tensors[number];
    size_t count = (size_t)adapter_tensor_elements(a);
    *copy = memory_new(count, sizeof(float));
    if (!adapter_start_read(t->adapter, m, number, *copy, err)) return false;
    char *name = memory_format("start/%s", a->name);
    bool ok = safetensors_writer_add_f32(writer, name, DTYPE_F32, a->rank, a->dims, *copy, err);
    sha256_update(hash, *copy, count * sizeof(float));
    free(name);
    return ok;
}

bool train_state_save(trainer *t, error *err) {
    int count = adapter_tensor_count(t->adapter);
    safetensors_writer writer = {.refuse_nonfinite = true};
    float *(*copies)[KINDS] = memory_new((size_t)count, sizeof *copies), **starts = memory_new((size_t)count, sizeof *starts);
    char digest[65];
    sha256 hash;
    sha256_init(&hash);
    safetensors_writer_metadata(&writer, "format", FORMAT);
    note_counters(t, &writer, &hash);
    bool ok = true;
    for (int i = 0; ok && i < count; i++)
        ok = add_tensor(t, &writer, i, copies[i], &hash, err) && add_start(t, &writer, i, &starts[i], &hash, err);
    sha256_hex(&hash, digest);
    safetensors_writer_metadata(&writer, "sha256", digest);
    visit_settings(t, note_setting, &writer);
    char *path = trainer_state_path(t->options.output);
    ok = ok && safetensors_writer_write(&writer, path, err);
    safetensors_writer_free(&writer);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < KINDS; k++) free(copies[i][k]);
    for (int i = 0; i < count; i++) free(starts[i]);
    free(starts);
    free(copies);
    free(path);
    return ok;
}

/* ---- going on ---- */

typedef struct comparison {
    const safetensors *state;
    const char *option; /* the first that differs */
    char was[80], is[80];
} comparison;

static void compare_setting(void *user, const char *option, const char *value) {
    comparison *c = user;
    char key[80];
    snprintf(key, sizeof key, "setting.%s", option);
    const char *was = safetensors_metadata(c->state, key);
    /* What came later than the state is 0 or empty where it changes nothing. */
    if (c->option || strcmp(was ? was : *value ? "0" : "", value) == 0) return;
    c->option = option;
    snprintf(c->was, sizeof c->was, "%s", was ? was : "nothing");
    snprintf(c->is, sizeof c->is, "%s", value);
}

static bool same_settings(const trainer *t, const safetensors *state, error *err) {
    comparison c = {.state = state};
    visit_settings(t, compare_setting, &c);
    if (!c.option) return true;
    if (strcmp(c.option, "model") == 0 || strcmp(c.option, "data") == 0)
        return error_set(err, "%s was trained with other contents of --%s; give what it began with", state->path, c.option);
    return error_set(err, "%s was trained with --%s %s, this command says %s; give what it began with", state->path, c.option,
                     *c.was ? c.was : "(default)", *c.is ? c.is : "(default)");
}

static bool read_counters(const safetensors *state, counters *out, sha256 *hash, error *err) {
    for (int i = 0; i < COUNTER_COUNT; i++) {
        const char *text = safetensors_metadata(state, COUNTERS[i].key);
        char *end = NULL;
        double value = text ? strtod(text, &end) : 0;
        if (!text || end == text || *end || !(value >= COUNTERS[i].least && value <= COUNTERS[i].most) || value != floor(value))
            return error_set(err, "%s: is damaged, its %s is %s", state->path, COUNTERS[i].key, text ? text : "missing");
        *(double *)((char *)out + COUNTERS[i].offset) = value;
        hash_text(hash, text);
    }
    return true;
}

static bool load_tensor(trainer *t, const safetensors *state, int index, sha256 *hash, error *err) {
    const adapter_tensor *a = adapter_tensor_at(t->adapter, index, NULL);
    float *values[KINDS] = {0};
    bool ok = true;
    for (int k = 0; ok && k < KINDS; k++) {
        char *name = memory_format("%s/%s", PREFIX[k], a->name);
        const safetensors_tensor *s = safetensors_need(state, name, err);
        ok = s != NULL;
        if (ok && (s->type != DTYPE_F32 || (int64_t)s->elements != adapter_tensor_elements(a)))
            ok = error_set(err, "%s: %s has another size than this training's", state->path, name);
        if (ok) ok = (values[k] = safetensors_read_f32(state, s, err)) != NULL;
        if (ok) sha256_update(hash, values[k], s->elements * sizeof(float));
        free(name);
    }
    ok = ok && learner_write_state(t->learner, index, values[VALUE], values[FIRST_MOMENT], values[SECOND_MOMENT], err);
    for (int k = 0; k < KINDS; k++) free(values[k]);
    return ok;
}

static bool load_start(trainer *t, const safetensors *state, int index, sha256 *hash, error *err) {
    const adapter_module *m;
    int number;
    if (!start_of(t->adapter, index, &m, &number)) return true;
    char *name = memory_format("start/%s", m->tensors[number].name);
    const safetensors_tensor *s = safetensors_need(state, name, err);
    bool ok = s != NULL;
    if (ok && (s->type != DTYPE_F32 || (int64_t)s->elements != adapter_tensor_elements(&m->tensors[number])))
        ok = error_set(err, "%s: %s has another size than this training's", state->path, name);
    float *values = ok ? safetensors_read_f32(state, s, err) : NULL;
    if (values) sha256_update(hash, values, s->elements * sizeof(float));
    ok = values && adapter_start_write(t->adapter, m, number, values, err);
    free(values);
    free(name);
    return ok;
}

static bool load(trainer *t, const safetensors *state, error *err) {
    const char *format = safetensors_metadata(state, "format"), *expected = safetensors_metadata(state, "sha256");
    if (!format || strcmp(format, FORMAT) != 0) return error_set(err, "%s: is not a training state of this program's version", state->path);
    counters c = {0};
    char digest[65];
    sha256 hash;
    sha256_init(&hash);
    if (!read_counters(state, &c, &hash, err) || !same_settings(t, state, err)) return false;
    for (int i = 0; i < adapter_tensor_count(t->adapter); i++)
        if (!load_tensor(t, state, i, &hash, err) || !load_start(t, state, i, &hash, err)) return false;
    sha256_hex(&hash, digest);
    if (!expected || strcmp(digest, expected) != 0)
        return error_set(err, "%s: is damaged, its contents do not match its checksum", state->path);
    t->step = (int64_t)c.step;
    learner_set_steps(t->learner, (int64_t)c.updates);
    learner_set_loss_scale(t->learner, (float)c.loss_scale, (int)c.good_steps);
    return true;
}

bool train_state_load(trainer *t, error *err) {
    char *path = trainer_state_path(t->options.output);
    safetensors state;
    error why = {""};
    bool ok = file_exists(path) || error_set(&why, "there is no state %s to go on from", path);
    if (ok && (ok = safetensors_open(&state, path, &why))) {
        ok = load(t, &state, &why);
        safetensors_close(&state);
    }
    free(path);
    return ok || error_set(err, "--resume: %s, or leave --resume out to begin anew", why.text);
}
