/* Models in a single file: names, sizes, types, and files that are something else. */
#include "miniature_model.h"

/* ---- Names ---- */

static void names_of_the_table(void **state) {
    (void)state;
    size_t unet = 0;
    for (size_t i = 0; i < model_count; i++) {
        const entry *e = &model[i];
        char name[160];
        bool known = e->part == CHECKPOINT_UNET  ? checkpoint_unet_name(e->stored, name, sizeof name)
                     : e->part == CHECKPOINT_VAE ? checkpoint_vae_name(e->stored, 4, name, sizeof name)
                                                 : checkpoint_text_name(e->stored, name, sizeof name);
        if (!known || strcmp(name, e->name) != 0) fail_msg("%s became %s, not %s", e->stored, known ? name : "nothing", e->name);
        known = e->part == CHECKPOINT_UNET  ? checkpoint_unet_name(e->name, name, sizeof name)
                : e->part == CHECKPOINT_VAE ? checkpoint_vae_name(e->name, 0, name, sizeof name)
                                            : checkpoint_text_name(e->name, name, sizeof name);
        if (!known || strcmp(name, e->name) != 0) fail_msg("%s did not stay itself", e->name);
        unet += e->part == CHECKPOINT_UNET;
    }
    assert_int_equal(unet, 686);
}

static void names_unknown(void **state) {
    (void)state;
    static const char *const unet[] = {
        "input_blocks.0.1.weight",
        "input_blocks.x.0.op.weight",
        "input_blocks.3.1.op.weight",
        "input_blocks.1.0.in_layers.1.weight",
        "input_blocks.1.2.weight",
        "middle_block.3.in_layers.0.bias",
        "output_blocks.1.0",
        "label_emb.0.0.weight",
        "input_blocks",
        "",
        "out.1.weight",
        "input_blocks.99999999999.0.op.weight",
    };
    char name[64];
    for (size_t i = 0; i < LENGTH(unet); i++)
        if (checkpoint_unet_name(unet[i], name, sizeof name)) fail_msg("%s became %s", unet[i], name);
    assert_false(checkpoint_vae_name("decoder.up.4.block.0.conv1.weight", 4, name, sizeof name));
    assert_false(checkpoint_vae_name("loss.logvar", 4, name, sizeof name));
    assert_false(checkpoint_vae_name("encoder.down.0.attn.0.q.weight", 4, name, sizeof name));
    assert_false(checkpoint_text_name("embeddings.position_ids", name, sizeof name));
    assert_false(checkpoint_text_name("vision_model.encoder.layers.0.mlp.fc1.weight", name, sizeof name));
    assert_false(checkpoint_unet_name("input_blocks.1.0.in_layers.2.weight", name, 12)); /* no room */
}

/* ---- Single files ---- */

static bool without_text_model(entry *e, char *name) {
    if (e->part == CHECKPOINT_TEXT_ENCODER) snprintf(name, 256, "%s%s", PREFIXES[e->part], e->stored + strlen("text_model."));
    return true;
}

static bool as_f32(entry *e, char *name) {
    (void)name;
    e->type = DTYPE_F32;
    return true;
}

static bool as_bf16_and_f64(entry *e, char *name) {
    (void)name;
    e->type = e->part == CHECKPOINT_TEXT_ENCODER ? DTYPE_F64 : DTYPE_BF16;
    return true;
}

static void single_file(void **state) {
    (void)state;
    char *path = in_folder("single.safetensors");
    write_tensors(path, -1, ORIGINAL, NULL, NULL, "model_ema.decay");
    open_and_check(path, NULL, 7);
    checkpoint c;
    error err = {{0}};
    assert_true(checkpoint_open(&c, path, NULL, &err));
    assert_false(c.folder);
    assert_int_equal(c.copy_count, 0);
    assert_int_equal(c.config.unet_levels, 4);
    for (int i = 0; i < 4; i++) assert_int_equal(c.config.unet_heads[i], 8);
    assert_int_equal(c.config.text_heads, 1);
    assert_int_equal(c.config.vae_latent_channels, 4);
    assert_int_equal(c.config.text_activation, CHECKPOINT_QUICK_GELU);
    assert_true(c.config.vae_scaling_factor == 0.18215f);
    assert_null(c.config.tokenizer);
    assert_null(checkpoint_find(&c, CHECKPOINT_UNET, "absent.weight"));
    assert_null(checkpoint_need(&c, CHECKPOINT_VAE, "absent.weight", &err));
    assert_non_null(strstr(err.text, "the VAE has no tensor absent.weight"));
    assert_null(checkpoint_need_shape(&c, CHECKPOINT_UNET, "conv_in.weight", 4, (int64_t[]){-1, 5, 3, 3}, &err));
    assert_non_null(
        strstr(err.text, "model.diffusion_model.input_blocks.0.0.weight: has the shape [32, 4, 3, 3], needed is [-1, 5, 3, 3]"));
    checkpoint_close(&c);
    write_tensors(path, -1, ORIGINAL, NULL, without_text_model, "cond_stage_model.transformer.embeddings.position_ids");
    open_and_check(path, NULL, 7);
    write_tensors(path, -1, ORIGINAL, NULL, as_f32, "alphas_cumprod");
    open_and_check(path, NULL, 7);
    write_tensors(path, -1, ORIGINAL, NULL, as_bf16_and_f64, "first_stage_model.loss.logvar");
    open_and_check(path, NULL, 7);
    free(path);
}

/* Early writers did not pad the header: the data of such a file lies at odd places. */
static void unpadded_header(void **state) {
    (void)state;
    char *path = in_folder("padded.safetensors"), *odd = in_folder("odd.safetensors");
    write_tensors(path, -1, ORIGINAL, NULL, NULL, NULL);
    file_map map;
    error err = {{0}};
    assert_true(file_map_open(&map, path, &err));
    uint8_t *bytes = memory_new(map.size + 1, 1);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | map.data[i];
    memcpy(bytes, map.data, 8 + length);
    bytes[8 + length] = ' ';
    memcpy(bytes + 9 + length, map.data + 8 + length, map.size - 8 - length);
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((length + 1) >> 8 * i);
    assert_true(file_write_all(odd, bytes, map.size + 1, &err));
    file_map_close(&map);
    free(bytes);
    open_and_check(odd, NULL, 7);
    free(odd);
    free(path);
}

/* ---- What is not an SD 1.x model ---- */

static bool no_text(entry *e, char *name) { return (void)name, e->part != CHECKPOINT_TEXT_ENCODER; }
static bool no_conv_in(entry *e, char *name) { return (void)name, e->part != CHECKPOINT_UNET || strcmp(e->name, "conv_in.weight") != 0; }

static bool input_9(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "conv_in.weight", 1, 9); }
static bool input_8(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "conv_in.weight", 1, 8); }
static bool input_5(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "conv_in.weight", 1, 5); }
static bool context_1024(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "attn2.to_k.weight", 1, 1024); }
static bool context_2048(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "attn2.to_k.weight", 1, 2048); }
static bool context_128(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "attn2.to_k.weight", 1, 128); }
static bool channels_36(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "attn1.to_q.weight", 0, 36); }
static bool groups_30(entry *e, char *name) { return (void)name, set_dim(e, CHECKPOINT_UNET, "conv_norm_out.weight", 0, 30); }

static bool text_40(entry *e, char *name) {
    (void)name;
    set_dim(e, CHECKPOINT_UNET, "attn2.to_k.weight", 1, 40);
    return set_dim(e, CHECKPOINT_TEXT_ENCODER, "final_layer_norm.weight", 0, 40);
}

static bool one_as(entry *e, dtype type) {
    if (strcmp(e->name, "mid_block.resnets.0.conv1.weight") == 0) e->type = type;
    return true;
}
static bool float8(entry *e, char *name) { return (void)name, one_as(e, DTYPE_F8_E4M3); }
static bool int8(entry *e, char *name) { return (void)name, one_as(e, DTYPE_I8); }

static bool no_elements(entry *e, char *name) {
    (void)name;
    if (strcmp(e->name, "conv_out.weight") == 0 && e->part == CHECKPOINT_UNET) e->dims[0] = 0;
    return true;
}

static bool unet_alone(entry *e, char *name) {
    snprintf(name, 256, "%s", e->stored);
    return e->part == CHECKPOINT_UNET;
}
static bool unet_alone_diffusers(entry *e, char *name) {
    snprintf(name, 256, "%s", e->name);
    return e->part == CHECKPOINT_UNET;
}
static bool vae_alone(entry *e, char *name) { return (void)name, e->part == CHECKPOINT_VAE; }
static bool vae_bare(entry *e, char *name) {
    snprintf(name, 256, "%s", e->stored);
    return e->part == CHECKPOINT_VAE;
}
static bool text_bare(entry *e, char *name) {
    snprintf(name, 256, "%s", e->stored);
    return e->part == CHECKPOINT_TEXT_ENCODER;
}
static bool nothing(entry *e, char *name) { return (void)e, (void)name, false; }

static void foreign_files(void **state) {
    (void)state;
    static const struct {
        const char *label;
        change edit;
        const char *extra, *expect;
    } cases[] = {
        {"SD2", NULL, "cond_stage_model.model.ln_final.weight", "is a Stable Diffusion 2 model"},
        {"SD2 by width", context_1024, NULL, "is a Stable Diffusion 2 model"},
        {"SDXL", NULL, "conditioner.embedders.0.transformer.x", "is a Stable Diffusion XL model"},
        {"SDXL by label_emb", NULL, "model.diffusion_model.label_emb.0.0.weight", "is a Stable Diffusion XL model"},
        {"SDXL by width", context_2048, NULL, "is a Stable Diffusion XL model"},
        {"SD3", nothing, "model.diffusion_model.joint_blocks.0.x", "is a Stable Diffusion 3 model"},
        {"Flux", nothing, "model.diffusion_model.double_blocks.0.x", "is a Flux model"},
        {"Flux, bare", nothing, "double_blocks.0.img_attn.proj.weight", "is a Flux model"},
        {"inpainting", input_9, NULL, "is an inpainting model"},
        {"instruct-pix2pix", input_8, NULL, "is an instruct-pix2pix model"},
        {"5 channels", input_5, NULL, "takes 5 channels"},
        {"LoRA", nothing, "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "give it with --lora"},
        {"LoRA, PEFT", nothing, "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight", "give it with --lora"},
        {"LoRA, diffusers", nothing, "unet.mid_block.attentions.0.to_q.lora.down.weight", "give it with --lora"},
        {"LoHa", nothing, "lycoris_mid_block.hada_w1_a", "give it with --lora"},
        {"ControlNet", nothing, "control_model.input_blocks.0.0.weight", "is a ControlNet"},
        {"embedding", nothing, "emb_params", "is a textual inversion embedding"},
        {"motion module", nothing, "down_blocks.0.motion_modules.0.x", "is an AnimateDiff motion module"},
        {"v-prediction", NULL, "v_pred", "trained for v-prediction"},
        {"no VAE", no_vae, NULL, "has no VAE; add one with --vae"},
        {"no text encoder", no_text, NULL, "has no text encoder; give the full checkpoint"},
        {"half a VAE", no_encoder, NULL, "the VAE has no tensor encoder.conv_in.weight"},
        {"no conv_in", no_conv_in, NULL, "the U-Net has no tensor conv_in.weight"},
        {"U-Net alone", unet_alone, NULL, "is a U-Net alone, without VAE and text encoder"},
        {"U-Net alone, diffusers", unet_alone_diffusers, NULL, "is a U-Net alone, in diffusers' spelling"},
        {"VAE alone", vae_alone, NULL, "is a VAE alone; give it with --vae"},
        {"VAE alone, bare", vae_bare, NULL, "is a VAE alone; give it with --vae"},
        {"text encoder alone", text_bare, NULL, "is a text encoder alone"},
        {"something else", nothing, "layers.0.weight", "is not a Stable Diffusion 1.x model"},
        {"nothing", nothing, NULL, "has no tensors"},
        {"another text encoder", context_128, NULL, "takes text states of width 128"},
        {"another VAE", latents_16, NULL, "the VAE has 16 latent channels"},
        {"heads", channels_36, NULL, "36 channels cannot be split into 8 heads"},
        {"groups", groups_30, NULL, "30 channels cannot be split into 32 groups"},
        {"text width", text_40, NULL, "width 40 cannot be split into heads of width 64"},
        {"float8", float8, NULL, "middle_block.0.in_layers.2.weight: is stored as F8_E4M3"},
        {"int8", int8, NULL, "middle_block.0.in_layers.2.weight: is stored as I8"},
        {"empty weight", no_elements, NULL, "out.2.weight: no weight of this model has the shape [0, 32, 3, 3]"},
        {"twice", NULL, "cond_stage_model.transformer.final_layer_norm.weight", "are the same weight of the text encoder"},
    };
    char *path = in_folder("foreign.safetensors");
    for (size_t i = 0; i < LENGTH(cases); i++) {
        write_tensors(path, -1, ORIGINAL, NULL, cases[i].edit, cases[i].extra);
        refused(cases[i].label, path, NULL, cases[i].expect);
    }
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_the_table), cmocka_unit_test(names_unknown), cmocka_unit_test(single_file),
        cmocka_unit_test(unpadded_header),    cmocka_unit_test(foreign_files),
    };
    return cmocka_run_group_tests(tests, miniature_setup, miniature_teardown);
}
