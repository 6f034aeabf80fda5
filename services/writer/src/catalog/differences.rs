//! What differs between what the lake has and what a catalog has. Pure.

use std::collections::BTreeMap;

use super::{CatalogName, HeldTable, Registration};

/// What is to be done about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The catalog lacks the table.
    Create,
    /// The catalog has the table otherwise.
    Alter,
    /// The catalog has a table of the lake that the lake does not have, or not under this name.
    Drop,
    /// Somebody else's table has the name. It is left alone.
    Taken,
}

impl Difference {
    /// The word for people and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Alter => "alter",
            Self::Drop => "drop",
            Self::Taken => "taken",
        }
    }
}

/// What differs, by name. `root` is the mark of this lake: only what bears it is altered or dropped.
pub fn differences(
    root: &str,
    wanted: &BTreeMap<CatalogName, Registration>,
    held: &BTreeMap<CatalogName, HeldTable>,
) -> BTreeMap<CatalogName, Difference> {
    let is_ours = |table: &HeldTable| table.mark.as_ref().is_some_and(|mark| mark.root == root);
    let mut found = BTreeMap::new();
    for (name, table) in wanted {
        let difference = match held.get(name) {
            None => Some(Difference::Create),
            Some(there) if !is_ours(there) => Some(Difference::Taken),
            Some(there) => (!is_as_wanted(table, there)).then_some(Difference::Alter),
        };
        found.extend(difference.map(|difference| (name.clone(), difference)));
    }
    let gone = held.iter().filter(|(name, table)| is_ours(table) && !wanted.contains_key(*name));
    found.extend(gone.map(|(name, _)| (name.clone(), Difference::Drop)));
    found
}

fn is_as_wanted(wanted: &Registration, held: &HeldTable) -> bool {
    let columns = wanted.columns.as_ref().map_or("", |columns| columns.digest.as_str());
    held.mark.as_ref() == Some(&wanted.mark) && held.location == wanted.location && held.columns == columns
}

/// The table as the catalog has it once it was made as it is wanted.
pub fn as_registered(wanted: &Registration) -> HeldTable {
    HeldTable {
        name: wanted.name.clone(),
        mark: Some(wanted.mark.clone()),
        location: wanted.location.clone(),
        columns: wanted.columns.as_ref().map_or_else(String::new, |columns| columns.digest.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::super::columns::Columns;
    use super::*;

    const ROOT: &str = "s3://lake";

    fn name(table: &str) -> CatalogName {
        CatalogName { database: "demo".into(), table: table.into() }
    }

    fn registration(table: &str) -> Registration {
        let mark = Mark { root: ROOT.into(), table: format!("demo/case/{table}") };
        Registration { name: name(table), mark, location: format!("s3a://lake/{table}"), columns: None }
    }

    fn wanted(tables: &[Registration]) -> BTreeMap<CatalogName, Registration> {
        tables.iter().map(|table| (table.name.clone(), table.clone())).collect()
    }

    fn held(tables: &[HeldTable]) -> BTreeMap<CatalogName, HeldTable> {
        tables.iter().map(|table| (table.name.clone(), table.clone())).collect()
    }

    #[test]
    fn every_difference_is_found_and_what_others_made_is_left_alone() {
        let of_others = HeldTable { mark: None, ..as_registered(&registration("of_others")) };
        let mut of_another_lake = as_registered(&registration("of_another_lake"));
        of_another_lake.mark = Some(Mark { root: "s3://another".into(), table: "demo/case/x".into() });
        let moved = HeldTable { location: "s3a://old/moved".into(), ..as_registered(&registration("moved")) };
        let taken = HeldTable { mark: None, ..as_registered(&registration("taken")) };
        let there = [
            as_registered(&registration("same")),
            as_registered(&registration("gone")),
            of_others,
            of_another_lake,
            moved,
            taken,
        ];
        let wanted = wanted(&["same", "new", "moved", "taken"].map(registration));
        let found = differences(ROOT, &wanted, &held(&there));
        let expected = [
            (name("gone"), Difference::Drop),
            (name("moved"), Difference::Alter),
            (name("new"), Difference::Create),
            (name("taken"), Difference::Taken),
        ];
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn columns_are_compared_where_they_are_registered() {
        let with = |schema: &str| Registration { columns: Some(Columns::of_schema(schema)), ..registration("t") };
        let difference = |wanted_table: Registration, there: HeldTable| {
            differences(ROOT, &wanted(&[wanted_table]), &held(&[there])).into_values().next()
        };
        assert_eq!(difference(with("a"), as_registered(&with("a"))), None);
        for (now, before) in [(with("a"), with("b")), (with("a"), registration("t")), (registration("t"), with("a"))] {
            assert_eq!(difference(now, as_registered(&before)), Some(Difference::Alter));
        }
    }

    #[test]
    fn what_was_registered_does_not_differ() {
        let tables = ["a", "b"].map(registration);
        assert!(differences(ROOT, &wanted(&tables), &held(&tables.each_ref().map(as_registered))).is_empty());
    }
}
