#include "thread_pool.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "quire_kernels.h"

namespace quire {
namespace {

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
        const std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
        const int64_t wanted = std::min<int64_t>(job.count, size_) - 1;
        if (wanted > 0) {
            start();
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                job_ = &job;
            }
            for (int64_t i = 0; i < wanted; ++i) wake_.notify_one();
        }
        job.work(0);
        if (wanted > 0) {
            // A worker that wakes only now finds no job: nobody waits for a sleeper.
            std::unique_lock<std::mutex> lock(mutex_);
            job_ = nullptr;
            done_.wait(lock, [this] { return working_ == 0; });
        }
    }

    void resize(int size) {
        const std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
        if (size < 1 || size == size_) return;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
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
            threads_.emplace_back([this, worker] { loop(worker); });
        }
    }

    void loop(int worker) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stopping_ || job_ != nullptr; });
            if (stopping_) return;
            Job* const job = job_;
            ++working_;
            lock.unlock();
            job->work(worker);
            lock.lock();
            // Nothing is left of this job; without this the loop would spin on it until the caller takes it away.
            if (job_ == job) job_ = nullptr;
            if (--working_ == 0) done_.notify_one();
        }
    }

    std::atomic<int> size_{cores()};
    std::mutex run_mutex_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    int working_ = 0;
    bool stopping_ = false;
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
