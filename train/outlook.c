/* What a training will take: measured on its tapes before anything is loaded, compared with what the device has, and what would fit when
   it does not. */
#include "base/bytes.h"
#include "train/internal.h"

#include <stdio.h>
#include <string.h>

/* Drivers round allocations up, and programs need some memory of their own: a plan fits when so much more would. */
static const double MARGIN = 1.05;

static uint64_t with_margin(size_t bytes) { return (uint64_t)((double)bytes * MARGIN); }

/* ---- measuring ---- */

/* A training that is not quite this one. */
typedef struct variant {
    size_t batch;
    int side; /* pictures of side x side pixels; 0: as the buckets are */
    bool checkpoint, previews;
} variant;

static variant own_variant(const trainer *t) {
    const train_options *o = &t->options;
    bool previews = o->preview_every_steps || o->preview_every_epochs || o->preview_at_end;
    return (variant){(size_t)o->batch_size, 0, o->learner.checkpoint, previews};
}

/* Raises *largest to what a batch of `n` pictures takes; n 0: there is no such batch. */
static bool measure_batch(trainer *t, int width, int height, size_t n, bool recompute, plan_size *largest, error *err) {
    plan_size size;
    if (!n) return true;
    if (!learner_measure(t->learner, (int)n, height / 8, width / 8, TOKENIZER_LENGTH, learner_trains_text(t->learner), recompute, &size,
                         err))
        return false;
    if (size.arena > largest->arena) *largest = size;
    return true;
}

/* Every bucket has full batches, or only a short one. */
static bool measure_training(trainer *t, variant v, plan_size *largest, error *err) {
    *largest = (plan_size){0};
    if (v.side) return measure_batch(t, v.side, v.side, v.batch, v.checkpoint, largest, err);
    for (size_t b = 0; b < t->data->bucket_count; b++) {
        size_t items = t->data->bucket_items[b];
        bucket_size size = t->data->buckets[b];
        if (!measure_batch(t, size.width, size.height, items < v.batch ? items : v.batch, v.checkpoint, largest, err)) return false;
    }
    return true;
}

bool train_measure_arena(trainer *t, size_t *bytes, error *err) {
    plan_size size;
    bool ok = measure_training(t, own_variant(t), &size, err);
    *bytes = size.arena;
    return ok;
}

static bool measure_encoding(trainer *t, train_outlook *o, error *err) {
    for (size_t b = 0; b < t->data->bucket_count; b++) {
        plan_size size;
        if (!t->data->bucket_items[b]) continue;
        if (!pipeline_measure_vae_encode(t->pipeline, 1, t->data->buckets[b].height, t->data->buckets[b].width, &size, err)) return false;
        size_t bytes = o->adapter_bytes + size.constants + size.arena;
        if (bytes > o->encode_bytes) o->encode_bytes = bytes;
    }
    return true;
}

/* Previews lie in the training's own arena where they fit into it; beside the U-Net they load one other part at a time. */
static bool measure_previews(trainer *t, variant v, train_outlook *o, error *err) {
    plan_size part[3];
    int h = (v.side ? v.side : t->options.height) / 8, w = (v.side ? v.side : t->options.width) / 8;
    o->preview_bytes = 0;
    if (!v.previews) return true;
    if (!pipeline_measure_encode_text(t->pipeline, 1, &part[0], err) ||
        !pipeline_measure_predict(t->pipeline, 2, h, w, TOKENIZER_LENGTH, &part[1], err) ||
        !pipeline_measure_vae_decode(t->pipeline, 1, h, w, &part[2], err))
        return false;
    if (learner_trains_text(t->learner)) part[0].constants = 0;
    part[1].constants = 0;
    for (int i = 0; i < 3; i++) {
        size_t bytes = part[i].constants + (part[i].arena > o->arena_bytes ? part[i].arena : 0);
        if (bytes > o->preview_bytes) o->preview_bytes = bytes;
    }
    return true;
}

/* Host memory for what is computed once: encoded pictures, and the states of captions when the text encoder is frozen. */
static size_t cache_bytes(const trainer *t) {
    const dataset *d = t->data;
    size_t bytes = 0, channels = (size_t)t->pipeline->model.config.vae_latent_channels;
    for (size_t b = 0; b < d->bucket_count; b++)
        bytes +=
            d->bucket_images[b] * 2 * channels * (size_t)(d->buckets[b].width / 8) * (size_t)(d->buckets[b].height / 8) * sizeof(float);
    if (d->flip) bytes *= 2;
    if (!learner_trains_text(t->learner))
        bytes += train_count_captions(d, NULL) * (size_t)(t->pipeline->text.positions * t->pipeline->text.width) * sizeof(float);
    return bytes;
}

size_t train_outlook_bytes(const train_outlook *o) { return o->constant_bytes + o->adapter_bytes + o->arena_bytes + o->preview_bytes; }

/* What must still be found: the adapter has its memory already, and perhaps weights. On the CPU everything is in one memory. */
static uint64_t needed_for_steps(const trainer *t, const train_outlook *o, const plan_size *size) {
    return with_margin(size->missing + size->arena + o->preview_bytes + (t->pipeline->device->gpu ? 0 : o->cache_bytes));
}

static uint64_t needed(const trainer *t, const train_outlook *o, const plan_size *size) {
    uint64_t steps = needed_for_steps(t, o, size), encoding = with_margin(o->encode_bytes - o->adapter_bytes);
    return steps > encoding ? steps : encoding;
}

/* The steps of a variant: fills in what of the outlook depends on it. */
static bool measure_steps(trainer *t, variant v, train_outlook *o, plan_size *size, error *err) {
    if (!measure_training(t, v, size, err)) return false;
    o->constant_bytes = size->constants;
    o->arena_bytes = size->arena;
    o->live_bytes = size->live;
    o->checkpoint = v.checkpoint;
    return measure_previews(t, v, o, err);
}

bool trainer_measure(trainer *t, train_outlook *o, error *err) {
    *o = (train_outlook){.steps = t->steps, .epochs = train_epochs(t), .batches = t->batches, .resumed = t->step};
    for (int i = 0; i < t->adapter->module_count; i++) o->modules[t->adapter->modules[i].info->part]++;
    o->parameters = adapter_parameters(t->adapter);
    o->adapter_bytes = (size_t)o->parameters * 4 * sizeof(float) + learner_update_bytes(t->learner);
    if (t->adapter->starts) o->adapter_bytes += (size_t)o->parameters * sizeof(float);
    o->cache_bytes = cache_bytes(t);
    plan_size size;
    if (!measure_steps(t, own_variant(t), o, &size, err) || !measure_encoding(t, o, err)) return false;
    device_room room = device_get_room(t->pipeline->device);
    o->free_bytes = room.free;
    if (t->options.checkpoint < 0 && needed_for_steps(t, o, &size) > room.free) {
        o->kept_bytes = train_outlook_bytes(o);
        learner_set_checkpoint(t->learner, true);
        t->options.learner.checkpoint = true;
        if (!measure_steps(t, own_variant(t), o, &size, err)) return false;
    }
    o->fits = needed(t, o, &size) <= room.free;
    o->possible = needed(t, o, &size) <= room.most;
    t->arena_bytes = o->arena_bytes;
    return true;
}

/* ---- what would fit ---- */

/* Appends "--batch-size 2 (2.31 GiB)" when that fits. */
static bool offer(trainer *t, const train_outlook *o, variant v, const char *options, uint64_t free, char *list, size_t room) {
    error err;
    plan_size size, encode = {0};
    char text[24];
    size_t used = strlen(list);
    train_outlook other = *o;
    if (!measure_steps(t, v, &other, &size, &err)) return false;
    if (v.side && !pipeline_measure_vae_encode(t->pipeline, 1, v.side, v.side, &encode, &err)) return false;
    if (v.side) other.encode_bytes = o->adapter_bytes + encode.constants + encode.arena;
    if (needed(t, &other, &size) > free) return false;
    snprintf(list + used, room - used, "%s%s (%s)", used ? ", " : "", options, bytes_text(with_margin(train_outlook_bytes(&other)), text));
    return true;
}

static void offer_smaller(trainer *t, const train_outlook *o, uint64_t free, char *list, size_t room) {
    static const int sides[] = {1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128, 64};
    char options[80];
    variant v = own_variant(t);
    const char *also = "";
    if (v.previews) {
        v.previews = false;
        offer(t, o, v, "no --sample-prompts", free, list, room);
        v.previews = true;
    }
    if (!v.checkpoint) {
        v.checkpoint = true;
        if (!offer(t, o, v, "--gradient-checkpointing", free, list, room)) also = "--gradient-checkpointing ";
    }
    v.checkpoint = own_variant(t).checkpoint || *also;
    for (v.batch = v.batch / 2; v.batch; v.batch /= 2) {
        snprintf(options, sizeof options, "%s--batch-size %zu", also, v.batch);
        if (offer(t, o, v, options, free, list, room)) break;
    }
    v.batch = own_variant(t).batch;
    int side = t->options.width < t->options.height ? t->options.width : t->options.height;
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        v.side = sides[i];
        snprintf(options, sizeof options, "%s--resolution %d", also, v.side);
        if (v.side < side && offer(t, o, v, options, free, list, room)) break;
    }
}

bool trainer_check_memory(trainer *t, const train_outlook *o, error *err) {
    const device *d = t->pipeline->device;
    char need[24], has[24], list[400] = "", model[24];
    if (o->possible) return true;
    uint64_t free = device_get_room(d).most;
    size_t all = train_outlook_bytes(o) > o->encode_bytes ? train_outlook_bytes(o) : o->encode_bytes;
    offer_smaller(t, o, free, list, sizeof list);
    bytes_text(with_margin(all), need);
    bytes_text(free + d->live_bytes, has);
    if (*list) return error_set(err, "this training needs %s of memory, %s has %s for it. What would fit: %s", need, d->name, has, list);
    return error_set(err, "this training needs %s of memory, %s has %s for it, and nothing smaller fits: the model alone takes %s%s", need,
                     d->name, has, bytes_text(o->constant_bytes, model), d->gpu ? "; --device cpu uses the machine's own memory" : "");
}
