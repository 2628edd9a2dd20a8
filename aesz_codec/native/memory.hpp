// Memory whose values nobody has set.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aesz {

// Large pieces lie in huge pages where the system has them: the first touch of a small page takes as long as coding ten values.
template <class U>
class Memory {
  public:
    explicit Memory(std::size_t size) : data_(static_cast<U*>(take(size * sizeof(U)))) {}
    U* data() const { return data_.get(); }

  private:
    struct Free {
        void operator()(U* data) const { std::free(data); }
    };

    static void* take(std::size_t bytes) {
        void* memory = nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        constexpr std::size_t kHugePage = std::size_t{1} << 21;
        if (bytes >= 2 * kHugePage) {
            if (posix_memalign(&memory, kHugePage, bytes) != 0) throw std::bad_alloc();
            madvise(memory, bytes, MADV_HUGEPAGE);  // may be refused, which changes no value
            return memory;
        }
#endif
        memory = std::malloc(bytes > 0 ? bytes : 1);
        if (!memory) throw std::bad_alloc();
        return memory;
    }

    std::unique_ptr<U, Free> data_;
};

}  // namespace aesz
