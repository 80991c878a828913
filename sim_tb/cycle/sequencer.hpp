// The sequencer (rtl/sequencer.py, command_check.py).
#pragma once

#include "model.hpp"

namespace maskwork {

inline void Model::answer(int kind, int count) {
    reply = kind;
    reply_words = count;
    reply_word = 0;
    state = REPLY;
}

// A word for the packer.
inline void Model::give_word(bool last) {
    if (packer_position == config.stream_words - 1 || last) {
        packer_full = true;
        packer_last = last;
        packer_synced = reply == SYNC;
        packer_position = 0;
    } else {
        ++packer_position;
    }
}

inline void Model::take_beat(bool& pop) {
    packet_ended = last_at_entry();
    position = 0;
    pop = true;
}

// The next word of the header; the beat is taken with the last of its words.
inline void Model::load_word(bool ends, bool& pop) {
    word = beat_at_entry()[position++];
    header_ends = ends;
    if (ends || position == config.stream_words) take_beat(pop);
}

inline int64_t bits(uint32_t value, int lsb, int width) { return value >> lsb & ((int64_t{1} << width) - 1); }

// One cycle in which no load goes on.
inline void Model::step_sequencer(bool has_beat, bool packer_was_full, bool& pop) {
    const int stream = config.stream_words;
    const bool settled = settle == SETTLE;
    const int hops = config.hop_stages;
    const bool busy = busy_line >> (3 + hops) & 1, all_idle = idle_line >> (2 + hops) & 1;
    int next_settle = 0;
    const auto wait = [&] { next_settle = settled ? settle : settle + 1; };
    const State was = state;
    switch (state) {
        case HEADER:
            if (has_beat) {
                if (number == 0) packet_ended = false;
                load_word(number != 0 && left == 0, pop);
                state = number == 0 ? OPCODE : WORD;
            }
            break;
        case OPCODE: {
            const int length = config.header_words[word & 0xff];
            if (!length) illegal("unknown opcode");
            left = length - 1;
            header_ends = length == 1;
            is_run = (word & 0xff) == RUN;
            if ((word & 0xff) == BEGIN) counting = true;
            state = WORD;
            break;
        }
        case WORD:
            if (is_run && !run_space) break;
            header[number] = word;
            if (header_ends) {
                // a header of one word has its beat to itself
                if (number == 0 && stream > 1) take_beat(pop);
                state = CHECK;
            } else if (packet_ended) {
                illegal("a packet is shorter than its header");
            } else {
                --left;
                if (has_beat) load_word(left == 0, pop);
                else state = HEADER;
            }
            ++number;
            break;
        case CHECK:
            number = 0;
            wait();
            if (settled || is_run || (settle >= CHECKED + 2 * hops && !is_stream())) check(busy, all_idle);
            break;
        case STARTING:
            start_load();
            break;
        case LOADING:
            break;
        case LOADED:
            wait();
            if (settle == FILLED + 2 * hops) state = HEADER;
            break;
        case COUNTERS:
            if (!stopping) wait();
            if (settled && reply_word++ == 2 * COUNTERS_IN_REPLY) {
                next_settle = 0;
                answer(READ_COUNTERS, 2 * COUNTERS_IN_REPLY + stream);
            }
            break;
        case REPLY: {
            const bool valid = reply != READ_COUNTERS || settled;
            wait();
            if (valid && !packer_was_full) {
                next_settle = 0;
                const bool last = reply_word == reply_words - 1;
                ++reply_word;
                give_word(last && !streams());
                if (last) {
                    reply_word = 0;
                    state = streams() ? STREAM : HEADER;
                }
            }
            // a mask that needs no payload may be on its way already
            if (reply == MASK) masks.step(false, false, false);
            break;
        }
        case STREAM: {
            const Unpack& unpack = reply == MASK ? masks.unpack : vector.unpack;
            if (unpack.too_short()) illegal("VECTOR or MASK has too few data");
            const bool beat_last = has_beat && last_at_entry(), ready = !packer_was_full;
            const Moved moved =
                reply == MASK ? masks.step(has_beat, beat_last, ready) : vector.step(has_beat, beat_last, ready);
            pop = moved.pop;
            if (moved.word) {
                give_word(moved.last);
                if (moved.last) {
                    if (!unpack.ended) illegal("VECTOR or MASK has too many data");
                    state = STREAMED;
                }
            }
            break;
        }
        case STREAMED:
            state = HEADER;
            break;
    }
    settle = next_settle;
    // how the clusters' state reaches the sequencer (unless there is a load: then it is there long before it is needed)
    run_space = true;
    for (Cluster& cluster : clusters) {
        run_space &= cluster.run_spaces >> hops & 1;
        cluster.run_spaces = cluster.run_spaces << 1 | cluster.fetch.run_space;
        if (cluster.comes_at == now) {
            cluster.accept(cluster.coming);
            cluster.comes_at = NEVER;
        }
    }
    if (was == CHECK || was == WORD || state == CHECK) {
        busy_line = busy_line << 1 | needed_busy();
        bool idle = true;
        for (Cluster& cluster : clusters) idle &= cluster.idle(now + 1);
        idle_line = idle_line << 1 | idle;
    }
}

inline bool Model::needed_busy() const {
    const int op = header[0] & 0xff;
    if (op < LOAD_A || op > LOAD_P) return false;
    const int bank = header[0] >> 8 & 1;
    for (const Cluster& cluster : clusters) {
        if (!(header[1] >> cluster.number & 1)) continue;
        const Busy busy = cluster.busy();
        const bool* of[] = {busy.a, busy.b, busy.c, busy.p};
        if (of[op - LOAD_A][bank]) return true;
    }
    return false;
}

inline void Model::check(bool busy, bool all_idle) {
    const int op = static_cast<int>(header[0] & 0xff);
    switch (op) {
        case LOAD_A: case LOAD_B: case LOAD_C: case LOAD_P:
            if (busy) return;
            state = STARTING;
            if (!config.hop_stages) start_load();
            return;
        case RUN:
            start_run();
            state = HEADER;
            return;
        case BEGIN:
            if (!all_idle) return;
            reset_at = now + 2 + config.lane_hops();
            state = HEADER;
            return;
        case SYNC:
            if (!all_idle) return;
            stopping = true;
            answer(SYNC, 1);
            return;
        case ECHO: answer(ECHO, 2); return;
        case READ_COUNTERS: reply_word = 0; state = COUNTERS; return;
        case IDENTIFY: answer(IDENTIFY, 4); return;
        case VECTOR:
            vector.start(bits(header[1], 0, 16), bits(header[1], 16, 16), packet_ended);
            answer(VECTOR, config.stream_words);
            return;
        case MASK:
            masks.start(static_cast<int>(bits(header[0], 16, 3)), bits(header[0], 19, 1), bits(header[1], 0, 16),
                        bits(header[1], 16, 16), packet_ended);
            answer(MASK, std::max(2, config.stream_words));
            return;
        default: illegal("ABORT cannot be modelled");
    }
}

inline void Model::start_load() {
    state = LOADING;
    loaded_at = NEVER;
    Load load{};
    load.kind = static_cast<LoadKind>((header[0] & 0xff) - LOAD_A);
    load.bank = static_cast<int>(bits(header[0], 8, 1));
    load.append = static_cast<int>(bits(header[0], 9, 1));
    load.dense = static_cast<int>(bits(header[0], 10, 1));
    load.clusters = header[1];
    const int low = static_cast<int>(bits(header[2], 0, 16)), high = static_cast<int>(bits(header[2], 16, 16));
    load.count = low;
    load.length = high;
    if (load.kind == LoadKind::B) {
        load.k = high;
        load.lanes = static_cast<uint32_t>(bits(header[3], 0, 16));
        load.length = static_cast<int>(bits(header[3], 16, 16));
    }
    if (load.kind == LoadKind::P) {
        load.lanes = static_cast<uint32_t>(low);
        load.append = load.dense = 0;
    }
    loader.start(load, packet_ended, beat_at_entry());
}

inline void Model::start_run() {
    Run run{};
    for (int n = 0; n < RUN_FIELDS; ++n) run.fields[n] = config.run[n].get(header);
    const int64_t each = run.fields[ROWS] * (run.fields[SHARE] ? config.lanes_per_cluster : 1);
    for (Cluster& cluster : clusters) {
        if (!(run.fields[CLUSTERS] >> cluster.number & 1)) continue;
        run.result = -1;
        if (run.fields[FINAL]) {
            run.result = results_given;
            results_given += each;
        }
        cluster.coming = run;
        cluster.comes_at = now + config.hop_stages;
    }
}

}  // namespace maskwork
