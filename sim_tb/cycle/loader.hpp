// The loader (rtl/loader.py, gearbox.py), with the parts for C masks and parameters (load_words.py).
#pragma once

#include "load_parts.hpp"

namespace maskwork {

// The gearbox, which makes of beats as many values as a part takes.
struct Gearbox {
    // values held, values announced that are not in it, and whether these go beyond the next beat
    int most = 0, count = 0, announce = 0, whole = 0;
    int64_t left = 0;
    bool more = false, hold = false;
    // the register before it
    bool staged = false, counted = false, some = false, unused = false;
    bool follows = false;          // a dense row follows the one whose values come
    int beat_bits_set = 0;

    void start(int values_of_beat) {
        count = 0;
        left = 0;
        more = hold = staged = counted = some = follows = false;
        whole = values_of_beat;
    }

    // One cycle of a part that takes bitmaps and values; whether the beat is wanted.
    template <typename Part>
    [[gnu::always_inline]] inline bool step(const Config& config, Part& part, const uint32_t* beat, bool valid,
                                            bool& part_done) {
        const bool dense = part.load.dense;
        const int need = part.need() | (unused ? most : 0);
        unused = part.empty();
        const bool gear_want = count <= most + need && !hold, given = count >= need;
        const bool moves = staged && gear_want, last = moves && !more;
        const bool was_inside = part.inside();
        const Asked asked = part.step(dense ? !follows : !some || last, given, beat, valid, part_done);
        const bool another = follows || asked.announce, row = another && (!some || last);
        const bool values_wanted = some && (!staged || (moves && (more || another))) && !was_inside;
        const bool takes_bitmap = asked.want && valid;
        // gearbox
        const int fresh = moves ? (more ? whole : static_cast<int>(left)) : 0;
        if (row) left = part.load.length;
        else if (hold) left += announce;
        else if (moves) left = more ? left - fresh : 0;
        more = left > whole;
        count += fresh - (given ? need : 0);
        // the register before it
        hold = counted;
        follows = another && !row;
        announce = beat_bits_set;
        if (!staged || moves) {
            beat_bits_set = 0;
            if (takes_bitmap && beat) {
                for (int n = 0; n < config.stream_words; ++n) beat_bits_set += std::popcount(beat[n]);
            }
        }
        some = (some && !last) || (takes_bitmap && beat_bits_set) || row;
        staged = (values_wanted && valid) || (staged && !moves);
        counted = takes_bitmap;
        return asked.want || values_wanted;
    }
};

struct Loader {
    const Config* config = nullptr;
    std::vector<Cluster>* clusters = nullptr;
    Load load{};
    LoadA a;
    LoadB b;
    Gearbox gearbox;
    bool busy = false, done = false, ended = false;

    enum State : uint8_t { NOTHING, C_WORDS, P_BIAS, P_SCALE, P_LANES };
    State state = NOTHING;
    int rows = 0, word = 0, column = 0, lane = 0;

    void create(const Config& c, std::vector<Cluster>& all) {
        config = &c;
        clusters = &all;
        gearbox.most = std::max(c.fetch_width, c.pes * c.load_slots);
        a.create(c);
        b.create(c);
    }

    // `payload`: the packet's words after its header.
    void start(const Load& next, bool packet_ended, const uint32_t* payload) {
        load = next;
        busy = true;
        ended = packet_ended;
        const int width = load.kind == LoadKind::B ? config->b_width : config->a_width;
        gearbox.start(config->per_word(width) * config->stream_words);
        word = column = lane = 0;
        rows = load.count - 1;
        targets.clear();
        for (Cluster& cluster : *clusters) {
            if (load.clusters >> cluster.number & 1) targets.push_back(&cluster);
        }
        switch (load.kind) {
            case LoadKind::A: a.start(load, targets, payload); break;
            case LoadKind::B: b.start(load, targets, payload); break;
            case LoadKind::C:
                state = C_WORDS;
                for (Cluster* cluster : targets) {
                    if (!load.append) cluster->c_masks[load.bank].clear();
                }
                break;
            case LoadKind::P: state = P_BIAS; break;
        }
    }
    std::vector<Cluster*> targets;

    // One cycle. `beat` is the payload's beat, if there is one; true: it is taken.
    bool step(const uint32_t* beat, bool last) {
        done = false;
        if (!busy) return false;
        const bool valid = beat != nullptr || ended;
        bool want, part_done = false;
        if (load.kind == LoadKind::A) want = gearbox.step(*config, a, beat, valid, part_done);
        else if (load.kind == LoadKind::B) want = gearbox.step(*config, b, beat, valid, part_done);
        else want = step_words(beat, valid, part_done);
        const bool takes = want && beat && !ended;
        if (takes && last) ended = true;
        if (part_done) {
            busy = false;
            done = true;
        }
        return takes;
    }

    bool step_words(const uint32_t* beat, bool valid, bool& part_done) {
        bool want = false;
        switch (state) {
            case C_WORDS: {
                const int words = std::bit_ceil(static_cast<unsigned>(config->mask_words()));
                const int last_word = (load.length - 1) >> 5;
                const int in_beat = word & (config->stream_words - 1);
                const bool exists = word <= last_word;
                want = exists && (word == last_word || in_beat == config->stream_words - 1);
                if (valid || !exists) {
                    const uint32_t value = exists && beat ? beat[in_beat] : 0;
                    for (Cluster* cluster : targets) cluster->c_masks[load.bank].push_back(value);
                    if (++word == words) {
                        word = 0;
                        if (rows-- == 0) part_done = true;
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
                    if (column++ == load.length - 1) part_done = true;
                }
                break;
            default:
                break;
        }
        return want;
    }
};

}  // namespace maskwork
