/* ktops: matrix products on quantised GGUF weights, for CPUs.
 *
 * One C header is the whole interface, so the library serves any language and survives upgrades of
 * them. Every function returns a status and never throws; bad arguments are refused, not followed.
 * All pointers must stay valid for the duration of the call only.
 */
#ifndef KTOPS_H
#define KTOPS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KTOPS_API __attribute__((visibility("default")))

/* Raised by any change of a struct, a number or a meaning in this header. */
#define KTOPS_ABI_VERSION 6

typedef enum ktops_status {
  KTOPS_OK = 0,
  KTOPS_ERROR_NULL_POINTER = 1,
  KTOPS_ERROR_UNKNOWN_TYPE = 2,
  KTOPS_ERROR_UNKNOWN_LAYOUT = 3,
  KTOPS_ERROR_BAD_SHAPE = 4,
  KTOPS_ERROR_EXPERT_OUT_OF_RANGE = 5,
  KTOPS_ERROR_OUT_OF_MEMORY = 6,
  KTOPS_ERROR_THREADS = 7,
  KTOPS_ERROR_UNKNOWN_ISA = 8,
  KTOPS_ERROR_FILE = 9,
  KTOPS_ERROR_TIMEOUT = 10,
  KTOPS_ERROR_CANCELLED = 11,
  KTOPS_ERROR_GIVEN_UP = 12,
  KTOPS_ERROR_BAD_REQUEST = 13,
} ktops_status;

/* Numbers of GGML, as found in GGUF files. */
typedef enum ktops_type {
  KTOPS_TYPE_F32 = 0,
  KTOPS_TYPE_F16 = 1,
  KTOPS_TYPE_Q4_0 = 2,
  KTOPS_TYPE_Q5_0 = 6,
  KTOPS_TYPE_Q8_0 = 8,
  KTOPS_TYPE_Q4_K = 12,
  KTOPS_TYPE_Q5_K = 13,
  KTOPS_TYPE_Q6_K = 14,
  KTOPS_TYPE_BF16 = 30,
} ktops_type;

/* How the blocks of a matrix lie in memory; both take the same bytes. */
typedef enum ktops_layout {
  /* Row after row, each a run of blocks, as in the file. */
  KTOPS_LAYOUT_GGUF = 0,
  /* Sixteen rows interleaved in words of four bytes (csrc/README.md); quantised types only. Rows
   * left over from a multiple of sixteen follow as in the file. */
  KTOPS_LAYOUT_PANEL16 = 1,
} ktops_layout;

/* Weights, [num_experts, rows, cols]; the experts follow one another without gaps. */
typedef struct ktops_matrix {
  const void* data;
  uint64_t rows;
  uint64_t cols; /* a multiple of the type's block */
  uint32_t type; /* ktops_type */
  uint32_t layout;
  uint32_t num_experts; /* 1 for an ordinary matrix */
  uint32_t reserved;    /* zero */
} ktops_matrix;

/* y = x · weightᵀ, for each of the weight's matrices with activations of its own */
typedef struct ktops_matmul_args {
  ktops_matrix weight;
  const float* x; /* [num_experts, num_tokens, cols] */
  float* y;       /* [num_experts, num_tokens, rows] */
  uint64_t num_tokens;
} ktops_matmul_args;

/* y[t] = Σ_k expert_weights[t, k] · down_e( silu(gate_e · x[t]) ∘ (up_e · x[t]) ), e =
 * expert_ids[t, k]
 *
 * A negative expert id is skipped. With one expert and top_k 1, expert_ids and expert_weights may
 * both be null: an ordinary feed-forward network. */
typedef struct ktops_moe_args {
  ktops_matrix gate;           /* [num_experts, intermediate, hidden] */
  ktops_matrix up;             /* [num_experts, intermediate, hidden] */
  ktops_matrix down;           /* [num_experts, hidden, intermediate] */
  const float* x;              /* [num_tokens, hidden] */
  const int32_t* expert_ids;   /* [num_tokens, top_k] */
  const float* expert_weights; /* [num_tokens, top_k] */
  float* y;                    /* [num_tokens, hidden], overwritten */
  uint64_t num_tokens;
  uint32_t top_k;
  uint32_t reserved; /* zero */
} ktops_moe_args;

/* What attention reads of one token's sequence in the cache: its slots, the last of them the
 * token's own. */
typedef struct ktops_context {
  const int64_t* slots; /* [num_slots]; null: consecutive ones */
  uint64_t first_slot;  /* of consecutive ones */
  uint64_t num_slots;   /* at least 1 */
} ktops_context;

/* x += output · attention(norm(x)): multi-head latent attention (arXiv:2405.04434, section 2.1) of
 * single new tokens, each of a sequence of its own, computed in the latent space. A slot of the
 * cache holds the latent, normalised, and the rotated key that all heads share. The sizes follow
 * from the matrices: heads = key_up.num_experts, rank = key_up.rows, nope = key_up.cols, rope =
 * kv_a.rows - rank, v = value_up.rows. */
typedef struct ktops_mla_decode_args {
  ktops_matrix query_a;     /* [query rank, hidden]; data null: queries are not compressed */
  ktops_matrix query_b;     /* [heads * (nope + rope), query rank or hidden] */
  ktops_matrix kv_a;        /* [rank + rope, hidden] */
  ktops_matrix key_up;      /* [heads, rank, nope] */
  ktops_matrix value_up;    /* [heads, v, rank] */
  ktops_matrix output;      /* [hidden, heads * v] */
  const float* input_norm;  /* [hidden] */
  const float* query_norm;  /* [query rank]; null with query_a.data */
  const float* latent_norm; /* [rank] */
  float norm_eps;
  float score_scale;      /* above 0: of the products of queries and keys */
  float* x;               /* [num_tokens, hidden], added to */
  const float* rotations; /* [num_tokens, rope / 2, 2]: cosines and sines */
  float* cache;           /* [cache_slots, rank + rope], written to */
  uint64_t cache_slots;
  const ktops_context* contexts; /* [num_tokens] */
  uint64_t num_tokens;
} ktops_mla_decode_args;

/* Which experts a token goes to: scores = sigmoid or softmax(weight · x); the chosen_groups groups
 * whose group_best best values of scores + bias have the largest sums; the top_k best of those. An
 * expert weighs its score times scale, divided by the sum of the chosen scores if is_normalised. */
typedef struct ktops_router {
  ktops_matrix weight; /* [num_experts, hidden] */
  const float* bias;   /* [num_experts]; may be null */
  uint32_t top_k;
  uint32_t num_groups; /* 1: no groups */
  uint32_t chosen_groups;
  uint32_t group_best;
  uint32_t is_sigmoid;
  uint32_t is_normalised;
  float scale;
  uint32_t reserved; /* zero */
} ktops_router;

/* x += routed experts(norm(x)) + shared expert(norm(x)), for a few tokens; the experts as in
 * ktops_moe_args. With router.weight.data null there is no routing, only the shared expert: a dense
 * layer. */
typedef struct ktops_ffn_decode_args {
  ktops_router router;
  ktops_matrix gate, up, down;
  ktops_matrix shared_gate, shared_up, shared_down;
  const float* input_norm; /* [hidden] */
  float norm_eps;
  uint32_t reserved;   /* zero */
  float* x;            /* [num_tokens, hidden], added to */
  int32_t* expert_ids; /* [num_tokens, top_k], overwritten with the chosen ones */
  uint64_t expert_ns;  /* overwritten with the time the routed experts took */
  uint64_t num_tokens;
} ktops_ffn_decode_args;

/* Rows [first_row, first_row + num_rows) of a matrix, those of all experts counted on, from a file.
 * The first is a multiple of 16 within its expert, and so is the end unless the expert ends there.
 * target.data is written to. */
typedef struct ktops_read_args {
  ktops_matrix target;
  uint64_t first_row;
  uint64_t num_rows;
  uint64_t offset;    /* of the matrix's first row in the file */
  int32_t file;       /* descriptor */
  int32_t file_errno; /* set with KTOPS_ERROR_FILE; 0: the file has ended */
} ktops_read_args;

/* Memory from ktops_alloc. huge_page_errno: why a request for huge pages was refused, or 0. */
typedef struct ktops_buffer {
  void* address;
  uint64_t num_bytes;
  int32_t huge_page_errno;
  uint32_t reserved;
} ktops_buffer;

/* A layer that a GPU hands over: the weights of ktops_moe_args. */
typedef struct ktops_handoff_layer {
  ktops_matrix gate;
  ktops_matrix up;
  ktops_matrix down;
} ktops_handoff_layer;

/* Where things stand in the block that GPU and CPU share: offsets in bytes from its start, and its
 * size. Flags are uint32_t on cache lines of their own; GPU and CPU never write the same line. */
typedef struct ktops_handoff_layout {
  uint64_t asked;          /* GPU: number of the request, written last (release) */
  uint64_t layer;          /* GPU: uint32_t, then num_tokens, uint32_t */
  uint64_t given_up;       /* GPU: not zero once it has waited for too long */
  uint64_t activations;    /* GPU: bfloat16 [max_tokens, hidden] */
  uint64_t expert_ids;     /* GPU: int32_t [max_tokens, top_k], negative: not for the CPU */
  uint64_t expert_weights; /* GPU: float [max_tokens, top_k] */
  uint64_t done;           /* CPU: number of the request, written last (release) */
  uint64_t result;         /* CPU: float [max_tokens, hidden] */
  uint64_t num_bytes;
} ktops_handoff_layout;

/* The block is zeroed, aligned to 64 bytes, and lives longer than the handoff, as the weights do;
 * `layers` is copied. */
typedef struct ktops_handoff_args {
  const ktops_handoff_layer* layers;
  void* block;
  uint64_t num_block_bytes;
  uint32_t num_layers;
  uint32_t hidden;
  uint32_t top_k;
  uint32_t max_tokens;
} ktops_handoff_args;

/* What has been served since the handoff was made. */
typedef struct ktops_handoff_traffic {
  uint64_t num_requests;
  uint64_t num_bytes;  /* of weights: each chosen expert once a request */
  uint64_t compute_ns; /* from a request's arrival to its answer */
} ktops_handoff_traffic;

typedef struct ktops_pool ktops_pool;
typedef struct ktops_handoff ktops_handoff;

/* The number of a request is one more than that of the one before, in 31 bits, from 1 on; so this
 * is none. As `done` it tells the GPU not to wait any longer. */
#define KTOPS_HANDOFF_REFUSED UINT32_MAX

KTOPS_API uint32_t ktops_abi_version(void);

/* The sizes of ktops_matrix, ktops_matmul_args, ktops_moe_args, ktops_buffer, ktops_read_args,
 * ktops_handoff_layer, ktops_handoff_layout, ktops_handoff_args, ktops_handoff_traffic,
 * ktops_context, ktops_mla_decode_args, ktops_router and ktops_ffn_decode_args, in this order.
 * Writes at most `capacity` of them and returns how many there are. */
KTOPS_API uint32_t ktops_struct_sizes(uint32_t* sizes, uint32_t capacity);

/* A short English sentence; never null. */
KTOPS_API const char* ktops_status_string(int32_t status);

/* Name of the instruction set a new pool will use: the best one the CPU and the operating system
 * support, no better than the environment variable KTOPS_ISA says. */
KTOPS_API int32_t ktops_isa(const char** name);

/* Name of the index-th instruction set this machine can run, plainest first; null past the end.
 * Ignores KTOPS_ISA. */
KTOPS_API const char* ktops_isa_available(uint32_t index);

/* Weights in a block of the type and the bytes it takes. */
KTOPS_API int32_t ktops_type_block(uint32_t type, uint32_t* block_size, uint32_t* block_bytes);

/* Zeroed memory on huge pages where the kernel grants them. */
KTOPS_API int32_t ktops_alloc(uint64_t num_bytes, ktops_buffer* buffer);
KTOPS_API int32_t ktops_free(ktops_buffer* buffer);

/* Threads for the calls below: the caller and one worker for each of cpus[1..], pinned there when
 * the kernel allows it. The caller is not pinned, only moved to cpus[0] when a call finds it
 * elsewhere. Calls on one pool from several threads wait for each other. */
KTOPS_API int32_t ktops_pool_create(const int32_t* cpus, uint32_t num_cpus, ktops_pool** pool);
KTOPS_API int32_t ktops_pool_destroy(ktops_pool* pool);

/* The NUMA node of each thread, in the order of ktops_pool_create: num_threads numbers of the
 * system. Large matrices are then shared out over the different nodes, in the order of their
 * numbers: of n nodes, node k has the rows [k/n, (k+1)/n) of each expert, and its threads take them
 * before they help with others. num_nodes is set to n; 1, when the library was built without NUMA,
 * or all threads are on one node, or there are more than 64: nothing changes then. */
KTOPS_API int32_t ktops_pool_set_nodes(ktops_pool* pool, const int32_t* nodes, uint32_t num_threads,
                                       uint32_t* num_nodes);

/* Puts the pages of a matrix in a buffer on the nodes of their rows, before anything is written
 * there; those of small matrices on each node in turn. numa_errno: why the kernel refuses to be
 * told a node, or 0; pages then come from where the pool's threads of the node run. */
KTOPS_API int32_t ktops_place(ktops_pool* pool, const ktops_buffer* buffer,
                              const ktops_matrix* matrix, int32_t* numa_errno);

/* To be called when all matrices of a buffer are placed: the kernel then moves no page of it to
 * other nodes of its own accord. numa_errno: why it refuses, or 0. */
KTOPS_API int32_t ktops_hold(const ktops_buffer* buffer, int32_t* numa_errno);

/* Adds the bytes of a matrix in a buffer that belong to each node to wanted[n], and those of them
 * that are there to there[n]; one page of each 2 MiB is asked for. numa_errno: why the kernel
 * refuses to tell, or 0. */
KTOPS_API int32_t ktops_count_placed(ktops_pool* pool, const ktops_buffer* buffer,
                                     const ktops_matrix* matrix, uint64_t* wanted, uint64_t* there,
                                     int32_t* numa_errno);

KTOPS_API int32_t ktops_matmul(ktops_pool* pool, const ktops_matmul_args* args);
KTOPS_API int32_t ktops_moe_forward(ktops_pool* pool, const ktops_moe_args* args);

/* The two halves of a decoder layer, each with the norm before it and the sum after it. */
KTOPS_API int32_t ktops_mla_decode(ktops_pool* pool, const ktops_mla_decode_args* args);
KTOPS_API int32_t ktops_ffn_decode(ktops_pool* pool, ktops_ffn_decode_args* args);

/* Copies a matrix from `source`, in the file's layout, to target->data in the target's. */
KTOPS_API int32_t ktops_pack(ktops_pool* pool, const ktops_matrix* target, const void* source);

/* The same from a file, through a small buffer for each thread. */
KTOPS_API int32_t ktops_read(ktops_pool* pool, ktops_read_args* args);

/* float32 values of `count` weights (a multiple of the block) in the file's layout, on the calling
 * thread. */
KTOPS_API int32_t ktops_dequantize(uint32_t type, const void* source, float* target,
                                   uint64_t count);

/* float32 values of some rows, counted on through the experts, of a matrix in any layout: target is
 * [num_rows, cols]. On the calling thread. */
KTOPS_API int32_t ktops_dequantize_rows(const ktops_matrix* matrix, uint64_t first_row,
                                        uint64_t num_rows, float* target);

/* The block for so many tokens at a time. */
KTOPS_API int32_t ktops_handoff_layout_of(uint32_t hidden, uint32_t top_k, uint32_t max_tokens,
                                          ktops_handoff_layout* layout);

KTOPS_API int32_t ktops_handoff_create(const ktops_handoff_args* args, ktops_handoff** handoff);
KTOPS_API int32_t ktops_handoff_destroy(ktops_handoff* handoff);

/* Answers `count` requests on the pool, whose workers stay awake meanwhile. Returns early, with the
 * GPU told to wait no longer, when a request takes longer than timeout_ns to come
 * (KTOPS_ERROR_TIMEOUT), the GPU has given up, another thread cancels, or a request is not one that
 * can be served: its number, layer, tokens (KTOPS_ERROR_BAD_REQUEST) or experts. After any of these
 * all further requests are refused until ktops_handoff_reset. One thread at a time. */
KTOPS_API int32_t ktops_handoff_serve(ktops_pool* pool, ktops_handoff* handoff, uint32_t count,
                                      uint64_t timeout_ns);

/* Ends a call of ktops_handoff_serve, or the next one; from any thread. */
KTOPS_API int32_t ktops_handoff_cancel(ktops_handoff* handoff);

/* Flags and numbers as at the start; neither side may be at work. */
KTOPS_API int32_t ktops_handoff_reset(ktops_handoff* handoff);

KTOPS_API int32_t ktops_handoff_get_traffic(const ktops_handoff* handoff,
                                            ktops_handoff_traffic* traffic);

#ifdef __cplusplus
}
#endif

#endif
