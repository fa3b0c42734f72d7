//! Suspicions that nobody ends.
//!
//! In foca only the member whose probe failed has a timer that turns the suspect dead, and it
//! forgets that timer when it is itself declared dead and renews its identity, which is what happens
//! around a partition. The others have heard of the suspicion and would keep it for ever, and the
//! suspect, whom nobody tells, never refutes it. So each member ends what it has believed for long
//! enough: the suspect counts as dead, hears of that if it is alive, and returns renewed.

use std::collections::HashMap;
use std::time::Duration;

use foca::{Incarnation, Member, State};

use super::super::identity::{Identity, NodeKey};
use crate::time::Instant;

/// Since when each suspect is one.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    since: HashMap<NodeKey, (Incarnation, Instant)>,
    /// When to look again.
    pub look_at: Option<Instant>,
}

impl Suspicions {
    /// Takes note of who is suspect now; the members that have been so for longer than `limit`.
    pub fn overdue<'m>(
        &mut self,
        members: impl Iterator<Item = &'m Member<Identity>>,
        now: Instant,
        limit: Duration,
    ) -> Vec<Member<Identity>> {
        let mut since = HashMap::new();
        let mut overdue = Vec::new();
        for member in members.filter(|member| member.state() == State::Suspect) {
            let (key, incarnation) = (member.id().key, member.incarnation());
            let known = self.since.get(&key).filter(|(known, _)| *known == incarnation);
            let began = known.map_or(now, |(_, began)| *began);
            if now.since(began) > limit {
                overdue.push(Member::new(member.id().clone(), incarnation, State::Down));
            } else {
                since.insert(key, (incarnation, began));
            }
        }
        self.since = since;
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::identity::Boot;
    use super::*;

    #[test]
    fn a_suspicion_ends_after_its_time_and_a_refutation_begins_it_anew() {
        let address = core::net::SocketAddr::new([127, 0, 0, 1].into(), 1);
        let identity = Identity::new("a", Boot(1), address, address);
        let suspect = |incarnation| Member::new(identity.clone(), incarnation, State::Suspect);
        let (start, limit) = (Instant::from_millis(1000), Duration::from_secs(3));
        let at = |seconds| start.after(Duration::from_secs(seconds));
        let mut suspicions = Suspicions::default();
        assert!(suspicions.overdue([suspect(1)].iter(), at(0), limit).is_empty());
        assert!(suspicions.overdue([suspect(2)].iter(), at(3), limit).is_empty());
        assert!(suspicions.overdue([suspect(2)].iter(), at(5), limit).is_empty());
        let overdue = suspicions.overdue([suspect(2)].iter(), at(7), limit);
        assert_eq!((overdue.len(), overdue[0].state()), (1, State::Down));
    }
}
