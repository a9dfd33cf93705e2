/* Editing what an adapter file says about itself, and the files that webui keeps beside it (formats.md 5). */
#ifndef VULORA_CONVERT_METADATA_H
#define VULORA_CONVERT_METADATA_H

#include "convert/labels.h"

/* Texts: NULL leaves what is there, an empty one takes it out. */
typedef struct metadata_edits {
    bool strip; /* first of all: only what names kind and base model stays */
    const char *title, *description, *notes, *trigger, *author, *license, *tags;
    const char *preview;    /* a picture file */
    const char *const *set; /* "key=value", after everything else */
    int set_count;
    bool side_files;         /* OUT.json and, of a preview, OUT.preview.png */
    const char *negative;    /* of OUT.json only: what webui puts into the negative prompt */
    double preferred_weight; /* of OUT.json only; 0: webui's own */
} metadata_edits;

/* Whether any of it changes anything. */
bool metadata_edits_given(const metadata_edits *e);
/* Before any work: that --set items have a key that may be set, and that the preview is a picture. */
bool metadata_edits_check(const metadata_edits *e, error *err);

/* modelspec.title, .description, .trigger_phrase, .author, .license, .tags, .thumbnail; notes as ss_training_comment. */
bool metadata_edit(labels *l, const metadata_edits *e, error *err);

/* The side files of the adapter `path`, if they are asked for. What the edits do not say comes from the metadata (a key of which may be
   missing); what an OUT.json that is there already says besides is kept. Written under temporary names first. */
bool metadata_side_files(const char *path, const labels *l, const metadata_edits *e, error *err);

/* A data: URL of the picture for modelspec.thumbnail: the file as it is when it is small, else a WebP of at most 256 pixels a side. Freed
   by the caller; NULL on error. */
char *metadata_thumbnail(const char *path, error *err);

#endif
