// Inner loops of the static coder, for every instruction set; see kernel_loops.hpp.
// No include guard.

// Decodes a token: the last edge that is not above the state's low bits.  Returns the token.
AESZ_TARGET AESZ_INLINE uint32_t next_token(const TokenTable& table, uint32_t& state, const uint8_t*& word) {
    const uint32_t target = state & 32767;
    const auto* bytes = reinterpret_cast<const uint8_t*>(&table);
    uint32_t after;  // bytes from the table to the edge after
#if AESZ_WIDE
    const __m256i above = _mm256_cmpgt_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)),
                                             _mm256_set1_epi16(static_cast<int16_t>(target)));
    after = static_cast<uint32_t>(lowest_bit(static_cast<uint32_t>(_mm256_movemask_epi8(above)) | uint64_t{1} << 32));
#elif defined(__SSE2__)
    const __m128i t = _mm_set1_epi16(static_cast<int16_t>(target));
    const auto* e = reinterpret_cast<const __m128i*>(bytes);
    const __m128i above = _mm_packs_epi16(_mm_cmpgt_epi16(_mm_load_si128(e), t), _mm_cmpgt_epi16(_mm_load_si128(e + 1), t));
    after = 2 * static_cast<uint32_t>(lowest_bit(static_cast<uint32_t>(_mm_movemask_epi8(above)) | 1u << kTokens));
#else
    after = 0;
    for (std::size_t i = 0; i < kTokens; ++i) after += 2 * (table.edge[i] <= target);
#endif
    uint16_t edge, frequency;
    std::memcpy(&edge, bytes + after - 2, 2);
    std::memcpy(&frequency, bytes + sizeof(table.edge) + after - 2, 2);
    const uint32_t x = frequency * (state >> 15) + target - edge;
    const uint32_t low = static_cast<uint32_t>(word[0]) | static_cast<uint32_t>(word[1]) << 8;
    const uint32_t fuller = x << 16 | low;
    const bool few = x < kLeastState;
    state = AESZ_RANDOM(few) ? fuller : x;
    word += 2 * few;
    return after / 2 - 1;
}

// Decodes tokens in groups of kLanes while there are words for a group; the first is of the lane `first`.  Returns how many.
AESZ_TARGET inline int64_t read_tokens(const TokenTable* table, uint16_t* index, int64_t n, uint32_t* states, int64_t first,
                                       const uint8_t*& words, const uint8_t* end) {
    uint32_t x[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = states[(first + lane) % kLanes];
    const uint8_t* word = words;
    int64_t i = 0;
    for (; i + kLanes <= n && end - word >= 2 * kLanes; i += kLanes) AESZ_UNROLL for (int lane = 0; lane < kLanes; ++lane) {
            const uint32_t context = index[i + lane];
            index[i + lane] = static_cast<uint16_t>(context + next_token(table[context / kTokens], x[lane], word));
        }
    for (int lane = 0; lane < kLanes; ++lane) states[(first + lane) % kLanes] = x[lane];
    words = word;
    return i;
}

// Makes codes of tokens and raw bits; `steps` by context and token.  Stops at an escape, or near the end of the bits; returns how
// many codes it made.
AESZ_TARGET inline int64_t read_bits(const uint32_t* steps, const uint16_t* index, int64_t n, const uint8_t* data,
                                     std::size_t size, std::size_t& position, int32_t* AESZ_RESTRICT code) {
    if (size < 8) return 0;
    std::size_t at = position;
    const std::size_t last = (size - 8) * 8;
    int64_t i = 0;
    for (; i < n && at <= last; ++i) {
        const uint32_t step = steps[index[i]], bits = step & 255;
        if (AESZ_UNLIKELY(bits > 32)) break;
        const uint64_t word = load_little_endian(data + (at >> 3));
        const uint32_t u = (step >> 8) + (static_cast<uint32_t>(word >> (at & 7)) & ((1u << bits) - 1));
        at += bits;
        code[i] = unfold(u);
    }
    position = at;
    return i;
}

// The reverse: tokens are added to the contexts, symbols and raw bits written.  Stops at an escape; returns how many codes it
// has written.
AESZ_TARGET inline int64_t write_codes(const TokenTable* table, const uint32_t* steps, const uint8_t* shifts, const int32_t* code,
                                       int64_t n, uint16_t* AESZ_RESTRICT index, uint32_t* AESZ_RESTRICT symbol,
                                       BitBuffer& buffer) {
    BitBuffer bits = buffer;
    int64_t i = 0;
    for (; i < n; ++i) {
        const uint32_t context = index[i], shift = shifts[context / kTokens];
        const uint32_t folded = fold(code[i]);
        const uint32_t high = (folded >> (shift + 1)) + (folded & (shift == 0));
        if (AESZ_UNLIKELY(high >= kTokens - 1)) break;
        const TokenTable& here = table[context / kTokens];
        symbol[i] = static_cast<uint32_t>(here.edge[high]) | static_cast<uint32_t>(here.frequency[high]) << 15;
        index[i] = static_cast<uint16_t>(context + high);
        const uint32_t step = steps[context + high];
        bits.put(folded - (step >> 8), static_cast<int>(step & 255));
    }
    buffer = bits;
    return i;
}
