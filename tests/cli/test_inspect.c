/* What `vulora inspect` says about files whose truth is known. */
#define _XOPEN_SOURCE 700 /* a terminal of our own */
#include "base/memory.h"
#include "formats/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <jansson.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define Q "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q."
#define K "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k."
#define CONV "lora_unet_down_blocks_0_resnets_0_conv1."
#define TEXT "lora_te_text_model_encoder_layers_0_mlp_fc1."

enum { MOST = 24 };

/* name NULL behind the last. `values` are repeated until the tensor is full. */
typedef struct piece {
    const char *name;
    int rank;
    int64_t dims[4];
    float values[9];
    int count; /* of values */
    dtype type;
} piece;

static char *folder;

static void write_file(const char *path, const piece *pieces, const char *const metadata[][2]) {
    safetensors_writer writer = {0};
    float *kept[MOST] = {0};
    error err;
    int n = 0;
    for (; pieces[n].name; n++) {
        const piece *p = &pieces[n];
        size_t elements = 1;
        for (int d = 0; d < p->rank; d++) elements *= (size_t)p->dims[d];
        kept[n] = memory_new(elements, sizeof(float));
        for (size_t e = 0; e < elements; e++) kept[n][e] = p->values[e % (size_t)(p->count ? p->count : 1)];
        assert_true(
            safetensors_writer_add_f32(&writer, p->name, p->type == DTYPE_F16 ? DTYPE_F16 : DTYPE_F32, p->rank, p->dims, kept[n], &err));
    }
    for (int k = 0; metadata && metadata[k][0]; k++) safetensors_writer_metadata(&writer, metadata[k][0], metadata[k][1]);
    assert_true(safetensors_writer_write(&writer, path, &err));
    safetensors_writer_free(&writer);
    while (n--) free(kept[n]);
}

static json_t *inspect_status(const char *arguments, int status) {
    char *command = memory_format("inspect --json %s", arguments);
    program_result r = program_run(VULORA_PROGRAM, command, NULL);
    if (r.status != status) fail_msg("vulora %s: status %d: %s", command, r.status, r.err);
    json_t *root = json_loads(r.out, JSON_DISABLE_EOF_CHECK, NULL);
    if (!root) fail_msg("vulora %s: no JSON: %s", command, r.out);
    program_result_free(&r);
    free(command);
    return root;
}

static json_t *inspect(const char *path) { return inspect_status(path, 0); }

static json_t *inspect_pieces(const piece *pieces, const char *const metadata[][2]) {
    write_file("made.safetensors", pieces, metadata);
    return inspect("made.safetensors");
}

static const char *text_of(const json_t *root, const char *key) { return json_string_value(json_object_get(root, key)); }

/* How many problems (or notes) have all of the words, which are separated by '|'. */
static int count_with(const json_t *root, const char *list, const char *words) {
    size_t k;
    json_t *problem;
    int count = 0;
    json_array_foreach(json_object_get(root, list), k, problem) {
        char *copy = memory_string(words), *rest = NULL;
        bool all = true;
        for (char *word = strtok_r(copy, "|", &rest); word; word = strtok_r(NULL, "|", &rest))
            all = all && strstr(json_string_value(problem), word);
        count += all;
        free(copy);
    }
    return count;
}

static void expect_problem(const json_t *root, const char *words) {
    char *all = json_dumps(json_object_get(root, "problems"), 0);
    if (count_with(root, "problems", words) != 1) fail_msg("no problem says '%s': %s", words, all);
    free(all);
}

/* ---- norms ---- */

#define DIAGONAL {1, 0, 0, 1}, 4, DTYPE_F32
#define SCALAR(name, value) \
    { name, 0, {0}, {value}, 1, DTYPE_F32 }

static void norms_of_every_kind(void **state) {
    (void)state;
    static const struct {
        const char *kind;
        double norm, share; /* below 0: not to be told */
        piece pieces[8];
    } cases[] = {
        /* up [2, 1] down [1, 3], all 2 and 3, scale 1/2: six elements of 3 */
        {"lora",
         7.348469,
         -1,
         {{Q "lora_up.weight", 2, {2, 1}, {2}, 1, 0}, {Q "lora_down.weight", 2, {1, 3}, {3}, 1, 0}, SCALAR(Q "alpha", 0.5F)}},
        /* rank 2, up and down ones: elements of 2 in [3, 2 * 9] */
        {"lora",
         14.696938,
         -1,
         {{CONV "lora_up.weight", 4, {3, 2, 1, 1}, {1}, 1, 0}, {CONV "lora_down.weight", 4, {2, 2, 3, 3}, {1}, 1, 0}}},
        /* Tucker with one rank: a product of norms, sqrt 3 * 3 * sqrt 2 */
        {"lora",
         7.348469,
         -1,
         {{CONV "lora_up.weight", 4, {3, 1, 1, 1}, {1}, 1, 0},
          {CONV "lora_mid.weight", 4, {1, 1, 3, 3}, {1}, 1, 0},
          {CONV "lora_down.weight", 4, {1, 2, 1, 1}, {1}, 1, 0}}},
        /* (1 * 2) (3 * 4) = 24 in six elements, alpha = rank */
        {"loha",
         58.787754,
         -1,
         {{Q "hada_w1_a", 2, {2, 1}, {1}, 1, 0},
          {Q "hada_w1_b", 2, {1, 3}, {2}, 1, 0},
          {Q "hada_w2_a", 2, {2, 1}, {3}, 1, 0},
          {Q "hada_w2_b", 2, {1, 3}, {4}, 1, 0},
          SCALAR(Q "alpha", 1)}},
        /* Tucker: 1 in 2 * 3 * 9 elements */
        {"loha",
         7.348469,
         -1,
         {{CONV "hada_w1_a", 2, {1, 2}, {1}, 1, 0},
          {CONV "hada_w1_b", 2, {1, 3}, {1}, 1, 0},
          {CONV "hada_t1", 4, {1, 1, 3, 3}, {1}, 1, 0},
          {CONV "hada_w2_a", 2, {1, 2}, {1}, 1, 0},
          {CONV "hada_w2_b", 2, {1, 3}, {1}, 1, 0},
          {CONV "hada_t2", 4, {1, 1, 3, 3}, {1}, 1, 0}}},
        /* |W1| = 4, |W2| = 2 * 3 */
        {"lokr", 24, -1, {{Q "lokr_w1", 2, {2, 2}, {2}, 1, 0}, {Q "lokr_w2", 2, {3, 3}, {2}, 1, 0}}},
        /* |W1| = 2, W2 = ones [3, 1] times ones [1, 4], scale 2: 2 * 2 * sqrt 12 */
        {"lokr",
         13.856406,
         -1,
         {{Q "lokr_w1", 2, {2, 2}, {1}, 1, 0},
          {Q "lokr_w2_a", 2, {3, 1}, {1}, 1, 0},
          {Q "lokr_w2_b", 2, {1, 4}, {1}, 1, 0},
          SCALAR(Q "alpha", 2)}},
        {"full", 5, -1, {{Q "diff", 2, {1, 2}, {3, 4}, 2, 0}}},
        {"norm",
         5,
         -1,
         {{"lora_unet_down_blocks_0_resnets_0_norm1.w_norm", 1, {2}, {3, 4}, 2, 0},
          {"lora_unet_down_blocks_0_resnets_0_norm1.b_norm", 1, {2}, {1}, 1, 0}}},
        {"ia3", -1, 0.25, {{Q "weight", 1, {4}, {0.25F}, 1, 0}, SCALAR(Q "on_input", 0)}},
        /* One turn by 90 degrees: Q = [[0, -1], [1, 0]], R - I = [[-1, -1], [1, -1]] */
        {"oft", -1, 1.414214, {{Q "oft_blocks", 3, {1, 2, 2}, {0, -0.5F, 0.5F, 0}, 4, 0}, SCALAR(Q "alpha", 0)}},
        /* The same generator within a norm of 0.1 * 2: 2 sin(atan 0.1414) */
        {"oft", -1, 0.280056, {{Q "oft_blocks", 3, {1, 2, 2}, {0, -0.5F, 0.5F, 0}, 4, 0}, SCALAR(Q "alpha", 0.1F)}},
        /* Two stages of it */
        {"boft", -1, 2, {{Q "oft_blocks", 4, {2, 1, 2, 2}, {0, -0.5F, 0.5F, 0}, 4, 0}}},
        /* The older naming: W times [3, 3] of rank 1 and of norm 3, [2, 3] of ones */
        {"glora",
         2.449490,
         1.732051,
         {{Q "a1.weight", 2, {1, 3}, {1}, 1, 0},
          {Q "a2.weight", 2, {3, 1}, {1}, 1, 0},
          {Q "b1.weight", 2, {1, 3}, {1}, 1, 0},
          {Q "b2.weight", 2, {2, 1}, {1}, 1, 0},
          SCALAR(Q "alpha", 1)}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        json_t *root = inspect_pieces(cases[c].pieces, NULL);
        json_t *block = json_array_get(json_object_get(root, "norms"), 0);
        double norm = json_real_value(json_object_get(block, "norm")), share = json_real_value(json_object_get(block, "share_of_weight"));
        assert_string_equal(text_of(root, "kind"), cases[c].kind);
        assert_int_equal(json_array_size(json_object_get(root, "norms")), 1);
        assert_int_equal(json_is_real(json_object_get(block, "norm")), cases[c].norm >= 0);
        if (cases[c].norm >= 0 && fabs(norm - cases[c].norm) > 1e-5 * cases[c].norm)
            fail_msg("case %zu: norm %g, not %g", c, norm, cases[c].norm);
        if (cases[c].share >= 0 && fabs(share - cases[c].share) > 1e-5) fail_msg("case %zu: share %g, not %g", c, share, cases[c].share);
        json_decref(root);
    }
}

/* A multiple of the weight, and a turn by 90 degrees, change a known share of any weight. */
static void norms_in_a_model(void **state) {
    (void)state;
    static const struct {
        double share;
        piece pieces[3];
    } cases[] = {{0.25, {{Q "weight", 1, {TINY_UNET_CHANNELS}, {0.25F}, 1, 0}, SCALAR(Q "on_input", 0)}},
                 {1.414214, {{Q "oft_blocks", 3, {TINY_UNET_CHANNELS / 2, 2, 2}, {0, -0.5F, 0.5F, 0}, 4, 0}, SCALAR(Q "alpha", 0)}},
                 {-1, {{Q "lora_up.weight", 2, {7, 1}, {1}, 1, 0}, {Q "lora_down.weight", 2, {1, 3}, {1}, 1, 0}}}};
    assert_true(tiny_model_write("model.safetensors", 1));
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        write_file("made.safetensors", cases[c].pieces, NULL);
        json_t *root = inspect("--model model.safetensors made.safetensors");
        json_t *block = json_array_get(json_object_get(root, "norms"), 0);
        double share = json_real_value(json_object_get(block, "share_of_weight"));
        bool fits = cases[c].share > 0;
        assert_int_equal(json_is_true(json_object_get(root, "norms_measured")), fits);
        if (fits && fabs(share - cases[c].share) > 1e-3) fail_msg("case %zu: share %g, not %g", c, share, cases[c].share);
        if (fits) assert_true(json_real_value(json_object_get(block, "norm")) > 0);
        assert_int_equal(count_with(root, "problems", "does not fit the model"), !fits);
        json_decref(root);
    }
}

/* ---- what is wrong with modules ---- */

static void dead_broken_and_odd_modules(void **state) {
    (void)state;
    static const piece pieces[] = {{Q "lora_up.weight", 2, {2, 1}, {0}, 1, 0},
                                   {Q "lora_down.weight", 2, {1, 3}, {3}, 1, 0},
                                   {K "lora_up.weight", 2, {2, 1}, {NAN}, 1, 0},
                                   {K "lora_down.weight", 2, {1, 3}, {3}, 1, 0},
                                   {TEXT "lora_up.weight", 2, {2, 2}, {1}, 1, 0},
                                   {TEXT "lora_down.weight", 2, {3, 3}, {1}, 1, 0},
                                   {CONV "lora_up.weight", 2, {2, 1}, {1}, 1, 0},
                                   {CONV "lora_down.weight", 2, {1, 3}, {1}, 1, 0},
                                   {CONV "strange.weight", 2, {1, 3}, {1}, 1, 0},
                                   {"lora_unet_down_blocks_9_resnets_0_conv1.lora_up.weight", 2, {2, 1}, {1}, 1, 0},
                                   {"lora_unet_down_blocks_9_resnets_0_conv1.lora_down.weight", 2, {1, 3}, {1}, 1, 0},
                                   {"step_counter", 1, {1}, {1}, 1, 0},
                                   {0}};
    json_t *root = inspect_pieces(pieces, NULL);
    expect_problem(root, "attn1_to_q|exactly nothing");
    expect_problem(root, "attn1_to_k.lora_up.weight|NaN");
    expect_problem(root, "mlp_fc1|do not fit together");
    expect_problem(root, "strange.weight|not applied");
    expect_problem(root, "down_blocks_9|no such module");
    expect_problem(root, "step_counter|belongs to no module");
    assert_string_equal(json_string_value(json_array_get(json_object_get(root, "dead_modules"), 0)),
                        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q");
    assert_string_equal(json_string_value(json_array_get(json_object_get(root, "nonfinite_tensors"), 0)), K "lora_up.weight");
    json_decref(root);
}

static void modules_that_clip_skip_left_out_are_no_problem(void **state) {
    (void)state;
    static const piece pieces[] = {{"lora_te_text_model_encoder_layers_10_mlp_fc1.lora_up.weight", 2, {2, 1}, {1}, 1, 0},
                                   {"lora_te_text_model_encoder_layers_10_mlp_fc1.lora_down.weight", 2, {1, 2}, {1}, 1, 0},
                                   {"lora_te_text_model_encoder_layers_11_mlp_fc1.lora_up.weight", 2, {2, 1}, {0}, 1, 0},
                                   {"lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight", 2, {1, 2}, {1}, 1, 0},
                                   {0}};
    static const char *const metadata[][2] = {{"ss_clip_skip", "2"}, {0}};
    json_t *root = inspect_pieces(pieces, metadata);
    assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
    assert_int_equal(count_with(root, "notes", "layers_11_mlp_fc1|clip skip"), 1);
    json_decref(root);
}

static void one_module_under_two_names(void **state) {
    (void)state;
    static const piece pieces[] = {{Q "lora_up.weight", 2, {2, 1}, {1}, 1, 0},
                                   {Q "lora_down.weight", 2, {1, 3}, {3}, 1, 0},
                                   {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight", 2, {2, 1}, {1}, 1, 0},
                                   {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight", 2, {1, 3}, {3}, 1, 0},
                                   {0}};
    json_t *root = inspect_pieces(pieces, NULL);
    expect_problem(root, "input_blocks_1_1|down_blocks_0_attentions_0|lora_up.weight|two names");
    assert_int_equal(count_with(root, "problems", "two names"), 2);
    assert_true(json_is_false(json_object_get(json_object_get(root, "loads_in"), "webui")));
    json_decref(root);
}

static void mixed_types_keep_a_loha_from_webui(void **state) {
    (void)state;
    static const piece pieces[] = {{Q "hada_w1_a", 2, {2, 1}, {1}, 1, DTYPE_F16},
                                   {Q "hada_w1_b", 2, {1, 3}, {2}, 1, 0},
                                   {Q "hada_w2_a", 2, {2, 1}, {3}, 1, 0},
                                   {Q "hada_w2_b", 2, {1, 3}, {4}, 1, 0},
                                   SCALAR(Q "alpha", 1),
                                   {0}};
    json_t *root = inspect_pieces(pieces, NULL);
    assert_true(json_is_false(json_object_get(json_object_get(root, "loads_in"), "webui")));
    expect_problem(root, "attn1_to_q|different number types");
    json_decref(root);
}

/* ---- what is wrong with what a file says ---- */

static const piece SMALL[] = {{Q "lora_up.weight", 2, {2, 1}, {1}, 1, 0}, {Q "lora_down.weight", 2, {1, 3}, {3}, 1, 0}, {0}};

static const json_t *hash_of(const json_t *root, const char *name) { return json_object_get(json_object_get(root, "hashes"), name); }

static void hashes_are_checked(void **state) {
    (void)state;
    /* Under 1 MiB the legacy hash is that of nothing. */
    json_t *root = inspect_pieces(SMALL, NULL);
    char model[65], lycoris[67];
    snprintf(model, sizeof model, "%s", text_of(hash_of(root, "sshs_model_hash"), "computed"));
    snprintf(lycoris, sizeof lycoris, "0x%s", model); /* these tensors lie in the order of their names */
    assert_string_equal(text_of(hash_of(root, "sshs_legacy_hash"), "computed"), "e3b0c442");
    assert_string_equal(text_of(root, "sshs_model_hash"), model);
    assert_true(json_is_null(json_object_get(hash_of(root, "sshs_model_hash"), "true")));
    json_decref(root);
    static const char other[] = "0000000000000000000000000000000000000000000000000000000000000000";
    static const char foreign[] = "0x0000000000000000000000000000000000000000000000000000000000000000";
    const struct {
        const char *model, *legacy;
        int verdict; /* 1: true, 0: false, -1: cannot be told */
        const char *problem;
    } rows[] = {{model, "e3b0c442", 1, NULL},
                {lycoris, NULL, 1, NULL},
                {foreign, NULL, -1, NULL},
                {other, "e3b0c442", 0, "sshs_model_hash|do|not belong"},
                {model, "12345678", 1, "sshs_legacy_hash"}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const char *const metadata[][2] = {
            {"ss_v2", "False"}, {"sshs_model_hash", rows[k].model}, {rows[k].legacy ? "sshs_legacy_hash" : NULL, rows[k].legacy}, {0}};
        root = inspect_pieces(SMALL, metadata);
        const json_t *verdict = json_object_get(hash_of(root, "sshs_model_hash"), "true");
        assert_int_equal(json_is_true(verdict) ? 1 : json_is_false(verdict) ? 0 : -1, rows[k].verdict);
        assert_int_equal(json_array_size(json_object_get(root, "problems")), rows[k].problem != NULL);
        if (rows[k].problem) expect_problem(root, rows[k].problem);
        json_decref(root);
    }
}

static void metadata_that_breaks_pages_of_webui(void **state) {
    (void)state;
    static const char *const rows[][3] = {
        {"ss_tag_frequency", "[1]", "ss_tag_frequency|not a JSON object"},
        {"ss_tag_frequency", "{\"a\": 1}", "ss_tag_frequency|not built"},
        {"ss_tag_frequency", "{\"a\": {\"b\": 1}}", NULL},
        {"ss_bucket_info", "{\"buckets\": {\"0\": {\"resolution\": [512, 768], \"count\": 4}}}", NULL},
        {"ss_bucket_info", "{\"buckets\": {\"0\": {\"resolution\": 512, \"count\": 4}}}", "ss_bucket_info|not built"},
        {"ss_bucket_info", "null", NULL},
        {"ss_dataset_dirs", "None", "ss_dataset_dirs|not a JSON object"},
        {"ss_dataset_dirs", "{\"10_me\": {\"n_repeats\": 10, \"img_count\": 3}}", NULL},
        {"ss_training_started_at", "yesterday", "ss_training_started_at|not a number"},
        {"ss_training_started_at", "1700000000.5", NULL},
        {"ss_output_name", "{}", "ss_output_name|not text"},
        {"modelspec.architecture", "stable-diffusion-v1/lora", NULL},
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const char *const metadata[][2] = {{rows[k][0], rows[k][1]}, {0}};
        json_t *root = inspect_pieces(SMALL, metadata);
        assert_int_equal(json_array_size(json_object_get(root, "problems")), rows[k][2] != NULL);
        if (rows[k][2]) expect_problem(root, rows[k][2]);
        json_decref(root);
    }
}

static void files_of_one_name(void **state) {
    (void)state;
    static const char *const metadata[][2] = {{"ss_output_name", "me"}, {0}};
    write_file("a.safetensors", SMALL, metadata);
    write_file("b.safetensors", SMALL, metadata);
    json_t *root = inspect_status("a.safetensors b.safetensors", 0);
    expect_problem(root, "ss_output_name me|b.safetensors");
    json_decref(root);
    root = inspect_status("a.safetensors a.safetensors", 0);
    assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
    json_decref(root);
}

/* ---- what it changes ---- */

/* A LoRA of rank 1 on all of SD 1.5's modules whose row fits, of the table in the fixtures. */
static void write_set(const char *path, bool (*fits)(const char *name, const char *kind)) {
    safetensors_writer writer = {0};
    static const float one = 1;
    static const int64_t dims[] = {1, 1};
    char row[512], name[128], kind[32], key[160];
    error err;
    FILE *table = fopen(TEST_DATA "/sd15_modules.tsv", "r");
    assert_non_null(table);
    while (fgets(row, sizeof row, table)) {
        if (sscanf(row, "%127s %*s %*s %31s", name, kind) != 2 || strncmp(name, "lora_", 5) || !fits(name, kind)) continue;
        for (int half = 0; half < 2; half++) {
            snprintf(key, sizeof key, "%s.lora_%s.weight", name, half ? "up" : "down");
            assert_true(safetensors_writer_add_f32(&writer, key, DTYPE_F32, 2, dims, &one, &err));
        }
    }
    fclose(table);
    assert_true(safetensors_writer_write(&writer, path, &err));
    safetensors_writer_free(&writer);
}

static bool is_norm(const char *kind) { return strstr(kind, "norm") || strstr(kind, "Norm"); }
static bool in_attention(const char *name, const char *kind) {
    return !is_norm(kind) && (strstr(name, "_attn") || strstr(name, "self_attn"));
}
static bool in_transformers(const char *name, const char *kind) {
    return !is_norm(kind) && (strstr(name, "attentions") || strstr(name, "lora_te_"));
}
static bool in_resnets_too(const char *name, const char *kind) {
    return !is_norm(kind) && !strstr(name, "time_embedding") && !strstr(name, "unet_conv_");
}
static bool is_layer(const char *name, const char *kind) {
    (void)name;
    return !is_norm(kind);
}

static void sets_of_modules(void **state) {
    (void)state;
    static const struct {
        bool (*fits)(const char *name, const char *kind);
        const char *unet, *text;
        int modules;
    } rows[] = {{in_attention, "attn", "attn", 128 + 48},
                {in_transformers, "attn-mlp", "attn-mlp", 192 + 72},
                {in_resnets_too, "attn-mlp and resnets", "attn-mlp", 278 + 72},
                {is_layer, "full", "attn-mlp", 282 + 72}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        write_set("set.safetensors", rows[k].fits);
        json_t *root = inspect("set.safetensors"), *targets = json_object_get(root, "targets");
        assert_int_equal(json_integer_value(json_object_get(root, "modules")), rows[k].modules);
        assert_int_equal(json_integer_value(json_object_get(root, "parameters")), 2 * rows[k].modules);
        assert_string_equal(text_of(json_object_get(targets, "unet"), "set"), rows[k].unet);
        assert_string_equal(text_of(json_object_get(targets, "text_encoder"), "set"), rows[k].text);
        assert_true(json_is_true(json_object_get(json_object_get(targets, "unet"), "complete")));
        assert_true(json_is_true(json_object_get(json_object_get(targets, "text_encoder"), "complete")));
        assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
        json_decref(root);
    }
}

static void bundled_embeddings(void **state) {
    (void)state;
    static const piece pieces[] = {{Q "lora_up.weight", 2, {2, 1}, {1}, 1, 0},
                                   {Q "lora_down.weight", 2, {1, 3}, {3}, 1, 0},
                                   {"bundle_emb.ohwx.string_to_param.*", 2, {3, 768}, {1}, 1, 0},
                                   {"bundle_emb.sty.clip_l", 2, {1, 768}, {1}, 1, 0},
                                   {0}};
    json_t *root = inspect_pieces(pieces, NULL), *list = json_object_get(root, "embeddings"), *first = json_array_get(list, 0);
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(text_of(first, "token"), "ohwx");
    assert_int_equal(json_integer_value(json_object_get(first, "vectors")), 3);
    assert_int_equal(json_integer_value(json_object_get(first, "width")), 768);
    assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
    assert_true(json_is_true(json_object_get(json_object_get(root, "loads_in"), "webui")));
    assert_true(json_is_false(json_object_get(json_object_get(root, "loads_in"), "comfyui")));
    json_decref(root);
}

static void adapters_for_other_models(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight", "SDXL"},
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "SDXL"},
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "Flux"},
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"},
        {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", "Stable Diffusion 3"},
        {"lora_unet_blocks_0_cross_attn_k.lora_up.weight", "Wan"},
        {"diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "Wan"},
        {"transformer_blocks.0.img_mlp.net.2.lora_A.weight", "Qwen-Image"},
        {"diffusion_model.noise_refiner.0.attention.qkv.lora_A.weight", "Lumina"},
        {"lora_prior_unet_down_blocks_0_mapper.lora_up.weight", "Stable Cascade"},
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const piece pieces[] = {{rows[k][0], 2, {2, 1}, {1}, 1, 0}, {0}};
        write_file("other.safetensors", pieces, NULL);
        json_t *root = inspect_status("other.safetensors", 1);
        assert_true(json_is_null(json_object_get(root, "kind")));
        expect_problem(root, rows[k][1]);
        json_decref(root);
    }
    /* Only the width of the texts tells SD 2. */
    static const piece two[] = {
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight", 2, {320, 1}, {1}, 1, 0},
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", 2, {1, 1024}, {1}, 1, 0},
        {0}};
    json_t *root = inspect_pieces(two, NULL);
    expect_problem(root, "Stable Diffusion 2");
    json_decref(root);
}

/* ---- what it looks like ---- */

/* The program's output with a terminal of 80 columns for stdout. */
static char *run_on_terminal(const char *path) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
        dup2(slave, STDOUT_FILENO);
        setenv("LC_ALL", "C.UTF-8", 1);
        execl(VULORA_PROGRAM, "vulora", "inspect", path, (char *)NULL);
        _exit(127);
    }
    char *text = memory_new(1 << 16, 1);
    size_t used = 0;
    int status;
    for (ssize_t n; used + 1 < 1 << 16 && (n = read(master, text + used, (1 << 16) - 1 - used)) > 0;) used += (size_t)n;
    waitpid(child, &status, 0);
    close(master);
    assert_int_equal(status, 0);
    return text;
}

static void bars_on_a_terminal_figures_in_a_pipe(void **state) {
    (void)state;
    write_set("set.safetensors", in_transformers);
    char *screen = run_on_terminal("set.safetensors");
    assert_non_null(strstr(screen, "\u2588\u2588\u2588"));
    free(screen);
    program_result r = program_run(VULORA_PROGRAM, "inspect set.safetensors", NULL);
    assert_int_equal(r.status, 0);
    assert_null(strstr(r.out, "\u2588"));
    static const char *const lines[] = {"U-Net: attn-mlp, all 192",         "text encoder: attn-mlp, all 72",
                                        "IN01  down_blocks_0_attentions_0", "M00   mid_block_attentions_0",
                                        "OUT11 up_blocks_3_attentions_2",   "no problems found"};
    for (size_t k = 0; k < sizeof lines / sizeof *lines; k++)
        if (!strstr(r.out, lines[k])) fail_msg("the text lacks '%s': %s", lines[k], r.out);
    program_result_free(&r);
}

static void the_words_of_captions(void **state) {
    (void)state;
    static const char *const rows[][2] = {{"{\"a\": {\"dog\": 2, \"park\": 1}, \"b\": {\"dog\": 3}}", "captions    dog (5), park (1)\n"},
                                          {"{\"a\": {\"a photo of a zubi creature\": 2, \"the zubi at night\": 1}}",
                                           "captions    zubi (3), creature (2), photo (2), night (1), the (1)\n"}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const char *const metadata[][2] = {{"ss_tag_frequency", rows[k][0]}, {0}};
        write_file("made.safetensors", SMALL, metadata);
        program_result r = program_run(VULORA_PROGRAM, "inspect made.safetensors", NULL);
        if (!strstr(r.out, rows[k][1])) fail_msg("the text lacks '%s': %s", rows[k][1], r.out);
        program_result_free(&r);
    }
}

static int enter(void **state) {
    (void)state;
    folder = folder_enter("vulora_inspect");
    return folder ? 0 : -1;
}

static int leave(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_of_every_kind),
        cmocka_unit_test(norms_in_a_model),
        cmocka_unit_test(dead_broken_and_odd_modules),
        cmocka_unit_test(modules_that_clip_skip_left_out_are_no_problem),
        cmocka_unit_test(one_module_under_two_names),
        cmocka_unit_test(mixed_types_keep_a_loha_from_webui),
        cmocka_unit_test(hashes_are_checked),
        cmocka_unit_test(metadata_that_breaks_pages_of_webui),
        cmocka_unit_test(files_of_one_name),
        cmocka_unit_test(sets_of_modules),
        cmocka_unit_test(bundled_embeddings),
        cmocka_unit_test(adapters_for_other_models),
        cmocka_unit_test(bars_on_a_terminal_figures_in_a_pipe),
        cmocka_unit_test(the_words_of_captions),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
