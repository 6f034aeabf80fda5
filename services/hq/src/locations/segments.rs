//! A list that grows without being moved, so that hundreds of thousands of entries never need twice their memory.

/// Entries of one segment.
const SEGMENT_SIZE: usize = 8_192;

/// A list in segments of equal size.
#[derive(Clone, Debug)]
pub(super) struct Segments<T> {
    segments: Vec<Vec<T>>,
}

impl<T> Default for Segments<T> {
    fn default() -> Self {
        Self { segments: Vec::new() }
    }
}

impl<T: Copy> Segments<T> {
    pub fn push(&mut self, entry: T) {
        match self.segments.last_mut() {
            Some(last) if last.len() < SEGMENT_SIZE => last.push(entry),
            last => {
                // Most domains are small: their only segment grows as it has to.
                let room = if last.is_some() { SEGMENT_SIZE } else { 0 };
                let mut segment = Vec::with_capacity(room);
                segment.push(entry);
                self.segments.push(segment);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.segments.last().map_or(0, |last| (self.segments.len() - 1) * SEGMENT_SIZE + last.len())
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        self.segments.get(index / SEGMENT_SIZE)?.get(index % SEGMENT_SIZE)
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.segments.get_mut(index / SEGMENT_SIZE)?.get_mut(index % SEGMENT_SIZE)
    }

    /// The entry with this key, in a list that ascends by key.
    pub fn find_by_key<K: Ord>(&self, key: &K, key_of: impl Fn(&T) -> K) -> Option<&T> {
        let number = self.segments.partition_point(|segment| segment.last().is_some_and(|last| key_of(last) < *key));
        let segment = self.segments.get(number)?;
        segment.binary_search_by(|entry| key_of(entry).cmp(key)).ok().map(|index| &segment[index])
    }

    /// Gives back the room of the last segment that is not used.
    pub fn shrink(&mut self) {
        if let Some(last) = self.segments.last_mut() {
            last.shrink_to_fit();
        }
        self.segments.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_index_and_by_key_over_several_segments() {
        let mut list = Segments::default();
        assert_eq!((list.len(), list.get(0)), (0, None));
        let count = 2 * SEGMENT_SIZE + 5;
        for number in 0..count {
            list.push((number * 2, number));
        }
        list.shrink();
        assert_eq!((list.len(), list.get(count)), (count, None));
        for number in [0, 1, SEGMENT_SIZE - 1, SEGMENT_SIZE, count - 1] {
            assert_eq!(list.get(number), Some(&(number * 2, number)));
            assert_eq!(list.find_by_key(&(number * 2), |entry| entry.0), Some(&(number * 2, number)));
            assert_eq!(list.find_by_key(&(number * 2 + 1), |entry| entry.0), None);
        }
        if let Some(entry) = list.get_mut(SEGMENT_SIZE) {
            entry.1 = 7;
        }
        assert_eq!(list.get(SEGMENT_SIZE).map(|entry| entry.1), Some(7));
    }
}
