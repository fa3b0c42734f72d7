//! Quorums: how many replicas must answer, and what follows from that.

use ringlane_types::request::Consistency;

/// How many replicas store a key and how many must participate in an operation. Valid: no quorum is
/// zero or above the number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    replicas: u8,
    write_quorum: u8,
    read_quorum: u8,
}

impl Default for Replication {
    fn default() -> Self {
        Self { replicas: 1, write_quorum: 1, read_quorum: 1 }
    }
}

impl Replication {
    /// `replicas` replicas, of which `write_quorum` must acknowledge a write and `read_quorum` must
    /// answer a read. `None` if a quorum is zero or above the number of replicas, or that is not 1
    /// to 8.
    pub const fn new(replicas: u8, write_quorum: u8, read_quorum: u8) -> Option<Self> {
        if replicas >= 1
            && replicas as usize <= ringlane_ring::REPLICAS_MAX
            && write_quorum >= 1
            && write_quorum <= replicas
            && read_quorum >= 1
            && read_quorum <= replicas
        {
            Some(Self { replicas, write_quorum, read_quorum })
        } else {
            None
        }
    }

    /// Replicas of each key.
    pub const fn replicas(self) -> u8 {
        self.replicas
    }

    /// Replicas that must acknowledge a write.
    pub const fn write_quorum(self) -> u8 {
        self.write_quorum
    }

    /// Replicas that must answer a read.
    pub const fn read_quorum(self) -> u8 {
        self.read_quorum
    }

    /// Every read quorum shares a replica with every write quorum, and there is more than one
    /// replica: the cluster then gives the guarantee of `docs/cluster.md` and refuses an operation
    /// rather than break it. Otherwise availability comes first: other nodes stand in for dead
    /// ones.
    pub const fn is_strict(self) -> bool {
        self.replicas > 1 && self.write_quorum + self.read_quorum > self.replicas
    }

    /// Every two write quorums share a replica, so that a write meets every acknowledged one.
    pub const fn writes_meet(self) -> bool {
        2 * self.write_quorum > self.replicas
    }

    /// Of `present` replicas of an old set, how many must have left it before a new set may
    /// acknowledge writes: enough that the remaining ones form no read quorum.
    pub const fn fences_needed(self, present: usize) -> usize {
        (present + 1).saturating_sub(self.read_quorum as usize)
    }

    /// Of `present` replicas of an old set, from how many a new replica must have copied before it
    /// counts for reads: enough to meet every acknowledged write, and every operation under the old
    /// set. If the old set is too small, writes may be older than it, and a holder of them may be
    /// gone.
    pub const fn copies_needed(self, present: usize) -> usize {
        let copies = (self.replicas + 1 - self.write_quorum) as usize;
        let copies = if copies < present { copies } else { present };
        let fences = self.fences_needed(present);
        if copies > fences { copies } else { fences }
    }

    /// Acknowledgements that a write with this consistency needs.
    pub const fn writes_for(self, consistency: Consistency) -> u8 {
        self.needed(consistency, self.write_quorum)
    }

    /// Answers that a read with this consistency needs.
    pub const fn reads_for(self, consistency: Consistency) -> u8 {
        self.needed(consistency, self.read_quorum)
    }

    const fn needed(self, consistency: Consistency, configured: u8) -> u8 {
        match consistency {
            Consistency::Configured => configured,
            Consistency::One => 1,
            Consistency::Quorum => self.replicas / 2 + 1,
            Consistency::All => self.replicas,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Replication> {
        (0..=9)
            .flat_map(|n| (0..=9).flat_map(move |w| (0..=9).map(move |r| (n, w, r))))
            .filter_map(|(n, w, r)| Replication::new(n, w, r))
    }

    #[test]
    fn a_quorum_is_never_zero_nor_above_the_replicas() {
        assert!(Replication::new(3, 4, 1).is_none());
        assert!(Replication::new(3, 0, 1).is_none());
        assert!(Replication::new(0, 0, 0).is_none());
        assert!(Replication::new(9, 1, 1).is_none());
        for replication in all() {
            for consistency in
                [Consistency::Configured, Consistency::One, Consistency::Quorum, Consistency::All]
            {
                let allowed = 1..=replication.replicas();
                assert!(allowed.contains(&replication.writes_for(consistency)));
                assert!(allowed.contains(&replication.reads_for(consistency)));
            }
        }
    }

    #[test]
    fn copies_meet_every_acknowledged_write_and_fences_leave_no_read_quorum() {
        for replication in all() {
            let present = replication.replicas() as usize;
            let write_quorum = replication.write_quorum() as usize;
            let read_quorum = replication.read_quorum() as usize;
            assert!(replication.copies_needed(present) + write_quorum > present);
            assert!(present - replication.fences_needed(present) < read_quorum);
            assert!(replication.copies_needed(present) <= present);
        }
    }

    #[test]
    fn the_usual_three_two_two_is_strict_and_one_copy_is_not() {
        let usual = Replication::new(3, 2, 2).unwrap();
        assert!(usual.is_strict() && usual.writes_meet());
        assert_eq!((usual.fences_needed(3), usual.copies_needed(3)), (2, 2));
        assert_eq!(usual.copies_needed(2), 2, "the third may have gone with all but one copy");
        assert!(!Replication::default().is_strict());
        assert!(!Replication::new(3, 1, 2).unwrap().is_strict());
        let slow_reads = Replication::new(3, 1, 3).unwrap();
        assert!(slow_reads.is_strict() && !slow_reads.writes_meet());
    }
}
