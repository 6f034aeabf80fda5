//! What the simulated HQ knows: the state behind its rows. Everything the expectation says is computed from this.
//!
//! Cases, forms, places and people are found by index; they are never taken out, only marked as gone, so an index stays valid.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::element::Name;

/// The state of a simulated HQ.
#[derive(Debug, Default)]
pub struct World {
    /// Project spaces (HQ calls them domains).
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
    /// The questionnaires (forms of its app) that workers fill in.
    pub designs: Vec<Design>,
    /// Types of cases: first households, then who lives in them.
    pub case_types: Vec<Name>,
    /// Levels of the location tree, top first.
    pub place_types: Vec<PlaceType>,
    /// (first turn, where each place lay from then on).
    pub trees: Vec<(u64, HashMap<u32, Whereabouts>)>,
    /// Its locations: indices into [`World::places`].
    pub places: Vec<u32>,
    /// Its users: indices into [`World::people`].
    pub people: Vec<u32>,
    /// Its cases: indices into [`World::cases`].
    pub cases: Vec<u32>,
    /// Its forms that phones and people sent: indices into [`World::forms`].
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
    /// Updates existing cases.
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

/// A questionnaire of an app, which workers fill in.
#[derive(Debug)]
pub struct Design {
    /// What HQ's column `xmlns` says, may be empty.
    pub xmlns: Arc<str>,
    /// Namespace of the XML's root element. libxml2 takes only URIs; where the column has something else (from repairs, or from before),
    /// this is the escaped text.
    pub namespace: Arc<str>,
    /// What it does.
    pub purpose: Purpose,
    /// Its title in the app.
    pub title: &'static str,
}

/// A level of the location tree.
#[derive(Debug)]
pub struct PlaceType {
    /// Primary key of `locations_locationtype`.
    pub id: i64,
    /// Name, which may be any text.
    pub name: Name,
    /// Code: the name as an identifier. HQ makes it from the name; it may be missing.
    pub code: Option<String>,
    /// Primary key of the level above.
    pub parent: Option<i64>,
}

impl PlaceType {
    /// What the lake's columns of it begin with: its code, and its name where it has none or is named `supervisor`.
    pub fn key(&self) -> &str {
        if self.name == "supervisor" { &self.name } else { self.code.as_deref().unwrap_or(&self.name) }
    }
}

/// A location of the tree of a domain.
#[derive(Debug)]
pub struct Place {
    /// Primary key of `locations_sqllocation`.
    pub id: i64,
    /// The id that forms, cases and users refer to it by.
    pub location_id: Arc<str>,
    /// Index of its domain in [`World::domains`].
    pub domain: usize,
    /// Index into the domain's `place_types`.
    pub level: usize,
    /// Name, which may be missing.
    pub name: Option<String>,
    /// Site code, unique in the domain.
    pub site_code: String,
    /// Id in a system outside HQ.
    pub external_id: Option<String>,
    /// Custom fields of the project space, in the order in which HQ stores them.
    pub metadata: Vec<(Name, String)>,
    /// Latitude and longitude in millionths of a degree; 0 is HQ's way to say unknown, too.
    pub position: Option<(i32, i32)>,
    /// When it was made, in microseconds since 1970.
    pub created_at: i64,
    /// When it was last saved, in microseconds since 1970.
    pub last_modified: i64,
    /// Archived: hidden in HQ, but still an ancestor. Inside, when that happened, in microseconds since 1970, where HQ knows it.
    pub archived: Option<Option<i64>>,
    /// The location above it: index into [`World::places`].
    pub parent: Option<u32>,
    /// Whether it was deleted.
    pub gone: bool,
}

/// Where a location is in its tree: (level, location id) of itself and its ancestors, the nearest of each level.
pub type Whereabouts = Vec<(usize, Arc<str>)>;

/// A user with a document in CouchDB.
#[derive(Debug)]
pub struct Person {
    /// Id of the document, the user id.
    pub id: Arc<str>,
    /// Index of the domain in [`World::domains`].
    pub domain: usize,
    /// User name, without `@` and what follows.
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
    /// It has an id, and HQ has not stored it yet.
    Unborn,
    /// It is in HQ, neither deleted nor archived.
    Live,
    /// A case of which no form remains.
    Emptied,
    /// Its row is there, with the flag that it is deleted.
    SoftDeleted {
        /// When it was deleted, in microseconds since 1970.
        on: i64,
        /// HQ's id of the deletion.
        deletion_id: String,
    },
    /// The row is gone.
    Gone {
        /// Whether HQ put no message about it on Kafka.
        silently: bool,
        /// Whether it was live until then.
        live_before: bool,
    },
}

impl Presence {
    /// Whether the lake must have it.
    pub fn is_live(&self) -> bool {
        *self == Self::Live
    }

    /// Whether the lake may still have it, because HQ announced its deletion by no message.
    pub fn may_linger(&self) -> bool {
        matches!(self, Self::Gone { silently: true, live_before: true })
    }
}

/// A link from a case to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Name of the link.
    pub identifier: &'static str,
    /// Id of the other case; empty for a link that was removed.
    pub referenced_id: Arc<str>,
    /// Type of that case.
    pub referenced_type: Name,
    /// Whether this case is an extension of the other one, instead of a child.
    pub extension: bool,
}

/// A change of a case: a row of `form_processor_casetransaction`.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// Index of the form; `None` for a rebuild on request.
    pub form: Option<u32>,
    /// Id of that form.
    pub form_id: Option<Arc<str>>,
    /// When HQ processed it, in microseconds since 1970.
    pub server_date: i64,
    /// When it happened by the phone's clock, in microseconds since 1970.
    pub client_date: Option<i64>,
    /// The column `type`: HQ's bits that say what kind of change it is.
    pub bits: i64,
    /// Whether it was revoked, because its form was archived or replaced: it does not count any more.
    pub revoked: bool,
}

/// A case: a person, a household, or another subject that workers follow over time.
#[derive(Debug)]
pub struct Case {
    /// Case id.
    pub id: Arc<str>,
    /// Index of its domain in [`World::domains`].
    pub domain: usize,
    /// Type, which may be empty.
    pub case_type: Name,
    /// Name, which may be missing.
    pub name: Option<String>,
    /// Id of the user, group or location that owns it.
    pub owner_id: Arc<str>,
    /// When it was opened by the phone's clock, in microseconds since 1970.
    pub opened_on: Option<i64>,
    /// Id of the user who opened it.
    pub opened_by: Option<Arc<str>>,
    /// When it was last changed by a phone's clock, in microseconds since 1970; it only moves forward.
    pub modified_on: i64,
    /// When HQ last changed it, in microseconds since 1970.
    pub server_modified_on: i64,
    /// Id of the user who changed it last.
    pub modified_by: Arc<str>,
    /// When it was closed, in microseconds since 1970, and the id of the user who closed it.
    pub closed: Option<(i64, Arc<str>)>,
    /// Whether HQ has it.
    pub presence: Presence,
    /// Id in a system outside HQ.
    pub external_id: Option<String>,
    /// What forms asked about it: properties that have no column of their own.
    pub properties: Vec<(Name, Value)>,
    /// Properties that no form wrote (API, repair tools); they survive rebuilds.
    pub oddities: Vec<(Name, Value)>,
    /// Links to other cases, in the database's order.
    pub links: Vec<Link>,
    /// All changes so far, in the database's order.
    pub transactions: Vec<Transaction>,
    /// Turn of the last change or republication.
    pub changed: u64,
}

/// What is wrong with a form's XML in the blob store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing is wrong.
    Fine,
    /// It is not well-formed.
    Broken,
    /// It is well-formed, but HQ fails on it.
    Raises,
    /// The blob is not there.
    BlobMissing,
    /// The row that says where the blob is, is not there.
    ReferenceMissing,
}

/// A form: a questionnaire that was filled in and sent to HQ.
#[derive(Debug)]
pub struct Form {
    /// Form id.
    pub id: Arc<str>,
    /// Index of its domain in [`World::domains`].
    pub domain: usize,
    /// What its XML is made of.
    pub submission: Submission,
    /// The column `state`: HQ's number for live, archived, deprecated and so on.
    pub state: i64,
    /// When HQ received it, in microseconds since 1970.
    pub received_on: i64,
    /// When it was last edited, in microseconds since 1970.
    pub edited_on: Option<i64>,
    /// When HQ last changed it, in microseconds since 1970.
    pub server_modified_on: i64,
    /// The phone's clock as the HTTP header `Date` had it, in microseconds since 1970.
    pub date_header: Option<i64>,
    /// Text of the column `problem`: why HQ could not process it.
    pub problem: Option<&'static str>,
    /// For an old version that was kept: id of the live form.
    pub orig_id: Option<Arc<str>>,
    /// For a form that was edited: id of its previous version.
    pub deprecated_form_id: Option<Arc<str>>,
    /// The column `user_id`; phones of old leave it to `meta`.
    pub user_id: Option<Arc<str>>,
    /// Operations on it (archive, edit, …): the name, when, in microseconds since 1970, and the id of the user.
    pub history: Vec<(&'static str, i64, Arc<str>)>,
    /// Key of its XML in the blob store, and its size in bytes.
    pub blob: (String, usize),
    /// What is wrong with its XML.
    pub health: Health,
    /// Whether HQ has it.
    pub presence: Presence,
    /// Turn of the last change or republication.
    pub changed: u64,
}

/// What one block of a form does to one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Creates it, perhaps below another case.
    Create {
        /// The type of the new case.
        case_type: Name,
        /// Parent, its type, and whether it is an extension.
        parent: Option<(u32, Name, bool)>,
    },
    /// Updates the case.
    Update,
    /// Updates and closes the case.
    Close,
    /// Gives it another type.
    Retype(Name),
    /// Removes a link: it becomes this one, without a case.
    Unlink(Link),
}

/// How the end of a form is given in `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As a datetime, the ordinary way.
    Ordinary,
    /// The element is missing.
    Missing,
    /// The element is empty.
    Empty,
    /// As text that is no datetime at all.
    Unparsable,
    /// As text that looks like a datetime but is none, as the 31st of February.
    Impossible,
    /// As a date without time.
    DateOnly,
    /// As an element with an attribute, which becomes an object in JSON.
    Object,
}

/// All that the XML of a form is made of; the same submission gives the same XML at any time.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Index into the domain's `designs`.
    pub design: usize,
    /// Seed from which the answers are drawn.
    pub seed: u64,
    /// The user who sent it.
    pub sender: Sender,
    /// `meta/instanceID`.
    pub instance: Arc<str>,
    /// When it was opened on the phone, by its clock, in microseconds since 1970.
    pub started: i64,
    /// When it was finished on the phone, by its clock, in microseconds since 1970.
    pub ended: i64,
    /// How `ended` is given.
    pub ending: Ending,
    /// Id of the owner of the cases that it creates.
    pub owner: Arc<str>,
    /// Cases, by index, and what happens to them.
    pub subjects: Vec<(u32, Role)>,
}

impl World {
    /// The user id of a sender.
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

    /// Writes down where a user is assigned from this turn on.
    pub fn note_assignment(&mut self, person: u32, turn: u64) {
        let Person { place, assignments, .. } = &mut self.people[person as usize];
        assignments.push((turn, *place));
    }
}
