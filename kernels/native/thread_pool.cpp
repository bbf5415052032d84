#include "thread_pool.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <mutex>
#include <thread>
#include <vector>

#include "quire_kernels.h"

namespace quire {
namespace {

// How long a thread that waits keeps its core before it sleeps. The operators of a step follow each other within
// microseconds and a wake-up costs tens of them; between steps, and while idle, everybody sleeps.
constexpr int64_t kSpinNanoseconds = 40'000;

int64_t nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

void pause() {
#if defined(QUIRE_X86)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

// A word that threads wait on: for a short while on their core, then in the kernel.
class Futex {
public:
    uint32_t load() const { return word_.load(); }

    // Returns a value other than `seen`.
    uint32_t wait_until_not(uint32_t seen) {
        const int64_t start = nanoseconds();
        do {
            for (int i = 0; i < 16; ++i) {
                if (const uint32_t now = word_.load(std::memory_order_acquire); now != seen) return now;
                pause();
            }
        } while (nanoseconds() - start < kSpinNanoseconds);
        // The sleeper counts itself before it looks again, the waker changes the word before it counts sleepers: one
        // of them sees the other.
        sleepers_.fetch_add(1);
        uint32_t now;
        while ((now = word_.load()) == seen) syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
        sleepers_.fetch_sub(1);
        return now;
    }

    // Changes the word; returns what it was.
    uint32_t add(uint32_t change) {
        const uint32_t before = word_.fetch_add(change);
        if (sleepers_.load() > 0) syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
        return before;
    }

private:
    std::atomic<uint32_t> word_{0};
    std::atomic<uint32_t> sleepers_{0};
};

struct Job {
    void (*task)(void*, int64_t, int);
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};

    void work(int worker) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i, worker);
    }
};

class ThreadPool {
public:
    void run(Job& job) {
        if (job.count <= 1 || size_ == 1) {
            job.work(0);
            return;
        }
        const std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
        start();
        job_.store(&job);
        generation_.add(1);
        job.work(0);
        // Workers register before they look for a job: once this is null and nobody is registered, nobody can hold it.
        // A worker that wakes only now finds no job; nobody waits for a sleeper.
        job_.store(nullptr);
        for (uint32_t working; (working = working_.load()) != 0;) working_.wait_until_not(working);
    }

    void resize(int size) {
        const std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
        if (size < 1 || size == size_) return;
        stopping_ = true;
        generation_.add(1);
        for (std::thread& thread : threads_) thread.join();
        threads_.clear();
        stopping_ = false;
        size_ = size;
    }

    int size() const { return size_; }

private:
    static int cores() {
        cpu_set_t set;
        CPU_ZERO(&set);
        if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
        return std::max(1u, std::thread::hardware_concurrency());
    }

    void start() {
        while (static_cast<int>(threads_.size()) < size_ - 1) {
            const int worker = static_cast<int>(threads_.size()) + 1;
            threads_.emplace_back([this, worker, seen = generation_.load()] { loop(worker, seen); });
        }
    }

    void loop(int worker, uint32_t seen) {
        while (true) {
            seen = generation_.wait_until_not(seen);
            if (stopping_) return;
            working_.add(1);
            if (Job* const job = job_.load()) job->work(worker);
            working_.add(-1u);
        }
    }

    std::atomic<int> size_{cores()};
    std::mutex run_mutex_;
    std::atomic<Job*> job_{nullptr};
    std::atomic<bool> stopping_{false};
    Futex generation_;  // counts jobs
    Futex working_;     // counts workers that may hold the job
    std::vector<std::thread> threads_;
};

// Never destroyed: at exit its threads sleep, and a destructor that joined them could hang a dying process.
ThreadPool* the_pool = nullptr;
std::once_flag pool_once;

ThreadPool& pool() {
    std::call_once(pool_once, [] {
        the_pool = new ThreadPool;
        // A forked child has none of the parent's threads, and perhaps its locked mutexes: it gets a pool of its own.
        pthread_atfork(nullptr, nullptr, [] { the_pool = new ThreadPool; });
    });
    return *the_pool;
}

}  // namespace

void parallel_for(int64_t count, void (*task)(void*, int64_t, int), void* context) {
    Job job{task, context, count};
    pool().run(job);
}

int num_threads() { return pool().size(); }

}  // namespace quire

void quire_set_num_threads(int32_t num_threads) { quire::pool().resize(num_threads); }

int32_t quire_get_num_threads() { return quire::num_threads(); }
