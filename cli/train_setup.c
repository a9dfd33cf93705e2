#include "cli/train_setup.h"

#include "base/file.h"
#include "base/memory.h"
#include "cli/terminal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

double train_text_rate(const options *o) { return o->unet_only == 1 ? 0 : o->text_encoder_lr; }

static double ratio(double own, double common) { return !isnan(own) ? own : isnan(common) ? 0 : common; }

static adapter_rules rules(options_list list) { return (adapter_rules){list.item, list.count}; }

static void put_module_settings(const options *o, adapter_options *a) {
    const char *name;
    for (int i = 0; (name = adapter_init_at(i)); i++)
        if (strcmp(name, o->init) == 0) a->init = (adapter_init)i;
    a->alpha_is_rank = isnan(o->alpha);
    a->conv_optional = o->network_module != NULL; /* LyCORIS' lines have a conv_dim whatever the preset */
    a->rank_stabilised = o->rs_lora == 1;
    a->trained_scalar = o->use_scalar == 1;
    a->up_ratio[CHECKPOINT_UNET] = ratio(o->loraplus_unet, o->loraplus);
    a->up_ratio[CHECKPOINT_TEXT_ENCODER] = ratio(o->loraplus_text, o->loraplus);
    a->block_dims = o->block_dims;
    a->block_alphas = o->block_alphas;
    a->conv_block_dims = o->conv_block_dims;
    a->conv_block_alphas = o->conv_block_alphas;
    a->down_lr_weight = o->down_lr_weight;
    a->mid_lr_weight = o->mid_lr_weight;
    a->up_lr_weight = o->up_lr_weight;
    a->block_lr_zero_threshold = o->block_lr_zero;
    a->module_rank = rules(o->module_rank);
    a->module_alpha = rules(o->module_alpha);
    a->module_lr = rules(o->module_lr);
}

adapter_options train_adapter_options(const options *o) {
    bool conv = options_given(o, "conv-rank");
    adapter_options a = {.kind = (conv || o->conv_block_dims) && !options_given(o, "kind") ? "locon" : o->kind,
                         .targets = o->targets,
                         .rank = (int)o->rank,
                         .dora = o->dora == 1,
                         .tucker = o->tucker == 1,
                         .factor = (int)o->factor,
                         .decompose_both = o->decompose_both == 1,
                         .full_matrix = o->full_matrix == 1,
                         .constraint = isnan(o->constraint) ? 0 : o->constraint,
                         .rescaled = o->rescaled == 1,
                         .train_norm = o->train_norm == 1,
                         .stepwise = {.network_dropout = o->network_dropout,
                                      .rank_dropout = o->rank_dropout,
                                      .module_dropout = o->module_dropout,
                                      .block_size = (int)o->block_size,
                                      .max_norm = isnan(o->max_norm) ? 0 : o->max_norm},
                         .seed = (uint64_t)o->seed};
    a.alpha = isnan(o->alpha) ? (double)o->rank : o->alpha;
    a.conv_rank = conv ? (int)o->conv_rank : 0;
    a.conv_alpha = !isnan(o->conv_alpha) ? o->conv_alpha : conv ? (double)o->conv_rank : 0;
    put_module_settings(o, &a);
    a.train_text_encoder = train_text_rate(o) > 0;
    return a;
}

learner_options train_learner_options(const options *o) {
    learner_options l = learner_default_options();
    l.clip_skip = o->clip_skip ? (int)o->clip_skip : 1;
    l.accumulation = o->accumulation ? (int)o->accumulation : 1;
    l.max_grad_norm = (float)o->max_grad_norm;
    l.weight_decay = (float)o->weight_decay;
    l.checkpoint = o->checkpointing == 1;
    return l;
}

/* ---- checks ---- */

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a > b && !strcmp(text + a - b, end);
}

static bool check_usage(const options *o, char **output, error *err) {
    if (!o->model)
        return error_set(err, "--model is missing: name a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder, or demo");
    if (!o->data) return error_set(err, "--data is missing: name the folder of pictures to learn from");
    if (o->output && (o->output_dir || o->output_name))
        return error_set(err, "--output and --output-dir/--output-name say the same thing; give one of them");
    if (!o->output && !(o->output_dir && o->output_name))
        return error_set(err, "--output is missing: name the adapter file to write, me.safetensors for example");
    if (o->output_name && strchr(o->output_name, '/'))
        return error_set(err, "--output-name: %s has a / in it; give the folder as --output-dir", o->output_name);
    *output = o->output ? memory_string(o->output) : memory_format("%s/%s.safetensors", o->output_dir, o->output_name);
    if (!ends_with(*output, ".safetensors") && !file_is_directory(*output))
        return error_set(err, "--output: %s does not end in .safetensors, as adapter files do", *output);
    if (options_given(o, "steps") && options_given(o, "epochs"))
        return error_set(err, "--steps and --epochs contradict each other; give one of them");
    if (o->trace_tensors && !o->trace) return error_set(err, "--trace-tensors needs --trace DIR");
    if ((o->sample_every_steps || o->sample_every_epochs) && !o->sample_prompts)
        return error_set(err, "--sample-every-n-steps and -epochs need --sample-prompts FILE");
    if (o->warmup >= 1 && o->warmup != floor(o->warmup))
        return error_set(err, "--lr-warmup-steps: %g is neither a number of steps nor a part below 1", o->warmup);
    return true;
}

static bool check_places(const options *o, const char *output, error *err) {
    if (!file_check_output(output, "--output", err)) return false;
    if (!file_exists(o->data)) return error_set(err, "--data: %s does not exist", o->data);
    if (!file_is_directory(o->data)) return error_set(err, "--data: %s is a file; name the folder that the pictures are in", o->data);
    if (o->trace && file_exists(o->trace) && !file_is_directory(o->trace))
        return error_set(err, "--trace: %s is a file, a folder is needed", o->trace);
    char *state = trainer_state_path(output);
    bool ok = file_check_output(state, "the training's state", err);
    if (ok && o->resume && !file_exists(state))
        ok = error_set(err, "--resume: there is no state %s to go on from; leave --resume out to begin anew", state);
    free(state);
    return ok;
}

bool train_check(const options *o, char **output, bool *usage, error *err) {
    *output = NULL;
    *usage = !check_usage(o, output, err);
    return !*usage && check_places(o, *output, err);
}

/* ---- the cache ---- */

static bool make_folders(const char *path) {
    char *copy = memory_string(path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(copy, 0777);
        *slash = '/';
    }
    bool ok = mkdir(copy, 0777) == 0 || errno == EEXIST;
    free(copy);
    return ok;
}

char *train_cache_folder(const options *o) {
    if (o->cache_dir) return memory_string(o->cache_dir);
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (!(xdg && *xdg == '/') && !(home && *home == '/')) return NULL;
    char *folder = xdg && *xdg == '/' ? memory_format("%s/vulora/latents", xdg) : memory_format("%s/.cache/vulora/latents", home);
    error err;
    char *probe = memory_format("%s/entry", folder);
    if (make_folders(folder) && file_check_output(probe, "cache", &err)) {
        free(probe);
        return folder;
    }
    terminal_say("note: %s cannot be written; encoded pictures are not kept for the next run (--cache-dir names another place)", folder);
    free(probe);
    free(folder);
    return NULL;
}

/* ---- settings ---- */

dataset_options train_dataset_options(const options *o, options_size resolution) {
    uint8_t shade = !strcmp(o->background, "black") ? 0 : 255;
    return (dataset_options){.folder = o->data,
                             .buckets = {.width = resolution.width,
                                         .height = resolution.height,
                                         .single = o->bucket != 1,
                                         .step = (int)o->bucket_step,
                                         .smallest = (int)o->min_bucket,
                                         .largest = (int)o->max_bucket},
                             .flip = o->flip == 1,
                             .caption_extension = o->caption_extension,
                             .trigger = o->trigger,
                             .background = {shade, shade, shade}};
}

static dtype save_type(const options *o) {
    return !strcmp(o->save_precision, "fp32") ? DTYPE_F32 : !strcmp(o->save_precision, "bf16") ? DTYPE_BF16 : DTYPE_F16;
}

train_options train_make_options(const options *o, options_size resolution, double native_rate, const char *output, const char *cache) {
    double rate = isnan(o->lr) ? native_rate : o->lr;
    bool often = o->sample_every_steps || o->sample_every_epochs;
    train_options t = {.output = output,
                       .adapter = train_adapter_options(o),
                       .learner = train_learner_options(o),
                       .unet_rate = isnan(o->unet_lr) ? rate : o->unet_lr,
                       .text_rate = train_text_rate(o)};
    rate_schedule_find(&t.schedule, o->scheduler);
    t.warmup = o->warmup;
    t.steps = o->steps;
    t.epochs = o->epochs;
    t.batch_size = (int)o->batch_size;
    t.width = resolution.width;
    t.height = resolution.height;
    t.seed = (uint64_t)o->seed;
    t.checkpoint = o->checkpointing;
    t.save_type = save_type(o);
    t.save_every_steps = o->save_every_steps;
    t.save_every_epochs = o->save_every_epochs;
    t.state_every_seconds = 600; /* what a crash, a power cut or a lost device may cost */
    t.metadata = o->metadata == 1;
    t.comment = o->comment;
    t.cache_folder = cache;
    t.preview_every_steps = o->sample_every_steps;
    t.preview_every_epochs = o->sample_every_epochs;
    t.preview_at_end = o->sample_prompts && !often;
    t.resume = o->resume == 1;
    t.trace_folder = o->trace;
    t.trace_tensors = o->trace_tensors;
    return t;
}
