//! Fills in questionnaires: from a submission the form's elements and what they do to cases. Pure: the same submission gives the
//! same form, so nothing but the submission has to be kept.

use std::sync::Arc;

use crate::answers::{self, answered, asset, group, opening, person_name, repeats, vaccination};
use crate::case_blocks::{CaseBlock, modified};
use crate::dice::Dice;
use crate::element::{Element, Name, Text};
use crate::vocabulary::{
    CLASHING_PROPERTIES, HOUSEHOLD_PROPERTIES, PERSON_PROPERTIES, Question, REMARKS, VISIT_PROPERTIES,
};
use crate::world::{Domain, Ending, Link, Purpose, Role, Sender, Submission, World};

/// Type of the case that HQ keeps for each worker.
pub const USER_CASE: &str = "commcare-user";

/// A form before it is written.
#[derive(Debug)]
pub struct Filled {
    /// The XML's root.
    pub root: Element,
    /// In the order of the document.
    pub blocks: Vec<CaseBlock>,
}

/// Fills in a questionnaire.
pub fn fill_in(world: &World, domain: &Domain, submission: &Submission) -> Filled {
    let design = &domain.designs[submission.design];
    let mut dice = Dice::new(submission.seed);
    let blocks: Vec<CaseBlock> =
        submission.subjects.iter().map(|(case, role)| block(world, submission, *case, role, &mut dice)).collect();
    let system = design.purpose == Purpose::System;
    let mut root = Element::new(if system { "system" } else { "data" })
        .with("uiVersion", "1")
        .with("version", (1 + submission.design).to_string())
        .with("name", design.title);
    if !design.namespace.is_empty() {
        root = root.within(design.namespace.to_string(), None);
    }
    let prefix = submission.design.is_multiple_of(2).then_some("n0");
    let around = submission.ended;
    let elements = blocks.iter().map(|block| block.element(prefix));
    match design.purpose {
        Purpose::Registration => {
            root.children.extend(opening(around, &mut dice));
            root.children.push(group(0, around, &mut dice));
            registered(&mut root, elements, around, &mut dice);
        }
        Purpose::Visit => {
            root.children.extend(opening(around, &mut dice));
            root.children.push(group(submission.design, around, &mut dice));
            visited(&mut root, elements, &mut dice);
            root.children.extend(repeats("vaccination", 4, around, &mut dice, vaccination));
        }
        Purpose::Survey => surveyed(&mut root, around, &mut dice),
        Purpose::Closing | Purpose::Promotion => {
            root.children.push(Element::leaf("reason", *dice.pick(&["moved", "died", "duplicate", "grown up"])));
            root.children.push(group(4, around, &mut dice));
            root.children.extend(elements);
        }
        Purpose::Legacy => {
            root.children.extend(answered(PERSON_PROPERTIES, 800, around, &mut dice));
            root.children.extend(blocks.iter().map(CaseBlock::legacy_element));
        }
        Purpose::System => root.children.extend(elements),
    }
    root.children.push(meta(world, submission, design.purpose, &mut dice));
    Filled { root, blocks }
}

/// The first block beside the questions, one for each member in a repeat group.
fn registered(root: &mut Element, mut blocks: impl Iterator<Item = Element>, around: i64, dice: &mut Dice) {
    root.children.extend(blocks.next());
    let mut any = false;
    for block in blocks {
        any = true;
        let mut member =
            Element { children: answered(&PERSON_PROPERTIES[..6], 800, around, dice), ..Element::new("member") };
        member.children.push(block);
        root.children.push(member);
    }
    if !any && dice.chance(500) {
        root.children.push(Element::new("member"));
    }
}

/// Blocks beside the questions (two make an array), in a group, in a repeat group.
fn visited(root: &mut Element, mut blocks: impl Iterator<Item = Element>, dice: &mut Dice) {
    root.children.extend(blocks.next());
    if dice.chance(400) {
        root.children.extend(blocks.next());
    } else if let Some(block) = blocks.next() {
        root.children.push(Element::new("subcase_0").and(block));
    }
    let rest: Vec<Element> = blocks.map(|block| Element::new("item").and(block)).collect();
    if !rest.is_empty() {
        root.children.push(Element { children: rest, ..Element::new("relatives_visited") });
    }
}

fn surveyed(root: &mut Element, around: i64, dice: &mut Dice) {
    root.children.extend(opening(around, dice));
    let first = dice.below(5) as usize;
    for number in first..first + 2 + dice.below(3) as usize {
        root.children.push(group(number, around, dice));
    }
    root.children.extend(repeats("asset", 5, around, dice, asset));
    root.children.extend(repeats("child", 3, around, dice, |around, dice| {
        vec![group(3, around, dice), Element::leaf("name", person_name(dice))]
    }));
    root.children.push(Element::leaf("closing_remark", *dice.pick(REMARKS)));
}

/// What happens to one case.
fn block(world: &World, submission: &Submission, case: u32, role: &Role, dice: &mut Dice) -> CaseBlock {
    let held = &world.cases[case as usize];
    let (modified, at) = modified(Text::moment(submission.ended, dice));
    let mut block = CaseBlock {
        case,
        case_id: Arc::clone(&held.id),
        modified,
        at,
        user_id: world.sender_id(submission.sender),
        create: None,
        update: Vec::new(),
        close: *role == Role::Close,
        links: Vec::new(),
    };
    let around = submission.ended;
    match role {
        Role::Create { case_type, parent } => {
            let household = parent.is_none();
            let name = match case_type.as_ref() {
                USER_CASE => name_of_user(world, &submission.owner),
                _ if household => format!("House of {}", person_name(dice)),
                _ => person_name(dice),
            };
            block.create = Some((case_type.clone(), name, Arc::clone(&submission.owner)));
            block.update =
                properties(if household { HOUSEHOLD_PROPERTIES } else { PERSON_PROPERTIES }, 940, around, dice);
            if let Some((parent, parent_type, extension)) = parent {
                block.links.push(Link {
                    identifier: if *extension { "host" } else { "parent" },
                    referenced_id: Arc::clone(&world.cases[*parent as usize].id),
                    referenced_type: parent_type.clone(),
                    extension: *extension,
                });
            } else if case_type == USER_CASE {
                block.update = vec![
                    Element::leaf("username", name_of_user(world, &submission.owner)),
                    Element::leaf("hq_user_id", submission.owner.to_string()),
                    Element::leaf("commcare_project", "simulated"),
                ];
            }
        }
        Role::Update | Role::Close => block.update = properties(VISIT_PROPERTIES, 600, around, dice),
        Role::Retype(case_type) => {
            block.update = properties(VISIT_PROPERTIES, 200, around, dice);
            block.update.push(Element { text: Text::Plain(case_type.clone()), ..Element::new("case_type") });
        }
        Role::Unlink(link) => block.links.push(link.clone()),
    }
    block
}

fn name_of_user(world: &World, id: &str) -> String {
    world
        .people
        .iter()
        .find(|person| *person.id == *id)
        .map_or_else(|| "somebody".into(), |person| person.username.clone())
}

/// Properties as a phone sends them, at times odd ones.
fn properties(questions: &'static [Question], shown_of_thousand: u64, around: i64, dice: &mut Dice) -> Vec<Element> {
    let mut elements = answered(questions, shown_of_thousand, around, dice);
    if dice.chance(60) {
        let (name, value) = *dice.pick(CLASHING_PROPERTIES);
        elements.push(Element::leaf(name, value));
    }
    if dice.chance(30) {
        // An object where others have text, beside a property whose name is its flattened one.
        elements.push(
            Element::new("a").and(Element::leaf("b", "nested")).and(Element::leaf("at", Text::moment(around, dice))),
        );
        elements.push(Element::leaf("a__b", "flat"));
    }
    if dice.chance(30) {
        elements.retain(|element| element.name != "weight");
        elements.push(Element::leaf("weight", format!("{}.5", dice.below(60))).with("unit", "kg"));
    }
    if dice.chance(30) {
        // Given twice: the form has both, the case the last.
        elements.push(Element::leaf("risk", "low"));
        elements.push(Element::leaf("risk", "high"));
    }
    if dice.chance(20) {
        elements.push(Element::leaf("name", person_name(dice)));
    }
    if dice.chance(20) {
        elements.push(Element::leaf("external_id", format!("EXT-{}", dice.below(100_000))));
    }
    if dice.chance(10) {
        elements.push(Element::leaf("date_opened", Text::moment(around - 400 * crate::moment::DAY, dice)));
    }
    elements
}

fn ending(submission: &Submission, name: Name, dice: &mut Dice) -> Option<Element> {
    let text = match submission.ending {
        Ending::Ordinary => Text::moment(submission.ended, dice),
        Ending::Missing => return None,
        Ending::Empty => Text::EMPTY,
        Ending::Unparsable => "yesterday evening".into(),
        Ending::Impossible => "2013-02-30T06:30:09Z".into(),
        Ending::DateOnly => crate::moment::date(submission.ended).into(),
        Ending::Object => {
            return Some(Element::leaf(name, Text::moment(submission.ended, dice)).with("clock", "phone"));
        }
    };
    Some(Element::leaf(name, text))
}

/// The block about the submission itself.
fn meta(world: &World, submission: &Submission, purpose: Purpose, dice: &mut Dice) -> Element {
    let user_id = world.sender_id(submission.sender).to_string();
    let username = match submission.sender {
        Sender::Person(index) => world.people[index as usize].username.clone(),
        Sender::Named(name) => name.to_owned(),
    };
    if purpose == Purpose::Legacy {
        let mut meta = Element::new("Meta")
            .and(Element::leaf("DeviceID", "3540"))
            .and(Element::leaf("TimeStart", Text::moment(submission.started, dice)))
            .and(Element::leaf("username", username))
            .and(Element::leaf("chw_id", user_id))
            .and(Element::leaf("uid", submission.instance.to_string()));
        meta.children.extend(ending(submission, "TimeEnd".into(), dice));
        return meta;
    }
    let mut meta = Element::new("meta")
        .within("http://openrosa.org/jr/xforms", dice.chance(500).then_some("orx"))
        .and(Element::leaf("deviceID", format!("commcare_{}", dice.below(1_000_000_000))))
        .and(Element::leaf("timeStart", Text::moment(submission.started, dice)));
    meta.children.extend(ending(submission, "timeEnd".into(), dice));
    meta = meta
        .and(Element::leaf("username", username))
        .and(Element::leaf("userID", user_id))
        .and(Element::leaf("instanceID", submission.instance.to_string()));
    if purpose != Purpose::System {
        let version = "CommCare Android, version \"2.53.0\"(464694). App v17. CommCare Version 2.53.0. Build 464694, built on: 2023-09-13";
        meta.children.push(
            Element::leaf("appVersion", version)
                .within("http://commcarehq.org/xforms", dice.chance(500).then_some("cc")),
        );
        let location = if dice.chance(300) { String::new() } else { answers::gps(dice) };
        meta.children.push(Element::leaf("location", location).within("http://commcarehq.org/xforms", None));
        meta.children.push(Element::leaf("drift", dice.between(-5, 5).to_string()));
    }
    meta
}

/// The XML of a form.
pub fn written(filled: &Filled, seed: u64) -> String {
    let mut xml = String::with_capacity(8 * 1024);
    xml.push_str(match seed % 4 {
        0 => "",
        1 => "<?xml version='1.0' ?>",
        _ => "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
    });
    filled.root.write(&mut xml, seed % 8 == 7);
    xml
}
