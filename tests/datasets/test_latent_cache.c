/* The latent cache: what it keeps, what it refuses to give back. */
#include "base/file.h"
#include "base/memory.h"
#include "datasets/latent_cache.h"
#include "tests/support/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VALUES (4 * 5 * 7)

static dataset one_picture(char **folder) {
    *folder = folder_make("cached");
    folder_picture(*folder, "1_x/a.png", "rgb.png");
    dataset_options options = {.folder = *folder, .buckets = {.width = 64, .height = 64}, .background = {255, 255, 255}};
    dataset ds;
    error err = {{0}};
    if (!dataset_open(&options, &ds, &err)) fail_msg("%s", err.text);
    return ds;
}

static void keys_differ_in_everything(void **state) {
    (void)state;
    char *folder, keys[7][65];
    dataset ds = one_picture(&folder);
    latent_cache_key(&ds, 0, false, "vae-a", keys[0]);
    latent_cache_key(&ds, 0, true, "vae-a", keys[1]);
    latent_cache_key(&ds, 0, false, "vae-b", keys[2]);
    ds.background[1] = 0;
    latent_cache_key(&ds, 0, false, "vae-a", keys[3]);
    ds.background[1] = 255;
    ds.images[0].crop.x++;
    latent_cache_key(&ds, 0, false, "vae-a", keys[4]);
    ds.images[0].crop.x--;
    ds.buckets[ds.images[0].bucket].width += 8;
    latent_cache_key(&ds, 0, false, "vae-a", keys[5]);
    ds.buckets[ds.images[0].bucket].width -= 8;
    ds.images[0].hash[0] ^= 1;
    latent_cache_key(&ds, 0, false, "vae-a", keys[6]);
    ds.images[0].hash[0] ^= 1;
    for (int i = 0; i < 7; i++)
        for (int k = 0; k < i; k++) assert_string_not_equal(keys[i], keys[k]);
    char again[65];
    latent_cache_key(&ds, 0, false, "vae-a", again);
    assert_string_equal(again, keys[0]);
    dataset_close(&ds);
    folder_remove(folder);
}

static void entries_are_kept_or_missing(void **state) {
    (void)state;
    char *parent = folder_make("cache"), *folder = memory_format("%s/latents", parent), key[65], other[65];
    memset(key, 'a', 64);
    memset(other, 'b', 64);
    key[64] = other[64] = 0;
    error err;
    float mean[VALUES], logvar[VALUES], got[2][VALUES];
    for (int i = 0; i < VALUES; i++) mean[i] = (float)i / 3, logvar[i] = -(float)i;
    assert_true(latent_cache_open(folder, &err));
    assert_true(latent_cache_open(folder, &err)); /* there already */
    assert_false(latent_cache_read(folder, key, 4, 5, 7, got[0], got[1]));
    assert_true(latent_cache_write(folder, key, 4, 5, 7, mean, logvar, &err));
    assert_true(latent_cache_read(folder, key, 4, 5, 7, got[0], got[1]));
    assert_memory_equal(got[0], mean, sizeof mean);
    assert_memory_equal(got[1], logvar, sizeof logvar);
    assert_false(latent_cache_read(folder, key, 4, 7, 5, got[0], got[1]));
    assert_false(latent_cache_read(folder, key, 4, 5, 8, got[0], got[1]));
    assert_false(latent_cache_read(folder, other, 4, 5, 7, got[0], got[1]));

    /* Any damage, any cut, or another entry under this name: missing. */
    char *path = memory_format("%s/%s.latent", folder, key), *wrong = memory_format("%s.latent", other);
    size_t size;
    char *bytes = file_read_text(path, 1 << 20, &size, &err);
    folder_write(folder, wrong, bytes, size);
    assert_false(latent_cache_read(folder, other, 4, 5, 7, got[0], got[1]));
    for (size_t at = 0; at < size; at += 7) {
        bytes[at] ^= 4;
        folder_write(parent, path + strlen(parent) + 1, bytes, size);
        assert_false(latent_cache_read(folder, key, 4, 5, 7, got[0], got[1]));
        bytes[at] ^= 4;
        folder_write(parent, path + strlen(parent) + 1, bytes, at);
        assert_false(latent_cache_read(folder, key, 4, 5, 7, got[0], got[1]));
    }
    assert_true(latent_cache_write(folder, key, 4, 5, 7, mean, logvar, &err));
    assert_true(latent_cache_read(folder, key, 4, 5, 7, got[0], got[1]));
    free(bytes);
    free(path);
    free(wrong);

    /* Places where nothing can be kept. */
    char *file = memory_format("%s/file", parent), *deep = memory_format("%s/no/such", parent);
    folder_text(parent, "file", "x");
    assert_false(latent_cache_open(file, &err));
    assert_non_null(strstr(err.text, "is not a folder"));
    assert_false(latent_cache_open(deep, &err));
    assert_non_null(strstr(err.text, deep));
    free(file);
    free(deep);
    free(folder);
    folder_remove(parent);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(keys_differ_in_everything), cmocka_unit_test(entries_are_kept_or_missing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
