/* A folder for the files of one test, removed with all that is in it. */
#ifndef VULORA_TESTS_TEMPORARY_FOLDER_H
#define VULORA_TESTS_TEMPORARY_FOLDER_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 512

/* Makes the folder; path: [PATH_SIZE]. */
static inline int temporary_folder_make(char *path) {
    snprintf(path, PATH_SIZE, "/tmp/vulora-test-XXXXXX");
    return mkdtemp(path) ? 0 : -1;
}

static inline void temporary_folder_remove(const char *path) {
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char inner[PATH_SIZE * 2];
        struct stat info;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        snprintf(inner, sizeof inner, "%.500s/%.500s", path, entry->d_name);
        if (lstat(inner, &info) == 0 && S_ISDIR(info.st_mode))
            temporary_folder_remove(inner);
        else
            unlink(inner);
    }
    if (folder) closedir(folder);
    rmdir(path);
}

/* How many entries a folder has: nothing half-written may be left. */
static inline int temporary_folder_count(const char *path) {
    int count = 0;
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) count += entry->d_name[0] != '.';
    if (folder) closedir(folder);
    return count;
}

#endif
