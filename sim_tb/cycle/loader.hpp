// The loader (rtl/loader.py, load_a.py, load_b.py, load_words.py, gearbox.py).
#pragma once

#include "cluster.hpp"

namespace maskwork {

enum class LoadKind : uint8_t { A, B, C, P };

// Fields of a LOAD packet.
struct Load {
    LoadKind kind;
    int bank, append, dense, count, length, k;
    uint32_t lanes, clusters;
};

struct Loader {
    const Config* config;
    std::vector<Cluster>* clusters;
    Load load{};
    bool busy = false, done = false;
    bool ended = false;

    // gearbox
    int most = 0, announce = 0, gear_count = 0;
    int64_t gear_left = 0;
    bool some_left = false;
    bool counted = false;
    int bitmap_bits = 0;
    uint32_t held = 0;              // bits 0 and 1: a part held the gearbox one and two cycles ago

    enum State : uint8_t { L_IDLE, SEGMENT, L_FIRST, L_HEAD, L_VALUES, L_LAST_VALUES, L_END, B_ROW, B_MASK, B_SLOTS,
                           C_WORDS, P_BIAS, P_SCALE, P_LANES };
    State state = L_IDLE;
    // A
    int segments = 0, beat_number = 0, chunk = 0, at = 0, word_left = 0;
    bool is_last = false;
    uint16_t bits = 0;
    std::vector<uint32_t> bitmap;   // of the segment or row
    std::vector<uint8_t> present;   // of a dense segment or row: values that are not 0, as they come
    // B
    int rows = 0, k = 0;
    BitIterator slots;
    bool pending = false;
    int needs = 0;
    uint32_t mask[MASK_WORDS] = {};
    // C and P
    int word = 0, column = 0, lane = 0;

    void create(const Config& c, std::vector<Cluster>& all) {
        config = &c;
        clusters = &all;
        most = std::max(c.fetch_width, c.pes);
    }

    void start(const Load& next, bool packet_ended) {
        load = next;
        begin();
        ended = packet_ended;
    }

    template <typename F>
    void each_cluster(F f) {
        for (Cluster& cluster : *clusters) {
            if (load.clusters >> cluster.number & 1) f(cluster);
        }
    }

    int width() const { return load.kind == LoadKind::B ? config->b_width : config->a_width; }
    int beats_of(int length) const { return (length + config->beat_bits() - 1) / config->beat_bits(); }

    uint16_t chunk_bits(int number) const {
        if (load.dense) {
            const int left = load.length - number * CHUNK;
            return left >= CHUNK ? 0xffff : static_cast<uint16_t>((1u << std::max(0, left)) - 1);
        }
        const size_t bit = static_cast<size_t>(number) * CHUNK;
        return bit / 32 < bitmap.size() ? static_cast<uint16_t>(bitmap[bit / 32] >> (bit % 32)) : 0;
    }

    // One cycle. `beat` is the payload's beat, if there is one; true: it is taken.
    bool step(const uint32_t* beat, bool last) {
        done = false;
        if (!busy) return false;
        bool want = false, hold = false, part_done = false;
        int take = 0;
        const bool valid = beat != nullptr || ended;
        const State now = state;
        const int old_beat_number = beat_number;
        // what the parts ask of the gearbox comes from registers; whether the beat is theirs, too
        if (now == SEGMENT || now == B_ROW) {
            hold = true;
            want = !load.dense;
        }
        const bool gear_want = some_left && gear_count <= most && !(hold || held);
        const int whole = config->per_word(width()) * config->stream_words;
        switch (now) {
            case SEGMENT:
                chunk = 0;
                if (load.dense) {
                    state = L_FIRST;
                } else if (valid) {
                    keep_bitmap(beat, old_beat_number);
                    ++beat_number;
                    if (old_beat_number == beats_of(load.length) - 1) {
                        beat_number = 0;
                        state = L_FIRST;
                    }
                }
                break;
            case L_FIRST:
                bits = chunk_bits(0);
                at = 0;
                chunk = 1;
                is_last = load.length <= CHUNK;
                state = L_HEAD;
                break;
            case L_HEAD: {
                const int elements = std::popcount(bits);
                const bool was_last = is_last;
                if (elements) write_head(elements);
                word_left = elements;
                is_last = chunk == (load.length - 1) / CHUNK;
                at = chunk;
                const uint16_t had = bits;
                bits = chunk_bits(chunk);
                ++chunk;
                if (had) state = was_last ? L_LAST_VALUES : L_VALUES;
                else if (was_last) state = L_END;
                break;
            }
            case L_VALUES:
            case L_LAST_VALUES: {
                const int step = std::min(word_left, config->fetch_width);
                if (gear_count >= step) {
                    take = step;
                    write_value();
                    if (word_left <= config->fetch_width) state = now == L_VALUES ? L_HEAD : L_END;
                    word_left -= step;
                }
                break;
            }
            case L_END:
                end_segment();
                state = SEGMENT;
                if (segments-- == 0) {
                    part_done = true;
                    state = L_IDLE;
                }
                break;
            case B_ROW:
                if (load.dense) {
                    for (int n = 0; n < MASK_WORDS; ++n) mask[n] = ones_below(load.length, n);
                    state = B_MASK;
                } else if (valid) {
                    keep_bitmap(beat, old_beat_number);
                    ++beat_number;
                    if (old_beat_number == beats_of(load.length) - 1) {
                        beat_number = 0;
                        for (int n = 0; n < MASK_WORDS; ++n) {
                            mask[n] = static_cast<size_t>(n) < bitmap.size() ? bitmap[static_cast<size_t>(n)] : 0;
                        }
                        state = B_MASK;
                    }
                }
                break;
            case B_MASK:
            case B_SLOTS:
                break;
            case C_WORDS: {
                const int words = std::bit_ceil(static_cast<unsigned>(config->mask_words()));
                const int last_word = (load.length - 1) >> 5;
                const int in_beat = word & (config->stream_words - 1);
                const bool exists = word <= last_word;
                want = exists && (word == last_word || in_beat == config->stream_words - 1);
                if (valid || !exists) {
                    const uint32_t value = exists && beat ? beat[in_beat] : 0;
                    each_cluster([&](Cluster& c) { c.c_masks[load.bank].push_back(value); });
                    if (++word == words) {
                        word = 0;
                        if (rows-- == 0) {
                            part_done = true;
                            state = L_IDLE;
                        }
                    }
                }
                break;
            }
            case P_BIAS:
                want = word == config->stream_words - 1;
                if (valid) {
                    word = want ? 0 : word + 1;
                    state = P_SCALE;
                }
                break;
            case P_SCALE:
                want = word == config->stream_words - 1 || column == load.length - 1;
                if (valid) {
                    word = word == config->stream_words - 1 ? 0 : word + 1;
                    state = P_LANES;
                }
                break;
            case P_LANES:
                if (++lane == config->lanes_per_cluster) {
                    lane = 0;
                    state = P_BIAS;
                    if (column++ == load.length - 1) {
                        part_done = true;
                        state = L_IDLE;
                    }
                }
                break;
            default:
                break;
        }
        if (load.kind == LoadKind::B) take = step_slots(now, part_done);

        const bool takes = (want || gear_want) && beat != nullptr && !ended;
        const bool put = gear_want && valid;
        const int fresh = put ? static_cast<int>(std::min<int64_t>(gear_left, whole)) : 0;
        if (put && load.dense && beat) look_at(beat, fresh);
        gear_left += announce - fresh;
        some_left = gear_left != 0;
        gear_count += fresh - take;
        // what a beat of bitmaps announces arrives two cycles later
        announce = counted ? (load.dense ? load.length : bitmap_bits) : 0;
        counted = hold && (valid || load.dense);
        if (counted && !load.dense) {
            bitmap_bits = 0;
            for (int n = 0; beat && n < config->stream_words; ++n) bitmap_bits += std::popcount(beat[n]);
        }
        held = (held << 1 | hold) & 3;
        if (takes && last) ended = true;
        if (part_done) {
            busy = false;
            done = true;
        }
        return takes;
    }

    void begin() {
        busy = true;
        announce = gear_count = 0;
        gear_left = 0;
        some_left = counted = false;
        held = 0;
        beat_number = word = column = lane = 0;
        bitmap.clear();
        present.clear();
        switch (load.kind) {
            case LoadKind::A:
                segments = load.count - 1;
                state = SEGMENT;
                each_cluster([&](Cluster& c) {
                    if (load.append) return;
                    c.a_words[load.bank].clear();
                    c.directory[load.bank].clear();
                });
                break;
            case LoadKind::B:
                rows = load.count - 1;
                k = load.k;
                state = B_ROW;
                break;
            case LoadKind::C:
                rows = load.count - 1;
                state = C_WORDS;
                each_cluster([&](Cluster& c) {
                    if (!load.append) c.c_masks[load.bank].clear();
                });
                break;
            case LoadKind::P:
                state = P_BIAS;
                break;
        }
    }

    // ------------------------------------------------------------------ what is written

    uint32_t ones_below(int length, int n) const {
        const int left = length - 32 * n;
        return left >= 32 ? ~0u : left <= 0 ? 0 : (1u << left) - 1;
    }

    void keep_bitmap(const uint32_t* beat, int number) {
        if (number == 0) bitmap.clear();
        for (int n = 0; n < config->stream_words; ++n) {
            const int left = load.length - static_cast<int>(bitmap.size()) * 32;
            const uint32_t ones = left >= 32 ? ~0u : left <= 0 ? 0 : (1u << left) - 1;
            bitmap.push_back(beat ? beat[n] & ones : 0);
        }
    }

    void write_head(int elements) {
        Word head{};
        head.kind = Kind::HEAD;
        head.bitmap = head.nonzero = bits;
        head.more = static_cast<uint8_t>(elements - 1);
        head.number = static_cast<uint16_t>(at);
        each_cluster([&](Cluster& c) { c.a_words[load.bank].push_back(head); });
    }

    void write_value() {
        Word value{};
        value.kind = Kind::VALUE;
        each_cluster([&](Cluster& c) { c.a_words[load.bank].push_back(value); });
    }

    void end_segment() {
        if (load.dense) {
            // which of its values were not 0 is known now
            each_cluster([&](Cluster& c) {
                auto& words = c.a_words[load.bank];
                const auto& segments_ = c.directory[load.bank];
                size_t from = segments_.empty() ? 0 : static_cast<size_t>(segments_.back().start + segments_.back().words);
                for (; from < words.size(); ++from) {
                    if (words[from].kind != Kind::HEAD) continue;
                    uint16_t nonzero = 0;
                    for (int n = 0; n < CHUNK; ++n) {
                        const size_t at_value = static_cast<size_t>(words[from].number) * CHUNK + static_cast<size_t>(n);
                        if (at_value < present.size() && present[at_value]) nonzero |= static_cast<uint16_t>(1u << n);
                    }
                    words[from].nonzero &= nonzero;
                }
            });
            present.clear();
        }
        each_cluster([&](Cluster& c) {
            auto& all = c.directory[load.bank];
            const int32_t begin_at = all.empty() ? 0 : all.back().start + all.back().words;
            all.push_back({begin_at, static_cast<int32_t>(c.a_words[load.bank].size()) - begin_at});
        });
    }

    // Values of a dense row or segment that enter the gearbox: which are not 0?
    void look_at(const uint32_t* beat, int fresh) {
        const int bits_of = width(), per = config->per_word(bits_of);
        for (int n = 0; n < fresh; ++n) {
            const uint32_t field = beat[n / per] >> (n % per * bits_of) & ((1u << bits_of) - 1);
            present.push_back(field != 0);
        }
    }

    // ------------------------------------------------------------------ B

    int step_slots(State now, bool& part_done) {
        const int count = config->slots;
        int take = 0;
        const bool given = pending && gear_count >= needs;
        const bool ready = !pending || given;
        if (given) take = needs;
        const bool was_busy = slots.busy();
        uint32_t wanted = 0;
        if (now == B_MASK) {
            for (int slot = 0; slot < count; ++slot) {
                const bool any = bits_of_slot(slot) != 0 || !config->skip_b;
                wanted |= static_cast<uint32_t>(any) << slot;
            }
            write_mask();
            state = B_SLOTS;
        }
        const bool out_valid = slots.valid();
        const int index = slots.index();
        slots.step(now == B_MASK, wanted, 0, ready);
        if (ready) {
            pending = out_valid;
            needs = std::popcount(bits_of_slot(index));
        }
        if (now == B_SLOTS && !was_busy && ready) {
            write_pattern();
            k = (k + 1) & (config->k_depth - 1);
            std::memset(mask, 0, sizeof mask);
            state = B_ROW;
            if (rows-- == 0) {
                part_done = true;
                state = L_IDLE;
            }
        }
        return take;
    }

    uint32_t bits_of_slot(int slot) const {
        const int bit = slot * config->pes;
        return mask[bit >> 5] >> (bit & 31) & ((1u << config->pes) - 1);
    }

    template <typename F>
    void each_lane(F f) {
        each_cluster([&](Cluster& c) {
            for (int n = 0; n < config->lanes_per_cluster; ++n) {
                if (load.lanes >> n & 1) f(c.lanes[static_cast<size_t>(n)]);
            }
        });
    }

    void write_mask() {
        uint32_t of_pe[MAX_PES];
        for (int n = 0; n < config->pes; ++n) {
            of_pe[n] = 0;
            for (int slot = 0; slot < config->slots; ++slot) {
                const int bit = slot * config->pes + n;
                of_pe[n] |= (mask[bit >> 5] >> (bit & 31) & 1) << slot;
            }
        }
        const size_t base = static_cast<size_t>((load.bank * config->k_depth + k) * config->pes);
        const int last_slot = (load.length - 1) >> log2_of(config->pes);
        each_lane([&](Lane& target) {
            for (int n = 0; n < config->pes; ++n) {
                target.b_mask[base + static_cast<size_t>(n)] = target.b_nonzero[base + static_cast<size_t>(n)] = of_pe[n];
            }
            if (!load.append || last_slot > target.last_slot[load.bank]) target.last_slot[load.bank] = last_slot;
        });
    }

    // After a dense row: which of its weights are 0.
    void write_pattern() {
        if (!load.dense) return;
        const size_t base = static_cast<size_t>((load.bank * config->k_depth + k) * config->pes);
        each_lane([&](Lane& target) {
            for (size_t column_at = 0; column_at < present.size(); ++column_at) {
                if (present[column_at]) continue;
                const size_t pe = column_at % static_cast<size_t>(config->pes);
                target.b_nonzero[base + pe] &= ~(1u << (column_at / static_cast<size_t>(config->pes)));
            }
        });
        present.clear();
    }
};

}  // namespace maskwork
