// First touch by threads on the right nodes. A policy for each range (mbind) would cut the mapping
// into more pieces than a process may have: R1 has 90,000 ranges on two nodes, the limit is 65,530.
#include "place.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tiling.h"

namespace ktops {
namespace {

// From linux/mempolicy.h, which comes with headers that need not be installed.
constexpr int kMpolPreferred = 1;
constexpr size_t kMaxNodeIds = 1024;
constexpr size_t kBitsPerWord = 8 * sizeof(unsigned long);

constexpr size_t kSmallPageBytes = 4096;
constexpr uint32_t kMaxTouchersPerNode = 16; // beyond them clearing pages gets no faster
constexpr size_t kPagesPerQuestion = 1024;

// Some bytes of a buffer, no more than a huge page, and the node that they belong to.
struct Page {
  uint8_t* address;
  size_t num_bytes;
  uint32_t node;
};

// The huge pages whose middle lies in a matrix, in order. In memory from map_memory they begin
// where the buffer does; where the kernel gives small pages, those of one are kept together.
class Pages {
 public:
  Pages(const ktops_pool& pool, const ktops_buffer& buffer, const ktops_matrix& matrix)
      : weights_(weight_rows(matrix, 0, pool.kernels())), num_nodes_(pool.num_nodes()),
        start_(static_cast<uint8_t*>(buffer.address)), num_bytes_(buffer.num_bytes),
        first_byte_(static_cast<size_t>(weights_.data - start_)),
        end_byte_(first_byte_ + weights_.rows * weights_.row_bytes * matrix.num_experts),
        is_split_(nodes_of_rows(weights_.rows, weights_.row_bytes, num_nodes_) > 1),
        next_(first_byte_ / kHugePageBytes * kHugePageBytes) {}

  bool take(Page* page) {
    for (; next_ < end_byte_; next_ += kHugePageBytes) {
      const size_t end = std::min(next_ + kHugePageBytes, num_bytes_);
      const size_t middle = next_ + (end - next_) / 2;
      if (middle < first_byte_ || middle >= end_byte_)
        continue;
      *page = {start_ + next_, end - next_, node_at(middle)};
      next_ += kHugePageBytes;
      return true;
    }
    return false;
  }

 private:
  uint32_t node_at(size_t byte) const {
    if (!is_split_)
      return static_cast<uint32_t>(byte / kHugePageBytes % num_nodes_);
    const size_t row = (byte - first_byte_) / weights_.row_bytes % weights_.rows;
    return static_cast<uint32_t>(node_of_row(row, weights_.rows, num_nodes_));
  }

  const WeightRows weights_; // of the first expert
  const uint32_t num_nodes_;
  uint8_t* const start_;
  const size_t num_bytes_, first_byte_, end_byte_;
  const bool is_split_;
  size_t next_;
};

// A thread that touches every `stride`-th page of a node.
struct Toucher {
  const ktops_pool* pool;
  Pages pages;
  uint32_t node, first, stride;
  std::atomic<int32_t>* refusal;
  pthread_t thread;
};

void run_on(int32_t cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  if (cpu < 0 || cpu >= CPU_SETSIZE)
    return;
  CPU_SET(static_cast<size_t>(cpu), &only);
  sched_setaffinity(0, sizeof only, &only); // refused: the policy is left
}

// Memory of this thread comes from a node as long as there is some. The thread's CPU alone says
// that already, unless its own node has no memory or the process was started with another policy.
int32_t prefer_node(int32_t node_id) {
  unsigned long nodes[kMaxNodeIds / kBitsPerWord] = {};
  const auto id = static_cast<size_t>(node_id);
  if (node_id < 0 || id >= kMaxNodeIds)
    return EINVAL;
  nodes[id / kBitsPerWord] = 1ul << id % kBitsPerWord;
  // The kernel reads one bit less than the number it is given.
  const long status = syscall(SYS_set_mempolicy, kMpolPreferred, nodes, kMaxNodeIds + 1);
  return status == 0 ? 0 : errno;
}

void touch(const Page& page) {
  for (size_t at = 0; at < page.num_bytes; at += kSmallPageBytes)
    __atomic_fetch_or(page.address + at, 0, __ATOMIC_RELAXED);
}

void* run_toucher(void* argument) {
  auto& self = *static_cast<Toucher*>(argument);
  run_on(self.pool->cpu_of(self.node, self.first));
  if (const int32_t refused = prefer_node(self.pool->node_id(self.node)); refused != 0)
    self.refusal->store(refused, std::memory_order_relaxed);
  uint32_t turn = 0;
  for (Page page; self.pages.take(&page);)
    if (page.node == self.node && turn++ % self.stride == self.first)
      touch(page);
  return nullptr;
}

} // namespace

int32_t place(const ktops_pool& pool, const ktops_buffer& buffer, const ktops_matrix& matrix) {
  if (pool.num_nodes() == 1)
    return 0;
  std::atomic<int32_t> refusal{0};
  const Pages pages(pool, buffer, matrix);
  auto* touchers = static_cast<Toucher*>(calloc(pool.num_threads(), sizeof(Toucher)));
  if (touchers == nullptr)
    return 0; // whoever writes there first decides
  uint32_t num_started = 0;
  for (uint32_t node = 0; node < pool.num_nodes(); ++node) {
    const uint32_t stride = std::min(pool.threads_on(node), kMaxTouchersPerNode);
    for (uint32_t i = 0; i < stride; ++i) {
      auto* toucher =
          new (touchers + num_started) Toucher{&pool, pages, node, i, stride, &refusal, {}};
      num_started += pthread_create(&toucher->thread, nullptr, run_toucher, toucher) == 0;
    }
  }
  for (uint32_t i = 0; i < num_started; ++i)
    pthread_join(touchers[i].thread, nullptr);
  free(touchers);
  return refusal.load(std::memory_order_relaxed);
}

// A policy of the mapping's own, local allocation, keeps automatic balancing away from it.
int32_t hold(const ktops_buffer& buffer) {
  const long status =
      syscall(SYS_mbind, buffer.address, buffer.num_bytes, kMpolPreferred, nullptr, 0, 0);
  return status == 0 ? 0 : errno;
}

int32_t count_placed(const ktops_pool& pool, const ktops_buffer& buffer, const ktops_matrix& matrix,
                     uint64_t* wanted, uint64_t* there) {
  int32_t refusal = 0;
  Page asked[kPagesPerQuestion];
  void* addresses[kPagesPerQuestion];
  int32_t answers[kPagesPerQuestion]; // a node, or a negative errno: no page is there
  Pages pages(pool, buffer, matrix);
  for (;;) {
    size_t count = 0;
    while (count < kPagesPerQuestion && pages.take(&asked[count])) {
      addresses[count] = asked[count].address + asked[count].num_bytes / 2;
      ++count;
    }
    if (count == 0)
      return refusal;
    if (syscall(SYS_move_pages, 0, count, addresses, nullptr, answers, 0) != 0) {
      refusal = errno;
      std::fill_n(answers, count, -1);
    }
    for (size_t i = 0; i < count; ++i) {
      wanted[asked[i].node] += asked[i].num_bytes;
      if (answers[i] == pool.node_id(asked[i].node))
        there[asked[i].node] += asked[i].num_bytes;
    }
  }
}

} // namespace ktops
