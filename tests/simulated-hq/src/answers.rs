//! Answers to questions, and the parts of questionnaires that touch no case.

use crate::dice::Dice;
use crate::element::{Element, Text};
use crate::moment::{self, DAY, MINUTE};
use crate::vocabulary::{
    Answer, FAMILY_NAMES, FIRST_NAMES, ODD_DATETIMES, OPENING_QUESTIONS, QUESTION_GROUPS, Question, REMARKS,
};

/// First and family name of a person.
pub fn person_name(dice: &mut Dice) -> String {
    format!("{} {}", dice.pick(FIRST_NAMES), dice.pick(FAMILY_NAMES))
}

/// An answer, given around this instant.
pub fn answer(how: Answer, around: i64, dice: &mut Dice) -> Text {
    match how {
        Answer::Choice(choices) => Text::from(*dice.pick(choices)),
        Answer::Several(choices) => {
            let chosen: Vec<&str> = choices.iter().copied().filter(|_| dice.chance(400)).collect();
            Text::from(chosen.join(" "))
        }
        Answer::Count(end) => Text::from(dice.below(end).to_string()),
        Answer::Decimal(end) => Text::from(format!("{}.{}", dice.below(end), dice.below(10))),
        Answer::Date => Text::from(moment::date(around - dice.between(-30, 400) * DAY)),
        Answer::Moment if dice.chance(40) => {
            let (written, converted) = *dice.pick(ODD_DATETIMES);
            Text::Odd(written, converted)
        }
        Answer::Moment => Text::moment(around - dice.between(0, 3 * 24 * 60) * MINUTE, dice),
        Answer::Clock => Text::from(format!("{:02}:{:02}:00.000+05:30", dice.below(24), dice.below(60))),
        Answer::Remark => Text::from(*dice.pick(REMARKS)),
        Answer::Name => Text::from(person_name(dice)),
        Answer::Gps => Text::from(gps(dice)),
        Answer::Phone => Text::from(format!("0{}", 1_000_000_000 + dice.below(8_999_999_999))),
    }
}

/// Latitude, longitude, altitude, accuracy, as phones write them.
pub fn gps(dice: &mut Dice) -> String {
    format!(
        "{}.{:06} {}.{:06} {}.0 {}.5",
        dice.between(8, 34),
        dice.below(1_000_000),
        dice.between(68, 97),
        dice.below(1_000_000),
        dice.below(900),
        dice.below(30)
    )
}

/// One element for each question; some questions are not shown and leave none.
pub fn answered(questions: &'static [Question], shown_of_thousand: u64, around: i64, dice: &mut Dice) -> Vec<Element> {
    let mut elements = Vec::with_capacity(questions.len());
    for (name, how) in questions {
        if dice.chance(shown_of_thousand) {
            let text = if dice.chance(30) { Text::EMPTY } else { answer(*how, around, dice) };
            elements.push(Element::leaf(*name, text));
        }
    }
    elements
}

/// The first questions.
pub fn opening(around: i64, dice: &mut Dice) -> Vec<Element> {
    let mut elements = answered(OPENING_QUESTIONS, 900, around, dice);
    if dice.chance(100) {
        // The same question is text in one form and an object in the next.
        elements.push(Element::leaf("respondent_age", dice.below(90).to_string()).with("unit", "years"));
    } else {
        elements.push(Element::leaf("respondent_age", dice.below(90).to_string()));
    }
    if dice.chance(20) {
        elements.push(
            Element::leaf("greeting", "नमस्ते")
                .with("xml:lang", "hi")
                .and(Element { tail: " said", ..Element::leaf("b", "1") }),
        );
    }
    elements
}

/// A group of questions chosen by number.
pub fn group(number: usize, around: i64, dice: &mut Dice) -> Element {
    let (name, questions) = &QUESTION_GROUPS[number % QUESTION_GROUPS.len()];
    Element { children: answered(questions, 930, around, dice), ..Element::new(*name) }
}

/// A repeat group: nothing or an empty element, an object, an array, by how often it was answered.
pub fn repeats(
    name: &'static str,
    most: u64,
    around: i64,
    dice: &mut Dice,
    of_one: fn(i64, &mut Dice) -> Vec<Element>,
) -> Vec<Element> {
    let count = dice.below(most + 1);
    if count == 0 {
        return if dice.chance(500) { Vec::new() } else { vec![Element::new(name)] };
    }
    (0..count).map(|_| Element { children: of_one(around, dice), ..Element::new(name) }).collect()
}

/// One vaccination of a repeat group.
pub fn vaccination(around: i64, dice: &mut Dice) -> Vec<Element> {
    let mut elements = vec![
        Element::leaf("vaccine", *dice.pick(&["bcg", "opv", "penta", "measles"])),
        Element::leaf("given_at", Text::moment(around - dice.between(0, 90) * DAY, dice)),
        Element::leaf("batch", dice.below(100_000).to_string()),
    ];
    // A repeat inside a repeat.
    elements.extend(repeats("reaction", 2, around, dice, |_, dice| {
        vec![Element::leaf("kind", *dice.pick(&["fever", "rash"])), Element::leaf("days", dice.below(5).to_string())]
    }));
    elements
}

/// One asset of a repeat group.
pub fn asset(around: i64, dice: &mut Dice) -> Vec<Element> {
    vec![
        Element::leaf("what", *dice.pick(&["goat", "cow", "phone", "plough"])),
        Element::leaf("bought", moment::date(around - dice.between(0, 2000) * DAY)),
        Element::leaf("worth", dice.below(50_000).to_string()),
    ]
}
