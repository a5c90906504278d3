//! Which open file descriptions must be made together, and in which task.
//!
//! Pure: pipes, socket pairs and terminals have several descriptions that come into being at once or
//! depend on each other; they form a group. A group is made in the closest common ancestor of all
//! tasks that hold a part of it, so that the others inherit it.

use std::collections::{BTreeMap, HashMap};

/// Descriptions that are made together: ids of `files.img`, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub ids: Vec<u32>,
    /// The task that makes it.
    pub opener: usize,
    /// Held by tasks with different descriptor tables, so that it must be made before they are
    /// cloned.
    pub shared: bool,
}

/// A reason for which two descriptions belong together: equal keys, one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bond {
    /// Ends of one pipe, by pipe id.
    Pipe(u32),
    /// Openings of one named pipe.
    Fifo(u32),
    /// A unix socket, by inode: itself and its peer.
    Unix(u32),
    /// Everything under one unix socket name that is connected.
    UnixName(Vec<u8>),
    /// Datagram sockets of one name, and those in which datagrams from it are unread.
    UnixSender(Vec<u8>),
    /// Both sides of a pseudo terminal, by index.
    Pty(u32),
}

/// Forms the groups. `held` lists every description with the tasks (owners of descriptor tables)
/// that hold it; `bonds` lists what ties descriptions together; `parents` is the process tree,
/// parents first.
pub(super) fn form(
    held: &BTreeMap<u32, Vec<usize>>,
    bonds: &[(Bond, u32)],
    parents: &[Option<usize>],
) -> Vec<Group> {
    let ids: Vec<u32> = held.keys().copied().collect();
    let index: HashMap<u32, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let mut root: Vec<usize> = (0..ids.len()).collect();
    let mut first: HashMap<&Bond, usize> = HashMap::new();
    for (bond, id) in bonds {
        let Some(&at) = index.get(id) else { continue };
        let other = *first.entry(bond).or_insert(at);
        let (a, b) = (find(&mut root, at), find(&mut root, other));
        root[a.max(b)] = a.min(b);
    }
    let mut groups: BTreeMap<usize, (Vec<u32>, Vec<usize>)> = BTreeMap::new();
    for (at, id) in ids.iter().enumerate() {
        let (members, holders) = groups.entry(find(&mut root, at)).or_default();
        members.push(*id);
        holders.extend(&held[id]);
    }
    groups
        .into_values()
        .map(|(ids, mut holders)| {
            holders.sort_unstable();
            holders.dedup();
            let shared = holders.len() > 1;
            let opener = holders
                .into_iter()
                .reduce(|a, b| common_ancestor(parents, a, b))
                .unwrap_or_default();
            Group { ids, opener, shared }
        })
        .collect()
}

fn find(root: &mut [usize], mut at: usize) -> usize {
    while root[at] != at {
        root[at] = root[root[at]];
        at = root[at];
    }
    at
}

/// The closest task that is an ancestor of both, or one of them. Parents come first in the list, so
/// the later of two can never be an ancestor of the earlier.
pub(super) fn common_ancestor(parents: &[Option<usize>], mut a: usize, mut b: usize) -> usize {
    while a != b {
        let later = a.max(b);
        match parents.get(later).copied().flatten() {
            Some(parent) if parent < later => {
                if a > b {
                    a = parent;
                } else {
                    b = parent;
                }
            }
            // Two roots, or a damaged tree: the first task is everybody's ancestor.
            _ => return 0,
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: [Option<usize>; 6] = [None, Some(0), Some(0), Some(1), Some(1), Some(4)];

    #[test]
    fn the_closest_ancestor_is_found() {
        assert_eq!(common_ancestor(&TREE, 3, 5), 1);
        assert_eq!(common_ancestor(&TREE, 2, 5), 0);
        assert_eq!(common_ancestor(&TREE, 4, 5), 4);
        assert_eq!(common_ancestor(&TREE, 3, 3), 3);
        assert_eq!(common_ancestor(&[None, None], 0, 1), 0);
    }

    #[test]
    fn a_pipe_between_siblings_is_made_in_their_parent() {
        let held = BTreeMap::from([(1, vec![3]), (2, vec![4]), (7, vec![5]), (8, vec![3, 5])]);
        let groups = form(&held, &[(Bond::Pipe(9), 1), (Bond::Pipe(9), 2)], &TREE);
        assert_eq!(
            groups,
            [
                Group { ids: vec![1, 2], opener: 1, shared: true },
                Group { ids: vec![7], opener: 5, shared: false },
                Group { ids: vec![8], opener: 1, shared: true },
            ]
        );
    }

    #[test]
    fn chains_of_bonds_form_one_group() {
        let held = BTreeMap::from([(1, vec![0]), (2, vec![0]), (3, vec![0])]);
        let bonds = [
            (Bond::Unix(1), 3),
            (Bond::Unix(1), 2),
            (Bond::UnixName(b"x".to_vec()), 2),
            (Bond::UnixName(b"x".to_vec()), 1),
            (Bond::Pty(1), 99),
        ];
        let groups = form(&held, &bonds, &TREE);
        assert_eq!(groups, [Group { ids: vec![1, 2, 3], opener: 0, shared: false }]);
    }
}
