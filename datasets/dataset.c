#include "datasets/dataset.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "datasets/caption.h"
#include "datasets/scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SMALLEST_SIDE 16

/* What dataset_open needs at hand while it goes through the pictures. */
typedef struct opening {
    const dataset_options *options;
    const char *extension; /* of captions, with its dot; NULL: the usual two */
    char *trigger;
    scan_result scan;
    dataset *ds;
    size_t bad;         /* pictures and captions with problems */
    size_t uncaptioned; /* pictures without caption */
    const char *first_uncaptioned;
} opening;

static void hash_bytes(const uint8_t *data, size_t size, char out[65]) {
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, data, size);
    sha256_hex(&hash, out);
}

/* Structure, size and hash of a picture, and where it goes. */
static bool read_picture(opening *o, dataset_image *image, error *err) {
    file_map map;
    if (!file_map_open(&map, image->path, err)) return false;
    image_info info;
    bool ok = image_probe(map.data, map.size, image->path, &info, err);
    if (ok) hash_bytes(map.data, map.size, image->hash);
    file_map_close(&map);
    if (!ok) return false;
    if (info.width < SMALLEST_SIDE || info.height < SMALLEST_SIDE)
        return error_set(err, "%s: is %dx%d pixels, too small to learn from (%d a side at least); remove it", image->path, info.width,
                         info.height, SMALLEST_SIDE);
    image->width = info.width;
    image->height = info.height;
    image->bucket = bucket_choose(o->ds->buckets, o->ds->bucket_count, info.width, info.height);
    bucket_size bucket = o->ds->buckets[image->bucket];
    image->crop = bucket_crop(bucket, info.width, info.height);
    image->upscaled = image->crop.width < bucket.width || image->crop.height < bucket.height;
    return true;
}

/* The caption file beside a picture: *text stays NULL if there is none, or nothing in it. */
static bool read_caption_file(opening *o, const char *picture, const char *extension, char **text, error *err) {
    char *path = memory_format("%.*s%s", (int)scan_stem(picture), picture, extension);
    bool ok = true, more = false;
    if (file_exists(path)) {
        *text = caption_read(path, &more, err);
        ok = *text != NULL;
        o->ds->report.long_captions += more;
        if (ok && !**text) {
            o->ds->report.empty_captions++;
            free(*text);
            *text = NULL;
        }
    }
    free(path);
    return ok;
}

static bool read_caption(opening *o, dataset_image *image, const char *folder_name, error *err) {
    if (o->extension) {
        image->source = CAPTION_OTHER_FILE;
        if (strcmp(o->extension, ".txt") == 0) image->source = CAPTION_TXT;
        if (strcmp(o->extension, ".caption") == 0) image->source = CAPTION_CAPTION;
        if (!read_caption_file(o, image->path, o->extension, &image->caption, err)) return false;
    } else {
        image->source = CAPTION_TXT;
        if (!read_caption_file(o, image->path, ".txt", &image->caption, err)) return false;
        if (!image->caption) {
            image->source = CAPTION_CAPTION;
            if (!read_caption_file(o, image->path, ".caption", &image->caption, err)) return false;
        }
    }
    if (!image->caption && folder_name && *folder_name) {
        image->source = CAPTION_FOLDER;
        image->caption = caption_trim(folder_name, image->path, err);
        if (!image->caption) return false;
    }
    if (!image->caption && o->trigger) {
        image->source = CAPTION_TRIGGER;
        image->caption = memory_string(o->trigger);
    }
    if (image->caption) {
        o->ds->report.captions[image->source]++;
        return true;
    }
    if (o->uncaptioned++ == 0) o->first_uncaptioned = image->path;
    return true;
}

static bool no_captions(const opening *o, error *err) {
    const char *kinds = o->extension ? o->extension : ".txt";
    size_t stem = scan_stem(o->first_uncaptioned);
    return error_set(
        err,
        "%s: %zu of %zu pictures have no caption, the first is %s\nWrite one to %.*s%s, or name the folder N_name (10_mydog: \"mydog\" "
        "becomes the caption), or give one for all of them with --trigger",
        o->options->folder, o->uncaptioned, o->ds->count, o->first_uncaptioned, (int)stem, o->first_uncaptioned, kinds);
}

static int compare_pictures(const void *a, const void *b) {
    return strcmp(((const scan_picture *)a)->path, ((const scan_picture *)b)->path);
}

static int compare_hashes(const void *a, const void *b) {
    const dataset_image *left = *(dataset_image *const *)a, *right = *(dataset_image *const *)b;
    int order = strcmp(left->hash, right->hash);
    return order ? order : strcmp(left->path, right->path);
}

static void find_duplicates(opening *o) {
    dataset *ds = o->ds;
    dataset_image **sorted = memory_new(ds->count, sizeof *sorted);
    for (size_t i = 0; i < ds->count; i++) sorted[i] = &ds->images[i];
    qsort(sorted, ds->count, sizeof *sorted, compare_hashes);
    for (size_t i = 1; i < ds->count; i++) {
        if (strcmp(sorted[i]->hash, sorted[i - 1]->hash) != 0) continue;
        if (ds->report.duplicates++ == 0) scan_note(&o->scan, "%s and %s are the same picture", sorted[i - 1]->path, sorted[i]->path);
    }
    free(sorted);
}

static int compare_stems(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void find_lone_captions(opening *o) {
    char **stems = memory_new(o->ds->count, sizeof *stems);
    for (size_t i = 0; i < o->ds->count; i++)
        stems[i] = memory_format("%.*s", (int)scan_stem(o->ds->images[i].path), o->ds->images[i].path);
    qsort(stems, o->ds->count, sizeof *stems, compare_stems);
    for (size_t i = 0; i < o->scan.caption_count; i++) {
        char *stem = memory_format("%.*s", (int)scan_stem(o->scan.captions[i]), o->scan.captions[i]);
        if (!bsearch(&stem, stems, o->ds->count, sizeof *stems, compare_stems) && o->ds->report.lone_captions++ == 0)
            scan_note(&o->scan, "%s: there is no picture of that name", o->scan.captions[i]);
        free(stem);
    }
    for (size_t i = 0; i < o->ds->count; i++) free(stems[i]);
    free(stems);
}

static void fill_report(opening *o) {
    dataset *ds = o->ds;
    dataset_report *report = &ds->report;
    report->images = ds->count;
    for (size_t i = 0; i < ds->count; i++) {
        const dataset_image *image = &ds->images[i], *smallest = &ds->images[report->smallest];
        report->items += (size_t)image->repeats;
        report->upscaled += image->upscaled;
        ds->bucket_images[image->bucket]++;
        ds->bucket_items[image->bucket] += (size_t)image->repeats;
        if ((int64_t)image->width * image->height < (int64_t)smallest->width * smallest->height) report->smallest = i;
    }
    report->junk = o->scan.junk;
    report->foreign = o->scan.foreign;
    if (report->foreign)
        scan_note(&o->scan, "%zu pictures are in formats that are not read (GIF, TIFF, HEIC, ...); convert them to use them",
                  report->foreign);
    find_duplicates(o);
    find_lone_captions(o);
    report->notes = o->scan.notes;
    report->note_count = o->scan.note_count;
    o->scan.notes = NULL;
    o->scan.note_count = 0;
}

static bool read_all(opening *o, error *err) {
    dataset *ds = o->ds;
    ds->count = o->scan.count;
    ds->images = memory_new(ds->count, sizeof *ds->images);
    qsort(o->scan.pictures, ds->count, sizeof *o->scan.pictures, compare_pictures);
    for (size_t i = 0; i < ds->count; i++) {
        dataset_image *image = &ds->images[i];
        image->path = memory_string(o->scan.pictures[i].path);
        image->repeats = o->scan.pictures[i].repeats;
        error *place = o->bad ? NULL : err; /* the first problem is told in full, the others are counted */
        if (!read_picture(o, image, place) || !read_caption(o, image, o->scan.pictures[i].name, place)) o->bad++;
    }
    if (o->bad > 1) {
        char first[sizeof err->text];
        snprintf(first, sizeof first, "%.900s", err ? err->text : "");
        return error_set(err, "%s\n%zu more pictures or captions have problems", first, o->bad - 1);
    }
    if (o->bad) return false;
    return o->uncaptioned == 0 || no_captions(o, err);
}

bool dataset_open(const dataset_options *options, dataset *ds, error *err) {
    *ds = (dataset){.flip = options->flip};
    memcpy(ds->background, options->background, sizeof ds->background);
    opening o = {.options = options, .ds = ds};
    ds->buckets = bucket_list(&options->buckets, &ds->bucket_count, err);
    if (!ds->buckets) return false;
    ds->bucket_images = memory_new(ds->bucket_count, sizeof *ds->bucket_images);
    ds->bucket_items = memory_new(ds->bucket_count, sizeof *ds->bucket_items);
    char *extension = NULL;
    if (options->caption_extension)
        extension = memory_format("%s%s", options->caption_extension[0] == '.' ? "" : ".", options->caption_extension);
    o.extension = extension;
    bool ok = true;
    if (options->trigger) {
        o.trigger = caption_trim(options->trigger, "--trigger", err);
        ok = o.trigger != NULL;
        if (ok && !*o.trigger) ok = error_set(err, "--trigger: is empty; give the word or sentence that names the subject");
    }
    if (ok && extension && (!extension[1] || strchr(extension, '/')))
        ok = error_set(err, "--caption-extension %s: is no file extension; .txt is one", options->caption_extension);
    ok = ok && scan_folder(options->folder, extension, &o.scan, err) && read_all(&o, err);
    if (ok) fill_report(&o);
    scan_free(&o.scan);
    free(o.trigger);
    free(extension);
    if (!ok) dataset_close(ds);
    return ok;
}

void dataset_close(dataset *ds) {
    for (size_t i = 0; i < ds->count; i++) {
        free(ds->images[i].path);
        free(ds->images[i].caption);
    }
    for (size_t i = 0; i < ds->report.note_count; i++) free(ds->report.notes[i]);
    free(ds->report.notes);
    free(ds->images);
    free(ds->buckets);
    free(ds->bucket_images);
    free(ds->bucket_items);
    *ds = (dataset){0};
}

bool dataset_load(const dataset *ds, size_t index, bool flip, float *out, error *err) {
    const dataset_image *entry = &ds->images[index];
    bucket_size bucket = ds->buckets[entry->bucket];
    file_map map;
    if (!file_map_open(&map, entry->path, err)) return false;
    char hash[65];
    hash_bytes(map.data, map.size, hash);
    image_rgb picture = {0};
    bool ok = strcmp(hash, entry->hash) == 0 || error_set(err, "%s: has changed since training began; start again", entry->path);
    ok = ok && image_decode(map.data, map.size, entry->path, ds->background, &picture, err);
    file_map_close(&map);
    ok = ok && (image_scale(&picture, entry->crop, flip, out, bucket.width, bucket.height, err) || error_prefix(err, "%s", entry->path));
    image_free(&picture);
    return ok;
}
