/* Free memory as Linux tells it, from files of a machine that is not this one. */
#include "base/machine.h"
#include "base/memory.h"
#include "tests/support/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

static const uint64_t MIB = UINT64_C(1) << 20;

/* folder_text makes two levels of folders; these lie deeper. */
static void put(const char *root, const char *path, const char *text) {
    char *copy = memory_format("%s/%s", root, path);
    for (char *at = copy + 1; *at; at++) {
        if (*at != '/') continue;
        *at = 0;
        mkdir(copy, 0777);
        *at = '/';
    }
    folder_text(root, path, text);
    free(copy);
}

static void expect(const char *root, uint64_t free_mib, uint64_t most_mib) {
    machine_memory m = machine_get_memory(root);
    assert_true(m.free == free_mib * MIB);
    assert_true(m.most == most_mib * MIB);
}

static char *machine(const char *groups) {
    char *root = folder_make("test_machine");
    put(root, "proc/meminfo", "MemTotal:        8388608 kB\nMemFree:          102400 kB\nMemAvailable:    4194304 kB\nBuffers: 12 kB\n");
    put(root, "proc/self/cgroup", groups);
    return root;
}

static void without_control_groups(void **state) {
    (void)state;
    char *root = machine("0::/\n");
    expect(root, 4096, 8192);
    folder_remove(root);
}

/* Limits hold for everything below; inactive pages of files make room. */
static void version_2(void **state) {
    (void)state;
    char *root = machine("0::/user.slice/work\n");
    put(root, "sys/fs/cgroup/user.slice/work/memory.max", "max\n");
    expect(root, 4096, 8192);
    put(root, "sys/fs/cgroup/user.slice/memory.max", "3221225472\n");
    put(root, "sys/fs/cgroup/user.slice/memory.current", "2147483648\n");
    put(root, "sys/fs/cgroup/user.slice/memory.stat", "anon 5\nfile 7\ninactive_file 536870912\nactive_file 9\n");
    expect(root, 1536, 3072);
    put(root, "sys/fs/cgroup/user.slice/work/memory.max", "1073741824\n");
    expect(root, 1024, 1024);
    folder_remove(root);
}

/* A container sees its own group at the top, under the host's path. */
static void version_1_in_a_container(void **state) {
    (void)state;
    char *root = machine("5:cpu:/docker/0a\n4:memory:/docker/0a\n0::/\n");
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
    put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "3221225472\n");
    expect(root, 0, 2048);
    put(root, "sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 2147483648\n");
    expect(root, 1024, 2048);
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    expect(root, 4096, 8192);
    folder_remove(root);
}

static void what_cannot_be_read_does_not_limit(void **state) {
    (void)state;
    char *root = folder_make("test_machine");
    machine_memory m = machine_get_memory(root);
    assert_true(m.free == UINT64_MAX && m.most == UINT64_MAX);
    m = machine_get_memory("");
    assert_true(m.free > 0 && m.free <= m.most);
    folder_remove(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(without_control_groups), cmocka_unit_test(version_2),
                                       cmocka_unit_test(version_1_in_a_container), cmocka_unit_test(what_cannot_be_read_does_not_limit)};
    return cmocka_run_group_tests_name("machine", tests, NULL, NULL);
}
