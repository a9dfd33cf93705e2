/* `vulora convert` and `vulora merge` as a user runs them: what comes out does the same, and what cannot be is refused with the way out. */
#include "base/file.h"
#include "base/memory.h"
#include "formats/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "tests/cli/probe_input.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *folder;

static void run_to(int status, const char *says, const char *arguments) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    if (r.status != status) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
    if (says && !strstr(r.err, says)) fail_msg("vulora %s: \"%s\" does not say \"%s\"", arguments, r.err, says);
    assert_string_equal(r.out, "");
    program_result_free(&r);
}

/* The U-Net's output with these adapters, freed by the caller. */
static float *output_with(const char *adapters, size_t *count) {
    char *command =
        memory_format("probe unet --model model.safetensors --device cpu --precision fp32 --quiet --input in.safetensors --output "
                      "out.safetensors %s",
                      adapters);
    safetensors out;
    run_to(0, NULL, command);
    assert_true(safetensors_open(&out, "out.safetensors", NULL));
    const safetensors_tensor *t = safetensors_find(&out, "noise_pred");
    float *values = safetensors_read_f32(&out, t, NULL);
    *count = t->elements;
    safetensors_close(&out);
    free(command);
    return values;
}

static void same_output(const char *a, const char *b) {
    size_t n, bare_n;
    float *x = output_with(a, &n), *y = output_with(b, &n), *bare = output_with("", &bare_n);
    double off = 0, size = 0, effect = 0;
    for (size_t i = 0; i < n; i++) {
        off += pow((double)x[i] - (double)y[i], 2);
        effect += pow((double)bare[i] - (double)y[i], 2);
        size += pow((double)y[i], 2);
    }
    if (!(sqrt(off / size) <= 1e-5) || !(sqrt(effect / size) > 1e-3))
        fail_msg("%s: %g off, effect %g", a, sqrt(off / size), sqrt(effect / size));
    free(x);
    free(y);
    free(bare);
}

static void spellings_do_the_same(void **state) {
    (void)state;
    run_to(0, "LoRA", "convert a.safetensors --output d.safetensors --format diffusers");
    same_output("--lora d.safetensors", "--lora a.safetensors");
    run_to(0, "LoRA", "convert d.safetensors --output folder --format peft");
    same_output("--lora folder", "--lora a.safetensors");
    run_to(0, "full difference", "convert folder/ --output f.safetensors --kind full --model model.safetensors");
    same_output("--lora f.safetensors", "--lora a.safetensors");
    run_to(0, "LoRA", "convert f.safetensors --output r.safetensors --kind lora --rank 4 --dtype fp32");
    same_output("--lora r.safetensors", "--lora a.safetensors");
}

static void sums_do_what_the_stack_does(void **state) {
    (void)state;
    run_to(0, "LoRA", "merge a.safetensors:0.7 b.safetensors:-0.4 --output m.safetensors");
    same_output("--lora m.safetensors", "--lora a.safetensors:0.7 --lora b.safetensors:-0.4");
    run_to(0, "full difference", "merge a.safetensors b.safetensors:0.5 --kind full --output m.safetensors");
    same_output("--lora m.safetensors", "--lora a.safetensors --lora b.safetensors:0.5");
    run_to(0, "is missing is", "merge a.safetensors b.safetensors --rank 3 --output m.safetensors");
    run_to(0, "rank 3 of 8", "merge a.safetensors b.safetensors --rank 3 --output m.safetensors --verbose");
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    folder_text(folder, "kept.safetensors", "what stood here");
    run_to(2, "--output is missing", "convert a.safetensors");
    run_to(2, "with --format peft", "convert a.safetensors --output x.safetensors --format peft");
    run_to(2, "full difference has none", "convert a.safetensors --output x.safetensors --kind full --rank 4");
    run_to(2, "--dynamic-param is missing", "convert a.safetensors --output x.safetensors --dynamic sv_fro");
    run_to(2, "--cut-rank stands alone", "convert a.safetensors --output x.safetensors --cut-rank 2 --rank 2");
    run_to(1, "nothere", "convert nothere.safetensors --output kept.safetensors");
    run_to(1, "missing", "convert a.safetensors --output missing/x.safetensors");
    run_to(1, "is a file", "convert a.safetensors --output in.json --format peft");
    run_to(1, "no weight", "merge a.safetensors:much --output kept.safetensors");
    run_to(1, "--kind lora --rank N", "convert f.safetensors --output kept.safetensors --format diffusers");
    size_t size;
    char *text = file_read_text("kept.safetensors", 100, &size, NULL);
    assert_string_equal(text, "what stood here");
    free(text);
}

static int set_up(void **state) {
    (void)state;
    folder = folder_enter("rewrite");
    if (!folder || !tiny_model_write("model.safetensors", 1)) return -1;
    folder_text(folder, "in.json", "{}");
    write_probe_input();
    return tiny_lora_write("a.safetensors", 1, TINY_UNET_CHANNELS) && tiny_lora_write("b.safetensors", 2, TINY_UNET_CHANNELS) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(spellings_do_the_same), cmocka_unit_test(sums_do_what_the_stack_does),
                                       cmocka_unit_test(what_cannot_be_is_refused)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
