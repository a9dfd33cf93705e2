/* SHA-256 against the examples of FIPS 180-4, and in pieces of every length. */
#include "base/sha256.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void hash_of(const void *data, size_t size, size_t piece, char out[65]) {
    sha256 hash;
    sha256_init(&hash);
    for (size_t at = 0; at < size; at += piece) sha256_update(&hash, (const char *)data + at, size - at < piece ? size - at : piece);
    sha256_hex(&hash, out);
}

static void examples(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"}};
    char hex[65];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        hash_of(rows[i][0], strlen(rows[i][0]), 1000, hex);
        assert_string_equal(hex, rows[i][1]);
    }
    /* A million times "a". */
    static char a[1000000];
    memset(a, 'a', sizeof a);
    hash_of(a, sizeof a, sizeof a, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void pieces_change_nothing(void **state) {
    (void)state;
    uint8_t data[700];
    char whole[65], parts[65];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * i % 251);
    for (size_t size = 0; size < sizeof data; size += 23) {
        hash_of(data, size, sizeof data, whole);
        for (size_t piece = 1; piece < 200; piece += 9) {
            hash_of(data, size, piece, parts);
            assert_string_equal(whole, parts);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(examples), cmocka_unit_test(pieces_change_nothing)};
    return cmocka_run_group_tests_name("sha256", tests, NULL, NULL);
}
