/* vulora extract and vulora merge --into, run as a user runs them, on models in miniature. */
#include "base/file.h"
#include "base/memory.h"
#include "formats/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *folder;

static program_result run(const char *arguments) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    if (r.status != 0) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
    return r;
}

static void run_quietly(const char *arguments) {
    program_result r = run(arguments);
    program_result_free(&r);
}

/* The norm of the difference of two files' tensors, all of them; what they do not share fails. */
static double distance(const char *a, const char *b) {
    error err;
    safetensors x, y;
    double sum = 0;
    if (!safetensors_open(&x, a, &err) || !safetensors_open(&y, b, &err)) fail_msg("%s", err.text);
    assert_int_equal(x.count, y.count);
    for (size_t i = 0; i < x.count; i++) {
        const safetensors_tensor *t = &x.tensors[i], *u = safetensors_find(&y, t->name);
        assert_true(u && u->type == t->type && u->elements == t->elements);
        if (memcmp(t->data, u->data, t->bytes) == 0) continue;
        float *p = safetensors_read_f32(&x, t, NULL), *q = safetensors_read_f32(&y, u, NULL);
        for (size_t k = 0; k < t->elements; k++) sum += ((double)p[k] - (double)q[k]) * ((double)p[k] - (double)q[k]);
        free(p);
        free(q);
    }
    safetensors_close(&x);
    safetensors_close(&y);
    return sum;
}

/* Into a model and out of it again. */
static void there_and_back(void **state) {
    (void)state;
    run_quietly("merge style.safetensors:0.5 --into model.safetensors --output tuned.safetensors");
    double changed = distance("model.safetensors", "tuned.safetensors");
    assert_true(changed > 0);
    program_result r = run("extract --model model.safetensors --tuned tuned.safetensors --rank 4 --output out.safetensors --dtype fp32");
    assert_non_null(strstr(r.err, "4 modules (U-Net 4, text encoder 0)"));
    assert_non_null(strstr(r.err, "the text encoder does not differ"));
    program_result_free(&r);
    run_quietly("merge out.safetensors --into model.safetensors --output again.safetensors");
    assert_true(distance("tuned.safetensors", "again.safetensors") < 1e-6 * changed);
    /* the same from Python users' command lines */
    run_quietly("extract_lora_from_models.py --model_org model.safetensors --model_tuned tuned.safetensors --dim 4 --save_precision float "
                "--save_to other.safetensors");
    assert_true(distance("out.safetensors", "other.safetensors") == 0);
}

static void losses_are_named(void **state) {
    (void)state;
    program_result r = run("extract --model model.safetensors --tuned other-model.safetensors --rank 2 --output out.safetensors --verbose");
    assert_non_null(strstr(r.err, "not in the LoRA, which holds matrices only"));
    assert_non_null(strstr(r.err, "U-Net conv_in.bias: "));
    assert_non_null(strstr(r.err, "text encoder text_model.embeddings.token_embedding.weight: "));
    assert_non_null(strstr(r.err, "not in the LoRA: the VAE"));
    program_result_free(&r);
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        const char *arguments, *says;
        int status;
    } cases[] = {
        {"extract --tuned model.safetensors --rank 4 --output x.safetensors", "--model is missing", 2},
        {"extract --model model.safetensors --rank 4 --output x.safetensors", "--tuned is missing", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --output x.safetensors", "--rank is missing", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --rank 4", "--output is missing", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --rank 0 --output x.safetensors", "--rank", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --energy 1.5 --output x.safetensors", "--energy", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --rank 4 --output x.pt", ".safetensors", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --rank 4 --output other-model.safetensors", "would be lost", 2},
        {"extract --model model.safetensors --tuned other-model.safetensors --rank 4 --output none/x.safetensors", "none", 1},
        {"extract --model model.safetensors --tuned model.safetensors --rank 4 --output x.safetensors", "do not differ", 1},
        {"extract --model model.safetensors --tuned style.safetensors --rank 4 --output x.safetensors", "style.safetensors", 1},
        {"extract --model none.safetensors --tuned model.safetensors --rank 4 --output x.safetensors", "none.safetensors", 1},
        {"merge style.safetensors --into model.safetensors", "--output is missing", 2},
        {"merge style.safetensors --into model.safetensors --output model.safetensors", "would be lost", 2},
        {"merge style.safetensors --into model.safetensors --output x.safetensors --rank 4", "--rank is for adapters", 2},
        {"merge style.safetensors:0 --into model.safetensors --output x.safetensors", "change nothing", 1},
        {"merge none.safetensors --into model.safetensors --output x.safetensors", "none.safetensors", 1},
        {"merge style.safetensors --into none.safetensors --output x.safetensors", "none.safetensors", 1},
        {"merge style.safetensors --into style.safetensors --output x.safetensors", "style.safetensors", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        program_result r = program_run(VULORA_PROGRAM, cases[i].arguments, NULL);
        if (r.status != cases[i].status || !strstr(r.err, cases[i].says))
            fail_msg("vulora %s: status %d, says %s", cases[i].arguments, r.status, r.err);
        assert_false(file_exists("x.safetensors"));
        program_result_free(&r);
    }
}

static int open_place(void **state) {
    (void)state;
    folder = folder_enter("models");
    return folder && tiny_model_write_shape("model.safetensors", 1, (tiny_model_shape){32, 32, 64, 2, DTYPE_F32, 4}) &&
                   tiny_model_write("other-model.safetensors", 2) && tiny_lora_write("style.safetensors", 3, TINY_UNET_CHANNELS)
               ? 0
               : -1;
}

static int close_place(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(losses_are_named),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, open_place, close_place);
}
