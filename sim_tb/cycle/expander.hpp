// The front of a lane, a cycle at a time: from FIFO words to tokens (rtl/lane_fifo.py, expander.py).
#pragma once

#include "lane.hpp"

namespace maskwork {

template <int rings_count>
void Lane::step(Time now, uint32_t release, Reason outer) {
    Time woken = NEVER;
    times->sleep_until = NEVER;
    bool space = true;
    bool changed = release != 0;
    if (tokens_level) {
        const ExpanderToken& token = tokens[tokens_head % TOKEN_QUEUE];
        space = !(token.end && stays[token.context]) && pes_have_space(now);
        if (!space) woken = times->sleep_until;
        if (fires_and_stays(space)) release |= 1u << token.context;
    }
    blocked = !space;
    charge(now, reason_now(), outer);
    const bool fires = tokens_level && space;
    const bool room = block ? !staged || tokens_level < SKID : tokens_space;
    const bool pushes = staged && (!block || room);

    // a ring has its turn if its row goes on, or if a row waits and its context is free
    const uint32_t open = filled & (rows | ~busy);
    int next_turn_ring = reading;
    bool other_open = false;
    for (int step = rings_count - 1; step >= 1; --step) {
        const int other = (reading + step) & (rings_count - 1);
        if (open >> other & 1) {
            next_turn_ring = other;
            other_open = true;
        }
    }

    bool turn = false, leaves = false, go_words = true, ready = false, load = false, ends = false;
    started = -1;
    State next_state = state;
    const bool valid = held;
    const bool shows_start = config->psum_in_pe && valid && head.kind == Kind::START;
    const bool slot_owed = shows_start && head.row->first && !start_free;
    const bool next_start_free = shows_start && !owed[head.row->slot];
    ExpanderToken made{};
    switch (state) {
        case SELECT:
            go_words = false;
            if (some) {
                turn = true;
                turn_left = TURN_CHUNKS - 1;
                next_state = HEAD;
            }
            break;
        case HEAD:
            ready = room && !slot_owed;
            go_words = !valid || head.kind != Kind::END;
            if (valid && ready) {
                if (head.kind == Kind::START) {
                    started = reading;
                    next_state = config->psum_in_pe && !head.row->first ? HEAD : HEADER;
                } else if (head.kind == Kind::END) {
                    ends = leaves = true;
                    next_state = SELECT;
                } else {
                    next_state = VALUES;
                }
            } else if (!valid && !(filled >> reading & 1) && others) {
                turn = true;
            }
            break;
        case HEADER:
            ready = true;
            if (valid && header_index == 1 + config->mask_words()) next_state = HEAD;
            break;
        case VALUES:
            load = valid;
            ready = room && last_of_word;
            if (valid && room && last_element) {
                next_state = HEAD;
                turn = turn_left == 0 && others;
            }
            break;
    }
    const bool moves = fetched && !moved && (!held || ready) && go_words && !turn;
    const bool next_staged = (load || ends) && room;
    if (next_staged) {
        made.context = static_cast<uint8_t>(reading);
        made.bank = context_row[reading]->bank;
        made.end = ends;
        if (load) {
            const int element = config->skip_a ? std::countr_zero(bits) : index;
            const int k = (chunk_k + element) & (config->k_depth - 1);
            made.k = static_cast<uint16_t>(context_row[reading]->share ? config->own_rows(number, k) : k);
            made.nonzero = chunk_nonzero >> element & 1;
        }
    }

    // ---- registers
    changed |= fires || pushes || next_staged || turn || moves || next_state != state;
    if (fires) fire(now, outer);
    const bool next_tokens_space = tokens_level <= TOKEN_QUEUE - STAGED;
    changed |= next_tokens_space != tokens_space;
    tokens_space = next_tokens_space;
    if (pushes) tokens[(tokens_head + static_cast<unsigned>(tokens_level - fires)) % TOKEN_QUEUE] = staged_token;
    tokens_level += pushes - fires;
    if (pushes || !staged) {
        staged = next_staged;
        staged_token = made;
    }

    if (valid) {
        if (state == HEAD && ready) {
            if (head.kind == Kind::START) {
                header_index = next_state == HEADER;
                rows |= 1u << reading;
                start_row(head.row);
            } else if (head.kind == Kind::END) {
                rows &= ~(1u << reading);
            } else {
                chunk_k = head.number;
                bits = head.bitmap;
                chunk_nonzero = head.nonzero;
                more = head.more;
                last_element = last_of_word = more == 0;
                index = 0;
            }
        } else if (state == HEADER) {
            header_index = next_state == HEAD ? 0 : header_index + 1;
        } else if (state == VALUES && room) {
            last_of_word = more == 1 || value == config->fetch_width - 2;
            value = last_element ? 0 : (value + 1) & (config->fetch_width - 1);
            bits &= static_cast<uint16_t>(bits - 1);
            ++index;
            if (last_element) turn_left ^= 1;
            last_element = more == 1;
            --more;
        }
    }
    const bool next_others = !(turn || leaves) && other_open;
    const bool next_some = !(turn || leaves) && (other_open || (open >> reading & 1));
    changed |= next_others != others || next_some != some || turn_ring != next_turn_ring;
    const int old_turn_ring = turn_ring;
    others = next_others;
    some = next_some;
    turn_ring = next_turn_ring;
    state = next_state;
    const uint32_t next_busy = (busy | (started >= 0 ? 1u << started : 0)) & ~release;
    changed |= next_busy != busy;
    busy = next_busy;

    changed |= next_start_free != start_free;
    start_free = next_start_free;
    if (!held || ready) {
        if (moves) head = ram[static_cast<size_t>(reading) * ring_words + (at & (ring_words - 1))];
        changed |= held != moves;
        held = moves;
    }
    const bool next_fetched = at != written[reading], next_moved = moves || turn;
    changed |= next_fetched != fetched || next_moved != moved;
    fetched = next_fetched;
    moved = next_moved;
    uint32_t next_filled = 0;
    for (int n = 0; n < rings_count; ++n) next_filled |= static_cast<uint32_t>(written[n] != taken[n]) << n;
    changed |= next_filled != filled;
    filled = next_filled;
    const uint32_t old_taken = taken[old_turn_ring];
    changed |= taken[reading] != at;
    taken[reading] = at;
    if (turn) {
        reading = old_turn_ring;
        at = old_taken;
    } else if (moves) {
        ++at;
    }
    times->sleep_until = changed ? now + 1 : woken;
}

}  // namespace maskwork
