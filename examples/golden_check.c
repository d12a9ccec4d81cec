/* LayerNorm and causal attention in C, with their gradients, proved against golden vectors. Begin your port here.
 *     minicompress golden --out golden && cc -std=c99 -O2 -o golden_check examples/golden_check.c -lm
 *     ./golden_check golden/layer-layernorm*.safetensors golden/layer-attention*.safetensors
 * -Dreal=float makes it a port in float32. Memory is not freed: the program is soon over. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>
#ifndef real
#define real double
#endif
/* A file is 8 bytes of length, little-endian; so many bytes of JSON, which say where each tensor lies; the data. */
typedef struct { real *x; long rank, shape[8], numbers; } Tensor;
static unsigned char *file;
static const char *path, *at;               /* the file's name; what comes next in its header */
static long size, failed;

static void die(const char *why, const char *what) { fprintf(stderr, "%s %s%s\n", path, why, what), exit(1); }
static int64_t little(const unsigned char *p) { uint64_t n = 0; for (int i = 8; i--;) n = n << 8 | p[i]; return n; }
static real *zeros(long n) { return calloc(n, sizeof(real)); }

static void load(void) {
    FILE *stream = fopen(path, "rb");
    if (!stream) die("cannot be opened", "");
    size = fread(file = calloc(1 << 20, 1), 1, (1 << 20) - 1, stream), fclose(stream);
    if (size < 8 || little(file) < 2 || little(file) > size - 8) die("ends before its header does", "");
}

static int token(char into[64]) {           /* a text, a number or a bracket; commas and colons tell nothing here */
    int n = 0, quoted = *(at += strspn(at, " ,:")) == '"';
    if (!*at || at >= (char *)file + 8 + little(file)) die("has a header that is not JSON", "");
    if (strchr("{}[]", *at)) return *at++;
    for (at += quoted; *at && !strchr(quoted ? "\"" : " ,:}]", *at); at++) {
        if (*at == '\\' && at[1]) at++;
        if (n < 63) into[n++] = *at;
    }
    into[n] = 0, at += quoted;
    return quoted ? '"' : '0';
}

static Tensor get(const char *wanted) {  /* {"x": {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]}, ...} */
    char name[64], key[64], value[64], dtype[64] = "";
    for (at = (char *)file + 8, token(key); token(name) == '"';) {
        Tensor t = {.numbers = 1};
        long span[8] = {0};
        for (token(key); token(key) == '"';) {
            long *list = strcmp(key, "shape") ? span : t.shape, n = 0;
            if (token(value) == '[') while (token(value) == '0' && n < 8) list[n++] = atol(value);
            else if (!strcmp(key, "dtype")) strcpy(dtype, value);
            if (list == t.shape) for (t.rank = n; n--;) t.numbers *= list[n];
        }
        if (strcmp(name, wanted)) continue;
        long from = 8 + little(file) + span[0];
        if (span[0] < 0 || span[1] - span[0] != 8 * t.numbers || from + 8 * t.numbers > size) die("ends within ", name);
        t.x = zeros(t.numbers);
        for (long i = 0; i < t.numbers; i++) {
            union { int64_t integer; double number; } of = {little(file + from + 8 * i)};
            t.x[i] = strcmp(dtype, "I64") ? (real)of.number : (real)of.integer;
        }
        return t;
    }
    return (Tensor){.x = NULL};
}
static real *need(const char *name) { real *x = get(name).x; if (!x) die("lacks ", name); return x; }

static void prove(const char *name, const real *ours) {  /* |ours - theirs| / |theirs| against the file's tolerance */
    const real *theirs = need(name), most = *need(sizeof(real) == 8 ? "tolerance.float64" : "tolerance.float32");
    double apart = 0, length = 0;
    for (long i = get(name).numbers; i--; length += pow(theirs[i], 2)) apart += pow(ours[i] - theirs[i], 2);
    double error = sqrt(length > 0 ? apart / length : apart);
    failed |= !(error <= most);             /* not a number fails, too */
    printf("%s  %s  %.1e  %s\n", path, name, error, error <= most ? "PASS" : "FAIL");
}

static void layernorm(Tensor in) {  /* row by row: out = w x̂ + b, x̂ = r (x - mean), r = 1 / √(variance + eps) */
    long C = in.shape[in.rank - 1];
    real *w = need("weight"), *b = need("bias"), eps = *need("config.eps"), *x = in.x, *dout = need("dout");
    real *out = zeros(in.numbers), *dx = zeros(in.numbers), *dw = zeros(C), *db = zeros(C), *xhat = zeros(C);
    for (long n = 0; n < in.numbers; n += C) {
        real mean = 0, variance = 0, shift = 0, stretch = 0;
        for (long c = 0; c < C; c++) mean += x[n + c] / C;
        for (long c = 0; c < C; c++) variance += (x[n + c] - mean) * (x[n + c] - mean) / C;
        real r = 1 / sqrt(variance + eps);
        for (long c = 0; c < C; c++) xhat[c] = r * (x[n + c] - mean), out[n + c] = w[c] * xhat[c] + b[c];
        for (long c = 0; c < C; c++) {      /* dx = r (g - mean(g) - x̂ mean(g x̂)), g = w dout */
            dw[c] += dout[n + c] * xhat[c], db[c] += dout[n + c];
            shift += w[c] * dout[n + c] / C, stretch += w[c] * dout[n + c] * xhat[c] / C;
        }
        for (long c = 0; c < C; c++) dx[n + c] = r * (w[c] * dout[n + c] - shift - xhat[c] * stretch);
    }
    prove("out", out), prove("grad.x", dx), prove("grad.weight", dw), prove("grad.bias", db);
}

static long H, T, P, D, pasts;              /* heads, queries, keys of a past, numbers each; one past may serve all */

static real *slot(real *past, real *own, long i, long s) {  /* key (or value) s of query i's head, the past's first */
    long head = i / T, row = head / H % (pasts ? pasts : 1);
    return s < P ? past + ((row * H + head % H) * P + s) * D : own + (head * T + s - P) * D;
}

static void attention(Tensor in) {          /* query by query: out = p v, p = softmax(q kᵀ / √D + β) */
    if (in.rank != 4) die("has a q that is not (B, H, T, D)", "");
    T = in.shape[2], H = in.shape[1], D = in.shape[3], P = get("past_k").shape[2], pasts = get("past_k").shape[0];
    long past = pasts * H * P * D;
    real *q = in.x, *k = need("k"), *v = need("v"), *dout = need("dout"), root = sqrt((real)D);
    real *pk = get("past_k").x, *pv = get("past_v").x, *beta = get("beta").x, *mask = get("key_mask").x;
    real *out = zeros(in.numbers), *dq = zeros(in.numbers), *dk = zeros(in.numbers), *dv = zeros(in.numbers);
    real *dpk = zeros(past + 1), *dpv = zeros(past + 1), *db = zeros(past + 1), *p = zeros(P + T), *dp = zeros(P + T);
    for (long i = 0; i < in.numbers / D; i++) {
        long S = P + i % T + 1;             /* what it sees: the past, and its own keys 0 .. t */
        real most = -INFINITY, sum = 0, dot = 0;
        for (long s = 0; s < S; most = fmax(most, p[s++])) {
            p[s] = beta && s < P ? beta[(slot(pk, k, i, s) - pk) / D] : 0;
            for (long d = 0; d < D; d++) p[s] += q[i * D + d] * slot(pk, k, i, s)[d] / root;
            if (mask && !mask[i / T / H * (P + T) + s]) p[s] = -INFINITY;
        }
        for (long s = 0; s < S; s++) sum += p[s] = exp(p[s] - most);
        for (long s = 0; s < S; dot += p[s] * dp[s], s++) {
            p[s] /= sum, dp[s] = 0;
            for (long d = 0; d < D; d++) {
                out[i * D + d] += p[s] * slot(pv, v, i, s)[d];
                dp[s] += dout[i * D + d] * slot(pv, v, i, s)[d];
                slot(dpv, dv, i, s)[d] += p[s] * dout[i * D + d];
            }
        }
        for (long s = 0; s < S; s++) {      /* ds = p (dp - Σ p dp) */
            real ds = p[s] * (dp[s] - dot);
            if (s < P) db[(slot(pk, k, i, s) - pk) / D] += ds;
            for (long d = 0; d < D; d++) dq[i * D + d] += ds * slot(pk, k, i, s)[d] / root;
            for (long d = 0; d < D; d++) slot(dpk, dk, i, s)[d] += ds * q[i * D + d] / root;
        }
    }
    prove("out", out), prove("grad.q", dq), prove("grad.k", dk), prove("grad.v", dv);
    if (pk) prove("grad.past_k", dpk), prove("grad.past_v", dpv);
    if (beta) prove("grad.beta", db);
}

int main(int arguments, char **argument) {
    if (arguments < 2) path = "usage:", die("golden_check FILE.safetensors...", "");
    for (int n = 1; n < arguments; n++) {
        path = argument[n], load();
        get("q").x ? attention(get("q")) : layernorm((need("x"), get("x")));
    }
    return failed;
}
