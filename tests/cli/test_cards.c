/* What webui's cards show: metadata that `convert` edits, and the side files that `convert` and `train` write. */
#include "base/file.h"
#include "formats/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <jansson.h>

#include <string.h>

static char *folder;

static void run(const char *arguments) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    if (r.status != 0) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
    program_result_free(&r);
}

static void expect_side_text(const char *path, const char *key, const char *text) {
    json_t *object = json_load_file(path, 0, NULL);
    const char *found = json_string_value(json_object_get(object, key));
    if (!found || strcmp(found, text)) fail_msg("%s: \"%s\" is '%s', not '%s'", path, key, found ? found : "missing", text);
    json_decref(object);
}

static json_t *inspect(const char *arguments) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    json_t *root = r.status == 0 ? json_loads(r.out, 0, NULL) : NULL;
    if (!root) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
    program_result_free(&r);
    return root;
}

static void convert_edits_and_hashes_anew(void **state) {
    (void)state;
    run("convert me.safetensors --output out.safetensors --title Me --trigger 'me there' --set own=1 --set ss_v2=False --preview p.png "
        "--side-files --preferred-weight 0.75 --negative fog");
    json_t *root = inspect("inspect --json out.safetensors"), *metadata = json_object_get(root, "metadata");
    assert_string_equal(json_string_value(json_object_get(metadata, "modelspec.title")), "Me");
    assert_string_equal(json_string_value(json_object_get(metadata, "modelspec.trigger_phrase")), "me there");
    assert_string_equal(json_string_value(json_object_get(metadata, "own")), "1");
    assert_int_equal(strncmp(json_string_value(json_object_get(metadata, "modelspec.thumbnail")), "data:image/png;base64,", 22), 0);
    static const char *const hashes[] = {"sshs_model_hash", "sshs_legacy_hash"};
    for (int k = 0; k < 2; k++)
        assert_true(json_is_true(json_object_get(json_object_get(json_object_get(root, "hashes"), hashes[k]), "true")));
    assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
    json_decref(root);
    expect_side_text("out.json", "activation text", "me there");
    expect_side_text("out.json", "negative text", "fog");
    assert_true(file_exists("out.preview.png"));
    run("convert out.safetensors --output bare.safetensors --strip-metadata");
    safetensors st;
    assert_true(safetensors_open(&st, "bare.safetensors", NULL));
    assert_non_null(safetensors_metadata(&st, "ss_v2"));
    assert_null(safetensors_metadata(&st, "own"));
    assert_null(safetensors_metadata(&st, "modelspec.thumbnail"));
    safetensors_close(&st);
    assert_false(file_exists("bare.json"));
}

static void training_writes_them_too(void **state) {
    (void)state;
    run("train --model model.safetensors --data photos --resolution 64 --device cpu --cache-dir cache --output trained.safetensors --steps "
        "1 "
        "--rank 2 --trigger 'a zubi' --training-comment 'first try' --sample-prompts samples.txt --side-files");
    expect_side_text("trained.json", "activation text", "a zubi");
    expect_side_text("trained.json", "notes", "first try");
    expect_side_text("trained.json", "sd version", "SD1");
    assert_true(file_exists("trained.preview.png"));
}

static int enter(void **state) {
    (void)state;
    folder = folder_enter("vulora_cards");
    if (!folder || !tiny_model_write("model.safetensors", 1) || !tiny_lora_write("me.safetensors", 2, TINY_UNET_CHANNELS)) return -1;
    folder_text(folder, "photos/a.txt", "a zubi");
    folder_text(folder, "samples.txt", "a wall --s 1 --w 64 --h 64\n");
    return tiny_png_write("photos/a.png", 80, 64, 1) && tiny_png_write("p.png", 48, 48, 2) ? 0 : -1;
}

static int leave(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convert_edits_and_hashes_anew),
        cmocka_unit_test(training_writes_them_too),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
