/* Reading and writing safetensors files: what the reference implementation writes, and files that are broken or hostile. */
#include "formats/safetensors.h"

#include "base/memory.h"
#include "base/sha256.h"
#include "tests/support/folder.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *folder;

static int setup(void **state) {
    (void)state;
    folder = folder_make("formats");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    folder_remove(folder);
    return 0;
}

static char *in_folder(const char *name) { return memory_format("%s/%s", folder, name); }

static void write_bytes(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* length, header and `data` zero bytes; a length of 0 stands for the header's own */
static void write_file(const char *path, const char *header, uint64_t length, size_t data) {
    size_t n = strlen(header), size = 8 + n + data;
    uint8_t *bytes = memory_new(size, 1);
    if (length == 0) length = n;
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> 8 * i);
    memcpy(bytes + 8, header, n);
    write_bytes(path, bytes, size);
    free(bytes);
}

/* ---- Broken and hostile files ---- */

#define F4 "\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]"

static const struct {
    const char *header;
    uint64_t length; /* 0: the true one */
    size_t data;
    const char *expect;
} BROKEN[] = {
    {"{\"w\":{" F4 "}}", 0, 15, "is truncated: the header promises 79 bytes, the file has 78"},
    {"{\"w\":{" F4 "}}", 0, 0, "is truncated"},
    {"{\"w\":{" F4 "}}", 0, 17, "1 bytes at the end belong to no tensor"},
    {"{\"w\":{" F4 "}}", 200, 16, "is truncated: the header has 200 bytes"},
    {"{\"w\":{" F4 "}}", 100000001, 16, "the limit is 100000000"},
    {"{\"w\":{" F4 "}}", UINT64_MAX, 16, "the limit is 100000000"},
    {"{\"w\":{" F4 "}}", 1, 16, "damaged header"},
    {"{\"w\":{" F4 "}}", 37, 16, "damaged header"},
    {"{\"w\":{" F4 "}} x", 0, 16, "damaged header"},
    {"{\"w\":{" F4 "},\"w\":{" F4 "}}", 0, 16, "damaged header"},
    {"{\"w\":{" F4 ",\"dtype\":\"F32\"}}", 0, 16, "damaged header"},
    {"{\"w\":[1,2]}", 0, 16, "tensor w: its header entry is not an object"},
    {"{\"w\":{\"shape\":[4],\"data_offsets\":[0,16]}}", 0, 16, "tensor w: has no dtype"},
    {"{\"w\":{\"dtype\":7,\"shape\":[4],\"data_offsets\":[0,16]}}", 0, 16, "tensor w: has no dtype"},
    {"{\"w\":{\"dtype\":\"F33\",\"shape\":[4],\"data_offsets\":[0,16]}}", 0, 16, "tensor w: the dtype F33 is not supported"},
    {"{\"w\":{\"dtype\":\"f32\",\"shape\":[4],\"data_offsets\":[0,16]}}", 0, 16, "the dtype f32 is not supported"},
    {"{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", 0, 16, "tensor w: has no shape"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,16]}}", 0, 16, "tensor w: has no shape"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[-4],\"data_offsets\":[0,16]}}", 0, 16, "tensor w: dimension 0 is not a whole number"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[-2,-2],\"data_offsets\":[0,16]}}", 0, 16, "dimension 0"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2,2.0],\"data_offsets\":[0,16]}}", 0, 16, "dimension 1"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[\"4\"],\"data_offsets\":[0,16]}}", 0, 16, "dimension 0"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,16]}}", 0, 16, "tensor w: its shape overflows"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 0, 16, "its shape overflows"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}", 0, 16, "damaged header"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,16]}}", 0, 16, "has 9 dimensions"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4]}}", 0, 16, "data_offsets are not two whole numbers"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0]}}", 0, 16, "data_offsets are not two"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16,32]}}", 0, 16, "data_offsets are not two"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16.0]}}", 0, 16, "data_offsets are not two"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[16,0]}}", 0, 16, "are out of order"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[-16,0]}}", 0, 16, "are out of order"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,12]}}", 0, 12,
     "tensor w: F32 [4] needs 16 bytes, data_offsets give it 12"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,0]}}", 0, 0, "F32 [] needs 4 bytes"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[9223372036854775791,9223372036854775807]}}", 0, 16, "is truncated"},
    {"{\"w\":{" F4 "},\"v\":{" F4 "}}", 0, 16, "tensors v and w overlap"},
    {"{\"w\":{" F4 "},\"v\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[12,28]}}", 0, 28, "tensors w and v overlap"},
    {"{\"w\":{" F4 "},\"v\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[20,24]}}", 0, 24,
     "4 bytes before tensor v belong to no tensor"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[4,20]}}", 0, 20, "4 bytes before tensor w belong to no tensor"},
    {"{\"__metadata__\":{\"a\":1},\"w\":{" F4 "}}", 0, 16, "metadata a is not a text"},
    {"{\"__metadata__\":[],\"w\":{" F4 "}}", 0, 16, "__metadata__ is not a map"},
    {"{\"w\\u0000\":{" F4 "}}", 0, 16, "damaged header"},
    {"{\"\xff\":{" F4 "}}", 0, 16, "damaged header"},
    {" {\"w\":{" F4 "}}", 0, 16, "there is no JSON header"},
    {"[1]   ", 0, 16, "there is no JSON header"},
};

static void broken_headers(void **state) {
    (void)state;
    char *path = in_folder("broken.safetensors");
    for (size_t i = 0; i < sizeof BROKEN / sizeof *BROKEN; i++) {
        safetensors st;
        error err = {{0}};
        write_file(path, BROKEN[i].header, BROKEN[i].length, BROKEN[i].data);
        bool opened = safetensors_open(&st, path, &err);
        bool named = strstr(err.text, path) && strstr(err.text, BROKEN[i].expect);
        if (opened || !named) fail_msg("case %zu (%s): %s", i, BROKEN[i].header, opened ? "was accepted" : err.text);
        assert_null(st.tensors);
        assert_null(st.map.data);
    }
    free(path);
}

/* A header of deeply nested brackets must not exhaust the stack. */
static void nested_header(void **state) {
    (void)state;
    char *path = in_folder("nested.safetensors"), *header = memory_new(200001, 1);
    memcpy(header, "{\"w\":", 5);
    memset(header + 5, '[', 199995);
    write_file(path, header, 0, 16);
    safetensors st;
    error err = {{0}};
    assert_false(safetensors_open(&st, path, &err));
    assert_non_null(strstr(err.text, "damaged header"));
    free(header);
    free(path);
}

static const struct {
    const char *bytes;
    size_t size;
    const char *expect;
} OTHERS[] = {
    {"", 0, "is empty"},
    {"abc", 3, "is too short"},
    {"{}", 2, "is a JSON text"},
    {"PK\x03\x04xxxxxxxxxxxxxxxxxxxxxxxx", 28, "convert it to .safetensors first"},
    {"\x80\x02\x8a\x0al\xfc\x9c"
     "F\xf9 j\xa8P\x19.\x80",
     15, "convert it to .safetensors first"},
    {"GGUF\x03\0\0\0\0\0\0\0", 12, "is a GGUF file"},
    {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", 65, "is a Git LFS pointer; download the real file"},
    {"<!DOCTYPE html><html></html>", 28, "is a web page"},
    {"\n<html lang=\"en\">", 17, "is a web page"},
    {"\x89PNG\r\n\x1a\n\0\0\0\x0d", 12, "is a PNG picture"},
    {"{\"error\":\"Access to this model is restricted\"}", 45, "is a JSON text"},
    {"This is a plain text, not a model.", 34, "is not a .safetensors file"},
};

static void other_files(void **state) {
    (void)state;
    char *path = in_folder("model.safetensors");
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++) {
        safetensors st;
        error err = {{0}};
        write_bytes(path, OTHERS[i].bytes, OTHERS[i].size);
        assert_false(safetensors_open(&st, path, &err));
        if (!strstr(err.text, path) || !strstr(err.text, OTHERS[i].expect)) fail_msg("case %zu: %s", i, err.text);
    }
    safetensors st;
    error err;
    assert_false(safetensors_open(&st, folder, &err));
    assert_non_null(strstr(err.text, "is a folder"));
    free(path);
    path = in_folder("missing.safetensors");
    assert_false(safetensors_open(&st, path, &err));
    assert_non_null(strstr(err.text, "No such file"));
    free(path);
}

/* A header length whose first bytes look like a pickle's is still a header length. */
static void pickle_like_length(void **state) {
    (void)state;
    char *path = in_folder("length.safetensors"), header[0x280 + 1];
    memset(header, ' ', 0x280);
    header[0x280] = 0;
    memcpy(header, "{\"w\":{" F4 "}}", strlen("{\"w\":{" F4 "}}"));
    write_file(path, header, 0, 16);
    safetensors st;
    error err = {{0}};
    if (!safetensors_open(&st, path, &err)) fail_msg("%s", err.text);
    assert_int_equal(st.count, 1);
    safetensors_close(&st);
    free(path);
}

/* ---- What the reference implementation writes ---- */

/* The header that safetensors 0.8.0 (Python, `safetensors.torch.save`) gives the tensors of writer_fill below. */
static const char REFERENCE_HEADER[] =
    "{\"__metadata__\":{\"ss_note\":\"a \\\"quoted\\\" \xc3\xa9\\n\"},\"c\":{\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[0,24]},"
    "\"g\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[24,32]},\"a.alpha\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[32,36]}"
    ","
    "\"b.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[36,60]},\"j\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":["
    "60,60]},"
    "\"f\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[60,68]},\"d\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[68,72]},"
    "\"a.weight\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[72,80]},\"i\":{\"dtype\":\"I16\",\"shape\":[3],\"data_offsets\":[80,"
    "86]},"
    "\"k\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[86,89]},\"e\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[89,90]},"
    "\"h\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[90,92]}}      ";
static const char REFERENCE_SHA256[] = "02494bb1504ad73d6a6359947ff2c400e62252c18bd731a4c928df7de1da01f9";
static const char REFERENCE_DATA_SHA256[] = "c432e3ba380f3d715d4961a58697752e8799471519ee78d4276c339d67cc8c12";

static bool fill_f(void *context, void *out, size_t bytes, error *err) {
    if (context) return error_set(err, "fill failed");
    assert_int_equal(bytes, 8);
    memcpy(out, (int32_t[]){1, -2}, 8);
    return true;
}

static void writer_fill(safetensors_writer *w) {
    static const float b[6] = {0, 1, 2, 3, 4, 5}, a[4] = {0, 1, 2, 3}, alpha = 4, d[2] = {1, 2};
    static const int64_t c[3] = {0, 1, 2};
    static const uint8_t e[1] = {7}, h[2] = {1, 0};
    static const double g[1] = {1.5};
    static const int16_t i[3] = {3, 4, 5};
    static const int8_t k[3] = {1, 2, 3};
    error err = {{0}};
    bool ok = safetensors_writer_add_f32(w, "b.weight", DTYPE_F32, 2, (int64_t[]){2, 3}, b, &err) &&
              safetensors_writer_add_f32(w, "a.weight", DTYPE_F16, 1, (int64_t[]){4}, a, &err) &&
              safetensors_writer_add(w, "a.alpha", DTYPE_F32, 0, NULL, &alpha, &err) &&
              safetensors_writer_add(w, "c", DTYPE_I64, 1, (int64_t[]){3}, c, &err) &&
              safetensors_writer_add_f32(w, "d", DTYPE_BF16, 1, (int64_t[]){2}, d, &err) &&
              safetensors_writer_add(w, "e", DTYPE_U8, 1, (int64_t[]){1}, e, &err) &&
              safetensors_writer_add_fill(w, "f", DTYPE_I32, 1, (int64_t[]){2}, fill_f, NULL, &err) &&
              safetensors_writer_add(w, "g", DTYPE_F64, 1, (int64_t[]){1}, g, &err) &&
              safetensors_writer_add(w, "h", DTYPE_BOOL, 1, (int64_t[]){2}, h, &err) &&
              safetensors_writer_add(w, "i", DTYPE_I16, 1, (int64_t[]){3}, i, &err) &&
              safetensors_writer_add(w, "j", DTYPE_F32, 2, (int64_t[]){0, 3}, b, &err) &&
              safetensors_writer_add(w, "k", DTYPE_I8, 1, (int64_t[]){3}, k, &err);
    if (!ok) fail_msg("%s", err.text);
    safetensors_writer_metadata(w, "ss_note", "replaced below");
    safetensors_writer_metadata(w, "ss_note", "a \"quoted\" \xc3\xa9\n");
}

static void same_bytes_as_reference(void **state) {
    (void)state;
    safetensors_writer w = {.refuse_nonfinite = true};
    error err = {{0}};
    char *path = in_folder("written.safetensors"), hex[65], legacy[9];
    writer_fill(&w);
    if (!safetensors_writer_write(&w, path, &err)) fail_msg("%s", err.text);
    file_map map;
    assert_true(file_map_open(&map, path, &err));
    assert_int_equal(map.size, 8 + sizeof REFERENCE_HEADER - 1 + 92);
    assert_memory_equal(map.data + 8, REFERENCE_HEADER, sizeof REFERENCE_HEADER - 1);
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, map.data, map.size);
    sha256_hex(&hash, hex);
    assert_string_equal(hex, REFERENCE_SHA256);
    file_map_close(&map);
    assert_true(safetensors_writer_hashes(&w, hex, legacy, &err));
    assert_string_equal(hex, REFERENCE_DATA_SHA256);
    assert_string_equal(legacy, "e3b0c442"); /* below 1 MiB: the hash of nothing */
    safetensors_writer_free(&w);
    free(path);
}

/* Values from the reference implementation and sd-scripts' rule, on a file above 1 MiB. */
static void hashes_above_one_mebibyte(void **state) {
    (void)state;
    float *x = memory_new(300000, sizeof *x), y[100];
    for (int i = 0; i < 300000; i++) x[i] = (float)(i % 251);
    for (int i = 0; i < 100; i++) y[i] = (float)(i % 7);
    safetensors_writer w = {0};
    error err = {{0}};
    char model[65], legacy[9];
    assert_true(safetensors_writer_add_f32(&w, "y", DTYPE_F16, 1, (int64_t[]){100}, y, &err));
    assert_true(safetensors_writer_add_f32(&w, "x", DTYPE_F32, 1, (int64_t[]){300000}, x, &err));
    safetensors_writer_metadata(&w, "modelspec.title", "not hashed");
    safetensors_writer_metadata(&w, "ss_a", "1");
    safetensors_writer_metadata(&w, "sshs_model_hash", "not hashed either");
    assert_true(safetensors_writer_hashes(&w, model, legacy, &err));
    assert_string_equal(model, "53a486b9de26801e53fa173927b33a170db678f7c3d64c0ce42db25dc0f98ac1");
    assert_string_equal(legacy, "9d6e6b38");
    safetensors_writer_free(&w);
    free(x);
}

static void reads_back(void **state) {
    (void)state;
    safetensors_writer w = {0};
    safetensors st;
    error err = {{0}};
    char *path = in_folder("back.safetensors");
    writer_fill(&w);
    safetensors_writer_metadata(&w, "empty", "");
    assert_true(safetensors_writer_write(&w, path, &err));
    if (!safetensors_open(&st, path, &err)) fail_msg("%s", err.text);
    assert_int_equal(st.count, 12);
    assert_string_equal(safetensors_metadata(&st, "ss_note"), "a \"quoted\" \xc3\xa9\n");
    assert_string_equal(safetensors_metadata(&st, "empty"), "");
    assert_null(safetensors_metadata(&st, "absent"));
    const safetensors_tensor *t = safetensors_find(&st, "a.weight");
    assert_non_null(t);
    assert_int_equal(t->type, DTYPE_F16);
    assert_int_equal(t->bytes, 8);
    float *values = safetensors_read_f32(&st, t, &err);
    assert_non_null(values);
    for (int i = 0; i < 4; i++) assert_true(values[i] == (float)i);
    free(values);
    t = safetensors_find(&st, "a.alpha");
    assert_int_equal(t->rank, 0);
    assert_int_equal(t->elements, 1);
    t = safetensors_find(&st, "j");
    assert_int_equal(t->elements, 0);
    assert_int_equal(t->dims[1], 3);
    for (size_t i = 0; i < st.count; i++) assert_ptr_equal(safetensors_find(&st, st.tensors[i].name), &st.tensors[i]);
    assert_null(safetensors_find(&st, "a"));
    assert_null(safetensors_need(&st, "a", &err));
    assert_non_null(strstr(err.text, "has no tensor a"));
    safetensors_close(&st);
    safetensors_writer_free(&w);
    free(path);
}

/* Files without tensors, without metadata, and with a header that is not padded. */
static void unusual_but_valid(void **state) {
    (void)state;
    safetensors st;
    error err = {{0}};
    char *path = in_folder("unusual.safetensors");
    write_file(path, "{}  ", 0, 0);
    assert_true(safetensors_open(&st, path, &err));
    assert_int_equal(st.count, 0);
    assert_null(safetensors_find(&st, "w"));
    safetensors_close(&st);
    write_file(path, "{\"w\":{" F4 "},\"v\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[16,20],\"more\":1}} ", 0, 20);
    assert_true(safetensors_open(&st, path, &err));
    const safetensors_tensor *t = safetensors_find(&st, "v");
    assert_int_equal(t->rank, 2);
    float *values = safetensors_read_f32(&st, t, &err); /* wherever it lies */
    assert_true(values[0] == 0 && values[1] == 0);
    free(values);
    safetensors_close(&st);
    free(path);
}

/* ---- What the writer refuses ---- */

static void refuses_nonfinite(void **state) {
    (void)state;
    char *path = in_folder("adapter.safetensors");
    write_bytes(path, "old", 3);
    int before = folder_count(folder);
    static const struct {
        float value;
        dtype type;
        bool refused;
    } cases[] = {
        {NAN, DTYPE_F32, true},   {INFINITY, DTYPE_F32, true}, {-INFINITY, DTYPE_BF16, true},
        {70000, DTYPE_F16, true}, {65504, DTYPE_F16, false},   {70000, DTYPE_BF16, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float x[700] = {0};
        x[650] = cases[i].value;
        safetensors_writer w = {.refuse_nonfinite = true};
        error err = {{0}};
        write_bytes(path, "old", 3);
        assert_true(safetensors_writer_add_f32(&w, "lora.w", cases[i].type, 2, (int64_t[]){7, 100}, x, &err));
        assert_int_equal(safetensors_writer_write(&w, path, &err), !cases[i].refused);
        if (cases[i].refused) {
            assert_non_null(strstr(err.text, "tensor lora.w has NaN or infinity"));
            assert_non_null(strstr(err.text, "element 650"));
            size_t size = 0;
            char *old = file_read_text(path, 100, &size, &err);
            assert_string_equal(old, "old");
            free(old);
        }
        safetensors_writer_free(&w);
    }
    assert_int_equal(folder_count(folder), before);
    free(path);
}

static void refuses_bad_input(void **state) {
    (void)state;
    safetensors_writer w = {0};
    error err = {{0}};
    float x[4] = {0};
    char *path = in_folder("bad.safetensors"), hex[65], legacy[9];
    int before = folder_count(folder);
    assert_true(safetensors_writer_add_f32(&w, "w", DTYPE_F32, 1, (int64_t[]){4}, x, &err));
    assert_false(safetensors_writer_add_f32(&w, "w", DTYPE_F32, 1, (int64_t[]){4}, x, &err));
    assert_non_null(strstr(err.text, "is there twice"));
    assert_false(safetensors_writer_add_f32(&w, "", DTYPE_F32, 1, (int64_t[]){4}, x, &err));
    assert_false(safetensors_writer_add_f32(&w, "__metadata__", DTYPE_F32, 1, (int64_t[]){4}, x, &err));
    assert_false(safetensors_writer_add_f32(&w, "v", DTYPE_I32, 1, (int64_t[]){4}, x, &err));
    assert_false(safetensors_writer_add_f32(&w, "v", DTYPE_F32, 1, (int64_t[]){-4}, x, &err));
    assert_false(safetensors_writer_add_f32(&w, "v", DTYPE_F32, 9, (int64_t[]){1, 1, 1, 1, 1, 1, 1, 1, 1}, x, &err));
    safetensors_writer_metadata(&w, "ss_bad", "\xff");
    assert_false(safetensors_writer_write(&w, path, &err));
    assert_non_null(strstr(err.text, "metadata ss_bad: is not valid UTF-8"));
    assert_false(safetensors_writer_hashes(&w, hex, legacy, &err));
    safetensors_writer_metadata(&w, "ss_bad", "good");
    assert_true(safetensors_writer_add_fill(&w, "f", DTYPE_I32, 1, (int64_t[]){2}, fill_f, path, &err));
    assert_false(safetensors_writer_write(&w, path, &err));
    assert_non_null(strstr(err.text, "fill failed"));
    assert_int_equal(folder_count(folder), before);
    char *nowhere = in_folder("absent/x.safetensors");
    assert_false(safetensors_writer_write(&w, nowhere, &err));
    assert_non_null(strstr(err.text, "does not exist"));
    assert_false(safetensors_writer_write(&w, folder, &err));
    assert_non_null(strstr(err.text, "is a folder"));
    safetensors_writer_free(&w);
    free(nowhere);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_headers),     cmocka_unit_test(nested_header),           cmocka_unit_test(other_files),
        cmocka_unit_test(pickle_like_length), cmocka_unit_test(same_bytes_as_reference), cmocka_unit_test(hashes_above_one_mebibyte),
        cmocka_unit_test(reads_back),         cmocka_unit_test(unusual_but_valid),       cmocka_unit_test(refuses_nonfinite),
        cmocka_unit_test(refuses_bad_input),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
