#include "base/machine.h"

#include "base/memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* The number behind `key` in a file of lines "key number"; key "": the file is a number alone. */
static bool read_number(const char *path, const char *key, uint64_t *value) {
    FILE *file = fopen(path, "r");
    char line[512];
    bool found = false;
    size_t length = strlen(key);
    while (file && !found && fgets(line, sizeof line, file))
        found = strncmp(line, key, length) == 0 && sscanf(line + length, " %" SCNu64, value) == 1;
    if (file) fclose(file);
    return found;
}

static bool read_in(const char *folder, const char *name, const char *key, uint64_t *value) {
    char *path = memory_format("%s/%s", folder, name);
    bool ok = read_number(path, key, value);
    free(path);
    return ok;
}

typedef struct group_files {
    const char *mount, *limit, *usage, *reclaimable;
} group_files;

static const group_files VERSION_1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
static const group_files VERSION_2 = {"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

/* The limit of one group. Pages of files that nobody read lately count as used, but make room when they must. */
static void apply_group(const char *folder, const group_files *f, machine_memory *m) {
    uint64_t limit, usage = 0, reclaimable = 0;
    if (!read_in(folder, f->limit, "", &limit)) return;
    read_in(folder, f->usage, "", &usage);
    read_in(folder, "memory.stat", f->reclaimable, &reclaimable);
    usage -= least(usage, reclaimable);
    m->most = least(m->most, limit);
    m->free = least(m->free, limit - least(limit, usage));
}

/* A group and those above it. In a container the path may be the host's, of which only the topmost folder is to be seen. */
static void apply_groups(const char *root, char *path, const group_files *f, machine_memory *m) {
    for (;;) {
        char *folder = memory_format("%s/%s%s", root, f->mount, path), *slash = strrchr(path, '/');
        apply_group(folder, f, m);
        free(folder);
        if (!slash) return;
        *slash = 0;
    }
}

/* Lines "4:memory:/a/b" (version 1) and "0::/a/b" (version 2). */
static void apply_control_groups(const char *root, machine_memory *m) {
    char *list = memory_format("%s/proc/self/cgroup", root), line[4096];
    FILE *file = fopen(list, "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        if (!controllers[1])
            apply_groups(root, path, &VERSION_2, m);
        else if (strcmp(controllers + 1, "memory") == 0)
            apply_groups(root, path, &VERSION_1, m);
    }
    if (file) fclose(file);
    free(list);
}

machine_memory machine_get_memory(const char *root) {
    machine_memory m = {UINT64_MAX, UINT64_MAX};
    char *path = memory_format("%s/proc/meminfo", root);
    uint64_t kibibytes;
    if (read_number(path, "MemAvailable:", &kibibytes)) m.free = kibibytes * 1024;
    if (read_number(path, "MemTotal:", &kibibytes)) m.most = kibibytes * 1024;
    free(path);
    apply_control_groups(root, &m);
    return m;
}
