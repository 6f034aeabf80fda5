//! Locations of users as they are remembered. No waiting and no clock here: the time is handed in.
//!
//! Two shelves: what is used moves to (or stays on) the new shelf; when that is half of the bound, it becomes the old shelf and what
//! was on the old one is let go. So the bound holds, and what is used within half a bound of other entries stays.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

/// Where a user is assigned; `None` where nowhere.
pub type UserLocation = Option<Arc<str>>;

/// Most changes that are noted while look-ups are under way; beyond, everything counts as changed.
const NOTED_MAX: usize = 10_000;

struct Entry {
    domain: Arc<str>,
    location: UserLocation,
    until: Instant,
}

/// Entries by user id; nearly always one domain each.
#[derive(Default)]
struct Shelf {
    users: HashMap<Arc<str>, Vec<Entry>>,
    entries: usize,
}

impl Shelf {
    fn take(&mut self, domain: &str, user_id: &str) -> Option<Entry> {
        let entries = self.users.get_mut(user_id)?;
        let place = entries.iter().position(|entry| &*entry.domain == domain)?;
        let entry = entries.swap_remove(place);
        if entries.is_empty() {
            self.users.remove(user_id);
        }
        self.entries -= 1;
        Some(entry)
    }

    fn put(&mut self, user_id: Arc<str>, entry: Entry) {
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
}

/// See the module.
pub struct UserEntries {
    entries_max: usize,
    new: Shelf,
    old: Shelf,
    /// Counts look-ups and changes.
    clock: u64,
    under_way: usize,
    all_changed: u64,
    changed_domains: HashMap<Arc<str>, u64>,
    changed_users: HashMap<Arc<str>, u64>,
}

impl UserEntries {
    /// Remembers at most `entries_max` users.
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries_max,
            new: Shelf::default(),
            old: Shelf::default(),
            clock: 0,
            under_way: 0,
            all_changed: 0,
            changed_domains: HashMap::new(),
            changed_users: HashMap::new(),
        }
    }

    /// How many users are remembered.
    pub fn len(&self) -> usize {
        self.new.entries + self.old.entries
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is remembered of a user; `None` where nothing is, or it is too old.
    pub fn find(&mut self, domain: &Arc<str>, user_id: &str, now: Instant) -> Option<UserLocation> {
        let held = self.new.users.get(user_id).and_then(|entries| entries.iter().find(|entry| entry.domain == *domain));
        if let Some(entry) = held {
            return (entry.until > now).then(|| entry.location.clone());
        }
        let entry = self.old.take(domain, user_id).filter(|entry| entry.until > now)?;
        let location = entry.location.clone();
        self.shelve(user_id.into(), entry);
        Some(location)
    }

    fn shelve(&mut self, user_id: Arc<str>, entry: Entry) {
        if self.new.entries + 1 > (self.entries_max / 2).max(1) {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.put(user_id, entry);
    }

    /// Notes that HQ is being asked. [`UserEntries::end`] must follow.
    pub fn begin(&mut self) -> LookUp {
        self.clock += 1;
        self.under_way += 1;
        LookUp { began: self.clock }
    }

    /// Remembers an answer, unless the user may have changed since the look-up began.
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
        self.shelve(user_id.into(), Entry { domain: Arc::clone(domain), location, until });
    }

    /// The look-up is over, whatever came of it.
    pub fn end(&mut self, _look_up: LookUp) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.changed_domains.clear();
            self.changed_users.clear();
        }
    }

    /// A user changed, in whatever domain.
    pub fn forget_user(&mut self, user_id: &str) {
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

    /// Anyone in this domain may have changed.
    pub fn forget_domain(&mut self, domain: &str) {
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

    /// Anyone may have changed.
    pub fn forget_all(&mut self) {
        self.new = Shelf::default();
        self.old = Shelf::default();
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
            Self { entries: UserEntries::new(entries_max), domain: "demo".into(), now: Instant::now() }
        }

        fn put(&mut self, look_up: LookUp, user_id: &str) {
            let until = self.now + Duration::from_secs(10);
            self.entries.put(look_up, &self.domain, user_id, Some("loc".into()), until);
        }

        fn held(&mut self, user_id: &str) -> bool {
            self.entries.find(&self.domain, user_id, self.now).is_some()
        }
    }

    #[test]
    fn answers_are_remembered_until_their_time() {
        let mut fixture = Fixture::new(10);
        let look_up = fixture.entries.begin();
        fixture.put(look_up, "u");
        fixture.entries.end(look_up);
        assert_eq!(fixture.entries.find(&fixture.domain, "u", fixture.now).unwrap().as_deref(), Some("loc"));
        assert!(fixture.entries.find(&"other".into(), "u", fixture.now).is_none());
        fixture.now += Duration::from_secs(10);
        assert!(!fixture.held("u"));
        let look_up = fixture.entries.begin();
        fixture.put(look_up, "u");
        assert!(fixture.held("u"));
        assert_eq!(fixture.entries.len(), 1);
    }

    #[test]
    fn the_bound_is_kept_and_what_is_used_stays() {
        let mut fixture = Fixture::new(100);
        let look_up = fixture.entries.begin();
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
            (|entries| entries.forget_user("u")) as fn(&mut UserEntries),
            |entries| entries.forget_domain("demo"),
            UserEntries::forget_all,
        ] {
            let mut fixture = Fixture::new(10);
            let early = fixture.entries.begin();
            forget(&mut fixture.entries);
            let late = fixture.entries.begin();
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
        let look_up = fixture.entries.begin();
        fixture.entries.forget_user("u");
        fixture.entries.forget_domain("other");
        fixture.put(look_up, "v");
        assert!(fixture.held("v"));
        fixture.entries.end(look_up);
        fixture.entries.forget_domain("other");
        fixture.entries.forget_user("u");
        assert!(fixture.held("v"));
        assert!(fixture.entries.changed_users.is_empty() && fixture.entries.changed_domains.is_empty());
    }

    #[test]
    fn a_flood_of_changes_does_not_grow_without_bound() {
        let mut fixture = Fixture::new(10);
        let look_up = fixture.entries.begin();
        for number in 0..NOTED_MAX + 10 {
            fixture.entries.forget_user(&number.to_string());
        }
        assert_eq!(fixture.entries.changed_users.len(), NOTED_MAX);
        fixture.put(look_up, "u");
        assert!(!fixture.held("u"));
    }
}
