//! The words of the simulated life: questions, answers, property names, names of people and places.

/// How a question is answered.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// One of these.
    Choice(&'static [&'static str]),
    /// Some of these, with blanks between them.
    Several(&'static [&'static str]),
    /// A whole number below this.
    Count(u64),
    /// A number with one digit after the point.
    Decimal(u64),
    /// A day near the form's.
    Date,
    /// An instant near the form's.
    Moment,
    /// A time of day, which HQ leaves alone.
    Clock,
    /// One of [`REMARKS`].
    Remark,
    /// First and family name of a person.
    Name,
    /// Latitude, longitude, altitude, accuracy.
    Gps,
    /// Digits that are no number.
    Phone,
}

use Answer::{Choice, Clock, Count, Date, Decimal, Gps, Moment, Name, Phone, Remark, Several};

const YES_NO: Answer = Choice(&["yes", "no", "no", "1", "0"]);

/// A question or property, and how it is answered.
pub type Question = (&'static str, Answer);

/// First questions of every questionnaire.
pub const OPENING_QUESTIONS: &[Question] = &[
    ("consent", YES_NO),
    ("respondent_name", Name),
    ("respondent_relation", Choice(&["mother", "father", "self", "neighbour", "सास"])),
    ("visit_place", Choice(&["home", "centre", "phone", "school"])),
    ("visit_started", Moment),
    ("gps", Gps),
    ("weather", Choice(&["dry", "rain", "flood"])),
];

/// Blocks of questions, from which questionnaires are put together.
pub const QUESTION_GROUPS: &[(&str, &[Question])] = &[
    (
        "household_conditions",
        &[
            ("toilet", Choice(&["own", "shared", "none"])),
            ("water_source", Choice(&["hand_pump", "tap", "well", "river"])),
            ("water_minutes", Count(90)),
            ("rooms", Count(7)),
            ("roof", Choice(&["tin", "thatch", "tiles", "concrete"])),
            ("electricity", YES_NO),
            ("assets", Several(&["radio", "bicycle", "phone", "fan", "goat", "cow", "land"])),
            ("religion_or_caste_not_asked_reason", Remark),
            ("ration_card", Phone),
        ],
    ),
    (
        "antenatal",
        &[
            ("lmp", Date),
            ("edd", Date),
            ("gravida", Count(9)),
            ("parity", Count(8)),
            ("bp_systolic", Count(180)),
            ("bp_diastolic", Count(110)),
            ("haemoglobin", Decimal(16)),
            ("danger_signs", Several(&["bleeding", "fever", "swelling", "headache", "no_movement"])),
            ("ifa_tablets_received", Count(180)),
            ("tt_given_at", Moment),
            ("birth_plan-place", Choice(&["phc", "home", "hospital"])),
            ("counselling_notes", Remark),
        ],
    ),
    (
        "child_health",
        &[
            ("weight", Decimal(20)),
            ("height", Decimal(110)),
            ("muac", Decimal(18)),
            ("breastfed", YES_NO),
            ("illness", Several(&["cough", "fever", "diarrhoea", "rash"])),
            ("ors_packets", Count(6)),
            ("last_weighed", Date),
            ("reminder_time", Clock),
            ("next_visit", Moment),
            ("growth.status", Choice(&["normal", "moderate", "severe"])),
            ("mother_comment", Remark),
        ],
    ),
    (
        "schooling",
        &[
            ("enrolled", YES_NO),
            ("class", Count(12)),
            ("absent_days", Count(31)),
            ("reason_absent", Remark),
            ("midday_meal", Choice(&["daily", "sometimes", "never"])),
            ("École_préférée", Choice(&["Saint-Étienne", "publique", "aucune"])),
            ("_teacher_phone", Phone),
        ],
    ),
    (
        "payments",
        &[
            ("bank_account", Phone),
            ("amount_due", Decimal(5000)),
            ("paid_on", Date),
            ("paid_at", Moment),
            ("witness", Name),
            ("remarks", Remark),
            ("scheme", Choice(&["jsy", "pmmvy", "none"])),
        ],
    ),
];

/// Properties of a household.
pub const HOUSEHOLD_PROPERTIES: &[Question] = &[
    ("village", Choice(&["Rampur", "Belha", "Nouna", "Kédougou", "गाँव", "Sonar Bangla"])),
    ("hamlet", Choice(&["tola 1", "tola 2", "east", ""])),
    ("house_number", Count(400)),
    ("head_name", Name),
    ("phone_number", Phone),
    ("toilet", Choice(&["own", "shared", "none"])),
    ("water_source", Choice(&["hand_pump", "tap", "well"])),
    ("members_count", Count(12)),
    ("registered_at", Moment),
    ("gps", Gps),
    ("landmark", Remark),
    ("below_poverty_line", YES_NO),
    ("ration_card_number", Phone),
    ("visit_day", Date),
];

/// Properties of a person.
pub const PERSON_PROPERTIES: &[Question] = &[
    ("dob", Date),
    ("sex", Choice(&["F", "M", "O"])),
    ("aadhaar_last_digits", Phone),
    ("mother_name", Name),
    ("father_name", Name),
    ("phone_number", Phone),
    ("phone_owner", Choice(&["self", "husband", "neighbour", "none"])),
    ("education_years", Count(17)),
    ("occupation", Choice(&["farming", "weaving", "teacher", "at home", "migrant"])),
    ("status", Choice(&["active", "migrated", "pregnant", "lactating"])),
    ("disabled", YES_NO),
    ("languages", Several(&["hin", "fra", "ben", "wol", "eng"])),
    ("registered_at", Moment),
    ("preferred_time", Clock),
    ("remarks", Remark),
    ("weight", Decimal(80)),
];

/// Properties that visits change.
pub const VISIT_PROPERTIES: &[Question] = &[
    ("last_visit_at", Moment),
    ("last_visit_date", Date),
    ("visit_count", Count(60)),
    ("weight", Decimal(80)),
    ("height", Decimal(190)),
    ("muac", Decimal(18)),
    ("status", Choice(&["active", "migrated", "pregnant", "lactating", ""])),
    ("risk", Choice(&["low", "high", "unknown"])),
    ("danger_signs", Several(&["bleeding", "fever", "swelling", "headache"])),
    ("next_visit_date", Date),
    ("remarks", Remark),
    ("phone_number", Phone),
    ("ifa_tablets", Count(180)),
];

/// Free text, some of it trying.
pub const REMARKS: &[&str] = &[
    "mother was not at home, came back in the evening and met the grandmother",
    "note ending : []",
    "{\"looks\": [\"like json\"]}",
    "",
    "पानी की कमी है, अगले हफ्ते फिर आना",
    "à revoir après la pluie — l'enfant a été vacciné",
    "said \"no\" & left; 3 < 4 > 2",
    "  blanks around  ",
    "line one\nline two\twith tab",
    "null",
    "NaN",
    "=1+1",
    "'; drop table case; --",
    "🙂 happy, weight gained",
    "true",
    "0012",
    "the family has moved to the brick kiln for the season and will be back in June, neighbours keep the card",
];

/// First names of persons, in several scripts.
pub const FIRST_NAMES: &[&str] = &[
    "Asha",
    "Meena",
    "Fatou",
    "Awa",
    "Rekha",
    "Moussa",
    "Ibrahima",
    "Sita",
    "Zoë",
    "लक्ष्मी",
    "Anjali",
    "O'Neil",
    "Paul",
];

/// Family names of persons, in several scripts.
pub const FAMILY_NAMES: &[&str] =
    &["Devi", "Kumari", "Diop", "Ndiaye", "Sarr", "Khatun", "Yadav", "Müller", "da Silva", "कुमार"];

/// Beginnings of the names of places.
pub const PLACE_NAMES: &[&str] =
    &["Rampur", "Belha", "Nouna", "Kédougou", "Sonpur", "Tamba", "Élan", "गाँव", "Bishanpur", "North Fork"];

/// Values that HQ's datetime rule treats in a way worth a test: as written, and as in HQ's JSON.
pub const ODD_DATETIMES: &[(&str, &str)] = &[
    ("2013-03-09T06:30:09.007+03", "2013-03-09T03:30:09.007000Z"),
    ("2013-03-09T06:30:09,123", "2013-03-09T06:30:09.123000Z"),
    ("2015-07-14 1530", "2015-07-14T15:30:00.000000Z"),
    ("20130309 0630", "2013-03-09T06:30:00.000000Z"),
    ("2024-12-30T06:59.12Z", "2024-12-30T06:00:59.120000Z"),
    ("2024-12-31T06:59-0997", "2024-12-31T17:36:00.000000Z"),
    ("2024-03-30T06+09", "2024-03-29T21:00:00.000000Z"),
    ("2013-03-09t06:30:09Z", "2013-03-09t06:30:09Z"),
    ("2013/03/09T06:30:09", "2013/03/09T06:30:09"),
    ("2016-12-31T24:00:00Z", "2016-12-31T24:00:00Z"),
    ("2013-02-30T06:30:09Z", "2013-02-30T06:30:09Z"),
    ("06:30:09.000+05:30", "06:30:09.000+05:30"),
    ("2013-03-09", "2013-03-09"),
];

/// Dynamic properties that clash with something: a key that HQ fixes, a column that the lake adds, another spelling.
pub const CLASHING_PROPERTIES: &[(&str, &str)] = &[
    ("closed", "yes"),
    ("type", "x"),
    ("indices", "a"),
    ("actions", "none"),
    ("domain", "elsewhere"),
    ("doc_type", "Person"),
    ("_id", "mine"),
    ("backend_id", "couch"),
    ("case_json", "{}"),
    ("case_attachments", "photo"),
    ("deleted_on", "2020-01-01"),
    ("month", "May"),
    ("supervisor_id", "supervisor by hand"),
    ("state_id", "state by hand"),
    ("District_id", "district by hand"),
    ("_lake_version", "7"),
    ("_lake_", "wet"),
    ("Village", "RAMPUR"),
    ("STATUS", "ACTIVE"),
    ("a__b", "flat"),
    ("naïve-key.x", "é"),
];

/// Names and types that outsiders might choose to break things.
pub const HOSTILE_NAMES: &[&str] = &[
    "..",
    ".",
    "/",
    "*",
    ">",
    " ",
    "a b",
    "a.b*c>d/e\\f",
    "'; drop table lake; --",
    "\"quoted\" `back` $HOME %s {0}",
    "_",
    "~",
    "PERSON",
    "Person",
    "घर/परिवार",
    "line\nbreak",
    "month=2024-05-01",
    "_delta_log",
    ".hidden",
    "Ünïcode\u{200b}zero",
];
