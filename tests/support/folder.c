#include "tests/support/folder.h"

#include "base/file.h"
#include "base/memory.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *folder_make(const char *name) {
    char *path = memory_format("/tmp/vulora-%s-XXXXXX", name);
    if (!mkdtemp(path)) abort();
    return path;
}

void folder_remove(char *folder) {
    DIR *dir = opendir(folder);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        struct stat info;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *path = memory_format("%s/%s", folder, entry->d_name);
        if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
            folder_remove(path);
        } else {
            unlink(path);
            free(path);
        }
    }
    if (dir) closedir(dir);
    rmdir(folder);
    free(folder);
}

void folder_write(const char *folder, const char *name, const void *data, size_t size) {
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

void folder_text(const char *folder, const char *name, const char *text) { folder_write(folder, name, text, strlen(text)); }

void folder_picture(const char *folder, const char *name, const char *fixture) {
    char *from = memory_format(TEST_DATA "/images/%s", fixture);
    file_map map;
    error err;
    if (!file_map_open(&map, from, &err)) abort();
    folder_write(folder, name, map.data, map.size);
    file_map_close(&map);
    free(from);
}

int folder_count(const char *folder) {
    int count = 0;
    DIR *dir = opendir(folder);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) count += entry->d_name[0] != '.';
    if (dir) closedir(dir);
    return count;
}

char *folder_enter(const char *name) {
    char *folder = folder_make(name);
    setenv("OMP_WAIT_POLICY", "passive", 1);
    if (chmod(folder, 0755) == 0 && chdir(folder) == 0 && setenv("HOME", folder, 1) == 0) return folder;
    folder_remove(folder);
    return NULL;
}

int folder_leave(char *folder) {
    if (folder && chdir("/") == 0) folder_remove(folder);
    return 0;
}
