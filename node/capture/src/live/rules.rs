//! The rules of sessions, at their start and when their roles say something else. Rules that cannot be kept end a session, as they would
//! have refused it; of one whose client is gone that is told, and the rules before hold on.

use std::collections::HashMap;
use std::io;

use proto::capture_rules::CaptureRules;
use proto::id::RoleName;
use tokio::sync::oneshot;

use super::{Live, Watched};
use crate::rules::enforcer;
use crate::{RulesOf, lock, object};

/// Where a session's rules come from, and who is told when they cannot be kept.
#[derive(Debug)]
pub(super) struct Source {
    /// None: its rules stay what they are.
    pub(super) roles: Vec<RoleName>,
    /// Who ends the session.
    listener: Option<oneshot::Sender<String>>,
    /// Those that could not be kept, which are told once.
    refused: Option<CaptureRules>,
}

impl Source {
    pub(super) fn new(roles: &[RoleName]) -> Self {
        Self { roles: roles.to_vec(), listener: None, refused: None }
    }

    pub(super) fn listen(&mut self) -> oneshot::Receiver<String> {
        let (listener, unkept) = oneshot::channel();
        self.listener = Some(listener);
        unkept
    }

    /// Has the session ended; whether there is somebody who can do that.
    pub(super) fn end(&mut self, why: &str) -> bool {
        self.listener.take().is_some_and(|listener| listener.send(why.to_owned()).is_ok())
    }
}

impl Live {
    /// Puts every session under what its roles say now.
    pub(crate) fn renew_all(&self, rules_of: &RulesOf<'_>) {
        let _turn = lock(&self.renewing);
        let mut by_roles = HashMap::<Vec<RoleName>, Vec<u64>>::new();
        for (number, watched) in &lock(&self.sessions).by_number {
            by_roles.entry(watched.rules.roles.clone()).or_default().push(*number);
        }
        by_roles.remove(&Vec::new());
        for (roles, numbers) in by_roles {
            // Roles that say nothing any more take nothing back.
            let Some(rules) = rules_of(&roles) else { continue };
            for number in numbers {
                if let Err(error) = self.put_under(number, &rules) {
                    self.unkept(number, &rules, &error);
                }
            }
        }
    }

    /// The same for one session that begins, since its roles may have changed after they were asked.
    ///
    /// # Errors
    /// They cannot be kept here; those before hold on.
    pub(crate) fn renew(&self, number: u64, rules_of: &RulesOf<'_>) -> io::Result<()> {
        let _turn = lock(&self.renewing);
        let roles = match lock(&self.sessions).by_number.get(&number) {
            Some(watched) => watched.rules.roles.clone(),
            None => return Ok(()),
        };
        rules_of(&roles).map_or(Ok(()), |rules| self.put_under(number, &rules))
    }

    fn put_under(&self, number: u64, rules: &CaptureRules) -> io::Result<()> {
        if self.maps.rules.is_under(number, rules) {
            return Ok(());
        }
        let unwatched = self.can_keep(rules)?;
        self.maps.rules.assign(number, rules)?;
        // Held, so that nothing is written of a session that is being forgotten.
        let mut sessions = lock(&self.sessions);
        let Some(watched) = sessions.by_number.get_mut(&number) else {
            self.maps.rules.release(number);
            return Ok(());
        };
        if !watched.is_over {
            tracing::info!(number, "a session is under other rules");
            watched.rules_unwatched(unwatched);
        }
        if let Some(pins) = &self.pins
            && let Err(error) = pins.remember_rules(number, rules)
        {
            // The next node asks the roles again.
            tracing::warn!(%error, number, "a session's rules are not kept for a node after this one");
        }
        Ok(())
    }

    /// Has the session ended where somebody can do that; where its client is gone, it is told of.
    fn unkept(&self, number: u64, rules: &CaptureRules, error: &io::Error) {
        let mut sessions = lock(&self.sessions);
        let Some(watched) = sessions.by_number.get_mut(&number) else { return };
        if watched.rules.refused.as_ref() == Some(rules) {
            return;
        }
        watched.rules.refused = Some(rules.clone());
        tracing::error!(%error, sid = %watched.facts.sid, "rules of a session that runs");
        let is_told = watched.rules.end(&error.to_string());
        if !is_told && !watched.is_over {
            watched.lost("rules", "unsupported", 1);
        }
    }

    /// Whether the kernel does what rules say. Of those that only watch, why not all are watched: that is no reason to refuse.
    pub(super) fn can_keep(&self, rules: &CaptureRules) -> io::Result<Option<String>> {
        let why = enforcer::missing(rules, &lock(&self.object).coverage)
            .or_else(|| enforcer::digests_unsure(rules, &object::release()));
        match why {
            Some(why) if rules.enforces() => Err(crate::unenforced(&why)),
            why => Ok(why),
        }
    }
}

impl Watched {
    /// Rules that only watch, and that this kernel does not watch in full; why not.
    pub(super) fn rules_unwatched(&mut self, why: Option<String>) {
        if let Some(why) = why {
            tracing::warn!(why, sid = %self.facts.sid, "rules of a session's roles are not watched in full");
            self.lost("rules", "unsupported", 1);
        }
    }
}
