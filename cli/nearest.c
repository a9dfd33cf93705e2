#include "cli/nearest.h"

#include <ctype.h>
#include <limits.h>
#include <string.h>

enum { WORD_LENGTH = 64 };

static int fold(char c) { return c == '_' ? '-' : tolower((unsigned char)c); }

static int min2(int a, int b) { return a < b ? a : b; }

/* The optimal string alignment distance, three rows at a time. */
int nearest_distance(const char *a, const char *b) {
    int la = (int)strlen(a), lb = (int)strlen(b);
    if (la > WORD_LENGTH || lb > WORD_LENGTH) return INT_MAX;
    int rows[3][WORD_LENGTH + 1], *before = rows[0], *above = rows[1], *row = rows[2];
    for (int j = 0; j <= lb; j++) above[j] = j;
    for (int i = 1; i <= la; i++) {
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int same = fold(a[i - 1]) == fold(b[j - 1]);
            row[j] = min2(above[j - 1] + !same, min2(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) && fold(a[i - 2]) == fold(b[j - 1]))
                row[j] = min2(row[j], before[j - 2] + 1);
        }
        int *oldest = before;
        before = above;
        above = row;
        row = oldest;
    }
    return above[lb];
}

nearest nearest_begin(const char *word) { return (nearest){word, NULL, INT_MAX}; }

void nearest_try(nearest *search, const char *candidate, const char *shown) {
    int distance = nearest_distance(search->word, candidate), la = (int)strlen(search->word), lb = (int)strlen(candidate);
    int longest = la > lb ? la : lb, limit = longest < 6 ? 2 : (longest + 2) / 3;
    if (distance > limit || distance >= longest || distance >= search->distance) return;
    search->distance = distance;
    search->best = shown;
}
