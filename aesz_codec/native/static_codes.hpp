// Codes lines of the quantizer's integers by tables that stand still within a line, through interleaved rANS.
// docs/format.md, section 8a.
//
// Fast because nothing waits for the value before: the contexts of a line are known before it, eight rANS states take turns, and
// signs and low bits lie apart, as they are.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "closed_loop.hpp"
#include "codes.hpp"
#include "kernels.hpp"
#include "models.hpp"

namespace aesz {

// ---- tables ----------------------------------------------------------------------------------------------------

constexpr int kTokens = 16, kScales = 32;                         // of the scales 28 are in use
constexpr int kLearnedScales = 40, kLearnedGroups = 2 * kGroups;  // even points, odd points
constexpr int kLanes = 8;
constexpr uint32_t kLeastState = 1u << 16;

// Frequencies of 16 symbols in 1/32768.
struct alignas(64) TokenTable {
    std::array<uint16_t, kTokens> edge, frequency;

    void set(const std::array<uint32_t, kTokens>& law) {
        std::array<uint64_t, kTokens> weight;
        uint64_t sum = 0;
        for (std::size_t t = 0; t < kTokens; ++t) sum += weight[t] = law[t];
        set(weight, sum);
    }

    // Of counts, and of what is expected of a few symbols more.
    void make(const uint32_t* count, const TokenTable& prior) {
        constexpr uint64_t kPrior = 24;
        std::array<uint64_t, kTokens> weight;
        uint64_t sum = 0;
        for (std::size_t t = 0; t < kTokens; ++t)
            sum += weight[t] = (static_cast<uint64_t>(count[t]) << 15) + kPrior * prior.frequency[t];
        set(weight, sum);
    }

    // The same; then half of the counts are forgotten if they are many.
    void refresh(uint32_t* count, const TokenTable& prior) {
        constexpr uint32_t kHalveAt = 8192;
        uint32_t total = 0;
        for (std::size_t t = 0; t < kTokens; ++t) total += count[t];
        make(count, prior);
        if (total >= kHalveAt)
            for (std::size_t t = 0; t < kTokens; ++t) count[t] /= 2;
    }

  private:
    void set(const std::array<uint64_t, kTokens>& weight, uint64_t sum) {
        const uint64_t scale = (uint64_t{32768 - kTokens} << 46) / sum;
        uint64_t below = 0;
        for (std::size_t i = 0; i < kTokens; ++i) {
            edge[i] = static_cast<uint16_t>(((below * scale) >> 46) + i);
            below += weight[i];
        }
        for (std::size_t i = 0; i + 1 < kTokens; ++i) frequency[i] = static_cast<uint16_t>(edge[i + 1] - edge[i]);
        frequency[kTokens - 1] = static_cast<uint16_t>(32768 - edge[kTokens - 1]);
    }
};

// Where raw bits go; there must be room for eight bytes more.
struct BitBuffer {
    uint8_t* next = nullptr;  // whole bytes before
    uint64_t held = 0;
    int count = 0;

    AESZ_INLINE void put(uint64_t value, int bits) {  // at most 32
        held |= value << count;
        count += bits;
        store_little_endian(next, held);
        next += count >> 3;
        held >>= count & ~7;
        count &= 7;
    }
};

#define AESZ_FILE "token_loops.hpp"
#include "each_set.hpp"

// Contexts of codes: some groups of scales, whose tables start from the law of the scale and stay near its parent, what all
// groups have seen of it.
class ScaleModels {
  public:
    using Weights16 = std::array<uint32_t, kTokens>;

    ScaleModels(int groups, const std::vector<Weights16>& laws)
        : groups_(static_cast<std::size_t>(groups)), scales_(laws.size()), counts_(groups_ * scales_ * kTokens) {
        for (const Weights16& law : laws) laws_.emplace_back().set(law);
        for (std::size_t g = 0; g < groups_; ++g) table.insert(table.end(), laws_.begin(), laws_.end());
    }

    void count(int first, const uint16_t* index, int64_t n) {
        uint32_t* const counts = counts_.data() + first * kTokens;
        for (int64_t i = 0; i < n; ++i) ++counts[index[i]];
    }

    void rebuild() {
        for (std::size_t scale = 0; scale < scales_; ++scale) {
            std::array<uint32_t, kTokens> sum{};
            uint32_t total = 0;
            for (std::size_t g = 0; g < groups_; ++g)
                for (std::size_t t = 0; t < kTokens; ++t) sum[t] += counts_[(g * scales_ + scale) * kTokens + t];
            for (uint32_t s : sum) total += s;
            if (!total) continue;
            TokenTable parent;
            parent.make(sum.data(), laws_[scale]);
            for (std::size_t g = 0; g < groups_; ++g)
                table[g * scales_ + scale].refresh(counts_.data() + (g * scales_ + scale) * kTokens, parent);
        }
    }

    std::vector<TokenTable> table;  // by group, by scale

  private:
    std::size_t groups_, scales_;
    std::vector<TokenTable> laws_;
    std::vector<uint32_t> counts_;
};

// All contexts: their tables, and the counts from which these are made now and then.
class TokenModels {
  public:
    static constexpr int kQuiet = 0, kEscape = kQuiet + 4 * kGroups, kInteger = kEscape + 1, kOthers = kInteger + 1;

    TokenModels() : codes(plain()) {
        for (std::size_t i = 0; i < kOthers; ++i) other[i] = i < kEscape ? quiet() : flat();
    }

    // Takes part in the tables from the next rebuild on; `index` counts from the context `first`.
    void count(ScaleModels& models, int first, const uint16_t* index, int64_t n) {
        models.count(first, index, n);
        counted_ += n;
    }
    void count(int context, int token) {
        ++counts_[static_cast<std::size_t>(context * kTokens + token)];
        ++counted_;
    }
    bool counts_all() const { return seen_ < kAll; }

    // After every line: whether tables are to be made afresh.
    void line_done(int64_t symbols) {
        seen_ += symbols;
        if (counted_ >= interval_) rebuild();
    }

    // Of learned classes; made when they are first needed.
    ScaleModels& learned() {
        if (!learned_) learned_ = std::make_unique<ScaleModels>(fresh_learned());
        return *learned_;
    }

    // Raw bits that go with the tokens of a scale are one more than the shift, if that is not 0.
    static int shift_of(int scale) { return std::max(0, scale / 2 - 2); }
    static int learned_shift_of(int scale) { return std::max(0, scale / 2 - 7); }

    ScaleModels codes;
    std::array<TokenTable, kOthers> other;  // quiet blocks, by group and by what is around; lengths of escapes; integers

  private:
    using Weights16 = ScaleModels::Weights16;
    static constexpr int64_t kAll = 1 << 15, kFirst = 64, kLongest = 8192;

    // What a code of a mean magnitude in 1/one becomes.
    static Weights16 law(uint64_t mean, uint64_t one, int shift) {
        const uint64_t unit = one << shift, wide = 3 * mean + unit;
        Weights16 weight;
        uint64_t x = uint64_t{1} << 20, y = uint64_t{1} << 16;
        for (std::size_t t = 0; t < kTokens; ++t) {
            weight[t] = static_cast<uint32_t>((x + y + 16) << (shift == 0 && t > 0));
            x = x * mean / (mean + unit);
            y = y * wide / (wide + unit);
        }
        return weight;
    }

    static const ScaleModels& plain() {
        static const ScaleModels fresh = [] {
            std::vector<Weights16> laws;
            for (int scale = 0; scale < kScales; ++scale) {
                const int octave = scale / 2;
                const uint64_t middle = ((2 + static_cast<uint64_t>(scale) % 2) << (octave + 1)) - 4 + (uint64_t{1} << octave);
                laws.push_back(law(std::max<uint64_t>(1, middle), 16, shift_of(scale)));
            }
            return ScaleModels(kGroups, laws);
        }();
        return fresh;
    }

    static const ScaleModels& fresh_learned() {
        static const ScaleModels fresh = [] {
            std::vector<Weights16> laws;
            for (int scale = 0; scale < kLearnedScales; ++scale) {
                const int octave = scale / 2;
                const uint64_t middle =
                    ((5 + 2 * (static_cast<uint64_t>(scale) % 2)) << octave) + ((uint64_t{1} << octave) >> 1) - 4;
                laws.push_back(law(middle, 256, learned_shift_of(scale)));
            }
            return ScaleModels(kLearnedGroups, laws);
        }();
        return fresh;
    }

    static TokenTable table_of(uint32_t first) {
        Weights16 weight;
        weight.fill(1);
        weight[0] = first;
        TokenTable table;
        table.set(weight);
        return table;
    }
    static const TokenTable& quiet() {
        static const TokenTable table = table_of(50);
        return table;
    }
    static const TokenTable& flat() {
        static const TokenTable table = table_of(1);
        return table;
    }

    AESZ_RARE void rebuild() {
        interval_ = std::min(2 * interval_, kLongest);
        counted_ = 0;
        codes.rebuild();
        if (learned_) learned_->rebuild();
        for (std::size_t i = 0; i < kOthers; ++i) other[i].refresh(counts_.data() + i * kTokens, i < kEscape ? quiet() : flat());
    }

    std::unique_ptr<ScaleModels> learned_;
    std::array<uint32_t, kOthers * kTokens> counts_{};
    int64_t counted_ = 0, seen_ = 0, interval_ = kFirst;
};

// ---- bits as they are ------------------------------------------------------------------------------------------

class BitWriter {
  public:
    // Makes room for so many bits.
    void reserve(std::size_t bits) {
        const std::size_t used = size(), bytes = used + bits / 8 + 16;
        if (bytes <= out_.size()) return;
        out_.resize(std::max(bytes, 2 * out_.size()));
        buffer.next = out_.data() + used;
    }
    uint64_t code(uint64_t value, int bits) {  // at most 32
        buffer.put(value, bits);
        return value;
    }
    // Ends with a whole byte; how many there are.
    std::size_t flush() {
        if (buffer.count) buffer.put(0, 8 - buffer.count);
        return size();
    }
    const uint8_t* data() const { return out_.data(); }
    void clear() { buffer.next = out_.data(); }

    BitBuffer buffer;

  private:
    std::size_t size() const { return out_.empty() ? 0 : static_cast<std::size_t>(buffer.next - out_.data()); }

    std::vector<uint8_t> out_;
};

class BitReader {
  public:
    BitReader() = default;
    BitReader(const uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    uint64_t code(uint64_t, int bits) {  // at most 32
        const std::size_t at = position_ >> 3;
        const uint64_t word =
            (AESZ_UNLIKELY(at + 8 > size_) ? last_bytes(at) : load_little_endian(data_ + at)) >> (position_ & 7);
        position_ += static_cast<std::size_t>(bits);
        return word & ((uint64_t{1} << bits) - 1);
    }
    int64_t codes(const uint32_t* steps, const uint16_t* index, int64_t n, int32_t* code) {
        return (kAvx2 ? avx2::read_bits : portable::read_bits)(steps, index, n, data_, size_, position_, code);
    }
    bool sound() const { return (position_ + 7) / 8 == size_; }

  private:
    AESZ_RARE uint64_t last_bytes(std::size_t at) const {
        uint64_t word = 0;
        for (std::size_t i = at; i < size_; ++i) word |= static_cast<uint64_t>(data_[i]) << (8 * (i - at));
        return word;
    }

    const uint8_t* data_ = nullptr;
    std::size_t size_ = 0, position_ = 0;  // bytes, bits
};

// ---- rANS ------------------------------------------------------------------------------------------------------

constexpr int64_t kSegment = 1 << 16;  // symbols, and the rest of the line

// Collects symbols and writes them backwards, segment by segment.
class TokenEncoder {
  public:
    static constexpr bool decoding = false;

    int symbol(const TokenTable& table, int value) {
        symbols_.push_back(packed(table, static_cast<std::size_t>(value)));
        return value;
    }
    // Room for so many symbols more, to be filled by `packed`.
    uint32_t* append(std::size_t n) {
        symbols_.resize(symbols_.size() + n);
        return symbols_.data() + symbols_.size() - n;
    }
    static uint32_t packed(const TokenTable& table, std::size_t token) {
        return static_cast<uint32_t>(table.edge[token]) | static_cast<uint32_t>(table.frequency[token]) << 15;
    }
    BitWriter& bits() { return bits_; }
    void line_done() {
        if (static_cast<int64_t>(symbols_.size()) >= kSegment) close();
    }
    std::vector<uint8_t> finish() {
        if (!symbols_.empty()) close();
        return std::move(out_);
    }

  private:
    void close() {
        std::array<uint32_t, kLanes> state;
        state.fill(kLeastState);
        words_.resize(symbols_.size() + 2 * kLanes);
        uint16_t* const end = words_.data() + words_.size();
        uint16_t* word = end;
        for (std::size_t i = symbols_.size(); i-- > 0;) {
            const uint32_t s = symbols_[i], frequency = s >> 15;
            uint32_t& lane = state[i % kLanes];
            uint32_t x = lane;
            const bool full = x >= frequency << 17;
            *(word - 1) = little_endian(static_cast<uint16_t>(x));
            word -= full;
            x = full ? x >> 16 : x;
            lane = (x / frequency << 15) + x % frequency + (s & 32767);
        }
        for (std::size_t lane = kLanes; lane-- > 0;) {
            *--word = little_endian(static_cast<uint16_t>(state[lane]));
            *--word = little_endian(static_cast<uint16_t>(state[lane] >> 16));
        }
        const std::size_t words = static_cast<std::size_t>(end - word), raw = bits_.flush();
        varint(words);
        varint(raw);
        const auto* bytes = reinterpret_cast<const uint8_t*>(word);
        out_.insert(out_.end(), bytes, bytes + 2 * words);
        out_.insert(out_.end(), bits_.data(), bits_.data() + raw);
        bits_.clear();
        symbols_.clear();
    }
    void varint(std::size_t n) {
        for (; n > 127; n >>= 7) out_.push_back(static_cast<uint8_t>(n | 128));
        out_.push_back(static_cast<uint8_t>(n));
    }

    std::vector<uint32_t> symbols_;
    std::vector<uint16_t> words_;
    BitWriter bits_;
    std::vector<uint8_t> out_;
};

// No input makes it read outside the data.
class TokenDecoder {
  public:
    static constexpr bool decoding = true;

    TokenDecoder(const uint8_t* data, std::size_t size) : next_(data), end_(data + size) { state_.fill(kLeastState); }

    int symbol(const TokenTable& table, int) {
        if (!open_) open();
        return single(table);
    }

    // index: contexts * kTokens on the way in, plus the token on the way out.
    void tokens(const TokenTable* table, uint16_t* index, int64_t n) {
        if (n > 0 && !open_) open();
        const auto read = kAvx2 ? avx2::read_tokens : portable::read_tokens;
        int64_t i = read(table, index, n, state_.data(), count_ % kLanes, word_, words_end_);
        count_ += i;
        for (; i < n; ++i) index[i] = static_cast<uint16_t>(index[i] + single(table[index[i] / kTokens]));
    }

    BitReader& bits() { return bits_; }
    void line_done() {
        if (count_ >= kSegment) close();
    }
    void finish() {
        if (open_) close();
        if (next_ != end_) throw CorruptStream("bytes are left over after the codes");
    }

  private:
    int single(const TokenTable& table) {
        uint32_t& state = state_[static_cast<std::size_t>(count_++ % kLanes)];
        if (words_end_ - word_ >= 2) return static_cast<int>(portable::next_token(table, state, word_));
        const uint8_t none[2] = {};
        const uint8_t* word = none;
        const int token = static_cast<int>(portable::next_token(table, state, word));
        if (word != none) throw CorruptStream("the codes end too early");
        return token;
    }
    uint32_t checked_word() {
        if (words_end_ - word_ < 2) throw CorruptStream("the codes end too early");
        word_ += 2;
        return static_cast<uint32_t>(word_[-2]) | static_cast<uint32_t>(word_[-1]) << 8;
    }
    AESZ_RARE void open() {
        const std::size_t words = varint(), raw = varint(), left = static_cast<std::size_t>(end_ - next_);
        if (words > left / 2 || raw > left - 2 * words) throw CorruptStream("the codes end too early");
        word_ = next_;
        words_end_ = next_ + 2 * words;
        bits_ = BitReader(words_end_, raw);
        next_ = words_end_ + raw;
        for (uint32_t& x : state_) {
            x = checked_word() << 16;
            x |= checked_word();
            if (x < kLeastState) throw CorruptStream("a state of the codes is too small");
        }
        open_ = true;
        count_ = 0;
    }
    void close() {
        for (uint32_t x : state_)
            if (x != kLeastState) throw CorruptStream("the codes do not end as they should");
        if (word_ != words_end_ || !bits_.sound()) throw CorruptStream("codes are left over");
        open_ = false;
        count_ = 0;
    }
    std::size_t varint() {
        std::size_t value = 0;
        for (int shift = 0; shift < 63; shift += 7) {
            if (next_ == end_) throw CorruptStream("the codes end too early");
            const uint8_t byte = *next_++;
            value |= static_cast<std::size_t>(byte & 127) << shift;
            if (byte < 128) return value;
        }
        throw CorruptStream("a malformed integer among the codes");
    }

    const uint8_t *next_, *end_;
    const uint8_t *word_ = nullptr, *words_end_ = nullptr;
    std::array<uint32_t, kLanes> state_;
    BitReader bits_;
    int64_t count_ = 0;
    bool open_ = false;
};

// ---- lines of codes --------------------------------------------------------------------------------------------

template <class Coder>
class StaticCodes {
  public:
    static constexpr bool decoding = Coder::decoding;
    static constexpr int32_t clip = kNarrowClip;
    static constexpr bool narrow = true;

    explicit StaticCodes(Coder& coder) : coder_(coder), models_(std::make_unique<TokenModels>()) {}

    void line(const CodeLine& l, int32_t* code) {
        symbols_ = 0;
        counts_ = models_->counts_all() || (line_ & 3) == 0;
        if (l.scale) {
            learned_line(l, code);
        } else {
            reserve(l.count);
            classify(l.sums.narrow.data(), l.count, scale_.data() + kBlock);
            std::memset(scale_.data() + kBlock + l.count, 0, kBlock);
            runs_.clear();
            if (l.mask) {
                divide<true>(l, code);
            } else {
                divide<false>(l, code);
            }
            code_runs(models_->codes, l.group * kScales, Steps::plain(), code);
        }
        models_->line_done(symbols_);
        coder_.line_done();
        ++line_;
    }

    int32_t code_integer(int32_t value) {
        const uint32_t folded = golomb(fold(value), TokenModels::kInteger);
        models_->line_done(1);
        return unfold(folded);
    }

  private:
    static constexpr int kBlock = 8;
    static constexpr int kMixedBlock = 9;  // symbol of a block that is neither all zeros nor has a single 1
    static constexpr int kEscaped = kTokens - 1, kEscapeBits = 255;
    static constexpr int kOutlierLength = 15;

    struct Run {
        int64_t start, count;
    };

    // What tokens of scales mean, for every scale: raw bits of a token, and from bit 8 on the folded code less these; the shift.
    struct Steps {
        std::vector<uint32_t> step;
        std::vector<uint8_t> shift;

        Steps(int scales, int (*shift_of)(int)) {
            for (int scale = 0; scale < scales; ++scale) {
                const int s = shift_of(scale);
                shift.push_back(static_cast<uint8_t>(s));
                for (int token = 0; token < kTokens; ++token) {
                    const int bits = token == kEscaped ? kEscapeBits : s ? s + 1 : token > 0;
                    const int base = s ? token << (s + 1) : token ? 2 * token - 1 : 0;
                    step.push_back(static_cast<uint32_t>(base << 8 | bits));
                }
            }
        }
        static const Steps& plain() {
            static const Steps steps(kScales, TokenModels::shift_of);
            return steps;
        }
        static const Steps& learned() {
            static const Steps steps(kLearnedScales, TokenModels::learned_shift_of);
            return steps;
        }
    };

    void reserve(int64_t count) {
        const std::size_t n = static_cast<std::size_t>(count);
        if (index_.size() >= n) return;
        index_.resize(n);
        even_.resize(n);
        odd_.resize(n);
        scale_.resize(n + 2 * kBlock);
    }

    bool zero_scales(int64_t i) const {  // of the block from i - kBlock on
        uint64_t scales;
        std::memcpy(&scales, scale_.data() + i, kBlock);
        return scales == 0;
    }

    // Lists points to be coded by tokens.
    void append(int64_t start, int64_t count) {
        if (!runs_.empty() && runs_.back().start + runs_.back().count == start) {
            runs_.back().count += count;
        } else {
            runs_.push_back({start, count});
        }
    }

    // Codes the quiet blocks and lists what is left.
    template <bool masked>
    void divide(const CodeLine& l, int32_t* code) {
        int64_t i = 0;
        const auto ordinary = [&](int64_t count) {
            if (!masked) return append(i, count);
            for (int64_t k = i; k < i + count; ++k) {
                if (l.masked(k)) {
                    code[k] = 0;
                } else {
                    append(k, 1);
                }
            }
        };
        for (; i + kBlock <= l.count; i += kBlock) {
            if (!zero_scales(i + kBlock) || (masked && any_masked(l, i))) {
                ordinary(kBlock);
                continue;
            }
            const int around = 2 * !zero_scales(i) + !zero_scales(i + 2 * kBlock);
            const int token = counted_symbol(TokenModels::kQuiet + 4 * l.group + around, decoding ? 0 : quiet_token(code + i));
            ++symbols_;
            if (token >= kMixedBlock) {
                append(i, kBlock);
                continue;
            }
            if constexpr (decoding) std::memset(code + i, 0, kBlock * sizeof(int32_t));
            if (token) {
                int32_t& c = code[i + token - 1];
                if constexpr (!decoding) coder_.bits().reserve(1);
                c = coder_.bits().code(c > 0, 1) ? 1 : -1;
            }
        }
        ordinary(l.count - i);
    }
    static bool any_masked(const CodeLine& l, int64_t i) {
        bool any = false;
        for (int64_t k = i; k < i + kBlock; ++k) any |= l.masked(k);
        return any;
    }
    static int quiet_token(const int32_t* code) {
        int at = 0, found = 0;
        for (int k = 0; k < kBlock; ++k) {
            if (code[k] == 0) continue;
            if (found++ || (code[k] != 1 && code[k] != -1)) return kMixedBlock;
            at = k + 1;
        }
        return at;
    }

    // First the points of even index, then those between them, which know the codes on both sides.
    void learned_line(const CodeLine& l, int32_t* code) {
        const int64_t even = (l.count + 1) / 2, odd = l.count / 2;
        reserve(even + 1);
        const auto half = [&](int first, int64_t count, int32_t* codes) {
            runs_.clear();
            for (int64_t i = 0; l.mask && i < count; ++i) {
                if (l.masked(2 * i + first)) {
                    codes[i] = 0;
                } else {
                    append(i, 1);
                }
            }
            if (!l.mask) append(0, count);
            code_runs(models_->learned(), (2 * l.group + first) * kLearnedScales, Steps::learned(), codes);
        };
        int32_t *evens = even_.data(), *odds = odd_.data();
        for (int64_t i = 0; !decoding && i < even; ++i) evens[i] = code[2 * i];
        for (int64_t i = 0; !decoding && i < odd; ++i) odds[i] = code[2 * i + 1];
        classify_even(l.scale, l.sums.expected.data(), even, scale_.data() + kBlock);
        half(0, even, evens);
        if (odd == even) evens[even] = evens[even - 1];
        classify_odd(l.scale, l.sums.expected.data(), evens, odd, scale_.data() + kBlock);
        half(1, odd, odds);
        if (decoding || l.mask) interleave(evens, odds, l.count, code);
    }

    // The tokens of the runs, in contexts from `context` on, and what belongs to them.
    void code_runs(ScaleModels& models, int context, const Steps& steps, int32_t* code) {
        const TokenTable* table = models.table.data() + context;
        const uint8_t* scale = scale_.data() + kBlock;
        int64_t n = 0;
        for (const Run& run : runs_) {
            for (int64_t i = 0; i < run.count; ++i)
                index_[static_cast<std::size_t>(n + i)] = static_cast<uint16_t>(scale[run.start + i] * kTokens);
            n += run.count;
        }
        if constexpr (decoding) {
            coder_.tokens(table, index_.data(), n);
            list_escapes(n);
            code_lengths();
            read_codes(steps, code);
        } else {
            write_codes(table, steps, code, n);
            code_lengths();
        }
        symbols_ += n;
        if (counts_) models_->count(models, context, index_.data(), n);
    }

    // Tokens and raw bits of the runs.
    void write_codes(const TokenTable* table, const Steps& steps, const int32_t* code, int64_t n) {
        lengths_.clear();
        uint32_t* symbol = coder_.append(static_cast<std::size_t>(n));
        BitWriter& bits = coder_.bits();
        bits.reserve(static_cast<std::size_t>(n) * 64);
        const auto write = kAvx2 ? avx2::write_codes : portable::write_codes;
        uint16_t* index = index_.data();
        for (const Run& run : runs_)
            for (int64_t i = run.start, end = run.start + run.count; i < end; ++i, ++index) {
                const int64_t done = write(table, steps.step.data(), steps.shift.data(), code + i, end - i, index,
                                           symbol + (index - index_.data()), bits.buffer);
                i += done;
                index += done;
                if (i == end) break;
                const int shift = steps.shift[*index / kTokens];
                const uint32_t folded = fold(code[i]), high = (folded >> (shift + 1)) + (shift == 0 ? folded & 1 : 0);
                symbol[index - index_.data()] = TokenEncoder::packed(table[*index / kTokens], kEscaped);
                *index = static_cast<uint16_t>(*index + kEscaped);
                lengths_.push_back(code[i] == kOutlier ? kOutlierLength
                                                       : std::min(highest_bit(high - kEscaped + 1), kOutlierLength - 1));
                escaped_code(bits, shift, lengths_.back(), code[i]);
            }
    }

    void list_escapes(int64_t n) {
        std::size_t count = 0;
        for (int64_t i = 0; i < n; ++i) count += index_[static_cast<std::size_t>(i)] % kTokens == kEscaped;
        lengths_.resize(count);
    }

    // Lengths of the escaped.
    void code_lengths() {
        for (int& length : lengths_) {
            length = counted_symbol(TokenModels::kEscape, length);
        }
        symbols_ += static_cast<int64_t>(lengths_.size());
    }

    void read_codes(const Steps& steps, int32_t* code) {
        std::size_t k = 0, escaped = 0;
        for (const Run& run : runs_)
            for (int64_t i = run.start, end = run.start + run.count; i < end; ++i, ++k) {
                const int64_t n = coder_.bits().codes(steps.step.data(), index_.data() + k, end - i, code + i);
                i += n;
                k += static_cast<std::size_t>(n);
                if (i == end) break;
                const std::size_t at = index_[k];
                const uint32_t step = steps.step[at];
                const int bits = static_cast<int>(step & 255);
                code[i] = bits == kEscapeBits ? escaped_code(coder_.bits(), steps.shift[at / kTokens], lengths_[escaped++], 0)
                                              : unfold((step >> 8) + static_cast<uint32_t>(coder_.bits().code(0, bits)));
            }
    }

    template <class Bits>
    AESZ_RARE int32_t escaped_code(Bits& bits, int shift, int length, int32_t value) {
        if (length == kOutlierLength) return kOutlier;
        const uint32_t folded = decoding ? 0 : fold(value);
        const uint32_t high = shift ? folded >> (shift + 1) : magnitude(value);
        uint64_t extra = 0;
        if (length == kOutlierLength - 1) {
            extra = bits.code(high - kEscaped, 32);
        } else {
            extra = (uint64_t{1} << length) - 1 + bits.code(high - kEscaped + 1 - (1u << length), length);
        }
        int64_t result;
        if (shift) {
            const uint64_t u = ((extra + kEscaped) << (shift + 1)) + bits.code(folded & ((1u << (shift + 1)) - 1), shift + 1);
            result = static_cast<int64_t>(u >> 1);
            if (u & 1) result = -result - 1;
        } else {
            result = static_cast<int64_t>(extra) + kEscaped;
            if (bits.code(value > 0, 1) == 0) result = -result;
        }
        return static_cast<int32_t>(std::clamp<int64_t>(result, -kLargestCode, kLargestCode));
    }

    int counted_symbol(int context, int token) {
        token = coder_.symbol(models_->other[static_cast<std::size_t>(context)], token);
        models_->count(context, token);
        return token;
    }

    uint32_t golomb(uint32_t value, int context) {
        const int length = counted_symbol(context, decoding ? 0 : std::min(highest_bit(value + 1), kTokens - 1));
        if constexpr (!decoding) coder_.bits().reserve(32);
        if (length == kTokens - 1) return static_cast<uint32_t>(coder_.bits().code(value, 32));
        return (1u << length) - 1 + static_cast<uint32_t>(coder_.bits().code(value + 1 - (1u << length), length));
    }

    Coder& coder_;
    std::unique_ptr<TokenModels> models_;
    std::vector<uint16_t> index_;      // of what is coded by tokens: scale * kTokens + token
    std::vector<uint8_t> scale_;       // of the line, between zeros
    std::vector<int32_t> even_, odd_;  // codes of a learned line
    std::vector<Run> runs_;
    std::vector<int> lengths_;
    int64_t line_ = 0, symbols_ = 0;
    bool counts_ = true;  // whether the tokens of the line are counted
};

}  // namespace aesz
