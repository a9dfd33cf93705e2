/* The README's table of the kinds of adapters, cell by cell: each row is trained with the options it names, applied, and inspected. And
   stacks of kinds that read the weight as the ones below left it, against the model that they are merged into. */
#include "base/file.h"
#include "base/memory.h"
#include "formats/safetensors.h"
#include "lora/adapter.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "tests/cli/probe_input.h"
#include <jansson.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { COLUMNS = 9, LOADERS = 4 };
enum { KIND, OPTIONS, TRAIN, APPLY, EXPORT, FIRST_LOADER };

#define LEARN "train --model model.safetensors --data photos --resolution 64 --device cpu --cache-dir cache --steps 2 --rank 4 --quiet "

static const tiny_model_shape SHAPE = {TINY_UNET_CHANNELS, TINY_VAE_CHANNELS, TINY_TEXT_WIDTH, TINY_TEXT_LAYERS, DTYPE_F32, 0};

static char *folder;
static safetensors bare; /* the model's own output */

typedef struct row {
    char cell[COLUMNS][96];
} row;

/* The next line of the table behind `text`, which moves on; false: there is none. */
static bool next_row(const char **text, row *r) {
    for (const char *line = *text; *line; line = strchr(line, '\n') + 1) {
        const char *end = strchr(line, '\n');
        if (!end) return false;
        int cells = 0;
        for (const char *c = line; *c == '|' && cells < COLUMNS; cells++) {
            const char *next = strchr(c + 1, '|');
            if (!next || next > end) break;
            c++;
            while (*c == ' ') c++;
            size_t length = (size_t)(next - c);
            while (length && c[length - 1] == ' ') length--;
            if (length >= sizeof r->cell[0]) length = sizeof r->cell[0] - 1; /* of other tables */
            memcpy(r->cell[cells], c, length);
            r->cell[cells][length] = 0;
            c = next;
        }
        if (cells == COLUMNS && strncmp(r->cell[OPTIONS], "`--kind ", 8) == 0) {
            *text = end + 1;
            return true;
        }
    }
    return false;
}

static bool says_yes(const row *r, int column) {
    const char *text = r->cell[column];
    if (strcmp(text, "yes") && strcmp(text, "no")) fail_msg("README: %s: \"%s\" is neither yes nor no", r->cell[KIND], text);
    return strcmp(text, "yes") == 0;
}

static void check_cell(const row *r, int column, bool is, const char *name) {
    if (says_yes(r, column) != is) fail_msg("README: %s: %s says %s", r->cell[KIND], name, r->cell[column]);
}

static bool runs(const char *arguments, char **out) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    bool ok = r.status == 0;
    if (!ok) print_message("vulora %s: %s\n", arguments, r.err);
    if (out) *out = memory_string(r.out);
    program_result_free(&r);
    return ok;
}

static bool changes_the_output(const char *path) {
    char command[256];
    snprintf(command, sizeof command,
             "probe unet --model model.safetensors --device cpu --input in.safetensors --output out.safetensors --lora %s", path);
    if (!runs(command, NULL)) return false;
    safetensors out;
    assert_true(safetensors_open(&out, "out.safetensors", NULL));
    const safetensors_tensor *x = safetensors_find(&out, "noise_pred"), *y = safetensors_find(&bare, "noise_pred");
    bool changed = memcmp(x->data, y->data, x->elements * sizeof(float)) != 0;
    safetensors_close(&out);
    return changed;
}

/* What an adapter does is in the file that another spelling of it makes: read again, it gives the same output. */
static bool can_be_exported(const char *path) {
    char command[256];
    snprintf(command, sizeof command, "convert %s --kind full --model model.safetensors --output exported.safetensors", path);
    return runs(command, NULL) && changes_the_output("exported.safetensors");
}

static void check_loaders(const row *r, const char *path) {
    static const char *const names[LOADERS] = {"webui", "comfyui", "diffusers", "sd.cpp"};
    char command[256], *out;
    snprintf(command, sizeof command, "inspect --json %s", path);
    assert_true(runs(command, &out));
    json_t *root = json_loads(out, 0, NULL), *loads = json_object_get(root, "loads_in");
    for (int i = 0; i < LOADERS; i++) {
        json_t *value = json_object_get(loads, names[i]);
        assert_true(json_is_boolean(value));
        check_cell(r, FIRST_LOADER + i, json_is_true(value), names[i]);
    }
    json_decref(root);
    free(out);
}

static void check_row(const row *r) {
    char options[96], command[512];
    snprintf(options, sizeof options, "%.*s", (int)strcspn(r->cell[OPTIONS] + 1, "`"), r->cell[OPTIONS] + 1);
    snprintf(command, sizeof command, LEARN "--lr 0.01 --output adapter.safetensors %s", options);
    check_cell(r, TRAIN, runs(command, NULL), "train");
    if (!says_yes(r, TRAIN)) return;
    check_cell(r, APPLY, changes_the_output("adapter.safetensors"), "apply");
    check_cell(r, EXPORT, can_be_exported("adapter.safetensors"), "export");
    check_loaders(r, "adapter.safetensors");
}

static void the_table_is_true(void **state) {
    (void)state;
    size_t size;
    char *readme = file_read_text(SOURCE_DIR "/README.md", 1 << 20, &size, NULL);
    assert_non_null(readme);
    const char *at = readme;
    int rows = 0;
    for (row r; next_row(&at, &r); rows++) check_row(&r);
    assert_true(rows > 0);
    for (int i = 0; adapter_trainee_at(i); i++) { /* every kind has a row */
        char option[64];
        snprintf(option, sizeof option, "`--kind %s", adapter_trainee_at(i)->name);
        if (!strstr(readme, option)) fail_msg("README: there is no row for %s", option);
    }
    free(readme);
}

/* Relative to the one of the merged model. */
static double distance(const char *a, const char *b) {
    safetensors x, y;
    assert_true(safetensors_open(&x, a, NULL) && safetensors_open(&y, b, NULL));
    const safetensors_tensor *s = safetensors_find(&x, "noise_pred"), *t = safetensors_find(&y, "noise_pred");
    float *p = safetensors_read_f32(&x, s, NULL), *q = safetensors_read_f32(&y, t, NULL);
    double gap = 0, norm = 0;
    for (size_t i = 0; i < s->elements; i++) {
        gap += ((double)p[i] - (double)q[i]) * ((double)p[i] - (double)q[i]);
        norm += (double)q[i] * (double)q[i];
    }
    free(p);
    free(q);
    safetensors_close(&x);
    safetensors_close(&y);
    return sqrt(gap / norm);
}

static void stacks_do_what_a_merged_model_does(void **state) {
    (void)state;
    static const char *const made[][2] = {
        {"ia3", "ia3"}, {"oft", "oft"}, {"dora", "locon --dora"}, {"lohadora", "loha --dora"}, {"full", "full"}};
    static const char *const stacks[][4] = {{"ia3:0.7", "dora:0.9"}, {"oft", "lohadora"}, {"dora:0.6", "ia3", "full:0.5", "lohadora:0.8"}};
    char command[640], part[96];
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        snprintf(command, sizeof command, LEARN "--lr 0.05 --output %s.safetensors --kind %s", made[i][0], made[i][1]);
        assert_true(runs(command, NULL));
    }
    for (size_t i = 0; i < sizeof stacks / sizeof *stacks; i++) {
        char merge[256] = "merge",
             probe[320] = "probe unet --model model.safetensors --device cpu --input in.safetensors --output live.safetensors";
        for (int k = 0; k < 4 && stacks[i][k]; k++) {
            const char *name = stacks[i][k];
            snprintf(part, sizeof part, " %.*s.safetensors%s", (int)strcspn(name, ":"), name, name + strcspn(name, ":"));
            strcat(merge, part);
            strcat(strcat(probe, " --lora"), part);
        }
        strcat(merge, " --into model.safetensors --output merged.safetensors");
        assert_true(runs(merge, NULL) && runs(probe, NULL));
        assert_true(
            runs("probe unet --model merged.safetensors --device cpu --input in.safetensors --output merged-out.safetensors", NULL));
        double gap = distance("live.safetensors", "merged-out.safetensors"),
               change = distance("bare.safetensors", "merged-out.safetensors");
        if (!(gap < 5e-6) || !(change > 100 * gap)) fail_msg("%s: differs by %g, of a change of %g", merge, gap, change);
    }
}

static int set_up(void **state) {
    (void)state;
    folder = folder_enter("kinds");
    if (!folder || mkdir("photos", 0755) != 0 || !tiny_model_write_shape("model.safetensors", 1, SHAPE)) return -1;
    if (!tiny_png_write("photos/a.png", 64, 64, 1) || !file_write_all("photos/a.txt", "a wall", 6, NULL)) return -1;
    write_probe_input();
    if (!runs("probe unet --model model.safetensors --device cpu --input in.safetensors --output bare.safetensors", NULL)) return -1;
    return safetensors_open(&bare, "bare.safetensors", NULL) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    safetensors_close(&bare);
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_table_is_true), cmocka_unit_test(stacks_do_what_a_merged_model_does)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
