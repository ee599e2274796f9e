// Where the pages of some matrices go on this machine, node by node.
//
//   show_placement [--forbid] CPU:NODE...
//
// A thread for each CPU, whose rows are on that node. --forbid: the kernel refuses all system calls
// about nodes (mbind, set_mempolicy, move_pages), as containers do. Ends with 1 unless all pages
// are where they belong; where the kernel does not tell, what /proc/self/numa_maps says decides.
// For tests/numa/run_qemu.py, which links it statically.
#include <cstddef>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "../src/place.h"
#include "check.h"

namespace {

constexpr uint32_t kMaxCpus = 256;

struct Shape {
  const char* name;
  uint32_t type;
  uint64_t rows, cols;
  uint32_t num_experts;
};

constexpr Shape kShapes[] = {
    {"R1, gate of 16 experts", KTOPS_TYPE_Q4_K, 2048, 7168, 16},
    {"R1, down of 16 experts", KTOPS_TYPE_Q6_K, 7168, 2048, 16},
    {"R1, an attention matrix", KTOPS_TYPE_Q8_0, 1536, 7168, 1},
    {"rows that do not divide", KTOPS_TYPE_Q8_0, 1503, 7168, 3},
    {"V2-Lite, gate of 64 experts", KTOPS_TYPE_Q4_K, 1408, 2048, 64},
};

uint64_t bytes_of(const Shape& shape) {
  uint32_t block_size = 0, block_bytes = 0;
  ktops_type_block(shape.type, &block_size, &block_bytes);
  return shape.rows * shape.num_experts * (shape.cols / block_size * block_bytes);
}

double in_mib(uint64_t num_bytes) { return static_cast<double>(num_bytes) / (1 << 20); }

bool forbid_node_calls() {
  const auto refuse = [](uint32_t number, uint8_t rest) {
    return sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, rest, 0);
  };
  sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      refuse(SYS_mbind, 3),
      refuse(SYS_set_mempolicy, 2),
      refuse(SYS_move_pages, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  const sock_fprog program{sizeof rules / sizeof *rules, rules};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Bytes of the mapping at `address` on a node, as /proc/self/numa_maps counts them.
uint64_t mapped_bytes(const void* address, int32_t node) {
  char line[4096], start[32], field[16];
  snprintf(start, sizeof start, "%lx ", reinterpret_cast<unsigned long>(address));
  snprintf(field, sizeof field, " N%d=", node);
  uint64_t num_bytes = 0;
  FILE* maps = fopen("/proc/self/numa_maps", "r");
  while (maps != nullptr && fgets(line, sizeof line, maps) != nullptr)
    if (const char* at = strstr(line, field);
        at != nullptr && strncmp(line, start, strlen(start)) == 0)
      num_bytes = strtoull(at + strlen(field), nullptr, 10) * 4096;
  if (maps != nullptr)
    fclose(maps);
  return num_bytes;
}

struct Refusals {
  int32_t set_mempolicy, mbind, move_pages;
};

// Whether all pages are on their nodes.
bool show(ktops_pool* pool, const Shape& shape, Refusals* refused) {
  ktops_buffer buffer;
  if (ktops_alloc(bytes_of(shape), &buffer) != KTOPS_OK)
    return false;
  const ktops_matrix matrix{buffer.address,       shape.rows,        shape.cols, shape.type,
                            KTOPS_LAYOUT_PANEL16, shape.num_experts, 0};
  uint64_t wanted[ktops::kMaxNodes] = {}, there[ktops::kMaxNodes] = {};
  ktops_place(pool, &buffer, &matrix, &refused->set_mempolicy);
  ktops_hold(&buffer, &refused->mbind);
  ktops_count_placed(pool, &buffer, &matrix, wanted, there, &refused->move_pages);
  printf("%s, %.1f MiB\n", shape.name, in_mib(buffer.num_bytes));
  bool is_right = true;
  for (uint32_t node = 0; node < pool->num_nodes(); ++node) {
    const uint64_t mapped = mapped_bytes(buffer.address, pool->node_id(node));
    const uint64_t found = refused->move_pages == 0 ? there[node] : mapped;
    is_right = is_right && found >= wanted[node];
    printf("  node %d: %6.1f MiB wanted, ", pool->node_id(node), in_mib(wanted[node]));
    if (refused->move_pages == 0)
      printf("%6.1f MiB there, ", in_mib(there[node]));
    printf("%6.1f MiB mapped\n", in_mib(mapped));
  }
  ktops_free(&buffer);
  return is_right;
}

} // namespace

int main(int argc, char** argv) {
  int32_t cpus[kMaxCpus], nodes[kMaxCpus];
  uint32_t count = 0;
  for (int i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--forbid") == 0 && !forbid_node_calls())
      return 2;
    if (count < kMaxCpus && sscanf(argv[i], "%d:%d", &cpus[count], &nodes[count]) == 2)
      ++count;
  }
  ktops_pool* pool = nullptr;
  if (count == 0 || ktops_pool_create(cpus, count, &pool) != KTOPS_OK)
    return 2;
  pool->set_nodes(nodes);
  if (pool->num_nodes() == 1) {
    printf("one node: nothing to place\n");
    return 0;
  }
  bool is_right = true;
  Refusals refused{};
  for (const Shape& shape : kShapes)
    is_right = show(pool, shape, &refused) && is_right;
  if (refused.set_mempolicy != 0 || refused.mbind != 0 || refused.move_pages != 0)
    printf("set_mempolicy: %s, mbind: %s, move_pages: %s\n", strerror(refused.set_mempolicy),
           strerror(refused.mbind), strerror(refused.move_pages));
  ktops_pool_destroy(pool);
  printf(is_right ? "all pages are where they belong\n" : "PAGES ARE ELSEWHERE\n");
  return is_right ? 0 : 1;
}
