/* vulora train: from a folder of pictures to an adapter file. */
#include "base/file.h"
#include "base/memory.h"
#include "base/random.h"
#include "cli/commands.h"
#include "cli/infotext.h"
#include "cli/sample_prompts.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/train_setup.h"
#include "cli/typical_caption.h"
#include "convert/metadata.h"
#include "formats/png_text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct training {
    const options *options;
    session session;
    dataset data;
    options_size resolution;
    train_options settings;
    sample_prompts samples;
    char *output, *cache, *last_sample;
    trainer *trainer;
    progress progress;
    bool encoding; /* the progress line counts pictures being encoded */
} training;

/* ---- what was understood ---- */

/* The result of a dry run, else talk. */
static void tell(const training *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void tell(const training *t, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (t->options->dry_run)
        puts(text);
    else
        terminal_say("%s", text);
}

static void say_captions(const training *t) {
    const dataset_report *r = &t->data.report;
    static const char *const from[CAPTION_SOURCE_COUNT] = {"from .txt", "from .caption", "from files", "from the folder's name",
                                                           "from --trigger"};
    char text[256] = "";
    for (int i = 0; i < CAPTION_SOURCE_COUNT; i++)
        if (r->captions[i])
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s%zu %s", *text ? ", " : "", r->captions[i], from[i]);
    tell(t, "captions: %s", *text ? text : "none");
}

static void say_dataset(const training *t) {
    const dataset_report *r = &t->data.report;
    char repeats[48] = "";
    if (r->items != r->images) snprintf(repeats, sizeof repeats, ", with repeats %zu", r->items);
    tell(t, "images: %zu%s%s", r->images, repeats, t->data.flip ? ", half of them mirrored" : "");
    say_captions(t);
    for (size_t b = 0; b < t->data.bucket_count; b++)
        if (t->data.bucket_images[b])
            tell(t, "trained at %dx%d pixels: %zu image%s", t->data.buckets[b].width, t->data.buckets[b].height, t->data.bucket_images[b],
                 t->data.bucket_images[b] == 1 ? "" : "s");
    if (r->upscaled) tell(t, "note: %zu image%s smaller than the bucket and enlarged", r->upscaled, r->upscaled == 1 ? " is" : "s are");
    if (r->junk) terminal_detail("%zu other files passed over", r->junk);
    for (size_t i = 0; i < r->note_count; i++) tell(t, "note: %s", r->notes[i]);
}

static void say_memory(const training *t, const train_outlook *w) {
    char a[24], b[24], c[24], d[24];
    const device *on = t->session.device;
    tell(t, "memory: %s = model %s + adapter and optimizer %s + activations %s%s", terminal_bytes(train_outlook_bytes(w), a),
         terminal_bytes(w->constant_bytes, b), terminal_bytes(w->adapter_bytes, c), terminal_bytes(w->arena_bytes, d),
         w->checkpoint ? ", computed twice (gradient checkpointing)" : "");
    if (w->preview_bytes) tell(t, "  with %s for samples", terminal_bytes(w->preview_bytes, a));
    tell(t, "  before that, encoding the pictures: %s; encoded pictures and captions are kept in %s of %s",
         terminal_bytes(w->encode_bytes, a), terminal_bytes(w->cache_bytes, b), on->gpu ? "the machine's memory" : "memory");
    tell(t, "  %s can take %s", on->name, terminal_bytes(w->free_bytes + on->live_bytes, a));
    terminal_detail("of the activations' %zu bytes %zu are in use at one time at most", w->arena_bytes, w->live_bytes);
    if (w->kept_bytes)
        tell(t, "note: --gradient-checkpointing is on, which takes more time: without it %s of memory would be needed",
             terminal_bytes(w->kept_bytes, a));
    if (!w->fits && w->possible)
        tell(t, "note: that is more memory than is free now; other programs will be driven out of it, or the training will be slow. Close "
                "some, "
                "or use a smaller --batch-size or --resolution");
}

/* "rank 4, ", "rank 2 to 8, ", or nothing where no module has one. */
static void rank_text(const adapter *a, char out[64]) {
    int64_t least = 0, most = 0;
    for (int i = 0; i < a->module_count; i++) {
        int64_t rank = a->modules[i].rank;
        if (!rank) continue;
        least = !least || rank < least ? rank : least;
        most = rank > most ? rank : most;
    }
    out[0] = 0;
    if (most > least)
        snprintf(out, 64, "rank %" PRId64 " to %" PRId64 ", ", least, most);
    else if (most)
        snprintf(out, 64, "rank %" PRId64 ", ", most);
}

static void say_outlook(const training *t, const train_outlook *w) {
    char rank[64];
    rank_text(trainer_adapter(t->trainer), rank);
    tell(t, "adapter: %s%d modules (U-Net %d, text encoder %d), %" PRId64 " parameters", rank,
         w->modules[CHECKPOINT_UNET] + w->modules[CHECKPOINT_TEXT_ENCODER], w->modules[CHECKPOINT_UNET],
         w->modules[CHECKPOINT_TEXT_ENCODER], w->parameters);
    tell(t, "training: %" PRId64 " steps of %d image%s, %" PRId64 " epoch%s, seed %" PRIu64, w->steps,
         t->settings.batch_size * t->settings.learner.accumulation,
         t->settings.batch_size * t->settings.learner.accumulation == 1 ? "" : "s", w->epochs, w->epochs == 1 ? "" : "s", t->settings.seed);
    say_memory(t, w);
    if (w->resumed) tell(t, "going on from step %" PRId64, w->resumed);
}

/* ---- how long it will take: one picture and one gradient of the commonest shape, on noise; nothing is changed by it ---- */

static size_t commonest_bucket(const dataset *data) {
    size_t best = 0;
    for (size_t b = 1; b < data->bucket_count; b++)
        if (data->bucket_items[b] > data->bucket_items[best]) best = b;
    return best;
}

static bool time_encoding(training *t, double *seconds, error *err) {
    bucket_size size = t->data.buckets[commonest_bucket(&t->data)];
    size_t pixels = (size_t)size.width * (size_t)size.height, latent = pixels / 64 * 4;
    float *image = memory_new(3 * pixels, sizeof *image), *mean = memory_new(latent, sizeof *mean),
          *logvar = memory_new(latent, sizeof *mean);
    random_normal_fill(1, RANDOM_STREAM_NOISE, 0, image, 3 * pixels);
    double start = terminal_clock();
    bool ok = pipeline_vae_encode(t->session.pipeline, image, 1, size.height, size.width, mean, logvar, err);
    *seconds = terminal_clock() - start;
    pipeline_release(t->session.pipeline, CHECKPOINT_VAE);
    free(image);
    free(mean);
    free(logvar);
    return ok;
}

static bool time_gradient(training *t, learner *l, double *seconds, error *err) {
    pipeline *p = t->session.pipeline;
    bucket_size size = t->data.buckets[commonest_bucket(&t->data)];
    int n = t->settings.batch_size, h = size.height / 8, w = size.width / 8, tokens = TOKENIZER_LENGTH;
    size_t count = (size_t)n * 4 * (size_t)h * (size_t)w, states = (size_t)n * (size_t)tokens * (size_t)p->text.width;
    float *latents = memory_new(count, sizeof *latents), *context = memory_new(states, sizeof *context), loss;
    int *timesteps = memory_new((size_t)n, sizeof *timesteps);
    int32_t *ids = memory_new((size_t)(n * tokens), sizeof *ids);
    random_normal_fill(1, RANDOM_STREAM_NOISE, 0, latents, count);
    random_normal_fill(1, RANDOM_STREAM_NOISE, 1, context, states);
    learner_batch batch = {.n = n,
                           .h = h,
                           .w = w,
                           .latents = latents,
                           .noise = latents,
                           .timesteps = timesteps,
                           .ids = learner_trains_text(l) ? ids : NULL,
                           .context = context,
                           .tokens = tokens};
    bool ok = learner_accumulate(l, &batch, &loss, err);
    double start = terminal_clock();
    ok = ok && learner_accumulate(l, &batch, &loss, err);
    *seconds = terminal_clock() - start;
    free(latents);
    free(context);
    free(timesteps);
    free(ids);
    return ok;
}

static bool say_time(training *t, const train_outlook *outlook, error *err) {
    double seconds, encoding;
    char steps[24], pictures[24];
    size_t count = t->data.count * (t->data.flip ? 2 : 1);
    if (!time_encoding(t, &encoding, err)) return false;
    learner_options settings = t->settings.learner;
    settings.checkpoint = outlook->checkpoint;
    learner *l = learner_create(t->session.pipeline, trainer_adapter(t->trainer), &settings, err);
    bool ok = l && time_gradient(t, l, &seconds, err);
    if (ok)
        tell(t, "time: about %s for the steps, by a trial of one; before them about %s for the pictures that no earlier run encoded",
             terminal_duration(seconds * settings.accumulation * (double)(outlook->steps - outlook->resumed), steps),
             terminal_duration(encoding * (double)count, pictures));
    learner_free(l);
    return ok;
}

/* ---- while it runs ---- */

static void on_note(void *user, const char *text) {
    (void)user;
    terminal_say("note: %s", text);
}

static void on_encoded(void *user, size_t done, size_t all) {
    training *t = user;
    if (!t->encoding) progress_begin(&t->progress, "encoding pictures", 0, (int64_t)all);
    t->encoding = true;
    progress_update(&t->progress, (int64_t)done, NULL);
}

static void on_begun(void *user, int64_t step, int64_t steps) {
    training *t = user;
    progress_end(&t->progress);
    progress_begin(&t->progress, "step", step, steps);
}

static void on_stepped(void *user, const train_progress *p) {
    training *t = user;
    char text[96];
    snprintf(text, sizeof text, "epoch %" PRId64 "/%" PRId64 "  loss %.4f  average %.4f", p->epoch, p->epochs, (double)p->loss,
             (double)p->average);
    progress_update(&t->progress, p->step, text);
}

static void on_saved(void *user, const char *path) {
    (void)user;
    terminal_say("saved %s", path);
}

static bool on_stop(void *user) {
    (void)user;
    return interrupt_requested();
}

/* ---- samples ---- */

/* "dir/me.safetensors" -> "dir/sample", made when needed; freed by the caller. */
static char *sample_folder(const training *t, error *err) {
    const char *slash = strrchr(t->output, '/');
    char *folder = slash ? memory_format("%.*s/sample", (int)(slash - t->output), t->output) : memory_string("sample");
    if (mkdir(folder, 0777) == 0 || errno == EEXIST) return folder;
    error_set(err, "%s: cannot make the folder for samples: %s", folder, strerror(errno));
    free(folder);
    return NULL;
}

static bool draw_sample(training *t, int index, const char *moment, error *err) {
    const sample_prompt *s = &t->samples.item[index];
    draw_settings settings = s->settings;
    settings.keep_models = true; /* the training goes on with them */
    if (!settings.width) settings.width = t->resolution.width;
    if (!settings.height) settings.height = t->resolution.height;
    draw_prompts prompts;
    uint8_t *rgb = NULL;
    bool ok = draw_prompts_encode(t->session.pipeline, &settings, s->prompt, s->negative, &prompts, err);
    if (!train_text_rate(t->options)) pipeline_release(t->session.pipeline, CHECKPOINT_TEXT_ENCODER);
    ok = ok && draw_picture(t->session.pipeline, &settings, &prompts, s->seed, NULL, &rgb, err) == DENOISE_DONE;
    draw_prompts_free(&prompts);
    pipeline_release(t->session.pipeline, CHECKPOINT_VAE);
    char *folder = ok ? sample_folder(t, err) : NULL, *stem = infotext_stem(t->output), *model = infotext_stem(t->session.model_path);
    if (folder) {
        infotext info = {.prompt = s->prompt, .negative = s->negative, .settings = &settings, .seed = s->seed, .model = model};
        char *path = memory_format("%s/%s_%s_%02d_%" PRIu64 ".png", folder, stem, moment, index, s->seed), *text = infotext_make(&info);
        ok = png_write(path, rgb, settings.width, settings.height, 3, &(png_text){"parameters", text}, 1, err);
        if (ok) terminal_say("sample %s", path);
        free(t->last_sample);
        t->last_sample = path;
        free(text);
    }
    free(folder);
    free(stem);
    free(model);
    free(rgb);
    return ok && folder;
}

static bool on_preview(void *user, int64_t step, int64_t epoch, error *err) {
    training *t = user;
    char moment[32];
    if (t->settings.preview_every_epochs)
        snprintf(moment, sizeof moment, "e%06" PRId64, epoch);
    else
        snprintf(moment, sizeof moment, "%06" PRId64, step);
    for (int i = 0; i < t->samples.count; i++)
        if (!draw_sample(t, i, moment, err)) return false;
    return true;
}

/* ---- the command ---- */

static bool read_samples(training *t, error *err) {
    const options *o = t->options;
    draw_settings defaults = {.steps = 20,
                              .clip_skip = (int)o->clip_skip,
                              .sampler = sampler_kind_find("ddim", err),
                              .spacing = SIGMA_SPACING_DEFAULT,
                              .cfg = 7.5f,
                              .source = RANDOM_SOURCE_GPU};
    return !o->sample_prompts || sample_prompts_read(&t->samples, o->sample_prompts, &defaults, (uint64_t)o->seed, err);
}

/* The pictures come before the model when their size is known without it: what is wrong with them is then said within a second. */
static bool open_data(training *t, error *err) {
    dataset_options wanted = train_dataset_options(t->options, t->resolution);
    return dataset_open(&wanted, &t->data, err);
}

static bool prepare(training *t, error *err) {
    const options *o = t->options;
    bool sized = options_given(o, "resolution");
    t->resolution = o->resolution;
    if (!read_samples(t, err) || (sized && !open_data(t, err))) return false;
    if (!session_open(&t->session, o, err)) return false;
    if (!sized) t->resolution = session_native_size(&t->session);
    if (!sized && !open_data(t, err)) return false;
    say_dataset(t);
    if (!o->dry_run) t->cache = train_cache_folder(o);
    t->settings = train_make_options(o, t->resolution, session_native_rate(&t->session), t->output, t->cache);
    t->trainer = trainer_create(t->session.pipeline, &t->data, &t->settings, err);
    return t->trainer != NULL;
}

static void say_what_next(const training *t) {
    const char *slash = strrchr(t->output, '/'), *name = slash ? slash + 1 : t->output;
    size_t length = strlen(name);
    if (length > 12 && !strcmp(name + length - 12, ".safetensors")) length -= 12;
    terminal_say("to draw with it: vulora generate --model %s --lora %s --prompt \"%s\" --output picture.png", t->options->model, t->output,
                 typical_caption(&t->data, t->options->trigger));
    terminal_say("or copy it into stable-diffusion-webui's models/Lora and write <lora:%.*s:1> in the prompt", (int)length, name);
}

/* What webui shows on its cards: the words to ask with, and the last sample as the picture. */
static bool write_side_files(const training *t, error *err) {
    if (t->options->side_files <= 0) return true;
    const char *trigger = t->options->trigger;
    metadata_edits edits = {.side_files = true,
                            .trigger = trigger && *trigger ? trigger : typical_caption(&t->data, NULL),
                            .preview = t->last_sample,
                            .notes = t->options->comment};
    return metadata_side_files(t->output, &(labels){0}, &edits, err);
}

static int run(training *t, error *err) {
    char text[24];
    train_outlook outlook;
    if (!prepare(t, err) || !trainer_measure(t->trainer, &outlook, err)) return terminal_fail(err);
    say_outlook(t, &outlook);
    if (!trainer_check_memory(t->trainer, &outlook, err)) return terminal_fail(err);
    if (t->options->dry_run) return say_time(t, &outlook, err) ? EXIT_DONE : terminal_fail(err);
    interrupt_catch();
    train_events events = {.user = t,
                           .note = on_note,
                           .encoded = on_encoded,
                           .begun = on_begun,
                           .stepped = on_stepped,
                           .saved = on_saved,
                           .stop = on_stop,
                           .preview = t->samples.count ? on_preview : NULL};
    train_result result = trainer_run(t->trainer, &events, err);
    progress_end(&t->progress);
    if (result == TRAIN_FAILED) return terminal_fail(err);
    terminal_detail("memory used on the device at most: %s", terminal_bytes(t->session.device->peak_bytes, text));
    if (result == TRAIN_DONE) {
        if (!write_side_files(t, err)) return terminal_fail(err);
        say_what_next(t);
        return EXIT_DONE;
    }
    if (result == TRAIN_STOPPED_EARLY)
        terminal_say("stopped before the first step; nothing was written, the same command begins again");
    else
        terminal_say("stopped; the same command with --resume goes on from here");
    return EXIT_INTERRUPTED;
}

int cmd_train(const options *o) {
    training t = {.options = o};
    error err = {""};
    bool usage;
    int status;
    if (!train_check(o, &t.output, &usage, &err))
        status = usage ? terminal_refuse(&err) : terminal_fail(&err);
    else
        status = run(&t, &err);
    trainer_free(t.trainer);
    session_close(&t.session);
    dataset_close(&t.data);
    sample_prompts_free(&t.samples);
    free(t.last_sample);
    free(t.cache);
    free(t.output);
    return status;
}
