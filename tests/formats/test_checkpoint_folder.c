/* Models in a diffusers folder of any generation, split weights, broken or foreign configurations, and --vae. */
#include "miniature_model.h"

#include <sys/stat.h>
#include <unistd.h>

/* ---- Diffusers folders ---- */

static bool transformers_5(entry *e, char *name) {
    if (e->part == CHECKPOINT_TEXT_ENCODER) snprintf(name, 256, "%s", e->name + strlen("text_model."));
    return true;
}

/* diffusers before 0.18 */
static bool old_attention(entry *e, char *name) {
    static const char *const names[][2] = {
        {".to_q.", ".query."}, {".to_k.", ".key."}, {".to_v.", ".value."}, {".to_out.0.", ".proj_attn."}};
    for (size_t i = 0; e->part == CHECKPOINT_VAE && i < LENGTH(names); i++) {
        const char *at = strstr(e->name, names[i][0]);
        if (at) snprintf(name, 256, "%.*s%s%s", (int)(at - e->name), e->name, names[i][1], at + strlen(names[i][0]));
    }
    return true;
}

static void folders(void **state) {
    (void)state;
    char *root = in_folder("plain");
    layout l = PLAIN;
    l.tokenizer = true;
    l.unet = "{\"attention_head_dim\": [1, 2, 4, 8], \"num_attention_heads\": null, \"norm_num_groups\": 16, \"norm_eps\": 1e-6, "
             "\"act_fn\": \"silu\"}";
    l.vae = "{\"scaling_factor\": 0.13025, \"norm_num_groups\": 8}";
    l.text = "{\"num_attention_heads\": 2, \"hidden_act\": \"gelu\", \"layer_norm_eps\": 1e-6}";
    l.scheduler = "{\"beta_start\": 0.0001, \"beta_end\": 0.02, \"beta_schedule\": \"linear\", \"num_train_timesteps\": 500, "
                  "\"prediction_type\": \"epsilon\"}";
    l.index = "{\"_class_name\": \"StableDiffusionPipeline\"}";
    write_folder(root, l);
    open_and_check(root, NULL, 7);
    checkpoint c;
    error err = {{0}};
    assert_true(checkpoint_open(&c, root, NULL, &err));
    assert_true(c.folder);
    for (int i = 0; i < 4; i++) assert_int_equal(c.config.unet_heads[i], 1 << i);
    assert_int_equal(c.config.unet_norm_groups, 16);
    assert_true(c.config.unet_norm_eps == 1e-6f);
    assert_int_equal(c.config.vae_norm_groups, 8);
    assert_true(c.config.vae_scaling_factor == 0.13025f);
    assert_int_equal(c.config.text_heads, 2);
    assert_int_equal(c.config.text_activation, CHECKPOINT_GELU);
    assert_true(c.config.text_norm_eps == 1e-6f);
    assert_true(c.config.beta_start == 0.0001 && c.config.beta_end == 0.02);
    assert_int_equal(c.config.beta_schedule, CHECKPOINT_LINEAR);
    assert_int_equal(c.config.train_timesteps, 500);
    assert_non_null(strstr(c.config.tokenizer, "/tokenizer"));
    checkpoint_close(&c);
    free(root);

    root = in_folder("newer");
    l = PLAIN;
    l.edit = transformers_5;
    l.unet = "{\"attention_head_dim\": 8, \"num_attention_heads\": 4}";
    l.text = "{\"text_config\": {\"num_attention_heads\": 4}}";
    write_folder(root, l);
    open_and_check(root, NULL, 7);
    assert_true(checkpoint_open(&c, root, NULL, &err));
    assert_int_equal(c.config.unet_heads[3], 4);
    assert_int_equal(c.config.text_heads, 4);
    assert_null(c.config.tokenizer);
    checkpoint_close(&c);
    free(root);

    root = in_folder("older");
    l = PLAIN;
    l.edit = old_attention;
    l.ending = ".fp16.safetensors";
    write_folder(root, l);
    open_and_check(root, NULL, 7);
    free(root);
}

static bool first_half(entry *e, char *name) { return (void)name, strlen(e->name) % 2 == 0; }
static bool second_half(entry *e, char *name) { return (void)name, strlen(e->name) % 2 != 0; }

/* The U-Net's weights in two files with an index. `wrong`: that many tensors are said to be in the other file. */
static void write_split(const char *root, int wrong) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/unet/diffusion_pytorch_model.safetensors", root);
    unlink(path);
    snprintf(path, sizeof path, "%s/unet/part-1.safetensors", root);
    write_tensors(path, CHECKPOINT_UNET, DIFFUSERS, "", first_half, NULL);
    snprintf(path, sizeof path, "%s/unet/part-2.safetensors", root);
    write_tensors(path, CHECKPOINT_UNET, DIFFUSERS, "", second_half, NULL);
    snprintf(path, sizeof path, "%s/unet/diffusion_pytorch_model.safetensors.index.json", root);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    const char *comma = "";
    for (size_t i = 0; i < model_count; i++) {
        if (model[i].part != CHECKPOINT_UNET) continue;
        int part = strlen(model[i].name) % 2 == 0 ? 1 : 2;
        if (wrong-- > 0) part = 3 - part;
        fprintf(file, "%s\n\"%s\": \"part-%d.safetensors\"", comma, model[i].name, part);
        comma = ",";
    }
    fprintf(file, "}}\n");
    assert_int_equal(fclose(file), 0);
}

static void split_weights(void **state) {
    (void)state;
    char *root = in_folder("split");
    write_folder(root, PLAIN);
    write_split(root, 0);
    open_and_check(root, NULL, 7);
    write_split(root, 1);
    refused("wrong file", root, NULL, "where the index says it is");
    static const struct {
        const char *index, *expect;
    } cases[] = {
        {"{\"weight_map\": {\"conv_in.weight\": \"part-9.safetensors\"}}", "No such file"},
        {"{\"weight_map\": {\"conv_in.weight\": \"../vae/diffusion_pytorch_model.safetensors\"}}", "names no file beside the index"},
        {"{\"weight_map\": {\"conv_in.weight\": \"/etc/passwd\"}}", "names no file beside the index"},
        {"{\"weight_map\": {\"conv_in.weight\": 7}}", "names no file beside the index"},
        {"{\"weight_map\": {}}", "has no weight_map"},
        {"{}", "has no weight_map"},
        {"[]", "has no weight_map"},
        {"{\"weight_map\": ", "line 1"},
    };
    for (size_t i = 0; i < LENGTH(cases); i++) {
        write_text(root, "unet/diffusion_pytorch_model.safetensors.index.json", cases[i].index);
        refused(cases[i].index, root, NULL, cases[i].expect);
    }
    free(root);
}

static void foreign_folders(void **state) {
    (void)state;
    static const struct {
        const char *file, *text, *expect;
    } cases[] = {
        {"model_index.json", "{\"_class_name\": \"StableDiffusionXLPipeline\"}", "is a Stable Diffusion XL model"},
        {"model_index.json", "{\"_class_name\": \"StableDiffusion3Pipeline\"}", "is a Stable Diffusion 3 model"},
        {"model_index.json", "{\"_class_name\": \"FluxPipeline\"}", "is a Flux model"},
        {"model_index.json", "{\"_class_name\": \"StableDiffusionInpaintPipeline\"}", "is an inpainting model"},
        {"model_index.json", "{\"_class_name\": \"StableDiffusionInstructPix2PixPipeline\"}", "is an instruct-pix2pix model"},
        {"unet/config.json", "{", "line 1"},
        {"unet/config.json", "[]", "is not a JSON object"},
        {"unet/config.json", "", "config.json"},
        {"unet/config.json", "{\"attention_head_dim\": [8, 8]}", "attention_head_dim has 2 values for 4 levels"},
        {"unet/config.json", "{\"attention_head_dim\": 0}", "whole numbers from 1"},
        {"unet/config.json", "{\"attention_head_dim\": 2.5}", "whole numbers from 1"},
        {"unet/config.json", "{\"attention_head_dim\": \"8\"}", "whole numbers from 1"},
        {"unet/config.json", "{\"attention_head_dim\": 5}", "32 channels cannot be split into 5 heads; see unet/config.json"},
        {"unet/config.json", "{\"norm_num_groups\": 7}", "channels cannot be split into 7 groups"},
        {"unet/config.json", "{\"norm_num_groups\": 1.5}", "norm_num_groups must be a whole number"},
        {"unet/config.json", "{\"norm_eps\": -1}", "norm_eps must be a number from 0 to 1"},
        {"unet/config.json", "{\"use_linear_projection\": true}", "use_linear_projection is true, which is not supported"},
        {"unet/config.json", "{\"layers_per_block\": [2, 2, 2, 1]}", "layers_per_block is [2,2,2,1]"},
        {"unet/config.json", "{\"addition_embed_type\": \"text_time\"}", "addition_embed_type is \"text_time\""},
        {"unet/config.json", "{\"flip_sin_to_cos\": false}", "flip_sin_to_cos is false"},
        {"vae/config.json", "{\"shift_factor\": 0.1}", "shift_factor is 0.1"},
        {"vae/config.json", "{\"scaling_factor\": \"big\"}", "scaling_factor must be a number"},
        {"text_encoder/config.json", "{\"num_attention_heads\": 7}", "width 64 cannot be split into heads; see text_encoder/config.json"},
        {"text_encoder/config.json", "{\"hidden_act\": \"relu\"}", "hidden_act is relu"},
        {"scheduler/scheduler_config.json", "{\"prediction_type\": \"v_prediction\"}", "the model predicts v_prediction"},
        {"scheduler/scheduler_config.json", "{\"beta_schedule\": \"squaredcos_cap_v2\"}", "beta_schedule is squaredcos_cap_v2"},
        {"scheduler/scheduler_config.json", "{\"rescale_betas_zero_snr\": true}", "rescale_betas_zero_snr is true"},
        {"scheduler/scheduler_config.json", "{\"trained_betas\": [0.1]}", "trained_betas is [0.1"},
        {"scheduler/scheduler_config.json", "{\"num_train_timesteps\": -4}", "num_train_timesteps must be a number"},
        {"text_encoder_2", "x", "is a Stable Diffusion XL model"},
    };
    char *root = in_folder("foreign");
    layout l = PLAIN;
    l.scheduler = "{}";
    l.index = "{}";
    write_folder(root, l);
    open_and_check(root, NULL, 7);
    for (size_t i = 0; i < LENGTH(cases); i++) {
        char path[PATH_SIZE];
        error err;
        snprintf(path, sizeof path, "%s/%s", root, cases[i].file);
        char *before = file_exists(path) ? file_read_text(path, 10000, NULL, &err) : NULL;
        write_text(root, cases[i].file, cases[i].text);
        refused(cases[i].text, root, NULL, cases[i].expect);
        if (before)
            write_text(root, cases[i].file, before);
        else
            unlink(path);
        free(before);
    }
    open_and_check(root, NULL, 7); /* all is as it was */
    free(root);
}

static void move(const char *root, const char *from, const char *to) {
    char a[PATH_SIZE], b[PATH_SIZE];
    snprintf(a, sizeof a, "%s/%s", root, from);
    snprintf(b, sizeof b, "%s/%s", root, to);
    assert_int_equal(rename(a, b), 0);
}

static void incomplete_folders(void **state) {
    (void)state;
    char *root = in_folder("incomplete"), *unet = in_folder("incomplete/unet"), *empty = in_folder("empty");
    write_folder(root, PLAIN);
    refused("a part", unet, NULL, "is one part of a diffusers model");
    move(root, "vae", "vae-away");
    refused("no VAE", root, NULL, "has no VAE; add one with --vae");
    move(root, "vae-away", "vae");
    move(root, "text_encoder", "text-away");
    refused("no text encoder", root, NULL, "has no text encoder");
    move(root, "text-away", "text_encoder");
    move(root, "unet/config.json", "unet/away.json");
    refused("no config.json", root, NULL, "unet/config.json: cannot open");
    move(root, "unet/away.json", "unet/config.json");
    move(root, "unet/diffusion_pytorch_model.safetensors", "unet/away");
    refused("no weights", root, NULL, "has no weights");
    write_text(root, "unet/diffusion_pytorch_model.bin", "x");
    refused("pickle", root, NULL, "is a PyTorch pickle");
    move(root, "vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors");
    refused("VAE as U-Net", root, NULL, "has no tensors of a U-Net in it");
    mkdir(empty, 0700);
    refused("empty", empty, NULL, "is not a diffusers model: it has no folder unet");
    free(root);
    free(unet);
    free(empty);
}

/* ---- --vae ---- */

static void replaced_vae(void **state) {
    (void)state;
    char *single = in_folder("base.safetensors"), *root = in_folder("vae-source"), *inner = in_folder("vae-source/vae");
    char *vae = in_folder("vae.safetensors");
    write_tensors(single, -1, ORIGINAL, NULL, no_vae, NULL);
    layout l = PLAIN;
    l.vae = "{\"scaling_factor\": 0.5}";
    write_folder(root, l);
    refused("without", single, NULL, "has no VAE");

    write_tensors(vae, CHECKPOINT_VAE, ORIGINAL, "", NULL, NULL); /* original names, bare */
    open_and_check(single, vae, 7);
    write_tensors(vae, CHECKPOINT_VAE, ORIGINAL, NULL, NULL, "loss.logvar"); /* with the prefix */
    open_and_check(single, vae, 7);
    write_tensors(vae, CHECKPOINT_VAE, DIFFUSERS, "", old_attention, NULL);
    open_and_check(single, vae, 7);
    write_tensors(vae, -1, ORIGINAL, NULL, NULL, NULL); /* a whole checkpoint */
    open_and_check(single, vae, 7);
    open_and_check(single, inner, 7); /* a VAE's folder */
    open_and_check(single, root, 7);  /* a whole diffusers model */
    open_and_check(root, vae, 7);

    checkpoint c;
    error err = {{0}};
    assert_true(checkpoint_open(&c, single, inner, &err));
    assert_true(c.config.vae_scaling_factor == 0.5f);
    assert_string_equal(c.parts[CHECKPOINT_VAE].path, inner);
    checkpoint_close(&c);
    assert_true(checkpoint_open(&c, root, vae, &err));
    assert_true(c.config.vae_scaling_factor == 0.18215f);
    checkpoint_close(&c);

    write_tensors(vae, CHECKPOINT_TEXT_ENCODER, ORIGINAL, NULL, NULL, NULL);
    refused("not a VAE", single, vae, "has no VAE in it");
    write_tensors(vae, CHECKPOINT_VAE, ORIGINAL, NULL, latents_16, NULL);
    refused("SD3's VAE", single, vae, "the VAE has 16 latent channels");
    write_tensors(vae, CHECKPOINT_VAE, ORIGINAL, NULL, no_encoder, NULL);
    refused("half a VAE", single, vae, "the VAE has no tensor encoder.conv_in.weight");
    refused("missing", single, "/nonexistent/vae.safetensors", "No such file");
    free(single);
    free(root);
    free(inner);
    free(vae);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders),         cmocka_unit_test(split_weights),
        cmocka_unit_test(foreign_folders), cmocka_unit_test(incomplete_folders),
        cmocka_unit_test(replaced_vae),
    };
    return cmocka_run_group_tests(tests, miniature_setup, miniature_teardown);
}
