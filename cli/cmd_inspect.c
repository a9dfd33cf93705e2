/* vulora inspect FILE...: what adapter files are. */
#include "cli/commands.h"
#include "cli/inspection.h"
#include "cli/terminal.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

static const char *style_text(const inspection *i) {
    static const char *const names[] = {"kohya's names",  "kohya's names (lora_te1)",    "the original layout's names",
                                        "oft_unet names", "diffusers' and PEFT's names", "diffusers' attention-processor names"};
    return names[i->file.groups[0].style];
}

static void print_counts(const char *what, const inspection_count *counts, int used) {
    for (int k = 0; k < used; k++) {
        if (used == 1)
            printf(", %s %g", what, counts[k].value);
        else
            printf("%s%s %g (%d modules)", k ? ", " : ", ", k ? "" : what, counts[k].value, counts[k].modules);
    }
}

static void print_training(const safetensors *st) {
    static const char *const rows[][2] = {{"ss_output_name", "name in prompts"},
                                          {"ss_sd_model_name", "trained on"},
                                          {"ss_base_model_version", "base"},
                                          {"ss_network_module", "network"},
                                          {"ss_steps", "steps"},
                                          {"ss_epoch", "epochs"},
                                          {"ss_num_train_images", "images with repeats"},
                                          {"ss_resolution", "resolution"},
                                          {"ss_unet_lr", "U-Net learning rate"},
                                          {"ss_text_encoder_lr", "text encoder learning rate"},
                                          {"ss_optimizer", "optimizer"},
                                          {"ss_lr_scheduler", "scheduler"},
                                          {"ss_clip_skip", "clip skip"},
                                          {"ss_training_comment", "comment"},
                                          {"modelspec.trigger_phrase", "trigger"},
                                          {"modelspec.date", "date"}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const char *value = safetensors_metadata(st, rows[k][0]);
        if (value && *value && strcmp(value, "None")) printf("  %s: %.200s\n", rows[k][1], value);
    }
    if (!st->metadata_count) puts("  no metadata (webui shows its base version as unknown)");
}

static void print_metadata(const safetensors *st) {
    for (size_t k = 0; k < st->metadata_count; k++)
        printf("    %s = %.300s%s\n", st->metadata[k].key, st->metadata[k].value, strlen(st->metadata[k].value) > 300 ? "..." : "");
}

static void print_text(const inspection *i) {
    char size[24];
    printf("%s\n  %s%s", i->file.path, i->kinds, i->dora ? " with DoRA" : "");
    print_counts("rank", i->ranks, i->rank_count);
    print_counts("alpha", i->alphas, i->alpha_count);
    printf(", %s", terminal_bytes(i->bytes, size));
    for (int k = 0; k < i->type_count; k++) printf("%s%s", k ? "+" : " in ", dtype_name(i->types[k]));
    printf("\n  %d modules: U-Net %d, text encoder %d; %s\n", i->modules, i->unet_modules, i->text_modules, style_text(i));
    print_training(&i->file.sources[0]);
    if (terminal_verbose()) print_metadata(&i->file.sources[0]);
    if (*i->data_hash) printf("  hash: %.12s (webui), %.10s (of the file)\n", i->data_hash, i->file_hash);
    fputs("  loads in:", stdout);
    for (int k = 0, any = 0; k < LOADER_COUNT; k++)
        if (i->loads_in[k]) printf("%s %s", any++ ? "," : "", loader_name((loader)k));
    puts("");
    if (i->block_count) puts("  norm of the change, by block:");
    for (int k = 0; k < i->block_count; k++)
        printf("    %-30s %3d modules  %.4g\n", i->blocks[k].name, i->blocks[k].modules, sqrt(i->blocks[k].squares));
    if (!i->problem_count) puts("  no problems found");
    for (int k = 0; k < i->problem_count; k++) printf("  problem: %s\n", i->problems[k]);
}

/* ---- JSON ---- */

/* Text from a file may hold bytes that are no UTF-8, which JSON cannot hold. */
static json_t *text_value(const char *text) {
    json_t *value = json_string(text);
    if (value) return value;
    char *copy = malloc(strlen(text) + 1);
    if (!copy) return json_null();
    strcpy(copy, text);
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 128) *p = '?';
    value = json_string(copy);
    free(copy);
    return value;
}

static json_t *counts_value(const inspection_count *counts, int used) {
    json_t *object = json_object();
    for (int k = 0; k < used; k++) {
        char key[32];
        snprintf(key, sizeof key, "%g", counts[k].value);
        json_object_set_new(object, key, json_integer(counts[k].modules));
    }
    return object;
}

static json_t *inspection_value(const inspection *i) {
    json_t *object = json_object(), *loads = json_object(), *problems = json_array(), *metadata = json_object(), *blocks = json_array();
    for (int k = 0; k < LOADER_COUNT; k++) json_object_set_new(loads, loader_name((loader)k), json_boolean(i->loads_in[k]));
    for (int k = 0; k < i->problem_count; k++) json_array_append_new(problems, text_value(i->problems[k]));
    const safetensors *st = &i->file.sources[0];
    for (size_t k = 0; k < st->metadata_count; k++) json_object_set_new(metadata, st->metadata[k].key, text_value(st->metadata[k].value));
    for (int k = 0; k < i->block_count; k++)
        json_array_append_new(blocks, json_pack("{s:s, s:i, s:f}", "block", i->blocks[k].name, "modules", i->blocks[k].modules, "norm",
                                                sqrt(i->blocks[k].squares)));
    json_object_set_new(object, "file", text_value(i->file.path));
    json_object_set_new(object, "kind", json_string(i->kinds));
    json_object_set_new(object, "dora", json_boolean(i->dora));
    json_object_set_new(object, "modules", json_integer(i->modules));
    json_object_set_new(object, "unet_modules", json_integer(i->unet_modules));
    json_object_set_new(object, "text_encoder_modules", json_integer(i->text_modules));
    json_object_set_new(object, "rank", counts_value(i->ranks, i->rank_count));
    json_object_set_new(object, "alpha", counts_value(i->alphas, i->alpha_count));
    json_object_set_new(object, "bytes", json_integer((json_int_t)i->bytes));
    if (*i->data_hash) json_object_set_new(object, "sshs_model_hash", json_string(i->data_hash));
    if (*i->file_hash) json_object_set_new(object, "sha256", json_string(i->file_hash));
    json_object_set_new(object, "loads_in", loads);
    json_object_set_new(object, "norms", blocks);
    json_object_set_new(object, "metadata", metadata);
    json_object_set_new(object, "problems", problems);
    return object;
}

static void print_json(json_t *object) {
    char *text = json_dumps(object, 0);
    if (text) puts(text);
    free(text);
    json_decref(object);
}

int cmd_inspect(const options *o) {
    int status = EXIT_DONE;
    for (int k = 0; k < o->words.count; k++) {
        inspection i;
        error err = {""};
        if (!inspection_open(&i, o->words.item[k], &err)) {
            status = terminal_fail(&err);
            if (o->json) {
                json_t *object = json_object(), *problems = json_array();
                json_array_append_new(problems, text_value(err.text));
                json_object_set_new(object, "file", text_value(o->words.item[k]));
                json_object_set_new(object, "kind", json_null());
                json_object_set_new(object, "problems", problems);
                print_json(object);
            }
            continue;
        }
        if (o->json)
            print_json(inspection_value(&i));
        else
            print_text(&i);
        inspection_close(&i);
    }
    return status;
}
