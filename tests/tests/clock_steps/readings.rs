//! Random histories of readings: processes read ids whose database fails over to machines with other clocks, with any latency, and what they read
//! arrives in any order. The clocks and the order of what arrives are decided by the services' own code.

use std::collections::BTreeMap;

use lake_hq::clock::{Asked, Clock};
use lake_writer::order_guard::{self, KnownOrders, RowOrder, TombstoneOrder};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Microseconds.
pub const SECOND: i64 = 1_000_000;
const MILLISECOND: i64 = 1_000;
/// Ids of a history.
const IDS: usize = 12;
/// How long a history is, before what is left of it is played to its end.
const LENGTH: i64 = 600 * SECOND;
/// A correction may be so much larger than the step: latency, and drift in the time without a reading.
const SLACK: i64 = SECOND + LENGTH / 1_000;

/// What kind of history.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Processes that read.
    pub processes: usize,
    /// Whether processes end, and others begin that know nothing.
    pub restarts: bool,
    /// Whether every process reads something at least every half second.
    pub steady: bool,
}

/// A reading on its way.
#[derive(Clone, Copy, Debug)]
struct Reading {
    id: usize,
    /// Number of the process; one that was started again has another.
    process: usize,
    /// When its snapshot was taken, true time.
    snapshot_at: i64,
    /// Number of the state that it found, and its order.
    state: u64,
    version_us: i64,
    is_gone: bool,
    clock_us: i64,
    observed_us: i64,
}

enum Event {
    Change(usize),
    Ask {
        id: usize,
        slot: usize,
    },
    Snapshot {
        id: usize,
        slot: usize,
        process: usize,
        asked: Asked<'static>,
    },
    Answer {
        reading: Reading,
        slot: usize,
        asked: Asked<'static>,
    },
    Arrive(Reading),
    FailOver(i64),
    Restart(usize),
    /// A steady process reads anything.
    Look(usize),
}

struct Process {
    number: usize,
    clock: &'static Clock,
    /// Its own clock is this much ahead of the true time, and goes faster by so many parts in a million.
    own_ahead: i64,
    own_ppm: i64,
}

impl Process {
    fn own_us(&self, now: i64) -> i64 {
        now + self.own_ahead + now / 1_000_000 * self.own_ppm
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    orders: KnownOrders,
    winner: Option<Reading>,
}

/// An id that does not hold its latest state at the end.
#[derive(Debug)]
pub struct Wrong {
    /// When its last change was read, and when the reading that hides it was made; true time.
    pub last_at: i64,
    pub hiding_at: i64,
    /// Whether one process made both.
    pub by_one: bool,
    /// Until when a change may be hidden, by the last failover before it was read.
    pub allowed_until: i64,
}

/// A history that was played to its end.
pub struct Outcome {
    pub wrong: Vec<Wrong>,
    /// Steps back by more than a second.
    pub steps: usize,
    /// Whether all is right when every id was read once more, after the last correction has ended.
    pub is_healed: bool,
}

/// A history that is yet to be played.
pub struct History {
    kind: Kind,
    random: StdRng,
    events: BTreeMap<(i64, u64), Event>,
    scheduled: u64,
    now: i64,
    /// What the database's clock is ahead of the true time.
    ahead: i64,
    /// When it failed over, by how much it stepped back, and until when a correction may last then.
    failovers: Vec<(i64, i64, i64)>,
    states: Vec<(u64, i64, bool)>,
    processes: Vec<Process>,
    started: usize,
    held: Vec<Held>,
    /// For each id the reading with the latest snapshot that has arrived.
    latest: Vec<Option<Reading>>,
}

impl History {
    /// Draws what happens.
    pub fn new(seed: u64, kind: Kind) -> Self {
        let mut history = Self {
            kind,
            random: StdRng::seed_from_u64(seed),
            events: BTreeMap::new(),
            scheduled: 0,
            now: 0,
            ahead: 1_700_000_000 * SECOND,
            failovers: Vec::new(),
            states: vec![(0, 0, true); IDS],
            processes: Vec::new(),
            started: 0,
            held: vec![Held::default(); IDS],
            latest: vec![None; IDS],
        };
        for slot in 0..kind.processes {
            let process = history.process();
            history.processes.push(process);
            if kind.steady {
                history.after(0, Event::Look(slot));
            }
        }
        let changes = history.random.random_range(30..300);
        for _ in 0..changes {
            let (at, id) = (history.random.random_range(0..LENGTH), history.random.random_range(0..IDS));
            history.at(at, Event::Change(id));
        }
        for _ in 0..history.random.random_range(1..5) {
            let at = history.random.random_range(0..LENGTH);
            let behind = match history.random.random_range(0..10_u32) {
                0 => -history.random.random_range(SECOND..100 * SECOND),
                1..4 => history.random.random_range(SECOND..3 * SECOND),
                _ => history.random.random_range(2 * SECOND..90 * SECOND),
            };
            history.at(at, Event::FailOver(behind));
            // Much happens around it, and very much just when it happens.
            for number in 0..50 {
                let room = if number < 10 { 5 * SECOND } else { 600 * MILLISECOND };
                let (near, id) = (at + history.random.random_range(-room..room), history.random.random_range(0..IDS));
                history.at(near.max(0), Event::Change(id));
            }
        }
        if kind.restarts {
            for _ in 0..history.random.random_range(1..6) {
                let (at, slot) =
                    (history.random.random_range(0..LENGTH), history.random.random_range(0..kind.processes));
                history.at(at, Event::Restart(slot));
            }
        }
        history
    }

    fn process(&mut self) -> Process {
        self.started += 1;
        Process {
            number: self.started,
            // A few hundred bytes each: readings borrow it until they are answered.
            clock: Box::leak(Box::new(Clock::default())),
            own_ahead: self.random.random_range(-1_000 * SECOND..1_000 * SECOND),
            own_ppm: self.random.random_range(-200..200),
        }
    }

    fn at(&mut self, at: i64, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    fn after(&mut self, wait: i64, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Mostly a few milliseconds, always less than half a second: a reading takes less than any step is wide.
    fn latency(&mut self) -> i64 {
        match self.random.random_range(0..3_u32) {
            0 => self.random.random_range(MILLISECOND..450 * MILLISECOND),
            _ => self.random.random_range(MILLISECOND / 5..10 * MILLISECOND),
        }
    }

    /// Plays it to its end.
    pub fn play(mut self) -> Outcome {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.happens(event);
        }
        let wrong = self.wrong();
        let steps = self.failovers.iter().filter(|(_, behind, _)| *behind > SECOND).count();
        // Every id once more, when the database's clock is right for all.
        let quiet = self.failovers.iter().map(|(_, _, until)| *until).max().unwrap_or(0).max(self.now);
        self.now = quiet + SECOND;
        for id in 0..IDS {
            let slot = self.random.random_range(0..self.kind.processes);
            self.after(id as i64 * MILLISECOND, Event::Ask { id, slot });
        }
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.happens(event);
        }
        Outcome { wrong, steps, is_healed: self.wrong().is_empty() }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Change(id) => self.change(id),
            Event::Ask { id, slot } => {
                let process = &self.processes[slot];
                let (number, asked) = (process.number, process.clock.asked(process.own_us(self.now)));
                let latency = self.latency();
                self.after(latency, Event::Snapshot { id, slot, process: number, asked });
            }
            Event::Snapshot { id, slot, process, asked } => {
                let (state, version_us, is_gone) = self.states[id];
                let clock_us = self.now + self.ahead;
                let reading = Reading {
                    id,
                    process,
                    snapshot_at: self.now,
                    state,
                    version_us,
                    is_gone,
                    clock_us,
                    observed_us: 0,
                };
                let latency = self.latency();
                self.after(latency, Event::Answer { reading, slot, asked });
            }
            Event::Answer { reading, slot, asked } => self.answer(reading, slot, asked),
            Event::Arrive(reading) => self.arrive(reading),
            Event::FailOver(behind) => self.fail_over(behind),
            Event::Restart(slot) => self.processes[slot] = self.process(),
            Event::Look(slot) => {
                let id = self.random.random_range(0..IDS);
                self.happens(Event::Ask { id, slot });
                if self.now < LENGTH + 30 * SECOND {
                    let wait = self.random.random_range(100 * MILLISECOND..500 * MILLISECOND);
                    self.after(wait, Event::Look(slot));
                }
            }
        }
    }

    /// The id is changed, and announced once or several times, to anybody.
    fn change(&mut self, id: usize) {
        let (state, version_us, _) = self.states[id];
        let version_us = version_us + self.random.random_range(-5 * SECOND..10 * SECOND);
        self.states[id] = (state + 1, version_us, self.random.random_range(0..4) == 0);
        // Mostly once: a further reading heals what went wrong.
        let times = if self.random.random_range(0..10_u32) < 7 { 1 } else { self.random.random_range(2..4) };
        for _ in 0..times {
            let wait = match self.random.random_range(0..8_u32) {
                0 => self.random.random_range(0..20 * SECOND),
                _ => self.random.random_range(0..50 * MILLISECOND),
            };
            let slot = self.random.random_range(0..self.kind.processes);
            self.after(wait, Event::Ask { id, slot });
        }
    }

    fn answer(&mut self, mut reading: Reading, slot: usize, asked: Asked<'static>) {
        let process = &self.processes[slot];
        if process.number != reading.process {
            // It was killed meanwhile: its message is handed to the next one.
            drop(asked);
            return self.happens(Event::Ask { id: reading.id, slot });
        }
        reading.observed_us = asked.answered(reading.clock_us, process.own_us(self.now)).observed_us;
        let wait = match self.random.random_range(0..10_u32) {
            0 => self.random.random_range(0..200 * SECOND),
            _ => self.random.random_range(0..2 * SECOND),
        };
        self.after(wait, Event::Arrive(reading));
    }

    fn arrive(&mut self, reading: Reading) {
        let Held { orders, winner } = &mut self.held[reading.id];
        if reading.is_gone {
            // Every other deletion names no version, as that of a row that is not there.
            let version_us = reading.state.is_multiple_of(2).then_some(reading.version_us);
            let tombstone = TombstoneOrder { observed_us: reading.observed_us, version_us };
            let effect = order_guard::tombstone_effect(*orders, tombstone);
            if effect.remember {
                (orders.tombstone, *winner) = (Some(tombstone), Some(reading));
            }
            if effect.delete {
                orders.row = None;
            }
        } else {
            let row = RowOrder { observed_us: reading.observed_us, version_us: reading.version_us };
            if order_guard::row_enters(*orders, row) {
                (*orders, *winner) = (KnownOrders { row: Some(row), tombstone: None }, Some(reading));
            }
        }
        let latest = &mut self.latest[reading.id];
        if latest.is_none_or(|latest| latest.snapshot_at < reading.snapshot_at) {
            *latest = Some(reading);
        }
    }

    fn fail_over(&mut self, behind: i64) {
        self.ahead -= behind;
        let left = self.failovers.last().map_or(0, |(_, _, until)| (until - self.now).max(0) / 2);
        let until = if behind > 0 { self.now + 2 * (left + behind + SLACK) } else { self.now + 2 * left };
        self.failovers.push((self.now, behind, until));
    }

    fn wrong(&self) -> Vec<Wrong> {
        let ids = self.states.iter().zip(&self.held).zip(&self.latest);
        let wrong = ids.filter_map(|(((state, ..), held), latest)| {
            let (winner, last) = (held.winner?, (*latest)?);
            assert_eq!(last.state, *state, "a change was never read: the history itself is wrong");
            let before = self.failovers.iter().rev().find(|(at, ..)| *at <= last.snapshot_at);
            (winner.state != *state).then(|| Wrong {
                last_at: last.snapshot_at,
                hiding_at: winner.snapshot_at,
                by_one: winner.process == last.process,
                allowed_until: before.map_or(i64::MIN, |(_, _, until)| *until),
            })
        });
        wrong.collect()
    }
}
