//! Sets of addresses as ascending ranges.

/// Ranges of whole pages: ascending, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Appends a range that begins at or after the end of the last one.
    pub fn push(&mut self, start: u64, end: u64) {
        match self.0.last_mut() {
            Some((_, to)) if *to == start => *to = end,
            _ if start < end => self.0.push((start, end)),
            _ => {}
        }
    }

    /// Whether a byte of `start..end` is in the set.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.from(start).next().is_some_and(|(at, _)| at < end)
    }

    /// Cuts `start..end` into the parts that are in the set (true) and those that are not, in order.
    pub fn cut(&self, start: u64, end: u64, mut part: impl FnMut(u64, u64, bool)) {
        let mut at = start;
        for (from, to) in self.from(start).take_while(|(from, _)| *from < end) {
            let (from, to) = (from.max(at), to.min(end));
            if at < from {
                part(at, from, false);
            }
            part(from, to, true);
            at = to;
        }
        if at < end {
            part(at, end, false);
        }
    }

    /// All ranges.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges that do not end before `start`.
    fn from(&self, start: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let index = self.0.partition_point(|(_, end)| *end <= start);
        self.0[index..].iter().copied()
    }
}

/// Sorted and made one; for ranges that come in any order.
impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut all: Vec<(u64, u64)> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut made = Ranges::default();
        for (start, end) in all {
            match made.0.last_mut() {
                Some((_, to)) if *to >= start => *to = end.max(*to),
                _ => made.push(start, end),
            }
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(ranges: &Ranges, start: u64, end: u64) -> Vec<(u64, u64, bool)> {
        let mut all = Vec::new();
        ranges.cut(start, end, |from, to, inside| all.push((from, to, inside)));
        all
    }

    #[test]
    fn a_range_is_cut_at_every_edge() {
        let ranges: Ranges = [(50, 60), (10, 20), (20, 30)].into_iter().collect();
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(10, 30), (50, 60)]);
        assert_eq!(ranges.bytes(), 30);
        assert_eq!(parts(&ranges, 0, 10), [(0, 10, false)]);
        assert_eq!(parts(&ranges, 15, 25), [(15, 25, true)]);
        let all = [(0, 10, false), (10, 30, true), (30, 50, false), (50, 60, true)];
        assert_eq!(parts(&ranges, 0, 60), all);
        assert_eq!(parts(&ranges, 55, 70), [(55, 60, true), (60, 70, false)]);
        assert!(ranges.overlaps(29, 31) && !ranges.overlaps(30, 50));
        assert_eq!(parts(&Ranges::default(), 1, 2), [(1, 2, false)]);
    }
}
