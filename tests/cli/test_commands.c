/* The commands, run as a user runs them, on a model in miniature. */
#include "base/file.h"
#include "base/memory.h"
#include "formats/png_text.h"
#include "formats/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DRAW "generate --model model.safetensors --width 64 --height 64 --steps 2 --device cpu --prompt 'a wall' "
#define TRAIN "train --model model.safetensors --data photos --resolution 64 --device cpu --cache-dir cache "

static char *folder;

/* Runs, and expects that to go well. */
static program_result run(const char *arguments) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    if (r.status != 0) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
    return r;
}

static void run_quietly(const char *arguments) {
    program_result r = run(arguments);
    program_result_free(&r);
}

static bool same_files(const char *a, const char *b) {
    file_map x, y;
    assert_true(file_map_open(&x, a, NULL) && file_map_open(&y, b, NULL));
    bool same = x.size == y.size && !memcmp(x.data, y.data, x.size);
    file_map_close(&x);
    file_map_close(&y);
    return same;
}

static char *parameters_of(const char *path) {
    png_texts texts;
    assert_true(png_texts_read(&texts, path, NULL));
    assert_non_null(png_texts_find(&texts, "parameters"));
    char *copy = memory_string(png_texts_find(&texts, "parameters"));
    png_texts_free(&texts);
    return copy;
}

static void help_pages(void **state) {
    (void)state;
    static const char *const rows[][2] = {{"", "usage: vulora COMMAND"},     {"--help", "generate"},   {"help train", "--rank"},
                                          {"train --help", "--network_dim"}, {"--version", "vulora "}, {"generate -h", "--prompt"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        program_result r = run(rows[i][0]);
        assert_non_null(strstr(r.out, rows[i][1]));
        assert_string_equal(r.err, "");
        program_result_free(&r);
    }
}

static void devices(void **state) {
    (void)state;
    program_result r = run("devices --json");
    json_t *root = json_loads(r.out, 0, NULL), *first = json_array_get(json_object_get(root, "devices"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "spec")), "cpu");
    assert_true(json_integer_value(json_object_get(first, "memory_bytes")) > 0);
    assert_non_null(json_string_value(json_object_get(root, "auto")));
    json_decref(root);
    program_result_free(&r);
}

static void results_that_cannot_be_written(void **state) {
    (void)state;
    char command[512];
    snprintf(command, sizeof command, "%s devices > /dev/full 2> message", VULORA_PROGRAM);
    int status = system(command);
    assert_true(status != 0);
    size_t size;
    char *text = file_read_text("message", 4096, &size, NULL);
    assert_non_null(strstr(text, "standard output"));
    free(text);
}

static void pictures_carry_their_parameters(void **state) {
    (void)state;
    run_quietly(DRAW "--seed 7 --batch 2 --negative blurry --lora lora.safetensors:0.5 --output pair.png");
    char *first = parameters_of("pair.png"), *second = parameters_of("pair-2.png");
    assert_ptr_equal(strstr(first, "a wall <lora:lora:0.5>\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, "
                                   "CFG scale: 7, Seed: 7, Size: 64x64, Model hash: "),
                     first);
    assert_non_null(strstr(first, ", Model: model, "));
    assert_non_null(strstr(first, "Lora hashes: \"lora: "));
    assert_non_null(strstr(second, "Seed: 8,"));
    free(first);
    free(second);
    /* A picture of a batch is the picture of its own seed. */
    run_quietly(DRAW "--seed 8 --negative blurry --lora lora.safetensors:0.5 --output alone.png");
    assert_true(same_files("pair-2.png", "alone.png"));
}

static void adapters_by_option_and_by_prompt(void **state) {
    (void)state;
    run_quietly(DRAW "--seed 7 --output bare.png");
    run_quietly(DRAW "--seed 7 --lora lora.safetensors:0 --output zero.png");
    run_quietly(DRAW "--seed 7 --lora lora.safetensors:0.5 --output option.png");
    run_quietly("generate --model model.safetensors --width 64 --height 64 --steps 2 --device cpu --seed 7 --prompt 'a wall "
                "<lora:lora:0.5>' --lora-dir . --output prompt.png");
    char *by_option = parameters_of("option.png"), *by_prompt = parameters_of("prompt.png");
    assert_string_equal(by_option, by_prompt);
    free(by_option);
    free(by_prompt);
    assert_true(same_files("option.png", "prompt.png"));
    assert_false(same_files("bare.png", "option.png"));
}

static void every_sampler_draws(void **state) {
    (void)state;
    static const char *const samplers[] = {"ddim", "euler", "'Euler a'", "'DPM++ 2M Karras'"};
    for (size_t i = 0; i < sizeof samplers / sizeof *samplers; i++) {
        char *command = memory_format(DRAW "--quiet --seed 1 --sampler %s --schedule karras --output s%zu.png", samplers[i], i);
        program_result r = run(command);
        assert_string_equal(r.err, "");
        program_result_free(&r);
        free(command);
    }
    assert_false(same_files("s0.png", "s1.png"));
    assert_false(same_files("s1.png", "s2.png"));
    assert_false(same_files("s2.png", "s3.png"));
}

static void a_dry_run_reports_and_writes_nothing(void **state) {
    (void)state;
    program_result r = run(TRAIN "--output dry.safetensors --steps 3 --dry-run --quiet");
    static const char *const lines[] = {
        "images: 2", "captions: 2 from .txt", "trained at ", "adapter: rank 16, 192 modules", "training: 3 steps", "memory: ", "time: "};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(r.out, lines[i])) fail_msg("the report lacks '%s': %s", lines[i], r.out);
    assert_false(file_exists("dry.safetensors") || file_exists("dry.state.safetensors"));
    program_result_free(&r);
}

static void training_inspection_and_samples(void **state) {
    (void)state;
    run_quietly(TRAIN "--output out/me.safetensors --steps 2 --rank 4 --alpha 2 --text-encoder-lr 1e-5 --sample-prompts samples.txt "
                      "--save-every-n-steps 1 --trace trace --trace-tensors 1");
    assert_true(file_exists("out/me.safetensors") && file_exists("trace/trace.jsonl") && file_exists("trace/step-000001.safetensors") &&
                !file_exists("trace/step-000002.safetensors"));
    assert_true(file_exists("out/sample/me_000002_00_42.png") && file_exists("out/sample/me_000002_01_9.png"));
    char *sample = parameters_of("out/sample/me_000002_01_9.png");
    assert_ptr_equal(strstr(sample, "a wall\nNegative prompt: fog\nSteps: 1, Sampler: Euler,"), sample);
    free(sample);
    program_result r = run("inspect --json out/me.safetensors");
    json_t *root = json_loads(r.out, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(root, "file")), "out/me.safetensors");
    assert_string_equal(json_string_value(json_object_get(root, "kind")), "lora");
    assert_true(json_is_false(json_object_get(root, "dora")));
    assert_int_equal(json_integer_value(json_object_get(root, "modules")), 192 + 12);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "rank"), "4")), 204);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "alpha"), "2")), 204);
    assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
    static const char *const programs[] = {"webui", "comfyui", "diffusers", "sd.cpp"};
    for (size_t i = 0; i < 4; i++) assert_true(json_is_true(json_object_get(json_object_get(root, "loads_in"), programs[i])));
    json_decref(root);
    program_result_free(&r);
}

/* The recorded steps of all three models and of a training, as far as a program's exit status shows; the numbers are test_models' affair.
 */
static void training_and_a_picture_on_vulkan(void **state) {
    (void)state;
    const program_limits patient = {.seconds = 400};
    program_result list = run("devices --json");
    bool there = strstr(list.out, "llvmpipe") != NULL;
    program_result_free(&list);
    if (!there) skip();
    static const char *const commands[] = {
        "train --model model.safetensors --data photos --resolution 64 --cache-dir cache --output out/vulkan.safetensors "
        "--steps 1 --rank 4 --device llvmpipe",
        "generate --model model.safetensors --lora out/vulkan.safetensors --prompt wall --width 64 --height 64 "
        "--steps 1 --sampler euler --device llvmpipe --output out/vulkan.png"};
    for (size_t i = 0; i < 2; i++) {
        program_result r = program_run(VULORA_PROGRAM, commands[i], &patient);
        if (r.status != 0) fail_msg("vulora %s: status %d: %s", commands[i], r.status, r.err);
        program_result_free(&r);
    }
    assert_true(file_exists("out/vulkan.safetensors") && file_exists("out/vulkan.png"));
    program_result bench = program_run(
        VULORA_PROGRAM, "bench --model model.safetensors --part unet --resolution 64x64 --repeats 1 --device llvmpipe --json", &patient);
    json_t *root = json_loads(bench.out, 0, NULL);
    json_int_t dispatches = json_integer_value(json_object_get(root, "dispatches"));
    assert_true(dispatches > 100 && json_integer_value(json_object_get(root, "barriers")) < dispatches);
    assert_true(json_integer_value(json_object_get(root, "submissions")) > 0);
    json_decref(root);
    program_result_free(&bench);
}

static void probes_write_what_the_table_says(void **state) {
    (void)state;
    static const char *const names[] = {"alphas_cumprod", "timesteps", "sigmas"};
    static const int64_t sizes[] = {1000, 7, 8};
    safetensors file;
    run_quietly("probe schedule --sampler euler --steps 7 --output schedule.safetensors");
    assert_true(safetensors_open(&file, "schedule.safetensors", NULL));
    assert_int_equal(file.count, 3);
    for (size_t i = 0; i < 3; i++) {
        const safetensors_tensor *t = safetensors_find(&file, names[i]);
        assert_non_null(t);
        assert_true(t->type == DTYPE_F32 && t->rank == 1 && t->dims[0] == sizes[i]);
    }
    safetensors_close(&file);
    program_result r = run("probe tokenizer --input prompts.txt");
    assert_ptr_equal(strstr(r.out, "[49406, 320, 2368, 49407, 49407,"), r.out);
    int lines = 0, commas = 0;
    for (const char *c = r.out; *c; c++) {
        lines += *c == '\n';
        commas += *c == ',';
    }
    assert_int_equal(lines, 3);
    assert_int_equal(commas, 3 * 76);
    program_result_free(&r);
}

static void bench_reports(void **state) {
    (void)state;
    static const char *const parts[] = {"unet", "train-step", "text-encoder", "vae-encode", "vae-decode"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char *command = memory_format(
            "bench --model model.safetensors --part %s --resolution 64x72 --batch-size 2 --repeats 2 --device cpu --threads 1 --json",
            parts[i]);
        program_result r = run(command);
        json_t *root = json_loads(r.out, 0, NULL);
        assert_string_equal(json_string_value(json_object_get(root, "part")), parts[i]);
        assert_int_equal(json_array_size(json_object_get(root, "runs_s")), 2);
        assert_int_equal(json_integer_value(json_array_get(json_object_get(root, "resolution"), 1)), 72);
        assert_int_equal(json_integer_value(json_object_get(root, "threads")), 1);
        assert_int_equal(json_integer_value(json_object_get(root, "device_bytes")), 0);
        assert_null(json_object_get(root, "dispatches"));
        assert_true(json_real_value(json_object_get(root, "median_s")) > 0 &&
                    json_integer_value(json_object_get(root, "peak_rss_bytes")) > 1000000);
        json_decref(root);
        program_result_free(&r);
        free(command);
    }
}

static void write_text(const char *path, const char *text) { assert_true(file_write_all(path, text, strlen(text), NULL)); }

static int make_everything(void **state) {
    (void)state;
    folder = folder_enter("commands");
    if (!folder || mkdir("photos", 0755) != 0 || mkdir("out", 0755) != 0) return -1;
    if (!tiny_model_write("model.safetensors", 1) || !tiny_lora_write("lora.safetensors", 1, TINY_UNET_CHANNELS)) return -1;
    if (!tiny_png_write("photos/a.png", 64, 64, 1) || !tiny_png_write("photos/b.png", 96, 64, 2)) return -1;
    write_text("photos/a.txt", "a wall");
    write_text("photos/b.txt", "a wide wall\n");
    write_text("samples.txt", "# two\na wall --s 1 --ss ddim\n\na wall --n fog --s 1 --ss euler --d 9 --l 3 --w 64 --h 72\n");
    write_text("prompts.txt", "a cat\n\nlast line");
    return 0;
}

static int remove_everything(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_pages),
        cmocka_unit_test(devices),
        cmocka_unit_test(results_that_cannot_be_written),
        cmocka_unit_test(pictures_carry_their_parameters),
        cmocka_unit_test(adapters_by_option_and_by_prompt),
        cmocka_unit_test(every_sampler_draws),
        cmocka_unit_test(a_dry_run_reports_and_writes_nothing),
        cmocka_unit_test(training_inspection_and_samples),
        cmocka_unit_test(training_and_a_picture_on_vulkan),
        cmocka_unit_test(probes_write_what_the_table_says),
        cmocka_unit_test(bench_reports),
    };
    return cmocka_run_group_tests(tests, make_everything, remove_everything);
}
