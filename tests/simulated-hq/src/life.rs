//! The life of a simulated HQ: from a seed, one believable thing after another, as changes of rows and as messages.
//!
//! Every change that HQ would announce is announced in the turn in which it happens or, held back by the network, in a later one;
//! never before. [`Life::settle`] delivers what is still held back. Only purges and some hard deletes are silent, as in HQ.

use chrono::{DateTime, Utc};

use crate::announcement::{Announcement, Network};
use crate::dice::Dice;
use crate::moment::SECOND;
use crate::turn::{ChangeMessage, Mutation, Turn};
use crate::world::World;

/// What kind of life it is.
#[derive(Clone, Debug)]
pub struct LifeOptions {
    /// The same options give the same life, byte for byte.
    pub seed: u64,
    /// Ordinary project spaces; sabotage adds two with hostile names.
    pub domains: usize,
    /// Mobile workers of each domain at the beginning.
    pub workers_per_domain: usize,
    /// When it begins; simulated time then runs by a few seconds each turn.
    pub start: DateTime<Utc>,
    /// Whether messages are duplicated, late (at most [`crate::announcement::LATE_TURNS_MAX`] turns), out of order, without key or
    /// type, phones' clocks years off, and forms applied out of the order of their receipt, so that `server_modified_on` of cases goes back.
    pub mischief: bool,
    /// Whether there are malformed messages, unreadable XML, missing blobs and rows, hostile names.
    pub sabotage: bool,
}

impl Default for LifeOptions {
    fn default() -> Self {
        let start = DateTime::from_timestamp_micros(FIRST_DAY).unwrap_or_default();
        Self { seed: 1, domains: 3, workers_per_domain: 12, start, mischief: true, sabotage: false }
    }
}

/// 2025-03-03T04:30:00Z.
const FIRST_DAY: i64 = 1_740_976_200 * SECOND;

/// A simulated HQ that lives.
#[derive(Debug)]
pub struct Life {
    pub(crate) options: LifeOptions,
    pub(crate) world: World,
    pub(crate) dice: Dice,
    /// Microseconds; every change has its own.
    pub(crate) clock: i64,
    /// Number of the turn that is being played; the opening is 0.
    pub(crate) turn: u64,
    /// Of the main database.
    pub(crate) next_row_id: i64,
    /// Of this turn.
    pub(crate) mutations: Vec<Mutation>,
    /// Of this turn.
    pub(crate) announced: Vec<Announcement>,
    /// Of this turn, not made by HQ.
    pub(crate) forged: Vec<ChangeMessage>,
    network: Network,
    changes: u64,
}

/// Something that happens: how often (of all weights together), and how it is played in a domain.
type Happening = (u64, fn(&mut Life, usize));

const HAPPENINGS: &[Happening] = &[
    (140, Life::register_household),
    (480, Life::visit),
    (80, Life::survey),
    (40, Life::close_case),
    (20, Life::legacy_form),
    (20, Life::import_cases),
    (12, Life::change_case_type),
    (6, Life::unlink_case),
    (4, Life::update_unknown_case),
    (12, Life::odd_property),
    (40, Life::edit_form),
    (24, Life::archive_form),
    (12, Life::soft_delete_form),
    (12, Life::soft_delete_case),
    (40, Life::bring_back_form),
    (10, Life::bring_back_case),
    (8, Life::hard_delete),
    (5, Life::rebuild_on_request),
    (10, Life::duplicate_form),
    (8, Life::error_form),
    (5, Life::submission_error),
    (20, Life::republish),
    (6, Life::change_place),
    (6, Life::assign_person),
    (20, Life::chat_about_person),
    (2, Life::hire),
];

const SABOTAGES: &[Happening] = &[
    (20, Life::malformed_message),
    (10, Life::unreadable_form),
    (10, Life::hostile_case),
    (10, Life::hostile_form),
    (5, Life::message_about_nothing),
];

impl Life {
    /// A life that has not begun: play [`Life::opening`] first.
    pub fn new(options: LifeOptions) -> Self {
        Self {
            dice: Dice::new(options.seed),
            clock: options.start.timestamp_micros(),
            options,
            world: World::default(),
            turn: 0,
            next_row_id: 1,
            mutations: Vec::new(),
            announced: Vec::new(),
            forged: Vec::new(),
            network: Network::default(),
            changes: 0,
        }
    }

    /// Location types, locations, users, user cases and the first households.
    pub fn opening(&mut self) -> Turn {
        self.found_domains();
        for domain in 0..self.world.domains.len() {
            for _ in 0..3 {
                self.register_household(domain);
            }
        }
        self.finish()
    }

    /// One believable thing happens.
    pub fn turn(&mut self) -> Turn {
        self.turn += 1;
        self.clock += self.dice.between(SECOND / 5, 20 * SECOND);
        if let Some(domain) = self.dice.index(self.world.domains.len()) {
            let sabotage = self.options.sabotage && self.dice.chance(60);
            let happenings = if sabotage { SABOTAGES } else { HAPPENINGS };
            let mut throw = self.dice.below(happenings.iter().map(|(weight, _)| weight).sum());
            for (weight, play) in happenings {
                if throw < *weight {
                    play(self, domain);
                    break;
                }
                throw -= weight;
            }
        }
        self.finish()
    }

    /// Delivers all messages that are still held back.
    pub fn settle(&mut self) -> Turn {
        let messages = self.network.release();
        self.changes += messages.len() as u64;
        Turn { mutations: Vec::new(), messages }
    }

    /// Messages given out so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Names of the project spaces; empty before the opening.
    pub fn domains(&self) -> Vec<String> {
        self.world.domains.iter().map(|domain| domain.name.to_string()).collect()
    }

    /// The time that it is in the simulation.
    pub fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.clock).unwrap_or_default()
    }

    fn finish(&mut self) -> Turn {
        let mut messages = self.network.deliver(&self.announced, self.turn, self.options.mischief, &mut self.dice);
        self.announced.clear();
        messages.append(&mut self.forged);
        self.changes += messages.len() as u64;
        Turn { mutations: std::mem::take(&mut self.mutations), messages }
    }

    /// A little later, and an instant that nothing else has.
    pub(crate) fn tick(&mut self) -> i64 {
        self.clock += self.dice.between(1, 9_000);
        self.clock
    }
}

#[cfg(test)]
mod tests;
