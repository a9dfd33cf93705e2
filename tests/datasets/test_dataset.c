/* Folder layouts, captions, junk, plans; and what users get wrong. */
#include "base/error.h"
#include "base/file.h"
#include "base/memory.h"
#include "datasets/dataset.h"
#include "tests/support/folder.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const dataset_options PLAIN = {.buckets = {.width = 64, .height = 64}, .background = {255, 255, 255}};

static dataset open_good(const char *folder, const dataset_options *base) {
    dataset_options options = *base;
    options.folder = folder;
    dataset ds;
    error err = {{0}};
    if (!dataset_open(&options, &ds, &err)) fail_msg("%s", err.text);
    return ds;
}

static void check_caption(const dataset *ds, const char *end_of_path, const char *caption, caption_source source, int repeats) {
    for (size_t i = 0; i < ds->count; i++) {
        size_t size = strlen(ds->images[i].path), tail = strlen(end_of_path);
        if (size < tail || strcmp(ds->images[i].path + size - tail, end_of_path) != 0) continue;
        assert_string_equal(ds->images[i].caption, caption);
        assert_int_equal(ds->images[i].source, source);
        assert_int_equal(ds->images[i].repeats, repeats);
        return;
    }
    fail_msg("%s is not among the images", end_of_path);
}

static void pictures_directly(void **state) {
    (void)state;
    char *folder = folder_make("direct");
    folder_picture(folder, "a.png", "rgb.png");
    folder_text(folder, "a.txt", "a red thing");
    folder_picture(folder, "B.JPG", "rgb.png"); /* a PNG under another name */
    folder_text(folder, "B.caption", "from .caption");
    folder_picture(folder, "c.webp", "lossless.webp");
    folder_picture(folder, "d.e.jpeg", "orientation_6.jpg");
    folder_text(folder, "d.e.txt", "two dots");
    folder_text(folder, "d.e.caption", "not this one");
    dataset_options options = PLAIN;
    options.trigger = " sks thing ";
    dataset ds = open_good(folder, &options);
    assert_int_equal(ds.count, 4);
    check_caption(&ds, "/a.png", "a red thing", CAPTION_TXT, 1);
    check_caption(&ds, "/B.JPG", "from .caption", CAPTION_CAPTION, 1);
    check_caption(&ds, "/c.webp", "sks thing", CAPTION_TRIGGER, 1);
    check_caption(&ds, "/d.e.jpeg", "two dots", CAPTION_TXT, 1);
    assert_int_equal(ds.report.captions[CAPTION_TXT], 2);
    assert_int_equal(ds.report.captions[CAPTION_CAPTION], 1);
    assert_int_equal(ds.report.captions[CAPTION_TRIGGER], 1);
    assert_int_equal(ds.report.duplicates, 1);
    assert_int_equal(ds.report.upscaled, 4);
    for (size_t i = 0; i < ds.count; i++) assert_int_equal(ds.images[i].width, 24); /* the turned one, too */
    dataset_close(&ds);

    options.caption_extension = "caption";
    ds = open_good(folder, &options);
    check_caption(&ds, "/a.png", "sks thing", CAPTION_TRIGGER, 1);
    check_caption(&ds, "/d.e.jpeg", "not this one", CAPTION_CAPTION, 1);
    dataset_close(&ds);
    folder_text(folder, "a.tags", "tagged");
    options.caption_extension = ".tags";
    ds = open_good(folder, &options);
    check_caption(&ds, "/a.png", "tagged", CAPTION_OTHER_FILE, 1);
    dataset_close(&ds);
    folder_remove(folder);
}

static void numbered_subfolders(void **state) {
    (void)state;
    char *folder = folder_make("numbered");
    folder_picture(folder, "3_sks dog/1.png", "rgb.png");
    folder_picture(folder, "3_sks dog/2.png", "gray.png");
    folder_text(folder, "3_sks dog/2.txt", "a grey dog");
    folder_picture(folder, "10_cat_two/x.png", "palette.png");
    folder_picture(folder, "0_off/x.png", "rgba.png");
    folder_picture(folder, "plain/x.png", "rgba.png");
    dataset ds = open_good(folder, &PLAIN);
    assert_int_equal(ds.count, 3);
    assert_int_equal(ds.report.items, 16);
    check_caption(&ds, "/3_sks dog/1.png", "sks dog", CAPTION_FOLDER, 3);
    check_caption(&ds, "/3_sks dog/2.png", "a grey dog", CAPTION_TXT, 3);
    check_caption(&ds, "/10_cat_two/x.png", "cat_two", CAPTION_FOLDER, 10);
    assert_int_equal(ds.report.note_count, 2); /* 0_off and plain */
    dataset_close(&ds);

    /* The folder itself is of that name; a slash at the end changes nothing. */
    char *inner = memory_format("%s/3_sks dog/", folder);
    ds = open_good(inner, &PLAIN);
    assert_int_equal(ds.count, 2);
    check_caption(&ds, "/3_sks dog/1.png", "sks dog", CAPTION_FOLDER, 3);
    assert_null(strstr(ds.images[0].path, "//"));
    dataset_close(&ds);
    free(inner);
    folder_remove(folder);
}

static void parent_of_numbered(void **state) {
    (void)state;
    char *folder = folder_make("project");
    folder_picture(folder, "img/5_zwx/1.png", "rgb.png");
    folder_picture(folder, "reg/1_dog/1.png", "gray.png");
    folder_text(folder, "log/x.txt", "nothing");
    dataset ds = open_good(folder, &PLAIN);
    assert_int_equal(ds.count, 1);
    check_caption(&ds, "/img/5_zwx/1.png", "zwx", CAPTION_FOLDER, 5);
    dataset_close(&ds);
    folder_remove(folder);
}

static void junk_is_counted(void **state) {
    (void)state;
    char *folder = folder_make("junk");
    folder_picture(folder, "a.png", "rgb.png");
    folder_text(folder, "a.txt", "x");
    folder_text(folder, "b.txt", "no picture for this");
    static const char *const junk[] = {"._a.png",  ".DS_Store",     "Thumbs.db",        "a.npz",
                                       "notes.md", ".hidden/x.png", "__MACOSX/._a.png", "noextension"};
    for (size_t i = 0; i < sizeof junk / sizeof *junk; i++) folder_text(folder, junk[i], "junk");
    folder_picture(folder, "film.gif", "other.gif");
    folder_text(folder, "phone.HEIC", "junk");
    dataset ds = open_good(folder, &PLAIN);
    assert_int_equal(ds.count, 1);
    assert_int_equal(ds.report.junk, 8);
    assert_int_equal(ds.report.foreign, 2);
    assert_int_equal(ds.report.lone_captions, 1);
    dataset_close(&ds);
    folder_remove(folder);
}

static void caption_texts(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *caption;
    } cases[] = {
        {"plain", "plain"},
        {"  spaces \t\n", "spaces"},
        {"\xEF\xBB\xBF"
         "bom",
         "bom"},
        {"crlf\r\n", "crlf"},
        {"\r\n\r\n  after empty lines\r\nsecond line\r\n", "after empty lines"},
        {"old mac\rsecond", "old mac"},
        {"\xC2\xA0\xE3\x80\x80unicode spaces\xE2\x80\x83", "unicode spaces"},
        {"\xC3\xBC"
         "ber \xE7\x8C\xAB \xF0\x9F\x98\x80",
         "\xC3\xBC"
         "ber \xE7\x8C\xAB \xF0\x9F\x98\x80"},
        {"", "the trigger"},
        {" \r\n ", "the trigger"},
        {"\xEF\xBB\xBF", "the trigger"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = folder_make("captions");
        folder_picture(folder, "\xC3\xBC \xE7\x8C\xAB.png", "rgb.png");
        folder_text(folder, "\xC3\xBC \xE7\x8C\xAB.txt", cases[i].bytes);
        dataset_options options = PLAIN;
        options.trigger = "the trigger";
        dataset ds = open_good(folder, &options);
        assert_string_equal(ds.images[0].caption, cases[i].caption);
        assert_int_equal(ds.report.empty_captions, i >= 8);
        assert_int_equal(ds.report.long_captions, strstr(cases[i].bytes, "second") != NULL);
        dataset_close(&ds);
        folder_remove(folder);
    }
}

/* One wrong thing in an otherwise good folder (a.png, a.txt): every message names the culprit. */
typedef struct wrong {
    const char *name, *bytes; /* a file added or replaced; NULL: none */
    const char *fixture;      /* ... by a copy of this picture */
    const char *words[2];
} wrong;

static void what_users_get_wrong(void **state) {
    (void)state;
    static const wrong cases[] = {
        {"a.txt", "caf\xE9", NULL, {"a.txt", "UTF-8 at byte 3"}},
        {"a.txt",
         "\xFF\xFE"
         "a",
         NULL,
         {"a.txt", "UTF-16"}},
        {"a.txt", "truncated \xE7\x8C", NULL, {"a.txt", "byte 10"}},
        {"a.txt", "surrogate \xED\xA0\x80", NULL, {"a.txt", "byte 10"}},
        {"a.txt", "overlong \xC0\x80", NULL, {"a.txt", "byte 9"}},
        {"b.png", "", NULL, {"b.png", "is empty"}},
        {"b.png", "this is a text", NULL, {"b.png", "not a picture"}},
        {"b.jpg", "\xFF\xD8\xFF\xE0", NULL, {"b.jpg", "cut short"}},
        {"b.jpg", "<html>404</html>", NULL, {"b.jpg", "not a picture"}},
        {"b.png", NULL, "other.gif", {"b.png", "is a GIF"}},
        {"b.jpg", NULL, "animated.webp", {"b.jpg", "animation"}},
        {"b.png", NULL, "rgb.png", {"1 of 2 pictures have no caption", "--trigger"}},
        {"b.txt/x", "", NULL, {NULL, NULL}}, /* a folder called b.txt hurts nobody */
        {"a.txt", "", NULL, {"no caption", "a.txt"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = folder_make("wrong");
        folder_picture(folder, "a.png", "rgb.png");
        folder_text(folder, "a.txt", "fine");
        if (cases[i].fixture)
            folder_picture(folder, cases[i].name, cases[i].fixture);
        else
            folder_text(folder, cases[i].name, cases[i].bytes);
        dataset_options options = PLAIN;
        options.folder = folder;
        dataset ds;
        error err = {{0}};
        bool ok = dataset_open(&options, &ds, &err);
        assert_int_equal(ok, cases[i].words[0] == NULL);
        for (int k = 0; k < 2 && !ok; k++)
            if (!strstr(err.text, cases[i].words[k])) fail_msg("case %zu: %s", i, err.text);
        dataset_close(&ds);
        folder_remove(folder);
    }
}

static bool opens(const char *folder, const dataset_options *base, error *err) {
    dataset_options options = *base;
    options.folder = folder;
    dataset ds;
    bool ok = dataset_open(&options, &ds, err);
    dataset_close(&ds);
    return ok;
}

static void wrong_places_and_options(void **state) {
    (void)state;
    error err;
    assert_false(opens("no/such/folder", &PLAIN, &err));
    assert_non_null(strstr(err.text, "no/such/folder: does not exist"));
    assert_false(opens(TEST_DATA "/images/rgb.png", &PLAIN, &err));
    assert_non_null(strstr(err.text, "is a file"));

    char *folder = folder_make("empty");
    assert_false(opens(folder, &PLAIN, &err));
    assert_non_null(strstr(err.text, "no pictures found"));
    assert_non_null(strstr(err.text, "N_name"));
    folder_picture(folder, "mydog/1.png", "rgb.png"); /* the commonest mistake: a folder without number */
    assert_false(opens(folder, &PLAIN, &err));
    assert_non_null(strstr(err.text, "10_mydog"));

    folder_picture(folder, "2_d/1.png", "rgb.png");
    assert_true(opens(folder, &PLAIN, &err));
    dataset_options options = PLAIN;
    options.caption_extension = "";
    assert_false(opens(folder, &options, &err));
    assert_non_null(strstr(err.text, "--caption-extension"));
    options = PLAIN;
    options.trigger = "  ";
    assert_false(opens(folder, &options, &err));
    assert_non_null(strstr(err.text, "--trigger"));
    options.trigger = "\xFF";
    assert_false(opens(folder, &options, &err));
    assert_non_null(strstr(err.text, "--trigger"));
    options = PLAIN;
    options.buckets.width = 100;
    assert_false(opens(folder, &options, &err));
    assert_non_null(strstr(err.text, "--resolution"));

    /* Several bad pictures: the first in full, the others counted. */
    folder_text(folder, "2_d/2.png", "");
    folder_text(folder, "2_d/3.png", "x");
    folder_text(folder, "2_d/4.png", "x");
    assert_false(opens(folder, &PLAIN, &err));
    assert_non_null(strstr(err.text, "2_d/2.png: is empty"));
    assert_non_null(strstr(err.text, "2 more pictures"));
    folder_remove(folder);

    folder = folder_make("tiny");
    static const char bmp[] =
        "BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\1\0\0\0\1\0\0\0\1\0\x18\0\0\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x1e\x14\n";
    folder_write(folder, "dot.bmp", bmp, 58);
    options = PLAIN;
    options.trigger = "x";
    assert_false(opens(folder, &options, &err));
    assert_non_null(strstr(err.text, "dot.bmp: is 1x1 pixels"));
    folder_remove(folder);
}

/* Every fixture picture that has 24x16 pixels, three times; two buckets. */
static dataset open_many(char **folder, bool flip) {
    *folder = folder_make("many");
    static const char *const files[] = {"rgb.png", "gray.png", "rgba.png", "palette.png", "gray16.png", "lossless.webp", "rgb.jpg"};
    for (size_t i = 0; i < 7; i++) {
        char *name = memory_format("3_thing/%zu.png", i);
        folder_picture(*folder, name, files[i]);
        free(name);
    }
    /* A picture whose EXIF block is lost stays lying on its side: 16x24, for another bucket. */
    char *from = memory_format(TEST_DATA "/images/orientation_6.webp");
    error err;
    size_t size;
    char *bytes = file_read_text(from, 1 << 16, &size, &err);
    for (size_t i = 0; i + 4 < size; i++)
        if (memcmp(bytes + i, "EXIF", 4) == 0) memcpy(bytes + i, "XXXX", 4);
    folder_write(*folder, "3_thing/tall.webp", bytes, size);
    free(bytes);
    free(from);
    dataset_options options = PLAIN;
    options.flip = flip;
    options.buckets.step = 8;
    return open_good(*folder, &options);
}

static void plans_are_fair_and_repeatable(void **state) {
    (void)state;
    char *folder;
    dataset ds = open_many(&folder, true);
    assert_int_equal(ds.report.items, 24);
    for (size_t size = 1; size <= 5; size++) {
        dataset_plan first = dataset_epoch_plan(&ds, 7, 0, size), again = dataset_epoch_plan(&ds, 7, 0, size),
                     other = dataset_epoch_plan(&ds, 7, 1, size);
        assert_int_equal(first.batch_count, dataset_epoch_batches(&ds, size));
        assert_int_equal(first.batch_count, (21 + size - 1) / size + (3 + size - 1) / size);
        assert_int_equal(first.item_count, 24);
        assert_memory_equal(first.batches, again.batches, first.batch_count * sizeof *first.batches);
        assert_memory_equal(first.items, again.items, first.item_count * sizeof *first.items);
        assert_memory_not_equal(first.items, other.items, first.item_count * sizeof *first.items);
        int seen[8][3] = {{0}};
        size_t items = 0;
        for (size_t b = 0; b < first.batch_count; b++) {
            assert_true(first.batches[b].count >= 1 && first.batches[b].count <= size);
            items += first.batches[b].count;
            for (size_t i = 0; i < first.batches[b].count; i++) {
                dataset_item item = first.items[first.batches[b].first + i];
                seen[item.image][item.repeat]++;
                assert_int_equal(ds.images[item.image].bucket, first.batches[b].bucket);
            }
        }
        assert_int_equal(items, 24);
        for (int i = 0; i < 24; i++) assert_int_equal(seen[i / 3][i % 3], 1);
        dataset_plan_free(&first);
        dataset_plan_free(&again);
        dataset_plan_free(&other);
    }
    /* Every item comes first about equally often, and is mirrored half of the time. */
    int place[8] = {0}, flips = 0;
    for (uint64_t epoch = 0; epoch < 2400; epoch++) {
        dataset_plan plan = dataset_epoch_plan(&ds, 11, epoch, 1);
        place[plan.items[plan.batches[0].first].image]++;
        for (size_t i = 0; i < plan.item_count; i++) flips += plan.items[i].flip;
        dataset_plan_free(&plan);
    }
    for (int i = 0; i < 8; i++) assert_true(place[i] > 220 && place[i] < 380);
    assert_true(abs(flips - 28800) < 600);
    dataset_close(&ds);
    folder_remove(folder);
    ds = open_many(&folder, false);
    dataset_plan plan = dataset_epoch_plan(&ds, 7, 0, 2);
    for (size_t i = 0; i < plan.item_count; i++) assert_false(plan.items[i].flip);
    dataset_plan_free(&plan);
    dataset_close(&ds);
    folder_remove(folder);
}

static void loading(void **state) {
    (void)state;
    char *folder;
    dataset ds = open_many(&folder, false);
    for (size_t i = 0; i < ds.count; i++) {
        bucket_size bucket = ds.buckets[ds.images[i].bucket];
        size_t values = (size_t)bucket.width * (size_t)bucket.height * 3;
        float *plain = memory_new(values, sizeof *plain), *mirrored = memory_new(values, sizeof *mirrored);
        error err = {{0}};
        assert_true(dataset_load(&ds, i, false, plain, &err));
        assert_true(dataset_load(&ds, i, true, mirrored, &err));
        for (int x = 0; x < bucket.width; x++)
            for (int c = 0; c < 3; c++) {
                float value = plain[x * 3 + c];
                assert_true(value >= -1 && value <= 1);
                assert_true(fabsf(value - mirrored[(bucket.width - 1 - x) * 3 + c]) < 1e-6f);
            }
        free(plain);
        free(mirrored);
    }
    folder_picture(folder, "3_thing/0.png", "rgba.png");
    float *out = memory_new(256 * 256 * 3, sizeof *out);
    error err;
    assert_false(dataset_load(&ds, 0, false, out, &err));
    assert_non_null(strstr(err.text, "has changed"));
    free(out);
    dataset_close(&ds);
    folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures_directly),
        cmocka_unit_test(numbered_subfolders),
        cmocka_unit_test(parent_of_numbered),
        cmocka_unit_test(junk_is_counted),
        cmocka_unit_test(caption_texts),
        cmocka_unit_test(what_users_get_wrong),
        cmocka_unit_test(wrong_places_and_options),
        cmocka_unit_test(plans_are_fair_and_repeatable),
        cmocka_unit_test(loading),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
