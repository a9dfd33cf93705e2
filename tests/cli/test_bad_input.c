/* Bad input, as users meet it: the built program is run in a folder full of broken files. Each case must end within seconds with exit
   status 1 or 2 and one short message that names the culprit; nothing half-written may lie about afterwards, nothing old may be changed. */
#include "base/file.h"
#include "base/memory.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_SECONDS = 60, MOST_LINES = 6 };

#define TRAIN "train --data photos --output new.safetensors --resolution 64 --steps 1 --device cpu --cache-dir cache "
#define TRAIN_GOOD TRAIN "--model good.safetensors "
#define TRAIN_ON "train --model good.safetensors --output new.safetensors --resolution 64 --steps 1 --device cpu --cache-dir cache --data "
#define TRAIN_TO "train --model good.safetensors --data photos --resolution 64 --steps 1 --device cpu --cache-dir cache --output "
#define DRAW "generate --prompt x --output new.png --width 64 --height 64 --steps 1 --device cpu --model "
#define DRAW_GOOD DRAW "good.safetensors "
#define PROBE "probe unet --model good.safetensors --output new.safetensors --device cpu --input "

static char *folder;

typedef struct bad_case {
    const char *arguments;
    const char *says; /* part of the message */
    int status;
    long size_limit; /* of files written, in bytes; 0: none */
    bool as_nobody;  /* without root's rights */
} bad_case;

/* ---- what must hold after every case ---- */

/* Names of all files in the folder and its subfolders, with their sizes: what must be the same afterwards. */
static void list_files(const char *path, char **text) {
    DIR *dir = opendir(path);
    if (!dir) return;
    struct dirent *entry;
    size_t count = 0;
    char **names = NULL;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.') continue;
        names = memory_grow(names, count + 1, sizeof *names);
        names[count++] = memory_string(entry->d_name);
    }
    closedir(dir);
    for (size_t i = 0; i < count; i++)
        for (size_t k = i + 1; k < count; k++)
            if (strcmp(names[i], names[k]) > 0) {
                char *swap = names[i];
                names[i] = names[k];
                names[k] = swap;
            }
    for (size_t i = 0; i < count; i++) {
        char *full = memory_format("%s/%s", path, names[i]);
        struct stat info = {0};
        lstat(full, &info);
        char *longer = memory_format("%s%s %lld\n", *text, full, S_ISDIR(info.st_mode) ? 0LL : (long long)info.st_size);
        free(*text);
        *text = longer;
        if (S_ISDIR(info.st_mode) && strcmp(names[i], "cache")) list_files(full, text);
        free(full);
        free(names[i]);
    }
    free(names);
}

static char *snapshot(void) {
    char *text = memory_string("");
    list_files(".", &text);
    return text;
}

static int lines_of(const char *text) {
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

/* The message proper: lines of talk (the device, what was understood) may stand before it. */
static const char *message_of(const char *text) {
    const char *at = strstr(text, "vulora: ");
    while (at && !strncmp(at, "vulora: note:", 13)) at = strstr(at + 1, "vulora: ");
    return at ? at : "";
}

static int failures;

static void check_case(const bad_case *c) {
    char *before = snapshot();
    program_limits limits = {c->size_limit, c->as_nobody, MOST_SECONDS};
    program_result o = program_run(VULORA_PROGRAM, c->arguments, &limits);
    char *after = snapshot();
    const char *message = message_of(o.err), *wrong = NULL;
    if (o.status == PROGRAM_TOO_SLOW)
        wrong = "took too long";
    else if (o.status != c->status)
        wrong = "ended with another status";
    else if (!strstr(message, c->says))
        wrong = "does not say what it should";
    else if (lines_of(message) > MOST_LINES)
        wrong = "says too much";
    else if (strcmp(before, after))
        wrong = "left something behind, or changed something";
    else if (strstr(o.err, "runtime error") || strstr(o.err, "Sanitizer"))
        wrong = "tripped a sanitizer";
    if (wrong) {
        failures++;
        print_error("vulora %s\n  %s: status %d, expected %d and '%s'; it said:\n%s\n", c->arguments, wrong, o.status, c->status, c->says,
                    o.err);
        if (strcmp(before, after)) print_error("before:\n%s\nafter:\n%s\n", before, after);
    }
    free(before);
    free(after);
    program_result_free(&o);
}

static void check_all(const bad_case *cases, size_t count) {
    failures = 0;
    for (size_t i = 0; i < count; i++) check_case(&cases[i]);
    assert_int_equal(failures, 0);
}

#define CHECK_ALL(cases) check_all(cases, sizeof(cases) / sizeof *(cases))

/* ---- the broken files ---- */

static void write_bytes(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fwrite(data, 1, size, file) == size);
    assert_int_equal(fclose(file), 0);
}

static void write_text(const char *path, const char *text) { write_bytes(path, text, strlen(text)); }

/* A safetensors file with that header, and `data` zero bytes behind it. */
static void write_header(const char *path, const char *json, size_t data) {
    size_t length = strlen(json);
    uint8_t *bytes = memory_new(8 + length + data, 1);
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((uint64_t)length >> (8 * i));
    memcpy(bytes + 8, json, length);
    write_bytes(path, bytes, 8 + length + data);
    free(bytes);
}

/* A copy of `from` in which the text `old` of the header is `changed`, of the same length. */
static void write_changed(const char *path, const char *from, const char *old, const char *changed) {
    file_map map;
    assert_true(file_map_open(&map, from, NULL));
    uint8_t *copy = memory_new(map.size, 1);
    memcpy(copy, map.data, map.size);
    size_t length = strlen(old), header = (size_t)copy[0] | (size_t)copy[1] << 8 | (size_t)copy[2] << 16, found = 0;
    assert_int_equal(strlen(changed), length);
    for (size_t i = 8; i + length <= 8 + header; i++)
        if (!memcmp(copy + i, old, length)) {
            memcpy(copy + i, changed, length);
            found++;
        }
    assert_true(found >= 1);
    write_bytes(path, copy, map.size);
    free(copy);
    file_map_close(&map);
}

static void write_part(const char *path, const char *from, size_t size) {
    file_map map;
    assert_true(file_map_open(&map, from, NULL) && map.size >= size);
    write_bytes(path, map.data, size);
    file_map_close(&map);
}

static void make_models(void) {
    assert_true(tiny_model_write("good.safetensors", 1));
    write_bytes("empty.safetensors", "", 0);
    write_text("seven.safetensors", "1234567");
    write_text("text.safetensors", "This is not a model, but a text that somebody renamed.\n");
    write_bytes("pickle.safetensors", "PK\3\4\0\0\10\10\0\0\0\0\0\0\0\0\0\0archive/data.pkl", 34);
    write_part("short.safetensors", "good.safetensors", 1000000);
    write_part("header.safetensors", "good.safetensors", 5000);
    write_bytes("huge.safetensors", "\xff\xff\xff\xff\xff\xff\xff\x7f{\"a\":{}}", 16);
    write_bytes("none.safetensors", "\0\0\0\0\0\0\0\0", 8);
    write_header("notjson.safetensors", "{\"a\": [1, 2", 0);
    write_header("array.safetensors", "[1, 2, 3]", 0);
    write_header(
        "overlap.safetensors",
        "{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[4,12]}}",
        12);
    write_header("beyond.safetensors", "{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", 4);
    write_header("wrap.safetensors", "{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[18446744073709551612,4]}}", 8);
    write_header("backward.safetensors", "{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[8,0]}}", 8);
    write_header("negative.safetensors", "{\"a\":{\"dtype\":\"F16\",\"shape\":[-4],\"data_offsets\":[0,8]}}", 8);
    write_header("product.safetensors", "{\"a\":{\"dtype\":\"F16\",\"shape\":[4294967296,4294967296,4294967296],\"data_offsets\":[0,8]}}",
                 8);
    write_header("sizes.safetensors", "{\"a\":{\"dtype\":\"F16\",\"shape\":[5],\"data_offsets\":[0,8]}}", 8);
    write_header("dtype.safetensors", "{\"a\":{\"dtype\":\"F17\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8);
    write_header("noshape.safetensors", "{\"a\":{\"dtype\":\"F16\",\"data_offsets\":[0,8]}}", 8);
    write_changed("missing.safetensors", "good.safetensors", "model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.weighs");
    write_changed("shape.safetensors", "good.safetensors", "\"shape\":[32,4,3,3]", "\"shape\":[32,3,4,3]");
    write_header("sdxl.safetensors",
                 "{\"conditioner.embedders.1.model.ln_final.weight\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8);
    write_header("flux.safetensors",
                 "{\"double_blocks.0.img_attn.norm.key_norm.scale\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8);
    write_header("sd2.safetensors", "{\"cond_stage_model.model.ln_final.weight\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}",
                 8);
    assert_true(tiny_model_write_shape("inpaint.safetensors", 1, (tiny_model_shape){32, 32, 64, 1, DTYPE_F16, 9}));
    assert_int_equal(mkdir("nothing", 0755), 0);
}

/* The first weight of the file becomes a NaN. */
static void make_broken_model(void) {
    file_map map;
    assert_true(file_map_open(&map, "good.safetensors", NULL));
    uint8_t *copy = memory_new(map.size, 1);
    memcpy(copy, map.data, map.size);
    size_t header = (size_t)copy[0] | (size_t)copy[1] << 8 | (size_t)copy[2] << 16;
    copy[8 + header] = 0x01;
    copy[8 + header + 1] = 0x7e;
    write_bytes("nanmodel.safetensors", copy, map.size);
    free(copy);
    file_map_close(&map);
}

static void make_adapters(void) {
    assert_true(tiny_lora_write("lora.safetensors", 1, TINY_UNET_CHANNELS));
    assert_true(tiny_lora_write("wide.safetensors", 1, 40));
    write_changed("nowhere.safetensors", "lora.safetensors", "lora_unet_down_blocks_0", "lora_unet_down_blocks_9");
    write_changed("half.safetensors", "lora.safetensors", "to_q.lora_up.weight", "to_q.lora_no.weight");
    write_changed("xl.safetensors", "lora.safetensors", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
                  "lora_te2_text_model_encoder_layers_0_self_attn_q_proj_and_so_on_and_");
    write_part("cut.safetensors", "lora.safetensors", 2000);
    write_header("loha.safetensors",
                 "{\"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}", 8);
    file_map map;
    assert_true(file_map_open(&map, "lora.safetensors", NULL));
    uint8_t *copy = memory_new(map.size, 1);
    memcpy(copy, map.data, map.size);
    copy[map.size - 1] = 0x7e; /* the last fp16 number becomes a NaN */
    copy[map.size - 2] = 0x01;
    write_bytes("nan.safetensors", copy, map.size);
    free(copy);
    file_map_close(&map);
}

static void make_photos(const char *path, int width, int height, const char *caption, size_t caption_size) {
    char name[128];
    assert_int_equal(mkdir(path, 0755), 0);
    snprintf(name, sizeof name, "%s/a.png", path);
    if (width) assert_true(tiny_png_write(name, width, height, 1));
    snprintf(name, sizeof name, "%s/a.txt", path);
    if (caption) write_bytes(name, caption, caption_size);
}

static void make_pictures(void) {
    make_photos("photos", 96, 64, "a striped wall", 14);
    make_photos("onepixel", 1, 1, "a dot", 5);
    make_photos("ribbon", 20000, 1, "a ribbon", 8);
    make_photos("badtext", 96, 64, "a caf\xe9", 6);
    make_photos("nocaption", 96, 64, NULL, 0);
    make_photos("noimage", 0, 0, "a caption alone", 15);
    make_photos("corrupt", 96, 64, "a", 1);
    make_photos("halfimage", 96, 64, "a", 1);
    make_photos("renamed", 0, 0, "a", 1);
    make_photos("emptyimage", 0, 0, "a", 1);
    assert_int_equal(mkdir("emptyfolder", 0755), 0);
    file_map map;
    assert_true(file_map_open(&map, "photos/a.png", NULL));
    uint8_t *copy = memory_new(map.size, 1);
    memcpy(copy, map.data, map.size);
    memset(copy + 60, 0xa5, 40);
    write_bytes("corrupt/a.png", copy, map.size);
    write_bytes("halfimage/a.png", map.data, map.size / 2);
    free(copy);
    file_map_close(&map);
    write_text("renamed/a.png", "a text that is called a picture\n");
    write_bytes("emptyimage/a.jpg", "", 0);
}

static void make_tensors(void) {
    write_header("t_none.safetensors", "{\"other\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    write_header("t_rank.safetensors", "{\"sample\":{\"dtype\":\"F32\",\"shape\":[1,4,16],\"data_offsets\":[0,256]}}", 256);
    write_header("t_channels.safetensors", "{\"sample\":{\"dtype\":\"F32\",\"shape\":[1,3,4,4],\"data_offsets\":[0,192]}}", 192);
    write_header("t_width.safetensors",
                 "{\"sample\":{\"dtype\":\"F32\",\"shape\":[1,4,4,4],\"data_offsets\":[0,256]},\"timestep\":{\"dtype\":\"F32\",\"shape\":["
                 "1],\"data_offsets\":[256,260]},"
                 "\"encoder_hidden_states\":{\"dtype\":\"F32\",\"shape\":[1,77,63],\"data_offsets\":[260,19664]}}",
                 19664);
    write_header("t_batch.safetensors",
                 "{\"sample\":{\"dtype\":\"F32\",\"shape\":[2,4,4,4],\"data_offsets\":[0,512]},\"timestep\":{\"dtype\":\"F32\",\"shape\":["
                 "1],\"data_offsets\":[512,516]}}",
                 516);
    write_header("t_image.safetensors", "{\"image\":{\"dtype\":\"F32\",\"shape\":[1,3,12,8],\"data_offsets\":[0,1152]}}", 1152);
    write_header("t_zero.safetensors", "{\"sample\":{\"dtype\":\"F32\",\"shape\":[0,4,4,4],\"data_offsets\":[0,0]}}", 0);
    uint8_t ids[8 + 80 + 308];
    const char *json = "{\"input_ids\":{\"dtype\":\"I32\",\"shape\":[1,77],\"data_offsets\":[0,308]}}           ";
    memset(ids, 0x7f, sizeof ids);
    memset(ids, 0, 8);
    ids[0] = 80;
    memset(ids + 8, ' ', 80);
    memcpy(ids + 8, json, strlen(json) < 80 ? strlen(json) : 80);
    write_bytes("t_ids.safetensors", ids, sizeof ids);
    write_bytes("badprompts.txt", "a cat\na caf\xe9\n", 13);
    write_text("samples.txt", "# nothing but a comment\n\n");
    write_text("samples2.txt", "a cat --w 100\n");
    write_text("samples3.txt", "a cat --zz 100\n");
}

static int make_everything(void **state) {
    (void)state;
    folder = folder_enter("bad-input");
    if (!folder || mkdir("work", 0777) != 0 || chmod("work", 0777) != 0 || chdir("work") != 0) return -1;
    make_models();
    make_broken_model();
    make_adapters();
    make_pictures();
    make_tensors();
    write_text("keep.safetensors", "old");
    write_text("keep.png", "old");
    if (mkdir("cache", 0777) != 0 || mkdir("adir.safetensors", 0755) != 0 || mkdir("adir.png", 0755) != 0 || mkdir("readonly", 0555) != 0)
        return -1;
    write_text("locked.png", "old");
    return chmod("locked.png", 0444);
}

static int remove_everything(void **state) {
    (void)state;
    return folder_leave(folder);
}

/* ---- the cases ---- */

static void models(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {DRAW "absent.safetensors", "absent.safetensors", .status = 1},
        {DRAW "empty.safetensors", "empty.safetensors", .status = 1},
        {DRAW "seven.safetensors", "seven.safetensors", .status = 1},
        {DRAW "text.safetensors", "text.safetensors", .status = 1},
        {DRAW "pickle.safetensors", "pickle.safetensors", .status = 1},
        {DRAW "short.safetensors", "short.safetensors", .status = 1},
        {DRAW "header.safetensors", "header.safetensors", .status = 1},
        {DRAW "huge.safetensors", "huge.safetensors", .status = 1},
        {DRAW "none.safetensors", "none.safetensors", .status = 1},
        {DRAW "notjson.safetensors", "notjson.safetensors", .status = 1},
        {DRAW "array.safetensors", "array.safetensors", .status = 1},
        {DRAW "overlap.safetensors", "overlap", .status = 1},
        {DRAW "beyond.safetensors", "beyond.safetensors", .status = 1},
        {DRAW "wrap.safetensors", "wrap.safetensors", .status = 1},
        {DRAW "backward.safetensors", "backward.safetensors", .status = 1},
        {DRAW "negative.safetensors", "negative.safetensors", .status = 1},
        {DRAW "product.safetensors", "product.safetensors", .status = 1},
        {DRAW "sizes.safetensors", "sizes.safetensors", .status = 1},
        {DRAW "dtype.safetensors", "F17", .status = 1},
        {DRAW "noshape.safetensors", "noshape.safetensors", .status = 1},
        {DRAW "missing.safetensors", "missing.safetensors", .status = 1},
        {DRAW "shape.safetensors", "shape.safetensors", .status = 1},
        {DRAW "sdxl.safetensors", "Stable Diffusion XL", .status = 1},
        {DRAW "flux.safetensors", "Flux", .status = 1},
        {DRAW "sd2.safetensors", "Stable Diffusion 2", .status = 1},
        {DRAW "inpaint.safetensors", "inpainting", .status = 1},
        {DRAW "lora.safetensors", "lora.safetensors", .status = 1},
        {DRAW "nothing", "nothing", .status = 1},
        {DRAW "/dev/zero", "/dev/zero", .status = 1},
        {DRAW_GOOD "--vae absent.safetensors", "absent.safetensors", .status = 1},
        {DRAW_GOOD "--vae lora.safetensors", "lora.safetensors", .status = 1},
        {DRAW_GOOD "--tokenizer nothing", "nothing", .status = 1},
        {DRAW "nanmodel.safetensors", "not finite", .status = 1},
        {TRAIN "--model nanmodel.safetensors", "step 1", .status = 1},
        {TRAIN "--model short.safetensors", "short.safetensors", .status = 1},
        {TRAIN "--model photos/a.png", "photos/a.png", .status = 1},
    };
    CHECK_ALL(cases);
}

static void adapters(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {DRAW_GOOD "--lora absent.safetensors", "absent.safetensors", .status = 1},
        {DRAW_GOOD "--lora empty.safetensors", "empty.safetensors", .status = 1},
        {DRAW_GOOD "--lora cut.safetensors", "cut.safetensors", .status = 1},
        {DRAW_GOOD "--lora overlap.safetensors", "overlap", .status = 1},
        {DRAW_GOOD "--lora wide.safetensors", "another model size", .status = 1},
        {DRAW_GOOD "--lora nowhere.safetensors", "nowhere.safetensors", .status = 1},
        {DRAW_GOOD "--lora half.safetensors", "half.safetensors", .status = 1},
        {DRAW_GOOD "--lora xl.safetensors", "SDXL", .status = 1},
        {DRAW_GOOD "--lora nan.safetensors", "NaN", .status = 1},
        {DRAW_GOOD "--lora loha.safetensors", "has no hada_w1_b", .status = 1},
        {DRAW_GOOD "--lora good.safetensors", "not an adapter", .status = 1},
        {DRAW_GOOD "--lora lora.safetensors:heavy", "heavy", .status = 1},
        {DRAW_GOOD "--lora nothing", "nothing", .status = 1},
        {"inspect absent.safetensors", "absent.safetensors", .status = 1},
        {"inspect good.safetensors", "good.safetensors", .status = 1},
        {"inspect empty.safetensors", "empty.safetensors", .status = 1},
        {"inspect photos", "photos", .status = 1},
    };
    CHECK_ALL(cases);
}

static void pictures(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {TRAIN_ON "absent", "absent", .status = 1},           {TRAIN_ON "photos/a.png", "photos/a.png", .status = 1},
        {TRAIN_ON "emptyfolder", "emptyfolder", .status = 1}, {TRAIN_ON "noimage", "noimage", .status = 1},
        {TRAIN_ON "corrupt", "corrupt/a.png", .status = 1},   {TRAIN_ON "halfimage", "halfimage/a.png", .status = 1},
        {TRAIN_ON "renamed", "renamed/a.png", .status = 1},   {TRAIN_ON "emptyimage", "emptyimage/a.jpg", .status = 1},
        {TRAIN_ON "onepixel", "onepixel/a.png", .status = 1}, {TRAIN_ON "ribbon", "ribbon/a.png", .status = 1},
        {TRAIN_ON "badtext", "badtext/a.txt", .status = 1},   {TRAIN_ON "nocaption", "caption", .status = 1},
    };
    CHECK_ALL(cases);
}

static void usage(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {"trian", "did you mean train?", .status = 2},
        {"frobnicate", "unknown command", .status = 2},
        {"--data photos", "before the command", .status = 2},
        {"train", "--model is missing", .status = 2},
        {"train --model good.safetensors", "--data is missing", .status = 2},
        {"train --model good.safetensors --data photos", "--output is missing", .status = 2},
        {TRAIN_GOOD "--lern-rate 1", "did you mean --lr?", .status = 2},
        {TRAIN_GOOD "--lr fast", "--lr", .status = 2},
        {TRAIN_GOOD "--rank 0", "--rank", .status = 2},
        {TRAIN_GOOD "--rank", "--rank needs a value", .status = 2},
        {TRAIN_GOOD "--resolution 65", "--resolution", .status = 2},
        {TRAIN_GOOD "--epochs 3", "--epochs", .status = 2},
        {TRAIN_GOOD "--optimizer sgd", "--optimizer", .status = 2},
        {TRAIN_GOOD "--trace-tensors 3", "--trace DIR", .status = 2},
        {TRAIN_GOOD "--sample-every-n-steps 3", "--sample-prompts", .status = 2},
        {TRAIN_GOOD "--output other.txt", ".safetensors", .status = 2},
        {TRAIN_GOOD "--targets (", "--targets", .status = 1},
        {TRAIN_GOOD "--targets nosuchmodule", "--targets", .status = 1},
        {TRAIN_GOOD "--sample-prompts absent.txt", "absent.txt", .status = 1},
        {TRAIN_GOOD "--sample-prompts samples.txt", "samples.txt", .status = 1},
        {TRAIN_GOOD "--sample-prompts samples2.txt", "samples2.txt: line 1", .status = 1},
        {TRAIN_GOOD "--sample-prompts samples3.txt", "--zz", .status = 1},
        {TRAIN_GOOD "--resume", "--resume", .status = 1},
        {TRAIN_GOOD "--device teapot", "teapot", .status = 1},
        {TRAIN_GOOD "--precision fp16", "--precision", .status = 1},
        {"generate --model good.safetensors --output new.png", "--prompt is missing", .status = 2},
        {DRAW_GOOD "--sampler eular", "did you mean euler?", .status = 2},
        {DRAW_GOOD "--output new.jpg", ".png", .status = 2},
        {DRAW_GOOD "--width 63", "--width", .status = 2},
        {DRAW_GOOD "--cfg nan", "--cfg", .status = 2},
        {DRAW_GOOD "--prompt <lora:x:1>", "--lora-dir", .status = 1},
        {DRAW_GOOD "--prompt <lora:loro:1> --lora-dir .", "did you mean lora?", .status = 1},
        {DRAW_GOOD "--lora-dir absent", "absent", .status = 2},
        {DRAW_GOOD "--prompt caf\xe9", "prompt", .status = 1},
        {"bench --model good.safetensors --part unot", "did you mean unet?", .status = 2},
        {"inspect", "inspect needs FILE", .status = 2},
    };
    CHECK_ALL(cases);
}

static void tensors(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {"probe unit --model good.safetensors", "did you mean unet?", .status = 2},
        {"probe unet --model good.safetensors --output new.safetensors", "--input", .status = 2},
        {"probe train-grad --model good.safetensors --input t_none.safetensors --output new.safetensors", "--lora", .status = 2},
        {PROBE "absent.safetensors", "absent.safetensors", .status = 1},
        {PROBE "t_none.safetensors", "sample", .status = 1},
        {PROBE "t_rank.safetensors", "sample", .status = 1},
        {PROBE "t_channels.safetensors", "sample", .status = 1},
        {PROBE "t_zero.safetensors", "sample", .status = 1},
        {PROBE "t_batch.safetensors", "timestep", .status = 1},
        {PROBE "t_width.safetensors", "encoder_hidden_states", .status = 1},
        {"probe vae-encode --model good.safetensors --output new.safetensors --device cpu --input t_image.safetensors", "multiples of 8",
         .status = 1},
        {"probe text-encoder --model good.safetensors --output new.safetensors --device cpu --input t_ids.safetensors", "input_ids",
         .status = 1},
        {"probe tokenizer --input absent.txt", "absent.txt", .status = 1},
        {"probe tokenizer --input badprompts.txt", "line 2", .status = 1},
    };
    CHECK_ALL(cases);
}

static void places(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {TRAIN_TO "adir.safetensors", "folder", .status = 1},
        {TRAIN_TO "absent/new.safetensors", "absent", .status = 1},
        {TRAIN_TO "keep.png/new.safetensors", "keep.png", .status = 1},
        {TRAIN_TO "readonly/new.safetensors", "readonly", .status = 1, .as_nobody = true},
        {DRAW_GOOD "--output adir.png", "adir.png", .status = 1},
        {DRAW_GOOD "--output absent/new.png", "absent", .status = 1},
        {DRAW_GOOD "--output readonly/new.png", "readonly", .status = 1, .as_nobody = true},
        {DRAW_GOOD "--output locked.png", "locked.png", .status = 1, .as_nobody = true},
        {PROBE "t_none.safetensors --output adir.safetensors", "adir.safetensors", .status = 1},
        {TRAIN_GOOD "--trace keep.png", "keep.png", .status = 1},
        {TRAIN_GOOD "--cache-dir keep.png", "keep.png", .status = 1},
        /* A disk that fills up while the result is written: here the limit on a file's size. */
        {TRAIN_TO "keep.safetensors", "keep", .status = 1, .size_limit = 100000},
        {DRAW_GOOD "--output keep.png", "keep.png", .status = 1, .size_limit = 1000},
        {DRAW_GOOD "", "new.png", .status = 1, .size_limit = 1000},
    };
    CHECK_ALL(cases);
}

/* The same on a file system of 64 KiB, where root may make one. */
static void full_disk(void **state) {
    (void)state;
    assert_int_equal(mkdir("full", 0777), 0);
    if (mount("none", "full", "tmpfs", 0, "size=65536") != 0) {
        rmdir("full");
        skip();
    }
    static const bad_case cases[] = {
        {TRAIN_TO "full/keep.safetensors", "full/keep", .status = 1},
        {DRAW_GOOD "--width 256 --height 256 --output full/keep.png", "full/keep.png", .status = 1},
    };
    write_text("full/keep.safetensors", "old");
    write_text("full/keep.png", "old");
    failures = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case(&cases[i]);
    umount("full");
    rmdir("full");
    assert_int_equal(failures, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models),  cmocka_unit_test(adapters), cmocka_unit_test(pictures),  cmocka_unit_test(usage),
        cmocka_unit_test(tensors), cmocka_unit_test(places),   cmocka_unit_test(full_disk),
    };
    if (!*VULORA_PROGRAM) {
        fputs("the program is not built\n", stderr);
        return 1;
    }
    return cmocka_run_group_tests(tests, make_everything, remove_everything);
}
