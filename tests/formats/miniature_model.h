/* A miniature with every tensor of SD 1.5, for tests of the layouts that are read: its names are those of fixtures/sd15_modules.tsv
   (made from the original and diffusers' models), and each tensor holds its own number. */
#ifndef VULORA_TESTS_MINIATURE_MODEL_H
#define VULORA_TESTS_MINIATURE_MODEL_H

#include "base/file.h"
#include "base/memory.h"
#include "formats/checkpoint.h"
#include "formats/checkpoint_names.h"
#include "tests/support/folder.h"

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

enum { PATH_SIZE = 1024 };

#define LENGTH(array) (sizeof(array) / sizeof *(array))

typedef struct entry {
    checkpoint_part part;
    char stored[192]; /* original name, without its part's prefix */
    char name[192];   /* diffusers' name */
    int rank;
    int64_t dims[4];
    dtype type;
} entry;

static const char *const PREFIXES[] = {"model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."};

static entry *model;
static size_t model_count;
static char *folder;

/* ---- The miniature's list of tensors ---- */

static inline void add(checkpoint_part part, const char *stored, const char *name, const char *leaf, int rank, const int64_t *dims) {
    model = memory_grow(model, model_count + 1, sizeof *model);
    entry *e = &model[model_count++];
    *e = (entry){.part = part, .rank = rank, .type = DTYPE_F16};
    snprintf(e->stored, sizeof e->stored, "%.150s.%.40s", stored, leaf);
    snprintf(e->name, sizeof e->name, "%.150s.%.40s", name, leaf);
    for (int i = 0; i < rank; i++) e->dims[i] = dims[i];
}

static inline void add_module(checkpoint_part part, const char *stored, const char *name, int out, int in, int kernel, bool bias) {
    int rank = in == 0 ? 1 : kernel == 0 ? 2 : 4;
    add(part, stored, name, "weight", rank, (int64_t[]){out, in, kernel, kernel});
    if (bias) add(part, stored, name, "bias", 1, (int64_t[]){out});
}

/* SD 1.5's sizes made small: 32 channels everywhere, 64 wide text states. */
static inline int small(int size) { return size == 768 ? 64 : size == 3072 ? 128 : size <= 4 ? size : size > 1280 ? 64 : 32; }

static inline void add_table(void) {
    FILE *file = fopen(TEST_DATA "/sd15_modules.tsv", "r");
    assert_non_null(file);
    char line[512];
    assert_non_null(fgets(line, sizeof line, file));
    while (fgets(line, sizeof line, file)) {
        char name[160], stored[160], kind[32];
        int out, in, k, bias;
        assert_int_equal(sscanf(line, "%*s %159s %159s %31s %d %d %d %d", name, stored, kind, &out, &in, &k, &bias), 7);
        checkpoint_part part = strncmp(name, "unet.", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
        int kernel = strncmp(kind, "conv", 4) == 0 ? k : 0;
        add_module(part, stored + strlen(PREFIXES[part]), strchr(name, '.') + 1, small(out), small(in), kernel, bias);
    }
    fclose(file);
}

static inline void add_text_rest(void) {
    static const char *const norms[] = {"layer_norm1", "layer_norm2"};
    char name[96];
    for (int i = 0; i < 24; i++) {
        snprintf(name, sizeof name, "text_model.encoder.layers.%d.%s", i / 2, norms[i % 2]);
        add_module(CHECKPOINT_TEXT_ENCODER, name, name, 64, 0, 0, true);
    }
    add_module(CHECKPOINT_TEXT_ENCODER, "text_model.final_layer_norm", "text_model.final_layer_norm", 64, 0, 0, true);
    add_module(CHECKPOINT_TEXT_ENCODER, "text_model.embeddings.token_embedding", "text_model.embeddings.token_embedding", 100, 64, 0,
               false);
    add_module(CHECKPOINT_TEXT_ENCODER, "text_model.embeddings.position_embedding", "text_model.embeddings.position_embedding", 77, 64, 0,
               false);
}

static inline void add_vae_resnet(const char *stored, const char *name, bool shortcut) {
    static const char *const leaves[][2] = {
        {"norm1", "norm1"}, {"conv1", "conv1"}, {"norm2", "norm2"}, {"conv2", "conv2"}, {"nin_shortcut", "conv_shortcut"}};
    for (size_t i = 0; i < 4 + (size_t)shortcut; i++) {
        char s[128], n[128];
        snprintf(s, sizeof s, "%s.%s", stored, leaves[i][0]);
        snprintf(n, sizeof n, "%s.%s", name, leaves[i][1]);
        add_module(CHECKPOINT_VAE, s, n, 32, i == 0 || i == 2 ? 0 : 32, i == 4 ? 1 : 3, true);
    }
}

static inline void add_vae_mid(const char *half) {
    static const char *const attention[][2] = {
        {"norm", "group_norm"}, {"q", "to_q"}, {"k", "to_k"}, {"v", "to_v"}, {"proj_out", "to_out.0"}};
    char s[96], n[96];
    for (int i = 0; i < 2; i++) {
        snprintf(s, sizeof s, "%s.mid.block_%d", half, i + 1);
        snprintf(n, sizeof n, "%s.mid_block.resnets.%d", half, i);
        add_vae_resnet(s, n, false);
    }
    for (size_t i = 0; i < LENGTH(attention); i++) {
        snprintf(s, sizeof s, "%s.mid.attn_1.%s", half, attention[i][0]);
        snprintf(n, sizeof n, "%s.mid_block.attentions.0.%s", half, attention[i][1]);
        add_module(CHECKPOINT_VAE, s, n, 32, i ? 32 : 0, 1, true);
    }
    snprintf(s, sizeof s, "%s.norm_out", half);
    snprintf(n, sizeof n, "%s.conv_norm_out", half);
    add_module(CHECKPOINT_VAE, s, n, 32, 0, 0, true);
}

static inline void add_vae(void) {
    char s[96], n[96];
    add_module(CHECKPOINT_VAE, "encoder.conv_in", "encoder.conv_in", 32, 3, 3, true);
    add_module(CHECKPOINT_VAE, "encoder.conv_out", "encoder.conv_out", 8, 32, 3, true);
    add_module(CHECKPOINT_VAE, "decoder.conv_in", "decoder.conv_in", 32, 4, 3, true);
    add_module(CHECKPOINT_VAE, "decoder.conv_out", "decoder.conv_out", 3, 32, 3, true);
    add_module(CHECKPOINT_VAE, "quant_conv", "quant_conv", 8, 8, 1, true);
    add_module(CHECKPOINT_VAE, "post_quant_conv", "post_quant_conv", 4, 4, 1, true);
    add_vae_mid("encoder");
    add_vae_mid("decoder");
    for (int level = 0; level < 4; level++) {
        for (int j = 0; j < 3; j++) {
            snprintf(s, sizeof s, "encoder.down.%d.block.%d", level, j);
            snprintf(n, sizeof n, "encoder.down_blocks.%d.resnets.%d", level, j);
            if (j < 2) add_vae_resnet(s, n, j == 0 && (level == 1 || level == 2));
            snprintf(s, sizeof s, "decoder.up.%d.block.%d", level, j);
            snprintf(n, sizeof n, "decoder.up_blocks.%d.resnets.%d", 3 - level, j);
            add_vae_resnet(s, n, j == 0 && level < 2);
        }
        snprintf(s, sizeof s, "encoder.down.%d.downsample.conv", level);
        snprintf(n, sizeof n, "encoder.down_blocks.%d.downsamplers.0.conv", level);
        if (level < 3) add_module(CHECKPOINT_VAE, s, n, 32, 32, 3, true);
        snprintf(s, sizeof s, "decoder.up.%d.upsample.conv", level);
        snprintf(n, sizeof n, "decoder.up_blocks.%d.upsamplers.0.conv", 3 - level);
        if (level > 0) add_module(CHECKPOINT_VAE, s, n, 32, 32, 3, true);
    }
}

static inline int miniature_setup(void **state) {
    (void)state;
    add_table();
    add_text_rest();
    add_vae();
    folder = folder_make("formats");
    return 0;
}

static inline int miniature_teardown(void **state) {
    (void)state;
    free(model);
    folder_remove(folder);
    return 0;
}

/* ---- Writing it ---- */

/* Every tensor's first element is its number in the list, 1 and up (exact in fp16); the rest is 0. */
typedef struct number {
    float value;
    dtype type;
} number;

static inline bool fill_number(void *context, void *out, size_t bytes, error *err) {
    const number *n = context;
    (void)err;
    memset(out, 0, bytes);
    if (n->type == DTYPE_F32 || n->type == DTYPE_F16 || n->type == DTYPE_BF16) dtype_from_f32(out, n->type, &n->value, 1);
    if (n->type == DTYPE_F64) memcpy(out, &(double){(double)n->value}, sizeof(double));
    return true;
}

/* Changes the tensor or its full name on the way to the file; false leaves it out. */
typedef bool (*change)(entry *e, char *name);

typedef enum spelling { ORIGINAL, DIFFUSERS } spelling;

static inline void write_tensors(const char *path, int only_part, spelling how, const char *prefix, change edit, const char *extra) {
    safetensors_writer w = {0};
    error err = {{0}};
    number *numbers = memory_new(model_count, sizeof *numbers);
    for (size_t i = 0; i < model_count; i++) {
        entry e = model[i];
        char name[256];
        if (only_part >= 0 && (int)e.part != only_part) continue;
        snprintf(name, sizeof name, "%s%s", prefix ? prefix : how == ORIGINAL ? PREFIXES[e.part] : "", how == ORIGINAL ? e.stored : e.name);
        if (how == DIFFUSERS && e.rank == 4 && checkpoint_vae_is_attention_matrix(e.name)) e.rank = 2;
        if (edit && !edit(&e, name)) continue;
        numbers[i] = (number){(float)(i + 1), e.type};
        if (!safetensors_writer_add_fill(&w, name, e.type, e.rank, e.dims, fill_number, &numbers[i], &err)) fail_msg("%s", err.text);
    }
    number zero = {0, DTYPE_F32};
    if (extra && !safetensors_writer_add_fill(&w, extra, DTYPE_F32, 1, (int64_t[]){4}, fill_number, &zero, &err)) fail_msg("%s", err.text);
    if (!safetensors_writer_write(&w, path, &err)) fail_msg("%s", err.text);
    safetensors_writer_free(&w);
    free(numbers);
}

static inline char *in_folder(const char *name) { return memory_format("%s/%s", folder, name); }

static inline void write_text(const char *root, const char *name, const char *text) {
    char path[PATH_SIZE];
    error err = {{0}};
    snprintf(path, sizeof path, "%.500s/%.400s", root, name);
    if (text && !file_write_all(path, text, strlen(text), &err)) fail_msg("%s", err.text);
}

typedef struct layout {
    const char *unet, *vae, *text, *scheduler, *index; /* JSON texts; NULL: no such file */
    const char *ending;                                /* of the weights' names; NULL: ".safetensors" */
    change edit;
    bool tokenizer;
} layout;

static const layout PLAIN = {.unet = "{\"attention_head_dim\": 8}", .vae = "{}", .text = "{\"num_attention_heads\": 1}"};

static inline void write_folder(const char *root, layout l) {
    static const char *const parts[] = {"unet", "vae", "text_encoder"}, *const names[] = {"diffusion_pytorch_model",
                                                                                          "diffusion_pytorch_model", "model"};
    const char *const configs[] = {l.unet, l.vae, l.text};
    char path[PATH_SIZE];
    mkdir(root, 0700);
    for (int p = 0; p < 3; p++) {
        snprintf(path, sizeof path, "%s/%s", root, parts[p]);
        mkdir(path, 0700);
        snprintf(path, sizeof path, "%s/%s/%s%s", root, parts[p], names[p], l.ending ? l.ending : ".safetensors");
        write_tensors(path, p, DIFFUSERS, "", l.edit, NULL);
        snprintf(path, sizeof path, "%s/config.json", parts[p]);
        write_text(root, path, configs[p]);
    }
    snprintf(path, sizeof path, "%s/scheduler", root);
    mkdir(path, 0700);
    write_text(root, "scheduler/scheduler_config.json", l.scheduler);
    write_text(root, "model_index.json", l.index);
    snprintf(path, sizeof path, "%s/tokenizer", root);
    if (l.tokenizer) {
        mkdir(path, 0700);
        write_text(root, "tokenizer/vocab.json", "{}");
        write_text(root, "tokenizer/merges.txt", "#version: 0.2\n");
    }
}

/* ---- Changes that several tests make ---- */

static inline bool no_vae(entry *e, char *name) { return (void)name, e->part != CHECKPOINT_VAE; }

static inline bool no_encoder(entry *e, char *name) { return (void)name, strncmp(e->name, "encoder.", 8) != 0; }

static inline bool set_dim(entry *e, checkpoint_part part, const char *tail, int dim, int size) {
    size_t n = strlen(e->name), m = strlen(tail);
    if (e->part == part && n >= m && strcmp(e->name + n - m, tail) == 0) e->dims[dim] = size;
    return true;
}

static inline bool latents_16(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_VAE, "decoder.conv_in.weight", 1, 16); }

/* ---- Checking it ---- */

static inline void check_all(const checkpoint *c, unsigned parts) {
    size_t counts[CHECKPOINT_PARTS] = {0}, parameters[CHECKPOINT_PARTS] = {0};
    for (size_t i = 0; i < model_count; i++) {
        const entry *e = &model[i];
        if (!(parts >> e->part & 1)) continue;
        const checkpoint_tensor *t = checkpoint_find(c, e->part, e->name);
        if (!t) fail_msg("%s %s is missing", checkpoint_part_name(e->part), e->name);
        float value, expected = (float)(i + 1);
        uint8_t rounded[4];
        dtype_to_f32(&value, t->data, t->type, 1);
        dtype_from_f32(rounded, t->type, &expected, 1);
        dtype_to_f32(&expected, rounded, t->type, 1);
        if (value != expected) fail_msg("%s holds tensor %g, not %zu", e->name, (double)value, i + 1);
        bool matrix = e->part == CHECKPOINT_VAE && checkpoint_vae_is_attention_matrix(e->name);
        assert_int_equal(t->rank, matrix ? 2 : e->rank);
        for (int d = 0; d < t->rank; d++) assert_int_equal(t->dims[d], e->dims[d]);
        assert_int_equal((uintptr_t)t->data % dtype_size(t->type), 0);
        counts[e->part]++;
        parameters[e->part] += t->elements;
    }
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        if (!(parts >> p & 1)) continue;
        assert_int_equal(c->parts[p].count, counts[p]);
        assert_int_equal(c->parts[p].parameters, parameters[p]);
    }
}

static inline void open_and_check(const char *path, const char *vae, unsigned parts) {
    checkpoint c;
    error err = {{0}};
    if (!checkpoint_open(&c, path, vae, &err)) fail_msg("%s", err.text);
    check_all(&c, parts);
    checkpoint_close(&c);
}

static inline void refused(const char *label, const char *path, const char *vae, const char *expect) {
    checkpoint c;
    error err = {{0}};
    bool opened = checkpoint_open(&c, path, vae, &err);
    bool named = strstr(err.text, expect) && (strstr(err.text, path) || (vae && strstr(err.text, vae)));
    if (opened || !named) fail_msg("%s: expected \"%s\", %s", label, expect, opened ? "was accepted" : err.text);
    assert_null(c.files);
}

#endif
