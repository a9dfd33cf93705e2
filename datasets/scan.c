/* realpath */
#define _XOPEN_SOURCE 700

#include "datasets/scan.h"

#include "base/file.h"
#include "base/memory.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define REPEATS_ODD 500 /* more than anybody wants: probably a year in the name */
#define REPEATS_MAX 100000

static const char *const PICTURES[] = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"};
static const char *const FOREIGN[] = {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl",
                                      ".psd", ".svg", ".dng",  ".cr2",  ".nef",  ".arw"};
/* Folders beside kohya's img/ that hold something else. */
static const char *const NOT_TRAINED[] = {"reg", "regularization", "log", "logs", "model", "models", "sample", "samples", "class"};

typedef enum sort { SORT_JUNK, SORT_PICTURE, SORT_FOREIGN, SORT_CAPTION, SORT_FOLDER } sort;

typedef struct listing {
    struct entry {
        char *name;
        sort kind;
    } * entries;
    size_t count;
} listing;

void scan_note(scan_result *result, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    result->notes = memory_grow(result->notes, result->note_count + 1, sizeof *result->notes);
    result->notes[result->note_count++] = memory_string(text);
}

bool scan_parse_name(const char *folder_name, int *repeats, const char **name) {
    int digits = 0, value = 0;
    while (digits < 6 && isdigit((unsigned char)folder_name[digits])) value = value * 10 + (folder_name[digits++] - '0');
    if (digits == 0 || folder_name[digits] != '_' || value > REPEATS_MAX) return false;
    *repeats = value;
    *name = folder_name + digits + 1;
    return true;
}

size_t scan_stem(const char *path) {
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path, *dot = strrchr(file, '.');
    return dot && dot != file ? (size_t)(dot - path) : strlen(path);
}

static bool is_among(const char *word, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcasecmp(word, list[i]) == 0) return true;
    return false;
}

static sort sort_file(const char *name, const char *caption_extension) {
    const char *extension = name + scan_stem(name);
    if (name[0] == '.') return SORT_JUNK; /* hidden, and the "._" files of macOS */
    if (caption_extension ? strcmp(extension, caption_extension) == 0
                          : strcmp(extension, ".txt") == 0 || strcmp(extension, ".caption") == 0)
        return SORT_CAPTION;
    if (is_among(extension, PICTURES, sizeof PICTURES / sizeof *PICTURES)) return SORT_PICTURE;
    return is_among(extension, FOREIGN, sizeof FOREIGN / sizeof *FOREIGN) ? SORT_FOREIGN : SORT_JUNK;
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static void listing_free(listing *list) {
    for (size_t i = 0; i < list->count; i++) free(list->entries[i].name);
    free(list->entries);
    *list = (listing){0};
}

/* A folder's entries sorted by name. */
static bool listing_read(const char *folder, const char *extension, listing *out, error *err) {
    *out = (listing){0};
    DIR *dir = opendir(folder);
    if (!dir) return error_set(err, "%s: cannot read the folder: %s", folder, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *path = memory_format("%s/%s", folder, entry->d_name);
        sort kind = sort_file(entry->d_name, extension);
        if (file_is_directory(path)) kind = entry->d_name[0] == '.' || strcmp(entry->d_name, "__MACOSX") == 0 ? SORT_JUNK : SORT_FOLDER;
        free(path);
        out->entries = memory_grow(out->entries, out->count + 1, sizeof *out->entries);
        out->entries[out->count++] = (struct entry){memory_string(entry->d_name), kind};
    }
    closedir(dir);
    if (out->count) qsort(out->entries, out->count, sizeof *out->entries, compare_entries);
    return true;
}

/* The files of one folder; `name` as in scan_picture. */
static void take_files(const char *folder, const listing *list, int repeats, const char *name, scan_result *out) {
    for (size_t i = 0; i < list->count; i++) {
        char *path = memory_format("%s/%s", folder, list->entries[i].name);
        switch (list->entries[i].kind) {
        case SORT_PICTURE:
            out->pictures = memory_grow(out->pictures, out->count + 1, sizeof *out->pictures);
            out->pictures[out->count++] = (scan_picture){path, name ? memory_string(name) : NULL, repeats};
            path = NULL;
            break;
        case SORT_CAPTION:
            out->captions = memory_grow(out->captions, out->caption_count + 1, sizeof *out->captions);
            out->captions[out->caption_count++] = path;
            path = NULL;
            break;
        case SORT_FOREIGN: out->foreign++; break;
        case SORT_JUNK: out->junk++; break;
        case SORT_FOLDER: break;
        }
        free(path);
    }
}

static void note_repeats(const char *folder, int repeats, scan_result *out) {
    if (repeats > REPEATS_ODD)
        scan_note(out, "%s: every picture counts %d times, as the folder's name says; rename it if that is no number of repeats", folder,
                  repeats);
}

static bool take_numbered(const char *folder, int repeats, const char *name, const char *extension, scan_result *out, error *err) {
    if (repeats == 0) {
        scan_note(out, "%s: passed over, its name asks for 0 repeats", folder);
        return true;
    }
    listing list;
    if (!listing_read(folder, extension, &list, err)) return false;
    size_t before = out->count;
    take_files(folder, &list, repeats, name, out);
    size_t inner = 0;
    for (size_t i = 0; i < list.count; i++) inner += list.entries[i].kind == SORT_FOLDER;
    if (inner) scan_note(out, "%s: its %zu subfolders are not looked into", folder, inner);
    if (out->count > before) note_repeats(folder, repeats, out);
    listing_free(&list);
    return true;
}

/* The N_name subfolders of a folder. */
static bool take_subfolders(const char *folder, const listing *list, const char *extension, scan_result *out, error *err) {
    bool ok = true;
    for (size_t i = 0; i < list->count && ok; i++) {
        int repeats;
        const char *name;
        if (list->entries[i].kind != SORT_FOLDER || !scan_parse_name(list->entries[i].name, &repeats, &name)) continue;
        char *path = memory_format("%s/%s", folder, list->entries[i].name);
        ok = take_numbered(path, repeats, name, extension, out, err);
        free(path);
    }
    return ok;
}

/* Subfolders without a number: searched for N_name folders if nothing was found above them, else only reported. */
static bool look_deeper(const char *folder, const listing *list, const char *extension, scan_result *out, error *err) {
    bool search = out->count == 0, ok = true;
    for (size_t i = 0; i < list->count && ok; i++) {
        int repeats;
        const char *name;
        if (list->entries[i].kind != SORT_FOLDER || scan_parse_name(list->entries[i].name, &repeats, &name)) continue;
        char *path = memory_format("%s/%s", folder, list->entries[i].name);
        listing inner;
        if (listing_read(path, extension, &inner, NULL)) {
            size_t pictures = 0;
            for (size_t k = 0; k < inner.count; k++) pictures += inner.entries[k].kind == SORT_PICTURE;
            bool other = is_among(list->entries[i].name, NOT_TRAINED, sizeof NOT_TRAINED / sizeof *NOT_TRAINED);
            if (pictures)
                scan_note(out,
                          "%s: its %zu pictures are not used, because the folder's name does not start with a number of repeats (10_%s)",
                          path, pictures, list->entries[i].name);
            if (search && !other) ok = take_subfolders(path, &inner, extension, out, err);
            listing_free(&inner);
        }
        free(path);
    }
    return ok;
}

static bool nothing_found(const char *folder, const scan_result *out, error *err) {
    return error_set(
        err,
        "%s: no pictures found (%s; %zu files of other kinds%s)\n%s%sPut the pictures into this folder, or into subfolders named "
        "N_name (10_mydog: each counts 10 times), or name the folder that holds such subfolders",
        folder, SCAN_PICTURE_EXTENSIONS, out->junk + out->foreign + out->caption_count,
        out->foreign ? "; GIF, TIFF, HEIC and the like must be converted" : "", out->note_count ? out->notes[0] : "",
        out->note_count ? "\n" : "");
}

/* The folder's own name, also for "." and "photos/". */
static char *own_name(const char *folder) {
    char *path = realpath(folder, NULL);
    const char *slash = path ? strrchr(path, '/') : NULL;
    char *name = memory_string(slash ? slash + 1 : "");
    free(path);
    return name;
}

bool scan_folder(const char *folder, const char *extension, scan_result *out, error *err) {
    *out = (scan_result){0};
    if (!file_exists(folder)) return error_set(err, "%s: does not exist; --data needs a folder with pictures", folder);
    if (!file_is_directory(folder)) return error_set(err, "%s: is a file; --data needs a folder with pictures", folder);
    char *path = memory_string(folder);
    for (size_t size = strlen(path); size > 1 && path[size - 1] == '/';) path[--size] = 0;
    char *self = own_name(path);
    int repeats = 1;
    const char *name = NULL;
    if (scan_parse_name(self, &repeats, &name) && repeats == 0) repeats = 1;
    listing list;
    bool ok = listing_read(path, extension, &list, err);
    if (ok) {
        take_files(path, &list, repeats, name, out);
        if (out->count) note_repeats(path, repeats, out);
        ok = take_subfolders(path, &list, extension, out, err) && look_deeper(path, &list, extension, out, err);
        if (ok && out->count == 0) ok = nothing_found(path, out, err);
    }
    listing_free(&list);
    free(self);
    free(path);
    if (!ok) scan_free(out);
    return ok;
}

void scan_free(scan_result *result) {
    for (size_t i = 0; i < result->count; i++) {
        free(result->pictures[i].path);
        free(result->pictures[i].name);
    }
    for (size_t i = 0; i < result->caption_count; i++) free(result->captions[i]);
    for (size_t i = 0; i < result->note_count; i++) free(result->notes[i]);
    free(result->pictures);
    free(result->captions);
    free(result->notes);
    *result = (scan_result){0};
}
