#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use lake_hq::source::LocationStep;
use lake_proto::queue::v1::Lineage;

use super::*;

/// `(id, parent_id)` of a whole domain.
struct Hq(BTreeMap<i64, Option<i64>>);

impl Hq {
    fn row(&self, id: i64) -> LocationRow {
        let location_id = format!("l{id}");
        LocationRow { id, location_id, domain: "demo".into(), parent_id: self.0[&id], ..LocationRow::default() }
    }

    fn rows(&self, ids: &[i64]) -> Vec<LocationRow> {
        ids.iter().filter(|id| self.0.contains_key(id)).map(|id| self.row(*id)).collect()
    }

    fn ancestors(&self) -> AncestorPaths {
        let step = |id: &i64| {
            let LocationRow { id, location_id, domain, parent_id, .. } = self.row(*id);
            LocationStep { id, location_id, domain, parent_id }
        };
        AncestorPaths::new(self.0.keys().map(step).collect())
    }

    fn children(&self, of: &[VisitedLocation]) -> Vec<(i64, i64)> {
        let parents: BTreeSet<i64> = of.iter().map(|visited| visited.row.id).collect();
        let below = |(id, parent): (&i64, &Option<i64>)| {
            parent.filter(|parent| parents.contains(parent)).map(|parent| (*id, parent))
        };
        self.0.iter().filter_map(below).collect()
    }
}

fn changes(ids: &[i64]) -> Changes {
    let change = |id: &i64| {
        let lineage = Lineage { offset: *id, ..Lineage::default() };
        (format!("l{id}"), Change { lineage, ..Change::default() })
    };
    ids.iter().map(change).collect()
}

/// What is visited, in order: id, lineage, and whose message caused it; and the most that waited at a time, and the chunks.
fn walked(hq: &Hq, changed: &[i64]) -> (Vec<(i64, String, i64)>, usize, usize) {
    let changes = changes(changed);
    let mut walk = SubtreeWalk::new(&changes, hq.rows(changed), hq.ancestors());
    let (mut all, mut waiting_max, mut chunks) = (Vec::new(), 0, 0);
    while let Some(chunk) = walk.chunk() {
        let read = hq.rows(&walk.unread(&chunk));
        let visited = walk.visit(chunk, read);
        all.extend(
            visited
                .iter()
                .map(|visited| (visited.row.id, visited.lineage().join(" "), visited.cause(&changes).lineage.offset)),
        );
        let children = hq.children(&visited);
        walk.descend(visited, children);
        waiting_max = waiting_max.max(walk.levels.iter().map(Vec::len).sum());
        chunks += 1;
    }
    (all, waiting_max, chunks)
}

#[test]
fn everything_below_is_met_once_with_its_lineage_and_cause() {
    let parents = [(1, None), (2, Some(1)), (3, Some(1)), (4, Some(2)), (5, Some(4)), (6, Some(3)), (7, None)];
    let hq = Hq(parents.into());
    let lineage = |of: &str| of.to_owned();
    let mut all = walked(&hq, &[2]).0;
    assert_eq!(all, [(2, lineage("l1"), 2), (4, lineage("l2 l1"), 2), (5, lineage("l4 l2 l1"), 2)]);
    all = walked(&hq, &[5, 1, 4]).0;
    all.sort_unstable();
    let causes: Vec<(i64, i64)> = all.iter().map(|(id, _, cause)| (*id, *cause)).collect();
    assert_eq!(causes, [(1, 1), (2, 1), (3, 1), (4, 4), (5, 5), (6, 1)]);
    assert_eq!(walked(&hq, &[7]).0, [(7, String::new(), 7)]);
}

#[test]
fn circles_are_gone_round_once() {
    let hq = Hq([(1, Some(3)), (2, Some(1)), (3, Some(2)), (4, Some(2)), (5, Some(5))].into());
    for changed in [&[1, 2, 3, 4, 5][..], &[5, 2], &[3, 5, 4]] {
        let mut all: Vec<i64> = walked(&hq, changed).0.into_iter().map(|(id, ..)| id).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5], "{changed:?}");
    }
    let visited = walked(&hq, &[1]).0;
    let two = visited.iter().find(|(id, ..)| *id == 2).unwrap();
    let four = visited.iter().find(|(id, ..)| *id == 4).unwrap();
    assert_eq!((visited[0].1.as_str(), two.1.as_str(), four.1.as_str()), ("l3 l2", "l1 l3", "l2 l1 l3"));
}

#[test]
fn little_waits_however_large_the_tree_is() {
    // 10 children each on five levels: 111,111 locations.
    let hq = Hq((0..111_111_i64).map(|id| (id, (id > 0).then(|| (id - 1) / 10))).collect());
    // Looking children up by scanning would take quadratic time.
    let changes = changes(&[0]);
    let mut walk = SubtreeWalk::new(&changes, hq.rows(&[0]), hq.ancestors());
    let (mut visited_ids, mut waiting_max, mut chunks) = (BTreeSet::new(), 0, 0);
    while let Some(chunk) = walk.chunk() {
        let read = hq.rows(&walk.unread(&chunk));
        let visited = walk.visit(chunk, read);
        assert!(visited.iter().all(|visited| visited_ids.insert(visited.row.id)), "a location was visited twice");
        let children =
            |id: i64| (id * 10 + 1..=id * 10 + 10).filter(|child| *child < 111_111).map(move |child| (child, id));
        let children = visited.iter().flat_map(|visited| children(visited.row.id)).collect();
        walk.descend(visited, children);
        waiting_max = waiting_max.max(walk.levels.iter().map(Vec::len).sum());
        chunks += 1;
    }
    assert_eq!(visited_ids.len(), 111_111);
    assert!(waiting_max <= 20_000, "{waiting_max} locations waited");
    assert!(chunks <= 125, "{chunks} chunks");
}

#[test]
fn what_is_gone_or_moved_away_meanwhile_is_left_out_but_never_a_location_that_changed_itself() {
    let changes = changes(&[1, 3]);
    let before = Hq([(1, None), (2, Some(1)), (3, Some(2)), (4, Some(2))].into());
    let mut walk = SubtreeWalk::new(&changes, before.rows(&[1, 3]), before.ancestors());
    // Then 3 moves up to 1, 4 to the top, and 2 goes.
    let after = Hq([(1, None), (3, Some(1)), (4, None)].into());
    let mut visited_ids = Vec::new();
    while let Some(chunk) = walk.chunk() {
        let read = after.rows(&walk.unread(&chunk));
        let visited = walk.visit(chunk, read);
        visited_ids.extend(visited.iter().map(|visited| visited.row.id));
        // The answer about 1 is from before.
        let children = if visited_ids == [1] { before.children(&visited) } else { after.children(&visited) };
        walk.descend(visited, children);
    }
    assert_eq!(visited_ids, [1, 3]);
}

#[test]
fn a_tree_that_is_too_deep_is_cut() {
    let hq = Hq((0..1_500_i64).map(|id| (id, (id > 0).then(|| id - 1))).collect());
    let (visited, _, _) = walked(&hq, &[0, 1_400]);
    let ids: BTreeSet<i64> = visited.iter().map(|(id, ..)| *id).collect();
    assert!(ids.contains(&999) && !ids.contains(&1_001) && ids.contains(&1_400) && ids.contains(&1_499));
    assert_eq!(visited.iter().find(|(id, ..)| *id == 200).unwrap().1.split(' ').count(), HOPS_MAX);
}
