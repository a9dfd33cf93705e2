#include "cli/lora_folder.h"

#include "base/file.h"
#include "base/memory.h"
#include "cli/infotext.h"
#include "cli/nearest.h"
#include "formats/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MOST = 8 };

typedef struct file_list {
    char **path, **stem;
    size_t count;
} file_list;

static void list_add(file_list *list, char *path) {
    list->path = memory_grow(list->path, list->count + 1, sizeof *list->path);
    list->stem = memory_grow(list->stem, list->count + 1, sizeof *list->stem);
    list->path[list->count] = path;
    list->stem[list->count++] = infotext_stem(path);
}

static void list_free(file_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        free(list->path[i]);
        free(list->stem[i]);
    }
    free(list->path);
    free(list->stem);
}

static bool list_folder(file_list *list, const char *folder, int depth, error *err) {
    DIR *dir = opendir(folder);
    if (!dir) return error_set(err, "--lora-dir: %s cannot be read: %s", folder, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        char *path = memory_format("%s/%s", folder, entry->d_name), *dot = strrchr(entry->d_name, '.');
        bool is_folder = file_is_directory(path);
        if (is_folder && depth < DEPTH_MOST) list_folder(list, path, depth + 1, NULL);
        if (!is_folder && dot && !strcmp(dot, ".safetensors"))
            list_add(list, path);
        else
            free(path);
    }
    closedir(dir);
    return true;
}

static bool has_alias(const char *path, const char *name) {
    safetensors file;
    if (!safetensors_open(&file, path, NULL)) return false;
    const char *alias = safetensors_metadata(&file, "ss_output_name");
    bool same = alias && !strcmp(alias, name);
    safetensors_close(&file);
    return same;
}

static const char *find(const file_list *list, const char *name, error *err) {
    const char *found = NULL;
    nearest search = nearest_begin(name);
    for (size_t i = 0; i < list->count; i++) {
        if (!strcmp(list->stem[i], name)) return list->path[i];
        nearest_try(&search, list->stem[i], list->stem[i]);
    }
    for (size_t i = 0; i < list->count && !found; i++)
        if (has_alias(list->path[i], name)) found = list->path[i];
    if (!found && search.best)
        error_set(err, "<lora:%s>: --lora-dir has no such adapter; did you mean %s?", name, search.best);
    else if (!found)
        error_set(err, "<lora:%s>: none of the %zu adapters in --lora-dir is called that", name, list->count);
    return found;
}

char *lora_folder_find(const char *folder, const char *name, error *err) {
    if (!folder) {
        error_set(err, "<lora:%s>: the prompt names an adapter; give the folder it is in as --lora-dir", name);
        return NULL;
    }
    file_list list = {NULL, NULL, 0};
    const char *path = list_folder(&list, folder, 0, err) ? find(&list, name, err) : NULL;
    char *result = path ? memory_string(path) : NULL;
    list_free(&list);
    return result;
}
