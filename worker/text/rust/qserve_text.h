/* The C ABI of the text library (Rust crate qserve_text): tokenizers and chat templates.
 * Called by the C++ classes of worker/text only. Written by hand; src/abi.rs is its other side.
 *
 * Threads: handles are immutable once created. Any number of threads may use one handle at a time;
 * destroying it must be the last use. Nothing here keeps global state but a silent panic hook, set
 * once. Errors: every fallible function returns a QserveTextCode. On any code but QSERVE_TEXT_OK,
 * `error` (never null) receives a UTF-8 message that the caller frees, and no output is written. A
 * panic inside becomes QSERVE_TEXT_INTERNAL. Ownership: QserveTextBytes and QserveTextIds written
 * by this library are freed by its functions below, never by free(). Inputs are (pointer, size)
 * pairs, borrowed for the call; a null pointer is allowed with size 0. */
#ifndef QSERVE_TEXT_H_
#define QSERVE_TEXT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct QserveTokenizer QserveTokenizer;
typedef struct QserveTemplate QserveTemplate;

typedef struct {
  uint8_t* data; /* not terminated by a zero */
  size_t size;
} QserveTextBytes;

typedef struct {
  uint32_t* data;
  size_t size;
} QserveTextIds;

enum {
  QSERVE_TEXT_OK = 0,
  QSERVE_TEXT_INVALID = 1,  /* the input is at fault */
  QSERVE_TEXT_LIMIT = 2,    /* the input is larger, or wants more work, than the caller allows */
  QSERVE_TEXT_INTERNAL = 3, /* a panic, caught at the boundary */
};
typedef int32_t QserveTextCode;

void qserve_text_bytes_free(QserveTextBytes bytes);
void qserve_text_ids_free(QserveTextIds ids);

/* From the contents of a tokenizer.json. Truncation and padding in it are ignored. */
QserveTextCode qserve_tokenizer_create(const uint8_t* json, size_t json_size, QserveTokenizer** out,
                                       QserveTextBytes* error);
void qserve_tokenizer_destroy(QserveTokenizer* tokenizer);

/* One more than the highest token id. Cannot fail. */
uint32_t qserve_tokenizer_vocab_size(const QserveTokenizer* tokenizer);

/* The ids of the tokens marked special, ascending. */
QserveTextCode qserve_tokenizer_special_ids(const QserveTokenizer* tokenizer, QserveTextIds* out,
                                            QserveTextBytes* error);

/* add_special: run the post-processor (BOS and the like). parse_special: text that spells a special
 * token becomes that token; when 0 it is ordinary text. */
QserveTextCode qserve_tokenizer_encode(const QserveTokenizer* tokenizer, const uint8_t* text,
                                       size_t text_size, int32_t add_special, int32_t parse_special,
                                       QserveTextIds* out, QserveTextBytes* error);

/* An id without a token is QSERVE_TEXT_INVALID. */
QserveTextCode qserve_tokenizer_decode(const QserveTokenizer* tokenizer, const uint32_t* ids,
                                       size_t id_count, int32_t skip_special, QserveTextBytes* out,
                                       QserveTextBytes* error);

/* QSERVE_TEXT_INVALID when there is no such token. */
QserveTextCode qserve_tokenizer_id_to_token(const QserveTokenizer* tokenizer, uint32_t id,
                                            QserveTextBytes* out, QserveTextBytes* error);
QserveTextCode qserve_tokenizer_token_to_id(const QserveTokenizer* tokenizer, const uint8_t* token,
                                            size_t token_size, uint32_t* out,
                                            QserveTextBytes* error);

typedef struct {
  uint64_t fuel;            /* template instructions per render */
  uint64_t recursion;       /* nested macro calls, loops and includes; at most 500 */
  uint64_t max_output_size; /* bytes of rendered text */
} QserveTemplateLimits;

/* `source` is a Jinja template, `globals` a JSON object of variables that the model's own files
 * give (bos_token ...). */
QserveTextCode qserve_template_create(const uint8_t* source, size_t source_size,
                                      const uint8_t* globals, size_t globals_size,
                                      QserveTemplateLimits limits, QserveTemplate** out,
                                      QserveTextBytes* error);
void qserve_template_destroy(QserveTemplate* chat_template);

/* `context` is a JSON object of variables made by the caller (messages, add_generation_prompt);
 * `variables` is another, or empty, made by the client (tools, documents, options of the template):
 * a name that hides one of the context or of the environment is QSERVE_TEXT_INVALID.
 * now_unix_seconds feeds strftime_now (UTC). */
typedef struct {
  const uint8_t* context;
  size_t context_size;
  const uint8_t* variables;
  size_t variables_size;
  int64_t now_unix_seconds;
} QserveTemplateInput;

QserveTextCode qserve_template_render(const QserveTemplate* chat_template,
                                      QserveTemplateInput input, QserveTextBytes* out,
                                      QserveTextBytes* error);

/* The rendered text as token ids, with no tokens added around it. Special tokens written by the
 * template are parsed; those spelled by strings of `context` and `variables` stay ordinary text. */
QserveTextCode qserve_template_tokenize(const QserveTemplate* chat_template,
                                        const QserveTokenizer* tokenizer, QserveTemplateInput input,
                                        QserveTextIds* out, QserveTextBytes* error);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* QSERVE_TEXT_H_ */
