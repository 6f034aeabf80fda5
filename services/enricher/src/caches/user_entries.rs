//! The cache of users' locations. No waiting and no clock here: the time is handed in.
//!
//! Two generations: an entry that is used moves to the new generation, or stays there. When the new generation has half as many entries as
//! the bound, it becomes the old one, and the entries of the old one are dropped. So the bound holds, and an entry that is used again within
//! half a bound of other entries stays.
//!
//! A change of a user is heard of before every copy of the user's document shows it (Elasticsearch is refreshed every few seconds, HQ's own
//! consumer is behind). So an answer that was read soon after a change may be an old one: it is used, but not kept beyond the time in
//! which the change must have arrived everywhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::options::CacheOptions;

/// The location that a user is assigned to; `None` for a user without one.
pub type UserLocation = Option<Arc<str>>;

/// Most changes that are noted while look-ups are under way; beyond, everything counts as changed.
const NOTED_MAX: usize = 10_000;

struct UserEntry {
    domain: Arc<str>,
    location: UserLocation,
    /// When HQ was asked.
    read: Instant,
    until: Instant,
}

/// How much earlier than wanted an answer may have been read. Users without a location are given one soon after they were made, and submit
/// then: that they have none is reused for a shorter time.
#[derive(Clone, Copy)]
struct Reuse {
    with_location: Duration,
    without_location: Duration,
}

impl UserEntry {
    /// Whether the answer can be used for a record.
    fn is_good(&self, now: Instant, read_since: Option<Instant>, reuse: Reuse) -> bool {
        let reuse = if self.location.is_some() { reuse.with_location } else { reuse.without_location };
        self.until > now && read_since.is_none_or(|since| self.read + reuse >= since)
    }
}

/// Entries by user id; nearly always one domain each.
#[derive(Default)]
struct Generation {
    users: HashMap<Arc<str>, Vec<UserEntry>>,
    entries: usize,
}

impl Generation {
    fn take(&mut self, domain: &str, user_id: &str) -> Option<UserEntry> {
        let entries = self.users.get_mut(user_id)?;
        let place = entries.iter().position(|entry| &*entry.domain == domain)?;
        let entry = entries.swap_remove(place);
        if entries.is_empty() {
            self.users.remove(user_id);
        }
        self.entries -= 1;
        Some(entry)
    }

    fn put(&mut self, user_id: Arc<str>, entry: UserEntry) {
        self.users.entry(user_id).or_default().push(entry);
        self.entries += 1;
    }

    fn remove_user(&mut self, user_id: &str) {
        self.entries -= self.users.remove(user_id).map_or(0, |entries| entries.len());
    }

    fn remove_domain(&mut self, domain: &str) {
        self.users.retain(|_, entries| {
            entries.retain(|entry| &*entry.domain != domain);
            !entries.is_empty()
        });
        self.entries = self.users.values().map(Vec::len).sum();
    }
}

/// A look-up that is under way.
#[derive(Clone, Copy, Debug)]
pub struct LookUp {
    began: u64,
    asked: Instant,
}

/// Users that changed not long ago, and when. Two generations again: no change is remembered for longer than twice `settle`, nor more
/// than twice [`NOTED_MAX`] changes; beyond that, every user counts as changed.
struct RecentChanges {
    settle: Duration,
    new: HashMap<Arc<str>, Instant>,
    old: HashMap<Arc<str>, Instant>,
    turned: Option<Instant>,
    everyone: Option<Instant>,
}

impl RecentChanges {
    fn note(&mut self, user_id: &str, now: Instant) {
        if self.settle.is_zero() {
            return;
        }
        if self.turned.is_none_or(|turned| now >= turned + self.settle) {
            self.old = std::mem::take(&mut self.new);
            self.turned = Some(now);
        }
        if self.new.len() < NOTED_MAX {
            self.new.insert(user_id.into(), now);
        } else {
            self.note_everyone(now);
        }
    }

    fn note_everyone(&mut self, now: Instant) {
        self.everyone = Some(now);
    }

    /// Until when HQ may still give the answer from before the user's last change; `None` without a recent change.
    fn settled(&self, user_id: &str) -> Option<Instant> {
        let changed = [self.new.get(user_id), self.old.get(user_id), self.everyone.as_ref()];
        changed.into_iter().flatten().max().map(|changed| *changed + self.settle)
    }
}

/// The cache of users' locations, with what invalidates it.
pub struct UserEntries {
    entries_max: usize,
    reuse: Reuse,
    new: Generation,
    old: Generation,
    /// Counts look-ups and changes; orders them.
    clock: u64,
    under_way: usize,
    all_changed: u64,
    changed_domains: HashMap<Arc<str>, u64>,
    changed_users: HashMap<Arc<str>, u64>,
    recent_changes: RecentChanges,
}

impl UserEntries {
    /// Remembers no user yet; of the options those count that begin with `user_`.
    pub fn new(options: &CacheOptions) -> Self {
        let settle = Duration::from_secs(options.user_settle_seconds);
        let reuse = Reuse {
            with_location: Duration::from_secs(options.user_reuse_seconds),
            without_location: Duration::from_secs(options.user_without_location_reuse_seconds),
        };
        let recent_changes =
            RecentChanges { settle, new: HashMap::new(), old: HashMap::new(), turned: None, everyone: None };
        Self {
            entries_max: options.user_entries_max,
            reuse,
            new: Generation::default(),
            old: Generation::default(),
            clock: 0,
            under_way: 0,
            all_changed: 0,
            changed_domains: HashMap::new(),
            changed_users: HashMap::new(),
            recent_changes,
        }
    }

    /// How many users are remembered.
    pub fn len(&self) -> usize {
        self.new.entries + self.old.entries
    }

    /// Whether no user is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The remembered location of a user; `None` where none is remembered, or it is too old, or HQ was asked too long before `read_since`.
    pub fn find(
        &mut self,
        domain: &Arc<str>,
        user_id: &str,
        now: Instant,
        read_since: Option<Instant>,
    ) -> Option<UserLocation> {
        let held = self.new.users.get(user_id).and_then(|entries| entries.iter().find(|entry| entry.domain == *domain));
        if let Some(entry) = held {
            return entry.is_good(now, read_since, self.reuse).then(|| entry.location.clone());
        }
        let entry = self.old.take(domain, user_id).filter(|entry| entry.is_good(now, read_since, self.reuse))?;
        let location = entry.location.clone();
        self.remember(user_id.into(), entry);
        Some(location)
    }

    fn remember(&mut self, user_id: Arc<str>, entry: UserEntry) {
        if self.new.entries + 1 > (self.entries_max / 2).max(1) {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.put(user_id, entry);
    }

    /// Notes that HQ is being asked. [`UserEntries::end`] must follow.
    pub fn begin(&mut self, now: Instant) -> LookUp {
        self.clock += 1;
        self.under_way += 1;
        LookUp { began: self.clock, asked: now }
    }

    /// Remembers an answer, unless the user may have changed since the look-up began. After a recent change of the user it is remembered only until
    /// HQ must have seen the change.
    pub fn put(&mut self, look_up: LookUp, domain: &Arc<str>, user_id: &str, location: UserLocation, until: Instant) {
        let since = |at: Option<&u64>| at.is_some_and(|at| *at > look_up.began);
        let changed = self.all_changed > look_up.began
            || since(self.changed_domains.get(&**domain))
            || since(self.changed_users.get(user_id));
        if changed {
            return;
        }
        // Two look-ups of one user may end one after the other.
        self.new.take(domain, user_id);
        self.old.take(domain, user_id);
        let read = look_up.asked;
        let settled = self.recent_changes.settled(user_id).filter(|settled| *settled > read);
        let until = settled.map_or(until, |settled| until.min(settled));
        self.remember(user_id.into(), UserEntry { domain: Arc::clone(domain), location, read, until });
    }

    /// Ends a look-up, successful or not.
    pub fn end(&mut self, _look_up: LookUp) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.changed_domains.clear();
            self.changed_users.clear();
        }
    }

    /// Takes note that a user changed, in whatever domain.
    pub fn forget_user(&mut self, user_id: &str, now: Instant) {
        self.recent_changes.note(user_id, now);
        self.new.remove_user(user_id);
        self.old.remove_user(user_id);
        self.clock += 1;
        if self.under_way == 0 {
            return;
        }
        if self.changed_users.len() < NOTED_MAX {
            self.changed_users.insert(user_id.into(), self.clock);
        } else {
            self.all_changed = self.clock;
        }
    }

    /// Takes note that any user of this domain may have changed.
    pub fn forget_domain(&mut self, domain: &str, now: Instant) {
        self.recent_changes.note_everyone(now);
        self.new.remove_domain(domain);
        self.old.remove_domain(domain);
        self.clock += 1;
        if self.under_way == 0 {
            return;
        }
        if self.changed_domains.len() < NOTED_MAX {
            self.changed_domains.insert(domain.into(), self.clock);
        } else {
            self.all_changed = self.clock;
        }
    }

    /// Takes note that any user may have changed.
    pub fn forget_all(&mut self, now: Instant) {
        self.recent_changes.note_everyone(now);
        self.new = Generation::default();
        self.old = Generation::default();
        self.clock += 1;
        self.all_changed = self.clock;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use super::*;

    struct Fixture {
        entries: UserEntries,
        domain: Arc<str>,
        now: Instant,
    }

    impl Fixture {
        fn new(entries_max: usize) -> Self {
            Self::settling(entries_max, 0)
        }

        fn settling(entries_max: usize, seconds: u64) -> Self {
            let entries = UserEntries::new(&CacheOptions {
                user_entries_max: entries_max,
                user_settle_seconds: seconds,
                user_reuse_seconds: 0,
                user_without_location_reuse_seconds: 0,
                ..CacheOptions::default()
            });
            Self { entries, domain: "demo".into(), now: Instant::now() }
        }

        fn begin(&mut self) -> LookUp {
            self.entries.begin(self.now)
        }

        fn look_up(&mut self, user_id: &str) {
            let look_up = self.begin();
            self.put(look_up, user_id);
            self.entries.end(look_up);
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        fn put(&mut self, look_up: LookUp, user_id: &str) {
            let until = self.now + Duration::from_secs(10);
            self.entries.put(look_up, &self.domain, user_id, Some("loc".into()), until);
        }

        fn held(&mut self, user_id: &str) -> bool {
            self.entries.find(&self.domain, user_id, self.now, None).is_some()
        }
    }

    #[test]
    fn answers_are_remembered_until_their_time() {
        let mut fixture = Fixture::new(10);
        let look_up = fixture.begin();
        fixture.put(look_up, "u");
        fixture.entries.end(look_up);
        assert_eq!(fixture.entries.find(&fixture.domain, "u", fixture.now, None).unwrap().as_deref(), Some("loc"));
        assert!(fixture.entries.find(&"other".into(), "u", fixture.now, None).is_none());
        fixture.now += Duration::from_secs(10);
        assert!(!fixture.held("u"));
        let look_up = fixture.begin();
        fixture.put(look_up, "u");
        assert!(fixture.held("u"));
        assert_eq!(fixture.entries.len(), 1);
    }

    #[test]
    fn the_bound_is_kept_and_what_is_used_stays() {
        let mut fixture = Fixture::new(100);
        let look_up = fixture.begin();
        fixture.put(look_up, "mine");
        for number in 0..10_000 {
            fixture.put(look_up, &number.to_string());
            assert!(fixture.entries.len() <= 100);
            assert!(number % 10 != 0 || fixture.held("mine"), "{number}");
        }
        assert!(!fixture.held("0") && fixture.held("9999"));
    }

    #[test]
    fn a_change_during_a_look_up_is_not_lost() {
        for forget in [
            (|entries| entries.forget_user("u", Instant::now())) as fn(&mut UserEntries),
            |entries| entries.forget_domain("demo", Instant::now()),
            |entries| entries.forget_all(Instant::now()),
        ] {
            let mut fixture = Fixture::new(10);
            let early = fixture.begin();
            forget(&mut fixture.entries);
            let late = fixture.begin();
            fixture.put(early, "u");
            assert!(!fixture.held("u"));
            fixture.put(late, "u");
            assert!(fixture.held("u"));
            forget(&mut fixture.entries);
            assert!(!fixture.held("u"));
            assert!(fixture.entries.is_empty());
        }
    }

    #[test]
    fn a_change_of_one_leaves_the_others() {
        let mut fixture = Fixture::new(10);
        let look_up = fixture.begin();
        fixture.entries.forget_user("u", fixture.now);
        fixture.entries.forget_domain("other", fixture.now);
        fixture.put(look_up, "v");
        assert!(fixture.held("v"));
        fixture.entries.end(look_up);
        fixture.entries.forget_domain("other", fixture.now);
        fixture.entries.forget_user("u", fixture.now);
        assert!(fixture.held("v"));
        assert!(fixture.entries.changed_users.is_empty() && fixture.entries.changed_domains.is_empty());
    }

    #[test]
    fn a_flood_of_changes_does_not_grow_without_bound() {
        let mut fixture = Fixture::new(10);
        let look_up = fixture.begin();
        for number in 0..NOTED_MAX + 10 {
            fixture.entries.forget_user(&number.to_string(), fixture.now);
        }
        assert_eq!(fixture.entries.changed_users.len(), NOTED_MAX);
        fixture.put(look_up, "u");
        assert!(!fixture.held("u"));
    }

    #[test]
    fn an_answer_read_soon_after_a_change_is_not_kept_for_long() {
        let mut fixture = Fixture::settling(10, 3);
        fixture.entries.forget_user("u", fixture.now);
        fixture.pass(1);
        fixture.look_up("u");
        fixture.look_up("v");
        assert!(fixture.held("u"), "it is used while it is young");
        fixture.pass(2);
        assert!(!fixture.held("u") && fixture.held("v"), "HQ is asked again when the change must have arrived");
        fixture.look_up("u");
        fixture.pass(9);
        assert!(fixture.held("u"), "this answer was read late enough");
    }

    #[test]
    fn each_change_counts_anew() {
        let mut fixture = Fixture::settling(10, 3);
        fixture.entries.forget_user("u", fixture.now);
        fixture.pass(2);
        fixture.entries.forget_user("u", fixture.now);
        fixture.look_up("u");
        fixture.pass(2);
        assert!(fixture.held("u"));
        fixture.pass(1);
        assert!(!fixture.held("u"));
    }

    #[test]
    fn changes_are_not_noted_for_ever_nor_without_bound() {
        let mut fixture = Fixture::settling(10, 3);
        for number in 0..NOTED_MAX + 1 {
            fixture.entries.forget_user(&number.to_string(), fixture.now);
        }
        assert_eq!(fixture.entries.recent_changes.new.len(), NOTED_MAX);
        fixture.look_up("somebody");
        fixture.pass(3);
        assert!(!fixture.held("somebody"), "with so many changes everyone may have changed");
        fixture.look_up("somebody");
        fixture.pass(3);
        assert!(fixture.held("somebody"));
        fixture.entries.forget_user("u", fixture.now);
        fixture.pass(3);
        fixture.entries.forget_user("u", fixture.now);
        assert_eq!((fixture.entries.recent_changes.new.len(), fixture.entries.recent_changes.old.len()), (1, 1));
    }

    #[test]
    fn what_was_read_before_a_moment_can_be_refused() {
        let mut fixture = Fixture::new(10);
        fixture.look_up("u");
        let read = fixture.now;
        fixture.pass(1);
        let mut find = |since| fixture.entries.find(&fixture.domain, "u", fixture.now, since).is_some();
        assert!(find(None) && find(Some(read)));
        assert!(!find(Some(fixture.now)));
    }

    #[test]
    fn what_was_read_a_little_before_a_moment_is_reused_and_for_a_shorter_time_where_there_is_no_location() {
        let mut fixture = Fixture::new(10);
        let seconds = Duration::from_secs;
        fixture.entries.reuse = Reuse { with_location: seconds(5), without_location: seconds(2) };
        fixture.look_up("u");
        let look_up = fixture.begin();
        fixture.entries.put(look_up, &fixture.domain, "new", None, fixture.now + Duration::from_secs(10));
        fixture.entries.end(look_up);
        let find = |fixture: &mut Fixture, user_id: &str| {
            fixture.entries.find(&fixture.domain, user_id, fixture.now, Some(fixture.now)).is_some()
        };
        assert!(find(&mut fixture, "u") && find(&mut fixture, "new"));
        fixture.pass(2);
        assert!(find(&mut fixture, "new"));
        fixture.pass(1);
        assert!(find(&mut fixture, "u") && !find(&mut fixture, "new"), "a new worker is assigned and submits");
        fixture.pass(2);
        assert!(find(&mut fixture, "u"));
        fixture.pass(1);
        assert!(!find(&mut fixture, "u"));
        // A change that is heard counts at once.
        fixture.look_up("u");
        fixture.entries.forget_user("u", fixture.now);
        assert!(!find(&mut fixture, "u"));
    }
}
