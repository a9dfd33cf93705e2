/* The difference of two models as a LoRA in kohya's format: module by module the best change of a given rank (convert/svd.h). */
#ifndef VULORA_CONVERT_EXTRACT_H
#define VULORA_CONVERT_EXTRACT_H

#include "formats/checkpoint.h"

typedef struct extract_options {
    int64_t rank;      /* at most, of linear layers and 1x1 convolutions; 0: whatever `energy` asks for */
    int64_t conv_rank; /* at most, of 3x3 convolutions; 0: as rank */
    double energy;     /* the smallest rank that keeps this share of the squared singular values; 0: the whole rank */
    double clamp;      /* sd-scripts' clamping of both factors' values at this quantile of theirs; 0: none, which is the best */
    double least;      /* the text encoder is left out when none of its values differs by more */
    dtype type;        /* F32, F16 or BF16: of the file */
    void (*progress)(void *user, int64_t done, int64_t total); /* in modules; may be NULL */
    void *user;
} extract_options;

/* A tensor that differs and that no LoRA can hold: norms, biases, embeddings. */
typedef struct extract_loss {
    checkpoint_part part;
    char *name;   /* diffusers' name */
    double norm;  /* Frobenius norm of its difference */
    double share; /* relative to the base's tensor; infinite where that is 0 */
} extract_loss;

typedef struct extract_report {
    int modules[CHECKPOINT_PARTS]; /* that the LoRA changes */
    int equal;                     /* that do not differ */
    bool text_encoder_left_out;    /* by `least` */
    int64_t least_rank, most_rank;
    double held;          /* of the modules' squared difference, the share that the LoRA has */
    extract_loss *losses; /* U-Net and text encoder, the largest share first */
    int loss_count;
    int vae_tensors; /* of the VAE that differ */
} extract_report;

/* Writes the LoRA to `path`: alpha is each module's rank. Each factor gets the square root of the singular values, which keeps both in
   reach of 16-bit types; with `clamp` it is sd-scripts' U S and V, whose values that formula is about. An error when the models differ in
   nothing a LoRA can hold, or are not of one architecture. The report is filled on success, to be freed with extract_report_free. */
bool extract_lora(const checkpoint *base, const checkpoint *tuned, const char *path, const extract_options *o, extract_report *report,
                  error *err);
void extract_report_free(extract_report *report);

#endif
