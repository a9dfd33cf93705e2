/* Temporary folders for tests: made in the working directory, filled by one-line calls, removed with everything in them. */
#ifndef VULORA_TESTS_DATASETS_FOLDER_H
#define VULORA_TESTS_DATASETS_FOLDER_H

#include "base/file.h"
#include "base/memory.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static inline char *folder_make(const char *name) {
    char *path = memory_format("%s-XXXXXX", name);
    if (!mkdtemp(path)) abort();
    return path;
}

/* Writes a file, making the folders in `name` (at most two deep). */
static inline void folder_write(const char *folder, const char *name, const void *data, size_t size) {
    char *path = memory_format("%s/%s", folder, name);
    for (char *slash = path + strlen(folder) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
    error err;
    if (!file_write_all(path, data, size, &err)) abort();
    free(path);
}

static inline void folder_text(const char *folder, const char *name, const char *text) { folder_write(folder, name, text, strlen(text)); }

/* A copy of a fixture picture. */
static inline void folder_picture(const char *folder, const char *name, const char *fixture) {
    char *from = memory_format(TEST_DATA "/images/%s", fixture);
    file_map map;
    error err;
    if (!file_map_open(&map, from, &err)) abort();
    folder_write(folder, name, map.data, map.size);
    file_map_close(&map);
    free(from);
}

static inline void folder_remove(char *folder) {
    DIR *dir = opendir(folder);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *path = memory_format("%s/%s", folder, entry->d_name);
        if (file_is_directory(path))
            folder_remove(path);
        else {
            unlink(path);
            free(path);
        }
    }
    if (dir) closedir(dir);
    rmdir(folder);
    free(folder);
}

#endif
