/* The known word nearest to one that was mistyped. */
#ifndef VULORA_CLI_NEAREST_H
#define VULORA_CLI_NEAREST_H

/* Edits (insert, delete, replace, swap of neighbours) from a to b, case and '-'/'_' ignored. */
int nearest_distance(const char *a, const char *b);

/* A search over candidates: call nearest_try for each; `best` is NULL while none is near enough to be what was meant. */
typedef struct nearest {
    const char *word, *best;
    int distance;
} nearest;

nearest nearest_begin(const char *word);
/* shown: what to suggest when `candidate` is the nearest (an alias suggests the option's own name). */
void nearest_try(nearest *search, const char *candidate, const char *shown);

#endif
