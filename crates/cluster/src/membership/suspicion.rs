//! Ends suspicions that SWIM leaves pending, and shortens those with evidence.
//!
//! In foca only the member whose probe failed has a timer that declares the suspect dead, and it
//! forgets that timer when it is itself declared dead and renews its identity, which happens around
//! a partition. The others have heard of the suspicion and would keep it forever, and the suspect,
//! which is not informed, never refutes it. So each member ends a suspicion that has lasted long
//! enough: the suspect counts as dead, hears of it if it is alive, and returns with a renewed
//! identity.
//!
//! A member whose process is observed to be gone is suspected *on evidence*: it has less time to
//! refute.

use std::collections::HashMap;
use std::time::Duration;

use foca::{Incarnation, Member, State};

use super::super::identity::{Identity, NodeKey};
use ringlane_types::time::Instant;

/// The deadline for each suspect to refute.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    until: HashMap<NodeKey, Suspicion>,
    /// When to check again.
    pub check_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Suspicion {
    incarnation: Incarnation,
    until: Instant,
    on_evidence: bool,
}

impl Suspicions {
    /// Records the current suspects and returns the members whose time to refute is over: `limit`
    /// after they were first seen here, or earlier with evidence. Call it again within `period`, at
    /// [`Suspicions::check_at`].
    pub(super) fn overdue<'m>(
        &mut self,
        members: impl Iterator<Item = &'m Member<Identity>>,
        now: Instant,
        limit: Duration,
        period: Duration,
    ) -> Vec<Member<Identity>> {
        let mut until = HashMap::new();
        let mut overdue = Vec::new();
        for member in members.filter(|member| member.state() == State::Suspect) {
            let (key, incarnation) = (member.id().key, member.incarnation());
            let known = self.until.get(&key).filter(|known| known.incarnation == incarnation);
            let new = Suspicion { incarnation, until: now.after(limit), on_evidence: false };
            let suspicion = known.copied().unwrap_or(new);
            if now > suspicion.until {
                overdue.push(Member::new(member.id().clone(), incarnation, State::Down));
            } else {
                until.insert(key, suspicion);
            }
        }
        self.until = until;
        let urgent = self.until.values().filter(|suspicion| suspicion.on_evidence);
        let verdicts = urgent.map(|suspicion| suspicion.until.after(Duration::from_millis(1)));
        self.check_at = verdicts.chain([now.after(period)]).min();
        overdue
    }

    /// The member is a suspect that may refute until `until`. False if it was suspected on evidence
    /// before and has that deadline already.
    pub(super) fn suspect_on_evidence(
        &mut self,
        key: NodeKey,
        incarnation: Incarnation,
        until: Instant,
    ) -> bool {
        let known = self.until.get(&key).filter(|known| known.incarnation == incarnation);
        if known.is_some_and(|known| known.on_evidence || known.until <= until) {
            return false;
        }
        self.until.insert(key, Suspicion { incarnation, until, on_evidence: true });
        let verdict = until.after(Duration::from_millis(1));
        self.check_at = self.check_at.map(|at| at.min(verdict));
        true
    }

    /// The member has shown that it is alive: it gets the normal time to refute.
    pub(super) fn clear_suspicion(&mut self, key: NodeKey) {
        if self.until.get(&key).is_some_and(|suspicion| suspicion.on_evidence) {
            self.until.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::identity::Boot;
    use super::*;

    const START: Instant = Instant::from_millis(1000);
    const LIMIT: Duration = Duration::from_secs(3);
    const PERIOD: Duration = Duration::from_secs(1);

    fn suspect(incarnation: Incarnation) -> Member<Identity> {
        let address = core::net::SocketAddr::new([127, 0, 0, 1].into(), 1);
        Member::new(Identity::new("a", Boot(1), address, address), incarnation, State::Suspect)
    }

    fn at(millis: u64) -> Instant {
        START.after(Duration::from_millis(millis))
    }

    #[test]
    fn a_suspicion_ends_after_its_time_and_a_refutation_begins_it_anew() {
        let mut suspicions = Suspicions::default();
        let mut overdue = |incarnation, millis| {
            suspicions.overdue([suspect(incarnation)].iter(), at(millis), LIMIT, PERIOD)
        };
        assert!(overdue(1, 0).is_empty());
        assert!(overdue(2, 3000).is_empty());
        assert!(overdue(2, 5000).is_empty());
        let overdue = overdue(2, 7000);
        assert_eq!((overdue.len(), overdue[0].state()), (1, State::Down));
    }

    #[test]
    fn evidence_shortens_the_time_to_refute_until_the_member_shows_that_it_lives() {
        let mut suspicions = Suspicions::default();
        let members = [suspect(1)];
        let key = members[0].id().key;
        suspicions.overdue(members.iter(), at(0), LIMIT, PERIOD);
        assert!(suspicions.suspect_on_evidence(key, 1, at(400)));
        assert!(!suspicions.suspect_on_evidence(key, 1, at(900)), "a second time changes nothing");
        assert_eq!(suspicions.check_at, Some(at(401)));
        assert!(suspicions.overdue(members.iter(), at(200), LIMIT, PERIOD).is_empty());
        assert_eq!(suspicions.check_at, Some(at(401)), "a look in between does not put it off");
        suspicions.clear_suspicion(key);
        assert!(suspicions.overdue(members.iter(), at(401), LIMIT, PERIOD).is_empty());
        assert!(suspicions.suspect_on_evidence(key, 1, at(800)));
        assert_eq!(suspicions.overdue(members.iter(), at(801), LIMIT, PERIOD).len(), 1);
    }
}
