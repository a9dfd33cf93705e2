#include "cli/inspection.h"

#include "base/memory.h"
#include "base/sha256.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void inspection_problem(inspection *i, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    i->problems = memory_grow(i->problems, (size_t)i->problem_count + 1, sizeof *i->problems);
    i->problems[i->problem_count++] = memory_string(text);
}

/* A problem of many modules is told once: how many, and the first of them. */
typedef struct finding {
    const char *what;
    const char *module;
    int count;
} finding;

typedef struct findings {
    finding item[64];
    int count;
} findings;

static void note(findings *f, const char *what, const char *module) {
    for (int i = 0; i < f->count; i++)
        if (!strcmp(f->item[i].what, what)) {
            f->item[i].count++;
            return;
        }
    if (f->count < (int)(sizeof f->item / sizeof *f->item)) f->item[f->count++] = (finding){what, module, 1};
}

static void count_value(inspection_count *counts, int *used, double value) {
    int i = 0;
    while (i < *used && counts[i].value != value) i++;
    if (i == INSPECTION_COUNTS) return;
    if (i == *used) counts[(*used)++] = (inspection_count){value, 0};
    counts[i].modules++;
}

static int by_value(const void *a, const void *b) {
    const inspection_count *x = a, *y = b;
    return (x->value > y->value) - (x->value < y->value);
}

/* ---- norms ---- */

static double sum_squares(const adapter_part *part) {
    float *values = adapter_part_read(part, NULL);
    double sum = 0;
    for (size_t i = 0; values && i < part->tensor->elements; i++) sum += (double)values[i] * (double)values[i];
    free(values);
    return sum;
}

/* |U D|^2 = sum of (U'U) o (D D'), without making the product. up: [out, r], down: [r, in]. */
static double product_squares(const float *up, const float *down, size_t out, size_t r, size_t in) {
    double sum = 0;
    for (size_t a = 0; a < r; a++) {
        for (size_t b = a; b < r; b++) {
            double left = 0, right = 0;
            for (size_t i = 0; i < out; i++) left += (double)up[i * r + a] * (double)up[i * r + b];
            for (size_t j = 0; j < in; j++) right += (double)down[a * in + j] * (double)down[b * in + j];
            sum += (a == b ? 1 : 2) * left * right;
        }
    }
    return sum;
}

/* Negative: not computed for this kind. */
static double module_squares(const adapter_kind *kind, const adapter_group *g) {
    const adapter_part *up = adapter_group_part(g, "lora_up.weight"), *down = adapter_group_part(g, "lora_down.weight");
    if (kind && !strcmp(kind->name, "full") && adapter_group_part(g, "diff")) return sum_squares(adapter_group_part(g, "diff"));
    if (kind && !strcmp(kind->name, "norm") && adapter_group_part(g, "w_norm")) return sum_squares(adapter_group_part(g, "w_norm"));
    if (!kind || strcmp(kind->name, "lora") || !up || !down || adapter_group_part(g, "lora_mid.weight") || up->tensor->rank < 2 ||
        down->tensor->rank < 2)
        return -1;
    size_t r = (size_t)down->tensor->dims[0], out = (size_t)up->tensor->dims[0];
    if (!r || !out || (size_t)up->tensor->elements != out * r) return -1;
    float *u = adapter_part_read(up, NULL), *d = adapter_part_read(down, NULL);
    double alpha = (double)r, squares = -1;
    inspection_alpha(g, &alpha);
    if (u && d) squares = product_squares(u, d, out, r, down->tensor->elements / r) * (alpha / (double)r) * (alpha / (double)r);
    free(u);
    free(d);
    return squares;
}

/* "lora_unet_down_blocks_0_attentions_1_proj_in" lies in block "down_blocks_0_attentions_1". */
static void block_name(const adapter_group *g, char *out, size_t size) {
    int layer;
    const char *name = g->module;
    if (sscanf(name, "lora_te_text_model_encoder_layers_%d_", &layer) == 1) {
        snprintf(out, size, "text layer %d", layer);
        return;
    }
    if (!strncmp(name, "lora_unet_", 10)) name += 10;
    const char *end = name;
    for (const char *p = name; *p; p++) {
        bool number = p > name && p[-1] == '_' && *p >= '0' && *p <= '9' && (p[1] == '_' || !p[1]);
        if (number) end = p + 1;
        if (number && (strstr(name, "attentions") || strstr(name, "resnets") || strstr(name, "samplers")) && strncmp(name, "mid", 3) &&
            end - name < 14)
            continue;
        if (number) break;
    }
    snprintf(out, size, "%.*s", end > name ? (int)(end - name) : (int)strlen(name), name);
}

static void add_norm(inspection *i, const adapter_kind *kind, const adapter_group *g) {
    double squares = module_squares(kind, g);
    char name[96];
    if (squares < 0) return;
    block_name(g, name, sizeof name);
    int b = 0;
    while (b < i->block_count && strcmp(i->blocks[b].name, name)) b++;
    if (b == INSPECTION_BLOCKS) return;
    if (b == i->block_count) snprintf(i->blocks[i->block_count++].name, sizeof i->blocks->name, "%s", name);
    i->blocks[b].modules++;
    i->blocks[b].squares += squares;
}

/* ---- modules ---- */

static void look_at_tensors(inspection *i, const adapter_group *g, findings *f) {
    bool nonfinite = false;
    for (int p = 0; p < g->count; p++) {
        const safetensors_tensor *t = g->parts[p].tensor;
        int k = 0;
        while (k < i->type_count && i->types[k] != t->type) k++;
        if (k == i->type_count && k < DTYPE_COUNT) i->types[i->type_count++] = t->type;
        nonfinite |= safetensors_first_nonfinite(t->data, t->type, t->elements) < t->elements;
    }
    if (nonfinite) note(f, "has NaN or infinity in it: the training that wrote it had broken down", g->shown);
}

static void add_kind(const char **kinds, int *count, const char *name) {
    int at = 0;
    while (at < *count && strcmp(kinds[at], name) < 0) at++;
    if (at < *count && !strcmp(kinds[at], name)) return;
    memmove(kinds + at + 1, kinds + at, (size_t)(*count - at) * sizeof *kinds);
    kinds[at] = name;
    ++*count;
}

static void look_at_module(inspection *i, const adapter_group *g, findings *f) {
    const adapter_kind *kind = adapter_kind_of(g);
    double alpha;
    int64_t rank = inspection_rank(kind, g);
    i->modules++;
    if (g->part == CHECKPOINT_TEXT_ENCODER)
        i->text_modules++;
    else
        i->unet_modules++;
    i->dora |= adapter_group_part(g, "dora_scale") != NULL;
    if (rank > 0) count_value(i->ranks, &i->rank_count, (double)rank);
    if (inspection_alpha(g, &alpha)) count_value(i->alphas, &i->alpha_count, alpha);
    for (int program = 0; program < LOADER_COUNT; program++) {
        const char *obstacle = inspection_obstacle((loader)program, kind, g);
        if (!obstacle) continue;
        i->loads_in[program] = false;
        if (program == LOADER_WEBUI) note(f, obstacle, g->shown);
    }
    if (!inspection_module_known(g->module)) {
        note(f, "SD 1.x has no such module: it has no effect anywhere", g->shown);
        for (int program = 0; program < LOADER_COUNT; program++) i->loads_in[program] = false;
    }
    look_at_tensors(i, g, f);
    add_norm(i, kind, g);
}

static void look_at_modules(inspection *i) {
    const char *kinds[32];
    int kind_count = 0;
    findings f = {.count = 0};
    for (int program = 0; program < LOADER_COUNT; program++) i->loads_in[program] = true;
    for (int g = 0; g < i->file.group_count; g++) {
        const adapter_kind *kind = adapter_kind_of(&i->file.groups[g]);
        add_kind(kinds, &kind_count, kind ? kind->name : "unknown");
        look_at_module(i, &i->file.groups[g], &f);
    }
    for (int o = 0; o < i->file.other_count; o++) {
        if (strncmp(i->file.others[o]->name, "bundle_emb.", 11))
            note(&f, "belongs to no module: it has no effect", i->file.others[o]->name);
        for (int program = 0; program < LOADER_COUNT; program++)
            if (program != LOADER_WEBUI || strncmp(i->file.others[o]->name, "bundle_emb.", 11)) i->loads_in[program] = false;
    }
    for (int k = 0; k < kind_count; k++)
        snprintf(i->kinds + strlen(i->kinds), sizeof i->kinds - strlen(i->kinds), "%s%s", k ? "+" : "", kinds[k]);
    for (int k = 0; k < f.count; k++) {
        if (f.item[k].count == 1)
            inspection_problem(i, "%s: %s", f.item[k].module, f.item[k].what);
        else
            inspection_problem(i, "%d modules (%s, ...): %s", f.item[k].count, f.item[k].module, f.item[k].what);
    }
    if (i->ranks[0].modules) qsort(i->ranks, (size_t)i->rank_count, sizeof *i->ranks, by_value);
    if (i->alphas[0].modules) qsort(i->alphas, (size_t)i->alpha_count, sizeof *i->alphas, by_value);
}

/* ---- the file as such ---- */

static void look_at_metadata(inspection *i, const safetensors *st) {
    static const char *const objects[] = {"ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs"};
    if (st->map.size > 10 && memcmp(st->map.data + 8, "{\"", 2))
        inspection_problem(i, "the header does not begin with {\": webui cannot read its metadata");
    for (size_t k = 0; k < sizeof objects / sizeof *objects; k++) {
        const char *text = safetensors_metadata(st, objects[k]);
        json_t *value = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
        if (text && !json_is_object(value))
            inspection_problem(i, "metadata %s is not a JSON object: webui's metadata editor fails on it", objects[k]);
        json_decref(value);
    }
    const char *hash = safetensors_metadata(st, "sshs_model_hash");
    if (hash && strlen(hash) == 64 && strcmp(hash, i->data_hash))
        inspection_problem(i, "metadata sshs_model_hash does not belong to these tensors: they were changed after it was written");
    const char *architecture = safetensors_metadata(st, "modelspec.architecture");
    if (architecture && strncmp(architecture, "stable-diffusion-v1", 19))
        inspection_problem(i, "metadata modelspec.architecture says %.100s", architecture);
}

static void hash_file(inspection *i, const safetensors *st) {
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, st->map.data, st->map.size);
    sha256_hex(&hash, i->file_hash);
    sha256_init(&hash);
    sha256_update(&hash, st->map.data + st->data_start, st->map.size - st->data_start);
    sha256_hex(&hash, i->data_hash);
}

bool inspection_open(inspection *i, const char *path, error *err) {
    *i = (inspection){.bytes = 0};
    if (!adapter_file_open(&i->file, path, err)) return false;
    if (i->file.group_count == 0) {
        adapter_file_close(&i->file);
        return error_set(err, "%s: is no adapter: none of its tensors belongs to a module of SD 1.x", path);
    }
    for (int s = 0; s < i->file.source_count; s++) i->bytes += i->file.sources[s].map.size;
    look_at_modules(i);
    if (i->file.source_count == 1 && !i->file.folder) {
        hash_file(i, &i->file.sources[0]);
        look_at_metadata(i, &i->file.sources[0]);
    } else {
        i->loads_in[LOADER_WEBUI] = i->loads_in[LOADER_COMFYUI] = i->loads_in[LOADER_SDCPP] = false;
        inspection_problem(i, "a folder: webui, ComfyUI and stable-diffusion.cpp load single files");
    }
    return true;
}

void inspection_close(inspection *i) {
    for (int p = 0; p < i->problem_count; p++) free(i->problems[p]);
    free(i->problems);
    adapter_file_close(&i->file);
    *i = (inspection){.bytes = 0};
}
