//! What the simulated HQ knows: the state behind its rows. Everything the expectation says is computed from this.
//!
//! Cases, forms, places and people are found by index; they are never taken out, only marked as gone, so an index stays valid.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::element::Name;

/// All of HQ.
#[derive(Debug, Default)]
pub struct World {
    /// Project spaces.
    pub domains: Vec<Domain>,
    /// Cases of all domains.
    pub cases: Vec<Case>,
    /// Forms of all domains.
    pub forms: Vec<Form>,
    /// Locations of all domains.
    pub places: Vec<Place>,
    /// Mobile workers and web users of all domains.
    pub people: Vec<Person>,
}

/// A project space.
#[derive(Debug)]
pub struct Domain {
    /// Its name in HQ.
    pub name: Arc<str>,
    /// Id of its app.
    pub app_id: String,
    /// Id of the app's build.
    pub build_id: String,
    /// Questionnaires.
    pub designs: Vec<Design>,
    /// Types of cases: first households, then who lives in them.
    pub case_types: Vec<Name>,
    /// Levels of the location tree, top first.
    pub place_types: Vec<PlaceType>,
    /// (first turn, where each place lay from then on).
    pub trees: Vec<(u64, HashMap<u32, Whereabouts>)>,
    /// Indices.
    pub places: Vec<u32>,
    /// Indices.
    pub people: Vec<u32>,
    /// Indices.
    pub cases: Vec<u32>,
    /// Indices of forms that phones and people sent.
    pub forms: Vec<u32>,
    /// Indices of what was put away and may come back: archived forms, soft-deleted forms, forms in error.
    pub attic_forms: Vec<u32>,
    /// Indices of soft-deleted cases.
    pub attic_cases: Vec<u32>,
}

/// What a questionnaire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Registers a household and its members.
    Registration,
    /// Updates cases.
    Visit,
    /// Asks much and touches no case.
    Survey,
    /// Closes a case.
    Closing,
    /// Gives a case another type.
    Promotion,
    /// As phones of 2010 wrote it: `Meta`, case blocks of version 1.
    Legacy,
    /// HQ's own: import, API, user cases.
    System,
}

/// A questionnaire.
#[derive(Debug)]
pub struct Design {
    /// What HQ's column `xmlns` says, may be empty.
    pub xmlns: Arc<str>,
    /// Namespace of the XML's root element. libxml2 takes only URIs; where the column has something else (from repairs, or from before),
    /// this is the escaped text.
    pub namespace: Arc<str>,
    /// What it does.
    pub purpose: Purpose,
    /// Shown to people.
    pub title: &'static str,
}

/// A level of the location tree.
#[derive(Debug)]
pub struct PlaceType {
    /// Primary key.
    pub id: i64,
    /// Any text.
    pub name: Name,
    /// Slug.
    pub code: Option<String>,
    /// Primary key of the level above.
    pub parent: Option<i64>,
}

/// A location.
#[derive(Debug)]
pub struct Place {
    /// Primary key.
    pub id: i64,
    /// Outside identity.
    pub location_id: Arc<str>,
    /// Index.
    pub domain: usize,
    /// Index into the domain's `place_types`.
    pub level: usize,
    /// May be missing.
    pub name: Option<String>,
    /// Unique in the domain.
    pub site_code: String,
    /// Id elsewhere.
    pub external_id: Option<String>,
    /// Custom fields.
    pub metadata: Vec<(Name, String)>,
    /// Latitude and longitude in millionths of a degree; 0 is HQ's way to say unknown, too.
    pub position: Option<(i32, i32)>,
    /// Microseconds.
    pub created_at: i64,
    /// Microseconds.
    pub last_modified: i64,
    /// Hidden, since then where HQ knows it.
    pub archived: Option<Option<i64>>,
    /// Index.
    pub parent: Option<u32>,
    /// Deleted.
    pub gone: bool,
}

/// Where somebody works: (level, location id) of each ancestor-or-self, the nearest of each level.
pub type Whereabouts = Vec<(usize, Arc<str>)>;

/// A user with a document in CouchDB.
#[derive(Debug)]
pub struct Person {
    /// Document id.
    pub id: Arc<str>,
    /// Index.
    pub domain: usize,
    /// Without `@…`.
    pub username: String,
    /// `WebUser` instead of `CommCareUser`.
    pub web: bool,
    /// Index of the primary location, which may be gone.
    pub place: Option<u32>,
    /// Deleted in HQ; the document stays.
    pub retired: bool,
    /// CouchDB revision number.
    pub revision: u32,
    /// (first turn, where this user was assigned from then on).
    pub assignments: Vec<(u64, Option<u32>)>,
}

/// Who sends a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A user of HQ, by index.
    Person(u32),
    /// An id that no user document has.
    Named(&'static str),
}

/// Whether a case or form is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Announced by nobody yet.
    Unborn,
    /// Ordinary.
    Live,
    /// A case of which no form remains.
    Emptied,
    /// Flagged as deleted.
    SoftDeleted {
        /// Microseconds.
        on: i64,
        /// HQ's id of the deletion.
        deletion_id: String,
    },
    /// The row is gone.
    Gone {
        /// Nobody was told.
        silently: bool,
        /// It was live until then.
        live_before: bool,
    },
}

impl Presence {
    /// Whether the lake must have it.
    pub fn is_live(&self) -> bool {
        *self == Self::Live
    }

    /// Whether the lake may still have it because nobody told.
    pub fn may_linger(&self) -> bool {
        matches!(self, Self::Gone { silently: true, live_before: true })
    }
}

/// A link from a case to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Name of the link.
    pub identifier: &'static str,
    /// Case id; empty: removed.
    pub referenced_id: Arc<str>,
    /// Type of that case.
    pub referenced_type: Name,
    /// Extension instead of child.
    pub extension: bool,
}

/// What changed a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// Index of the form; `None` for a rebuild on request.
    pub form: Option<u32>,
    /// Id of that form.
    pub form_id: Option<Arc<str>>,
    /// Microseconds.
    pub server_date: i64,
    /// Phone's time.
    pub client_date: Option<i64>,
    /// HQ's bits.
    pub bits: i64,
    /// Does not count any more.
    pub revoked: bool,
}

/// A case.
#[derive(Debug)]
pub struct Case {
    /// Identity.
    pub id: Arc<str>,
    /// Index.
    pub domain: usize,
    /// May be empty.
    pub case_type: Name,
    /// May be missing.
    pub name: Option<String>,
    /// User, group or location.
    pub owner_id: Arc<str>,
    /// Phone's time.
    pub opened_on: Option<i64>,
    /// User.
    pub opened_by: Option<Arc<str>>,
    /// Phone's time, only moves forward.
    pub modified_on: i64,
    /// Microseconds.
    pub server_modified_on: i64,
    /// User.
    pub modified_by: Arc<str>,
    /// When and by whom.
    pub closed: Option<(i64, Arc<str>)>,
    /// Whether it is there.
    pub presence: Presence,
    /// Id elsewhere.
    pub external_id: Option<String>,
    /// Dynamic properties.
    pub properties: Vec<(Name, Value)>,
    /// Properties that no form wrote (API, repair tools); they survive rebuilds.
    pub oddities: Vec<(Name, Value)>,
    /// In the database's order.
    pub links: Vec<Link>,
    /// In the database's order.
    pub transactions: Vec<Transaction>,
    /// Turn of the last change or republication.
    pub changed: u64,
}

/// What is wrong with a form's XML in the blob store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing.
    Fine,
    /// Not well-formed.
    Broken,
    /// Well-formed, but HQ fails on it.
    Raises,
    /// The blob is not there.
    BlobMissing,
    /// The row that says where the blob is, is not there.
    ReferenceMissing,
}

/// A form.
#[derive(Debug)]
pub struct Form {
    /// Identity in HQ.
    pub id: Arc<str>,
    /// Index.
    pub domain: usize,
    /// What its XML is made of.
    pub submission: Submission,
    /// HQ's number (reference §3.2).
    pub state: i64,
    /// Microseconds.
    pub received_on: i64,
    /// Microseconds.
    pub edited_on: Option<i64>,
    /// Microseconds.
    pub server_modified_on: i64,
    /// Phone's clock as the HTTP header had it.
    pub date_header: Option<i64>,
    /// Text.
    pub problem: Option<&'static str>,
    /// Of copies: the live form.
    pub orig_id: Option<Arc<str>>,
    /// Of edited forms: the previous version.
    pub deprecated_form_id: Option<Arc<str>>,
    /// The column `user_id`; phones of old leave it to `meta`.
    pub user_id: Option<Arc<str>>,
    /// (operation, when, user).
    pub history: Vec<(&'static str, i64, Arc<str>)>,
    /// Key and size of the XML.
    pub blob: (String, usize),
    /// State of the XML.
    pub health: Health,
    /// Whether it is there.
    pub presence: Presence,
    /// Turn of the last change or republication.
    pub changed: u64,
}

/// What one block of a form does to one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Creates it, perhaps below another case.
    Create {
        /// Its type.
        case_type: Name,
        /// Parent, its type, and whether it is an extension.
        parent: Option<(u32, Name, bool)>,
    },
    /// Updates it.
    Update,
    /// Updates and closes it.
    Close,
    /// Gives it another type.
    Retype(Name),
    /// Removes a link: it becomes this one, without a case.
    Unlink(Link),
}

/// How the end of a form is given in `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A datetime.
    Ordinary,
    /// No element.
    Missing,
    /// No text.
    Empty,
    /// Something else.
    Unparsable,
    /// Looks like a datetime but is none.
    Impossible,
    /// A date.
    DateOnly,
    /// An element with an attribute.
    Object,
}

/// All that the XML of a form is made of; the same submission gives the same XML at any time.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Index into the domain's `designs`.
    pub design: usize,
    /// Of the answers.
    pub seed: u64,
    /// By whom.
    pub sender: Sender,
    /// `meta/instanceID`.
    pub instance: Arc<str>,
    /// Phone's time.
    pub started: i64,
    /// Phone's time.
    pub ended: i64,
    /// How `ended` is given.
    pub ending: Ending,
    /// Owner of new cases.
    pub owner: Arc<str>,
    /// Cases, by index, and what happens to them.
    pub subjects: Vec<(u32, Role)>,
}

impl World {
    /// The id under which somebody is known.
    pub fn sender_id(&self, sender: Sender) -> Arc<str> {
        match sender {
            Sender::Person(index) => Arc::clone(&self.people[index as usize].id),
            Sender::Named(name) => name.into(),
        }
    }

    /// Where a place is, itself included; empty where it is gone.
    pub fn whereabouts(&self, place: Option<u32>) -> Whereabouts {
        let mut found = Whereabouts::new();
        let mut at = place;
        while let Some(place) = at.map(|index| &self.places[index as usize]) {
            if place.gone {
                return Whereabouts::new();
            }
            if !found.iter().any(|(level, _)| *level == place.level) {
                found.push((place.level, Arc::clone(&place.location_id)));
            }
            at = place.parent;
        }
        found
    }

    /// Writes down how the places of a domain lie from this turn on.
    pub fn note_tree(&mut self, domain: usize, turn: u64) {
        let places = &self.domains[domain].places;
        let tree = places.iter().map(|place| (*place, self.whereabouts(Some(*place)))).collect();
        self.domains[domain].trees.push((turn, tree));
    }

    /// Writes down where somebody is assigned from this turn on.
    pub fn note_assignment(&mut self, person: u32, turn: u64) {
        let Person { place, assignments, .. } = &mut self.people[person as usize];
        assignments.push((turn, *place));
    }
}
