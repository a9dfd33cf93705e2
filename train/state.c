/* The state beside the adapter file: values, AdamW's moments, the step, and the settings that the numbers depend on. */
#include "base/memory.h"
#include "base/sha256.h"
#include "train/internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

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
        const int numbers[] = {
            image->repeats, data->buckets[image->bucket].width, data->buckets[image->bucket].height, image->crop.x, image->crop.y,
            data->flip};
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
    char text[40];
    snprintf(text, sizeof text, "%.17g", value);
    visit(user, option, text);
}

static void visit_settings(const trainer *t, setting_visitor visit, void *user) {
    const train_options *o = &t->options;
    char hash[65];
    hash_model(&t->pipeline->model, hash);
    visit(user, "model", hash);
    hash_dataset(t->data, hash);
    visit(user, "data", hash);
    visit(user, "targets", o->adapter.targets ? o->adapter.targets : "");
    visit(user, "lr-scheduler", rate_schedule_name(o->schedule));
    visit(user, "precision", dtype_name(t->pipeline->device->activation));
    const struct {
        const char *option;
        double value;
    } numbers[] = {{"kind", o->adapter.kind},
                   {"rank", o->adapter.rank},
                   {"alpha", o->adapter.alpha},
                   {"conv-rank", o->adapter.conv_rank},
                   {"conv-alpha", o->adapter.conv_alpha},
                   {"seed", (double)o->seed},
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

static void note_setting(void *user, const char *option, const char *value) {
    char key[80];
    snprintf(key, sizeof key, "setting.%s", option);
    safetensors_writer_metadata(user, key, value);
}

static void note_number(safetensors_writer *writer, const char *key, double value) {
    char text[40];
    snprintf(text, sizeof text, "%.17g", value);
    safetensors_writer_metadata(writer, key, text);
}

enum { VALUE, FIRST_MOMENT, SECOND_MOMENT, KINDS };
static const char *const PREFIX[KINDS] = {"value", "m", "v"};

static bool add_tensor(trainer *t, safetensors_writer *writer, int index, float *copies[KINDS], error *err) {
    const adapter_tensor *a = adapter_tensor_at(t->adapter, index, NULL);
    for (int k = 0; k < KINDS; k++) copies[k] = memory_new((size_t)adapter_tensor_elements(a), sizeof(float));
    if (!learner_read_value(t->learner, index, copies[VALUE], err) ||
        !learner_read_moments(t->learner, index, copies[FIRST_MOMENT], copies[SECOND_MOMENT], err))
        return false;
    bool ok = true;
    for (int k = 0; ok && k < KINDS; k++) {
        char *name = memory_format("%s/%s", PREFIX[k], a->name);
        ok = safetensors_writer_add_f32(writer, name, DTYPE_F32, a->rank, a->dims, copies[k], err);
        free(name);
    }
    return ok;
}

bool train_state_save(trainer *t, error *err) {
    int count = adapter_tensor_count(t->adapter);
    safetensors_writer writer = {.refuse_nonfinite = true};
    float *(*copies)[KINDS] = memory_new((size_t)count, sizeof *copies);
    bool ok = true;
    for (int i = 0; ok && i < count; i++) ok = add_tensor(t, &writer, i, copies[i], err);
    safetensors_writer_metadata(&writer, "format", "vulora training state 1");
    note_number(&writer, "step", (double)t->step);
    note_number(&writer, "updates", (double)learner_steps(t->learner));
    note_number(&writer, "loss_scale", (double)learner_loss_scale(t->learner));
    note_number(&writer, "good_steps", learner_good_steps(t->learner));
    visit_settings(t, note_setting, &writer);
    char *path = trainer_state_path(t->options.output);
    ok = ok && safetensors_writer_write(&writer, path, err);
    safetensors_writer_free(&writer);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < KINDS; k++) free(copies[i][k]);
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
    if (c->option || (was && strcmp(was, value) == 0)) return;
    c->option = option;
    snprintf(c->was, sizeof c->was, "%s", was ? was : "nothing");
    snprintf(c->is, sizeof c->is, "%s", value);
}

static bool same_settings(const trainer *t, const safetensors *state, error *err) {
    comparison c = {.state = state};
    visit_settings(t, compare_setting, &c);
    if (!c.option) return true;
    if (strcmp(c.option, "model") == 0 || strcmp(c.option, "data") == 0)
        return error_set(err,
                         "--resume: %s was trained with other contents of --%s; start anew without --resume, or give what it began with",
                         state->path, c.option);
    return error_set(err,
                     "--resume: %s was trained with --%s %s, this command says %s; start anew without --resume, or give what it began with",
                     state->path, c.option, *c.was ? c.was : "(default)", *c.is ? c.is : "(default)");
}

static bool read_number(const safetensors *state, const char *key, double *out, error *err) {
    const char *text = safetensors_metadata(state, key);
    char *end = NULL;
    if (text) *out = strtod(text, &end);
    return (text && end != text && !*end && *out >= 0) || error_set(err, "%s: is not a training state: %s is missing", state->path, key);
}

static bool load_tensor(trainer *t, const safetensors *state, int index, error *err) {
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
        free(name);
    }
    ok = ok && learner_write_state(t->learner, index, values[VALUE], values[FIRST_MOMENT], values[SECOND_MOMENT], err);
    for (int k = 0; k < KINDS; k++) free(values[k]);
    return ok;
}

bool train_state_load(trainer *t, error *err) {
    char *path = trainer_state_path(t->options.output);
    safetensors state;
    bool ok = file_exists(path) || error_set(err, "--resume: there is no state %s to go on from; train without --resume first", path);
    ok = ok && safetensors_open(&state, path, err);
    if (ok) {
        double step = 0, updates = 0, scale = 0, good = 0;
        ok = read_number(&state, "step", &step, err) && read_number(&state, "updates", &updates, err) &&
             read_number(&state, "loss_scale", &scale, err) && read_number(&state, "good_steps", &good, err) &&
             same_settings(t, &state, err);
        for (int i = 0; ok && i < adapter_tensor_count(t->adapter); i++) ok = load_tensor(t, &state, i, err);
        if (ok) {
            t->step = (int64_t)step;
            learner_set_steps(t->learner, (int64_t)updates);
            learner_set_loss_scale(t->learner, (float)scale, (int)good);
        }
        safetensors_close(&state);
    }
    free(path);
    return ok;
}
