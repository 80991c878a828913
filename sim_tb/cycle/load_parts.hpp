// Parts of the loader that take bitmaps and values (rtl/load_a.py, load_b.py).
#pragma once

#include "cluster.hpp"

namespace maskwork {

// An activation bank that is too small; says which limit.
struct BankOverflow : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class LoadKind : uint8_t { A, B, C, P };

// Fields of a LOAD packet.
struct Load {
    LoadKind kind;
    int bank, append, dense, count, length, k;
    uint32_t lanes, clusters;
};

// What a part asks for in a cycle: the beat at the input, as a bitmap; that a dense row is announced.
struct Asked {
    bool want = false, announce = false;
};

// Which values of a dense row are not 0, from the packet's words.
struct DenseRows {
    const uint32_t* payload = nullptr;
    int width = 0, per_word = 0;
    size_t row_words = 0;

    void start(const Config& config, const Load& load, const uint32_t* words) {
        payload = words;
        width = load.kind == LoadKind::B ? config.b_width : config.a_width;
        per_word = config.per_word(width);
        const size_t beat = static_cast<size_t>(config.stream_words);
        const size_t used = static_cast<size_t>((load.length + per_word - 1) / per_word);
        row_words = (used + beat - 1) / beat * beat;
    }
    bool nonzero(size_t row, int element) const {
        const uint32_t word = payload[row * row_words + static_cast<size_t>(element / per_word)];
        return word >> (element % per_word * width) & ((1u << width) - 1);
    }
};

struct LoadA {
    const Config* config = nullptr;
    Load load{};
    DenseRows dense;
    std::vector<Activations*> targets;
    int beats = 0;
    // bitmaps that wait, a beat each
    std::vector<uint32_t> queue;
    unsigned written = 0, read = 0;
    int come = 0, beat_number = 0;
    bool taking = false, begun = false;
    // the chunk that comes next
    int chunk = 0, at = 0, segments = 0, more = 0;
    size_t segment = 0;
    uint16_t bits = 0;
    bool held = false, is_last = false, ends = false;
    enum State : uint8_t { HEAD, VALUES } state = HEAD;

    void create(const Config& c) {
        config = &c;
        beats = std::max(2, (c.k_depth + c.beat_bits() - 1) / c.beat_bits());
        queue.resize(static_cast<size_t>(beats * c.stream_words));
    }

    void start(const Load& next, const std::vector<Cluster*>& clusters, const uint32_t* payload) {
        load = next;
        choose_targets(clusters);
        dense.start(*config, load, payload);
        written = read = 0;
        come = segments = load.count - 1;
        segment = 0;
        beat_number = chunk = 0;
        taking = true;
        begun = held = false;
        state = HEAD;
    }

    // What is loaded into several clusters is written once, unless they hold something else before.
    void choose_targets(const std::vector<Cluster*>& clusters) {
        targets.clear();
        const auto number = static_cast<size_t>(load.bank);
        const auto bank = [number](Cluster* cluster) -> auto& { return cluster->activations[number]; };
        if (clusters.empty()) return;
        const auto& first = bank(clusters[0]);
        const bool same = std::ranges::all_of(clusters, [&](Cluster* cluster) { return bank(cluster) == first; });
        if (load.append && !(same && first.use_count() == static_cast<long>(clusters.size()))) {
            for (Cluster* cluster : clusters) {
                bank(cluster) = std::make_shared<Activations>(*bank(cluster));
                targets.push_back(bank(cluster).get());
            }
            return;
        }
        if (!load.append) {
            const auto fresh = std::make_shared<Activations>();
            fresh->words.reserve(static_cast<size_t>(config->a_depth));
            for (Cluster* cluster : clusters) bank(cluster) = fresh;
        }
        targets.push_back(bank(clusters[0]).get());
    }

    bool waits() const { return written != read; }
    bool inside() const { return begun && !load.dense; }
    bool empty() const { return state == HEAD && !held && !waits() && !begun; }
    int need() const {
        return state == VALUES ? std::min(more + 1, config->fetch_width) : 0;
    }

    [[gnu::always_inline]] inline Asked step(bool free, bool given, const uint32_t* beat, bool valid, bool& done) {
        Asked asked;
        const bool put = taking && written - read != static_cast<unsigned>(beats) && (begun || free);
        asked.want = put && !load.dense;
        asked.announce = put && load.dense && !begun;
        const bool takes = put && (load.dense || valid);

        // what is written
        bool taken = state == HEAD, segment_ends = false;
        switch (state) {
            case HEAD:
                if (held && bits) {
                    write_head();
                    state = VALUES;
                } else if (held) {
                    segment_ends = true;
                }
                more = std::popcount(bits) - 1;
                ends = is_last;
                break;
            case VALUES:
                if (given) {
                    write({Kind::VALUE, 0, 0, 0, 0});
                    if (more < config->fetch_width) {
                        // a last chunk without values, if it waits, ends the segment as well
                        taken = !ends && held && !bits;
                        segment_ends = ends || taken;
                        state = HEAD;
                    }
                    more -= config->fetch_width;
                }
                break;
        }
        if (segment_ends) {
            end_segment();
            if (segments-- == 0) done = true;
        }
        // the next chunk
        if (!held || taken) {
            const int in_beat = config->beat_bits() / CHUNK;
            const bool at_last = chunk == (load.length - 1) / CHUNK;
            uint16_t following;
            if (load.dense) {
                following = static_cast<uint16_t>(at_last ? 0xffff >> (-load.length & 15) : 0xffff);
            } else {
                const int bit = chunk % in_beat * CHUNK;
                const size_t slot = read % static_cast<unsigned>(beats) * static_cast<size_t>(config->stream_words);
                following = static_cast<uint16_t>(queue[slot + static_cast<size_t>(bit / 32)] >> (bit % 32));
            }
            bits = following;
            at = chunk;
            is_last = at_last;
            const bool waited = waits();
            held = waited && (following || at_last);
            if (waited) {
                if (at_last || chunk % in_beat == in_beat - 1) ++read;
                chunk = at_last ? 0 : chunk + 1;
            }
        }
        // bitmaps
        if (takes) {
            if (beat && !load.dense) {
                const size_t slot = written % static_cast<unsigned>(beats) * static_cast<size_t>(config->stream_words);
                std::copy(beat, beat + config->stream_words, queue.begin() + static_cast<std::ptrdiff_t>(slot));
            }
            ++written;
            begun = true;
            if (beat_number++ == (load.length - 1) / config->beat_bits()) {
                beat_number = 0;
                begun = false;
                if (come-- == 0) taking = false;
            }
        }
        return asked;
    }

    [[gnu::always_inline]] inline void write(const Stored& word) {
        for (Activations* target : targets) {
            if (target->words.size() == static_cast<size_t>(config->a_depth)) throw BankOverflow("a_depth");
            target->words.push_back(word);
        }
    }

    void write_head() {
        Stored head{Kind::HEAD, static_cast<uint8_t>(std::popcount(bits) - 1), bits, bits, static_cast<uint16_t>(at)};
        if (load.dense) {
            for (int n = 0; n < CHUNK; ++n) {
                if (bits >> n & 1 && !dense.nonzero(segment, at * CHUNK + n)) head.nonzero &= static_cast<uint16_t>(~(1u << n));
            }
        }
        write(head);
    }

    void end_segment() {
        ++segment;
        for (Activations* target : targets) {
            auto& all = target->directory;
            if (all.size() == static_cast<size_t>(config->a_segments)) throw BankOverflow("a_segments");
            const int32_t from = all.empty() ? 0 : all.back().start + all.back().words;
            all.push_back({from, static_cast<int32_t>(target->words.size()) - from});
        }
    }
};

struct LoadB {
    const Config* config = nullptr;
    Load load{};
    DenseRows dense;
    std::vector<Lane*> targets;
    enum State : uint8_t { ROW, END } state = ROW;
    int rows = 0, beat_number = 0;
    size_t row = 0;             // whose mask is written next
    bool is_inside = false;
    // the row that comes; the row whose slots are chosen; four of its slots; one slot
    uint32_t taken[MASK_WORDS] = {}, mask[MASK_WORDS] = {}, first_mask[MASK_WORDS] = {}, written[MASK_WORDS] = {};
    bool full = false, outer = false, first = false, unwritten = false;
    uint32_t flags = 0, bits = 0;
    uint32_t four[4] = {};
    bool inner = false, inner_first = false, pending = false, begins = false;
    int needs = 0, k = 0;

    void create(const Config& c) { config = &c; }

    void start(const Load& next, const std::vector<Cluster*>& clusters, const uint32_t* payload) {
        load = next;
        targets.clear();
        for (Cluster* cluster : clusters) {
            for (int n = 0; n < config->lanes_per_cluster; ++n) {
                if (load.lanes >> n & 1) targets.push_back(&cluster->lanes[static_cast<size_t>(n)]);
            }
        }
        dense.start(*config, load, payload);
        state = ROW;
        rows = load.count - 1;
        row = 0;
        beat_number = 0;
        is_inside = false;
        k = load.k - 1;
        std::memset(taken, 0, sizeof taken);
    }

    bool inside() const { return is_inside; }
    bool inactive() const { return !full && !outer && !inner && !pending; }
    bool empty() const { return state == ROW && inactive() && !is_inside; }
    int need() const { return needs; }

    // Slots of which one is written in a cycle, and how many are chosen from at a time: four, or the two there are.
    int slots() const { return config->slots / config->load_slots; }
    int in_four() const { return std::min(4, slots()); }
    // With two slots a row's masks go along with the first, with more they wait where they are until they were written.
    bool waits_for_mask() const { return config->skip_b && slots() > 2; }

    uint32_t of_slot(const uint32_t* words, int slot) const {
        // as in rtl/load_b.py: what a cycle writes counts as one slot of so many more PEs
        const int width = config->pes * config->load_slots, bit = slot * width;
        return words[bit >> 5] >> (bit & 31) & static_cast<uint32_t>((uint64_t{1} << width) - 1);
    }

    Asked step(bool free, bool gear_given, const uint32_t* beat, bool valid, bool& done) {
        Asked asked;
        const bool masks = config->skip_b;
        const bool given = pending && gear_given;
        const bool pending_free = !pending || given;
        const bool inner_free = !inner || (single(bits) && pending_free);
        const bool outer_free = (!outer || (single(flags) && inner_free)) && (!unwritten || (given && begins));
        const bool goes_on = is_inside || (free && !full);
        const bool ends_all = state == END && !full && !outer && !inner && pending_free;
        const bool mask_leaves = given && begins;
        if (mask_leaves) write_mask();

        // from the last stage to the first
        if (pending_free) {
            const int place = bits ? std::countr_zero(bits) : 0;
            const uint32_t chosen = four[place];
            pending = inner;
            begins = inner_first;
            if (inner_first) std::memcpy(written, first_mask, sizeof written);
            needs = inner ? std::popcount(chosen) : 0;
            if (inner && inner_first) k = (k + 1) & (config->k_depth - 1);
        }
        if (inner_free) {
            const int which = flags ? std::countr_zero(flags) : 0;
            bits = 0;
            for (int n = 0; n < in_four(); ++n) {
                four[n] = of_slot(mask, 4 * which + n);
                bits |= static_cast<uint32_t>(four[n] != 0 || !masks) << n;
            }
            std::memcpy(first_mask, mask, sizeof first_mask);
            inner_first = first;
            inner = outer;
        } else if (pending_free) {
            bits &= bits - 1;
            inner_first = false;
        }
        if (waits_for_mask() && mask_leaves) unwritten = false;
        if (outer_free) {
            std::memcpy(mask, taken, sizeof mask);
            flags = 0;
            for (int n = 0; n < slots() / in_four(); ++n) {
                bool any = !masks;
                for (int slot = 0; slot < in_four(); ++slot) any |= of_slot(taken, 4 * n + slot) != 0;
                flags |= static_cast<uint32_t>(any) << n;
            }
            first = true;
            outer = full;
            if (waits_for_mask()) unwritten = full;
            full = false;
        } else if (inner_free && outer) {
            outer = !single(flags);
            flags &= flags - 1;
            first = false;
        }
        if (state == ROW && goes_on) {
            bool row_ends = false;
            if (load.dense) {
                asked.announce = row_ends = true;
                for (int n = 0; n < MASK_WORDS; ++n) {
                    const int left = load.length - 32 * n;
                    taken[n] = left >= 32 ? ~0u : left <= 0 ? 0 : (1u << left) - 1;
                }
            } else {
                asked.want = true;
                row_ends = valid && beat_number == (load.length - 1) / config->beat_bits();
                if (valid) {
                    for (int n = 0; n < config->stream_words; ++n) {
                        const int at = beat_number * config->stream_words + n;
                        if (at < config->mask_words()) taken[at] = beat ? beat[n] & ones(at) : 0;
                    }
                    ++beat_number;
                    is_inside = true;
                }
            }
            if (row_ends) {
                full = true;
                beat_number = 0;
                is_inside = false;
                if (rows-- == 0) state = END;
            }
        }
        if (ends_all) done = true;
        return asked;
    }

    // Whether a lane takes the load without the other with which it shares its weights.
    bool lane_is_alone(int number) const {
        const int lane = number & (config->lanes_per_cluster - 1);
        return config->weight_lanes > 1 && (load.lanes >> (lane & ~1) & 3) != 3;
    }

    uint32_t ones(int word) const {
        const int left = config->columns() - 32 * word;
        return left >= 32 ? ~0u : (1u << left) - 1;
    }

    void write_mask() {
        uint32_t of_pe[MAX_PES] = {}, nonzero[MAX_PES] = {};
        if (!config->skip_b) std::fill(std::begin(of_pe), std::end(of_pe), ~0u);
        const int pes = config->pes;
        for (int slot = 0; slot < config->slots; ++slot) {
            for (int n = 0; n < pes; ++n) {
                const int column = slot * pes + n;
                const uint32_t present = written[column >> 5] >> (column & 31) & 1;
                of_pe[n] |= present << slot;
                if (present && (!load.dense || dense.nonzero(row, column))) nonzero[n] |= 1u << slot;
            }
        }
        ++row;
        const int last_slot = (load.length - 1) >> log2_of(pes);
        for (Lane* lane : targets) {
            const int own = lane_is_alone(lane->number) ? config->own_rows(lane->number, k) : k;
            const size_t base = static_cast<size_t>(load.bank * config->k_depth + own) * lane->fours;
            for (size_t n = 0; n < lane->fours; ++n) {
                lane->weights[base + n] = {four_at(of_pe + FOUR * n), four_at(nonzero + FOUR * n)};
            }
            if (!load.append || last_slot > lane->last_slot[load.bank]) lane->last_slot[load.bank] = last_slot;
        }
    }
};

}  // namespace maskwork
